"""The 4-bit weights (NF4) that bitsandbytes saves in safetensors files: found by their names, checked, dequantised.

A quantised weight is a tensor of bytes with companions, which are named after it:

    (weight)                        two 4-bit codes a byte, the first in the high half, row after row without a gap
    .quant_map                      fp32 (16): the level of each code
    .absmax                         fp32, one for each block of `blocksize` codes; or, doubly quantised, uint8 codes
    .nested_quant_map               fp32 (256): the levels of those
    .nested_absmax                  fp32, one for each block of `nested_blocksize` of those
    .quant_state.bitsandbytes__nf4  JSON as bytes: the true shape, both block sizes, nested_offset, the dtype before

A weight is `quant_map[code] * absmax`, and an absmax `nested_quant_map[code] * nested_absmax + nested_offset`, each
operation rounded to fp32 (arXiv 2305.14314). The last block of either may be short.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mindone_audio.weights.hub import CheckpointError

_PARTS = re.compile(r"(.+)\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)")
_STATE = "quant_state.bitsandbytes__"
_PLAIN, _NESTED = {"absmax", "quant_map"}, {"nested_absmax", "nested_quant_map"}
_FLOATS = {"F32", "F16", "BF16"}
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_LARGEST = float(np.finfo(np.float32).max)
_BYTES_AT_ONCE = 1 << 17  # of codes: bounds what dequantising needs beside its result
_OTHERWISE = (
    "is not supported: load the checkpoint that it was made from, or quantise that with load_in_4bit=True and "
    "bnb_4bit_quant_type='nf4'"
)


@dataclass(frozen=True)
class Blocks:
    """Codes in blocks that share a scale: value = levels[code] * scale (+ offset), in fp32.

    codes uint8, flat, padded with zeros to whole blocks; levels fp32 (256, values of one byte); scales fp32 (blocks);
    count: values that are not padding; offset: a Python float, exact in fp32.
    """

    codes: np.ndarray
    levels: np.ndarray
    scales: np.ndarray
    count: int
    offset: float = 0.0


@dataclass(frozen=True)
class QuantizedWeight:
    """A checked NF4 weight that has not been read yet; it stands for all its tensors.

    file, name, dtype (as safetensors spells it: what it was quantised from), shape and size (bytes on disk) are those
    that one stored tensor has. `parts` are the stored tensors, `read` gives the array of one, `state` the JSON.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    state: dict[str, Any]
    parts: dict[str, Any]
    read: Callable[[Any], np.ndarray]

    @property
    def nested(self) -> bool:
        """Whether the scales are quantised as well."""
        return "nested_absmax" in self.parts

    def codes(self, absmax: np.ndarray) -> Blocks:
        """The weight itself as codes, two a byte, for the scales `absmax`, fp32 (blocks)."""
        stored = self.parts["weight"]
        stored = replace(stored, dtype="U8", shape=(stored.size,))  # whatever bnb_4bit_quant_storage was
        codes = _whole_blocks(self.read(stored), self.state["blocksize"] // 2)
        levels = self._floats("quant_map")
        pairs = np.stack([np.repeat(levels, 16), np.tile(levels, 16)], 1)
        return Blocks(codes, pairs, absmax, math.prod(self.shape))

    def absmax_codes(self) -> Blocks:
        """The scales of a doubly quantised weight as codes."""
        codes = self.read(self.parts["absmax"]).reshape(-1)
        levels, scales = self._floats("nested_quant_map").reshape(-1, 1), self._floats("nested_absmax")
        offset = float(np.float32(self.state["nested_offset"]))
        return Blocks(_whole_blocks(codes, self.state["nested_blocksize"]), levels, scales, codes.size, offset)

    def absmax(self) -> np.ndarray:
        """The scales, fp32 (blocks)."""
        if not self.nested:
            return self._floats("absmax")
        blocks = self.absmax_codes()
        absmax = np.empty(blocks.count, np.float32)
        dequantize(blocks, absmax)
        return absmax

    def dequantized(self, dtype: np.dtype) -> np.ndarray:
        """The weight, computed in fp32 and rounded once, to `dtype`."""
        array = np.empty(self.shape, dtype)
        dequantize(self.codes(self.absmax()), array.reshape(-1))
        return array

    def _floats(self, part: str) -> np.ndarray:
        return self.read(self.parts[part]).reshape(-1).astype(np.float32)


def dequantize(blocks: Blocks, target: np.ndarray) -> None:
    """Write the values of `blocks` into flat `target` (blocks.count), a part at a time."""
    width = blocks.levels.shape[1]
    in_block = len(blocks.codes) // len(blocks.scales)
    whole_levels = np.ascontiguousarray(blocks.levels).view(f"u{4 * width}").reshape(-1)
    step = max(1, _BYTES_AT_ONCE // in_block)
    for first in range(0, len(blocks.scales), step):
        scales = blocks.scales[first : first + step]
        codes = blocks.codes[first * in_block : (first + step) * in_block]
        values = whole_levels[codes].view(np.float32).reshape(len(scales), -1)
        values *= scales[:, None]
        if blocks.offset:
            values += np.float32(blocks.offset)
        place = target[first * in_block * width :][: values.size]
        place[:] = values.reshape(-1)[: place.size]


def group(stored: dict[str, Any], read: Callable[[Any], np.ndarray]) -> dict[str, Any]:
    """Tensors by name with each NF4 weight and its companions made one `QuantizedWeight`; the others stay as they are.

    read: the array of a stored tensor. Raises `CheckpointError` for quantisations that are not supported, and for
    companions that are missing, of the wrong size or contradictory, naming file and tensor.
    """
    companions: dict[str, dict[str, Any]] = {}
    for name, tensor in stored.items():
        if name.endswith((".SCB", ".weight_format")) or (tensor.dtype == "I8" and name.endswith(".weight")):
            raise CheckpointError(
                f"{tensor.file}: tensor {name!r} is bitsandbytes' int8 (LLM.int8, load_in_8bit), which {_OTHERWISE}"
            )
        if match := _PARTS.fullmatch(name):
            if match[2].startswith(_STATE) and match[2] != f"{_STATE}nf4":
                kind = match[2].removeprefix(_STATE).upper()
                raise CheckpointError(f"{tensor.file}: tensor {match[1]!r} is quantised to {kind}, which {_OTHERWISE}")
            companions.setdefault(match[1], {})[match[2]] = tensor
    result = {name: tensor for name, tensor in stored.items() if not _PARTS.fullmatch(name)}
    for name, parts in companions.items():
        if name not in stored:
            raise CheckpointError(f"{next(iter(parts.values())).file} has {name}.{min(parts)}, but nowhere is {name!r}")
        result[name] = _checked(name, {"weight": stored[name], **parts}, read)
    return result


def check_config(config: dict, folder: Path) -> None:
    """Refuse what a config.json's `quantization_config` says of weights that `group` would not understand.

    A 4-bit checkpoint is known by its tensors, so nothing else of this entry is used. Raises `CheckpointError`.
    """
    file = folder / "config.json"
    for part in (None, "text_config", "audio_config"):
        inner = config if part is None else config.get(part)
        for field in ("quantization_config", "compression_config"):
            if isinstance(inner, dict) and inner.get(field) is not None:
                _check_settings(inner[field], f"{file}: {f'{part}.' if part else ''}{field}")


def _check_settings(settings: Any, name: str) -> None:
    if not isinstance(settings, dict):
        raise CheckpointError(f"{name} {settings!r} is not a JSON object: correct or remove it")
    method = settings.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise CheckpointError(f"{name}.quant_method {method!r} {_OTHERWISE}")
    if settings.get("load_in_8bit"):
        raise CheckpointError(f"{name}.load_in_8bit (int8, llm_int8) {_OTHERWISE}")
    kind = settings.get("bnb_4bit_quant_type", "nf4")
    if settings.get("load_in_4bit") and kind != "nf4":
        raise CheckpointError(f"{name}.bnb_4bit_quant_type {kind!r} ({kind}) {_OTHERWISE}")


def _whole_blocks(codes: np.ndarray, block: int) -> np.ndarray:
    block = min(block, codes.size)  # one short block is a whole one of its own size
    return np.pad(codes, (0, -codes.size % block)) if codes.size % block else codes


def _checked(name: str, parts: dict[str, Any], read: Callable[[Any], np.ndarray]) -> QuantizedWeight:
    file = parts["weight"].file

    def wrong(what: str) -> CheckpointError:
        return CheckpointError(
            f"{file}: tensor {name!r} is no complete NF4 weight: {what}. Download it again, or save it again with "
            "bitsandbytes"
        )

    given = set(parts) - {"weight"}
    needed = {f"{_STATE}nf4"} | _PLAIN | (_NESTED if given & _NESTED else set())
    if missing := sorted(needed - given):
        raise wrong(f"it has no {name}.{f', {name}.'.join(missing)}")
    state = _state(read(parts[f"{_STATE}nf4"]), bool(given & _NESTED), wrong)
    count = math.prod(state["shape"])
    blocks = -(-count // state["blocksize"])
    nested_blocks = -(-blocks // state.get("nested_blocksize", 1))
    if parts["weight"].size != -(-count // 2):
        raise wrong(f"it has {parts['weight'].size} bytes and needs {-(-count // 2)} for the shape {state['shape']}")
    expected = {"quant_map": 16, "absmax": blocks, "nested_quant_map": 256, "nested_absmax": nested_blocks}
    for part in sorted(given & set(expected)):
        kinds = {"U8"} if part == "absmax" and given & _NESTED else _FLOATS
        tensor = parts[part]
        if tensor.dtype not in kinds or math.prod(tensor.shape) != expected[part]:
            raise wrong(
                f"its {part} has dtype {tensor.dtype} and {math.prod(tensor.shape)} values and needs "
                f"{' or '.join(sorted(kinds))} and {expected[part]}"
            )
    size = sum(tensor.size for tensor in parts.values())
    return QuantizedWeight(file, name, _DTYPES[state["dtype"]], tuple(state["shape"]), size, state, parts, read)


def _state(data: np.ndarray, nested: bool, wrong: Callable[[str], CheckpointError]) -> dict[str, Any]:
    """The JSON of a weight: every field that is needed, of the type and the values that it may have."""
    try:
        state = json.loads(data.tobytes().decode())
    except ValueError as error:
        raise wrong(f"its {_STATE}nf4 cannot be read ({error})") from error
    if not isinstance(state, dict):
        raise wrong(f"its {_STATE}nf4 is not a JSON object")

    def is_count(value) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    checks = {
        "quant_type": lambda value: value == "nf4",
        "blocksize": lambda value: is_count(value) and value % 2 == 0,
        "dtype": lambda value: isinstance(value, str) and value in _DTYPES,
        "shape": lambda value: isinstance(value, list) and value and all(map(is_count, value)),
    }
    if nested:
        checks["nested_blocksize"] = is_count
        checks["nested_dtype"] = lambda value: value == "float32"
        checks["nested_offset"] = lambda value: isinstance(value, (int, float)) and abs(value) <= _LARGEST
    for field, allowed in checks.items():
        if field not in state or not allowed(state[field]):
            raise wrong(f"its {_STATE}nf4 says {field} {state.get(field, 'nothing')!r}")
    if unknown := sorted(set(state) - set(checks)):
        why = "is unknown" if nested else "is unknown, or needs its nested_absmax and nested_quant_map"
        raise wrong(f"its {_STATE}nf4 has {', '.join(unknown)}, which {why}")
    return state

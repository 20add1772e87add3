"""Safetensors checkpoints to MindSpore parameters: checked before anything is read, then read once, in place."""

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn
from mindspore.common.np_dtype import bfloat16 as np_bfloat16
from tqdm import tqdm

from mindone_audio.conversion import share
from mindone_audio.machine import device
from mindone_audio.weights import nf4, weight_norm
from mindone_audio.weights.folder_check import explain_missing, wrong_content
from mindone_audio.weights.hub import INDEX_FILE, CheckpointError
from mindone_audio.weights.nf4 import QuantizedWeight
from mindone_audio.weights.weight_norm import FactoredWeight

SINGLE_FILE = "model.safetensors"

# How transformers 5 may spell names, and how version 4 and the published checkpoints do.
_SPELLINGS = (
    (re.compile(r"^model\.(audio_tower|multi_modal_projector)\."), r"\1."),
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
)
# How names begin: (on disk, here). A * stands for one part of a name, such as a layer's number, the same in both.
Prefixes = tuple[tuple[str, str], ...]
# Buffers that checkpoints have and no model reads: what transformers computes itself, and counts of training steps.
_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|masked_bias|attn\.bias|position_ids|num_batches_tracked)$")
_CHUNK = 1 << 24  # bytes that are read and converted at a time
_BAR_AFTER = 3.0  # seconds
_NUMPY_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np_bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_FLOATS = {"F64": ms.float64, "F32": ms.float32, "F16": ms.float16, "BF16": ms.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is in a safetensors file: `dtype` as the format spells it, bytes `begin` to `end` of the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.end - self.begin


@dataclass(frozen=True)
class Source:
    """Another checkpoint that holds a part of the model, for repositories that leave the part out.

    part: how the names of the part begin, such as "language_model.". folder: gives the checkpoint's folder; it is only
    called where a tensor of the part is missing. prefixes: of its names, as for `load_parameters`. ignored: how names
    of what is not in the part begin.
    """

    part: str
    folder: Callable[[], Path]
    prefixes: Prefixes
    ignored: tuple[str, ...] = ()


def _all_read(names: set[str]) -> set[str]:
    return set()


def load_parameters(
    model: nn.Cell,
    folder: Path,
    choose_dtype: Callable[[str, ms.Type], ms.Type],
    untie: bool = False,
    prefixes: Prefixes = (),
    sources: Sequence[Source] = (),
    keep: Callable[[QuantizedWeight], bool] | None = None,
    more_memory: Mapping[str, int] = MappingProxyType({}),
    unread: Callable[[set[str]], set[str]] = _all_read,
    more_files: Sequence[Path] = (),
) -> dict[str, Path]:
    """Give every parameter of `model` the tensor of its name in the folder's safetensors files.

    choose_dtype: from a parameter's name and the dtype that its tensor is stored in to the one that it gets. untie: the
    checkpoint ties its output layer and the model does not, so the layer starts as a copy of the token embedding.
    prefixes: where the checkpoint's names begin otherwise than the published layout's. A weight that is stored as
    length and direction (`weight_norm`) is multiplied out. sources: where to look for
    tensors that the folder lacks, which then count as stored in the dtype of the folder's own. Each tensor is read
    straight into the memory that its parameter keeps; a progress bar shows where that takes long. A weight in 4 bits is
    dequantised on the way, unless `keep` takes it, which then returns True. more_memory: what else
    the model needs, in bytes by its name in the error. unread: of the names in the folder's files those that are left
    there. more_files: with more tensors of the model. Returns the folders of the sources that were needed, by part.
    Raises `CheckpointError`: for missing, unexpected and wrongly shaped tensors and for more than this machine's memory
    before anything is read, and for a `keep` that has nothing to take.
    """
    parameters = {name: parameter for name, parameter in _parameters(model)}
    tensors = stored_tensors(folder, unread) + [tensor for file in more_files for tensor in tensors_in(file)]
    stored = {replace_prefix(published_name(tensor.name), prefixes): tensor for tensor in tensors}
    stored = _grouped(stored)
    dtypes = [tensor.dtype for tensor in stored.values() if tensor.dtype in _FLOATS]
    parts = _add_sources(sources, parameters, stored)
    copies = _settle_output_layer(parameters, stored, untie)
    _check([folder, *parts.values()], parameters, stored, copies)
    if keep and not any(isinstance(tensor, QuantizedWeight) for tensor in stored.values()):
        raise CheckpointError(f"keep_quantized=True, but {folder} has no weights in 4 bits: leave keep_quantized out")

    def target(name: str, tensor: StoredTensor | QuantizedWeight | FactoredWeight) -> ms.Type:
        own = tensor.file.parent == folder or not dtypes
        return choose_dtype(name, _FLOATS[tensor.dtype if own else dtypes[0]])

    if not keep:
        _check_memory(folder, stored, target, more_memory)
    total = sum(tensor.size for tensor in stored.values())
    look = {"unit": "B", "unit_scale": True, "delay": _BAR_AFTER, "leave": False, "disable": None}  # on a terminal only
    with tqdm(desc="loading weights", total=total, **look) as bar:
        for name, tensor in stored.items():
            quantized = isinstance(tensor, QuantizedWeight)
            if not (quantized and keep and name not in copies and keep(tensor)):
                dtype = target(name, tensor)
                place = _memory(parameters[name], dtype)
                array = _values(tensor, dtype, place)
                if dtype == ms.float16 and not np.isfinite(array).all():
                    raise CheckpointError(
                        f"{tensor.file}: tensor {name!r} has values that float16 cannot hold, which ends at 65504: "
                        "load this part of the model in float32, or in bfloat16 where the device has it"
                    )
                _set(parameters[name], array, place)
                if name in copies:
                    _set(parameters[copies[name]], array.copy())
            bar.update(tensor.size)
    return parts


def _grouped(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor | QuantizedWeight | FactoredWeight]:
    """What several tensors stand for as one each."""
    return weight_norm.group(nf4.group(stored, read_tensor), read_tensor)


def _values(tensor: StoredTensor | QuantizedWeight | FactoredWeight, dtype: ms.Type, place) -> np.ndarray:
    """The array of a parameter, in its `place` where it is read as it is."""
    if isinstance(tensor, QuantizedWeight):
        return tensor.dequantized(_numpy_dtype(dtype))
    if isinstance(tensor, FactoredWeight):
        return tensor.multiplied(_numpy_dtype(dtype))
    return read_tensor(tensor, dtype, place)


def _check_memory(folder: Path, stored: dict, target: Callable[[str, Any], ms.Type], more: Mapping[str, int]) -> None:
    """An error now is better than being killed for memory halfway, or than hours of swapping."""
    chosen = {name: target(name, tensor) for name, tensor in stored.items()}
    sizes = [math.prod(tensor.shape) * _numpy_dtype(chosen[name]).itemsize for name, tensor in stored.items()]
    dtypes = ", ".join(sorted(set(map(str, chosen.values()))))
    parts = {f"parameters as {dtypes}": sum(sizes), **more}
    (where, there), needed = device.memory(), sum(parts.values())
    if there is not None and needed > there:
        sum_of = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
        raise CheckpointError(
            f"{folder} takes {needed / 1e9:.1f} GB ({sum_of}), and {where} has {there / 1e9:.1f} GB of memory: use a "
            "larger one, or a smaller dtype (on CPU half precision becomes Float32)"
        )


def stored_tensors(folder: Path, unread: Callable[[set[str]], set[str]] = _all_read) -> list[StoredTensor]:
    """Every tensor of a folder's model.safetensors or, where it has none, of the files that its index names.

    What only buffers of other versions' models hold is left out, and what is `unread` of all names, whose files need
    not be there. Raises `CheckpointError` for a file that is missing or damaged, and an index that names what is not
    there.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists():  # as in transformers, also where an older index lies beside it
        tensors = {tensor.name: tensor for tensor in tensors_in(single)}
    elif index.exists():
        tensors = _indexed_tensors(index, unread)
    else:
        raise CheckpointError(f"{single} does not exist: {explain_missing(folder, SINGLE_FILE)}")
    left = unread(set(tensors))
    return [tensor for name, tensor in tensors.items() if name not in left and not _BUFFERS.search(name)]


def _indexed_tensors(index: Path, unread: Callable[[set[str]], set[str]]) -> dict[str, StoredTensor]:
    folder = index.parent
    if wrong := wrong_content(index):
        raise CheckpointError(f"{index} {wrong}")
    try:
        places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        places = {name: places[name] for name in set(places) - unread(set(places))}
        files = sorted(set(map(str, places.values())))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors files ({error!r})") from error
    if missing := [name for name in files if not (folder / name).exists()]:
        raise CheckpointError(
            f"{folder / missing[0]} does not exist, {len(missing)} of the {len(files)} files that {INDEX_FILE} names: "
            f"the checkpoint is incomplete, {explain_missing(folder, missing[0])}"
        )
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        for tensor in tensors_in(folder / name):
            if tensor.name in tensors:
                raise CheckpointError(f"tensor {tensor.name!r} is in {tensors[tensor.name].file} and in {tensor.file}")
            tensors[tensor.name] = tensor
    for name, file in places.items():
        if name not in tensors or tensors[name].file.name != Path(file).name:
            raise CheckpointError(f"{index} says that tensor {name!r} is in {file}, and it is not: download both again")
    return tensors


def read_tensor(tensor: StoredTensor, dtype: ms.Type | None = None, place: np.ndarray | None = None) -> np.ndarray:
    """The array of a stored tensor in its own memory, or in `place`; floats as `dtype`, None for the stored one.

    place: an array of that dtype and of the tensor's shape. bfloat16 is MindSpore's NumPy extension type. Raises
    `CheckpointError` where the disk does not give the bytes.
    """
    source = np.dtype(_NUMPY_DTYPES[tensor.dtype])
    target = source
    if dtype is not None and tensor.dtype in _FLOATS:
        target = _numpy_dtype(dtype)
    array = np.empty(tensor.shape, target) if place is None else place
    flat = array.reshape(-1)
    try:
        with open(tensor.file, "rb", buffering=0) as stream:
            stream.seek(tensor.begin)
            if source == target:
                _fill(stream, flat)
            else:
                part = np.empty(min(flat.size, _CHUNK // source.itemsize), source)
                for start in range(0, flat.size, max(1, part.size)):
                    chunk = part[: min(part.size, flat.size - start)]
                    _fill(stream, chunk)
                    _convert(chunk, flat[start : start + chunk.size])
    except (OSError, EOFError) as error:
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name!r} cannot be read ({error})") from error
    return array


def replace_prefix(name: str, prefixes: Prefixes) -> str:
    """`name` with the first of the prefixes (from, to) that it has replaced; without one it stays."""
    for before, after in prefixes:
        if found := _beginning(before).match(name):
            parts = iter(found.groups())
            return (
                "".join(next(parts) if part == "*" else part for part in re.split(r"(\*)", after)) + name[found.end() :]
            )
    return name


@functools.cache
def _beginning(prefix: str) -> re.Pattern:
    """What a prefix of `Prefixes` matches, each * as a group."""
    return re.compile(re.escape(prefix).replace(r"\*", r"([^.]+)"))


def mark_as_pytorch(file: Path) -> None:
    """Change the file's note of its framework from NumPy to PyTorch; transformers on PyTorch refuses the former.

    The bytes of the tensors are the same for both, and so is the length of the note.
    """
    with open(file, "r+b") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
        stream.seek(8)
        stream.write(re.sub(rb'("format"\s*:\s*)"np"', rb'\1"pt"', header, count=1))


def _numpy_dtype(dtype: ms.Type) -> np.dtype:
    return np.dtype(_NUMPY_DTYPES[next(name for name, known in _FLOATS.items() if known == dtype)])


def published_name(name: str) -> str:
    """A tensor's name as version 4 of transformers spells it, of its name in a checkpoint of any version."""
    for pattern, replacement in _SPELLINGS:
        name = pattern.sub(replacement, name)
    return name


def _fill(stream: BinaryIO, array: np.ndarray) -> None:
    rest = memoryview(array.view(np.uint8))
    while rest:
        count = stream.readinto(rest)
        if not count:
            raise EOFError("the file ends before the tensor does: download it again")
        rest = rest[count:]


def _convert(source: np.ndarray, target: np.ndarray) -> None:
    """Write flat `source` into flat `target`; bfloat16 widens by shifting its bits, which is faster than a cast."""
    if source.dtype == np_bfloat16 and target.dtype == np.float32:
        np.left_shift(source.view(np.uint16), 16, out=target.view(np.uint32), dtype=np.uint32)
    else:
        with np.errstate(over="ignore"):  # the caller looks for what became infinite
            target[:] = source.astype(target.dtype)


def _memory(parameter: Parameter, dtype: ms.Type) -> np.ndarray | None:
    """The memory that a parameter has got already, if it is for values of this dtype and no copy on an NPU."""
    if parameter.has_init or parameter.dtype != dtype or not device.shares_memory():
        return None
    return parameter.asnumpy()


def _set(parameter: Parameter, array: np.ndarray, place: np.ndarray | None = None) -> None:
    """Make `array` the values of a parameter: in its `place`, or else the array becomes its memory."""
    if place is not None:
        if array is not place:
            place[:] = array
        return
    tensor = share(array)
    parameter.set_dtype(tensor.dtype)
    parameter.set_data(tensor)


def _parameters(model: nn.Cell) -> Iterator[tuple[str, Parameter]]:
    for prefix, cell in model.cells_and_names():
        for attribute, parameter in cell._params.items():
            parameter.name = f"{prefix}.{attribute}" if prefix else attribute
            yield parameter.name, parameter


def _add_sources(sources: Sequence[Source], parameters: dict, stored: dict[str, StoredTensor]) -> dict[str, Path]:
    """Put what is missing of each source's part into `stored`; the folders that this took, by part."""
    parts = {}
    for source in sources:
        if all(name in stored for name in parameters if name.startswith(source.part)):
            continue
        parts[source.part] = source.folder()
        tensors = [t for t in stored_tensors(parts[source.part]) if not t.name.startswith(source.ignored)]
        named = {replace_prefix(tensor.name, source.prefixes): tensor for tensor in tensors}
        for name, tensor in _grouped(named).items():
            stored.setdefault(name, tensor)
    return parts


def _settle_output_layer(parameters: dict, stored: dict[str, StoredTensor], untie: bool) -> dict[str, str]:
    """Where tying differs between checkpoint and model: what is copied to where; what is stored for nothing goes."""
    copies = {}
    for embedding in [name for name in stored if name.endswith("model.embed_tokens.weight")]:
        head = embedding.removesuffix("model.embed_tokens.weight") + "lm_head.weight"
        if untie and head in parameters and head not in stored:
            copies[embedding] = head
        if head not in parameters:  # tied by the config, stored all the same
            stored.pop(head, None)
    return copies


def _check(folders: list[Path], parameters: dict, stored: dict[str, StoredTensor], copies: dict[str, str]) -> None:
    missing = sorted(set(parameters) - set(stored) - set(copies.values()))
    unexpected = sorted(set(stored) - set(parameters))
    if missing or unexpected:
        where = " and ".join(map(str, folders))
        parts = [f"the tensors in {where} are not those of the model that its config.json describes."]
        parts += [f"{len(missing)} missing: {', '.join(missing)}."] if missing else []
        parts += [f"{len(unexpected)} unexpected: {', '.join(unexpected)}."] if unexpected else []
        raise CheckpointError(" ".join(parts))
    for name, tensor in stored.items():
        if tensor.shape != tuple(parameters[name].shape):
            raise CheckpointError(
                f"{tensor.file}: tensor {name!r} has shape {tensor.shape}, the model that config.json describes needs "
                f"{tuple(parameters[name].shape)}"
            )
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(f"{tensor.file}: tensor {name!r} has dtype {tensor.dtype}, not a floating-point one")


def tensors_in(file: Path) -> Iterator[StoredTensor]:
    """The tensors of a safetensors file: 8 bytes of header length, a JSON header, then the bytes of the tensors.

    Raises `CheckpointError` for a file that is damaged or cut off.
    """
    try:
        if wrong := wrong_content(file):
            raise CheckpointError(f"{file} {wrong}")
        size = file.stat().st_size
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(f"{file} is damaged or cut off: its header does not fit in its {size} bytes")
            header = json.loads(stream.read(length))
        tensors = [
            StoredTensor(
                file, name, str(entry["dtype"]), tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"])
            )
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file} is not a safetensors file: its header cannot be read ({error!r})") from error
    for tensor in tensors:
        begin, end = (8 + length + offset for offset in (tensor.begin, tensor.end))
        if not _BUFFERS.search(tensor.name):  # nobody reads those, whatever their dtype
            if tensor.dtype not in _NUMPY_DTYPES:
                raise CheckpointError(f"{file}: tensor {tensor.name!r} has dtype {tensor.dtype}, not one that is read")
            expected = math.prod(tensor.shape) * np.dtype(_NUMPY_DTYPES[tensor.dtype]).itemsize
            if tensor.begin < 0 or end - begin != expected or end > size:
                raise CheckpointError(
                    f"{file} is damaged or cut off: tensor {tensor.name!r} does not fit in its {size} bytes"
                )
        yield StoredTensor(file, tensor.name, tensor.dtype, tensor.shape, begin, end)

"""Safetensors checkpoints to MindSpore parameters: strict about names and shapes."""

import json
import mmap
from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.common.np_dtype import bfloat16 as np_bfloat16

from mindone_audio.device import compute_dtype
from mindone_audio.hub import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

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
_MINDSPORE_DTYPES = {"F32": ms.float32, "F16": ms.float16, "BF16": ms.bfloat16, "F64": ms.float64}


def load_parameters(model: nn.Cell, folder: Path, dtype: ms.Type | None, untie: bool = False) -> None:
    """Replace every parameter of `model` by the tensor of its name in the folder's safetensors files.

    dtype: what floating-point weights are converted to, None for the dtype they are stored in; half precision becomes
    float32 on CPU (`device.compute_dtype`). Raises `CheckpointError` that names every missing and unexpected tensor and
    every wrong shape. untie: the checkpoint ties its output layer and the model does not, so the layer starts as a copy
    of the token embedding.
    """
    owners = {name: (cell, attribute) for name, cell, attribute in _parameters(model)}
    loaded: dict[str, Parameter] = {}
    unexpected: list[str] = []
    for file in _files(folder):
        for name, array, stored in read_safetensors(file):
            if name not in owners:
                unexpected.append(name)
                continue
            cell, attribute = owners[name]
            expected = getattr(cell, attribute)
            if tuple(expected.shape) != array.shape:
                raise CheckpointError(
                    f"{file}: tensor {name!r} has shape {array.shape}, the model that config.json describes needs "
                    f"{tuple(expected.shape)}"
                )
            tensor = _to_tensor(array, compute_dtype(dtype or stored))
            loaded[name] = Parameter(tensor, name=name, requires_grad=expected.requires_grad)
    _settle_output_layer(owners, loaded, unexpected, untie)
    missing = sorted(set(owners) - set(loaded))
    if missing or unexpected:
        raise CheckpointError(_mismatch(folder, missing, sorted(unexpected)))
    for name, parameter in loaded.items():
        cell, attribute = owners[name]
        setattr(cell, attribute, parameter)
        parameter.name = name


def _parameters(model: nn.Cell) -> Iterator[tuple[str, nn.Cell, str]]:
    for prefix, cell in model.cells_and_names():
        for attribute in cell._params:
            yield f"{prefix}.{attribute}" if prefix else attribute, cell, attribute


def _settle_output_layer(owners: dict, loaded: dict[str, Parameter], unexpected: list[str], untie: bool) -> None:
    """Where tying differs between checkpoint and model, `lm_head.weight` is copied from the embedding or left out."""
    for embedding in [name for name in loaded if name.endswith("model.embed_tokens.weight")]:
        head = embedding.removesuffix("model.embed_tokens.weight") + "lm_head.weight"
        if untie and head in owners and head not in loaded:
            loaded[head] = Parameter(loaded[embedding].copy(), name=head)
        if head not in owners and head in unexpected:  # tied by the config, stored all the same
            unexpected.remove(head)


def _mismatch(folder: Path, missing: list[str], unexpected: list[str]) -> str:
    parts = [f"the tensors in {folder} are not those of the model that its config.json describes."]
    if missing:
        parts.append(f"{len(missing)} missing: {', '.join(missing)}.")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {', '.join(unexpected)}.")
    return " ".join(parts)


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.exists():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is not an index of safetensors files ({error!r})") from error
        files = [folder / name for name in sorted(names)]
    else:
        files = [folder / SINGLE_FILE]
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{file} does not exist: the checkpoint is incomplete, download it again")
    return files


def read_safetensors(file: Path) -> Iterator[tuple[str, np.ndarray, ms.Type]]:
    """Name, array and stored dtype of every tensor of a safetensors file; the arrays are views of the mapped file.

    Format: 8 bytes little-endian header length, JSON header, then the tensors (huggingface/safetensors). bfloat16 comes
    as MindSpore's numpy extension type. Raises `CheckpointError` for a damaged file.
    """
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{file} is damaged or cut off: its header does not fit in its {size} bytes")
        try:
            header = json.loads(stream.read(length))
            tensors = [
                (name, entry["dtype"], tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
                for name, entry in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} is not a safetensors file: its header cannot be read ({error!r})") from error
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    for name, kind, shape, begin, end in tensors:
        if kind not in _NUMPY_DTYPES:
            raise CheckpointError(f"{file}: tensor {name!r} has dtype {kind}, which is not supported")
        dtype = np.dtype(_NUMPY_DTYPES[kind])
        count = int(np.prod(shape, dtype=np.int64))
        if begin < 0 or end - begin != count * dtype.itemsize or 8 + length + end > size:
            raise CheckpointError(f"{file} is damaged or cut off: tensor {name!r} does not fit in its {size} bytes")
        array = np.frombuffer(mapped, dtype, count, 8 + length + begin).reshape(shape)
        yield name, array, _MINDSPORE_DTYPES.get(kind, ms.float32)


def _to_tensor(array: np.ndarray, dtype: ms.Type) -> Tensor:
    """A copy of `array` as a tensor of `dtype`; bfloat16 widens by shifting its bits, 20 times faster than a cast."""
    target = _NUMPY_DTYPES[next(name for name, known in _MINDSPORE_DTYPES.items() if known == dtype)]
    if array.dtype == np_bfloat16 and target == np.float32:
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return Tensor(np.array(array, dtype=target, order="C"))

"""Weights that a checkpoint stores as a direction and a length (arXiv 1602.07868), multiplied out."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindone_audio.weights.hub import CheckpointError

# How the names of the length and of the direction end: as PyTorch's older function and its newer one name them.
_SPELLINGS = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


@dataclass(frozen=True)
class FactoredWeight:
    """A weight that is stored as length and direction and has not been read yet; it stands for both tensors.

    file, dtype (as safetensors spells it), shape and size (bytes on disk) are those that one stored tensor has. read:
    gives the array of a stored tensor.
    """

    name: str
    length: Any
    direction: Any
    read: Callable[[Any], np.ndarray]

    @property
    def file(self) -> Path:
        return self.direction.file

    @property
    def dtype(self) -> str:
        return self.direction.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.direction.shape

    @property
    def size(self) -> int:
        return self.length.size + self.direction.size

    def multiplied(self, dtype: np.dtype) -> np.ndarray:
        """The weight, as `dtype`."""
        return _product(self.read(self.length), self.read(self.direction)).astype(dtype)


def group(stored: Mapping[str, Any], read: Callable[[Any], np.ndarray]) -> dict[str, Any]:
    """Stored tensors by name with each length and direction made one `FactoredWeight`; the others stay as they are.

    Raises what `fold_weight_norm` raises.
    """
    grouped = dict(stored)
    for name, ends in _pairs(stored):
        length, direction = (grouped.pop(name + end) for end in ends)
        _check_shapes(name, length.shape, direction.shape)
        grouped[f"{name}.weight"] = FactoredWeight(f"{name}.weight", length, direction, read)
    return grouped


def fold_weight_norm(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All tensors by name, with `X.weight` in the place of each length g and direction v: `g * v / |v|`.

    g has one number for each index of an axis of v and is of size 1 along the others, over which the norm is taken: the
    shape (out, 1, 1) is PyTorch's dim=0, and (1, 1, kernel) its dim=2. The weight has v's dtype. Raises
    `CheckpointError` where only one of the two is there, where g's shape does not fit, and for a weight that is also
    there as a whole.
    """
    folded = dict(tensors)
    for name, ends in _pairs(tensors):
        length, direction = (folded.pop(name + end) for end in ends)
        _check_shapes(name, length.shape, direction.shape)
        folded[f"{name}.weight"] = _product(length, direction)
    return folded


def factored(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A length for each index of an axis, and a direction, whose `fold_weight_norm` is the weight."""
    axes = tuple(other for other in range(weight.ndim) if other != axis)
    return np.sqrt((weight.astype(np.float64) ** 2).sum(axes, keepdims=True)).astype(weight.dtype), weight


def _pairs(names: Iterable[str]) -> list[tuple[str, tuple[str, str]]]:
    """Whose weights are stored as length and direction, and how the names of these two end."""
    found, names = [], set(names)
    for ends in _SPELLINGS:
        lengths, directions = ({n.removesuffix(end) for n in names if n.endswith(end)} for end in ends)
        if alone := sorted(lengths ^ directions):
            raise CheckpointError(f"{alone[0]} has only one of {' and '.join(ends)}: the checkpoint is incomplete")
        known = {f"{name}.weight" for name, _ in found} | names
        if twice := sorted(name for name in lengths if f"{name}.weight" in known):
            raise CheckpointError(f"{twice[0]} has a weight twice, one as length and direction: remove one of them")
        found += [(name, ends) for name in sorted(lengths)]
    return found


def _check_shapes(name: str, length: tuple[int, ...], direction: tuple[int, ...]) -> None:
    if len(length) != len(direction) or any(n not in (1, whole) for n, whole in zip(length, direction)):
        raise CheckpointError(f"{name} has lengths of shape {length}, which do not fit directions {direction}")


def _product(length: np.ndarray, direction: np.ndarray) -> np.ndarray:
    axes = tuple(axis for axis, n in enumerate(length.shape) if n == 1)
    wide = direction.astype(np.float32).astype(np.float64)  # NumPy's norms know no bfloat16
    norms = np.sqrt((wide**2).sum(axes, keepdims=True))
    return (length.astype(np.float32) * (wide / norms)).astype(np.float32).astype(direction.dtype)

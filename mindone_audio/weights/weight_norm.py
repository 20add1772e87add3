"""Weights that a checkpoint stores as a direction and a length (arXiv 1602.07868), multiplied out."""

from collections.abc import Mapping

import numpy as np

# How the names of the length and of the direction end: as PyTorch's older function and its newer one name them.
_SPELLINGS = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


def fold_weight_norm(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All tensors by name, with `X.weight` in the place of each length g and direction v: `g * v / |v|`.

    g has one number for each index of an axis of v and is of size 1 along the others, over which the norm is taken: the
    shape (out, 1, 1) is PyTorch's dim=0, and (1, 1, kernel) its dim=2. The weight has v's dtype. Raises `ValueError`
    where only one of the two is there, where g's shape does not fit, and for a weight that is also there as a whole.
    """
    folded = dict(tensors)
    for ends in _SPELLINGS:
        lengths, directions = ({n.removesuffix(end) for n in tensors if n.endswith(end)} for end in ends)
        if alone := sorted(lengths ^ directions):
            raise ValueError(f"{alone[0]} has only one of {' and '.join(ends)}: the checkpoint is incomplete")
        for name in sorted(lengths):
            length, direction = (folded.pop(name + end) for end in ends)
            if f"{name}.weight" in folded:
                raise ValueError(f"{name} has a weight twice, whole and as length and direction: remove one of them")
            folded[f"{name}.weight"] = _product(name, length, direction)
    return folded


def _product(name: str, length: np.ndarray, direction: np.ndarray) -> np.ndarray:
    if length.ndim != direction.ndim or any(n not in (1, whole) for n, whole in zip(length.shape, direction.shape)):
        raise ValueError(f"{name} has lengths of shape {length.shape}, which do not fit directions {direction.shape}")
    axes = tuple(axis for axis, n in enumerate(length.shape) if n == 1)
    wide = direction.astype(np.float32).astype(np.float64)  # NumPy's norms know no bfloat16
    norms = np.sqrt((wide**2).sum(axes, keepdims=True))
    return (length.astype(np.float32) * (wide / norms)).astype(np.float32).astype(direction.dtype)

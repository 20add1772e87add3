"""Rotary position embeddings (arXiv 2104.09864): one table of inverse frequencies for each kind of scaling."""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def inverse_frequencies(head_dim: int, theta: float, scaling: dict | None = None) -> np.ndarray:
    """Radians per position for each pair of dimensions: fp32 (head_dim / 2).

    `scaling` is a config's `rope_scaling` (or `rope_parameters`): `rope_type` default, linear (positions divided by
    `factor`) or llama3 (long wavelengths divided by `factor`, short ones kept, a linear blend between; the formula of
    the Llama 3.1 release). Raises `ValueError` for another type.
    """
    frequencies = 1.0 / np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    scaling = scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / np.float32(scaling["factor"])
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return ((1 - keep) * frequencies / scaling["factor"] + keep * frequencies).astype(np.float32)
    raise ValueError(f"rope_type {kind!r} is not supported: known are default, linear, llama3")


def rotation(positions: Tensor, frequencies: Tensor, dtype: ms.Type) -> tuple[Tensor, Tensor]:
    """cos and sin (batch, 1, length, head_dim) for integer `positions` (batch, length), computed in fp32."""
    angles = positions.astype(ms.float32).expand_dims(-1) * frequencies
    angles = ops.concat((angles, angles), -1).expand_dims(1)
    return ops.cos(angles).astype(dtype), ops.sin(angles).astype(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (batch, heads, length, head_dim) turned by its position; the halves of a head are the two coordinates."""
    half = x.shape[-1] // 2
    turned = ops.concat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin

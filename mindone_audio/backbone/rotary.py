"""Rotary position embeddings (arXiv 2104.09864), prepared on the host: a graph only looks them up and multiplies."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LongRope:
    """Two sets of factors that the wavelengths are multiplied with (LongRoPE, arXiv 2402.13753).

    short and long: one for each pair of dimensions; the long ones are for all tokens of a sequence of more than
    `original` tokens. scale: of both tables.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    scale: float


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


def rotation_tables(
    positions: int, frequencies: np.ndarray, head_dim: int | None = None, factor: float = 1.0
) -> list[np.ndarray]:
    """cos and sin by position, each fp32 (positions, 3, head_dim): for queries, keys and values, for `ops.rotate`.

    head_dim: dimensions beyond two for each frequency stay as they are. factor: what is rotated is multiplied with it.

    The first half of each sin is negative, because the rotation of (a, b) is (a cos - b sin, b cos + a sin). The
    queries' also divide by sqrt(head_dim), which attention asks for. Values stay as they are. All this is so that one
    rotation of all heads is enough, since every kernel more is one in every layer.
    """
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    cos, sin = np.concatenate([cos, cos], -1) * np.float32(factor), np.concatenate([-sin, sin], -1) * np.float32(factor)
    rest = ((0, 0), (0, (head_dim or cos.shape[-1]) - cos.shape[-1]))
    cos, sin = np.pad(cos, rest, constant_values=1), np.pad(sin, rest)
    scale = np.float32(cos.shape[-1] ** -0.5)
    return [np.stack(table, 1) for table in ((cos * scale, cos, np.ones_like(cos)), (sin * scale, sin, 0 * sin))]

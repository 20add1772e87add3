"""Samples that are in memory already: arrays, tensors, and the pairs and dictionaries around them."""

import array
import logging
import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from mindone_audio.inputs.audio.data_uris import base64_bytes
from mindone_audio.inputs.audio.errors import AudioError, describe

logger = logging.getLogger(__name__)

MAX_CHANNELS = 16  # of a 2-D array: tells channels from samples
LOWEST_RATE, HIGHEST_RATE = 1, 1_000_000  # Hz, of a clip and of what it is resampled to
LOUD = 16.0  # times full scale, above which float samples are surely of another scale
PCM_OFFSET_AND_SCALE = {"uint8": (128, 128), "int8": (0, 128), "int16": (0, 32768), "int32": (0, 2**31)}


def unwrapped(source: Any) -> tuple[Any, Any]:
    """The clip inside a dictionary, a pair or a decoder, and its sampling rate where that is said, else None.

    `AudioError` for a dictionary of other keys, and for a decoder that fails.
    """
    if isinstance(source, Mapping):
        return _from_mapping(source)
    if _is_pair(source):
        rate, samples = source if _is_number(source[0]) else reversed(source)
        return (np.asarray(samples) if is_numbers(samples) else samples), rate
    if hasattr(source, "get_all_samples"):
        try:
            samples = source.get_all_samples()
            return samples.data, samples.sample_rate
        except Exception as error:  # whatever the decoder of another package raises
            raise AudioError(f"{describe(source)} cannot decode its clip: {str(error):.200}") from error
    return source, None


def is_one_clip(value: Any) -> bool:
    """Whether a list or tuple is no list of clips: samples and their rate, or numbers, which `load_audio` refuses."""
    return _is_pair(value) or is_numbers(value)


def as_array(source: Any) -> np.ndarray | None:
    """An array or a tensor of any package as an array; None for anything else.

    `AudioError` for a tensor that does not become an array.
    """
    if isinstance(source, np.ndarray):
        return source
    try:
        if hasattr(source, "asnumpy"):  # MindSpore
            return np.asarray((source.float() if "bfloat16" in str(source.dtype).lower() else source).asnumpy())
        if hasattr(source, "detach") and hasattr(source, "cpu"):  # PyTorch
            tensor = source.detach().cpu()
            return np.asarray((tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy())
        if isinstance(source, array.array) or hasattr(source, "__array__"):
            return np.asarray(source)
    except Exception as error:  # whatever another package raises
        raise AudioError(f"{describe(source)} does not become a NumPy array: {str(error):.200}") from error
    return None


def mono_samples(samples: np.ndarray, name: str) -> np.ndarray:
    """An array of samples -> float32 `[samples]`, the mean of its channels."""
    if samples.dtype.kind == "f" or samples.dtype.name == "bfloat16":
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused later
            samples = samples.astype(np.float32, copy=False)
    elif samples.dtype.name in PCM_OFFSET_AND_SCALE:
        offset, scale = PCM_OFFSET_AND_SCALE[samples.dtype.name]
        samples = ((samples.astype(np.float64) - offset) / scale).astype(np.float32)
    else:
        raise AudioError(
            f"{name} cannot be samples: use floats in [-1, 1] or PCM as {', '.join(PCM_OFFSET_AND_SCALE)}: "
            f"a 64-bit integer array needs .astype(np.int16) first if it holds 16-bit PCM"
        )
    if samples.ndim == 2 and samples.size:
        channels, length = sorted(samples.shape)
        if channels > MAX_CHANNELS or (channels == length != 1):
            raise AudioError(f"{name}: cannot tell channels from samples: pass mono samples, or one clip at a time")
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    elif samples.ndim != 1 and (samples.size or not samples.ndim):
        raise AudioError(f"{name} has {samples.ndim} axes: pass [samples], [channels, samples] or [samples, channels]")
    return np.ascontiguousarray(samples.reshape(-1))


def warn_of_scale(samples: np.ndarray, name: str) -> None:
    """One log line for finite samples `[samples]` that are far above full scale."""
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > LOUD:
        logger.warning(
            "%s: a peak of %g, where floats are from -1 to 1: divide by 32768 if these are 16-bit values, or pass them "
            "as int16; they are used as they are",
            name,
            peak,
        )


def checked_rate(rate: Any, name: str) -> float | int | None:
    """A sampling rate in Hz as a number of Python; `AudioError` for one that is none, or impossible."""
    if rate is None:
        return None
    if hasattr(rate, "item") and not isinstance(rate, numbers.Real) and getattr(rate, "size", 1) in (1, ()):
        rate = rate.item()
    if not _is_number(rate):
        raise AudioError(f"{name}: a sampling rate is a number of Hz, not {describe(rate)}")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(
            f"{name}: a sampling rate of {rate} Hz is not possible: give a positive number of Hz, from {LOWEST_RATE} "
            f"to {HIGHEST_RATE}"
        )
    return int(rate) if math.floor(rate) == rate else float(rate)


def _from_mapping(source: Mapping) -> tuple[Any, Any]:
    given = {key: value for key, value in source.items() if value is not None}
    samples = [key for key in ("array", "raw") if key in given]
    if samples:
        allowed = {samples[0], "sampling_rate", "path"}
        if unknown := [str(key) for key in given if key not in allowed]:
            raise AudioError(f"a clip as a dictionary has {samples[0]} and sampling_rate, not {_listed(unknown)}")
        value = given[samples[0]]
        if isinstance(value, (list, tuple)):
            try:
                value = np.asarray(value)
            except ValueError as error:
                raise AudioError(f"{samples[0]} of the clip has rows of different lengths: give [samples]") from error
        if hasattr(value, "get_all_samples"):
            return unwrapped(value)
        if as_array(value) is None:
            raise AudioError(f"{samples[0]} of the clip is {describe(value)}: give samples, or bytes or a path instead")
        return value, given.get("sampling_rate")
    if not source or set(given) - {"bytes", "path"} or not set(source) & {"bytes", "path"}:
        other = [str(key) for key in source if key not in ("bytes", "path")]
        raise AudioError(
            f"a clip as a dictionary has bytes and path, or array, not {_listed(other)}: give one of "
            '{"bytes": …}, {"path": …}, {"array": …, "sampling_rate": …} and {"raw": …, "sampling_rate": …}'
        )
    if not given:
        raise AudioError("both bytes and path of the clip are None: give one of them")
    if "bytes" in given:
        content = given["bytes"]
        return (base64_bytes(content, describe(content)) if isinstance(content, str) else content), None
    return given["path"], None


def _listed(keys: list[str]) -> str:
    return ", ".join(key if len(key) <= 40 else f"{key[:40]}…" for key in keys[:8])


def _is_number(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.number)) and not isinstance(value, (bool, np.bool_))


def is_numbers(value: Any) -> bool:
    """Whether this is a flat list of numbers, by its ends: samples may be millions."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and _is_number(value[0]) and _is_number(value[-1])


def _is_pair(value: Any) -> bool:
    """Whether these are samples and their rate, in either order, as Gradio, SoundFile, SciPy and torchaudio give."""
    if not isinstance(value, (list, tuple)) or len(value) != 2 or _is_number(value[0]) == _is_number(value[1]):
        return False
    samples = value[1] if _is_number(value[0]) else value[0]
    return is_numbers(samples) or (not isinstance(samples, (list, tuple)) and _has_samples(samples))


def _has_samples(value: Any) -> bool:
    return any(hasattr(value, name) for name in ("asnumpy", "detach", "__array__")) or isinstance(value, array.array)

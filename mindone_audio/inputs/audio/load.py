"""Whatever a user calls a clip becomes mono float32 samples at the rate that a model expects."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import soxr

from mindone_audio.inputs.audio.arrays import as_array, checked_rate, mono_samples, unwrapped, warn_of_scale
from mindone_audio.inputs.audio.data_uris import is_plain_data_uri, may_be_path, plain_base64
from mindone_audio.inputs.audio.decoding import decode
from mindone_audio.inputs.audio.errors import AudioError, NotAudioError, describe
from mindone_audio.inputs.audio.libsndfile import most_samples, too_long
from mindone_audio.inputs.audio.sources import read_source
from mindone_audio.setting_fields import about

SAMPLING_RATE = 16_000  # Hz, of the input of every Whisper-style encoder
MAX_SECONDS = 4 * 3600.0  # of one clip, decoded


def load_audio(
    source: Any,
    sampling_rate: int = SAMPLING_RATE,
    *,
    source_sampling_rate: int | None = None,
    timeout: float = 30.0,
    max_bytes: int | None = None,
    max_seconds: float = MAX_SECONDS,
    name: str | None = None,
) -> np.ndarray:
    """Read one clip, mix it down to mono and resample it.

    Args:
        source: one of
            - a path (`str` or `os.PathLike`) of a file or a pipe, an `http://`, `https://` or `file://` URL;
            - encoded audio as `bytes`, as a binary file object (read from where it stands, and left open), as a
              `data:` URI or as plain base64, of either alphabet;
            - samples: a NumPy array, a tensor of PyTorch or MindSpore on any device, or anything with `__array__`.
              Their shape is `[samples]`, `[channels, samples]` or `[samples, channels]` (the shorter axis is the
              channels), and they are floats in [-1, 1], or uint8, int8, int16 or int32 PCM, which is scaled by its
              range. A bare list of numbers is refused, as by transformers' `load_audio` and pipelines: make an array;
            - samples with their rate: `(samples, rate)`, `(rate, samples)`, `{"array": …, "sampling_rate": …}` or
              `{"raw": …, "sampling_rate": …}`, also with a "path", which is not read; lists of numbers will do here;
            - `{"bytes": …, "path": …}`, of which one may be None, and an `AudioDecoder` of `datasets` or torchcodec.
            libsndfile decodes wav, flac, mp3, ogg, aiff and more; where the program ffmpeg is on PATH, it decodes m4a,
            webm, mp4, aac, amr, wma, and files that were joined.
        sampling_rate: of the result, in Hz.
        source_sampling_rate: of samples that do not say it, in Hz; without it they are at `sampling_rate` already.
        timeout: in seconds: for a URL, from the request to the last byte; for ffmpeg, without any output.
        max_bytes: of the encoded clip; None: 512 MiB of a URL, 4 GiB of anything else.
        max_seconds: of the decoded clip, whatever its header says; each second counts as 48,000 samples at most.
        name: what messages call the clip (default: by what it is, as "the 9 bytes given").

    Returns:
        float32 `[samples]`, never empty, all finite; it shares memory with an array that needed no change.

    Raises:
        AudioNotFoundError: no such file (also a `FileNotFoundError`).
        AudioError: anything else: not audio, no samples, NaN, a URL that fails, bad base64, a wrong array, a clip above
            a limit.
    """
    target = checked_rate(sampling_rate, name or describe(source))
    if target is None:
        raise AudioError("sampling_rate=None: give the sampling rate of the result in Hz")
    source, own_rate = unwrapped(source)
    name = name or describe(source)
    own_rate, source_rate = checked_rate(own_rate, name), checked_rate(source_sampling_rate, name)
    samples = as_array(source)
    if source_rate is not None and own_rate not in (None, source_rate):
        raise AudioError(f"{name} is at {own_rate} Hz and source_sampling_rate={source_rate}: leave the latter out")
    if samples is None and source_rate is not None:
        raise AudioError(
            f"{name}: source_sampling_rate={source_rate} is for arrays only: an audio file says its own rate, so leave "
            "it out"
        )
    if samples is None:
        samples, rate = _decoded(source, name, timeout, max_bytes, max_seconds)
    else:
        samples, rate = mono_samples(samples, name), own_rate or source_rate or target
        if len(samples) > most_samples(rate, max_seconds):
            raise too_long(name, max_seconds)
        warn_of_scale(samples, name)
    if samples.size == 0:
        raise AudioError(f"{name} holds no samples: give a clip that is longer than 0 seconds")
    if not np.isfinite(samples).all():
        bad = int(samples.size - np.isfinite(samples).sum())
        raise AudioError(f"{name}: {bad} of {samples.size} samples are NaN or infinite: repair or drop this clip")
    return _resample(samples, rate, target)


def load_clip(source: Any) -> np.ndarray:
    """float32 `[samples]` at 16 kHz of what `load_audio` takes."""
    return load_audio(source, SAMPLING_RATE)


def load_clips(sources: Iterable[Any], sampling_rate: int = SAMPLING_RATE) -> list[np.ndarray]:
    """Load several clips, each as `load_audio` does; an error says which of them it was."""
    clips = []
    for number, source in enumerate(sources):
        try:
            clips.append(load_audio(source, sampling_rate))
        except AudioError as error:
            raise type(error)(about(f"audio clip {number}", error)) from error
    return clips


def _decoded(
    source: Any, name: str, timeout: float, max_bytes: int | None, max_seconds: float
) -> tuple[np.ndarray, int]:
    """float32 `[samples]` and their rate in Hz of an encoded clip."""
    data = plain_base64(source, max_bytes, name)
    try:
        encoded = read_source(source, timeout, max_bytes, name) if data is None else data
        return decode(encoded, name, max_seconds, timeout)
    except NotAudioError as error:
        if is_plain_data_uri(source):
            raise AudioError(f"{name} is not a base64 data URI, and as it is it holds no audio: {error}") from error
        if data is None:
            raise
        if may_be_path(source):
            read_source(source, timeout, max_bytes, name)  # says that there is no such file
        raise AudioError(f"{name} is no file, and as base64 it holds no audio: {error}") from error


def _resample(samples: np.ndarray, rate: float, target: float) -> np.ndarray:
    """`[n]` at `rate` Hz -> `[ceil(n * target / rate)]` at `target` Hz: librosa.resample's default, with its length."""
    if rate == target:
        return samples
    length = math.ceil(len(samples) * (float(target) / rate))
    resampled = soxr.resample(samples, rate, target, quality="soxr_hq")[:length]
    return np.pad(resampled, (0, length - len(resampled)))

"""Audio in: whatever a user calls a clip becomes mono float32 samples at the rate that a model expects.

Decoding is libsndfile's (wav, flac, mp3, ogg, …) and resampling is soxr's "soxr_hq": the two that `librosa.load` uses,
without its 1.7 s of imports, so the samples are the same as `librosa.load(path, sr=sampling_rate)[0]`.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import logging
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import soundfile
import soxr

logger = logging.getLogger(__name__)

SAMPLING_RATE = 16_000  # Hz, what every Whisper-style encoder hears
QUIET_FRAME = 0.05  # seconds, over which the loudness of a place to cut at is measured
MAX_CHANNELS = 16  # of a 2-D array: tells channels from samples
PCM_OFFSET_AND_SCALE = {"uint8": (128, 128), "int8": (0, 128), "int16": (0, 32768), "int32": (0, 2**31)}
# The first bytes of wav, flac, ogg, aiff and mp3, by which a plain base64 string is told from a path.
AUDIO_SIGNATURES = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")


class AudioError(ValueError):
    """A clip that cannot be read or used. The message names the clip, what is wrong and what to do."""


class AudioNotFoundError(AudioError, FileNotFoundError):
    """No file at the given path: also a `FileNotFoundError`."""


class ClipTooLongError(AudioError):
    """A clip that is longer than the model hears. what: the message without what to do, for who has other words."""

    def __init__(self, what: str, advice: str = ""):
        super().__init__(f"{what}: {advice}" if advice else what)
        self.what = what


def load_audio(
    source: Any, sampling_rate: int = SAMPLING_RATE, *, source_sampling_rate: int | None = None, timeout: float = 30.0
) -> np.ndarray:
    """Read one clip, mix it down to mono and resample it.

    Args:
        source: a path (`str` or `os.PathLike`), an `http://`, `https://` or `file://` URL, encoded audio as `bytes`,
            as a binary file object, as a `data:…;base64,…` URI or as plain base64; or a NumPy array of samples:
            `[samples]`, `[channels, samples]` or `[samples, channels]` (the shorter axis is the channels), floats in
            [-1, 1], or uint8, int8, int16 or int32 PCM, which is scaled by its range.
        sampling_rate: of the result, in Hz.
        source_sampling_rate: of an array, in Hz; without it an array is taken to be at `sampling_rate` already.
        timeout: for a URL, in seconds, from the request to the last byte.

    Returns:
        float32 `[samples]`, never empty, all finite; it shares memory with an array that needed no change.

    Raises:
        AudioNotFoundError: no such file (also a `FileNotFoundError`).
        AudioError: anything else: not audio, no samples, NaN, a URL that fails, bad base64, a wrong array.
    """
    name = _describe(source)
    for rate in (sampling_rate, source_sampling_rate):
        if rate is not None and not rate > 0:
            raise AudioError(f"{name}: a sampling rate of {rate} Hz is not possible: give a positive number of Hz")
    if isinstance(source, np.ndarray):
        samples, rate = _array_samples(source, name), source_sampling_rate or sampling_rate
    elif source_sampling_rate is not None:
        raise AudioError(
            f"{name}: source_sampling_rate={source_sampling_rate} is for arrays only: an audio file says its own rate, "
            "so leave it out"
        )
    else:
        samples, rate = _decode(_read_bytes(source, timeout, name), name)
    if samples.size == 0:
        raise AudioError(f"{name} holds no samples: give a clip that is longer than 0 seconds")
    if not np.isfinite(samples).all():
        bad = int(samples.size - np.isfinite(samples).sum())
        raise AudioError(f"{name}: {bad} of {samples.size} samples are NaN or infinite: repair or drop this clip")
    return _resample(samples, rate, sampling_rate)


def load_clip(source: Any) -> np.ndarray:
    """float32 samples at 16 kHz of what `load_audio` takes, or of a data set's `{"array": …, "sampling_rate": …}`."""
    if isinstance(source, dict) and "array" in source:
        if unknown := sorted(set(source) - {"array", "sampling_rate", "path"}):
            raise ValueError(f"a clip as a dictionary has array and sampling_rate, not {', '.join(unknown)}")
        array = np.asarray(source["array"])
        return load_audio(array, SAMPLING_RATE, source_sampling_rate=source.get("sampling_rate"))
    return load_audio(source, SAMPLING_RATE)


def load_clips(sources: Iterable[Any], sampling_rate: int = SAMPLING_RATE) -> list[np.ndarray]:
    """Load several clips, each as `load_audio` does; an error says which of them it was."""
    clips = []
    for number, source in enumerate(sources):
        try:
            clips.append(load_audio(source, sampling_rate))
        except AudioError as error:
            raise type(error)(f"audio clip {number}: {error}") from error
    return clips


def fit_window(
    clip: np.ndarray, window_seconds: float, sampling_rate: int, *, truncation: bool = False, name: str = "the clip"
) -> np.ndarray:
    """Return `clip` `[samples]` if it fits a model's window, else cut it (`truncation`) or raise AudioError."""
    window = round(window_seconds * sampling_rate)
    if len(clip) <= window:
        return clip
    lengths = f"{name} is {len(clip) / sampling_rate:.2f} s long and the model hears {window_seconds:g} s"
    if not truncation:
        raise ClipTooLongError(lengths, "cut it into pieces, or pass truncation=True to use only its beginning")
    logger.warning("%s: the rest is cut off", lengths)
    return clip[:window]


def quiet_windows(samples: np.ndarray, sampling_rate: int, longest: float) -> list[tuple[int, int]]:
    """Cut a long clip `[samples]` into windows of at most `longest` seconds, each at the quietest place near its limit.

    Returns the first sample and the one after the last of each window; together they are the whole clip. The quietest
    place is the 50 ms with the least energy in the last third of a window, so speech is cut between words where it can.
    """
    limit, frame = round(longest * sampling_rate), max(1, round(QUIET_FRAME * sampling_rate))
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    windows, start = [], 0
    while len(samples) - start > limit:
        first = start + limit - limit // 3
        places = np.arange(first, max(first + 1, start + limit - frame), max(1, frame // 5))
        ends = np.minimum(places + frame, len(samples))
        loudness = energy[ends] - energy[places]
        quietest = places[np.flatnonzero(loudness == loudness.min())[-1]]
        cut = min(int(quietest) + frame // 2, start + limit)
        windows.append((start, cut))
        start = cut
    return [*windows, (start, len(samples))]


def _describe(source: Any) -> str:
    """A short name of a clip for messages: never the whole of a base64 string."""
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        return repr(text if len(text) <= 120 else text[:60] + "…")
    if isinstance(source, np.ndarray):
        return f"the {source.dtype} array of shape {source.shape}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"the {len(source)} bytes given"
    return f"the {type(source).__name__} given"


def _read_bytes(source: Any, timeout: float, name: str) -> bytes:
    """The encoded audio that a path, URL, base64 string, bytes or file object stands for."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise AudioError(f"{name} gave {type(data).__name__}, not bytes: open the file in binary mode, 'rb'")
        return data
    if isinstance(source, os.PathLike):
        return _read_file(Path(source), name)
    if not isinstance(source, str):
        raise AudioError(
            f"{name} is no audio source: pass a path, a URL, bytes, a binary file object, base64 or a NumPy array "
            "(several clips go in a flat list of these)"
        )
    if source.startswith("data:"):
        header, comma, payload = source.partition(",")
        if not comma or not header.endswith(";base64"):
            raise AudioError(f"{name} is not a base64 data URI: write it as data:audio/wav;base64,…")
        return _decode_base64(payload, name)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)
    if scheme is None:
        if not os.path.exists(source) and _looks_like_base64_audio(source):
            return _decode_base64(source, name)
        return _read_file(Path(source), name)
    if scheme[1].lower() in ("http", "https"):
        return _read_url(source, timeout, name)
    url = urlsplit(source)
    if url.scheme == "file" and url.netloc in ("", "localhost"):
        return _read_file(Path(urllib.request.url2pathname(url.path)), name)
    raise AudioError(f"{name}: cannot read this kind of URL: use http://, https:// or file:///absolute/path")


def _read_file(path: Path, name: str) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except FileNotFoundError as error:
        raise AudioNotFoundError(f"no audio file {name} (seen from {os.getcwd()}): check the path") from error
    except IsADirectoryError as error:
        raise AudioError(f"{name} is a folder: give the path of one audio file in it") from error
    except (OSError, ValueError, RuntimeError) as error:  # no permission; a null byte in the path; no home folder
        raise AudioError(f"cannot read {name}: {error}: check the path and its permissions") from error


def _read_url(url: str, timeout: float, name: str) -> bytes:
    """GET `url`; `timeout` bounds the whole transfer, not only each wait, so a server that drips cannot hold a job."""
    deadline = time.monotonic() + timeout
    request = urllib.request.Request(url, headers={"User-Agent": "mindone-audio"})
    data = bytearray()
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            while chunk := response.read1(1 << 16):
                data += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError
            expected = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        error.close()
        raise AudioError(f"{name} answered HTTP {error.code} {error.reason}: check the address") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
            raise AudioError(f"{name} was not read within {timeout:g} s: try again, or download it first") from error
        reason = getattr(error, "reason", error)
        raise AudioError(f"cannot read {name}: {reason}: check the address and the network") from error
    if expected and expected.isdigit() and len(data) != int(expected):
        raise AudioError(f"{name} broke off after {len(data)} of {expected} bytes: try again")
    return bytes(data)


def _looks_like_base64_audio(text: str) -> bool:
    if len(text) < 60:  # a wav header alone is 44 bytes, 60 characters
        return False
    try:
        return base64.b64decode(text[:8], validate=True).startswith(AUDIO_SIGNATURES)
    except (binascii.Error, ValueError):
        return False


def _decode_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise AudioError(
            f"{name} is not valid base64 ({error}): encode the audio file with base64.b64encode"
        ) from error


def _decode(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Encoded audio -> float32 `[samples]`, the mean of its channels, and its rate in Hz."""
    if not data:
        raise AudioError(f"{name} is empty (0 bytes): check how it was made or downloaded")
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)  # [samples, channels]
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError(
            f"{name} is not audio that can be decoded here (it starts with {data[:8]!r}); wav, flac, mp3 and ogg can: "
            "convert it with `ffmpeg -i IN OUT.wav`"
        ) from error
    return samples.mean(axis=1), rate


def _array_samples(array: np.ndarray, name: str) -> np.ndarray:
    """An array of samples -> float32 `[samples]`, the mean of its channels."""
    if array.dtype.kind == "f":
        samples = array.astype(np.float32, copy=False)
    elif array.dtype.name in PCM_OFFSET_AND_SCALE:
        offset, scale = PCM_OFFSET_AND_SCALE[array.dtype.name]
        samples = ((array.astype(np.float64) - offset) / scale).astype(np.float32)
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
    elif samples.ndim != 1 and samples.size:
        raise AudioError(f"{name} has {samples.ndim} axes: pass [samples], [channels, samples] or [samples, channels]")
    return np.ascontiguousarray(samples)


def _resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """`[n]` at `rate` Hz -> `[ceil(n * target / rate)]` at `target` Hz: librosa.resample's default, with its length."""
    if rate == target:
        return samples
    length = math.ceil(len(samples) * (float(target) / rate))
    resampled = soxr.resample(samples, rate, target, quality="soxr_hq")[:length]
    return np.pad(resampled, (0, length - len(resampled)))

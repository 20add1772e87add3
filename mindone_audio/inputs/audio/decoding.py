"""Encoded bytes -> samples: the same way for every source, libsndfile first, then ffmpeg."""

import logging
import os
import tempfile

import numpy as np

from mindone_audio.inputs.audio import containers
from mindone_audio.inputs.audio.errors import AudioError, NotAudioError
from mindone_audio.inputs.audio.ffmpeg import decode_with_ffmpeg, ffmpeg_path
from mindone_audio.inputs.audio.libsndfile import decode_file

logger = logging.getLogger(__name__)


def decode(data: bytes, name: str, max_seconds: float, timeout: float) -> tuple[np.ndarray, int]:
    """Encoded audio -> float32 `[samples]`, the mean of its channels, and its rate in Hz.

    libsndfile reads a file and not memory: with memory it loses the end of a clip with tags, and knows fewer MP3 files.
    timeout: seconds, for ffmpeg. Raises `AudioError`: empty, not audio, damaged, longer than `max_seconds`.
    """
    if not data:
        raise AudioError(f"{name} is empty (0 bytes): check how it was made or downloaded")
    clip, cut_off = containers.repaired_wav(containers.without_tags(data))
    try:
        with tempfile.TemporaryDirectory(prefix="mindone_audio_") as folder:
            try:
                samples, rate, frames = _by_libsndfile(folder, clip, data, name, max_seconds)
            except NotAudioError:
                return _by_ffmpeg(folder, clip, data[:8], name, max_seconds, timeout)
            if cut_off or containers.goes_on(clip, frames):
                longer = None if cut_off else _longer(folder, clip, name, max_seconds, timeout)
                if longer is not None and len(longer[0]) / longer[1] > len(samples) / rate:
                    return longer
                logger.warning(
                    "%s goes on after %.2f s, where libsndfile takes it to end: it seems to be several files joined, "
                    "and only the first part is used: %s",
                    name,
                    len(samples) / rate,
                    "give them one by one, or convert it with `ffmpeg -i IN OUT.wav`"
                    if cut_off or ffmpeg_path()
                    else "install ffmpeg, which reads them all, or give them one by one",
                )
            return samples, rate
    except OSError as error:
        raise AudioError(f"{name} cannot be put into a temporary file: {error.strerror}: set TMPDIR") from error


def _by_libsndfile(folder: str, clip: bytes, data: bytes, name: str, max_seconds: float) -> tuple[np.ndarray, int, int]:
    """By what it is, then as an MP3 after rubbish, then as an MP3 with its tags, which libsndfile knows by them."""
    is_mp3 = containers.starts_as_mp3(clip)
    try:
        return decode_file(_write(folder, "clip.mp3" if is_mp3 else "clip", clip), name, max_seconds)
    except NotAudioError:
        start = None if is_mp3 else containers.mp3_start(clip)
        if start is None and len(data) == len(clip):
            raise
    tagged_or_cut = data if start is None else clip[start:]
    return decode_file(_write(folder, "clip.mp3", tagged_or_cut), name, max_seconds)


def _by_ffmpeg(
    folder: str, clip: bytes, beginning: bytes, name: str, max_seconds: float, timeout: float
) -> tuple[np.ndarray, int]:
    """What libsndfile does not know, by ffmpeg; `NotAudioError` where that is missing or does not know it either."""
    program = ffmpeg_path()
    hint = "m4a, webm, mp4, aac, amr and wma need ffmpeg, which is not on PATH: install it"
    if program is not None:
        try:
            return decode_with_ffmpeg(program, _write(folder, "clip", clip), name, max_seconds, timeout)
        except NotAudioError as error:
            hint = f"neither libsndfile nor ffmpeg reads it ({error})"
    if clip[:512].lstrip()[:1] in (b"<", b"{"):
        hint += "; it is text, such as a web page: give the address of the file itself"
    raise NotAudioError(
        f"{name} is not audio that can be decoded here (it starts with {beginning!r}); wav, flac, mp3 and ogg can: "
        f"{hint}, or convert it with `ffmpeg -i IN OUT.wav`"
    )


def _longer(folder: str, clip: bytes, name: str, max_seconds: float, timeout: float) -> tuple[np.ndarray, int] | None:
    """All of a joined file by ffmpeg; None where that is missing or fails."""
    if (program := ffmpeg_path()) is None:
        return None
    try:
        return decode_with_ffmpeg(program, _write(folder, "clip", clip), name, max_seconds, timeout)
    except NotAudioError:
        return None


def _write(folder: str, name: str, data: bytes) -> str:
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(data)
    return path

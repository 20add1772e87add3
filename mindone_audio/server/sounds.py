"""Sound as the bytes of a file, piece by piece, so that a client hears the beginning while the rest is made."""

import io
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

PCM_RATE = 24000  # Hz, which OpenAI's clients take "pcm" to have
MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": f"audio/pcm;rate={PCM_RATE}",
}
_UNKNOWN = 0xFFFFFFFF  # a length in the header of a WAV stream


class Encoder(Protocol):
    """Samples of one sampling rate to bytes; made by `encoder`."""

    def add(self, samples: np.ndarray) -> bytes:
        """What float32 samples (count), between -1 and 1, make possible to send; it may be nothing yet."""

    def end(self) -> bytes:
        """The rest."""


def encoder(form: str, rate: int) -> Encoder:
    """An encoder to a form of `MEDIA_TYPES` of samples at `rate` Hz; `ValueError` where it cannot have that rate."""
    return _ENCODERS[form](rate)


class Pcm:
    """Samples of 16 bits, low byte first, at `PCM_RATE`, without a header."""

    def __init__(self, rate: int):
        import soxr

        self.stream = soxr.ResampleStream(rate, PCM_RATE, 1, "float32")

    def add(self, samples: np.ndarray) -> bytes:
        return sixteen_bits(self.stream.resample_chunk(samples))

    def end(self) -> bytes:
        return sixteen_bits(self.stream.resample_chunk(np.zeros(0, np.float32), last=True))


class Wav:
    """A WAV stream of 16 bits; its header, which is sent before the length is known, says that it is unknown."""

    def __init__(self, rate: int):
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
        self.header = struct.pack("<4sI4s", b"RIFF", _UNKNOWN, b"WAVE") + form + struct.pack("<4sI", b"data", _UNKNOWN)

    def add(self, samples: np.ndarray) -> bytes:
        made, self.header = self.header + sixteen_bits(samples), b""
        return made

    def end(self) -> bytes:
        return self.add(np.zeros(0, np.float32))


class Sndfile:
    """A form that libsndfile writes.

    settings: of `soundfile.SoundFile`. streamed: False gives the whole file at its end. tagged: whether libsndfile
    writes a frame first that says the length, which it knows last; this frame is left out.
    """

    def __init__(self, rate: int, *, streamed: bool = True, tagged: bool = False, **settings: Any):
        import soundfile

        self.sink, self.streamed, self.tagged, self.taken = _Sink(), streamed, tagged, 0
        try:
            self.file = soundfile.SoundFile(self.sink, "w", rate, 1, **settings)
        except soundfile.SoundFileError as error:
            raise ValueError(f"it cannot have the {rate} Hz of this model: use wav") from error

    def add(self, samples: np.ndarray) -> bytes:
        self.file.write(samples)
        return self._take() if self.streamed else b""

    def end(self) -> bytes:
        self.file.close()
        return self._take()

    def _take(self) -> bytes:
        if self.tagged and self.taken == 0:
            self.taken = self.sink.first
        made = self.sink.getvalue()[self.taken :]
        self.taken += len(made)
        return made


class _Sink(io.BytesIO):
    """first: how many bytes were written first, which are those of a frame that says the length."""

    first = 0

    def write(self, data: bytes) -> int:
        self.first = self.first or len(data)
        return super().write(data)


_ENCODERS: dict[str, Callable[[int], Encoder]] = {
    "mp3": partial(Sndfile, tagged=True, format="MP3", bitrate_mode="CONSTANT", compression_level=0.5),
    "opus": partial(Sndfile, format="OGG", subtype="OPUS"),
    # Readers such as libsndfile want the length in the header.
    "flac": partial(Sndfile, streamed=False, format="FLAC", subtype="PCM_16"),
    "wav": Wav,
    "pcm": Pcm,
}


def sixteen_bits(samples: np.ndarray) -> bytes:
    """Float32 samples between -1 and 1 as PCM, low byte first."""
    return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()

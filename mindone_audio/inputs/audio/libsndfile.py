"""A file of wav, flac, mp3, ogg and what else libsndfile knows -> samples, read in blocks up to a limit."""

import os

import numpy as np
import soundfile

from mindone_audio.inputs.audio.arrays import HIGHEST_RATE, LOWEST_RATE
from mindone_audio.inputs.audio.errors import MOST_LIMITED_CHANNELS, AudioError, NotAudioError, too_many_seconds

BLOCK = 2**18  # samples of all channels together
# Above this rate the limit in seconds is one in samples, so that its memory is bounded too: 4 hours are 2.8 GB.
HIGHEST_LIMITED_RATE = 48_000  # Hz


class _Forward(soundfile.SoundFile):
    """Reads from beginning to end: `SoundFile` seeks after each block, which MP3 and DWVW do not bear."""

    def seekable(self) -> bool:
        return False


def decode_file(path: str | os.PathLike, name: str, max_seconds: float) -> tuple[np.ndarray, int, int]:
    """float32 `[samples]`, the mean of the channels; the rate in Hz; how many samples a channel has.

    Nothing is allocated by what the file says of its length. Raises `NotAudioError` where libsndfile does not know the
    format, `AudioError` for a file that is damaged or longer than `max_seconds`.
    """
    try:
        file = _Forward(os.fspath(path))
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OverflowError, OSError) as error:
        raise NotAudioError(f"{name}: libsndfile does not read it") from error
    with file:
        rate, channels = file.samplerate, file.channels
        if channels < 1 or not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise AudioError(f"{name} says that it has {channels} channels at {rate} Hz: its header is damaged")
        try:
            if file.format == "MP3":
                file.seek(0)  # as `soundfile.read` does, whose samples differ without it
            blocks = list(mono_blocks(_blocks(file, channels), rate, max_seconds, name))
        except (soundfile.SoundFileError, RuntimeError, OverflowError, OSError) as error:
            raise AudioError(
                f"{name} is damaged: libsndfile cannot decode all of it: copy it again, or repair it with "
                "`ffmpeg -i IN OUT.wav`"
            ) from error
    samples = blocks[0] if len(blocks) == 1 else np.concatenate([np.zeros(0, np.float32), *blocks])
    return samples, rate, len(samples)


def mono_blocks(blocks, rate: int, max_seconds: float, name: str):
    """The mean over the channels of each block `[samples, channels]`; `AudioError` above the limit in seconds."""
    limit, count = most_samples(rate, max_seconds), 0
    limit_of_all = max_seconds * HIGHEST_LIMITED_RATE * MOST_LIMITED_CHANNELS
    for block in blocks:
        count += len(block)
        if count > limit or count * block.shape[1] > limit_of_all:
            raise too_long(name, max_seconds)
        yield block.mean(axis=1)


def most_samples(rate: float, max_seconds: float) -> float:
    """How many samples of a channel the limit in seconds is."""
    return max_seconds * min(rate, HIGHEST_LIMITED_RATE)


def too_long(name: str, max_seconds: float) -> AudioError:
    """The error for a clip above the limit."""
    return too_many_seconds(name, max_seconds, HIGHEST_LIMITED_RATE)


def _blocks(file: soundfile.SoundFile, channels: int):
    block, left = np.empty((max(1, BLOCK // channels), channels), np.float32), file.frames
    # Not beyond the length that the file says: what follows may be a tag, at which FLAC's decoder fails.
    while left > 0 and len(read := file.read(out=block[: min(left, len(block))])):
        left -= len(read)
        yield read

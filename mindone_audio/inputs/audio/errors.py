"""What goes wrong with a clip, and the short name by which every message calls it."""

import os
import re
from collections.abc import Mapping
from typing import Any

from mindone_audio.setting_fields import SettingError, keyword

# With more channels the limit in seconds is one in samples of all of them, so that its time is bounded too.
MOST_LIMITED_CHANNELS = 8
LONGEST_NAME = 120  # characters of a path or URL that a message repeats
SHORTER_FILES = " into shorter files, as with `ffmpeg -i CLIP -f segment -segment_time 1800 part-%03d.wav`"


class AudioError(SettingError):
    """A clip that cannot be read or used. The message names the clip, what is wrong and what to do."""


class AudioNotFoundError(AudioError, FileNotFoundError):
    """No file at the given path: also a `FileNotFoundError`."""


class ClipTooLongError(AudioError):
    """A clip that is longer than the limit of the model. what: the message without its advice."""

    def __init__(self, what: str, advice: str = ""):
        super().__init__(f"{what}: {advice}" if advice else what)
        self.what = what


class NotAudioError(AudioError):
    """Bytes that no decoder at hand knows."""


def describe(source: Any) -> str:
    """A short name of a clip for messages: never all of a long string, no password of a URL, and no samples."""
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
        source = os.fsdecode(source) if isinstance(source, bytes) else source
    if isinstance(source, str):
        return shortened(re.sub(r"^(\s*\w[\w+.-]*://)[^/?#\\]*@", r"\1", source[: 10 * LONGEST_NAME]))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"the {len(source)} bytes given"
    if isinstance(source, Mapping):
        return f"the clip with the keys {shortened(', '.join(map(str, list(source)[:8])))[1:-1]}"
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        kind = "array" if type(source).__module__ == "numpy" else type(source).__name__
        return f"the {source.dtype} {kind} of shape {tuple(source.shape)}"
    return f"the {type(source).__name__} given"


def shortened(text: str) -> str:
    """`repr` of a text, of a long one only of its beginning."""
    return repr(text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME // 2] + "…")


def too_many_bytes(name: str, limit: int) -> AudioError:
    """The error for an encoded clip above the limit."""
    return _above_limit(f"{name} has more than {limit} bytes ({limit / 2**20:.0f} MiB), the limit", "max_bytes")


def too_many_seconds(name: str, limit: float, rate: int) -> AudioError:
    """The error for a clip that is longer than `limit` seconds. rate: samples of a channel in a second, at most."""
    hours = f"{limit / 3600:.3g} hours, at most {rate} samples of {MOST_LIMITED_CHANNELS} channels each second"
    return _above_limit(f"{name} is longer than {limit:g} s ({hours}), the limit", "max_seconds")


def _above_limit(what: str, limit: str) -> AudioError:
    def write(say) -> str:
        # Only Python's callers can set another limit.
        more = f", or call load_audio(…, {limit}=…) with a higher one" if say is keyword else SHORTER_FILES
        return f"{what}: cut the clip{more}"

    return AudioError(write)

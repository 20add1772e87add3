"""One input of a pipeline: what is asked, its clips, and the windows of a long one."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from mindone_audio.generation.settings import GenerationSettings
from mindone_audio.inputs.audio import SAMPLING_RATE, ClipTooLongError, load_clip, quiet_windows
from mindone_audio.inputs.conversation import chat_clips


@dataclass(frozen=True)
class Request:
    """One thing asked: a conversation, or a clip to transcribe, and the settings for it.

    messages: as `apply_chat_template` takes them, audio elements as float32 samples once they are loaded. given: the
    conversation as it was given, None where it was a clip and a text. arguments: of `generate`, settings and others.
    chosen: the settings that they make with the model's own. transcribe: the clip is to be written down. language: of
    the speech, as "en", where a family takes one. window: seconds of the longest clip that goes to the model at a
    time, None for any. by_windows: a longer clip is cut into windows, and is an error otherwise.
    """

    messages: list[dict]
    given: list[dict] | None = None
    text: str = ""
    arguments: dict = field(default_factory=dict)
    chosen: GenerationSettings = field(default_factory=GenerationSettings)
    stops: tuple[str, ...] = ()
    full_text: bool = False
    count_tokens: bool = False
    transcribe: bool = False
    language: str | None = None
    window: float | None = None
    by_windows: bool = False

    @property
    def clips(self) -> list[np.ndarray]:
        """The samples of every clip."""
        return chat_clips(self.messages)

    @property
    def length(self) -> int:
        """Samples in all, by which requests are put into batches."""
        return sum(len(clip) for clip in self.clips)


def load_clips(request: Request) -> Request:
    """The request with the samples of its clips; `AudioError` for one that cannot be read or is too long."""
    loaded = []
    for message in request.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {"type": "audio", "audio": load_clip(chat_clips([{"content": [element]}])[0])}
                if element["type"] == "audio"
                else element
                for element in content
            ]
        loaded.append({**message, "content": content})
    request = replace(request, messages=loaded)
    check_length(request)
    return request


def check_length(request: Request) -> None:
    """`AudioError` for a clip that is longer than the model hears and does not go by windows."""
    for number, clip in enumerate(request.clips):
        seconds = len(clip) / SAMPLING_RATE
        if request.window is None or seconds <= request.window or (request.by_windows and len(request.clips) == 1):
            continue
        raise ClipTooLongError(
            f"clip {number} is {seconds:.2f} s long and the model hears {request.window:g} s at a time",
            'cut it, pass long_audio="windows" for one answer a window, or task="transcribe"',
        )


def windows(request: Request) -> Iterator[tuple[int, Request]]:
    """The request with each window of its clip, and the sample at which the window starts; mostly one."""
    longest, clips = request.window, request.clips
    if longest is None or not clips or all(len(clip) <= longest * SAMPLING_RATE for clip in clips):
        yield 0, request
        return
    for start, end in quiet_windows(clips[0], SAMPLING_RATE, longest):
        content = [{"type": "audio", "audio": clips[0][start:end]}]
        words = [element for element in request.messages[0]["content"] if element["type"] == "text"]
        yield start, replace(request, messages=[{"role": "user", "content": content + words}])


def batches(requests: dict[int, Request], batch_size: int) -> Iterator[list[int]]:
    """Places of requests to answer together: of equal settings, and of similar length."""
    groups: dict[str, list[int]] = {}
    for place, request in requests.items():
        shared = (request.chosen, request.stops, request.transcribe, request.language)
        groups.setdefault(repr(shared), []).append(place)
    for places in groups.values():
        places.sort(key=lambda place: requests[place].length)
        for first in range(0, len(places), batch_size):
            yield places[first : first + batch_size]

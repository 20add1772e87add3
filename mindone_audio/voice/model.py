"""What a conversation asks of a model: what was said, and what to answer; from threads of its own, which may wait."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from mindone_audio.generation.events import Delta
from mindone_audio.inputs.audio import SAMPLING_RATE
from mindone_audio.pipelines.requests import longest_window, prepared, read_request
from mindone_audio.pipelines.transcripts import is_silent, without_silence

_USUAL = 128  # tokens of an answer, for which there is room in any case
_WINDOW = 30.0  # seconds of speech at a time, for models that take any length
_WAIT = 0.05  # seconds after which a waiting thread looks whether it is wanted no more


class Cancelled(Exception):
    """Nobody wants the result any more."""


class VoiceModel:
    """A pipeline, and the scheduler in whose thread its model computes.

    speaker: a pipeline that speaks texts, whose model computes in the same thread; None for answers in text alone.
    adapter: the name of one of the scheduler's.
    """

    def __init__(self, pipe: Any, scheduler: Any, speaker: Any = None, adapter: str | None = None):
        self.pipe, self.scheduler, self.speaker, self.adapter = pipe, scheduler, speaker, adapter

    @classmethod
    def of(cls, pipe: Any, speaker: Any = None, max_batch: int = 4) -> "VoiceModel":
        """Of a pipeline that nobody else uses: it gets a scheduler of its own, which is ready once it has compiled."""
        from mindone_audio.generation.scheduler import Scheduler  # MindSpore, which a server imports later

        scheduler = Scheduler(lambda: pipe.model, max_batch=max_batch)
        scheduler.start()
        return cls(pipe, scheduler, speaker)

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded and compiled; raises what loading raised."""
        while not self.scheduler.ready:
            if self.scheduler.failure is not None:
                raise self.scheduler.failure
            time.sleep(_WAIT)

    @property
    def answers(self) -> bool:
        """Whether the model answers, or only writes down what is said."""
        return self.pipe.task == "audio-text-to-text"

    @property
    def longest(self) -> int:
        """Samples of speech that the model hears at a time."""
        own = None if self.pipe.tells_times else longest_window(self.pipe.processor, None, "transcribe")
        return round((own or _WINDOW) * SAMPLING_RATE)

    def prepared(self, messages: list[dict], settings: dict, tools: tuple[dict, ...] = ()) -> tuple[Any, int]:
        """A conversation as the scheduler takes it, and for how many tokens more than its prompt and a usual answer
        there is room, negative where there is not. `ValueError` for a wrong setting or a conversation that cannot be,
        `PromptTooLongError` for one of more tokens than positions."""
        request = read_request(self.pipe.model, self.pipe.processor, messages, None, None, settings)
        made = prepared(self.pipe, self.scheduler, replace(request, tools=tools))
        most = self.scheduler.max_model_len or self.pipe.model.language_model.config.max_positions
        answer = min(settings.get("max_new_tokens") or _USUAL, _USUAL)  # what was asked, not what a prompt leaves of it
        return made, most - made.prompt_tokens - answer

    def transcript(self, clip: np.ndarray, settings: dict, cancelled: threading.Event) -> str:
        """What is said in float32 samples, "" where nobody speaks: the same as a pipeline's transcription of them.

        Raises `Cancelled`, and what the scheduler raises.
        """
        pipe = self.pipe
        if is_silent(clip):
            return ""
        if pipe.tells_times:
            return self._recognised(clip, settings, cancelled)
        request = read_request(pipe.model, pipe.processor, clip, None, "transcribe", settings)
        asked = prepared(pipe, self.scheduler, request)
        text = "".join(delta.text for delta in self.deltas(asked, cancelled)).strip()
        return without_silence(pipe.processor.transcription(text), pipe.processor.silence_answers)

    def hear_ahead(self, messages: list[dict], cancelled: threading.Event) -> None:
        """Have the clips of a conversation encoded, for an answer that is asked for later: the scheduler keeps them."""
        made, _ = self.prepared(messages, {"max_new_tokens": 1})
        for _ in self.deltas(made, cancelled):
            pass

    def deltas(self, request: Any, cancelled: threading.Event) -> Iterator[Delta]:
        """What the answer to a prepared request grows by. Where `cancelled` is set, or this is closed, nothing more is
        computed for it."""
        found: queue.SimpleQueue = queue.SimpleQueue()
        ticket = self.scheduler.submit(request, found.put, adapter=self.adapter)
        try:
            while True:
                delta = _next(found, cancelled)
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            ticket.cancel()

    def sound(self, text: str, voice: Any, cancelled: threading.Event) -> Iterator[np.ndarray]:
        """Float32 samples of a text, piece by piece, at `rate`."""
        pieces = self.scheduler.run(partial(self.speaker, text, voice=voice, stream=True)).result()
        while (piece := self.scheduler.run(partial(next, pieces, None)).result()) is not None:
            if cancelled.is_set():
                raise Cancelled
            yield piece["audio"]

    @property
    def rate(self) -> int:
        """Of the sound of answers, samples a second."""
        return self.speaker.vocoder.sampling_rate

    def _recognised(self, clip: np.ndarray, settings: dict, cancelled: threading.Event) -> str:
        """By Whisper, whose windows come one after another."""
        heard = self.pipe.prepare(clip, settings)
        while heard is not None and not heard.done:
            found: queue.SimpleQueue = queue.SimpleQueue()
            ticket = self.scheduler.submit(heard.request(), found.put, adapter=self.adapter)
            try:
                while _next(found, cancelled).finish_reason is None:
                    pass
            finally:
                ticket.cancel()
            self.scheduler.run_with_engine(partial(heard.hear, ticket.rows[0]), self.adapter).result()
        return "" if heard is None else self.pipe.answer(heard.segments, heard)["text"]


def _next(found: queue.SimpleQueue, cancelled: threading.Event) -> Any:
    """What comes next; `Cancelled` where nobody wants it, and any error that comes."""
    while not cancelled.is_set():
        try:
            value = found.get(timeout=_WAIT)
        except queue.Empty:
            continue
        if isinstance(value, Exception):
            raise value
        return value
    raise Cancelled

"""A conversation as a handler of FastRTC's `Stream` (the extra fastrtc): WebRTC and its WebSocket protocol.

FastRTC's own `ReplyOnPause` breaks an answer off only when the pause behind the interruption is found, and fetches its
voice activity from the hub. Here both are the conversation's.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from fastrtc import AdditionalOutputs, AsyncStreamHandler

from mindone_audio.voice.activity import RATE
from mindone_audio.voice.conversation import Conversation, ConversationSettings
from mindone_audio.voice.events import AnswerAudio, Event, Interrupted
from mindone_audio.voice.model import VoiceModel

_OUTPUT_RATE = 24_000
_FRAME = _OUTPUT_RATE // 50  # samples that are given at a time, so that little is left to play after an interruption
_OPUS_RATE = 48_000  # of what WebRTC brings


class ConversationHandler(AsyncStreamHandler):
    """One person's conversation; FastRTC makes a copy for each connection.

    Sound of answers goes to the track; every other event of the conversation comes as `AdditionalOutputs(event)`.
    model, settings: functions that give them when a connection begins.
    """

    def __init__(self, model: Callable[[], VoiceModel], settings: Callable[[], ConversationSettings]):
        super().__init__(output_sample_rate=_OUTPUT_RATE, input_sample_rate=_OPUS_RATE)
        self.model, self.settings = model, settings
        self._given: asyncio.Queue[Any] = asyncio.Queue()
        self._conversation: Conversation | None = None
        self._to_model: Any = None
        self._player: Any = None

    def copy(self) -> "ConversationHandler":
        return ConversationHandler(self.model, self.settings)

    async def start_up(self) -> None:
        self._begin()

    def _begin(self) -> Conversation:
        """The conversation, which begins with what is heard first: over a WebSocket nothing starts it up."""
        if self._conversation is None:
            loop = asyncio.get_running_loop()

            def happened(event: Event) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(self._happened, event)

            self._conversation = Conversation(self.model(), happened, self.settings())
        return self._conversation

    async def receive(self, frame: tuple[int, np.ndarray]) -> None:
        """Int16 (1, samples) or (samples) of any rate."""
        import soxr

        conversation, (rate, samples) = self._begin(), frame
        samples = np.atleast_2d(samples)[0].astype(np.float32) / 32768
        if rate != RATE:
            if self._to_model is None:
                self._to_model = soxr.ResampleStream(rate, RATE, 1, "float32")
            samples = self._to_model.resample_chunk(samples)
        await asyncio.to_thread(conversation.hear, samples)

    async def emit(self) -> Any:
        return await self._given.get()

    def shutdown(self) -> None:
        if self._conversation is not None:
            self._conversation.close()

    def _happened(self, event: Event) -> None:
        """In the loop."""
        if isinstance(event, AnswerAudio):
            self._play(event)
            return
        if isinstance(event, Interrupted):
            self._silence()
        self._given.put_nowait(AdditionalOutputs(event))

    def _play(self, event: AnswerAudio) -> None:
        import soxr

        samples = event.samples
        if event.rate != _OUTPUT_RATE:
            samples = soxr.resample(samples, event.rate, _OUTPUT_RATE)
        whole = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
        for start in range(0, len(whole), _FRAME):
            self._given.put_nowait((_OUTPUT_RATE, whole[None, start : start + _FRAME]))

    def _silence(self) -> None:
        """Forget what was to be played."""
        kept = []
        while not self._given.empty():
            given = self._given.get_nowait()
            if isinstance(given, AdditionalOutputs):
                kept.append(given)
        for given in kept:
            self._given.put_nowait(given)
        if self._clear_queue is not None:
            self._clear_queue()


def fastrtc_handler(model: Any, settings: ConversationSettings | None = None, *, speaker: Any = None) -> Any:
    """What `fastrtc.Stream(handler, modality="audio", mode="send-receive")` takes.

    model: a pipeline that nobody else uses, or a `VoiceModel`. speaker: a text-to-speech pipeline for a pipeline's
    answers. settings: as `Conversation` takes them.
    """
    if not isinstance(model, VoiceModel):
        model = VoiceModel.of(model, speaker)
    asked = settings or ConversationSettings()
    return ConversationHandler(lambda: model, lambda: asked)

"""FastRTC's URLs on the server: its WebRTC and its WebSocket in front of a conversation, with the extra fastrtc."""

from typing import Any

from fastapi import FastAPI

from mindone_audio.server.service import Service
from mindone_audio.setting_fields import SettingError
from mindone_audio.voice.conversation import ConversationSettings
from mindone_audio.voice.model import VoiceModel

PATH = "/fastrtc"


def add_fastrtc(app: FastAPI, service: Service) -> None:
    """Let the app answer at `PATH`/webrtc/offer and `PATH`/websocket/offer; `ValueError` where FastRTC is not there."""
    try:
        from fastrtc import Stream

        from mindone_audio.voice.fastrtc_adapter import ConversationHandler
    except ImportError as error:
        missing = f'needs the package fastrtc ({error}): pip install "mindone_audio[fastrtc]"'
        raise SettingError(lambda say: f"{say('fastrtc')} {missing}") from error

    def model() -> VoiceModel:
        return VoiceModel(service.pipe, service.scheduler, service.speaker)

    def settings() -> ConversationSettings:
        asked: dict[str, Any] = {"generate": {"max_new_tokens": service.options.max_tokens}}
        if service.options.model is None:  # the bundled model is asked about one clip
            asked |= {"question": service.pipe.processor.questions["caption"], "remember": False}
        return ConversationSettings(answer=not service.transcribes_only, transcribe=True, **asked)

    stream = Stream(
        ConversationHandler(model, settings),
        modality="audio",
        mode="send-receive",
        concurrency_limit=service.options.max_batch,
        additional_outputs_handler=lambda *outputs: outputs[-1],
    )
    stream.mount(app, PATH)

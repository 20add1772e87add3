"""A spoken conversation without network code: samples in, events out."""

from importlib import import_module
from typing import Any

_WHERE = {
    "Conversation": "conversation",
    "ConversationSettings": "conversation",
    "TurnSettings": "activity",
    "VoiceModel": "model",
    "fastrtc_handler": "fastrtc_adapter",  # the extra fastrtc
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    """Imported when they are asked for: some import much."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)

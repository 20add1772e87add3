"""Pipelines: clips and questions in, text out; or texts in, speech out."""

from importlib import import_module

from mindone_audio.pipelines.requests import Request

_HOMES = {
    "Answers": "answers",
    "AudioTextToTextPipeline": "audio_text_to_text",
    "SpeechRecognitionPipeline": "speech_recognition",
    "SpeechToTextPipeline": "translation",
    "TextToSpeechPipeline": "text_to_speech",
    "TranslationPipeline": "translation",
    "pipeline": "load",
}
__all__ = [
    "Answers",
    "AudioTextToTextPipeline",
    "Request",
    "SpeechRecognitionPipeline",
    "SpeechToTextPipeline",
    "TextToSpeechPipeline",
    "TranslationPipeline",
    "pipeline",
]


def __getattr__(name: str):
    """The pipelines need MindSpore; `pipelines.requests`, by which a server reads what it is asked, does not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

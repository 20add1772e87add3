"""Pipelines: clips and questions in, text out."""

from mindone_audio.pipelines.requests import Request

__all__ = ["Answers", "AudioTextToTextPipeline", "Request", "pipeline"]


def __getattr__(name: str):
    """The pipeline needs MindSpore; `pipelines.requests`, by which a server reads what it is asked, does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mindone_audio.pipelines import audio_text_to_text

    return getattr(audio_text_to_text, name)

"""Clips and questions in, text out: `pipeline("audio-text-to-text")`."""

from mindone_audio.pipelines.audio_text_to_text import Answers, AudioTextToTextPipeline, pipeline
from mindone_audio.pipelines.request import Request

__all__ = ["Answers", "AudioTextToTextPipeline", "Request", "pipeline"]

"""Pipelines: clips and questions in, text out."""

from mindone_audio.pipelines.audio_text_to_text import Answers, AudioTextToTextPipeline, pipeline
from mindone_audio.pipelines.requests import Request

__all__ = ["Answers", "AudioTextToTextPipeline", "Request", "pipeline"]

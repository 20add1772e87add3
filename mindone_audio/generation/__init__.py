"""Text generation: prefill, decode step, sampling, beams, streaming."""

from mindone_audio.generation.generate import GenerationMixin

__all__ = ["GenerationMixin"]

"""Text generation: prefill, decode step, sampling, beams, streaming."""

__all__ = ["GenerationMixin"]


def __getattr__(name: str):
    """`GenerationMixin` needs MindSpore; `generation.settings`, by which a command line is checked, does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mindone_audio.generation.generate import GenerationMixin

    return GenerationMixin

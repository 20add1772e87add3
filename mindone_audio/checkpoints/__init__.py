"""The small trained checkpoints that ship with the package."""

from pathlib import Path


def demo_checkpoint() -> Path:
    """The folder of a 10 MB Qwen2-Audio that knows a few sounds and words; its README.md says which."""
    return Path(__file__).parent / "qwen2_audio_demo"

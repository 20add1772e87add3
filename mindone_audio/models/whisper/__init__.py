"""Whisper: model, processor, and what only this family needs: windows, timestamps, the times of words."""

"""Ichigo: the model and its processor, and WhisperVQ, which makes tokens of audio."""

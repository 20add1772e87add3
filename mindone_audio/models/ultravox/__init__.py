"""Ultravox: the model and its processor, and the checkpoints that it is completed from."""

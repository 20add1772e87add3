"""Phi-4-multimodal: what hears and writes of it."""

"""Voxtral: the model and its processor, and its tokenizer, Tekken."""

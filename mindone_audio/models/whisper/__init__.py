"""Whisper (arXiv 2212.04356): speech in many languages to text, in its language or in English, with times."""

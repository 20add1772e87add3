"""SpeechT5 (arXiv 2110.07205)."""

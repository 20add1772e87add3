"""The commands of `scripts/benchmark.py`: this package timed against transformers on PyTorch."""

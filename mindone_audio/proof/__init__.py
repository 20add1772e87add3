"""Proofs that a machine computes the right numbers: recorded activations replayed, and each operation against NumPy."""

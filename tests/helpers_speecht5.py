"""A tiny random SpeechT5 with its vocoder: relative positions that are clipped, two frames a step, odd kernels."""

import numpy as np
import torch
from helpers_bodies import random_module
from transformers import SpeechT5HifiGan as TorchHifiGan
from transformers import SpeechT5HifiGanConfig

BINS, VOCAB, SPEAKER = 10, 30, 512


def vocoder(seed: int = 0, **changes) -> TorchHifiGan:
    sizes = {
        "model_in_dim": BINS,
        "upsample_initial_channel": 16,
        "upsample_rates": [3, 2],
        "upsample_kernel_sizes": [7, 5],
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1, 2]],
    }
    model = random_module(TorchHifiGan(SpeechT5HifiGanConfig(**{**sizes, **changes})), seed)
    with torch.no_grad():  # a waveform that tanh does not flatten
        model.conv_post.weight *= 0.2
    return model


def mels(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, BINS)).astype(np.float32) for length in lengths]

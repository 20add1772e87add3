"""NF4 checkpoints without bitsandbytes, whose own files are in tests/goldens: weights in 4 bits in the same format."""

import json
import math

import numpy as np
import torch
from safetensors.torch import load_file, save_file

STATE = "quant_state.bitsandbytes__nf4"
LEVELS = np.linspace(-1, 1, 16, dtype=np.float32)  # any 16 levels are stored; bitsandbytes' are closer at zero


def quantise(folder, names: list[str]) -> None:
    """Rewrite a folder's model.safetensors with these weights in 4 bits, plain, in blocks of 64."""
    tensors = load_file(folder / "model.safetensors")
    for name in names:
        tensors |= in_4_bits(name, tensors[name].float().numpy())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def in_4_bits(name: str, value: np.ndarray) -> dict[str, torch.Tensor]:
    """A weight's tensors."""
    blocks = np.pad(value.reshape(-1), (0, -value.size % 64)).reshape(-1, 64)
    absmax = np.abs(blocks).max(1)
    codes = np.rint((blocks / absmax[:, None] + 1) * 7.5).astype(np.uint8).reshape(-1)
    packed = (codes[::2] << 4 | codes[1::2])[: math.ceil(value.size / 2), None]
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(value.shape)}
    state = np.frombuffer(json.dumps(state).encode(), np.uint8)
    arrays = {"": packed, ".absmax": absmax, ".quant_map": LEVELS, f".{STATE}": state}
    return {name + part: torch.from_numpy(array.copy()) for part, array in arrays.items()}

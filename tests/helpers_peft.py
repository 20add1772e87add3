"""PyTorch's PEFT, and adapters whose numbers are far from zero."""

import mindspore as ms
import numpy as np
import peft
import torch
from mindspore import Tensor

# What the published guides adapt; the first three are names of the audio encoder's layers too.
GUIDES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def torch_adapter(model: torch.nn.Module, seed: int = 0, **config) -> peft.PeftModel:
    """PEFT's adapters on a PyTorch model, of random A and B."""
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **config})).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.2)
    return adapted


def randomise_adapters(model, seed: int = 0, scale: float = 0.1) -> None:
    """Random B for every adapter of a MindSpore model, so that it changes what the model says."""
    rng = np.random.default_rng(seed)
    for name, parameter in model.parameters_and_names():
        if ".lora_B." in name:
            values = rng.normal(0, scale, parameter.shape).astype(np.float32)
            ms.ops.assign(parameter, Tensor(values))

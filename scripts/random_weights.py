"""Weights for tiny reference models."""

import torch


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """`randomise_parameters` of a transformers model, whose tied weights stay tied."""
    randomise_parameters(model)
    model.tie_weights()
    return model


@torch.no_grad()
def randomise_parameters(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter random values so large that each matters to the logits, which are far from flat."""
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name or "embed_positions" in name:
            parameter.normal_(0, 1.0)
        elif parameter.dim() > 1:
            parameter.normal_(0, 1.6 / parameter[0].numel() ** 0.5)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.3)
        else:
            parameter.normal_(1, 0.2)
    return model

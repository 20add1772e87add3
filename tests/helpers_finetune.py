"""Twenty LoRA steps on PyTorch with PEFT and AdamW, for comparison; also what records them in another environment.

Graphs of training compile in a time that grows with the layers: `FEW_LAYERS` is for tests that are not about them.
"""

from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from transformers import get_scheduler

STEPS, WARMUP, RATE, DECAY, CLIP = 20, 4, 5e-3, 0.1, 1.0
FEW_LAYERS = {"audio": {"encoder_layers": 1}, "text": {"num_hidden_layers": 2}}  # for `helpers.tiny_config`
# The guides' list, which PEFT also finds in the audio encoder.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def labelled(cases: dict) -> list[dict[str, np.ndarray]]:
    """Micro-batches of a family's cases, with labels of which about a third are ignored."""
    found = []
    for number, make in enumerate(cases.values()):
        inputs = make()
        ids = inputs["input_ids"]
        labels = np.where(np.random.default_rng(number).random(ids.shape) < 0.3, -100, ids)
        labels[inputs["attention_mask"] == 0] = -100
        labels[np.arange(len(ids)), inputs["attention_mask"].argmax(1)] = -100  # which padding would have to predict
        found.append({**inputs, "labels": labels})
    return found


def steps(micro_batches: list[dict]) -> list[list[dict]]:
    """Two micro-batches a step, around and around."""
    return [[micro_batches[(2 * step + i) % len(micro_batches)] for i in (0, 1)] for step in range(STEPS)]


def torch_lora(model, micro_batches: list[dict], folder: Path, **lora) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses and the final adapter's tensors; the adapter from which the steps begin is saved to `folder`.

    The loss of a step is the mean over the tokens of all its micro-batches.
    """
    torch.manual_seed(3)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **lora})
    model = get_peft_model(model, config)
    model.save_pretrained(folder)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)
    losses = []
    for parts in steps(micro_batches):
        count = sum(int((part["labels"][:, 1:] != -100).sum()) for part in parts)
        total = 0.0
        for part in parts:
            inputs = {name: torch.from_numpy(value) for name, value in part.items() if name != "labels"}
            logits = model(**inputs).logits[:, :-1]
            targets = torch.from_numpy(part["labels"][:, 1:]).reshape(-1)
            loss = torch.nn.functional.cross_entropy(logits.reshape(len(targets), -1), targets, reduction="sum") / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
    final = {name: tensor.detach().numpy().copy() for name, tensor in get_peft_model_state_dict(model).items()}
    return losses, final

"""One rank of a training that tests/test_finetune_ranks.py starts with msrun: CHECKPOINT OUTPUT ROWS."""

import sys

import helpers
import numpy as np

from mindone_audio import AutoModelForAudioTextToText
from mindone_audio.finetune import FinetuneSettings, LoraSettings, Trainer, add_lora


def examples() -> list[dict]:
    """Eleven prompts of one length; the last batch of four has three, so that one rank has fewer than the other."""
    found = []
    for seed in range(11):
        inputs = {**helpers.batch([helpers.prompt([1, "a40", 9], seed)]), **helpers.clips([40], seed)}
        labels = inputs["input_ids"].copy()
        labels[:, : -2 - seed % 7] = -100  # unequal numbers of tokens to learn
        found.append({**inputs, "labels": labels})
    return found


def collate(rows: list[dict]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def train(checkpoint: str, output: str, rows: int) -> list[float]:
    model = add_lora(AutoModelForAudioTextToText.from_pretrained(checkpoint), LoraSettings(r=4, alpha=8))
    settings = FinetuneSettings(
        output,
        max_steps=7,
        per_device_train_batch_size=rows,
        learning_rate=5e-3,
        logging_steps=1,
        eval_steps=3,
        save_steps=4,
    )
    return Trainer(model, None, collate, settings, examples(), examples()[:5]).train().losses


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], int(sys.argv[3]))

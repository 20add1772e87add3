"""How to fine-tune: steps, learning rate, evaluation, checkpoints; by the names of transformers' TrainingArguments."""

import math
from dataclasses import dataclass

from mindone_audio.fields import documented, setting

SCHEDULES = ("linear", "cosine", "constant")
METRICS = ("exact_match", "wer")
REPORTS = ("csv", "tensorboard")


@documented
@dataclass(frozen=True)
class FinetuneSettings:
    """What `Trainer` does; the names and meanings are those of transformers' TrainingArguments.

    Raises `ValueError` for a value that makes no sense. The settings:
    """

    output_dir: str = setting("folder for the adapter, the checkpoints and log.csv")
    num_train_epochs: float = setting("how often each example is seen", 3.0)
    max_steps: int = setting("number of steps, instead of epochs; 0: by epochs", 0)
    per_device_train_batch_size: int = setting("examples of one forward and backward pass", 2)
    per_device_eval_batch_size: int = setting("examples at a time in evaluation", 8)
    gradient_accumulation_steps: int = setting("batches of a step, on each device", 1)
    learning_rate: float = setting("learning rate at the end of the warm-up", 2e-4)
    lr_scheduler_type: str = setting("the learning rate falls to zero (linear, cosine) or stays (constant)", "linear")
    warmup_steps: int = setting("steps of the warm-up", 0)
    warmup_ratio: float = setting("steps of the warm-up as a share of all steps", 0.0)
    weight_decay: float = setting("weight decay, of all but biases and norms", 0.0)
    adam_beta1: float = setting("decay of the mean of gradients", 0.9)
    adam_beta2: float = setting("decay of the mean of squared gradients", 0.999)
    adam_epsilon: float = setting("added to the root of that mean", 1e-8)
    max_grad_norm: float = setting("gradients with a larger norm are scaled down to it; 0: never", 1.0)
    logging_steps: int = setting("log every so many steps; 0: only at the end", 10)
    eval_steps: int = setting("evaluate every so many steps; 0: only at the end", 0)
    save_steps: int = setting("write a checkpoint every so many steps; 0: only at the end", 0)
    save_total_limit: int | None = setting("number of checkpoints that are kept (default: all)", None)
    metrics: tuple[str, ...] = setting("scores of generated answers in evaluation: exact_match, wer", ())
    max_new_tokens: int = setting("longest generated answer in evaluation, in tokens", 128)
    gradient_checkpointing: bool = setting("keep only the input of each decoder layer: less memory, more time", False)
    shuffle: bool = setting("draw a new order for each epoch", True)
    seed: int = setting("seed of that order and of dropout", 42)
    report_to: tuple[str, ...] = setting("where the log goes: csv (log.csv), tensorboard", ("csv",))
    compile: bool = setting("compile the steps; without it they take many times longer", True)

    def __post_init__(self):
        at_least = {
            1: ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
            0: ("max_steps", "warmup_steps", "logging_steps", "eval_steps", "save_steps", "seed"),
        }
        at_least[1] += ("max_new_tokens",)
        for low, names in at_least.items():
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, int) or isinstance(value, bool) or value < low:
                    raise ValueError(f"{name}={value!r}: give a whole number, at least {low}")
        for name in ("num_train_epochs", "learning_rate", "adam_epsilon"):
            if not _number(getattr(self, name)) or not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: give a number above 0")
        for name in ("warmup_ratio", "weight_decay", "max_grad_norm"):
            if not _number(getattr(self, name)) or not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: give a number, at least 0")
        for name in ("warmup_ratio", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: give a number from 0 to below 1")
        if self.save_total_limit is not None and self.save_total_limit < 1:
            raise ValueError(f"save_total_limit={self.save_total_limit!r}: give at least 1, or None to keep all")
        if self.lr_scheduler_type not in SCHEDULES:
            raise ValueError(f"lr_scheduler_type={self.lr_scheduler_type!r}: it may be {', '.join(SCHEDULES)}")
        for name, known in (("metrics", METRICS), ("report_to", REPORTS)):
            if unknown := sorted(set(getattr(self, name)) - set(known)):
                raise ValueError(f"{name} has {', '.join(map(repr, unknown))}: it may have {', '.join(known)}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, from 0, of so many, as transformers' schedules have it."""
        warmup = self.warmup_steps or math.ceil(steps * self.warmup_ratio)
        if step < warmup:
            return self.learning_rate * step / warmup
        done = (step - warmup) / max(1, steps - warmup)
        if self.lr_scheduler_type == "constant":
            return self.learning_rate
        if self.lr_scheduler_type == "cosine":
            return self.learning_rate * max(0.0, 0.5 * (1 + math.cos(math.pi * done)))
        return self.learning_rate * max(0.0, 1 - done)


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

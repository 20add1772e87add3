"""How to fine-tune: steps, learning rate, evaluation, checkpoints; by the names of transformers' TrainingArguments."""

import math
from dataclasses import dataclass

SCHEDULES = ("linear", "cosine", "constant")
METRICS = ("exact_match", "wer")
REPORTS = ("csv", "tensorboard")


@dataclass(frozen=True)
class FinetuneSettings:
    """What `Trainer` does.

    output_dir: for checkpoints, the log and the final adapter. num_train_epochs: over the data; max_steps instead, when
    it is above 0, and always for streamed data. per_device_train_batch_size: examples of one forward and backward.
    gradient_accumulation_steps: how many of those make a step, on each device. learning_rate: at the end of the
    warm-up, which takes warmup_steps or the share warmup_ratio of all steps. lr_scheduler_type: "linear" or "cosine" to
    zero, or "constant". weight_decay: not for biases and norms. max_grad_norm: gradients with a larger norm are scaled
    down to it; 0: never. logging_steps, eval_steps, save_steps: every so many steps; 0: only at the end.
    save_total_limit: how many checkpoints are kept; None: all. metrics: what evaluation computes from generated
    answers besides the loss, "exact_match" and "wer". max_new_tokens: of those answers. gradient_checkpointing: keep
    only each decoder layer's input and compute the rest again for the gradient, which needs less memory and more time.
    shuffle: draw a new order for each epoch. seed: of that order and of dropout. report_to: "csv" (log.csv) and
    "tensorboard", where it is installed. compile: False interprets the same code, many times slower.
    """

    output_dir: str
    num_train_epochs: float = 3.0
    max_steps: int = 0
    per_device_train_batch_size: int = 2
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    logging_steps: int = 10
    eval_steps: int = 0
    save_steps: int = 0
    save_total_limit: int | None = None
    metrics: tuple[str, ...] = ()
    max_new_tokens: int = 128
    gradient_checkpointing: bool = False
    shuffle: bool = True
    seed: int = 42
    report_to: tuple[str, ...] = ("csv",)
    compile: bool = True

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

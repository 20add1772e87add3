"""Settings of a training, by the names of transformers' TrainingArguments, and its learning rates."""

import math
from dataclasses import MISSING, dataclass

from mindone_audio.setting_fields import MAX_NEW_TOKENS, SettingError, explained, refusal, setting

LABELS = ("answer", "all")
ON_BAD_CLIP = ("raise", "skip")
SCHEDULES = ("linear", "cosine", "constant")
METRICS = ("exact_match", "wer")
REPORTS = ("csv", "tensorboard")


@explained
@dataclass(frozen=True)
class FinetuneSettings:
    """What `Trainer` does."""

    output_dir: str = setting(MISSING, "the folder of the adapter, the checkpoints and log.csv")
    num_train_epochs: float = setting(3.0, "how often all examples are seen")
    max_steps: int = setting(0, "the number of steps; 0: by {num_train_epochs}, which streamed data does not have")
    per_device_train_batch_size: int = setting(2, "examples of one forward and backward")
    per_device_eval_batch_size: int = setting(8, "examples at a time, in evaluation")
    gradient_accumulation_steps: int = setting(1, "batches of a step, on each device")
    learning_rate: float = setting(2e-4, "at the end of the warm-up")
    lr_scheduler_type: str = setting("linear", "the learning rate falls to zero, or stays", choices=SCHEDULES)
    warmup_steps: int = setting(0, "steps until the learning rate is reached")
    warmup_ratio: float = setting(0.0, "the same as a share of all steps")
    weight_decay: float = setting(0.0, "of AdamW; not for biases and norms")
    adam_beta1: float = setting(0.9, "of AdamW: decay of the mean of the gradients")
    adam_beta2: float = setting(0.999, "of AdamW: decay of the mean of their squares")
    adam_epsilon: float = setting(1e-8, "of AdamW: added to the divisor")
    max_grad_norm: float = setting(1.0, "gradients with a larger norm are scaled down to it; 0: never")
    logging_steps: int = setting(10, "log every so many steps; 0: only at the end")
    eval_steps: int = setting(0, "evaluate every so many steps; 0: only at the end")
    save_steps: int = setting(0, "write a checkpoint every so many steps; 0: only at the end")
    save_total_limit: int | None = setting(None, "keep so many checkpoints (default: all)")
    metrics: tuple[str, ...] = setting(
        (), "scores of generated answers in evaluation, besides the loss", choices=METRICS
    )
    max_new_tokens: int = setting(MAX_NEW_TOKENS[False], "of those answers")
    gradient_checkpointing: bool = setting(
        False, "keep less of each decoder layer for the gradient: less memory, more time"
    )
    shuffle: bool = setting(True, "draw a new order for each epoch")
    seed: int = setting(42, "of that order and of dropout")
    report_to: tuple[str, ...] = setting(("csv",), "where the log goes: csv is log.csv", choices=REPORTS)
    compile: bool = setting(True, "compile the steps; without, they take many times longer")

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
                    raise self._refused(name, f"give a whole number, at least {low}")
        for name in ("num_train_epochs", "learning_rate", "adam_epsilon"):
            if not _number(getattr(self, name)) or not getattr(self, name) > 0:
                raise self._refused(name, "give a number above 0")
        for name in ("warmup_ratio", "weight_decay", "max_grad_norm"):
            if not _number(getattr(self, name)) or not getattr(self, name) >= 0:
                raise self._refused(name, "give a number, at least 0")
        for name in ("warmup_ratio", "adam_beta1", "adam_beta2"):
            if not _number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                raise self._refused(name, "give a number from 0 to below 1")
        if self.save_total_limit is not None and self.save_total_limit < 1:
            raise self._refused("save_total_limit", "give at least 1, or leave it out to keep all")
        if self.lr_scheduler_type not in SCHEDULES:
            raise self._refused("lr_scheduler_type", f"it may be {', '.join(SCHEDULES)}")
        for name, known in (("metrics", METRICS), ("report_to", REPORTS)):
            if unknown := sorted(set(getattr(self, name)) - set(known)):
                raise refusal(name, f" has {', '.join(map(repr, unknown))}: it may have {', '.join(known)}")

    def _refused(self, name: str, advice: str) -> SettingError:
        return refusal(name, f"={getattr(self, name)!r}: {advice}")

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

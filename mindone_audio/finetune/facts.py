"""What the steps of a training depend on, so that a run that goes on can say what is not as it was."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from mindone_audio.finetune.data.examples import Example
from mindone_audio.finetune.data.slices import PartOfRows
from mindone_audio.finetune.data.tables import Rows

# Of `FinetuneSettings`; max_steps and num_train_epochs are told by how many steps there are.
SETTINGS_OF_STEPS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "weight_decay", "seed", "shuffle"),
    *("max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
)
_ADAPTER = {"r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "use_rslora": "lora_use_rslora"}
_ADAPTER |= {"target_modules": "lora_target_modules", "exclude_modules": "lora_exclude_modules"}
_COLLATOR = ("chat", "labels", "max_length", "on_bad_clip", "end", "language", "task")


def adapter_facts(model: Any) -> dict:
    """Of the adapter that is trained, by the names of the options; empty where the model itself is."""
    published = getattr(model, "published", {}).get("default", {})
    return {name: _plain(published.get(key)) for key, name in _ADAPTER.items() if key in published}


def collator_facts(collator: Any) -> dict:
    """Of an `AnswerCollator`; of another one those of the same names."""
    return {name: getattr(collator, name) for name in _COLLATOR if hasattr(collator, name)}


def example_facts(examples: Any) -> dict:
    """What is asked and answered: a digest of a list's texts, the columns of a table, of which no row is read."""
    if isinstance(examples, PartOfRows):
        places = examples.places
        return example_facts(examples.examples) | {"skip": places.start}
    if isinstance(examples, Rows):
        columns = examples.columns
        facts = {"skip": 0, "audio_column": columns.audio, "answer_column": columns.answer, "prompt": columns.prompt}
        return facts | (_texts(examples) if isinstance(examples.table, list) else {})
    if isinstance(examples, (list, tuple)) and all(isinstance(example, Example) for example in examples):
        return {"skip": 0} | _texts(examples)
    return {}


def _texts(examples: Iterable[Example]) -> dict:
    digest = hashlib.sha256()
    for example in examples:
        told = [value for value in (example.language, example.task) if value is not None]
        digest.update(json.dumps([example.prompt, example.answer, *told], default=str).encode() + b"\n")
    return {"texts": digest.hexdigest()[:16]}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, list, tuple)) else value

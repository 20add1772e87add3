"""Fine-tuning: data to batches with labels, adapters, the training loop, and how answers are scored."""

from importlib import import_module

_HOMES = {
    "AdaptedModel": "lora",
    "AnswerCollator": "collator",
    "BIG_BENCH_AUDIO_QUESTIONS": "examples",
    "DataError": "examples",
    "Example": "examples",
    "FinetuneError": "trainer",
    "FinetuneResult": "trainer",
    "FinetuneSettings": "settings",
    "LoraSettings": "lora_settings",
    "Trainer": "trainer",
    "add_lora": "lora",
    "dataset_examples": "tables",
    "FinetuneConfig": "config",
    "exact_match": "metrics",
    "jsonl_examples": "tables",
    "load_adapter": "lora",
    "load_examples": "sources",
    "push_to_hub": "publish",
    "run_finetune": "job",
    "save_merged": "publish",
    "trainable_parameters": "lora",
    "word_error_rate": "metrics",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    """Names are imported when they are first used: reading data needs no MindSpore."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

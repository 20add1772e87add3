"""Fine-tuning: data to batches with labels, adapters, the training loop, and how answers are scored."""

from importlib import import_module

_HOMES = {
    "AdaptedModel": "adapters.lora",
    "AnswerCollator": "finetune.data.collator",
    "BIG_BENCH_AUDIO_QUESTIONS": "finetune.data.examples",
    "DataError": "finetune.data.examples",
    "Example": "finetune.data.examples",
    "FinetuneError": "finetune.trainer",
    "FinetuneResult": "finetune.trainer",
    "FinetuneSettings": "finetune.settings",
    "LoraSettings": "adapters.settings",
    "Trainer": "finetune.trainer",
    "TranscriptCollator": "finetune.data.transcripts",
    "add_lora": "adapters.lora",
    "dataset_examples": "finetune.data.tables",
    "FinetuneConfig": "finetune.config",
    "exact_match": "finetune.metrics",
    "jsonl_examples": "finetune.data.tables",
    "load_adapter": "adapters.lora",
    "load_examples": "finetune.data.sources",
    "push_to_hub": "finetune.publish",
    "run_finetune": "finetune.job",
    "save_merged": "finetune.publish",
    "trainable_parameters": "adapters.lora",
    "word_error_rate": "finetune.metrics",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    """Names are imported when they are first used: reading data needs no MindSpore."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"mindone_audio.{_HOMES[name]}"), name)

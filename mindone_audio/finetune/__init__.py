"""LoRA fine-tuning: examples, collator, adapters, training."""

"""LoRA adapters: their layers, their settings, and their files in PEFT's format."""

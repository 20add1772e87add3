"""How the bundled checkpoint, its example clips and the sounds of the LoRA example were made."""

"""SeamlessM4T v2: model, processor, the text encoder, and what makes units of speech and sound of a translation."""

"""SeamlessM4T v2: model, processor, and the text encoder that only this family has beside its speech encoder."""

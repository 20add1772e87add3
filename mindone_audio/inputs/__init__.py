"""What goes into a model: audio files to samples, samples to log-mels, conversations, and the processors' base."""

"""Training data: files and tables to examples, and examples to batches with labels."""

"""Batch jobs: thousands of clips to JSONL, on one device or many, that go on where they were interrupted."""

from mindone_audio.batch.job import BatchError, BatchJob
from mindone_audio.batch.parts import merge
from mindone_audio.batch.runner import BatchTotals, run_batch

__all__ = ["BatchError", "BatchJob", "BatchTotals", "merge", "run_batch"]

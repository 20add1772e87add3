"""Batch jobs: thousands of clips to JSONL, on one device or many, that go on where they were interrupted."""

from importlib import import_module

_HOMES = {"BatchError": "job", "BatchJob": "job", "BatchTotals": "runner", "merge": "part_files", "run_batch": "runner"}

__all__ = list(_HOMES)


def __getattr__(name: str):
    """Names are imported when they are first used: decoder processes need few of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

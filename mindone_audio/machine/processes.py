"""Processes that end with the one that started them."""

import ctypes
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent(signum: int) -> None:
    """Have the system send this process a signal when the thread that started it ends, also by kill -9 (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)

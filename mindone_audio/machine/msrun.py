"""What a command must know of msrun, which starts it once for each rank and once more for the scheduler."""

import os
from pathlib import Path


def is_scheduler() -> bool:
    """Whether this process is msrun's scheduler, which starts the same command."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def started_by_msrun() -> bool:
    """Whether the parent is an msrun that waits for its ranks. It leaves them running when it is killed or terminated,
    so they ask the system for a SIGTERM at its end. Without --join=True it ends at once and they work on."""
    if os.environ.get("MS_ROLE") != "MS_WORKER":
        return False
    try:
        arguments = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    joined = any(
        argument == b"--join=True" or (argument == b"--join" and value == b"True")
        for argument, value in zip(arguments, [*arguments[1:], b""])
    )
    return joined and any(os.path.basename(argument).startswith(b"msrun") for argument in arguments[:2])

"""What this process knows of msrun, which starts a command once for each rank and once more for the scheduler."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

from mindone_audio.machine.processes import die_with_parent


def number_of_ranks(environment: Mapping[str, str]) -> int:
    """RANK_SIZE, 1 where it is not set; `ValueError` for what is no number of processes."""
    ranks = environment.get("RANK_SIZE", "1")
    if not ranks.isdigit() or int(ranks) < 1:
        raise ValueError(f"RANK_SIZE is {ranks!r}: it should be the number of processes of the job")
    return int(ranks)


def own_rank(environment: Mapping[str, str]) -> tuple[int, int]:
    """RANK_ID and RANK_SIZE, without any communication; (0, 1) where they are not set.

    Raises `ValueError` for values by which two processes would be the same rank.
    """
    ranks, rank = number_of_ranks(environment), environment.get("RANK_ID")
    # Without --node_rank all of msrun's workers on the first node inherit the scheduler's RANK_ID=0.
    inherited = environment.get("MS_ROLE") == "MS_WORKER" and "MS_NODE_ID" not in environment
    if ranks > 1 and (rank is None or inherited):
        raise ValueError(
            f"RANK_SIZE is {ranks} and this process does not know its RANK_ID: "
            "on several nodes msrun sets it only with --node_rank=<number of the node>"
        )
    rank = "0" if rank is None else rank
    if not rank.isdigit() or int(rank) >= ranks:
        raise ValueError(f"RANK_ID is {rank!r}: with RANK_SIZE={ranks} it should be 0 to {ranks - 1}")
    return int(rank), ranks


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


def end_with_msrun() -> None:
    """Have this process get a SIGTERM when the msrun that waits for it ends; nothing without such an msrun."""
    if started_by_msrun():
        die_with_parent(signal.SIGTERM)

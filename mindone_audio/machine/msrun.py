"""What is known of msrun, which starts a command once for each rank and once more for the scheduler.

MindSpore's communication is in `finetune.ranks`.
"""

import os
from collections.abc import Mapping
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


def rank_and_size(environment: Mapping[str, str], device: str | None = None) -> tuple[int, int]:
    """What RANK_ID and RANK_SIZE say: this process's rank and how many there are, 0 and 1 where they are not set.

    device: what was asked for, such as "ascend:1". Raises `ValueError` for values that would leave out work or do it
    twice, and where all the ranks of a machine would take the same NPU.
    """
    ranks, rank = environment.get("RANK_SIZE", "1"), environment.get("RANK_ID")
    if not ranks.isdigit() or int(ranks) < 1:
        raise ValueError(f"RANK_SIZE is {ranks!r}: it should be the number of processes of the job")
    if int(ranks) > 1 and (rank is None or _rank_is_not_known(environment)):
        raise ValueError(
            f"RANK_SIZE is {ranks} and this process does not know its RANK_ID: "
            "on several nodes msrun sets it only with --node_rank=<number of the node>"
        )
    rank = "0" if rank is None else rank
    if not rank.isdigit() or int(rank) >= int(ranks):
        raise ValueError(f"RANK_ID is {rank!r}: with RANK_SIZE={ranks} it should be 0 to {int(ranks) - 1}")
    if int(ranks) > 1 and device != "cpu":
        if ":" in (device or ""):
            raise ValueError(f"device {device!r} would be that of all {ranks} ranks: leave the number out")
        if "DEVICE_ID" not in environment:
            raise ValueError(
                f"RANK_SIZE is {ranks} and DEVICE_ID is not set, so all ranks of a machine would take the same NPU: "
                "start them with msrun, set DEVICE_ID, or use --device cpu"
            )
    return int(rank), int(ranks)


def _rank_is_not_known(environment: Mapping[str, str]) -> bool:
    """Without --node_rank msrun's workers inherit the scheduler's RANK_ID=0 on the first node, all of them."""
    return environment.get("MS_ROLE") == "MS_WORKER" and "MS_NODE_ID" not in environment

"""What a batch job is asked to do, and which share of it this process has."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.machine.msrun import own_rank
from mindone_audio.setting_fields import (
    ADAPTER_HELP,
    DEVICE_HELP,
    DEVICE_MEMORY_HELP,
    DTYPE_HELP,
    DTYPES,
    MODEL_HELP,
    TASKS,
    SettingError,
    WordedError,
    explained,
    refusal,
    setting,
)
from mindone_audio.weights.hub import checkpoint_file, read_config

MAX_BATCH = 256
_SAMPLE = 1 << 20  # bytes at both ends of a weights file that its fingerprint is made of


class BatchError(WordedError, RuntimeError):
    """A job that cannot go on. The message says what happened, what is kept, and what to do next."""


@explained
@dataclass(frozen=True)
class BatchJob:
    """A batch job.

    Decoding is greedy unless settings say do_sample=True, whatever the checkpoint's generation config says, so that a
    job can be resumed. In float32 a text does not depend on the other clips of its batch; in half precision rounding
    may, and only batch_size=1 makes an interrupted job equal to an undisturbed one for certain. With do_sample items
    are answered one at a time, item i with the seed `settings["seed"] + i`.
    """

    inputs: str | os.PathLike | Sequence[str | os.PathLike] = setting(
        MISSING, "one manifest (JSONL, JSON, CSV, TSV), or folders, globs and clips", metavar="INPUT"
    )
    out: str | os.PathLike = setting(MISSING, "the folder of the results", metavar="FOLDER")
    model: str | os.PathLike | None = setting(None, MODEL_HELP)
    task: str | None = setting(
        None, "what to do with items without a text of their own (default: caption)", choices=TASKS
    )
    text: str | None = setting(None, "what to ask about items without a text of their own", metavar="TEXT")
    settings: Mapping = setting(
        {},
        'of `generate`, and stop_sequence, and language with task="transcribe"; an item\'s own parameters change them',
    )
    device: str | None = setting(None, DEVICE_HELP)
    dtype: str | None = setting(None, DTYPE_HELP, choices=DTYPES)
    batch_size: int = setting(16, "clips at a time", metavar="N")
    batch_seconds: float | None = setting(None, "instead: seconds of audio at a time", metavar="S")
    workers: int | None = setting(None, "processes that decode audio (default: 1 to 4)", metavar="N")
    max_errors: int | None = setting(None, "stop when more clips than that have failed", metavar="N")
    restart: bool = setting(False, "drop the results of an earlier job in {out}")
    long_audio: str | None = setting(
        None,
        "one answer for each window of a clip that is longer than the model's limit",
        choices=("windows",),
    )
    adapter: str | os.PathLike | None = setting(None, ADAPTER_HELP, metavar="FOLDER")
    device_memory: str | None = setting(None, DEVICE_MEMORY_HELP, metavar="GB")

    def __post_init__(self):
        # NumPy: not for --help, which reads the fields above.
        from mindone_audio.generation.settings import real, settle, split_request, whole

        if self.task not in (None, *TASKS):
            raise ValueError(f"unknown task {self.task!r}: it may be {' or '.join(TASKS)}, or left out with a text")
        if self.task is not None and self.text is not None:
            raise ValueError(f"task={self.task!r} and text={self.text!r} were both given: pass one of them")
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"unknown dtype {self.dtype!r}: use {', '.join(DTYPES)}, or leave it out")
        if self.long_audio not in (None, "windows"):
            raise refusal("long_audio", f' must be "windows" or left out, not {self.long_audio!r}')
        object.__setattr__(self, "batch_size", whole("batch_size", self.batch_size, 1, MAX_BATCH))
        for name, low in (("workers", 1), ("max_errors", 0)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), low))
        if self.batch_seconds is not None:
            object.__setattr__(self, "batch_seconds", real("batch_seconds", self.batch_seconds, -math.inf))
        if self.batch_seconds is not None and not self.batch_seconds > 0:
            raise refusal("batch_seconds", f" must be more than 0 seconds, not {self.batch_seconds!r}")
        options, settings = split_request(self.settings)
        if options.language is not None and self.task != "transcribe":
            raise SettingError(lambda say: f"{say('language')} goes with {say('task', 'transcribe')}: leave it out")
        settle(None, settings)

    def fingerprint(self, count: int, digest: str) -> dict:
        """Everything that the results depend on, except the device: what a rerun must have in common."""
        adapter = {} if self.adapter is None else {"adapter": describe_model(self.adapter, "adapter_config.json")}
        return {
            "items": count,
            "input": digest,
            "model": describe_model(self.model),
            "dtype": self.dtype,
            "task": self.task,
            "prompt": self.text,
            "settings": json.loads(json.dumps(dict(self.settings), sort_keys=True, default=repr)),
            "long_audio": self.long_audio,
            **adapter,  # only where there is one: jobs of before there were any go on
        }


@dataclass(frozen=True)
class Shard:
    """The share of this process: items whose index modulo `ranks` is `rank`."""

    rank: int = 0
    ranks: int = 1

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.ranks}"


def find_shard(environment: Mapping[str, str], device: str | None = None) -> Shard:
    """The share that RANK_ID and RANK_SIZE give, everything where they are not set; no communication is needed.

    Raises `ValueError` for values that would leave items out or have them answered twice, and where all the ranks of a
    machine would take the same NPU.
    """
    rank, ranks = own_rank(environment)
    if ranks > 1 and device != "cpu":
        if ":" in (device or ""):
            raise ValueError(f"device {device!r} would be that of all {ranks} ranks: leave the number out")
        if "DEVICE_ID" not in environment:
            raise SettingError(
                lambda say: (
                    f"RANK_SIZE is {ranks} and DEVICE_ID is not set, so all ranks of a machine would take the same "
                    f"NPU: start them with msrun, set DEVICE_ID, or use {say('device', 'cpu')}"
                )
            )
    return Shard(rank, ranks)


def describe_model(model: str | os.PathLike | None, config_file: str = "config.json") -> dict:
    """What tells a model, or an adapter, from others, without loading it; `OSError` where there is none.

    For a folder that is its configuration and, of each weights file, the size, the first and the last MiB.
    """
    folder = Path(demo_checkpoint() if model is None else model).expanduser()
    if not folder.is_dir():
        config = json.dumps(read_config(os.fspath(model), config_file), sort_keys=True)
        return {"name": os.fspath(model), "digest": hashlib.sha256(config.encode()).hexdigest()[:16]}
    checkpoint_file(folder, config_file)  # for its error, which says what is there instead
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".txt", ".jinja", ".model"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            digest.update(file.read())
    return {"name": folder.resolve().name, "digest": digest.hexdigest()[:16]}

"""What a batch job is asked to do, and which share of it this process has."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.fields import DTYPES
from mindone_audio.generation.settings import real, settle, split_request, whole
from mindone_audio.inputs.conversation import TASKS
from mindone_audio.machine.msrun import rank_and_size
from mindone_audio.weights.hub import checkpoint_file, read_config

MAX_BATCH = 256
_SAMPLE = 1 << 20  # bytes at both ends of a weights file that its fingerprint is made of


_CHECKS = {
    "batch_size": partial(whole, low=1, high=MAX_BATCH),
    "batch_seconds": partial(real, low=-math.inf),
    "workers": partial(whole, low=1),
    "max_errors": partial(whole, low=0),
}


class BatchError(RuntimeError):
    """A job that cannot go on. The message says what happened, what is kept, and what to do next."""


@dataclass(frozen=True)
class BatchJob:
    """A batch job.

    inputs: a JSONL manifest, a folder, a glob, or a list of clips. out: the folder of the results. model: a checkpoint
    folder or Hugging Face id, None for the bundled one. task or text: what to ask about items that bring no text of
    their own; neither asks for a caption. settings: of `generate` (and stop_sequence, and language with
    task="transcribe"); an item's own parameters change them. batch_size: clips at a time. batch_seconds: instead, as
    many clips as have so many seconds together. workers: processes that decode audio, None for one to four. max_errors:
    stop when more items than that have failed. restart: drop the results of an earlier job in that folder.
    long_audio: "windows" as for `pipeline`. adapter: a LoRA adapter of the model, a folder or Hugging Face id.

    Decoding is greedy unless settings say do_sample=True, whatever the checkpoint's generation config says, so that a
    job can be resumed. In float32 a text does not depend on the other clips of its batch; in half precision rounding
    may, and only batch_size=1 makes an interrupted job equal to an undisturbed one for certain. With do_sample items
    are answered one at a time, item i with the seed `settings["seed"] + i`.
    """

    inputs: str | os.PathLike | Sequence[str | os.PathLike]
    out: str | os.PathLike
    model: str | os.PathLike | None = None
    task: str | None = None
    text: str | None = None
    settings: Mapping = field(default_factory=dict)
    device: str | None = None
    dtype: str | None = None
    batch_size: int = 16
    batch_seconds: float | None = None
    workers: int | None = None
    max_errors: int | None = None
    restart: bool = False
    long_audio: str | None = None
    adapter: str | os.PathLike | None = None

    def __post_init__(self):
        if self.task not in (None, *TASKS):
            raise ValueError(f"unknown task {self.task!r}: it may be {' or '.join(TASKS)}, or left out with a text")
        if self.task is not None and self.text is not None:
            raise ValueError(f"task={self.task!r} and text={self.text!r} were both given: pass one of them")
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"unknown dtype {self.dtype!r}: use {', '.join(DTYPES)}, or leave it out")
        if self.long_audio not in (None, "windows"):
            raise ValueError(f'long_audio must be "windows" or left out, not {self.long_audio!r}')
        for name, check in _CHECKS.items():
            if (value := getattr(self, name)) is not None or name == "batch_size":
                object.__setattr__(self, name, check(name, value))
        if self.batch_seconds is not None and not self.batch_seconds > 0:
            raise ValueError(f"batch_seconds must be more than 0 seconds, not {self.batch_seconds!r}")
        options, settings = split_request(self.settings)
        if options.language is not None and self.task != "transcribe":
            raise ValueError('language goes with task="transcribe": leave it out')
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

    Raises `ValueError` as `msrun.rank_and_size` does.
    """
    return Shard(*rank_and_size(environment, device))


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

"""Checkpoints of a training: the adapter, the optimiser's moments, and which step it was."""

import json
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from mindspore import ops as msops

from mindone_audio.backbone.checkpoint_model import to_numpy
from mindone_audio.machine.files import UNFINISHED, sync, sync_tree, unfinished_name

OPTIMIZER, STATE = "optimizer.safetensors", "trainer_state.json"
ASIDE = ".old"  # how the name of a checkpoint ends while another one of the same step takes its place


class Checkpoints:
    """The folders checkpoint-<step> of an output folder. One is there whole or not at all."""

    def __init__(self, folder: Path, limit: int | None):
        """limit: how many are kept; None: all."""
        self.folder, self.limit = folder, limit

    def all(self) -> list[Path]:
        """By step."""
        self._restore()
        found = {}
        for path in self.folder.glob("checkpoint-*"):
            match = re.fullmatch(r"checkpoint-(\d+)", path.name)
            if match and (path / STATE).is_file():
                found[int(match[1])] = path
        return [found[step] for step in sorted(found)]

    def begin(self) -> None:
        """`ValueError` where the folder has checkpoints of an earlier run, which a new one would mix with its own."""
        if found := self.all():
            raise ValueError(
                f"{self.folder} has checkpoints of an earlier run, the last {found[-1].name}: go on from it with "
                "resume_from_checkpoint, or give another output_dir"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clean()

    def save(self, step: int, model: Any, state: Sequence[Parameter], facts: dict, *, drop: bool = True) -> Path:
        """Write checkpoint-<step>, then drop the oldest ones beyond the limit, unless none are to be dropped.

        state: what the training changes, which comes back by `load`; what `model` saves besides is for use.
        """
        from safetensors.numpy import save_file

        target = self.folder / f"checkpoint-{step}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clean()
        temporary = unfinished_name(target)
        temporary.mkdir()
        model.save_pretrained(str(temporary))
        values = {p.name: np.ascontiguousarray(to_numpy(p)) for p in state}
        save_file(values, str(temporary / OPTIMIZER))
        (temporary / STATE).write_text(json.dumps({"step": step, "facts": facts}, indent=1) + "\n", encoding="utf-8")
        sync_tree(temporary)
        if target.exists():
            target.rename(self.folder / f".{target.name}{ASIDE}")
        temporary.rename(target)
        sync(self.folder)
        if drop and self.limit is not None:
            for old in self.all()[: -self.limit]:
                old.rename(unfinished_name(old))
        self._clean()
        return target

    def _restore(self) -> None:
        """Put back what a killed process had moved aside and not replaced."""
        for aside in self.folder.glob(f".checkpoint-*{ASIDE}"):
            target = self.folder / aside.name[1:].removesuffix(ASIDE)
            if not target.exists():
                with suppress(FileNotFoundError):  # another rank did
                    aside.rename(target)

    def _clean(self) -> None:
        """Remove what is no checkpoint any more, or never was one because its process was killed."""
        self._restore()
        for pattern in (f".checkpoint-*{ASIDE}", f".checkpoint-*{UNFINISHED}", ".checkpoint-*[0-9]"):
            for left in self.folder.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)

    def find(self, folder: Path | None) -> tuple[Path, int, dict] | None:
        """A checkpoint, its step and facts; None where there is none.

        folder: None for the last one. Raises `FileNotFoundError` for a folder that is no checkpoint.
        """
        if folder is None:
            found = self.all()
            if not found:
                return None
            folder = found[-1]
        if not (folder / STATE).is_file():
            raise FileNotFoundError(f"{folder} is no checkpoint of a training: it has no {STATE}")
        known = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return folder, known["step"], known["facts"]

    def load(self, folder: Path, state: Sequence[Parameter]) -> None:
        """Put the values of a checkpoint that `find` found into `state`; `ValueError` for one of another model."""
        from safetensors.numpy import load_file

        stored = load_file(str(folder / OPTIMIZER))
        shapes = {name: array.shape for name, array in stored.items()}
        wanted = {parameter.name: tuple(parameter.shape) for parameter in state}
        if odd := sorted(name for name in {*shapes, *wanted} if shapes.get(name) != wanted.get(name)):
            there, here = (known.get(odd[0], "not there") for known in (shapes, wanted))
            raise ValueError(
                f"{folder} is of another model or adapter: {len(odd)} tensors differ, such as {odd[0]}, which is "
                f"{there} in the checkpoint and {here} here: go on with its settings, or begin in another output_dir"
            )
        for parameter in state:
            # In place: a compiled graph does not see the memory that `set_data` gives a parameter.
            msops.assign(parameter, Tensor(stored[parameter.name]).astype(parameter.dtype))

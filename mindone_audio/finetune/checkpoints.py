"""Checkpoints of a training: the adapter, the optimiser's moments, and which step it was."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from mindspore import ops as msops

from mindone_audio.backbone.audio_language_model import to_numpy

OPTIMIZER, STATE = "optimizer.safetensors", "trainer_state.json"


class Checkpoints:
    """The folders checkpoint-<step> of an output folder. One is there whole or not at all."""

    def __init__(self, folder: Path, limit: int | None):
        """limit: how many are kept; None: all."""
        self.folder, self.limit = folder, limit

    def all(self) -> list[Path]:
        """By step."""
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

    def save(self, step: int, model: Any, state: Sequence[Parameter], facts: dict, *, drop: bool = True) -> Path:
        """Write checkpoint-<step>, then drop the oldest ones beyond the limit, unless none are to be dropped.

        state: what the training changes, which comes back by `load`; what `model` saves besides is for use.
        """
        from safetensors.numpy import save_file

        target, temporary = self.folder / f"checkpoint-{step}", self.folder / f".checkpoint-{step}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        model.save_pretrained(str(temporary))
        values = {p.name: np.ascontiguousarray(to_numpy(p)) for p in state}
        save_file(values, str(temporary / OPTIMIZER))
        (temporary / STATE).write_text(json.dumps({"step": step, "facts": facts}, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
        if drop and self.limit is not None:
            for old in self.all()[: -self.limit]:
                shutil.rmtree(old)
        return target

    def load(self, folder: Path | None, state: Sequence[Parameter]) -> tuple[int, dict] | None:
        """Put a checkpoint's values into `state`: its step and facts; None where there is none.

        folder: None for the last one. Raises `FileNotFoundError` for a folder that is no checkpoint, and `ValueError`
        for one of another model.
        """
        from safetensors.numpy import load_file

        if folder is None:
            found = self.all()
            if not found:
                return None
            folder = found[-1]
        if not (folder / STATE).is_file():
            raise FileNotFoundError(f"{folder} is no checkpoint of a training: it has no {STATE}")
        known = json.loads((folder / STATE).read_text(encoding="utf-8"))
        stored = load_file(str(folder / OPTIMIZER))
        if odd := sorted(set(stored) ^ {parameter.name for parameter in state}):
            raise ValueError(f"{folder} is of another model or adapter: {len(odd)} tensors differ, such as {odd[0]}")
        for parameter in state:
            # In place: a compiled graph does not see the memory that `set_data` gives a parameter.
            msops.assign(parameter, Tensor(stored[parameter.name]).astype(parameter.dtype))
        return known["step"], known["facts"]

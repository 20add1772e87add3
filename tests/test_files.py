"""What is written whole: the old or the new is there, whenever the process is killed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers_kill import kill_at_each_step

from mindone_audio.batch import part_files
from mindone_audio.finetune import trainer_state
from mindone_audio.finetune.log import Log
from mindone_audio.finetune.trainer_state import Checkpoints
from mindone_audio.machine.files import filling, new_folder, replacing


class Model:
    """Saves one file."""

    def __init__(self, text: str = "adapter"):
        self.text = text

    def save_pretrained(self, folder):
        (Path(folder) / "adapter_model.safetensors").write_text(self.text)


class State:
    """Stands for a parameter."""

    name, shape = "x", (2,)

    def __init__(self, value: float):
        self.value = value

    def __array__(self, *_, **__):
        return np.full(2, self.value, np.float32)


def empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def test_a_file_is_the_old_or_the_new(tmp_path):
    path = tmp_path / "a" / "file.json"

    def prepare():
        empty(path.parent)
        path.write_text("old")

    def act():
        with replacing(path) as new:
            new.write_text("new")

    seen = set()
    kill_at_each_step(prepare, act, lambda: seen.add(path.read_text()))
    assert seen == {"old", "new"} and sorted(p.name for p in path.parent.iterdir()) == ["file.json"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_folder_is_whole_or_not_there(tmp_path):
    target = tmp_path / "a [1]" / "merged"

    def act():
        with new_folder(target) as new:
            (new / "config.json").write_text("{}")
            (new / "sub").mkdir()
            (new / "sub" / "x").write_text("x")

    def check():
        assert not target.exists() or not any(target.iterdir()) or (target / "sub" / "x").read_text() == "x"

    kill_at_each_step(lambda: empty(target.parent), act, check)
    kill_at_each_step(lambda: (empty(target.parent) / "merged").mkdir(), act, check)
    left = [path.name for path in target.parent.iterdir()]
    assert left == ["merged"]
    (target.parent / ".merged.0123.part").mkdir()
    shutil.rmtree(target)
    act()
    assert [path.name for path in target.parent.iterdir()] == ["merged"]


def test_files_that_belong_together(tmp_path):
    """The same configuration: the old or the new file. Another one: never the configuration of other files."""
    folder, seen = tmp_path / "adapter", []

    def prepare(config="1"):
        empty(folder)
        (folder / "config.json").write_text(config)
        (folder / "weights").write_text("1")
        (folder / "log.csv").write_text("kept")

    def act():
        with filling(folder, "config.json") as new:
            (new / "weights").write_text("2")
            (new / "config.json").write_text("2")

    def look():
        assert (folder / "log.csv").read_text() == "kept"
        config = folder / "config.json"
        seen.append(((folder / "weights").read_text(), config.read_text() if config.exists() else None))

    kill_at_each_step(lambda: prepare("2"), act, look)
    assert set(seen) == {("1", "2"), ("2", "2")}
    seen.clear()
    kill_at_each_step(prepare, act, look)
    assert set(seen) == {("1", "1"), ("1", None), ("2", None), ("2", "2")}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "log.csv", "weights"]


@pytest.mark.parametrize("there", [[], [2], [2, 4]])
def test_a_checkpoint_is_whole_or_not_there(tmp_path, there):
    folder = tmp_path / "out"
    keeper = Checkpoints(folder, 1)

    def prepare():
        empty(folder)
        for step in there:
            Checkpoints(folder, None).save(step, Model("old"), [State(step)], {})
        (folder / ".checkpoint-3").mkdir()  # as versions before this one left them

    def act():
        keeper.save(4, Model("new"), [State(5.0)], {"a": 1})

    def check():
        found = Checkpoints(folder, None).all()
        steps = [int(path.name.removeprefix("checkpoint-")) for path in found]
        assert set(there[-1:]) <= set(steps) or 4 in steps
        for path, step in zip(found, steps):
            text = (path / "adapter_model.safetensors").read_text()
            assert json.loads((path / trainer_state.STATE).read_text())["step"] == step
            value = checkpoints_values(path)
            assert (text, value) in {("old", float(step)), ("new", 5.0)}

    assert kill_at_each_step(prepare, act, check) > 8
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-4"]
    (folder / ".checkpoint-9.0011.part").mkdir()
    keeper.save(6, Model(), [State(6.0)], {})
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-6"]


def checkpoints_values(path: Path) -> float:
    from safetensors.numpy import load_file

    return float(load_file(path / trainer_state.OPTIMIZER)["x"][0])


def test_the_log_keeps_its_lines(tmp_path):
    def prepare():
        empty(tmp_path / "out")
        (tmp_path / "out" / "log.csv").write_text("step,loss\n1,2.5\n")

    def act():
        Log(tmp_path / "out", ("csv",), 1, True).write({"step": 2, "loss": 2.0})

    seen = set()
    kill_at_each_step(prepare, act, lambda: seen.add((tmp_path / "out" / "log.csv").read_text()))
    assert {text.replace("\r", "") for text in seen} == {"step,loss\n1,2.5\n", "step,loss\n1,2.5\n2,2.0\n"}


def test_two_ranks_with_one_process_number(tmp_path, monkeypatch):
    """As in two containers: each has a name of its own for what it writes, and both end up with the whole file."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    folder, written = tmp_path / "out", os.fsync

    def other_rank(descriptor):
        monkeypatch.setattr(os, "fsync", written)
        assert part_files.settle_job(folder, {"items": 0}, False)  # while this one is about to put its file in place
        written(descriptor)

    monkeypatch.setattr(os, "fsync", other_rank)
    assert part_files.settle_job(folder, {"items": 0}, False)
    assert json.loads((folder / "job.json").read_text()) == {"items": 0}
    merge = os.fsync

    def other_merge(descriptor):
        monkeypatch.setattr(os, "fsync", merge)
        assert part_files.merge(folder).count == 0
        merge(descriptor)

    monkeypatch.setattr(os, "fsync", other_merge)
    assert part_files.merge(folder).path.read_bytes() == b""
    assert sorted(path.name for path in folder.iterdir()) == ["job.json", "results.jsonl"]

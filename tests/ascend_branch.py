"""What an NPU would run, on this CPU: the device question answered "Ascend", and the graphs' types for bfloat16."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mindone_audio.machine import device, doctor

# What MindSpore passes on to CANN's older operator compiler, and the graphs need not have.
OLD_KERNELS = {"BiasAdd", "LayerNorm", "ReduceMean", "StridedSlice", "IndexAdd"}


@contextmanager
def as_on_ascend() -> Iterator[None]:
    """Within, models are loaded and compiled as on an NPU, and a CPU runs them; it has no bfloat16 product."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "is_ascend", lambda: True)
        patch.setattr(device, "prepare", lambda: None)  # which asks for kernels that only CANN has
        patch.setenv(doctor.SKIP_CHECKS, "1")  # of versions
        yield


def graphs_of(script: str, folder: Path) -> list[str]:
    """The text of every graph that a script compiles in a process of its own, before a back end has changed it."""
    here = Path(__file__).parent
    paths = [str(here / folder) for folder in (".", "..", "../scripts")]
    script = f"import sys; sys.path[:0] = {paths!r}\n{script}"
    # A graph that is loaded from the cache is not compiled, so its file would not be written.
    environment = os.environ | {"MS_DEV_SAVE_GRAPHS": "2", "MS_DEV_SAVE_GRAPHS_PATH": str(folder)}
    environment |= {"MS_DEV_DUMP_IR_PASSES": "validate", "MINDONE_AUDIO_COMPILE_CACHE": "0", "GLOG_v": "4"}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return read_graphs(folder)


def read_graphs(folder: Path) -> list[str]:
    """The texts of the graphs that MindSpore wrote under a folder, in the order in which it compiled them."""
    files = sorted(folder.rglob("*validate*.ir"), key=lambda file: int(file.stem.rpartition("_")[2]))
    return [file.read_text(errors="replace") for file in files]


def primitives(graphs: list[str]) -> set[str]:
    """The names of the primitives in graphs."""
    return set(re.findall(r"= (?:PrimFunc_)?([A-Z]\w*)\(", "".join(graphs)))

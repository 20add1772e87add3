"""Two ranks under msrun take the steps of one process with the same global batch."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import finetune_rank
import helpers
import numpy as np
import pytest
from helpers_finetune import FEW_LAYERS
from safetensors.numpy import load_file

TESTS = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.long]


def log(folder: Path, name: str) -> list[float]:
    with open(folder / "log.csv", newline="") as file:
        return [float(line[name]) for line in csv.DictReader(file) if line[name]]


@pytest.mark.skipif(shutil.which("msrun", path=Path(sys.executable).parent) is None, reason="no msrun here")
def test_two_ranks_equal_one(tmp_path):
    helpers.torch_model(helpers.tiny_config(**FEW_LAYERS)).save_pretrained(tmp_path / "model")
    finetune_rank.train(str(tmp_path / "model"), str(tmp_path / "one"), 4)
    tools = Path(sys.executable).parent
    paths = os.pathsep.join(str(path) for path in (TESTS.parent, TESTS, TESTS.parent / "scripts"))
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths}
    command = [str(tools / "msrun"), "--worker_num=2", "--local_worker_num=2", "--master_port=8231", "--join=True"]
    command += [f"--log_dir={tmp_path / 'logs'}", str(TESTS / "finetune_rank.py")]
    arguments = [str(tmp_path / "model"), str(tmp_path / "two"), "2"]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=500)
    logs = [path.read_text() for path in (tmp_path / "logs").glob("worker_*.log")]
    assert done.returncode == 0, (done.stdout[-2000:], [text[-2000:] for text in logs])
    for name in ("loss", "eval_loss", "grad_norm"):
        one, two = log(tmp_path / "one", name), log(tmp_path / "two", name)
        assert len(one) == len(two) > 1
        np.testing.assert_allclose(two, one, rtol=1e-4)
    assert log(tmp_path / "one", "loss")[-1] < log(tmp_path / "one", "loss")[0]
    one, two = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("one", "two"))
    assert max(np.abs(one[name] - two[name]).max() / np.abs(one[name]).max() for name in one) < 1e-3
    assert sorted(path.name for path in (tmp_path / "two").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-7"]

"""`scripts/benchmark.py` runs and reports complete figures; how fast anything is, no test says."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny_config, torch_model

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark.py"


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), "generate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_generate(tmp_path):
    torch_model(tiny_config()).save_pretrained(tmp_path / "model")
    figures = tmp_path / "figures.json"
    done = run("--model", tmp_path / "model", "--new-tokens", 4, "--rounds", 2, "--threads", 1, "--json", figures)
    assert done.returncode == 0, done.stderr
    result = json.loads(figures.read_text())
    assert result["rounds"] == 2 and result["new_tokens"] == 4 and result["threads"] == 1
    assert list(result["contenders"]) == ["ours", "torch eager", "torch sdpa"]
    for contender in result["contenders"].values():
        assert len(contender["tokens"]) == 4 and contender["tokens"] == result["contenders"]["ours"]["tokens"]
        for figure in ("prefill", "token", "step"):
            assert len(contender[figure]) == 2 and all(0 < value < math.inf for value in contender[figure])
        assert 0 < contender["memory"] < math.inf and 0 <= contender["compile"] < math.inf
    assert result["contenders"]["ours"]["compile"] > 0
    assert result["first_different_token"] == {"torch eager": None, "torch sdpa": None}
    for ratios in result["ratios"].values():
        for figure in ("prefill", "token", "step", "memory"):
            ratio = ratios[figure]
            assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"] < math.inf
    for text in ("encoder + prefill", "bare decode step", "peak memory", "the same as ours", "ours / torch sdpa"):
        assert text in done.stdout


@pytest.mark.slow
def test_load():
    command = [sys.executable, str(SCRIPT), "load", "--size", "tiny", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ours +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+ +-?[0-9.]+$", done.stdout, re.MULTILINE)
    assert "ours / plain read" in done.stdout


@pytest.mark.slow
def test_batch():
    command = [sys.executable, str(SCRIPT), "batch", "--clips", "4", "--batch-size", "2", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name in ("one by one", "batches", "2 processes"):
        assert re.search(rf"^{name} +[0-9.]+ +[0-9.]+$", done.stdout, re.MULTILINE)
    for name in ("batches / one by one", "2 processes / batches"):
        assert re.search(
            rf"^{name}: [0-9.]+ times the clips a second \([0-9.]+ to [0-9.]+\)$", done.stdout, re.MULTILINE
        )


@pytest.mark.slow
def test_features(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "features", "--seconds", "2", "--rounds", "2", "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(figures.read_text())
    for size in ("1 clip", "8 clips"):
        assert [len(rounds) for rounds in result["seconds"][size].values()] == [2] * 4
        assert all(0 < ratio["min"] <= ratio["median"] <= ratio["max"] for ratio in result["ratios"][size].values())
    assert result["largest_difference"]["ours"] < 1e-6 and result["largest_difference"]["ours, no torch"] < 5e-5
    assert "ours, no torch / transformers, no torch" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--model", "nowhere"), "no checkpoint in nowhere"),
        (("--random", "demo", "--audio", "nowhere.wav"), "no audio file nowhere.wav"),
        (("--random", "demo", "--audio", __file__), "--random has no processor"),
        (("--random", "demo", "--model", "nowhere"), "choose one checkpoint"),
        (("--random", "demo", "--threads", "9999"), "--threads 9999 is not between 1 and"),
        (("--new-tokens", "1"), "'1' is not a whole number of at least 2"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.slow
def test_finetune():
    command = [sys.executable, str(SCRIPT), "finetune", "--rows", "1", "--length", "64", "--clip-seconds", "1"]
    command += ["--rounds", "1", "--steps", "1", "--lengths", "64"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(ours|PyTorch PEFT)(, recompute)? +[0-9.]+ +[0-9.]+ +([0-9.]+) +[0-9.]+$", done.stdout, re.M)
    assert len(rows) == 4 and len({float(first) for _, _, first in rows}) <= 2  # the same loss, up to the last digit
    assert "ours / PyTorch PEFT, recompute:" in done.stdout and re.search(r"^64( +[0-9]+){4}$", done.stdout, re.M)

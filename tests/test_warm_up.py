"""What is compiled is said, and `warm-up` compiles it before somebody waits for it."""

import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import shallow_demo_checkpoint

from mindone_audio import cli
from mindone_audio.weights import compile_cache

ROOT = Path(__file__).parent.parent
CLIP = "examples/audio/siren.ogg"


@pytest.fixture(scope="module")
def shallow(tmp_path_factory) -> Path:
    return shallow_demo_checkpoint(tmp_path_factory.mktemp("model") / "shallow")


def test_a_second_process_compiles_nothing(shallow, tmp_path):
    """`warm-up`, and then a question in another process, whose every graph is loaded."""
    environment = os.environ | {compile_cache.VARIABLE: str(tmp_path / "graphs"), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-m", "mindone_audio"]
    sizes = ["--batch-sizes", "2", "--seconds", "5,60", "--tokens", "600"]
    warm = subprocess.run(
        [*command, "warm-up", "--model", shallow, *sizes], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert warm.returncode == 0, warm.stderr
    compiled = [line for line in warm.stderr.splitlines() if line.startswith("compiling ")]
    kept = len(list((tmp_path / "graphs").glob("*.graph")))
    assert len(compiled) == len(set(compiled)) == kept >= 7
    for part in ("encoder of 1 clip of 5.04 s", "encoder of 1 clip of 10 s", "decode step of 2 sequences, 1024 tokens"):
        assert any(part in line for line in compiled), part
    assert "ready in" in warm.stdout
    environment |= {"PYTHONHASHSEED": "2"}  # sets have another order in every process
    again = subprocess.run(
        [*command, "warm-up", "--model", shallow, *sizes], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert again.returncode == 0 and "compil" not in again.stderr


def test_a_terminal_shows_what_is_compiled(shallow, tmp_path):
    command = [sys.executable, "-m", "mindone_audio", "ask", CLIP, "What?", "--model", shallow, "--max-new-tokens=2"]
    environment = os.environ | {compile_cache.VARIABLE: "0"}
    main, terminal = pty.openpty()
    asked = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=terminal, timeout=300)
    os.close(terminal)
    said = os.read(main, 100_000).decode()
    assert asked.returncode == 0
    assert "compiling the decode step of 1 sequence, 512 tokens, once for this size ..." in said
    assert "compiled the decode step of 1 sequence, 512 tokens in " in said


def test_a_file_of_messages_does_not_fill_with_it(shallow, capsys, monkeypatch):
    monkeypatch.setenv(compile_cache.VARIABLE, "0")
    assert cli.main(["ask", CLIP, "What?", "--model", str(shallow), "--max-new-tokens=2"]) == 0
    assert "compil" not in capsys.readouterr().err


def test_what_is_compiled_is_logged_for_programs(caplog):
    with caplog.at_level(logging.INFO, logger="mindone_audio"), compile_cache.announced("a test"):
        pass
    assert caplog.messages[0] == "compiling a test, once for this size ..."
    assert caplog.messages[1].startswith("compiled a test in ")


@pytest.mark.parametrize(
    ("name", "value"), [("batch-sizes", "1,x"), ("seconds", "0"), ("tokens", ""), ("tokens", "1;2")]
)
def test_sizes_that_are_none(name, value, capsys):
    assert cli.main(["warm-up", f"--{name}", value]) == 2
    assert capsys.readouterr().err.startswith(f"error: --{name} {value!r} must be whole numbers from 1 on")

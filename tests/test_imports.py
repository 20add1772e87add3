"""What is not imported: PyTorch, scikit-learn and numba where they are installed, and librosa not even where it is not.

scikit-learn brings a libgomp of its own, which on aarch64 may not load after MindSpore's; librosa brings both others.
"""

import contextlib
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import helpers_seamless
import helpers_speecht5
import pytest

import mindone_audio
from mindone_audio import cli
from mindone_audio.checkpoints import demo_checkpoint

ROOT = Path(__file__).resolve().parent.parent
AUDIO = ROOT / "examples" / "audio"
REFUSED = "torch,sklearn,numba"
HEAVY = "torch,sklearn,numba,librosa"
LIGHT = ["models", "doctor"]  # they compute nothing
MODES = {"refused": {"REFUSED": REFUSED}, "absent": {"ABSENT": HEAVY}}


def commands() -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        cli.main(["--help"])
    return re.findall(r"^    ([a-z-]+)(?:  |$)", printed.getvalue(), re.MULTILINE)


def run(folder: Path, *words: str, mode: str = "refused", **options) -> subprocess.CompletedProcess:
    """A Python process and its children, in which nobody gets the modules; the test fails if somebody asks for them."""
    log = folder / "asked.txt"
    log.unlink(missing_ok=True)
    paths = {"PYTHONPATH": f"{ROOT / 'tests' / 'refusing'}{os.pathsep}{ROOT}", "REFUSED_LOG": str(log)}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, **MODES[mode], **paths},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        **options,
    )
    assert not log.exists(), log.read_text(encoding="utf-8")
    return done


def test_a_process_that_asks_is_found(tmp_path):
    for ask in (
        "import sklearn.metrics",
        "from importlib import import_module as i\ntry: i('numba')\nexcept Exception: 0",
    ):
        with pytest.raises(AssertionError, match="<string>"):
            run(tmp_path, "-c", ask)
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import torch'])"
    with pytest.raises(AssertionError, match="torch"):
        run(tmp_path, "-c", child)
    is_there = "import importlib.util as u; print([u.find_spec(name) is not None for name in ('torch', 'sklearn')])"
    assert run(tmp_path, "-c", is_there).stdout == "[True, True]\n"
    assert run(tmp_path, "-c", is_there, mode="absent").stdout == "[False, False]\n"


@pytest.mark.parametrize("mode", MODES)
def test_every_module_and_public_name(tmp_path, mode):
    """In one process, as commands set it: transformers imports PyTorch unless USE_TORCH is 0."""
    modules = [entry.name for entry in pkgutil.walk_packages(mindone_audio.__path__, "mindone_audio.")]
    modules.remove("mindone_audio.__main__")
    modules.remove("mindone_audio.voice.fastrtc_adapter")  # which needs the extra fastrtc
    script = f"import importlib, mindone_audio\nfor name in {modules}: importlib.import_module(name)\n"
    script += "for name in mindone_audio.__all__: getattr(mindone_audio, name)"
    done = run(tmp_path, "-c", f"import os; os.environ['USE_TORCH'] = '0'\n{script}", mode=mode)
    assert len(modules) > 80 and done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("command", commands())
def test_the_help_of_a_command(tmp_path, command):
    done = run(tmp_path, "-m", "mindone_audio", command, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: mindone-audio {command}"), done.stderr[-2000:]


@pytest.mark.parametrize("command", LIGHT)
def test_a_command_that_computes_nothing(tmp_path, command):
    done = run(tmp_path, "-m", "mindone_audio", command)
    assert done.returncode in (0, 1) and done.stdout, done.stderr[-2000:]


QUESTION = "What's that sound?"
TRAIN = {"audio": str(AUDIO / "siren.ogg"), "prompt": QUESTION, "answer": "It is a dog."}
GOLDENS = ROOT / "tests" / "goldens"
DEMO = ("--model", demo_checkpoint())
RUNS = {
    "warm-up": ["warm-up", "--seconds", "5", "--tokens", "64"],
    "ask": ["ask", AUDIO / "siren.ogg", QUESTION],
    "caption": ["caption", AUDIO / "rain.mp3", AUDIO / "siren.ogg", "--num-beams", "2"],
    "transcribe": ["transcribe", AUDIO / "spoken_command.wav", "--format", "srt"],
    "listen": ["listen", "-", "--format", "vtt"],
    "translate": "translate --text abc --to fra --model seamless".split(),
    "translate speech": ["translate", AUDIO / "spoken_command.wav", "--to", "deu", "--model", "seamless"],
    "speak": "speak abc --model speaker --vocoder hifigan --voice voice.npy -o said.wav".split(),
    "chat": ["chat", AUDIO / "siren.ogg"],
    "batch": ["batch", AUDIO, "--prompt", QUESTION, "--out", "results", "--workers", "2"],
    "finetune": ["finetune", "--train", "train.jsonl", "--output-dir", "out", "--max-steps", "1", "--merge", "merged"],
    "ask with the adapter": ["ask", AUDIO / "siren.ogg", QUESTION, "--adapter", "out"],
    "doctor": ["doctor", "--ops"],
    "parity": ["parity", ROOT / "tests" / "recordings" / "demo.safetensors", *DEMO],
    **{
        f"parity {family}": ["parity", GOLDENS / family / "one_clip.safetensors", "--model", GOLDENS / family]
        for family in ("ultravox_llama", "audioflamingo3", "voxtral_nf4")
    },
}


def test_every_command_is_at_work_below():
    served = {"serve"}  # tests/test_server_command.py
    assert (
        {words[0] for words in RUNS.values()} | set(LIGHT) | served == set(commands()) > {"ask", "transcribe", "parity"}
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_the_commands_at_work(tmp_path, mode):
    helpers_speecht5.save_all(tmp_path)
    helpers_seamless.save_checkpoint(tmp_path / "seamless")
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(TRAIN)}\n")
    for name, words in RUNS.items():
        said = f"{QUESTION}\n" if name == "chat" else ""
        done = run(tmp_path, "-m", "mindone_audio", *words, mode=mode, input=said)
        assert done.returncode == 0 and done.stdout, f"{name}: {done.stderr[-2000:]}"
        assert name != "ask" or done.stdout == "It is a siren.\n"

"""The example as a person runs it: its output, its options, and what it says of bad input."""

import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoProcessor as TorchProcessor
from transformers import Qwen2AudioForConditionalGeneration as TorchQwen2Audio

from mindone_audio import load_audio
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.inputs import audio

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "qwen2_audio_generate.py"
CLIPS = sorted(path for path in (ROOT / "examples" / "audio").iterdir() if path.is_file())
LINE = re.compile(r"  (\S.*?[:?])  +(.*)  \(\d+\.\d\d s\)")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the example in this process: exit status, lines of its output, lines of its errors."""

    def run_example(*arguments):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        captured = capsys.readouterr()
        message = [stop.value.code] if isinstance(stop.value.code, str) else []
        return stop.value.code, captured.out.splitlines(), captured.err.splitlines() + message

    return run_example


def test_the_demo_as_a_user_without_pytorch_runs_it():
    """Every clip gets the answers that PyTorch gives, letter for letter, in a process where torch cannot be had."""
    command = [sys.executable, str(ROOT / "tests" / "without_torch.py"), str(EXAMPLE)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    answers, clip = {}, None
    for line in result.stdout.splitlines():
        if match := LINE.fullmatch(line):
            answers[clip, match[1]] = match[2]
        elif line in {path.name for path in CLIPS}:
            clip = line
    assert {name for name, _ in answers} == {path.name for path in CLIPS}
    assert len(answers) >= 3 * len(CLIPS)
    assert any(prompt == "What does the person say?" for _, prompt in answers)

    processor = TorchProcessor.from_pretrained(demo_checkpoint())
    model = TorchQwen2Audio.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval()
    for (name, prompt), answer in answers.items():
        samples = load_audio(ROOT / "examples" / "audio" / name)
        text = f"<|audio_bos|><|AUDIO|><|audio_eos|>{prompt}"
        inputs = processor(text=text, audio=samples, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=100)[0, inputs["input_ids"].shape[1] :]
        assert answer == processor.decode(tokens, skip_special_tokens=True), (name, prompt)


def test_options(run):
    clip = ROOT / "examples" / "audio" / "three_beeps.wav"
    status, lines, errors = run(
        *("--audio", clip, "--audio", clip.as_uri(), "--prompt", "How many beeps do you hear?", "--device", "cpu"),
        *("--dtype", "bfloat16", "--max-new-tokens", "3", "--do-sample", "--temperature", "0.5", "--top-p", "0.9"),
        *("--top-k", "5", "--seed", "1", "--chat"),
    )
    assert (status, errors) == (0, [])
    answers = [LINE.fullmatch(line)[2] for line in lines if LINE.fullmatch(line)]
    assert len(answers) == 2
    assert answers[0] == answers[1]


def test_bad_clips_cost_no_good_answer(run, tmp_path, monkeypatch):
    monkeypatch.setattr(audio.load_audio, "__kwdefaults__", {**audio.load_audio.__kwdefaults__, "timeout": 0.5})
    files = {"text.wav": b"this is not audio", "empty.wav": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    soundfile.write(tmp_path / "no_samples.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "long.wav", np.zeros(16000 * 12, np.float32), 16000)
    soundfile.write(tmp_path / "zeros.wav", np.zeros(16000 * 2, np.float32), 16000)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        sources = {
            tmp_path / "missing.wav": "missing.wav.*check the path",
            tmp_path / "text.wav": "is not audio that can be decoded",
            tmp_path / "empty.wav": "is empty",
            tmp_path / "no_samples.wav": "holds no samples",
            tmp_path / "nan.wav": "16000 of 16000 samples are NaN",
            tmp_path / "long.wav": "12.00 s long and the model hears 10 s",
            f"http://127.0.0.1:{silent.getsockname()[1]}/clip.wav": "was not read within 0.5 s",
            tmp_path / "zeros.wav": None,
        }
        status, lines, errors = run(*(argument for source in sources for argument in ("--audio", source)))
    assert status == 1
    expected = [message for message in sources.values() if message]
    assert len(errors) == len(expected)
    for line, message in zip(errors, expected):
        assert re.search(f"^error: .*{message}", line), line
    assert len([line for line in lines if LINE.fullmatch(line)]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./nowhere"], "error: no checkpoint folder './nowhere'"),
        (["--device", "gpu"], "error: unknown device 'gpu': use one of auto, cpu, ascend"),
        (["--device", "ascend"], "error: device 'ascend' is not available here.*--device cpu"),
        (["--max-new-tokens", "0"], "error: --max-new-tokens must be at least 1, not 0"),
        (["--temperature", "0", "--do-sample"], "error: --temperature must be greater than 0"),
    ],
)
def test_bad_arguments(run, arguments, message):
    status, _, errors = run("--audio", CLIPS[0], *arguments)
    assert status not in (0, None)
    assert re.search(message, errors[-1])


def test_a_broken_checkpoint(run, tmp_path):
    folder = shutil.copytree(demo_checkpoint(), tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    status, _, errors = run("--model", folder)
    assert status.startswith("error: the tensors in")
    assert "missing: language_model.model.layers." in status

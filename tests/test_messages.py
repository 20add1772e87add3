"""Messages name what the person has in hand, options of a command or keywords of Python; libraries are quiet."""

import json
import os
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import soundfile

from mindone_audio import cli
from mindone_audio.batch import decode_ahead
from mindone_audio.commands import options
from mindone_audio.inputs.audio import ClipLimitError, ClipTooLongError

ROOT = Path(__file__).parent.parent
PYTHON = ("truncation", "long_audio", 'task="', "load_audio", "do_sample=", "mindspore_dtype", "keep_quantized")
CPU = ["--device", "cpu"]


@pytest.fixture
def long(tmp_path) -> str:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16000 * 11).astype(np.float32), 16000)
    return str(path)


@pytest.mark.parametrize("more", [[], ["--json"], ["--stream"]])
def test_a_clip_that_is_too_long(long, capsys, more):
    assert cli.main(["caption", *CPU, *more, long, long]) == 1
    said = "".join(capsys.readouterr())
    assert "--long-audio windows" in said and "mindone-audio transcribe" in said
    assert not [word for word in PYTHON if word in said]


def test_in_a_batch_a_chat_and_a_training(long, tmp_path, capsys, monkeypatch):
    assert cli.main(["batch", *CPU, long, "--out", str(tmp_path / "out")]) == 1
    error = json.loads((tmp_path / "out" / "results.jsonl").read_text())["error"]
    assert "--long-audio windows" in error and "--task transcribe" in error
    train = tmp_path / "train.jsonl"
    train.write_text(json.dumps({"audio": long, "prompt": "?", "answer": "x"}))
    assert cli.main(["finetune", "--train", str(train), "--output-dir", str(tmp_path / "ft"), "--max-steps", "1"]) == 2
    said = "".join(capsys.readouterr())
    (tmp_path / "metadata.csv").write_text("file_name,b\nlong.wav,c\n")
    assert cli.main(["finetune", "--train", str(tmp_path), "--output-dir", str(tmp_path / "ft")]) == 2
    columns = capsys.readouterr().err
    assert "has no column 'answer'" in columns and "with answer_column" in columns
    assert cli.main(["batch", long, "--out", str(tmp_path / "o2"), "--language", "en"]) == 2
    assert "--language goes with --task transcribe" in capsys.readouterr().err
    assert "train.jsonl line 1" in said and "on_bad_clip" in said and not [w for w in PYTHON if w in said]


@pytest.mark.slow
def test_standard_error_has_only_our_words(tmp_path):
    clip = "examples/audio/siren.ogg"
    commands = [["ask", clip, "What?"], ["transcribe", clip], ["batch", clip, "--out", str(tmp_path / "b")]]
    commands += [["chat", clip], ["models"], ["doctor"], ["--help"]]
    environment = {k: v for k, v in os.environ.items() if k not in ("GLOG_v", "PYTHONWARNINGS")}
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "mindone_audio", *command],
            cwd=ROOT, env=environment, input="What?\n", capture_output=True, text=True,
        )  # fmt: skip
        lines = [line for line in done.stderr.splitlines() if "MindSpore's CPU back end cannot compute" not in line]
        assert lines == [], command


def test_a_users_own_settings_stay(monkeypatch):
    for name in ("GLOG_v", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    cli._quieten_libraries()
    assert os.environ["GLOG_v"] == "1" and os.environ["TRANSFORMERS_VERBOSITY"] == "1"


def test_limits_of_clips_are_told_in_words_that_help_the_one_who_reads_them():
    """Who calls `load_audio` can give a higher limit; a command and a batch job have none."""
    error = ClipLimitError("clip.wav is longer than 10 s, the limit: cut it into shorter clips", "max_seconds")
    assert str(error).endswith("shorter clips, or call load_audio(…, max_seconds=…) with a higher one")
    for command in ("ask", "caption", "chat", "batch", "transcribe"):
        assert options.explain(command)(error) == error.what
    too_long = ClipTooLongError("clip.wav lasts 40 s, this model hears 30 s", "pass truncation=True")
    assert "truncation" not in options.explain("ask")(too_long) and "--long-audio" in options.explain("ask")(too_long)


def test_limits_of_clips_in_a_decoder_of_a_batch_job(monkeypatch):
    """What a decoder process sends: the message without Python's keyword."""
    ours, theirs = Pipe()
    ours.send(["clip.wav"])
    monkeypatch.setattr(decode_ahead, "load_clip", lambda source: (_ for _ in ()).throw(ClipLimitError("long", "x")))
    monkeypatch.setattr(decode_ahead, "die_with_parent", lambda signum: None)
    monkeypatch.setattr(decode_ahead, "Connection", lambda descriptor: theirs)
    thread = Thread(target=decode_ahead.work, args=(0, os.getppid(), None), daemon=True)
    thread.start()
    assert ours.recv() == "ready"
    assert ours.recv() == ([], "long")
    ours.close()
    thread.join(5)

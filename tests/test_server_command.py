"""`mindone-audio serve` as a process: its line, its socket, its signals, and mistakes; no model."""

import dataclasses
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from fake_service import ANSWER, until

from mindone_audio.commands import serve
from mindone_audio.server.options import ServerOptions

ALONE = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
TESTS = Path(__file__).resolve().parent
# The command, with a model and a scheduler that compute nothing. Loading waits for the file LOAD.
# SIGUSR1: go on. SIGUSR2: die.
SCRIPT = """
import os, signal, sys, time
import fake_service
from mindone_audio import cli
from mindone_audio.commands import serve_process

def start_engine(options, service):
    while not os.path.exists(os.environ["LOAD"]):
        time.sleep(0.01)
    if open(os.environ["LOAD"]).read() == "broken":
        raise ValueError("the model is broken: get another one")
    service.scheduler, service.pipe = scheduler, pipe

pipe = fake_service.Pipe()
scheduler = fake_service.Scheduler(pipe)
signal.signal(signal.SIGUSR1, lambda *_: scheduler.go.set())
signal.signal(signal.SIGUSR2, lambda *_: setattr(scheduler, "alive", False))
serve_process.start_engine = start_engine
sys.exit(cli.main(["serve", *sys.argv[1:]]))
"""


@pytest.fixture
def start(tmp_path):
    """Starts the command; `loaded` writes the file that loading waits for."""
    processes, file = [], tmp_path / "load"

    def begin(*words, loaded="yes", **environment):
        if loaded:
            file.write_text(loaded)
        paths = os.pathsep.join((str(TESTS), str(TESTS.parent)))
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, "--port", "0", "--served-model-name", "demo", *map(str, words)],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
            # One thread: SCRIPT imports NumPy before the command, whose threads would take its signals.
            env={**os.environ, **ALONE, "PYTHONPATH": paths, "LOAD": str(file), "USE_TORCH": "0", **environment},
        )
        processes.append(process)
        return process

    begin.file = file
    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def url_of(process):
    line = process.stdout.readline()
    found = re.fullmatch(r"Serving demo on (http://127\.0\.0\.1:\d+)\n", line)
    assert found, (line, process.poll() is not None and process.stderr.read())
    return found[1]


def ask(url, text, **more):
    body = {"model": "demo", "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30, **more)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_running_requests_and_a_second_one_stops(start, which):
    process = start("--drain-timeout", "20")
    url = url_of(process)
    assert ask(url, "hi").json()["choices"][0]["message"]["content"] == ANSWER
    outcome = []

    def hang():
        try:
            outcome.append(ask(url, "hang").status_code)
        except httpx.HTTPError:
            outcome.append("lost")

    threading.Thread(target=hang, daemon=True).start()
    until(lambda: "running 1.0" in httpx.get(f"{url}/metrics").text)
    process.send_signal(which)
    until(lambda: httpx.get(f"{url}/ready").status_code == 503)
    assert ask(url, "hi").json()["error"]["code"] == "draining"
    assert outcome == [] and process.poll() is None
    process.send_signal(which)
    assert process.wait(10) == 128 + which
    until(lambda: outcome == ["lost"])
    assert "1 requests are finished first" in process.stderr.read()


def test_a_signal_ends_an_idle_server(start):
    process = start()
    url_of(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0 and process.stdout.read() == ""


def test_running_requests_are_answered_before_the_end(start):
    process = start()
    url = url_of(process)
    lines = []

    def stream():
        body = {"model": "demo", "messages": [{"role": "user", "content": "hang"}], "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
            lines.extend(answer.iter_lines())

    thread = threading.Thread(target=stream)
    thread.start()
    until(lambda: "running 1.0" in httpx.get(f"{url}/metrics").text)
    process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{url}/ready").status_code == 503)
    ask_again = httpx.get(f"{url}/health")
    assert ask_again.status_code == 200 and process.poll() is None
    process.send_signal(signal.SIGUSR1)
    thread.join(20)
    assert lines[-2] == "data: [DONE]" and process.wait(10) == 0


def test_health_answers_while_the_model_is_loaded(start):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start("--port", port, loaded="")
    url = f"http://127.0.0.1:{port}"

    def live():
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.ConnectError:
            return False

    until(live, 30)
    assert httpx.get(f"{url}/ready").status_code == 503 and ask(url, "hi").status_code == 503
    start.file.write_text("yes")
    assert url_of(process) == url and httpx.get(f"{url}/ready").status_code == 200


def test_a_model_that_cannot_be_loaded(start):
    process = start(loaded="broken")
    assert process.wait(30) == 2
    assert process.stderr.read() == "error: the model is broken: get another one\n"


def test_a_port_in_use_is_said_before_the_model_is_loaded(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start("--port", port, loaded="")
        assert process.wait(30) == 2
    said = f"error: cannot listen on 127.0.0.1 port {port}: address already in use: choose another --port or --host\n"
    assert process.stderr.read() == said


def test_keys_and_warnings(start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("file-key\n")
    keys.chmod(0o644)
    process = start("--api-key-file", keys, MINDONE_AUDIO_API_KEY="own-key")
    url = url_of(process)
    assert ask(url, "hi").status_code == 401
    for key in ("file-key", "own-key"):
        assert ask(url, "hi", headers={"authorization": f"Bearer {key}"}).status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    said = process.stderr.read()
    assert "every user of this machine can read" in said and "-key\n" not in said
    open_to_all = start("--host", "0.0.0.0")
    assert open_to_all.stdout.readline().startswith("Serving demo on http://0.0.0.0:")
    open_to_all.send_signal(signal.SIGTERM)
    assert open_to_all.wait(10) == 0
    assert "warning: 0.0.0.0 is open to other machines, and nobody needs a key" in open_to_all.stderr.read()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-batch", "0"], "--max-batch must be between 1 and 256, not 0"),
        (["--adapter", "x"], "--adapter must be NAME=DIR, not 'x'"),
        (["--allowed-host"], "--allowed-host: expected one argument"),
        (["--ssl-keyfile", "k"], "--ssl-certfile and --ssl-keyfile go together: give both"),
        (["--api-key-file", "/no/such/file"], "No such file or directory: '/no/such/file'"),
    ],
)
def test_mistakes_are_one_line(capsys, words, message):
    from mindone_audio import cli

    try:
        status = cli.main(["serve", "--port", "0", *words])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2 and message in said and said.startswith("error: ") and said.count("\n") == 1


def test_every_setting_of_a_server_is_an_option():
    names = {field.name for field in dataclasses.fields(ServerOptions)}
    assert names == {*serve._OTHERS, *serve._REPEATED, *serve._NUMBERS}


def test_missing_packages(monkeypatch, capsys):
    from importlib import util

    from mindone_audio import cli

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "fastapi" else find(name))
    assert cli.main(["serve"]) == 2
    assert capsys.readouterr().err == 'error: serve needs fastapi: pip install "mindone_audio[serve]"\n'


def front_of(process):
    """The number of the process that listens for it."""
    script = f"{process.pid}/task/{process.pid}/children"
    (child,) = Path("/proc", script).read_text().split()
    return int(child)


def test_a_killed_server_leaves_its_port_free(start):
    process = start()
    port = int(url_of(process).rpartition(":")[2])
    front = front_of(process)
    with socket.create_connection(("127.0.0.1", port)) as link:  # it is no hindrance
        process.kill()
        process.wait(10)
        until(lambda: not Path(f"/proc/{front}").exists())
        assert link.recv(1) == b""
        assert url_of(start("--port", port)).endswith(f":{port}")


def test_a_server_ends_where_its_front_has_ended(start):
    process = start()
    url_of(process)
    os.kill(front_of(process), signal.SIGKILL)
    assert process.wait(10) == 1
    said = process.stderr.read()
    assert said == "error: the process that listens for clients has ended with status -9: start the server again\n"


def test_health_says_when_the_server_is_dead(start):
    process = start()
    url = url_of(process)
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    process.send_signal(signal.SIGUSR2)
    until(lambda: httpx.get(f"{url}/health").status_code == 503)
    assert httpx.get(f"{url}/health").json() == {"status": "dead"}


def test_health_answers_while_the_process_is_stopped(start):
    process = start()
    url = url_of(process)
    process.send_signal(signal.SIGSTOP)
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    process.send_signal(signal.SIGCONT)
    assert ask(url, "hi").status_code == 200


def test_https_of_the_command(start, certificate):
    process = start("--ssl-certfile", certificate / "cert.pem", "--ssl-keyfile", certificate / "key.pem")
    line = process.stdout.readline()
    url = re.fullmatch(r"Serving demo on (https://127\.0\.0\.1:\d+)\n", line)[1]
    trusted = ssl.create_default_context(cafile=certificate / "cert.pem")
    assert httpx.get(f"{url}/health", verify=trusted).status_code == 200
    assert ask(url, "hi", verify=trusted).json()["choices"][0]["message"]["content"] == ANSWER

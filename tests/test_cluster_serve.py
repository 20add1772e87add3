"""scripts/cluster/serve, as far as it can be checked without a cluster: linters, fields, nginx before two servers."""

import asyncio
import configparser
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

uvicorn = pytest.importorskip("uvicorn")

ROOT = Path(__file__).parent.parent
SERVE = ROOT / "scripts" / "cluster" / "serve"
UNIT = SERVE / "mindone-audio-serve@.service"


def tool(name: str) -> str | None:
    return shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin")


needs_nginx = pytest.mark.skipif(tool("nginx") is None, reason="nginx is not installed: apt-get install nginx-light")


# systemd


def unit() -> configparser.RawConfigParser:
    """The unit's sections; a key that stands several times has its values in lines."""

    class Lines(dict):
        def __setitem__(self, key, value):
            if key in self and isinstance(value, list):
                value = self[key] + value
            super().__setitem__(key, value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Lines, comment_prefixes="#", delimiters="=")
    parser.optionxform = str
    parser.read_string(re.sub(r"\\\n\s*", "", UNIT.read_text(encoding="utf-8")))
    return parser


@pytest.mark.skipif(tool("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path):
    for text, right in ((UNIT.read_text(), True), (UNIT.read_text().replace("KillMode=mixed", "KilMode=x"), False)):
        (tmp_path / UNIT.name).write_text(text)
        done = subprocess.run(
            [tool("systemd-analyze"), "verify", str(tmp_path / UNIT.name.replace("@", "@3"))],
            capture_output=True,
            text=True,
        )
        said = [line for line in done.stderr.splitlines() if UNIT.name.partition("@")[0] in line]
        assert (said == []) == right, done.stderr


def test_the_unit_has_its_fields():
    service = unit()["Service"]
    expected = {"Type": "exec", "KillSignal": "SIGTERM", "DynamicUser": "yes", "ProtectSystem": "strict"}
    expected |= {"NoNewPrivileges": "yes", "PrivateTmp": "yes", "ProtectHome": "yes", "Restart": "on-failure"}
    assert {name: service[name] for name in expected} == expected
    assert int(service["TimeoutStopSec"]) >= 60
    assert "ASCEND_RT_VISIBLE_DEVICES=%i" in service["Environment"] and "/dev/davinci%i rw" in service["DeviceAllow"]
    assert "-/etc/mindone-audio/serve.env" in service["EnvironmentFile"].splitlines()
    assert unit()["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize("instance", [0, 3, 12])
def test_the_command_of_the_unit(tmp_path, instance):
    (tmp_path / "mindone-audio").write_text('#!/bin/bash\necho "$@"\n')
    (tmp_path / "mindone-audio").chmod(0o755)
    command = unit()["Service"]["ExecStart"].replace("%i", str(instance)).replace("$$", "$")
    environment = {"PATH": os.environ["PATH"], "CREDENTIALS_DIRECTORY": "/run/credentials/x"}
    environment |= {"SERVE_OPTIONS": "--max-batch 8", "MINDONE_AUDIO": str(tmp_path / "mindone-audio")}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [
        *("serve", "--host", "127.0.0.1", "--port", str(8000 + instance)),
        *("--api-key-file", "/run/credentials/x/api-key", "--max-batch", "8"),
    ]


# the container


@pytest.mark.skipif(tool("hadolint") is None, reason="hadolint is not installed: tests/requirements.txt has it")
def test_the_dockerfile_passes_hadolint():
    done = subprocess.run([tool("hadolint"), "--no-color", SERVE / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_container_is_no_root_and_says_its_health():
    text = (SERVE / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "${USER_ID}"
    assert int(re.search(r"^ARG USER_ID=(\d+)", text, re.MULTILINE)[1]) > 0
    assert "docker build -f scripts/npu/Dockerfile -t mindone-audio ." in text  # which makes the base
    assert (ROOT / re.search(r"-r /workspace/(\S+)", text)[1]).exists()
    assert re.search(r'^CMD \["python", "-m", "mindone_audio", "serve"', text, re.MULTILINE)


@pytest.mark.parametrize("status, healthy", [(200, True), (503, False), (None, False)])
def test_the_health_check_of_the_container(status, healthy):
    text = (SERVE / "Dockerfile").read_text(encoding="utf-8")
    words = json.loads(re.search(r"HEALTHCHECK .*? CMD (\[.*?\])$", text.replace("\\\n", ""), re.MULTILINE)[1])
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(running(Server("a", status=status))) if status else free_port()
        done = subprocess.run([sys.executable, "-c", words[2].replace("8000", str(port))], capture_output=True)
    assert words[:2] == ["python", "-c"] and (done.returncode == 0) == healthy


# Kubernetes


def test_the_deployment_and_its_service():
    deployment, service = yaml.safe_load_all((SERVE / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    for selector in (deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"]):
        assert selector.items() <= labels.items()
    pod = template["spec"]
    (container,) = pod["containers"]
    resources = container["resources"]
    assert resources["limits"] == resources["requests"] and resources["limits"]["huawei.com/Ascend910"] == 1
    (port,) = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert f"--port={port['containerPort']}" in container["args"] and "--host=0.0.0.0" in container["args"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": port["name"]}
    assert container["startupProbe"]["exec"] == container["readinessProbe"]["exec"]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1200
    assert pod["terminationGracePeriodSeconds"] >= 60 and pod["securityContext"]["runAsNonRoot"] is True
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts) == set(volumes)
    secret = volumes["api-key"]["secret"]["secretName"]
    text = (SERVE / "kubernetes.yaml").read_text(encoding="utf-8")
    assert f"kubectl create secret generic {secret} --from-literal=api-key=" in text
    assert f"--api-key-file={mounts['api-key']}/api-key" in container["args"]


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False), (401, False), (None, False)])
def test_the_probe_of_readiness(tmp_path, status, ready):
    deployment, _ = yaml.safe_load_all((SERVE / "kubernetes.yaml").read_text(encoding="utf-8"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    python, option, code = container["readinessProbe"]["exec"]["command"]
    (tmp_path / "api-key").write_text("secret\nanother\n")
    code = code.replace("/etc/mindone-audio/api-key", str(tmp_path / "api-key"))
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(running(Server("a", status=status))) if status else free_port()
        done = subprocess.run([sys.executable, option, code.replace("8000", str(port))], capture_output=True)
    assert (python, option) == ("python", "-c") and (done.returncode == 0) == ready


# nginx


class Server:
    """A small ASGI app that says its name. /stream sends four events, each when `go` is set; /v1 has a body."""

    def __init__(self, name: str, status: int = 200):
        self.name, self.status = name, status
        self.go, self.left = threading.Event(), threading.Event()
        self.asked = Counter()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.asked[scope["path"]] += 1
        body = bytearray()
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        if scope["path"] == "/stream":
            return await self.stream(receive, send)
        if scope["path"] == "/slow":
            await asyncio.sleep(0.05)
        headers = [(b"content-type", b"text/plain"), (b"retry-after", b"7")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        host = dict(scope["headers"])[b"host"].decode()
        await send({"type": "http.response.body", "body": f"{self.name} {len(body)} {host}".encode()})

    async def stream(self, receive, send):
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        watcher = asyncio.ensure_future(receive())
        for number in range(4):
            while not self.go.is_set():
                if watcher.done():  # the client has left
                    return self.left.set()
                await asyncio.sleep(0.005)
            self.go.clear()
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
        watcher.cancel()
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(app: Server):
    """The port of a server; `app.stop()` ends it as SIGTERM does."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, args=[[listener]], daemon=True)

    def stop():
        server.should_exit = True
        thread.join(20)
        listener.close()

    app.stop = stop
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop()


@contextlib.contextmanager
def nginx(folder: Path, *ports: int):
    """The port of nginx with our configuration, in front of servers at these ports."""
    port = free_port()
    text = (SERVE / "nginx.conf").read_text(encoding="utf-8")
    servers = "".join(f"server 127.0.0.1:{each} max_fails=3 fail_timeout=5s;\n" for each in ports)
    text, count = re.subn(r"(\s*server 127\.0\.0\.1:800\d [^;]*;)+", "\n" + servers, text)
    assert count == 1 and text.count("listen 8080;") == 1
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace(
        "worker_processes auto", "worker_processes 2"
    )
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        text = text.replace("http {\n", f"http {{\n    {kind}_temp_path {folder}/{kind};\n", 1)
    (folder / "nginx.conf").write_text(text)
    command = [tool("nginx"), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    user = "user root;" if os.getuid() == 0 else ""  # pytest's folders are for their owner only
    process = subprocess.Popen([*command, "-g", f"daemon off; pid {folder}/nginx.pid; {user}"])
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
                break
            assert process.poll() is None, (folder / "error.log").read_text()
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def pair(tmp_path):
    """Two servers, and the port of nginx in front of them."""
    servers = Server("a"), Server("b")
    with running(servers[0]) as first, running(servers[1]) as second, nginx(tmp_path, first, second) as port:
        yield *servers, port


def ask(port: int, path: str = "/v1/x", body: bytes | None = b"{}", **headers) -> tuple[int, str, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(), dict(response.headers)


@needs_nginx
def test_nginx_takes_the_configuration(tmp_path):
    command = [tool("nginx"), "-t", "-e", str(tmp_path / "error.log"), "-c", str(SERVE / "nginx.conf")]
    done = subprocess.run([*command, "-g", f"pid {tmp_path}/pid;"], capture_output=True, text=True)
    said = done.stderr + (tmp_path / "error.log").read_text()
    assert "syntax is ok" in said and (done.returncode == 0 or os.getuid() != 0), said


@needs_nginx
def test_requests_go_to_both_servers(pair):
    first, second, port = pair
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(port, "/slow", b"x" * 100_000), range(40)))
    assert {(status, text.partition(" ")[2]) for status, text, _ in answers} == {(200, f"100000 127.0.0.1:{port}")}
    assert sum(first.asked.values()) + sum(second.asked.values()) == 40
    assert min(first.asked["/slow"], second.asked["/slow"]) >= 10


@needs_nginx
def test_a_busy_server_gets_less(pair):
    first, second, port = pair
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        assert link.recv(1000).startswith(b"HTTP/1.1 200")
        idle = second if first.asked["/stream"] else first
        assert {ask(port)[1].split()[0] for _ in range(8)} == {idle.name}


@needs_nginx
def test_a_server_that_breaks_before_it_answers(tmp_path):
    listener, broken = socket.create_server(("127.0.0.1", 0)), []

    def breaking():
        with contextlib.suppress(OSError):
            while True:
                link, _ = listener.accept()
                broken.append(link.recv(10_000))
                link.close()

    threading.Thread(target=breaking, daemon=True).start()
    with running(Server("b")) as port, nginx(tmp_path, listener.getsockname()[1], port) as front, listener:
        assert {ask(front)[:2] for _ in range(6)} == {(200, f"b 2 127.0.0.1:{front}")}
        assert broken and broken[0].startswith(b"POST /v1/x")


@needs_nginx
def test_events_arrive_one_by_one(pair):
    """A server sends the next event only when the client has the one before, so a proxy that keeps one would hang."""
    first, second, port = pair
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/stream", b"{}")
        response = connection.getresponse()
        got = []
        for _ in range(4):
            first.go.set(), second.go.set()
            got.append(response.readline())
            assert response.readline() == b"\n"
        assert got == [b"data: 0\n", b"data: 1\n", b"data: 2\n", b"data: 3\n"]
        assert response.read() == b"data: [DONE]\n\n"


@needs_nginx
def test_a_client_that_leaves_is_told_to_the_server(pair):
    first, second, port = pair
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        assert link.recv(1000).startswith(b"HTTP/1.1 200")
    for _ in range(400):
        if first.left.is_set() or second.left.is_set():
            break
        time.sleep(0.025)
    assert first.left.is_set() or second.left.is_set()


@needs_nginx
def test_a_server_that_stops_fails_no_request(pair):
    first, second, port = pair
    done, stopped = [], threading.Event()

    def work(_):
        while True:
            last = stopped.is_set()
            done.append(ask(port, "/slow"))
            if last:
                return

    with ThreadPoolExecutor(6) as pool:
        works = [pool.submit(work, number) for number in range(6)]
        while len(done) < 20:
            time.sleep(0.01)
        first.stop()
        before = second.asked["/slow"]
        while second.asked["/slow"] < before + 30:
            time.sleep(0.01)
        stopped.set()
        for each in works:
            each.result(30)
    assert {status for status, _, _ in done} == {200}
    assert first.asked["/slow"] > 0 and done[-1][1].startswith("b ")


@needs_nginx
def test_a_full_server_hands_on_and_two_full_servers_say_so(pair):
    first, second, port = pair
    first.status = 503
    assert {ask(port)[:2] for _ in range(12)} == {(200, f"b 2 127.0.0.1:{port}")}
    second.status = 503
    status, _, headers = ask(port)
    assert status == 503 and headers["Retry-After"] in ("5", "7")
    for _ in range(6):  # also when nginx has given up both for a while
        status, text, headers = ask(port)
        assert status == 503 and headers["Retry-After"] in ("5", "7")


@needs_nginx
def test_no_server_at_all(tmp_path):
    with nginx(tmp_path, free_port(), free_port()) as port:
        status, text, headers = ask(port)
    assert (status, headers["Retry-After"], headers["Content-Type"]) == (503, "5", "application/json")
    assert json.loads(text)["error"]["code"] == "no_server"


@needs_nginx
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_other_answers_are_not_asked_for_twice(pair, status):
    first, second, port = pair
    first.status = second.status = status
    assert ask(port)[0] == status
    assert first.asked["/v1/x"] + second.asked["/v1/x"] == 1


@needs_nginx
def test_what_nginx_refuses(pair):
    first, second, port = pair
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 40000000\r\n\r\n")
        answer = link.recv(10_000).decode()
    assert answer.startswith("HTTP/1.1 413") and '"code": "body_too_large"' in answer
    assert ask(port, "/metrics", None)[0] == 404
    assert ask(port, "/", None, **{f"A{number}": "b" * 8000 for number in range(10)})[0] in (400, 431)
    assert first.asked + second.asked == Counter()

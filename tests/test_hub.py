"""A repository's name instead of a folder: downloaded from HF_ENDPOINT, no more than is needed, found again offline."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import helpers_qwen2_5_omni as omni
import pytest

from mindone_audio.checkpoints import demo_checkpoint

ROOT = Path(__file__).parent.parent
NAME, COMMIT = "somebody/tiny-audio", "0123456789abcdef0123456789abcdef01234567"
EXTRA = (
    "consolidated.safetensors",
    "model.fp32-00001-of-00002.safetensors",
    "original/params.json",
    "flax_model.msgpack",
)
ASK = """
from mindone_audio import pipeline
pipe = pipeline(model="somebody/tiny-audio", device="cpu", token="a-token")
print(pipe("examples/audio/siren.ogg", text="What's that sound?")["generated_text"])
"""


class Hub(BaseHTTPRequestHandler):
    """The two things that huggingface_hub asks for: what a repository holds, and its files."""

    files: dict[str, bytes] = {}
    asked: list[str] = []
    tokens: set[str] = set()

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.tokens.add(self.headers.get("Authorization", ""))
        path = self.path.split("?")[0]
        if path.startswith(f"/api/models/{NAME}") and "/tree/" not in path:
            siblings = [{"rfilename": name} for name in self.files]
            self.send(json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode(), body, {})
        elif (name := path.split("/", 5)[-1]) in self.files and path.startswith(f"/{NAME}/resolve/"):
            if body:
                self.asked.append(name)
            etag = hashlib.sha256(self.files[name]).hexdigest()
            self.send(self.files[name], body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if NAME in path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def send(self, content: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def endpoint():
    Hub.files = {path.name: path.read_bytes() for path in demo_checkpoint().iterdir()}
    Hub.files |= {name: b"never wanted" for name in EXTRA}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run(script: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1", **environment}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_repository_is_downloaded_once_and_found_offline(endpoint, tmp_path):
    done = run(ASK, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path))
    assert done.stdout == "It is a siren.\n", done.stderr[-2000:]
    assert "model.safetensors" in Hub.asked and not set(EXTRA) & set(Hub.asked)
    assert "Fetching" in done.stderr or "model.safetensors" in done.stderr  # progress
    assert "Bearer a-token" in Hub.tokens
    first = len(Hub.asked)
    offline = run(ASK, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert offline.stdout == "It is a siren.\n", offline.stderr[-2000:]
    assert len(Hub.asked) == first
    missing = run(ASK.replace(NAME, "somebody/else"), HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path))
    assert missing.returncode == 1 and "OSError: cannot read config.json of 'somebody/else'" in missing.stderr


LOAD = """
from mindone_audio import AutoModelForAudioTextToText
print(type(AutoModelForAudioTextToText.from_pretrained("somebody/tiny-audio")).__name__)
"""


def test_files_that_nobody_reads_are_not_downloaded(tmp_path):
    """What sees and speaks of Qwen2.5-Omni is in a file of its own, as the index says."""

    class OmniHub(Hub):
        files, asked = {}, []

    omni.torch_omni(omni.tiny_omni_config()).save_pretrained(tmp_path / "thinker")
    folder = omni.write_whole(tmp_path / "thinker", tmp_path / "whole", shards=2)
    OmniHub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), OmniHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = run(LOAD, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=str(tmp_path / "home"))
    server.shutdown()
    assert done.stdout == "Qwen2_5OmniThinkerForConditionalGeneration\n", done.stderr[-2000:]
    assert {"model-00001-of-00002.safetensors", "model.safetensors.index.json"} <= set(OmniHub.asked)
    assert "model-00002-of-00002.safetensors" not in OmniHub.asked

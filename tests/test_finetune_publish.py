"""Adapters on the Hugging Face hub: the real client against a server of this machine. And merged checkpoints."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mindone_audio import cli
from mindone_audio.finetune import push_to_hub, save_merged

NAME = "somebody/dogs"


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for to make a repository and put small files there."""

    status = 200
    made: list[dict] = []
    files: dict[str, bytes] = {}
    tokens: set[str] = set()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.tokens.add(self.headers.get("Authorization", ""))
        address = f"http://{self.headers['Host']}/{NAME}"
        if self.status != 200:
            self.send(self.status, {"error": "this token may not write"})
        elif self.path == "/api/repos/create":
            self.made.append(json.loads(body))
            there = len(self.made) > 1
            self.send(409 if there else 200, {"url": address})
        elif self.path == "/api/validate-yaml":
            self.send(200, {"errors": [], "warnings": []})
        elif self.path == f"/api/models/{NAME}/preupload/main":
            asked = [file["path"] for file in json.loads(body)["files"]]
            self.send(200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]})
        elif self.path == f"/api/models/{NAME}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.send(200, {"commitUrl": f"{address}/commit/1", "commitOid": "1", "success": True})
        else:
            self.send(404, {"error": self.path})

    def do_GET(self):
        self.send(404, {"error": self.path})

    def send(self, status: int, answer: dict) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "made", [])
    monkeypatch.setattr(Hub, "tokens", set())
    monkeypatch.setattr(Hub, "status", 200)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def adapter(tmp_path):
    """A folder as a training leaves it."""
    folder = tmp_path / "adapter"
    (folder / "checkpoint-2").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md", "log.csv"):
        (folder / name).write_text(f"{{}} {name}")
    for name in ("events.out.tfevents.1", "checkpoint-2/optimizer.safetensors"):
        (folder / name).write_text("not for others")
    return folder


def test_what_is_pushed(hub, adapter):
    address = push_to_hub(adapter, NAME, private=True, token="hf_secret")
    assert address.endswith(f"/{NAME}")
    assert set(hub.files) == {"adapter_config.json", "adapter_model.safetensors", "README.md", "log.csv"}
    assert hub.files["adapter_model.safetensors"] == b"{} adapter_model.safetensors"
    (made,) = hub.made
    assert made["name"] == "dogs" and made["organization"] == "somebody" and made["private"] is True
    assert hub.tokens == {"Bearer hf_secret"}
    (adapter / "README.md").write_text("Another one.")
    assert push_to_hub(adapter, NAME, token="hf_secret") == address  # into the repository that is there
    assert hub.files["README.md"] == b"Another one."


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_hub_that_refuses_is_one_line(hub, adapter, status):
    hub.status = status
    with pytest.raises(OSError, match=f"could not push .*adapter to {NAME} .*{status}.*: it is kept here") as caught:
        push_to_hub(adapter, NAME, token="hf_wrong")
    assert "\n" not in str(caught.value) and "hf_wrong" not in str(caught.value)


def test_no_network_no_token_no_adapter_no_name(hub, adapter, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="has no adapter_config.json and no config.json"):
        push_to_hub(tmp_path, NAME)
    with pytest.raises(ValueError, match="'a b' cannot be a repository on the hub"):
        push_to_hub(adapter, "a b")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=f"could not push .* to {NAME} .*: it is kept here") as caught:
        push_to_hub(adapter, NAME, token="hf_secret")
    assert "\n" not in str(caught.value)
    assert hub.made == []


def test_the_command_pushes_what_it_made(hub, tmp_path, capsys, monkeypatch):
    """And where it cannot, the adapter is there, and the same command with --resume only pushes."""
    clip = tmp_path / "clip.jsonl"
    siren = str(Path(__file__).parent.parent / "examples" / "audio" / "siren.ogg")
    clip.write_text(json.dumps({"audio": siren, "prompt": "What?", "answer": "A dog."}) + "\n")
    out = tmp_path / "out"
    command = ["finetune", "--train", str(clip), "--output-dir", str(out), "--max-steps", "1", "--no-compile"]
    command += ["--device", "cpu", "--push-to-hub", NAME]
    hub.status = 403
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert "could not push" in captured.err and (out / "adapter_model.safetensors").exists()
    hub.status = 200
    assert cli.main([*command, "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].endswith(f"/{NAME}")
    assert hub.files["adapter_model.safetensors"] == (out / "adapter_model.safetensors").read_bytes()
    assert hub.tokens == {"Bearer hf_of_the_environment"} and "private" not in hub.made[0]


def test_merged_checkpoints_do_not_overwrite(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(ValueError, match="is there already, and the merged model would overwrite it"):
        save_merged(None, "anything", tmp_path)
    with pytest.raises(TypeError, match="revision has no effect here"):
        save_merged(None, "anything", tmp_path / "new", revision="main")

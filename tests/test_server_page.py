"""The page at / as the server gives it: its files, their headers, who may read them; no browser and no model."""

import http.client
import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import httpx
import pytest
from fake_service import ANSWER, Pipe, running, text64, wav

from mindone_audio.server.page_files import FILES, INDEX, PATHS

ROOT = Path(__file__).resolve().parent.parent
FOLDER = resources.files("mindone_audio.server") / "page"
NAMES = sorted([INDEX, *FILES])
ASSETS = [f"/page/{name}" for name in FILES]


@pytest.fixture(scope="module")
def server():
    with running() as (url, service):
        yield url, service


def content(name):
    return (FOLDER / name).read_text(encoding="utf-8")


def test_the_page(server):
    answer = httpx.get(server[0] + "/")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == content(INDEX) and answer.headers["cache-control"] == "no-cache"
    assert {f"/{link}" for link in re.findall(r'(?:href|src)="(page/[^"]+)"', answer.text)} < set(ASSETS)


@pytest.mark.parametrize("name", FILES)
def test_its_files(server, name):
    answer = httpx.get(f"{server[0]}/page/{name}")
    assert answer.status_code == 200 and answer.text == content(name)
    kinds = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    assert answer.headers["content-type"].partition(";")[0] == kinds[Path(name).suffix]


@pytest.mark.parametrize("path", ["/", *ASSETS])
def test_headers(server, path):
    answer = httpx.get(server[0] + path)
    policy = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'" and policy["media-src"] == "'self' blob:"
    assert policy["frame-ancestors"] == policy["object-src"] == "'none'"
    assert "unsafe" not in str(policy) and "script-src" not in policy and "*" not in str(policy)
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
    head = httpx.head(server[0] + path)
    assert head.status_code == 200 and head.content == b"" and head.headers["etag"] == answer.headers["etag"]
    again = httpx.get(server[0] + path, headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    assert httpx.get(server[0] + path, headers={"if-none-match": '"old"'}).status_code == 200


def test_a_key_is_not_needed_for_the_page_alone():
    with running(keys=["k"]) as (url, _):
        for path in PATHS:
            assert httpx.get(url + path).status_code == httpx.head(url + path).status_code == 200
            assert httpx.post(url + path, json={}).status_code == httpx.put(url + path).status_code == 401
            assert httpx.options(url + path).status_code == 401
        for path in (
            "/page/",
            "/page",
            "/page/other.js",
            "/page/../v1/models",
            "//",
            "/page/style.css/",
            "/index.html",
        ):
            assert httpx.get(url + path).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/page",
            "/page/",
            "/page/index.html",
            "/page/nothing.js",
            "/page/page.js/",
            "/page//page.js",
            "/Page/page.js",
        ),
        *("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd"),
        *("/page/..\\app.py", "/page/page.js%00", "/page/app.py", "/page//etc/passwd", "/style.css", "/page.js"),
    ],
)
def test_there_is_nothing_else(server, path):
    link = http.client.HTTPConnection(server[0].removeprefix("http://"))  # httpx would tidy the path up
    link.request("GET", path)
    answer = link.getresponse()
    assert answer.status == 404 and b"there is nothing at this URL" in answer.read()
    link.close()


def test_the_task_is_still_there(server):
    body = {"inputs": {"audio": text64(wav(1)), "text": "What is that?"}}
    assert httpx.post(server[0] + "/", json=body).json() == [{"generated_text": ANSWER}]


def test_facts(server):
    answer = httpx.get(server[0] + "/page/facts.json")
    assert answer.headers["cache-control"] == "no-store" and answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "loaded": True,
        "tasks": ["ask", "caption", "transcribe"],
        "max_body_bytes": 64 * 2**20,
        "max_audio_seconds": 3600.0,
        "max_tokens": 512,
        "longest_clip": 30,
        "audio_first": True,
        "one_clip": True,
        "spoken": False,
        "questions": Pipe().processor.questions,
    }
    with running(loaded=False) as (url, _):
        facts = httpx.get(url + "/page/facts.json").json()
        assert facts["loaded"] is False and facts["longest_clip"] is None and facts["questions"] == {}
        assert httpx.get(url + "/").status_code == 200


@pytest.mark.parametrize("name", NAMES)
def test_nothing_comes_from_elsewhere(name):
    text = content(name)
    assert [url for url in re.findall(r"\w+://[^\s\"'<>)]*", text) if url != "http://www.w3.org/2000/svg"] == []
    assert not re.search(r"@import|url\(|[\"'(]//", text)


def test_nothing_that_is_said_becomes_code():
    scripts = "".join(content(name) for name in FILES if name.endswith(".js"))
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "DOMParser"):
        assert word not in scripts
    assert not re.search(r"set(?:Timeout|Interval)\(\s*[\"'`]|createContextualFragment|javascript:", scripts)
    page = content(INDEX)
    assert not re.search(r"\son\w+\s*=|\sstyle\s*=|<style|javascript:", page)
    assert all(re.fullmatch(r'<script type="module" src="[^"]+">', tag) for tag in re.findall(r"<script[^>]*>", page))


def test_all_of_it_is_in_the_wheel():
    assert sorted(file.name for file in FOLDER.iterdir()) == NAMES
    assert '"mindone_audio.server" = ["requirements.txt", "page/*"]' in (ROOT / "pyproject.toml").read_text()


def test_every_control_has_a_name():
    page = content(INDEX)
    for tag in re.findall(r"<(?:input|textarea|select|canvas|meter)\b[^>]*>", page):
        name = re.search(r'id="([^"]+)"', tag)
        labelled = "aria-label" in tag or (name and f'for="{name[1]}"' in page)
        around = page[: page.index(tag)]
        assert labelled or around.rfind("<label") > around.rfind("</label>"), tag


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_the_scripts_can_be_parsed(name):
    done = subprocess.run(
        ["node", "--check", "--input-type=module"], input=content(name), text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_segments_are_streamed(server):
    """What the page follows a transcription by: text as it comes, and the times of a window at its end."""
    form = {"model": "demo", "response_format": "verbose_json", "stream": "true"}
    made = httpx.post(server[0] + "/v1/audio/transcriptions", files={"file": ("a.wav", wav(25))}, data=form).text
    events = [json.loads(line[6:]) for line in made.split("\n\n") if line.startswith("data: {")]
    segments = [event for event in events if event["type"] == "transcript.text.segment"]
    assert [event["id"] for event in segments] == ["0", "1", "2"] and segments[0]["start"] == 0
    assert all(first["end"] == second["start"] for first, second in zip(segments, segments[1:]))
    assert segments[-1]["end"] == 25 and max(event["end"] - event["start"] for event in segments) <= 10
    assert events[-1]["text"] == " ".join(event["text"] for event in segments)
    deltas = [event["delta"] for event in events if event["type"] == "transcript.text.delta"]
    assert "".join(deltas) == events[-1]["text"] and events[-1]["type"] == "transcript.text.done"
    kinds = [event["type"].rpartition(".")[2] for event in events]
    assert kinds[-2:] == ["segment", "done"] and kinds[: kinds.index("segment")] == ["delta"] * kinds.index("segment")

"""Batch jobs with the bundled checkpoint in real processes that are killed, terminated and interrupted.

The last clip of every job is a named pipe without a writer, so that no job can end before it is disturbed.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mindone_audio import cli, pipeline
from mindone_audio.batch import BatchJob, run_batch

ROOT = Path(__file__).parent.parent
AUDIO = ROOT / "examples" / "audio"
CLIPS = sorted(AUDIO.iterdir())
WRONG = {
    "corrupt.wav": "is not audio that can be decoded",
    "empty.wav": "is empty (0 bytes)",
    "short.wav": "too few for one audio token",
    "url": "closed connection without response",
    "folder": "is a folder",
    "missing.wav": "no audio file",
}
BROKEN = 31  # the line
LIMIT = 240.0  # seconds; far more than anything here takes


class ClosingServer:
    """Reads each request and hangs up."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/clip.wav"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)


class Job:
    """A manifest of 48 clips and seven items that fail, and the results of an undisturbed run over it."""

    def __init__(self, folder: Path):
        self.folder, self.manifest, self.fifo = folder, folder / "manifest.jsonl", folder / "pipe.wav"
        self.server = ClosingServer()
        os.mkfifo(self.fifo)
        (folder / "corrupt.wav").write_bytes(b"RIFF" + bytes(range(200)))
        (folder / "short.wav").write_bytes(CLIPS[0].read_bytes()[:60])  # can be decoded, and fails in its batch
        (folder / "empty.wav").touch()
        lines = [{"id": f"clip-{i}", "audio": str(CLIPS[i % len(CLIPS)])} for i in range(47)]
        for i in range(0, 47, 5):
            lines[i]["text"] = "What does the person say?"
        lines[17] = {"inputs": lines[17], "parameters": {"max_new_tokens": 2}, "id": lines[17].pop("id")}
        special = {"url": self.server.url, "folder": str(AUDIO)}
        for i, name in enumerate(WRONG):
            lines.insert(9 * i + 4, {"id": name, "audio": special.get(name, name)})
        lines.append({"id": "last", "audio": self.fifo.name})
        text = [json.dumps(line) + "\n" for line in lines]
        text.insert(BROKEN - 1, '{"id": "broken", "audio":\n')
        self.manifest.write_text("".join(text))
        self.pipe = pipeline(device="cpu")
        self.expected = self.finish(folder / "undisturbed")

    def finish(self, out: Path) -> bytes:
        """Run the job to its end in this process, also from where another has left it."""
        self.feed()
        run_batch(BatchJob(self.manifest, out, batch_size=2), pipe=self.pipe, progress=False)
        return (out / "results.jsonl").read_bytes()

    def feed(self) -> None:
        """Let the last clip be read once."""

        def write():
            with open(self.fifo, "wb") as pipe:
                pipe.write(CLIPS[0].read_bytes())

        threading.Thread(target=write, daemon=True).start()

    def command(self, out: Path) -> list[str]:
        return [str(self.manifest), "--out", str(out), "--batch-size", "2", "--workers", "1", "--device", "cpu"]

    def start(self, out: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "mindone_audio.cli", "batch", *self.command(out)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # As from a terminal; where the tests run in the background SIGINT is ignored.
        return subprocess.Popen(
            command, cwd=ROOT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **streams
        )


pytestmark = pytest.mark.slow  # each starts processes that import MindSpore, and most kill them


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("job"))
    yield job
    job.server.socket.close()


def wait_for(condition, process: subprocess.Popen | None = None):
    end = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < end, "nothing happened"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)
    return value


def answered(out: Path) -> int:
    """How many good results the parts have."""
    return sum(path.read_bytes().count(b'"error": null') for path in out.glob("part-*.jsonl"))


def processes(*words: object) -> dict[int, str]:
    """Running processes whose command line has all the words."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (path / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z" and all(str(word) in line for word in words):
            found[int(path.name)] = line
    return found


def test_an_undisturbed_run(job):
    records = [json.loads(line) for line in job.expected.splitlines()]
    assert len(records) == 55 and set(records[0]) == {"id", "generated_text", "tokens", "seconds", "error"}
    lines = job.manifest.read_text().splitlines()
    ids = [json.loads(line)["id"] if line.endswith("}") else BROKEN for line in lines]
    assert [record["id"] for record in records] == ids
    by_id = {record["id"]: record for record in records}
    errors = {name: record["error"] for name, record in by_id.items() if record["error"]}
    assert set(errors) == {BROKEN, *WRONG} and errors[BROKEN].startswith(f"manifest.jsonl line {BROKEN}: not JSON")
    assert all(message in errors[name] for name, message in WRONG.items())
    assert all(by_id[name]["generated_text"] is None and by_id[name]["tokens"] is None for name in errors)
    for index in (1, 33, 17):
        clip = CLIPS[index % len(CLIPS)]
        text = "What does the person say?" if index % 5 == 0 else None
        alone = job.pipe(str(clip), text=text, return_token_count=True, max_new_tokens=2 if index == 17 else 128)[0]
        record = by_id[f"clip-{index}"]
        assert (record["generated_text"], record["tokens"]) == (alone["generated_text"], alone["tokens"])
        tokens = len(job.pipe.processor.tokenizer(alone["generated_text"])["input_ids"])
        assert record["tokens"] == tokens or index == 17 and record["tokens"] == 2


def test_sampling_does_not_depend_on_the_batch(job, tmp_path):
    settings = {"do_sample": True, "temperature": 2.0, "seed": 5, "max_new_tokens": 8}
    texts = []
    for size in (1, 2):
        out = tmp_path / str(size)
        options = {"batch_size": size, "settings": settings}
        run_batch(BatchJob(list(map(str, CLIPS[:3])), out, **options), pipe=job.pipe, progress=False)
        texts.append([json.loads(line)["generated_text"] for line in (out / "results.jsonl").read_text().splitlines()])
    alone = [job.pipe(str(clip), **settings | {"seed": 5 + i})["generated_text"] for i, clip in enumerate(CLIPS[:3])]
    assert texts[0] == texts[1] == alone


def test_kill_terminate_interrupt(job, tmp_path):
    """One job, disturbed three times and then finished: nothing lost, nothing twice, no process left."""
    out, before = tmp_path / "out", 0
    for signum, status, message in (
        (signal.SIGKILL, -9, ""),
        (signal.SIGTERM, 143, "terminated; what is done is kept"),
        (signal.SIGINT, 130, "interrupted; what is done is kept"),
    ):
        process = job.start(out)
        wait_for(lambda before=before: answered(out) > before, process)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == status, errors
        assert message in errors and "Traceback" not in errors
        assert not before or re.search(rf"{before} of 55 clips are done, \d+ failed and are tried again", errors)
        before = answered(out)
        wait_for(lambda: not processes(out) and not processes("batch.decode_ahead", job.folder))
    merge = cli.main(["batch", "--merge", str(out)])
    assert merge == 1 and not (out / "results.jsonl").exists()
    assert job.finish(out) == job.expected
    assert cli.main(["batch", "--merge", str(out)]) == 1  # items failed


def msrun(job, out: Path, logs: Path, ranks: int, wrapper: bool) -> subprocess.Popen:
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    if wrapper:
        command = ["bash", str(ROOT / "scripts" / "cluster" / "msrun.sh")]
        environment |= {"PYTHON": sys.executable, "RANKS_PER_NODE": str(ranks), "LOG_DIR": str(logs)}
    else:
        command = [str(tools / "msrun"), f"--worker_num={ranks}", f"--local_worker_num={ranks}", "--join=True"]
        command += [f"--log_dir={logs}", "python", "-m", "mindone_audio.cli", "batch"]
    # Not a pipe, which processes that are left behind would keep open.
    with open(logs.with_suffix(".out"), "w") as output:
        return subprocess.Popen([*command, *job.command(out)], env=environment, stdout=output, stderr=output)


@pytest.mark.skipif(shutil.which("msrun", path=Path(sys.executable).parent) is None, reason="no msrun here")
@pytest.mark.long
def test_ranks(job, tmp_path):
    """One job under msrun: msrun killed, a rank killed, the launcher terminated; then three ranks instead of two."""
    out = tmp_path / "out"
    process = msrun(job, out, tmp_path / "killed-msrun", 2, wrapper=False)
    wait_for(lambda: answered(out) > 0, process)
    ranks = set(processes("mindone_audio.cli", out)) - set(processes("msrun", out))
    tails = processes("tail", tmp_path)
    process.kill()
    process.wait()
    wait_for(lambda: not ranks & set(processes(out)))
    for tail in tails:  # which msrun leaves
        os.kill(tail, signal.SIGKILL)
    logs = [path.read_text() for path in (tmp_path / "killed-msrun").glob("worker_*.log")]
    assert len(ranks) == 2 and all("terminated; what is done is kept" in log for log in logs), logs

    done = answered(out)
    process = msrun(job, out, tmp_path / "killed-rank", 2, wrapper=True)
    wait_for(lambda: answered(out) > done, process)
    os.kill(min(set(processes("mindone_audio.cli", out)) - set(processes("msrun", out))), signal.SIGKILL)
    assert process.wait(LIMIT) == 1
    wait_for(lambda: not processes(tmp_path))

    done = answered(out)
    process = msrun(job, out, tmp_path / "terminated", 2, wrapper=True)
    wait_for(lambda: len(set(processes("mindone_audio.cli", out)) - set(processes("msrun", out))) == 2, process)
    wait_for(
        lambda: any("clips are done" in p.read_text() for p in (tmp_path / "terminated").glob("worker_*")), process
    )
    process.terminate()
    assert process.wait(LIMIT) == 143
    assert not processes(tmp_path)

    assert not list(out.glob("results.jsonl")) and cli.main(["batch", "--merge", str(out)]) == 1
    job.feed()
    process = msrun(job, out, tmp_path / "three", 3, wrapper=True)
    assert process.wait(LIMIT) == 0, (tmp_path / "three.out").read_text()
    assert sorted(path.name for path in out.glob("part-*")) == ["part-0.jsonl", "part-1.jsonl", "part-2.jsonl"]
    assert "rank 2 of 3: " in (tmp_path / "three" / "worker_2.log").read_text()
    assert cli.main(["batch", "--merge", str(out)]) == 1  # complete, and items failed
    assert (out / "results.jsonl").read_bytes() == job.expected
    assert not processes(tmp_path)

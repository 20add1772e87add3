"""What `benchmark.py serve` sends and to whom: servers in processes, and a client that keeps time."""

import asyncio
import base64
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from benchmark.common import ROOT, BenchmarkError
from benchmark.processes import use_threads

CLIPS = ROOT / "examples" / "audio"
QUESTIONS = ("What's that sound?", "Generate the caption in English:")
NEW_TOKENS = 64  # of each answer
PEER = "transformers serve"
_START, _ANSWER = 180, 300  # seconds that a server may take to start, and a request


@dataclass(frozen=True)
class Server:
    """A server that answers: what it is called here, its address, and what requests call its model."""

    name: str
    url: str
    model: str


@dataclass(frozen=True)
class Answer:
    """What one request got. start: when it was sent; arrivals: when each piece of its text came; in seconds."""

    text: str
    tokens: int
    start: float
    arrivals: tuple[float, ...]


def make_requests(model: Path) -> list[dict]:
    """A request for each question about each clip, whose answer has exactly `NEW_TOKENS`: no end token can come."""
    ends = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    # transformers takes no whole numbers here.
    bias = {str(token): -100.0 for token in (ends if isinstance(ends, list) else [ends])}
    more = {"max_tokens": NEW_TOKENS, "logit_bias": bias, "stream": True, "stream_options": {"include_usage": True}}
    requests = []
    for question in QUESTIONS:
        for clip in sorted(path for path in CLIPS.iterdir() if path.suffix != ".md"):
            audio = {"data": base64.b64encode(clip.read_bytes()).decode(), "format": clip.suffix[1:]}
            content = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": question}]
            requests.append({"messages": [{"role": "user", "content": content}], **more})
    return requests


@contextmanager
def ours(model: Path, threads: int, max_batch: int) -> Iterator[Server]:
    """`mindone-audio serve` in a process of its own, ready."""
    options = ["--model", str(model), "--port", "0", "--max-batch", str(max_batch), "--max-queue", "1000"]
    command = [sys.executable, "-m", "mindone_audio", "serve", *options]
    with _process("mindone-audio serve", command, threads) as (process, output):
        said = _wait(lambda: re.search(r"^Serving (\S+) on (\S+)$", output(), re.MULTILINE), process, output)
        yield Server("mindone-audio serve", said[2], said[1])


@contextmanager
def theirs(model: Path, threads: int, peer: str) -> Iterator[Server]:
    """`transformers serve` of another environment, whose interpreter is `peer`, in a process of its own, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    command = [str(Path(peer).with_name("transformers")), "serve", str(model), *options]
    with _process(PEER, command, threads) as (process, output):
        _wait(lambda: _answers(f"{url}/health"), process, output)
        yield Server(PEER, url, str(model))


def versions(peer: str) -> str:
    """What the peer's environment has."""
    program = "import torch, transformers; print(f'transformers {transformers.__version__}, torch {torch.__version__}')"
    done = subprocess.run([peer, "-c", program], capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"--peer {peer} has no torch and transformers: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


@contextmanager
def _process(name: str, command: list[str], threads: int):
    """A process, and a function that gives what it has said; it is ended afterwards."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as said:
        begin = partial(use_threads, threads)  # its set of cores
        process = subprocess.Popen(
            command, stdout=said, stderr=said, cwd=ROOT, env=environment, preexec_fn=begin, start_new_session=True
        )

        def output() -> str:
            return os.pread(said.fileno(), 1 << 20, 0).decode(errors="replace")

        try:
            yield process, output
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(there, process: subprocess.Popen, output):
    """Wait for something that a process does."""
    end = time.monotonic() + _START
    while not (found := there()):
        if process.poll() is not None or time.monotonic() > end:
            last = " ".join(output().strip().splitlines()[-1:])
            raise BenchmarkError(f"{process.args[0]} did not start: {last}")
        time.sleep(0.1)
    return found


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def send(server: Server, requests: Sequence[dict], clients: int, count: int) -> tuple[float, list[Answer]]:
    """Send `count` requests, the given ones in turn, by so many clients, each of which waits for its answer before it
    sends the next one. Returns the seconds until the last answer, and the answers in the order of the requests."""
    bodies = [json.dumps({"model": server.model, **request}).encode() for request in requests]
    return asyncio.run(_send(server, bodies, clients, count))


async def _send(server: Server, bodies: list[bytes], clients: int, count: int) -> tuple[float, list[Answer]]:
    numbers, answers = iter(range(count)), [None] * count
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=_ANSWER, limits=limits, trust_env=False) as http:

        async def work() -> None:
            for number in numbers:
                answers[number] = await _ask(http, server, bodies[number % len(bodies)])

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        return time.perf_counter() - start, answers


async def _ask(http: httpx.AsyncClient, server: Server, body: bytes) -> Answer:
    start, pieces = time.perf_counter(), []
    url, headers = f"{server.url}/v1/chat/completions", {"content-type": "application/json"}
    async with http.stream("POST", url, content=body, headers=headers) as response:
        async for piece in response.aiter_raw():
            pieces.append((time.perf_counter(), piece))
    if response.status_code != 200:
        said = b"".join(piece for _, piece in pieces)[:300].decode(errors="replace")
        raise BenchmarkError(f"{server.name} answered {response.status_code}: {said}")
    return read_answer(server.name, start, pieces)


def read_answer(name: str, start: float, pieces: Sequence[tuple[float, bytes]]) -> Answer:
    """An answer of pieces of server-sent events, each with the moment when it came. Done when all have come, so that
    reading takes no time from what is measured."""
    rest, text, arrivals, tokens = b"", "", [], 0
    for moment, piece in pieces:
        *frames, rest = (rest + piece).split(b"\n\n")
        for frame in frames:
            if not frame.startswith(b"data: {"):
                continue  # [DONE]
            chunk = json.loads(frame.removeprefix(b"data: "))
            if "error" in chunk:
                raise BenchmarkError(f"{name} broke an answer off: {chunk['error']}")
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            if said := "".join(choice["delta"].get("content") or "" for choice in chunk["choices"]):
                text += said
                arrivals.append(moment)
    return Answer(text, tokens, start, tuple(arrivals))


def check_answers(server: Server, answers: Sequence[Answer], texts: Sequence[str], clients: int) -> None:
    """`BenchmarkError` for an answer that is not the text that its request got alone, or has another length."""
    for number, answer in enumerate(answers):
        alone = texts[number % len(texts)]
        if answer.text != alone:
            raise BenchmarkError(
                f"{server.name} gave {answer.text!r} to request {number + 1} of {clients} clients, and {alone!r} alone"
            )
        if answer.tokens != NEW_TOKENS:
            raise BenchmarkError(f"{server.name} gave an answer of {answer.tokens} tokens, not {NEW_TOKENS}")


def histogram(url: str, part: str) -> dict[float, float]:
    """How many parts of the scheduler's turns took at most so many seconds, of /metrics; empty where it tells none."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    found = re.findall(rf'^mindone_audio:{part}_seconds_bucket{{le="([^"]+)"}} (\S+)$', text, re.MULTILINE)
    return {float(edge): float(count) for edge, count in found}


def grown(before: dict[float, float], after: dict[float, float]) -> tuple[float, float]:
    """The median of what came between two histograms, linear within its bucket, and the upper edge of the longest."""
    counts = {edge: after[edge] - before[edge] for edge in after}
    half, low, below = max(counts.values(), default=0) / 2, 0.0, 0.0
    median = longest = 0.0
    for edge, count in counts.items():
        if count > below:
            longest = edge
            if below < half <= count:
                median = low + (edge - low) * (half - below) / (count - below)
        low, below = edge, count
    return median, longest

"""The first ten minutes on a machine: all that can be checked, step by step, and one report to attach to an issue.

Every step is a process of its own, so that one that hangs or crashes costs its own result. Standard library only, but
for `answers`, which is what the last step runs.
"""

import getpass
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mindone_audio.checkpoints import demo_checkpoint

RECORDING = Path(__file__).parents[2] / "tests" / "recordings" / "demo.safetensors"  # where this is a checkout
QUESTION = "What's that sound?"
_TOKENS = 64  # whose time is measured
_LARGE = 4e9  # parameters from which on the time of a token is compared with that of 7B models
# What others publish of one card at batch 1, in half precision; nobody here has measured any.
_ANCHORS = (
    "a token of a 7B to 8B model on a 910B, as others report it: 23 ms (vllm-ascend, Qwen2.5-VL-7B), 51 ms (MindONE, "
    "Qwen3-8B in graph mode); above 120 ms look at the binding of cores (taskset), at NPU health, and at what else runs"
)


@dataclass(frozen=True)
class Step:
    """One step: what python runs, for how many seconds at most, and what its output must have. needed: without it the
    later ones cannot work either."""

    name: str
    arguments: tuple[str, ...]
    limit: float
    expected: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Outcome:
    """status: "ok", "warnings" or "failed"; output: what the step printed."""

    step: Step
    status: str
    seconds: float
    output: str


def steps(device: str, model: str | None, dtype: str | None) -> list[Step]:
    """The chain for a device as `set_device` takes it, and for a model whose answers are timed (None: the bundled)."""
    on = ("--device", device)
    check = f"from mindone_audio.machine.device import set_device; set_device({device!r}); "
    check += "import mindspore; mindspore.run_check()"
    ask = f"from mindone_audio.proof.first_run import answers\nfor line in answers({model!r}, {device!r}, {dtype!r}):\n"
    ask += "    print(line, flush=True)"
    timed = () if device == "cpu" else ("--time",)
    parity = ("parity", str(RECORDING), "--model", str(demo_checkpoint()))
    chain = [
        Step("versions, driver, devices", ("-m", "mindone_audio", "doctor", *on), 120),
        Step("MindSpore's own check", ("-c", check), 300, expected="successfully", needed=True),
        Step("operations", ("-m", "mindone_audio", "doctor", "--ops", *timed, *on), 900),
        Step("parity with PyTorch", ("-m", "mindone_audio", *parity, *on), 300),
        Step("answers", ("-c", ask), 900 if model is None else 3600),
    ]
    return [step for step in chain if step.name != "parity with PyTorch" or RECORDING.exists()]


def run(chain: list[Step]) -> Iterator[Outcome]:
    """Run steps one after the other; those after a needed one that failed are left out."""
    for step in chain:
        start = time.perf_counter()
        status, output = _run_step(step)
        yield Outcome(step, status, time.perf_counter() - start, output)
        if step.needed and status == "failed":
            return


def _run_step(step: Step) -> tuple[str, str]:
    # As the commands have it; and a crash says where it was.
    environment = {"USE_TORCH": "0", "GLOG_v": "3", "PYTHONFAULTHANDLER": "1"} | os.environ
    try:
        done = subprocess.run(
            [sys.executable, *step.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=step.limit,
        )
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode("utf-8", "replace")
        return "failed", f"{output}\nnot done after {step.limit:g} s: it was ended"
    output = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode < 0 or done.returncode > 128:
        return "failed", f"{output}\nit crashed, exit status {done.returncode}"
    if done.returncode == 1 and "doctor" in step.arguments:
        return "warnings", output
    return "failed" if done.returncode or step.expected not in output else "ok", output


def report(outcomes: list[Outcome], left_out: list[Step]) -> str:
    """The text of the report, without names of people, hosts and folders."""
    parts = []
    for outcome in outcomes:
        parts.append(f"## {outcome.step.name}: {outcome.status}, {outcome.seconds:.1f} s\n\n{outcome.output}\n")
    parts += [f"## {step.name}: left out, since MindSpore does not run\n" for step in left_out]
    return without_personal_data("# mindone-audio doctor --run\n\n" + "\n".join(parts))


def without_personal_data(text: str) -> str:
    """A text without this user's name, home and working folder, this machine's name, addresses and access tokens."""
    package = str(Path(__file__).parents[2])
    places = {sys.prefix: "<python>", package: "<mindone_audio>", os.getcwd(): "<here>", os.path.expanduser("~"): "~"}
    for place, word in sorted(places.items(), key=lambda entry: -len(entry[0])):
        if len(place.strip("/")) > 3 or place.startswith("/root"):
            text = text.replace(place, word)
    names = {_user(): "<user>", socket.gethostname(): "<host>"}
    for name, word in names.items():
        if name and name != "root":
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", word, text)
    text = re.sub(r"/(home|Users)/[^/\s:,;'\"]+", r"/\1/<user>", text)
    text = re.sub(r"\bhf_\w{8,}", "<token>", text)
    text = re.sub(r"[\w.+-]+@[\w-]+\.[\w.]+", "<address>", text)
    text = re.sub(r"\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b", "<address>", text)
    return re.sub(r"(?<![\d.])(?!127\.)(?:\d{1,3}\.){3}\d{1,3}(?![\d.])", _address, text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without an entry in /etc/passwd
        return ""


def _address(match: re.Match) -> str:
    """Versions have four numbers as well: 25.5.0.1 is no address that a machine has."""
    parts = [int(part) for part in match[0].split(".")]
    private = parts[0] in (10, 192) or (parts[0] == 172 and 16 <= parts[1] < 32)
    return "<address>" if private or (max(parts) <= 255 and min(parts[:2]) > 30) else match[0]


def answers(model: str | None, device: str, dtype: str | None) -> Iterator[str]:
    """Lines that say how long a model takes to load, for a first and a second answer, and for a token.

    Raises `RuntimeError` where the second answer is another one.
    """
    import mindspore as ms
    import numpy as np

    from mindone_audio.pipelines import pipeline

    start = time.perf_counter()
    pipe = pipeline(model=model, device=device, mindspore_dtype=dtype and getattr(ms, dtype))
    count = sum(parameter.size for parameter in pipe.model.get_parameters())
    said = f"{count / 1e6:,.1f} million parameters in {pipe.model.dtype}"
    yield f"loaded in {time.perf_counter() - start:.1f} s: {said}"
    clip = np.tile(np.sin(np.arange(8000) * 2 * np.pi * 1000 / 16000) * (np.arange(8000) < 4000), 6).astype(np.float32)

    def seconds(**settings) -> tuple[float, str]:
        begin = time.perf_counter()
        text = pipe(clip * 0.3, QUESTION, **settings)["generated_text"]
        return time.perf_counter() - begin, text

    first, text = seconds()
    second, again = seconds()
    yield f"first answer: {first:.2f} s, with what was compiled for it: {text!r}"
    yield f"second answer: {second:.2f} s: {again!r}"
    one, many = (seconds(max_new_tokens=n, min_new_tokens=n)[0] for n in (1, _TOKENS + 1))
    yield f"a token: {(many - one) / _TOKENS * 1000:.1f} ms, of {_TOKENS}"
    yield _ANCHORS if count >= _LARGE else f"(to compare it, give --model a 7B one: {_ANCHORS})"
    if text != again:
        raise RuntimeError("the second answer is not the first: something that a graph has kept is wrong")

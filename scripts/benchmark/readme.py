"""`benchmark.py readme`: run all that the table of docs/performance.md shows, each step once, and rewrite the table.

Every step leaves a JSON file, and what has one is not run again, so that an interrupted run goes on where it was.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.common import ROOT, BenchmarkError, Figure, cells, machine_line

DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"
COLUMNS = ("figure", "ours", "PyTorch", "ratio", "limit")
SMOKE_NOTE = "A smoke run of tiny models with one round: the form of the table, no measurement."
EXPLANATION = (
    "`python scripts/benchmark.py readme` measures this and writes it here. Smaller is better, but not for GB/s and "
    "clips/s. PyTorch is the better of its eager and sdpa attention in a round. A ratio is the median over the rounds "
    "of ours / PyTorch, or of what the figure says, within a round."
)


@dataclass(frozen=True)
class Step:
    """A run of a subcommand: its arguments, and those that replace them to try the suite on tiny models."""

    name: str
    arguments: str
    smoke: str


_TINY = "generate --random demo --rounds 1 --new-tokens 4"
STEPS = (
    Step("decode", "generate --random small", _TINY),
    Step("decode_8", "generate --random small --batch 8", f"{_TINY} --batch 8"),
    Step("decode_16", "generate --random small --batch 16", f"{_TINY} --batch 16"),
    Step("decode_1b", "generate --random 1b --bandwidth", f"{_TINY} --bandwidth"),
    Step("prefill", "generate --random whisper-1b --clip-seconds 30 --new-tokens 8", f"{_TINY} --clip-seconds 10"),
    Step("long", "generate --random small --filled 512 1024 2048 4096 8192", f"{_TINY} --filled 32 64"),
    Step("start", "start", "start --rounds 1"),
    Step("features", "features --rounds 31", "features --seconds 2 --rounds 1"),
    Step("batch", "batch", "batch --clips 4 --batch-size 2 --rounds 1"),
)


def run_step(step: Step, folder: Path, smoke: bool) -> None:
    """Run a step that has no JSON yet."""
    file = folder / f"{step.name}.json"
    if file.exists():
        print(f"{step.name}: {file} is there, kept")
        return
    arguments = (step.smoke if smoke else step.arguments).split()
    print(f"\n{step.name}: benchmark.py {' '.join(arguments)}", flush=True)
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *arguments, "--json", str(file)]
    if importlib.util.find_spec("matplotlib") is not None:
        command += ["--plot", str(file.with_suffix(".png"))]
    status = subprocess.run(command).returncode
    if status:
        raise BenchmarkError(f"step {step.name} ended with status {status}: the same command goes on with it")


def read_results(folder: Path) -> list[dict]:
    """The JSON files of a folder: those of the steps in their order, then what else has figures."""
    names = [step.name for step in STEPS]
    files = sorted(
        folder.glob("*.json"),
        key=lambda file: (names.index(file.stem) if file.stem in names else len(names), file.stem),
    )
    try:
        results = [json.loads(file.read_text()) for file in files]
    except ValueError as error:
        raise BenchmarkError(f"a JSON file in {folder} is damaged ({error}): remove it to measure it again") from None
    return [result for result in results if "figures" in result]


def table(results: Sequence[dict], smoke: bool = False) -> str:
    """The table: a row for each figure that has a limit, under it the machine and what the runs have to say."""
    rows = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for result in results:
        for figure in (Figure(**fields) for fields in result["figures"]):
            if figure.limit is None:
                continue
            row = cells(figure)
            row[-1] = row[-1].replace("missed", "**missed**")
            rows.append("| " + " | ".join(row) + " |")
    machines = [machine_line(result["machine"]) for result in results]
    own = [result["note"] for result in results if result.get("note")]
    return "\n".join(
        [*[SMOKE_NOTE, ""] * smoke, *rows, "", "; or ".join(dict.fromkeys(machines)) + ".", "", EXPLANATION, *own]
    )


def rewrite(text: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    """The text with the content between its markers, and all else as it was."""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise BenchmarkError(f"the table's place is not marked: put {begin} and {end} once, each on a line of its own")
    newline = "\r\n" if "\r\n" in text else "\n"
    head, tail = text.partition(begin)[0], text.partition(end)[2]
    return newline.join([head + begin, *content.split("\n"), end + tail])


def run_readme(options: argparse.Namespace) -> None:
    """`readme`: all steps, then the table."""
    document = Path(options.file)
    before = document.read_bytes().decode()
    rewrite(before, "")  # before hours of measuring
    folder = Path(options.json_folder or ROOT / "build" / ("benchmark_smoke" if options.smoke else "benchmark"))
    folder.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots, because matplotlib is not installed (tests/requirements.txt)")
    for step in STEPS:
        run_step(step, folder, options.smoke)
    content = table(read_results(folder), options.smoke)
    document.write_bytes(rewrite(document.read_bytes().decode(), content).encode())
    print(f"\n{content}\n\nwritten to {document}")


def add_readme(subparsers) -> None:
    """The command line of `readme`."""
    parser = subparsers.add_parser("readme", help="run all of it, rewrite the table in docs/performance.md")
    parser.add_argument("--json-folder", metavar="DIR", help="of each step's figures (default: build/benchmark)")
    parser.add_argument("--file", default=str(DOCUMENT), help="that has the table (default: docs/performance.md)")
    parser.add_argument("--smoke", action="store_true", help="try it all on tiny models, for build/benchmark_smoke")
    parser.set_defaults(run=run_readme)

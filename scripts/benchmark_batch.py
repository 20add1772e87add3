"""`benchmark.py batch`: clips a second one by one, in batches, and in batches by two processes that share the cores.

The clips are the bundled ones, over and over. Every contender is loaded and has compiled its graphs before the clock
starts; what counts is the median over the rounds of the ratio within a round. All must give the same texts.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "Generate the caption in English:"


def write_manifest(path: Path, clips: int) -> None:
    """A manifest of so many clips."""
    files = sorted((ROOT / "examples" / "audio").iterdir())
    lines = [json.dumps({"audio": str(files[i % len(files)]), "text": QUESTION}) + "\n" for i in range(clips)]
    path.write_text("".join(lines))


def contender(connection, threads: int, model: str | None) -> None:
    """In a process of its own: load, then answer each request (manifest, out, batch size, rank, ranks) with seconds.

    A batch size of 0 is one call of the pipeline after the other, as a loop in a script would be.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from mindone_audio import pipeline, run_batch
    from mindone_audio.batch import BatchJob
    from mindone_audio.batch.job import Shard

    pipe = pipeline(model=model, device="cpu")
    connection.send("ready")
    while (request := connection.recv()) is not None:
        manifest, out, batch_size, rank, ranks = request
        begun = time.perf_counter()
        if batch_size:
            run_batch(
                BatchJob(manifest, out, batch_size=batch_size), pipe=pipe, shard=Shard(rank, ranks), progress=False
            )
        else:
            items = [json.loads(line) for line in Path(manifest).read_text().splitlines()]
            texts = [pipe(item)[0]["generated_text"] for item in items]
            Path(out).mkdir()
            (Path(out) / "results.jsonl").write_text("".join(json.dumps({"generated_text": t}) + "\n" for t in texts))
        connection.send(time.perf_counter() - begun)


class Ranks:
    """Processes that work on one job together, each with an equal part of the cores."""

    def __init__(self, count: int, model: str | None):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        context = multiprocessing.get_context("spawn")
        self.connections, self.processes = [], []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=contender, args=(theirs, max(1, cores // count), model))
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)
        for connection in self.connections:
            connection.recv()

    def run(self, manifest: Path, out: Path, batch_size: int) -> tuple[float, list[str]]:
        """Seconds until the last has ended, and the texts in the order of the manifest."""
        from mindone_audio.batch import merge

        for rank, connection in enumerate(self.connections):
            connection.send((str(manifest), str(out), batch_size, rank, len(self.connections)))
        seconds = max([connection.recv() for connection in self.connections])
        path = merge(out).path if len(self.connections) > 1 else out / "results.jsonl"
        return seconds, [json.loads(line)["generated_text"] for line in path.read_text().splitlines()]

    def close(self) -> None:
        """End the processes."""
        for connection, process in zip(self.connections, self.processes):
            try:
                connection.send(None)
            except OSError:
                process.terminate()
            process.join()


def measure_batch(options, folder: Path) -> dict[str, list[float]]:
    """Seconds of every round by contender."""
    manifest = folder / "manifest.jsonl"
    write_manifest(manifest, options.clips)
    teams = {"one by one": Ranks(1, options.model), "2 processes": Ranks(2, options.model)}
    teams["batches"] = teams["one by one"]
    seconds: dict[str, list[float]] = {name: [] for name in ("one by one", "batches", "2 processes")}
    try:
        texts = None
        for turn in range(-1, options.rounds):  # the first round compiles
            for name in seconds:
                batch_size = 0 if name == "one by one" else options.batch_size
                taken, found = teams[name].run(manifest, folder / f"{turn} {name}", batch_size)
                texts = found if texts is None else texts
                if found != texts:
                    raise OSError(f"{name} gave other texts than one by one")
                if turn >= 0:
                    seconds[name].append(taken)
    finally:
        for team in set(teams.values()):
            team.close()
    return seconds


def run_batches(options) -> None:
    """`batch`: the same clips by each contender, in turn."""
    with tempfile.TemporaryDirectory(prefix="benchmark") as scratch:
        seconds = measure_batch(options, Path(scratch))
    print(f"{options.clips} clips, batches of {options.batch_size}, {options.rounds} rounds; seconds are medians\n")
    print(f"{'':<14}{'seconds':>9}{'clips/s':>9}")
    for name, rounds in seconds.items():
        median = statistics.median(rounds)
        print(f"{name:<14}{median:>9.2f}{options.clips / median:>9.1f}")
    for name, other in (("batches", "one by one"), ("2 processes", "batches"), ("2 processes", "one by one")):
        ratios = [b / a for a, b in zip(seconds[name], seconds[other])]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name} / {other}: {statistics.median(ratios):.2f} times the clips a second {spread}")


def add_batch(subparsers) -> None:
    """The command line of `batch`."""
    parser = subparsers.add_parser("batch", help="many clips: one by one, in batches, and by two processes")
    parser.add_argument("--clips", type=int, default=64, help="how many (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="clips at a time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of all contenders (default: %(default)s)")
    parser.add_argument("--model", help="checkpoint folder (default: the bundled demo checkpoint)")
    parser.set_defaults(run=run_batches)

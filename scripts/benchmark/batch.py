"""`benchmark.py batch`: clips a second one by one, in batches, in batches by two ranks that share the cores, and by a
plain loop of transformers on PyTorch.

The clips are the bundled ones, over and over. Every contender is loaded and has compiled its graphs before the clock
starts; what counts is the median over the rounds of the ratio within a round. All must give the same texts.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmark.common import (
    ROOT,
    BenchmarkError,
    Figure,
    add_common,
    at_least,
    check_common,
    compare,
    cores,
    finish,
    machine,
    paired,
    plot,
)
from benchmark.processes import Team, order, show_progress

QUESTION = "Generate the caption in English:"
NEW_TOKENS = 128  # at most, the pipeline's own number
BATCHES_LIMIT = 2  # at least so many times the clips a second of one by one, for jobs of LIMITED
LIMITED = (64, 16)  # at least so many clips, and so many at a time
# Contender: the children that work on it together.
TEAMS = {
    "one by one": ("rank 0 of 1",),
    "batches": ("rank 0 of 1",),
    "2 processes": ("rank 0 of 2", "rank 1 of 2"),
    "PyTorch": ("PyTorch",),
}
COMPARED = (
    ("batches", "one by one"),
    ("2 processes", "batches"),
    ("2 processes", "one by one"),
    ("batches", "PyTorch"),
    ("2 processes", "PyTorch"),
)


def write_manifest(path: Path, clips: int) -> None:
    """A manifest of so many clips."""
    files = sorted((ROOT / "examples" / "audio").iterdir())
    lines = [json.dumps({"audio": str(files[i % len(files)]), "text": QUESTION}) + "\n" for i in range(clips)]
    path.write_text("".join(lines))


def rank(number: int, ranks: int, threads: int, model: str | None) -> Callable:
    """Load, then answer each request (manifest, out, batch size) with seconds.

    A batch size of 0 is one call of the pipeline after the other, as a loop in a script would be.
    """
    use_own_threads(threads)
    from mindone_audio import pipeline, run_batch
    from mindone_audio.batch import BatchJob
    from mindone_audio.batch.job import Shard

    pipe = pipeline(model=model, device="cpu")

    def answer(request: tuple) -> float:
        manifest, out, batch_size = request
        begun = time.perf_counter()
        if batch_size:
            job = BatchJob(manifest, out, batch_size=batch_size, settings={"max_new_tokens": NEW_TOKENS})
            run_batch(job, pipe=pipe, shard=Shard(number, ranks), progress=False)
        else:
            write_texts(out, [pipe(item, max_new_tokens=NEW_TOKENS)[0]["generated_text"] for item in read(manifest)])
        return time.perf_counter() - begun

    return answer


def torch_loop(threads: int, model: str | None) -> Callable:
    """transformers' model and processor, one clip after the other, as its documentation has it; answers as `rank`."""
    use_own_threads(threads)
    import torch
    from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

    from mindone_audio import load_audio
    from mindone_audio.checkpoints import demo_checkpoint

    torch.set_num_threads(threads)
    folder = model or demo_checkpoint()
    network = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = Qwen2AudioProcessor.from_pretrained(folder)

    @torch.no_grad()
    def one(item: dict) -> str:
        content = [{"type": "audio", "audio_url": item["audio"]}, {"type": "text", "text": item["text"]}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        clip = load_audio(item["audio"])
        inputs = processor(text=prompt, audio=[clip], sampling_rate=16000, return_tensors="pt")
        tokens = network.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    def answer(request: tuple) -> float:
        manifest, out, _ = request
        begun = time.perf_counter()
        write_texts(out, [one(item) for item in read(manifest)])
        return time.perf_counter() - begun

    return answer


def use_own_threads(count: int) -> None:
    """As the ranks of a job have it: only told how many, and not tied to the same cores."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)


def read(manifest: str) -> list[dict]:
    """The entries of a manifest."""
    return [json.loads(line) for line in Path(manifest).read_text().splitlines()]


def write_texts(out: str, texts: list[str]) -> None:
    """A results file that has texts alone."""
    Path(out).mkdir()
    lines = [json.dumps({"generated_text": text}) + "\n" for text in texts]
    (Path(out) / "results.jsonl").write_text("".join(lines))


def work(team: Team, children: tuple[str, ...], manifest: Path, out: Path, batch_size: int) -> tuple[float, list[str]]:
    """One contender's turn: seconds until its last rank has ended, and the texts in the order of the manifest."""
    from mindone_audio.batch import merge

    for name in children:
        team[name].send((str(manifest), str(out), batch_size))
    seconds = max([team[name].answer() for name in children])
    path = merge(out).path if len(children) > 1 else out / "results.jsonl"
    return seconds, [entry["generated_text"] for entry in read(path)]


def measure_batch(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of every round by contender."""
    manifest = folder / "manifest.jsonl"
    write_manifest(manifest, options.clips)
    starts: dict[str, tuple] = {"PyTorch": (torch_loop, cores(), options.model)}
    for ranks in (1, 2):
        threads = max(1, cores() // ranks)
        starts |= {f"rank {i} of {ranks}": (rank, i, ranks, threads, options.model) for i in range(ranks)}
    seconds: dict[str, list[float]] = {name: [] for name in TEAMS}
    texts = None
    with Team(starts) as team:
        for turn in range(-1, options.rounds):  # the first round compiles
            show_progress(f"round {turn + 1} of {options.rounds}")
            for name in order(list(TEAMS), max(turn, 0)):
                batch_size = 0 if name == "one by one" else options.batch_size
                taken, found = work(team, TEAMS[name], manifest, folder / f"{turn} {name}", batch_size)
                texts = found if texts is None else texts
                if found != texts:
                    place = next(i for i, (a, b) in enumerate(zip(found, texts)) if a != b)
                    raise BenchmarkError(f"{name} gave {found[place]!r} for clip {place + 1}, others {texts[place]!r}")
                if turn >= 0:
                    seconds[name].append(taken)
    show_progress("")
    return seconds


def make_figures(seconds: dict[str, list[float]], clips: int, batch_size: int) -> list[Figure]:
    """Clips a second: batches and ranks to a loop of ours (at least twice as many), then to PyTorch's."""
    rates = {name: [clips / taken for taken in rounds] for name, rounds in seconds.items()}
    name = "batch job, clips/s; ratio: to one by one by ours"
    times = statistics.median(paired(rates["batches"], rates["one by one"]))
    limit = BATCHES_LIMIT if clips >= LIMITED[0] and batch_size >= LIMITED[1] else None
    figures = [Figure(name, statistics.median(rates["batches"]), None, times, limit, at_least=True)]
    for name, label in (("one by one", "one by one"), ("batches", "1 rank"), ("2 processes", "2 ranks")):
        figures.append(compare(f"batch job, clips/s, {label}; PyTorch: one by one", rates[name], rates["PyTorch"]))
    return figures


def run_batches(options: argparse.Namespace) -> None:
    """`batch`: the same clips by each contender, in turn."""
    check_common(options)
    if options.model and not (Path(options.model) / "config.json").exists():
        raise BenchmarkError(f"no checkpoint in {options.model} (no config.json): correct --model, or leave it out")
    found = machine(cores())
    with tempfile.TemporaryDirectory(prefix="benchmark") as scratch:
        seconds = measure_batch(options, Path(scratch))
    print(f"{options.clips} clips, batches of {options.batch_size}, {options.rounds} rounds; seconds are medians\n")
    print(f"{'':<14}{'seconds':>9}{'clips/s':>9}")
    for name, rounds in seconds.items():
        median = statistics.median(rounds)
        print(f"{name:<14}{median:>9.2f}{options.clips / median:>9.1f}")
    for name, other in COMPARED:
        ratios = paired(seconds[other], seconds[name])
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name} / {other}: {statistics.median(ratios):.2f} times the clips a second {spread}")
    setting = {name: getattr(options, name) for name in ("clips", "batch_size", "rounds", "model")}
    figures = make_figures(seconds, options.clips, options.batch_size)
    finish(options, {**setting, "machine": found, "seconds": seconds}, figures)
    if options.plot:
        rates = {name: {"clips/s": options.clips / statistics.median(rounds)} for name, rounds in seconds.items()}
        plot(options.plot, f"{options.clips} clips", "clips a second", rates)


def add_batch(subparsers) -> None:
    """The command line of `batch`."""
    parser = subparsers.add_parser("batch", help="many clips: one by one, in batches, by two ranks, and by PyTorch")
    parser.add_argument("--clips", type=at_least(1), default=64, help="how many (default: %(default)s)")
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="clips at a time (default: %(default)s)")
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder (default: the bundled demo checkpoint)")
    add_common(parser, run_batches, threads=False)

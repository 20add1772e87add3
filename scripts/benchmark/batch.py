"""`benchmark.py batch`: clips a second one by one, in batches, in batches by two ranks that share the cores, and by
transformers on PyTorch, one by one and in batches of clips of like lengths.

The clips are the bundled ones, over and over, or with --seconds made of them in different lengths. Every contender is
loaded and has compiled its graphs before the clock starts; what counts is the median over the rounds of the ratio
within a round. All must give the same texts.
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
TORCH_LIMIT = 1.5  # the same, of PyTorch's batches, for such jobs of clips of different lengths
RANKS_LIMIT = 1.0  # the same, of two ranks to one
LIMITED = (64, 16)  # at least so many clips, and so many at a time
# Contender: the children that work on it together.
TEAMS = {
    "one by one": ("rank 0 of 1",),
    "batches": ("rank 0 of 1",),
    "2 processes": ("rank 0 of 2", "rank 1 of 2"),
    "PyTorch": ("PyTorch",),
    "PyTorch in batches": ("PyTorch",),
}
ONE_BY_ONE = ("one by one", "PyTorch")
COMPARED = (
    ("batches", "one by one"),
    ("2 processes", "batches"),
    ("2 processes", "one by one"),
    ("batches", "PyTorch"),
    ("2 processes", "PyTorch"),
    ("batches", "PyTorch in batches"),
    ("2 processes", "PyTorch in batches"),
)


def write_manifest(path: Path, clips: int, seconds: list[float] | None) -> None:
    """A manifest of so many clips, which are made beside it in lengths between these two, if there are any."""
    files = sorted((ROOT / "examples" / "audio").iterdir())
    chosen = [files[i % len(files)] for i in range(clips)]
    if seconds is not None:
        chosen = make_clips(path.parent, chosen, seconds)
    path.write_text("".join(json.dumps({"audio": str(file), "text": QUESTION}) + "\n" for file in chosen))


def make_clips(folder: Path, files: list[Path], seconds: list[float]) -> list[Path]:
    """Each file, cut or repeated to a random length."""
    import numpy as np
    import soundfile

    rng, made = np.random.default_rng(0), []
    for number, file in enumerate(files):
        samples, rate = soundfile.read(file, dtype="int16")
        made.append(folder / f"{number}.wav")
        soundfile.write(made[-1], np.resize(samples, int(rng.uniform(*seconds) * rate)), rate)
    return made


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
    """transformers' model and processor, as its documentation has it; answers as `rank`.

    In batches the clips go by their lengths, so that little is padded.
    """
    use_own_threads(threads)
    import torch
    from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

    from mindone_audio import load_audio
    from mindone_audio.checkpoints import demo_checkpoint

    torch.set_num_threads(threads)
    folder = model or demo_checkpoint()
    network = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = Qwen2AudioProcessor.from_pretrained(folder)

    processor.tokenizer.padding_side = "left"

    @torch.no_grad()
    def texts(items: list[dict], clips: list) -> list[str]:
        prompts = []
        for item in items:
            content = [{"type": "audio", "audio_url": item["audio"]}, {"type": "text", "text": item["text"]}]
            chat = [{"role": "user", "content": content}]
            prompts.append(processor.apply_chat_template(chat, add_generation_prompt=True))
        inputs = processor(text=prompts, audio=clips, sampling_rate=16000, return_tensors="pt", padding=True)
        tokens = network.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]

    def answer(request: tuple) -> float:
        manifest, out, batch_size = request
        begun = time.perf_counter()
        items = read(manifest)
        clips = [load_audio(item["audio"]) for item in items]
        by_length = sorted(range(len(items)), key=lambda i: len(clips[i])) if batch_size else range(len(items))
        found, size = [""] * len(items), batch_size or 1
        for first in range(0, len(items), size):
            some = by_length[first : first + size]
            for i, text in zip(some, texts([items[i] for i in some], [clips[i] for i in some])):
                found[i] = text
        write_texts(out, found)
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
    write_manifest(manifest, options.clips, options.seconds)
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
                batch_size = 0 if name in ONE_BY_ONE else options.batch_size
                taken, found = work(team, TEAMS[name], manifest, folder / f"{turn} {name}", batch_size)
                texts = found if texts is None else texts
                if found != texts:
                    place = next(i for i, (a, b) in enumerate(zip(found, texts)) if a != b)
                    raise BenchmarkError(f"{name} gave {found[place]!r} for clip {place + 1}, others {texts[place]!r}")
                if turn >= 0:
                    seconds[name].append(taken)
    show_progress("")
    return seconds


def make_figures(seconds: dict[str, list[float]], clips: int, batch_size: int, lengths: bool) -> list[Figure]:
    """Clips a second: batches and ranks to a loop of ours (at least twice as many), then to PyTorch's. lengths: whether
    the clips have different ones."""
    rates = {name: [clips / taken for taken in rounds] for name, rounds in seconds.items()}
    name = "batch job, clips/s; ratio: to one by one by ours"
    times = statistics.median(paired(rates["batches"], rates["one by one"]))
    limited = clips >= LIMITED[0] and batch_size >= LIMITED[1]
    limit = BATCHES_LIMIT if limited and not lengths else None
    figures = [Figure(name, statistics.median(rates["batches"]), None, times, limit, at_least=True)]
    for name, label in (("one by one", "one by one"), ("batches", "1 rank"), ("2 processes", "2 ranks")):
        figures.append(compare(f"batch job, clips/s, {label}; PyTorch: one by one", rates[name], rates["PyTorch"]))
    limit = TORCH_LIMIT if limited and lengths else None
    theirs = rates["PyTorch in batches"]
    for name, label in (("batches", "1 rank"), ("2 processes", "2 ranks")):
        title = f"batch job, clips/s, {label}; PyTorch: batches by length"
        figures.append(compare(title, rates[name], theirs, limit=limit, at_least=True))
    times, limit = statistics.median(paired(rates["2 processes"], rates["batches"])), RANKS_LIMIT if limited else None
    title = "batch job, clips/s, 2 ranks; ratio: to 1 rank"
    return [*figures, Figure(title, statistics.median(rates["2 processes"]), None, times, limit, at_least=True)]


def run_batches(options: argparse.Namespace) -> None:
    """`batch`: the same clips by each contender, in turn."""
    check_common(options)
    if options.model and not (Path(options.model) / "config.json").exists():
        raise BenchmarkError(f"no checkpoint in {options.model} (no config.json): correct --model, or leave it out")
    if options.seconds is not None and not 0.1 <= options.seconds[0] <= options.seconds[1] <= 3600:
        least, most = options.seconds
        raise BenchmarkError(f"--seconds {least:g} {most:g}: give the least first, from 0.1 to 3600")
    found = machine(cores())
    with tempfile.TemporaryDirectory(prefix="benchmark") as scratch:
        seconds = measure_batch(options, Path(scratch))
    print(f"{options.clips} clips, batches of {options.batch_size}, {options.rounds} rounds; seconds are medians\n")
    print(f"{'':<19}{'seconds':>9}{'clips/s':>9}")
    for name, rounds in seconds.items():
        median = statistics.median(rounds)
        print(f"{name:<19}{median:>9.2f}{options.clips / median:>9.1f}")
    for name, other in COMPARED:
        ratios = paired(seconds[other], seconds[name])
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name} / {other}: {statistics.median(ratios):.2f} times the clips a second {spread}")
    setting = {name: getattr(options, name) for name in ("clips", "batch_size", "rounds", "model", "seconds")}
    figures = make_figures(seconds, options.clips, options.batch_size, options.seconds is not None)
    finish(options, {**setting, "machine": found, "seconds": seconds}, figures)
    if options.plot:
        rates = {name: {"clips/s": options.clips / statistics.median(rounds)} for name, rounds in seconds.items()}
        plot(options.plot, f"{options.clips} clips", "clips a second", rates)


def add_batch(subparsers) -> None:
    """The command line of `batch`."""
    parser = subparsers.add_parser("batch", help="many clips: one by one, in batches, by two ranks, and by PyTorch")
    parser.add_argument("--clips", type=at_least(1), default=64, help="how many (default: %(default)s)")
    help = "make clips of lengths between these instead, such as 1 30"
    parser.add_argument("--seconds", type=float, nargs=2, metavar=("LEAST", "MOST"), help=help)
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="clips at a time (default: %(default)s)")
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder (default: the bundled demo checkpoint)")
    add_common(parser, run_batches, threads=False)

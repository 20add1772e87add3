"""`benchmark.py transcribe`: minutes of real speech written down by Whisper, beside what people run today.

The recordings come one behind the other, in another order each time, until the minutes are full.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from benchmark.common import (
    BenchmarkError,
    add_common,
    better,
    check_common,
    columns,
    compare,
    finish,
    machine,
    paired,
    plot,
)
from benchmark.processes import Team, show_progress
from benchmark.transcribers import RATE, check_transcribers, transcriber

LIMIT = 0.7  # of PyTorch's time
SILENCE = 0.5  # seconds between recordings
PYTORCH = ("torch eager", "torch sdpa")
REFERENCE = "torch eager"  # whose text the others are compared with
PEERS = ("openai-whisper", "faster-whisper", "ctranslate2")  # distributions


def join(recordings: Sequence[np.ndarray], seconds: float) -> np.ndarray:
    """Whole recordings with silence between them, at least so many seconds, in the same order in every run."""
    silence, rng = np.zeros(round(SILENCE * RATE), np.float32), random.Random(0)
    pieces, left = [], []
    while sum(map(len, pieces[:-1])) < seconds * RATE:
        left = left or rng.sample(recordings, len(recordings))
        pieces += [left.pop(), silence]
    return np.concatenate(pieces[:-1])


def load_speech(files: Sequence[str]) -> list[np.ndarray]:
    """The samples of recordings, fp32 at 16 kHz."""
    from mindone_audio.inputs.audio import AudioError, load_audio

    if missing := [file for file in files if not Path(file).is_file()]:
        raise BenchmarkError(f"no audio file {missing[0]}: check --speech")
    try:
        return [load_audio(file) for file in files]
    except AudioError as error:
        raise BenchmarkError(str(error)) from error


def check_model(options: argparse.Namespace) -> None:
    """Refuse what is no Whisper checkpoint, and less speech than its window."""
    folder = Path(options.model)
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise BenchmarkError(f"no checkpoint in {folder} (no {name}): correct --model")
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    if kind != "whisper":
        raise BenchmarkError(f"--model {folder} is of the type {kind}: give a Whisper checkpoint")
    window = json.loads((folder / "preprocessor_config.json").read_text())["chunk_length"]
    if not window <= 60 * options.minutes < math.inf:
        raise BenchmarkError(f"--minutes {options.minutes:g}: give at least the model's window of {window:g} s")


def wrong_words(texts: dict[str, str]) -> dict[str, float]:
    """The word error rate of each text, with the text of `REFERENCE` for the right one."""
    from mindone_audio.finetune import word_error_rate

    try:
        return {name: word_error_rate([text], [texts[REFERENCE]]) for name, text in texts.items()}
    except ValueError as error:
        raise BenchmarkError(f"{REFERENCE} has heard no words: give --speech in which somebody speaks") from error


def run_transcribe(options: argparse.Namespace) -> None:
    """`transcribe`: all that are there, in turn."""
    check_common(options)
    check_model(options)
    names = check_transcribers(options.model, options.packages, options.ctranslate2)
    samples = join(load_speech(options.speech), 60 * options.minutes)
    found = machine(options.threads)
    places = {"path": [options.packages]} if options.packages else {}
    found["versions"] |= {peer: of.version for peer in PEERS for of in metadata.distributions(name=peer, **places)}
    with tempfile.TemporaryDirectory(prefix="benchmark") as folder:
        file = str(Path(folder, "speech.npy"))
        np.save(file, samples)
        given = options.model, file, options.language, options.threads, options.packages, options.ctranslate2
        with Team({name: (transcriber, name, *given) for name in names}) as team:
            texts = {}
            for name, child in team.items():  # the first call compiles
                show_progress(f"text of {name}")
                texts[name] = child.ask("text")
            series = {name: of["seconds"] for name, of in team.take_turns(("seconds",), options.rounds).items()}
    wrong, spoken = wrong_words(texts), len(samples) / RATE
    rows = [["medians", "s", "of real time", "ours / this", "text"]]
    for name, seconds in series.items():
        same = "the same" if texts[name].split() == texts[REFERENCE].split() else f"{wrong[name]:.2%} wrong"
        middle, ratio = statistics.median(seconds), statistics.median(paired(series["ours"], seconds))
        rows.append([name, f"{middle:.2f}", f"{middle / spoken:.4f}", f"{ratio:.3f}", same])
    print(f"{options.model}, {spoken / 60:.1f} minutes of speech, {options.rounds} rounds")
    print("\n".join(columns(rows)) + f"\ntext: beside that of {REFERENCE}; wrong: words, without case and punctuation")
    label = f"transcription of {spoken / 60:.1f} minutes: real-time factor"
    best = better(*(series[name] for name in PYTORCH))
    figures = [compare(label, series["ours"], best, 1 / spoken, LIMIT)]
    for name in names[1 + len(PYTORCH) :]:
        figures.append(compare(f"{label}; PyTorch: {name}", series["ours"], series[name], 1 / spoken))
    content = {"model": options.model, "spoken": spoken, "machine": found, "seconds": series}
    finish(options, {**content, "word_error_rate": wrong, "texts": texts}, figures)
    if options.plot:
        shown = {name: {"": statistics.median(of) / spoken} for name, of in series.items()}
        plot(options.plot, f"{spoken / 60:.1f} minutes of speech", "seconds for a second of speech", shown)


def add_transcribe(subparsers) -> None:
    """The command line of `transcribe`."""
    parser = subparsers.add_parser("transcribe", help="Whisper: minutes of real speech, beside what people run")
    parser.add_argument("--model", metavar="DIR", required=True, help="a Whisper checkpoint of Hugging Face")
    help = "recordings, which are repeated in changing order"
    parser.add_argument("--speech", metavar="FILE", nargs="+", required=True, help=help)
    help = "to fill with whole recordings (default: %(default)s)"
    parser.add_argument("--minutes", type=float, default=10, metavar="N", help=help)
    help = "the same checkpoint as CTranslate2 has it: faster-whisper takes part"
    parser.add_argument("--ctranslate2", metavar="DIR", help=help)
    help = "where openai-whisper and faster-whisper are, made by pip install --target DIR"
    parser.add_argument("--packages", metavar="DIR", help=help)
    help = "of the speech (default: %(default)s); English-only checkpoints need none"
    parser.add_argument("--language", default="en", help=help)
    add_common(parser, run_transcribe)

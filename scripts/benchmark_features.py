"""`benchmark.py features`: log-mels by this package and by transformers, each with PyTorch and without.

Every contender is a process of its own, and all may use the same cores (`taskset` for fewer). They take turns within a
round; what counts is the median over the rounds of the ratio within a round.
"""

import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from pathlib import Path

BATCH = 8  # clips
SIZES = {"1 clip": 1, f"{BATCH} clips": BATCH}
OURS, OURS_NUMPY, TORCH, NUMPY = "ours", "ours, no torch", "transformers", "transformers, no torch"
CONTENDERS = (OURS, OURS_NUMPY, TORCH, NUMPY)
COMPARED = ((OURS_NUMPY, TORCH), (OURS_NUMPY, NUMPY), (OURS, TORCH))
REPEATS = 3  # calls in a turn, of which the fastest counts: other work on the machine only ever adds time


def contender(connection, name: str, seconds: float) -> None:
    """In a process of its own: answer each number of clips with the seconds it took and the first clip's log-mel."""
    if name in (OURS_NUMPY, NUMPY):
        sys.modules["torch"] = None  # as if it were not installed
    import numpy as np
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=128)
    rate = extractor.sampling_rate
    t = np.arange(round(seconds * rate)) / rate
    tone = 0.4 * np.sin(2 * np.pi * (200 + 30 * t) * t)  # a rising one in noise
    rng = np.random.default_rng(0)
    clips = [(tone + rng.normal(0, 0.02, t.size)).astype(np.float32) for _ in range(BATCH)]

    def ours(batch):
        return log_mels(batch, extractor, extractor.n_samples)

    def theirs(batch):
        return extractor(batch, sampling_rate=rate, return_tensors="np")["input_features"]

    if name in (OURS, OURS_NUMPY):
        from mindone_audio.features import log_mels

    compute = ours if name in (OURS, OURS_NUMPY) else theirs
    connection.send("ready")
    while (count := connection.recv()) is not None:
        taken = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            features = compute(clips[:count])
            taken.append(time.perf_counter() - begun)
        connection.send((min(taken), features[0]))


class Contender:
    """The process of one of them."""

    def __init__(self, name: str, seconds: float):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=contender, args=(theirs, name, seconds), daemon=True)
        self.process.start()
        theirs.close()
        self.receive()

    def receive(self):
        """The next answer; `OSError` where the process has ended."""
        try:
            return self.connection.recv()
        except EOFError:
            raise OSError("a measuring process ended: the comparison needs tests/requirements.txt") from None

    def run(self, count: int):
        """Seconds for so many clips, and the log-mel of the first."""
        self.connection.send(count)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.join()


def measure_features(rounds: int, clip_seconds: float) -> tuple[dict, dict]:
    """Seconds of every round by size and contender, and how far each one's log-mel is from transformers' on PyTorch."""
    seconds: dict = {size: {name: [] for name in CONTENDERS} for size in SIZES}
    teams: dict = {}
    try:
        for name in CONTENDERS:
            teams[name] = Contender(name, clip_seconds)
        first = {name: teams[name].run(BATCH)[1] for name in CONTENDERS}  # warms up too
        for number in range(rounds):
            turn = CONTENDERS[number % len(CONTENDERS) :] + CONTENDERS[: number % len(CONTENDERS)]
            for size, count in SIZES.items():
                for name in turn:
                    seconds[size][name].append(teams[name].run(count)[0])
    finally:
        for team in teams.values():
            team.close()
    return seconds, {name: float(abs(mel - first[TORCH]).max()) for name, mel in first.items()}


def compare(rounds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of one size: the ratios of `COMPARED`, each with its median, least and most over the rounds."""
    result = {}
    for name, other in COMPARED:
        ratios = [a / b for a, b in zip(rounds[name], rounds[other])]
        result[f"{name} / {other}"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return result


def run_features(options) -> None:
    """`features`: the same clips by each contender, in turn."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    seconds, off = measure_features(options.rounds, options.seconds)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ratios = {size: compare(rounds) for size, rounds in seconds.items()}
    busy = "" if load is None else f", load {load:.1f} at the start"
    print(
        f"clips of {options.seconds:g} s, 128 mels, {options.rounds} rounds, {cores} cores ({platform.machine()}){busy}"
    )
    print(f"\n{'milliseconds, medians':<42}" + "".join(f"{size:>22}" for size in SIZES) + f"{'largest difference':>22}")
    for name in CONTENDERS:
        medians = "".join(f"{statistics.median(seconds[size][name]) * 1e3:>22.2f}" for size in SIZES)
        print(f"{name:<42}{medians}{off[name]:>22.1e}")
    print(f"\n{'ratios of the times':<42}" + "".join(f"{size:>22}" for size in SIZES))
    for pair in next(iter(ratios.values())):
        found = [ratios[size][pair] for size in SIZES]
        cells = [f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" for ratio in found]
        print(f"{pair:<42}" + "".join(f"{cell:>22}" for cell in cells))
    if options.json:
        setting = {"clip_seconds": options.seconds, "rounds": options.rounds, "cores": cores, "load": load}
        figures = {**setting, "seconds": seconds, "ratios": ratios, "largest_difference": off}
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


def add_features(subparsers) -> None:
    """The command line of `features`."""
    parser = subparsers.add_parser("features", help="log-mels, with PyTorch and without, against transformers")
    parser.add_argument("--seconds", type=float, default=30, help="of each clip (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=9, help="of all contenders (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write all figures there")
    parser.set_defaults(run=run_features)

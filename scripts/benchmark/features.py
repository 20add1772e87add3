"""`benchmark.py features`: log-mels by this package, and by transformers with PyTorch and without.

Every contender is a process of its own, and all may use the same cores (`taskset` for fewer). They take turns within a
round; what counts is the median over the rounds of the ratio within a round.
"""

import multiprocessing
import statistics
import sys
import time

from benchmark.common import Figure, add_common, check_common, columns, compare, cores, finish, machine, plot

BATCH = 8  # clips
SIZES = {"1 clip": 1, f"{BATCH} clips": BATCH}
OURS, TORCH, NUMPY = "ours", "transformers", "transformers, no torch"
CONTENDERS = (OURS, TORCH, NUMPY)
RATIO_LIMIT, DIFFERENCE_LIMIT = 1.5, 1e-5
REPEATS = 3  # calls in a turn, of which the fastest counts: other work on the machine only ever adds time


def contender(connection, name: str, seconds: float) -> None:
    """In a process of its own: answer each number of clips with the seconds it took and the first clip's log-mel."""
    if name == NUMPY:
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

    if name == OURS:
        from mindone_audio.inputs.log_mel import log_mels

    compute = ours if name == OURS else theirs
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


def make_figures(seconds: dict, off: dict[str, float]) -> list[Figure]:
    """Rows of the table of figures."""
    figures = [
        compare(f"log-mel of {size} of 30 s, ms", rounds[OURS], rounds[TORCH], 1e3, RATIO_LIMIT)
        for size, rounds in seconds.items()
    ]
    return [*figures, Figure("log-mel, largest difference from transformers", off[OURS], limit=DIFFERENCE_LIMIT)]


def run_features(options) -> None:
    """`features`: the same clips by each contender, in turn."""
    check_common(options)
    found = machine(cores())
    seconds, off = measure_features(options.rounds, options.seconds)
    print(f"clips of {options.seconds:g} s, 128 mels, {options.rounds} rounds; load {found['load']:.1f} at the start\n")
    rows = [["milliseconds, medians", *SIZES, "largest difference"]]
    for name in CONTENDERS:
        medians = (f"{statistics.median(seconds[size][name]) * 1e3:.2f}" for size in SIZES)
        rows.append([name, *medians, f"{off[name]:.1e}"])
    print("\n".join(columns(rows)))
    content = {"rounds": options.rounds, "machine": found, "seconds": seconds, "largest_difference": off}
    finish(options, content, make_figures(seconds, off))
    if options.plot:
        shown = {
            size: {name: statistics.median(values) * 1e3 for name, values in of.items()} for size, of in seconds.items()
        }
        plot(options.plot, "log-mels", "ms", shown)


def add_features(subparsers) -> None:
    """The command line of `features`."""
    parser = subparsers.add_parser("features", help="log-mels, against transformers with PyTorch and without")
    parser.add_argument("--seconds", type=float, default=30, help="of each clip (default: %(default)g)")
    add_common(parser, run_features, threads=False)

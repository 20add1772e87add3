"""`mindone-audio warm-up`: compile what a model needs for some sizes, before somebody waits for an answer."""

import argparse
import time

from mindone_audio.commands.options import add_model, load_pipeline, shown_compiling
from mindone_audio.setting_fields import refusal

_RATE = 16000  # samples a second


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "warm-up",
        help="compile a model's graphs for some sizes, so that the first answers of later processes are quick",
        description="Compiles a model's graphs for some sizes. On a CPU they are kept for later processes in "
        "MINDONE_AUDIO_COMPILE_CACHE (default: below ~/.cache/mindone_audio); on an NPU CANN keeps the kernels that it "
        "compiles in ASCEND_CACHE_PATH (default: ~/atc_data).",
    )
    add_model(parser)
    parser.add_argument("--batch-sizes", default="1", metavar="N,N", help="clips at a time (default: %(default)s)")
    parser.add_argument("--seconds", default="5,30", metavar="S,S", help="lengths of clips (default: %(default)s)")
    parser.add_argument(
        "--tokens", default="512", metavar="N,N", help="of prompt and answer together (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """0: all sizes are compiled."""
    sizes = [_numbers(options, name) for name in ("batch_sizes", "seconds", "tokens")]
    with shown_compiling():
        start = time.perf_counter()
        pipe = load_pipeline(options, None)
        loaded = time.perf_counter()
        _warm_up(pipe, *sizes)
        done = time.perf_counter()
    print(f"loaded in {loaded - start:.1f} s, ready in {done - loaded:.1f} s")
    return 0


def _numbers(options: argparse.Namespace, name: str) -> list[int]:
    """The values of an option, whole numbers with commas."""
    text = getattr(options, name)
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = [0]
    if min(values) < 1:
        raise refusal(name, f" {text!r} must be whole numbers from 1 on with commas between them, such as 1,8")
    return values


def _warm_up(pipe, batch_sizes: list[int], seconds: list[int], tokens: list[int]) -> None:
    """Answer about noise, at every size of batch and length of clip; then one step in every larger cache.

    A clip longer than the model hears is one of the longest.
    """
    import numpy as np

    longest = int(min(max(seconds), pipe.processor.longest_clip or max(seconds)))
    noise = np.random.default_rng(0).normal(0, 0.1, _RATE * longest).astype(np.float32)
    for size in batch_sizes:
        for length in seconds:
            clips = [noise[: _RATE * length]] * size
            pipe(clips, batch_size=size, max_new_tokens=2, **pipe.about_noise)
        for count in tokens:
            pipe.model.warm_up(size, count)

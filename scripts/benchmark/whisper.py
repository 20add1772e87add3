"""`benchmark.py whisper`: seconds that Whisper takes for a second of speech, beside transformers on PyTorch.

Both hear the same window of 30 s and write the same number of tokens: no end token can come.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmark.common import BenchmarkError, add_common, at_least, check_common, columns, compare, finish, machine, plot
from benchmark.processes import Team, first_answers, in_a_process, use_threads

LIMIT = 0.8  # of PyTorch's time
WINDOW = 30.0  # seconds
# Width, layers of encoder and decoder, heads, mel bins and vocabulary of published models.
SIZES = {
    "tiny.en": (384, 4, 4, 6, 80, 51864),
    "base": (512, 6, 6, 8, 80, 51865),
    "small": (768, 12, 12, 12, 80, 51865),
    "large-v3-turbo": (1280, 32, 4, 20, 128, 51866),
    "large-v3": (1280, 32, 32, 20, 128, 51866),
}


def make_checkpoint(folder: str, size: str) -> Callable:
    """A checkpoint of random weights of a published size."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    width, encoder, decoder, heads, mels, vocabulary = SIZES[size]
    config = WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=encoder,
        decoder_layers=decoder,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
    )
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    end = config.eos_token_id
    GenerationConfig(decoder_start_token_id=end + 1, eos_token_id=end, pad_token_id=end).save_pretrained(folder)
    return lambda _: None


def contender(name: str, folder: str, tokens: int, threads: int) -> Callable[[str], dict[str, float]]:
    """A model that is loaded, called to hear the window: the seconds that it takes."""
    use_threads(threads)
    import time

    import numpy as np

    config = json.loads((Path(folder) / "config.json").read_text())
    shape = 1, config["num_mel_bins"], 2 * config["max_source_positions"]
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    # Without an end token and without timestamps, which would end the window.
    settings = {"max_new_tokens": tokens, "suppress_tokens": [config["eos_token_id"]]}
    settings["suppress_tokens"] += range(config["eos_token_id"] + 1, config["vocab_size"])
    if name == "ours":
        import mindspore as ms

        from mindone_audio import WhisperForConditionalGeneration

        model = WhisperForConditionalGeneration.from_pretrained(folder, mindspore_dtype=ms.float32)
        given = features

        def generate():
            return model.generate(given, **settings).asnumpy()
    else:
        import torch
        from transformers import WhisperForConditionalGeneration

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        attention = name.removeprefix("torch ")
        model = WhisperForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        )
        given = torch.from_numpy(features)

        def generate():
            return model.eval().generate(given, **settings).numpy()

    def answer(_: str) -> dict[str, float]:
        start = time.perf_counter()
        made = generate()
        if made.shape[1] < tokens:
            raise BenchmarkError(f"{name} wrote {made.shape[1]} tokens of {tokens}")
        return {"window": time.perf_counter() - start}

    answer("")  # compiles
    return answer


def run_whisper(options: argparse.Namespace) -> None:
    """`whisper`: ours and PyTorch's in turn."""
    check_common(options)
    found = machine(options.threads)
    with tempfile.TemporaryDirectory() as made:
        folder = options.model
        if folder is None:
            folder = made
            in_a_process(make_checkpoint, folder, options.random, request="")
        names = ["ours", *(f"torch {attention}" for attention in options.attention)]
        starts = {name: (contender, name, str(folder), options.tokens, options.threads) for name in names}
        first = first_answers(starts)
        with Team(starts) as team:
            series = {name: of["window"] for name, of in team.take_turns(("window",), options.rounds).items()}
    what = str(options.model or f"random {options.random}")
    best = [min(values) for values in zip(*(series[name] for name in names[1:]))]
    rows = [["a window of 30 s, medians", "s", "of real time"]]
    for name, seconds in series.items():
        rows.append([name, f"{statistics.median(seconds):.2f}", f"{statistics.median(seconds) / WINDOW:.3f}"])
    print(f"{what}, {options.tokens} tokens, {options.rounds} rounds\n" + "\n".join(columns(rows)))
    print("\n" + "\n".join(columns([["first answer", "s"], *([name, f"{s:.1f}"] for name, s in first.items())])))
    figure = compare(f"Whisper {what}: real-time factor", series["ours"], best, 1 / WINDOW, LIMIT)
    finish(
        options,
        {"model": what, "tokens": options.tokens, "machine": found, "first": first, "seconds": series},
        [figure],
    )
    if options.plot:
        shown = {name: {"a window": statistics.median(of) / WINDOW} for name, of in series.items()}
        plot(options.plot, what, "seconds for a second of speech", shown)


def add_whisper(subparsers) -> None:
    """The command line of `whisper`."""
    parser = subparsers.add_parser("whisper", help="Whisper: seconds for a second of speech")
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder (default: random weights)")
    parser.add_argument("--random", choices=SIZES, default="tiny.en", help="their size (default: %(default)s)")
    help = "of the window (default: %(default)s, about as many as people say in it)"
    parser.add_argument("--tokens", type=at_least(2), default=100, metavar="N", help=help)
    parser.add_argument(
        "--attention",
        nargs="+",
        choices=("eager", "sdpa"),
        default=["eager", "sdpa"],
        help="of PyTorch (default: both)",
    )
    add_common(parser, run_whisper)

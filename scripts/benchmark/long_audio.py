"""`benchmark.py long-audio`: how long the first token of a long recording takes, and the peak of memory meanwhile.

The weights are random, of published widths, cut to few layers. A recording comes in windows of 30 s, which become
tokens of the prompt. PyTorch's attention is sdpa, as eager holds the scores of all pairs of tokens. Times are measured
in turns; memory is in a process of its own for each length, as a peak never falls.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmark.common import (
    BenchmarkError,
    Figure,
    add_common,
    at_least,
    check_common,
    columns,
    compare,
    finish,
    machine,
    plot,
)
from benchmark.contenders import Clock, Contender, Ours, Torch
from benchmark.phases import compare_tokens
from benchmark.processes import Team, in_a_process, use_threads

OURS, PYTORCH = "ours", "torch sdpa"
MEMORY_LIMIT = 1.25  # peak to parameters and cache
WINDOW = 0.5  # minutes
FRAMES, MELS = 3000, 128  # of a window
VOCABULARY = 32000
WORDS = 32  # tokens of text around the recording
SCALES = (1, 2, 4, 8, 16)  # with all of which the widths of heads are even
# Whisper-large-v3's encoder, which both families have.
ENCODER = {"hidden_size": 1280, "intermediate_size": 5120}


@dataclass(frozen=True)
class Family:
    """Its published decoder: widths, which --scale divides, and what else config.json has of it.

    tokens: of a window. longest: minutes that it hears. masks: whether the inputs have a mask of the frames. compared:
    whether transformers 4.57 has it.
    """

    widths: dict[str, int]
    text: dict
    tokens: int
    longest: float
    masks: bool
    compared: bool


FAMILIES = {
    "audioflamingo3": Family(  # Qwen2.5-7B
        {"hidden_size": 3584, "intermediate_size": 18944},
        {
            **{"model_type": "qwen2", "num_attention_heads": 28, "num_key_value_heads": 4, "rope_theta": 1e6},
            **{"max_position_embeddings": 32768, "rms_norm_eps": 1e-6},
        },
        **{"tokens": 750, "longest": 10, "masks": True, "compared": False},
    ),
    "voxtral": Family(  # Voxtral-Mini-3B
        {"hidden_size": 3072, "intermediate_size": 8192, "head_dim": 128},
        {
            **{"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 1e8},
            **{"max_position_embeddings": 131072, "rms_norm_eps": 1e-5},
        },
        **{"tokens": 375, "longest": 30, "masks": False, "compared": True},
    ),
}


class OursHearing(Ours):
    """Ours, and its encoder by itself."""

    def encoder(self) -> float:
        """Seconds from features to embeddings of the decoder."""
        from mindone_audio.generation.engine import returned

        (request,) = self.model.requests(**self.inputs)
        start = time.perf_counter()
        rows, _ = returned(self.model.engine().encode([request.clips]))
        rows.asnumpy()
        return time.perf_counter() - start


class TorchVoxtral(Torch):
    """transformers' Voxtral, and its encoder by itself."""

    @staticmethod
    def load(folder: str, attention: str):
        import torch
        from transformers import VoxtralForConditionalGeneration

        return VoxtralForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        )

    def encoder(self) -> float:
        """Seconds from features to embeddings of the decoder."""
        start = time.perf_counter()
        self.model.get_audio_features(self.inputs["input_features"])
        return time.perf_counter() - start


def contender(name: str, family: str, folder: str, files: dict[str, str], new_tokens: int, threads: int) -> Callable:
    """Loads one; its answer to a length, a key of `files`, is the times of that recording, by figure and length."""
    use_threads(threads)
    import numpy as np

    given = {length: dict(np.load(file)) for length, file in files.items()}
    longest = max(given.values(), key=lambda inputs: inputs["input_ids"].size)
    if name == OURS:
        from mindone_audio import models

        models.family(family)  # its imports are no memory of it
        asked: Contender = OursHearing(folder, longest, new_tokens, interpreted=False)
    else:
        asked = TorchVoxtral(folder, longest, new_tokens, name.removeprefix("torch "), threads)

    def answer(request: str) -> dict:
        if request == "first":
            return asked.first()
        asked.take(given[request])
        encoder, clock = asked.encoder(), Clock()
        asked.generate(clock)
        times = clock.figures()
        first, token = times["prefill"], times["token"]
        found = {"encoder": encoder, "prefill": first - encoder, "first": first, "token": token}
        return {f"{figure} {request}": value for figure, value in found.items()}

    return answer


def make_config(options: argparse.Namespace) -> dict:
    """config.json of the family at the scale and depth of the options; no token ends an answer."""
    family = FAMILIES[options.family]
    encoder, decoder = (
        {name: width // options.scale for name, width in sizes.items()} for sizes in (ENCODER, family.widths)
    )
    encoder |= {"num_hidden_layers": options.encoder_layers, "num_attention_heads": 20, "num_mel_bins": MELS}
    decoder |= {**family.text, "num_hidden_layers": options.decoder_layers, "vocab_size": VOCABULARY}
    decoder |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {
        **{"model_type": options.family, "audio_token_id": VOCABULARY - 1, "tie_word_embeddings": False},
        **{"audio_config": {**encoder, "max_source_positions": FRAMES // 2}, "text_config": decoder},
    }


def prepare(family: str, config: dict, folder: str, files: dict[str, str], threads: int) -> Callable:
    """Write a checkpoint of unit gain, and the inputs of each length; tells the tokens of each prompt."""
    use_threads(threads)
    import numpy as np
    from mindspore import Tensor

    from mindone_audio.models import model_class

    chosen, rng = model_class(config), np.random.default_rng(0)
    model = chosen(chosen.config_class(**config))
    for name, parameter in model.parameters_and_names():
        values = np.ones(parameter.shape, np.float32)
        if parameter.ndim > 1:
            values = rng.standard_normal(parameter.shape, np.float32)
            if "embed_tokens" not in name:
                values *= np.float32(np.prod(parameter.shape[1:]) ** -0.5)
        parameter.set_data(Tensor(values))
    model.save_pretrained(folder)
    found = {}
    for length, file in files.items():
        inputs = make_inputs(FAMILIES[family], round(float(length) / WINDOW))
        np.savez(file, **inputs)
        found[length] = inputs["input_ids"].shape[1]
    return lambda _: found


def make_inputs(family: Family, windows: int) -> dict:
    """Random features of so many windows, and random text around their tokens."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = rng.integers(3, VOCABULARY - 1, WORDS).tolist()
    ids = np.array([words[:8] + [VOCABULARY - 1] * (windows * family.tokens) + words[8:]], np.int64)
    features = rng.standard_normal((windows, MELS, FRAMES), np.float32)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "input_features": features}
    return {**inputs, "input_features_mask": np.ones((windows, FRAMES), np.int32)} if family.masks else inputs


def measure(options: argparse.Namespace, names: list[str], folder: str, files: dict[str, str]) -> tuple[dict, dict]:
    """By length and contender what a process of its own tells of its first answer; by contender the times in turns."""
    rest = options.new_tokens, options.threads
    first: dict[str, dict] = {length: {} for length in files}
    for length, file in files.items():
        for name in names:
            one = {length: file}
            first[length][name] = in_a_process(contender, name, options.family, folder, one, *rest, request="first")
    with Team({name: (contender, name, options.family, folder, files, *rest) for name in names}) as team:
        team.take_turns(list(files), 1)  # compiles
        return first, team.take_turns(list(files), options.rounds)


def make_figures(first: dict[str, dict], series: dict[str, dict], label: str) -> list[Figure]:
    """Rows of the table of figures, by length: seconds to the first token, and memory to parameters and cache."""
    figures = []
    for length in first:
        name, ours = f"first token of {length} min, {label}, s", series[OURS][f"first {length}"]
        if PYTORCH in series:
            figures.append(compare(name, ours, series[PYTORCH][f"first {length}"]))
        else:
            figures.append(Figure(name, statistics.median(ours)))
    for length, answers in first.items():
        shares = [answer["grown"] / answer["needed"] for answer in answers.values()]  # PyTorch's is the second
        figures.append(
            Figure(f"peak memory / (parameters + cache), {length} min, {label}", *shares, limit=MEMORY_LIMIT)
        )
    return figures


def report(first: dict[str, dict], series: dict[str, dict]) -> list[str]:
    """Lines: which tokens differ, and a table of medians and bytes by length and contender."""
    said, rows = [], [["medians", *series]]
    for length, answers in first.items():
        for name, place in compare_tokens(answers).items():
            same = "the same as ours" if place is None else f"differ from ours from new token {place + 1} on"
            said.append(f"tokens   {name}, {length} min: {same}")
        for figure, what, unit, scale in (
            ("encoder", "encoder", "s", 1),
            ("prefill", "prefill without it", "s", 1),
            ("first", "first token", "s", 1),
            ("token", "a token after it", "ms", 1e3),
        ):
            medians = [statistics.median(times[f"{figure} {length}"]) * scale for times in series.values()]
            rows.append([f"{length} min: {what}, {unit}", *(f"{median:.4g}" for median in medians)])
        for figure, what in (("grown", "peak memory"), ("needed", "parameters + cache")):
            rows.append(
                [f"{length} min: {what}, MiB", *(f"{answer[figure] / 2**20:.0f}" for answer in answers.values())]
            )
    return [*said, "", *columns(rows)]


def run_long_audio(options: argparse.Namespace) -> None:
    """`long-audio`: the memory of each length, then all lengths in turns."""
    check_common(options)
    family, minutes = FAMILIES[options.family], sorted(set(options.minutes))
    if minutes[-1] > family.longest:
        raise BenchmarkError(f"--minutes {minutes[-1]:g}: {options.family} hears at most {family.longest:g} minutes")
    found, names = machine(options.threads), [OURS, PYTORCH] if family.compared else [OURS]
    note = "" if family.compared else f"{options.family}: no PyTorch beside it, as transformers 4.57 has no such class."
    config = make_config(options)
    with tempfile.TemporaryDirectory(prefix="benchmark") as folder:
        files = {f"{length:g}": str(Path(folder) / f"{length:g}.npz") for length in minutes}
        tokens = in_a_process(prepare, options.family, config, folder, files, options.threads, request="")
        first, series = measure(options, names, folder, files)
    sizes = [
        (part["num_hidden_layers"], part["hidden_size"]) for part in (config["audio_config"], config["text_config"])
    ]
    label = options.family + ", encoder {} x {} + decoder {} x {}".format(*sizes[0], *sizes[1])
    prompts = ", ".join(f"{count} tokens for {length} min" for length, count in tokens.items())
    print(f"{label}, fp32\n{prompts}; {options.new_tokens} new tokens, {options.rounds} rounds")
    print("\n".join([note] * bool(note) + report(first, series)))
    setting = {"family": options.family, "prompt_tokens": tokens, "new_tokens": options.new_tokens, "note": note}
    content = {**setting, "config": config, "rounds": options.rounds, "machine": found}
    finish(options, {**content, "first": first, "seconds": series}, make_figures(first, series, label))
    if options.plot:
        lines = {
            name: {float(length): statistics.median(times[f"first {length}"]) for length in files}
            for name, times in series.items()
        }
        plot(options.plot, f"first token, {label}", "s", lines, along="minutes of audio")


def half_minutes(text: str) -> float:
    """Minutes of whole windows for argparse."""
    try:
        windows = float(text) / WINDOW
    except ValueError:
        windows = 0
    if not windows >= 1 or windows % 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes in whole windows: 0.5, 1, 1.5, ...")
    return windows * WINDOW


def add_long_audio(subparsers) -> None:
    """The command line of `long-audio`."""
    parser = subparsers.add_parser("long-audio", help="minutes of audio: first token and memory, against PyTorch")
    parser.add_argument("--family", choices=FAMILIES, required=True, help="whose published widths the model has")
    help = "of the recordings (default: 1 2 5 10)"
    parser.add_argument("--minutes", type=half_minutes, nargs="+", default=[1, 2, 5, 10], metavar="N", help=help)
    for part in ("encoder", "decoder"):
        parser.add_argument(f"--{part}-layers", type=at_least(1), default=2, metavar="N", help="(default: %(default)s)")
    help = "divide all widths by it, to try it out (default: %(default)s)"
    parser.add_argument("--scale", type=int, choices=SCALES, default=1, help=help)
    parser.add_argument("--new-tokens", type=at_least(2), default=8, metavar="N", help="(default: %(default)s)")
    add_common(parser, run_long_audio)

"""`benchmark.py generate`: the same greedy tokens by this package and by transformers on PyTorch, phase by phase.

Prefill with its encoder, decoding of one prompt or a batch, memory, and against a plain copy of the weights the share
of the memory bandwidth; with --filled instead how long a step takes at long contexts (`long`).
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmark.checkpoint import (
    FLOAT,
    MEL_FRAMES_PER_SECOND,
    RANDOM,
    available_memory,
    different_lengths,
    fitting_layers,
    padded_inputs,
    processed_inputs,
    random_inputs,
    step_weights,
    write_random_checkpoint,
)
from benchmark.common import (
    BenchmarkError,
    add_common,
    at_least,
    check_common,
    finish,
    machine,
    plot,
)
from benchmark.contenders import contender, plain_copy
from benchmark.long import report_long
from benchmark.phases import (
    BATCH_LENGTHS,
    BETTER,
    COPY,
    LIMITS,
    PYTORCH,
    TIMES,
    better_of,
    compare_tokens,
    describe,
    make_figures,
    ratios,
    report,
)
from benchmark.phi4 import phi4_inputs, write_phi4
from benchmark.processes import Team, in_a_process, use_threads
from mindone_audio.checkpoints import demo_checkpoint

PROMPT = "What do you hear?"
WANTED = ("audio", "prompt", "threads", "batch", "clip_seconds", "random")  # of the options, where inputs are made


def prepare(options: dict) -> Callable:
    """Write the model inputs, and the checkpoint if it is to be made; tells tokens and seconds of audio of a prompt."""
    use_threads(options["threads"])
    import numpy as np

    phi4 = options["random"] == "phi4"
    if options["size"]:
        write = write_phi4 if phi4 else write_random_checkpoint
        write(options["folder"], **options["size"])
    folder, seconds = Path(options["folder"]), options["clip_seconds"]
    if options["batch"] > 1:
        inputs = padded_inputs(folder, different_lengths(options["batch"], *BATCH_LENGTHS))
    elif (folder / "preprocessor_config.json").exists():
        inputs = processed_inputs(folder, options["audio"], options["prompt"], seconds)
    elif options["audio"]:
        raise BenchmarkError(f"{folder} has no preprocessor_config.json, so --audio cannot be used: leave it out")
    else:
        inputs = (phi4_inputs if phi4 else random_inputs)(folder, seconds)
    np.savez(options["inputs_file"], **inputs)
    masks = (inputs[name] for name in ("feature_attention_mask", "audio_attention_mask") if name in inputs)
    frames = sum(int(mask.sum()) for mask in masks)
    found = {"prompt_tokens": inputs["input_ids"].shape[1], "clip_seconds": frames / MEL_FRAMES_PER_SECOND}
    return lambda request: found


def measure(options: argparse.Namespace, size: dict | None, arguments: tuple) -> dict[str, dict]:
    """Figures of each contender: prefill, token, step (seconds) as lists over the rounds; of its first call memory,
    grown and needed (bytes), the tokens, and as compile what it took more than the second (seconds)."""
    names = ["ours", *PYTORCH] + ["ours, interpreted"] * options.interpreted
    starts = {name: (contender, name, *arguments) for name in names}
    if options.bandwidth:
        starts[COPY] = (plain_copy, step_weights(size["decoder"], size["kv"], size["vocab"]), options.threads)
    with Team(starts) as team:
        results = {}
        for name in names:
            results[name] = team[name].ask("first")
            total = results[name].pop("total")
            results[name]["compile"] = max(0.0, total - team[name].ask("generate")["total"])
            team[name].ask("step")
        if options.bandwidth:
            results[COPY] = {}
            team[COPY].ask("step")
        series = team.take_turns(("generate", "step"), options.rounds)
    return {name: {**results[name], **series[name]} for name in results}


def check(options: argparse.Namespace, folder: Path) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    if options.random and options.model:
        raise BenchmarkError("--random and --model were both given: choose one checkpoint")
    if not options.random and not (folder / "config.json").exists():
        raise BenchmarkError(f"no checkpoint in {folder} (no config.json): give --model DIR or --random small")
    if options.audio and "://" not in options.audio and not Path(options.audio).exists():
        raise BenchmarkError(f"no audio file {options.audio}: check --audio")
    if options.random and options.audio:
        raise BenchmarkError("--random has no processor, so --audio cannot be used: leave it out")
    if options.bandwidth and not options.random:
        raise BenchmarkError("--bandwidth needs a model of known sizes: give --random too")
    if options.random == "phi4" and (options.batch > 1 or options.bandwidth):
        raise BenchmarkError(
            "--random phi4 is one prompt with audio, for which the adapter is on: leave out --batch and --bandwidth"
        )
    if options.filled is not None and (options.batch > 1 or options.bandwidth or options.interpreted):
        raise BenchmarkError(
            "--filled measures compiled steps of batch 1: leave out --batch, --bandwidth, --interpreted"
        )
    if options.batch > 1 and options.audio:
        raise BenchmarkError(
            f"the prompts of --batch {options.batch} are text, so --audio cannot be used: leave it out"
        )


def choose_size(options: argparse.Namespace) -> tuple[dict | None, str]:
    """The sizes of the model to be made, the encoder cut in depth to fit into memory, and what to say about that."""
    if not options.random:
        return None, ""
    size = RANDOM[options.random]
    weights = step_weights(size["decoder"], size["kv"], size["vocab"])
    available = available_memory() - options.bandwidth * FLOAT * sum(weights)
    contenders = len(PYTORCH) + 1 + options.interpreted + options.bandwidth
    layers, *rest = size["encoder"]
    cut = fitting_layers(size, contenders, available)
    said = (
        f"the encoder has {cut} of its {layers} layers, so that all contenders fit into memory" if cut < layers else ""
    )
    return {**size, "encoder": (cut, *rest)}, said


def run_generate(options: argparse.Namespace) -> None:
    """`generate`: the same greedy tokens by each contender, or steps at filled lengths."""
    folder = Path(options.model or demo_checkpoint())
    check(options, folder)
    check_common(options)
    found = machine(options.threads)
    size, cut = choose_size(options)
    with tempfile.TemporaryDirectory(prefix="benchmark") as scratch:
        inputs_file = str(Path(scratch) / "inputs.npz")
        folder = Path(scratch) / "random" if options.random else folder
        wanted = {name: getattr(options, name) for name in WANTED}
        places = {"folder": str(folder), "inputs_file": inputs_file}
        inputs = in_a_process(prepare, {**wanted, **places, "size": size}, request="inputs")
        model = f"random {options.random}" if options.random else os.path.relpath(folder)
        setting = {"model": model, **inputs, "new_tokens": options.new_tokens, "rounds": options.rounds}
        setting |= {"threads": options.threads, "machine": found, "batch": options.batch, "note": cut}
        print("\n".join(describe(setting)))
        arguments = (str(folder), inputs_file, options.new_tokens, options.threads)
        label = "{} x {}".format(*size["decoder"][:2]) if size else folder.name
        if options.filled is not None:
            report_long(options, arguments, setting, label)
            return
        results = measure(options, size, arguments)
    report_generate(options, setting, results, size, label)


def report_generate(options, setting: dict, results: dict[str, dict], size: dict | None, label: str) -> None:
    """Print, write and draw what was measured."""
    differences = compare_tokens(results)
    for name, place in differences.items():
        same = "the same as ours" if place is None else f"differ from ours from new token {place + 1} on"
        print(f"tokens   {name}: {same}")
    others = {name: results[name] for name in differences} | {BETTER: better_of(results)}
    compared = {name: ratios(results["ours"], other) for name, other in others.items()}
    print(
        f"\nMedians of {options.rounds} rounds. Ratios: median within a round (least to most); below 1 ours is better"
    )
    print("\n".join(report(results, compared)))
    weights = FLOAT * sum(step_weights(size["decoder"], size["kv"], size["vocab"])) if size else 0
    given = f"batch {options.batch}" if options.batch > 1 else f"{setting['clip_seconds']:g} s clip"
    label = whole = f"{label}, {given}"
    if size and options.batch == 1:
        whole = "encoder {} x {} + decoder ".format(*size["encoder"][:2]) + label
    limits = LIMITS.get((options.random, options.batch), {})
    if options.random == "whisper-1b" and setting["clip_seconds"] < 30:
        limits = {}  # which are those of a whole window
    figures = make_figures(results, limits, label, whole, weights)
    content = {**setting, "contenders": results, "ratios": compared, "first_different_token": differences}
    finish(options, content, figures)
    if options.plot:
        shown = {name: result for name, result in results.items() if name != COPY}
        times = {
            name: {TIMES[figure][0]: 1e3 * statistics.median(result[figure]) for figure in ("token", "step")}
            for name, result in shown.items()
        }
        plot(options.plot, f"{setting['model']}, batch {options.batch}", "ms", times)


def add_generate(subparsers) -> None:
    """The command line of `generate`."""
    parser = subparsers.add_parser("generate", help="encoder, prefill and decoding, against PyTorch")
    parser.add_argument("--model", metavar="DIR", help="a checkpoint folder (default: the bundled demo checkpoint)")
    parser.add_argument("--random", choices=RANDOM, help="make a model of this size with random weights instead")
    parser.add_argument("--audio", metavar="CLIP", help="file or URL (default: made here)")
    parser.add_argument("--clip-seconds", type=float, default=5, help="of the clip made (default: %(default)s)")
    parser.add_argument("--prompt", default=PROMPT, help="the question about the clip (default: %(default)s)")
    parser.add_argument("--batch", type=at_least(1), default=1, help="prompts of different lengths, text alone if > 1")
    parser.add_argument("--new-tokens", type=at_least(2), default=64, help="to generate (default: %(default)s)")
    parser.add_argument("--bandwidth", action="store_true", help="also a plain copy of the weights that a step reads")
    parser.add_argument("--interpreted", action="store_true", help="also ours without compilation (slow)")
    parser.add_argument(
        "--filled", type=at_least(1), nargs="+", metavar="TOKENS", help="instead: a step with so many in the cache"
    )
    add_common(parser, run_generate)

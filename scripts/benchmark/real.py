"""`benchmark.py real`: a language model with published weights, in Ultravox's class, beside transformers on PyTorch.

It is deep and narrow (SmolLM2-135M: 30 layers of 576), so launches of kernels matter most. Prompts are text alone.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmark.common import (
    ROOT,
    BenchmarkError,
    Figure,
    add_common,
    at_least,
    better,
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

FIRST_LIMIT, TOKEN_LIMIT, MEMORY_LIMIT = 1.0, 0.5, 1.5
PYTORCH = ("torch eager", "torch sdpa")
TEXT = ROOT / "LICENSE"  # English
STACK, MIDDLE = 8, 256  # of the projector, which text does not go through


class TorchLlama(Torch):
    """The language model of an Ultravox repository by itself."""

    @staticmethod
    def load(folder: str, attention: str):
        import torch
        from transformers import AutoModelForCausalLM

        named = json.loads((Path(folder) / "config.json").read_text())["text_model_id"]
        return AutoModelForCausalLM.from_pretrained(named, dtype=torch.float32, attn_implementation=attention)


def contender(name: str, folder: str, ids: list[int], new_tokens: int, threads: int) -> Callable:
    """Loads one; its answer to a number is the times of a prompt of so many tokens, by figure and number."""
    use_threads(threads)
    import numpy as np

    inputs = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
    if name == "ours":
        asked: Contender = Ours(folder, inputs, new_tokens, interpreted=False)
    else:
        asked = TorchLlama(folder, inputs, new_tokens, name.removeprefix("torch "), threads)
    whole = asked.inputs

    def answer(request: str | int) -> dict:
        if request == "first":
            return asked.first()
        asked.inputs = {key: value[:, :request] for key, value in whole.items()}
        clock = Clock()
        asked.generate(clock)
        figures = clock.figures()
        return {f"first {request}": figures["prefill"], f"token {request}": figures["token"]}

    return answer


def prepare(text_model: str, audio_model: str, folder: str, tokens: int) -> Callable:
    """Write a repository as Ultravox's are, with a random projector; tells the ids of the prompt."""
    import numpy as np
    from safetensors.numpy import save_file
    from transformers import AutoTokenizer

    def width(model: str, name: str) -> int:
        return json.loads((Path(model) / "config.json").read_text())[name]

    stacked, hidden = width(audio_model, "d_model") * STACK, width(text_model, "hidden_size")
    config = {
        **{"model_type": "ultravox", "text_model_id": text_model, "audio_model_id": audio_model},
        **{"stack_factor": STACK, "hidden_size": 2 * MIDDLE, "projector_act": "swiglu", "projector_ln_mid": True},
        "torch_dtype": "float32",
    }
    (Path(folder) / "config.json").write_text(json.dumps(config))
    shapes = {
        **{"ln_pre.weight": (stacked,), "linear_1.weight": (2 * MIDDLE, stacked)},
        **{"ln_mid.weight": (MIDDLE,), "linear_2.weight": (hidden, MIDDLE)},
    }
    named = {f"multi_modal_projector.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(named, Path(folder) / "model.safetensors", metadata={"format": "pt"})
    ids = AutoTokenizer.from_pretrained(text_model)(TEXT.read_text())["input_ids"]
    if len(ids) < tokens:
        raise BenchmarkError(f"--prompts {tokens} is more than the {len(ids)} tokens of the text: give fewer")
    return lambda _: ids[:tokens]


def run_real(options: argparse.Namespace) -> None:
    """`real`: ours and PyTorch's in turn, at each length of prompt."""
    check_common(options)
    for option in ("text_model", "audio_model"):
        if not (Path(getattr(options, option)) / "config.json").is_file():
            raise BenchmarkError(
                f"no checkpoint in {getattr(options, option)}: --{option.replace('_', '-')} is a folder that "
                "scripts/convert_gguf_llama.py or scripts/convert_ctranslate2_whisper.py makes"
            )
    found, lengths = machine(options.threads), sorted(set(options.prompts))
    with tempfile.TemporaryDirectory(prefix="benchmark") as folder:
        models = (str(Path(named).resolve()) for named in (options.text_model, options.audio_model))
        ids = in_a_process(prepare, *models, folder, lengths[-1], request="")
        arguments = folder, ids, options.new_tokens, options.threads
        with Team({name: (contender, name, *arguments) for name in ("ours", *PYTORCH)}) as team:
            first = {name: child.ask("first") for name, child in team.items()}
            team.take_turns(lengths, 1)  # compiles
            series = team.take_turns(lengths, options.rounds)
    for name, place in compare_tokens(first).items():
        print(f"tokens   {name}: {'the same as ours' if place is None else f'differ from new token {place + 1} on'}")
    rows = [["medians", *series]]
    figures = []
    for figure, limit in (("first", FIRST_LIMIT), ("token", TOKEN_LIMIT)):
        for length in lengths:
            of = {name: values[f"{figure} {length}"] for name, values in series.items()}
            label = f"{'first token' if figure == 'first' else 'a token'} after a prompt of {length}, ms"
            rows.append([label, *(f"{1e3 * statistics.median(values):.1f}" for values in of.values())])
            figures.append(compare(label, of["ours"], better(*(of[name] for name in PYTORCH)), 1e3, limit))
    grown, needed = (first["ours"][name] * 2**-20 for name in ("grown", "needed"))
    label = "peak memory, MiB; ratio: to parameters + cache"
    rows.append([label, *(f"{answer['grown'] * 2**-20:.0f}" for answer in first.values())])
    figures.append(Figure(label, grown, ratio=grown / needed, limit=MEMORY_LIMIT))
    print(f"\n{options.new_tokens} new tokens, {options.rounds} rounds\n" + "\n".join(columns(rows)))
    finish(options, {"machine": found, "prompts": lengths, "first": first, "seconds": series}, figures)
    if options.plot:
        shown = {}
        for name, values in series.items():
            shown[name] = {figure: 1e3 * statistics.median(of) for figure, of in values.items()}
        plot(options.plot, "published weights", "ms", shown)


def add_real(subparsers) -> None:
    """The command line of `real`."""
    parser = subparsers.add_parser("real", help="first token, tokens and memory with published weights")
    parser.add_argument("--text-model", metavar="DIR", required=True, help="what convert_gguf_llama.py makes")
    parser.add_argument("--audio-model", metavar="DIR", required=True, help="what convert_ctranslate2_whisper.py makes")
    help = "tokens of the prompts (default: 40 150 556)"
    parser.add_argument("--prompts", type=at_least(2), nargs="+", default=[40, 150, 556], metavar="N", help=help)
    parser.add_argument("--new-tokens", type=at_least(2), default=48, metavar="N", help="(default: %(default)s)")
    add_common(parser, run_real)

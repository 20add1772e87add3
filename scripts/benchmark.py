"""Measure this package against transformers on PyTorch: same checkpoint, clip, tokens, threads and dtype (fp32).

    python scripts/benchmark.py generate                      # the bundled demo checkpoint
    python scripts/benchmark.py generate --random small       # 12 + 12 layers of 512, random weights
    python scripts/benchmark.py generate --model DIR --audio clip.wav --prompt "What do you hear?" --json out.json
    python scripts/benchmark.py load --size 1.7b --mindone    # from the disk to parameters
    python scripts/benchmark.py batch --clips 64              # a batch job against one clip after the other
    python scripts/benchmark.py finetune --random small       # LoRA steps, and memory by the length of the prompts

Machines are shared and noisy, so an absolute time says little. Every contender lives in a process of its own, all of
them take turns within a round, and what counts is the median over the rounds of the ratio within a round. Needs
PyTorch (tests/requirements.txt).
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # also in the processes started below, which import this file

from benchmark_batch import add_batch  # noqa: E402
from benchmark_features import add_features  # noqa: E402
from benchmark_finetune import add_finetune  # noqa: E402
from benchmark_load import add_load  # noqa: E402

from mindone_audio.checkpoints import demo_checkpoint  # noqa: E402

PROMPT = "What do you hear?"
CLIP_SECONDS = 5  # of the clip that is made where none is given
MEL_FRAMES_PER_SECOND = 100
TIMES = {  # figure: its name in the table, and what turns seconds into the unit shown
    "prefill": ("encoder + prefill, ms", 1e3),
    "token": ("generate, ms/token", 1e3),
    "step": ("bare decode step, ms/token", 1e3),
    "compile": ("compile (first call's extra), s", 1),
    "memory": ("peak memory, MiB", 2**-20),
}
# Layers, width, heads, feed-forward width of the encoder; the same, key-value heads and vocabulary of the decoder.
RANDOM = {
    "demo": {"encoder": (4, 192, 4, 768), "decoder": (3, 256, 4, 512), "kv": 2, "vocab": 2048, "mel": 80, "window": 10},
    "small": {
        "encoder": (12, 512, 8, 2048),
        "decoder": (12, 512, 8, 1408),
        "kv": 8,
        "vocab": 32000,
        "mel": 128,
        "window": 30,
    },
    "1b": {
        "encoder": (24, 1024, 16, 4096),
        "decoder": (16, 2048, 16, 5504),
        "kv": 8,
        "vocab": 32000,
        "mel": 128,
        "window": 30,
    },
}


class BenchmarkError(Exception):
    """What the user can correct: printed as one line."""


# --- What runs in a process of its own: nothing heavy is imported outside these functions. -------------------------


class Clock:
    """A streamer for either `generate`: when the prompt and then each token came."""

    def __init__(self):
        self.start, self.times = time.perf_counter(), []

    def put(self, tokens) -> None:
        self.times.append(time.perf_counter() - self.start)

    def end(self) -> None:
        pass

    def figures(self) -> dict[str, float]:
        """Seconds to the first token, and for each later one; times[0] is the prompt's."""
        return {"prefill": self.times[1], "token": (self.times[-1] - self.times[1]) / (len(self.times) - 2)}


class Ours:
    """This package; `interpreted` runs the same cells without compiling them."""

    def __init__(self, folder: str, inputs: dict, new_tokens: int, interpreted: bool):
        import mindspore as ms

        from mindone_audio import AutoModelForAudioTextToText, to_mindspore

        self.model = AutoModelForAudioTextToText.from_pretrained(folder, mindspore_dtype=ms.float32)
        self.inputs, self.new_tokens, self.compiled = to_mindspore(inputs), new_tokens, not interpreted

    def generate(self, clock: Clock) -> list[int]:
        settings = {"max_new_tokens": self.new_tokens}  # without an end token
        out = self.model.generate(
            **self.inputs, generation_config=settings, streamer=clock, compile=self.compiled
        ).asnumpy()
        return out[0, -self.new_tokens :].tolist()

    def step(self) -> float:
        """Seconds for each run of the decode graph: token in, best token out, on the host."""
        from mindone_audio.generation.generate import _prefill

        inputs = dict(self.inputs)
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        settings = inputs | {"max_new_tokens": self.new_tokens}
        sequences, (_, best) = _prefill(self.model._begin(ids, mask, None, None, self.compiled, settings), 1)
        tokens = best.asnumpy()
        start = time.perf_counter()
        for _ in range(self.new_tokens - 1):
            _, best = sequences.extend(tokens[:, None])
            tokens = best.asnumpy()
        return (time.perf_counter() - start) / (self.new_tokens - 1)


class Torch:
    """transformers on PyTorch, with one of its attention implementations."""

    def __init__(self, folder: str, inputs: dict, new_tokens: int, attention: str, threads: int):
        import torch
        from transformers import GenerationConfig, Qwen2AudioForConditionalGeneration

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = Qwen2AudioForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        ).eval()
        self.model.generation_config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
        self.inputs, self.new_tokens = {name: torch.from_numpy(value) for name, value in inputs.items()}, new_tokens

    def generate(self, clock: Clock) -> list[int]:
        return self.model.generate(**self.inputs, streamer=clock)[0, -self.new_tokens :].tolist()

    def step(self) -> float:
        """Seconds for each call of the language model with a cache: token in, best token out.

        Without an attention mask, which one unpadded prompt does not need: PyTorch's least work.
        """
        output = self.model(**self.inputs, use_cache=True)
        cache, tokens = output.past_key_values, output.logits[:, -1].argmax(-1)
        start = time.perf_counter()
        for _ in range(self.new_tokens - 1):
            logits = self.model.language_model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True).logits
            tokens = logits[:, -1].argmax(-1)
        return (time.perf_counter() - start) / (self.new_tokens - 1)


CONTENDERS = {
    "ours": lambda *common, threads: Ours(*common, interpreted=False),
    "ours, interpreted": lambda *common, threads: Ours(*common, interpreted=True),
    "torch eager": lambda *common, threads: Torch(*common, "eager", threads),
    "torch sdpa": lambda *common, threads: Torch(*common, "sdpa", threads),
}


def use_threads(count: int) -> None:
    """Let this process compute on `count` cores; to be called before MindSpore or PyTorch is imported.

    PyTorch takes its number from OMP_NUM_THREADS. MindSpore 2.10 does for oneDNN only: its own kernels' pool is as
    large as the set of cores that the process may use (measured), so that set is cut as well.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    if hasattr(os, "sched_setaffinity") and count < len(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def peak_memory() -> int:
    """The most memory that this process has had resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def contender_process(connection, name: str, folder: str, inputs_file: str, new_tokens: int, threads: int) -> None:
    """Load once, then answer each name of a measurement with its figures."""
    try:
        use_threads(threads)
        import numpy as np

        inputs = dict(np.load(inputs_file))
        contender = CONTENDERS[name](folder, inputs, new_tokens, threads=threads)

        def generate():
            clock = Clock()
            tokens = contender.generate(clock)
            return {**clock.figures(), "total": clock.times[-1], "tokens": tokens, "memory": peak_memory()}

        measurements = {"generate": generate, "step": lambda: {"step": contender.step()}}
        connection.send({})
        while request := connection.recv():
            connection.send(measurements[request]())
    except EOFError:
        pass  # whoever asked is gone
    except Exception as error:
        connection.send({"error": explain(error)})


def prepare_process(connection, options: dict) -> None:
    """Write the model inputs, and the checkpoint if it is to be made; answer with what they are."""
    try:
        use_threads(options["threads"])
        import numpy as np

        if options["random"]:
            write_random_checkpoint(options["folder"], **RANDOM[options["random"]])
        folder = Path(options["folder"])
        if (folder / "preprocessor_config.json").exists():
            inputs = processed_inputs(folder, options["audio"], options["prompt"])
        elif options["audio"]:
            raise BenchmarkError(f"{folder} has no preprocessor_config.json, so --audio cannot be used: leave it out")
        else:
            inputs = random_inputs(folder)
        np.savez(options["inputs_file"], **inputs)
        frames = int(inputs["feature_attention_mask"].sum())
        connection.send({"prompt_tokens": inputs["input_ids"].shape[1], "clip_seconds": frames / MEL_FRAMES_PER_SECOND})
    except Exception as error:
        connection.send({"error": explain(error)})


def explain(error: Exception) -> str:
    """One line for what a user can correct, the traceback for what is a mistake in the code."""
    if isinstance(error, ImportError):
        return f"{error}: the comparison needs pip install -r tests/requirements.txt"
    if isinstance(error, (BenchmarkError, ValueError, OSError)):
        return " ".join(str(error).split())
    return traceback.format_exc()


def write_random_checkpoint(folder: str, encoder, decoder, kv: int, vocab: int, mel: int, window: int) -> None:
    """A Qwen2-Audio in fp32 with weights of unit gain, so that scores are far from ties; window in seconds."""
    import torch
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    names = ("encoder_layers", "d_model", "encoder_attention_heads", "encoder_ffn_dim")
    audio = {"num_mel_bins": mel, "max_source_positions": window * MEL_FRAMES_PER_SECOND // 2}
    names_text = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    text = {"model_type": "qwen2", "num_key_value_heads": kv, "vocab_size": vocab, "tie_word_embeddings": False}
    config = Qwen2AudioConfig(
        audio_config={**audio, **dict(zip(names, encoder))},
        text_config={**text, **dict(zip(names_text, decoder)), "max_position_embeddings": 4096},
        audio_token_index=vocab - 1,
    )
    torch.manual_seed(0)
    with torch.device("meta"):  # no second, slower initialisation
        model = Qwen2AudioForConditionalGeneration(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1)
        model.language_model.model.embed_tokens.weight.normal_()
    model.save_pretrained(folder)


def processed_inputs(folder: Path, audio: str | None, text: str) -> dict:
    """What the checkpoint's own processor makes of a clip and a question, with its chat template if it has one."""
    import numpy as np

    from mindone_audio import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    if audio is None:  # a rising tone in noise, as long as fits
        rate = processor.feature_extractor.sampling_rate
        t = np.arange(min(CLIP_SECONDS, processor.feature_extractor.chunk_length) * rate) / rate
        tone = 0.4 * np.sin(2 * np.pi * (200 + 150 * t) * t)
        audio = (tone + np.random.default_rng(0).normal(0, 0.02, t.size)).astype(np.float32)
    elements = [{"type": "audio", "audio": audio}, {"type": "text", "text": text}]
    return dict(
        processor.apply_chat_template(
            [{"role": "user", "content": elements}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
    )


def random_inputs(folder: Path) -> dict:
    """Random features and tokens of the shapes that a config asks for, where a checkpoint has no processor."""
    import numpy as np
    from transformers import Qwen2AudioConfig

    config = Qwen2AudioConfig.from_pretrained(folder)
    window = config.audio_config.max_source_positions * 2
    frames = min(CLIP_SECONDS * MEL_FRAMES_PER_SECOND, window)
    audio_tokens = ((frames - 1) // 2 + 1 - 2) // 2 + 1
    rng = np.random.default_rng(0)
    words = [i for i in rng.integers(3, config.text_config.vocab_size, 64) if i != config.audio_token_index][:32]
    ids = words[:8] + [config.audio_token_index] * audio_tokens + words[8:]
    return {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "input_features": rng.normal(size=(1, config.audio_config.num_mel_bins, window)).astype(np.float32),
        "feature_attention_mask": (np.arange(window) < frames).astype(np.int64)[None],
    }


# --- What directs them ---------------------------------------------------------------------------------------------


class Child:
    """A process that answers requests, started from a fresh interpreter."""

    def __init__(self, target, *arguments):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def answer(self) -> dict:
        try:
            answer = self.connection.recv()
        except EOFError:
            self.process.join()
            raise BenchmarkError(
                f"a measuring process ended with status {self.process.exitcode}: perhaps too little memory"
            ) from None
        if "error" in answer:
            raise BenchmarkError(answer["error"])
        return answer

    def ask(self, request: str) -> dict:
        self.connection.send(request)
        return self.answer()

    def close(self) -> None:
        if self.process.is_alive():
            self.process.terminate()
        self.process.join()


def measure_generate(names: list[str], rounds: int, arguments: tuple) -> dict[str, dict]:
    """Figures of each contender: prefill, token, step (seconds) as lists over the rounds; compile (the first call's
    seconds less the second's), memory (bytes, after the first call) and the tokens."""
    children, results = {}, {}
    try:
        for name in names:
            children[name] = Child(contender_process, name, *arguments)
        for name in names:
            children[name].answer()  # loaded: from here on one works at a time
        for name in names:
            first = children[name].ask("generate")
            results[name] = {"memory": first["memory"], "tokens": first["tokens"]}
            results[name]["compile"] = max(0.0, first["total"] - children[name].ask("generate")["total"])
            children[name].ask("step")
        series = {name: {"prefill": [], "token": [], "step": []} for name in names}
        for number in range(rounds):
            if sys.stderr.isatty():
                print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
            turn = names[number % len(names) :] + names[: number % len(names)]
            turn = turn[::-1] if number // len(names) % 2 else turn
            for request in ("generate", "step"):
                for name in turn:
                    answer = children[name].ask(request)
                    for figure in series[name].keys() & answer.keys():
                        series[name][figure].append(answer[figure])
        if sys.stderr.isatty():
            print("\r", end="", file=sys.stderr)
    finally:
        for child in children.values():
            child.close()
    return {name: {**results[name], **series[name]} for name in names}


def ratios(ours: dict, theirs: dict) -> dict[str, dict[str, float]]:
    """Ours divided by theirs, for each figure: the median over the rounds, and the least and the most."""
    result = {}
    for figure in TIMES:
        mine, other = ([x[figure]] if not isinstance(x[figure], list) else x[figure] for x in (ours, theirs))
        paired = [a / b for a, b in zip(mine, other) if b > 0]
        if paired:
            result[figure] = {"median": statistics.median(paired), "min": min(paired), "max": max(paired)}
    return result


def report(results: dict[str, dict], compared: dict[str, dict]) -> list[str]:
    """The table: a line for each figure, medians of each contender, then ratios with their range."""
    rows = [["", *results, *(f"ours / {name}" for name in compared)]]
    for figure, (label, scale) in TIMES.items():
        row = [label]
        for result in results.values():
            value = result[figure]
            row.append(f"{(statistics.median(value) if isinstance(value, list) else value) * scale:.4g}")
        for ratio in (ratio.get(figure) for ratio in compared.values()):
            if ratio is None:
                row.append("-")
            elif ratio["min"] == ratio["max"]:
                row.append(f"{ratio['median']:.2f}")
            else:
                row.append(f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) for row in rows]


def describe(setting: dict, differences: dict[str, int | None]) -> list[str]:
    """What was measured, on what, and whether all made the same tokens."""
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    lines = [
        f"model    {setting['model']}, fp32, batch 1, greedy",
        f"input    {setting['clip_seconds']:g} s clip, {setting['prompt_tokens']} prompt tokens with audio, "
        f"{setting['new_tokens']} new tokens",
        f"machine  {setting['cpus']} cores ({setting['machine']}), threads of each: {setting['threads']}, "
        f"load {setting['load']:.1f} at the start; {versions}",
    ]
    if setting["load"] > setting["cpus"] / 2:
        advice = "; try --threads 1 too" if setting["threads"] > 1 else ""
        lines.append(f"         busy: other work slows most whoever's threads wait for each other{advice}")
    for name, place in differences.items():
        same = "the same as ours" if place is None else f"differ from ours from new token {place + 1} on"
        lines.append(f"tokens   {name}: {same}")
    return lines


def compare_tokens(results: dict[str, dict]) -> dict[str, int | None]:
    """For each other contender, the first place where its tokens differ from ours; None where all are equal."""
    ours = results["ours"]["tokens"]
    return {
        name: next((i for i, (a, b) in enumerate(zip(ours, result["tokens"])) if a != b), None)
        for name, result in results.items()
        if name != "ours"
    }


def environment(threads: int) -> dict:
    """What a figure depends on."""
    versions = {name: importlib.metadata.version(name) for name in ("mindspore", "torch", "transformers", "numpy")}
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0]
    return {"versions": versions, "cpus": cpus, "threads": threads, "load": load, "machine": platform.machine()}


def check_generate(options: argparse.Namespace, folder: Path, cpus: int) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    if options.random and options.model:
        raise BenchmarkError("--random and --model were both given: choose one checkpoint")
    if not options.random and not (folder / "config.json").exists():
        raise BenchmarkError(f"no checkpoint in {folder} (no config.json): give --model DIR or --random small")
    if options.audio and "://" not in options.audio and not Path(options.audio).exists():
        raise BenchmarkError(f"no audio file {options.audio}: check --audio")
    if options.random and options.audio:
        raise BenchmarkError("--random has no processor, so --audio cannot be used: leave it out")
    if options.threads > cpus:
        raise BenchmarkError(f"--threads {options.threads} is not between 1 and the {cpus} cores")


def run_generate(options: argparse.Namespace) -> None:
    """`generate`: the same greedy tokens by each contender."""
    folder, machine = Path(options.model or demo_checkpoint()), environment(options.threads)
    check_generate(options, folder, machine["cpus"])
    names = ["ours", "torch eager", "torch sdpa"] + ["ours, interpreted"] * options.interpreted
    with tempfile.TemporaryDirectory(prefix="benchmark") as scratch:
        inputs_file = str(Path(scratch) / "inputs.npz")
        folder = Path(scratch) / "random" if options.random else folder
        wanted = {name: getattr(options, name) for name in ("random", "audio", "prompt", "threads")}
        prepare = Child(prepare_process, {**wanted, "folder": str(folder), "inputs_file": inputs_file})
        try:
            inputs = prepare.answer()
        finally:
            prepare.close()
        arguments = (str(folder), inputs_file, options.new_tokens, options.threads)
        results = measure_generate(names, options.rounds, arguments)
    differences = compare_tokens(results)
    compared = {name: ratios(results["ours"], results[name]) for name in names if name != "ours"}
    model = f"random {options.random}" if options.random else str(folder)
    setting = {"model": model, **inputs, "new_tokens": options.new_tokens, "rounds": options.rounds, **machine}
    print("\n".join(describe(setting, differences)))
    print(
        f"\nMedians of {options.rounds} rounds. Ratios: median within a round (least to most); below 1 ours is better"
    )
    print("\n".join(report(results, compared)))
    if options.json:
        content = {**setting, "contenders": results, "ratios": compared, "first_different_token": differences}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


def _at_least(low: int):
    def integer(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
        return int(text)

    return integer


def add_generate(subparsers) -> None:
    parser = subparsers.add_parser("generate", help="encoder, prefill and decoding of one clip, against PyTorch")
    parser.add_argument("--model", metavar="DIR", help="a checkpoint folder (default: the bundled demo checkpoint)")
    parser.add_argument("--random", choices=RANDOM, help="make a model of this size with random weights instead")
    parser.add_argument("--audio", metavar="CLIP", help=f"file or URL (default: {CLIP_SECONDS} s made here)")
    parser.add_argument("--prompt", default=PROMPT, help="the question about the clip (default: %(default)s)")
    parser.add_argument("--new-tokens", type=_at_least(2), default=64, help="to generate (default: %(default)s)")
    parser.add_argument("--rounds", type=_at_least(1), default=7, help="of all contenders (default: %(default)s)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=_at_least(1), default=cores, help="of each (default: the cores, %(default)s)")
    parser.add_argument("--interpreted", action="store_true", help="also ours without compilation (slow)")
    parser.add_argument("--json", metavar="FILE", help="also write all figures there")
    parser.set_defaults(run=run_generate)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    add_generate(subparsers)
    add_load(subparsers)
    add_batch(subparsers)
    add_features(subparsers)
    add_finetune(subparsers)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (BenchmarkError, OSError, importlib.metadata.PackageNotFoundError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

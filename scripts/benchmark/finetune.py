"""`benchmark.py finetune`: LoRA steps a second, and how memory grows with the length of the prompts.

The same adapters (r=16 on the decoder's linear layers, the encoder frozen), batches and optimiser, ours and PyTorch's
PEFT. Each contender lives in a process of its own, and all take turns within a round; what counts is the median over
the rounds of the ratio within a round. Memory is the most that a process held, above what it held before a step.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmark.checkpoint import RANDOM, write_random_checkpoint
from benchmark.common import (
    BenchmarkError,
    Figure,
    add_common,
    at_least,
    check_common,
    compare,
    finish,
    machine,
    paired,
    plot,
)
from benchmark.processes import Team, forget_peak, in_a_process, peak_memory, resident, use_threads

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STEP_LIMIT, MEMORY_LIMIT = 1.0, 0.8  # the latter with checkpointing
LEARNED = 16  # tokens of each answer
RATE = 1e-4
MODES = {"off": ("",), "on": (", recompute",), "both": ("", ", recompute")}  # by the option --checkpointing


def make_inputs(folder: str, rows: int, length: int, clip_seconds: float) -> dict[str, np.ndarray]:
    """Random prompts of so many tokens, a clip in each, of which the last tokens are learned."""
    from transformers import AutoConfig

    from mindone_audio.models import AutoModelForAudioTextToText  # noqa: F401  (registers the configs)

    config = AutoConfig.from_pretrained(folder)
    frames, window = int(clip_seconds * 100), 2 * config.audio_config.max_source_positions
    audio = ((frames - 1) // 2 + 1 - 2) // 2 + 1
    rng = np.random.default_rng(0)
    ids = rng.integers(3, config.audio_token_index, (rows, max(length, audio + LEARNED + 2)))
    ids[:, 1 : 1 + audio] = config.audio_token_index
    labels = np.full_like(ids, -100)
    labels[:, -LEARNED:] = ids[:, -LEARNED:]
    mask = np.zeros((rows, window), np.int64)
    mask[:, :frames] = 1
    features = rng.normal(size=(rows, config.audio_config.num_mel_bins, window)).astype(np.float32)
    features[:, :, frames:] = 0
    return {
        **{"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels},
        **{"input_features": features, "feature_attention_mask": mask},
    }


def ours(folder: str, inputs: dict, threads: int, recompute: bool):
    """A function that takes one step and returns its loss."""
    import mindspore as ms

    from mindone_audio import AutoModelForAudioTextToText
    from mindone_audio.finetune import FinetuneSettings, LoraSettings, Trainer, add_lora

    model = AutoModelForAudioTextToText.from_pretrained(folder, mindspore_dtype=ms.float32)
    model = add_lora(model, LoraSettings(r=16, alpha=32, target_modules=TARGETS))
    rows = len(inputs["input_ids"])
    settings = FinetuneSettings(
        "unused",
        max_steps=10**6,
        per_device_train_batch_size=rows,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=recompute,
    )
    trainer = Trainer(model, None, None, settings, [None])

    def step() -> float:
        loss, _, _ = trainer._take_step([inputs])
        trainer.step += 1
        return loss

    return step


def pytorch(folder: str, inputs: dict, threads: int, recompute: bool):
    """The same on PyTorch."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2AudioForConditionalGeneration

    torch.set_num_threads(threads)
    model = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    config = LoraConfig(r=16, lora_alpha=32, target_modules=list(TARGETS), exclude_modules=r".*audio_tower.*")
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = get_peft_model(model, config).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    batch = {name: torch.from_numpy(value) for name, value in inputs.items()}

    def step() -> float:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


CONTENDERS = {
    "ours": (ours, False),
    "PyTorch PEFT": (pytorch, False),
    "ours, recompute": (ours, True),
    "PyTorch PEFT, recompute": (pytorch, True),
}


def contend(name: str, folder: str, inputs_file: str, threads: int) -> Callable:
    """Load, then take so many steps whenever asked: seconds a step, losses, bytes of memory above what was held."""
    use_threads(threads)
    make, recompute = CONTENDERS[name]
    step = make(folder, dict(np.load(inputs_file)), threads, recompute)
    before = resident()
    forget_peak()

    def answer(steps: int) -> dict:
        begun = time.perf_counter()
        losses = [step() for _ in range(steps)]
        seconds = (time.perf_counter() - begun) / steps
        return {"seconds": seconds, "losses": losses, "memory": max(0, peak_memory() - before)}

    return answer


def prepare(folder: str, size: dict | None, shapes: dict[str, tuple], threads: int) -> Callable:
    """A process that writes the checkpoint if it has a size, and inputs of `make_inputs`' shapes, by file."""
    use_threads(threads)

    def answer(request: str) -> None:
        if size:
            write_random_checkpoint(folder, **size)
        for file, shape in shapes.items():
            np.savez(file, **make_inputs(folder, *shape))

    return answer


def chosen(options: argparse.Namespace) -> list[str]:
    """The contenders of the modes that were asked for."""
    return [whose + mode for mode in MODES[options.checkpointing] for whose in ("ours", "PyTorch PEFT")]


def measure_steps(options: argparse.Namespace, folder: str, inputs_file: str) -> dict[str, dict]:
    """Seconds a step of each round, all losses, and the memory of each contender."""
    with Team({name: (contend, name, folder, inputs_file, options.threads) for name in chosen(options)}) as team:
        first = team.take_turns([2], 1)  # compiles
        rounds = team.take_turns([options.steps], options.rounds)
    found = {}
    for name in chosen(options):
        losses = [loss for taken in first[name]["losses"] + rounds[name]["losses"] for loss in taken]
        found[name] = {"seconds": rounds[name]["seconds"], "losses": losses, "memory": rounds[name]["memory"][-1]}
    return found


def measure_memory(options: argparse.Namespace, folder: str, files: dict[int, str]) -> dict[str, dict[int, int]]:
    """Bytes that two steps take, of each contender by length; each in a process of its own, as a peak never falls."""
    memory: dict[str, dict[int, int]] = {name: {} for name in chosen(options)}
    for length, file in files.items():
        for name in memory:
            memory[name][length] = in_a_process(contend, name, folder, file, options.threads, request=2)["memory"]
    return memory


def make_figures(found: dict[str, dict], label: str, modes: tuple[str, ...]) -> list[Figure]:
    """Rows of the table of figures: a step's time and memory to PyTorch PEFT's, without and with recomputing."""
    figures = []
    for mode in modes:
        ours, theirs = found["ours" + mode], found["PyTorch PEFT" + mode]
        row = f"LoRA step, {label}{mode}"
        figures.append(compare(f"{row}, ms", ours["seconds"], theirs["seconds"], 1e3, STEP_LIMIT))
        limit = MEMORY_LIMIT if mode else None
        figures.append(compare(f"{row}, memory, MiB", [ours["memory"]], [theirs["memory"]], 2**-20, limit))
    return figures


def run_finetune(options: argparse.Namespace) -> None:
    """`finetune`: speed of all contenders, then memory by length."""
    from mindone_audio.checkpoints import demo_checkpoint

    check_common(options)
    if options.model and options.random:
        raise BenchmarkError("--random and --model were both given: choose one checkpoint")
    folder = options.model or str(demo_checkpoint())
    if not (Path(folder) / "config.json").exists():
        raise BenchmarkError(f"no checkpoint in {folder} (no config.json): give --model DIR or --random small")
    machine_found = machine(options.threads)
    with tempfile.TemporaryDirectory(prefix="benchmark") as scratch:
        folder = scratch if options.random else folder
        files = {length: str(Path(scratch) / f"{length}.npz") for length in (options.length, *options.lengths)}
        shapes = {file: (options.rows, length, options.clip_seconds) for length, file in files.items()}
        in_a_process(prepare, folder, RANDOM.get(options.random), shapes, options.threads, request="write")
        found = measure_steps(options, folder, files[options.length])
        memory = measure_memory(options, folder, {length: files[length] for length in options.lengths})
    print(f"{options.rows} prompts of {options.length} tokens, {options.rounds} rounds of {options.steps} steps,")
    print(f"{options.threads} threads\n\n{'':<26}{'steps/s':>9}{'memory, MiB':>13}{'first loss':>12}{'last loss':>12}")
    for name, values in found.items():
        speed = 1 / statistics.median(values["seconds"])
        first, last = values["losses"][0], values["losses"][-1]
        print(f"{name:<26}{speed:>9.2f}{values['memory'] / 2**20:>13.0f}{first:>12.5f}{last:>12.5f}")
    for mode in MODES[options.checkpointing]:
        ratios = paired(found["ours" + mode]["seconds"], found["PyTorch PEFT" + mode]["seconds"])
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"ours / PyTorch PEFT{mode}: {statistics.median(ratios):.2f} of the time {spread}")
    print(f"\nmemory of two steps by length, MiB\n{'tokens':<10}" + "".join(f"{name:>26}" for name in memory))
    for length in options.lengths:
        print(f"{length:<10}" + "".join(f"{sizes[length] / 2**20:>26.0f}" for sizes in memory.values()))
    label = options.random or Path(folder).name
    setting = {name: getattr(options, name) for name in ("rows", "length", "clip_seconds", "rounds", "steps")}
    content = {**setting, "model": label, "machine": machine_found, "contenders": found, "memory": memory}
    modes = MODES[options.checkpointing]
    finish(options, content, make_figures(found, f"{label}, {options.rows} x {options.length} tokens", modes))
    if options.plot:
        lines = {name: {n: size * 2**-20 for n, size in sizes.items()} for name, sizes in memory.items()}
        plot(options.plot, "memory of two LoRA steps", "MiB", lines, along="tokens of a prompt")


def add_finetune(subparsers) -> None:
    """The command line of `finetune`."""
    parser = subparsers.add_parser("finetune", help="LoRA steps a second, and memory by length, against PyTorch PEFT")
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder (default: the bundled demo checkpoint)")
    parser.add_argument("--random", choices=RANDOM, help="random weights of these sizes instead")
    parser.add_argument("--rows", type=at_least(1), default=4, help="prompts in a batch (default: %(default)s)")
    parser.add_argument("--length", type=at_least(1), default=256, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--clip-seconds", type=float, default=3.0, help="of audio in it (default: %(default)s)")
    parser.add_argument("--steps", type=at_least(1), default=5, help="in a round (default: %(default)s)")
    parser.add_argument("--lengths", type=at_least(1), nargs="*", default=[256, 512, 1024], help="to measure memory at")
    help = "gradient checkpointing: without, with, or all four contenders, which need memory at the same time"
    parser.add_argument("--checkpointing", choices=MODES, default="both", help=help + " (default: %(default)s)")
    add_common(parser, run_finetune)

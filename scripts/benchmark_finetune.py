"""`benchmark.py finetune`: LoRA steps a second, and how memory grows with the length of the prompts.

The same adapters (r=16 on the decoder's linear layers, the encoder frozen), batches and optimiser, ours and PyTorch's
PEFT. Each contender lives in a process of its own, and all take turns within a round; what counts is the median over
the rounds of the ratio within a round. Memory is the most that a process held, above what it held before a step.
"""

import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LEARNED = 16  # tokens of each answer
RATE = 1e-4


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


def contend(connection, name: str, folder: str, inputs: dict, threads: int) -> None:
    """In a process of its own: load, then take so many steps whenever asked; seconds, losses, bytes of memory."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    make, recompute = CONTENDERS[name]
    step = make(folder, inputs, threads, recompute)
    before = _resident()
    connection.send("ready")
    while (count := connection.recv()) is not None:
        begun = time.perf_counter()
        losses = [step() for _ in range(count)]
        connection.send((time.perf_counter() - begun, losses, max(0, _peak() - before)))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_contenders(names, folder: str, inputs: dict, threads: int, rounds: int, steps: int) -> dict[str, dict]:
    """Seconds a step of each round, the losses and the memory of each contender."""
    context = multiprocessing.get_context("spawn")
    team = {}
    for name in names:
        near, far = context.Pipe()
        process = context.Process(target=contend, args=(far, name, folder, inputs, threads), daemon=True)
        process.start()
        far.close()
        near.recv()
        team[name] = near
    found: dict[str, dict] = {name: {"seconds": [], "losses": []} for name in names}
    for turn in range(-1, rounds):  # the first compiles
        for name, connection in team.items():
            connection.send(2 if turn < 0 else steps)
            seconds, losses, memory = connection.recv()
            found[name]["losses"] += losses
            found[name]["memory"] = memory
            if turn >= 0:
                found[name]["seconds"].append(seconds / steps)
    for connection in team.values():
        connection.send(None)
    return found


def run_finetune(options) -> None:
    """`finetune`: speed of all contenders, then memory by length."""
    from mindone_audio.checkpoints import demo_checkpoint

    with tempfile.TemporaryDirectory(prefix="benchmark") as scratch:
        folder = options.model or str(demo_checkpoint())
        if options.random:
            from benchmark import RANDOM, write_random_checkpoint

            folder = scratch
            write_random_checkpoint(folder, **RANDOM[options.random])
        inputs = make_inputs(folder, options.rows, options.length, options.clip_seconds)
        found = run_contenders(CONTENDERS, folder, inputs, options.threads, options.rounds, options.steps)
        shape = " x ".join(map(str, inputs["input_ids"].shape))
        print(f"{shape} tokens, {options.rounds} rounds of {options.steps} steps, {options.threads} threads\n")
        print(f"{'':<26}{'steps/s':>9}{'memory, MiB':>13}{'first loss':>12}{'last loss':>12}")
        for name, values in found.items():
            speed = 1 / statistics.median(values["seconds"])
            first, last = values["losses"][0], values["losses"][-1]
            print(f"{name:<26}{speed:>9.2f}{values['memory'] / 2**20:>13.0f}{first:>12.5f}{last:>12.5f}")
        for mode in ("", ", recompute"):
            own, other = found["ours" + mode]["seconds"], found["PyTorch PEFT" + mode]["seconds"]
            ratios = [a / b for a, b in zip(own, other)]
            spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"ours / PyTorch PEFT{mode}: {statistics.median(ratios):.2f} of the time {spread}")
        print(f"\nmemory of two steps by length, MiB\n{'tokens':<10}" + "".join(f"{name:>26}" for name in CONTENDERS))
        for length in options.lengths:
            inputs = make_inputs(folder, options.rows, length, options.clip_seconds)
            row = ""
            for name in CONTENDERS:  # a process for each, because the most is kept for ever
                memory = run_contenders([name], folder, inputs, options.threads, 0, 1)[name]["memory"]
                row += f"{memory / 2**20:>26.0f}"
            print(f"{length:<10}{row}")


def add_finetune(subparsers) -> None:
    """The command line of `finetune`."""
    parser = subparsers.add_parser("finetune", help="LoRA steps a second, and memory by length, against PyTorch PEFT")
    parser.add_argument("--model", help="checkpoint folder (default: the bundled demo checkpoint)")
    parser.add_argument("--random", choices=("demo", "small", "1b"), help="random weights of these sizes instead")
    parser.add_argument("--rows", type=int, default=4, help="prompts in a batch (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--clip-seconds", type=float, default=3.0, help="of audio in it (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of all contenders (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="in a round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each contender (default: %(default)s)")
    parser.add_argument("--lengths", type=int, nargs="*", default=[256, 512, 1024], help="for the table of memory")
    parser.set_defaults(run=run_finetune)

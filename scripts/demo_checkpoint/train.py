"""Train, export and evaluate the bundled demo checkpoint (a tiny Qwen2-Audio) on self-made sounds.

Needs PyTorch, transformers 4.57, soundfile, soxr and the programs espeak-ng, sox and ffmpeg (sox and ffmpeg only for
`evaluate`). Everything is made here: no recording and no pretrained weight is used.

    python scripts/demo_checkpoint/train.py train --work WORK --bfloat16 --threads 2 --minutes 135  # by the clock
    python scripts/demo_checkpoint/train.py train --work WORK --bfloat16 --threads 2 --steps 14000  # reproducible
    python scripts/demo_checkpoint/train.py export --work WORK  # snapshot -> checkpoint folder
    python scripts/demo_checkpoint/train.py evaluate --work WORK  # measures the checkpoint and writes its card

On two idle CPU cores the speech bank takes about 9 minutes and training about 135 (36,000 utterances took 4 minutes,
and 28 clips a second are trained on; neither was timed whole), the evaluation about 2.
`train` exports a usable checkpoint every `--export-every` minutes and continues from its last snapshot when called
again with `--resume`. One `--seed` fixes the voices, the sounds, the order of the data and the initial weights.
"""

import argparse
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2AudioForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the package that this file is in

from demo_checkpoint.batches import ClipStream, collate, make_clip  # noqa: E402
from demo_checkpoint.model import (  # noqa: E402
    LOSS_WEIGHTS,
    AuxiliaryHeads,
    answer_logits,
    encode_audio,
    losses,
    make_config,
    make_generation_config,
    make_model,
)
from demo_checkpoint.prompts import Packer, make_processor, train_tokenizer  # noqa: E402
from demo_checkpoint.sounds import Draw  # noqa: E402
from demo_checkpoint.speech import UTTERANCES, SpeechBank, build_bank  # noqa: E402

logger = logging.getLogger("demo")

CHECKPOINT = Path(__file__).resolve().parents[2] / "mindone_audio" / "checkpoints" / "qwen2_audio_demo"
WARMUP_STEPS = 250
EMA_DECAY = 0.998
FINAL_LEARNING_RATE = 0.01  # as a part of the peak


def export(state: dict, work: Path, seed: int, folder: Path) -> None:
    """Write the averaged weights (bfloat16), the configuration and the processor; each file appears in one move."""
    tokenizer = train_tokenizer(seed)
    model = make_model(make_config(tokenizer))
    model.load_state_dict(state["average"])
    model.generation_config = make_generation_config(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        model.to(torch.bfloat16).save_pretrained(scratch, safe_serialization=True)
        make_processor(tokenizer).save_pretrained(scratch)
        processor = Path(scratch) / "processor_config.json"
        silence = {"silence_answers": ["Nobody is speaking."]}  # which is no transcription
        processor.write_text(json.dumps(json.loads(processor.read_text()) | silence, indent=2, sort_keys=True) + "\n")
        for path in sorted(Path(scratch).iterdir()):
            moved = Path(shutil.copy(path, folder / f".{path.name}.part"))
            moved.chmod(0o644)  # safetensors writes files that only their owner may read
            os.replace(moved, folder / path.name)
    logger.info("exported step %d to %s", state["step"], folder.name)


@torch.no_grad()
def quick_evaluation(model, packer: Packer, clips: list, batch_size: int = 30) -> dict[str, float]:
    """Share of exactly right answers per task and kind, by teacher forcing.

    Greedy decoding reproduces an answer exactly if and only if each of its tokens is the most likely one given the
    ones before it, so one packed forward measures exact match.
    """
    scores: dict[str, list[bool]] = {}
    draw = Draw(np.random.default_rng(0), held_out=True)
    for start in range(0, len(clips), batch_size):
        part = clips[start : start + batch_size]
        batch = collate(packer, draw, part)
        logits, targets, (rows, columns) = answer_logits(
            model, batch, *encode_audio(model, batch.mel, batch.num_frames)
        )
        right = (logits.argmax(-1) == targets) | (targets == -100)
        segment = batch.segments[rows, columns + 1]
        for row, (_, label) in enumerate(part):
            for index, task in enumerate(batch.tasks[row], start=1):
                exact = bool(right[(rows == row) & (segment == index)].all())
                scores.setdefault(task, []).append(exact)
                if task == "caption":
                    scores.setdefault(f"caption/{label.kind}", []).append(exact)
    return {name: round(float(np.mean(values)), 3) for name, values in sorted(scores.items())}


def learning_rate(args: argparse.Namespace, progress: float, steps_in_phase: int) -> float:
    """A cosine over the budget, with a linear warm-up at the start of either phase."""
    cosine = FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
    return args.learning_rate * min(1.0, (steps_in_phase + 1) / WARMUP_STEPS) * cosine


def batches(args: argparse.Namespace, tokenizer, encoder_only: bool, step: int):
    """An iterator over the batches that a process of its own makes."""
    seed = args.seed * 1_000_000 + step
    banks = [args.work / "bank_train", args.work / "bank_variants"]
    stream = ClipStream(banks, tokenizer, args.batch_size, seed, encoder_only)
    return iter(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=16))


def train(args: argparse.Namespace) -> None:
    """The training loop, with snapshots, exports and quick evaluations by the clock."""
    for part, size in UTTERANCES.items():
        build_bank(args.work / f"bank_{part}", size, args.seed, part)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tokenizer = train_tokenizer(args.seed)
    model = make_model(make_config(tokenizer)).train()
    if args.init:
        weights = Qwen2AudioForConditionalGeneration.from_pretrained(args.init, dtype=torch.float32)
        model.load_state_dict(weights.state_dict())
    heads = AuxiliaryHeads(model.config.audio_config.d_model)
    trained = [p for p in [*model.parameters(), *heads.parameters()] if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.02},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98), fused=True)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step, elapsed, phase_start = 0, 0.0, 0
    snapshot = args.work / "snapshot.pt"
    if args.resume:
        state = torch.load(snapshot, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, elapsed = state["average"], state["step"], state["elapsed"]
        phase_start = state["phase_start"]

    bank = SpeechBank(args.work / "bank_heldout")
    draw = Draw(np.random.default_rng([args.seed, 1]), held_out=True)
    held_out_clips = [make_clip(draw, bank) for _ in range(300)]
    packer = Packer(tokenizer)
    started = time.monotonic() - elapsed
    last_export = last_evaluation = time.monotonic()
    totals: dict[str, float] = {}
    logged = (step, time.monotonic())

    def save() -> None:
        state = {"model": model.state_dict(), "heads": heads.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"average": average, "step": step, "elapsed": time.monotonic() - started}
        state |= {"phase_start": phase_start, "batch_size": args.batch_size, "learning_rate": args.learning_rate}
        torch.save(state, snapshot.with_suffix(".part"))
        os.replace(snapshot.with_suffix(".part"), snapshot)
        export(state, args.work, args.seed, args.output)

    phase, stream = None, None
    while True:
        minutes = (time.monotonic() - started) / 60
        progress = step / args.steps if args.steps else minutes / args.minutes
        if progress >= 1:
            break
        # First the encoder alone learns words and sounds, at twice the speed; then everything together.
        wanted = progress < args.encoder_share
        if wanted is not phase:
            phase_start = step if phase is not None else phase_start
            phase, stream = wanted, batches(args, tokenizer, wanted, step)
            totals, logged = {}, (step, time.monotonic())
        batch = next(stream)
        rate = learning_rate(args, progress, step - phase_start)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            parts = losses(model, heads, batch)
            loss = sum(LOSS_WEIGHTS[name] * value for name, value in parts.items())
        if not torch.isfinite(loss):  # a clip was too short for one token (very few are)
            logger.warning("step %d is left out: its loss is %s", step, {k: v.item() for k, v in parts.items()})
            continue
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        decay = min(EMA_DECAY, step / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(model.state_dict().values()), 1 - decay)
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + value.item()

        now = time.monotonic()
        if step % 50 == 0:
            means = " ".join(f"{name} {value / (step - logged[0]):.3f}" for name, value in totals.items())
            speed = (step - logged[0]) * args.batch_size / (now - logged[1])
            logger.info("step %d, %.1f min, lr %.2e, %.1f clips/s: %s", step, minutes, rate, speed, means)
            totals, logged = {}, (step, now)
        if now - last_evaluation > args.evaluate_every * 60:
            current = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            model.load_state_dict(average)
            logger.info("held out: %s", json.dumps(quick_evaluation(model.eval(), packer, held_out_clips)))
            model.load_state_dict(current)
            model.train()
            last_evaluation = time.monotonic()
        if now - last_export > args.export_every * 60:
            save()
            last_export = time.monotonic()
    save()
    model.load_state_dict(average)
    logger.info("held out: %s", json.dumps(quick_evaluation(model.eval(), packer, held_out_clips)))


def main() -> None:
    """Parse the command line and run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("train", "export", "evaluate"))
    parser.add_argument("--work", type=Path, required=True, help="folder for the speech bank, snapshots and logs")
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="checkpoint folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=135.0, help="budget of the schedule by the clock")
    parser.add_argument("--steps", type=int, default=0, help="budget in steps, instead of minutes")
    parser.add_argument("--batch-size", type=int, default=16, help="clips a step, each with up to 4 questions")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="peak of the schedule")
    parser.add_argument("--threads", type=int, default=1, help="more only help on idle cores")
    parser.add_argument("--bfloat16", action="store_true", help="train under bfloat16 autocast")
    parser.add_argument("--resume", action="store_true", help="continue from the last snapshot in --work")
    parser.add_argument("--init", type=Path, help="start from the weights of this checkpoint, not from random ones")
    parser.add_argument("--encoder-share", type=float, default=0.2, help="part of the budget for the encoder alone")
    parser.add_argument("--export-every", type=float, default=10.0, help="minutes between exported snapshots")
    parser.add_argument("--evaluate-every", type=float, default=5.0, help="minutes between quick evaluations")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(), logging.FileHandler(args.work / f"{args.command}.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    if args.command == "train":
        train(args)
    elif args.command == "export":
        export(torch.load(args.work / "snapshot.pt", weights_only=True), args.work, args.seed, args.output)
    else:
        from demo_checkpoint.evaluation import evaluate  # needs sox and ffmpeg, training does not

        evaluate(args.output, args.work, args.seed)


if __name__ == "__main__":
    main()

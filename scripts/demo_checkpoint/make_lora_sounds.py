"""Make the data of examples/qwen2_audio_lora.py: three kinds of sound that the demo checkpoint was never taught.

    python scripts/demo_checkpoint/make_lora_sounds.py [--output lora_sounds] [--seed 0]

A barking dog, a singing bird and a saw, synthesised with NumPy and heard through the same rooms, noises and levels as
the checkpoint's own sounds. A model that learns only these forgets the rest, so there are also clips of the 13 kinds
that it knows, from the generators that trained it, and pieces of speech. It writes WAV files and lists of questions,
lines of {"audio", "prompt", "answer"}:

    train.jsonl       the new sounds, and the old ones again
    rehearsal.jsonl   the pieces of speech, without answers: what the checkpoint itself says of them is to be kept
    new.jsonl         held out: the new sounds, by frequencies, durations, noises and levels that training never drew
    old.jsonl         held out: the old tasks in the same way, and another speaker

The same seed gives the same files. Nothing but NumPy, soundfile and soxr is needed.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the package that this file is in

from demo_checkpoint.questions import QUESTIONS, answer  # noqa: E402
from demo_checkpoint.sounds import (  # noqa: E402
    EVENT_KINDS,
    SAMPLE_RATE,
    Draw,
    Label,
    band_pass,
    fade,
    make_event,
    num_samples,
    place,
    power_law_noise,
    record,
    silence,
    tone,
)

logger = logging.getLogger("lora_sounds")

EXAMPLE_CLIPS = Path(__file__).resolve().parents[2] / "examples" / "audio"

NEW_CAPTIONS = {"dog": "A dog is barking.", "bird": "A bird is singing.", "saw": "Somebody is sawing."}
NEW_SOUNDS = {"dog": "It is a dog.", "bird": "It is a bird.", "saw": "It is a saw."}
NEW_KINDS = tuple(NEW_CAPTIONS)

TRAINING_SPEECH = ("speech_in_noise.wav", "spoken_digits.flac")
HELD_OUT_SPEECH = ("spoken_command.wav", Label("speech", text="open the door", sex="female"))

LONGEST = 4.0  # seconds of a clip: short ones train faster
CLIPS = {"train": {"new": 80, "beep": 60, "old": 16}, "new": {"new": 24}, "old": {"beep": 12, "old": 8}}  # of each kind
HELD_OUT_SPEECH_CLIPS = 12
REHEARSAL_CLIPS = 200

Row = dict[str, str]


def make_dog(draw: Draw) -> np.ndarray:
    """Two to six barks: a hoarse harmonic burst whose pitch jumps up and falls, through a wide open mouth."""
    pitch, seconds, step = draw.log_uniform(250, 700), draw.log_uniform(0.09, 0.22), draw.log_uniform(0.25, 0.6)
    mouth, hoarse = draw.log_uniform(700, 1600), draw.uniform(0.1, 0.4)
    parts = []
    for index in range(draw.integer(2, 6)):
        n = num_samples(seconds * draw.uniform(0.85, 1.15))
        peak, top = draw.uniform(0.15, 0.4), draw.uniform(1.3, 1.9)
        contour = np.interp(np.linspace(0, 1, n), (0, peak, 1), (1.0, top, 0.75))
        voice = tone(draw, pitch * contour * draw.uniform(0.93, 1.07), n, "sawtooth")
        voice = voice / voice.std() + power_law_noise(draw, n, 0.5) * hoarse
        bark = 0.4 * voice + band_pass(voice, mouth / 1.6, mouth * 1.6) + 0.4 * band_pass(voice, mouth * 2, mouth * 3)
        parts.append((num_samples(index * step * draw.uniform(0.9, 1.1)), fade(bark, 0.012, seconds * 0.6)))
    return place(parts[-1][0] + len(parts[-1][1]), parts)


def make_bird(draw: Draw) -> np.ndarray:
    """Two to four phrases of short, high, quickly gliding notes, each phrase the same note over and over."""
    pitch = draw.log_uniform(2600, 5000)
    pieces = []
    for _ in range(draw.integer(2, 4)):
        n = num_samples(draw.log_uniform(0.035, 0.12))
        knots = pitch * np.array([draw.log_uniform(0.7, 1.5) for _ in range(3)])
        if knots.max() / knots.min() < 1.3:
            knots[0] = knots.max() * draw.uniform(1.3, 1.5)
        glide = np.clip(np.interp(np.linspace(0, 2, n), np.arange(3), knots), 1800, 7600)
        gap = draw.log_uniform(0.015, 0.08)
        for _ in range(draw.integer(4, 9)):
            note = fade(tone(draw, glide * draw.uniform(0.98, 1.02), n, "sine"), 0.008, 0.015)
            pieces += [note * draw.uniform(0.6, 1.0), silence(gap)]
        pieces.append(silence(draw.log_uniform(0.08, 0.4)))
    return np.concatenate(pieces[:-1])


def make_saw(draw: Draw) -> np.ndarray:
    """Four to eight strokes of a saw to and fro: rough noise that rises and falls, the way back softer and duller."""
    seconds, rest = draw.log_uniform(0.18, 0.4), draw.uniform(0.02, 0.12)
    low, high, teeth = draw.log_uniform(500, 1400), draw.log_uniform(3000, 6500), draw.log_uniform(45, 140)
    pieces = []
    for index in range(draw.integer(4, 8)):
        n = num_samples(seconds * draw.uniform(0.9, 1.1))
        back = index % 2
        swell = np.sin(np.pi * np.arange(n) / n) ** draw.uniform(0.5, 1.2)
        scrape = band_pass(draw.rng.standard_normal(n), low * (1 - 0.3 * back), high * (1 - 0.4 * back))
        rough = 1 + draw.uniform(0.3, 0.9) * np.sin(2 * np.pi * teeth * np.cumsum(0.5 + 0.5 * swell) / SAMPLE_RATE)
        pieces += [scrape * rough * swell * (1 - draw.uniform(0.2, 0.5) * back), silence(rest)]
    return np.concatenate(pieces[:-1])


def hear(draw: Draw, make: Callable[[], tuple[np.ndarray, Label]]) -> tuple[np.ndarray, Label]:
    """What `make` makes, recorded, and its label: float32 samples at 16 kHz. Drawn again until it is short enough."""
    while True:
        dry, label = make()
        wave, _ = record(draw, dry, label)
        if len(wave) <= LONGEST * SAMPLE_RATE:
            return wave, label


def make_sound(draw: Draw, kind: str) -> tuple[np.ndarray, Label]:
    """A dry sound of a new or an old kind, and its label."""
    makers = {"dog": make_dog, "bird": make_bird, "saw": make_saw}
    return (makers[kind](draw), Label(kind)) if kind in makers else make_event(draw, kind)


def read_spoken(name: str) -> np.ndarray:
    """The samples of a spoken example clip at 16 kHz, without the silence around them."""
    wave, rate = soundfile.read(EXAMPLE_CLIPS / name)
    wave = soxr.resample(wave, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max())
    return wave[loud[0] : loud[-1] + 1]


def change_speed(wave: np.ndarray, factor: float) -> np.ndarray:
    """The wave played `factor` times as fast, and so higher."""
    return np.interp(np.arange(0, len(wave) - 1, factor), np.arange(len(wave)), wave)


def make_pieces(draw: Draw, speech: list[np.ndarray]) -> np.ndarray:
    """One to five pieces cut anywhere out of one of the recordings, faster or slower, one after another.

    It sounds like somebody who says other words. Which ones nobody knows, but what a model makes of them is a sample of
    what it does with speech.
    """
    dry, factor = draw.choice(speech), draw.uniform(0.8, 1.2)
    parts = []
    for _ in range(draw.choice((1, 1, 2, 2, 3, 3, 4, 5))):
        n = num_samples(draw.log_uniform(0.2, 0.7))
        start = int(draw.rng.integers(max(1, len(dry) - n)))
        piece = change_speed(dry[start : start + n], factor * draw.uniform(0.9, 1.1))
        piece = fade(piece / (np.abs(piece).max() + 1e-9), 0.01, 0.02)
        parts += [piece * draw.uniform(0.5, 1.0), silence(draw.log_uniform(0.01, 0.3))]
    return np.concatenate(parts)


def right_answer(task: str, label: Label) -> str:
    """What should be said of a clip when asked a question of `task`."""
    if label.kind in NEW_KINDS and task in ("caption", "sound"):
        return {"caption": NEW_CAPTIONS, "sound": NEW_SOUNDS}[task][label.kind]
    return answer(task, label)


def phrasing(draw: Draw, task: str) -> str:
    """A question of `task`: half of the time the usual one."""
    return QUESTIONS[task][0] if draw.chance(0.5) else draw.choice(QUESTIONS[task])


def questions(draw: Draw, label: Label) -> list[Row]:
    """What to ask of a clip: what it is, in two ways, what else it decides, and at times something beside the point."""
    tasks = {"speech": ["transcribe", "caption", "sex", "speaking"], "beep": ["count", "caption"]}.get(
        label.kind, ["caption", "sound"]
    )
    if label.kind in ("pluck", "chord", "drum") and draw.chance(0.5):
        tasks = [*tasks, "instruments"]
    if draw.chance(0.3):
        tasks = [*tasks, draw.choice([task for task in QUESTIONS if task not in (*tasks, "command")])]
    return [{"prompt": phrasing(draw, task), "answer": right_answer(task, label)} for task in tasks]


Clip = tuple[str, np.ndarray, list[Row]]  # its name, its samples, what is asked about it


def make_clips(split: str, seed: int) -> Iterator[Clip]:
    """The clips of a split: "train", "new" or "old"."""
    draw = Draw(np.random.default_rng([seed, tuple(CLIPS).index(split)]), held_out=split != "train")
    counts = CLIPS[split]
    for kind in (*NEW_KINDS, *EVENT_KINDS):
        for index in range(counts.get("new" if kind in NEW_KINDS else "beep" if kind == "beep" else "old", 0)):
            wave, label = hear(draw, lambda kind=kind: make_sound(draw, kind))
            asked = questions(draw, label)
            yield f"{kind}_{index:03d}", wave, asked[:2] if split == "new" else asked
    if split == "old":
        name, label = HELD_OUT_SPEECH
        dry = read_spoken(name)
        for index in range(HELD_OUT_SPEECH_CLIPS):
            wave, _ = hear(draw, lambda: (change_speed(dry, draw.uniform(0.92, 1.08)), label))
            yield f"speech_{index:03d}", wave, questions(draw, label)


def make_rehearsal(seed: int) -> Iterator[Clip]:
    """The pieces of speech, with questions and without answers."""
    draw = Draw(np.random.default_rng([seed, len(CLIPS)]))
    speech = [read_spoken(name) for name in TRAINING_SPEECH]
    for index in range(REHEARSAL_CLIPS):
        asked = [{"prompt": phrasing(draw, task)} for task in ("transcribe", "caption")]
        yield f"speech_{index:03d}", hear(draw, lambda: (make_pieces(draw, speech), Label("speech")))[0], asked


def write_clips(folder: Path, split: str, clips: Iterable[Clip]) -> Path:
    """Write clips as 16-bit WAV and the list of questions about them; returns the list's path."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    rows = []
    for name, wave, asked in clips:
        path = f"{split}/{name}.wav"
        soundfile.write(folder / path, wave, SAMPLE_RATE, subtype="PCM_16")
        rows += [{"audio": path, **row} for row in asked]
    logger.info("%s: %d questions about %d clips", split, len(rows), len({row["audio"] for row in rows}))
    return write_rows(folder / f"{split}.jsonl", rows)


def write_rows(path: Path, rows: list[Row]) -> Path:
    """Write one JSON object a line; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_lora_sounds(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write all clips and lists to `folder`; the path of each list by its name: train, new, old, rehearsal."""
    paths = {split: write_clips(folder, split, make_clips(split, seed)) for split in CLIPS}
    return paths | {"rehearsal": write_clips(folder, "rehearsal", make_rehearsal(seed))}


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("lora_sounds"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make_lora_sounds(arguments.output, arguments.seed)


if __name__ == "__main__":
    main()

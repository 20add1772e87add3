"""Measures the exported demo checkpoint through transformers' own processor and `generate`, greedily.

Two sets: clips synthesised as in training but from held-out voices, parameters and noise; and clips made by tools that
training never used (sox, and ffmpeg's mp3 and ogg at 8 to 44.1 kHz). The figures go into the model card.
"""

import json
import logging
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from demo_checkpoint.batches import make_clip
from demo_checkpoint.card import write_card
from demo_checkpoint.prompts import AUDIO, AUDIO_BOS, AUDIO_EOS
from demo_checkpoint.questions import QUESTIONS, answer
from demo_checkpoint.sounds import EVENT_KINDS, MAX_BEEPS, SAMPLE_RATE, Draw, Label
from demo_checkpoint.speech import HELD_OUT_ACCENTS, SpeechBank, random_utterance, words_of

logger = logging.getLogger("demo.evaluation")

BATCH_SIZE = 24


@dataclass
class Reply:
    """One question put to the model, what it said and what was right."""

    source: str
    task: str
    label: Label
    expected: str
    said: str

    @property
    def right(self) -> bool:
        """Whether the reply is the expected text, letter by letter."""
        return self.said == self.expected


class DemoModel:
    """The checkpoint as a user loads it: float32 weights from the bfloat16 file."""

    def __init__(self, folder: Path):
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model, info = Qwen2AudioForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        problems = {name: keys for name, keys in info.items() if keys}
        if problems:
            raise ValueError(f"{folder.name} does not load cleanly: {problems}")
        self.model.eval()

    def prompt(self, question: str, chat: bool) -> str:
        """The text of a question about one clip, as a raw prompt or by the chat template."""
        if not chat:
            return f"{AUDIO_BOS}{AUDIO}{AUDIO_EOS}{question}"
        content = [{"type": "audio", "audio_url": "clip.wav"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    @torch.no_grad()
    def answer(self, clips: list[np.ndarray], prompts: list[str]) -> list[str]:
        """Greedy replies to one prompt a clip."""
        inputs = self.processor(text=prompts, audio=clips, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding=True)
        tokens = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(tokens, skip_special_tokens=True)


def ask(model: DemoModel, source: str, clips: list[tuple[np.ndarray, Label]], seed: int) -> list[Reply]:
    """Put every task to every clip, in a random phrasing and format."""
    rng = np.random.default_rng([seed, 7])
    jobs = []
    for wave, label in clips:
        for task, phrasings in QUESTIONS.items():
            expected = answer(task, label)
            # A count of zero, no speaker and no instrument are asked of some clips only: they are easy and many.
            if expected is None or (not decisive(task, label) and rng.random() > 0.3):
                continue
            question = phrasings[0] if rng.random() < 0.5 else str(rng.choice(phrasings))
            jobs.append((wave, task, label, expected, model.prompt(question, chat=bool(rng.random() < 0.5))))
    jobs.sort(key=lambda job: len(job[0]))
    replies = []
    for start in range(0, len(jobs), BATCH_SIZE):
        part = jobs[start : start + BATCH_SIZE]
        said = model.answer([job[0] for job in part], [job[4] for job in part])
        replies += [Reply(source, job[1], job[2], job[3], text) for job, text in zip(part, said, strict=True)]
        logger.info("%s: %d of %d questions", source, len(replies), len(jobs))
    return replies


def decisive(task: str, label: Label) -> bool:
    """Whether the clip has what the question is about."""
    if task in ("transcribe", "sex"):
        return label.kind == "speech"
    if task == "count":
        return label.kind == "beep"
    if task == "instruments":
        return label.kind in ("pluck", "chord", "drum")
    return True


def edit_distance(reference: list[str], said: list[str]) -> int:
    """Word substitutions, insertions and deletions between two sentences."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(reference, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(said, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1]


def word_error_rate(replies: list[Reply]) -> float:
    """Word errors over words, of the transcriptions of speech."""
    spoken = [r for r in replies if r.task == "transcribe" and r.label.kind == "speech"]
    errors = sum(edit_distance(r.expected.split(), r.said.split()) for r in spoken)
    return errors / sum(len(r.expected.split()) for r in spoken)


def share(replies: list[Reply]) -> str:
    """'97.5 % of 200'."""
    if not replies:
        return "-"
    return f"{100 * sum(r.right for r in replies) / len(replies):.1f} % of {len(replies)}"


def summary(replies: list[Reply]) -> dict[str, str]:
    """The figures of the card, by name."""

    def pick(*tasks: str, speech: bool | None = None, kinds: tuple[str, ...] = ()) -> list[Reply]:
        return [
            r
            for r in replies
            if r.task in tasks
            and (speech is None or (r.label.kind == "speech") == speech)
            and (not kinds or r.label.kind in kinds)
        ]

    events = tuple(k for k in EVENT_KINDS if k != "beep")
    return {
        'Events named (caption and "What\'s that sound?", clips without speech or beeps)': share(
            pick("caption", "sound", kinds=events)
        ),
        "Beeps counted, one to five": share(pick("count", kinds=("beep",))),
        "Beeps counted where there is none": share([r for r in pick("count") if r.label.kind != "beep"]),
        "Caption of beeps (the number of beeps)": share(pick("caption", kinds=("beep",))),
        "Word error rate of transcriptions": f"{100 * word_error_rate(replies):.1f} %",
        "Transcriptions without any error": share(pick("transcribe", speech=True)),
        "Captions of speech without any error (words and sex)": share(pick("caption", speech=True)),
        "Transcription asked where nobody speaks": share(pick("transcribe", speech=False)),
        '"Is anybody speaking?"': share(pick("speaking")),
        "Sex of the speaker": share(pick("sex", speech=True)),
        "Sex asked where nobody speaks": share(pick("sex", speech=False)),
        "Instruments": share(pick("instruments")),
    }


def by_kind(replies: list[Reply]) -> dict[str, str]:
    """Exact captions and sound names for each kind of clip."""
    groups = defaultdict(list)
    for reply in replies:
        if reply.task in ("caption", "sound"):
            groups[reply.label.kind].append(reply)
    return {kind: share(groups[kind]) for kind in ("speech", *EVENT_KINDS) if kind in groups}


def held_out_clips(work: Path, seed: int) -> list[tuple[np.ndarray, Label]]:
    """200 spoken clips, 80 of beeps and 12 of each other event, from held-out voices and parameters."""
    bank = SpeechBank(work / "bank_heldout")
    draw = Draw(np.random.default_rng([seed, 2]), held_out=True)
    clips = [make_clip(draw, bank, "speech") for _ in range(200)]
    clips += [make_clip(draw, bank, "beep") for _ in range(80)]
    return clips + [make_clip(draw, bank, kind) for kind in EVENT_KINDS if kind != "beep" for _ in range(12)]


SOX_SHAPES = ("sine", "square", "triangle", "sawtooth", "trapezium")


def sox_recipes(rng: np.random.Generator) -> list[tuple[list[str], Label]]:
    """Arguments of `sox -n file` and what they sound like."""

    def number(low: float, high: float) -> str:
        return f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3f}"

    recipes = []
    for index in range(50):
        count, shape = index % MAX_BEEPS + 1, SOX_SHAPES[index // MAX_BEEPS % len(SOX_SHAPES)]
        one = ["synth", number(0.06, 0.4), shape, number(300, 3800), "pad", "0", number(0.09, 0.7)]
        recipes.append((one + (["repeat", str(count - 1)] if count > 1 else []), Label("beep", count=count)))
    for index in range(12):
        colour = ("whitenoise", "pinknoise", "brownnoise")[index % 3]
        recipes.append((["synth", number(1, 8), colour], Label("noise")))
    for index in range(10):
        sweep = f"{number(350, 700)}{':/'[index % 2]}{number(1000, 1800)}"
        recipes.append((["synth", number(1.8, 5), SOX_SHAPES[index % 4], sweep], Label("siren")))
    for index in range(10):
        notes = ["pluck", number(85, 500)] if index < 6 else ["pluck", "C3", "pluck", "E3", "pluck", "G3"]
        recipes.append((["synth", number(0.8, 2.5), *notes], Label("pluck")))
    for index in range(8):
        root = float(number(130, 400))
        shape = ("sine", "triangle")[index % 2]
        notes = [part for ratio in (1, 1.26, 1.498) for part in (shape, f"{root * ratio:.2f}")]
        recipes.append((["synth", "2", *notes, "fade", "l", "0.005", "2", "1.9"], Label("chord")))
    for index in range(8):
        recipes.append((["synth", number(1.5, 6), SOX_SHAPES[index % 4 + 1], number(45, 130)], Label("engine")))
    for _ in range(8):
        pulse = ["synth", number(0.04, 0.09), "square", number(800, 2800), "pad", "0", number(0.05, 0.1)]
        recipes.append(([*pulse, "repeat", str(rng.integers(13, 25))], Label("alarm")))
    for _ in range(6):
        tick = ["synth", "0.0015", "whitenoise", "pad", "0.1", number(0.15, 0.6), "repeat", str(rng.integers(1, 7))]
        recipes.append((tick, Label("click")))
    recipes += [(["trim", "0", seconds], Label("silence")) for seconds in ("0.5", "1.5", "4", "9")]
    return recipes


def other_tools_clips(work: Path, seed: int) -> list[tuple[np.ndarray, Label]]:
    """Clips written by sox and by espeak-ng itself (held-out voices), encoded by ffmpeg and read by librosa."""
    rng = np.random.default_rng([seed, 3])
    folder = work / "other_tools"
    folder.mkdir(exist_ok=True)
    sources = []
    for index, (recipe, label) in enumerate(sox_recipes(rng)):
        path = folder / f"sox_{index:03d}.wav"
        level = ["remix", "-", "norm", f"{rng.uniform(-20, -0.5):.1f}"] if label.kind != "silence" else []
        pad = ["pad", f"{rng.uniform(0, 0.8):.2f}", f"{rng.uniform(0, 1.5):.2f}"] if rng.random() < 0.5 else []
        rate = str(rng.choice([16000, 22050, 44100, 48000]))
        subprocess.run(["sox", "-R", "-n", "-r", rate, "-c", "1", path, *recipe, *level, *pad], check=True)
        sources.append((path, label))
    for index in range(60):
        spoken = random_utterance(rng, held_out=True)
        path = folder / f"speech_{index:03d}.wav"
        subprocess.run(["espeak-ng", "-v", spoken.voice, "-w", path, spoken.text], check=True)
        sources.append((path, Label("speech", text=words_of(spoken.text), sex=spoken.sex)))
    clips = []
    for path, label in sources:
        suffix = str(rng.choice([".wav", ".mp3", ".ogg"]))
        rate = str(rng.choice([16000, 22050, 44100] if label.kind == "beep" else [8000, 16000, 22050, 44100]))
        encoded = path.with_name(f"{path.stem}_x{suffix}")
        volume = f"volume={rng.uniform(-16 if label.kind == 'speech' else -6, 0):.1f}dB"
        command = ["ffmpeg", "-y", "-v", "error", "-i", path, "-ac", str(rng.integers(1, 3)), "-ar", rate]
        subprocess.run([*command, "-af", volume, encoded], check=True)
        clips.append((librosa.load(encoded, sr=SAMPLE_RATE, mono=True)[0], label))
    return clips


def evaluate(folder: Path, work: Path, seed: int) -> None:
    """Measure the checkpoint in `folder` and write its card (README.md)."""
    model = DemoModel(folder)
    held_out = ask(model, "held out", held_out_clips(work, seed), seed)
    other = ask(model, "other tools", other_tools_clips(work, seed), seed)
    figures = {
        "held_out": summary(held_out),
        "held_out_kinds": by_kind(held_out),
        "other": summary(other),
        "other_kinds": by_kind(other),
        "held_out_accents": list(HELD_OUT_ACCENTS),
    }
    wrong = [f"{r.source} | {r.task} | {r.label} | said {r.said!r}" for r in held_out + other if not r.right]
    (work / "wrong_answers.txt").write_text("\n".join(wrong) + "\n")
    (work / "figures.json").write_text(json.dumps(figures, indent=1))
    logger.info("%s", json.dumps(figures, indent=1))
    write_card(folder, work, figures, seed)

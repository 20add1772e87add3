"""The spoken part of the demo checkpoint: its words, its espeak-ng voices, and a cached bank of utterances."""

import io
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from demo_sounds import SAMPLE_RATE, Draw, Label, silence

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMMANDS = (
    "yes no up down left right on off stop go open close start play pause next back help call send turn move "
    "light lamp door window music radio kitchen garden hello goodbye please red green blue volume timer water house "
    "forward"
).split()
WORDS = (*DIGITS, *COMMANDS, "the")

THINGS = ("door", "window", "light", "lamp", "radio", "music", "timer", "house", "kitchen", "garden", "water")
TEMPLATES = (
    "open the {thing}",
    "close the {thing}",
    "start the {thing}",
    "stop the {thing}",
    "turn on the {thing}",
    "turn off the {thing}",
    "turn the {thing} {on_off}",
    "play the {thing}",
    "pause the {thing}",
    "call the {thing}",
    "move {way}",
    "go {way}",
    "turn {way}",
    "send help",
    "call {digit} {digit} {digit}",
    "volume {up_down}",
    "volume {digit}",
    "turn the volume {up_down}",
    "timer {digit}",
    "the {colour} {thing}",
    "{colour} light",
    "hello {thing}",
    "goodbye {thing}",
    "play next",
    "go back",
    "help the house",
    "send {digit} {thing}",
)
SLOTS = {
    "thing": THINGS,
    "way": ("up", "down", "left", "right", "forward", "back"),
    "on_off": ("on", "off"),
    "up_down": ("up", "down"),
    "digit": DIGITS,
    "colour": ("red", "green", "blue"),
}

ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
HELD_OUT_ACCENTS = ("en-gb-x-gbcwmd",)
FEMALE = tuple("f1 f2 f3 f4 f5 Alicia Andrea Annie anika aunty belinda linda steph steph2 steph3 grandma".split())
MALE = (
    "",  # no variant: espeak-ng's own default voice
    *"m1 m2 m3 m4 m5 m6 m7 m8 Alex Andy Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Michael".split(),
    *"Mike adam antonio benjamin boris david ed edward edward2 gustave iven iven2 iven3 iven4 john kaukovalta".split(),
    *"marcelo max michel miguel norbert pablo paul pedro quincy rob robert sandro travis victor grandpa".split(),
)
# Robots, whispers and voices whose sex a listener would not name: words are taught, the sex is not asked.
UNSEXED = tuple(
    "klatt klatt2 klatt3 klatt4 klatt5 robosoft robosoft2 robosoft3 robosoft4 robosoft5 Nguyen shelby croak whisper "
    "whisperf zac caleb UniRobot AnxiousAndy Tweaky".split()
)
HELD_OUT_VARIANTS = tuple("steph2 linda Michael adam quincy edward2 Mario gustave robosoft4 klatt3".split())


@dataclass(frozen=True)
class Utterance:
    """What espeak-ng is asked to say, and how."""

    text: str
    voice: str
    sex: str
    speed: int  # words a minute
    pitch: int  # 0 to 99
    gap: int  # pause between words, tens of milliseconds


def synthesise(utterance: Utterance) -> np.ndarray:
    """Run espeak-ng and return its speech as float32 at 16 kHz, without leading and trailing silence."""
    command = ["espeak-ng", "-v", utterance.voice, "-s", str(utterance.speed), "-p", str(utterance.pitch)]
    command += ["-g", str(utterance.gap), "--stdout", utterance.text]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    wave = soxr.resample(wave, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    return wave[max(0, loud[0] - 160) : loud[-1] + 320]


def words_of(text: str) -> str:
    """The transcription of a text for espeak-ng: lower case, no punctuation."""
    return " ".join(re.findall("[a-z]+", text.lower()))


def random_text(rng: np.random.Generator) -> str:
    """A single word, a run of digits, a command, or unrelated words in a row (so that words must be heard)."""
    draw = rng.random()
    if draw < 0.33:
        text = str(rng.choice(WORDS))
    elif draw < 0.5:
        separator = ", " if rng.random() < 0.3 else " "
        text = separator.join(rng.choice(DIGITS, rng.integers(2, 6)))
    elif draw < 0.72:
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        text = re.sub(r"\{(\w+)\}", lambda m: str(rng.choice(SLOTS[m[1]])), template)
        if rng.random() < 0.12:
            text = f"please {text}" if rng.random() < 0.5 else f"{text} please"
    else:
        text = " ".join(rng.choice(WORDS, rng.integers(2, 6)))
    return text + str(rng.choice(["", "", "", ".", "!", "?"]))


def random_utterance(rng: np.random.Generator, held_out: bool) -> Utterance:
    """An utterance by a training voice, or by a held-out variant or accent."""
    sex = ("female", "male", "")[int(rng.choice(3, p=[0.46, 0.46, 0.08]))]
    pool = {"female": FEMALE, "male": MALE, "": UNSEXED}[sex]
    accents = [a for a in ACCENTS if a not in HELD_OUT_ACCENTS]
    weights = np.array([3.0 if a in ("en-us", "en-gb") else 1.0 for a in accents])
    variants = [v for v in pool if (v in HELD_OUT_VARIANTS) == held_out]
    accent = str(rng.choice(accents, p=weights / weights.sum()))
    if held_out and rng.random() < 0.2:
        accent, variants = HELD_OUT_ACCENTS[0], list(pool)
    # f1 to f5 and m1 to m8 are what users try first.
    weights = np.array([2.5 if re.fullmatch(r"[fm]\d|", v) else 1.0 for v in variants])
    variant = str(rng.choice(variants, p=weights / weights.sum()))
    usual = rng.random() < 0.3
    return Utterance(
        text=random_text(rng),
        voice=f"{accent}+{variant}" if variant else accent,
        sex=sex,
        speed=175 if usual else int(rng.integers(115, 235)),
        pitch=50 if usual else int(rng.integers(38, 72) if sex == "female" else rng.integers(28, 62)),
        gap=0 if usual else int(rng.choice([0, 0, 1, 4, 10])),
    )


class SpeechBank:
    """A folder with many utterances: samples.npy (int16, one after another) and index.json."""

    def __init__(self, folder: Path):
        self.entries = json.loads((folder / "index.json").read_text())
        self.samples = np.load(folder / "samples.npy", mmap_mode="r")
        self._sexed = {sex: [e for e in self.entries if e["sex"] == sex] for sex in ("female", "male", "")}
        self._words = {sex: [e for e in entries if " " not in e["text"]] for sex, entries in self._sexed.items()}

    def __len__(self) -> int:
        return len(self.entries)

    def draw(self, draw: Draw) -> tuple[np.ndarray, Label]:
        """A random utterance, a little faster or slower (and so higher or lower), with its label."""
        return self._load(draw, draw.choice(self.entries))

    def draw_run(self, draw: Draw) -> tuple[np.ndarray, Label, list[tuple[int, int, str]]]:
        """Two to five utterances, mostly single words, by voices of one sex, with short pauses between them.

        Also returns the spans (first sample, last sample, text): where a span holds one word, its place is known.
        """
        sex = draw.choice(("female", "female", "female", "male", "male", "male", ""))
        parts, spans, texts, end = [], [], [], 0
        for _ in range(draw.integer(2, 5)):
            pause = silence(draw.log_uniform(0.02, 0.5))
            pool = self._words if draw.chance(0.8) else self._sexed
            wave, label = self._load(draw, draw.choice(pool[sex]))
            start = end + len(pause)
            end = start + len(wave)
            parts += [pause, wave / np.abs(wave).max() * draw.uniform(0.5, 1.0)]
            spans.append((start, end, label.text))
            texts.append(label.text)
            if end > 4 * SAMPLE_RATE:
                break
        parts.append(silence(draw.log_uniform(0.02, 0.5)))
        return np.concatenate(parts), Label("speech", text=" ".join(texts), sex=sex), spans

    def _load(self, draw: Draw, entry: dict) -> tuple[np.ndarray, Label]:
        wave = self.samples[entry["start"] : entry["end"]].astype(np.float64) / 32768
        if draw.chance(0.5):
            n = int(len(wave) * draw.uniform(0.94, 1.06))
            wave = np.interp(np.linspace(0, len(wave) - 1, n), np.arange(len(wave)), wave)
        return wave, Label("speech", text=entry["text"], sex=entry["sex"])


def build_bank(folder: Path, size: int, seed: int, held_out: bool, workers: int = 2) -> None:
    """Have espeak-ng say `size` random utterances and cache them in `folder` (does nothing if they are there)."""
    if (folder / "index.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, int(held_out)])
    utterances = [random_utterance(rng, held_out) for _ in range(size)]
    with ThreadPoolExecutor(workers) as pool:
        waves = list(pool.map(lambda u: (synthesise(u) * 32767).astype(np.int16), utterances))
    entries, start = [], 0
    for utterance, wave in zip(utterances, waves, strict=True):
        end = start + len(wave)
        text = words_of(utterance.text)
        entries.append({"start": start, "end": end, "text": text, "sex": utterance.sex, "voice": utterance.voice})
        start = end
    np.save(folder / "samples.npy", np.concatenate(waves))
    (folder / "index.json").write_text(json.dumps(entries))

"""The spoken part of the demo checkpoint: its words, its espeak-ng voices, and a cached bank of utterances."""

import io
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from demo_checkpoint import home, voices
from demo_checkpoint.sounds import SAMPLE_RATE, Draw, Label, silence
from demo_checkpoint.texts import Texts

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

# "en" is British English; espeak-ng 1.51 calls it "en-gb" too, but then ignores the variant after the plus sign.
ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
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
# Utterances in each part of the bank.
UTTERANCES = {
    "train": 4_000,
    "variants": 9_000,
    "flite": 6_000,
    "pico": 8_000,
    "piper": 1_500,
    "foreign": 3_000,
    "heldout": 600,
    "heldout_flite": 300,
}
# espeak-ng's variants are few, so a model learns them by heart; training also hears this many made at random from them.
NUM_RANDOM_VARIANTS = 300  # espeak-ng reads at most 349 voices
DEFAULT_VARIANT = "language variant\nname default\npitch 82 118\n"  # what espeak-ng speaks with without one
DIGIT_SHARE = 0.1  # of the spoken clips are one digit, beside those that come by chance


@dataclass(frozen=True)
class Utterance:
    """What espeak-ng is asked to say, and how."""

    text: str
    voice: str
    sex: str
    speed: int  # words a minute
    pitch: int  # 0 to 99
    gap: int  # pause between words, tens of milliseconds


def synthesise(utterance: Utterance, data: Path | None = None) -> np.ndarray:
    """Run espeak-ng, with its own data or those in a folder `data`, and return its speech.

    Float32 at 16 kHz, without leading and trailing silence.
    """
    path = [f"--path={data}"] if data else []
    command = ["espeak-ng", *path, "-v", utterance.voice, "-s", str(utterance.speed), "-p", str(utterance.pitch)]
    command += ["-g", str(utterance.gap), "--stdout", utterance.text]
    sound = subprocess.run(command, check=True, capture_output=True).stdout
    wave, rate = soundfile.read(io.BytesIO(sound), dtype="float32")
    wave = soxr.resample(wave, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    return wave[max(0, loud[0] - 160) : loud[-1] + 320]


def random_variant(rng: np.random.Generator, parent: str) -> str:
    """A variant file like `parent`: another pitch, length of the vocal tract, balance of formants and roughness."""
    pitch, tract = rng.uniform(0.87, 1.15), rng.uniform(0.92, 1.09)
    lines, seen = [], set()
    for line in parent.splitlines():
        key, *numbers = line.split() or [""]
        if key == "pitch":
            line = f"pitch {' '.join(str(round(float(n) * pitch)) for n in numbers[:2])}"
        elif key == "formant" and len(numbers) >= 2:
            factors = (tract * rng.uniform(0.96, 1.04), rng.uniform(0.75, 1.25), rng.uniform(0.8, 1.25))
            scaled = [str(round(float(n) * f)) for n, f in zip(numbers[1:4], factors, strict=False)]
            line = " ".join([key, numbers[0], *scaled, *numbers[4:]])
            seen.add(int(numbers[0]))
        lines.append(line)
    for formant in {*range(1, 9)} - seen:
        low, high = (85, 115) if formant < 4 else (60, 130)
        lines.append(f"formant {formant} {round(100 * tract * rng.uniform(0.96, 1.04))} {rng.integers(low, high)} 100")
    if rng.random() < 0.5:
        lines.append(f"flutter {rng.integers(0, 8)}")
    if rng.random() < 0.4:
        lines.append(f"roughness {rng.integers(0, 5)}")
    if rng.random() < 0.4:
        lines.append(f"voicing {rng.integers(50, 130)}")
    if rng.random() < 0.5:
        lines.append(f"consonants {rng.integers(50, 130)} {rng.integers(50, 130)}")
    if rng.random() < 0.5:
        lines.append(f"tone {rng.integers(100, 500)} 200 {rng.integers(1000, 2500)} {rng.integers(60, 240)} 4000 120")
    return "\n".join(lines) + "\n"


def make_random_variants(folder: Path, seed: int) -> dict[str, list[str]]:
    """Write espeak-ng's data with random variants of its training voices to `folder`; their names, by sex."""
    told = subprocess.run(["espeak-ng", "--version"], check=True, capture_output=True, text=True).stdout
    system = Path(told.split("Data at:")[1].strip())
    voices = folder / "espeak-ng-data" / "voices" / "!v"
    voices.mkdir(parents=True, exist_ok=True)
    (folder / "espeak-ng-data" / "lang").mkdir(exist_ok=True)
    for path in (*system.iterdir(), system / "lang" / "gmw"):  # English is a West Germanic language
        link = folder / "espeak-ng-data" / path.relative_to(system)
        if not link.exists():
            os.symlink(path, link)
    rng = np.random.default_rng([seed, 2])
    names: dict[str, list[str]] = {"female": [], "male": []}
    for index in range(NUM_RANDOM_VARIANTS):
        sex = ("female", "male")[index % 2]
        parents = [v for v in (FEMALE if sex == "female" else MALE) if v not in HELD_OUT_VARIANTS]
        parent = str(rng.choice(parents))
        text = (system / "voices" / "!v" / parent).read_text() if parent else DEFAULT_VARIANT
        names[sex].append(f"random{index}")
        (voices / names[sex][-1]).write_text(random_variant(rng, text))
    return names


def words_of(text: str) -> str:
    """The transcription of a text for a synthesiser: lower case, no punctuation but apostrophes inside words."""
    return " ".join(re.findall("[a-z]+(?:'[a-z]+)*", text.lower()))


def random_line(rng: np.random.Generator, texts: Texts) -> str:
    """What is to be said: the small vocabulary, a command of the home or what is nearly one, or open English."""
    share = rng.random()
    if share < 0.28:
        return random_text(rng)
    if share < 0.42:
        return home.random_command(rng)
    if share < 0.45:
        return home.near_command(rng)
    return texts.draw(rng)


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


def random_utterance(
    rng: np.random.Generator, held_out: bool, text: str, random_variants: dict[str, list[str]] | None = None
) -> Utterance:
    """An utterance by a training voice, by a held-out variant or accent, or by one of `random_variants`."""
    sex = ("female", "male", "")[int(rng.choice(3, p=[0.46, 0.46, 0.08]))]
    pool = {"female": FEMALE, "male": MALE, "": UNSEXED}[sex]
    accents = [a for a in ACCENTS if a not in HELD_OUT_ACCENTS]
    weights = np.array([3.0 if a in ("en-us", "en") else 1.0 for a in accents])
    variants = [v for v in pool if (v in HELD_OUT_VARIANTS) == held_out]
    if random_variants and sex and rng.random() < 0.85:
        variants = random_variants[sex]
    accent = str(rng.choice(accents, p=weights / weights.sum()))
    if held_out and rng.random() < 0.2:
        accent, variants = HELD_OUT_ACCENTS[0], list(pool)
    # f1 to f5 and m1 to m8 are what users try first.
    weights = np.array([2.5 if re.fullmatch(r"[fm]\d|", v) else 1.0 for v in variants])
    variant = str(rng.choice(variants, p=weights / weights.sum()))
    usual = rng.random() < 0.3
    return Utterance(
        text=text,
        voice=f"{accent}+{variant}" if variant else accent,
        sex=sex,
        speed=175 if usual else int(rng.integers(115, 235)),
        pitch=50 if usual else int(rng.integers(38, 72) if sex == "female" else rng.integers(28, 62)),
        gap=0 if usual else int(rng.choice([0, 0, 1, 4, 10])),
    )


_KNOWN_WORDS = {*WORDS, *home.WORDS_OF_HOME}


class SpeechBank:
    """Folders with many recordings each: samples.npy (int16, one after another) and index.json.

    `folders` gives each its part of the speech that is drawn; `open_share` of it has words beyond the small vocabulary.
    """

    def __init__(self, folders: dict[Path, float], open_share: float = 0.0):
        self.samples = [np.load(folder / "samples.npy", mmap_mode="r") for folder in folders]
        self._by_kind: dict[str, list[list[dict]]] = {}
        for index, folder in enumerate(folders):
            for entry in json.loads((folder / "index.json").read_text()):
                groups = self._by_kind.setdefault(entry["kind"], [[] for _ in folders])
                groups[index].append(entry | {"folder": index})
        self.weights = list(folders.values())
        speech = self._by_kind.get("speech", [[]])
        self._digits = [[entry for entry in group if entry["text"] in DIGITS] for group in speech]
        self._open = [[e for e in group if not set(e["text"].split()) <= _KNOWN_WORDS] for group in speech]
        self._open_share = open_share

    def has(self, kind: str) -> bool:
        """Whether there is a recording of a kind."""
        return kind in self._by_kind

    def draw(self, draw: Draw, kind: str = "speech") -> tuple[np.ndarray, Label]:
        """A random recording of a kind, a little faster or slower (and so higher or lower), with its label."""
        groups = self._by_kind[kind]
        weights = np.array([weight * bool(group) for weight, group in zip(self.weights, groups, strict=True)])
        if kind != "speech":
            weights = np.array([float(bool(group)) for group in groups])
        place = int(draw.rng.choice(len(groups), p=weights / weights.sum()))
        group = groups[place]
        if kind == "speech" and self._digits[place] and draw.chance(DIGIT_SHARE):
            group = self._digits[place]
        elif kind == "speech" and self._open[place] and draw.chance(self._open_share):
            group = self._open[place]
        return self._load(draw, draw.choice(group))

    def draw_run(self, draw: Draw) -> tuple[np.ndarray, Label]:
        """Utterances by voices of one sex, with short pauses between them: two to five, or up to 26 s of them."""
        first, label = self.draw(draw)
        parts, texts, size = [first / np.abs(first).max()], [label.text], len(first)
        more, limit = (20, 26) if draw.chance(0.3) else (draw.integer(1, 4), 12)
        for _ in range(more):
            wave, other = self.draw(draw)
            if other.sex != label.sex or size + len(wave) > limit * SAMPLE_RATE:
                continue
            pause = silence(draw.log_uniform(0.05, 0.6))
            parts += [pause, wave / np.abs(wave).max() * draw.uniform(0.5, 1.0)]
            texts.append(other.text)
            size += len(pause) + len(wave)
        ends = [silence(draw.log_uniform(0.02, 0.5)) for _ in range(2)]
        return np.concatenate([ends[0], *parts, ends[1]]), Label("speech", text=" ".join(texts), sex=label.sex)

    def _load(self, draw: Draw, entry: dict) -> tuple[np.ndarray, Label]:
        wave = self.samples[entry["folder"]][entry["start"] : entry["end"]].astype(np.float64) / 32768
        if draw.chance(0.7):
            n = int(len(wave) * draw.uniform(0.87, 1.15))
            wave = np.interp(np.linspace(0, len(wave) - 1, n), np.arange(len(wave)), wave)
        return wave, Label(entry["kind"], text=entry["text"], sex=entry["sex"])


def build_bank(folder: Path, part: str, size: int, seed: int, texts: Texts) -> None:
    """Have a synthesiser say `size` random lines and cache them in `folder` (does nothing if they are there).

    part: "train" and "heldout" use espeak-ng's voices, "variants" random ones, the others see `other_speech`.
    """
    if (folder / "index.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, list(UTTERANCES).index(part)])
    variants = make_random_variants(folder, seed) if part == "variants" else None
    waves, entries, start = [], [], 0
    for _ in range(size):
        if part in ("train", "variants", "heldout"):
            utterance = random_utterance(rng, part == "heldout", random_line(rng, texts), variants)
            wave, entry = synthesise(utterance, folder if variants else None), {"kind": "speech"}
            entry |= {"text": words_of(utterance.text), "sex": utterance.sex, "voice": utterance.voice}
        else:
            wave, entry = other_speech(rng, part, texts)
        waves.append((np.clip(wave, -1, 1) * 32767).astype(np.int16))
        entries.append(entry | {"start": start, "end": start + len(wave)})
        start += len(wave)
    np.save(folder / "samples.npy", np.concatenate(waves))
    (folder / "index.json").write_text(json.dumps(entries))


def other_speech(rng: np.random.Generator, part: str, texts: Texts) -> tuple[np.ndarray, dict]:
    """One line by flite, Pico or piper, or speech in another language; with its entry in the index."""
    if part == "foreign":
        wave, voice = voices.foreign_speech(rng)
        return wave, {"kind": "unclear", "text": "", "sex": "", "voice": voice}
    text = random_line(rng, texts)
    if part.endswith("flite"):
        names = [name for name in voices.FLITE if (name in voices.HELD_OUT) == part.startswith("heldout")]
        voice = str(rng.choice(names))
        sex, pitch = voices.FLITE[voice]
        wave = voices.speak_flite(text, voice, rng.uniform(0.8, 1.3), pitch * rng.uniform(0.85, 1.2))
    elif part == "pico":
        voice = str(rng.choice(list(voices.PICO)))
        sex = voices.PICO[voice]
        wave = voices.speak_pico(text, voice, int(rng.integers(75, 150)), int(rng.integers(80, 115)))
    else:
        voice, sex = "joe", "male"
        wave = voices.speak_piper(text, rng.uniform(0.8, 1.3), rng.uniform(0.4, 0.9))
    return wave, {"kind": "speech", "text": words_of(text), "sex": sex, "voice": voice}

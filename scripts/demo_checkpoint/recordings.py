"""A bank of real recordings for the demo checkpoint: people, animals, and instruments that fluidsynth plays.

All of it comes from Debian packages, so that anybody can make the bank again:

    asterisk-core-sounds-en, -en-wav, -es-wav  phone prompts by Allison Smith, CC BY-SA 3.0
    asterisk-core-sounds-fr-wav                by June Wallack, CC BY-SA 3.0
    asterisk-core-sounds-it-wav, -ru-wav       by Carlo Flora, by Maxim Topal (ivrvoice.ru), CC BY 3.0
    tuxpaint-stamps-default                    animals, instruments and spoken words, GPL-2
    klettres-data                              letters and syllables in many languages, GPL-2+
    oxygen-sounds                              desktop sounds by Nuno Povoa, LGPL-3+
    sound-theme-freedesktop                    desktop sounds, CC BY-SA 3.0, CC BY 3.0, GPL-2 or GPL-2+ by file
    fluid-soundfont-gm                         instruments by Frank Wen, MIT; the program fluidsynth plays them
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from demo_checkpoint.instruments import held_out_tenth, read, render, scores, trim
from demo_checkpoint.sounds import SAMPLE_RATE, Draw
from demo_checkpoint.speech import DIGITS

ASTERISK = Path("/usr/share/asterisk/sounds")
ASTERISK_TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
STAMPS = Path("/usr/share/tuxpaint/stamps")
KLETTRES = Path("/usr/share/klettres")
OXYGEN = Path("/usr/share/sounds")
FREEDESKTOP = Path("/usr/share/sounds/freedesktop/stereo")
PACKAGES = [f"asterisk-core-sounds-{part}" for part in ("en", "en-wav", "es-wav", "fr-wav", "it-wav", "ru-wav")]
PACKAGES += "tuxpaint-stamps-default klettres-data oxygen-sounds sound-theme-freedesktop fluid-soundfont-gm".split()
PACKAGES += ["fluidsynth"]
MAX_SECONDS = 9.5
NUM_UNCLEAR = 2_500  # files of speech that is not English; a ninth of it in the held-out bank

TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()
NUMBERS = dict(enumerate((*DIGITS, *TEENS)))
# Symbols, points within a word, capitals, lone letters, and digits beside letters or in a long number.
NOT_SURE = r"[^\w\s.,:;!?'\"-]|\w\.\w|\b[A-Z]{2,}\b|\b(?![aAI]\b)[A-Za-z]\b(?!')|\d[A-Za-z]|\d{3}"
# Slips of the pen in Asterisk's transcripts, and words that Tux Paint's names of pictures spell differently.
SPELLINGS = {
    "fourtieth": "fortieth",
    "represenatives": "representatives",
    "umute": "unmute",
    "thru": "through",
    "tucan": "toucan",
    "mountaingoat": "mountain goat",
}
# Names that say codes, or other words than are written.
NOT_AS_WRITTEN = ("spy-", "unidentified", "invalid", "pbx-invalid", "dir-instr", "wildboar", "nandou", "otter", "zebu")
NOT_AS_WRITTEN += ("wapiti", "demo-nogo")

# Sounds that are one of EVENT_KINDS beyond doubt, by file; all others of `stamps_and_desktop` are "unknown".
KNOWN = {
    "drum_tomtom_floor": "drum",
    "drumkit": "drum",
    "alarm-clock-elapsed": "alarm",  # a train of 25 fast beeps
    "audio-test-signal": "noise",  # pink noise
    "firetruck": "siren",  # slides down for 5 s and up for 4 s
}
# Insects that hum like an engine and birds whose beat is noise.
DOUBTFUL = ("bee", "hornet", "mosquito", "xanthia", "grasshopper", "heron_greatblue_flying", "bat_left")
MUSIC = "hobbies/music"
OTHER_SOUNDS = f"{MUSIC}/string/cello {MUSIC}/string/violin {MUSIC}/wind/bassoon military/final-roll-call"
OTHER_SOUNDS += f" {MUSIC}/percussion/drum_tomtom_floor {MUSIC}/percussion/drumkit vehicles/emergency/firetruck"
OTHER_SOUNDS += " household/tools/saw naturalforces/lightningbolt food/fruit/apple_red"
OXYGEN_MUSIC = "Sys-Log-In Sys-Log-Out-Long Im-Sms Im-Phone-Ring"
OTHER_DESKTOP = "alarm-clock-elapsed audio-test-signal service-login service-logout"


@dataclass(frozen=True)
class Source:
    """A recording: a file, what is in it, and the group that its tenth part is held out of."""

    path: Path
    kind: str
    voice: str
    text: str = ""
    sex: str = ""
    group: str = ""


def frame_peaks(wave: np.ndarray) -> np.ndarray:
    """The peak of each 10 ms."""
    return np.abs(wave[: len(wave) // 160 * 160]).reshape(-1, 160).max(1)


def cut(wave: np.ndarray, shortest: float = 1.0, longest: float = 8.0) -> Iterator[np.ndarray]:
    """Pieces of at most `longest` seconds, cut where a tenth of a second is quietest."""
    while len(wave) > longest * SAMPLE_RATE:
        smooth = np.convolve(frame_peaks(wave), np.ones(10), "same")
        first, last = int(longest * 40), int(longest * 100)  # in the second half of what a piece may have
        place = (first + int(smooth[first:last].argmin())) * 160
        yield trim(wave[:place])
        wave = trim(wave[place:])
    if len(wave) >= shortest * SAMPLE_RATE:
        yield wave


def words_said(text: str) -> str:
    """A transcript's words as they are said; "" where that is not sure (brackets, abbreviations, symbols, codes)."""
    if re.search(NOT_SURE, text.replace("'s", "")):
        return ""
    text = re.sub(r"\b(de|re)-", r"\1", text, flags=re.IGNORECASE)
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if any(n not in NUMBERS for n in numbers):
        return ""
    text = re.sub(r"\d+", lambda m: f" {NUMBERS[int(m[0])]} ", text).lower().replace("can not", "cannot")
    return " ".join(SPELLINGS.get(word, word) for word in re.findall(r"[a-z]+(?:'[a-z]+)*", text))


def split_sentences(wave: np.ndarray, text: str) -> Iterator[tuple[np.ndarray, str]]:
    """A long recording sentence by sentence; nothing where its pauses do not show clearly which is which."""
    texts = re.split(r"(?<=[.?!])\s+", text)
    peaks = frame_peaks(wave)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], peaks < 0.03 * peaks.max(), [0]])))
    pauses = sorted(zip(edges[::2], edges[1::2], strict=True), key=lambda pause: pause[0] - pause[1])
    lengths = [last - first for first, last in pauses] + [0]
    count = len(texts) - 1
    if not count or len(pauses) < count or lengths[count - 1] < 1.25 * lengths[count]:
        return
    middles = sorted((first + last) // 2 * 160 for first, last in pauses[:count])
    parts = [trim(part) for part in np.split(wave, middles)]
    pace = sum(map(len, parts)) / sum(map(len, texts))
    if all(0.85 < len(part) / len(words) / pace < 1.18 for part, words in zip(parts, texts, strict=True)):
        yield from ((p, words_said(t)) for p, t in zip(parts, texts, strict=True) if len(p) < MAX_SECONDS * SAMPLE_RATE)


def english() -> Iterator[Source]:
    """English recordings whose words are known; a text of several words is held out with all its recordings."""
    for line in gzip.open(ASTERISK_TEXTS, "rt", encoding="utf-8"):
        name, _, text = line.strip().partition(": ")
        path = ASTERISK / "en_US_f_Allison" / f"{name}.wav"
        folder = name.partition("/")[0]
        if path.exists() and words_said(text) and folder not in ("letters", "phonetic", "silence"):
            if not name.startswith(NOT_AS_WRITTEN):
                yield Source(path, "speech", "Allison Smith", text.strip(), "female")
    for number, word in enumerate(DIGITS):
        for suffix in ("", "_en_GB"):
            yield Source(STAMPS / "symbols/math" / f"{number}{suffix}.ogg", "speech", f"tuxpaint{suffix}", word)
    for path in sorted(STAMPS.rglob("*_desc.ogg")):  # says the name of the file, not the sentence below the picture
        name = path.name.removesuffix("_desc.ogg")
        if not name.startswith(NOT_AS_WRITTEN):
            yield Source(path, "speech", "tuxpaint animals", name)
    for path in sorted(FREEDESKTOP.glob("audio-channel-*.oga")):
        text = path.stem.removeprefix("audio-channel-").replace("-", " ")
        yield Source(path, "speech", "freedesktop", text, "female")


def foreign() -> Iterator[Source]:
    """Speech that is not English, in groups by package; `voice` names the language."""
    for folder in ("es_MX_f_Allison", "fr_CA_f_June", "it_IT_m_Carlo", "ru_RU_f_IvrvoiceRU"):
        sex = "female" if "_f_" in folder else "male"
        for path in sorted((ASTERISK / folder).rglob("*.wav")):
            words = path.parent.name not in ("silence", "letters", "phonetic")
            if words and not re.match(r"beep|tt-monkeys\.|confbridge-(join|leave)\.|spy-|.*2tone", path.name):
                yield Source(path, "unclear", folder, sex=sex, group="asterisk")
    for path in sorted(STAMPS.rglob("*.ogg")):
        language = re.fullmatch(r".*_desc_([a-z]{2})|\d_([a-z]{2}(?:_tw)?)", path.stem)
        if language and "alphabets" not in path.parts:
            yield Source(path, "unclear", f"tuxpaint {language[1] or language[2]}", group="tuxpaint")
    for path in sorted(KLETTRES.glob("*/*/*.ogg")):
        if not path.parts[-3].startswith("en"):
            yield Source(path, "unclear", f"klettres {path.parts[-3]}", group="klettres")


def stamps_and_desktop() -> Iterator[Source]:
    """Animals, things and desktop sounds."""
    animals = sorted((STAMPS / "animals").rglob("*.ogg"))
    paths = [path for path in animals if "_desc" not in path.name and path.stem not in DOUBTFUL]
    paths += [STAMPS / f"{name}.ogg" for name in OTHER_SOUNDS.split()]
    paths += [FREEDESKTOP / f"{name}.oga" for name in OTHER_DESKTOP.split()]
    paths += [OXYGEN / f"Oxygen-{name}.ogg" for name in OXYGEN_MUSIC.split()]
    for path in paths:
        kind = KNOWN.get(path.stem, "unknown")
        name = path.stem.removeprefix("Oxygen-").lower().replace("_", " ")
        yield Source(path, kind, name, group="sounds")


def balanced(rng: np.random.Generator, sources: list[Source], total: int) -> list[Source]:
    """At most `total` sources, as many of each group as there are, and in a group as many of each voice."""
    groups = sorted({s.group for s in sources})
    chosen: list[Source] = []
    for group in groups:
        voices: dict[str, list[Source]] = {}
        for source in (s for s in sources if s.group == group):
            voices.setdefault(source.voice, []).append(source)
        shuffled = [[v[i] for i in rng.permutation(len(v))] for v in voices.values()]
        turns = [s for s in chain.from_iterable(zip_longest(*shuffled)) if s is not None]
        chosen += turns[: total // len(groups)]
    return chosen


def load(source: Source) -> Iterator[tuple[np.ndarray, Source]]:
    """The clips of one file."""
    wave = trim(read(source.path))
    if source.kind != "speech":
        yield from ((piece, source) for piece in cut(wave, shortest=0.3))
    elif len(wave) <= MAX_SECONDS * SAMPLE_RATE:
        yield wave, replace(source, text=words_said(source.text))
    else:
        yield from ((piece, replace(source, text=text)) for piece, text in split_sentences(wave, source.text))


def build_recordings(folder: Path, seed: int, held_out: bool = False) -> None:
    """Write the bank for training, or the one for evaluation, to `folder` (does nothing if it is there).

    It is a `SpeechBank` whose entries also have "kind": "speech" (English with its words), "unclear" (speech that is
    not English), one of EVENT_KINDS, or "unknown" (any other sound, which "voice" names). Clips have 0.25 to 9.5 s.
    The two banks share no file, no sentence and no program of fluidsynth. Raises RuntimeError if a package is missing.
    """
    if (folder / "index.json").exists():
        return
    missing = [package for package in PACKAGES if not Path("/usr/share/doc", package).exists()]
    if missing or not ASTERISK_TEXTS.exists():
        needed = " ".join(missing or ["--reinstall asterisk-core-sounds-en"])
        raise RuntimeError(f"recordings need Debian packages, documents included; run: apt-get install {needed}")
    rng = np.random.default_rng([seed, 3, int(held_out)])

    def side(sources: list[Source]) -> list[Source]:
        texts = [words_said(s.text) for s in sources]
        names = [text if " " in text else str(s.path) for text, s in zip(texts, sources)]
        kept = held_out_tenth(names)
        return [s for s, name in zip(sources, names, strict=True) if (name in kept) == held_out]

    sources = side(list(english())) + side(list(stamps_and_desktop()))
    sources += balanced(rng, side(list(foreign())), NUM_UNCLEAR // 9 if held_out else NUM_UNCLEAR)
    waves, entries, seen, start = [], [], set(), 0
    played = list(scores(Draw(rng, held_out), held_out))
    rendered = (clip for i in range(0, len(played), 200) for clip in render(played[i : i + 200]))
    for wave, source in chain(chain.from_iterable(map(load, sources)), rendered):
        samples = (wave * 32767).astype(np.int16)
        digest = hashlib.sha256(samples.tobytes()).digest()
        # A single foreign syllable may be an English word.
        shortest = 0.7 if source.kind == "unclear" else 0.25
        if not shortest <= len(samples) / SAMPLE_RATE <= MAX_SECONDS or digest in seen:
            continue
        text, sex = (source.text, source.sex) if isinstance(source, Source) else ("", "")
        if source.kind == "speech" and not text:
            continue
        seen.add(digest)
        end = start + len(samples)
        entry = {"start": start, "end": end, "text": text, "sex": sex, "voice": source.voice, "kind": source.kind}
        entries.append(entry)
        waves.append(samples)
        start = end
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "samples.npy", np.concatenate(waves))
    (folder / "index.json").write_text(json.dumps(entries))

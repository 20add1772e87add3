"""Make the example clips in examples/audio: speech by held-out espeak-ng voices and held-out synthetic sounds.

    python scripts/demo_checkpoint/make_example_clips.py [--output examples/audio] [--recordings FOLDER]

The samples are the same at each run with the same espeak-ng, soundfile and NumPy (an ogg file also holds a random
serial number). None of them was used in training: the voices and the synthesis parameters are those that the training
script keeps for evaluation. They come in several formats on purpose: wav, flac, ogg and mp3, from 16 to 44.1 kHz, mono
and stereo. espeak-ng is needed.

Two are cut from real recordings in the public domain, which FOLDER holds; without it they are left as they are:

    JustLikeTheWorld.flac  David Barnes reads the end of John Clare's "An Idle Hour" for LibriVox
                           (https://librivox.org/selected-poems-of-john-clare-volume-1/)
    LluviasDeMayo.flac     rain, recorded by Felix Blume (https://freesound.org/people/felix.blume/sounds/524693/)

Both are in https://github.com/totalgee/binaural-livecoding, folder samples.
"""

import argparse
import io
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the package that this file is in

from demo_checkpoint.sounds import SAMPLE_RATE, Draw, add_reverberation, background_noise, make_event, silence  # noqa: E402

logger = logging.getLogger("examples")

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "examples" / "audio"


def speak(voice: str, text: str) -> tuple[np.ndarray, int]:
    """espeak-ng's own samples (float64) and their rate."""
    data = subprocess.run(["espeak-ng", "-v", voice, "--stdout", text], check=True, capture_output=True).stdout
    return soundfile.read(io.BytesIO(data))


def event(kind: str, seed: int, peak: float = 0.6) -> np.ndarray:
    """A held-out sound with a little silence around it, at 16 kHz."""
    wave, _ = make_event(Draw(np.random.default_rng(seed), held_out=True), kind)
    wave = wave / np.abs(wave).max() * peak
    return np.concatenate([silence(0.2), wave, silence(0.3)])


def beeps(count: int) -> np.ndarray:
    """`count` beeps of 880 Hz, 0.2 s each, 0.25 s apart, at 16 kHz."""
    n = int(0.2 * SAMPLE_RATE)
    beep = 0.5 * np.sin(2 * np.pi * 880 * np.arange(n) / SAMPLE_RATE)
    ramp = np.minimum(1.0, np.minimum(np.arange(n), np.arange(n)[::-1]) / (0.005 * SAMPLE_RATE))
    return np.concatenate([silence(0.3), *[beep * ramp, silence(0.25)] * count])


def speech_in_noise() -> np.ndarray:
    """A command in a small room with noise 12 dB below it, at 16 kHz."""
    draw = Draw(np.random.default_rng(5), held_out=True)
    wave, rate = speak("en-us+steph2", "turn off the radio")
    wave = soxr.resample(wave, rate, SAMPLE_RATE)
    wave = add_reverberation(draw, np.concatenate([silence(0.3), wave]), short=True)
    wave = wave + background_noise(draw, len(wave)) * wave.std() * 10 ** (-12 / 20)
    return wave / np.abs(wave).max() * 0.5


def cut(path: Path, seconds: float) -> tuple[np.ndarray, int]:
    """The beginning of a recording, with a short fade at its end, and its rate."""
    wave, rate = soundfile.read(path)
    wave = wave[: int(seconds * rate)].copy()
    ramp = np.linspace(1, 0, int(0.05 * rate))
    wave[-len(ramp) :] *= ramp if wave.ndim == 1 else ramp[:, None]
    return wave, rate


def write(path: Path, wave: np.ndarray, rate: int) -> None:
    """Write a clip; the format follows from the file's name."""
    soundfile.write(path, wave, rate)
    logger.info("%s: %.2f s, %d Hz, %d bytes", path.name, len(wave) / rate, rate, path.stat().st_size)


def main() -> None:
    """Write every clip."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--recordings", type=Path, help="folder with the two real recordings")
    args = parser.parse_args()
    folder = args.output
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    write(folder / "spoken_command.wav", *speak("en-us+linda", "open the door"))
    write(folder / "spoken_digits.flac", *speak("en-us+Michael", "seven three nine"))
    write(folder / "speech_in_noise.wav", speech_in_noise(), SAMPLE_RATE)
    write(folder / "three_beeps.wav", beeps(3), SAMPLE_RATE)
    write(folder / "knocks.wav", event("knock", 1), SAMPLE_RATE)
    write(folder / "siren.ogg", event("siren", 2), SAMPLE_RATE)
    write(folder / "rain.mp3", event("noise", 4, peak=0.3), SAMPLE_RATE)
    chord = soxr.resample(event("chord", 3), SAMPLE_RATE, 44_100)
    late = np.concatenate([np.zeros(20), chord[:-20]])  # the right ear hears it 0.5 ms later, and softer
    write(folder / "piano_chord_stereo.wav", np.stack([chord, 0.8 * late], axis=1), 44_100)
    if args.recordings:
        poem, rate = cut(args.recordings / "JustLikeTheWorld.flac", 4.75)
        write(folder / "recorded_poem.flac", soxr.resample(poem, rate, SAMPLE_RATE), SAMPLE_RATE)
        rain, rate = cut(args.recordings / "LluviasDeMayo.flac", 5.0)
        write(folder / "recorded_rain.mp3", rain, rate)


if __name__ == "__main__":
    main()

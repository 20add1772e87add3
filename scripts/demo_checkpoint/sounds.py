"""Every non-speech sound of the demo checkpoint, synthesised with NumPy, and the room and channel it is heard through.

Parameters are drawn through `Draw`, which cuts each range into slots and keeps some slots for evaluation: a held-out
clip is made of frequencies, durations, gaps, noise colours and levels that training never used.
"""

from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16_000
CLIP_SECONDS = 10.0  # of the longest recorded clip; a row of utterances may be longer
MAX_BEEPS = 5
BEEP_COUNTS = (1, 2, 3, 3, 4, 4, 4, 5, 5)  # the higher ones are harder, so they come more often

# Slots of each parameter range that only evaluation draws from.
NUM_SLOTS = 12
HELD_OUT_SLOTS = (3, 8)

EVENT_KINDS = (
    "beep",
    "siren",
    "alarm",
    "noise",
    "knock",
    "click",
    "pluck",
    "chord",
    "drum",
    "whistle",
    "engine",
    "glass",
    "silence",
)


@dataclass(frozen=True)
class Label:
    """What is in a clip: the only thing that answers are made from."""

    kind: str  # one of EVENT_KINDS, "speech", "unclear" (speech that cannot be made out) or "unknown" (any other sound)
    count: int = 0  # number of beeps
    text: str = ""  # spoken words
    sex: str = ""  # "male", "female", or "" where the voice is ambiguous or nobody speaks


class Draw:
    """Random draws of parameters from the training or from the held-out slots of each range."""

    def __init__(self, rng: np.random.Generator, held_out: bool = False):
        self.rng = rng
        self._slots = np.array([s for s in range(NUM_SLOTS) if (s in HELD_OUT_SLOTS) == held_out])

    def uniform(self, low: float, high: float) -> float:
        """One draw, uniform over the allowed slots of [low, high)."""
        return low + (high - low) * (self.rng.choice(self._slots) + self.rng.random()) / NUM_SLOTS

    def log_uniform(self, low: float, high: float) -> float:
        """One draw whose logarithm is uniform over the allowed slots."""
        return float(np.exp(self.uniform(np.log(low), np.log(high))))

    def chance(self, probability: float) -> bool:
        """True with the given probability (structure, not a parameter: no slots)."""
        return bool(self.rng.random() < probability)

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high], no slots."""
        return int(self.rng.integers(low, high + 1))

    def choice(self, options):
        """One of the options, no slots."""
        return options[int(self.rng.integers(len(options)))]


def num_samples(seconds: float) -> int:
    """Samples in `seconds` at 16 kHz, at least one."""
    return max(1, int(round(seconds * SAMPLE_RATE)))


def time_axis(n: int) -> np.ndarray:
    """Seconds of each of n samples."""
    return np.arange(n) / SAMPLE_RATE


def silence(seconds: float) -> np.ndarray:
    """Digital silence."""
    return np.zeros(num_samples(seconds))


def waveform(phase: np.ndarray, shape: str) -> np.ndarray:
    """A periodic wave from a phase counted in cycles."""
    cycle = phase % 1.0
    if shape == "sine":
        return np.sin(2 * np.pi * phase)
    if shape == "square":
        return np.where(cycle < 0.5, 1.0, -1.0)
    if shape == "triangle":
        return 4 * np.abs(cycle - 0.5) - 1
    if shape == "sawtooth":
        return 2 * cycle - 1
    if shape == "trapezoid":
        return np.clip(2.0 * np.sin(2 * np.pi * phase), -1, 1)
    raise ValueError(f"unknown wave shape {shape!r}")


WAVE_SHAPES = ("sine", "sine", "square", "triangle", "sawtooth", "trapezoid")


def tone(draw: Draw, frequency: np.ndarray | float, n: int, shape: str) -> np.ndarray:
    """A tone of constant or moving frequency (Hz), at times free of aliasing, as if recorded at 48 kHz."""
    if shape != "sine" and draw.chance(0.5):
        fine = np.interp(np.arange(3 * n) / 3, np.arange(n), np.broadcast_to(frequency, n))
        wave = waveform(np.cumsum(fine) / (3 * SAMPLE_RATE) + draw.rng.random(), shape)
        return np.fft.irfft(np.fft.rfft(wave)[: n // 2 + 1], n) / 3
    return waveform(np.cumsum(np.broadcast_to(frequency, n)) / SAMPLE_RATE + draw.rng.random(), shape)


def fade(wave: np.ndarray, fade_in: float, fade_out: float) -> np.ndarray:
    """Linear fades, in seconds, at most half of the wave each."""
    wave = wave.copy()
    for seconds, part in ((fade_in, slice(None)), (fade_out, slice(None, None, -1))):
        n = min(int(seconds * SAMPLE_RATE), len(wave) // 2)
        if n > 0:
            wave[part][:n] *= np.arange(n) / n
    return wave


def power_law_noise(draw: Draw, n: int, exponent: float, flat_below: float = 20.0) -> np.ndarray:
    """Noise whose power falls as 1 / f**exponent (0 white, 1 pink, 2 brown) from a frequency on, unit deviation."""
    size = max(n, 64)
    spectrum = np.fft.rfft(draw.rng.standard_normal(size))
    frequency = np.maximum(np.arange(len(spectrum)) * SAMPLE_RATE / size, flat_below)
    wave = np.fft.irfft(spectrum * frequency ** (-exponent / 2), size)[:n]
    return wave / (wave.std() + 1e-12)


def band_pass(wave: np.ndarray, low: float, high: float) -> np.ndarray:
    """Keep the band [low, high] Hz, with soft edges of a third of an octave."""
    size = 1 << (len(wave) - 1).bit_length()
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    octaves_above_low = np.log2(np.maximum(frequency, 1.0) / max(low, 1.0)) * 3 + 1
    octaves_below_high = np.log2(max(high, 1.0) / np.maximum(frequency, 1.0)) * 3 + 1
    gain = np.clip(octaves_above_low, 0, 1) * np.clip(octaves_below_high, 0, 1)
    return np.fft.irfft(np.fft.rfft(wave, size) * gain, size)[: len(wave)]


def low_pass(wave: np.ndarray, limit: float) -> np.ndarray:
    """Nothing above `limit` Hz, with a hard edge."""
    spectrum = np.fft.rfft(wave)
    spectrum[np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE) > limit] = 0
    return np.fft.irfft(spectrum, len(wave))


def place(total: int, parts: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Add waves at their start samples into one buffer of `total` samples."""
    out = np.zeros(total)
    for start, wave in parts:
        end = min(total, start + len(wave))
        if start < total:
            out[start:end] += wave[: end - start]
    return out


def make_beeps(draw: Draw, count: int) -> np.ndarray:
    """`count` beeps of constant pitch with silence between them."""
    shape = draw.choice(WAVE_SHAPES)
    frequency = draw.log_uniform(280, 4000)
    if count == 1 and draw.chance(0.3):
        seconds = draw.log_uniform(0.4, 4.0)
    else:
        seconds = draw.log_uniform(0.03, 0.55)
    gap = draw.log_uniform(0.06, 0.95)
    fade_in, fade_out = (0.0, 0.0) if draw.chance(0.4) else (draw.uniform(0, 0.02), draw.uniform(0, 0.04))
    varied_pitch, varied_time, varied_level = draw.chance(0.15), draw.chance(0.25), draw.chance(0.25)
    parts = []
    for index in range(count):
        pitch = np.clip(frequency * (draw.log_uniform(0.6, 1.6) if varied_pitch else 1), 260, 4200)
        length = max(0.03, seconds * (draw.uniform(0.7, 1.4) if varied_time else 1))
        wave = fade(tone(draw, pitch, num_samples(length), shape), fade_in, min(fade_out, length / 3))
        parts.append(wave * (draw.uniform(0.5, 1.0) if varied_level else 1))
        if index + 1 < count:
            parts.append(silence(max(0.06, gap * (draw.uniform(0.75, 1.3) if varied_time else 1))))
    return np.concatenate(parts)


def make_siren(draw: Draw) -> np.ndarray:
    """A pitch that sweeps: wail, yelp, whoop or one long sweep."""
    seconds = draw.log_uniform(1.4, 7.0)
    n = num_samples(seconds)
    t = time_axis(n)
    low = draw.log_uniform(250, 1000)
    high = min(low * draw.log_uniform(1.5, 4.0), 3000)
    mode = draw.choice(("wail", "wail", "yelp", "whoop", "sweep", "sweep"))
    if mode == "wail":
        cycle = t * draw.log_uniform(0.15, 1.0) + draw.rng.random()
    elif mode == "yelp":
        cycle = t * draw.log_uniform(1.0, 4.5) + draw.rng.random()
    elif mode == "whoop":
        cycle = (t * draw.log_uniform(0.4, 2.5)) % 1.0 * 0.5
    else:
        cycle = t / seconds * 0.5 + (0.5 if draw.chance(0.4) else 0)
    depth = 0.5 - 0.5 * np.cos(2 * np.pi * cycle) if draw.chance(0.5) else 1 - np.abs(1 - 2 * (cycle % 1.0))
    frequency = low * (high / low) ** depth if draw.chance(0.5) else low + (high - low) * depth
    wave = tone(draw, frequency, n, draw.choice(WAVE_SHAPES))
    return fade(wave, draw.uniform(0, 0.2), draw.uniform(0, 0.3))


def make_alarm(draw: Draw) -> np.ndarray:
    """A long train of fast beeps, groups of beeps over and over, or two tones that alternate quickly."""
    shape = draw.choice(WAVE_SHAPES)
    frequency = draw.log_uniform(500, 3600)
    mode = draw.choice(("train", "groups", "two-tone"))
    if mode == "two-tone":
        rate = draw.log_uniform(2.5, 12)
        seconds = max(draw.log_uniform(1.2, 6.0), 8 / rate)
        t = time_axis(num_samples(seconds))
        ratio = draw.uniform(1.12, 1.7)
        pitch = np.where((t * rate) % 2 < 1, frequency, min(frequency * ratio, 4500))
        return tone(draw, pitch, len(t), shape)
    rate = draw.log_uniform(3.5, 14)
    beep = tone(draw, frequency, num_samples(draw.uniform(0.35, 0.65) / rate), shape)
    step = num_samples(1 / rate)
    if mode == "train":
        starts = [i * step for i in range(max(10, int(rate * draw.log_uniform(1.3, 6.0))))]
    else:
        size, pause = draw.integer(3, 5), draw.uniform(0.2, 0.6)
        groups = draw.integer(max(3, -(-10 // size)), 6)
        starts = [g * (size * step + num_samples(pause)) + i * step for g in range(groups) for i in range(size)]
    starts = [s for s in starts if s < 9 * SAMPLE_RATE]
    return place(starts[-1] + len(beep), [(s, beep) for s in starts])


def make_noise(draw: Draw) -> np.ndarray:
    """Steady noise of any colour, or rain: noise plus drops."""
    n = num_samples(draw.log_uniform(0.6, 9.0))
    named = draw.chance(0.4)  # white, pink or brown, as programs make it
    exponent = draw.choice((0.0, 0.0, 1.0, 2.0)) if named else draw.uniform(-0.3, 2.5)
    wave = power_law_noise(draw, n, exponent, draw.log_uniform(1, 60))
    if named:
        return fade(wave, draw.choice((0.0, 0.05)), draw.choice((0.0, 0.05)))
    if draw.chance(0.3):
        wave = band_pass(wave, draw.log_uniform(30, 800), draw.log_uniform(2500, 8000))
    elif draw.chance(0.3):  # as if it had been stored at a low rate
        wave = low_pass(wave, draw.uniform(3600, 7800))
    if draw.chance(0.35):
        drops = np.where(draw.rng.random(n) < draw.log_uniform(20, 600) / SAMPLE_RATE, draw.rng.standard_normal(n), 0)
        ring = np.exp(-time_axis(160) * draw.log_uniform(400, 3000)) * draw.rng.standard_normal(160)
        drops = np.convolve(drops, ring)[:n]
        wave = wave / (wave.std() + 1e-9) + drops / (drops.std() + 1e-9) * draw.uniform(0.1, 0.8)
    if draw.chance(0.3):
        wave = wave * (1 + draw.uniform(0.05, 0.4) * np.sin(2 * np.pi * draw.log_uniform(0.1, 0.8) * time_axis(n)))
    return fade(wave, draw.choice((0.0, 0.05, 0.4)), draw.choice((0.0, 0.05, 0.4)))


def make_knocks(draw: Draw) -> np.ndarray:
    """Knuckles on wood: low, strongly damped resonances, two to six times."""
    count, step = draw.integer(2, 6), draw.uniform(0.11, 0.5)
    n = num_samples(0.25)
    t = time_axis(n)
    modes = [(draw.log_uniform(90, 700), draw.log_uniform(0.008, 0.04), draw.uniform(0.3, 1)) for _ in range(3)]
    parts = []
    for index in range(count):
        wave = sum(a * np.sin(2 * np.pi * f * t + draw.rng.random() * 6) * np.exp(-t / d) for f, d, a in modes)
        burst = power_law_noise(draw, n, 1.0) * np.exp(-t / draw.log_uniform(0.001, 0.005)) * draw.uniform(0.1, 0.7)
        parts.append((num_samples(index * step * draw.uniform(0.95, 1.05)), (wave + burst) * draw.uniform(0.7, 1.0)))
    return place(parts[-1][0] + n, parts)


def make_clicks(draw: Draw) -> np.ndarray:
    """Very short broad-band ticks, one to nine of them."""
    count, step = draw.integer(1, 9), draw.log_uniform(0.09, 0.8)
    n = num_samples(0.012)
    t = time_axis(n)
    mode = draw.choice(("impulse", "burst", "ring"))
    if mode == "impulse":
        click = np.where(np.arange(n) < draw.integer(1, 5), 1.0, 0.0)
    elif mode == "burst":
        click = draw.rng.standard_normal(n) * np.exp(-t / draw.log_uniform(0.0003, 0.002))
    else:
        click = np.sin(2 * np.pi * draw.log_uniform(1500, 6500) * t) * np.exp(-t / draw.log_uniform(0.0004, 0.0018))
    starts = [num_samples(i * step * draw.uniform(0.97, 1.03)) for i in range(count)]
    starts = [s for s in starts if s < 8 * SAMPLE_RATE]
    return place(starts[-1] + n, [(s, click * draw.uniform(0.6, 1.0)) for s in starts])


def plucked_note(draw: Draw, frequency: float, seconds: float) -> np.ndarray:
    """One string by Karplus and Strong's method: a noise loop that is averaged at each turn."""
    period = max(4, int(round(SAMPLE_RATE / frequency)))
    loop = draw.rng.uniform(-1, 1, period)
    for _ in range(draw.integer(0, 8)):
        loop = 0.5 * (loop + np.roll(loop, 1))
    loop -= loop.mean()  # a string has no constant part
    damping, blend = np.exp(-period / SAMPLE_RATE / draw.log_uniform(0.25, 5.0)), draw.log_uniform(0.01, 0.5)
    turns = []
    for _ in range(-(-num_samples(seconds) // period)):
        turns.append(loop)
        loop = damping * ((1 - blend) * loop + blend * np.roll(loop, 1))
    return fade(np.concatenate(turns)[: num_samples(seconds)], 0.001, 0.05)


def make_pluck(draw: Draw) -> np.ndarray:
    """A plucked string: one note, a few notes, or a chord, strummed or all at once."""
    root = draw.log_uniform(80, 600)
    mode = draw.choice(("note", "notes", "strum", "chord"))
    seconds = draw.log_uniform(0.5, 3.0)
    if mode == "note":
        return plucked_note(draw, root, seconds)
    count = draw.integer(2, 5)
    step = {"strum": draw.uniform(0.012, 0.05), "notes": draw.uniform(0.18, 0.6), "chord": 0.0}[mode]
    pitches = [root * 2 ** (draw.choice((0, 3, 4, 5, 7, 9, 12)) / 12) for _ in range(count)]
    parts = [(num_samples(i * step), plucked_note(draw, p, seconds)) for i, p in enumerate(pitches)]
    return place(parts[-1][0] + num_samples(seconds), parts)


CHORDS = ((0, 4, 7), (0, 3, 7), (0, 4, 7, 12), (0, 3, 7, 12), (0, 4, 7, 11), (0, 4, 7, 10), (0, 5, 7), (-12, 0, 4, 7))


def make_chord(draw: Draw) -> np.ndarray:
    """Three or four notes struck together, piano-like: harmonics that decay, the high ones faster."""
    seconds, strikes = draw.log_uniform(0.8, 4.0), draw.choice((1, 1, 1, 2, 3))
    steady = draw.chance(0.35)
    n = num_samples(seconds)
    t = time_axis(n)
    decay, slope, stretch = draw.log_uniform(0.35, 2.5), draw.uniform(0.8, 2.2), draw.log_uniform(1e-5, 6e-4)
    parts = []
    for strike in range(strikes):
        root = 220 * 2 ** (draw.integer(-12, 15) / 12) * draw.uniform(0.98, 1.02)
        wave = np.zeros(n)
        for interval in draw.choice(CHORDS):
            pitch = root * 2 ** (interval / 12)
            if steady:
                wave += tone(draw, pitch, n, draw.choice(("sine", "triangle", "sawtooth")))
                continue
            for k in range(1, 11):
                partial = k * pitch * np.sqrt(1 + stretch * k * k)
                if partial < 7600:
                    envelope = np.exp(-t * (0.6 + 0.4 * k) / decay) / k**slope
                    wave += envelope * np.sin(2 * np.pi * (partial * t + draw.rng.random()))
        if not steady and draw.chance(0.6):
            hammer = power_law_noise(draw, n, 1.5) * np.exp(-t / 0.012)
            wave = wave + hammer * draw.uniform(0.02, 0.3)
        wave = fade(wave, draw.uniform(0.001, 0.01), draw.uniform(0.02, 0.4))
        parts.append((num_samples(strike * draw.uniform(0.5, 1.0) * min(seconds, 1.6)), wave))
    return place(max(s for s, _ in parts) + n, parts)


def drum_hit(draw: Draw, kind: str, pitch: float) -> np.ndarray:
    """One stroke of a bass drum, a tom, a snare or a hi-hat."""
    n = num_samples(0.4)
    t = time_axis(n)
    if kind == "hat":
        return band_pass(draw.rng.standard_normal(n), 4000, 8000) * np.exp(-t / draw.log_uniform(0.01, 0.05)) * 0.5
    if kind == "snare":
        rattle = band_pass(draw.rng.standard_normal(n), 500, 7500) * np.exp(-t / draw.log_uniform(0.04, 0.13))
        return 0.6 * rattle + 0.6 * np.sin(2 * np.pi * 1.6 * pitch * t) * np.exp(-t / 0.05)
    ratio = draw.uniform(1.5, 3.0) if kind == "kick" else draw.uniform(1.1, 1.5)
    floor = pitch * (0.5 if kind == "kick" else 1.0)
    phase = np.cumsum(floor * (1 + (ratio - 1) * np.exp(-t / 0.03))) / SAMPLE_RATE
    body = np.sin(2 * np.pi * phase) * np.exp(-t / draw.log_uniform(0.07, 0.2))
    return body + 0.3 * draw.rng.standard_normal(n) * np.exp(-t / 0.003)


def make_drums(draw: Draw) -> np.ndarray:
    """A drum: one stroke, or a rhythm on bass drum, tom, snare and hi-hat."""
    pitch = draw.uniform(90, 150)
    count = 1 if draw.chance(0.12) else draw.integer(3, 12)
    step = draw.uniform(0.14, 0.36)
    patterns = (
        ("kick", "hat", "snare", "hat"),
        ("kick", "snare"),
        ("kick",),
        ("tom",),
        ("kick", "kick", "snare"),
        ("snare", "snare", "kick"),
        ("tom", "tom", "kick"),
    )
    pattern = draw.choice(patterns)
    parts = []
    for index in range(count):
        hit = drum_hit(draw, pattern[index % len(pattern)], pitch)
        parts.append((num_samples(index * step), hit * draw.uniform(0.7, 1.0)))
    return place(parts[-1][0] + num_samples(0.4), parts)


def make_whistle(draw: Draw) -> np.ndarray:
    """A whistle: a short gliding pure tone with breath, or a referee's trill."""
    if draw.chance(0.35):
        n = num_samples(draw.log_uniform(0.4, 1.8))
        t = time_axis(n)
        base, rate, depth = draw.uniform(2000, 3800), draw.uniform(18, 45), draw.uniform(0.03, 0.12)
        trill = np.sin(2 * np.pi * rate * t)
        wave = tone(draw, base * (1 + depth * trill), n, "sine") * (1 + draw.uniform(0.1, 0.7) * trill)
    else:
        pieces = []
        for _ in range(draw.choice((1, 2, 2, 3))):
            n = num_samples(draw.uniform(0.2, 0.7))
            knots = np.array([draw.log_uniform(900, 2600), draw.log_uniform(900, 3200), draw.log_uniform(900, 2600)])
            if knots.max() / knots.min() < 1.35:
                knots[1] = knots.min() * draw.uniform(1.5, 2.2)
            glide = np.interp(np.linspace(0, 2, n), np.arange(3), knots)
            glide = glide * (1 + draw.uniform(0, 0.015) * np.sin(2 * np.pi * 6 * time_axis(n)))
            pieces += [fade(tone(draw, glide, n, "sine"), 0.03, 0.05), silence(draw.uniform(0.03, 0.2))]
        wave = np.concatenate(pieces[:-1])
    breath = band_pass(draw.rng.standard_normal(len(wave)), 900, 5000)
    return fade(wave + breath * draw.log_uniform(0.003, 0.12), 0.02, 0.05)


def make_engine(draw: Draw) -> np.ndarray:
    """An engine or mains hum: a low steady pitch with harmonics, a little unsteady, with some noise."""
    n = num_samples(draw.log_uniform(0.9, 8.0))
    t = time_axis(n)
    base = draw.log_uniform(35, 160)
    if draw.chance(0.25):  # a hum that nothing moves
        return tone(draw, base, n, draw.choice(WAVE_SHAPES[1:]))
    wobble = draw.uniform(0, 0.03) * np.sin(2 * np.pi * draw.log_uniform(0.3, 5) * t)
    ramp = np.linspace(1, draw.uniform(0.8, 1.3), n) if draw.chance(0.3) else 1.0
    frequency = base * (1 + wobble) * ramp
    shape = draw.choice(("sine", "square", "triangle", "sawtooth", "sawtooth", "harmonics"))
    if shape == "harmonics":
        phase = np.cumsum(np.broadcast_to(frequency, n)) / SAMPLE_RATE
        wave = sum(draw.uniform(0.2, 1) / k * np.sin(2 * np.pi * (k * phase + draw.rng.random())) for k in range(1, 13))
    else:
        wave = tone(draw, frequency, n, shape)
    if draw.chance(0.5):
        wave = wave * (1 + draw.uniform(0.1, 0.8) * np.sin(2 * np.pi * draw.uniform(6, 28) * t))
    if draw.chance(0.6):
        wave = wave / (wave.std() + 1e-9) + power_law_noise(draw, n, draw.uniform(1, 2)) * draw.log_uniform(0.02, 0.5)
    return fade(wave, draw.uniform(0, 0.3), draw.uniform(0, 0.3))


def make_glass(draw: Draw) -> np.ndarray:
    """Breaking glass: a burst of noise, then many high ringing partials that start at scattered moments."""
    seconds = draw.uniform(0.5, 1.6)
    n = num_samples(seconds)
    t = time_axis(n)
    burst = band_pass(draw.rng.standard_normal(n), draw.log_uniform(700, 2500), 8000)
    wave = burst * np.exp(-t / draw.log_uniform(0.015, 0.09)) * draw.uniform(0.5, 1.5)
    for _ in range(draw.integer(14, 45)):
        start = int(n * min(0.8, draw.rng.exponential(0.16)))
        ring = time_axis(n - start)
        decay = draw.log_uniform(0.012, 0.22)
        partial = np.sin(2 * np.pi * draw.log_uniform(1700, 7600) * ring + draw.rng.random() * 6) * np.exp(
            -ring / decay
        )
        wave[start:] += partial * draw.log_uniform(0.08, 0.8) * np.exp(-start / SAMPLE_RATE / 0.5)
    return fade(wave, 0.0, 0.05)


def make_event(draw: Draw, kind: str) -> tuple[np.ndarray, Label]:
    """One dry event of the given kind (float64, 16 kHz, any level) and its label."""
    if kind == "beep":
        count = draw.choice(BEEP_COUNTS)
        return make_beeps(draw, count), Label("beep", count=count)
    if kind == "silence":
        return silence(draw.log_uniform(0.4, 7.0)), Label("silence")
    makers = {
        "siren": make_siren,
        "alarm": make_alarm,
        "noise": make_noise,
        "knock": make_knocks,
        "click": make_clicks,
        "pluck": make_pluck,
        "chord": make_chord,
        "drum": make_drums,
        "whistle": make_whistle,
        "engine": make_engine,
        "glass": make_glass,
    }
    return makers[kind](draw), Label(kind)


def add_reverberation(draw: Draw, wave: np.ndarray, short: bool) -> np.ndarray:
    """Convolve with decaying noise: a small room, or a very small one where gaps must stay audible (`short`)."""
    seconds = draw.log_uniform(0.05, 0.16) if short else draw.log_uniform(0.08, 0.5)
    n = num_samples(seconds)
    tail = draw.rng.standard_normal(n) * np.exp(-6.9 * np.arange(n) / n)
    tail[: num_samples(0.003)] = 0
    size = 1 << (len(wave) + n - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail / (np.linalg.norm(tail) + 1e-9), size), size)
    return np.pad(wave, (0, n)) + wet[: len(wave) + n] * draw.uniform(0.05, 0.25 if short else 0.6)


def background_noise(draw: Draw, n: int) -> np.ndarray:
    """Background for a clip, unit standard deviation: coloured noise, at times with hum or slow swells."""
    wave = power_law_noise(draw, n, draw.uniform(-0.2, 2.2))
    if draw.chance(0.2):
        hum = draw.choice((50, 60)) * time_axis(n)
        wave = wave + draw.uniform(0.3, 1.2) * (np.sin(2 * np.pi * hum) + 0.5 * np.sin(4 * np.pi * hum))
    if draw.chance(0.2):
        wave = wave * (1 + draw.uniform(0.1, 0.8) * np.sin(2 * np.pi * draw.log_uniform(0.1, 2) * time_axis(n)))
    return wave / (wave.std() + 1e-12)


def drop_weak_bins(wave: np.ndarray, decibels: float, cutoff: float) -> np.ndarray:
    """What a lossy codec does first: no high band, and no bins far below the loudest one of their frame."""
    size, hop = 512, 256
    window = np.hanning(size + 1)[:-1]
    padded = np.pad(wave, (size, size + (-len(wave)) % hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * window
    spectrum = np.fft.rfft(frames)
    magnitude = np.abs(spectrum)
    spectrum[magnitude < magnitude.max(-1, keepdims=True) * 10 ** (-decibels / 20)] = 0
    spectrum[:, int(cutoff / SAMPLE_RATE * size) :] = 0
    out = np.zeros(len(padded))
    for index, frame in enumerate(np.fft.irfft(spectrum, size)):
        out[index * hop : index * hop + size] += frame
    return out[size : size + len(wave)]


def active_power(wave: np.ndarray) -> float:
    """Mean power over the samples that are not near-silent, so that short events count as loud as they sound."""
    loud = wave[np.abs(wave) > 0.05 * np.abs(wave).max()]
    return float(np.mean(loud**2)) if len(loud) else 0.0


def record(draw: Draw, dry: np.ndarray, label: Label) -> tuple[np.ndarray, int]:
    """Place a dry sound in a clip of at most CLIP_SECONDS and send it through room, background, channel and gain.

    Returns float32 in [-1, 1] at 16 kHz, and the sample at which the dry sound starts in it. Silence gets at most noise
    below about -70 dBFS.
    """
    if label.kind == "silence":
        if draw.chance(0.4):
            return dry.astype(np.float32), 0
        floor = draw.log_uniform(1e-6, 3e-4)
        return (background_noise(draw, len(dry)) * floor).astype(np.float32), 0

    wave = dry / (np.abs(dry).max() + 1e-9)
    if draw.chance(0.35):
        wave = add_reverberation(draw, wave, short=label.kind == "beep")
    lead, trail = (draw.log_uniform(0.01, 1.2) - 0.01 for _ in range(2))
    if draw.chance(0.08):
        trail += draw.uniform(0, 6)
    if draw.chance(0.08):
        lead += draw.uniform(0, 5)
    if label.kind in ("noise", "engine") and draw.chance(0.5):
        lead = trail = 0.0
    room = max(0.0, CLIP_SECONDS - 0.05 - len(wave) / SAMPLE_RATE)
    scale = min(1.0, room / (lead + trail + 1e-9))
    before = silence(lead * scale)
    wave = np.concatenate([before, wave, silence(trail * scale)])[: int(CLIP_SECONDS * SAMPLE_RATE)]

    if label.kind != "noise":
        if draw.chance(0.6):
            decibels = draw.uniform(6, 40) if label.kind == "speech" else draw.uniform(14, 45)
            noise = background_noise(draw, len(wave))
            wave = wave + noise * np.sqrt(active_power(wave) * 10 ** (-decibels / 10))
        elif draw.chance(0.4):
            wave = wave + draw.rng.standard_normal(len(wave)) * draw.log_uniform(1e-5, 1e-3)
    if draw.chance(0.2):
        high = draw.log_uniform(3300 if label.kind == "speech" else 4600, 7500)
        wave = band_pass(wave, draw.choice((0, 0, 80, 250)) if label.kind == "speech" else 0, high)
    if draw.chance(0.12):
        wave = drop_weak_bins(wave, draw.uniform(30, 60), draw.uniform(4500, 7900))

    wave = wave / (np.abs(wave).max() + 1e-9) * draw.log_uniform(0.03, 1.0)
    if draw.chance(0.05):
        wave = np.clip(wave * draw.uniform(1, 3), -1, 1)
    if draw.chance(0.1):
        wave = np.clip(wave + draw.uniform(-0.02, 0.02), -1, 1)
    return (np.round(wave * 32767) / 32768).astype(np.float32), len(before)

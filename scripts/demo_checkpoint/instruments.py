"""Instruments for the demo checkpoint: random scores that the program fluidsynth plays with a sound font (MIT).

Chords of pianos, plucked strings and drums are kinds that the checkpoint names; everything else is a sound that it does
not know.
"""

import hashlib
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from demo_checkpoint.sounds import CHORDS, SAMPLE_RATE, Draw, fade

SOUND_FONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
# General MIDI's programs, from 0. Those that sound like a beep, a whistle, a bell or noise are left out.
PIANOS = {"grand piano": (0,), "bright piano": (1,), "electric grand": (2,), "honky-tonk": (3,)}
PIANOS |= {"electric piano": (4, 5), "harpsichord": (6,), "clavinet": (7,)}
PLUCKED = {"nylon guitar": (24,), "steel guitar": (25,), "jazz guitar": (26,), "pizzicato": (45,), "harp": (46,)}
PLUCKED |= {"banjo": (105,), "koto": (107,)}
DRUM_KITS = {"standard kit": (0,), "room kit": (8,), "power kit": (16,), "electronic kit": (24,), "808": (25,)}
DRUM_KITS |= {"jazz kit": (32,)}
BASSES = {"acoustic bass": (32,), "finger bass": (33,), "picked bass": (34,), "fretless bass": (35,)}
BASSES |= {"slap bass": (36, 37), "synth bass": (38, 39)}
CHORAL = {"organ": (16, 17, 18), "church organ": (19,), "reed organ": (20,), "accordion": (21,), "strings": (48, 49)}
CHORAL |= {"synth strings": (50, 51), "choir": (52, 53, 54), "brass": (61,), "synth brass": (62, 63)}
CHORAL |= {"synth pad": tuple(range(88, 96))}
WINDS = "piccolo flute recorder pan-flute".split()
SOLO = {name: (72 + i,) for i, name in enumerate(WINDS)} | {"shakuhachi": (77,), "harmonica": (22,)}
SOLO |= {"bandoneon": (23,), "violin": (40,), "viola": (41,), "cello": (42,), "contrabass": (43,), "tremolo": (44,)}
SOLO |= {"trumpet": (56,), "trombone": (57,), "tuba": (58,), "muted trumpet": (59,), "french horn": (60,)}
SOLO |= {"saxophone": (64, 65, 66, 67), "oboe": (68,), "english horn": (69,), "bassoon": (70,), "clarinet": (71,)}
SOLO |= {"bagpipe": (109,), "fiddle": (110,), "shanai": (111,)}
EFFECTS = {"birds": (123,), "helicopter": (125,)}
LOW = (*range(32, 40), 42, 43, 57, 58, 66, 67, 70)  # these play deep notes
LONE = (*range(40, 45), *range(56, 61), *range(64, 72), 109, 110, 111)  # one note of these is no beep and no whistle
DRUM_CHANNEL = 9
DRUM_KEYS = {"kick": 36, "snare": 38, "hat": 42, "tom": 45}
DRUM_PATTERNS = (
    "kick hat snare hat",
    "kick snare",
    "kick",
    "tom",
    "kick kick snare",
    "snare snare kick",
    "tom tom kick",
)
Note = tuple[int, int, int, int, int]  # MIDI channel, key, velocity, start and length in milliseconds


@dataclass(frozen=True)
class Score:
    """What fluidsynth plays: programs by MIDI channel, and notes."""

    kind: str
    voice: str
    programs: dict[int, int]
    notes: list[Note]


def held_out_tenth(names: list[str]) -> set[str]:
    """The tenth of the names (at least one of five or more) that evaluation keeps, by a hash of each name."""
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(ordered[: max(len(ordered) >= 5, round(len(ordered) / 10))])


def read(path: Path) -> np.ndarray:
    """A file's samples: float32, mono, 16 kHz."""
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(wave.mean(1), rate, SAMPLE_RATE)


def trim(wave: np.ndarray) -> np.ndarray:
    """Without leading and trailing silence, and with a peak of 0.9; empty where there is only silence."""
    peak = np.abs(wave).max(initial=0.0)
    if peak < 0.003:
        return wave[:0]
    loud = np.flatnonzero(np.abs(wave) > 0.01 * peak)
    return wave[max(0, loud[0] - 160) : loud[-1] + 320] * (0.9 / peak)


def struck(draw: Draw, mode: str) -> list[Note]:
    """One to three chords ("chord"), or plucked strings: a "note", several "notes", or a "strum"."""
    length, count = int(1000 * draw.log_uniform(0.8, 4.0)), draw.choice((1, 1, 1, 2, 3))
    notes, start = [], 0
    for _ in range(count if mode == "chord" else 1):
        root = draw.integer(48, 68)
        keys = [root + step for step in ((0,) if mode == "note" else draw.choice(CHORDS))]
        if mode == "notes":
            keys = [root + draw.choice((0, 3, 4, 5, 7, 9, 12)) for _ in range(draw.integer(2, 5))]
        step = {"strum": draw.uniform(12, 50), "notes": draw.uniform(180, 600)}.get(mode, 0)
        velocity = draw.integer(60, 120)
        notes += [(0, key, velocity, int(start + i * step), length) for i, key in enumerate(keys)]
        start += int(draw.uniform(0.5, 1.0) * min(length, 1600))
    return notes


def drums(draw: Draw, beats: int, step: float) -> list[Note]:
    """A rhythm of `beats` strokes, one each `step` milliseconds."""
    pattern = draw.choice(DRUM_PATTERNS).split()
    keys = [DRUM_KEYS[pattern[i % len(pattern)]] for i in range(beats)]
    return [(DRUM_CHANNEL, key, draw.integer(85, 125), int(i * step), 200) for i, key in enumerate(keys)]


def melody(draw: Draw, program: int, beat: float, beats: int, channel: int = 0, root: int = 0) -> list[Note]:
    """Notes of a scale one after another, not far apart; a choral program at times plays chords. `beat` in ms."""
    low = (36 if program in LOW else 58) + (root or draw.integer(0, 11))
    steps = draw.choice(((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)))
    scale = [low + octave + step for octave in (0, 12) for step in steps]
    chords = any(program in programs for programs in CHORAL.values()) and draw.chance(0.4)
    degree, start, notes = draw.integer(0, 7), 0.0, []
    while start < beat * beats:
        length = beat * draw.choice((1, 1, 1, 2) if chords else (0.5, 1, 1, 1, 2))
        for step in (0, 2, 4) if chords else (0,):
            notes.append((channel, scale[degree + step], draw.integer(70, 115), int(start), int(0.95 * length)))
        degree = min(9, max(0, degree + draw.choice((-3, -2, -1, -1, 1, 1, 2, 3))))
        start += length
    return notes


def turns(draw: Draw, table: dict[str, tuple[int, ...]], held_out: bool, count: int) -> Iterator[tuple[str, int]]:
    """`count` times a name and one of its programs: the names for training, or the held-out ones, by turns."""
    kept = held_out_tenth(list(table))
    names = [name for name in table if (name in kept) == held_out]
    for i in range(count if names else 0):
        yield names[i % len(names)], draw.choice(table[names[i % len(names)]])


def scores(draw: Draw, held_out: bool) -> Iterator[Score]:
    """Everything that fluidsynth plays for one bank; the held-out one is a fifth as large."""
    share = 5 if held_out else 1
    for name, program in turns(draw, PIANOS, held_out, 150 // share):
        yield Score("chord", name, {0: program}, struck(draw, "chord"))
    for name, program in turns(draw, PLUCKED, held_out, 150 // share):
        mode = draw.choice(("note", "notes", "strum", "chord"))
        yield Score("pluck", name, {0: program}, struck(draw, mode))
    for name, kit in turns(draw, DRUM_KITS, held_out, 100 // share):
        beats = 1 if draw.chance(0.12) else draw.integer(3, 12)
        yield Score("drum", name, {DRUM_CHANNEL: kit}, drums(draw, beats, draw.uniform(140, 360)))
    for name, program in turns(draw, SOLO | CHORAL, held_out, 400 // share):
        notes = melody(draw, program, draw.uniform(220, 700), draw.integer(4, 10))
        if program in LONE and draw.chance(0.15):
            notes = [(*notes[0][:4], int(draw.uniform(800, 4000)))]
        yield Score("unknown", name, {0: program}, notes)
    for name, program in turns(draw, EFFECTS, held_out, 20 // share):
        note = (0, draw.integer(50, 70), 110, 0, int(draw.uniform(1200, 6000)))
        yield Score("unknown", name, {0: program}, [note])

    count = 180 // share  # music: two or three melodies and a bass in one key, mostly with drums
    leads = (turns(draw, SOLO | CHORAL, held_out, 1000) for _ in range(3))
    players = list(zip(*(draw.rng.permutation([p for _, p in lead]).tolist() for lead in leads)))
    basses, kits = turns(draw, BASSES, held_out, count), turns(draw, DRUM_KITS, held_out, count)
    for lead, (_, bass), (_, kit) in zip(players, basses, kits):
        beat, beats, root = draw.uniform(280, 600), draw.integer(6, 14), draw.integer(1, 11)
        programs = dict(enumerate((*lead[: draw.integer(2, 3)], bass)))
        notes = [n for c, p in programs.items() for n in melody(draw, p, beat, beats, c, root)]
        if draw.chance(0.7):
            programs[DRUM_CHANNEL] = kit
            notes += drums(draw, 2 * beats, beat / 2)
        yield Score("unknown", "music", programs, notes)


def midi_file(events: list[tuple[int, bytes]]) -> bytes:
    """A MIDI file of one track whose events come at milliseconds (500 ticks a beat at the usual 120 beats a minute)."""
    track, now = bytearray(), 0
    for time, message in sorted(events, key=lambda event: event[0]):
        delta, now = time - now, time
        groups = [delta & 127]
        while delta := delta >> 7:
            groups.insert(0, delta & 127 | 128)
        track += bytes(groups) + message
    track += b"\x00\xff\x2f\x00"
    return struct.pack(">4sIHHH4sI", b"MThd", 6, 0, 1, 500, b"MTrk", len(track)) + bytes(track)


def render(batch: list[Score]) -> Iterator[tuple[np.ndarray, Score]]:
    """What fluidsynth makes of each score: all in one file, each in a slot of its own that ends in silence."""
    events, slots, now = [], [], 100
    for score in batch:
        seconds = min(8.0, max(0.8, max(start + length for *_, start, length in score.notes) / 1000 + 0.5))
        end = now + int(1000 * seconds)
        events += [(now, bytes([0xC0 | channel, program])) for channel, program in score.programs.items()]
        for channel, key, velocity, start, length in score.notes:
            if now + start < end:
                events.append((now + 10 + start, bytes([0x90 | channel, key, velocity])))
                events.append((min(now + 10 + start + length, end), bytes([0x80 | channel, key, 0])))
        events += [(end, bytes([0xB0 | channel, 120, 0])) for channel in score.programs]  # 120: all sound off
        slots.append((now, end))
        now = end + 300
    with tempfile.TemporaryDirectory() as folder:
        song, sound = Path(folder) / "song.mid", Path(folder) / "song.wav"
        song.write_bytes(midi_file(events))
        command = [
            "fluidsynth",
            "-niq",
            "-g",
            "0.6",
            "-R",
            "0",
            "-C",
            "0",
            "-F",
            sound,
            "-r",
            str(SAMPLE_RATE),
            SOUND_FONT,
            song,
        ]
        subprocess.run(command, check=True, capture_output=True)
        wave = read(sound)
    for score, (first, last) in zip(batch, slots, strict=True):
        yield fade(trim(wave[first * 16 : last * 16]), 0.0, 0.05), score

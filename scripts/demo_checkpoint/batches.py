"""Training batches of the demo checkpoint: clips, features, packed questions and what the helper is to hear.

A clip is encoded once, kept, and asked several questions, then and at later draws. The questions share the audio as a
prefix: one packed sequence `[prefix | question 1, answer 1 | question 2, answer 2 | ...]`, where each segment sees the
prefix and itself only and its positions start right after the prefix. The model therefore computes exactly what it will
compute for one question.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from demo_checkpoint.prompts import QUESTIONS_PER_CLIP, WINDOW_SECONDS, Packer
from demo_checkpoint.sounds import (
    EVENT_KINDS,
    SAMPLE_RATE,
    Draw,
    Label,
    active_power,
    background_noise,
    make_event,
    num_samples,
    record,
)
from demo_checkpoint.speech import SpeechBank

FRAMES_BUCKET, TOKENS_BUCKET = 32, 16  # lengths are rounded up to these
TEXT_ALONE = 100  # from this number on segments see no prefix
TEXTS_PER_CLIP = 2
NUM_LENGTHS = 24  # so many batches of clips are sorted by length, so that little of each batch is padding
# Of the clips: speech in one of the banks, several utterances in a row, speech that cannot be made out, beeps, sounds
# that have no name here, silence; the rest is the known sounds.
SHARES = {"speech": 0.3, "run": 0.04, "unclear": 0.07, "beep": 0.2, "unknown": 0.06, "silence": 0.03}
HARD_KINDS = (
    "siren siren siren knock knock alarm pluck pluck pluck chord chord engine noise noise noise click".split()
)  # drawn so many times more
# While the decoder learns to write speech down, which takes longest, it hears little else and is asked nothing else.
SPEECH_FIRST = {"speech": 0.82, "run": 0.1, "unclear": 0.03, "beep": 0.01, "unknown": 0.01, "silence": 0.01}
OTHER_KINDS = [kind for kind in EVENT_KINDS if kind not in SHARES] + HARD_KINDS
KINDS = ("speech", "unclear", "unknown", *EVENT_KINDS)

Clip = tuple[np.ndarray, Label]


@dataclass(frozen=True)
class Encoded:
    """What the encoder says of a clip, and the clip's label."""

    states: torch.Tensor  # (T, width), float16
    label: Label


@dataclass
class Batch:
    """Tensors of one step. B clips, T encoder states, P prefix tokens, S tokens in all."""

    states: torch.Tensor  # (B, T, width) float32, zero past a clip's steps
    steps: torch.Tensor  # (B,) valid states
    input_ids: torch.Tensor  # (B, S), audio placeholders in the prefix
    segments: torch.Tensor  # (B, S) 0 prefix, 1.. questions, TEXT_ALONE.. texts without a clip, -1 padding
    positions: torch.Tensor  # (B, S)
    labels: torch.Tensor  # (B, S) the token itself where it belongs to an answer, else -100
    tasks: list[list[str]]  # the task of each segment of each clip
    ctc_targets: list[list[int]]  # tokens of what is said, or beeps


def round_up(value: int, multiple: int) -> int:
    """The next multiple, or the value itself."""
    return -(-value // multiple) * multiple


def num_audio_tokens(frames):
    """Tokens that the encoder makes of a number of mel frames (an int or a tensor)."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


@lru_cache(maxsize=1)
def mel_filters() -> torch.Tensor:
    """The (80, 201) filter bank of the feature extractor."""
    return torch.from_numpy(WhisperFeatureExtractor(feature_size=80).mel_filters).float().T


def random_equaliser(draw: Draw, clips: int) -> torch.Tensor:
    """A smooth curve over the 80 mel bins for each clip, (B, 80, 1): log10 of a power, about 4 dB up or down.

    A microphone or a voice that training does not have differs from those it has by such a curve.
    """
    knots = torch.from_numpy(draw.rng.normal(0, 0.4, (clips, 1, 7))).float()
    return torch.nn.functional.interpolate(knots, 80, mode="linear", align_corners=True).transpose(1, 2)


def log_mel(waves: list[np.ndarray], equaliser: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel of clips as the feature extractor gives it for a padded 30 s window, cut a little after the longest.

    `equaliser` (B, 80, 1) is added to the logarithm. Returns (B, 80, F) features and the (B,) valid frames.
    """
    num_frames = torch.tensor([-(-len(w) // 160) for w in waves])
    limit = WINDOW_SECONDS * 100
    frames = min(limit, round_up(int(num_frames.max()) + 8, FRAMES_BUCKET))
    padded = torch.zeros(len(waves), min(frames * 160 + 400, limit * 160))
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    spectrum = torch.stft(padded, 400, 160, window=torch.hann_window(400), return_complex=True)
    mel = mel_filters() @ spectrum[..., :frames].abs().square()
    mel = mel.clamp(min=1e-10).log10()
    if equaliser is not None:
        mel = torch.where(mel > -10, mel + equaliser, mel)
    mel = torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8.0)
    return (mel + 4.0) / 4.0, num_frames


def collate(
    packer: Packer,
    draw: Draw,
    clips: list[Encoded],
    beep: int,
    questions: int = QUESTIONS_PER_CLIP,
    texts: Callable[[], str] | None = None,
) -> Batch:
    """Packed questions and targets of some encoded clips; `beep` is the helper's symbol for a beep.

    texts: gives a text to be learned without a clip, of which each row has some.
    """
    steps = torch.tensor([len(clip.states) for clip in clips])
    states = torch.zeros(len(clips), int(steps.max()), clips[0].states.shape[1])
    rows, tasks = [], []
    for row, clip in zip(states, clips, strict=True):
        row[: len(clip.states)] = clip.states
        prefix, segments, asked = packer.pack(draw, clip.label, len(clip.states), questions)
        alone = [] if texts is None else [packer.text_alone(draw, texts()) for _ in range(TEXTS_PER_CLIP)]
        numbers = [*range(1, len(segments) + 1), *range(TEXT_ALONE, TEXT_ALONE + len(alone))]
        rows.append((prefix, list(zip(numbers, [*segments, *alone]))))
        tasks.append(asked)
    width = max(len(prefix) + sum(len(ids) for _, (ids, _) in segments) for prefix, segments in rows)
    input_ids = torch.zeros(len(rows), round_up(width, TOKENS_BUCKET), dtype=torch.long)
    positions, labels, segment_ids = input_ids.clone(), input_ids - 100, input_ids - 1
    for row, (prefix, segments) in enumerate(rows):
        end = len(prefix)
        input_ids[row, :end] = torch.tensor(prefix)
        positions[row, :end] = torch.arange(end)
        segment_ids[row, :end] = 0
        for index, (ids, targets) in segments:
            part = slice(end, end + len(ids))
            input_ids[row, part], labels[row, part] = torch.tensor(ids), torch.tensor(targets)
            positions[row, part] = len(prefix) + torch.arange(len(ids))
            segment_ids[row, part] = index
            end += len(ids)
    heard = [[*packer.encode(c.label.text)] + [beep] * c.label.count for c in clips]
    return Batch(states, steps, input_ids, segment_ids, positions, labels, tasks, heard)


class EncodedClips:
    """Clips that the encoder has been through, for further draws: those of like length share a batch.

    The encoder is frozen, so what it says is computed once. When there are more than `limit`, the oldest go.
    """

    def __init__(self, limit: int):
        self.limit, self.clips = limit, []

    def add(self, clips: list[Encoded]) -> None:
        """Keep some more."""
        self.clips = (self.clips + clips)[-self.limit :]

    def draw(self, draw: Draw, size: int, length: int) -> list[Encoded]:
        """`size` of them, with small parts of their states hidden.

        length: 0 for the shortest, NUM_LENGTHS - 1 for the longest.
        """
        some = [draw.choice(self.clips) for _ in range(NUM_LENGTHS * size)]
        some.sort(key=lambda clip: len(clip.states))
        some = some[size * length : size * (length + 1)]
        return [replace(clip, states=hidden_in_part(draw, clip.states)) for clip in some]


def hidden_in_part(draw: Draw, states: torch.Tensor) -> torch.Tensor:
    """States (T, width) with a few channels and at times up to 80 ms set to zero, so that none is relied on alone."""
    states = states * torch.from_numpy(draw.rng.random(states.shape[1]) > 0.04)
    if len(states) > 20 and draw.chance(0.5):
        start = draw.integer(0, len(states) - 3)
        states[start : start + draw.integer(1, 2)] = 0
    return states


def make_clip(draw: Draw, bank: SpeechBank, kind: str | None = None, shares: dict[str, float] = SHARES) -> Clip:
    """A random recorded clip and its label."""
    if kind is None:
        kind = str(draw.rng.choice([*shares, ""], p=[*shares.values(), 1 - sum(shares.values())]))
        kind = kind or draw.choice(OTHER_KINDS)
    if kind == "run":
        return make_run_clip(draw, bank)
    if kind == "silence" and draw.chance(0.4):
        return make_room_tone(draw), Label("silence")
    if kind == "speech":
        dry, label = bank.draw(draw)
    elif kind == "unclear":
        dry, label = make_unclear(draw, bank)
    elif kind == "unknown":
        dry, label = make_unknown(draw, bank)
    elif bank.has(kind) and draw.chance(0.25):
        dry, label = bank.draw(draw, kind)
    else:
        dry, label = make_event(draw, kind)
    return record(draw, dry, label)[0], label


def make_room_tone(draw: Draw) -> np.ndarray:
    """A quiet room: noise of any colour and hum, at most about -55 dBFS."""
    wave = background_noise(draw, num_samples(draw.log_uniform(0.5, 8.0))) * draw.log_uniform(1e-4, 2e-3)
    return wave.astype(np.float32)


def make_unclear(draw: Draw, bank: SpeechBank) -> Clip:
    """Speech that nobody who knows English alone can write down: another language, backwards, drowned, or a crowd."""
    mode = draw.choice(("language",) * 14 + ("backwards",) * 2 + ("drowned",) * 2 + ("crowd",) * 2)
    if mode == "language":
        return bank.draw(draw, "unclear")
    wave, label = bank.draw(draw)
    if mode == "backwards":
        wave = wave[::-1]
    elif mode == "drowned":
        wave = np.concatenate([wave, bank.draw(draw)[0]])[:100_000]
        noise = background_noise(draw, len(wave)) * np.sqrt(active_power(wave))
        wave = wave + noise * 10 ** (draw.uniform(10, 20) / 20)
    else:
        for _ in range(draw.integer(3, 5)):
            other = bank.draw(draw)[0]
            size = max(len(wave), len(other))
            wave = np.pad(wave, (0, size - len(wave))) / np.abs(wave).max()
            wave = wave + np.pad(other, (0, size - len(other))) / np.abs(other).max() * draw.uniform(0.7, 1.2)
        return wave, Label("unclear")
    return wave, Label("unclear", sex=label.sex if mode == "backwards" else "")


def make_unknown(draw: Draw, bank: SpeechBank) -> Clip:
    """A real sound without a name here: as it is, at another speed, backwards, or two of them at once.

    The recordings are a few hundred, so that a model would learn them by heart if they were always the same.
    """
    wave, label = bank.draw(draw, "unknown")
    if draw.chance(0.6):
        wave = np.interp(np.arange(0, len(wave) - 1, draw.log_uniform(0.6, 1.7)), np.arange(len(wave)), wave)
    if draw.chance(0.2):
        wave = wave[::-1]
    if draw.chance(0.2):
        other = bank.draw(draw, "unknown")[0]
        size = max(len(wave), len(other))
        wave = np.pad(wave, (0, size - len(wave))) + np.pad(other, (0, size - len(other))) * draw.uniform(0.4, 1.0)
    return wave[: int(10 * SAMPLE_RATE)], label


def make_run_clip(draw: Draw, bank: SpeechBank) -> Clip:
    """A run of utterances with a little noise, and its label."""
    wave, label = bank.draw_run(draw)
    if draw.chance(0.5):
        noise = background_noise(draw, len(wave)) * np.sqrt(active_power(wave))
        wave = wave + noise * 10 ** (-draw.uniform(10, 40) / 20)
    wave = wave / np.abs(wave).max() * draw.log_uniform(0.05, 1.0)
    return wave.astype(np.float32), label


class ClipStream(torch.utils.data.IterableDataset):
    """Endless features of new clips with their labels, `batch_size` clips of like length at a time.

    `rank` tells the streams of the processes apart. They take lengths in the same order, so that none waits for long.
    """

    def __init__(
        self, bank_folders: dict[Path, float], batch_size: int, seed: list[int], rank: int, shares: dict[str, float]
    ):
        self.bank_folders, self.batch_size, self.seed, self.rank = bank_folders, batch_size, seed, rank
        self.shares = shares

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[Label]]]:
        torch.set_num_threads(1)
        draw, lengths = Draw(np.random.default_rng([*self.seed, self.rank])), np.random.default_rng(self.seed)
        bank = SpeechBank(self.bank_folders, open_share=0.7 if self.shares is SPEECH_FIRST else 0.0)
        while True:
            pool = [make_clip(draw, bank, shares=self.shares) for _ in range(NUM_LENGTHS * self.batch_size)]
            pool.sort(key=lambda clip: len(clip[0]))
            for index in lengths.permutation(NUM_LENGTHS):
                part = pool[index * self.batch_size : (index + 1) * self.batch_size]
                equaliser = random_equaliser(draw, len(part)) if draw.chance(0.5) else None
                yield *log_mel([wave for wave, _ in part], equaliser), [label for _, label in part]

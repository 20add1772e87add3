"""Training batches of the demo checkpoint: clips, features, packed questions and the targets of the encoder's helpers.

A clip is encoded once and asked several questions. They share the audio as a prefix: one packed sequence
`[prefix | question 1, answer 1 | question 2, answer 2 | ...]`, where each segment sees the prefix and itself only and
its positions start right after the prefix. The model therefore computes exactly what it will compute for one question.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2TokenizerFast, WhisperFeatureExtractor

from demo_checkpoint.prompts import Packer
from demo_checkpoint.sounds import (
    CLIP_SECONDS,
    EVENT_KINDS,
    Draw,
    Label,
    active_power,
    background_noise,
    make_event,
    record,
    sounding_spans,
)
from demo_checkpoint.speech import WORDS, SpeechBank

# Lengths are rounded up to these, because oneDNN compiles its bfloat16 kernels anew for every shape it meets.
FRAMES_BUCKET, TOKENS_BUCKET = 64, 32
SPEECH_SHARE, BEEP_SHARE = 0.47, 0.28  # of the clips that are not runs of words
RUN_SHARE, ENCODER_RUN_SHARE = 0.25, 0.7  # when all is trained, and when the encoder is trained alone
HARD_KINDS = [
    "alarm",
    "pluck",
    "pluck",
    "pluck",
    "chord",
    "chord",
    "engine",
    "noise",
    "noise",
    "noise",
    "click",
]  # drawn so many times more
KINDS = ("speech", *EVENT_KINDS)
SEXES = ("female", "male", "")
# Auxiliary CTC alphabet: 0 is the blank; every spoken word and every beep is one symbol.
CTC_SYMBOLS = ("<blank>", *WORDS, "<beep>")
MAX_NUMBER = 9  # words and beeps of a clip are numbered up to this

# A clip, its label, and the spans (first sample, last sample, word or phrase) of its words or beeps.
Clip = tuple[np.ndarray, Label, list[tuple[int, int, str]]]


@dataclass
class Batch:
    """Tensors of one step. B clips, F mel frames, P prefix tokens, S tokens in all."""

    mel: torch.Tensor  # (B, 80, F)
    num_frames: torch.Tensor  # (B,) valid mel frames
    input_ids: torch.Tensor  # (B, S), audio placeholders in the prefix
    segments: torch.Tensor  # (B, S) 0 prefix, 1.. questions, -1 padding
    positions: torch.Tensor  # (B, S)
    labels: torch.Tensor  # (B, S) the token itself where it belongs to an answer, else -100
    tasks: list[list[str]]  # the task of each segment of each clip
    kinds: torch.Tensor  # (B,)
    counts: torch.Tensor  # (B,)
    sexes: torch.Tensor  # (B,), -100 where unclear
    ctc_targets: list[list[int]] = field(default_factory=list)
    frame_targets: torch.Tensor | None = None  # (B, 2, F // 4), see frame_targets()
    encoder_only: bool = False


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
    """Log-mel of clips as the feature extractor gives it for a padded 10 s window, cut a little after the longest.

    `equaliser` (B, 80, 1) is added to the logarithm. Returns (B, 80, F) features and the (B,) valid frames.
    """
    num_frames = torch.tensor([-(-len(w) // 160) for w in waves])
    limit = int(CLIP_SECONDS * 100)
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
    packer: Packer, draw: Draw, clips: list[tuple[np.ndarray, Label]], equaliser: torch.Tensor | None = None
) -> Batch:
    """Features, packed questions and auxiliary targets of some clips."""
    mel, num_frames = log_mel([wave for wave, _ in clips], equaliser)
    rows, tasks = [], []
    for (_, label), frames in zip(clips, num_frames.tolist(), strict=True):
        prefix, segments, asked = packer.pack(draw, label, num_audio_tokens(frames))
        rows.append((prefix, segments))
        tasks.append(asked)
    width = max(len(prefix) + sum(len(ids) for ids, _ in segments) for prefix, segments in rows)
    input_ids = torch.zeros(len(rows), round_up(width, TOKENS_BUCKET), dtype=torch.long)
    positions, labels, segment_ids = input_ids.clone(), input_ids - 100, input_ids - 1
    for row, (prefix, segments) in enumerate(rows):
        end = len(prefix)
        input_ids[row, :end] = torch.tensor(prefix)
        positions[row, :end] = torch.arange(end)
        segment_ids[row, :end] = 0
        for index, (ids, targets) in enumerate(segments, start=1):
            part = slice(end, end + len(ids))
            input_ids[row, part], labels[row, part] = torch.tensor(ids), torch.tensor(targets)
            positions[row, part] = len(prefix) + torch.arange(len(ids))
            segment_ids[row, part] = index
            end += len(ids)
    everything = [label for _, label in clips]
    unclear = [x.kind == "speech" and not x.sex for x in everything]
    symbol = {word: index for index, word in enumerate(CTC_SYMBOLS)}
    return Batch(
        mel=mel,
        num_frames=num_frames,
        input_ids=input_ids,
        segments=segment_ids,
        positions=positions,
        labels=labels,
        tasks=tasks,
        kinds=torch.tensor([KINDS.index(x.kind) for x in everything]),
        counts=torch.tensor([x.count for x in everything]),
        sexes=torch.tensor([-100 if u else SEXES.index(x.sex) for x, u in zip(everything, unclear, strict=True)]),
        ctc_targets=[[symbol[w] for w in x.text.split()] + [symbol["<beep>"]] * x.count for x in everything],
    )


def make_clip(draw: Draw, bank: SpeechBank, kind: str | None = None) -> tuple[np.ndarray, Label]:
    """A random recorded clip and its label."""
    return make_placed_clip(draw, bank, kind)[:2]


def make_placed_clip(draw: Draw, bank: SpeechBank, kind: str | None = None, phrases: bool = False) -> Clip:
    """A random recorded clip, its label and its spans; with `phrases`, fewer of the spoken ones are single words."""
    if kind is None:
        share = draw.rng.random()
        others = [k for k in EVENT_KINDS if k != "beep"] + HARD_KINDS
        kind = (
            "speech" if share < SPEECH_SHARE else "beep" if share < SPEECH_SHARE + BEEP_SHARE else draw.choice(others)
        )
    if kind == "speech":
        dry, label = bank.draw_phrase(draw) if phrases else bank.draw(draw)
        spans = [(0, len(dry), label.text)]
    else:
        dry, label = make_event(draw, kind)
        spans = [(start, end, "<beep>") for start, end in sounding_spans(dry)] if kind == "beep" else []
    wave, offset = record(draw, dry, label)
    return wave, label, [(start + offset, end + offset, text) for start, end, text in spans]


def make_run_clip(draw: Draw, bank: SpeechBank) -> Clip:
    """A run of utterances with a little noise, its label, and the spans of its parts."""
    wave, label, spans = bank.draw_run(draw)
    if draw.chance(0.5):
        noise = background_noise(draw, len(wave)) * np.sqrt(active_power(wave))
        wave = wave + noise * 10 ** (-draw.uniform(10, 40) / 20)
    wave = wave / np.abs(wave).max() * draw.log_uniform(0.05, 1.0)
    return wave.astype(np.float32), label, spans


def frame_targets(spans: list[tuple[int, int, str]], length: int, num_tokens: int) -> torch.Tensor:
    """What each encoder position (40 ms) of a clip of `num_tokens` positions holds, padded to `length`.

    Returns (2, length): the CTC symbol of the word or beep at the position, and its number in the clip counted from 1;
    0 between them, -100 where it is not known (inside phrases) or past the clip.
    """
    targets = torch.full((2, length), -100)
    targets[:, :num_tokens] = 0
    number = 0
    for start, end, text in spans:
        part = slice(round(start / 640), max(round(start / 640) + 1, round(end / 640)))
        words = text.split()
        targets[:, part] = -100
        if len(words) == 1:
            targets[0, part], targets[1, part] = CTC_SYMBOLS.index(text), min(number + 1, MAX_NUMBER)
        number += len(words)
    targets[:, num_tokens:] = -100
    return targets


class ClipStream(torch.utils.data.IterableDataset):
    """Endless training batches. Clips of like length share a batch, so that little of it is padding.

    `run_share` of the clips are runs of words whose places are known. With `encoder_only` the batches are for the
    first phase, which leaves the decoder out.
    """

    def __init__(
        self, bank_folders: list[Path], tokenizer: Qwen2TokenizerFast, batch_size: int, seed: int, encoder_only: bool
    ):
        self.bank_folders, self.tokenizer, self.batch_size, self.seed = bank_folders, tokenizer, batch_size, seed
        self.encoder_only = encoder_only
        self.run_share = ENCODER_RUN_SHARE if encoder_only else RUN_SHARE

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        draw = Draw(np.random.default_rng([self.seed, int(self.encoder_only)]))
        bank, packer = SpeechBank(*self.bank_folders), Packer(self.tokenizer)
        while True:
            pool = [self._clip(draw, bank) for _ in range(8 * self.batch_size)]
            pool.sort(key=lambda clip: len(clip[0]))
            for index in draw.rng.permutation(8):
                part = pool[index * self.batch_size : (index + 1) * self.batch_size]
                clips = [(wave, label) for wave, label, _ in part]
                batch = collate(packer, draw, clips, random_equaliser(draw, len(part)) if draw.chance(0.7) else None)
                batch.encoder_only = self.encoder_only
                length = batch.mel.shape[-1] // 4
                tokens = num_audio_tokens(batch.num_frames).tolist()
                rows = [frame_targets(spans, length, n) for (_, _, spans), n in zip(part, tokens, strict=True)]
                batch.frame_targets = torch.stack(rows)
                yield batch

    def _clip(self, draw: Draw, bank: SpeechBank) -> Clip:
        if draw.chance(self.run_share):
            return make_run_clip(draw, bank)
        return make_placed_clip(draw, bank, phrases=True)

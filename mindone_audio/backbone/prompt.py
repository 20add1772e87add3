"""Token ids and audio lengths to the integer arrays that the graphs take, in NumPy on the host."""

from dataclasses import dataclass
from itertools import islice

import numpy as np


@dataclass
class Prompt:
    """A batch of prompts in which every audio token has its own place.

    input_ids int32, mask bool and labels int32 or None: (batch, length). audio_index int32 (batch, length): which row
    of the encoded clips' tokens stands at a place, -1 where a text token does; for an encoder-decoder model of how many
    of its clip's positions a token hears. ahead: labels are those of the next token, as such models have them.
    """

    input_ids: np.ndarray
    mask: np.ndarray
    audio_index: np.ndarray
    labels: np.ndarray | None
    ahead: bool = False

    @property
    def positions(self) -> np.ndarray:
        """What the decoder takes as the place of each token in its text, int32 (batch, length)."""
        return np.maximum(np.cumsum(self.mask, 1) - 1, 0).astype(np.int32)

    @property
    def targets(self) -> np.ndarray:
        """What is to be learned to follow each token, int (batch, length), -100 for nothing."""
        if self.ahead:
            return self.labels
        labels = np.where(self.mask, self.labels, -100)
        return np.concatenate([labels[:, 1:], np.full((len(labels), 1), -100)], 1)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample that are not padding, int (batch)."""
        return self.mask.sum(1)


def build_prompt(
    input_ids: np.ndarray,
    mask: np.ndarray,
    is_audio: np.ndarray,
    audio_lengths: np.ndarray,
    tokens_per_clip: int,
    labels: np.ndarray | None = None,
) -> Prompt:
    """Give each placeholder its row of audio, expanding prompts that have one placeholder a clip (the legacy form).

    mask and is_audio bool (batch, length): what is not padding, and what is a placeholder. audio_lengths int (clips):
    audio tokens of each clip, in the order of the placeholders over the whole batch; tokens_per_clip: rows that the
    encoder makes of one window. Raises `ValueError` where placeholders and clips differ.
    """
    placeholders, clips, tokens = int(is_audio.sum()), len(audio_lengths), int(audio_lengths.sum())
    if placeholders != tokens and placeholders == clips:
        input_ids, mask, labels, is_audio = _expand(input_ids, mask, labels, is_audio, audio_lengths)
    elif placeholders != tokens:
        raise ValueError(
            f"the prompts hold {placeholders} audio tokens, but the {clips} given clips need {tokens} "
            f"({', '.join(map(str, audio_lengths)) or 'none'}), or one for each clip: "
            "give the clips and the prompts to the processor in one call"
        )
    rows = [clip * tokens_per_clip + np.arange(length) for clip, length in enumerate(audio_lengths)]
    audio_index = np.full(input_ids.shape, -1, np.int32)
    audio_index[is_audio] = np.concatenate(rows) if rows else []
    return Prompt(input_ids.astype(np.int32), mask, audio_index, labels)


def _expand(input_ids, mask, labels, is_audio, audio_lengths):
    """Repeat each placeholder once for each of its clip's tokens; padding goes to the side where the mask has it."""
    repeats = np.ones(input_ids.shape, np.int64)
    repeats[is_audio] = audio_lengths
    repeats[~mask] = 0
    width = int(repeats.sum(1).max())
    pad_right = bool((~mask[:, -1]).any())
    outputs = []
    for array, fill in ((input_ids, 0), (mask, False), (labels, -100), (is_audio, False)):
        if array is None:
            outputs.append(None)
            continue
        expanded = np.full((len(array), width), fill, array.dtype)
        for row, target in enumerate(expanded):
            values = np.repeat(array[row], repeats[row])
            if array is labels:
                values = np.where(np.repeat(is_audio[row], repeats[row]), -100, values)
            start = 0 if pad_right else width - len(values)
            target[start : start + len(values)] = values
        outputs.append(expanded)
    return outputs


def place_windows(mask: np.ndarray, counts: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Mark where windows of audio stand, of which each prompt says where they start: bool (batch, length).

    mask bool (batch, length): what is not padding. counts int (batch): windows of each prompt. starts and lengths int
    (windows): in the order of the text. Raises `ValueError` where they do not fit the prompts.
    """
    if len(counts) != len(mask) or counts.sum() != len(starts):
        raise ValueError(f"audio_batch_size {counts} does not share {len(starts)} windows among {len(mask)} prompts")
    places = np.zeros(mask.shape, bool)
    windows = iter(zip(starts.tolist(), lengths.tolist()))
    for row, count in enumerate(counts.tolist()):
        end = 0
        for start, length in islice(windows, count):
            if start < end or mask[row, start : start + length].sum() != length:
                raise ValueError(
                    f"audio_token_start_idx {start} does not fit prompt {row}: its windows' places must follow each "
                    "other, within its text"
                )
            end = start + length
            places[row, start:end] = True
    return places

"""Whisper's timestamp tokens: which may come next, and the segments that they mark."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindone_audio.generation.sampling import Rule, ScoreFunction

SECONDS = 0.02  # from one timestamp token to the next: one position of the encoder
FRAMES = 2  # of the log-mel, as long as that
FRAME_SECONDS = 0.01


@dataclass(frozen=True)
class Window:
    """How a window was heard, which begins at the frame `seek` of the log-mel.

    temperature: of the try that was taken. log_probability: the mean of its tokens', the end token among them.
    no_speech: the probability that nobody speaks. The last two are None where the manner asks for no such measure.
    """

    seek: int
    temperature: float
    log_probability: float | None = None
    no_speech: float | None = None


@dataclass(frozen=True)
class Segment:
    """What is said from one time to another, in seconds. tokens: with the timestamps that mark it, where they do.

    times: at which each token begins, where they were asked for. window: in which it was heard.
    """

    start: float
    end: float
    tokens: list[int]
    times: list[float] | None = None
    window: Window | None = None


def timestamp_rule(no_timestamps: int, end: int, latest_first: int | None) -> Rule:
    """Timestamps come in pairs, never go back, and win over text when they are likelier together than any word.

    no_timestamps: the token before the first timestamp. end: the end token; words are the tokens before it.
    latest_first: the last timestamp, counted from the first, with which a window may begin; None: any. The rules are
    those of openai/whisper, `ApplyTimestampRules` in `whisper/decoding.py`, and a timestamp is repeated only to close a
    pair, as there and in transformers.
    """
    first = no_timestamps + 1

    def rule(prompt_length: int) -> ScoreFunction:
        def apply(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
            scores = scores.copy()
            scores[:, no_timestamps] = -np.inf
            for row, new in zip(scores, tokens[:, prompt_length:]):
                _forbid(row, new)
            return scores

        def _forbid(row: np.ndarray, new: np.ndarray) -> None:
            if not len(new):
                row[:first] = -np.inf
                if latest_first is not None:
                    row[first + latest_first + 1 :] = -np.inf
            open_pair = len(new) > 1 and new[-1] >= first > new[-2]  # a text has just been ended by a timestamp
            if len(new) and new[-1] >= first:
                row[slice(end) if open_pair else slice(first, None)] = -np.inf
            if (times := new[new >= first]).size:
                row[first : times[-1] + (0 if open_pair else 1)] = -np.inf
            best = row[first:].max()  # scores are log probabilities but for what is the same of all
            if best > -np.inf and best + np.log(np.exp(row[first:] - best).sum()) > row[:first].max():
                row[:first] = -np.inf

        return apply

    return rule


def segments_of(
    tokens: list[int], first: int, seek: int, frames: int, starts: Sequence[float] | None = None
) -> tuple[list[Segment], int]:
    """The segments of what a window says, and how many frames of the log-mel they use up.

    tokens: without the end token. first: the first timestamp. seek: the frame at which the window begins. frames: of
    audio in it. starts: of the tokens, in seconds from the window's beginning. A segment goes from a timestamp to the
    next pair of them. What follows the last pair is said again, in the next window, unless the last token is a
    timestamp by itself: then nothing more is said in this window.
    """
    times = [token - first for token in tokens]
    begin = seek * FRAME_SECONDS

    def segment(part: slice, start: int, end: int) -> Segment:
        times = None if starts is None else [begin + time for time in starts[: len(tokens)][part]]
        return Segment(begin + start * SECONDS, begin + end * SECONDS, tokens[part], times)

    pairs = [i + 1 for i in range(len(tokens) - 1) if times[i] >= 0 and times[i + 1] >= 0]
    if not pairs:
        last = next((time for time in reversed(times) if time >= 0), 0)
        return [segment(slice(None), 0, last or frames // FRAMES)], frames
    alone = times[-1] >= 0 > times[-2]
    ends = [*pairs, len(tokens)] if alone else [*pairs[:-1], pairs[-1] + 1]
    segments, last = [], 0
    for end in ends:
        closing = end - 1 if alone or end != ends[-1] else end - 2
        segments.append(segment(slice(last, end), times[last], times[closing]))
        last = end
    return segments, frames if alone else times[last - 2] * FRAMES

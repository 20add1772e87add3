"""What a conversation tells. Times are milliseconds of what was heard, from its beginning."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SpeechStarted:
    """Somebody begins to speak, who may interrupt an answer. turn: a number that the events of one turn share."""

    turn: int
    start_ms: int


@dataclass(frozen=True)
class SpeechStopped:
    """A turn has ended. clip: float32 samples at 16 kHz, from start_ms to end_ms."""

    turn: int
    start_ms: int
    end_ms: int
    clip: np.ndarray


@dataclass(frozen=True)
class PartialText:
    """What has been understood of a turn that goes on.

    text: words that two looks at the growing turn agree on, which later partial texts only add to. tentative: what may
    follow, and may change.
    """

    turn: int
    text: str
    tentative: str


@dataclass(frozen=True)
class FinalText:
    """What was said from start_ms to end_ms, as the model writes down that clip by itself. last: False for a part of a
    turn that is longer than the model hears at a time; parts come in order."""

    turn: int
    text: str
    start_ms: int
    end_ms: int
    last: bool = True


@dataclass(frozen=True)
class AnswerStarted:
    """A turn is being answered."""

    turn: int


@dataclass(frozen=True)
class AnswerText:
    """What an answer has grown by: text, which may be empty, and the ids of its tokens."""

    turn: int
    text: str
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class AnswerAudio:
    """Sound of an answer: float32 samples, `rate` a second, of which `text` is said; "" where it goes on."""

    turn: int
    samples: np.ndarray
    rate: int
    text: str


@dataclass(frozen=True)
class AnswerDone:
    """An answer has ended. text: all of it. finish_reason: "stop" or "length"."""

    turn: int
    text: str
    finish_reason: str


@dataclass(frozen=True)
class Interrupted:
    """An answer was broken off. text: what of it the history keeps, which is what was told or sounded until then."""

    turn: int
    text: str


@dataclass(frozen=True)
class HistoryShortened:
    """The prompt nears the model's positions: clips of these turns were replaced by what was said in them, or, of turns
    in `dropped`, all of it was left out."""

    turns: tuple[int, ...]
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True)
class Failed:
    """A turn has no answer, or no text where `answer` is False; the conversation goes on."""

    turn: int
    error: Exception
    answer: bool = True


Event = (
    SpeechStarted
    | SpeechStopped
    | PartialText
    | FinalText
    | AnswerStarted
    | AnswerText
    | AnswerAudio
    | AnswerDone
    | Interrupted
    | HistoryShortened
    | Failed
)

"""What is said in clips of any length: Whisper's windows, one after the other in a clip, clips side by side.

The algorithm is that of openai/whisper's `transcribe` as transformers has it: a window begins where the last timestamp
was, and is tried again at higher temperatures where its text repeats itself or is unlikely.
"""

import dataclasses
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mindone_audio.generation.engine import Engine
from mindone_audio.generation.generate import ended_rows
from mindone_audio.generation.row import GenerationRequest, Row
from mindone_audio.generation.sampling import log_softmax
from mindone_audio.generation.settings import GenerationSettings
from mindone_audio.models.whisper.alignment import token_times
from mindone_audio.models.whisper.timestamps import Segment, Window, segments_of, timestamp_rule
from mindone_audio.models.whisper.tokens import SpecialTokens
from mindone_audio.models.whisper.words import language_name

COOL = 0.5  # the temperature from which on a text says nothing to the next window


@dataclass(frozen=True)
class Manner:
    """How clips are transcribed; the names and meanings are those of transformers.

    temperatures: the first, and those of further tries. condition_on_prev_tokens: a window is told what was said before
    it. prompt_ids: what is said before the first window, or with `prompt_every_window` before each. heads: those of
    each (layer, head) whose attention tells when tokens begin; None: nobody asks.
    """

    settings: GenerationSettings
    timestamps: bool
    temperatures: tuple[float, ...] = (0.0,)
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None
    condition_on_prev_tokens: bool = False
    prompt_ids: tuple[int, ...] = ()
    prompt_every_window: bool = False
    heads: tuple[tuple[int, int], ...] | None = None


@dataclass
class Transcription:
    """A clip, and what is known of it until now.

    log_mel fp32 (mel bins, frames); frames: of it that are heard; spoken: those that are audio, None for all: times of
    tokens are looked for in them, and with `ends_with_speech` nothing after them is asked; prompt: the tokens that each
    window begins with, None while the language is not known. segments: what is said, in the order of time.
    """

    log_mel: np.ndarray
    frames: int
    manner: Manner
    tokens: SpecialTokens
    window: int
    most: int  # positions of the decoder
    vocabulary: int
    prompt: list[int] | None
    make_prompt: Callable[[int], list[int]]
    spoken: int | None = None
    ends_with_speech: bool = False
    segments: list[Segment] = field(default_factory=list)
    seek: int = 0
    attempt: int = 0
    told: bool = True  # whether the next window is told what was said, if that is asked for
    clip: tuple | None = None  # the window that is heard now
    error: Exception | None = None  # what made it end

    @property
    def done(self) -> bool:
        return self.seek >= (self.spoken if self.ends_with_speech else self.frames) or self.error is not None

    @property
    def language(self) -> str | None:
        """What is spoken, as "german"; None while nobody knows, and of English-only checkpoints."""
        return None if self.prompt is None else language_name(self.tokens, self.prompt)

    def request(self) -> GenerationRequest:
        """What is asked next: the language, or what is said in a window."""
        if self.clip is None:
            part = self.log_mel[:, self.seek : self.seek + min(self.window, self.frames - self.seek)]
            padded = np.pad(part, ((0, 0), (0, self.window - part.shape[1])))
            self.clip = padded[None], np.array([part.shape[1]], np.int32)
        if self.prompt is None:
            return self._detection()
        prompt, manner = self._previous() + self.prompt, self.manner
        temperature = manner.temperatures[self.attempt]
        settings = dataclasses.replace(
            manner.settings,
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            num_beams=1 if temperature > 0 else manner.settings.num_beams,
            max_new_tokens=self._room(len(prompt)),
            max_length=None,
        )
        rules, speech = (), manner.no_speech_threshold is not None
        if manner.timestamps:
            tokens = self.tokens
            rules = (timestamp_rule(tokens.no_timestamps, tokens.end, tokens.latest_first),)
        return GenerationRequest(
            np.array(prompt, np.int32),
            np.full(len(prompt), -1, np.int32),
            self.clip,
            settings,
            _ends(settings.eos_token_ids),
            rules=rules,
            also=(len(prompt) - len(self.prompt),) if speech else (),
            measured=manner.logprob_threshold is not None or speech,
        )

    def hear(self, row: Row, engine: Engine) -> None:
        """Take an answer to the request. Raises the row's error."""
        row.check()
        if self.prompt is None:
            self.prompt = self.make_prompt(row.tokens[0])
            return
        tokens, manner = row.tokens, self.manner
        unlikely, repeats, no_speech = False, False, self._no_speech(row)
        likelihood = float(np.mean(row.log_probabilities)) if row.log_probabilities else None
        if manner.compression_ratio_threshold is not None:
            repeats = compression_ratio(tokens, self.vocabulary) > manner.compression_ratio_threshold
        if manner.logprob_threshold is not None:
            unlikely = likelihood < manner.logprob_threshold
        silent = unlikely and no_speech is not None and no_speech > manner.no_speech_threshold
        temperature = manner.temperatures[self.attempt]
        self.told = temperature < COOL
        if (repeats or unlikely) and not silent and self.attempt + 1 < len(manner.temperatures):
            self.attempt += 1
            return
        frames = min(self.window, self.frames - self.seek)
        if not silent:
            starts = None
            if manner.heads is not None:
                heard = self.window if self.spoken is None else min(self.window, self.spoken - self.seek)
                starts = token_times(engine, self.clip, row.request.input_ids.tolist(), tokens, manner.heads, heard)
            text = tokens[:-1] if tokens and tokens[-1] == self.tokens.end else tokens
            segments, frames = self._segments(text, frames, starts)
            window = Window(self.seek, temperature, likelihood, no_speech)
            self.segments += [dataclasses.replace(segment, window=window) for segment in segments]
        self.seek, self.attempt, self.clip = self.seek + frames, 0, None

    def _segments(self, tokens: list[int], frames: int, starts) -> tuple[list[Segment], int]:
        first = self.tokens.first_timestamp if self.manner.timestamps else self.vocabulary  # without: one segment
        return segments_of(tokens, first, self.seek, frames, starts)

    def _no_speech(self, row: Row) -> float | None:
        """The probability that nobody speaks; None where nobody asks, or the checkpoint has no token for it."""
        if self.manner.no_speech_threshold is None or self.tokens.no_speech is None:
            return None
        return math.exp(log_softmax(row.prompt_scores[0])[self.tokens.no_speech])

    def _detection(self) -> GenerationRequest:
        languages = list(self.tokens.languages.values())

        def only_languages(length: int):
            def apply(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
                chosen = np.full_like(scores, -np.inf)
                chosen[:, languages] = scores[:, languages]
                return chosen

            return apply

        settings = GenerationSettings(max_new_tokens=1)
        start = np.array([self.tokens.start], np.int32)
        return GenerationRequest(start, start * 0 - 1, self.clip, settings, _ends([]), rules=(only_languages,))

    def _previous(self) -> list[int]:
        """What comes before the prompt: what was said, and what the caller gives."""
        manner, given = self.manner, list(self.manner.prompt_ids)
        start = [] if self.tokens.start_of_previous is None else [self.tokens.start_of_previous]
        if not (manner.condition_on_prev_tokens and self.told):
            return given
        own = [] if manner.prompt_every_window else given[given[:1] == start :]
        said = sum((_without_double_end(segment.tokens, self.tokens.first_timestamp) for segment in self.segments), own)
        if not said:
            return given
        return (given if manner.prompt_every_window and given else start) + said[1 - self.most // 2 :]

    def _room(self, prompt: int) -> int:
        """The new tokens that a window may have after a prompt of so many tokens."""
        settings = self.manner.settings
        if settings.max_new_tokens is not None:
            if prompt + settings.max_new_tokens > self.most:
                raise ValueError(
                    f"max_new_tokens={settings.max_new_tokens} after a prompt of {prompt} tokens is more than the "
                    f"model's {self.most} positions: shorten the prompt or lower max_new_tokens"
                )
            return settings.max_new_tokens
        longest = self.most
        if settings.max_length is not None:
            longest = min(settings.max_length + min(self.most // 2 - 1, prompt - 1), self.most)
        if prompt >= longest:
            raise ValueError(f"the prompt has {prompt} tokens, and with its answer {longest} are the most: shorten it")
        return longest - prompt


def transcribe(engine: Engine, clips: Iterable[Transcription], most: int = 8) -> Iterator[Transcription]:
    """Go on with each clip until it is done, up to `most` side by side; yields each after each of its windows.

    Clips are taken when there is a place for them. A clip with which something is wrong gets its `error`.
    """
    waiting, more, refused = deque(), iter(clips), []

    class Requests:
        def __iter__(self):
            return self

        def __next__(self) -> tuple[Transcription, GenerationRequest]:
            while True:
                clip = waiting.popleft() if waiting else next(more)
                try:
                    return clip, clip.request()
                except ValueError as error:  # as of a prompt that has grown too long
                    clip.error = error
                    refused.append(clip)

    for clip, row in ended_rows(engine, Requests(), most):
        seek = clip.seek
        try:
            clip.hear(row, engine)
        except ValueError as error:
            clip.error = error
        if not clip.done:
            waiting.append(clip)
        if clip.done or clip.seek > seek:
            yield clip
    yield from refused


def compression_ratio(tokens: list[int], vocabulary: int) -> float:
    """How many times shorter zlib makes the tokens: a text that repeats itself has much."""
    width = int(math.log2(vocabulary) / 8) + 1
    data = b"".join(int(token).to_bytes(width, "little") for token in tokens)
    return len(data) / len(zlib.compress(data))


def _without_double_end(tokens: list[int], first: int | None) -> list[int]:
    """Of a pair of timestamps at the end only the first, as transformers and openai/whisper have it."""
    return tokens[:-1] if first is not None and len(tokens) > 2 and tokens[-2] >= first else tokens


def _ends(token_ids: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda new_tokens: np.isin(new_tokens[:, -1], token_ids)

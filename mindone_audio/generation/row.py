"""One sequence of a running batch: what was asked for, what was chosen until now, and why it has ended."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from mindone_audio.generation import sampling
from mindone_audio.generation.events import Token
from mindone_audio.generation.matcher import Matcher
from mindone_audio.generation.prompt_lookup import looked_up, rest
from mindone_audio.generation.settings import GenerationSettings


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue, checked, on the host.

    input_ids int32 (length): what the decoder sees, without padding. audio_index int32 (length): which row of the
    encoded clips stands there, -1 where a text token does. clips: features (clips, mel bins, frames) and int32 lengths
    in frames, or None. settings: final. ended: a test of new tokens int32 (sequences, length), which have ended, by an
    end token or a stop string. decode: from new tokens to text, None where nobody asks for text. constraint: makes for
    each row what says which tokens may come next; None: all may. rules: of the family, they act after the
    settings that forbid tokens. also: places of the prompt whose next token's scores are asked for too.
    measured: the log probability of each new token is kept.
    """

    input_ids: np.ndarray
    audio_index: np.ndarray
    clips: tuple[np.ndarray, np.ndarray] | None
    settings: GenerationSettings
    ended: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[list[int]], str] | None = None
    constraint: Callable[[], Matcher] | None = None
    rules: tuple[sampling.Rule, ...] = ()
    also: tuple[int, ...] = ()
    measured: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, those of audio included."""
        return len(self.input_ids)

    @property
    def audio_tokens(self) -> int:
        """Tokens of the prompt that are audio."""
        return int((self.audio_index >= 0).sum())

    def continued(self, tokens: list[int]) -> "GenerationRequest":
        """The same request with these new tokens in its prompt."""
        ids = np.concatenate([self.input_ids, np.array(tokens, np.int32)])
        index = np.pad(self.audio_index, (0, len(tokens)), constant_values=-1)
        return replace(self, input_ids=ids, audio_index=index, also=())

    def rows(self, logprobs: int | None = None) -> list["Row"]:
        """A row for each sequence that is asked for. logprobs: as for `Row`."""
        return [Row(self, copy, logprobs) for copy in range(self.settings.num_return_sequences)]


class Row:
    """A sequence that is generated: it has its own settings, random stream, score functions and end.

    tokens: the new ones, and `chosen` the same as `Token`s. reason: "stop" or "length" once it has ended; error: what
    made it end otherwise. logprobs: None, or how many of the best tokens are told beside each that was taken. slot: the
    one that it has in a running batch, and mode: `Decoder.mode` of the sequence there. prompt_scores fp32 (n, vocab):
    at the places that the request asks for too. log_probabilities: of the tokens, among those that are allowed, of a
    request that is `measured`.
    """

    def __init__(self, request: GenerationRequest, copy: int = 0, logprobs: int | None = None):
        settings = self.settings = request.settings
        length = len(request.input_ids)
        self.request, self.logprobs = request, logprobs
        self.tokens: list[int] = []
        self.chosen: list[Token] = []
        self.reason: str | None = None
        self.error: Exception | None = None
        self.slot: int | None = None
        self.mode = 0
        self.prompt_scores: np.ndarray | None = None
        self.log_probabilities: list[float] = []
        self._matcher = None if request.constraint is None else request.constraint()
        self._chain = sampling.score_functions(settings, length, request.rules)
        self._draws = sampling.draw_functions(settings)
        self._stream = sampling.random_stream(settings.seed, copy) if settings.do_sample else None
        self._history = np.concatenate([request.input_ids, np.zeros(settings.max_new_tokens, np.int32)])
        self._misses = self._rest = 0  # drafts in a row that were wrong, and tokens until the next one

    @property
    def reads_scores(self) -> bool:
        """Whether it needs more of a step than the best token."""
        return not self._plain or self.request.measured or self.logprobs is not None

    @property
    def _plain(self) -> bool:
        """Whether the best token is always the next one."""
        return not (self._chain or self._draws or self._matcher)

    @property
    def ended(self) -> bool:
        return self.reason is not None or self.error is not None

    def check(self) -> None:
        """Raise `error`, if there is one."""
        if self.error is not None:
            raise self.error

    def look_ahead(self) -> None:
        """Do what the next token needs of those before it, while its scores are computed."""
        if self._matcher is not None:
            with suppress(ValueError):  # `add` says so
                self._matcher.look()

    def add(self, scores: np.ndarray | None, best: int) -> None:
        """Choose the next token, of scores fp32 (vocab) and the best of them.

        The first time there must be scores, later where `reads_scores`. Sets `error` where there is no token to choose.
        """
        try:
            token = self._choose(scores, best)
        except ValueError as error:
            self.error = error
            return
        prompt, made = len(self.request.input_ids), len(self.tokens) + 1
        self._history[prompt + made - 1] = token
        self.tokens.append(token)
        self.chosen.append(Token(token) if self.logprobs is None else _with_logprobs(scores, token, self.logprobs))
        matcher = self._matcher
        if self.request.ended(self._history[None, prompt : prompt + made])[0] or (matcher and matcher.ended):
            self.reason = "stop"
        elif made >= self.settings.max_new_tokens and matcher and matcher.whole:
            self.reason = "stop"  # it needs no end token
        elif made >= self.settings.max_new_tokens:
            self.reason = "length"

    def draft(self, most: int) -> list[int]:
        """At most so many tokens that may come next, for `follow`: those that a constraint forces, else those that
        prompt lookup finds. [] where there are none, none are asked for, or the last ones were wrong. Who does not say
        gets them for an answer of a given form, which they make several times as fast."""
        settings, request, made = self.settings, self.request, len(self.tokens)
        asked = settings.prompt_lookup_num_tokens
        if asked is None:
            asked = 0 if self._matcher is None else most
        most = min(most, asked, settings.max_new_tokens - made - 1)
        if most < 1:
            return []
        if self._rest:
            self._rest -= 1
            return []
        forced = [] if self._matcher is None else self._matcher.forced()
        if len(forced) > 1:
            return forced[:most]
        prompt, length = np.where(request.audio_index < 0, request.input_ids, -1), len(request.input_ids)
        tokens = np.concatenate([prompt, self._history[length : length + made]])
        return looked_up(tokens, most, settings.max_matching_ngram_size)

    def follow(self, draft: list[int], scores: np.ndarray | None, best: np.ndarray) -> int:
        """`add` a token, and one more as long as the draft has the one that was chosen: how many were.

        scores fp32 (n, vocab) and best int (n), n more than the draft has: of its first token, of the one after that if
        it is right, and so on.
        """
        for place, drafted in enumerate([*draft, None]):
            self.add(None if scores is None else scores[place], best[place])
            if self.ended or self.tokens[-1] != drafted:
                break
        self._misses = 0 if place > 1 else self._misses + 1
        self._rest = rest(self._misses)
        return place + 1

    def _choose(self, scores: np.ndarray | None, best: int) -> int:
        if not self.tokens:
            sampling.refuse_invalid(scores[None])  # of a broken model these are NaN at once
        if self._plain and not self.request.measured:  # the graph has chosen
            return int(best)
        if self._matcher is None:
            return self._draw(scores)
        plain = not self._chain and not self._draws
        token = self._matcher.best(scores) if plain else self._draw(self._matcher.masked(scores))
        return self._matcher.take(token, self.settings.max_new_tokens - len(self.tokens) - 1)

    def _draw(self, scores: np.ndarray) -> int:
        tokens = self._history[None, : len(self.request.input_ids) + len(self.tokens)]
        allowed = sampling.process(self._chain, scores[None], tokens)
        processed = sampling.process(self._draws, allowed, tokens)
        drawn = self._stream is not None
        token = sampling.draw(processed[0], self._stream) if drawn else int(sampling.greedy(processed)[0])
        if self.request.measured:
            self.log_probabilities.append(float(sampling.log_softmax(allowed[0])[token]))
        return token


def _with_logprobs(scores: np.ndarray, token: int, count: int) -> Token:
    """A token with its log probability, and the `count` best tokens with theirs, as the model gives them."""
    logs = sampling.log_softmax(scores)
    best = np.argpartition(-logs, min(count, len(logs) - 1))[:count] if count else np.zeros(0, int)
    best = best[np.argsort(-logs[best], kind="stable")]
    return Token(token, float(logs[token]), tuple((int(other), float(logs[other])) for other in best))

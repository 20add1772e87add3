"""Tokens that may come next in an answer of a given form, and an answer that comes to its end in time."""

import json
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mindone_audio.generation.constraint import grammar_of, llguidance, one_line
from mindone_audio.setting_fields import SettingError

_STEP = 1 << 20  # between two kinds of tokens, see `_rank`
_SIGNS = b"@.-:/=_ #+1a"
_LOOK = 8  # tokens between two looks at how an answer may end


class Vocabulary:
    """A tokenizer as llguidance knows it, for a model of `size` tokens of which `ends` end an answer.

    rank int (size): the order in which tokens are tried where an answer must come to its end.
    """

    def __init__(self, tokenizer: Any, size: int, ends: list[int]):
        guidance = llguidance()
        known = {"n_vocab": size, "eos_token": ends[0] if ends else None}  # older versions know one end
        if hasattr(tokenizer, "backend_tokenizer"):
            from llguidance.hf import from_tokenizer

            self.known = from_tokenizer(tokenizer, **known)
        else:
            self.known = guidance.LLTokenizer(guidance.TokenizerWrapper(_Tekken(tokenizer)), **known)
        self.size, self.ends = size, ends or [self.known.eos_token]
        pieces = [b"" if self.known.is_special_token(t) else self.known.decode_bytes([t]) for t in range(size)]
        self.rank = np.array([_rank(piece) for piece in pieces])
        self.structural = self.rank < 2 * _STEP
        self.ends_text = np.array([piece.startswith(b'"') for piece in pieces])
        self.letters = np.array([token for token, piece in enumerate(pieces) if piece in (b"q", b"Z", b"k")], int)
        self._signs = {token for token, piece in enumerate(pieces) if len(piece) == 1 and piece in _SIGNS}

    def order(self, token: int, inside: bool) -> int:
        """`rank`, inside of a text with an end of it first, and then signs that patterns often ask for."""
        if inside and not self.ends_text[token]:
            return int(self.rank[token]) if token in self._signs else int(self.rank[token]) + 9 * _STEP
        return int(self.rank[token])

    def matcher(self, kind: str, text: str) -> Any:
        return llguidance().LLMatcher(self.known, grammar_of(kind, text), log_level=0)

    def allowed(self, matcher: Any) -> np.ndarray:
        """bool (size): the tokens that may come next. Raises `ValueError` where nothing may, or llguidance gives up."""
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            raise ValueError(f"the constraint is too complex here: {one_line(matcher.get_error())}")
        allowed = np.unpackbits(mask, bitorder="little")[: self.size].view(bool)
        allowed[self.ends] = allowed[self.ends[0]]
        return allowed


class _Tekken:
    """What llguidance asks a tokenizer of mistral-common's for."""

    def __init__(self, tokenizer: Any):
        tekken = self._tekken = tokenizer.tokenizer.instruct_tokenizer.tokenizer
        special = tekken.num_special_tokens
        self.eos_token_id, self.bos_token_id = tekken.eos_id, tekken.bos_id
        self.special_token_ids = list(range(special))
        words = [tekken.id_to_piece(token).encode() for token in self.special_token_ids]
        self.tokens = words + [tekken.id_to_byte_piece(token) for token in range(special, tekken.n_words)]

    def __call__(self, text: str) -> list[int]:
        return self._tekken.encode(text, bos=False, eos=False)


def _rank(piece: bytes) -> int:
    """Ends of strings, objects and arrays first, then what goes on to the next value, then digits."""
    if not piece:
        return 5 * _STEP
    if not piece.strip(b'"}]'):
        return _STEP - len(piece)
    if piece in (b",", b":"):
        return _STEP
    if piece in b"0123456789":
        return 2 * _STEP + piece[0]
    return (4 if piece.strip(b" {[\\") == b"" else 3) * _STEP + len(piece)


_vocabularies: "weakref.WeakKeyDictionary[Any, dict[tuple, Vocabulary]]" = weakref.WeakKeyDictionary()


def compile_constraint(
    constraint: Mapping[str, Any], tokenizer: Any, size: int, ends: list[int], most: int
) -> Callable[[], "Matcher"]:
    """Makes a `Matcher` for each answer to a request.

    constraint: as `check_constraint` gives it. size: tokens of the model's scores. ends: its end tokens. most: tokens
    that an answer may have. Raises `ValueError` where no answer is as short, or there is none.
    """
    if tokenizer is None:
        raise ValueError("a constraint needs the tokenizer: generate(..., tokenizer=processor.tokenizer)")
    if not (
        hasattr(tokenizer, "backend_tokenizer") or hasattr(getattr(tokenizer, "tokenizer", 0), "instruct_tokenizer")
    ):
        raise ValueError(f"a constraint needs a fast tokenizer or mistral-common's, not a {type(tokenizer).__name__}")
    known, key = _vocabularies.setdefault(tokenizer, {}), (size, *ends)
    if key not in known:
        known[key] = Vocabulary(tokenizer, size, ends)
    vocabulary, ((kind, form),) = known[key], constraint.items()
    text = form if isinstance(form, str) else json.dumps(form, ensure_ascii=False)
    begin = vocabulary.matcher(kind, text)
    shortest = closing(vocabulary, begin, most)
    certain = kind == "choice" or (kind == "json_schema" and '"pattern"' not in text)
    if shortest is None and (certain or not _goes_on(vocabulary, begin)):
        raise SettingError(
            lambda say: (
                f"{say(kind)}: no answer of at most {most} tokens was found that it allows: "
                f"raise {say('max_new_tokens')}, or allow a shorter answer"
            )
        )
    return lambda: Matcher(vocabulary, begin.deep_copy(), shortest or [])


def _goes_on(vocabulary: Vocabulary, matcher: Any) -> bool:
    """Whether an answer may begin at all. With a pattern `closing` may find no end where there is one."""
    try:
        return bool(vocabulary.allowed(matcher).any())
    except ValueError:
        return False


def closing(vocabulary: Vocabulary, matcher: Any, most: int) -> list[int] | None:
    """At most so many tokens after which the answer may end; None where none were found.

    Not the fewest: strings, objects and arrays are closed as soon as they may be, and what must come is taken. In a
    text that has a pattern, signs and letters that were not tried in it yet may lead on, so each is tried in turn.
    """
    matcher, tokens, uses = matcher.deep_copy(), [], Counter()
    while not matcher.is_accepting():
        step = matcher.compute_ff_tokens()  # what must come
        if not step:
            try:
                allowed = vocabulary.allowed(matcher)
            except ValueError:
                return None
            inside = allowed[vocabulary.letters].any()  # of a text, where brackets are signs as others
            allowed = np.flatnonzero(allowed)
            best = int(allowed[vocabulary.rank[allowed].argmin()])
            if inside or not vocabulary.structural[best] or tokens[-1:] == [best]:
                best = min(allowed.tolist(), key=lambda token: (uses[token], vocabulary.order(token, inside)))
                uses[best] += 1
            step = [best]
        if len(step) > 1 or vocabulary.ends_text[step[0]]:
            uses.clear()
        if len(tokens) + len(step) > most or not matcher.consume_tokens(step):
            return None
        tokens += step
    return tokens


class Matcher:
    """What one answer may go on with. end: tokens after which it may end, at first.

    ended: whether nothing can follow; whole: whether it may end here.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: Any, end: list[int]):
        self._vocabulary, self._matcher, self._watched = vocabulary, matcher, 0
        self._allowed: np.ndarray | None = None
        self._watch(end)

    @property
    def ended(self) -> bool:
        return self._matcher.is_stopped()

    @property
    def whole(self) -> bool:
        return self._matcher.is_accepting()

    def look(self) -> np.ndarray:
        """int (n): the tokens that may come next. Called while a device computes their scores, it costs no time."""
        if self._allowed is None:
            self._allowed = np.flatnonzero(self._vocabulary.allowed(self._matcher))
        return self._allowed

    def best(self, scores: np.ndarray) -> int:
        """Of scores fp32 (vocab) the best token that may come next."""
        allowed = self.look()
        return int(allowed[scores[allowed].argmax()])

    def masked(self, scores: np.ndarray) -> np.ndarray:
        """The scores fp32 (vocab), -inf of tokens that may not come next."""
        allowed, masked = self.look(), np.full_like(scores, -np.inf)
        masked[allowed] = scores[allowed]
        return masked

    def take(self, token: int, remaining: int) -> int:
        """Go on with a token, or with another one after which the answer can end within `remaining` more tokens.

        How many it needs is looked at from time to time, and for each token when few are left.
        """
        after = self._after(token)
        if not after.is_stopped() and (remaining <= self._watched or remaining % _LOOK == 0):
            end = self._ending(after, token, remaining)
            if end is None:
                end = closing(self._vocabulary, self._matcher, remaining + 1)
                if end is not None:
                    token, end = (end[0], end[1:]) if end else (self._vocabulary.ends[0], [])
                    after = self._after(token)
            self._watch(end or [])
        self._matcher, self._allowed = after, None
        return token

    def _ending(self, after: Any, token: int, remaining: int) -> list[int] | None:
        """`closing` of a matcher that has just taken the token; often what ended the answer before ends it still."""
        for end in (self._end[1:], self._end) if self._end[:1] == [token] else (self._end,):
            tried = after.deep_copy()
            if len(end) <= remaining and tried.try_consume_tokens(end) == len(end) and tried.is_accepting():
                return end
        return closing(self._vocabulary, after, remaining)

    def _watch(self, end: list[int]) -> None:
        self._end, self._watched = end, max(self._watched, len(end) + _LOOK)

    def _after(self, token: int) -> Any:
        after, ends = self._matcher.deep_copy(), self._vocabulary.ends
        if not after.consume_token(ends[0] if token in ends else token):
            raise ValueError(f"the constraint does not allow the token {token}")
        return after

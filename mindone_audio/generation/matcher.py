"""Tokens that may come next in an answer of a given form, and an answer that comes to its end in time."""

import json
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mindone_audio.generation.constraint import grammar_of, llguidance, one_line
from mindone_audio.generation.pattern_ends import ends_of_constraint
from mindone_audio.setting_fields import SettingError

_STEP = 1 << 20  # between two kinds of tokens, see `_rank`
_LOOK = 8  # tokens between two looks at how an answer may end, of which no end is known


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
        self.pieces = [b"" if self.known.is_special_token(t) else self.known.decode_bytes([t]) for t in range(size)]
        self.rank = np.array([_rank(piece) for piece in self.pieces])

    def place(self, token: int, place: int) -> int:
        """Where in JSON a token leads to: 0 outside of strings, 1 in a string, 2 in one after a backslash."""
        for byte in self.pieces[token] if token < self.size else b"":
            place = 1 if place == 2 else 1 - place if byte == 0x22 else 2 * place if byte == 0x5C else place
        return place

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
    begin, ends = vocabulary.matcher(kind, text), Ends(vocabulary, kind, form)
    shortest = ends.closing(begin, 0, most)
    if shortest is None and (ends.certain or not _begins(vocabulary, begin)):
        raise SettingError(
            lambda say: (
                f"{say(kind)}: no answer of at most {most} tokens was found that it allows: "
                f"raise {say('max_new_tokens')}, or allow a shorter answer"
            )
        )
    return lambda: Matcher(vocabulary, ends, begin.deep_copy(), shortest)


def _begins(vocabulary: Vocabulary, matcher: Any) -> bool:
    try:
        return matcher.is_accepting() or bool(vocabulary.allowed(matcher).any())
    except ValueError:
        return False


class Ends:
    """How an answer of a form comes to its end.

    certain: whether there is no end where none is found.
    """

    def __init__(self, vocabulary: Vocabulary, kind: str, form: Any):
        plain, quoted, self.certain = ends_of_constraint(kind, form)
        self._vocabulary, self._whole = vocabulary, kind == "regex"
        self._plain, self._quoted = ([vocabulary.known.tokenize_str(end) for end in ends] for ends in (plain, quoted))

    def closing(self, matcher: Any, place: int, most: int) -> list[int] | None:
        """At most so many tokens after which the answer may end; None where none were found.

        matcher: it stays as it is. place: see `Vocabulary.place`. Not the fewest: strings, objects and arrays are
        closed as soon as they may be, what must come is taken, and what has not been tried is tried first.
        """
        matcher, tokens, uses = matcher.deep_copy(), [], Counter()
        while not matcher.is_accepting():
            step = matcher.compute_ff_tokens() or self._step(matcher, place, uses)
            if not step or len(tokens) + len(step) > most or not matcher.consume_tokens(step):
                return None
            tokens += step
            for token in step:
                place = self._vocabulary.place(token, place)
            if not place and self._quoted:
                uses.clear()
        return tokens

    def _step(self, matcher: Any, place: int, uses: Counter) -> list[int] | None:
        """Tokens of an end that may come here, else the token that leads to one soonest."""
        inside = bool(place and self._quoted)
        ends = self._quoted if inside else self._plain
        for end in ends if inside or self._whole else sorted(ends, key=lambda end: uses[tuple(end)]):
            whole = [*end, self._vocabulary.ends[0]] if self._whole else end
            if matcher.validate_tokens(whole) == len(whole):
                uses[tuple(end)] += 1
                return end
        try:
            allowed = np.flatnonzero(self._vocabulary.allowed(matcher))
        except ValueError:
            return None
        rank = self._vocabulary.rank
        best = int(allowed[rank[allowed].argmin()])
        if inside or rank[best] >= 2 * _STEP or not self._quoted:
            best = min(allowed.tolist(), key=lambda token: (uses[(token,)], rank[token]))
            uses[(best,)] += 1
        return [best]


class Matcher:
    """What one answer may go on with. end: tokens after which it may end, at first; None where none is known.

    ended: whether nothing can follow; whole: whether it may end here.
    """

    def __init__(self, vocabulary: Vocabulary, ends: Ends, matcher: Any, end: list[int] | None):
        self._vocabulary, self._ends, self._matcher, self._end, self._place = vocabulary, ends, matcher, end, 0
        self._allowed: np.ndarray | None = None

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

    def forced(self) -> list[int]:
        """The tokens that must come next as far as there is no choice, in the tokenizer's own way to write them."""
        return self._matcher.compute_ff_tokens()

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
        """Go on with a token, or with another one after which the answer can end within `remaining` more tokens."""
        place = self._vocabulary.place(token, self._place)
        self._take(token)
        if not self.ended and (self._end is not None or remaining % _LOOK == 0):
            end = self._ending(token, place, remaining)
            if end is None and self._end is not None:  # the token leads too far: the known end begins here
                self._matcher.rollback(1)
                token, end = (self._end[0], self._end[1:]) if self._end else (self._vocabulary.ends[0], [])
                place = self._vocabulary.place(token, self._place)
                self._take(token)
            self._end = end
        self._place, self._allowed = place, None
        return token

    def _ending(self, token: int, place: int, most: int) -> list[int] | None:
        """What ended the answer before the token if it ends it still, as it often does, else `Ends.closing`."""
        known = self._end or []
        known = known[known[:1] == [token] :]
        whole = [*known, self._vocabulary.ends[0]]
        if len(known) <= most and self._matcher.validate_tokens(whole) == len(whole):
            return known
        return self._ends.closing(self._matcher, place, most)

    def _take(self, token: int) -> None:
        ends = self._vocabulary.ends
        if not self._matcher.consume_token(ends[0] if token in ends else token):
            raise ValueError(f"the constraint does not allow the token {token}")

"""Tokens to text while they come."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

logger = logging.getLogger(__name__)

_LONGEST = 16  # tokens that are decoded again with each new one
_CONTEXT = 8  # of them, that stay when the older ones are dropped
_PARTIAL = "\ufffd"  # what bytes decode to that are no whole character yet, or never
# White space at the end, and what transformers' clean_up_tokenization may still change: it takes away the space of
# " .", " n't", " 've" and more, and both of " ' ". It is short, so no tokenizer is asked whether it cleans up.
_CHANGING = re.compile(r"\s*(?:[ '][ n']*[vr]?)?\Z")


def text_stream(
    tokens: Iterable[int], decode: Callable[[list[int]], str], stops: Sequence[str] = (), strip: bool = False
) -> Iterator[str]:
    """The text of a growing list of token ids as deltas: what a `TextDecoder` gives, empty ones left out.

    The arguments and errors are those of `TextDecoder`.
    """
    return _deltas(tokens, TextDecoder(decode, stops, strip))


def _deltas(tokens: Iterable[int], decoder: "TextDecoder") -> Iterator[str]:
    for token in tokens:
        if delta := decoder.add(token):
            yield delta
        if decoder.stopped:
            break
    if delta := decoder.end():
        yield delta


class TextDecoder:
    """Token ids, one after another, to the deltas of their text, which are never taken back.

    decode: from token ids to text. Each new token decodes the last few ids again, and the end decodes all of them once.
    Text that the next tokens may change is held back: a character whose bytes have not all come, white space and
    apostrophes that a tokenizer may clean up, and what may be the beginning of one of `stops`, at which the text ends
    without it. The deltas joined are `cut(decode(all), stops)`, with `strip` without the white space at both its ends.
    stopped: whether a stop has come. Raises `ValueError` for an empty stop string.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = (), strip: bool = False):
        self.stops, self.strip, self.stopped = check_stops("stops", stops), strip, False
        self._decode, self._ids, self._deltas, self._tail = decode, [], [], _Tail(decode)

    def add(self, token: int) -> str:
        """What one more token adds to the text."""
        self._ids.append(token)
        settled = self._tail.add(token)
        if settled is None:
            return ""
        delta = ""
        if settled.startswith(self._tail.shown):
            end, self.stopped = _end(settled, self.stops)
            if self.strip:
                end = len(settled[:end].rstrip())
            if end > len(self._tail.shown):
                delta = settled[len(self._tail.shown) : end]
                self._tail.shown = settled[:end]
        if not self.stopped:
            self._tail.shorten()
        return self._given(delta)

    def end(self) -> str:
        """What is left of the text when no token follows."""
        whole, given = cut(self._decode(self._ids), self.stops), "".join(self._deltas)
        if self.strip:
            whole = whole.strip()
        if not whole.startswith(given):
            logger.warning(
                "the tokenizer has rewritten text that was given out: %r is now %r", given[-80:], whole[-80:]
            )
            given = os.path.commonprefix([whole, given])
        return self._given(whole[len(given) :])

    def _given(self, delta: str) -> str:
        if self.strip and not self._deltas:
            delta = delta.lstrip()
        if delta:
            self._deltas.append(delta)
        return delta


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops` that it has."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def check_stops(name: str, stops: str | Sequence[str] | None) -> list[str]:
    """Stop strings as a list; `ValueError` for anything but strings, and for an empty one, which would end any text."""
    given = [stops] if isinstance(stops, str) else [] if stops is None else stops
    if not isinstance(given, list | tuple) or not all(isinstance(stop, str) for stop in given):
        raise ValueError(f"{name} must be a string or a list of strings, not {stops!r:.80}")
    if "" in given:
        raise ValueError(f"{name} has an empty string, at which every text would end: leave it out")
    return list(given)


class _Tail:
    """The last tokens of a text, which are decoded again with each new one.

    shown: what of their text was given out. What was dropped before them was given out as well.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self.decode, self.ids, self.text, self.shown = decode, [], "", ""
        self.due = 0  # tokens at which it is decoded next
        # The last token that is only bytes of a character. SentencePiece's byte_fallback makes one text or none of
        # neighbouring bytes, so a wrong one after it takes characters back; None where bytes are known to stay.
        self.byte: int | None = None
        self.bytes_stay = False

    def add(self, token: int) -> str | None:
        """The text of the tail with one more token, as far as no other token changes it; None where it is not due."""
        self.ids.append(token)
        if is_byte := not self.bytes_stay and _PARTIAL in self.decode([token]):
            self.byte = token
        if len(self.ids) < self.due:
            return None
        self.text = self.decode(self.ids)
        settled = self.text.rstrip(_PARTIAL)
        if self.byte is not None:
            kept = os.path.commonprefix([settled, self.decode([*self.ids, self.byte])])
            if is_byte and kept == settled == self.text:  # it has completed a character, which a wrong byte leaves
                self.bytes_stay, self.byte = True, None
            settled = kept
        return settled[: _CHANGING.search(settled).start()]

    def shorten(self) -> None:
        """Drop tokens whose text was given out, where the rest decodes to the same text without them."""
        if len(self.ids) <= _LONGEST:
            return
        for size in range(_CONTEXT, _LONGEST):
            text = self.decode(self.ids[-size:])
            dropped = len(self.text) - len(text)
            if self.text.endswith(text) and dropped < len(self.shown) and not text.startswith(_PARTIAL):
                self.ids, self.text, self.shown, self.due = self.ids[-size:], text, self.shown[dropped:], 0
                return
        self.due = len(self.ids) + len(self.ids) // 4  # text that does not settle is decoded less and less often


def _end(settled: str, stops: Sequence[str]) -> tuple[int, bool]:
    """Up to where a text may be given out, and whether it ends there, at a stop that no other one can precede."""
    found = len(cut(settled, stops))
    partial = len(settled)
    for stop in stops:
        lengths = range(min(len(stop) - 1, len(settled)), 0, -1)
        partial = min(partial, len(settled) - next((n for n in lengths if settled.endswith(stop[:n])), 0))
    return min(found, partial), found < len(settled) and found <= partial

"""Tokens to text while they come."""

from collections.abc import Callable, Iterable, Iterator, Sequence


def text_stream(tokens: Iterable[int], decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> Iterator[str]:
    """The text of a growing list of token ids, in pieces that are never taken back.

    decode: from all ids so far to text. A character whose bytes have not all come is held back, and so is what may be
    the beginning of one of `stops`, at which the text ends without it. The pieces joined are `cut(decode(all), stops)`.
    """
    ids: list[int] = []
    given = text = ""
    for token in tokens:
        ids.append(token)
        text = decode(ids)
        if cut(text, stops) != text:
            break
        safe = text[: len(text) - _held_back(text, stops)]
        if safe.startswith(given) and safe != given:
            yield safe[len(given) :]
            given = safe
    text = cut(text, stops)
    if text.startswith(given) and text != given:
        yield text[len(given) :]


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops` that it has."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def _held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may still change or be cut."""
    if text.endswith("\ufffd"):
        return len(text) - len(text.rstrip("\ufffd"))
    starts = (n for stop in stops for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
    return max(starts, default=0)

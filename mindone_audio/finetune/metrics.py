"""How answers are scored: exact match and word error rate, both without regard to case and punctuation."""

import re
import unicodedata
from collections.abc import Sequence

_APOSTROPHES = re.compile(r"(?<=\w)['\u2019](?=\w)")
# What belongs to a number: a sign before it, a point, comma or colon inside it, and a percent sign.
_NUMBER = re.compile(r"(?<![\w.])-(?=[.\d])|(?<=\d)[.,:](?=\d)|(?<=\d)%")


def normalised(text: str) -> list[str]:
    """The words of a text that count: case folded, without punctuation that is not part of a number.

    "It's 3.5%, well-known!" -> its, 3.5%, well, known.
    """
    text = _APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold())
    kept = {match.start() for match in _NUMBER.finditer(text)}
    characters = (
        " " if unicodedata.category(character).startswith("P") and place not in kept else character
        for place, character in enumerate(text)
    )
    return "".join(characters).split()


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """The share, 0 to 1, of answers that equal their reference; `ValueError` for none, or unequal numbers of them."""
    _check(answers, references)
    right, asked = _right_answers(answers, references)
    return right / asked


def word_error_rate(answers: Sequence[str], references: Sequence[str]) -> float:
    """Words inserted, deleted or replaced over the words of all references; 0 is perfect, and more than 1 is possible.

    Words are what white space separates. Raises `ValueError` for none, unequal numbers, or references without words.
    """
    _check(answers, references)
    wrong, words = _wrong_words(answers, references)
    if not words:
        raise ValueError("the references have no words, so there is no word error rate: use exact_match")
    return wrong / words


def _edits(words: list[str], reference: list[str]) -> int:
    """Levenshtein's distance of two lists of words."""
    row = list(range(len(reference) + 1))
    for count, word in enumerate(words, 1):
        before, row[0] = row[0], count
        for place, other in enumerate(reference, 1):
            replaced = before + (word != other)
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, replaced)
    return row[-1]


def _check(answers: Sequence[str], references: Sequence[str]) -> None:
    if isinstance(answers, str) or isinstance(references, str):
        raise ValueError("give lists of answers and references, not one string")
    if not len(answers) or len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers for {len(references)} references: give one for each, at least one")


def _right_answers(answers: Sequence[str], references: Sequence[str]) -> tuple[int, int]:
    return sum(normalised(a) == normalised(r) for a, r in zip(answers, references)), len(references)


def _wrong_words(answers: Sequence[str], references: Sequence[str]) -> tuple[int, int]:
    pairs = [(normalised(answer), normalised(reference)) for answer, reference in zip(answers, references)]
    return sum(_edits(answer, reference) for answer, reference in pairs), sum(len(words) for _, words in pairs)


# What each metric counts, and out of how many: so that the shares of several ranks can be added up.
COUNTS = {"exact_match": _right_answers, "wer": _wrong_words}

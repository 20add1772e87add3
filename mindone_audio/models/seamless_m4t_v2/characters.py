"""The characters of a translation, which the text-to-unit model reads beside the text decoder's hidden states."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

_SPACE = "▁"  # what sentencepiece writes for one


@dataclass(frozen=True)
class Spelling:
    """How generation_config.json spells tokens.

    id_to_text: the text of a token, by its number as a string; char_to_id: the number of a character. silent: tokens
    that have a text and are not spoken, such as padding. unknown: the token, and the character, that stands for others.
    """

    id_to_text: Mapping[str, str]
    char_to_id: Mapping[str, int]
    silent: Collection[int] = ()
    unknown: int = 1

    def characters(self, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        """The characters of all tokens, one behind the other, and for each token how many of them it takes.

        A space belongs to the word behind it, and behind a punctuation mark to the mark: the rule of
        `_count_character_length_in_subword` in transformers. A token without a text, such as a language's, has no
        characters (in transformers those of "None").
        """
        texts = ["" if token in self.silent else self.id_to_text.get(str(token), "") for token in tokens]
        found, counts = [], []
        for place, (token, text) in enumerate(zip(tokens, texts)):
            if token == self.unknown:
                found.append(self.unknown)
                counts.append(1)
                continue
            found += [self.char_to_id.get(character, self.unknown) for character in text]
            counts.append(len(text) + _takes_space(texts, place) - (place > 0 and _takes_space(texts, place - 1)))
        return found, counts


def _takes_space(texts: list[str], place: int) -> bool:
    """Whether a token is a punctuation mark, and the next one a word with the space that is before it."""
    text, following = texts[place], texts[place + 1] if place + 1 < len(texts) else ""
    marks = len(text) == 1 and text != _SPACE and not text.isalpha() and not text.isnumeric()
    return marks and len(following) > 1 and following[0] == _SPACE

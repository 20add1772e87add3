"""The words of a segment, and when each is said."""

from typing import Any

from transformers.models.whisper import tokenization_whisper as tokenization

from mindone_audio.models.whisper.timestamps import Segment
from mindone_audio.models.whisper.tokens import SpecialTokens


def words_of(tokenizer: Any, segment: Segment, tokens: SpecialTokens, language: str | None, last: float) -> list[dict]:
    """Each word as {"word", "start", "end"}, in seconds, at most `last`; a word has the space that is before it.

    Tokens are put together as transformers does it, by the writing of the language. A word ends where the next token
    begins, the last one where the segment does.
    """
    text = [(token, time) for token, time in zip(segment.tokens, segment.times) if token < tokens.end]
    ends = [time for token, time in zip(segment.tokens, segment.times)][1:] + [segment.end]
    ends = [end for token, end in zip(segment.tokens, ends) if token < tokens.end]
    words, _, indices = tokenization._combine_tokens_into_words(tokenizer, [token for token, _ in text], language)
    return [
        {
            "word": word,
            "start": round(min(text[own[0]][1], last), 2),
            "end": round(min(max(ends[own[-1]], text[own[0]][1]), last), 2),
        }
        for word, own in zip(words, indices)
        if word.strip()
    ]


def language_name(tokens: SpecialTokens, prompt: list[int]) -> str | None:
    """The language that a prompt says, as "german"; None where it says none."""
    codes = {token: text.strip("<|>") for text, token in tokens.languages.items()}
    return next((tokenization.LANGUAGES.get(codes[token]) for token in prompt if token in codes), None)

"""What pipelines return, and what they make of an input that fails."""

from collections.abc import Callable, Sequence

from mindone_audio.inputs.audio import AudioError

REFUSALS = (TypeError, ValueError, OverflowError, OSError)  # of one input, that others are answered in spite of


class Answers(list):
    """A list of `{"generated_text": …}`, which also answers to the name of a key.

    `answers["generated_text"]` is the text where one thing was asked, and the list of texts where a list was.
    """

    def __init__(self, answers: Sequence[dict], single: bool):
        super().__init__(answers)
        self.single = single

    def __getitem__(self, key):
        if isinstance(key, str):
            values = [answer[key] for answer in self]
            return values[0] if self.single else values
        return super().__getitem__(key)


def failure(
    error: Exception, on_error: str, place: int, single: bool, explain: Callable[[Exception], str] = str
) -> dict:
    """The answer to an input that failed, which `explain` words; raises it instead with on_error="raise"."""
    if on_error == "return":
        return {"generated_text": None, "error": explain(error)}
    if single:
        raise error
    kind = type(error) if isinstance(error, AudioError) else OSError if isinstance(error, OSError) else ValueError
    raise kind(f"input {place}: {error}") from error

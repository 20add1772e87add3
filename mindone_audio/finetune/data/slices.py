"""Parts of examples: so many, after so many others."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from mindone_audio.finetune.data.examples import DataError


class PartOfRows(Sequence):
    """Some examples of a sequence, each made when it is read."""

    def __init__(self, examples: Sequence, places: range):
        self.examples, self.places = examples, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return PartOfRows(self.examples, self.places[index])
        return self.examples[self.places[index]]


class PartOfStream(Iterable):
    """Some examples of a stream, which can be gone through again."""

    def __init__(self, examples: Iterable, skip: int, take: int | None):
        self.examples, self.skip, self.take = examples, skip, take

    def __iter__(self) -> Iterator[Any]:
        return islice(self.examples, self.skip, None if self.take is None else self.skip + self.take)


def part(examples: Sequence | Iterable, skip: int, take: int | None) -> Sequence | Iterable:
    """`examples` without the first `skip`, and of the rest `take`, None for all.

    Raises `DataError` where that leaves nothing of a sequence.
    """
    if not skip and take is None:
        return examples
    if not hasattr(examples, "__len__"):
        return PartOfStream(examples, skip, take)
    places = range(len(examples))[skip : None if take is None else skip + take]
    if not places:
        raise DataError(
            lambda say: f"there are {len(examples)} examples, and {say('skip', skip)} leaves none of them: give less"
        )
    return PartOfRows(examples, places)

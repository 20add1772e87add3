"""Which examples each step learns from, the same for any number of ranks."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np


class Order:
    """Global batches of examples: from a sequence, in an order drawn for each epoch, or from an iterable as it comes.

    A global batch is what all ranks learn from in one step. `share` gives a rank its part of one.
    """

    def __init__(self, examples: Sequence | Iterable, size: int, seed: int, shuffle: bool):
        """size: examples of a global batch."""
        self.examples, self.size, self.seed, self.shuffle = examples, size, seed, shuffle
        self.known = hasattr(examples, "__len__") and hasattr(examples, "__getitem__")
        if self.known and not len(examples):
            raise ValueError("there are no examples to learn from: the data is empty")

    @property
    def steps_per_epoch(self) -> int | None:
        """None where the data is streamed."""
        return math.ceil(len(self.examples) / self.size) if self.known else None

    def batches(self, start: int = 0) -> Iterator[list[Any]]:
        """Global batches from step `start` on, without end. The last of an epoch may be smaller."""
        if self.known:
            epoch, first = divmod(start, self.steps_per_epoch)
            while True:
                places = np.arange(len(self.examples))
                if self.shuffle:
                    places = np.random.default_rng((self.seed, epoch)).permutation(len(places))
                for step in range(first, self.steps_per_epoch):
                    chosen = places[step * self.size : (step + 1) * self.size]
                    yield [self.examples[int(place)] for place in chosen]
                epoch, first = epoch + 1, 0
        skipped = start
        while True:
            stream, found = iter(self.examples), False
            while batch := list(islice(stream, self.size)):
                found = True
                if skipped:
                    skipped -= 1
                else:
                    yield batch
            if not found:
                raise ValueError("there are no examples to learn from: the data is empty")


def share(batch: list, rank: int, ranks: int, rows: int) -> list[list]:
    """A rank's part of a global batch, cut into micro-batches of at most `rows`; as many for every rank.

    A micro-batch may be empty where the global batch is smaller than usual.
    """
    count = math.ceil(len(batch) / (rows * ranks))
    micro = [batch[i * rows * ranks : (i + 1) * rows * ranks] for i in range(count)]
    return [part[rank::ranks] for part in micro]

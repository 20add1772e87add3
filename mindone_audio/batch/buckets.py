"""Which decoded items are answered together: those with equal settings and similar lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mindone_audio.batch.decode_ahead import MAX_SECONDS, Decoded

AHEAD = 4  # batches among which items of similar length are looked for
MOST_CLIPS = 64  # in a batch by seconds


@dataclass(frozen=True)
class Question:
    """How an item is asked: by a text, or else by a task. settings: of `generate`. alone: in a batch of its own."""

    text: str | None
    task: str | None
    settings: dict = field(default_factory=dict)
    alone: bool = False

    @property
    def group(self) -> str:
        """Equal for questions that can be answered in one batch; texts may differ."""
        return repr((self.text is None and self.task, sorted(self.settings.items())))


@dataclass(frozen=True)
class Ready:
    """A decoded item, its question, and when it came."""

    decoded: Decoded
    question: Question
    turn: int


class Buckets:
    """Collects items and gives them out in batches of `size` clips, or of at most `seconds` of audio.

    Batches by seconds have 1, 2, 4, … clips, because each number of clips is a graph to compile.
    """

    def __init__(self, size: int, seconds: float | None = None):
        self.size, self.seconds = size, seconds
        self._groups: dict[str, list[Ready]] = {}
        self._turn = self._count = 0
        self._audio = 0.0

    @property
    def ahead(self) -> int:
        """How many items it is useful to collect."""
        return AHEAD * (self.size if self.seconds is None else MOST_CLIPS)

    @property
    def full(self) -> bool:
        """Whether there is enough to choose from."""
        enough = MAX_SECONDS if self.seconds is None else min(MAX_SECONDS, AHEAD * self.seconds)
        return self._count >= self.ahead or self._audio >= enough

    @property
    def ready(self) -> bool:
        """Whether some batch is filled, so that the device need not wait for more."""
        return any(self._is_filled(group) for group in self._groups.values())

    def __len__(self) -> int:
        return self._count

    def add(self, decoded: Decoded, question: Question) -> None:
        """Take one more item."""
        self._groups.setdefault(question.group, []).append(Ready(decoded, question, self._turn))
        self._turn += 1
        self._count += 1
        self._audio += decoded.seconds

    def take(self) -> list[Ready]:
        """A batch with the oldest item whose group fills one, or of the largest group; empty where nothing is left."""
        if not self._groups:
            return []
        filled = [group for group in self._groups.values() if self._is_filled(group)]
        oldest_of = {id(group): min(entry.turn for entry in group) for group in self._groups.values()}
        group = min(filled, key=lambda g: oldest_of[id(g)]) if filled else max(self._groups.values(), key=len)
        group.sort(key=lambda entry: (entry.decoded.seconds, entry.turn))
        place = next(i for i, entry in enumerate(group) if entry.turn == oldest_of[id(group)])
        chosen = self._around(group, place)
        taken = {entry.turn for entry in chosen}
        group[:] = [entry for entry in group if entry.turn not in taken]
        self._groups = {name: entries for name, entries in self._groups.items() if entries}
        self._count -= len(chosen)
        self._audio = sum(entry.decoded.seconds for entries in self._groups.values() for entry in entries)
        return chosen

    def _is_filled(self, group: Sequence[Ready]) -> bool:
        if group[0].question.alone:
            return True
        if self.seconds is None:
            return len(group) >= self.size
        return sum(entry.decoded.seconds for entry in group) >= self.seconds

    def _around(self, group: list[Ready], place: int) -> list[Ready]:
        """Neighbours in length of the item at `place`, with it."""
        if group[0].question.alone:
            return [group[place]]
        if self.seconds is None:
            start = max(0, min(place, len(group) - self.size))
            return group[start : start + self.size]
        low, high, total = place, place + 1, group[place].decoded.seconds
        grown = True
        while grown and high - low < MOST_CLIPS:
            grown = False
            for next_place in (high, low - 1):
                if 0 <= next_place < len(group) and high - low < MOST_CLIPS:
                    length: Any = group[next_place].decoded.seconds
                    if total + length <= self.seconds:
                        low, high, total, grown = min(low, next_place), max(high, next_place + 1), total + length, True
        count = 1 << ((high - low).bit_length() - 1)
        start = max(low, min(place, high - count))
        return group[start : start + count]

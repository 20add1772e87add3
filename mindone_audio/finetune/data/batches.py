"""What puts examples into batches, whatever a batch has: clips are read, and bad examples named or skipped."""

import logging
from collections.abc import Sequence

import numpy as np

from mindone_audio.finetune.data.examples import DataError, Example
from mindone_audio.finetune.settings import LABELS, ON_BAD_CLIP
from mindone_audio.inputs.audio import AudioError, ClipTooLongError
from mindone_audio.setting_fields import about, refusal

logger = logging.getLogger(__name__)

IGNORED = -100  # a label that is not learned


class TooLongError(DataError):
    """An example that has more tokens than are allowed."""


class ExampleCollator:
    """The arguments that all collators have, and what they do with an example that cannot be used.

    labels, max_length, on_bad_clip, pad_to_multiple_of: as `AnswerCollator` has them.

    Attributes: skipped: (name, message) of each example that was left out, once.
    """

    def __init__(self, labels: str, max_length: int | None, on_bad_clip: str, pad_to_multiple_of: int):
        for name, value, known in (
            ("labels", labels, LABELS),
            ("on_bad_clip", on_bad_clip, ON_BAD_CLIP),
        ):
            if value not in known:
                raise refusal(name, f" must be {' or '.join(map(repr, known))}, not {value!r}")
        for name, value in (("max_length", max_length), ("pad_to_multiple_of", pad_to_multiple_of)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise refusal(name, f" must be a number of tokens, at least 1, not {value!r}")
        self.labels, self.max_length = labels, max_length
        self.on_bad_clip, self.multiple = on_bad_clip, pad_to_multiple_of
        self.skipped: list[tuple[str, str]] = []

    def __call__(self, examples: Sequence[Example]) -> dict[str, np.ndarray] | None:
        """A batch of the examples, or None if all of them were skipped.

        Raises:
            AudioError: a clip that cannot be read, by the example's name, unless such are skipped.
            DataError: an example of more than max_length tokens, unless such are skipped, or one that is wrong.
        """
        loaded = []
        for example in examples:
            try:
                loaded.append((example, example.samples()))
            except ValueError as error:
                self._refuse(example, error)
        while loaded:
            try:
                return self._batch(loaded)
            except ValueError as error:
                loaded = self._without_bad(loaded, error)
        return None

    def _without_bad(self, loaded: list, error: ValueError) -> list:
        """Of what failed together with `error`, what makes a batch alone; the others are raised by name or skipped."""
        good = []
        for pair in loaded:
            try:
                self._batch([pair])
            except ValueError as own_error:
                self._refuse(pair[0], own_error)
            else:
                good.append(pair)
        if len(good) == len(loaded):
            raise error
        return good

    def _refuse(self, example: Example, error: ValueError) -> None:
        """Raise the error by the example's name, or put the example down as skipped."""
        if self.on_bad_clip == "skip" and isinstance(error, (AudioError, TooLongError)):
            self._skip(example, error)
            return
        if isinstance(error, ClipTooLongError):  # Its own advice is to cut clips, which nothing here does.
            what = error.what
            error = AudioError(
                lambda say: f"{what}: cut the clip, leave the example out, or use {say('on_bad_clip', 'skip')}"
            )
        kind = type(error) if isinstance(error, (AudioError, DataError)) else DataError
        raise kind(about(example.name, error)) from error

    def _skip(self, example: Example, error: AudioError | TooLongError) -> None:
        reason = error.what if isinstance(error, ClipTooLongError) else str(error)
        if (example.name, reason) not in self.skipped:
            self.skipped.append((example.name, reason))
            logger.warning("%s: %s: this example is skipped (%d so far)", example.name, reason, len(self.skipped))

    def _batch(self, loaded: list[tuple[Example, np.ndarray]]) -> dict[str, np.ndarray]:
        """A batch of examples with their samples; `ValueError` where one of them cannot be in it."""
        raise NotImplementedError

    def _rounded(self, length: int) -> int:
        """The length that a batch of this one gets."""
        return length + -length % self.multiple

    @staticmethod
    def _wide(batch: dict[str, np.ndarray], fills: dict[str, int], length: int) -> dict[str, np.ndarray]:
        """The arrays [batch, tokens] that `fills` names, filled up on the right."""
        return {
            name: np.pad(batch[name], ((0, 0), (0, length - batch[name].shape[1])), constant_values=fill)
            for name, fill in fills.items()
        }

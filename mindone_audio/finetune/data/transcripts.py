"""Clips and what is said in them to model inputs with labels, for models that write it down."""

from typing import Any

import numpy as np

from mindone_audio.finetune.data.batches import IGNORED, ExampleCollator, TooLongError
from mindone_audio.finetune.data.examples import DataError, Example
from mindone_audio.inputs.audio import AudioError


class TranscriptCollator(ExampleCollator):
    """Puts examples into a batch: NumPy arrays that an encoder-decoder model takes, loss included.

    What the family's processor gives for the clips; `decoder_input_ids`, `decoder_attention_mask` and `labels`, int64
    `[batch, length]`, padded on the right: what the decoder reads, and what is to follow it, -100 where nothing is to
    be learned.

    Args:
        processor, model: the checkpoint's. The model says what an answer begins with, and how long it may be.
        language, task: of the examples that do not say it themselves, as for `generate`.
        labels: "answer" learns what is said and its end. "all" learns what the answer begins with too, but for its
            first token: so do the labels of Hugging Face's guide for Whisper.
        max_length: tokens of the longest answer allowed, with those that it begins and ends with; None for as many as
            the model has positions. Nothing is ever cut.
        on_bad_clip: "raise", or "skip" examples whose clip cannot be read, is too long or too short for the model, or
            which exceed max_length: they are left out of the batch and put down in `skipped`.
        pad_to_multiple_of: round lengths up, on the right.

    Attributes:
        end: the token learned after an answer, in a list.
        skipped: (name, message) of each example that was left out, once.

    Raises `ValueError` for a wrong setting.
    """

    def __init__(
        self,
        processor: Any,
        model: Any,
        *,
        language: str | None = None,
        task: str | None = None,
        labels: str = "answer",
        max_length: int | None = None,
        on_bad_clip: str = "raise",
        pad_to_multiple_of: int = 1,
    ):
        super().__init__(labels, max_length, on_bad_clip, pad_to_multiple_of)
        self.processor, self.model = processor, model
        self.language, self.task = language, task
        self.most = model.language_model.config.max_positions
        ends = model.generation_config.eos_token_id
        self.end = [int(np.ravel(processor.tokenizer.eos_token_id if ends is None else ends)[0])]
        # What the answer cannot have: it would be read as what it means to the model.
        self._special = {*processor.tokenizer.added_tokens_decoder, *processor.tokenizer.all_special_ids}
        if language is not None:
            model.start_tokens(language, task)

    def _batch(self, loaded: list[tuple[Example, np.ndarray]]) -> dict[str, np.ndarray]:
        clips = dict(self.processor.transcript_clips([clip for _, clip in loaded]))
        try:
            self.model.clips(clips)
        except ValueError as error:
            raise AudioError(str(error)) from error
        rows = [self._row(example) for example, _ in loaded]
        fills = {"decoder_input_ids": self.end[0], "decoder_attention_mask": 0, "labels": IGNORED}
        length = max(len(ids) for ids, _ in rows)
        batch = {name: np.full((len(rows), length), fill) for name, fill in fills.items()}
        for place, (ids, labels) in enumerate(rows):
            batch["decoder_input_ids"][place, : len(ids)] = ids
            batch["decoder_attention_mask"][place, : len(ids)] = 1
            batch["labels"][place, : len(ids)] = labels
        return clips | self._wide(batch, fills, max(length, min(self._rounded(length), self.most)))

    def _row(self, example: Example) -> tuple[list[int], list[int]]:
        """What the decoder reads of an example, and the labels of what is to follow each token."""
        if example.prompt.strip():
            raise DataError(
                f"there is a question, {example.prompt[:80]!r}, and this model writes down what is said: leave out "
                "prompt (and text, which is the same), or say which column has the answers"
            )
        language = self.language if example.language is None else example.language
        start = self.model.start_tokens(language, self.task if example.task is None else example.task)
        text = self.processor.transcript_tokens(example.answer)
        if special := [token for token in text if token in self._special]:
            word = self.processor.tokenizer.convert_ids_to_tokens(special[0])
            raise DataError(f"the answer has the word {word}, which means something to the model: leave it out")
        whole = [*start, *text, *self.end]
        most, given = self.most + 1, self.max_length  # the end is not read
        if given is not None and len(whole) > given:
            raise TooLongError(
                lambda say: f"{len(whole)} tokens are more than {say('max_length', given)}: raise it, or cut the clip"
            )
        if len(whole) > most:
            raise TooLongError(
                f"{len(whole)} tokens are more than the {most} that this model can say of a clip: cut the clip"
            )
        learned = 1 if self.labels == "all" else len(start)
        return whole[:-1], [IGNORED] * (learned - 1) + whole[learned:]

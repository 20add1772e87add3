"""What a model answers to the examples of an evaluation, for metrics to score."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from mindone_audio.finetune.data.examples import Example
from mindone_audio.finetune.settings import FinetuneSettings
from mindone_audio.inputs.audio import AudioError

_SPOKEN = ("language", "task")


class Answers:
    """The pipeline of a model, asked as the model is taught.

    collator: says the language and the task of examples that do not, where it knows them.
    """

    def __init__(self, model: Any, processor: Any, collator: Any, settings: FinetuneSettings):
        self.model, self.processor, self.asks = model, processor, model.answers_questions
        self.batch_size = settings.per_device_eval_batch_size
        known = {name: getattr(collator, name, None) for name in _SPOKEN}
        self.told = {name: value for name, value in known.items() if value is not None}
        self.settings = {"max_new_tokens": settings.max_new_tokens, "do_sample": False}
        if not self.asks:
            self.settings |= {"compile": settings.compile}

    @cached_property
    def pipe(self) -> Any:
        from mindone_audio.pipelines import pipeline

        return pipeline(model=self.model, processor=self.processor)

    def __call__(self, examples: Sequence[Example]) -> list[str]:
        """What the model says; nothing where a clip cannot be decoded."""
        inputs, said = {}, [""] * len(examples)
        for place, example in enumerate(examples):
            with suppress(AudioError):
                inputs[place] = self._input(example, example.samples())
        if not inputs:
            return said
        # No window is tried again, and no times are told.
        more = {"temperature": 0, "return_timestamps": False} if self.pipe.tells_times else {}
        answers = self.pipe(
            list(inputs.values()),
            batch_size=self.batch_size,
            generate_kwargs=self.settings | more,
            on_error="return" if self.asks else "raise",  # of a clip that is too long for the model
            progress=False,
        )
        for place, answer in zip(inputs, answers):
            said[place] = answer["generated_text"] or ""
        return said

    def _input(self, example: Example, clip: np.ndarray) -> dict:
        if self.asks:
            return {"audio": clip, "text": example.prompt}
        own = {name: getattr(example, name) for name in _SPOKEN}
        spoken = self.told | {name: value for name, value in own.items() if value is not None}
        return {"inputs": {"audio": clip}, "parameters": spoken}

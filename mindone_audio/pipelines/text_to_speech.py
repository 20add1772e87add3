"""`pipeline("text-to-speech")`: texts in, sound out, by a SpeechT5 model, its vocoder and a voice."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mindone_audio.generation.settings import flag, whole
from mindone_audio.models.speecht5.text_to_speech import SpeechT5ForTextToSpeech
from mindone_audio.models.speecht5.vocoder import SpeechT5HifiGan

TASK = "text-to-speech"
SETTINGS = ("threshold", "minlenratio", "maxlenratio", "seed", "compile")
NO_VOCODER = (
    "a speecht5 model makes frames, which take a vocoder to be heard: give the folder or the Hugging Face id of one, "
    "such as microsoft/speecht5_hifigan, as {vocoder}"
)


class TextToSpeechPipeline:
    """Speaks texts; made by `pipeline`."""

    def __init__(
        self, model: SpeechT5ForTextToSpeech, processor: Any, vocoder: SpeechT5HifiGan | None, voice: Any = None
    ):
        """voice: the one of calls that name none, as `speaker_embeddings` of the model's `generate_speech`."""
        if vocoder is None:
            raise ValueError(NO_VOCODER.format(vocoder="vocoder="))
        self.model, self.processor, self.vocoder, self.voice = model, processor, vocoder, voice

    def __call__(
        self,
        text: str | list[str],
        *,
        voice: Any = None,
        batch_size: int = 8,
        stream: bool = False,
        forward_params: Mapping | None = None,
        **settings: Any,
    ) -> dict | list[dict] | Iterator[dict]:
        """Speak a text, or a list of them.

        voice: as `speaker_embeddings` of `generate_speech`: one for all texts, or one for each; None is the pipeline's.
        settings: threshold, minlenratio, maxlenratio, seed and compile, as for `generate_speech`, but that the seed is
        0 unless it is given: published speech is made with the prenet's dropout; None is without it. forward_params:
        the same settings and speaker_embeddings, as transformers' pipeline takes them. batch_size: how many texts are
        spoken at a time. stream: one text; return an iterator of its pieces, each like the answer, as soon as they are
        made.

        Returns `{"audio": float32 (samples), "sampling_rate": Hz}` for a text, and a list of them for a list. Raises
        `TypeError` for another keyword, and `ValueError` and `OSError` as the processor and `generate_speech`.
        """
        settings = {**(forward_params or {}), **settings}
        given = settings.pop("speaker_embeddings", None)
        voice = given if voice is None else voice
        voice = self.voice if voice is None else voice
        if unknown := sorted(set(settings) - set(SETTINGS)):
            raise TypeError(f"text-to-speech does not know {', '.join(unknown)}: it takes {', '.join(SETTINGS)}")
        settings.setdefault("seed", 0)
        size, stream = whole("batch_size", batch_size, 1), flag("stream", stream)
        ids = self.processor(text)
        if stream:
            if not isinstance(text, str):
                raise ValueError("stream=True takes one text, not a list: call the pipeline once for each")
            return map(self._answer, self.model.stream_speech(ids["input_ids"], voice, self.vocoder, **settings))
        voices = self.model.voices(voice, len(ids["input_ids"]))
        answers = []
        for first in range(0, len(voices), size):
            some = slice(first, first + size)
            waves, lengths = self.model.generate_speech(
                ids["input_ids"][some],
                voices[some],
                ids["attention_mask"][some],
                vocoder=self.vocoder,
                return_output_lengths=True,
                **settings,
            )
            answers += [self._answer(wave[:length]) for wave, length in zip(waves.asnumpy(), lengths)]
        return answers[0] if isinstance(text, str) else answers

    def _answer(self, samples: np.ndarray) -> dict:
        return {"audio": samples, "sampling_rate": self.vocoder.sampling_rate}

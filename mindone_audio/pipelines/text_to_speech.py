"""`pipeline("text-to-speech")`: texts in, sound out, by a SpeechT5 model, its vocoder and a voice."""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from mindone_audio.generation.settings import flag, whole
from mindone_audio.models.speecht5.text_to_speech import SpeechT5ForTextToSpeech
from mindone_audio.models.speecht5.vocoder import SpeechT5HifiGan

TASK = "text-to-speech"
# Where a long text is cut: behind a sentence, else behind a part of one, else between words.
_CUTS = (re.compile(r"(?<=[.!?])\s+"), re.compile(r"(?<=[,;:])\s+"), re.compile(r"\s+"))
SETTINGS = ("threshold", "minlenratio", "maxlenratio", "seed", "compile")
NO_VOCODER = (
    "a speecht5 model makes frames, which take a vocoder to be heard: give the folder or the Hugging Face id of one, "
    "such as microsoft/speecht5_hifigan, as {vocoder}"
)


class TextToSpeechPipeline:
    """Speaks texts; made by `pipeline`."""

    task = TASK

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
        """Speak a text, or a list of them. One that is longer than the model's positions is spoken in parts.

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
        self.processor(text)  # raises for any text that cannot be spoken
        if stream:
            if not isinstance(text, str):
                raise ValueError("stream=True takes one text, not a list: call the pipeline once for each")
            ids = [self.processor(part)["input_ids"] for part in parts(text, self._fits)]
            waves = [self.model.stream_speech(row, voice, self.vocoder, **settings) for row in ids]
            return map(self._answer, chain.from_iterable(waves))
        spoken = [parts(one, self._fits) for one in ([text] if isinstance(text, str) else text)]
        counts = list(map(len, spoken))
        voices = np.repeat(self.model.voices(voice, len(spoken)), counts, 0)
        waves = self._waves(list(chain.from_iterable(spoken)), voices, size, settings)
        answers = [self._answer(np.concatenate([next(waves) for _ in range(count)])) for count in counts]
        return answers[0] if isinstance(text, str) else answers

    def _fits(self, text: str) -> bool:
        return self.processor(text)["input_ids"].shape[1] <= self.model.config.max_text_positions

    def _waves(self, texts: list[str], voices: np.ndarray, size: int, settings: Mapping) -> Iterator[np.ndarray]:
        for first in range(0, len(texts), size):
            ids = self.processor(texts[first : first + size])
            waves, lengths = self.model.generate_speech(
                ids["input_ids"],
                voices[first : first + size],
                ids["attention_mask"],
                vocoder=self.vocoder,
                return_output_lengths=True,
                **settings,
            )
            yield from (wave[:length] for wave, length in zip(waves.asnumpy(), lengths))

    def _answer(self, samples: np.ndarray) -> dict:
        return {"audio": samples, "sampling_rate": self.vocoder.sampling_rate}


def parts(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The text, or where it does not fit, its halves, cut at the end of the sentence that is nearest its middle."""
    if fits(text):
        return [text]
    for cut in _CUTS:
        places = [found.span() for found in cut.finditer(text.strip())]
        if places:
            text = text.strip()
            first, last = min(places, key=lambda span: abs(sum(span) - len(text)))
            return parts(text[:first], fits) + parts(text[last:], fits)
    return [text]  # one word, which the model refuses

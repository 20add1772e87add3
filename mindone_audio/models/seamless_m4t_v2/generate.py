"""`generate` and `stream` of SeamlessM4T v2: text first and, of what speaks, then speech."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from mindspore import Tensor

from mindone_audio.generation.engine import Engine
from mindone_audio.generation.generate import EngineMixin, columns, generated, streamed
from mindone_audio.generation.row import GenerationRequest
from mindone_audio.generation.settings import flag
from mindone_audio.models.seamless_m4t_v2.speech_output import (
    SpeechOutput,
    spoken,
    text_settings,
    translations,
    voices,
)


class TextOutput(NamedTuple):
    """What `SeamlessM4Tv2Model.generate` returns of text, as in transformers: sequences int32 (batch, length)."""

    sequences: Tensor


class TranslationMixin(EngineMixin):
    """Gives a model that has `requests` its `generate`."""

    speaks = True  # whether there is what makes speech of text
    returns_output = True  # text as a `TextOutput`, or else the sequences alone

    def generate(
        self,
        input_ids=None,
        input_features=None,
        attention_mask=None,
        *,
        tgt_lang: str | Sequence[str] | None = None,
        generate_speech: bool | None = None,
        speaker_id: int = 0,
        return_intermediate_token_ids: bool = False,
        streamer=None,
        compile: bool = True,
        batch_size: int = 8,
        **settings,
    ) -> Tensor | TextOutput | SpeechOutput | tuple[Tensor, Tensor]:
        """Translate texts or speech to speech or text, or write down or repeat what is said.

        input_ids int (batch, tokens), or input_features (batch, frames, bins), and their attention_mask, as the
        processor makes them. tgt_lang: the language of the answer, as "fra" or "__fra__", or one for each sample; the
        language of the speech itself writes it down. generate_speech: False for text alone; by default a class that
        speaks does so. speaker_id: whose voice. streamer: an object with `put` and `end` such as transformers'
        TextStreamer, which is told the text of one sample. settings: the fields of `GenerationSettings`, of the text,
        with text_ before them or without; and what else `requests` takes. Units of speech are never sampled: each is
        the one with the highest score. Up to `batch_size` texts are written side by side; the others wait.
        compile=False interprets the same code.

        Returns of speech the waveforms fp32 (batch, samples), zeros behind each, and how many samples each has int32
        (batch); with return_intermediate_token_ids a `SpeechOutput`, which also has the text and the units. Of text
        int32 (batch, length): they begin with the start token and that of the language, and padding follows those that
        end early. `SeamlessM4Tv2Model` returns them as a `TextOutput`, which is how transformers' class does it. Raises
        `ValueError` for what does not fit together or is not supported, and for a text without characters to speak.

        A batch gives what each sample gives alone; in transformers the speech encoder hears the padding of shorter
        clips, units and the vocoder that of shorter texts, and waveform_lengths are too short where the vocoder's unit
        1 is spoken, which is taken for padding. A padding token that a model chooses has the position of its place; in
        transformers it has none.
        """
        speech = flag("generate_speech", self.speaks if generate_speech is None else generate_speech)
        intermediate = flag("return_intermediate_token_ids", return_intermediate_token_ids)
        if speech and not self.speaks:
            raise ValueError(
                f"generate_speech=True is not supported: {type(self).__name__} writes text, use SeamlessM4Tv2Model"
            )
        settings = text_settings(settings)
        requests = self.requests(input_ids, input_features, attention_mask, tgt_lang=tgt_lang, **settings)
        speakers = voices(self, tgt_lang, speaker_id, len(requests)) if speech else []
        said = self._said(self.engine(compile), requests, streamer, batch_size)
        padding = requests[0].settings.padding
        sequences = np.full((len(said), max(map(len, said))), padding, np.int32)
        for row, tokens in zip(sequences, said):
            row[: len(tokens)] = tokens
        sequences = Tensor(sequences)
        if not speech:
            return TextOutput(sequences) if self.returns_output else sequences
        texts = translations(self, [request.clips for request in requests], said)
        made = spoken(self.engine(compile), texts, speakers, sequences)
        return made if intermediate else made[:2]

    def _said(self, engine: Engine, requests: list[GenerationRequest], streamer, batch_size: int) -> list[np.ndarray]:
        """The tokens of each sample, int32, from its start token to its end."""
        if streamer is not None and len(requests) > 1:
            raise ValueError(f"a streamer takes one sample, not {len(requests)}: leave the streamer out")
        tagged = enumerate(requests)
        found = generated(engine, tagged, batch_size) if streamer is None else streamed(engine, tagged, streamer)
        said: dict[int, np.ndarray] = {}
        for row, tokens in found:
            if isinstance(tokens, Exception):
                raise tokens
            said[row] = np.append(requests[row].input_ids, tokens)
        return [said[row] for row in range(len(requests))]

    def stream(self, *inputs, compile: bool = True, **settings) -> Iterator[np.ndarray]:
        """What `generate` appends, a step at a time: int32 (batch) as soon as it is known. Arguments are those of
        `requests`, checked here and not at the first step. Raises `ValueError` for beams, which are not known before
        the end."""
        requests = self.requests(*inputs, **settings)
        if requests[0].settings.num_beams > 1:
            raise ValueError(
                f"num_beams={requests[0].settings.num_beams} cannot be streamed: leave it out, or use generate"
            )
        return columns(self.engine(compile), requests)

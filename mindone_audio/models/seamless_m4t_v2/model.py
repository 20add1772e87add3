"""SeamlessM4T v2 (arXiv 2312.05187): speech or text in one language to text or speech in another, or in the same."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from transformers import SeamlessM4Tv2Config

from mindone_audio.backbone.buckets import bucket
from mindone_audio.backbone.checkpoint_model import to_numpy
from mindone_audio.backbone.conformer import ConformerEncoder
from mindone_audio.backbone.encoder_decoder_model import EncoderDecoderModel
from mindone_audio.backbone.pretrained_model import Seq2SeqLMOutput
from mindone_audio.backbone.text_decoder import TextDecoder, TextDecoderStack
from mindone_audio.generation.generate import end_test
from mindone_audio.generation.matcher import compile_constraint
from mindone_audio.generation.row import GenerationRequest
from mindone_audio.generation.settings import settle
from mindone_audio.models.seamless_m4t_v2.generate import TranslationMixin
from mindone_audio.models.seamless_m4t_v2.processor import SeamlessM4TProcessor
from mindone_audio.models.seamless_m4t_v2.sizes import (
    EMBEDDINGS,
    WEIGHT_PREFIXES,
    check_config,
    decoder_config,
    speech_encoder_config,
    text_encoder_config,
)
from mindone_audio.models.seamless_m4t_v2.speaking import code_vocoder
from mindone_audio.models.seamless_m4t_v2.speech_output import check_speech
from mindone_audio.models.seamless_m4t_v2.text_encoder import EncodeText, TextOrSpeechEngine
from mindone_audio.models.seamless_m4t_v2.units import TextToUnit
from mindone_audio.setting_fields import refusal

CHECKPOINTS = ("facebook/seamless-m4t-v2-large",)
PROVED = "float32 on CPU against transformers 4.57 (PyTorch), with small random models"
_SHORTEST_TEXT = 16  # tokens of the shortest graph
# Positions of a context at first: 40 s of speech, or as many tokens of text. Longer ones make larger slots.
_CONTEXT = 256


class SeamlessM4Tv2Model(EncoderDecoderModel, TranslationMixin):
    """SeamlessM4T v2 on MindSpore: `from_pretrained`, `construct` (logits and loss) and `generate`.

    Its subclasses have one of its encoders, or do not speak. Any class reads the checkpoint of any other one that has
    its parts.
    """

    config_class = SeamlessM4Tv2Config
    engine_class = TextOrSpeechEngine
    weight_prefixes = WEIGHT_PREFIXES
    is_taught = False
    reads, listens = True, True  # which encoders there are: of texts, of speech

    def __init__(self, config: SeamlessM4Tv2Config):
        check_config(config)
        speech = ConformerEncoder(speech_encoder_config(config)) if self.listens else None
        super().__init__(config, speech, TextDecoder(decoder_config(config)))
        self.text_encoder = TextDecoderStack(text_encoder_config(config)) if self.reads else None
        self.t2u_model = TextToUnit(config) if self.speaks else None
        self.vocoder = code_vocoder(config) if self.speaks else None
        self._context_positions = _CONTEXT
        config.architectures = [type(self).__name__]  # which adapters are of, whatever the checkpoint is of

    @classmethod
    def unread(cls, names: set[str]) -> set[str]:
        """Those of the other classes' parts, and of the embeddings, which are one tensor, all names but one.

        Raises `ValueError` where the class speaks and there is nothing to speak with.
        """
        if cls.speaks:
            check_speech(cls, names)
        lacking = () if cls.speaks else ("t2u_model.", "vocoder.")
        lacking += () if cls.reads else ("text_encoder.",)
        lacking += () if cls.listens else ("speech_encoder.",)
        embeddings = [name for name in EMBEDDINGS if name in names]
        others = {name for name in names if name.startswith(lacking)}
        return (others | set(embeddings)) - set(embeddings[:1])

    @property
    def audio_dtype(self) -> ms.Type:
        """That of the speech encoder's weights, where there are any."""
        tower = self.audio_tower
        return self.dtype if tower is None else tower.feature_projection.projection.weight.dtype

    @property
    def context_positions(self) -> int:
        """How many positions the decoder attends to at most, of what was asked until now."""
        return self._context_positions

    def heard(self, lengths: np.ndarray) -> np.ndarray:
        """How many positions the decoder attends to of clips of so many frames, int32 (clips)."""
        return (self.audio_tokens(lengths) if self.listens else lengths).astype(np.int32)

    def clips(self, audio: dict) -> tuple[np.ndarray | None, np.ndarray]:
        """Features fp32 (clips, bins, frames), as many as the graph for the longest clip takes, and int32 lengths
        (clips) in frames.

        Raises `ValueError` for other shapes than the processor makes.
        """
        features, mask = (to_numpy(audio.get(name)) for name in self.audio_inputs)
        if features is None:
            return None, np.zeros(0, np.int32)
        sizes = self.audio_tower.config
        if features.ndim != 3 or features.shape[2] != sizes.num_mel_bins or not features.size:
            raise ValueError(
                f"input_features have shape {features.shape}, this model takes (clips, frames, {sizes.num_mel_bins}): "
                "use the checkpoint's own processor"
            )
        mask = np.ones(features.shape[:2], bool) if mask is None else mask != 0
        if mask.shape != features.shape[:2] or (mask[:, 1:] & ~mask[:, :-1]).any() or not mask[:, 0].all():
            raise ValueError(
                f"attention_mask of shape {mask.shape} must be that of the clips, {features.shape[:2]}, and 1 before "
                "it is 0: clips are padded on the right, and none is empty"
            )
        lengths = mask.sum(1).astype(np.int32)
        width = sizes.frames_to_encode(int(lengths.max()))
        found = np.where(mask[:, :, None], features, 0)[:, :width].astype(np.float32)
        found = np.pad(found, ((0, 0), (0, width - found.shape[1]), (0, 0)))
        return np.ascontiguousarray(found.transpose(0, 2, 1)), lengths

    def texts(self, input_ids, attention_mask=None) -> list[np.ndarray]:
        """The tokens of each text, int32, without padding. Raises `ValueError` for what cannot be read."""
        ids, mask, sizes = to_numpy(input_ids), to_numpy(attention_mask), self.language_model.config
        mask = ids != self.config.pad_token_id if mask is None else mask != 0
        if ids.ndim != 2 or not ids.size or mask.shape != ids.shape:
            raise ValueError(f"input_ids have shape {ids.shape} and attention_mask {mask.shape}: both (texts, tokens)")
        rows = [row[kept].astype(np.int32) for row, kept in zip(ids, mask)]
        for place, row in enumerate(rows):
            if not 1 <= len(row) <= sizes.max_positions:
                raise ValueError(
                    f"text {place} has {len(row)} tokens, the model reads 1 to {sizes.max_positions}: leave out an "
                    "empty one, cut a longer one into sentences"
                )
            if row.min() < 0 or row.max() >= sizes.vocab_size:
                wrong = row[(row < 0) | (row >= sizes.vocab_size)][0]
                raise ValueError(
                    f"input_ids hold {wrong}, and this model has the tokens 0 to {sizes.vocab_size - 1}: use the "
                    "checkpoint's own processor"
                )
        return rows

    def construct(
        self,
        input_ids=None,
        input_features=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        labels=None,
    ) -> Seq2SeqLMOutput:
        """Scores of every next token, and the loss where labels are given.

        input_ids int (batch, tokens), or input_features (batch, frames, bins), and their attention_mask, as the
        processor makes them. The other arguments and what is returned are those of `EncoderDecoderModel.construct`.
        """
        self._check_source(input_ids, input_features)
        if input_ids is None:
            return super().construct(input_features, attention_mask, decoder_input_ids, decoder_attention_mask, labels)
        texts = self.texts(input_ids, attention_mask)
        lengths = np.array(list(map(len, texts)), np.int32)
        prompt = self.asked(decoder_input_ids, decoder_attention_mask, labels, lengths)
        ids = np.stack([np.pad(text, (0, lengths.max() - len(text))) for text in texts])
        return self.scored(prompt, EncodeText(self)(Tensor(ids), Tensor(lengths)))

    def requests(
        self,
        input_ids=None,
        input_features=None,
        attention_mask=None,
        *,
        tgt_lang: str | Sequence[str] | None = None,
        generation_config=None,
        tokenizer=None,
        **settings,
    ) -> list[GenerationRequest]:
        """The samples of a batch, each checked and apart, as a `RunningBatch` takes them; nothing is computed.

        The arguments and errors are those of `generate`.
        """
        sources = self.sources(input_ids, input_features, attention_mask)
        prompts = self._prompts(tgt_lang, len(sources))
        sizes = self.language_model.config
        chosen = settle(self.generation_config, settings, generation_config, vocabulary=sizes.vocab_size)
        if chosen.num_return_sequences != 1:
            raise ValueError(f"num_return_sequences={chosen.num_return_sequences} is not supported: only 1")
        chosen = chosen.resolve_length(len(prompts[0]), sizes.max_positions)
        ended, constraint = end_test(chosen, tokenizer), None
        if chosen.constraint is not None:
            ends, most = chosen.eos_token_ids, chosen.max_new_tokens
            constraint = compile_constraint(chosen.constraint, tokenizer, sizes.vocab_size, ends, most)
        return [
            GenerationRequest(prompt, np.full(len(prompt), -1), source, chosen, ended, constraint=constraint)
            for prompt, source in zip(prompts, sources)
        ]

    def _check_source(self, input_ids, input_features) -> None:
        """`ValueError` unless exactly one of them is given, and there is an encoder for it."""
        if (input_ids is None) == (input_features is None):
            both = "both" if input_ids is not None else "neither"
            raise ValueError(
                f"{both} of input_ids and input_features were given: give a text as the one, or speech as the other"
            )
        given, other = ("input_features", "input_ids") if input_ids is None else ("input_ids", "input_features")
        if not (self.listens if input_ids is None else self.reads):
            raise ValueError(
                f"{type(self).__name__} takes {other}, and was given {given}: use SeamlessM4Tv2Model, which takes both"
            )

    def encoder_of(self, inputs: dict) -> nn.Cell:
        """The text encoder where there are input_ids, or else the speech encoder."""
        return self.audio_tower if inputs.get("input_ids") is None else self.text_encoder

    def sources(self, input_ids=None, input_features=None, attention_mask=None) -> list[tuple[np.ndarray, np.ndarray]]:
        """What the decoder attends to in each sample, as the engine encodes it; there is room for it from now on.

        Of a text its tokens, padded, and how many there are. Arguments and errors are those of `requests`.
        """
        self._check_source(input_ids, input_features)
        if input_ids is None:
            features, lengths = self.clips(dict(zip(self.audio_inputs, (input_features, attention_mask))))
            self._have_room(int(self.audio_tokens(features.shape[2])))
            return [(features[[row]], lengths[[row]]) for row in range(len(features))]
        texts = self.texts(input_ids, attention_mask)
        widths = [bucket(len(text), _SHORTEST_TEXT) for text in texts]
        self._have_room(max(widths))
        padded = (np.pad(text, (0, width - len(text)))[None] for text, width in zip(texts, widths))
        return [(ids, np.array([len(text)], np.int32)) for ids, text in zip(padded, texts)]

    def _have_room(self, rows: int) -> None:
        """Let contexts have so many positions; slots and graphs that have fewer are made again."""
        if rows > self._context_positions:
            self._context_positions, self._engines_of = bucket(rows, _CONTEXT), None

    def _prompts(self, tgt_lang: str | Sequence[str] | None, count: int) -> list[np.ndarray]:
        """What the decoder is given for each sample: its start token, and the language's."""
        known = getattr(self.generation_config, "text_decoder_lang_to_code_id", None) or {}
        start, names = self.config.decoder_start_token_id, ", ".join(sorted(known))
        if tgt_lang is None and not known:
            return [np.array([start], np.int32)] * count
        if tgt_lang is None:
            raise refusal("tgt_lang", f" is missing: give the language to write, one of {names}")
        languages = list(tgt_lang) if isinstance(tgt_lang, (list, tuple)) else [tgt_lang] * count
        if len(languages) != count:
            raise ValueError(f"{len(languages)} languages as tgt_lang for {count} samples: give one, or one for each")
        prompts = []
        for language in languages:
            code = language.replace("__", "") if isinstance(language, str) else None
            if code not in known:
                there = f"known are {names}" if known else "generation_config.json has no text_decoder_lang_to_code_id"
                raise refusal("tgt_lang", f"={language!r:.40} is no language that the model writes: {there}")
            prompts.append(np.array([start, known[code]], np.int32))
        return prompts


class SeamlessM4Tv2ForSpeechToSpeech(SeamlessM4Tv2Model):
    """The same without the text encoder."""

    main_input_name = "input_features"
    reads = False


class SeamlessM4Tv2ForTextToSpeech(SeamlessM4Tv2Model):
    """The same without the speech encoder."""

    main_input_name = "input_ids"
    listens = False


class SeamlessM4Tv2ForSpeechToText(SeamlessM4Tv2ForSpeechToSpeech):
    """The same without the text encoder and without speech."""

    speaks, returns_output = False, False


class SeamlessM4Tv2ForTextToText(SeamlessM4Tv2ForTextToSpeech):
    """The same without the speech encoder and without speech."""

    speaks, returns_output = False, False


# What config.json's `architectures` may say.
ARCHITECTURES = {
    one.__name__: one
    for one in (
        SeamlessM4Tv2Model,
        SeamlessM4Tv2ForSpeechToSpeech,
        SeamlessM4Tv2ForTextToSpeech,
        SeamlessM4Tv2ForSpeechToText,
        SeamlessM4Tv2ForTextToText,
    )
}
MODEL, PROCESSOR = SeamlessM4Tv2Model, SeamlessM4TProcessor

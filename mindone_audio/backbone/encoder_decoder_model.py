"""The encoder-decoder body: what the encoder makes of a clip is the context of the decoder."""

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.checkpoint_model import CheckpointModel, to_numpy
from mindone_audio.backbone.decoder import causal_mask
from mindone_audio.backbone.encoder import AudioEncoder, hidden_keys
from mindone_audio.backbone.packed_weights import PackedOutputs
from mindone_audio.backbone.pretrained_model import Seq2SeqLMOutput
from mindone_audio.backbone.prompt import Prompt
from mindone_audio.backbone.text_decoder import TextDecoder
from mindone_audio.setting_fields import refusal


class EncoderDecoderModel(CheckpointModel):
    """An audio encoder and a text decoder that attends to all that the encoder makes of one clip."""

    main_input_name = "input_features"
    audio_inputs = ("input_features", "attention_mask")
    packed_class = PackedOutputs
    answers_questions = False
    adapted_modules = ("q_proj", "v_proj")  # in attention to itself and to the context

    def __init__(self, config, audio_tower: AudioEncoder, language_model: TextDecoder):
        super().__init__(config, audio_tower, None, language_model)
        self.hears_part = self.heard(np.zeros(1, np.int32)) is not None  # of the context

    @property
    def context_positions(self) -> int:
        """How many positions the decoder attends to."""
        return self.audio_tower.config.max_positions

    def construct(
        self, input_features, attention_mask=None, decoder_input_ids=None, decoder_attention_mask=None, labels=None
    ) -> Seq2SeqLMOutput:
        """Scores of every next token, and the loss where labels are given.

        input_features (batch, mel bins, frames) and attention_mask (batch, frames): one clip each, as the processor
        pads it. decoder_input_ids int (batch, length), padded on either side where decoder_attention_mask is 0. labels
        int (batch, length): what is to be said, -100 where nothing is to be learned; without decoder_input_ids these
        are the labels, moved on by one. NumPy arrays and MindSpore tensors are both taken.

        Returns logits fp32 (batch, length, vocab_size), and the mean cross-entropy of the labels.
        """
        audio = dict(zip(self.audio_inputs, (input_features, attention_mask)))
        prompt, features, lengths = self.prompt(decoder_input_ids, decoder_attention_mask, labels, **audio)
        return self.scored(prompt, self.encode_audio(self.features_tensor(features), Tensor(lengths)))

    def prompt(
        self, decoder_input_ids=None, decoder_attention_mask=None, labels=None, **audio
    ) -> tuple[Prompt, np.ndarray, np.ndarray]:
        """Check the inputs on the host: a `Prompt` of what the decoder reads, and what `clips` gives.

        The arguments are those of `construct`, `audio` the arrays that `audio_inputs` names. Raises `TypeError` for one
        that it does not.
        """
        known = "decoder_input_ids", "decoder_attention_mask", "labels", *self.audio_inputs
        if unknown := sorted(set(audio) - set(known)):
            raise TypeError(f"{type(self).__name__} takes no {', '.join(unknown)}: it takes {', '.join(known)}")
        features, lengths = self._clips_given(audio)
        heard = self.heard(lengths) if self.hears_part else np.full(len(lengths), -1, np.int32)
        return self.asked(decoder_input_ids, decoder_attention_mask, labels, heard), features, lengths

    def sources(self, **inputs) -> list[tuple[np.ndarray, np.ndarray]]:
        """What the engine encodes for each sample: the features of its clip, and how long it is.

        inputs: the arrays that `audio_inputs` names. Errors are those of `clips`.
        """
        features, lengths = self._clips_given(inputs)
        return [(features[[row]], lengths[[row]]) for row in range(len(features))]

    def _clips_given(self, audio: dict) -> tuple[np.ndarray, np.ndarray]:
        """What `clips` gives; `ValueError` where there are none."""
        features, lengths = self.clips(audio)
        if features is None:
            raise ValueError(f"{self.audio_inputs[0]} are missing: give what the processor makes of the clips")
        return features, lengths

    def asked(self, decoder_input_ids, decoder_attention_mask, labels, heard: np.ndarray) -> Prompt:
        """What the decoder reads, checked. heard int32 (samples): how many positions of its context each attends to."""
        labels = to_numpy(labels)
        ids = self.shifted(labels) if decoder_input_ids is None else to_numpy(decoder_input_ids)
        ids, mask = self._checked(ids, to_numpy(decoder_attention_mask), len(heard))
        if labels is not None and labels.shape != ids.shape:
            raise ValueError(f"labels have shape {labels.shape}, decoder_input_ids have {ids.shape}: make them equal")
        return Prompt(ids, mask, np.tile(heard[:, None], (1, ids.shape[1])), labels, ahead=True)

    def scored(self, prompt: Prompt, context: Tensor) -> Seq2SeqLMOutput:
        """What `construct` returns, of what the decoder reads and its context (batch, source positions, hidden)."""
        tables = self.language_model.position_tables(prompt.input_ids.shape[1], self.dtype)
        tokens = Tensor(prompt.input_ids), Tensor(prompt.positions), Tensor(prompt.mask)
        hidden = self.hidden_states(*tokens, tables, context, Tensor(prompt.audio_index))
        logits = self.language_model.logits(hidden)
        return Seq2SeqLMOutput(loss=None if prompt.labels is None else _loss(logits, prompt.labels), logits=logits)

    def hidden_states(
        self,
        input_ids: Tensor,
        positions: Tensor,
        visible: Tensor,
        tables: list[Tensor],
        audio: Tensor,
        audio_index: Tensor,
    ) -> Tensor:
        """What the decoder makes of whole prompts, before its output layer: (batch, length, hidden).

        input_ids, positions and audio_index int32, visible bool, (batch, length): those of a `Prompt`; tables:
        `TextDecoder.position_tables` of at least that length; audio (batch, source positions, hidden): the context, see
        `encode_audio`.
        """
        decoder = self.language_model
        mask, heard = causal_mask(ops.counting(input_ids.shape[1]), visible), None
        if self.hears_part:
            hidden = hidden_keys(audio_index.reshape((-1,)), audio.shape[1])
            hidden = hidden.reshape((-1, 1, input_ids.shape[1], audio.shape[1]))
            heard = msops.tile(hidden, (1, decoder.model.num_heads, 1, 1))
        rows = audio.reshape((-1, audio.shape[-1])).astype(self.dtype)
        at = decoder.positions_at(tables, positions)
        return decoder(decoder.embed(input_ids), at, mask, rows=rows, context_mask=heard)

    def in_whole_windows(self, audio_index: np.ndarray, frames: int) -> np.ndarray:
        """The `Prompt.audio_index` where the encoded rows are continued: the same, since it counts from the first."""
        return audio_index

    def start_tokens(self, language: str | None = None, task: str | None = None) -> list[int]:
        """The tokens that an answer begins with, where it tells no times.

        Raises `ValueError` for a language and a task that the model cannot be told.
        """
        for name, value in (("language", language), ("task", task)):
            if value is not None:
                raise refusal(name, f" {value!r}: a {self.config.model_type} model is told none: leave it out")
        return [self.config.decoder_start_token_id]

    def shifted(self, labels: np.ndarray | None) -> np.ndarray:
        """Labels (batch, length) as the decoder reads them: its start token first, the last one left out."""
        if labels is None:
            raise ValueError("neither decoder_input_ids nor labels are given: give one of them")
        start, padding = self.config.decoder_start_token_id, self.config.pad_token_id
        before = np.concatenate([np.full((len(labels), 1), start), labels[:, :-1]], 1)
        return np.where(before == -100, padding, before)

    def _checked(self, ids: np.ndarray, mask: np.ndarray | None, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """decoder_input_ids int32 and their mask bool, (batch, length)."""
        if ids.ndim != 2 or not ids.size or len(ids) != samples:
            raise ValueError(
                f"decoder_input_ids have shape {ids.shape}, and there are {samples} samples: (samples, length)"
            )
        mask = np.ones(ids.shape, bool) if mask is None else mask != 0
        if mask.shape != ids.shape:
            raise ValueError(f"decoder_attention_mask has shape {mask.shape}, decoder_input_ids have {ids.shape}")
        config = self.language_model.config
        if ids.shape[1] > config.max_positions:
            raise ValueError(
                f"decoder_input_ids have {ids.shape[1]} tokens, the model has {config.max_positions} positions"
            )
        if ids.min() < 0 or ids.max() >= config.vocab_size:
            wrong = ids[(ids < 0) | (ids >= config.vocab_size)][0]
            raise ValueError(
                f"decoder_input_ids hold {wrong}, and this model has the tokens 0 to {config.vocab_size - 1}: use the "
                "checkpoint's own processor"
            )
        return ids.astype(np.int32), mask


def _loss(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Mean cross-entropy of labels (batch, length), where they are not -100, given logits of the same places."""
    targets = Tensor(labels.astype(np.int32).reshape(-1))
    return msops.cross_entropy(logits.reshape((-1, logits.shape[-1])).astype(ms.float32), targets, ignore_index=-100)

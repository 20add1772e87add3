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
from mindone_audio.backbone.text_decoder import TextDecoder


class EncoderDecoderModel(CheckpointModel):
    """An audio encoder and a text decoder that attends to all that the encoder makes of one clip."""

    main_input_name = "input_features"
    audio_inputs = ("input_features", "attention_mask")
    packed_class = PackedOutputs

    def __init__(self, config, audio_tower: AudioEncoder, language_model: TextDecoder):
        super().__init__(config, audio_tower, None, language_model)

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
        features, lengths = self.clips(dict(zip(self.audio_inputs, (input_features, attention_mask))))
        if features is None:
            raise ValueError(f"{self.audio_inputs[0]} are missing: give what the processor makes of the clips")
        asked = self.asked(decoder_input_ids, decoder_attention_mask, labels, len(features))
        context = self.audio_tower(self.features_tensor(features), Tensor(lengths))
        return self.scored(context, self.heard(lengths), asked, labels)

    def asked(self, decoder_input_ids, decoder_attention_mask, labels, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """What the decoder is given, checked: ids int32 and their mask bool, (samples, length)."""
        ids = self.shifted(to_numpy(labels)) if decoder_input_ids is None else to_numpy(decoder_input_ids)
        return self._checked(ids, to_numpy(decoder_attention_mask), samples)

    def scored(self, context: Tensor, heard: np.ndarray | None, asked: tuple, labels) -> Seq2SeqLMOutput:
        """What `construct` returns, of a context (batch, source positions, hidden), of which the decoder attends to
        `heard` positions, int32 (batch) or None for all, and of what it is `asked`."""
        (ids, mask), labels = asked, to_numpy(labels)
        positions = np.maximum(mask.cumsum(1) - 1, 0).astype(np.int32)
        if heard is not None:
            shape = (1, self.language_model.config.num_heads, ids.shape[1], 1)
            heard = msops.tile(hidden_keys(Tensor(heard), context.shape[1]), shape)
        hidden = self.hidden_states(Tensor(ids), Tensor(positions), Tensor(mask), context, heard)
        logits = self.language_model.logits(hidden)
        return Seq2SeqLMOutput(loss=None if labels is None else _loss(logits, labels), logits=logits)

    def hidden_states(
        self, input_ids: Tensor, positions: Tensor, visible: Tensor, context: Tensor, context_mask: Tensor | None = None
    ) -> Tensor:
        """What the decoder makes of whole prompts, before its output layer: (batch, length, hidden).

        input_ids and positions int32, visible bool, (batch, length); context (batch, source positions, hidden) and its
        mask as for `TextDecoder`.
        """
        decoder = self.language_model
        tables = decoder.position_tables(input_ids.shape[1], self.dtype)
        at = decoder.positions_at(tables, positions)
        mask = causal_mask(ops.counting(input_ids.shape[1]), visible)
        rows = context.reshape((-1, context.shape[-1])).astype(self.dtype)
        return decoder(decoder.embed(input_ids), at, mask, rows=rows, context_mask=context_mask)

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

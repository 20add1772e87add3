"""Texts to hidden states, beside the engine's clips."""

from collections.abc import Iterator

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone.encoder import hidden_keys
from mindone_audio.backbone.text_decoder import fairseq_sinusoids
from mindone_audio.generation.engine import Engine


@msops.constexpr
def _sinusoids(positions: int, width: int, first: int) -> Tensor:
    """fp32 (positions, width)."""
    return Tensor(fairseq_sinusoids(positions, width, first), ms.float32)


class EncodeText(nn.Cell):
    """Token ids to hidden states, by the decoder's embeddings and the text encoder's layers."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.language_model, self.layers = model.language_model, model.text_encoder
        self.first_position = model.language_model.config.first_position
        self.dtype = model.text_encoder.layer_norm.weight.dtype

    def construct(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids int32 (texts, tokens), of which a text has int32 lengths (texts); returns (texts, tokens, hidden)."""
        x = self.language_model.embed(ids)
        x = (x + _sinusoids(x.shape[1], x.shape[2], self.first_position).astype(x.dtype)).astype(self.dtype)
        mask = msops.tile(hidden_keys(lengths, x.shape[1]), (1, 1, x.shape[1], 1))
        return self.layers(x, mask, None, None, None, None, None, None)


class TextOrSpeechEngine(Engine):
    """An engine whose prompts come with a clip, or with a text: ids int32 (1, tokens) and their number int32 (1)."""

    def listen(self, clips: tuple[np.ndarray, np.ndarray]) -> Iterator[None]:
        """`listen` of a clip, or the same of a text."""
        ids, lengths = clips
        if ids.dtype.kind == "f":
            return (yield from super().listen(clips))
        tokens = ids.shape[1]
        run = self.other(("text", tokens), lambda: EncodeText(self.model), f"the encoder of a text of {tokens} tokens")
        rows = run(Tensor(ids), Tensor(lengths))
        yield
        return rows.reshape((tokens, -1)).astype(self.model.dtype), int(lengths[0])

"""SpeechT5's encoder behind its prenets: post-norm layers with relative positions, and the text prenet."""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.encoder import hidden_keys
from mindone_audio.backbone.layers import Embedding, LayerNorm, Linear, parameter


@dataclass(frozen=True)
class StackConfig:
    """Sizes of the layers. `max_distance`: how far positions are told apart, by one table for all layers and heads."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_distance: int

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"the encoder's width {self.hidden_size} is not a multiple of its {self.num_heads} heads: correct "
                "hidden_size or encoder_attention_heads in config.json"
            )

    def layer_work(self, positions: int) -> int:
        """How many multiplications a layer takes for so many positions."""
        width = self.hidden_size
        attended = 2 * positions + 2 * self.max_distance
        return positions * (4 * width**2 + 2 * width * self.intermediate_size + width * attended)


class Attention(nn.Cell):
    """Attention of x (batch * positions, hidden_size), with a table of distances from query to key."""

    def __init__(self, config: StackConfig):
        super().__init__()
        self.num_heads, self.scale = config.num_heads, (config.hidden_size // config.num_heads) ** -0.5
        self.k_proj = Linear(config.hidden_size, config.hidden_size, bias=True)
        self.v_proj = Linear(config.hidden_size, config.hidden_size, bias=True)
        self.q_proj = Linear(config.hidden_size, config.hidden_size, bias=True)
        self.out_proj = Linear(config.hidden_size, config.hidden_size, bias=True)

    def construct(self, x: Tensor, batch: int, mask: Tensor, table: Tensor, index: Tensor) -> Tensor:
        query = ops.split_heads(self.q_proj(x) * self.scale, batch, self.num_heads)
        key = ops.split_heads(self.k_proj(x), batch, self.num_heads)
        value = ops.split_heads(self.v_proj(x), batch, self.num_heads)
        mask = mask + ops.relative_scores(query, table, index)
        return self.out_proj(ops.merge_heads(ops.attention(query, key, value, mask)))


class FeedForward(nn.Cell):
    """Two matrices with a GELU between them."""

    def __init__(self, config: StackConfig):
        super().__init__()
        self.intermediate_dense = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.output_dense = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def construct(self, x: Tensor) -> Tensor:
        return self.output_dense(ops.gelu(self.intermediate_dense(x)))


class Layer(nn.Cell):
    """Attention and feed-forward, each with a residual and then a norm, of x (batch * positions, hidden_size)."""

    def __init__(self, config: StackConfig):
        super().__init__()
        self.attention = Attention(config)
        self.layer_norm = LayerNorm(config.hidden_size)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = LayerNorm(config.hidden_size)

    def construct(self, x: Tensor, batch: int, mask: Tensor, table: Tensor, index: Tensor) -> Tensor:
        x = self.layer_norm(x + self.attention(x, batch, mask, table, index))
        return self.final_layer_norm(x + self.feed_forward(x))


class RelativePositions(nn.Cell):
    """The table of distances, `pe_k.weight` (2 * max_distance, head_dim)."""

    def __init__(self, config: StackConfig):
        super().__init__()
        self.pe_k = Embedding(2 * config.max_distance, config.hidden_size // config.num_heads)


class EncoderStack(nn.Cell):
    """The norm in front of the layers, the layers, and their table of distances: `wrapped_encoder` in checkpoints."""

    def __init__(self, config: StackConfig):
        super().__init__()
        self.num_heads, self.max_distance = config.num_heads, config.max_distance  # graphs cannot read a dataclass
        self.layer_norm = LayerNorm(config.hidden_size)
        self.layers = nn.CellList([Layer(config) for _ in range(config.num_layers)])
        self.embed_positions = RelativePositions(config)

    def construct(self, x: Tensor, counts: Tensor, first: int, last: int) -> Tensor:
        """x (batch, positions, hidden_size) after the layers from `first` on, before `last`.

        counts: how many positions are no padding, int32 (batch).
        """
        batch, positions, width = x.shape
        mask = msops.tile(hidden_keys(counts, positions), (1, self.num_heads, positions, 1))
        index = ops.distances(positions, self.max_distance, self.max_distance - 1, False)
        x = x.reshape((batch * positions, width))
        for i in range(first, last):
            x = self.layers[i](x, batch, mask, self.embed_positions.pe_k.weight, index)
        return x.reshape((batch, positions, width))


@msops.constexpr
def interleaved_sinusoids(positions: int, width: int) -> Tensor:
    """fp32 (positions, width): sines and cosines in turn (arXiv 1706.03762)."""
    rates = np.exp(np.arange(0, width, 2) * (-np.log(10000.0) / width))
    angles = np.arange(positions)[:, None] * rates
    table = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(positions, -1)[:, :width]
    return Tensor(table.astype(np.float32), ms.float32)


class ScaledPositions(nn.Cell):
    """Adds `alpha` times the sinusoids of the positions from 0 on (arXiv 1809.08895)."""

    def __init__(self):
        super().__init__()
        self.alpha = parameter((), "ones")

    def construct(self, x: Tensor) -> Tensor:
        return x + interleaved_sinusoids(x.shape[1], x.shape[2]).astype(x.dtype) * self.alpha


class TextPrenet(nn.Cell):
    """Token ids (batch, positions) to embeddings with their positions."""

    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.embed_tokens = Embedding(vocab_size, hidden_size)
        self.encode_positions = ScaledPositions()

    def construct(self, ids: Tensor) -> Tensor:
        return self.encode_positions(self.embed_tokens(ids))


class TextEncoder(nn.Cell):
    """Token ids to hidden states, for text to speech."""

    def __init__(self, config: StackConfig, vocab_size: int):
        super().__init__()
        self.config, self.num_layers = config, config.num_layers
        self.prenet = TextPrenet(vocab_size, config.hidden_size)
        self.wrapped_encoder = EncoderStack(config)

    def construct(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids int32 (batch, positions), lengths int32 (batch) in tokens; returns (batch, positions, hidden_size)."""
        x = self.wrapped_encoder.layer_norm(self.prenet(ids))
        return self.wrapped_encoder(x, lengths, 0, self.num_layers)

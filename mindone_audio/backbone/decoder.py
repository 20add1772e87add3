"""The decoder-only language model of all families: Llama's block, with what Qwen2 or Mistral change as fields."""

from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.cache import KVCache
from mindone_audio.backbone.layers import Embedding, Linear, RMSNorm
from mindone_audio.backbone.rotary import inverse_frequencies, rotate, rotation


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a language model. `head_dim` need not be hidden_size / num_heads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float
    rope_scaling: dict | None
    norm_epsilon: float
    qkv_bias: bool
    output_bias: bool
    tie_word_embeddings: bool

    def __post_init__(self):
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_heads} attention heads cannot share {self.num_key_value_heads} key-value heads evenly: "
                "correct num_attention_heads or num_key_value_heads in config.json"
            )


class DecoderAttention(nn.Cell):
    """Causal attention with rotary positions and grouped key and value heads."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.head_dim, self.layer = config.head_dim, layer  # a graph reads plain attributes, not a dataclass's
        queries, keys = config.num_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, queries, config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, keys, config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, keys, config.qkv_bias)
        self.o_proj = Linear(queries, config.hidden_size, config.output_bias)

    def construct(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KVCache | None, rows) -> Tensor:
        batch, length, _ = x.shape
        split = (batch, length, -1, self.head_dim)
        query = rotate(self.q_proj(x).reshape(split).transpose(0, 2, 1, 3), cos, sin)
        key = rotate(self.k_proj(x).reshape(split).transpose(0, 2, 1, 3), cos, sin)
        value = self.v_proj(x).reshape(split).transpose(0, 2, 1, 3)
        if cache is not None:
            key, value = cache.update(self.layer, rows, key, value)
        mixed = ops.attention(query, key, value, mask)
        return self.o_proj(mixed.transpose(0, 2, 1, 3).reshape((batch, length, -1)))


class GatedMLP(nn.Cell):
    """SwiGLU feed-forward (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def construct(self, x: Tensor) -> Tensor:
        return self.down_proj(ops.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Cell):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.self_attn = DecoderAttention(config, layer)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)

    def construct(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KVCache | None, rows) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache, rows)
        return x + self.mlp(self.post_attention_layernorm(x))


class DecoderStack(nn.Cell):
    """Token embeddings, the layers and the final norm."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.CellList([DecoderLayer(config, i) for i in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.frequencies = Tensor(inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling))

    def construct(self, embeddings: Tensor, positions: Tensor, mask: Tensor, cache: KVCache | None, rows) -> Tensor:
        x = embeddings
        cos, sin = rotation(positions, self.frequencies, x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, mask, cache, rows)
        return self.norm(x)


class Decoder(nn.Cell):
    """A language model: embeddings in, hidden states out, and `logits` of them."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.model = DecoderStack(config)
        # A tied output reads the embedding's parameter, so that there is one tensor in memory and on disk.
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings (batch, length, hidden_size)."""
        return self.model.embed_tokens(input_ids)

    def construct(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor, cache: KVCache | None = None, rows=None
    ) -> Tensor:
        """Hidden states after the final norm, (batch, length, hidden_size).

        embeddings (batch, length, hidden_size); positions int32 (batch, length); mask fp32 (batch, 1, length, keys),
        added to the scores. With a cache, new keys and values are written at its `rows` and the keys are all of the
        cache's; without one they are this call's.
        """
        return self.model(embeddings, positions, mask, cache, rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 scores (..., vocab_size) of hidden states (..., hidden_size)."""
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return ops.linear(hidden, weight).astype(ms.float32)


def visible(queries: Tensor, keys: Tensor) -> Tensor:
    """True where a key is not later than its query: queries (..., length), keys (keys) to (..., length, keys)."""
    return keys <= queries.expand_dims(-1)


def additive(mask: Tensor) -> Tensor:
    """A boolean mask of what may be seen, (batch, length, keys), as fp32 (batch, 1, length, keys) to add to scores."""
    return (msops.logical_not(mask).astype(ms.float32) * ops.MASKED).expand_dims(1)

"""The decoder-only language model of all families: Llama's block, with what Qwen2 or Mistral change as fields."""

from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.cache import KVCache, through_cache
from mindone_audio.backbone.layers import Embedding, Linear, RMSNorm
from mindone_audio.backbone.packed_weights import PackedWeights, query_key_value
from mindone_audio.backbone.rotary import inverse_frequencies, rotation_tables
from mindone_audio.conversion import to_mindspore


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
    qk_norm: bool = False  # Qwen3 normalises each head of queries and keys before it rotates them

    def __post_init__(self):
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_heads} attention heads cannot share {self.num_key_value_heads} key-value heads evenly: "
                "correct num_attention_heads or num_key_value_heads in config.json"
            )


class DecoderAttention(nn.Cell):
    """Causal attention with rotary positions and grouped key and value heads, of x (batch * length, hidden_size).

    chosen: which tokens of each sample the result has rows of, int32; None: all.
    """

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer = layer  # a graph reads plain attributes, not a dataclass's
        self.heads = (config.num_heads, config.num_key_value_heads, config.num_key_value_heads)
        queries, keys = config.num_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, queries, config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, keys, config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, keys, config.qkv_bias)
        self.o_proj = Linear(queries, config.hidden_size, config.output_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_epsilon) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_epsilon) if config.qk_norm else None

    def construct(
        self, x, rotation, mask, cache: KVCache | None, indices, packed: PackedWeights | None, chosen: Tensor | None
    ) -> Tensor:
        if packed is None:
            projected = msops.concat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), -1)
        else:
            projected = query_key_value(packed, self.layer, x)
        heads = ops.split_heads(projected, rotation[0].shape[0], self.heads[0] + self.heads[1] + self.heads[2])
        if self.q_norm is not None:
            query, key, value = ops.split(heads, self.heads, 1)
            heads = msops.concat((self.q_norm(query), self.k_norm(key), value), 1)
        query, key, value = ops.split(ops.rotate(heads, *rotation), self.heads, 1)
        if chosen is not None:
            query, mask = msops.gather(query, chosen, 2), msops.gather(mask, chosen, 2)
        transposed = False
        if cache is not None:
            key, value, transposed = through_cache(cache, self.layer, indices, key, value, mask.shape[3])
        return self.o_proj(ops.merge_heads(ops.attention(query, key, value, mask, transposed)))


class GatedMLP(nn.Cell):
    """SwiGLU feed-forward (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer, self.halves = layer, (config.intermediate_size, config.intermediate_size)
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def construct(self, x: Tensor, packed: PackedWeights | None) -> Tensor:
        if packed is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = ops.split(ops.linear(x, packed.feed_forward[self.layer]), self.halves, -1)
        return self.down_proj(ops.silu(gate) * up)


class DecoderLayer(nn.Cell):
    """Pre-norm attention and feed-forward, each with a residual, of x (batch * length, hidden_size).

    Rows, because what is between the matrix products then needs no reshape: on a CPU each is a kernel to launch. And
    MindSpore parses every cell of every layer that is called, but a function like `ops.rms_norm` once for all.
    chosen: as in `DecoderAttention`.
    """

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.self_attn = DecoderAttention(config, layer)
        self.mlp = GatedMLP(config, layer)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)

    def construct(
        self, x, rotation: tuple, mask, cache: KVCache | None = None, indices=None, packed=None, chosen=None
    ) -> Tensor:
        before, after = self.input_layernorm, self.post_attention_layernorm
        normed = ops.rms_norm(x, before.weight, before.epsilon)
        attended = self.self_attn(normed, rotation, mask, cache, indices, packed, chosen)
        if chosen is not None:
            x = msops.gather(x.reshape((mask.shape[0], -1, x.shape[1])), chosen, 1).reshape(attended.shape)
        x = x + attended
        return x + self.mlp(ops.rms_norm(x, after.weight, after.epsilon), packed)


class DecoderStack(nn.Cell):
    """Token embeddings, the layers and the final norm."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.CellList([DecoderLayer(config, i) for i in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.num_layers = config.num_layers
        self.num_heads, self.num_key_value_heads = config.num_heads, config.num_key_value_heads

    def construct(self, embeddings: Tensor, rotation: tuple, mask: Tensor, cache, indices, packed, chosen) -> Tensor:
        batch, length, width = embeddings.shape
        x = embeddings.reshape((batch * length, width))
        rotation, mask = for_all_heads(rotation, mask, self.num_heads, self.num_key_value_heads)
        for i, layer in enumerate(self.layers):
            # Nothing reads what the last layer makes of other tokens.
            x = layer(x, rotation, mask, cache, indices, packed, chosen if i == self.num_layers - 1 else None)
        return self.norm(x).reshape((batch, -1, width))


class Decoder(nn.Cell):
    """A language model: embeddings in, hidden states out, and `logits` of them."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.frequencies = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self.model = DecoderStack(config)
        # A tied output reads the embedding's parameter, so that there is one tensor in memory and on disk.
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings (batch, length, hidden_size)."""
        return self.model.embed_tokens(input_ids)

    def construct(
        self,
        embeddings: Tensor,
        rotation: tuple,
        mask: Tensor,
        cache: KVCache | None = None,
        indices=None,
        packed: PackedWeights | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, (batch, length, hidden_size), or of `chosen` tokens alone.

        embeddings (batch, length, hidden_size); rotation: `rotation_at` of the positions; mask fp32 (batch, 1, length,
        keys), added to the scores. With a cache, new keys and values are written at `indices`; the keys are all of the
        cache's, or this call's where there is no cache or the mask has another width. packed: the same weights in fewer
        matrices.
        chosen: int32, the tokens of each sample that are asked for; of others the last layer computes nothing but keys
        and values.
        """
        return self.model(embeddings, rotation, mask, cache, indices, packed, chosen)

    @property
    def output_weight(self) -> ms.Parameter:
        """(vocab_size, hidden_size): the output layer's own or the embedding."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 scores (..., vocab_size) of hidden states (..., hidden_size)."""
        scores = ops.linear(hidden, self.model.embed_tokens.weight) if self.lm_head is None else self.lm_head(hidden)
        return scores.astype(ms.float32)

    def position_tables(self, positions: int, dtype: ms.Type) -> list[Tensor]:
        """`rotary.rotation_tables` of this model as tensors."""
        return [to_mindspore(table, dtype) for table in rotation_tables(positions, self.frequencies)]

    def stacked_tables(self, positions: int, dtype: ms.Type) -> Tensor:
        """`position_tables` as one tensor (2, positions, 3, head_dim)."""
        return msops.stack(self.position_tables(positions, dtype))

    def unstacked(self, tables: Tensor) -> list[Tensor]:
        """`position_tables`, of what `stacked_tables` gives."""
        return [tables[0], tables[1]]

    def positions_at(self, tables: list[Tensor], places: Tensor) -> tuple:
        """`rotation_at` of int32 places (batch, length)."""
        return rotation_at(tables, places)


def for_all_heads(rotation: tuple, mask: Tensor, heads: int, key_value_heads: int) -> tuple[tuple, Tensor]:
    """What `rotation_at` and `causal_mask` give, for each head of queries, keys and values: once for all layers."""
    kinds = ops.repeated((0, 1, 2), (heads, key_value_heads, key_value_heads))
    cos, sin = rotation
    return (ops.choose_heads(cos, kinds), ops.choose_heads(sin, kinds)), ops.for_heads(mask, heads)


def rotation_at(tables: list[Tensor], positions: Tensor) -> tuple:
    """Rows of rotation tables for int32 positions (batch, length): each (batch, length, 3, head_dim)."""
    cos, sin = tables
    return ops.embed(cos, positions), ops.embed(sin, positions)


def causal_mask(columns: Tensor, visible: Tensor) -> Tensor:
    """What to add to scores: 0 where a key is `visible` and not later than its query, else `ops.MASKED`.

    columns int32 (length): those of queries and keys; visible bool (batch, length): keys. Returns fp32 (batch, 1,
    length, length).
    """
    length = columns.shape[0]
    past = (columns <= columns.reshape((length, 1))).reshape((1, 1, length, length))
    return _added(msops.logical_and(past, visible.reshape((-1, 1, 1, length))))


def ring_places(columns: Tensor, start: Tensor, positions: int) -> Tensor:
    """Which token of its sequence stands at a column of a ring of so many positions, if the first one is at `start`.

    columns int32 (length) or (keys), start int32 (batch, length) or (batch, length, 1): int32 (batch, length[, keys]).
    """
    places = columns - start
    return places + (places < 0).astype(ms.int32) * positions


def ring_mask(keys: Tensor, start: Tensor, places: Tensor, positions: int) -> Tensor:
    """`causal_mask` of a ring: a query sees from the first token of its own sequence to itself.

    keys int32 (keys): columns; start and places int32 (batch, length): of each query's sequence the first column, and
    the query's own `ring_places`. Returns fp32 (batch, 1, length, keys).
    """
    seen = ring_places(keys, start.expand_dims(-1), positions) <= places.expand_dims(-1)
    return _added(seen.expand_dims(1))


def _added(seen: Tensor) -> Tensor:
    return msops.where(seen, Tensor(0, ms.float32), Tensor(ops.MASKED, ms.float32))

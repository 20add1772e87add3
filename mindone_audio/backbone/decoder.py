"""The decoder-only language model of all families: Llama's block, with what Qwen2 or Mistral change as fields."""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.cache import KVCache, through_cache
from mindone_audio.backbone.layers import Embedding, Linear, RMSNorm, SwitchedLinear
from mindone_audio.backbone.packed_weights import PackedWeights, query_key_value
from mindone_audio.backbone.rotary import LongRope, inverse_frequencies, rotation_tables
from mindone_audio.conversion import to_mindspore


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a language model. `head_dim` need not be hidden_size / num_heads.

    `qk_norm`: each head of queries and keys is normalised before it is rotated (Qwen3). `fused`: queries, keys and
    values are one matrix, gate and up another (Phi). `rotary_dim`: dimensions of a head that are rotated, the first
    ones; None: all. `lora`: rank and scale of an adapter of the checkpoint's own, for sequences with audio.
    """

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
    qk_norm: bool = False
    fused: bool = False
    rotary_dim: int | None = None
    long_rope: LongRope | None = None
    lora: tuple[int, float] | None = None

    def __post_init__(self):
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_heads} attention heads cannot share {self.num_key_value_heads} key-value heads evenly: "
                "correct num_attention_heads or num_key_value_heads in config.json"
            )


def projection(config: DecoderConfig, in_features: int, out_features: int, bias: bool = False) -> Linear:
    """A linear layer, with an adapter where the checkpoint has one."""
    if config.lora is None:
        return Linear(in_features, out_features, bias)
    return SwitchedLinear(in_features, out_features, *config.lora)


def project(linear: Linear, x: Tensor, gate: Tensor | None) -> Tensor:
    """What `projection` makes of rows, with their gate where there is an adapter."""
    return linear(x) if gate is None else linear(x, gate)


class DecoderAttention(nn.Cell):
    """Causal attention with rotary positions and grouped key and value heads, of x (batch * length, hidden_size).

    chosen: which tokens of each sample the result has rows of, int32; None: all. gates: for `project`, of all rows and
    of those of the result.
    """

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer = layer  # a graph reads plain attributes, not a dataclass's
        self.heads = (config.num_heads, config.num_key_value_heads, config.num_key_value_heads)
        queries, keys = config.num_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.fused, self.rotary_dim = config.fused, config.rotary_dim
        if config.fused:
            self.qkv_proj = projection(config, config.hidden_size, queries + 2 * keys, config.qkv_bias)
        else:
            self.q_proj = Linear(config.hidden_size, queries, config.qkv_bias)
            self.k_proj = Linear(config.hidden_size, keys, config.qkv_bias)
            self.v_proj = Linear(config.hidden_size, keys, config.qkv_bias)
        self.o_proj = projection(config, queries, config.hidden_size, config.output_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_epsilon) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_epsilon) if config.qk_norm else None

    def construct(
        self,
        x,
        rotation,
        mask,
        cache: KVCache | None,
        indices,
        packed: PackedWeights | None,
        chosen: Tensor | None,
        gates: tuple,
    ) -> Tensor:
        projected = self.projected(x, packed, gates[0])
        attended = self.attended(projected, rotation, mask, cache, indices, chosen)
        return project(self.o_proj, attended, gates[1])

    def projected(self, x, packed: PackedWeights | None, gate: Tensor | None) -> Tensor:
        """Queries, keys and values of all heads, (batch * length, all of their widths)."""
        if self.fused:
            return project(self.qkv_proj, x, gate)
        if packed is None:
            return msops.concat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), -1)
        return query_key_value(packed, self.layer, x)

    def attended(
        self, projected, rotation, mask, cache: KVCache | None = None, indices=None, chosen: Tensor | None = None
    ) -> Tensor:
        """What the output layer takes, of what `projected` gives."""
        heads = ops.split_heads(projected, rotation[0].shape[0], self.heads[0] + self.heads[1] + self.heads[2])
        if self.q_norm is not None:
            query, key, value = ops.split(heads, self.heads, 1)
            heads = msops.concat((self.q_norm(query), self.k_norm(key), value), 1)
        query, key, value = ops.split(ops.rotate(heads, *rotation, self.rotary_dim), self.heads, 1)
        if chosen is not None:
            query, mask = msops.gather(query, chosen, 2), msops.gather(mask, chosen, 2)
        transposed = False
        if cache is not None:
            key, value, transposed = through_cache(cache, self.layer, indices, key, value, mask.shape[3])
        if cache is not None and query.shape[2] == mask.shape[3]:
            mixed = ops.causal_attention(query, key, value, mask)
        else:
            mixed = ops.attention(query, key, value, mask, transposed)
        return ops.merge_heads(mixed)


class GatedMLP(nn.Cell):
    """SwiGLU feed-forward (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer, self.halves = layer, (config.intermediate_size, config.intermediate_size)
        self.fused = config.fused
        if config.fused:
            self.gate_up_proj = projection(config, config.hidden_size, 2 * config.intermediate_size)
        else:
            self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
            self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = projection(config, config.intermediate_size, config.hidden_size)

    def construct(self, x: Tensor, packed: PackedWeights | None, switch: Tensor | None) -> Tensor:
        """switch: the gate of `project`."""
        if packed is not None and not self.fused:
            return ops.swiglu(x, packed.feed_forward[self.layer], self.down_proj.weight)
        gate, up = self.gate_up(x, switch)
        return self.down(gate, up, switch)

    def gate_up(self, x: Tensor, switch: Tensor | None) -> tuple[Tensor, Tensor]:
        """What goes through SiLU, and what it is multiplied with."""
        if self.fused:
            return ops.split(project(self.gate_up_proj, x, switch), self.halves, -1)
        return self.gate_proj(x), self.up_proj(x)

    def down(self, gate: Tensor, up: Tensor, switch: Tensor | None) -> Tensor:
        """The result, of what `gate_up` gives."""
        return project(self.down_proj, ops.silu(gate) * up, switch)


class DecoderLayer(nn.Cell):
    """Pre-norm attention and feed-forward, each with a residual, of x (batch * length, hidden_size).

    Rows, because what is between the matrix products then needs no reshape: on a CPU each is a kernel to launch. And
    MindSpore parses every cell of every layer that is called, but a function like `ops.rms_norm` once for all.
    chosen and gates: as in `DecoderAttention`.
    """

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.self_attn = DecoderAttention(config, layer)
        self.mlp = GatedMLP(config, layer)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)

    def construct(
        self,
        x,
        rotation: tuple,
        mask,
        cache: KVCache | None = None,
        indices=None,
        packed=None,
        chosen=None,
        gates: tuple = (None, None),
    ) -> Tensor:
        before, after = self.input_layernorm, self.post_attention_layernorm
        normed = ops.rms_norm(x, before.weight, before.epsilon)
        attended = self.self_attn(normed, rotation, mask, cache, indices, packed, chosen, gates)
        if chosen is not None:
            x = msops.gather(x.reshape((mask.shape[0], -1, x.shape[1])), chosen, 1).reshape(attended.shape)
        x = x + attended
        return x + self.mlp(ops.rms_norm(x, after.weight, after.epsilon), packed, gates[1])


class DecoderStack(nn.Cell):
    """Token embeddings, the layers and the final norm."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.CellList([DecoderLayer(config, i) for i in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.num_layers = config.num_layers
        self.num_heads, self.num_key_value_heads = config.num_heads, config.num_key_value_heads

    def construct(
        self, embeddings: Tensor, rotation: tuple, mask: Tensor, cache, indices, packed, chosen, gate
    ) -> Tensor:
        batch, length, width = embeddings.shape
        x = embeddings.reshape((batch * length, width))
        rotation, mask = for_all_heads(rotation, mask, self.num_heads, self.num_key_value_heads)
        all_rows = chosen_rows = None if gate is None else gate.reshape((-1, 1))
        if gate is not None and chosen is not None:
            chosen_rows = msops.gather(gate, chosen, 1).reshape((-1, 1))
        for i, layer in enumerate(self.layers):
            if i < self.num_layers - 1:
                x = layer(x, rotation, mask, cache, indices, packed, None, (all_rows, all_rows))
            else:  # nothing reads what the last layer makes of other tokens
                x = layer(x, rotation, mask, cache, indices, packed, chosen, (all_rows, chosen_rows))
        return self.norm(x).reshape((batch, -1, width))


class Decoder(nn.Cell):
    """A language model: embeddings in, hidden states out, and `logits` of them."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        rotated, rope = config.rotary_dim or config.head_dim, config.long_rope
        plain = inverse_frequencies(rotated, config.rope_theta, config.rope_scaling)
        factors = (1.0,) if rope is None else (rope.short, rope.long)
        self.frequencies = [(plain / np.array(factor, np.float32)).astype(np.float32) for factor in factors]
        # Graphs read plain attributes.
        self.rope_sets, self.original = len(factors), config.max_positions if rope is None else rope.original
        self.adapts = config.lora is not None
        self.switches = self.adapts or rope is not None
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
        modes: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, (batch, length, hidden_size), or of `chosen` tokens alone.

        embeddings (batch, length, hidden_size); rotation: `rotation_at` of the positions; mask fp32 (batch, 1, length,
        keys), added to the scores. With a cache, new keys and values are written at `indices`; the keys are all of the
        cache's, or this call's where there is no cache or the mask has another width. packed: the same weights in fewer
        matrices.
        chosen: int32, the tokens of each sample that are asked for; of others the last layer computes nothing but keys
        and values. modes: int32 (batch, length), where the model `switches`: see `mode`.
        """
        gate = gate_of(modes, embeddings.dtype) if self.adapts else None
        return self.model(embeddings, rotation, mask, cache, indices, packed, chosen, gate)

    def mode(self, hears: bool, tokens: int) -> int:
        """How a sequence of so many tokens is computed: 1 with the adapter, which those that hear audio have, plus 2
        with the long factors; 0 for all sequences of a model that does not switch."""
        return int(self.adapts and hears) + 2 * int(self.rope_sets > 1 and tokens > self.original)

    def modes(self, audio_index: Tensor, visible: Tensor) -> Tensor | None:
        """`mode` of whole sequences for each of their tokens, int32 (batch, length); audio_index and visible as in a
        `Prompt`."""
        if not self.switches:
            return None
        hears = (audio_index >= 0).astype(ms.int32).max(axis=1, keepdims=True) * int(self.adapts)
        tokens = visible.astype(ms.int32).sum(axis=1, keepdims=True)
        return msops.tile(hears + (tokens > self.original).astype(ms.int32) * 2, (1, audio_index.shape[1]))

    @property
    def output_weight(self) -> ms.Parameter:
        """(vocab_size, hidden_size): the output layer's own or the embedding."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 scores (..., vocab_size) of hidden states (..., hidden_size)."""
        scores = ops.linear(hidden, self.model.embed_tokens.weight) if self.lm_head is None else self.lm_head(hidden)
        return scores.astype(ms.float32)

    def position_tables(self, positions: int, dtype: ms.Type) -> list[Tensor]:
        """`rotary.rotation_tables` of this model as tensors; where there are long factors, theirs below the others'."""
        scale = 1.0 if self.config.long_rope is None else self.config.long_rope.scale
        found = [rotation_tables(positions, each, self.config.head_dim, scale) for each in self.frequencies]
        return [to_mindspore(np.concatenate(tables), dtype) for tables in zip(*found)]

    def stacked_tables(self, positions: int, dtype: ms.Type) -> Tensor:
        """`position_tables` as one tensor (2, positions, 3, head_dim)."""
        return msops.stack(self.position_tables(positions, dtype))

    def unstacked(self, tables: Tensor) -> list[Tensor]:
        """`position_tables`, of what `stacked_tables` gives."""
        return both_tables(tables)

    def positions_at(self, tables: list[Tensor], places: Tensor, modes: Tensor | None = None) -> tuple:
        """`rotation_at` of int32 places (batch, length), by the tables of their modes."""
        return rotation_at(tables, in_mode(places, modes, tables[0].shape[0] // self.rope_sets))


def both_tables(tables: Tensor) -> list[Tensor]:
    """The two tensors that were stacked. An index instead of the split takes milliseconds on a CPU."""
    return [table.reshape(tables.shape[1:]) for table in ops.split(tables, (1, 1), 0)]


def gate_of(modes: Tensor, dtype: ms.Type) -> Tensor:
    """1 where a token goes through the adapter, else 0: (batch, length) of `Decoder.mode`s."""
    return (modes % 2).astype(dtype)


def in_mode(places: Tensor, modes: Tensor | None, positions: int) -> Tensor:
    """Rows of `Decoder.position_tables` of so many positions, for int32 places and modes, both (batch, length)."""
    return places if modes is None else places + modes // 2 * positions


def for_all_heads(rotation: tuple, mask: Tensor, heads: int, key_value_heads: int) -> tuple[tuple, Tensor]:
    """What `rotation_at` and `causal_mask` give, for each head of queries, keys and values: once for all layers.

    The mask is for as many heads as `attention` computes at a time.
    """
    kinds = ops.repeated((0, 1, 2), (heads, key_value_heads, key_value_heads))
    batch, _, queries, keys = mask.shape
    (cos, sin), together = rotation, ops.heads_together(heads, key_value_heads, batch * queries, keys)
    return (ops.choose_heads(cos, kinds), ops.choose_heads(sin, kinds)), ops.for_heads(mask, together)


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

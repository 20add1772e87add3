"""The decoder of encoder-decoder models (arXiv 1706.03762): absolute positions, LayerNorm, attention to a context.

The variations of Whisper, SpeechT5 and SeamlessM4T are fields. Parameters have Whisper's names.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.cache import KVCache, stored, through_cache, update
from mindone_audio.backbone.layers import Embedding, LayerNorm, Linear
from mindone_audio.conversion import to_mindspore

ACTIVATIONS = ("gelu", "relu")


@dataclass(frozen=True)
class TextDecoderConfig:
    """Sizes of a text decoder and what its family does differently.

    `vocab_size`: 0 for layers that are given embeddings of something else than tokens, with their positions.
    `pre_norm`: a LayerNorm before each part of a layer, and one after all layers; otherwise one after each part.
    `learned_positions`: rows of a table in the checkpoint; otherwise fairseq's sinusoids, the first token's being
    `first_position`. `embed_scale`: what token embeddings are multiplied with. `key_bias`: Whisper's keys have none.
    `has_context`: layers attend to a context; without one they are those of a text encoder.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_positions: int
    activation: str
    tie_word_embeddings: bool
    pre_norm: bool = True
    learned_positions: bool = True
    first_position: int = 0
    embed_scale: float = 1.0
    key_bias: bool = False
    has_context: bool = True

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation_function {self.activation!r} is not supported: known are {', '.join(ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"the decoder's width {self.hidden_size} is not a multiple of its {self.num_heads} heads: "
                "correct d_model or decoder_attention_heads in config.json"
            )

    @property
    def num_key_value_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


def fairseq_sinusoids(positions: int, width: int, first: int) -> np.ndarray:
    """fairseq's position table from position `first` on, fp32 (positions, width): sines, then cosines.

    The rates are those of `SpeechT5SinusoidalPositionalEmbedding` in transformers, after tensor2tensor.
    """
    half = width // 2
    rates = np.exp(-np.log(10000.0) / (half - 1) * np.arange(half))
    angles = np.arange(first, first + positions)[:, None] * rates[None, :]
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return np.pad(table, ((0, 0), (0, width % 2))).astype(np.float32)


class TextAttention(nn.Cell):
    """Attention of x (batch * length, hidden_size) to itself: `construct`, or to a context: `attend`."""

    def __init__(self, config: TextDecoderConfig, layer: int):
        super().__init__()
        self.layer, self.num_heads, self.scale = layer, config.num_heads, config.head_dim**-0.5
        width = config.hidden_size
        self.k_proj = Linear(width, width, config.key_bias)
        self.v_proj = Linear(width, width, bias=True)
        self.q_proj = Linear(width, width, bias=True)
        self.out_proj = Linear(width, width, bias=True)

    def query(self, x: Tensor, batch: int) -> Tensor:
        return ops.split_heads(self.q_proj(x) * self.scale, batch, self.num_heads)

    def keys_values(self, rows: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, heads, length, head_dim) of rows (batch * length, hidden_size)."""
        key = ops.split_heads(self.k_proj(rows), batch, self.num_heads)
        return key, ops.split_heads(self.v_proj(rows), batch, self.num_heads)

    def construct(self, x: Tensor, batch: int, mask: Tensor, cache: KVCache | None, indices, chosen) -> Tensor:
        query, (key, value), transposed = self.query(x, batch), self.keys_values(x, batch), False
        if chosen is not None:
            query, mask = msops.gather(query, chosen, 2), msops.gather(mask, chosen, 2)
        if cache is not None:
            key, value, transposed = through_cache(cache, self.layer, indices, key, value, mask.shape[3])
        return self.out_proj(ops.merge_heads(ops.attention(query, key, value, mask, transposed)))

    def attend(self, x: Tensor, batch: int, context: KVCache | None, rows: Tensor | None, mask: Tensor | None):
        """Attention to a context: the keys and values that a cache holds, or those of rows (batch * positions, n)."""
        if context is None:
            key, value = self.keys_values(rows, batch)
            mixed = ops.attention(self.query(x, batch), key, value, mask)
        else:
            key, value, transposed = stored(context, self.layer)
            mixed = ops.attention(self.query(x, batch), key, value, mask, transposed)
        return self.out_proj(ops.merge_heads(mixed))


class TextDecoderLayer(nn.Cell):
    """Self-attention, attention to the context and feed-forward, each with a residual, of x (batch * length, n)."""

    def __init__(self, config: TextDecoderConfig, layer: int):
        super().__init__()
        self.pre_norm, self.relu = config.pre_norm, config.activation == "relu"
        self.self_attn = TextAttention(config, layer)
        self.self_attn_layer_norm = LayerNorm(config.hidden_size)
        self.encoder_attn = TextAttention(config, layer) if config.has_context else None
        self.encoder_attn_layer_norm = LayerNorm(config.hidden_size) if config.has_context else None
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True)
        self.final_layer_norm = LayerNorm(config.hidden_size)

    def construct(
        self, x, batch: int, mask, cache: KVCache | None, indices, chosen, context: KVCache | None, rows, context_mask
    ) -> Tensor:
        x = self.read(x, batch, mask, cache, indices, chosen)
        return self.listen(x, batch, context, rows, context_mask)

    def read(self, x: Tensor, batch: int, mask, cache: KVCache | None, indices, chosen) -> Tensor:
        """x after self-attention."""
        attended = self.self_attn(self.before(self.self_attn_layer_norm, x), batch, mask, cache, indices, chosen)
        if chosen is not None:
            x = msops.gather(x.reshape((batch, -1, x.shape[1])), chosen, 1).reshape(attended.shape)
        return self.after(self.self_attn_layer_norm, x + attended)

    def listen(self, x: Tensor, batch: int, context: KVCache | None, rows, context_mask) -> Tensor:
        """What `read` gives, after attention to the context, where there is one, and feed-forward."""
        if self.encoder_attn is not None:
            normed = self.before(self.encoder_attn_layer_norm, x)
            heard = self.encoder_attn.attend(normed, batch, context, rows, context_mask)
            x = self.after(self.encoder_attn_layer_norm, x + heard)
        wide = self.fc1(self.before(self.final_layer_norm, x))
        wide = ops.relu(wide) if self.relu else ops.gelu(wide)
        return self.after(self.final_layer_norm, x + self.fc2(wide))

    def attention_to(self, x: Tensor, batch: int, rows: Tensor) -> Tensor:
        """How much what `read` gives attends to each of rows: fp32 (batch, heads, length, source positions)."""
        key, _ = self.encoder_attn.keys_values(rows, batch)
        query = self.encoder_attn.query(self.before(self.encoder_attn_layer_norm, x), batch)
        return ops.attention_weights(query, key)

    def before(self, norm: nn.Cell, x: Tensor) -> Tensor:
        return norm(x) if self.pre_norm else x

    def after(self, norm: nn.Cell, x: Tensor) -> Tensor:
        return x if self.pre_norm else norm(x)


class TextDecoderStack(nn.Cell):
    """Token embeddings, positions, the layers and, with `pre_norm`, the final norm."""

    def __init__(self, config: TextDecoderConfig):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size) if config.vocab_size else None
        self.embed_positions = Embedding(config.max_positions, config.hidden_size) if config.learned_positions else None
        self.layers = nn.CellList([TextDecoderLayer(config, i) for i in range(config.num_layers)])
        self.layer_norm = LayerNorm(config.hidden_size) if config.pre_norm else None
        self.num_layers, self.num_heads = config.num_layers, config.num_heads

    def construct(self, embeddings, mask, cache, indices, chosen, context, rows, context_mask) -> Tensor:
        batch, length, width = embeddings.shape
        x, mask = embeddings.reshape((batch * length, width)), ops.for_heads(mask, self.num_heads)
        for i, layer in enumerate(self.layers):
            # Nothing reads what the last layer makes of other tokens.
            of_layer = chosen if i == self.num_layers - 1 else None
            x = layer(x, batch, mask, cache, indices, of_layer, context, rows, context_mask)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return x.reshape((batch, -1, width))


class TextDecoder(nn.Cell):
    """Embeddings and a context in, hidden states out, and `logits` of them: what `Decoder` is to other models."""

    switches = False

    def __init__(self, config: TextDecoderConfig):
        super().__init__()
        self.config = config
        self.scale, self.last_position = config.embed_scale, config.max_positions - 1
        self.model = TextDecoderStack(config)
        # A tied output reads the embedding's parameter, so that there is one tensor in memory and on disk.
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings (batch, length, hidden_size), without positions."""
        embeddings = self.model.embed_tokens(input_ids)
        return embeddings if self.scale == 1 else embeddings * self.scale

    def construct(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: KVCache | None = None,
        indices=None,
        chosen: Tensor | None = None,
        context: KVCache | None = None,
        rows: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (batch, length, hidden_size), or of `chosen` tokens alone.

        embeddings (batch, length, hidden_size); positions: `positions_at` of these tokens; mask, cache, indices and
        chosen as for `Decoder`. The context: the cache that `write_context` has written, or rows (batch * source
        positions, hidden_size). context_mask fp32 (batch, 1 or heads, 1 or length, source positions) is added to its
        scores, None hides nothing.
        """
        return self.model(embeddings + positions, mask, cache, indices, chosen, context, rows, context_mask)

    def write_context(self, context: KVCache, rows: Tensor) -> Tensor:
        """Put keys and values of rows (batch * source positions, hidden_size) into an empty cache of as many positions;
        returns something that a graph can wait for."""
        done = indices = context.write_indices(ops.counting(context.positions))
        for i, layer in enumerate(self.model.layers):
            key, value = layer.encoder_attn.keys_values(rows, context.batch)
            keys, values = update(context, i, indices, key, value)
            done = ops.not_before(values, ops.not_before(keys, done))
        return done

    def attention_to(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor, rows: Tensor, heads: tuple[tuple[int, int], ...]
    ) -> Tensor:
        """How much some heads, each (layer, head), attend to the context: fp32 (heads, length, source positions).

        The other arguments are those of `construct` for one sequence, rows its context.
        """
        x = (embeddings + positions).reshape((-1, embeddings.shape[2]))
        mask, found = ops.for_heads(mask, self.model.num_heads), ()
        for i, layer in enumerate(self.model.layers):
            x = layer.read(x, 1, mask, None, None, None)
            for which in heads:
                if which[0] == i:
                    weights = layer.attention_to(x, 1, rows)
                    of_head = weights.reshape((weights.shape[1], -1))
                    found += (ops.embed(of_head, ops.repeated((which[1],), (1,))),)
            x = layer.listen(x, 1, None, rows, None)
        return msops.concat(found).reshape((len(heads), -1, rows.shape[0]))

    @property
    def output_weight(self) -> ms.Parameter:
        """(vocab_size, hidden_size): the output layer's own or the embedding."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 scores (..., vocab_size) of hidden states (..., hidden_size)."""
        scores = ops.linear(hidden, self.model.embed_tokens.weight) if self.lm_head is None else self.lm_head(hidden)
        return scores.astype(ms.float32)

    def position_tables(self, positions: int, dtype: ms.Type) -> list[Tensor]:
        """What `positions_at` reads where the checkpoint has no table."""
        if self.config.learned_positions:
            return []
        table = fairseq_sinusoids(positions, self.config.hidden_size, self.config.first_position)
        return [to_mindspore(table, dtype)]

    def stacked_tables(self, positions: int, dtype: ms.Type) -> Tensor:
        """`position_tables` as one tensor (1, positions, hidden_size); a zero where the checkpoint has the table."""
        tables = self.position_tables(positions, dtype)
        return msops.stack(tables) if tables else msops.zeros((1,), dtype)

    def unstacked(self, tables: Tensor) -> list[Tensor]:
        """`position_tables`, of what `stacked_tables` gives."""
        return [tables[0]] if self.model.embed_positions is None else []

    def positions_at(self, tables: list[Tensor], places: Tensor) -> Tensor:
        """Rows of the position table for int32 places (batch, length): (batch, length, hidden_size)."""
        if self.model.embed_positions is None:
            return ops.embed(tables[0], places)
        return self.model.embed_positions(msops.minimum(places, self.last_position))  # padding may be beyond

"""The text-to-unit model (arXiv 2312.05187, section 4): hidden states of a text to units of speech, all at once."""

import mindspore as ms
from mindspore import Tensor, nn
from mindspore import ops as msops
from transformers import SeamlessM4Tv2Config

from mindone_audio.backbone import ops
from mindone_audio.backbone.encoder import first_frames, hidden_keys
from mindone_audio.backbone.layers import Conv1d, Embedding, LayerNorm, parameter
from mindone_audio.backbone.text_decoder import (
    TextAttention,
    TextDecoderConfig,
    TextDecoderStack,
    fairseq_sinusoids,
)
from mindone_audio.backbone.vocoder import DurationPredictor
from mindone_audio.weights.parameters import Prefixes

_KERNEL = 7  # of a layer's convolutions
# How names begin (on disk, here). transformers stores the tied weight by the first of these two names, and reads it so.
WEIGHT_PREFIXES: Prefixes = (
    ("t2u_model.model.decoder.embed_tokens.", "t2u_model.model.decoder.embed_tokens."),
    ("t2u_model.lm_head.", "t2u_model.model.decoder.embed_tokens."),
    ("t2u_model.model.encoder.layers.*.ffn.fc1.", "t2u_model.model.encoder.layers.*.fc1."),
    ("t2u_model.model.encoder.layers.*.ffn.fc2.", "t2u_model.model.encoder.layers.*.fc2."),
    ("t2u_model.model.encoder.layers.*.ffn_layer_norm.", "t2u_model.model.encoder.layers.*.final_layer_norm."),
)
_best = msops.Argmax(-1, ms.int32)


def _layers(config: SeamlessM4Tv2Config, num_layers: int, num_heads: int, intermediate_size: int) -> TextDecoderConfig:
    """Layers without embeddings, positions and a context."""
    return TextDecoderConfig(
        vocab_size=0,
        hidden_size=config.hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        max_positions=config.t2u_max_position_embeddings,
        activation=config.activation_function,
        tie_word_embeddings=True,
        learned_positions=False,
        key_bias=True,
        has_context=False,
    )


@msops.constexpr
def _sinusoids(positions: int, width: int, first: int) -> Tensor:
    """fp32 (positions, width)."""
    return Tensor(fairseq_sinusoids(positions, width, first), ms.float32)


class UnitDecoderLayer(nn.Cell):
    """Attention and two convolutions, each with a residual and then a norm."""

    def __init__(self, config: TextDecoderConfig, layer: int):
        super().__init__()
        width, edges = config.hidden_size, (_KERNEL // 2, _KERNEL // 2)
        self.relu = config.activation == "relu"
        self.self_attn = TextAttention(config, layer)
        self.self_attn_layer_norm = LayerNorm(width)
        self.conv1 = Conv1d(width, width, _KERNEL, padding=edges)
        self.conv2 = Conv1d(width, width, _KERNEL, padding=edges)
        self.conv_layer_norm = LayerNorm(width)

    def construct(self, x: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """x (batch, frames, hidden_size), of which int32 lengths (batch) are no padding; the convolutions see zeros
        behind them. mask fp32 (batch, heads, frames, frames)."""
        batch, frames, width = x.shape
        rows = x.reshape((batch * frames, width))
        rows = self.self_attn_layer_norm(rows + self.self_attn(rows, batch, mask, None, None, None))
        x = rows.reshape((batch, frames, width))
        y = first_frames(self.conv1(first_frames(x, lengths)), lengths)
        y = self.conv2(ops.relu(y) if self.relu else ops.gelu(y))
        return self.conv_layer_norm(x + y)


class UnitDecoder(nn.Cell):
    """Hidden states of tokens, repeated for each of their characters, to hidden states of units."""

    def __init__(self, config: SeamlessM4Tv2Config):
        super().__init__()
        width = config.hidden_size
        sizes = _layers(config, config.t2u_decoder_layers, config.t2u_decoder_attention_heads, width)
        self.num_heads, self.scale = sizes.num_heads, width**0.5 if config.scale_embedding else 1.0
        # fairseq counts positions from behind the id of padding.
        self.first_position = config.t2u_pad_token_id + 1
        # Read by the output layer alone, which is tied to it.
        self.embed_tokens = Embedding(config.t2u_vocab_size, width)
        self.embed_char = Embedding(config.char_vocab_size, width)
        self.pos_emb_alpha_char, self.pos_emb_alpha = parameter((1,), "ones"), parameter((1,), "ones")
        self.duration_predictor = DurationPredictor(
            width, config.t2u_variance_predictor_hidden_dim, config.t2u_variance_predictor_kernel_size
        )
        self.layers = nn.CellList([UnitDecoderLayer(sizes, i) for i in range(sizes.num_layers)])
        self.layer_norm = LayerNorm(width)

    def spell(self, x: Tensor, characters: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of characters (batch, characters, hidden_size), and ln(1 + units) of each (batch, characters).

        x (batch, characters, hidden_size): the encoder's state of each character's token; characters int32 (batch,
        characters), of which int32 lengths (batch) are no padding.
        """
        x = self.embed_char(characters) * self.scale + self._positions(x) * self.pos_emb_alpha_char + x
        return x, self.duration_predictor(x, lengths)

    def construct(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states of units (batch, units, hidden_size), of x (batch, units, hidden_size): what `spell` gives of
        each unit's character; int32 lengths (batch) of them are no padding."""
        units = x.shape[1]
        mask = msops.tile(hidden_keys(lengths, units), (1, self.num_heads, units, 1))
        x = x + self._positions(x) * self.pos_emb_alpha
        for layer in self.layers:
            x = layer(x, lengths, mask)
        return self.layer_norm(x)

    def _positions(self, x: Tensor) -> Tensor:
        return _sinusoids(x.shape[1], x.shape[2], self.first_position).astype(x.dtype)


class TextToUnitBody(nn.Cell):
    """The encoder and the decoder, which the checkpoints have under one name."""

    def __init__(self, config: SeamlessM4Tv2Config):
        super().__init__()
        sizes = config.t2u_encoder_layers, config.t2u_encoder_attention_heads, config.t2u_encoder_ffn_dim
        self.encoder = TextDecoderStack(_layers(config, *sizes))
        self.decoder = UnitDecoder(config)


class TextToUnit(nn.Cell):
    """Hidden states of a text decoder to units, in three steps: `encode`, `UnitDecoder.spell`, `logits`.

    Between two of them rows are repeated, how often depends on what is predicted: so each is in a graph of its own.
    """

    def __init__(self, config: SeamlessM4Tv2Config):
        super().__init__()
        if config.t2u_variance_predictor_embed_dim != config.hidden_size:
            raise ValueError(
                f"t2u_variance_predictor_embed_dim {config.t2u_variance_predictor_embed_dim} is not the hidden_size "
                f"{config.hidden_size}, whose rows it is given: correct config.json"
            )
        self.model = TextToUnitBody(config)

    @property
    def dtype(self) -> ms.Type:
        """That of the weights."""
        return self.model.decoder.embed_tokens.weight.dtype

    def encode(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """The encoder's states (batch, tokens, hidden_size) of a text decoder's, of which int32 lengths (batch) are no
        padding."""
        tokens = hidden.shape[1]
        mask = msops.tile(hidden_keys(lengths, tokens), (1, 1, tokens, 1))
        return self.model.encoder(hidden, mask, None, None, None, None, None, None)

    def logits(self, x: Tensor, lengths: Tensor) -> Tensor:
        """fp32 scores (batch, units, t2u_vocab_size) of what `UnitDecoder` is given."""
        decoder = self.model.decoder
        return ops.linear(decoder(x, lengths), decoder.embed_tokens.weight).astype(ms.float32)


class Spell(nn.Cell):
    """`UnitDecoder.spell` as a graph."""

    def __init__(self, t2u_model: TextToUnit):
        super().__init__(auto_prefix=False)
        self.decoder = t2u_model.model.decoder

    def construct(self, x: Tensor, characters: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder.spell(x, characters, lengths)


class ChooseUnits(nn.Cell):
    """The unit with the highest score, int32 (batch, units), as a graph; arguments as for `TextToUnit.logits`."""

    def __init__(self, t2u_model: TextToUnit):
        super().__init__(auto_prefix=False)
        self.t2u_model = t2u_model

    def construct(self, x: Tensor, lengths: Tensor) -> Tensor:
        return _best(self.t2u_model.logits(x, lengths))

"""A published SeamlessM4T v2 config to the fields of our parts, and the names of weights; the rest is refused."""

from transformers import SeamlessM4Tv2Config

from mindone_audio.backbone.config_fields import refuse_fields
from mindone_audio.backbone.conformer import ConformerConfig
from mindone_audio.backbone.text_decoder import TextDecoderConfig
from mindone_audio.models.seamless_m4t_v2 import units

# The values with which a field changes nothing that is computed here.
_ONLY = {
    "layer_norm_eps": 1e-5,
    "position_embeddings_type": "relative_key",
    "speech_encoder_hidden_act": "swish",
    "tie_word_embeddings": True,
}
_LONGEST = 1500  # frames of the longest clip that is expected, which are 30 s
_LAYERS = (
    ("cross_attention.", "encoder_attn."),
    ("cross_attention_layer_norm.", "encoder_attn_layer_norm."),
    ("ffn.fc1.", "fc1."),
    ("ffn.fc2.", "fc2."),
    ("ffn_layer_norm.", "final_layer_norm."),
)

# The one table of embeddings, which both ends of the decoder and the text encoder share, as files may call it.
EMBEDDINGS = ("shared.weight", "text_encoder.embed_tokens.weight", "text_decoder.embed_tokens.weight", "lm_head.weight")
# How names begin on disk, and here. The first name of the embeddings is the one that is saved.
WEIGHT_PREFIXES = (
    ("shared.", "language_model.model.embed_tokens."),
    ("text_encoder.embed_tokens.", "language_model.model.embed_tokens."),
    ("text_decoder.embed_tokens.", "language_model.model.embed_tokens."),
    ("language_model.lm_head.", "language_model.model.embed_tokens."),
    *(
        (f"{disk}.layers.*.{there}", f"{part}.layers.*.{here}")
        for disk, part in (("text_encoder", "text_encoder"), ("text_decoder", "language_model.model"))
        for there, here in _LAYERS
    ),
    ("text_decoder.", "language_model.model."),
    ("speech_encoder.", "audio_tower."),
    *units.WEIGHT_PREFIXES,
)


def check_config(config: SeamlessM4Tv2Config) -> None:
    """`ValueError` for a field that changes what is computed in a way that is not supported."""
    refuse_fields(config, "config.json")
    for field, value in _ONLY.items():
        if getattr(config, field) != value:
            raise ValueError(
                f"config.json.{field} {getattr(config, field)!r} is not supported: only {value!r}. Correct it if it is "
                "a mistake there; if the model was trained so, take another checkpoint"
            )


def speech_encoder_config(config: SeamlessM4Tv2Config) -> ConformerConfig:
    """The speech encoder."""
    return ConformerConfig(
        num_mel_bins=config.feature_projection_input_dim,
        num_mel_frames=_LONGEST,
        hidden_size=config.hidden_size,
        intermediate_size=config.speech_encoder_intermediate_size,
        num_layers=config.speech_encoder_layers,
        num_heads=config.speech_encoder_attention_heads,
        left_positions=config.left_max_position_embeddings,
        right_positions=config.right_max_position_embeddings,
        conv_kernel=config.conv_depthwise_kernel_size,
        chunk_size=config.speech_encoder_chunk_size,
        left_chunks=config.speech_encoder_left_chunk_num,
        num_adapters=config.num_adapter_layers if config.add_adapter else 0,
        adapter_kernel=config.adaptor_kernel_size,
        adapter_stride=config.adaptor_stride,
    )


def text_encoder_config(config: SeamlessM4Tv2Config) -> TextDecoderConfig:
    """The text encoder's layers, which are given embeddings with their positions."""
    return _text_config(config, 0, config.encoder_ffn_dim, config.encoder_layers, config.encoder_attention_heads, False)


def decoder_config(config: SeamlessM4Tv2Config) -> TextDecoderConfig:
    """The text decoder."""
    heads = config.decoder_attention_heads
    return _text_config(config, config.vocab_size, config.decoder_ffn_dim, config.decoder_layers, heads, True)


def _text_config(
    config: SeamlessM4Tv2Config, vocab: int, intermediate: int, layers: int, heads: int, has_context: bool
) -> TextDecoderConfig:
    return TextDecoderConfig(
        vocab_size=vocab,
        hidden_size=config.hidden_size,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        max_positions=config.max_position_embeddings,
        activation=config.activation_function,
        tie_word_embeddings=True,
        learned_positions=False,
        first_position=config.pad_token_id + 1,
        embed_scale=config.hidden_size**0.5 if config.scale_embedding else 1.0,
        key_bias=True,
        has_context=has_context,
    )

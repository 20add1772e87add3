"""A published SpeechT5 config to the fields of our parts; what they do not compute is refused, not ignored."""

from transformers import SpeechT5Config

from mindone_audio.backbone.config_fields import refuse_fields
from mindone_audio.backbone.text_decoder import TextDecoderConfig
from mindone_audio.models.speecht5.encoder import StackConfig

# The values with which a field changes nothing that is computed here.
_ONLY = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "scale_embedding": False}


def check_config(config: SpeechT5Config, **more) -> None:
    """`ValueError` for a field that changes what is computed in a way that is not supported. more: other fields."""
    refuse_fields(config, "config.json")
    for field, value in (_ONLY | more).items():
        if getattr(config, field) != value:
            raise ValueError(
                f"config.json.{field} {getattr(config, field)!r} is not supported: only {value!r}. Correct it if it is "
                "a mistake there; if the model was trained so, take another checkpoint"
            )


def stack_config(config: SpeechT5Config) -> StackConfig:
    """The encoder's layers."""
    return StackConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.encoder_ffn_dim,
        num_layers=config.encoder_layers,
        num_heads=config.encoder_attention_heads,
        max_distance=config.encoder_max_relative_position,
    )


def decoder_config(config: SpeechT5Config, vocab_size: int, max_positions: int) -> TextDecoderConfig:
    """The decoder's layers. vocab_size: 0 where it makes speech."""
    return TextDecoderConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.decoder_ffn_dim,
        num_layers=config.decoder_layers,
        num_heads=config.decoder_attention_heads,
        max_positions=max_positions,
        activation=config.hidden_act,
        tie_word_embeddings=True,
        pre_norm=False,
        learned_positions=False,
        first_position=config.pad_token_id + 1,
        key_bias=True,
    )


# How the decoder's layers are called on disk, and here.
DECODER_PREFIXES = (
    (
        "speecht5.decoder.wrapped_decoder.layers.*.feed_forward.intermediate_dense.",
        "language_model.model.layers.*.fc1.",
    ),
    ("speecht5.decoder.wrapped_decoder.layers.*.feed_forward.output_dense.", "language_model.model.layers.*.fc2."),
    ("speecht5.decoder.wrapped_decoder.", "language_model.model."),
)

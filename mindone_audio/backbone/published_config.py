"""Sub-configs of published checkpoints, as transformers 4 or 5 writes them, to our encoder's and decoder's fields.

Every family reads its `audio_config` and `text_config` here; what the bodies do not compute is refused, not ignored.
"""

from mindone_audio.backbone.decoder import DecoderConfig
from mindone_audio.backbone.encoder import EncoderConfig

_ACTIVATIONS = ("silu", "swish")  # two names of one function


def encoder_config(config, *, pool_pairs: bool, mask_padding: bool) -> EncoderConfig:
    """The fields of a Whisper-shaped `audio_config`; pool_pairs and mask_padding are the family's.

    Raises `ValueError` for an activation other than GELU and for scaled embeddings.
    """
    if config.activation_function != "gelu":
        raise ValueError(f"audio_config.activation_function {config.activation_function!r} is not supported: only gelu")
    if config.scale_embedding:
        raise ValueError("audio_config.scale_embedding is not supported: published checkpoints have it off")
    return EncoderConfig(
        num_mel_bins=config.num_mel_bins,
        hidden_size=config.d_model,
        intermediate_size=config.encoder_ffn_dim,
        num_layers=config.encoder_layers,
        num_heads=config.encoder_attention_heads,
        max_positions=config.max_source_positions,
        pool_pairs=pool_pairs,
        mask_padding=mask_padding,
    )


def decoder_config(config) -> DecoderConfig:
    """The fields of a `text_config` of model_type qwen2, qwen3, llama or mistral.

    Raises `ValueError` for another model_type, another activation than SiLU, a sliding window shorter than the model's
    positions, biases in the feed-forward, and rotary positions on a part of each head.
    """
    if config.model_type not in _BIASES:
        raise ValueError(
            f"text_config.model_type {config.model_type!r} is not supported: known are {', '.join(_BIASES)}"
        )
    if config.hidden_act not in _ACTIVATIONS:
        raise ValueError(f"text_config.hidden_act {config.hidden_act!r} is not supported: only silu")
    if config.model_type == "llama" and config.mlp_bias:
        raise ValueError("text_config.mlp_bias is not supported: published checkpoints have it off")
    _refuse_sliding_window(config)
    theta, scaling = _rope(config)
    qkv_bias, output_bias = _BIASES[config.model_type](config)
    return DecoderConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        # Qwen2's config has no such field, though its model uses one that a checkpoint adds; Mistral's may be null.
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        max_positions=config.max_position_embeddings,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=config.rms_norm_eps,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        tie_word_embeddings=config.tie_word_embeddings,
        qk_norm=config.model_type == "qwen3",
    )


# Which projections of attention have a bias, by model type: (query, key and value; output).
_BIASES = {
    "llama": lambda config: (config.attention_bias, config.attention_bias),
    "mistral": lambda config: (False, False),
    "qwen2": lambda config: (True, False),
    "qwen3": lambda config: (config.attention_bias, config.attention_bias),
}


def _refuse_sliding_window(config) -> None:
    """A window as long as the model's positions hides nothing; Qwen may slide some layers, Mistral all or none."""
    if config.model_type == "llama" or config.sliding_window is None:
        return
    kinds = ["sliding_attention"] if config.model_type == "mistral" else config.layer_types
    if "sliding_attention" in kinds and config.sliding_window < config.max_position_embeddings:
        raise ValueError(
            f"text_config.sliding_window {config.sliding_window} is not supported: set it to null (and "
            "use_sliding_window to false) in config.json if no prompt and answer together are longer than that"
        )


def _rope(config) -> tuple[float, dict]:
    """The base of the rotary positions and their scaling: version 5 of transformers writes both as one dict."""
    # The classes of version 4 know no rope_parameters, and its Mistral no rope_scaling.
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(f"text_config.rope_parameters {rope} differ by layer, which is not supported")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"text_config.rope_parameters {rope} rotate a part of each head, which is not supported")
    return rope.get("rope_theta", config.rope_theta), rope

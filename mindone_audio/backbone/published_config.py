"""Sub-configs of published checkpoints, as transformers 4 or 5 writes them, to our encoder's and decoder's fields.

Every family reads its `audio_config` and `text_config` here; what the bodies do not compute is refused, not ignored.
"""

import math

from mindone_audio.backbone.config_fields import refuse_fields
from mindone_audio.backbone.decoder import DecoderConfig
from mindone_audio.backbone.encoder import EncoderConfig
from mindone_audio.backbone.rotary import LongRope

_ACTIVATIONS = ("silu", "swish")  # two names of one function


def encoder_config(config, *, pool_pairs: bool, mask_padding: bool, **own) -> EncoderConfig:
    """The fields of a Whisper-shaped `audio_config`; pool_pairs, mask_padding and more fields are the family's.

    Raises `ValueError` for what `refuse_fields` refuses: an activation other than GELU, scaled embeddings and others.
    """
    refuse_fields(config, "audio_config")
    return EncoderConfig(
        num_mel_bins=config.num_mel_bins,
        hidden_size=config.d_model,
        intermediate_size=config.encoder_ffn_dim,
        num_layers=config.encoder_layers,
        num_heads=config.encoder_attention_heads,
        max_positions=config.max_source_positions,
        pool_pairs=pool_pairs,
        mask_padding=mask_padding,
        **own,
    )


def decoder_config(config) -> DecoderConfig:
    """The fields of a `text_config` of model_type qwen2, qwen3, llama or mistral, of Qwen2.5-Omni or of Phi-4.

    Raises `ValueError` for another model_type, another activation than SiLU, a sliding window shorter than the model's
    positions, rotary positions of another kind, and what `refuse_fields` refuses.
    """
    if config.model_type not in _BIASES:
        raise ValueError(
            f"text_config.model_type {config.model_type!r} is not supported: known are {', '.join(_BIASES)}"
        )
    if config.hidden_act not in _ACTIVATIONS:
        raise ValueError(f"text_config.hidden_act {config.hidden_act!r} is not supported: only silu")
    refuse_fields(config, "text_config")
    _refuse_sliding_window(config)
    theta, scaling = _rope(config)
    width, long = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads, None
    if scaling.get("type") == "longrope":
        long, scaling = _long_rope(config, scaling), {}
    qkv_bias, output_bias = _BIASES[config.model_type](config)
    return DecoderConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        # Qwen2's config has no such field, though its model uses one that a checkpoint adds; Mistral's may be null.
        head_dim=width,
        max_positions=config.max_position_embeddings,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=config.rms_norm_eps,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        tie_word_embeddings=config.tie_word_embeddings,
        qk_norm=config.model_type == "qwen3",
        fused=config.model_type in _FUSED,
        rotary_dim=int(width * getattr(config, "partial_rotary_factor", 1.0)) if config.model_type in _FUSED else None,
        long_rope=long,
    )


# Which projections of attention have a bias, by model type: (query, key and value; output).
_BIASES = {
    "llama": lambda config: (config.attention_bias, config.attention_bias),
    "mistral": lambda config: (False, False),
    "qwen2": lambda config: (True, False),
    "qwen3": lambda config: (config.attention_bias, config.attention_bias),
    "qwen2_5_omni_text": lambda config: (True, False),
    "phi4_multimodal": lambda config: (False, False),
}


# Whose queries, keys and values are one matrix, of which a part of each head is rotated.
_FUSED = ("phi4_multimodal",)


def _long_rope(config, rope: dict) -> LongRope:
    """Phi's factors, whose scale is that of the LongRoPE paper."""
    original = config.original_max_position_embeddings
    ratio = config.max_position_embeddings / original
    scale = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    return LongRope(tuple(rope["short_factor"]), tuple(rope["long_factor"]), original, scale)


def _refuse_sliding_window(config) -> None:
    """A window as long as the model's positions hides nothing; Qwen may slide some layers, the others all or none."""
    kinds = getattr(config, "layer_types", None) or []
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise ValueError(
            f"text_config.layer_types has {', '.join(unknown)}, which is not supported: only full_attention, and "
            "sliding_attention with a window that hides nothing"
        )
    window = getattr(config, "sliding_window", None)
    off = config.model_type != "mistral" and not getattr(config, "use_sliding_window", True)
    slides = "sliding_attention" in kinds or (not config.model_type.startswith("qwen") and not kinds)
    if window is not None and slides and not off and window < config.max_position_embeddings:
        raise ValueError(
            f"text_config.sliding_window {window} is not supported: set it to null (and "
            "use_sliding_window to false) in config.json if no prompt and answer together are longer than that"
        )


# What each kind of rotary positions is made of, besides its base.
_ROPE = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# What a kind that does not use it may have all the same.
_ROPE_NEUTRAL = {"partial_rotary_factor": (1.0,), "factor": (1.0,), "attention_factor": (1.0,), "mrope_section": ([],)}
# Where a token has three positions, of which text and audio have the same, so that the sections do not matter.
_THREE_POSITIONS = ("qwen2_5_omni_text",)
_ROPE_NAMES = {"type", "rope_type", "rope_theta", "original_max_position_embeddings"}


def _rope(config) -> tuple[float, dict]:
    """The base of the rotary positions and their scaling: version 5 of transformers writes both as one dict."""
    # The classes of version 4 know no rope_parameters, and its Mistral no rope_scaling.
    field = "rope_parameters" if getattr(config, "rope_parameters", None) else "rope_scaling"
    rope = getattr(config, field, None) or {}
    name = f"text_config.{field} {rope}"
    if not isinstance(rope, dict):
        raise ValueError(f"{name} is not supported: it must be a JSON object")
    if any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(f"{name} differ by layer, which is not supported")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "longrope" and config.model_type in _FUSED:  # whose config class has checked it
        return config.rope_theta, rope
    if kind not in _ROPE:
        raise ValueError(f"{name}: rope_type {kind!r} is not supported: known are {', '.join(_ROPE)}")
    wrong = [key for key in _ROPE[kind] if not isinstance(rope.get(key), (int, float)) or rope[key] <= 0]
    if wrong:
        raise ValueError(f"{name} needs a positive {wrong[0]} for {kind}: correct it in config.json")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"{name} rotate a part of each head, which is not supported")
    sections = {"mrope_section"} if config.model_type in _THREE_POSITIONS else set()
    for key in sorted(set(rope) - set(_ROPE[kind]) - _ROPE_NAMES - sections):
        if rope[key] is not None and rope[key] not in _ROPE_NEUTRAL.get(key, ()):
            raise ValueError(
                f"{name}: {key} {rope[key]!r} is not supported with {kind}: correct rope_type or leave it out"
            )
    return rope.get("rope_theta") or config.rope_theta, rope

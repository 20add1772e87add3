"""Every field of the published config classes is used, refused, or ignored for a reason that stands here."""

import pytest
from transformers import (
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2Config,
    Qwen3Config,
    VoxtralConfig,
    VoxtralEncoderConfig,
    WhisperConfig,
)

from mindone_audio.backbone.published_config import decoder_config, encoder_config
from mindone_audio.models.audioflamingo3 import AudioFlamingo3Config, AudioFlamingo3EncoderConfig
from mindone_audio.models.ichigo.model import IchigoForConditionalGeneration
from mindone_audio.models.ultravox.model import UltravoxConfig, UltravoxForConditionalGeneration

SIZES = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 3}
ENCODER = {"d_model": 24, "encoder_ffn_dim": 40, "encoder_layers": 2, "encoder_attention_heads": 3}
TRAINING = "only while training"
START = "what weights start from, and they are loaded"
CACHE = "how a cache is kept, which changes no number"
IDS = "of generation, which has generation_config.json"
TASK = "of another task's head"
SPEC = "SpecAugment, only while training"
WHISPERS_DECODER = "of Whisper's decoder, which is not part of the model"

# A value that makes another decoder, or is refused.
TEXT_USED = {
    "vocab_size": 77,
    "hidden_size": 96,
    "intermediate_size": 52,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 3,
    "hidden_act": "gelu",
    "max_position_embeddings": 99,
    "rms_norm_eps": 1e-3,
    "rope_theta": 7.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "tie_word_embeddings": None,  # turned round
}
TEXT_IGNORED = {
    "initializer_range": START,
    "use_cache": CACHE,
    "attention_dropout": TRAINING,
    "pretraining_tp": ("slices of a product whose sum is the same"),
}
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 3}
TEXT = {
    LlamaConfig: {"attention_bias": True, "mlp_bias": True, "head_dim": 10},
    MistralConfig: {"sliding_window": 8, "head_dim": 10},
    Qwen2Config: {**dict.fromkeys(SLIDING, SLIDING), "max_window_layers": {**SLIDING, "layer_types": None}},
    Qwen3Config: {
        **dict.fromkeys(SLIDING, SLIDING),
        "max_window_layers": {**SLIDING, "layer_types": None},
        "attention_bias": True,
        "head_dim": 10,
    },
}
AUDIO_USED = {
    "num_mel_bins": 16,
    "d_model": 48,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 52,
    "max_source_positions": 99,
    "activation_function": "relu",
    "scale_embedding": True,
}
AUDIO_IGNORED = {
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "layerdrop"), TRAINING),
    **dict.fromkeys(("initializer_range", "init_std"), START),
    "num_hidden_layers": "the same as encoder_layers",
    "vocab_size": "an encoder has no words",
    "use_cache": CACHE,
    **dict.fromkeys(
        ("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "decoder_layerdrop"), WHISPERS_DECODER
    ),
    **dict.fromkeys(("max_target_positions", "decoder_start_token_id"), WHISPERS_DECODER),
    **dict.fromkeys(("classifier_proj_size", "use_weighted_layer_sum", "median_filter_width"), TASK),
    **dict.fromkeys(
        ("apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob"), SPEC
    ),
    **dict.fromkeys(("mask_feature_length", "mask_feature_min_masks"), SPEC),
    "is_encoder_decoder": "only the encoder is loaded",
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "begin_suppress_tokens", "suppress_tokens"), IDS),
}
# Of what holds both parts; each family's own tests change what it uses.
FAMILY_USED = {
    Qwen2AudioConfig: {"audio_token_index"},
    VoxtralConfig: {"audio_token_id", "projector_hidden_act"},
    AudioFlamingo3Config: {"audio_token_id", "projector_hidden_act", "projector_bias"},
    UltravoxConfig: {
        *("text_model_id", "audio_model_id", "hidden_size", "stack_factor", "projector_act", "projector_ln_mid"),
        *("audio_latency_block_size", "audio_token_index", "ignore_index", "llm_only_training"),
        *("num_projector_layers", "text_model_lora_config", "audio_model_lora_config", "norm_init"),
    },
}
FAMILY_IGNORED = {
    "vocab_size": "that of text_config",
    "hidden_size": "that of text_config",
    "architectures": "the name of a class",
}


def own_fields(config: PretrainedConfig) -> set[str]:
    """What a class has beyond every config's."""
    common = set(PretrainedConfig().__dict__) | {"audio_config", "text_config", "model_type", "transformers_version"}
    return {name for name in config.__dict__ if not name.startswith("_")} - common


def outcome(make, fields):
    """What a config with these fields comes to: the sizes, or why it is refused."""
    try:
        return make(**fields)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("kind", TEXT)
def test_every_text_field(kind):
    base = {**SIZES, **({"sliding_window": None} if kind is MistralConfig else {})}
    used = TEXT_USED | TEXT[kind]
    assert own_fields(kind(**base)) | {"tie_word_embeddings"} <= set(used) | set(TEXT_IGNORED)

    def decoder(**fields):
        return decoder_config(kind(**{**base, **fields}))

    plain = decoder()
    for field, value in used.items():
        if field == "tie_word_embeddings":
            value = not plain.tie_word_embeddings
        if field == "max_window_layers":  # which layers slide where layer_types does not say
            assert outcome(decoder, {**value, field: 3}) == plain
            value = {**value, field: 1}
        change = value if isinstance(value, dict) and field != "rope_scaling" else {field: value}
        assert outcome(decoder, change) != plain, field


@pytest.mark.parametrize(
    "kind", [WhisperConfig, Qwen2AudioEncoderConfig, VoxtralEncoderConfig, AudioFlamingo3EncoderConfig]
)
def test_every_audio_field(kind):
    names = {there: here for here, there in kind.attribute_map.items() if here in ENCODER}
    fields = own_fields(kind()) | set(PretrainedConfig().__dict__) & set(AUDIO_USED)
    known = set(AUDIO_USED) | set(AUDIO_IGNORED) | set(kind.attribute_map) | set(kind.attribute_map.values())
    assert fields <= known, fields - known

    def encoder(**fields):
        fields = {names.get(name, name): value for name, value in {**ENCODER, **fields}.items()}
        to_theirs = {here: there for here, there in kind.attribute_map.items() if here.startswith(("d_", "encoder_"))}
        config = kind(**{to_theirs.get(name, name): value for name, value in fields.items()})
        return encoder_config(config, pool_pairs=False, mask_padding=False)

    for field, value in AUDIO_USED.items():
        assert outcome(encoder, {field: value}) != encoder(), field


@pytest.mark.parametrize("kind", FAMILY_USED)
def test_every_family_field(kind):
    config = kind(audio_config={}, text_config={}) if kind is UltravoxConfig else kind()
    assert own_fields(config) <= FAMILY_USED[kind] | set(FAMILY_IGNORED), own_fields(config)


REFUSED = {
    "partial_rotary_factor": 0.5,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "logit_scale": 0.0625,
    "residual_multiplier": 0.22,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.0078,
    "query_pre_attn_scalar": 256,
    "clip_qkv": 8.0,
    "no_rope_layers": [1, 1, 0],
    "mlp_bias": True,
    "num_experts": 8,
    "use_bidirectional_attention": True,
    "attention_chunk_size": 8192,
    "layer_types": ["full_attention", "linear_attention", "full_attention"],
    "rope_ratio": 500,
    "layer_norm_eps": 1e-3,
}


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("field", REFUSED)
def test_fields_of_other_models_are_refused_by_name(kind, field):
    base = {**SIZES, "sliding_window": None}
    config = kind(**base)
    setattr(config, field, REFUSED[field])
    with pytest.raises(ValueError, match=rf"text_config.{field} .*is not supported"):
        decoder_config(config)


@pytest.mark.parametrize("kind", TEXT)
def test_values_that_change_nothing_are_not_refused(kind):
    config = kind(**SIZES, sliding_window=None, head_dim=8)
    plain = decoder_config(config)
    neutral = {
        **{"partial_rotary_factor": 1.0, "logit_scale": 1, "attn_logit_softcapping": None, "num_experts": 0},
        **{"query_pre_attn_scalar": 8, "attention_multiplier": 8**-0.5, "no_rope_layers": [1, 1, 1], "mlp_bias": False},
        **{"pretraining_tp": 4, "attention_dropout": 0.1, "layer_norm_eps": config.rms_norm_eps, "use_cache": False},
        **{"original_max_position_embeddings": 4096, "num_nextn_predict_layers": 1},
    }
    for field, value in neutral.items():
        setattr(config, field, value)
    assert decoder_config(config) == plain


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (MistralConfig, "attention_bias", True),
        (Qwen2Config, "attention_bias", False),
        (LlamaConfig, "qk_norm", True),
        (Qwen3Config, "qk_norm", False),
    ],
)
def test_what_a_class_fixes_cannot_be_otherwise(kind, field, value):
    config = kind(**SIZES, sliding_window=None)
    setattr(config, field, value)
    with pytest.raises(ValueError, match=rf"text_config.{field} {value} is not supported: only {not value}"):
        decoder_config(config)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        *(
            ({"rope_type": kind, "factor": 2.0}, f"rope_type '{kind}'")
            for kind in ("yarn", "dynamic", "longrope", "su")
        ),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_type 'mrope'"),
        ({"rope_type": "default", "mrope_section": [16, 24, 24]}, "mrope_section .* is not supported with default"),
        ({"factor": 2.0}, "factor 2.0 is not supported with default"),
        ({"rope_type": "linear"}, "needs a positive factor for linear"),
        ({"rope_type": "linear", "factor": "2"}, "needs a positive factor for linear"),
        ({"rope_type": "llama3", "factor": 8.0}, "needs a positive low_freq_factor for llama3"),
        ({"rope_type": "linear", "factor": 2.0, "attention_factor": 1.2}, "attention_factor 1.2 is not supported"),
    ],
)
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_rotary_positions_that_are_refused(field, rope, message):
    config = LlamaConfig(**SIZES)
    setattr(config, field, rope)
    with pytest.raises(ValueError, match=f"text_config.{field} .*{message}"):
        decoder_config(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_norm_eps", 1e-6),
        ("partial_rotary_factor", 0.5),
        ("rope_parameters", {"rope_theta": 1e4}),
        ("hidden_act", "relu"),
        ("head_dim", 5),
        ("sliding_window", 100),
        ("n_window", 100),
    ],
)
def test_audio_fields_that_are_refused(field, value):
    config = WhisperConfig(**ENCODER)
    setattr(config, field, value)
    with pytest.raises(ValueError, match=f"audio_config.{field} .*is not supported"):
        encoder_config(config, pool_pairs=False, mask_padding=False)


def test_fields_beside_the_parts_are_refused():
    text = {"model_type": "llama", **SIZES, "vocab_size": 9, "intermediate_size": 8}
    for field, value in (("partial_rotary_factor", 0.5), ("logit_scale", 0.1), ("ignore_index", 0)):
        config = UltravoxConfig(audio_config=ENCODER, text_config=text, **{field: value})
        with pytest.raises(ValueError, match=f"config.json.{field} {value} is not supported"):
            UltravoxForConditionalGeneration(config)
    with pytest.raises(ValueError, match="text_config.partial_rotary_factor 0.5 is not supported"):
        IchigoForConditionalGeneration(LlamaConfig(**SIZES, partial_rotary_factor=0.5))

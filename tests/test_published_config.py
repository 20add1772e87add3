"""Published sub-configs, as transformers 4 and 5 write them, are read alike, and what no body computes is refused."""

import pytest
from transformers import (
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    VoxtralEncoderConfig,
    WhisperConfig,
)

from mindone_audio.backbone.published_config import decoder_config, encoder_config

SIZES = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 3}


def test_what_the_families_differ_in():
    qwen2, llama = decoder_config(Qwen2Config(**SIZES)), decoder_config(LlamaConfig(**SIZES, head_dim=10))
    mistral = decoder_config(MistralConfig(**SIZES, sliding_window=None))
    biased = decoder_config(LlamaConfig(**SIZES, attention_bias=True))
    assert [(c.qkv_bias, c.output_bias) for c in (qwen2, llama, mistral, biased)] == [
        (True, False),
        (False, False),
        (False, False),
        (True, True),
    ]
    assert [c.head_dim for c in (qwen2, llama, mistral)] == [8, 10, 8]
    qwen3 = decoder_config(Qwen3Config(**SIZES))
    assert (qwen3.qk_norm, qwen3.qkv_bias, qwen3.head_dim) == (True, False, 128) and not qwen2.qk_norm
    assert decoder_config(MistralConfig(**SIZES, sliding_window=None, head_dim=16)).head_dim == 16


@pytest.mark.parametrize("kind", [Qwen2Config, LlamaConfig, MistralConfig])
def test_both_spellings_of_rope(kind):
    settings = {**SIZES, **({"sliding_window": None} if kind is MistralConfig else {})}
    scaling = {"rope_type": "linear", "factor": 2.0}
    old = decoder_config(kind(**settings, rope_theta=7.0, rope_scaling=dict(scaling)))
    new = decoder_config(kind(**settings, rope_parameters={**scaling, "rope_theta": 7.0}))
    for config in (old, new):
        assert config.rope_theta == 7.0 and scaling.items() <= config.rope_scaling.items()
    assert decoder_config(kind(**settings)).rope_scaling == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Gemma2Config(**SIZES), "model_type 'gemma2' is not supported: known are llama, mistral, qwen2"),
        (LlamaConfig(**SIZES, hidden_act="gelu"), "hidden_act 'gelu'"),
        (LlamaConfig(**SIZES, mlp_bias=True), "mlp_bias"),
        (MistralConfig(**SIZES), "sliding_window 4096 is not supported: set it to null"),
        (Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=64, max_window_layers=1), "sliding_window 64"),
        (LlamaConfig(**SIZES, rope_parameters={"rope_theta": 1.0, "partial_rotary_factor": 0.5}), "a part of each"),
        (LlamaConfig(**SIZES, rope_parameters={"full_attention": {"rope_theta": 1.0}}), "differ by layer"),
    ],
)
def test_refused_text_configs(config, message):
    with pytest.raises(ValueError, match=message):
        decoder_config(config)


def test_a_sliding_window_that_hides_nothing_is_fine():
    decoder_config(MistralConfig(**SIZES, sliding_window=4096, max_position_embeddings=4096))
    decoder_config(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=64, max_window_layers=3))
    decoder_config(LlamaConfig(**SIZES, hidden_act="swish"))


def test_both_spellings_of_the_encoders_sizes():
    whisper = WhisperConfig(d_model=24, encoder_ffn_dim=40, encoder_layers=2, encoder_attention_heads=3)
    voxtral = VoxtralEncoderConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)
    ours = [encoder_config(c, pool_pairs=False, mask_padding=False) for c in (whisper, voxtral)]
    assert [(c.hidden_size, c.intermediate_size, c.num_layers, c.num_heads) for c in ours] == [(24, 40, 2, 3)] * 2
    for change, message in (({"activation_function": "relu"}, "'relu'"), ({"scale_embedding": True}, "scale_embed")):
        with pytest.raises(ValueError, match=message):
            encoder_config(WhisperConfig(**change), pool_pairs=False, mask_padding=False)

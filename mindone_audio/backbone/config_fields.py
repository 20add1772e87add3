"""Fields of published configs that change what a model computes in ways that no body here does: refused, not ignored.

Some are of the model types themselves, the rest of relatives that call themselves llama or qwen2. All this is data: a
field, and the values with which it changes nothing. None, and a field that is not there, never do.
"""

from typing import Any

# For any part of a config, whatever its model_type.
_ANY = {
    # scores and sums
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "residual_multiplier": (1.0,),
    "embedding_multiplier": (1.0,),
    "lm_head_multiplier": (1.0,),
    "scale_emb": (1.0,),
    "scale_depth": (),
    "dim_model_base": (),
    "clip_qkv": (),
    "use_logn_attn": (False,),
    "attn_temperature_tuning": (False,),
    # which positions are told apart, and how
    "partial_rotary_factor": (1.0,),
    "rotary_pct": (1.0,),
    "rope_ratio": (1.0,),
    "rope_interleave": (False,),
    "rope_interleaved": (False,),
    "rope_local_base_freq": (),
    "use_dynamic_ntk": (False,),
    "use_rope": (True,),
    "no_rope_layer_interval": (0,),
    "mrope_section": ([],),
    "use_mrope": (False,),
    "alibi": (False,),
    # what is attended to
    "attention_chunk_size": (),
    "use_bidirectional_attention": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
    # layers of another form
    "use_parallel_residual": (False,),
    "parallel_attn": (False,),
    "kv_lora_rank": (),
    "q_lora_rank": (),
    "num_local_experts": (0, 1),
    "num_experts": (0, 1),
    "n_routed_experts": (0, 1),
    "num_kv_shared_layers": (0,),
    "lm_head_bias": (False,),
    # loss
    "ignore_index": (-100,),
}
_TEXT = {
    "is_causal": (True,),
    "mlp_bias": (False,),
    "use_bias": (False,),
    "use_qkv_bias": (False,),
    "qk_norm": (False,),
    "use_qk_norm": (False,),
    "hidden_activation": ("silu", "swish"),
    "activation_function": ("silu", "swish"),
}
# Where a model type differs: what its published class fixes, whatever the field says.
_OF_TYPE = {
    "mistral": {"attention_bias": (False,)},
    "phi4_multimodal": {"attention_bias": (False,), "partial_rotary_factor": None},  # any
    "qwen2": {"attention_bias": (True,), "use_qkv_bias": (True,)},
    "qwen2_5_omni_text": {"attention_bias": (True,), "use_qkv_bias": (True,)},
    "qwen2_5_omni_audio_encoder": {"n_window": None},  # any
    "qwen3_asr_encoder": {"n_window": None},
    "glmasr_encoder": {"rope_parameters": None, "rope_theta": None, "partial_rotary_factor": None},
    "qwen3": {"qk_norm": (True,), "use_qk_norm": (True,)},
}
_AUDIO = {
    "activation_function": ("gelu",),
    "hidden_act": ("gelu",),
    "scale_embedding": (False,),
    "layer_norm_eps": (1e-5,),
    "rope_theta": (),
    "rope_scaling": (),
    "rope_parameters": (),
    "sliding_window": (),
    "n_window": (),
}


def refuse_fields(config: Any, part: str) -> None:
    """`ValueError` for the first field of a config that nothing here computes, with its value and what to do.

    part: "text_config", "audio_config", or "config.json" for what holds both.
    """
    neutral = dict(_ANY)
    if part == "text_config":
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        neutral |= {
            "query_pre_attn_scalar": (width,),
            "attention_multiplier": (width**-0.5,),
            "layer_norm_eps": (config.rms_norm_eps,),
            "no_rope_layers": ([], [1] * config.num_hidden_layers),  # 1 where a layer has rotary positions
            **_TEXT,
            **_OF_TYPE.get(config.model_type, {}),
        }
    elif part == "audio_config":
        heads = config.encoder_attention_heads
        neutral |= {"head_dim": (config.d_model // heads,), "num_key_value_heads": (heads,), **_AUDIO}
        neutral |= _OF_TYPE.get(config.model_type, {})
    for field, values in neutral.items():
        value = getattr(config, field, None)
        if value is not None and values is not None and value not in values:
            only = f"only {' or '.join(map(repr, values))}" if values else "only null"
            raise ValueError(
                f"{part}.{field} {value!r} is not supported: {only}, since nothing here computes it. Correct it in "
                "config.json if it is a mistake there; if the model was trained so, take another checkpoint"
            )

"""GLM-ASR (zai-org): Whisper's encoder with rotary positions, four frames stacked into a token, a Llama decoder."""

from typing import Any

import numpy as np

from mindone_audio.backbone.audio_language_model import AudioLanguageModel
from mindone_audio.backbone.config_fields import refuse_fields
from mindone_audio.backbone.decoder import Decoder
from mindone_audio.backbone.encoder import AudioEncoder
from mindone_audio.backbone.published_config import decoder_config, encoder_config
from mindone_audio.generation import GenerationMixin
from mindone_audio.models.audioflamingo3 import (
    AudioFlamingo3Config,
    AudioFlamingo3EncoderConfig,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
)
from mindone_audio.models.voxtral.model import Projector

CHECKPOINTS = ("zai-org/GLM-ASR-Nano-2512",)
PROVED = "float32 on CPU against transformers 5.23 (PyTorch, model and processor), with a small random model"

_STACK = 4  # of the encoder's rows in a token
_LAYER = "audio_tower.layers.*."


class GlmAsrEncoderConfig(AudioFlamingo3EncoderConfig):
    """The encoder's sizes, with the defaults of transformers 5."""

    model_type = "glmasr_encoder"

    def __init__(
        self,
        max_position_embeddings: int = 1500,
        hidden_act: str = "gelu",
        rope_parameters: dict | None = None,
        partial_rotary_factor: float = 0.5,
        **fields: Any,
    ):
        self.hidden_act, self.max_position_embeddings = hidden_act, max_position_embeddings
        self.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0, **(rope_parameters or {})}
        self.partial_rotary_factor = self.rope_parameters.get("partial_rotary_factor", partial_rotary_factor)
        fields.pop("max_source_positions", None)
        super().__init__(max_source_positions=max_position_embeddings, **fields)


class GlmAsrConfig(AudioFlamingo3Config):
    """config.json of GLM-ASR, which transformers has from version 5 on; the defaults are that one's."""

    model_type = "glmasr"
    sub_configs = {**AudioFlamingo3Config.sub_configs, "audio_config": GlmAsrEncoderConfig}
    text_type = "llama"

    def __init__(self, text_config: Any = None, audio_token_id: int = 59260, **others: Any):
        super().__init__(text_config=text_config, audio_token_id=audio_token_id, **others)
        self.text_config.tie_word_embeddings = others.get("tie_word_embeddings", True)  # whatever its own part says


class GlmAsrForConditionalGeneration(AudioLanguageModel, GenerationMixin):
    """GLM-ASR on MindSpore: `from_pretrained`, `construct` (logits and loss) and `generate`.

    A clip longer than the encoder's window comes as several windows, and its placeholders are the sum of theirs.
    """

    config_class = GlmAsrConfig
    audio_inputs = ("input_features", "input_features_mask")
    weight_prefixes = (
        (f"{_LAYER}self_attn.o_proj.", f"{_LAYER}self_attn.out_proj."),
        (f"{_LAYER}mlp.fc1.", f"{_LAYER}fc1."),
        (f"{_LAYER}mlp.fc2.", f"{_LAYER}fc2."),
        (f"{_LAYER}input_layernorm.", f"{_LAYER}self_attn_layer_norm."),
        (f"{_LAYER}post_attention_layernorm.", f"{_LAYER}final_layer_norm."),
        ("audio_tower.norm.", "audio_tower.layer_norm."),
    )
    adapter_prefixes = AudioFlamingo3ForConditionalGeneration.adapter_prefixes

    def __init__(self, config: GlmAsrConfig):
        refuse_fields(config, "config.json")
        audio = config.audio_config
        if audio.hidden_act != "gelu" or config.projector_hidden_act != "gelu":
            raise ValueError("hidden_act and projector_hidden_act: only gelu is supported, correct config.json")
        rotated = int(audio.d_model // audio.encoder_attention_heads * audio.partial_rotary_factor)
        rotary = (rotated, audio.rope_parameters["rope_theta"])
        if audio.rope_parameters["rope_type"] != "default" or rotated % 2:
            raise ValueError(
                f"audio_config.rope_parameters {audio.rope_parameters} is not supported: only the default type, of an "
                "even number of dimensions"
            )
        encoder = encoder_config(audio, pool_pairs=False, mask_padding=False, rotary=rotary)
        if encoder.intermediate_size != _STACK * encoder.hidden_size or encoder.max_positions % _STACK:
            raise ValueError(
                f"audio_config.intermediate_size {encoder.intermediate_size} must be {_STACK} times hidden_size "
                f"{encoder.hidden_size}, and max_position_embeddings {encoder.max_positions} a multiple of {_STACK}"
            )
        decoder = decoder_config(config.text_config)
        width = decoder.hidden_size
        projector = Projector(encoder.hidden_size, _STACK, width, 2 * width, bias=True)
        super().__init__(config, AudioEncoder(encoder), projector, Decoder(decoder), config.audio_token_id)

    def audio_tokens(self, frames: np.ndarray) -> np.ndarray:
        """How many tokens the decoder sees of clips of so many mel frames."""
        return super().audio_tokens(frames) // _STACK


class GlmAsrProcessor(AudioFlamingo3Processor):
    """Text and audio to model inputs, and tokens back to text, in the file formats of transformers 5."""

    clip_first = True

    def __init__(
        self,
        feature_extractor=None,
        tokenizer=None,
        chat_template=None,
        audio_token="<|pad|>",
        default_transcription_prompt="Please transcribe this audio into text",
        max_audio_len=655,
    ):
        super().__init__(
            feature_extractor, tokenizer, chat_template, audio_token, default_transcription_prompt, max_audio_len
        )

    def token_count(self, frames: int) -> int:
        """Audio embeddings of a clip of so many mel frames."""
        return ((frames - 1) // 2 + 1) // _STACK


MODEL, PROCESSOR = GlmAsrForConditionalGeneration, GlmAsrProcessor

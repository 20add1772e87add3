"""Audio Flamingo 3 (arXiv 2507.08128): Qwen2-Audio's encoder over windows of 30 s, a two-layer projector, Qwen2."""

from typing import Any

import numpy as np
from mindspore import Tensor, nn
from transformers import AutoConfig, BatchFeature, PretrainedConfig, ProcessorMixin, VoxtralEncoderConfig

from mindone_audio.backbone import ops
from mindone_audio.backbone.audio_language_model import AudioLanguageModel
from mindone_audio.backbone.config_fields import refuse_fields
from mindone_audio.backbone.decoder import Decoder
from mindone_audio.backbone.encoder import AudioEncoder
from mindone_audio.backbone.layers import Linear
from mindone_audio.backbone.published_config import decoder_config, encoder_config
from mindone_audio.generation import GenerationMixin
from mindone_audio.inputs.processor import AudioTextProcessor, as_list
from mindone_audio.models.qwen2_audio import audio_token_count

CHECKPOINTS = ("nvidia/audio-flamingo-3-hf",)
PROVED = "float32 on CPU against transformers 5.23 (PyTorch, model and processor), with a small random model"

# What the model was trained to say before a transcription.
TRANSCRIPTION_PREFIXES = (
    "The spoken content of the audio is",
    "The transcription of the audio is",
    "The content of the input audio is",
)


class AudioFlamingo3EncoderConfig(VoxtralEncoderConfig):
    """The fields and defaults of Voxtral's, by their new names (`hidden_size`) or their old ones (`d_model`)."""

    model_type = "audioflamingo3_encoder"

    def __init__(self, **fields: Any):
        super().__init__(**{self.attribute_map.get(name, name): value for name, value in fields.items()})


class AudioFlamingo3Config(PretrainedConfig):
    """config.json of Audio Flamingo 3, which transformers has from version 5 on; the defaults are that one's.

    audio_config and text_config: dicts, configs, or None for the published encoder and for the defaults of the class
    of `text_type`.
    """

    model_type = "audioflamingo3"
    sub_configs = {"audio_config": AudioFlamingo3EncoderConfig, "text_config": AutoConfig}
    text_type = "qwen2"

    def __init__(
        self,
        audio_config: dict | PretrainedConfig | None = None,
        text_config: dict | PretrainedConfig | None = None,
        audio_token_id: int = 151669,
        projector_hidden_act: str = "gelu",
        projector_bias: bool = True,
        **others: Any,
    ):
        if not isinstance(audio_config, PretrainedConfig):
            audio_config = self.sub_configs["audio_config"](**(audio_config or {}))
        if not isinstance(text_config, PretrainedConfig):
            text_config = AutoConfig.for_model(**{"model_type": self.text_type, **(text_config or {})})
        self.audio_config, self.text_config = audio_config, text_config
        self.audio_token_id = audio_token_id
        self.projector_hidden_act, self.projector_bias = projector_hidden_act, projector_bias
        super().__init__(**others)


class Projector(nn.Cell):
    """Linear, GELU, linear, from the encoder's width to the decoder's."""

    def __init__(self, audio_width: int, text_width: int, bias: bool, inner: int | None = None):
        super().__init__()
        self.linear_1 = Linear(audio_width, inner or text_width, bias)
        self.linear_2 = Linear(inner or text_width, text_width, bias)

    def construct(self, audio: Tensor) -> Tensor:
        return self.linear_2(ops.gelu(self.linear_1(audio)))


class AudioFlamingo3ForConditionalGeneration(AudioLanguageModel, GenerationMixin):
    """Audio Flamingo 3 on MindSpore: `from_pretrained`, `construct` (logits and loss) and `generate`.

    A clip longer than the encoder's window comes as several windows, and its placeholders are the sum of theirs.
    """

    config_class = AudioFlamingo3Config
    audio_inputs = ("input_features", "input_features_mask")
    adapter_prefixes = (  # only transformers 5 has the class
        ("model.audio_tower.", "audio_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head", "language_model.lm_head"),
    )

    def __init__(self, config: AudioFlamingo3Config):
        refuse_fields(config, "config.json")
        if config.projector_hidden_act != "gelu":
            raise ValueError(f"projector_hidden_act {config.projector_hidden_act!r} is not supported: only gelu")
        encoder = encoder_config(config.audio_config, pool_pairs=True, mask_padding=True)
        decoder = decoder_config(config.text_config)
        projector = Projector(encoder.hidden_size, decoder.hidden_size, config.projector_bias)
        super().__init__(config, AudioEncoder(encoder), projector, Decoder(decoder), config.audio_token_id)


class AudioFlamingo3Processor(AudioTextProcessor, ProcessorMixin):
    """Text and audio to model inputs, and tokens back to text, in the file formats of transformers 5.

    Given clips, `__call__` returns one row for each started window of 30 s of each: `input_features`, float32
    `[windows, mels, frames]`, normalised by themselves, and `input_features_mask`, int32 `[windows, frames]`, 1 where a
    frame is audio. Its `truncation`, to 600 s, is what transformers does unasked. The tokenizer given is set to pad on
    the left, as the model was trained and generates.
    """

    attributes = ["feature_extractor", "tokenizer"]
    feature_extractor_class = "WhisperFeatureExtractor"
    tokenizer_class = "AutoTokenizer"
    frames_transcriptions = True
    clip_first = False  # in a request for a transcription

    def __init__(
        self,
        feature_extractor=None,
        tokenizer=None,
        chat_template=None,
        audio_token="<sound>",
        default_transcription_prompt="Transcribe the input speech.",
        max_audio_len=600,
    ):
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.audio_token, self.audio_token_id = audio_token, self._token_id(audio_token)
        self.default_transcription_prompt = default_transcription_prompt
        self.questions = {"caption": "Describe the audio.", "transcribe": default_transcription_prompt}
        self.max_audio_len = max_audio_len  # s
        if max_audio_len < feature_extractor.chunk_length:
            raise ValueError(
                f"max_audio_len={max_audio_len} s is less than one window of {feature_extractor.chunk_length} s: "
                "correct it in processor_config.json (published: 600)"
            )
        self.tokenizer.padding_side = "left"

    @property
    def longest_clip(self) -> int:
        """Seconds of audio that the model hears: whole windows, 600 s as published."""
        return self.max_audio_len // self.feature_extractor.chunk_length * self.feature_extractor.chunk_length

    def token_count(self, frames: int) -> int:
        """Audio embeddings of a clip of so many mel frames."""
        return audio_token_count(frames)

    def transcription(self, answer: str) -> str:
        """A transcription without the sentence that introduces it, the full stop that ends it and quotes around it."""
        text = answer.strip()
        prefix = next((prefix for prefix in TRANSCRIPTION_PREFIXES if text.startswith(prefix)), "")
        text = text.removeprefix(prefix).strip().removesuffix(".").strip()
        quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
        return text[1:-1].strip() if quoted else text

    def apply_transcription_request(
        self,
        audio: Any,
        prompt: str | list[str | None] | None = None,
        *,
        tokenize: bool = True,
        **processor_kwargs: Any,
    ) -> BatchFeature | list[str]:
        """What `generate` takes to transcribe one clip or a list of clips, each in a conversation of its own.

        prompt: instead of `default_transcription_prompt`, for all clips or one for each, None for the default.
        tokenize: False returns the texts, whose placeholders are not expanded, and reads no clip. processor_kwargs:
        those of `__call__`. Raises `ValueError` for no clip, or another number of prompts than of clips.
        """
        clips = as_list(audio)
        prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt] * len(clips)
        if not clips or len(prompts) != len(clips):
            raise ValueError(f"{len(prompts)} prompt(s) for {len(clips)} clip(s): give one for each")
        if wrong := [item for item in prompts if not isinstance(item, str | None)]:
            raise TypeError(f"a prompt must be a string or None, not {wrong[0]!r:.80}")
        conversations = []
        for clip, item in zip(clips, prompts):
            request = {"type": "text", "text": self.default_transcription_prompt if item is None else item}
            content = [{"type": "audio", "audio": clip}, request][:: 1 if self.clip_first else -1]
            conversations.append([{"role": "user", "content": content}])
        return self.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=tokenize, return_dict=tokenize, **processor_kwargs
        )

    def decode(self, tokens: Any, *, strip_prefix: bool = False, **kwargs: Any) -> str:
        """One row of token ids -> text; strip_prefix: without what the model puts around a transcription."""
        text = super().decode(tokens, **kwargs)
        return self.transcription(text) if strip_prefix else text

    def batch_decode(self, tokens: Any, *, strip_prefix: bool = False, **kwargs: Any) -> list[str]:
        """Rows of token ids -> texts; strip_prefix as for `decode`."""
        texts = super().batch_decode(tokens, **kwargs)
        return [self.transcription(text) for text in texts] if strip_prefix else texts

    def _extract(self, clips: list[np.ndarray], truncation: bool) -> tuple[dict[str, np.ndarray], list[int]]:
        rate, hop = self.feature_extractor.sampling_rate, self.feature_extractor.hop_length
        window = self.feature_extractor.chunk_length * rate
        fitting = self._fitting(clips, self.longest_clip, truncation)
        windows = [clip[start : start + window] for clip in fitting for start in range(0, len(clip), window)]
        # Every window but the last holds four frames for each of its tokens, so a clip's sum is that of its frames.
        counts = [self.token_count(-(-len(clip) // hop)) for clip in fitting]
        return self._log_mels(windows, "input_features_mask"), counts


MODEL, PROCESSOR = AudioFlamingo3ForConditionalGeneration, AudioFlamingo3Processor

"""Qwen3-ASR: 2-D convolutions over chunks of 1 s, an encoder in windows of 8 s, a Qwen3 decoder.

It writes down what is said, after the language that it hears: "language English<asr_text>Good morning."
"""

from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor
from transformers import BatchFeature, ProcessorMixin

from mindone_audio.backbone import ops
from mindone_audio.backbone.config_fields import refuse_fields
from mindone_audio.backbone.decoder import Decoder
from mindone_audio.backbone.encoder import AudioEncoder, EncoderConfig, sinusoids
from mindone_audio.backbone.layers import HalvingConv2d, Linear
from mindone_audio.backbone.published_config import decoder_config, encoder_config
from mindone_audio.backbone.windowed_model import WindowedModel
from mindone_audio.generation import GenerationMixin
from mindone_audio.inputs.log_mel import log_mel
from mindone_audio.inputs.processor import AudioTextProcessor
from mindone_audio.models.audioflamingo3 import (
    AudioFlamingo3Config,
    AudioFlamingo3EncoderConfig,
    AudioFlamingo3ForConditionalGeneration,
    Projector,
)
from mindone_audio.setting_fields import refusal

CHECKPOINTS = ("Qwen/Qwen3-ASR-1.7B", "Qwen/Qwen3-ASR-0.6B", "Qwen/Qwen3-ASR-1.7B-hf", "Qwen/Qwen3-ASR-0.6B-hf")
PROVED = "float32 on CPU against transformers 5.23 (PyTorch, model and processor), with a small random model"

_TEXT = "<asr_text>"  # stands between the language and what is said
_ROW_WINDOWS = 4  # windows of a clip that are encoded together
_SHORTEST = 8000  # samples that a clip is filled up to
_CHUNK = 100  # frames of the processor's chunks, which become 13 tokens
LANGUAGES = {
    **{"ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish"},
    **{"fa": "Persian", "fi": "Finnish", "fil": "Filipino", "fr": "French", "hi": "Hindi", "hu": "Hungarian"},
    **{"id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "mk": "Macedonian", "ms": "Malay"},
    **{"nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish"},
    **{"th": "Thai", "tr": "Turkish", "vi": "Vietnamese", "yue": "Cantonese", "zh": "Chinese"},
}


class Qwen3ASREncoderConfig(AudioFlamingo3EncoderConfig):
    """The encoder's sizes, with the defaults of transformers 5."""

    model_type = "qwen3_asr_encoder"

    def __init__(
        self,
        n_window: int = 50,
        n_window_infer: int = 800,
        downsample_hidden_size: int = 480,
        output_dim: int = 3584,
        **fields: Any,
    ):
        self.n_window, self.n_window_infer = n_window, n_window_infer
        self.downsample_hidden_size, self.output_dim = downsample_hidden_size, output_dim
        sizes = {"d_model": 1024, "encoder_layers": 24, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096}
        fields |= {"max_source_positions": _ROW_WINDOWS * n_window_infer // 2}
        super().__init__(**{**sizes, "num_mel_bins": 128, **fields})


class Qwen3ASRConfig(AudioFlamingo3Config):
    """config.json of Qwen3-ASR, which transformers has from version 5 on; the defaults are that one's."""

    model_type = "qwen3_asr"
    sub_configs = {**AudioFlamingo3Config.sub_configs, "audio_config": Qwen3ASREncoderConfig}
    text_type = "qwen3"

    def __init__(self, text_config: Any = None, audio_token_id: int = 151676, **others: Any):
        super().__init__(text_config=text_config, audio_token_id=audio_token_id, **others)
        self.text_config.tie_word_embeddings = others.get("tie_word_embeddings", True)  # whatever its own part says


class ChunkEncoder(AudioEncoder):
    """The layers of a Whisper-shaped encoder above three convolutions over time and bins of each chunk of a clip."""

    def __init__(self, config: EncoderConfig, chunk_frames: int, channels: int):
        super().__init__(config)
        del self.conv1, self.conv2
        self.chunk_frames, self.chunk_positions = chunk_frames, -(-chunk_frames // 8)
        self.conv2d1 = HalvingConv2d(1, channels)
        self.conv2d2, self.conv2d3 = HalvingConv2d(channels, channels), HalvingConv2d(channels, channels)
        self.conv_out = Linear(channels * -(-config.num_mel_bins // 8), config.hidden_size, bias=False)
        self.table = Tensor(sinusoids(self.chunk_positions, config.hidden_size))

    def begin(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        """What the first layer takes: the windows of all clips as so many clips, (windows, positions, hidden_size)."""
        clips, bins, frames = input_features.shape
        x = input_features.astype(self.conv_out.weight.dtype)
        x = ops.transpose(x.reshape((clips, bins, -1, self.chunk_frames)), (0, 2, 1, 3))
        x = x.reshape((-1, bins, self.chunk_frames, 1))
        x = ops.gelu(self.conv2d3(ops.gelu(self.conv2d2(ops.gelu(self.conv2d1(x))))))  # (chunks, bins, time, channels)
        x = ops.transpose(x, (0, 2, 3, 1)).reshape((-1, self.chunk_positions, self.conv_out.weight.shape[1]))
        x = self.conv_out(x) + self.table.astype(x.dtype)
        return x.reshape((clips * frames // self.window_frames, -1, x.shape[2]))

    def positions(self, frames: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """How many positions the layers see of so many mel frames."""
        return frames // self.chunk_frames * self.chunk_positions + (frames % self.chunk_frames + 7) // 8


class Qwen3ASRForConditionalGeneration(WindowedModel, GenerationMixin):
    """Qwen3-ASR on MindSpore: `from_pretrained`, `construct` (logits and loss) and `generate`.

    It loads transformers' layout and Qwen's own, whose parts are below "thinker", and saves the former.
    """

    config_class = Qwen3ASRConfig
    audio_inputs = ("input_features", "input_features_mask")
    saved_prefixes = (
        ("model.audio_tower.ln_post.", "audio_tower.layer_norm."),
        ("model.audio_tower.", "audio_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )
    weight_prefixes = (
        ("audio_tower.ln_post.", "audio_tower.layer_norm."),
        ("thinker.audio_tower.ln_post.", "audio_tower.layer_norm."),
        ("thinker.audio_tower.proj1.", "multi_modal_projector.linear_1."),
        ("thinker.audio_tower.proj2.", "multi_modal_projector.linear_2."),
        ("thinker.audio_tower.", "audio_tower."),
        ("thinker.model.", "language_model.model."),
        ("thinker.lm_head.", "language_model.lm_head."),
    )
    adapter_prefixes = AudioFlamingo3ForConditionalGeneration.adapter_prefixes

    def __init__(self, config: Qwen3ASRConfig):
        refuse_fields(config, "config.json")
        audio, chunk = config.audio_config, 2 * config.audio_config.n_window
        if chunk < 8 or audio.n_window_infer % chunk or audio.n_window_infer % 8:
            raise ValueError(
                f"audio_config.n_window_infer {audio.n_window_infer} must be a multiple of 8 and of a chunk, which has "
                f"2 * n_window = {chunk} frames: correct config.json"
            )
        windows = {"window_frames": audio.n_window_infer, "key_bias": True}
        encoder = encoder_config(audio, pool_pairs=False, mask_padding=True, **windows)
        decoder = decoder_config(config.text_config)
        tower = ChunkEncoder(encoder, chunk, audio.downsample_hidden_size)
        projector = Projector(encoder.hidden_size, audio.output_dim, bias=True, inner=encoder.hidden_size)
        super().__init__(config, tower, projector, Decoder(decoder), config.audio_token_id)

    @classmethod
    def published_config(cls, stored: dict, folder: Path) -> dict:
        """config.json in transformers' layout."""
        if "thinker_config" not in stored:
            return stored
        thinker = stored["thinker_config"]
        text = {**thinker["text_config"], "model_type": "qwen3"}
        for name in ("rope_scaling", "rope_parameters"):  # of audio and text all three positions are the same
            rope = text.pop(name, None) or {}
            text["rope_theta"] = rope.get("rope_theta") or text.get("rope_theta", 1_000_000)
        audio = {**thinker["audio_config"], "model_type": "qwen3_asr_encoder"}
        config = {"model_type": "qwen3_asr", "audio_config": audio, "text_config": text}
        return config | {name: thinker[name] for name in ("audio_token_id", "tie_word_embeddings") if name in thinker}

    @property
    def audio_dtype(self):
        """That of the encoder's weights."""
        return self.audio_tower.conv_out.weight.dtype


class Qwen3ASRProcessor(AudioTextProcessor, ProcessorMixin):
    """Audio to model inputs and answers to text, in the file formats of transformers 5 and of Qwen's own repositories.

    Given clips, of which one of less than half a second is filled up to that, `__call__` returns `input_features`:
    float32 `[clips, mels, frames]` of the longest in whole seconds, zero behind each, and `input_features_mask`: int32
    `[clips, frames]`, 1 where a frame is audio. The tokenizer given is set to pad on the left, as generation needs.
    """

    attributes = ["feature_extractor", "tokenizer"]
    feature_extractor_class = "WhisperFeatureExtractor"
    tokenizer_class = "AutoTokenizer"
    frames_transcriptions = True
    questions = {"transcribe": ""}  # it is asked nothing
    longest_clip = 1200.0  # s: what its makers transcribe at a time

    def __init__(self, feature_extractor=None, tokenizer=None, chat_template=None, timestamp_segment_time=80):
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.timestamp_segment_time = timestamp_segment_time  # of another model of theirs, which aligns words
        self.audio_token = getattr(tokenizer, "audio_token", None) or "<|audio_pad|>"
        self.audio_bos_token = getattr(tokenizer, "audio_bos_token", None) or "<|audio_start|>"
        self.audio_eos_token = getattr(tokenizer, "audio_eos_token", None) or "<|audio_end|>"
        self.audio_token_id = self._token_id(self.audio_token)
        self.around_audio = self._token_id(self.audio_bos_token), self._token_id(self.audio_eos_token)
        self.tokenizer.padding_side = "left"

    @property
    def placeholder(self) -> str:
        """What stands for a clip in a raw prompt."""
        return self.audio_bos_token + self.audio_token + self.audio_eos_token

    def transcription(self, answer: str) -> str:
        """What was said, without the language before it."""
        return answer.rpartition(_TEXT)[2].strip()

    def language(self, answer: str) -> str | None:
        """The language that an answer begins with, such as "English"; None where nobody speaks, or it was given."""
        before, found, _ = answer.rpartition(_TEXT)
        name = before.strip().removeprefix("language").strip()
        return name if found and name not in ("", "None") else None

    def transcription_inputs(
        self, clips: list[np.ndarray], *, language: str | None, chat: bool = True, prompt: str | None = None
    ) -> BatchFeature:
        """Model inputs that ask for what is said in each clip.

        language: a code such as "en", or a name of `LANGUAGES`; None: the model hears it. prompt: words that may be
        said, such as names. Raises `ValueError` for another language.
        """
        names = {name.lower(): name for name in LANGUAGES.values()} | LANGUAGES
        if language is not None and language.lower() not in names:
            raise refusal("language", f"={language!r:.40} is none of this model: known are {', '.join(LANGUAGES)}")
        system = [{"role": "system", "content": [{"type": "text", "text": prompt}]}] if prompt else []
        chats = [[*system, {"role": "user", "content": [{"type": "audio", "audio": clip}]}] for clip in clips]
        texts = self.apply_chat_template(chats, add_generation_prompt=True)
        told = "" if language is None else f"language {names[language.lower()]}{_TEXT}"
        return self([text + told for text in texts], clips)

    def _extract(self, clips: list[np.ndarray], truncation: bool) -> tuple[dict[str, np.ndarray], list[int]]:
        fitting = self._fitting(clips, self.longest_clip, truncation)
        filled = [np.pad(clip, (0, max(0, _SHORTEST - len(clip)))) for clip in fitting]
        features = [log_mel(clip, self.feature_extractor) for clip in filled]
        frames = np.array([each.shape[1] for each in features])
        width = -(-frames.max() // _CHUNK) * _CHUNK
        padded = [np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in features]
        mask = (np.arange(width) < frames[:, None]).astype(np.int32)
        counts = (frames // _CHUNK * 13 + (frames % _CHUNK + 7) // 8).tolist()
        return {"input_features": np.stack(padded), "input_features_mask": mask}, counts


MODEL, PROCESSOR = Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

"""Qwen2.5-Omni's thinker (arXiv 2503.20215): Qwen2-Audio's encoder in windows of 2 s, one linear map, a Qwen2 decoder.

It hears and writes. What it sees with (`visual`) and what speaks its answers (`talker`, `token2wav`) are not read.
"""

import numpy as np
from transformers import ProcessorMixin
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig

from mindone_audio.backbone.config_fields import refuse_fields
from mindone_audio.backbone.decoder import Decoder
from mindone_audio.backbone.encoder import AudioEncoder
from mindone_audio.backbone.published_config import decoder_config, encoder_config
from mindone_audio.backbone.windowed_model import WindowedModel
from mindone_audio.generation import GenerationMixin
from mindone_audio.inputs.processor import AudioTextProcessor
from mindone_audio.models.qwen2_audio import Projector, audio_token_count

CHECKPOINTS = ("Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen2.5-Omni-3B")
PROVED = "float32 on CPU against transformers 4.57 (PyTorch, model and processor), with small random models"

# Parts of a repository that the thinker does not hear or write with, as it names them itself or below "thinker.".
_UNREAD = ("visual.", "audio_tower.audio_bos_eos_token.", "talker.", "token2wav.")
_THINKER = "thinker."


class Qwen2_5OmniThinkerForConditionalGeneration(WindowedModel, GenerationMixin):
    """Qwen2.5-Omni's thinker on MindSpore: `from_pretrained`, `construct` (logits and loss) and `generate`.

    It loads a whole Omni checkpoint and one of the thinker alone, and saves the latter. A clip may have any number of
    frames: windows of two seconds are heard each by itself, so that long clips are encoded in several rows.
    """

    config_class = Qwen2_5OmniThinkerConfig
    weight_prefixes = tuple(
        (prefix + on_disk, here)
        for prefix in ("", _THINKER)  # as it is saved, and as it is published
        for on_disk, here in (
            ("audio_tower.proj.", "multi_modal_projector.linear."),
            ("audio_tower.ln_post.", "audio_tower.layer_norm."),
            ("audio_tower.", "audio_tower."),
            ("model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
        )
    )

    def __init__(self, config: Qwen2_5OmniThinkerConfig):
        refuse_fields(config, "config.json")
        window = 2 * config.audio_config.n_window
        encoder = encoder_config(config.audio_config, pool_pairs=True, mask_padding=True, window_frames=window)
        decoder = decoder_config(config.text_config)
        projector = Projector(encoder.hidden_size, decoder.hidden_size)
        super().__init__(config, AudioEncoder(encoder), projector, Decoder(decoder), config.audio_token_id)

    @classmethod
    def unread(cls, names: set[str]) -> set[str]:
        """What sees and speaks."""
        return {name for name in names if name.removeprefix(_THINKER).startswith(_UNREAD)}


class Qwen2_5OmniProcessor(AudioTextProcessor, ProcessorMixin):
    """Text and audio to model inputs, and tokens back to text, from the files of Qwen2_5OmniProcessor, without images.

    Given clips, of as many seconds as the feature extractor takes (300 as published), `__call__` returns
    `input_features`: float32 `[clips, mels, frames]` of the longest clip, and `feature_attention_mask`: int32
    `[clips, frames]`, 1 where a frame is audio. The tokenizer given is set to pad on the left, as generation needs.
    """

    attributes = ["feature_extractor", "tokenizer"]
    feature_extractor_class = "WhisperFeatureExtractor"
    tokenizer_class = "AutoTokenizer"
    questions = {"caption": "Describe the audio.", "transcribe": "Transcribe the audio."}
    transcription_window = 30.0  # s, of what it takes: the published guides transcribe clips of such lengths

    def __init__(self, feature_extractor=None, tokenizer=None, chat_template=None):
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.audio_token = getattr(self.tokenizer, "audio_token", "<|AUDIO|>")
        self.audio_bos_token = getattr(self.tokenizer, "audio_bos_token", "<|audio_bos|>")
        self.audio_eos_token = getattr(self.tokenizer, "audio_eos_token", "<|audio_eos|>")
        self.audio_token_id = self._token_id(self.audio_token)
        self.tokenizer.padding_side = "left"

    @property
    def placeholder(self) -> str:
        """What stands for a clip in a raw prompt."""
        return self.audio_bos_token + self.audio_token + self.audio_eos_token

    def _extract(self, clips: list[np.ndarray], truncation: bool) -> tuple[dict[str, np.ndarray], list[int]]:
        fitting = self._fitting(clips, self.feature_extractor.chunk_length, truncation)
        features = self._log_mels_of_longest(fitting, "feature_attention_mask")
        return features, [audio_token_count(int(frames)) for frames in features["feature_attention_mask"].sum(-1)]


MODEL, PROCESSOR = Qwen2_5OmniThinkerForConditionalGeneration, Qwen2_5OmniProcessor

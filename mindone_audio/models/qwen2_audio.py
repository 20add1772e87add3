"""Qwen2-Audio (arXiv 2407.10759): a Whisper encoder pooled to 25 frames a second, one linear map, a Qwen2 decoder."""

import re
from typing import Any

import numpy as np
import transformers
from mindspore import Tensor, nn
from transformers import Qwen2AudioConfig

from mindone_audio.backbone.audio_language_model import AudioLanguageModel
from mindone_audio.backbone.config_fields import refuse_fields
from mindone_audio.backbone.decoder import Decoder
from mindone_audio.backbone.encoder import AudioEncoder
from mindone_audio.backbone.layers import Linear
from mindone_audio.backbone.published_config import decoder_config, encoder_config
from mindone_audio.generation import GenerationMixin
from mindone_audio.inputs.processor import AudioTextProcessor

CHECKPOINTS = ("Qwen/Qwen2-Audio-7B", "Qwen/Qwen2-Audio-7B-Instruct")
PROVED = "float32 on CPU against transformers 4.57 and 5.23 (PyTorch): small random models and the bundled trained one"

END_OF_TURN = "<|im_end|>"


class Projector(nn.Cell):
    """One linear map from the encoder's width to the decoder's."""

    def __init__(self, audio_width: int, text_width: int):
        super().__init__()
        self.linear = Linear(audio_width, text_width, bias=True)

    def construct(self, audio: Tensor) -> Tensor:
        return self.linear(audio)


class Qwen2AudioForConditionalGeneration(AudioLanguageModel, GenerationMixin):
    """Qwen2-Audio on MindSpore: `from_pretrained`, `construct` (logits and loss) and `generate`."""

    config_class = Qwen2AudioConfig

    def __init__(self, config: Qwen2AudioConfig):
        refuse_fields(config, "config.json")
        encoder = encoder_config(config.audio_config, pool_pairs=True, mask_padding=True)
        decoder = decoder_config(config.text_config)
        projector = Projector(encoder.hidden_size, decoder.hidden_size)
        super().__init__(config, AudioEncoder(encoder), projector, Decoder(decoder), config.audio_token_index)


def audio_token_count(mel_frames: int) -> int:
    """Audio embeddings for `mel_frames` log-mel frames: the encoder's strided convolution, then its pooling by 2."""
    return ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1


class Qwen2AudioProcessor(AudioTextProcessor, transformers.Qwen2AudioProcessor):
    """Text and audio to model inputs, and tokens back to text.

    Given clips, `__call__` returns `input_features`: float32 `[clips, mels, frames]`, and `feature_attention_mask`:
    int32 `[clips, frames]`, 1 where a frame is audio. The tokenizer given is set to pad on the left, as generation
    needs; for training set `processor.tokenizer.padding_side = "right"` or pass `padding_side="right"`.
    """

    questions = {"caption": "Generate the caption in English:", "transcribe": "What does the person say?"}

    def __init__(
        self,
        feature_extractor=None,
        tokenizer=None,
        chat_template=None,
        audio_token="<|AUDIO|>",
        audio_bos_token="<|audio_bos|>",
        audio_eos_token="<|audio_eos|>",
    ):
        # transformers reads this signature to save and load: it must spell out the same parameters.
        super().__init__(feature_extractor, tokenizer, chat_template, audio_token, audio_bos_token, audio_eos_token)
        self.audio_token_id = self._token_id(self.audio_token)
        self.tokenizer.padding_side = "left"

    def answers_chats(self, generation_config: Any) -> bool:
        """A model that ends with `<|im_end|>`, the end of a turn, was tuned for chats; the base model does not."""
        eos = generation_config.eos_token_id
        return self.tokenizer.convert_tokens_to_ids(END_OF_TURN) in (eos if isinstance(eos, list) else [eos])

    @property
    def placeholder(self) -> str:
        """What stands for a clip in a raw prompt."""
        return self.audio_bos_token + self.audio_token + self.audio_eos_token

    def _extract(self, clips: list[np.ndarray], truncation: bool) -> tuple[dict[str, np.ndarray], list[int]]:
        fitting = self._fitting(clips, self.feature_extractor.chunk_length, truncation)
        features = self._log_mels(fitting, "feature_attention_mask")
        return features, [audio_token_count(int(frames)) for frames in features["feature_attention_mask"].sum(-1)]

    def _expand(self, texts: list[str], counts: list[int]) -> list[str]:
        """Write each placeholder `counts[i]` times; one that has neither its begin nor its end token gets both."""
        bos, token, eos = self.audio_bos_token, self.audio_token, self.audio_eos_token
        pattern = re.compile(f"({re.escape(bos)})?{re.escape(token)}({re.escape(eos)})?")
        remaining = iter(counts)

        def expanded(match: re.Match) -> str:
            before, after = match.groups(default="") if any(match.groups()) else (bos, eos)
            return before + token * next(remaining) + after

        return [pattern.sub(expanded, item) for item in texts]


MODEL, PROCESSOR = Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

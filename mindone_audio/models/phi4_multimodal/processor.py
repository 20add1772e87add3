"""Phi-4-multimodal's processor: prompts with clips to tokens and log-mels, without PyTorch and without images."""

import os
import re
from typing import Any

import numpy as np
from scipy.signal.windows import hamming
from transformers import AutoTokenizer, Phi4MultimodalFeatureExtractor, ProcessorMixin

from mindone_audio.inputs.processor import AudioTextProcessor, StringContent, as_texts
from mindone_audio.models.phi4_multimodal.encoder import REDUCTION
from mindone_audio.weights import hub

_PUBLISHED_PLACEHOLDER = re.compile(r"<\|audio_\d+\|>")
_PUBLISHED_TOKEN = "<|endoftext11|>"  # what Microsoft's processor writes for each of them
_FULL_SCALE = 32768
_BLOCK_FRAMES = 2000  # at a time


class Phi4MultimodalProcessor(AudioTextProcessor, StringContent, ProcessorMixin):
    """Text and audio to model inputs, and tokens back to text, from the files of Phi4MultimodalProcessor.

    A clip is `<|audio_1|>`, `<|audio_2|>`, ... or the tokenizer's own token in a prompt; none is too long. Given clips,
    `__call__` returns `audio_input_features` float32 `[clips, frames, mels]`, `audio_attention_mask` bool `[clips,
    frames]`, true where a frame is audio, and `audio_embed_sizes` int64 `[clips]`, tokens of each. The tokenizer given
    is set to pad on the left, as generation needs.
    """

    attributes = ["feature_extractor", "tokenizer"]
    feature_extractor_class = "Phi4MultimodalFeatureExtractor"
    tokenizer_class = "AutoTokenizer"
    questions = {"caption": "Describe the audio.", "transcribe": "Transcribe the audio clip into text."}
    beside_clips = ""
    longest_clip = None
    transcription_window = 30.0  # s: the model was trained with up to 40 s of speech to transcribe

    def __init__(self, feature_extractor, tokenizer, chat_template=None):
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.audio_token = getattr(tokenizer, "audio_token", None) or _PUBLISHED_TOKEN
        self.audio_token_id = self._token_id(self.audio_token)
        self.tokenizer.padding_side = "left"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **download: Any):
        """Load a processor of either layout, from a folder or a Hugging Face repository."""
        name = pretrained_model_name_or_path
        with hub.processor_files(name, **download):
            extractor = Phi4MultimodalFeatureExtractor.from_pretrained(name, **download)
            return cls(extractor, AutoTokenizer.from_pretrained(name, **download))

    def _arguments(self, text: Any, *others: Any) -> tuple[list[str], list[np.ndarray]]:
        texts = [_PUBLISHED_PLACEHOLDER.sub(lambda _: self.audio_token, item) for item in as_texts(text)]
        return super()._arguments(texts, *others)

    def _extract(self, clips: list[np.ndarray], truncation: bool) -> tuple[dict[str, np.ndarray], list[int]]:
        extractor = self.feature_extractor
        self._require_samples(clips, extractor.win_length)
        features = [log_mels(clip, extractor) for clip in clips]
        frames = np.array([len(each) for each in features])
        padded = [np.pad(each, ((0, frames.max() - len(each)), (0, 0))) for each in features]
        counts = -(-frames // REDUCTION)
        found = {
            "audio_input_features": np.stack(padded),
            "audio_embed_sizes": counts,
            "audio_attention_mask": np.arange(frames.max()) < frames[:, None],
        }
        return found, counts.tolist()


def log_mels(clip: np.ndarray, extractor: Phi4MultimodalFeatureExtractor) -> np.ndarray:
    """Natural logarithms of mel energies: samples float [samples] to float32 [frames, mels].

    The formula is that of transformers' feature extractor: frames without padding, each pre-emphasised by itself, a
    Hamming window, and a floor of 1 below the logarithm, of samples as 16-bit integers.
    """
    frames = np.lib.stride_tricks.sliding_window_view(clip, extractor.win_length)[:: extractor.hop_length]
    window, filters = hamming(extractor.win_length), extractor.mel_filters.astype(np.float32)
    blocks = []
    for start in range(0, len(frames), _BLOCK_FRAMES):
        own = frames[start : start + _BLOCK_FRAMES].astype(np.float32)
        before = np.concatenate([own[:, :1], own[:, :-1]], 1)
        emphasised = (own - np.float32(extractor.preemphasis) * before) * np.float32(_FULL_SCALE)
        spectra = np.fft.rfft(emphasised * window, n=extractor.n_fft).astype(np.complex64)
        blocks.append(np.log(np.maximum(np.abs(spectra) ** 2 @ filters, np.float32(1))))
    return np.concatenate(blocks)

"""SpeechT5's processor: texts to characters' tokens, clips to samples, tokens to text."""

import os
from typing import Any

import numpy as np
import transformers
from transformers import BatchFeature, PreTrainedTokenizerFast, SpeechT5FeatureExtractor
from transformers.models.speecht5.number_normalizer import EnglishNumberNormalizer

from mindone_audio.inputs.audio import load_clips
from mindone_audio.inputs.processor import AudioTextProcessor, as_list, as_texts
from mindone_audio.setting_fields import refusal
from mindone_audio.weights import hub


class SpeechT5Processor(AudioTextProcessor, transformers.SpeechT5Processor):
    """Texts to be spoken, or clips and transcripts, to model inputs. Needs no PyTorch.

    The published checkpoints have a sentencepiece model of characters, which takes the package sentencepiece (it comes
    with MindONE, and has wheels for x86-64 and aarch64). Where there is a tokenizer.json, that is read instead.
    """

    keywords = ("sampling_rate", "normalize", "return_tensors")
    tokenizer_keywords = ()
    tokenizer_class = ("SpeechT5Tokenizer", "PreTrainedTokenizerFast")

    def __init__(self, feature_extractor, tokenizer):
        # transformers reads this signature to save and load: it must spell out the same parameters.
        super().__init__(feature_extractor, tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **download: Any):
        """Load a processor from a folder or a Hugging Face repository.

        Raises `OSError` where a file is missing or cannot be read, and `ImportError` where there is only a
        sentencepiece model and no package sentencepiece.
        """
        name = pretrained_model_name_or_path
        with hub.processor_files(name, **download):
            extractor = SpeechT5FeatureExtractor.from_pretrained(name, **download)
            slow = hub.only_sentencepiece(name, **download)
            tokenizer_class = transformers.SpeechT5Tokenizer if slow else PreTrainedTokenizerFast
            tokenizer = tokenizer_class.from_pretrained(name, **download)
        return cls(extractor, tokenizer)

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        *,
        sampling_rate: int | None = None,
        normalize: bool | None = None,
        return_tensors: str = "np",
        **unknown: Any,
    ) -> BatchFeature:
        """Tokens of texts, or samples of clips, with the texts as what is said in them.

        text: one text, or a list of them. audio: one clip or a list of them, anything that `mindone_audio.load_audio`
        takes; an array must be at the feature extractor's rate. normalize: spell English numbers in words, None for
        what the tokenizer says (published ones: no). sampling_rate: of arrays, in Hz, for checking only.

        Returns:
            Of texts `input_ids` and `attention_mask`, int64 `[texts, length]`; of clips `input_values` float32 `[clips,
            samples]`, each clip with mean 0 and variance 1 where the feature extractor has `do_normalize`, and
            `attention_mask` int32 `[clips, samples]`; with both the latter and `labels`, int64 `[clips, length]`, -100
            for padding.

        Raises `TypeError` for another keyword, `AudioError` for a clip that cannot be read, `ValueError` for an empty
        text, for characters that the tokenizer does not have, and for another value that cannot be.
        """
        self._check_keywords(sampling_rate, return_tensors, unknown)
        if audio is None and text is None:
            raise ValueError("neither text nor audio was given: pass texts to speak, or clips")
        encoded = None if text is None else self._encoded(as_texts(text), normalize)
        if audio is None:
            return BatchFeature(encoded)
        clips = load_clips(as_list(audio), self.feature_extractor.sampling_rate)
        self._require_samples(clips, 1)
        data = self._samples(clips)
        if encoded is not None:
            if len(encoded["input_ids"]) != len(clips):
                raise ValueError(f"{len(encoded['input_ids'])} texts for {len(clips)} clips: give one for each")
            data["labels"] = np.where(encoded["attention_mask"] == 0, -100, encoded["input_ids"])
        return BatchFeature(data)

    def _encoded(self, texts: list[str], normalize: bool | None) -> dict[str, np.ndarray]:
        if normalize is None:
            normalize = getattr(self.tokenizer, "normalize", None) or self.tokenizer.init_kwargs.get("normalize")
        if normalize:
            texts = list(map(EnglishNumberNormalizer(), texts))
        for place, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"text {place} is empty: leave it out")
            if unknown := self._unknown(text):
                names = ", ".join(f"{character!r}" for character in unknown)
                advice = "spell them, or normalize=True for numbers" if any(map(str.isdigit, unknown)) else "spell them"
                raise ValueError(
                    f"text {place}, {text[:60]!r}, has what the tokenizer does not know: {names}: {advice}"
                )
        more = {} if isinstance(self.tokenizer, PreTrainedTokenizerFast) else {"normalize": False}
        encoded = self.tokenizer(texts, padding=True, return_attention_mask=True, **more)
        return {name: np.asarray(encoded[name], np.int64) for name in ("input_ids", "attention_mask")}

    def transcript_tokens(self, text: str) -> list[int]:
        """As for other families. Raises `ValueError` for characters that the tokenizer does not have."""
        ids = self._encoded([text], None)["input_ids"][0].tolist()
        return ids[:-1] if ids[-1] == self.tokenizer.eos_token_id else ids

    def transcript_clips(self, clips: list[np.ndarray]) -> BatchFeature:
        """The inputs of clips that are learned from."""
        return self(audio=clips)

    def _unknown(self, text: str) -> list[str]:
        """Characters of a text that become the unknown token, each once."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or unknown not in self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            return []
        alone = [c for c in dict.fromkeys(text) if unknown in self.tokenizer(c, add_special_tokens=False)["input_ids"]]
        return alone or [text]

    def _samples(self, clips: list[np.ndarray]) -> dict[str, np.ndarray]:
        if self.feature_extractor.do_normalize:
            clips = self.feature_extractor.zero_mean_unit_var_norm(clips, None)
        longest = max(map(len, clips))
        lengths = np.array(list(map(len, clips)))
        return {
            "input_values": np.stack([np.pad(clip, (0, longest - len(clip))) for clip in clips]).astype(np.float32),
            "attention_mask": (np.arange(longest) < lengths[:, None]).astype(np.int32),
        }

    longest_clip = None  # the encoder takes clips of any length
    transcription_window = 20.0  # seconds: it was trained with single sentences

    def transcription_inputs(
        self, clips: list[np.ndarray], *, language: str | None, chat: bool, prompt: str | None = None
    ) -> BatchFeature:
        """Model inputs that ask for what is said in each clip. Raises `ValueError` for another language than that of
        the checkpoint, which is English in published ones, and for a prompt."""
        if language is not None and language.lower() not in ("en", "english"):
            raise refusal("language", f"={language!r:.40}: this model family writes English alone: leave it out")
        if prompt is not None:
            raise refusal("prompt", f"={prompt!r:.40}: this model family takes no words beside the clip: leave it out")
        return self(audio=clips)

    def conversation_inputs(self, conversations: list, **keywords: Any) -> BatchFeature:
        """Raises `ValueError`: SpeechT5 speaks, or writes down what is said."""
        raise ValueError("a SpeechT5 model answers no questions: it speaks texts, or transcribes clips")

    apply_chat_template = conversation_inputs

"""SeamlessM4T v2's processor: texts to tokens, clips to features, tokens to text."""

import os
import re
from typing import Any

import numpy as np
import transformers
from transformers import BatchFeature, SeamlessM4TFeatureExtractor, SeamlessM4TTokenizerFast

from mindone_audio.inputs.audio import load_clips
from mindone_audio.inputs.processor import AudioTextProcessor, as_sources, as_texts
from mindone_audio.setting_fields import refusal
from mindone_audio.weights import hub

_LANGUAGE = re.compile("__[a-z]{3}(_[A-Za-z]+)?__")  # the token of one, such as __eng__ and __cmn_Hant__
_FRAME, _HOP = 400, 160  # samples that a frame of the features is made of, and from one to the next


class SeamlessM4TProcessor(AudioTextProcessor, transformers.SeamlessM4TProcessor):
    """Texts or clips to model inputs. Needs no PyTorch.

    The published checkpoint has a sentencepiece model, which takes the package sentencepiece (it comes with MindONE).
    What `save_pretrained` writes has a tokenizer.json, which does not.

    Features are those of transformers' feature extractor: log energies of 80 mel bands, each band of a clip with mean 0
    and variance 1, two frames of 10 ms side by side.
    """

    keywords = ("src_lang", "tgt_lang", "sampling_rate", "return_tensors")
    tokenizer_keywords = ()

    def __init__(self, feature_extractor, tokenizer):
        # transformers reads this signature to save and load: it must spell out the same parameters.
        super().__init__(feature_extractor, tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **download: Any):
        """Load a processor from a folder or a Hugging Face repository.

        Raises `OSError` where a file is missing or cannot be read, or the package sentencepiece is missing.
        """
        name = pretrained_model_name_or_path
        with hub.processor_files(name, **download):
            hub.only_sentencepiece(name, **download)  # which is converted to the same class, by that package
            extractor = SeamlessM4TFeatureExtractor.from_pretrained(name, **download)
            return cls(extractor, SeamlessM4TTokenizerFast.from_pretrained(name, **download))

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        audios: Any = None,
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        sampling_rate: int | None = None,
        return_tensors: str = "np",
        **unknown: Any,
    ) -> BatchFeature:
        """Tokens of texts, or features of clips.

        text: one text, or a list of them, in the language src_lang, as "eng" or "__eng__"; None: English. tgt_lang: of
        no effect on texts that are read; give it to `generate`. audio: one clip or a list of them, anything that
        `mindone_audio.load_audio` takes, in any language; an array must be at the feature extractor's rate. `audios` is
        its older name. sampling_rate: of arrays, in Hz, for checking only.

        Returns:
            Of texts `input_ids` and `attention_mask`, int64 `[texts, length]`; of clips `input_features` float32
            `[clips, frames, 160]` and `attention_mask` int64 `[clips, frames]`.

        Raises `TypeError` for another keyword, `AudioError` for a clip that cannot be read or is too short,
        `ValueError` for an empty text, for a language that the tokenizer does not have, and for another value that
        cannot be.
        """
        self._check_keywords(sampling_rate, return_tensors, unknown)
        for name, language in (("src_lang", src_lang), ("tgt_lang", tgt_lang)):
            self.check_language(name, language)
        sources = as_sources(audio, audios)
        if (text is None) == (not sources):
            both = "both" if sources else "neither"
            raise ValueError(f"{both} of text and audio were given: pass texts to read, or clips to listen to")
        if text is None:
            return BatchFeature(self._features(load_clips(sources, self.feature_extractor.sampling_rate)))
        texts = as_texts(text)
        for place, one in enumerate(texts):
            if not one.strip():
                raise ValueError(f"text {place} is empty: leave it out")
        self.tokenizer.src_lang = src_lang or "eng"
        encoded = self.tokenizer(texts, return_attention_mask=True)
        return BatchFeature({name: np.asarray(encoded[name], np.int64) for name in ("input_ids", "attention_mask")})

    @property
    def languages(self) -> list[str]:
        """Codes of the languages that the tokenizer has, such as "eng"."""
        return sorted(token[2:-2] for token in self.tokenizer.get_vocab() if _LANGUAGE.fullmatch(token))

    def check_language(self, name: str, language: Any, needed: bool = False) -> None:
        """`SettingError` for a language that is no token, with those that are. needed: None is none either."""
        if language is None and not needed:
            return
        token = f"__{language.replace('__', '')}__" if isinstance(language, str) else ""
        if not _LANGUAGE.fullmatch(token) or self.tokenizer.convert_tokens_to_ids(token) == self.tokenizer.unk_token_id:
            wrong = " is missing" if language is None else f"={language!r:.40} is no language of this tokenizer"
            raise refusal(name, f"{wrong}: known are {', '.join(self.languages)}")

    def _features(self, clips: list[np.ndarray]) -> dict[str, np.ndarray]:
        stride = self.feature_extractor.stride
        self._require_samples(clips, _FRAME + (stride - 1) * _HOP)
        found = self.feature_extractor(
            clips, sampling_rate=self.feature_extractor.sampling_rate, return_tensors="np", return_attention_mask=True
        )
        return {
            "input_features": found["input_features"].astype(np.float32),
            "attention_mask": found["attention_mask"].astype(np.int64),
        }

    english = "eng"
    longest_clip = None  # the encoder takes clips of any length
    transcription_window = 30.0  # seconds: it was trained with single sentences

    def transcription_inputs(
        self, clips: list[np.ndarray], *, language: str | None, chat: bool, prompt: str | None = None
    ) -> BatchFeature:
        """Model inputs that ask for what is said in each clip, in a language. Raises `ValueError` without one, and for
        a prompt."""
        if prompt is not None:
            raise refusal("prompt", f"={prompt!r:.40}: this model family takes no words beside the clip: leave it out")
        self.check_language("language", language, needed=True)
        return BatchFeature({**self(audio=clips), "tgt_lang": language})

    def conversation_inputs(self, conversations: list, **keywords: Any) -> BatchFeature:
        """Raises `ValueError`: SeamlessM4T translates, and answers no questions."""
        raise ValueError("a SeamlessM4T model answers no questions: it translates texts and speech, and transcribes")

    apply_chat_template = conversation_inputs

"""Whisper's processor: clips to log-mels, texts to labels, tokens to text."""

from typing import Any

import numpy as np
import transformers
from transformers import BatchFeature

from mindone_audio.inputs.audio import fit_window, load_clips
from mindone_audio.inputs.log_mel import log_mels
from mindone_audio.inputs.processor import AudioTextProcessor, as_list

_PADDINGS = ("max_length", "longest", True)


class WhisperProcessor(AudioTextProcessor, transformers.WhisperProcessor):
    """Clips and transcripts to model inputs, and tokens back to text. Needs no PyTorch."""

    keywords = ("sampling_rate", "truncation", "padding", "return_attention_mask", "return_tensors")
    tokenizer_keywords = ()

    def __init__(self, feature_extractor=None, tokenizer=None):
        # transformers reads this signature to save and load: it must spell out the same parameters.
        super().__init__(feature_extractor, tokenizer)

    def __call__(
        self,
        audio: Any = None,
        text: str | list[str] | None = None,
        *,
        sampling_rate: int | None = None,
        truncation: bool = True,
        padding: str | bool = "max_length",
        return_attention_mask: bool = False,
        return_tensors: str = "np",
        **unknown: Any,
    ) -> BatchFeature:
        """Log-mels of clips, and the tokens of what is said in them.

        audio: one clip or a list of them, anything that `mindone_audio.load_audio` takes; an array must be at the
            feature extractor's rate. text: a transcript, or one for each clip.
        truncation: use the first 30 s of a longer clip; with False, and padding="longest", clips keep their length.
        padding: "max_length" fills each clip up to 30 s, "longest" to the longest one, or to 30 s where it is shorter.
        return_attention_mask: add which frames are audio. sampling_rate: of arrays, in Hz, for checking only.

        Returns:
            `input_features`: float32 `[clips, mels, frames]` and, if asked for, `attention_mask` int32 `[clips,
            frames]`; with text too `labels`, int64 `[clips, length]`, -100 for padding; text alone makes the
            tokenizer's `input_ids` and `attention_mask`, int64.

        Raises `TypeError` for another keyword, `AudioError` for a clip that cannot be read, `ValueError` for a value
        that cannot be.
        """
        self._check_keywords(sampling_rate, return_tensors, unknown)
        if audio is None and text is None:
            raise ValueError("neither audio nor text was given: pass clips, their transcripts, or both")
        if padding not in _PADDINGS:
            raise ValueError(f'padding={padding!r}: use "max_length" (30 s) or "longest", with truncation=False')
        data: dict[str, np.ndarray] = {}
        if audio is not None:
            clips = load_clips(as_list(audio), self.feature_extractor.sampling_rate)
            self._require_samples(clips, 1)
            data |= self._features(clips, truncation, padding, return_attention_mask)
        if text is not None:
            encoded = self.tokenizer([text] if isinstance(text, str) else list(text), padding=True)
            ids, mask = (np.asarray(encoded[name], np.int64) for name in ("input_ids", "attention_mask"))
            if audio is None:
                return BatchFeature({"input_ids": ids, "attention_mask": mask})
            if len(ids) != len(data["input_features"]):
                raise ValueError(f"{len(ids)} texts for {len(data['input_features'])} clips: give one for each")
            data["labels"] = np.where(mask == 0, -100, ids)
        return BatchFeature(data)

    def _features(self, clips: list[np.ndarray], truncation: bool, padding: Any, masked: bool) -> dict[str, np.ndarray]:
        extractor = self.feature_extractor
        window = int(extractor.n_samples)
        if truncation:
            clips = [clip[:window] for clip in clips]
        longest = max(map(len, clips))
        samples = max(window, longest if padding != "max_length" or truncation else 0)
        if longest > samples:
            raise ValueError(
                f'a clip has {longest / extractor.sampling_rate:.1f} s: with truncation=False pass padding="longest"'
            )
        data = {"input_features": log_mels(clips, extractor, samples)}
        if masked:
            frames = np.array([-(-len(clip) // extractor.hop_length) for clip in clips])
            counted = np.arange(data["input_features"].shape[2])
            data["attention_mask"] = (counted < frames[:, None]).astype(np.int32)
        return data

    def transcript_clips(self, clips: list[np.ndarray]) -> BatchFeature:
        """The inputs of clips that are learned from. Raises `AudioError` for one that is longer than a window."""
        rate = self.feature_extractor.sampling_rate
        for clip in clips:
            fit_window(clip, self.feature_extractor.n_samples / rate, rate)
        return self(clips)

    @property
    def longest_clip(self) -> float | None:
        """None: the model goes through clips of any length by itself."""
        return None

    def conversation_inputs(self, conversations: list, **keywords: Any) -> BatchFeature:
        """Raises `ValueError`: Whisper writes down what is said."""
        raise ValueError("a Whisper model transcribes speech and answers no questions: use its generate")

    apply_chat_template = conversation_inputs

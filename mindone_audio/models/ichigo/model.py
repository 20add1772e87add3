"""Ichigo (arXiv 2410.15316): a plain Llama whose vocabulary has the tokens that WhisperVQ makes of sound."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, BatchFeature, LlamaConfig, WhisperFeatureExtractor

from mindone_audio.backbone.audio_language_model import AudioLanguageModel
from mindone_audio.backbone.decoder import Decoder
from mindone_audio.backbone.published_config import decoder_config
from mindone_audio.generation import GenerationMixin
from mindone_audio.inputs.processor import AudioTextProcessor
from mindone_audio.inputs.tools import ToolFormat, template_format
from mindone_audio.models.ichigo.whisper_vq import CONVERT, WhisperVQ
from mindone_audio.weights import hub

CHECKPOINTS = ("homebrewltd/Ichigo-llama3.1-s-instruct-v0.4",)
PROVED = "float32 on CPU against transformers 4.57's Llama (PyTorch) and whisperspeech, with small random models"

END_OF_TURN = 128009  # Llama 3's <|eot_id|>; the published configs name only the end of the text
SOUND_START, SOUND_END = "<|sound_start|>", "<|sound_end|>"


def sound_token(code: int) -> str:
    """The word for an entry of the codebook."""
    return f"<|sound_{code:04d}|>"


class IchigoForConditionalGeneration(AudioLanguageModel, GenerationMixin):
    """Ichigo on MindSpore: `from_pretrained`, `construct` (logits and loss) and `generate`, all of token ids alone.

    Any Llama 3.1 checkpoint of transformers loads, and what `save_pretrained` writes is one.
    """

    config_class = LlamaConfig
    audio_inputs = ()
    weight_prefixes = (("model.", "language_model.model."), ("lm_head.", "language_model.lm_head."))

    def __init__(self, config: LlamaConfig):
        super().__init__(config, None, None, Decoder(decoder_config(config)), audio_token_id=None)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **keywords):
        """As `AudioLanguageModel.from_pretrained`; generation also stops at the end of a turn, if there is a 128009."""
        model = super().from_pretrained(pretrained_model_name_or_path, **keywords)
        ends = model.generation_config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        if END_OF_TURN < model.config.vocab_size and END_OF_TURN not in ends:
            model.generation_config.eos_token_id = [*ends, END_OF_TURN]
        return model

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process=True, state_dict=None, **kwargs
    ) -> None:
        """Write a Llama checkpoint of transformers."""
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        if is_main_process:
            self.config.architectures = ["LlamaForCausalLM"]
            self.config.save_pretrained(save_directory)


class IchigoProcessor(AudioTextProcessor):
    """Text and audio to token ids, and ids back to text.

    In a raw prompt `<|audio|>` stands for a clip; it becomes `<|sound_start|>`, the clip's tokens and `<|sound_end|>`.
    The tokenizer given is set to pad on the left, as generation needs; for training set
    `processor.tokenizer.padding_side = "right"` or pass `padding_side="right"`.
    """

    audio_token = "<|audio|>"
    load_keywords = ("whisper_vq",)

    def __init__(self, tokenizer, whisper_vq: WhisperVQ):
        """Raises `ValueError` unless the tokenizer has a word for every entry of the codebook and no more."""
        size = whisper_vq.config["codebook_size"]
        words = [SOUND_START, SOUND_END, *map(sound_token, range(size))]
        vocabulary = tokenizer.get_vocab()
        if missing := [word for word in words if word not in vocabulary]:
            raise ValueError(
                f"the tokenizer lacks {len(missing)} of the {len(words)} sound tokens, first {missing[0]}: it is not "
                "that of an Ichigo model, or the WhisperVQ is another model's"
            )
        if sound_token(size) in vocabulary:
            raise ValueError(
                f"the tokenizer has {sound_token(size)} and WhisperVQ only {size} tokens: they are of different models"
            )
        self.tokenizer, self.whisper_vq = tokenizer, whisper_vq
        self.sound_token_ids = np.array([vocabulary[word] for word in words])
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    uses_device = True

    @classmethod
    def from_pretrained(
        cls, name_or_dir: str | os.PathLike, *, whisper_vq: WhisperVQ | str | os.PathLike | None = None, **download
    ) -> "IchigoProcessor":
        """Load the tokenizer of a checkpoint, and WhisperVQ.

        whisper_vq: the converted folder, a repository or the object; without it the checkpoint's subfolder
        "whisper_vq". download: as for `AutoProcessor`. Raises `FileNotFoundError` where there is no WhisperVQ.
        """
        hub.read_config(name_or_dir, **download)  # it says best what is wrong with a name
        with hub.processor_files(name_or_dir, extractor=False, **download):
            tokenizer = AutoTokenizer.from_pretrained(name_or_dir, **download)
        if whisper_vq is None:
            inside = {**download, "subfolder": os.path.join(download.get("subfolder", ""), "whisper_vq")}
            try:
                whisper_vq = hub.checkpoint_folder(name_or_dir, **inside)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{name_or_dir} has no folder whisper_vq, which makes tokens of audio: convert it once with "
                    f"`{CONVERT}`, then put it there or pass whisper_vq=FOLDER"
                ) from error
        if not isinstance(whisper_vq, WhisperVQ):
            whisper_vq = WhisperVQ.from_pretrained(whisper_vq)
        return cls(tokenizer, whisper_vq)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write the tokenizer, and WhisperVQ into the subfolder "whisper_vq"."""
        self.tokenizer.save_pretrained(save_directory)
        self.whisper_vq.save_pretrained(Path(save_directory) / "whisper_vq")

    @property
    def feature_extractor(self) -> WhisperFeatureExtractor:
        """What makes log-mels for WhisperVQ."""
        return self.whisper_vq.feature_extractor

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        *,
        audios: Any = None,
        sampling_rate: int | None = None,
        truncation: bool = False,
        return_tensors: str = "np",
        output_labels: bool = False,
        **tokenizer_kwargs: Any,
    ) -> BatchFeature:
        """Put the tokens of each clip in the place of its `<|audio|>`, and tokenize.

        Arguments and errors are those of `AudioTextProcessor`.

        Returns:
            `input_ids`, `attention_mask` and, if asked for, `labels`: int64 `[batch, length]`.
        """
        texts, clips = self._arguments(text, audio, audios, sampling_rate, return_tensors, tokenizer_kwargs)
        sounds = iter(self.whisper_vq.encode(clips, truncation=truncation))
        inputs = self._tokenize([self._expand(item, sounds) for item in texts], **tokenizer_kwargs)
        if output_labels:
            ignored = (inputs["attention_mask"] == 0) | np.isin(inputs["input_ids"], self.sound_token_ids)
            inputs["labels"] = np.where(ignored, -100, inputs["input_ids"])
        return BatchFeature(inputs)

    @property
    def tool_format(self) -> ToolFormat:
        """Llama's."""
        return template_format(self.tokenizer, self.tokenizer.chat_template)

    def _expand(self, text: str, sounds) -> str:
        """Write the next clip's tokens in the place of each placeholder."""
        first, *rest = text.split(self.audio_token)
        return first + "".join(
            SOUND_START + "".join(map(sound_token, next(sounds).tolist())) + SOUND_END + part for part in rest
        )

    def _render(self, conversation: list, chat_template: str | None, **settings: Any) -> str | list[str]:
        """By the tokenizer's template, which knows only text: elements are joined, a clip is its placeholder."""
        flat = [
            [self._flat(message) for message in item] if isinstance(item, (list, tuple)) else self._flat(item)
            for item in conversation
        ]
        return self.tokenizer.apply_chat_template(flat, chat_template=chat_template, tokenize=False, **settings)

    def _flat(self, message: dict) -> dict:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(self.audio_token if part["type"] == "audio" else part["text"] for part in content)
        return {**message, "content": content}


MODEL, PROCESSOR = IchigoForConditionalGeneration, IchigoProcessor

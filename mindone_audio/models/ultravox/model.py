"""Ultravox (github.com/fixie-ai/ultravox): a Whisper encoder, 8 frames stacked through a projector, any Llama.

Its checkpoints hold what was trained, the projector and at times the encoder. The rest comes from the models that
config.json names, `text_model_id` and `audio_model_id`, each a Hugging Face repository or a local folder.
"""

import dataclasses
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BatchFeature,
    PretrainedConfig,
    ProcessorMixin,
    WhisperFeatureExtractor,
)
from transformers.utils import cached_file

from mindone_audio.backbone import ops
from mindone_audio.backbone.audio_language_model import AudioLanguageModel
from mindone_audio.backbone.checkpoint_model import to_numpy
from mindone_audio.backbone.config_fields import refuse_fields
from mindone_audio.backbone.decoder import Decoder
from mindone_audio.backbone.encoder import AudioEncoder
from mindone_audio.backbone.layers import Linear, RMSNorm
from mindone_audio.backbone.prompt import place_windows
from mindone_audio.backbone.published_config import decoder_config, encoder_config
from mindone_audio.generation import GenerationMixin
from mindone_audio.inputs.audio import fit_window
from mindone_audio.inputs.log_mel import log_mels
from mindone_audio.inputs.processor import PADDING_KEYWORDS, AudioTextProcessor, StringContent, token_arrays
from mindone_audio.inputs.tools import ToolFormat, template_format
from mindone_audio.models.ultravox import sources
from mindone_audio.models.ultravox.sources import complete_config, named
from mindone_audio.weights import hub
from mindone_audio.weights.parameters import Source

CHECKPOINTS = ("fixie-ai/ultravox-v0_5-llama-3_2-1b", "fixie-ai/ultravox-v0_4", "fixie-ai/ultravox-v0_6-qwen-3-32b")
PROVED = "float32 on CPU against fixie-ai/ultravox (PyTorch, model and processor), with small random models"

_ACTIVATIONS = {"swiglu": ops.silu, "silu": ops.silu, "gelu": ops.gelu}
_NORM_EPSILON = 1e-6
# What config.json may leave out. projector_ln_mid came with v0.5; r = 0 in a LoRA's settings means that there is none.
_DEFAULTS = {
    "text_model_id": None,
    "audio_model_id": None,
    "hidden_size": 4096,
    "stack_factor": 8,
    "norm_init": 0.4,
    "projector_act": "swiglu",
    "projector_ln_mid": False,
    "audio_latency_block_size": None,
    "audio_token_index": None,
    "ignore_index": -100,
    "llm_only_training": False,
    "num_projector_layers": 0,
    "text_model_lora_config": None,
    "audio_model_lora_config": None,
}


class UltravoxConfig(PretrainedConfig):
    """The fields of Ultravox's config.json, with the configs of its two models inside, wherever they were read."""

    model_type = "ultravox"
    sub_configs = {"text_config": AutoConfig, "audio_config": AutoConfig}

    def __init__(self, audio_config: dict | None = None, text_config: dict | None = None, **fields):
        for name, default in _DEFAULTS.items():
            setattr(self, name, fields.pop(name, default))
        if (audio_config is None and self.audio_model_id) or (text_config is None and self.text_model_id):
            read = complete_config({name: getattr(self, name) for name in ("audio_model_id", "text_model_id")})
            audio_config, text_config = read.get("audio_config", audio_config), read.get("text_config", text_config)
        self.audio_config = _sub_config(audio_config, "whisper")
        self.text_config = _sub_config(text_config, "llama")
        self.vocab_size = self.text_config.get_text_config().vocab_size
        fields.pop("vocab_size", None)
        super().__init__(**fields)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> tuple[dict, dict]:
        """The checkpoint's config.json with `text_config` and `audio_config` of the models that it names."""
        config, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        access = {name: kwargs[name] for name in hub.ACCESS_KEYWORDS if kwargs.get(name) is not None}
        return complete_config(config, **access), unused

    def to_dict(self) -> dict[str, Any]:
        """As its authors' class reads it."""
        output = super().to_dict()
        return output | {"architectures": ["UltravoxModel"], "torch_dtype": output.get("dtype")}


def _sub_config(config: dict | PretrainedConfig | None, model_type: str) -> PretrainedConfig:
    """A part's config, of `model_type` where it does not say; `ValueError` for a type that transformers lacks."""
    if isinstance(config, PretrainedConfig):
        return config
    return AutoConfig.for_model(**{"model_type": model_type, **(config or {})})


class Projector(nn.Cell):
    """Stacks frames and maps them to the decoder's width, with an RMSNorm before and one inside or after."""

    def __init__(self, config: UltravoxConfig, audio_width: int, text_width: int):
        super().__init__()
        if config.projector_act not in _ACTIVATIONS:
            raise ValueError(
                f"projector_act {config.projector_act!r} is not supported: known are {', '.join(_ACTIVATIONS)}"
            )
        self.activation, self.gated = _ACTIVATIONS[config.projector_act], config.projector_act == "swiglu"
        self.stack, width = config.stack_factor, audio_width * config.stack_factor
        self.middle = config.hidden_size // 2 if self.gated else config.hidden_size
        self.ln_pre = RMSNorm(width, _NORM_EPSILON, config.norm_init)
        self.linear_1 = Linear(width, config.hidden_size, bias=False)
        self.ln_mid = RMSNorm(self.middle, _NORM_EPSILON, config.norm_init) if config.projector_ln_mid else None
        self.linear_2 = Linear(self.middle, text_width, bias=False)
        self.ln_post = None if config.projector_ln_mid else RMSNorm(text_width, _NORM_EPSILON, config.norm_init)

    def construct(self, audio: Tensor) -> Tensor:
        clips, time, width = audio.shape
        rest = -time % self.stack
        if rest:
            audio = msops.concat((audio, msops.zeros((clips, rest, width), audio.dtype)), 1)
        x = self.linear_1(self.ln_pre(audio.reshape((clips, -1, self.stack * width))))
        if self.gated:
            x, gate = ops.split(x, (self.middle, self.middle), 2)
            x = self.activation(gate) * x
        else:
            x = self.activation(x)
        x = self.linear_2(x if self.ln_mid is None else self.ln_mid(x))
        return x if self.ln_post is None else self.ln_post(x)


class UltravoxForConditionalGeneration(AudioLanguageModel, GenerationMixin):
    """Ultravox on MindSpore (`UltravoxModel` on disk): `from_pretrained`, `construct` and `generate`.

    Audio comes as Ultravox's processor gives it, a row for each started window of each clip, in the order of the text:
    `audio_values` (windows, mel bins, frames), where frames may be fewer than a whole window's; `audio_lens` (windows),
    the frames that are audio; `audio_token_start_idx` and `audio_token_len` (windows), which places of the prompt they
    fill; `audio_batch_size` (batch), how many windows each prompt has. `audio_frames` (windows), where it is given,
    says how many frames each window had before it was made as wide as its batch: then a batch equals its singles.
    """

    config_class = UltravoxConfig
    audio_inputs = (
        *("audio_values", "audio_token_start_idx", "audio_lens", "audio_token_len", "audio_batch_size"),
        "audio_frames",
    )

    def __init__(self, config: UltravoxConfig):
        refuse_fields(config, "config.json")
        _check(config)
        encoder = dataclasses.replace(
            encoder_config(config.audio_config, pool_pairs=False, mask_padding=True),
            partial_windows=True,
            latency_block=config.audio_latency_block_size,
        )
        decoder = decoder_config(config.text_config)
        projector = Projector(config, encoder.hidden_size, decoder.hidden_size)
        super().__init__(config, AudioEncoder(encoder), projector, Decoder(decoder), config.audio_token_index)

    def weight_sources(self, folder: Path, **access) -> list[Source]:
        """The language model's and Whisper's own checkpoints, where config.json names them."""
        return sources.weight_sources(self.config, **access)

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """All weights and both configs, so that what is saved needs no other model."""
        self.config.text_model_id = self.config.audio_model_id = None
        super().save_pretrained(save_directory, *args, **kwargs)

    def audio_tokens(self, frames: np.ndarray) -> np.ndarray:
        return -(-frames // (2 * self.config.stack_factor))

    def blank(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """As for other models, with both numbers of frames."""
        features, lengths = super().blank(width)
        return features, np.repeat(lengths[:, None], 2, 1)

    def clips(self, audio: dict) -> tuple[np.ndarray | None, np.ndarray]:
        """The windows, filled up with zeros, and int32 (windows, 2): frames of audio and frames given."""
        given = {name: to_numpy(audio.get(name)) for name in self.audio_inputs}
        values, frames = given["audio_values"], given.pop("audio_frames")
        missing = [name for name, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise ValueError(f"audio came without {', '.join(missing)}: give all that the processor returned")
        if values is None or not len(values):
            return None, np.zeros((0, 2), np.int32)
        encoder = self.audio_tower.config
        bins, window = encoder.num_mel_bins, encoder.num_mel_frames
        if values.ndim != 3 or values.shape[1] != bins or not 0 < values.shape[2] <= window:
            raise ValueError(
                f"audio_values has shape {values.shape}, this model takes (windows, {bins}, up to {window}): use the "
                "checkpoint's own processor, which cuts long clips into windows"
            )
        frames = np.full(len(values), values.shape[2]) if frames is None else frames
        lens, tokens = given["audio_lens"], given["audio_token_len"]
        for name in ("audio_lens", "audio_token_len", "audio_token_start_idx"):
            if given[name].shape != (len(values),):
                raise ValueError(f"{name} has shape {given[name].shape}, audio_values has {len(values)} windows")
        if frames.shape != lens.shape or not ((0 < lens) & (lens <= frames) & (frames <= values.shape[2])).all():
            raise ValueError(f"audio_lens {lens} must be from 1 to the frames given, which are {frames}")
        if (tokens != self.audio_tokens(lens)).any():
            raise ValueError(f"audio_token_len {tokens} does not fit audio_lens {lens}, of {self.audio_tokens(lens)}")
        width = encoder.frames_to_encode(int(frames.max()))
        values = np.pad(values[:, :, :width], ((0, 0), (0, 0), (0, max(0, width - values.shape[2]))))
        values = np.where(np.arange(width) >= frames[:, None, None], 0, values)
        return values, np.stack([lens, frames], 1).astype(np.int32)

    def audio_places(self, input_ids: np.ndarray, mask: np.ndarray, audio: dict) -> np.ndarray:
        if audio.get("audio_values") is None:
            return np.zeros(input_ids.shape, bool)
        names = ("audio_batch_size", "audio_token_start_idx", "audio_token_len")
        counts, starts, tokens = (to_numpy(audio[name]).reshape(-1) for name in names)
        return place_windows(mask, counts, starts, tokens)


def _check(config: UltravoxConfig) -> None:
    """`ValueError` for what is published nowhere and computed by nothing here."""
    if config.audio_config.model_type != "whisper":
        raise ValueError(f"audio_config.model_type {config.audio_config.model_type!r} is not supported: only whisper")
    if config.llm_only_training:
        raise ValueError("llm_only_training is set: this checkpoint has no audio part, load its language model instead")
    if config.num_projector_layers:
        raise ValueError(
            f"num_projector_layers {config.num_projector_layers} is not supported: only 0, a projector without layers"
        )
    for field in ("text_model_lora_config", "audio_model_lora_config"):
        if (getattr(config, field) or {}).get("r", 0) > 0:
            raise ValueError(
                f"{field} has r={getattr(config, field)['r']}: LoRA weights of Ultravox must be merged first, by "
                "`merge_and_unload()` and `save_pretrained` of its own model class"
            )


class UltravoxProcessor(AudioTextProcessor, StringContent, ProcessorMixin):
    """Text and audio to model inputs, and tokens back to text.

    `<|audio|>` stands for a clip and is in no vocabulary: its places get the end-of-text token's id. No special tokens
    are added, because text must begin with them, as that of a chat template does. The tokenizer pads on the left.
    """

    attributes = ["feature_extractor", "tokenizer"]
    feature_extractor_class = "WhisperFeatureExtractor"
    tokenizer_class = "AutoTokenizer"
    audio_token = "<|audio|>"
    tokenizer_keywords = PADDING_KEYWORDS
    longest_clip = None
    questions = {
        "caption": "Describe the audio.",
        "transcribe": "Repeat the following text, without any explanation: ",  # the words that it was trained with
    }
    audio_first = False

    def __init__(
        self, feature_extractor=None, tokenizer=None, chat_template=None, stack_factor=8, audio_context_size=3000
    ):
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has no eos_token, which stands where audio is: set tokenizer.eos_token")
        self.stack_factor, self.audio_context_size = stack_factor, audio_context_size  # frames of a window
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **download: Any):
        """Load a checkpoint's tokenizer and feature extractor, or else those of the models that config.json names."""
        name = os.fspath(pretrained_model_name_or_path)
        config = hub.read_config(name, **download)
        access = {key: download[key] for key in hub.ACCESS_KEYWORDS if key in download}
        audio, repository = config.get("audio_config") or {}, config.get("audio_model_id")
        if repository is not None:
            audio = named(repository, "audio_model_id", hub.read_config, **access)
        window = 2 * audio.get("max_source_positions", 1500)
        extractor = WhisperFeatureExtractor(feature_size=audio.get("num_mel_bins", 80))  # all else is Whisper's
        for source, keywords in ((name, download), (repository, access)):
            if source is not None and _has(source, hub.EXTRACTOR_FILE, keywords):
                with hub.processor_files(source, tokenizer=False, **keywords):
                    extractor = WhisperFeatureExtractor.from_pretrained(source, **keywords)
                break
        source, keywords, repository = name, download, config.get("text_model_id")
        if repository is not None and not _has(name, "tokenizer_config.json", download):
            named(repository, "text_model_id", hub.read_config, **access)  # for its error, which says what is missing
            source, keywords = repository, access
        if not _has(source, "tokenizer_config.json", keywords):
            raise FileNotFoundError(
                f"{source} has no tokenizer_config.json: put the files of its language model's tokenizer into {name}"
            )
        with hub.processor_files(source, extractor=False, **keywords):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **keywords)
        tokenizer.pad_token = tokenizer.eos_token  # as Ultravox pads, whatever its language model does
        return cls(extractor, tokenizer, stack_factor=config.get("stack_factor", 8), audio_context_size=window)

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        output_labels: bool = False,
        *,
        audios: Any = None,
        sampling_rate: int | None = None,
        truncation: bool = False,
        return_tensors: str = "np",
        **padding: Any,
    ) -> BatchFeature:
        """Tokenize text, filling the places of each `<|audio|>`, and extract log-mels.

        Arguments and errors are those of `AudioTextProcessor`, but special tokens are never added.

        Returns:
            `input_ids`, `attention_mask` and, if asked for, `labels`: int64 `[batch, length]`; and, given clips, what
            `UltravoxForConditionalGeneration` says, with a row for each started window of 30 s of each clip, and
            `audio_frames` only for a batch. Each prompt's clips are as wide as its longest.
        """
        texts, clips = self._arguments(text, audio, audios, sampling_rate, return_tensors, padding)
        if truncation:
            seconds = self.audio_context_size * self.feature_extractor.hop_length / self.feature_extractor.sampling_rate
            clips = [fit_window(clip, seconds, self.feature_extractor.sampling_rate, truncation=True) for clip in clips]
        remaining = iter(clips)
        samples = [self._sample(item, list(islice(remaining, item.count(self.audio_token)))) for item in texts]
        data = self._pad([sample["input_ids"] for sample in samples], **padding)
        is_audio = np.zeros(data["input_ids"].shape, bool)
        for row, sample in enumerate(samples):
            sample["audio_token_start_idx"] += int(np.argmax(data["attention_mask"][row]))  # padding on the left
            for start, length in zip(sample["audio_token_start_idx"], sample["audio_token_len"]):
                is_audio[row, start : start + length] = True
        if output_labels:
            data["labels"] = np.where(is_audio | (data["attention_mask"] == 0), -100, data["input_ids"])
        return BatchFeature({**data, **(_collate(samples) if clips else {})})

    @property
    def tool_format(self) -> ToolFormat:
        """That of its language model."""
        return template_format(self.tokenizer, self.chat_template or self.tokenizer.chat_template)

    def _sample(self, text: str, clips: list[np.ndarray]) -> dict[str, Any]:
        """One prompt as Ultravox's own processor makes it: its ids, and an entry for each window of its clips."""
        first, *others = self.tokenizer(text.split(self.audio_token), add_special_tokens=False)["input_ids"]
        features, frames = self._whole_mels(clips) if clips else ([], [])
        ids, size, windows, lens, starts = list(first), self.audio_context_size, [], [], []
        for clip, count, after in zip(features, frames, others):
            width = min(clip.shape[1], size)
            for begin in range(0, count, size):
                window = clip[:, begin : begin + size]
                windows.append(np.pad(window, ((0, 0), (0, width - window.shape[1]))))
                lens.append(min(count - begin, size))
                starts.append(len(ids))
                ids += [self.tokenizer.eos_token_id] * self._tokens(lens[-1])
            ids += after
        return {
            "input_ids": ids,
            "audio_values": windows,
            "audio_lens": np.array(lens, np.int64),
            "audio_token_len": np.array([self._tokens(length) for length in lens], np.int32),
            "audio_token_start_idx": np.array(starts, np.int64),
        }

    def _tokens(self, frames: int) -> int:
        return -(-frames // (2 * self.stack_factor))

    def _whole_mels(self, clips: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
        """Clips, padded to the longest -> float32 `[clips, mels, frames]`, and how many frames of each are audio."""
        hop = self.feature_extractor.hop_length
        clips = [np.pad(clip, (0, max(0, 2 * hop - len(clip)))) for clip in clips]  # at least two frames
        frames = [-(-len(clip) // hop) for clip in clips]
        return log_mels(clips, self.feature_extractor, max(frames) * hop), frames

    def _pad(self, rows: list[list[int]], padding: Any = True, **kwargs: Any) -> dict[str, np.ndarray]:
        """Token ids -> `input_ids` and `attention_mask`, int64 `[batch, length]`."""
        # The tokenizer would advise to encode and pad in one call. The function of transformers that hides the advice
        # is in a package that imports scikit-learn.
        self.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        padded = self.tokenizer.pad({"input_ids": rows}, padding=padding, return_attention_mask=True, **kwargs)
        return token_arrays(padded, padding, kwargs.get("max_length"))


def _collate(samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The windows of all prompts in one array, as wide as the widest, and what says which are whose."""
    windows = [window for sample in samples for window in sample["audio_values"]]
    frames = np.array([window.shape[1] for window in windows])
    wide = [np.pad(window, ((0, 0), (0, frames.max() - window.shape[1]))) for window in windows]
    names = ("audio_lens", "audio_token_len", "audio_token_start_idx")
    data = {name: np.concatenate([sample[name] for sample in samples]) for name in names}
    data |= {
        "audio_values": np.stack(wide),
        "audio_batch_size": np.array([len(sample["audio_values"]) for sample in samples]),
    }
    return data | ({"audio_frames": frames} if len(samples) > 1 else {})


def _has(repository: str, file: str, download: dict[str, Any]) -> bool:
    """Whether a folder or repository, or its copy in the cache where the hub cannot be reached, has a file."""
    lenient = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    return cached_file(os.path.expanduser(repository), file, **lenient, **download) is not None


MODEL, PROCESSOR = UltravoxForConditionalGeneration, UltravoxProcessor

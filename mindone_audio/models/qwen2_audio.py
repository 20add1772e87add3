"""Qwen2-Audio (arXiv 2407.10759): a Whisper encoder pooled to 25 frames a second, one linear map, a Qwen2 decoder."""

import re
from typing import Any

import numpy as np
import transformers
from mindspore import Tensor, nn
from transformers import BatchFeature, Qwen2AudioConfig

from mindone_audio.audio import AudioError, fit_window, load_clips
from mindone_audio.backbone.audio_language_model import AudioLanguageModel
from mindone_audio.backbone.decoder import DecoderConfig
from mindone_audio.backbone.encoder import EncoderConfig
from mindone_audio.backbone.layers import Linear
from mindone_audio.chat import chat_clips, clean_messages
from mindone_audio.generation import GenerationMixin

TOKENIZER_KEYWORDS = ("add_special_tokens", "max_length", "pad_to_multiple_of", "padding", "padding_side")


def encoder_config(config) -> EncoderConfig:
    """The fields of a published `audio_config`; `ValueError` for an activation other than GELU."""
    if config.activation_function != "gelu":
        raise ValueError(f"audio_config.activation_function {config.activation_function!r} is not supported: only gelu")
    if config.scale_embedding:
        raise ValueError("audio_config.scale_embedding is not supported: published checkpoints have it off")
    return EncoderConfig(
        num_mel_bins=config.num_mel_bins,
        hidden_size=config.d_model,
        intermediate_size=config.encoder_ffn_dim,
        num_layers=config.encoder_layers,
        num_heads=config.encoder_attention_heads,
        max_positions=config.max_source_positions,
        pool_pairs=True,
        mask_padding=True,
    )


def decoder_config(config) -> DecoderConfig:
    """The fields of a Qwen2 `text_config`, as transformers 4 (`rope_theta`) or 5 (`rope_parameters`) writes them."""
    if config.hidden_act != "silu":
        raise ValueError(f"text_config.hidden_act {config.hidden_act!r} is not supported: only silu")
    if config.use_sliding_window:
        raise ValueError("text_config.use_sliding_window is not supported: published checkpoints have it off")
    rope = getattr(config, "rope_parameters", None) or config.rope_scaling or {}
    return DecoderConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        max_positions=config.max_position_embeddings,
        rope_theta=rope.get("rope_theta", config.rope_theta),
        rope_scaling=rope,
        norm_epsilon=config.rms_norm_eps,
        qkv_bias=True,
        output_bias=False,
        tie_word_embeddings=config.tie_word_embeddings,
    )


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
        encoder, decoder = encoder_config(config.audio_config), decoder_config(config.text_config)
        projector = Projector(encoder.hidden_size, decoder.hidden_size)
        super().__init__(config, encoder, decoder, projector, config.audio_token_index)


def audio_token_count(mel_frames: int) -> int:
    """Audio embeddings for `mel_frames` log-mel frames: the encoder's strided convolution, then its pooling by 2."""
    return ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1


class Qwen2AudioProcessor(transformers.Qwen2AudioProcessor):
    """Text and audio to model inputs, and tokens back to text.

    The tokenizer given is set to pad on the left, as generation needs; for training set
    `processor.tokenizer.padding_side = "right"` or pass `padding_side="right"`.
    """

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
        token_id = self.audio_token_id  # of a token that the tokenizer lacks: None, or the unknown token's
        if token_id is None or self.tokenizer.convert_ids_to_tokens(token_id) != self.audio_token:
            raise ValueError(f"the tokenizer has no token {self.audio_token}: it is not a Qwen2-Audio tokenizer")
        self.tokenizer.padding_side = "left"

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        *,
        audios: Any = None,
        sampling_rate: int | None = None,
        truncation: bool = False,
        return_tensors: str = "np",
        **tokenizer_kwargs: Any,
    ) -> BatchFeature:
        """Tokenize text, expanding each `<|AUDIO|>` to as many as its clip has embeddings, and extract log-mels.

        Args:
            text: one prompt or a batch of them.
            audio: one clip or a list of clips, in the order of the placeholders over the whole batch. A clip is
                anything `mindone_audio.load_audio` takes; an array must be at the feature extractor's rate.
            audios: the same as `audio`, the name that published examples use.
            sampling_rate: of the arrays in `audio`, in Hz, for checking only.
            truncation: use the first 30 s (the feature extractor's window) of a longer clip. It never cuts text.
            return_tensors: "np". See `mindone_audio.to_mindspore` for tensors.
            tokenizer_kwargs: padding (default True: to the longest; False; "max_length" with max_length, in tokens),
                padding_side, pad_to_multiple_of, add_special_tokens.

        Returns:
            `input_ids`, `attention_mask`: int64 `[batch, length]`; and, given clips, `input_features`: float32
            `[clips, mels, frames]`, `feature_attention_mask`: int32 `[clips, frames]`, 1 where a frame is audio.

        Raises:
            TypeError: a keyword that is not listed here.
            AudioError: a clip that cannot be read, is too long, or is too short for one embedding.
            ValueError: placeholders and clips do not match, or another argument's value is wrong.
        """
        _check_arguments(return_tensors, tokenizer_kwargs)
        if audio is not None and audios is not None:
            raise ValueError("audio= and audios= were both given: they are the same argument, pass one of them")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(item, str) for item in texts):
            raise ValueError(f"text must be a string or a list of strings, not {text!r:.80}")
        sources = _as_list(audio if audios is None else audios)
        self._check_placeholders(texts, len(sources))
        features = self._extract(sources, sampling_rate, truncation) if sources else {}
        if sources:
            counts = [audio_token_count(int(frames)) for frames in features["feature_attention_mask"].sum(-1)]
            texts = self._expand(texts, counts)
        return BatchFeature({**self._tokenize(texts, **tokenizer_kwargs), **features})

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        **processor_kwargs: Any,
    ) -> str | list[str] | np.ndarray | BatchFeature:
        """Render one conversation, or a batch of them, in the checkpoint's chat format.

        Args:
            conversation: messages `{"role": …, "content": …}`. The content is a string or a list of elements
                `{"type": "text", "text": …}` and `{"type": "audio", KEY: clip}` with one KEY of audio, audio_url, url,
                path, base64; the clip is anything `mindone_audio.load_audio` takes.
            tokenize: False returns the text (a list for a batch). True loads the clips and returns `input_ids`, or
                with `return_dict=True` everything that `__call__` returns.
            processor_kwargs: with `tokenize=True`, those of `__call__` (truncation, padding, …).

        Raises:
            TypeError: a keyword for `__call__` without `tokenize=True`.
            ValueError: an element of an unknown type, or an audio element without exactly one clip.
        """
        if processor_kwargs and not tokenize:
            raise TypeError(
                f"{', '.join(sorted(processor_kwargs))} have no effect without tokenize=True: leave them out"
            )
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        clean = [clean_messages(messages) for messages in (conversation if batched else [conversation])]
        text = super().apply_chat_template(
            clean if batched else clean[0],
            chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        if not tokenize:
            return text
        inputs = self(text, [clip for messages in clean for clip in chat_clips(messages)], **processor_kwargs)
        return inputs if return_dict else inputs["input_ids"]

    def decode(self, tokens: Any, **kwargs: Any) -> str:
        """One row of token ids (MindSpore tensor, NumPy array or list, `[length]`) -> text."""
        ids = _as_ids(tokens)
        if isinstance(ids, list) and any(isinstance(item, list) for item in ids):
            raise ValueError(f"decode takes one row of ids and was given {len(ids)} rows: use batch_decode")
        return self.tokenizer.decode(ids, **kwargs)

    def batch_decode(self, tokens: Any, **kwargs: Any) -> list[str]:
        """Rows of token ids (MindSpore tensor or NumPy array `[batch, length]`, or a list of rows) -> texts."""
        return self.tokenizer.batch_decode(_as_ids(tokens), **kwargs)

    def _check_placeholders(self, texts: list[str], num_clips: int) -> None:
        found = sum(item.count(self.audio_token) for item in texts)
        if found != num_clips:
            raise ValueError(
                f"the text has {found} {self.audio_token} placeholder(s) and {num_clips} audio clip(s) were given: "
                f"write {self.audio_bos_token}{self.audio_token}{self.audio_eos_token} once for each clip. "
                f"The text: {str(texts)[:300]}"
            )

    def _extract(self, sources: list, sampling_rate: int | None, truncation: bool) -> dict[str, np.ndarray]:
        """Clips -> `input_features` `[clips, mels, frames]` and `feature_attention_mask` `[clips, frames]`."""
        extractor = self.feature_extractor
        rate = extractor.sampling_rate
        if sampling_rate not in (None, rate):
            raise ValueError(
                f"sampling_rate={sampling_rate}, but this model hears {rate} Hz: resample first with "
                f"load_audio(clip, {rate}, source_sampling_rate={sampling_rate})"
            )
        clips = []
        for number, clip in enumerate(load_clips(sources, rate)):
            name = f"audio clip {number}"
            if audio_token_count(-(-len(clip) // extractor.hop_length)) < 1:
                raise AudioError(
                    f"{name} has {len(clip)} samples, too few for one audio token: "
                    f"give at least {2 * extractor.hop_length + 1} ({rate} a second)"
                )
            clips.append(fit_window(clip, extractor.chunk_length, rate, truncation=truncation, name=name))
        outputs = extractor(
            clips, sampling_rate=rate, padding="max_length", return_attention_mask=True, return_tensors="np"
        )
        return {
            "input_features": np.asarray(outputs["input_features"], np.float32),
            "feature_attention_mask": np.asarray(outputs["attention_mask"], np.int32),
        }

    def _expand(self, texts: list[str], counts: list[int]) -> list[str]:
        """Write each placeholder `counts[i]` times; one that has neither its begin nor its end token gets both."""
        bos, token, eos = self.audio_bos_token, self.audio_token, self.audio_eos_token
        pattern = re.compile(f"({re.escape(bos)})?{re.escape(token)}({re.escape(eos)})?")
        remaining = iter(counts)

        def expanded(match: re.Match) -> str:
            before, after = match.groups(default="") if any(match.groups()) else (bos, eos)
            return before + token * next(remaining) + after

        return [pattern.sub(expanded, item) for item in texts]

    def _tokenize(self, texts: list[str], padding: Any = True, **kwargs: Any) -> dict[str, np.ndarray]:
        """Texts -> `input_ids` and `attention_mask`, int64 `[batch, length]`."""
        encoded = self.tokenizer(list(texts), padding=padding, return_attention_mask=True, **kwargs)
        lengths = sorted({len(row) for row in encoded["input_ids"]})
        if (limit := kwargs.get("max_length")) is not None and lengths[-1] > limit:
            raise ValueError(
                f"the text has {lengths[-1]} tokens, audio included, more than max_length={limit}: raise it"
            )
        if len(lengths) > 1:
            raise ValueError(
                f"padding={padding!r} leaves rows of {lengths} tokens, which make no array: use padding=True"
            )
        return {key: np.asarray(encoded[key], np.int64) for key in ("input_ids", "attention_mask")}


def _check_arguments(return_tensors: Any, tokenizer_kwargs: dict[str, Any]) -> None:
    if unknown := sorted(set(tokenizer_kwargs) - set(TOKENIZER_KEYWORDS)):
        raise TypeError(
            f"the processor does not know {', '.join(unknown)}: it takes text, audio (or audios), sampling_rate, "
            f"truncation, return_tensors, {', '.join(TOKENIZER_KEYWORDS)}"
        )
    if return_tensors != "np":
        raise ValueError(
            f'return_tensors={return_tensors!r}: this processor returns NumPy arrays: pass return_tensors="np" or '
            "leave it out, then call mindone_audio.to_mindspore(inputs, dtype=model.dtype)"
        )
    if (tokenizer_kwargs.get("padding") == "max_length") != (tokenizer_kwargs.get("max_length") is not None):
        raise ValueError('padding="max_length" and max_length=N, in tokens, work only together: pass both or neither')


def _as_list(audio: Any) -> list:
    """No clip, one clip or several -> a list of them."""
    if audio is None:
        return []
    return list(audio) if isinstance(audio, (list, tuple)) else [audio]


def _as_ids(tokens: Any) -> Any:
    """MindSpore tensors and NumPy arrays, also inside a list -> lists of int."""
    if hasattr(tokens, "asnumpy"):
        tokens = tokens.asnumpy()
    if isinstance(tokens, (np.ndarray, np.generic)):
        return tokens.tolist()
    return [_as_ids(item) for item in tokens] if isinstance(tokens, (list, tuple)) else tokens


MODEL, PROCESSOR = Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

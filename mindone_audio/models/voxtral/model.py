"""Voxtral (arXiv 2507.13264): Whisper's encoder over 30 s windows, 4 frames stacked into a token, a Llama decoder."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import transformers
from mindspore import Tensor, nn
from transformers import BatchFeature, VoxtralConfig, WhisperFeatureExtractor

from mindone_audio.backbone import ops
from mindone_audio.backbone.audio_language_model import AudioLanguageModel
from mindone_audio.backbone.config_fields import refuse_fields
from mindone_audio.backbone.decoder import Decoder
from mindone_audio.backbone.encoder import AudioEncoder
from mindone_audio.backbone.layers import Linear
from mindone_audio.backbone.published_config import decoder_config, encoder_config
from mindone_audio.generation import GenerationMixin
from mindone_audio.inputs.audio import load_clips
from mindone_audio.inputs.conversation import chat_clips
from mindone_audio.inputs.log_mel import log_mels
from mindone_audio.inputs.processor import PADDING_KEYWORDS, AudioTextProcessor, as_list, as_sources, as_texts
from mindone_audio.inputs.tools import PLAIN, ToolFormat
from mindone_audio.models.voxtral import tekken
from mindone_audio.setting_fields import refusal
from mindone_audio.weights import hub

CHECKPOINTS = ("mistralai/Voxtral-Mini-3B-2507", "mistralai/Voxtral-Small-24B-2507")
PROVED = "float32 on CPU against transformers 4.57 (PyTorch) and mistral-common, with small random models"

LONGEST_CLIP = 1800.0  # seconds: what the model's makers give for transcription
FRAMES_PER_TOKEN = 8  # mel frames: the encoder's strided convolution halves them, and 4 of its rows are one token


class Projector(nn.Cell):
    """Neighbouring frames side by side, and two linear maps with GELU between them."""

    def __init__(self, audio_width: int, stack: int, text_width: int, inner: int | None = None, bias: bool = False):
        super().__init__()
        self.stack = stack
        self.linear_1 = Linear(stack * audio_width, inner or text_width, bias)
        self.linear_2 = Linear(inner or text_width, text_width, bias)

    def construct(self, audio: Tensor) -> Tensor:
        """(windows, positions, width) to (windows, positions / stack, text width)."""
        windows, positions, width = audio.shape
        stacked = audio.reshape((windows, positions // self.stack, self.stack * width))
        return self.linear_2(ops.gelu(self.linear_1(stacked)))


class VoxtralForConditionalGeneration(AudioLanguageModel, GenerationMixin):
    """Voxtral on MindSpore: `from_pretrained`, `construct` (logits and loss) and `generate`."""

    config_class = VoxtralConfig
    audio_inputs = ("input_features",)

    def __init__(self, config: VoxtralConfig):
        refuse_fields(config, "config.json")
        encoder = encoder_config(config.audio_config, pool_pairs=False, mask_padding=False)
        decoder = decoder_config(config.text_config)
        if config.projector_hidden_act != "gelu":
            raise ValueError(f"projector_hidden_act {config.projector_hidden_act!r} is not supported: only gelu")
        # The published config says nowhere how many frames are stacked: they fill the projector's input, which is as
        # wide as the encoder's feed-forward.
        stack, rest = divmod(encoder.intermediate_size, encoder.hidden_size)
        if rest or encoder.max_positions % stack:
            raise ValueError(
                f"audio_config.intermediate_size {encoder.intermediate_size} must be a multiple of hidden_size "
                f"{encoder.hidden_size}, and max_source_positions {encoder.max_positions} of their quotient"
            )
        projector = Projector(encoder.hidden_size, stack, decoder.hidden_size)
        super().__init__(config, AudioEncoder(encoder), projector, Decoder(decoder), config.audio_token_id)

    def audio_tokens(self, frames: np.ndarray) -> np.ndarray:
        """A window's tokens, padding included: 375 for 30 s."""
        return super().audio_tokens(frames) // self.multi_modal_projector.stack


class VoxtralProcessor(AudioTextProcessor, transformers.VoxtralProcessor):
    """Conversations, transcription requests and text with audio to model inputs, and tokens back to text."""

    keywords = ("sampling_rate", "return_tensors", "output_labels", "add_special_tokens")
    tokenizer_keywords = PADDING_KEYWORDS

    def __init__(self, feature_extractor, tokenizer):
        # transformers reads this signature to save and load: it must spell out the same parameters.
        super().__init__(feature_extractor, tokenizer)
        if self.audio_token != tekken.AUDIO:
            raise ValueError(
                f"token {self.audio_token_id} of this tokenizer is {self.audio_token}, not {tekken.AUDIO}: "
                f"its {tekken.TEKKEN_FILE} is not Voxtral's"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **download) -> "VoxtralProcessor":
        """From a checkpoint's preprocessor_config.json and tekken.json; `download` as for `AutoProcessor`."""
        path = hub.checkpoint_file(pretrained_model_name_or_path, tekken.TEKKEN_FILE, **download)
        with hub.processor_files(pretrained_model_name_or_path, tokenizer=False, **download):
            extractor = WhisperFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **download)
            return cls(extractor, tekken.load_tokenizer(path))

    @property
    def longest_clip(self) -> float:
        """Seconds of audio that the model hears in one prompt; the processor itself takes clips of any length."""
        return LONGEST_CLIP

    @property
    def tool_format(self) -> ToolFormat:
        """mistral-common's, for a tokenizer of version 7; in later versions a call is written in another way."""
        mark = tekken.calls_token(self.tokenizer)
        return PLAIN if mark is None else ToolFormat(native=True, listed=True, mark=mark)

    def transcription_inputs(
        self, clips: list[np.ndarray], *, language: str | None, chat: bool, prompt: str | None = None
    ) -> BatchFeature:
        """Transcription requests, which Voxtral has a token for."""
        if prompt is not None:
            raise refusal("prompt", ": this model family transcribes by a token, and takes no words: leave it out")
        return self.apply_transcription_request(clips, language)

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        *,
        tools: list[dict] | None = None,
        tokenize: bool = True,
        return_dict: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **processor_kwargs: Any,
    ) -> str | list[str] | np.ndarray | BatchFeature:
        """Write one conversation, or a batch of them, as mistral-common does; the defaults are transformers' Voxtral's.

        Args:
            conversation: as in `AudioTextProcessor.apply_chat_template`. Audio goes with the user's messages, and not
                together with a system message.
            tools: as there.
            tokenize: True loads the clips and returns everything that `__call__` does, or with `return_dict=False`
                `input_ids`. False returns the text (a list for a batch), with one [AUDIO] for each clip.
            add_generation_prompt: True refuses a conversation that the assistant ends. There is nothing to add.
            continue_final_message: leave the assistant's last message open, without an end token.
            processor_kwargs: with `tokenize=True`, those of `__call__` (padding, output_labels, …).

        Raises:
            TypeError: a keyword for `__call__` without `tokenize=True`, or an unknown one.
            ValueError: a conversation that mistral-common refuses, or a bad element in it.
        """
        clean, batched = self._conversations(conversation, tokenize, processor_kwargs)
        if add_generation_prompt and any(messages[-1]["role"] == "assistant" for messages in clean):
            raise ValueError("add_generation_prompt=True, but the assistant has the last word: leave it out")
        clean, told = self._with_tools(clean, tools)
        rows = [tekken.chat_ids(self.tokenizer, messages, continue_final_message, **told) for messages in clean]
        if not tokenize:
            texts = self.batch_decode(rows)
            return texts if batched else texts[0]
        clips = [clip for messages in clean for clip in chat_clips(messages)]
        inputs = self._inputs(rows, clips, **processor_kwargs)
        return inputs if return_dict else inputs["input_ids"]

    def apply_transcription_request(
        self,
        audio: Any,
        language: str | Sequence[str | None] | None = None,
        model_id: str | None = None,
        **processor_kwargs: Any,
    ) -> BatchFeature:
        """Ask for the transcript of a clip, or of each clip of a list: one row a clip.

        Args:
            audio: one clip or a list of clips; a clip is anything `mindone_audio.load_audio` takes.
            language: two letters of ISO 639-1 ("en"), one for all clips or a list of one for each; None: detect it.
            model_id: as in transformers, for the request; the tokens do not depend on it.
            processor_kwargs: those of `__call__`.

        Raises what `__call__` raises, and `ValueError` for a language that is none.
        """
        clips = as_list(audio)
        if not clips:
            raise ValueError(f"audio={audio!r} holds no clip: give one clip, or a list of at least one")
        languages = list(language) if isinstance(language, (list, tuple)) else [language] * len(clips)
        if len(languages) != len(clips):
            raise ValueError(f"{len(languages)} languages were given for {len(clips)} clips: give one for each, or one")
        rows = [tekken.transcription_ids(self.tokenizer, item, model_id) for item in languages]
        return self._inputs(rows, clips, **processor_kwargs)

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        *,
        audios: Any = None,
        add_special_tokens: bool = True,
        **keywords: Any,
    ) -> BatchFeature:
        """Tokenize text, repeating each [AUDIO] for as many tokens as its clip has, and extract log-mels.

        Args:
            text: one prompt or a batch: plain text, which transformers' Voxtral takes, or a rendered prompt with its
                control words, such as `apply_chat_template(…, tokenize=False)` makes (`tekken.text_ids`).
            audio: one clip or a list of clips of any length, in the order of the placeholders over the whole batch; a
                clip is anything `mindone_audio.load_audio` takes. `audios` is the same.
            add_special_tokens: False adds no <s> and no </s>.
            keywords: sampling_rate (of arrays, in Hz, for checking only); output_labels (add `labels`);
                return_tensors ("np"); padding (default True: to the longest; False; "max_length" with max_length, in
                tokens), padding_side, pad_to_multiple_of.

        Returns:
            `input_ids`, `attention_mask`: int64 `[batch, length]`, padded on the left; given clips, `input_features`:
            float32 `[windows, mels, frames]`, the 30 s windows of all clips one after another, each clip's last one
            padded with silence; with output_labels, `labels`: `input_ids` with -100 for audio and padding.

        Raises:
            TypeError: a keyword that is not listed here.
            AudioError: a clip that cannot be read.
            ValueError: placeholders and clips do not match, or another argument's value is wrong.
        """
        texts, sources = as_texts(text), as_sources(audio, audios)
        self._check_placeholders([tekken.one_word_a_clip(item) for item in texts], len(sources))
        rows = [tekken.text_ids(self.tokenizer, item, add_special_tokens) for item in texts]
        return self._inputs(rows, sources, **keywords)

    def _inputs(
        self,
        rows: list[list[int]],
        sources: list,
        *,
        sampling_rate: int | None = None,
        return_tensors: str = "np",
        output_labels: bool = False,
        **tokenizer_kwargs: Any,
    ) -> BatchFeature:
        """Rows of ids, one [AUDIO] for each clip, and the clips, to model inputs."""
        self._check_keywords(sampling_rate, return_tensors, tokenizer_kwargs)
        features = [self._windows(clip) for clip in load_clips(sources, self.feature_extractor.sampling_rate)]
        tokens_of_window = self.feature_extractor.nb_max_frames // FRAMES_PER_TOKEN
        counts = iter([len(windows) * tokens_of_window for windows in features])
        rows = [
            [token for item in row for token in [item] * (next(counts) if item == self.audio_token_id else 1)]
            for row in rows
        ]
        inputs = self._tokenize(rows, add_special_tokens=False, **tokenizer_kwargs)
        if features:
            inputs["input_features"] = np.concatenate(features)
        if output_labels:
            inputs["labels"] = self._labels(inputs["input_ids"], inputs["attention_mask"])
        return BatchFeature(inputs)

    def _windows(self, clip: np.ndarray) -> np.ndarray:
        """A clip `[samples]` -> the log-mels of its windows, `[windows, mels, frames]`, from one mel of all of it."""
        extractor = self.feature_extractor
        windows = -(-len(clip) // extractor.n_samples)
        mel = log_mels([clip], extractor, windows * extractor.n_samples)[0]  # (mels, windows * frames)
        return mel.reshape((len(mel), windows, extractor.nb_max_frames)).transpose(1, 0, 2)


MODEL, PROCESSOR = VoxtralForConditionalGeneration, VoxtralProcessor

"""What the processors of all families share: conversations to text, clips to samples, tokens to and from text."""

import os
from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import PROCESSOR_NAME

from mindone_audio.inputs.audio import AudioError, describe, fit_window, is_one_clip, load_clips
from mindone_audio.inputs.conversation import chat_clips, clean_messages
from mindone_audio.inputs.log_mel import log_mels
from mindone_audio.inputs.tools import PLAIN, ToolFormat, for_template, has_tools, written
from mindone_audio.setting_fields import refusal
from mindone_audio.weights import hub

PADDING_KEYWORDS = ("max_length", "pad_to_multiple_of", "padding", "padding_side")
TOKENIZER_KEYWORDS = ("add_special_tokens", *PADDING_KEYWORDS)


class AudioTextProcessor:
    """Put in front of a transformers processor: NumPy out, no PyTorch, and no argument that is silently ignored.

    What `__call__` takes:
        text: one prompt or a batch of them, each with any number of placeholders.
        audio: one clip or a list of clips, in the order of the placeholders over the whole batch. A clip is anything
            `mindone_audio.load_audio` takes; an array must be at the feature extractor's rate. `audios`, the name that
            published examples use, is the same.
        output_labels: add `labels` for training, `[batch, length]`: the ids, -100 where they are audio or padding.
            What the user says is learned too, as in transformers.
        sampling_rate: of the arrays in `audio`, in Hz, for checking only.
        truncation: use the beginning of a clip that is longer than the limit of the model. It never cuts text.
        return_tensors: "np". See `mindone_audio.to_mindspore` for tensors.
        tokenizer_kwargs: padding (default True: to the longest; False; "max_length" with max_length, in tokens),
            padding_side, pad_to_multiple_of, add_special_tokens.
    What it raises: `TypeError` for another keyword; `AudioError` for a clip that cannot be read, is too long, or is too
    short for one token; `ValueError` where placeholders and clips do not match, or another argument's value is wrong.

    `keywords` are what it takes besides text and audio, `tokenizer_keywords` what it hands on to `_tokenize`. A family
    whose placeholders are repeated for each embedding of their clips gives `_extract`, the others their own `__call__`.
    """

    keywords = ("sampling_rate", "truncation", "output_labels", "return_tensors")
    tokenizer_keywords = TOKENIZER_KEYWORDS

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **download: Any):
        """Load a processor that transformers 4 or 5 saved, from a folder or a Hugging Face repository."""
        with hub.processor_files(pretrained_model_name_or_path, **download):
            processor = super().from_pretrained(
                pretrained_model_name_or_path, **download, **_special_tokens(pretrained_model_name_or_path, **download)
            )
        if stored := _silence_answers(pretrained_model_name_or_path, **download):
            processor.silence_answers = stored
        return processor

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
        **tokenizer_kwargs: Any,
    ) -> BatchFeature:
        """Tokenize text, repeating each placeholder for as many embeddings as its clip has, and extract features.

        Arguments and errors are those of the class `AudioTextProcessor`.

        Returns:
            `input_ids`, `attention_mask` and, if asked for, `labels`: int64 `[batch, length]`; and, given clips, the
            features that the family's class tells.
        """
        texts, clips = self._arguments(text, audio, audios, sampling_rate, return_tensors, tokenizer_kwargs)
        features, counts = self._extract(clips, truncation) if clips else ({}, [])
        data = {**self._tokenize(self._expand(texts, counts), **tokenizer_kwargs), **features}
        if output_labels:
            data["labels"] = self._labels(data["input_ids"], data["attention_mask"])
        return BatchFeature(data)

    def _extract(self, clips: list[np.ndarray], truncation: bool) -> tuple[dict[str, np.ndarray], list[int]]:
        """Clips -> features and their mask, and how many embeddings each clip has."""
        raise NotImplementedError

    def _expand(self, texts: list[str], counts: list[int]) -> list[str]:
        """Texts with the placeholder of clip i, counted over all texts, written for `counts[i]` embeddings."""
        remaining = iter(counts)
        pieces = [text.split(self.audio_token) for text in texts]
        return [first + "".join(self.expanded(next(remaining)) + part for part in rest) for first, *rest in pieces]

    def expanded(self, count: int) -> str:
        """What a placeholder of so many embeddings becomes."""
        return self.audio_token * count

    load_keywords: tuple[str, ...] = ()  # of the family's `from_pretrained`, besides those of a download
    # What `pipeline` asks where it is given a task and no text: the words that the family was trained with.
    questions = {"caption": "Describe the audio.", "transcribe": "Transcribe the speech."}

    # What the model says of a clip without speech when it is to transcribe: "silence_answers" of processor_config.json.
    # The pipeline takes it as no text.
    silence_answers: tuple[str, ...] = ()

    around_audio: tuple[int, ...] = ()  # tokens that begin and end a clip, where they are not learned either

    audio_first = True  # or the words before the clip that they are about

    @property
    def longest_clip(self) -> float | None:
        """Seconds of audio that the model takes at a time; None where it takes clips of any length."""
        return self.feature_extractor.chunk_length

    # What `transcription_inputs` takes as a language for a translation to English; None where no language makes one.
    english: str | None = None

    @property
    def transcription_window(self) -> float:
        """Seconds of the longest window of a transcription: that of the encoder, mostly."""
        return self.feature_extractor.chunk_length

    def answers_chats(self, generation_config: Any) -> bool:
        """Whether the model was tuned for conversations, so that it is asked by its chat template."""
        return True

    @property
    def tool_format(self) -> ToolFormat:
        """How the model is told of tools, and calls them."""
        return PLAIN

    def conversation_inputs(
        self, conversations: list[list[dict]], *, chat: bool, tools: list[dict] | None = None
    ) -> BatchFeature:
        """Model inputs of a batch of conversations, by the chat template or, for a base model, as raw prompts.

        tools: as for `apply_chat_template`. Raises `ValueError` for a base model and a conversation that is not one
        user message.
        """
        if chat:
            told = {"tools": tools} if tools else {}
            return self.apply_chat_template(
                conversations, add_generation_prompt=True, tokenize=True, return_dict=True, **told
            )
        texts, clips = [], []
        for messages in map(clean_messages, conversations):
            messages = written(PLAIN, messages, tools)
            if [message["role"] for message in messages] != ["user"]:
                raise ValueError(
                    "this is a base model, which continues one prompt and has no chat format: give one user message, "
                    "or use the instruction-tuned checkpoint"
                )
            content, found = messages[0]["content"], chat_clips(messages)
            words = [content] if isinstance(content, str) else [e["text"] for e in content if e["type"] == "text"]
            texts.append(self.placeholder * len(found) + " ".join(words))
            clips += found
        return self(texts, clips or None)

    def transcription_inputs(
        self, clips: list[np.ndarray], *, language: str | None, chat: bool, prompt: str | None = None
    ) -> BatchFeature:
        """Model inputs that ask for what is said in each clip. prompt: words that follow the question, such as names
        that may be said. Raises `ValueError` where a family takes no language, or no prompt."""
        if language is not None:
            raise refusal("language", f"={language!r}: this model family transcribes without being told the language")
        words = {"type": "text", "text": " ".join(filter(None, (self.questions["transcribe"], prompt)))}
        content = [[{"type": "audio", "audio": clip}, words][:: 1 if self.audio_first else -1] for clip in clips]
        return self.conversation_inputs([[{"role": "user", "content": parts}] for parts in content], chat=chat)

    def transcript_tokens(self, text: str) -> list[int]:
        """The tokens of what is said in a clip, without those that begin and end an answer."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    uses_device = False  # whether it computes with MindSpore, so that a server calls it in the thread that does
    frames_transcriptions = False  # whether the model puts words around what was said, which `transcription` takes off

    def transcription(self, answer: str) -> str:
        """What was said, of an answer to `transcription_inputs`: all of it, where a family puts no words around it."""
        return answer

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        chat_template: str | None = None,
        *,
        tools: list[dict] | None = None,
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
                path, base64; the clip is anything `mindone_audio.load_audio` takes. OpenAI's
                `{"type": "audio_url", "audio_url": {"url": …}}` and
                `{"type": "input_audio", "input_audio": {"data": …, "format": …}}` are clips too. A message of the
                assistant may have OpenAI's `tool_calls`, and one of the role "tool" answers to a `tool_call_id`.
            tools: functions that the model may call, in OpenAI's form: `{"type": "function", "function": {"name": …,
                "description": …, "parameters": JSON schema}}`. `tool_format` says how they are written.
            tokenize: False returns the text (a list for a batch). True loads the clips and returns `input_ids`, or
                with `return_dict=True` everything that `__call__` returns.
            processor_kwargs: with `tokenize=True`, those of `__call__` (truncation, padding, …).

        Raises:
            TypeError: a keyword for `__call__` without `tokenize=True`.
            ValueError: an element of an unknown type, or an audio element without exactly one clip.
        """
        clean, batched = self._conversations(conversation, tokenize, processor_kwargs)
        clean, told = self._with_tools(clean, tools)
        text = self._render(
            clean if batched else clean[0],
            chat_template,
            **told,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        if not tokenize:
            return text
        inputs = self(text, [clip for messages in clean for clip in chat_clips(messages)], **processor_kwargs)
        return inputs if return_dict else inputs["input_ids"]

    @staticmethod
    def _conversations(conversation: list, tokenize: bool, processor_kwargs: dict) -> tuple[list[list[dict]], bool]:
        """The arguments of `apply_chat_template`, checked: a list of conversations, and whether a batch was given."""
        if processor_kwargs and not tokenize:
            raise TypeError(
                f"{', '.join(sorted(processor_kwargs))} have no effect without tokenize=True: leave them out"
            )
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        return [clean_messages(messages) for messages in (conversation if batched else [conversation])], batched

    def _with_tools(self, conversations: list[list[dict]], tools: list[dict] | None) -> tuple[list[list[dict]], dict]:
        """Conversations as the chat template takes them, and its argument for tools, where it knows them."""
        form = self.tool_format
        if form.native:
            return [for_template(form, messages) for messages in conversations], {"tools": tools} if tools else {}
        if tools or any(map(has_tools, conversations)):
            conversations = [written(form, messages, tools) for messages in conversations]
        return conversations, {}

    def _render(self, conversation: list, chat_template: str | None, **settings: Any) -> str | list[str]:
        """The text of a checked conversation or a batch of them, with one placeholder a clip."""
        return super().apply_chat_template(conversation, chat_template, tokenize=False, **settings)

    def decode(self, tokens: Any, **kwargs: Any) -> str:
        """One row of token ids (MindSpore tensor, NumPy array or list, `[length]`) -> text."""
        ids = _as_ids(tokens)
        if isinstance(ids, list) and any(isinstance(item, list) for item in ids):
            raise ValueError(f"decode takes one row of ids and was given {len(ids)} rows: use batch_decode")
        return self.tokenizer.decode(ids, **kwargs)

    def batch_decode(self, tokens: Any, **kwargs: Any) -> list[str]:
        """Rows of token ids (MindSpore tensor or NumPy array `[batch, length]`, or a list of rows) -> texts."""
        return self.tokenizer.batch_decode(_as_ids(tokens), **kwargs)

    def _arguments(
        self, text: Any, audio: Any, audios: Any, sampling_rate: int | None, return_tensors: Any, tokenizer_kwargs: dict
    ) -> tuple[list[str], list[np.ndarray]]:
        """The arguments of `__call__`, checked: texts, and the samples of each clip at the extractor's rate."""
        self._check_keywords(sampling_rate, return_tensors, tokenizer_kwargs)
        texts, sources = as_texts(text), as_sources(audio, audios)
        self._check_placeholders(texts, len(sources))
        return texts, load_clips(sources, self.feature_extractor.sampling_rate)

    def _check_keywords(self, sampling_rate: int | None, return_tensors: Any, tokenizer_kwargs: dict[str, Any]) -> None:
        """`TypeError` for a keyword that no argument and not the tokenizer takes, `ValueError` for a wrong value."""
        if unknown := sorted(set(tokenizer_kwargs) - set(self.tokenizer_keywords)):
            raise TypeError(
                f"the processor does not know {', '.join(unknown)}: it takes text, audio (or audios), "
                f"{', '.join((*self.keywords, *self.tokenizer_keywords))}"
            )
        if return_tensors != "np":
            raise ValueError(
                f'return_tensors={return_tensors!r}: this processor returns NumPy arrays: pass return_tensors="np" or '
                "leave it out, then call mindone_audio.to_mindspore(inputs, dtype=model.dtype)"
            )
        if (tokenizer_kwargs.get("padding") == "max_length") != (tokenizer_kwargs.get("max_length") is not None):
            raise ValueError(
                'padding="max_length" and max_length=N, in tokens, work only together: pass both or neither'
            )
        rate = self.feature_extractor.sampling_rate
        if sampling_rate not in (None, rate):
            raise ValueError(
                f"sampling_rate={sampling_rate}, but this model hears {rate} Hz: resample first with "
                f"load_audio(clip, {rate}, source_sampling_rate={sampling_rate})"
            )

    def _check_placeholders(self, texts: list[str], num_clips: int) -> None:
        """`ValueError` unless the texts have one placeholder a clip."""
        found = sum(item.count(self.audio_token) for item in texts)
        if found != num_clips:
            raise ValueError(
                f"the text has {found} {self.audio_token} placeholder(s) and {num_clips} audio clip(s) were given: "
                f"write {self.placeholder} once for each clip. The text: {str(texts)[:300]}"
            )

    def _token_id(self, token: str) -> int:
        """The id of a token; `ValueError` where the tokenizer lacks it, which gives None or the unknown token's id."""
        token_id = self.tokenizer.convert_tokens_to_ids(token)
        if token_id is None or self.tokenizer.convert_ids_to_tokens(token_id) != token:
            raise ValueError(f"the tokenizer has no token {token}: it is not the tokenizer of a {type(self).__name__}")
        return token_id

    def _require_samples(self, clips: list[np.ndarray], least: int) -> None:
        """`AudioError` for a clip that is too short for one audio token, which takes `least` samples."""
        for number, clip in enumerate(clips):
            if len(clip) < least:
                raise AudioError(
                    f"audio clip {number} has {len(clip)} samples, too few for one audio token: give at least {least} "
                    f"({self.feature_extractor.sampling_rate} a second)"
                )

    def _log_mels(self, windows: list[np.ndarray], mask_name: str) -> dict[str, np.ndarray]:
        """Clips, each padded to the extractor's window -> `input_features` float32 `[windows, mels, frames]`, each
        normalised by itself, and, called `mask_name`, int32 `[windows, frames]`, 1 where a frame is audio."""
        extractor = self.feature_extractor
        frames = extractor.nb_max_frames
        valid = np.array([-(-len(window) // extractor.hop_length) for window in windows], np.int64)
        return {
            "input_features": log_mels(windows, extractor, extractor.n_samples),
            mask_name: (np.arange(frames) < valid[:, None]).astype(np.int32),
        }

    def _fitting(self, clips: list[np.ndarray], seconds: float, truncation: bool) -> list[np.ndarray]:
        """Clips that are long enough for a token and fit so many seconds, or their beginnings; `AudioError` else."""
        rate = self.feature_extractor.sampling_rate
        self._require_samples(clips, 2 * self.feature_extractor.hop_length + 1)
        return [
            fit_window(clip, seconds, rate, truncation=truncation, name=f"audio clip {number}")
            for number, clip in enumerate(clips)
        ]

    def _log_mels_of_longest(self, clips: list[np.ndarray], mask_name: str) -> dict[str, np.ndarray]:
        """As `_log_mels`, but with as many frames as the longest clip has instead of the extractor's window."""
        extractor = self.feature_extractor
        frames = np.array([-(-len(clip) // extractor.hop_length) for clip in clips])
        # Continued by zeros, as the whole window would be, further than a frame at the clip's end sees.
        samples = min(extractor.n_samples, int(frames.max()) * extractor.hop_length + extractor.n_fft)
        return {
            "input_features": log_mels(clips, extractor, samples)[:, :, : frames.max()],
            mask_name: (np.arange(frames.max()) < frames[:, None]).astype(np.int32),
        }

    def _labels(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """For training: the tokens, -100 where they are audio or padding. The user's text is learned too.

        Padding is what the mask hides: an end token that pads as well must be learned, or the model never ends.
        """
        unlearned = np.isin(input_ids, [self.audio_token_id, *self.around_audio])
        return np.where(unlearned | (attention_mask == 0), -100, input_ids)

    @property
    def placeholder(self) -> str:
        """What stands for a clip in a raw prompt."""
        return self.audio_token

    def _tokenize(self, texts: list[str], padding: Any = True, **kwargs: Any) -> dict[str, np.ndarray]:
        """Texts -> `input_ids` and `attention_mask`, int64 `[batch, length]`."""
        texts = _without_second_start(self.tokenizer, texts, kwargs.get("add_special_tokens", True))
        encoded = self.tokenizer(texts, padding=padding, return_attention_mask=True, **kwargs)
        return token_arrays(encoded, padding, kwargs.get("max_length"))


def _silence_answers(name_or_dir: str | os.PathLike, **download) -> tuple[str, ...]:
    try:
        return tuple(hub.read_config(name_or_dir, PROCESSOR_NAME, **download).get("silence_answers", ()))
    except OSError:  # there need not be one
        return ()


def token_arrays(encoded: Any, padding: Any, max_length: int | None) -> dict[str, np.ndarray]:
    """What a tokenizer or its `pad` returns -> `input_ids` and `attention_mask`, int64 `[batch, length]`.

    padding and max_length: what it was asked for. Raises `ValueError` for rows that are too long or not of one length.
    """
    lengths = sorted({len(row) for row in encoded["input_ids"]})
    if max_length is not None and lengths[-1] > max_length:
        raise ValueError(
            f"the text has {lengths[-1]} tokens, audio included, more than max_length={max_length}: raise it"
        )
    if len(lengths) > 1:
        raise ValueError(f"padding={padding!r} leaves rows of {lengths} tokens, which make no array: use padding=True")
    return {key: np.asarray(encoded[key], np.int64) for key in ("input_ids", "attention_mask")}


class StringContent:
    """Put between `AudioTextProcessor` and a transformers processor whose chat template takes content as one string.

    Elements follow each other as they are given, a clip as its placeholder, with `beside_clips` between it and what is
    next to it where there is no white space.
    """

    beside_clips = "\n"

    def apply_chat_template(self, conversation: list, chat_template: str | None = None, **kwargs: Any):
        """The tokenizer's rendering of one conversation or a batch of them."""
        batched = isinstance(conversation[0], (list, tuple))
        plain = [[self._plain(message) for message in chat] for chat in (conversation if batched else [conversation])]
        return self.tokenizer.apply_chat_template(
            plain if batched else plain[0], chat_template=chat_template or self.chat_template, **kwargs
        )

    def _plain(self, message: dict) -> dict:
        if isinstance(message["content"], str):
            return message
        text, before = "", None
        for part in message["content"]:
            words = self.placeholder if part["type"] == "audio" else part["text"]
            beside_clip = "audio" in (before, part["type"])
            if beside_clip and text and words and not (text[-1].isspace() or words[0].isspace()):
                text += self.beside_clips
            text, before = text + words, part["type"]
        return {**message, "content": text}


def as_texts(text: Any) -> list[str]:
    """One text or several -> a list of them; `ValueError` for anything else."""
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(item, str) for item in texts):
        raise ValueError(f"text must be a string or a list of strings, not {describe(text)}")
    return list(texts)


def as_sources(audio: Any, audios: Any) -> list:
    """The clips that either keyword gives; `ValueError` for both."""
    if audio is not None and audios is not None:
        raise ValueError("audio= and audios= were both given: they are the same argument, pass one of them")
    return as_list(audio if audios is None else audios)


def _special_tokens(name_or_dir: str | os.PathLike, **download: Any) -> dict[str, Any]:
    """For transformers 4, what 5 writes to tokenizer_config.json as a list of more special tokens."""
    extra = get_tokenizer_config(name_or_dir, **download).get("extra_special_tokens")
    return {"extra_special_tokens": {}, "additional_special_tokens": extra} if isinstance(extra, list) else {}


def _without_second_start(tokenizer: Any, texts: list[str], add_special_tokens: bool) -> list[str]:
    """Texts without the start token that a chat template wrote, where the tokenizer adds it (Llama's does)."""
    start = tokenizer.bos_token
    if not start or not add_special_tokens or tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return list(texts)
    return [text.removeprefix(start) for text in texts]


def as_list(audio: Any) -> list:
    """No clip, one clip or several -> a list of them; `(samples, rate)` is one clip."""
    if audio is None:
        return []
    return list(audio) if isinstance(audio, (list, tuple)) and not is_one_clip(audio) else [audio]


def _as_ids(tokens: Any) -> Any:
    """MindSpore tensors and NumPy arrays, also inside a list -> lists of int."""
    if hasattr(tokens, "asnumpy"):
        tokens = tokens.asnumpy()
    if isinstance(tokens, (np.ndarray, np.generic)):
        return tokens.tolist()
    return [_as_ids(item) for item in tokens] if isinstance(tokens, (list, tuple)) else tokens

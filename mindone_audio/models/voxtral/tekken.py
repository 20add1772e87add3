"""Prompts as mistral-common writes them: conversations, transcription requests and rendered text to token ids.

mistral-common wants to see each clip, to count its tokens. It is shown one silent sample instead, and every clip comes
out as [BEGIN_AUDIO] and a single [AUDIO], which a processor repeats once it knows the clip's length.
"""

import base64
import hashlib
import io
import os
import re
from functools import cache

import numpy as np
import soundfile
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.transcription.request import TranscriptionRequest
from mistral_common.tokens.tokenizers.base import TokenizerVersion
from transformers import MistralCommonTokenizer

TEKKEN_FILE = "tekken.json"
AUDIO, BEGIN_AUDIO, BOS = "[AUDIO]", "[BEGIN_AUDIO]", "<s>"
TOOL_CALLS = "[TOOL_CALLS]"
_CALL_ID = re.compile("[a-zA-Z0-9]{9}")


def load_tokenizer(path: str | os.PathLike) -> MistralCommonTokenizer:
    """The tokenizer of a tekken.json file; `ValueError` for a damaged one, and for one that knows no audio."""
    try:
        tokenizer = MistralCommonTokenizer(path)
    except (MistralCommonException, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{path} is not a tekken tokenizer: download it again ({error!r:.200})") from error
    if tokenizer.tokenizer.instruct_tokenizer.audio_encoder is None:
        raise ValueError(f"{path} has no audio section: it is the tokenizer of a model without audio")
    return tokenizer


def calls_token(tokenizer: MistralCommonTokenizer) -> int | None:
    """The token before the calls of an answer, which are a JSON list in version 7; None for another version."""
    tekken = tokenizer.tokenizer.instruct_tokenizer.tokenizer
    return tekken.get_special_token(TOOL_CALLS) if tekken.version == TokenizerVersion.v7 else None


def chat_ids(
    tokenizer: MistralCommonTokenizer,
    messages: list[dict],
    continue_final_message: bool,
    tools: list[dict] | None = None,
) -> list[int]:
    """Token ids of a conversation (`chat.clean_messages`), one [AUDIO] for each clip. tools: in OpenAI's form.

    A last message of the assistant's is closed by the end token, or with continue_final_message left open. Raises
    `ValueError` for a conversation that mistral-common refuses.
    """
    ends_with_answer = messages[-1]["role"] == "assistant"
    if continue_final_message and not ends_with_answer:
        raise ValueError(
            f"continue_final_message=True, but the last message is the {messages[-1]['role']}'s: end the conversation "
            "with the beginning of an assistant's message"
        )
    try:
        # mistral-common allows an answer at the end only if it is to be continued; closing it is one token more.
        request = ChatCompletionRequest.from_openai(
            messages=[_openai_message(message) for message in messages],
            tools=tools,
            continue_final_message=ends_with_answer,
        )
        tokens = tokenizer.tokenizer.encode_chat_completion(request).tokens
    except (MistralCommonException, ValueError, KeyError) as error:
        raise ValueError(f"mistral-common refuses this conversation: {error}") from error
    close = [tokenizer.eos_token_id] if ends_with_answer and not continue_final_message else []
    return _one_token_a_clip(tokenizer, tokens) + close


def transcription_ids(tokenizer: MistralCommonTokenizer, language: str | None, model_id: str | None) -> list[int]:
    """Token ids that ask for the transcript of one clip, which is one [AUDIO].

    language: two letters of ISO 639-1; None: the model finds out. Raises `ValueError` for another language.
    """
    try:
        request = TranscriptionRequest.from_openai(
            {"model": model_id, "file": io.BytesIO(_silence()), "language": language}
        )
        tokens = tokenizer.tokenizer.encode_transcription(request).tokens
    except (MistralCommonException, ValueError) as error:
        raise ValueError(
            f"language {language!r} is unknown: give two letters of ISO 639-1 such as 'en', or None to have it detected"
        ) from error
    return _one_token_a_clip(tokenizer, tokens)


def text_ids(tokenizer: MistralCommonTokenizer, text: str, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a text, one [AUDIO] for each clip.

    A text that begins with <s> or has [AUDIO] is a rendered prompt: its control words become control tokens, and
    add_special_tokens puts a missing <s> in front. Any other text is plain: its words are only words, and
    add_special_tokens wraps it in <s> and </s>, as transformers does.
    """
    tekken = tokenizer.tokenizer.instruct_tokenizer.tokenizer
    if not is_rendered(text):
        return tekken.encode(text, bos=add_special_tokens, eos=add_special_tokens)
    text = one_word_a_clip(text)
    if add_special_tokens and not text.startswith(BOS):
        text = BOS + text
    tokens = []
    for part in _control_words(tuple(tekken.id_to_piece(i) for i in range(tekken.num_special_tokens))).split(text):
        if part:
            is_control = tekken.is_special(part)
            tokens += [tekken.get_special_token(part)] if is_control else tekken.encode(part, bos=False, eos=False)
    return tokens


def is_rendered(text: str) -> bool:
    """Whether a text is a rendered prompt, and not plain text."""
    return text.startswith(BOS) or AUDIO in text


def one_word_a_clip(text: str) -> str:
    """The text with every clip as [BEGIN_AUDIO][AUDIO]: it may have neither [BEGIN_AUDIO], nor only one [AUDIO]."""
    clip = re.escape(AUDIO)
    return re.sub(f"{re.escape(BEGIN_AUDIO)}(?:{clip})+|{clip}", BEGIN_AUDIO + AUDIO, text)


@cache
def _control_words(words: tuple[str, ...]) -> re.Pattern:
    return re.compile(f"({'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})")


@cache
def _silence() -> bytes:
    """A wav file of one sample."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1, np.float32), 16_000, format="WAV")
    return file.getvalue()


def _openai_message(message: dict) -> dict:
    """A message in the format that mistral-common takes, with silence for each clip."""
    if message.get("tool_calls"):
        message = {
            **message,
            "tool_calls": [{**call, "id": _call_id(call.get("id"))} for call in message["tool_calls"]],
        }
    if message["role"] == "tool":
        message = {**message, "tool_call_id": _call_id(message.get("tool_call_id"))}
    if isinstance(message["content"], str):
        return message
    silence = {"data": base64.b64encode(_silence()).decode(), "format": "wav"}
    elements = [
        {"type": "text", "text": element["text"]}
        if element["type"] == "text"
        else {"type": "input_audio", "input_audio": silence}
        for element in message["content"]
    ]
    return {**message, "content": elements}


def _call_id(given: str | None) -> str:
    """An id of a call as Voxtral knows them: of another form, as other servers have them, 9 letters that it makes."""
    given = given or ""
    return given if _CALL_ID.fullmatch(given) else hashlib.sha256(given.encode()).hexdigest()[:9]


def _one_token_a_clip(tokenizer: MistralCommonTokenizer, tokens: list[int]) -> list[int]:
    """Of the padded window's run of [AUDIO] that silence becomes, the first; text never becomes that token."""
    audio = tokenizer.tokenizer.instruct_tokenizer.tokenizer.get_special_token(AUDIO)
    return [token for before, token in zip([None, *tokens], tokens) if not before == token == audio]

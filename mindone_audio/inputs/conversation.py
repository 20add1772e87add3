"""What is asked: conversations of text and audio elements, and the task schema, checked before a template sees them."""

from typing import Any

from mindone_audio.inputs.audio import describe, is_one_clip

# Of a chat element, where its clip may be; "audio_url" and "input_audio" are OpenAI's.
AUDIO_KEYS = ("audio", "audio_url", "url", "path", "base64", "input_audio")
AUDIO_TYPES = ("audio", "audio_url", "input_audio")  # of a chat element with a clip
SAMPLES_KEYS = ("array", "raw", "bytes")  # of a dictionary that is a clip itself, and not an element


def chat_clips(messages: list[dict]) -> list[Any]:
    """The clips of a conversation as they were given (paths, URLs, arrays, …), in the order of their placeholders."""
    clips = []
    for number, message in enumerate(messages):
        elements = [] if isinstance(message["content"], str) else message["content"]
        for element in elements:
            if element["type"] == "audio":
                keys = [key for key in AUDIO_KEYS if key in element]
                if len(keys) != 1:
                    raise ValueError(
                        f"an audio element of message {number} names {len(keys)} clips ({', '.join(keys) or 'none'}): "
                        f"give it exactly one of {', '.join(AUDIO_KEYS)}"
                    )
                clips.append(element_clip(keys[0], element[keys[0]]))
    return clips


def element_clip(key: str, value: Any) -> Any:
    """The clip that stands under one of `AUDIO_KEYS`, out of the dictionaries that OpenAI puts around it.

    `ValueError` for a dictionary of other keys.
    """
    found = f"an object with {_listed(value)}" if isinstance(value, dict) else describe(value)
    if isinstance(value, dict) and "url" in value and key != "input_audio":
        if set(value) - {"url", "detail"} or not isinstance(value["url"], str):
            raise ValueError(f'"{key}" is a URL or {{"url": URL}}, not {found}')
        return value["url"]
    if key == "input_audio" or (isinstance(value, dict) and "data" in value):
        data = value.get("data") if isinstance(value, dict) else None
        if not isinstance(data, str) or set(value) - {"data", "format"}:
            raise ValueError(f'"{key}" must be {{"data": base64, "format": "wav" or "mp3"}}, not {found}')
        # Written as a data URI, because a plain string might be a path.
        return data if data[:5].lower() == "data:" else f"data:;base64,{data}"
    return value


def clean_messages(messages: list[dict]) -> list[dict]:
    """The messages with every element checked, its type written out and its None values dropped.

    The template counts an element as audio if it merely has a key "audio", even where that is None, as it is in every
    element of a data set that fills up missing keys.
    """
    if not messages:
        raise ValueError("the conversation is empty: give at least one message")
    clean = []
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) and "role" in message else None
        if content is None and isinstance(message, dict) and message.get("tool_calls"):
            content = ""
        if isinstance(content, (list, tuple)):
            content = [_clean_element(element, number) for element in content]
        elif not isinstance(content, str):
            raise ValueError(
                f'message {number} must be {{"role": …, "content": string or list of elements}}, not {_short(message)}'
            )
        clean.append({**message, "content": content})
    return clean


def _clean_element(element: Any, number: int) -> dict:
    element = {key: value for key, value in element.items() if value is not None} if isinstance(element, dict) else {}
    has_clip = any(key in element for key in AUDIO_KEYS)
    kind = element.get("type") or ("audio" if has_clip else "text")
    no_text = has_clip or not isinstance(element.get("text"), str)
    if kind not in ("text", *AUDIO_TYPES) or (kind == "text" and no_text):
        raise ValueError(
            f"message {number} has a content element of type {_short(kind)} with the keys "
            f'{sorted(map(str, element))}: it must be {{"type": "text", "text": …}} or '
            f'{{"type": "audio", KEY: clip}}, KEY one of {", ".join(AUDIO_KEYS)}'
        )
    if kind == "text":
        return {**element, "type": kind}
    keys = [key for key in AUDIO_KEYS if key in element]
    if len(keys) == 1:  # else `chat_clips` refuses it
        clip = element_clip(keys[0], element.pop(keys[0]))
        element["audio" if keys[0] == "input_audio" else keys[0]] = clip  # templates know nothing of the former
    return {**element, "type": "audio"}


def task_schema(item: Any) -> tuple[list[Any], str | None, dict]:
    """Clips, text and parameters of an input that is no conversation; `ValueError` for one of another form."""
    if not isinstance(item, dict) or _is_clip(item):
        return [item], None, {}
    parameters: dict = {}
    if "inputs" in item:
        if unknown := sorted(set(map(str, item)) - {"inputs", "parameters"}):
            raise ValueError(f"an input has the keys inputs and parameters, not {_listed(unknown)}")
        parameters = item.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError(f'"parameters" must be an object of settings, not {_short(parameters)}')
        item = item["inputs"]
        if not isinstance(item, dict) or _is_clip(item):
            return [item], None, parameters
    if unknown := sorted(set(map(str, item)) - {"text", *AUDIO_KEYS}):
        raise ValueError(f'an input has "audio" and "text", not {_listed(unknown)}')
    keys = [key for key in AUDIO_KEYS if item.get(key) is not None]
    if len(keys) != 1:
        raise ValueError(f'an input needs one clip under "audio" and has {len(keys)}: {sorted(map(str, item))}')
    text = item.get("text")
    if text is not None and not isinstance(text, str):
        raise ValueError(f'"text" must be a string, not {_short(text)}')
    clips = element_clip(keys[0], item[keys[0]])
    several = isinstance(clips, (list, tuple)) and not is_one_clip(clips)
    return (list(clips) if several else [clips]), text, parameters


def _is_clip(item: dict) -> bool:
    """Whether a dictionary is a clip, as data sets and transformers have it, and not an input with one."""
    return any(key in item for key in SAMPLES_KEYS)


def _short(value: Any) -> str:
    """What a message repeats of a wrong value: not all of a long one, and no samples."""
    small = isinstance(value, (int, float, type(None)))
    return f"{value!r:.80}" if small else describe(value)


def _listed(keys: Any) -> str:
    return ", ".join(f"{key!s:.40}" for key in list(keys)[:8])

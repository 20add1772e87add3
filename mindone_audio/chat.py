"""What is asked: conversations of text and audio elements, and the task schema, checked before a template sees them."""

from typing import Any

TASKS = ("caption", "transcribe")  # what a family has its own words for
AUDIO_KEYS = ("audio", "audio_url", "url", "path", "base64")  # of a chat element, where its clip may be


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
                clips.append(element[keys[0]])
    return clips


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
        if isinstance(content, (list, tuple)):
            content = [_clean_element(element, number) for element in content]
        elif not isinstance(content, str):
            raise ValueError(
                f'message {number} must be {{"role": …, "content": string or list of elements}}, not {message!r:.80}'
            )
        clean.append({**message, "content": content})
    return clean


def _clean_element(element: Any, number: int) -> dict:
    element = {key: value for key, value in element.items() if value is not None} if isinstance(element, dict) else {}
    has_clip = any(key in element for key in AUDIO_KEYS)
    kind = element.get("type") or ("audio" if has_clip else "text")
    if kind not in ("text", "audio") or (kind == "text" and (has_clip or not isinstance(element.get("text"), str))):
        raise ValueError(
            f"message {number} has a content element of type {kind!r} with the keys {sorted(element)}: it must be "
            f'{{"type": "text", "text": …}} or {{"type": "audio", KEY: clip}}, KEY one of {", ".join(AUDIO_KEYS)}'
        )
    return {**element, "type": kind}


def task_schema(item: Any) -> tuple[list[Any], str | None, dict]:
    """Clips, text and parameters of an input that is no conversation; `ValueError` for one of another form."""
    if not isinstance(item, dict) or "array" in item:
        return [item], None, {}
    parameters: dict = {}
    if "inputs" in item:
        if unknown := sorted(set(item) - {"inputs", "parameters"}):
            raise ValueError(f"an input has the keys inputs and parameters, not {', '.join(map(str, unknown))}")
        parameters = item.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError(f'"parameters" must be an object of settings, not {parameters!r:.80}')
        item = item["inputs"]
        if not isinstance(item, dict):
            return [item], None, parameters
    if unknown := sorted(set(item) - {"text", *AUDIO_KEYS}):
        raise ValueError(f'an input has "audio" and "text", not {", ".join(map(str, unknown))}')
    keys = [key for key in AUDIO_KEYS if item.get(key) is not None]
    if len(keys) != 1:
        raise ValueError(f'an input needs one clip under "audio" and has {len(keys)}: {sorted(map(str, item))}')
    text = item.get("text")
    if text is not None and not isinstance(text, str):
        raise ValueError(f'"text" must be a string, not {text!r:.80}')
    clips = item[keys[0]]
    return (list(clips) if isinstance(clips, (list, tuple)) else [clips]), text, parameters

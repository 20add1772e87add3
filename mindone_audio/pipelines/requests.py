"""What one call of the pipeline asks: inputs are checked, loaded, cut into windows, and grouped into batches."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jinja2
import numpy as np

from mindone_audio.generation.settings import (
    GENERATE_ARGUMENTS,
    GenerationSettings,
    RequestOptions,
    flag,
    real,
    settle,
    split_request,
    stored,
)
from mindone_audio.inputs.audio import SAMPLING_RATE, ClipTooLongError, load_clip, quiet_windows
from mindone_audio.inputs.conversation import chat_clips, clean_messages, task_schema
from mindone_audio.setting_fields import MAX_NEW_TOKENS, SettingError

SHORTEST_WINDOW = 1.0  # seconds


@dataclass(frozen=True)
class Request:
    """One thing asked: a conversation, or a clip to transcribe, and the settings for it.

    messages: as `apply_chat_template` takes them, audio elements as float32 samples once they are loaded. given: the
    conversation as it was given, None where it was a clip and a text. arguments: of `generate`, settings and others.
    chosen: the settings that they make with the model's own. transcribe: the answer is a transcription of the clip.
    language: of the speech, as "en", and prompt: words that follow the question, where a family takes them. window: the
    longest audio in seconds that goes to the model at a time, None for any. by_windows: a longer clip is cut into
    windows, and is an error otherwise. tools: functions that the model is told of, as `apply_chat_template` takes them.
    """

    messages: list[dict]
    given: list[dict] | None = None
    text: str = ""
    arguments: dict = field(default_factory=dict)
    chosen: GenerationSettings = field(default_factory=GenerationSettings)
    stops: tuple[str, ...] = ()
    full_text: bool = False
    count_tokens: bool = False
    transcribe: bool = False
    language: str | None = None
    prompt: str | None = None
    window: float | None = None
    by_windows: bool = False
    tools: tuple[dict, ...] = ()

    @property
    def clips(self) -> list[np.ndarray]:
        """The samples of every clip."""
        return chat_clips(self.messages)


def is_conversation(value: Any) -> bool:
    """Whether this is a list of messages."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def texts_of(text: str | list[str] | None, count: int) -> list[str | None]:
    """The question of each of `count` inputs, None where there is none; `ValueError` for wrong ones."""
    texts = list(text) if isinstance(text, (list, tuple)) else [text] * count
    if len(texts) != count:
        raise ValueError(f"{len(texts)} texts were given for {count} inputs: give one, or one for each")
    if wrong := [item for item in texts if item is not None and not isinstance(item, str)]:
        raise ValueError(f"text must be a string, or a list of strings, not {wrong[0]!r:.80}")
    return texts


def read_request(model: Any, processor: Any, item: Any, text: str | None, task: str | None, settings: dict) -> Request:
    """An input as it was given, checked; its clips are not loaded yet."""
    given, inner_parameters = None, {}
    if is_conversation(item):
        if text is not None or task is not None:
            raise ValueError("a conversation says itself what is asked: leave out text and task")
        given, clips = item, None
    else:
        clips, inner_text, inner_parameters = task_schema(item)
        if inner_text is not None and text is not None:
            raise ValueError(f"the text is given twice: {inner_text!r} in the input and {text!r} beside it")
        text = inner_text if text is None else text
    options, arguments, chosen = _settings(model, processor, settings, inner_parameters, task == "transcribe")
    if task is not None and text is not None:
        raise ValueError(f"task={task!r} and text={text!r} were both given: pass one of them")
    if given is not None:
        messages, question = clean_messages(given), ""
    else:
        question = text if text is not None else processor.questions[task or "caption"]
        content = [{"type": "audio", "audio": clip} for clip in clips]
        if len(content) != 1 and task == "transcribe":
            raise ValueError(f"{len(content)} clips were given to transcribe at once: give each as an input of its own")
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    return Request(
        messages,
        given,
        question,
        arguments,
        chosen,
        tuple(options.stop_sequence),
        options.return_full_text,
        options.return_token_count,
        task == "transcribe",
        options.language,
        options.prompt or None,
    )


def _settings(
    model: Any, processor: Any, settings: dict, own: dict, transcribe: bool
) -> tuple[RequestOptions, dict, GenerationSettings]:
    """Settings of a call and an input's own, checked: the pipeline's, arguments for `generate`, and what it makes
    of them."""
    handed_on = {name: settings[name] for name in GENERATE_ARGUMENTS if settings.get(name) is not None}
    shared = {name: value for name, value in settings.items() if name not in GENERATE_ARGUMENTS}
    split_request(own)  # an input may not bring the arguments that a call may
    options, asked = split_request({**shared, **own})
    for name, value in (("language", options.language), ("prompt", options.prompt)):
        if value is not None and not transcribe:
            raise SettingError(
                lambda say, name=name, value=value: (
                    f"{say(name)}={value!r:.80} goes with {say('task', 'transcribe')}: leave it out"
                )
            )
    if "compile" in handed_on:
        handed_on["compile"] = flag("compile", handed_on["compile"])
    for name, methods in (("streamer", ("put", "end")), ("tokenizer", ("decode",))):
        if name in handed_on and not all(hasattr(handed_on[name], method) for method in methods):
            raise ValueError(f"{name} must have {' and '.join(methods)}, unlike {handed_on[name]!r:.80}")
    config, decoder = handed_on.get("generation_config"), getattr(model, "language_model", None)
    lengths = {**stored("generation_config", config), **asked}
    if lengths.get("max_new_tokens") is None and lengths.get("max_length") is None:
        asked["max_new_tokens"] = MAX_NEW_TOKENS[transcribe]
    vocabulary = None if decoder is None else decoder.config.vocab_size
    chosen = settle(model.generation_config, asked, config, vocabulary=vocabulary, warn=False)
    if chosen.num_return_sequences != 1:
        raise ValueError("the pipeline gives one answer for each input: call it again, or use model.generate")
    if options.stop_sequence:
        asked["stop_strings"] = [*options.stop_sequence, *chosen.stops]
    return options, {"tokenizer": processor.tokenizer} | handed_on | asked, chosen


def longest_window(processor: Any, window: float | None, task: str | None) -> float | None:
    """Seconds of the longest window: the limit of the model, or for a transcription the window of its encoder."""
    if window is not None:
        window = real("window", window, SHORTEST_WINDOW)
    if window is None and task == "transcribe":
        window = processor.transcription_window
    known = [seconds for seconds in (window, processor.longest_clip) if seconds is not None]
    return min(known, default=None)


def load_request(request: Request) -> Request:
    """The request with the samples of its clips; `AudioError` for one that cannot be read or is too long."""
    loaded = []
    for message in request.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {"type": "audio", "audio": load_clip(chat_clips([{"content": [element]}])[0])}
                if element["type"] == "audio"
                else element
                for element in content
            ]
        loaded.append({**message, "content": content})
    request = replace(request, messages=loaded)
    _check_length(request)
    return request


def _check_length(request: Request) -> None:
    """`AudioError` for a clip that is longer than the limit of the model and is not cut into windows."""
    for number, clip in enumerate(request.clips):
        seconds = len(clip) / SAMPLING_RATE
        if request.window is None or seconds <= request.window or (request.by_windows and len(request.clips) == 1):
            continue
        raise ClipTooLongError(
            f"clip {number} is {seconds:.2f} s long and the model hears {request.window:g} s at a time",
            'cut it, pass long_audio="windows" for one answer a window, or task="transcribe"',
        )


def windows_of(request: Request) -> Iterator[tuple[int, Request]]:
    """The request with each window of its clip, and the sample at which the window starts; mostly one."""
    longest, clips = request.window, request.clips
    if longest is None or not clips or all(len(clip) <= longest * SAMPLING_RATE for clip in clips):
        yield 0, request
        return
    for start, end in quiet_windows(clips[0], SAMPLING_RATE, longest):
        content = [{"type": "audio", "audio": clips[0][start:end]}]
        words = [element for element in request.messages[0]["content"] if element["type"] == "text"]
        yield start, replace(request, messages=[{"role": "user", "content": content + words}])


def prepared(pipe: Any, scheduler: Any, request: Request) -> Any:
    """A request as a scheduler takes it, in any thread but the scheduler's; `ValueError` where it cannot be."""
    try:
        if pipe.processor.uses_device:
            return scheduler.run(partial(pipe.prepare, request)).result()
        return pipe.prepare(request)
    except jinja2.TemplateError as error:  # as of roles that do not alternate
        raise ValueError(f"the model's chat template refuses these messages: {error}") from error

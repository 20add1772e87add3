"""`pipeline("audio-text-to-text")`: clips and questions in, text out, one by one or in batches."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.conversion import to_mindspore
from mindone_audio.generation.settings import (
    GENERATE_ARGUMENTS,
    GenerationSettings,
    RequestOptions,
    flag,
    real,
    settle,
    split_request,
    stored,
    whole,
)
from mindone_audio.generation.text_stream import cut, stripped, text_stream
from mindone_audio.inputs.audio import (
    SAMPLING_RATE,
    AudioError,
    ClipTooLongError,
    is_one_clip,
    load_clip,
    quiet_windows,
)
from mindone_audio.inputs.conversation import chat_clips, clean_messages, task_schema
from mindone_audio.setting_fields import TASKS, SettingError

TASK = "audio-text-to-text"
MAX_NEW_TOKENS = {False: 128, True: 256}  # where a call says nothing else; 30 s of speech are at most some 200
AHEAD = 2  # batches of clips that are loaded together, to put those of similar length into one
SHORTEST_WINDOW = 1.0  # seconds
_REFUSALS = (TypeError, ValueError, OverflowError, OSError)  # of one input, that others are answered in spite of
SILENCE = 1e-4  # of full scale, the loudest sample of a window that is not worth transcribing


class Answers(list):
    """A list of `{"generated_text": …}`, which also answers to the name of a key.

    `answers["generated_text"]` is the text where one thing was asked, and the list of texts where a list was.
    """

    def __init__(self, answers: Sequence[dict], single: bool):
        super().__init__(answers)
        self.single = single

    def __getitem__(self, key):
        if isinstance(key, str):
            values = [answer[key] for answer in self]
            return values[0] if self.single else values
        return super().__getitem__(key)


@dataclass(frozen=True)
class Request:
    """One thing asked: a conversation, or a clip to transcribe, and the settings for it.

    messages: as `apply_chat_template` takes them, audio elements as float32 samples once they are loaded. given: the
    conversation as it was given, None where it was a clip and a text. arguments: of `generate`, settings and others.
    chosen: the settings that they make with the model's own. transcribe: the clip is to be written down. language: of
    the speech, as "en", where a family takes one. window: seconds of the longest piece that goes to the model at a
    time, None for any.
    by_windows: a clip longer than that is cut into windows, and is an error otherwise.
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
    window: float | None = None
    by_windows: bool = False

    @property
    def clips(self) -> list[np.ndarray]:
        """The samples of every clip."""
        return chat_clips(self.messages)

    @property
    def length(self) -> int:
        """Samples in all, by which requests are put into batches."""
        return sum(len(clip) for clip in self.clips)


def pipeline(
    task: str = TASK,
    model: Any = None,
    processor: Any = None,
    *,
    device: str | None = None,
    mindspore_dtype: Any = None,
    adapter: str | os.PathLike | None = None,
    **download: Any,
) -> "AudioTextToTextPipeline":
    """A pipeline for `"audio-text-to-text"`, the only task.

    model: a model, a checkpoint folder or a Hugging Face id; None is the small checkpoint that comes with the package.
    processor: a processor, or where it is; None is the model's own. device: "auto", "cpu", "ascend", "ascend:1"; None
    leaves MindSpore's choice. mindspore_dtype: None for the checkpoint's. adapter: a folder or Hugging Face id of a
    LoRA adapter of that model, which is put on it in place (`finetune.load_adapter`). download: revision, cache_dir,
    token, local_files_only, subfolder. Raises what `from_pretrained` and `load_adapter` raise, and `ValueError` for
    another task.
    """
    from mindone_audio.machine.device import set_device
    from mindone_audio.models import AutoModelForAudioTextToText, AutoProcessor

    if task != TASK:
        raise ValueError(f"unknown task {task!r}: this package has {TASK!r}")
    if device is not None:
        set_device(device)
    name = demo_checkpoint() if model is None else model
    if isinstance(name, (str, os.PathLike)):
        model = AutoModelForAudioTextToText.from_pretrained(name, mindspore_dtype=mindspore_dtype, **download)
    elif processor is None and not getattr(model, "name_or_path", ""):
        raise ValueError("a model object needs its processor: pipeline(model=model, processor=processor)")
    if processor is None or isinstance(processor, (str, os.PathLike)):
        processor = AutoProcessor.from_pretrained(processor or getattr(model, "name_or_path", name), **download)
    if adapter is not None:
        from mindone_audio.adapters.lora import load_adapter
        from mindone_audio.weights.hub import ACCESS_KEYWORDS

        access = {name: download[name] for name in ACCESS_KEYWORDS if name in download}
        model = load_adapter(model, adapter, **access).get_base_model()
    return AudioTextToTextPipeline(model, processor)


class AudioTextToTextPipeline:
    """Answers questions about clips; made by `pipeline`."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.explain: Callable[[Exception], str] = str  # what is told of an input that failed, with on_error="return"

    def __call__(
        self,
        inputs: Any,
        text: str | list[str] | None = None,
        *,
        task: str | None = None,
        generate_kwargs: dict | None = None,
        batch_size: int = 8,
        long_audio: str | None = None,
        window: float | None = None,
        on_error: str = "raise",
        stream: bool = False,
        progress: bool | None = None,
        **parameters: Any,
    ) -> Answers | Iterator[str]:
        """Answer one input, or a list of them.

        Args:
            inputs: a clip (whatever `load_audio` takes); the task schema
                `{"inputs": {"audio": …, "text": …}, "parameters": {…}}` or just its inner part, where "audio" may be a
                list of clips; a conversation (a list of messages); or a list of any of these.
            text: what to ask; one for all inputs, or a list with one for each. None asks for a caption.
            task: "caption" or "transcribe" instead of a text, in the words that the model's family has for it.
            generate_kwargs: settings of `generate`, for all inputs; "parameters" of an input change them.
            batch_size: how many inputs are answered at a time, of a few batches those of similar length together;
                the clips of later ones are not loaded yet.
            long_audio: for a question about a clip that is longer than the model hears: "windows" answers for each
                window and joins the answers by newlines. Transcriptions always go by windows.
            window: seconds of the longest piece of a transcription; None is one window of the encoder, mostly 30 s.
            on_error: "raise", or "return" `{"generated_text": None, "error": message}` for an input that fails.
            stream: return an iterator of text for one input.
            progress: a bar for a list; None shows it on a terminal.
            parameters: return_full_text (the prompt, or the conversation with the answer appended),
                return_token_count (adds "tokens", how many were generated, to each answer), stop_sequence (a string or
                a list; the text ends before it), and settings of `generate`. With task="transcribe" also language, as
                "en", for families that take one.

        Returns:
            `Answers`: `{"generated_text": …}` for each input, in their order; a transcription has also "chunks", each
            with "start" and "end" in seconds, the same as "timestamp", and its "text".

        Raises:
            AudioError: a clip that cannot be read, or is longer than the model hears.
            TypeError, ValueError: anything else that is wrong with an input or a setting.
        """
        if task not in (None, *TASKS):
            raise ValueError(f"unknown task {task!r}: it may be {' or '.join(TASKS)}, or left out with a text")
        if on_error not in ("raise", "return"):
            raise ValueError(f'on_error must be "raise" or "return", not {on_error!r}')
        if window is not None and task != "transcribe":
            raise ValueError(f'window={window!r} is for task="transcribe"; see long_audio for questions')
        if long_audio not in (None, "windows"):
            raise ValueError(f'long_audio must be "windows" or left out, not {long_audio!r}')
        if generate_kwargs is not None and not isinstance(generate_kwargs, Mapping):
            raise ValueError(f"generate_kwargs must be a dict of settings of generate, not {generate_kwargs!r:.80}")
        batch_size, stream = whole("batch_size", batch_size, 1), flag("stream", stream)
        single = not isinstance(inputs, (list, tuple)) or _is_conversation(inputs) or is_one_clip(inputs)
        items = [inputs] if single else list(inputs)
        texts = self._texts(text, len(items))
        settings = {**(generate_kwargs or {}), **parameters}
        windows = {"window": self._window(window, task), "by_windows": task == "transcribe" or long_audio == "windows"}
        if stream:
            if not single:
                raise ValueError("stream=True takes one input, not a list: call the pipeline once for each")
            request = self._request(items[0], texts[0], task, settings)
            return self._stream(self._loaded(replace(request, **windows)))
        answers: dict[int, dict] = {}
        requests: dict[int, Request] = {}
        for place, item in enumerate(items):  # all of them, before anything is computed
            try:
                requests[place] = replace(self._request(item, texts[place], task, settings), **windows)
            except _REFUSALS as error:
                answers[place] = self._failure(error, on_error, place, single)
        places, some = list(requests), AHEAD * batch_size
        hidden = True if single else None if progress is None else not progress  # None: shown on a terminal
        with tqdm(desc="answering", total=len(items), unit="clip", disable=hidden, leave=False) as bar:
            bar.update(len(answers))
            for first in range(0, len(places), some):
                chosen = {place: requests[place] for place in places[first : first + some]}
                answers |= self._answer_some(chosen, batch_size, on_error, single, bar)
        return Answers([answers[place] for place in range(len(items))], single)

    def _answer_some(
        self, requests: dict[int, Request], batch_size: int, on_error: str, single: bool, bar: tqdm
    ) -> dict[int, dict]:
        """Answers of a few batches of inputs, whose clips are in memory until it returns."""
        answers: dict[int, dict] = {}
        loaded: dict[int, Request] = {}
        for place, request in requests.items():
            try:
                loaded[place] = self._loaded(request)
            except _REFUSALS as error:
                answers[place] = self._failure(error, on_error, place, single)
        bar.update(len(answers))
        for batch in _batches(loaded, batch_size):
            answers |= zip(batch, self._answer_each(loaded, batch, batch_size, on_error, single))
            bar.update(len(batch))
        return answers

    def _texts(self, text: str | list[str] | None, count: int) -> list[str | None]:
        texts = list(text) if isinstance(text, (list, tuple)) else [text] * count
        if len(texts) != count:
            raise ValueError(f"{len(texts)} texts were given for {count} inputs: give one, or one for each")
        if wrong := [item for item in texts if item is not None and not isinstance(item, str)]:
            raise ValueError(f"text must be a string, or a list of strings, not {wrong[0]!r:.80}")
        return texts

    def _request(self, item: Any, text: str | None, task: str | None, settings: dict) -> Request:
        """An input as it was given, checked; its clips are not loaded yet."""
        given, inner_parameters = None, {}
        if _is_conversation(item):
            if text is not None or task is not None:
                raise ValueError("a conversation says itself what is asked: leave out text and task")
            given, clips = item, None
        else:
            clips, inner_text, inner_parameters = task_schema(item)
            if inner_text is not None and text is not None:
                raise ValueError(f"the text is given twice: {inner_text!r} in the input and {text!r} beside it")
            text = inner_text if text is None else text
        options, arguments, chosen = self._settings(settings, inner_parameters, task == "transcribe")
        if task is not None and text is not None:
            raise ValueError(f"task={task!r} and text={text!r} were both given: pass one of them")
        if given is not None:
            messages, question = clean_messages(given), ""
        else:
            question = text if text is not None else self.processor.questions[task or "caption"]
            content = [{"type": "audio", "audio": clip} for clip in clips]
            if len(content) != 1 and task == "transcribe":
                raise ValueError(
                    f"{len(content)} clips were given to transcribe at once: give each as an input of its own"
                )
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
        )

    def _settings(self, settings: dict, own: dict, transcribe: bool) -> tuple[RequestOptions, dict, GenerationSettings]:
        """Settings of a call and an input's own, checked: the pipeline's, arguments for `generate`, and what it makes
        of them."""
        handed_on = {name: settings[name] for name in GENERATE_ARGUMENTS if settings.get(name) is not None}
        shared = {name: value for name, value in settings.items() if name not in GENERATE_ARGUMENTS}
        split_request(own)  # an input may not bring the arguments that a call may
        options, asked = split_request({**shared, **own})
        if options.language is not None and not transcribe:
            raise SettingError(
                lambda say: f"{say('language', options.language)} goes with {say('task', 'transcribe')}: leave it out"
            )
        if "compile" in handed_on:
            handed_on["compile"] = flag("compile", handed_on["compile"])
        for name, methods in (("streamer", ("put", "end")), ("tokenizer", ("decode",))):
            if name in handed_on and not all(hasattr(handed_on[name], method) for method in methods):
                raise ValueError(f"{name} must have {' and '.join(methods)}, unlike {handed_on[name]!r:.80}")
        config, decoder = handed_on.get("generation_config"), getattr(self.model, "language_model", None)
        lengths = {**stored("generation_config", config), **asked}
        if lengths.get("max_new_tokens") is None and lengths.get("max_length") is None:
            asked["max_new_tokens"] = MAX_NEW_TOKENS[transcribe]
        vocabulary = None if decoder is None else decoder.config.vocab_size
        chosen = settle(self.model.generation_config, asked, config, vocabulary=vocabulary, warn=False)
        if chosen.num_return_sequences != 1:
            raise ValueError("the pipeline gives one answer for each input: call it again, or use model.generate")
        if options.stop_sequence:
            asked["stop_strings"] = [*options.stop_sequence, *chosen.stops]
        return options, {"tokenizer": self.processor.tokenizer} | handed_on | asked, chosen

    @staticmethod
    def _loaded(request: Request) -> Request:
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

    def _window(self, window: float | None, task: str | None) -> float | None:
        """Seconds of the longest piece: what the model hears, or of a transcription what its encoder hears at once."""
        if window is not None:
            window = real("window", window, SHORTEST_WINDOW)
        if window is None and task == "transcribe":
            window = self.processor.feature_extractor.chunk_length
        known = [seconds for seconds in (window, self.processor.longest_clip) if seconds is not None]
        return min(known, default=None)

    def _answer_each(
        self, requests: dict[int, Request], places: list[int], batch_size: int, on_error: str, single: bool
    ) -> list[dict]:
        """Answers of one batch; where it fails as a whole, each request is tried alone to find the one at fault."""
        try:
            return self._answer([requests[place] for place in places], batch_size)
        except _REFUSALS as error:
            if len(places) == 1:
                return [self._failure(error, on_error, places[0], single)]
        return [self._answer_each(requests, [place], batch_size, on_error, single)[0] for place in places]

    def _answer(self, batch: list[Request], batch_size: int) -> list[dict]:
        """Answers of requests with equal settings, long clips by windows."""
        parts, owners, windows = [], [], []
        for number, request in enumerate(batch):
            for start, part in self._windows(request):
                parts.append(part)
                owners.append(number)
                windows.append((start / SAMPLING_RATE, (start + sum(map(len, part.clips[:1]))) / SAMPLING_RATE))
        texts, counts = [""] * len(parts), [0] * len(parts)
        heard = [i for i, part in enumerate(parts) if not (part.transcribe and _is_silent(part.clips[0]))]
        for first in range(0, len(heard), batch_size):
            chosen = heard[first : first + batch_size]
            for i, (text, count) in zip(chosen, self._generate([parts[i] for i in chosen])):
                texts[i], counts[i] = text, count
        answers = []
        for number, request in enumerate(batch):
            own = [i for i, owner in enumerate(owners) if owner == number]
            answer = self._result(request, [(windows[i], texts[i]) for i in own])
            answers.append(answer | ({"tokens": sum(counts[i] for i in own)} if request.count_tokens else {}))
        return answers

    def _failure(self, error: Exception, on_error: str, place: int, single: bool) -> dict:
        if on_error == "return":
            return {"generated_text": None, "error": self.explain(error)}
        if single:
            raise error
        kind = type(error) if isinstance(error, AudioError) else OSError if isinstance(error, OSError) else ValueError
        raise kind(f"input {place}: {error}") from error

    @staticmethod
    def _windows(request: Request) -> Iterator[tuple[int, Request]]:
        """The request with each window of its clip, and the sample at which the window starts; mostly one."""
        longest, clips = request.window, request.clips
        if longest is None or not clips or all(len(clip) <= longest * SAMPLING_RATE for clip in clips):
            yield 0, request
            return
        for start, end in quiet_windows(clips[0], SAMPLING_RATE, longest):
            content = [{"type": "audio", "audio": clips[0][start:end]}]
            words = [element for element in request.messages[0]["content"] if element["type"] == "text"]
            yield start, replace(request, messages=[{"role": "user", "content": content + words}])

    def _result(self, request: Request, parts: list[tuple[tuple[float, float], str]]) -> dict:
        separator = " " if request.transcribe else "\n"
        text = separator.join(part for _, part in parts if part)
        answer: dict[str, Any] = {"generated_text": self._full(request, text) if request.full_text else text}
        if request.transcribe:
            answer["chunks"] = [
                {"start": start, "end": end, "timestamp": (start, end), "text": part} for (start, end), part in parts
            ]
        return answer

    @staticmethod
    def _full(request: Request, text: str) -> Any:
        if request.given is not None:
            return [*request.given, {"role": "assistant", "content": text}]
        return request.text + text

    def _inputs(self, batch: list[Request]) -> dict:
        """What the family's processor makes of requests, as tensors."""
        chat = self.processor.answers_chats(self.model.generation_config)
        if batch[0].transcribe:
            clips = [request.clips[0] for request in batch]
            inputs = self.processor.transcription_inputs(clips, language=batch[0].language, chat=chat)
        else:
            inputs = self.processor.conversation_inputs([request.messages for request in batch], chat=chat)
        return to_mindspore(inputs, dtype=self.model.dtype)

    def _generate(self, batch: list[Request]) -> list[tuple[str, int]]:
        """The text of each request, and how many tokens it took without the end token and the padding after it."""
        inputs, chosen = self._inputs(batch), batch[0].chosen
        tokens = self.model.generate(**inputs, **batch[0].arguments).asnumpy()[:, inputs["input_ids"].shape[1] :]
        rows = [_without_padding(row, chosen) for row in tokens] if len(tokens) > 1 else tokens
        texts = self.processor.batch_decode([row.tolist() for row in rows], skip_special_tokens=True)
        kept = ~np.isin(tokens, [*chosen.eos_token_ids, chosen.padding])
        counts = tokens.shape[1] - np.argmax(np.c_[kept[:, ::-1], np.ones(len(kept), bool)], 1)
        texts = [cut(text, batch[0].stops).strip() for text in texts]
        if batch[0].transcribe:
            texts = [self._said(self.processor.transcription(text)) for text in texts]
        return [(text, int(count)) for text, count in zip(texts, counts)]

    def _said(self, transcription: str) -> str:
        """Nothing where it is what the family says of silence."""
        silent = map(_bare, getattr(self.processor, "silence_answers", ()))
        return "" if _bare(transcription) in silent else transcription

    def _stream_said(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces of a transcription, held back while they may become what the family says of silence."""
        silent, held = [_bare(answer) for answer in getattr(self.processor, "silence_answers", ())], ""
        for piece in pieces:
            held += piece
            if not any(answer.startswith(_bare(held)) for answer in silent):
                yield held
                held = ""
                silent = []
        if held and (said := self._said(held)):
            yield said

    def _stream(self, request: Request) -> Iterator[str]:
        """The text of `_result`, in pieces."""
        if request.full_text and request.given is not None:
            raise ValueError("return_full_text of a conversation is a list of messages, which stream=True cannot give")
        if "streamer" in request.arguments:
            raise ValueError("streamer and stream=True were both given: leave one out")

        def pieces() -> Iterator[str]:
            if request.full_text:
                yield request.text
            separator, given = " " if request.transcribe else "\n", False
            for _, part in self._windows(request):
                if part.transcribe and _is_silent(part.clips[0]):
                    continue
                lead = separator if given else ""
                for piece in self._stream_part(part):
                    yield lead + piece
                    lead, given = "", True

        return pieces()

    def _stream_part(self, part: Request) -> Iterator[str]:
        """The text of one window, in pieces: one alone where nothing is known before the end."""
        if part.chosen.num_beams > 1 or (part.transcribe and self.processor.frames_transcriptions):
            return (text for text, _ in self._generate([part]) if text)

        def decode(ids: list[int]) -> str:
            return self.processor.decode(ids, skip_special_tokens=True)

        steps = self.model.stream(**self._inputs([part]), **part.arguments)
        said = stripped(text_stream((int(tokens[0]) for tokens in steps), decode, part.stops))
        return self._stream_said(said) if part.transcribe else said


def _without_padding(tokens: np.ndarray, settings: GenerationSettings) -> np.ndarray:
    """A row of a batch up to its end token, as it would be alone; without one, up to the padding after it."""
    if (ends := np.flatnonzero(np.isin(tokens, settings.eos_token_ids))).size:
        return tokens[: ends[0] + 1]
    own = np.flatnonzero(tokens != settings.padding)
    return tokens[: own[-1] + 1] if own.size else tokens[:0]


def _check_length(request: Request) -> None:
    """`AudioError` for a clip that is longer than the model hears and does not go by windows."""
    for number, clip in enumerate(request.clips):
        seconds = len(clip) / SAMPLING_RATE
        if request.window is None or seconds <= request.window or (request.by_windows and len(request.clips) == 1):
            continue
        raise ClipTooLongError(
            f"clip {number} is {seconds:.2f} s long and the model hears {request.window:g} s at a time",
            'cut it, pass long_audio="windows" for one answer a window, or task="transcribe"',
        )


def _is_conversation(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def _batches(requests: dict[int, Request], batch_size: int) -> Iterator[list[int]]:
    """Places of requests to answer together: of equal settings, and of similar length."""
    groups: dict[str, list[int]] = {}
    for place, request in requests.items():
        shared = (request.chosen, request.stops, request.transcribe, request.language)
        groups.setdefault(repr(shared), []).append(place)
    for places in groups.values():
        places.sort(key=lambda place: requests[place].length)
        for first in range(0, len(places), batch_size):
            yield places[first : first + batch_size]


def _is_silent(clip: np.ndarray) -> bool:
    """Whether nothing sounds in a clip `[samples]`, wherever its zero is."""
    return float(np.abs(clip - clip.mean(dtype=np.float64)).max(initial=0.0)) < SILENCE


def _bare(text: str) -> str:
    """A text without what does not matter when it is compared."""
    return " ".join(text.split()).rstrip(".!。").casefold()

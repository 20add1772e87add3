"""`pipeline("audio-text-to-text")`: clips and questions in, text out, one by one or in batches."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from mindone_audio.audio import SAMPLING_RATE, AudioError, ClipTooLongError, load_clip, quiet_windows
from mindone_audio.chat import TASKS, chat_clips, clean_messages, task_schema
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.conversion import to_mindspore
from mindone_audio.generation.settings import settle
from mindone_audio.generation.text import cut, text_stream

TASK = "audio-text-to-text"
MAX_NEW_TOKENS = {False: 128, True: 256}  # where a call says nothing else; 30 s of speech are at most some 200
AHEAD = 2  # batches of clips that are loaded together, to put those of similar length into one
SHORTEST_WINDOW = 1.0  # seconds
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
    """One thing asked: a conversation whose clips are loaded, or a clip to transcribe, and the settings for it.

    messages: as `apply_chat_template` takes them, audio elements as float32 samples. given: the conversation as it was
    given, None where it was a clip and a text. transcribe: the clip is to be written down. language: of the speech, as
    "en", where a family takes one. window: seconds of the longest piece that goes to the model at a time, None for any.
    by_windows: a clip longer than that is cut into windows, and is an error otherwise.
    """

    messages: list[dict]
    given: list[dict] | None = None
    text: str = ""
    settings: dict = field(default_factory=dict)
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
    from mindone_audio.device import set_device
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
        from mindone_audio.finetune import load_adapter
        from mindone_audio.hub import ACCESS_KEYWORDS

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
            inputs: a clip (whatever `load_audio` takes, or `{"array": …, "sampling_rate": …}`); the task schema
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
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a number of inputs, at least 1, not {batch_size!r}")
        single = not isinstance(inputs, (list, tuple)) or _is_conversation(inputs)
        items = [inputs] if single else list(inputs)
        texts = self._texts(text, len(items))
        settings = {**(generate_kwargs or {}), **parameters}
        windows = {"window": self._window(window, task), "by_windows": task == "transcribe" or long_audio == "windows"}
        if stream:
            if not single:
                raise ValueError("stream=True takes one input, not a list: call the pipeline once for each")
            return self._stream(replace(self._request(items[0], texts[0], task, settings), **windows))

        def load(place: int) -> Request:
            request = replace(self._request(items[place], texts[place], task, settings), **windows)
            _check_length(request)
            return request

        answers: list[dict] = []
        hidden = True if single else None if progress is None else not progress  # None: shown on a terminal
        with tqdm(desc="answering", total=len(items), unit="clip", disable=hidden, leave=False) as bar:
            for first in range(0, len(items), AHEAD * batch_size):
                places = range(first, min(first + AHEAD * batch_size, len(items)))
                answers += self._answer_some(load, places, batch_size, on_error, single, bar)
        return Answers(answers, single)

    def _answer_some(
        self, load: Callable[[int], Request], places: range, batch_size: int, on_error: str, single: bool, bar: tqdm
    ) -> list[dict]:
        """Answers of a few batches of inputs, whose clips are in memory until it returns."""
        answers: dict[int, dict] = {}
        requests: dict[int, Request] = {}
        for place in places:
            try:
                requests[place] = load(place)
            except (TypeError, ValueError, OSError) as error:
                answers[place] = self._failure(error, on_error, place, single)
        bar.update(len(answers))
        for batch in _batches(requests, batch_size):
            answers |= zip(batch, self._answer_each(requests, batch, batch_size, on_error, single))
            bar.update(len(batch))
        return [answers[place] for place in places]

    def _texts(self, text: str | list[str] | None, count: int) -> list[str | None]:
        if isinstance(text, (list, tuple)):
            if len(text) != count:
                raise ValueError(f"{len(text)} texts were given for {count} inputs: give one, or one for each")
            return list(text)
        return [text] * count

    def _request(self, item: Any, text: str | None, task: str | None, settings: dict) -> Request:
        """An input as it was given, checked and with its clips loaded."""
        given, language = None, None
        if _is_conversation(item):
            if text is not None or task is not None:
                raise ValueError("a conversation says itself what is asked: leave out text and task")
            given, clips = item, None
        else:
            clips, inner_text, inner_parameters = task_schema(item)
            if inner_text is not None and text is not None:
                raise ValueError(f"the text is given twice: {inner_text!r} in the input and {text!r} beside it")
            text, settings = inner_text if text is None else text, {**settings, **inner_parameters}
        settings = dict(settings)
        full_text, stops = settings.pop("return_full_text", False), settings.pop("stop_sequence", None)
        count_tokens = settings.pop("return_token_count", False)
        if task == "transcribe":
            language = settings.pop("language", None)
        if task is not None and text is not None:
            raise ValueError(f"task={task!r} and text={text!r} were both given: pass one of them")
        if given is not None:
            messages, question = self._load_messages(clean_messages(given)), ""
        else:
            question = text if text is not None else self.processor.questions[task or "caption"]
            content = [{"type": "audio", "audio": load_clip(clip)} for clip in clips]
            if len(content) != 1 and task == "transcribe":
                raise ValueError(
                    f"{len(content)} clips were given to transcribe at once: give each as an input of its own"
                )
            messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        stops = (stops,) if isinstance(stops, str) else tuple(stops or ())
        return Request(
            messages, given, question, settings, stops, full_text, count_tokens, task == "transcribe", language
        )

    def _load_messages(self, messages: list[dict]) -> list[dict]:
        loaded = []
        for message in messages:
            content = message["content"]
            if not isinstance(content, str):
                content = [
                    {"type": "audio", "audio": load_clip(chat_clips([{"content": [element]}])[0])}
                    if element["type"] == "audio"
                    else element
                    for element in content
                ]
            loaded.append({**message, "content": content})
        return loaded

    def _window(self, window: float | None, task: str | None) -> float | None:
        """Seconds of the longest piece: what the model hears, or of a transcription what its encoder hears at once."""
        if window is not None and not window >= SHORTEST_WINDOW:
            raise ValueError(f"window={window!r}: give seconds, at least {SHORTEST_WINDOW}")
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
        except (TypeError, ValueError, OSError) as error:
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

    def _settings(self, request: Request) -> dict:
        settings = {"max_new_tokens": MAX_NEW_TOKENS[request.transcribe]} | request.settings
        if settings.get("num_return_sequences", 1) != 1:
            raise ValueError("the pipeline gives one answer for each input: call it again, or use model.generate")
        if request.stops:
            settings["stop_strings"] = list(request.stops)
        return settings | ({"tokenizer": self.processor.tokenizer} if request.stops else {})

    def _generate(self, batch: list[Request]) -> list[tuple[str, int]]:
        """The text of each request, and how many tokens it took without the end token and the padding after it."""
        inputs, settings = self._inputs(batch), self._settings(batch[0])
        tokens = self.model.generate(**inputs, **settings).asnumpy()[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        ends = {name: settings[name] for name in ("eos_token_id", "pad_token_id") if name in settings}
        ends = settle(self.model.generation_config, ends)
        kept = ~np.isin(tokens, [*ends.eos_token_ids, ends.padding])
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
        _check_length(request)
        parts = list(self._windows(request))
        separator = " " if request.transcribe else "\n"

        def decode(ids: list[int]) -> str:
            return self.processor.decode(ids, skip_special_tokens=True).lstrip()

        def pieces() -> Iterator[str]:
            told = False
            for _, part in parts:
                if part.transcribe and _is_silent(part.clips[0]):
                    continue
                if part.transcribe and self.processor.frames_transcriptions:
                    said = (text for text, _ in self._generate([part]))
                else:
                    steps = self.model.stream(**self._inputs([part]), **self._settings(part))
                    said = text_stream((int(tokens[0]) for tokens in steps), decode, part.stops)
                    said = self._stream_said(said) if part.transcribe else said
                lead = separator if told else ""
                for piece in filter(None, said):
                    yield lead + piece
                    lead, told = "", True

        return pieces()


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
        shared = (request.settings, request.stops, request.transcribe, request.language)
        groups.setdefault(repr(shared), []).append(place)
    for places in groups.values():
        places.sort(key=lambda place: requests[place].length)
        for first in range(0, len(places), batch_size):
            yield places[first : first + batch_size]


def _is_silent(clip: np.ndarray) -> bool:
    return float(np.abs(clip).max(initial=0.0)) < SILENCE


def _bare(text: str) -> str:
    """A text without what does not matter when it is compared."""
    return " ".join(text.split()).rstrip(".!。").casefold()

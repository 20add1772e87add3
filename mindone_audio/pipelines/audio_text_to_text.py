"""`pipeline("audio-text-to-text")`: clips and questions in, text out, one by one or in batches."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from mindone_audio.generation.generate import columns, generated, streamed
from mindone_audio.generation.row import GenerationRequest
from mindone_audio.generation.settings import flag, whole
from mindone_audio.generation.text_stream import cut, text_stream
from mindone_audio.inputs.audio import SAMPLING_RATE, is_one_clip
from mindone_audio.pipelines.answers import REFUSALS, Answers, failure
from mindone_audio.pipelines.requests import (
    Request,
    is_conversation,
    load_request,
    longest_window,
    read_request,
    texts_of,
    windows_of,
)
from mindone_audio.pipelines.transcripts import is_silent, stream_without_silence, without_silence
from mindone_audio.setting_fields import TASKS

TASK = "audio-text-to-text"


class AudioTextToTextPipeline:
    """Answers questions about clips; made by `pipeline`."""

    task = TASK
    tells_times = False  # a transcription has the times of the windows that its clip is cut into
    # What a call is given with noise, so that everything is compiled.
    about_noise = {"text": "What's that sound?", "min_new_tokens": 2}

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.explain: Callable[[Exception], str] = str  # makes the message of on_error="return"
        self._tokens: dict[int, str] = {}  # texts of single tokens, of which a stream asks for each one's

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
            batch_size: how many inputs, or windows of them, are answered at a time; the clips of later ones are not
                loaded yet.
            long_audio: "windows" answers a question about a clip above the model's limit for each window, and joins the
                answers by newlines. Transcriptions are always cut into windows.
            window: the longest window of a transcription in seconds; None is the encoder's window, mostly 30 s.
            on_error: "raise", or "return" `{"generated_text": None, "error": message}` for an input that fails.
            stream: return an iterator of text for one input.
            progress: a bar for a list; None shows it on a terminal.
            parameters: return_full_text (the prompt, or the conversation with the answer appended),
                return_token_count (adds "tokens", how many were generated, to each answer), stop_sequence (a string or
                a list; the text ends before it), and settings of `generate`. With task="transcribe" also language, as
                "en", and prompt, words such as names that may be said, for families that take them.

        Returns:
            `Answers`: `{"generated_text": …}` for each input, in their order; a transcription has also "chunks", each
            with "start" and "end" in seconds, the same as "timestamp", and its "text".

        Raises:
            AudioError: a clip that cannot be read, or is longer than the limit of the model.
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
        single = not isinstance(inputs, (list, tuple)) or is_conversation(inputs) or is_one_clip(inputs)
        items = [inputs] if single else list(inputs)
        texts = texts_of(text, len(items))
        settings = {**(generate_kwargs or {}), **parameters}
        by_windows = task == "transcribe" or long_audio == "windows"
        windows = {"window": longest_window(self.processor, window, task), "by_windows": by_windows}
        if stream:
            if not single:
                raise ValueError("stream=True takes one input, not a list: call the pipeline once for each")
            request = read_request(self.model, self.processor, items[0], texts[0], task, settings)
            return self._stream(load_request(replace(request, **windows)))
        answers: dict[int, dict] = {}
        requests: dict[int, Request] = {}
        for place, item in enumerate(items):  # all of them, before anything is computed
            try:
                request = read_request(self.model, self.processor, item, texts[place], task, settings)
                requests[place] = replace(request, **windows)
            except REFUSALS as error:
                answers[place] = failure(error, on_error, place, single, self.explain)
        hidden = True if single else None if progress is None else not progress  # None: shown on a terminal
        with tqdm(desc="answering", total=len(items), unit="clip", disable=hidden, leave=False) as bar:
            bar.update(len(answers))
            for place, answer in self._answers(requests, batch_size):
                failed = isinstance(answer, Exception)
                answers[place] = failure(answer, on_error, place, single, self.explain) if failed else answer
                bar.update()
        return Answers([answers[place] for place in range(len(items))], single)

    def _answers(self, requests: dict[int, Request], batch_size: int) -> Iterator[tuple[int, dict | Exception]]:
        """The answer to each request, or what is wrong with it, as it comes; the windows of long clips side by side."""
        begun: dict[int, _Answer] = {}

        def parts() -> Iterator[tuple[tuple[int, int], GenerationRequest]]:
            for place, request in requests.items():
                answer = begun[place] = _Answer(request)
                try:
                    for start, part in windows_of(load_request(request)):
                        answer.add(start, part)
                        if not (part.transcribe and is_silent(part.clips[0])):
                            prepared = self.prepare(part)
                            answer.waiting += 1
                            yield (place, len(answer.texts) - 1), prepared
                except REFUSALS as error:
                    answer.error = error
                answer.whole = True

        arguments = next(iter(requests.values())).arguments if requests else {}
        engine, streamer = self.model.engine(arguments.get("compile", True)), arguments.get("streamer")
        found = streamed(engine, parts(), streamer) if streamer else generated(engine, parts(), batch_size)
        for (place, number), tokens in found:
            answer = begun[place]
            answer.waiting -= 1
            if isinstance(tokens, Exception):
                answer.error = tokens
            else:
                answer.texts[number], count = self._text(answer.request, tokens)
                answer.tokens += count
            for done in [place for place, answer in begun.items() if answer.done]:
                yield done, self._result(begun.pop(done))
        for place, answer in begun.items():
            yield place, self._result(answer)

    def prepare(self, request: Request) -> GenerationRequest:
        """What the model is asked: one prompt, checked, of a request whose clips are loaded and short enough.

        It computes nothing with MindSpore, unless the family's audio is tokens. Raises `ValueError`.
        """
        chat = self.processor.answers_chats(self.model.generation_config)
        if request.transcribe:
            words = {"language": request.language, "prompt": request.prompt}
            inputs = self.processor.transcription_inputs(request.clips[:1], chat=chat, **words)
        else:
            told = {"tools": list(request.tools)} if request.tools else {}
            inputs = self.processor.conversation_inputs([request.messages], chat=chat, **told)
        arguments = {name: value for name, value in request.arguments.items() if name not in ("compile", "streamer")}
        (prepared,) = self.model.requests(**inputs, **arguments)
        return replace(prepared, decode=self._decode)

    def _decode(self, ids: list[int]) -> str:
        if len(ids) != 1:
            return self.processor.decode(ids, skip_special_tokens=True)
        if ids[0] not in self._tokens:
            self._tokens[ids[0]] = self.processor.decode(ids, skip_special_tokens=True)
        return self._tokens[ids[0]]

    def _result(self, answer: "_Answer") -> dict | Exception:
        if answer.error is not None:
            return answer.error
        request = answer.request
        text = (" " if request.transcribe else "\n").join(part for part in answer.texts if part)
        result: dict[str, Any] = {"generated_text": self._full(request, text) if request.full_text else text}
        if request.transcribe:
            result["chunks"] = [
                {"start": start, "end": end, "timestamp": (start, end), "text": part}
                for (start, end), part in zip(answer.windows, answer.texts)
            ]
        return result | ({"tokens": answer.tokens} if request.count_tokens else {})

    @staticmethod
    def _full(request: Request, text: str) -> Any:
        if request.given is not None:
            return [*request.given, {"role": "assistant", "content": text}]
        return request.text + text

    def _text(self, request: Request, tokens: np.ndarray) -> tuple[str, int]:
        """The text of a generated part, and how many tokens it took without the end token and the padding after it."""
        chosen = request.chosen
        kept = np.flatnonzero(~np.isin(tokens, [*chosen.eos_token_ids, chosen.padding]))
        text = cut(self._decode(tokens.tolist()), request.stops).strip()
        if request.transcribe:
            text = without_silence(self.processor.transcription(text), self._silence_answers)
        return text, int(kept[-1]) + 1 if len(kept) else 0

    def _stream(self, request: Request) -> Iterator[str]:
        """The text deltas of what `_result` makes."""
        if request.full_text and request.given is not None:
            raise ValueError("return_full_text of a conversation is a list of messages, which stream=True cannot give")
        if "streamer" in request.arguments:
            raise ValueError("streamer and stream=True were both given: leave one out")

        def deltas() -> Iterator[str]:
            if request.full_text:
                yield request.text
            separator, given = " " if request.transcribe else "\n", False
            for _, part in windows_of(request):
                if part.transcribe and is_silent(part.clips[0]):
                    continue
                lead = separator if given else ""
                for delta in self._stream_part(part):
                    yield lead + delta
                    lead, given = "", True

        return deltas()

    def _stream_part(self, part: Request) -> Iterator[str]:
        """The text deltas of one window; only one where the text is not known before its end."""
        prepared, engine = self.prepare(part), self.model.engine(part.arguments.get("compile", True))
        if part.chosen.num_beams > 1 or (part.transcribe and self.processor.frames_transcriptions):
            ((_, tokens),) = generated(engine, [(None, prepared)], 1)
            text, _ = self._text(part, tokens)
            return iter([text] if text else [])
        tokens = (int(step[0]) for step in columns(engine, [prepared]))
        deltas = text_stream(tokens, self._decode, part.stops, strip=True)
        return stream_without_silence(deltas, self._silence_answers) if part.transcribe else deltas

    @property
    def _silence_answers(self) -> tuple[str, ...]:
        """What the family answers to silence."""
        return getattr(self.processor, "silence_answers", ())


@dataclass
class _Answer:
    """The answer to one request while its parts are generated.

    windows: from and to which second each part is; texts and waiting: theirs, and how many are not known yet. whole:
    all parts are there. tokens: of all texts.
    """

    request: Request
    windows: list[tuple[float, float]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    waiting: int = 0
    tokens: int = 0
    whole: bool = False
    error: Exception | None = None

    def add(self, start: int, part: Request) -> None:
        """One more part, whose clip begins at a sample, without a text yet."""
        self.windows.append((start / SAMPLING_RATE, (start + sum(map(len, part.clips[:1]))) / SAMPLING_RATE))
        self.texts.append("")

    @property
    def done(self) -> bool:
        return self.whole and not self.waiting

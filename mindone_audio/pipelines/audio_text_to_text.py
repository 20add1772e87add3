"""`pipeline("audio-text-to-text")`: clips and questions in, text out, one by one or in batches."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.conversion import to_mindspore
from mindone_audio.generation.settings import GenerationSettings, flag, whole
from mindone_audio.generation.text_stream import cut, stripped, text_stream
from mindone_audio.inputs.audio import SAMPLING_RATE, AudioError, is_one_clip
from mindone_audio.pipelines.requests import (
    Request,
    batches_of,
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
AHEAD = 2  # batches of clips that are loaded together, to put those of similar length into one
_REFUSALS = (TypeError, ValueError, OverflowError, OSError)  # of one input, that others are answered in spite of


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


def pipeline(
    task: str = TASK,
    model: Any = None,
    processor: Any = None,
    *,
    device: str | None = None,
    device_memory: str | None = None,
    mindspore_dtype: Any = None,
    adapter: str | os.PathLike | None = None,
    **download: Any,
) -> "AudioTextToTextPipeline":
    """A pipeline for `"audio-text-to-text"`, the only task.

    model: a model, a checkpoint folder or a Hugging Face id; None is the small checkpoint that comes with the package.
    processor: a processor, or where it is; None is the model's own. device: "auto", "cpu", "ascend", "ascend:1"; None
    leaves MindSpore's choice. device_memory: the most to take of an NPU's memory, "40GB". mindspore_dtype: as for
    `from_pretrained`. adapter: a folder or Hugging Face id of a LoRA adapter of that model, which is put on it in place
    (`finetune.load_adapter`). download: revision, cache_dir, token, local_files_only, subfolder. Raises what
    `from_pretrained` and `load_adapter` raise, and `ValueError` for another task.
    """
    from mindone_audio.machine.device import set_device
    from mindone_audio.models import AutoModelForAudioTextToText, AutoProcessor

    if task != TASK:
        raise ValueError(f"unknown task {task!r}: this package has {TASK!r}")
    if device is not None or device_memory is not None:
        set_device(device or "auto", device_memory)
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
        self.explain: Callable[[Exception], str] = str  # makes the message of on_error="return"

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
            long_audio: "windows" answers a question about a clip above the model's limit for each window, and joins the
                answers by newlines. Transcriptions are always cut into windows.
            window: the longest window of a transcription in seconds; None is the encoder's window, mostly 30 s.
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
                loaded[place] = load_request(request)
            except _REFUSALS as error:
                answers[place] = self._failure(error, on_error, place, single)
        bar.update(len(answers))
        for batch in batches_of(loaded, batch_size):
            answers |= zip(batch, self._answer_each(loaded, batch, batch_size, on_error, single))
            bar.update(len(batch))
        return answers

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
            for start, part in windows_of(request):
                parts.append(part)
                owners.append(number)
                windows.append((start / SAMPLING_RATE, (start + sum(map(len, part.clips[:1]))) / SAMPLING_RATE))
        texts, counts = [""] * len(parts), [0] * len(parts)
        audible = [i for i, part in enumerate(parts) if not (part.transcribe and is_silent(part.clips[0]))]
        for first in range(0, len(audible), batch_size):
            chosen = audible[first : first + batch_size]
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
        return to_mindspore(inputs, dtype=self.model.audio_dtype)

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
            texts = [without_silence(self.processor.transcription(text), self._silence_answers) for text in texts]
        return [(text, int(count)) for text, count in zip(texts, counts)]

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
        if part.chosen.num_beams > 1 or (part.transcribe and self.processor.frames_transcriptions):
            return (text for text, _ in self._generate([part]) if text)

        def decode(ids: list[int]) -> str:
            return self.processor.decode(ids, skip_special_tokens=True)

        steps = self.model.stream(**self._inputs([part]), **part.arguments)
        deltas = stripped(text_stream((int(tokens[0]) for tokens in steps), decode, part.stops))
        return stream_without_silence(deltas, self._silence_answers) if part.transcribe else deltas

    @property
    def _silence_answers(self) -> tuple[str, ...]:
        """What the family answers to silence."""
        return getattr(self.processor, "silence_answers", ())


def _without_padding(tokens: np.ndarray, settings: GenerationSettings) -> np.ndarray:
    """A row of a batch up to its end token, as it would be alone; without one, up to the padding after it."""
    if (ends := np.flatnonzero(np.isin(tokens, settings.eos_token_ids))).size:
        return tokens[: ends[0] + 1]
    own = np.flatnonzero(tokens != settings.padding)
    return tokens[: own[-1] + 1] if own.size else tokens[:0]

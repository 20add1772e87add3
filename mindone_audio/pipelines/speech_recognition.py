"""`pipeline("automatic-speech-recognition")`: what is said in clips of any length, with times, by a Whisper model."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from mindone_audio.generation.settings import GENERATE_ARGUMENTS, flag, whole
from mindone_audio.inputs.audio import is_one_clip, load_clip
from mindone_audio.inputs.conversation import task_schema
from mindone_audio.models.whisper.timestamps import Segment
from mindone_audio.models.whisper.transcription import Transcription, transcribe
from mindone_audio.models.whisper.words import words_of
from mindone_audio.pipelines.answers import REFUSALS, Answers, failure
from mindone_audio.pipelines.requests import is_conversation, texts_of
from mindone_audio.pipelines.transcripts import is_silent
from mindone_audio.setting_fields import refusal

TASK = "automatic-speech-recognition"
TIMESTAMPS = (True, False, None, "word")
_MADE_HERE = ("input_features", "attention_mask", "return_token_timestamps")  # arguments of the model
# What openai/whisper's `transcribe` does where a text repeats itself or is unlikely; the ratio is of tokens.
FALLBACK = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
    "seed": 0,
}


class SpeechRecognitionPipeline:
    """Writes down what is said; made by `pipeline`."""

    task = TASK
    tells_times = True
    about_noise = {"temperature": 0.0}

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.explain = str  # makes the message of on_error="return"

    @property
    def tells_words(self) -> bool:
        """Whether the checkpoint says which heads tell the times of words."""
        return bool(getattr(self.model.generation_config, "alignment_heads", None))

    def __call__(
        self,
        inputs: Any,
        text: str | list[str] | None = None,
        *,
        task: str | None = None,
        language: str | None = None,
        prompt: str | None = None,
        return_timestamps: bool | str | None = None,
        generate_kwargs: dict | None = None,
        batch_size: int = 8,
        on_error: str = "raise",
        stream: bool = False,
        progress: bool | None = None,
        return_token_count: bool = False,
        long_audio: str | None = None,
        **parameters: Any,
    ) -> Answers | Iterator[str]:
        """Write down what is said in one clip, or in a list of them, of any length.

        Args:
            inputs: a clip (whatever `load_audio` takes), the task schema `{"inputs": {"audio": …}, "parameters": {…}}`
                or just its inner part, or a list of any of these.
            task: "transcribe", or "translate" for English whatever is spoken; for multilingual checkpoints.
            language: of the speech, as "en" or "english"; None: the model detects it in each clip.
            prompt: words that come before, such as names that may be said.
            return_timestamps: "word" adds "words" to each chunk. True and None tell the times of segments; False takes
                a clip of at most 30 s as one.
            generate_kwargs: settings of the model's `generate`, for all inputs; "parameters" of an input change them.
                Where none of them says otherwise, windows are tried again as in openai/whisper: see `FALLBACK`.
            batch_size: how many clips are worked on at a time; later ones are not loaded yet.
            on_error: "raise", or "return" `{"text": None, "error": message}` for an input that fails.
            stream: return an iterator of text for one input.
            progress: a bar for a list; None shows it on a terminal.
            return_token_count: adds "tokens", how many were generated, to each answer.
            text, long_audio: for models that answer questions; text is refused, and clips of any length are taken.
            parameters: the same as generate_kwargs.

        Returns:
            `Answers`: for each input `{"text": …, "chunks": […]}`, the text as "generated_text" too, and the
            "language" by a multilingual checkpoint. Each chunk has its "text", "start" and "end" in seconds, the same
            as "timestamp", and maybe "words", each with "word", "start" and "end".

        Raises:
            AudioError: a clip that cannot be read.
            TypeError, ValueError: anything else that is wrong with an input or a setting.
        """
        if on_error not in ("raise", "return"):
            raise ValueError(f'on_error must be "raise" or "return", not {on_error!r}')
        if generate_kwargs is not None and not isinstance(generate_kwargs, Mapping):
            raise ValueError(f"generate_kwargs must be a dict of settings of generate, not {generate_kwargs!r:.80}")
        batch_size, stream = whole("batch_size", batch_size, 1), flag("stream", stream)
        if is_conversation(inputs):
            raise ValueError("this model transcribes clips and answers no conversations: give it the clip")
        single = not isinstance(inputs, (list, tuple)) or is_one_clip(inputs)
        items = [inputs] if single else list(inputs)
        texts = texts_of(text, len(items))
        own = {"task": task, "language": language, "prompt": prompt, "return_timestamps": return_timestamps}
        settings = {**(generate_kwargs or {}), **parameters, **{k: v for k, v in own.items() if v is not None}}
        counts = flag("return_token_count", settings.pop("return_token_count", return_token_count))
        compile = flag("compile", settings.pop("compile", True))
        if stream:
            if not single:
                raise ValueError("stream=True takes one input, not a list: call the pipeline once for each")
            return self._stream(self.prepare(inputs, settings, texts[0]), compile)
        answers: dict[int, dict] = {}
        places: dict[int, int] = {}

        def clips() -> Iterator[Transcription]:
            for place, item in enumerate(items):
                try:
                    clip = self.prepare(item, settings, texts[place])
                except REFUSALS as error:
                    answers[place] = failure(error, on_error, place, single, self.explain)
                    continue
                if clip is None:
                    answers[place] = self.answer([], None, counts)
                else:
                    places[id(clip)] = place
                    yield clip

        hidden = True if single else None if progress is None else not progress  # None: shown on a terminal
        with tqdm(desc="transcribing", total=len(items), unit="clip", disable=hidden, leave=False) as bar:
            for clip in transcribe(self.model.engine(compile), clips(), batch_size):
                if clip.done:
                    place = places.pop(id(clip))
                    if clip.error is not None:
                        answers[place] = failure(clip.error, on_error, place, single, self.explain)
                    else:
                        answers[place] = self.answer(clip.segments, clip, counts)
                bar.update(len(answers) - bar.n)
        return Answers([answers[place] for place in range(len(items))], single)

    def prepare(self, item: Any, settings: Mapping, text: str | None = None) -> Transcription | None:
        """An input, loaded and checked; None where it is silent. Raises what a call raises. Nothing is computed."""
        clips, own_text, inner = task_schema(item)
        if (text := own_text if text is None else text) is not None:
            raise ValueError(f"text={text!r:.80}: this model transcribes and answers no questions: leave it out")
        if len(clips) != 1:
            raise ValueError(f"{len(clips)} clips were given to transcribe at once: give each as an input of its own")
        if arguments := [name for name in inner if name in GENERATE_ARGUMENTS]:
            raise ValueError(f"{arguments[0]} is an argument of the call, not of an input: leave it out")
        settings = {**settings, **inner}
        if made := [name for name in _MADE_HERE if name in settings]:
            raise ValueError(f"{made[0]} is made of the clip and of return_timestamps: leave it out")
        if (timestamps := settings.pop("return_timestamps", None)) not in TIMESTAMPS:
            raise ValueError(f'return_timestamps must be true, false or "word", not {timestamps!r:.80}')
        prompt = settings.pop("prompt", None)
        if prompt is not None and not isinstance(prompt, str):
            raise refusal("prompt", f" must be a string, not {prompt!r:.80}")
        if prompt and prompt.strip():
            settings["prompt_ids"] = self._prompt_ids(prompt.strip())
        tokens = self.model.special_tokens
        settings = {name: value for name, value in settings.items() if not tokens.needless(name, value)}
        if settings.get("do_sample") is False:
            del settings["do_sample"]
        if not {"temperature", "do_sample", "num_beams"} & set(settings):
            settings = {**FALLBACK, **settings}
        samples = load_clip(clips[0])
        inputs = self.processor(samples, truncation=False, padding="longest", return_attention_mask=True)
        (clip,) = self.model.transcriptions(
            **inputs,
            return_timestamps=timestamps is not False or len(samples) > self.processor.feature_extractor.n_samples,
            return_token_timestamps=timestamps == "word",
            **settings,
        )
        clip.ends_with_speech = True
        return None if is_silent(samples) else clip

    def _prompt_ids(self, prompt: str) -> np.ndarray:
        """The tokens of a prompt, of a long one the last ones, as openai/whisper takes them."""
        try:
            ids = self.processor.get_prompt_ids(prompt, return_tensors="np")
        except ValueError as error:  # of special tokens
            raise refusal("prompt", f" cannot be: {error}") from error
        return np.append(ids[:1], ids[1:][1 - self.model.language_model.config.max_positions // 2 :])

    def answer(self, segments: list[Segment], clip: Transcription | None, counts: bool = False) -> dict:
        """What a call returns of these segments of a clip, None for a silent one. counts: with "tokens"."""
        chunks = [chunk for segment in segments if (chunk := self.chunk(segment, clip))["text"]]
        text = " ".join(chunk["text"] for chunk in chunks)
        found = {"text": text, "generated_text": text, "chunks": chunks}
        if clip is not None and clip.language is not None:
            found["language"] = clip.language
        return found | ({"tokens": sum(len(segment.tokens) for segment in segments)} if counts else {})

    def chunk(self, segment: Segment, clip: Transcription) -> dict:
        """A segment of a clip as a chunk of the answer; its text may be empty."""
        last = clip.spoken / 100
        start, end = (round(min(time, last), 2) for time in (segment.start, segment.end))
        text = self.processor.decode(segment.tokens, skip_special_tokens=True).strip()
        chunk = {"start": start, "end": end, "timestamp": (start, end), "text": text}
        if segment.times is None:
            return chunk
        return chunk | {"words": words_of(self.processor.tokenizer, segment, clip.tokens, clip.language, last)}

    def _stream(self, clip: Transcription | None, compile: bool) -> Iterator[str]:
        if clip is None:
            return
        told = 0
        given = False
        for _ in transcribe(self.model.engine(compile), [clip], 1):
            if clip.error is not None:
                raise clip.error
            text = self.answer(clip.segments[told:], clip)["text"]
            told = len(clip.segments)
            if text:
                yield f" {text}" if given else text
                given = True

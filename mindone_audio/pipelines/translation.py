"""`pipeline("automatic-speech-recognition")` by a SeamlessM4T or SpeechT5 model, and `pipeline("translation")`.

SeamlessM4T writes what is said in a language that is given, and translates texts; SpeechT5 writes English.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mindone_audio.generation.generate import columns, generated
from mindone_audio.generation.settings import flag, whole
from mindone_audio.generation.text_stream import check_stops, cut, text_stream
from mindone_audio.inputs.audio import is_one_clip
from mindone_audio.pipelines import speech_recognition
from mindone_audio.pipelines.answers import REFUSALS, Answers, failure
from mindone_audio.pipelines.audio_text_to_text import AudioTextToTextPipeline
from mindone_audio.pipelines.spoken_translation import speak
from mindone_audio.setting_fields import MAX_NEW_TOKENS, refusal

TASK = "translation"
_ADDRESSES = ("http://", "https://", "file://", "data:")


class SpeechToTextPipeline(AudioTextToTextPipeline):
    """Writes what is said, in the language of the speech or in another one; made by `pipeline`."""

    task = speech_recognition.TASK

    @property
    def about_noise(self) -> dict:
        """As for other pipelines: here any language does."""
        return {"language": self.processor.english, "min_new_tokens": 2}

    def __call__(
        self,
        inputs: Any,
        text: str | None = None,
        *,
        language: str | None = None,
        tgt_lang: str | None = None,
        task: str | None = None,
        generate_kwargs: dict | None = None,
        **settings: Any,
    ) -> Answers | Iterator[str]:
        """Write what is said in one clip, or in a list of them, of any length.

        language, tgt_lang: the same, the language that SeamlessM4T is to write, as "fra": that of the speech writes it
        down, another one translates. generate_kwargs may have it too. task: "transcribe", which it always is. The other
        arguments are those of `AudioTextToTextPipeline` with that task: clips are cut into windows at quiet places.

        Returns `Answers`: for each input `{"text": …, "generated_text": the same, "chunks": […]}`. Raises
        `AudioError` for a clip that cannot be read, `TypeError` and `ValueError` for anything else that is wrong.
        """
        if text is not None:
            raise ValueError(f"text={text!r:.80}: this model transcribes and answers no questions: leave it out")
        if task not in (None, "transcribe"):
            how = "this model knows no tasks: give the language to write, or take a model that translates"
            raise refusal("task", f"={task!r}: {how}")
        if generate_kwargs is not None and not isinstance(generate_kwargs, Mapping):
            raise ValueError(f"generate_kwargs must be a dict of settings of generate, not {generate_kwargs!r:.80}")
        generate_kwargs = dict(generate_kwargs or {})
        named = [language, tgt_lang, *(generate_kwargs.pop(name, None) for name in ("language", "tgt_lang"))]
        given = list(dict.fromkeys(name for name in named if name is not None))
        if len(given) > 1:
            raise ValueError(f"several languages to write, {given[0]!r} and {given[1]!r}: give one")
        if given:
            settings["language"] = given[0]
        return super().__call__(inputs, task="transcribe", generate_kwargs=generate_kwargs, **settings)

    def _result(self, answer: Any) -> dict | Exception:
        result = super()._result(answer)
        return result if isinstance(result, Exception) else {"text": result["generated_text"], **result}


class TranslationPipeline:
    """Translates texts and speech; made by `pipeline`."""

    task = TASK
    tells_times = False

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.explain = str  # makes the message of on_error="return"

    def __call__(
        self,
        inputs: Any,
        *,
        tgt_lang: str | None = None,
        src_lang: str | None = None,
        generate_kwargs: dict | None = None,
        batch_size: int = 8,
        on_error: str = "raise",
        stream: bool = False,
        stop_sequence: str | list[str] | None = None,
        compile: bool = True,
        **settings: Any,
    ) -> Answers | Iterator[str]:
        """Translate a text or a clip, or a list of the one or of the other.

        Args:
            inputs: texts are strings; a clip is `{"audio": …}` with whatever `load_audio` takes, or samples, bytes or a
                `Path`.
            tgt_lang: the language to write, as "fra".
            src_lang: that of texts; None is English, "eng". Speech may be in any language.
            generate_kwargs: settings of the model's `generate`; settings are the same.
            batch_size: how many texts, or windows of clips, are translated at a time.
            on_error: "raise", or "return" `{"generated_text": None, "error": message}` for an input that fails.
            stream: return an iterator of text for one input.
            stop_sequence: a string or a list; the translation ends before it.

        Returns:
            `Answers`: `{"translation_text": …}` for each input, the text as "generated_text" too; of clips with
            "chunks", as for `SpeechToTextPipeline`.

        Raises:
            AudioError: a clip that cannot be read.
            TypeError, ValueError: anything else that is wrong with an input or a setting.
        """
        if on_error not in ("raise", "return"):
            raise ValueError(f'on_error must be "raise" or "return", not {on_error!r}')
        batch_size, stream = whole("batch_size", batch_size, 1), flag("stream", stream)
        single = not isinstance(inputs, (list, tuple)) or is_one_clip(inputs)
        items = [inputs] if single else list(inputs)
        if stream and not single:
            raise ValueError("stream=True takes one input, not a list: call the pipeline once for each")
        settings = {**(generate_kwargs or {}), **settings}
        texts = [item for item in items if isinstance(item, str)]
        if texts and len(texts) < len(items):
            raise ValueError("texts and clips were given in one list: translate them in two calls")
        self.processor.check_language("tgt_lang", tgt_lang, needed=True)
        self.processor.check_language("src_lang", src_lang)
        stops = check_stops("stop_sequence", stop_sequence)
        if not texts:
            return self._speech(inputs, tgt_lang, src_lang, settings, batch_size, on_error, stream, compile, stops)
        if {"max_new_tokens", "max_length"}.isdisjoint(settings):
            settings["max_new_tokens"] = MAX_NEW_TOKENS[True]
        if stops:
            settings |= {"stop_strings": stops, "tokenizer": self.processor.tokenizer}
        languages, engine = {"tgt_lang": tgt_lang, "src_lang": src_lang}, self.model.engine(flag("compile", compile))
        if stream:
            return self._stream(engine, self._request(items[0], settings, **languages), stops)
        answers: dict[int, dict] = {}
        requests = []
        for place, item in enumerate(items):  # all of them, before anything is computed
            try:
                requests.append((place, self._request(item, settings, **languages)))
            except REFUSALS as error:
                answers[place] = failure(error, on_error, place, single, self.explain)
        for place, tokens in generated(engine, requests, batch_size):
            if isinstance(tokens, Exception):
                answers[place] = failure(tokens, on_error, place, single, self.explain)
            else:
                answers[place] = _answer({"generated_text": cut(self._decode(tokens.tolist()), stops).strip()})
        return Answers([answers[place] for place in range(len(items))], single)

    def speak(self, source: Any, *, tgt_lang: str | None = None, src_lang: str | None = None, **settings: Any) -> dict:
        """Translate one text or clip, and say it: the arguments, the answer and the errors are those of `speak` in
        `spoken_translation`."""
        self.processor.check_language("tgt_lang", tgt_lang, needed=True)
        self.processor.check_language("src_lang", src_lang)
        return speak(self.model, self.processor, source, tgt_lang=tgt_lang, src_lang=src_lang, **settings)

    def _speech(
        self, inputs, tgt_lang, src_lang, settings, batch_size, on_error, stream, compile, stops
    ) -> Answers | Iterator[str]:
        if src_lang is not None:
            raise refusal("src_lang", f"={src_lang!r:.40}: the model hears the language of speech: leave it out")
        listens = SpeechToTextPipeline(self.model, self.processor)
        listens.explain = self.explain
        more = {"stop_sequence": stops} if stops else {}
        found = listens(
            inputs,
            tgt_lang=tgt_lang,
            batch_size=batch_size,
            on_error=on_error,
            stream=stream,
            compile=compile,
            **more,
            **settings,
        )
        return found if stream else Answers(list(map(_answer, found)), found.single)

    def _request(self, text: str, settings: dict, tgt_lang: str | None, src_lang: str | None) -> Any:
        """A text as the model is asked, checked."""
        if text.startswith(_ADDRESSES) or os.path.isfile(text):
            raise ValueError(f'{text!r:.80} is where a clip is, and no text: give {{"audio": …}} to translate speech')
        (request,) = self.model.requests(**self.processor(text, src_lang=src_lang), tgt_lang=tgt_lang, **settings)
        return request

    def _stream(self, engine: Any, request: Any, stops: list[str]) -> Iterator[str]:
        """Text deltas; only one where the text is not known before its end."""
        if request.settings.num_beams > 1:
            ((_, tokens),) = generated(engine, [(None, request)], 1)
            yield cut(self._decode(tokens.tolist()), stops).strip()
            return
        tokens = (int(step[0]) for step in columns(engine, [request]))
        yield from text_stream(tokens, self._decode, stops, strip=True)

    def _decode(self, ids: list[int] | np.ndarray) -> str:
        return self.processor.decode(ids, skip_special_tokens=True)


def _answer(found: dict) -> dict:
    """An answer with transformers' name of the text; what failed has none."""
    return found if "error" in found else {"translation_text": found["generated_text"], **found}

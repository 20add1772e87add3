"""A translation that is spoken: of a text, or of a clip, window by window."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mindone_audio.generation.generate import generated
from mindone_audio.generation.settings import flag, whole
from mindone_audio.inputs.audio import SAMPLING_RATE, load_clip, quiet_windows
from mindone_audio.models.seamless_m4t_v2.speech_output import say, translations, voices
from mindone_audio.pipelines.transcripts import is_silent
from mindone_audio.setting_fields import MAX_NEW_TOKENS, refusal


def speak(
    model: Any,
    processor: Any,
    source: Any,
    *,
    tgt_lang: str,
    src_lang: str | None = None,
    speaker_id: int = 0,
    batch_size: int = 8,
    compile: bool = True,
    **settings: Any,
) -> dict:
    """Translate a text or a clip, and say the translation.

    source: a string is a text; a clip is `{"audio": …}` with whatever `load_audio` takes. A long clip is cut into
    windows at quiet places, whose translations are said one after the other. src_lang: of the text, None is English.
    settings: of the model's `generate`, of the text. batch_size: how many windows are translated at a time.

    Returns `{"translation_text": …, "audio": float32 (samples), "sampling_rate": Hz}`. Raises `AudioError` for a clip
    that cannot be read, and `ValueError` for anything else that is wrong, also where there is nothing to say.
    """
    if not model.speaks:
        raise ValueError(f"a {type(model).__name__} writes text and cannot speak: take a SeamlessM4Tv2Model")
    size, compile = whole("batch_size", batch_size, 1), flag("compile", compile)
    if {"max_new_tokens", "max_length"}.isdisjoint(settings):
        settings["max_new_tokens"] = MAX_NEW_TOKENS[True]
    if not isinstance(source, str) and src_lang is not None:
        raise refusal("src_lang", f"={src_lang!r:.40}: the model hears the language of speech: leave it out")
    requests = []
    for inputs in _inputs(processor, source, src_lang):
        requests += model.requests(**inputs, tgt_lang=tgt_lang, **settings)
    (voice,), engine = voices(model, tgt_lang, speaker_id, 1), model.engine(compile)
    said: dict[int, np.ndarray] = {}
    for place, tokens in generated(engine, enumerate(requests), size):
        if isinstance(tokens, Exception):
            raise tokens
        said[place] = np.append(requests[place].input_ids, tokens)
    sequences = [said[place] for place in range(len(requests))]
    texts = translations(model, [request.clips for request in requests], sequences)
    waves = [say(engine, text, voice)[1] for text in texts if text.characters]
    if not waves:
        raise ValueError("the translation is empty, so there is nothing to say: is there speech in the clip?")
    written = (processor.decode(sequence, skip_special_tokens=True).strip() for sequence in sequences)
    text = " ".join(filter(None, written))
    return {"translation_text": text, "audio": np.concatenate(waves), "sampling_rate": model.config.sampling_rate}


def _inputs(processor: Any, source: Any, src_lang: str | None) -> Iterator[dict]:
    """What the model is given: of a text, or of each window of a clip that is not silent."""
    if isinstance(source, str):
        yield processor(source, src_lang=src_lang)
        return
    clip = load_clip(source["audio"])
    for start, end in quiet_windows(clip, SAMPLING_RATE, processor.transcription_window):
        if not is_silent(clip[start:end]):
            yield processor(audio=clip[start:end])

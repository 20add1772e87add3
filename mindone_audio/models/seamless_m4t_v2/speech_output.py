"""What is asked of a SeamlessM4T v2 that speaks, checked, and what it answers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from mindspore import Tensor

from mindone_audio.generation.engine import Engine
from mindone_audio.generation.settings import whole
from mindone_audio.models.seamless_m4t_v2.characters import Spelling
from mindone_audio.models.seamless_m4t_v2.speaking import Translation, Voice, choose_units, read, sound
from mindone_audio.setting_fields import refusal

_TEXT, _SPEECH = "text_", "speech_"  # how settings begin that are of one of the two models
_MAPS = ("t2u_lang_code_to_id", "vocoder_lang_code_to_id")


class SpeechOutput(NamedTuple):
    """`SeamlessM4Tv2GenerationOutput` of transformers.

    waveform fp32 (batch, samples), zeros behind each; waveform_lengths int32 (batch), in samples. sequences int32
    (batch, length): the text. unit_sequences int32 (batch, units), padding behind each.
    """

    waveform: Tensor
    waveform_lengths: Tensor
    sequences: Tensor
    unit_sequences: Tensor


def check_speech(model_class: type, names: set[str]) -> None:
    """`ValueError` where the tensors of a checkpoint, by their names, are not those of a model that speaks."""
    for part in ("t2u_model.", "vocoder."):
        if not any(name.startswith(part) for name in names):
            raise ValueError(
                f"the checkpoint has no {part.rstrip('.')}, with which {model_class.__name__} speaks: take one that "
                "has, or load it to write text with SeamlessM4Tv2ForSpeechToText or SeamlessM4Tv2ForTextToText"
            )


def text_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the text among those of `generate`: without a prefix or with text_, which counts more.

    Raises `ValueError` for those with speech_, which are of sampling units: but for that there is none.
    """
    for name, value in settings.items():
        if name.startswith(_SPEECH) and (name != f"{_SPEECH}do_sample" or value):
            raise refusal(name, " is not supported: the unit with the highest score is always taken, leave it out")
    general = {name: value for name, value in settings.items() if not name.startswith((_TEXT, _SPEECH))}
    own = {name.removeprefix(_TEXT): value for name, value in settings.items() if name.startswith(_TEXT)}
    return general | own


def voices(model, tgt_lang: str | Sequence[str] | None, speaker_id: int, count: int) -> list[Voice]:
    """The voice of each of so many samples. Raises `ValueError` for a language that is not spoken, for a speaker that
    there is not, and for a generation_config.json that does not tell how languages are spoken."""
    last = model.config.vocoder_num_spkrs - 1
    speaker = whole("speaker_id", speaker_id, 0, last)
    maps = [_map(model, name) for name in _MAPS]
    spoken = set(maps[0]) & set(maps[1])
    names = ", ".join(sorted(spoken))
    if tgt_lang is None:
        raise refusal("tgt_lang", f" is missing: give the language to speak, one of {names}")
    found = []
    for language in [tgt_lang] * count if isinstance(tgt_lang, str) else tgt_lang:
        code = language.replace("__", "")
        if code not in spoken:
            raise refusal(
                "tgt_lang",
                f"={language!r:.40} is no language that the model speaks, though it may write it: spoken are {names}",
            )
        found.append(Voice(_number(maps[1][code], model.config.vocoder_num_langs, _MAPS[1], "languages"), speaker))
    return found


def translations(model, sources: list, sequences: list[np.ndarray]) -> list[Translation]:
    """What is to be spoken: for each sample its source and what the text decoder wrote, from its start token on."""
    config = model.generation_config
    silent = (model.config.pad_token_id, *np.atleast_1d(config.eos_token_id).tolist())
    spelling = Spelling(_map(model, "id_to_text"), _map(model, "char_to_id"), silent)
    found = []
    for source, sequence in zip(sources, sequences):
        # As in transformers the last token is left out, which is the end, or that at which max_new_tokens cut the text.
        tokens = sequence[:-1].astype(np.int32)
        characters, counts = spelling.characters(tokens[2:].tolist())
        _number(max(characters, default=0), model.config.char_vocab_size, "char_to_id", "characters")
        # Each state has the characters of the token that it chose, which is the next one.
        found.append(Translation(source, tokens, characters, [0, *counts, 0]))
    return found


def say(engine: Engine, text: Translation, voice: Voice) -> tuple[np.ndarray, np.ndarray]:
    """The units int32 (units) and the waveform fp32 (samples) of a text that has characters."""
    units = choose_units(engine, read(engine, text), text.characters, text.counts)
    return units, sound(engine, units, voice)


def spoken(engine: Engine, texts: list[Translation], voices: list[Voice], sequences: Tensor) -> SpeechOutput:
    """Texts in voices, one after the other; sequences: as they are returned. Raises `ValueError` for a text without
    characters."""
    for place, text in enumerate(texts):
        if not text.characters:
            raise ValueError(
                f"the text of sample {place} has no characters, so there is nothing to speak: leave the sample out, or "
                "ask for text alone with generate_speech=False"
            )
    units, waves = zip(*(say(engine, text, voice) for text, voice in zip(texts, voices)))
    lengths = Tensor(np.array(list(map(len, waves)), np.int32))
    return SpeechOutput(_stacked(waves, 0), lengths, sequences, _stacked(units, engine.model.config.t2u_pad_token_id))


def _stacked(rows: Sequence[np.ndarray], padding: int) -> Tensor:
    most = max(map(len, rows))
    return Tensor(np.stack([np.pad(row, (0, most - len(row)), constant_values=padding) for row in rows]))


def _number(number: int, count: int, name: str, of: str) -> int:
    """The number, if it is one of so many; a graph would take zeros for another one."""
    if not 0 <= number < count:
        raise ValueError(
            f"generation_config.json has the number {number} in {name}, and the model {count} {of}: take the file that "
            "belongs to the checkpoint"
        )
    return number


def _map(model, name: str) -> dict:
    """A map of generation_config.json; `ValueError` where it has none."""
    found = getattr(model.generation_config, name, None)
    if not found:
        raise ValueError(
            f"generation_config.json has no {name}, which speech takes: copy the file from the published checkpoint, "
            "or ask for text alone with generate_speech=False"
        )
    return found

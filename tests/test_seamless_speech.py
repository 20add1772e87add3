"""SeamlessM4T v2 that speaks, from end to end, against transformers on PyTorch.

Single samples are compared: in a batch of transformers clips, units and the vocoder hear the padding of shorter ones.
Its `waveform_lengths` are too short where the vocoder's unit 1 is spoken, which it takes for padding; what is compared
is how long its waveforms are.
"""

import json
import runpy
import shutil
import sys
from pathlib import Path

import helpers_seamless as seamless
import mindspore as ms
import numpy as np
import pytest
import soundfile
import torch
import transformers
from ascend_branch import as_on_ascend
from helpers import relative_error
from safetensors.numpy import load_file, save_file

from mindone_audio import cli, load_audio, pipeline, pipelines
from mindone_audio.backbone.layers import name_parameters
from mindone_audio.backbone.vocoder import PredictDurations
from mindone_audio.models import AutoModelForAudioTextToText, AutoProcessor
from mindone_audio.models.seamless_m4t_v2 import speaking, speech_output, units
from mindone_audio.models.seamless_m4t_v2.model import (
    SeamlessM4Tv2ForSpeechToSpeech,
    SeamlessM4Tv2ForSpeechToText,
    SeamlessM4Tv2ForTextToSpeech,
    SeamlessM4Tv2ForTextToText,
    SeamlessM4Tv2Model,
)
from mindone_audio.pipelines import spoken_translation
from mindone_audio.setting_fields import option
from mindone_audio.weights.graph_key import graph_key

EXAMPLE = Path(__file__).parent.parent / "examples" / "seamless_translate.py"
SOURCES = {"input_ids": seamless.texts(11, 5, 3), "input_features": seamless.clips(60, 9, 41)}
TARGETS = ["eng", "__deu__", "eng"]
KINDS = pytest.mark.parametrize("kind", SOURCES)
# Neither padding, which PyTorch fails at, nor languages, which it spells "None".
WRITING = {"max_new_tokens": 12, "no_repeat_ngram_size": 1, "suppress_tokens": [0, *seamless.CODES.values()]}
SPEAKING = WRITING | {"return_intermediate_token_ids": True, "speaker_id": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder of the whole model, and PyTorch's."""
    folder = tmp_path_factory.mktemp("seamless")
    return folder, seamless.save_checkpoint(folder)


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return checkpoint[1]


@pytest.fixture(scope="module")
def ours(checkpoint):
    return AutoModelForAudioTextToText.from_pretrained(checkpoint[0])


def together(kind: str) -> dict[str, np.ndarray]:
    """All samples, with values behind the shorter ones that would be noticed."""
    rows = SOURCES[kind]
    full = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), 7, rows[0].dtype)
    mask = np.zeros(full.shape[:2], int)
    for place, kept, row in zip(full, mask, rows):
        place[: len(row)], kept[: len(row)] = row, 1
    return {kind: full, "attention_mask": mask}


def alone(kind: str, place: int) -> dict[str, np.ndarray]:
    row = SOURCES[kind][place][None]
    return {kind: row, "attention_mask": np.ones(row.shape[:2], int)}


def spoken(theirs, kind: str, place: int, **settings):
    """What PyTorch says, whose durations rounding noise does not change."""
    exact = []

    def watch(module, given, made):
        exact.append(torch.expm1(made).numpy())

    predictors = theirs.t2u_model.model.decoder.duration_predictor, theirs.vocoder.dur_predictor
    hooks = [predictor.register_forward_hook(watch) for predictor in predictors]
    inputs = {name: torch.from_numpy(value) for name, value in alone(kind, place).items()}
    made = theirs.generate(**inputs, tgt_lang=TARGETS[place], **{**SPEAKING, **settings})
    for hook in hooks:
        hook.remove()
    assert all((np.abs(values % 1 - 0.5) > 5e-5).all() for values in exact)
    return made


def check(made, expected: list) -> None:
    """That a `SpeechOutput` has what PyTorch said of each sample."""
    assert made[0] is made.waveform and made[1] is made.waveform_lengths
    waves, lengths, texts, units = (value.asnumpy() for value in made)
    assert len(waves) == len(expected) and lengths.max() == waves.shape[1]
    # Characters that are several units long, and units of several frames, which are 6 samples.
    assert units.shape[1] > texts.shape[1] and waves.shape[1] > 6 * units.shape[1]
    for wave, length, text, unit, one in zip(waves, lengths, texts, units, expected):
        their_text, their_units = one.sequences[0].numpy(), one.unit_sequences[0].numpy()
        np.testing.assert_array_equal(text[: len(their_text)], their_text)
        np.testing.assert_array_equal(unit[: len(their_units)], their_units)
        assert not text[len(their_text) :].any() and (unit[len(their_units) :] == 1).all()
        assert length == one.waveform.shape[1]
        assert relative_error(wave[:length], one.waveform[0].numpy()) < 1e-4 and not wave[length:].any()
        if not (their_units == 5).any():  # which is 1 to the vocoder
            assert length == int(one.waveform_lengths)
    assert len({tuple(unit) for unit in units.tolist()}) == len(expected)


@KINDS
@pytest.mark.parametrize("settings", [{}, {"eos_token_id": 35}])
def test_samples_together_are_each_alone_in_pytorch(ours, theirs, kind, settings):
    """Compiled, two at a time, each in a language of its own; of equal lengths, and until an end that comes sooner."""
    made = ours.generate(**together(kind), tgt_lang=TARGETS, batch_size=2, **SPEAKING | settings)
    lengths = (made.sequences.asnumpy() != 0).sum(1)
    assert (len(set(lengths.tolist())) > 1) == bool(settings)
    check(made, [spoken(theirs, kind, place, **settings) for place in range(3)])


@KINDS
def test_interpreted_and_with_beams(ours, theirs, kind):
    """The beams are of the text."""
    settings = {"num_beams": 2}
    made = ours.generate(**alone(kind, 0), tgt_lang="eng", compile=False, **SPEAKING | settings)
    check(made, [spoken(theirs, kind, 0, **settings)])


def test_what_is_returned(ours):
    """By default sound alone; the settings of the text with their prefix too."""
    asked = alone("input_ids", 1)
    whole = ours.generate(**asked, tgt_lang="deu", compile=False, **SPEAKING)
    prefixed = {f"text_{name}": value for name, value in WRITING.items()}
    settings = prefixed | {"max_new_tokens": 2, "speaker_id": 2, "speech_do_sample": False}
    waves, lengths = ours.generate(**asked, tgt_lang="deu", compile=False, **settings)
    np.testing.assert_array_equal(waves.asnumpy(), whole.waveform.asnumpy())
    np.testing.assert_array_equal(lengths.asnumpy(), whole.waveform_lengths.asnumpy())
    text = ours.generate(**asked, tgt_lang="deu", generate_speech=False, compile=False, **WRITING)
    np.testing.assert_array_equal(text.sequences.asnumpy(), whole.sequences.asnumpy())
    other = ours.generate(**asked, tgt_lang="deu", compile=False, **SPEAKING | {"speaker_id": 0})
    np.testing.assert_array_equal(other.unit_sequences.asnumpy(), whole.unit_sequences.asnumpy())
    assert relative_error(other.waveform.asnumpy()[:, :50], whole.waveform.asnumpy()[:, :50]) > 1e-2


@KINDS
def test_the_branch_of_an_npu(checkpoint, theirs, kind):
    with as_on_ascend():
        ours = SeamlessM4Tv2Model.from_pretrained(checkpoint[0])
        made = ours.generate(**alone(kind, 1), tgt_lang="deu", **SPEAKING)
    check(made, [spoken(theirs, kind, 1)])


@pytest.mark.parametrize("half", ["audio_tower", "language_model"])
def test_parts_in_two_dtypes(checkpoint, theirs, half):
    """What makes speech counts as the encoders do. Rounding changes a unit where two are nearly as good."""
    with as_on_ascend():
        ours = SeamlessM4Tv2Model.from_pretrained(checkpoint[0], mindspore_dtype={half: ms.float16, "": ms.float32})
        made = ours.generate(**alone("input_ids", 1), tgt_lang="deu", compile=False, **SPEAKING)
    expected = spoken(theirs, "input_ids", 1)
    assert (made.unit_sequences.asnumpy() == expected.unit_sequences.numpy()).mean() > 0.9
    assert made.waveform.dtype == ms.float32 and np.abs(made.waveform.asnumpy()).mean() > 0.1


@pytest.mark.parametrize(
    ("kind", "model_class"),
    [("input_ids", SeamlessM4Tv2ForTextToSpeech), ("input_features", SeamlessM4Tv2ForSpeechToSpeech)],
)
def test_classes_with_one_encoder(checkpoint, theirs, tmp_path, kind, model_class):
    """They read the whole model's checkpoint, and transformers reads what they save."""
    model = model_class.from_pretrained(checkpoint[0])
    check(model.generate(**alone(kind, 1), tgt_lang="deu", compile=False, **SPEAKING), [spoken(theirs, kind, 1)])
    model.save_pretrained(tmp_path)
    model.generation_config.save_pretrained(tmp_path)
    again = getattr(transformers, model_class.__name__).from_pretrained(tmp_path).eval()
    for name, value in again.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    assert type(AutoModelForAudioTextToText.from_pretrained(tmp_path)) is model_class


def test_a_saved_model_loads_in_transformers(ours, theirs, tmp_path):
    ours.save_pretrained(tmp_path)
    again, found = transformers.SeamlessM4Tv2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["unexpected_keys"] and not found["mismatched_keys"]
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("names", [("t2u_model.lm_head.weight",), ("t2u_model.lm_head.weight", None)])
def test_names_of_the_tied_units(checkpoint, theirs, tmp_path, names):
    """The output layer may be stored instead of the embedding, or beside it."""
    folder = shutil.copytree(checkpoint[0], tmp_path / "other")
    tensors = load_file(folder / "model.safetensors")
    stored = "t2u_model.model.decoder.embed_tokens.weight"
    value = tensors.pop(stored)
    tensors |= {name or stored: value.copy() for name in names}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model = SeamlessM4Tv2Model.from_pretrained(folder)
    np.testing.assert_array_equal(model.t2u_model.model.decoder.embed_tokens.weight.asnumpy(), value)


def test_a_checkpoint_that_cannot_speak(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint[0], tmp_path / "mute")
    tensors = load_file(folder / "model.safetensors")
    for part in ("vocoder", "t2u_model"):
        tensors = {name: value for name, value in tensors.items() if not name.startswith(f"{part}.")}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        for model_class in (SeamlessM4Tv2Model, SeamlessM4Tv2ForTextToSpeech):
            with pytest.raises(ValueError, match=f"has no {part}, with which {model_class.__name__} speaks.*ToText"):
                model_class.from_pretrained(folder)
    model = SeamlessM4Tv2ForSpeechToText.from_pretrained(folder)
    with pytest.raises(ValueError, match="ForSpeechToText writes text, use SeamlessM4Tv2Model"):
        model.generate(**alone("input_features", 1), tgt_lang="eng", generate_speech=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tgt_lang": "fra"},
            "'fra' is no language that the model speaks, though.* spoken are deu, eng$",
        ),
        ({"tgt_lang": "xyz"}, "tgt_lang='xyz' is no language"),
        ({"tgt_lang": None}, "tgt_lang is missing"),
        ({"tgt_lang": ["eng", "deu"]}, "2 languages as tgt_lang for 1 samples"),
        ({"speaker_id": 4}, "speaker_id must be between 0 and 3, not 4"),
        ({"speaker_id": "1"}, "speaker_id must be"),
        ({"generate_speech": 1}, "generate_speech must be true or false"),
        ({"return_intermediate_token_ids": "yes"}, "return_intermediate_token_ids must be true or false"),
        ({"speech_do_sample": True}, "speech_do_sample is not supported: the unit with the highest score"),
        ({"speech_do_sample": False, "speech_temperature": 0.5}, "speech_temperature is not supported"),
        ({"text_num_beans": 2}, "num_beans"),
    ],
)
def test_what_cannot_be_spoken(ours, settings, message):
    with pytest.raises(ValueError, match=message):
        ours.generate(**alone("input_ids", 1), **{"tgt_lang": "eng", "compile": False} | settings)


def test_a_text_without_characters(ours):
    """The end at once, or nothing but languages: alone, and beside another one."""
    silent = [token for token in range(seamless.VOCAB) if token != 3]
    with pytest.raises(ValueError, match="the text of sample 0 has no characters, so there is nothing to speak"):
        ours.generate(**together("input_ids"), tgt_lang="eng", compile=False, suppress_tokens=silent)


@pytest.mark.parametrize("lacking", ["t2u_lang_code_to_id", "vocoder_lang_code_to_id", "id_to_text", "char_to_id"])
def test_a_generation_config_that_does_not_tell_how_to_speak(checkpoint, tmp_path, lacking):
    folder = shutil.copytree(checkpoint[0], tmp_path / "lacking")
    file = folder / "generation_config.json"
    values = json.loads(file.read_text())
    del values[lacking]
    file.write_text(json.dumps(values))
    model = SeamlessM4Tv2ForTextToSpeech.from_pretrained(folder)
    with pytest.raises(ValueError, match=f"generation_config.json has no {lacking}, which speech takes"):
        model.generate(**alone("input_ids", 1), tgt_lang="eng", compile=False, max_new_tokens=2)


@pytest.mark.parametrize(
    ("name", "numbers", "of"),
    [("vocoder_lang_code_to_id", {"eng": 3}, "3 languages"), ("char_to_id", {"a": 31}, "31 ch")],
)
def test_a_generation_config_of_another_model(ours, monkeypatch, name, numbers, of):
    """PyTorch fails too; a graph would not."""
    monkeypatch.setattr(ours.generation_config, name, getattr(ours.generation_config, name) | numbers)
    (number,) = numbers.values()
    with pytest.raises(ValueError, match=f"has the number {number} in {name}, and the model {of}"):
        forced = {"suppress_tokens": [token for token in range(seamless.VOCAB) if token != 5]}
        ours.generate(**alone("input_ids", 1), tgt_lang="eng", compile=False, max_new_tokens=3, **forced)


def test_a_wrong_count_of_characters_is_noticed(ours, theirs, monkeypatch):
    """Each token with the characters of its neighbour: other units, so that the tests above would see it."""
    right = speech_output.Spelling.characters

    def wrong(self, tokens):
        characters, counts = right(self, tokens)
        return characters, counts[1:] + counts[:1]

    monkeypatch.setattr(speech_output.Spelling, "characters", wrong)
    made = ours.generate(**alone("input_ids", 0), tgt_lang="eng", compile=False, **SPEAKING)
    with pytest.raises(AssertionError):
        check(made, [spoken(theirs, "input_ids", 0)])


def test_the_example(checkpoint, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--model", str(checkpoint[0]), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        return stop.value.code, capsys.readouterr().out

    clip = EXAMPLE.parent / "audio" / "siren.ogg"
    status, said = run("--audio", clip, "--tgt-lang", "deu", "--device", "cpu", "--dtype", "float32")
    assert status == 0 and said.strip()
    file = tmp_path / "a.flac"
    status, said = run("--text", "abc de", "--tgt-lang", "deu", "--speak", file, "--speaker-id", 1)
    samples, rate = soundfile.read(file)
    assert status == 0 and said.strip() and rate == 16000 and np.abs(samples).mean() > 0.05
    for arguments, message in (
        (
            ("--tgt-lang", "fra", "--speak", tmp_path / "b.wav"),
            "error: --tgt-lang='fra' is no language that the model sp",
        ),
        (
            ("--tgt-lang", "eng", "--speak", tmp_path / "b.wav", "--speaker-id", 9),
            "error: --speaker-id must be between",
        ),
        (("--tgt-lang", "eng", "--src-lang", "xyz"), "error: --src-lang='xyz' is no language of this tokenizer"),
    ):
        assert run("--text", "abc", *arguments)[0].startswith(message)


@pytest.mark.slow
@pytest.mark.long
def test_graphs_are_kept(checkpoint):
    """All of them have keys, the same when a checkpoint is loaded again, of which no two are equal."""
    found = []
    for _ in range(2):
        model = SeamlessM4Tv2ForTextToSpeech.from_pretrained(checkpoint[0])
        name_parameters(model)
        cells = [units.Spell(model.t2u_model), units.ChooseUnits(model.t2u_model), PredictDurations(model.vocoder)]
        cells += [speaking.ReadTranslation(model, 32), speaking.SoundUnits(model.vocoder)]
        found.append([graph_key(cell, ()) for cell in cells])
    assert found[0] == found[1] and len(set(found[0])) == 5 and None not in found[0]


# The pipeline and the command

FEW = {"max_new_tokens": 12, "no_repeat_ngram_size": 1, "num_beams": 2}


@pytest.fixture(scope="module")
def pipe(ours, checkpoint):
    return pipeline("translation", model=ours, processor=AutoProcessor.from_pretrained(checkpoint[0]))


def heard(theirs, pipe, tgt_lang: str, **inputs) -> tuple[str, np.ndarray]:
    """PyTorch's translation, and its sound."""
    inputs = {name: torch.from_numpy(value) for name, value in pipe.processor(**inputs).items()}
    made = theirs.generate(**inputs, tgt_lang=tgt_lang, return_intermediate_token_ids=True, speaker_id=1, **FEW)
    return pipe.processor.decode(made.sequences[0], skip_special_tokens=True).strip(), made.waveform[0].numpy()


def test_the_pipeline_speaks(pipe, theirs, monkeypatch):
    """A text, and a clip window by window; what is silent is left out."""
    asked = {"speaker_id": 1, "compile": False, **FEW}
    made, (text, wave) = pipe.speak("abc de", tgt_lang="deu", **asked), heard(theirs, pipe, "deu", text="abc de")
    assert made["translation_text"] == text and made["sampling_rate"] == 16_000
    assert relative_error(made["audio"], wave) < 1e-4
    # Windows of 64 frames, of which the extractor makes pairs, and silence between them. PyTorch would hear the padding
    # beside an odd one.
    first, second = np.split(load_audio(EXAMPLE.parent / "audio" / "spoken_digits.flac")[: 2 * 10_480], 2)
    windows = [(0, 10_480), (10_480, 18_480), (18_480, 28_960)]
    monkeypatch.setattr(spoken_translation, "quiet_windows", lambda clip, rate, longest: windows)
    whole = {"audio": np.concatenate([first, np.zeros(8_000, np.float32), second])}
    made = pipe.speak(whole, tgt_lang="eng", **asked)
    texts, waves = zip(*(heard(theirs, pipe, "eng", audio=part) for part in (first, second)))
    assert made["translation_text"] == " ".join(texts) and all(texts)
    assert relative_error(made["audio"], np.concatenate(waves)) < 1e-4


def test_translate_and_speak(checkpoint, theirs, pipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipelines.load, "model_class", lambda config: type(pipe.model))
    monkeypatch.setattr(type(pipe.model), "from_pretrained", lambda *arguments, **more: pipe.model)
    options = ["--model", checkpoint[0], *(word for name, value in FEW.items() for word in (option(name), value))]

    def command(*words) -> tuple[int, str, str]:
        status = cli.main([*map(str, ("translate", *words, *options))])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    text, wave = heard(theirs, pipe, "deu", text="abc de")
    file, saying = tmp_path / "new" / "a.flac", ("--text", "abc de", "--to", "deu", "--speaker", 1)
    status, said, _ = command(*saying, "--speak", file)
    samples, rate = soundfile.read(file)
    assert status == 0 and said == f"{text}\n{file}: {len(wave) / 16_000:.1f} s\n"
    assert rate == 16_000 and relative_error(samples, wave) < 1e-3
    status, said, _ = command(*saying, "--speak", tmp_path / "b.wav", "--json")
    assert status == 0 and json.loads(said) == {"translation_text": text, "speech": str(tmp_path / "b.wav")}

    file = tmp_path / "c.wav"
    for words, status, message in (
        ((*saying, "--speak", "c.txt"), 2, "--speak c.txt: the file's name must end in .wav, .flac, .mp3"),
        ((__file__, EXAMPLE, "--to", "deu", "--speak", file), 2, "is for one clip or text, not for 2: give one"),
        (saying, 2, "--speaker 1 is the voice of --speak FILE: give both"),
        ((*saying, "--speak", file, "--stream"), 2, "--stream writes text as it is produced"),
        (
            ("--text", "abc", "--to", "fra", "--speak", file),
            2,
            "--to='fra' is no language that the model speaks, though",
        ),
        ((*saying[:-1], 9, "--speak", file), 2, "--speaker must be between 0 and 3, not 9"),
        ((*saying[:-1], "x", "--speak", file), 2, "--speaker must be between 0 and 3, not 'x'"),
        ((__file__, "--to", "deu", "--speak", file), 1, "error: "),
    ):
        found, _, error = command(*words)
        assert (found, error.count("\n")) == (status, 1) and message in error, error
    assert not file.exists()


def test_a_clip_without_speech_and_a_model_that_writes(checkpoint, pipe):
    with pytest.raises(ValueError, match="the translation is empty, so there is nothing to say"):
        pipe.speak({"audio": np.zeros(20_000, np.float32)}, tgt_lang="eng", compile=False)
    with pytest.raises(ValueError, match="src_lang='eng': the model hears the language of speech"):
        pipe.speak({"audio": np.zeros(20_000, np.float32)}, tgt_lang="eng", src_lang="eng", compile=False)
    writes = pipeline(
        "translation", model=SeamlessM4Tv2ForTextToText.from_pretrained(checkpoint[0]), processor=pipe.processor
    )
    with pytest.raises(ValueError, match="a SeamlessM4Tv2ForTextToText writes text and cannot speak"):
        writes.speak("abc", tgt_lang="eng")

"""GLM-ASR, Audio Flamingo Next and Qwen3-ASR: their processors, layouts and requests, and what is refused."""

import json
import runpy
import sys
from pathlib import Path

import helpers_transformers5 as newer
import numpy as np
import pytest
from families import GOLDENS
from helpers import relative_error
from helpers_processor import tone
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor
from mindone_audio.inputs.audio import AudioError
from mindone_audio.models import family, model_class
from mindone_audio.proof.parity import read_recording

EXAMPLE = Path(__file__).parent.parent / "examples" / "asr_models_transcribe.py"


def golden(name: str) -> Path:
    return GOLDENS / f"{name}_processor"


def facts(name: str) -> dict:
    with safe_open(golden(name) / "outputs.safetensors", "np") as stream:
        return json.loads(stream.metadata()["facts"])


@pytest.fixture(scope="module", params=newer.FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def processors():
    return {name: family(name).PROCESSOR.from_pretrained(golden(name)) for name in newer.FAMILIES}


@pytest.mark.parametrize("number", range(3))
def test_equals_transformers_5(processors, name, number):
    """Integers exactly, features to 1e-5, and nothing more or less."""
    stored = load_file(golden(name) / "outputs.safetensors")
    expected = {key.split(".")[1]: value for key, value in stored.items() if key.startswith(f"{number}.")}
    prompt, clip = newer.prompts_of(name)[number], newer.clips_of(name)[number]
    ours = processors[name](prompt, clip, output_labels=True)
    assert set(ours) == set(expected)
    for key, value in expected.items():
        assert (ours[key].dtype, ours[key].shape) == (value.dtype, value.shape), key
        if key == "input_features":
            assert np.abs(ours[key] - value).max() < 1e-5
        else:
            assert np.array_equal(ours[key], value), key


def test_a_batch_is_its_rows(processors, name):
    processor = processors[name]
    prompts, clips = newer.prompts_of(name), newer.clips_of(name)
    together = processor(prompts, clips)
    rows = 0
    for row, (prompt, clip) in enumerate(zip(prompts, clips)):
        alone = processor(prompt, clip)
        seen = together["attention_mask"][row] == 1
        assert np.array_equal(together["input_ids"][row][seen], alone["input_ids"][0])
        count, width = len(alone["input_features"]), alone["input_features"].shape[2]
        own = together["input_features"][rows : rows + count, :, :width]
        assert np.array_equal(own, alone["input_features"])
        rows += count
    assert rows == len(together["input_features"])


def test_requests_for_transcriptions(processors):
    for name in ("glmasr", "qwen3_asr"):
        prompts, processor = facts(name)["prompts"], processors[name]
        inputs = processor.transcription_inputs([tone(0.6)], language=None, chat=True)
        text = processor.decode(inputs["input_ids"][0])
        assert text.replace(processor.audio_token, "") == prompts[0].replace(processor.audio_token, "")


def test_the_language_and_words_of_qwen3_asr(processors):
    processor, (german, words) = processors["qwen3_asr"], facts("qwen3_asr")["told"]
    token, clip = processor.audio_token, tone(0.6)

    def text(**told) -> str:
        inputs = processor.transcription_inputs([clip], chat=True, **told)
        return processor.decode(inputs["input_ids"][0]).replace(token, "")

    assert text(language="de") == text(language="German") == german.replace(token, "")
    assert text(language=None, prompt="Kowalski, MindSpore") == words.replace(token, "")
    with pytest.raises(ValueError, match="language='tlh' is none of this model: known are ar, cs,"):
        text(language="tlh")


def test_answers_of_qwen3_asr_are_parsed(processors):
    processor = processors["qwen3_asr"]
    for answer, expected in zip(newer.ANSWERS, facts("qwen3_asr")["parsed"]):
        assert processor.transcription(answer) == expected["transcription"]
        assert processor.language(answer) == expected["language"]


def test_what_is_too_long_or_too_short(processors, name):
    processor = processors[name]
    most = processor.longest_clip
    assert most == {"glmasr": 654, "musicflamingo": 1200, "qwen3_asr": 1200}[name]
    with pytest.raises(AudioError, match=rf"is {most + 1:.2f} s long and the model hears {most:g} s"):
        processor(newer.CLIPS[name], np.zeros((int(most) + 1) * 16_000, np.float32))
    with pytest.raises(AudioError, match="too few for one audio token"):
        processor(newer.CLIPS[name], np.zeros(300, np.float32))


def test_the_layout_of_qwens_own_repositories(tmp_path):
    """Everything below "thinker", the projector a part of the encoder, and three positions for each token."""
    source = GOLDENS / "qwen3_asr"
    stored = json.loads((source / "config.json").read_text())
    text = {**stored["text_config"], "model_type": "qwen3_asr_text"}
    theta = text.pop("rope_parameters")["rope_theta"]
    text |= {"rope_theta": theta, "rope_scaling": {"mrope_section": [2, 1, 1], "interleaved": True, "type": "default"}}
    audio = {**stored["audio_config"], "model_type": "qwen3_asr_audio_encoder", "conv_chunksize": 500}
    names = ("audio_token_id", "tie_word_embeddings")
    thinker = {"audio_config": audio, "text_config": text, **{name: stored[name] for name in names}}
    config = {"model_type": "qwen3_asr", "architectures": ["Qwen3ASRForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps({**config, "thinker_config": thinker}))
    tensors = {}
    for name, value in load_file(source / "model.safetensors").items():
        name = name.removeprefix("model.").replace("multi_modal_projector.linear_", "audio_tower.proj")
        name = name.replace("language_model.model.", "model.").replace("language_model.", "model.")
        name = name.replace("model.lm_head", "lm_head")
        tensors[f"thinker.{name}"] = value
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    recording = read_recording(source / "batch.safetensors")
    model = AutoModelForAudioTextToText.from_pretrained(tmp_path)
    seen, expected = recording.inputs["attention_mask"] != 0, recording.arrays["logits"]
    assert relative_error(model(**recording.inputs).logits.asnumpy()[seen], expected[seen]) < 1e-4


def test_windows_of_a_clip_turn_by_their_number():
    """Audio Flamingo Next tells the windows of one clip from single windows of several clips."""
    model = AutoModelForAudioTextToText.from_pretrained(GOLDENS / "musicflamingo")
    inputs = dict(read_recording(GOLDENS / "musicflamingo" / "one_clip.safetensors").inputs)
    _, _, lengths = model.prompt(**inputs)
    assert lengths.tolist() == [[40, 0], [40, 1], [21, 2]]
    places = np.flatnonzero(inputs["input_ids"][0] == model.audio_token_id)
    apart = np.insert(inputs["input_ids"][0], places[10], 7)[None]  # a word behind the first window
    _, _, lengths = model.prompt(**{**inputs, "input_ids": apart, "attention_mask": np.ones_like(apart)})
    assert lengths.tolist() == [[40, 0], [40, 0], [21, 1]]


@pytest.mark.parametrize(
    ("name", "part", "change", "message"),
    [
        ("glmasr", "audio_config", {"intermediate_size": 40}, "intermediate_size 40 must be 4 times hidden_size 24"),
        ("glmasr", "audio_config", {"max_position_embeddings": 18}, "max_position_embeddings 18 a multiple of 4"),
        ("glmasr", "audio_config", {"hidden_act": "relu"}, "only gelu is supported"),
        ("glmasr", "audio_config", {"rope_parameters": {"rope_type": "yarn"}}, "only the default type"),
        ("musicflamingo", None, {"rope_parameters": {"rope_type": "linear"}}, "only gelu and the default type"),
        ("musicflamingo", None, {"rope_parameters": {"partial_rotary_factor": 0.9}}, "rotates 42 of 24 dimensions"),
        ("qwen3_asr", "audio_config", {"n_window_infer": 150}, "n_window_infer 150 must be a multiple of 8 and of a"),
        ("qwen3_asr", "audio_config", {"n_window": 3}, "which has 2 \\* n_window = 6 frames"),
        ("qwen3_asr", "text_config", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ],
)
def test_configs_that_do_not_fit(name, part, change, message):
    config = json.loads((GOLDENS / name / "config.json").read_text())
    (config if part is None else config[part]).update(change)
    config.pop("partial_rotary_factor", None)
    chosen = model_class({"model_type": name})
    with pytest.raises(ValueError, match=message):
        chosen(chosen.config_class(**config))


@pytest.mark.parametrize("name", ["glmasr", "qwen3_asr"])
def test_the_example(name, tmp_path, monkeypatch, capsys):
    newer.write_checkpoint(name, tmp_path)
    clip = str(EXAMPLE.parent / "audio" / "spoken_digits.flac")
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--model", str(tmp_path), "--audio", clip, "--max-new-tokens", "6"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out.strip()
    processor, model = AutoProcessor.from_pretrained(tmp_path), AutoModelForAudioTextToText.from_pretrained(tmp_path)
    inputs = processor.transcription_inputs([clip], language=None, chat=True)
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False, compile=False).asnumpy()
    text = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert not end.value.code and said == f"{clip}: {processor.transcription(text)}"

"""Qwen2.5-Omni: the thinker alone out of a whole checkpoint, its processor, and what is refused."""

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import helpers_qwen2_5_omni as omni
import numpy as np
import pytest
import torch
import transformers
from helpers import relative_error
from helpers_processor import make_reference_exact, tone
from safetensors.numpy import load_file

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor
from mindone_audio.backbone.published_config import decoder_config
from mindone_audio.inputs.audio import AudioError
from mindone_audio.models.qwen2_5_omni import Qwen2_5OmniThinkerForConditionalGeneration
from mindone_audio.weights.hub import CheckpointError

EXAMPLE = Path(__file__).parent.parent / "examples" / "ask_about_clips.py"
CLIP = "<|audio_bos|><|AUDIO|><|audio_eos|>"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """A thinker's folder, as transformers saves it."""
    folder = tmp_path_factory.mktemp("thinker")
    omni.torch_omni(omni.tiny_omni_config()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return AutoProcessor.from_pretrained(omni.write_processor(tmp_path_factory.mktemp("processor")))


def reference(processor) -> transformers.Qwen2_5OmniProcessor:
    """transformers' processor with the same parts, and none for images, which it would insist on."""
    theirs = object.__new__(transformers.Qwen2_5OmniProcessor)
    theirs.feature_extractor, theirs.tokenizer = processor.feature_extractor, processor.tokenizer
    theirs.image_processor = theirs.video_processor = SimpleNamespace(merge_size=2)
    theirs.audio_token, theirs.image_token, theirs.video_token = "<|AUDIO|>", "<|IMAGE|>", "<|VIDEO|>"
    return theirs


def test_the_processor_is_that_of_transformers(processor, monkeypatch):
    make_reference_exact(monkeypatch)
    clips = [tone(seconds, seed=i) for i, seconds in enumerate((0.5, 2.01, 7.3))]
    texts = [f"{CLIP}What is it?", f"Two: {CLIP} and {CLIP}."]
    ours, theirs = processor(texts, clips), reference(processor)(texts, audio=clips, padding=True)
    for name in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    frames = ours["input_features"].shape[2]
    assert theirs["input_features"].shape[2] == 30_000 and frames == 730  # theirs is always 300 s long
    np.testing.assert_array_equal(ours["feature_attention_mask"], theirs["feature_attention_mask"][:, :frames])
    assert relative_error(ours["input_features"], theirs["input_features"][:, :, :frames]) < 1e-5
    assert not theirs["feature_attention_mask"][:, frames:].any()


def test_a_model_takes_the_features_of_either_processor(processor, tmp_path):
    """Those of transformers are 300 s long, and their mask says how much of that is audio."""
    model = AutoModelForAudioTextToText.from_pretrained(omni.write_checkpoint(tmp_path))
    small = AutoProcessor.from_pretrained(tmp_path)
    inputs = dict(small(f"{CLIP}What is it?", tone(3.3)))
    expected = model(**inputs).logits.asnumpy()
    wide = ((0, 0), (0, 30_000 - inputs["feature_attention_mask"].shape[1]))
    inputs["input_features"] = np.pad(inputs["input_features"], ((0, 0), *wide))
    inputs["feature_attention_mask"] = np.pad(inputs["feature_attention_mask"], wide)
    assert relative_error(model(**inputs).logits.asnumpy(), expected) < 1e-5


@pytest.mark.parametrize("shards", [1, 2])
def test_a_whole_checkpoint_gives_the_thinker(thinker, tmp_path, shards):
    """Without what sees and speaks, whose file need not be there."""
    folder = omni.write_whole(thinker, tmp_path / "whole", shards)
    if shards == 2:
        (folder / "model-00002-of-00002.safetensors").unlink()
    model = AutoModelForAudioTextToText.from_pretrained(folder)
    assert type(model) is Qwen2_5OmniThinkerForConditionalGeneration
    model.save_pretrained(tmp_path / "saved")
    saved, own = load_file(tmp_path / "saved" / "model.safetensors"), load_file(thinker / "model.safetensors")
    assert set(saved) == {name for name in own if not name.startswith(("visual.", "audio_tower.audio_bos_eos_token"))}
    assert all((saved[name] == own[name]).all() for name in saved)
    again = AutoModelForAudioTextToText.from_pretrained(tmp_path / "saved")
    assert again.config.model_type == "qwen2_5_omni_thinker"


def test_transformers_loads_what_is_saved(thinker, tmp_path):
    model = AutoModelForAudioTextToText.from_pretrained(thinker)
    model.save_pretrained(tmp_path)
    theirs, info = transformers.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert all(name.startswith(("visual.", "audio_tower.audio_bos_eos_token")) for name in info["missing_keys"])
    case = omni.omni_cases()["three clips"]()
    with torch.no_grad():
        expected = theirs(**{name: torch.from_numpy(value) for name, value in case.items()}).logits.numpy()
    assert relative_error(model(**case).logits.asnumpy(), expected) < 1e-4


@pytest.mark.parametrize("part", ["talker", "token2wav"])
def test_a_part_that_hears_nothing_is_refused(tmp_path, part):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": f"qwen2_5_omni_{part}"}))
    with pytest.raises(ValueError, match=f"'qwen2_5_omni_{part}': a part of Qwen2.5-Omni that hears nothing: use the"):
        AutoModelForAudioTextToText.from_pretrained(tmp_path)


def test_a_checkpoint_without_a_thinker_is_refused(thinker, tmp_path):
    folder = omni.write_whole(thinker, tmp_path, shards=2)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00001-of-00002.safetensors does not exist, 1 of the 1 files"):
        AutoModelForAudioTextToText.from_pretrained(folder)


@pytest.mark.parametrize("audio", [{"n_window": 3}, {"n_window": 5}, {"n_window": 6}, {"n_window": 40}])
def test_windows_that_do_not_fit(audio):
    with pytest.raises(ValueError, match=r"windows of \d+ frames do not fit .* n_window \(\d+\): correct config.json"):
        Qwen2_5OmniThinkerForConditionalGeneration(omni.tiny_omni_config(audio=audio))


def test_only_the_sections_of_equal_positions_are_ignored():
    rope = {"mrope_section": [2, 1, 1], "rope_type": "default", "type": "default"}
    assert decoder_config(omni.tiny_omni_config().text_config).rope_scaling == rope
    other = omni.tiny_omni_config({"rope_scaling": {"rope_type": "default", "attention_factor": 2.0}}).text_config
    with pytest.raises(ValueError, match="attention_factor 2.0 is not supported"):
        decoder_config(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_features": np.zeros((1, 7, 40), np.float32)}, r"shape \(1, 7, 40\), this model takes \(clips, 16,"),
        ({"input_features": np.zeros((16, 40), np.float32)}, r"shape \(16, 40\), this model takes"),
        ({"feature_attention_mask": np.ones((1, 41))}, r"feature_attention_mask has shape \(1, 41\), not \(1, 101\)"),
        ({"feature_attention_mask": np.zeros((1, 101))}, "the 0 given clips need 0"),
        ({"input_features": None, "feature_attention_mask": None}, "the 0 given clips need 0"),
    ],
)
def test_features_that_do_not_fit(thinker, change, message):
    model = AutoModelForAudioTextToText.from_pretrained(thinker)
    with pytest.raises(ValueError, match=message):
        model(**omni.omni_cases()["one clip"]() | change)


def test_clips_that_do_not_fit(processor):
    with pytest.raises(AudioError, match="301.00 s long and the model hears 300 s"):
        processor(CLIP, np.zeros(301 * 16_000, np.float32))
    with pytest.raises(AudioError, match="too few for one audio token"):
        processor(CLIP, np.zeros(300, np.float32))
    assert processor(CLIP, np.zeros(301 * 16_000, np.float32), truncation=True)["input_features"].shape[2] == 30_000


def test_an_image_is_refused(processor):
    content = [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}]
    with pytest.raises(ValueError, match=re.compile("image")):
        processor.apply_chat_template([{"role": "user", "content": content}])


def test_the_example(tmp_path, monkeypatch, capsys):
    omni.write_checkpoint(tmp_path)
    clip = str(EXAMPLE.parent / "audio" / "three_beeps.wav")
    options = ["--model", str(tmp_path), "--audio", clip, "--prompt", "How many?", "--max-new-tokens", "3"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out.strip()
    processor, model = AutoProcessor.from_pretrained(tmp_path), AutoModelForAudioTextToText.from_pretrained(tmp_path)
    content = [{"type": "audio", "audio": clip}, {"type": "text", "text": "How many?"}]
    inputs = processor.conversation_inputs([[{"role": "user", "content": content}]], chat=True)
    tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False, compile=False).asnumpy()
    assert not end.value.code and said
    assert said == processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_the_example_says_what_is_wrong(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--model", "/nowhere", "--audio", "clip.wav"])
    with pytest.raises(SystemExit, match="error: no checkpoint folder '/nowhere'"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")

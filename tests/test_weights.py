"""Loading: what is stored is what is computed with, and whatever is wrong with a checkpoint is named."""

import functools
import json
import logging
import re
import shutil
import struct

import mindspore as ms
import numpy as np
import pytest
import torch
from helpers import batch, clips, prompt, relative_error, tiny_config, to_torch, torch_model
from safetensors.torch import load_file, save_file
from transformers import Qwen2AudioForConditionalGeneration as TorchQwen2Audio

from mindone_audio import AutoModelForAudioTextToText, Qwen2AudioForConditionalGeneration
from mindone_audio.machine import device
from mindone_audio.weights import parameters
from mindone_audio.weights.hub import CheckpointError
from mindone_audio.weights.parameters import read_tensor, stored_tensors

INPUTS = {**batch([prompt([3, "a40", 5])]), **clips([40])}


@pytest.fixture(scope="module")
def reference():
    return torch_model(tiny_config())


@pytest.fixture
def folder(reference, tmp_path):
    reference.save_pretrained(tmp_path)
    return tmp_path


def logits(model):
    return model(**INPUTS).logits.asnumpy()


def torch_logits(model):
    with torch.no_grad():
        return model(**to_torch(INPUTS)).logits.numpy()


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32_on_cpu_and_one_line_says_so(folder, dtype, caplog, monkeypatch):
    edit_weights(folder, lambda tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()}))
    expected = torch_logits(TorchQwen2Audio.from_pretrained(folder, dtype=torch.float32))
    monkeypatch.setattr(device, "_log_once", functools.cache(device._log_once.__wrapped__))
    with caplog.at_level(logging.INFO, logger="mindone_audio"):
        model = AutoModelForAudioTextToText.from_pretrained(folder, mindspore_dtype=ms.bfloat16)
        model = AutoModelForAudioTextToText.from_pretrained(folder)
    assert model.dtype == ms.float32
    assert relative_error(logits(model), expected) < 1e-4
    lines = [record.message for record in caplog.records if "converted to Float32" in record.message]
    assert 1 <= len(lines) <= 2  # one for each dtype that was asked for or stored
    assert len(lines) == len(set(lines))


def test_shards(reference, tmp_path):
    reference.save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    model = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path)
    assert relative_error(logits(model), torch_logits(reference)) < 1e-4
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"{shards[1].name} does not exist"):
        Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path)


def test_a_single_file_wins_over_an_index_beside_it(folder, reference):
    """As in transformers: an index, and shards, of an earlier save are left over."""
    stale = {name: torch.zeros_like(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(stale, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    for places in (dict.fromkeys(stale, "model-00001-of-00001.safetensors"), {"a": "model-00001-of-00009.safetensors"}):
        index.write_text(json.dumps({"weight_map": places}))
        theirs = TorchQwen2Audio.from_pretrained(folder, attn_implementation=reference.config._attn_implementation)
        np.testing.assert_array_equal(torch_logits(theirs.eval()), torch_logits(reference))
        model = AutoModelForAudioTextToText.from_pretrained(folder)
        assert relative_error(logits(model), torch_logits(reference)) < 1e-4


BUFFERS = {
    "language_model.model.layers.1.self_attn.rotary_emb.inv_freq": torch.zeros(4, dtype=torch.float64),
    "language_model.model.rotary_emb.inv_freq": torch.zeros(4),
    "model.language_model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4, dtype=torch.bfloat16),
    "rotary_emb.inv_freq": torch.zeros(4, dtype=torch.float8_e4m3fn),
    "audio_tower.embeddings.position_ids": torch.arange(9)[None],
    "language_model.model.layers.0.attn.bias": torch.ones(1, 1, 3, 3, dtype=torch.bool),
    "language_model.model.layers.0.attn.masked_bias": torch.tensor(-1e4, dtype=torch.float16),
    "masked_bias": torch.zeros(3, dtype=torch.uint8),
}


def test_buffers_of_old_checkpoints_are_not_unexpected(folder, reference):
    edit_weights(folder, lambda tensors: tensors.update(BUFFERS))
    model = AutoModelForAudioTextToText.from_pretrained(folder)
    assert relative_error(logits(model), torch_logits(reference)) < 1e-4
    assert model.dtype == ms.float32  # not that of a buffer


def test_buffers_in_shards(folder, reference):
    edit_weights(folder, lambda tensors: tensors.update(BUFFERS))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = AutoModelForAudioTextToText.from_pretrained(folder)
    assert relative_error(logits(model), torch_logits(reference)) < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.rotary_emb.inv_freq.weight",
        "language_model.model.layers.0.self_attn.bias",
        "audio_tower.my_position_ids",
        "language_model.model.rotary_emb.scale",
    ],
)
def test_what_only_looks_like_a_buffer_is_unexpected(folder, name):
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=f"1 unexpected: {name}"):
        AutoModelForAudioTextToText.from_pretrained(folder)


def test_missing_and_unexpected_tensors_are_named(folder):
    def change(tensors):
        del tensors["language_model.lm_head.weight"], tensors["audio_tower.conv2.bias"]
        tensors["language_model.extra"] = torch.zeros(2)

    edit_weights(folder, change)
    with pytest.raises(CheckpointError) as error:
        AutoModelForAudioTextToText.from_pretrained(folder)
    message = str(error.value)
    assert "2 missing: audio_tower.conv2.bias, language_model.lm_head.weight" in message
    assert "1 unexpected: language_model.extra" in message


def test_a_wrong_shape_is_named(folder):
    name = "language_model.model.layers.1.self_attn.k_proj.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    with pytest.raises(CheckpointError, match=rf"{name}.*\(15, 48\).*needs \(16, 48\)"):
        AutoModelForAudioTextToText.from_pretrained(folder)


@pytest.mark.parametrize("keep", [4, 100, -40])
def test_a_cut_file_is_named(folder, keep):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match="model.safetensors is damaged or cut off"):
        AutoModelForAudioTextToText.from_pretrained(folder)


@pytest.mark.parametrize("header", [b"not json at all", b"[1, 2]", b'{"a": 3}', b'{"a": {"dtype": "F32"}}'])
def test_a_file_that_is_no_safetensors_is_named(folder, header):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        AutoModelForAudioTextToText.from_pretrained(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors does not exist"):
        AutoModelForAudioTextToText.from_pretrained(folder)


def test_pickled_weights_are_not_read(folder, reference):
    (folder / "model.safetensors").unlink()
    torch.save(reference.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only pytorch_model.bin: pickled weights"):
        AutoModelForAudioTextToText.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda places, shards: places.update(nobody=shards[0]), "says that tensor 'nobody' is in"),
        (lambda places, shards: places.update(dict.fromkeys(places, shards[0])), "says that tensor .* and it is not"),
        (lambda places, shards: places.clear(), "missing: audio_tower"),
    ],
)
def test_an_index_that_does_not_fit_its_files(reference, tmp_path, change, message):
    reference.save_pretrained(tmp_path, max_shard_size="50KB")
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"], sorted(path.name for path in tmp_path.glob("model-*.safetensors")))
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path)


def test_a_disk_error_names_file_and_tensor(folder, monkeypatch):
    def broken(stream, array):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(parameters, "_fill", broken)
    with pytest.raises(CheckpointError, match="model.safetensors: tensor 'audio_tower.*Input/output error"):
        AutoModelForAudioTextToText.from_pretrained(folder)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [ms.float32, ms.float16, ms.bfloat16, None])
def test_values_in_every_dtype(tmp_path, stored, wanted, monkeypatch):
    monkeypatch.setattr(parameters, "_CHUNK", 24)  # bytes: the values come in several parts
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(stored)
    save_file({"x": values}, tmp_path / "model.safetensors")
    array = read_tensor(stored_tensors(tmp_path)[0], wanted)
    names = {ms.float32: torch.float32, ms.float16: torch.float16, ms.bfloat16: torch.bfloat16, None: stored}
    expected = values.to(names[wanted]).float().numpy()
    np.testing.assert_array_equal(array.astype(np.float32), expected)
    assert array.dtype.itemsize == names[wanted].itemsize


def test_names_and_config_as_transformers_5_may_write_them(folder, reference):
    def rename(tensors):
        for name in list(tensors):
            new = name.replace("language_model.model.", "model.language_model.")
            new = new.replace("language_model.lm_head", "lm_head")
            new = re.sub("^(audio_tower|multi_modal_projector)", r"model.\1", new)
            tensors[new] = tensors.pop(name)

    def rope(config):
        text = config["text_config"]
        text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), "rope_type": "default"}
        text.pop("rope_scaling", None)
        config["dtype"] = config.pop("torch_dtype", config.get("dtype"))

    edit_weights(folder, rename)
    edit_config(folder, rope)
    model = AutoModelForAudioTextToText.from_pretrained(folder)
    assert relative_error(logits(model), torch_logits(reference)) < 1e-4


def test_transformers_on_pytorch_loads_what_was_saved(folder, reference, tmp_path_factory):
    model = AutoModelForAudioTextToText.from_pretrained(folder)
    saved = tmp_path_factory.mktemp("saved")
    model.save_pretrained(saved, max_shard_size="60KB")
    assert len(list(saved.glob("*.safetensors"))) > 1
    attention = reference.config._attn_implementation
    back, info = TorchQwen2Audio.from_pretrained(saved, output_loading_info=True, attn_implementation=attention)
    assert not any(info.values())
    np.testing.assert_array_equal(torch_logits(back.eval()), torch_logits(reference))


def test_model_type(folder):
    edit_config(folder, lambda config: config.update(model_type="bert"))
    with pytest.raises(ValueError, match="unknown model_type 'bert': known are .*qwen2_audio"):
        AutoModelForAudioTextToText.from_pretrained(folder)
    with pytest.raises(ValueError, match="'bert' model.*AutoModelForAudioTextToText"):
        Qwen2AudioForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_broken_config(folder, content):
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    for cls in (AutoModelForAudioTextToText, Qwen2AudioForConditionalGeneration):
        with pytest.raises(OSError, match="config.json"):
            cls.from_pretrained(folder)


def test_no_such_checkpoint(tmp_path, monkeypatch):
    for cls in (AutoModelForAudioTextToText, Qwen2AudioForConditionalGeneration):
        with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
            cls.from_pretrained(tmp_path / "nowhere")
        with pytest.raises(OSError, match="nobody/nothing"):
            cls.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"attn_implementation": "flash_attention_2"}, ValueError, "'flash_attention_2'.*use 'eager'"),
        ({"device_map": "cuda:0"}, ValueError, "device_map 'cuda:0'"),
        ({"load_in_4bit": True}, TypeError, "load_in_4bit"),
    ],
)
def test_refused_keywords(folder, keywords, error, message):
    with pytest.raises(error, match=message):
        AutoModelForAudioTextToText.from_pretrained(folder, **keywords)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("audio_config", {"activation_function": "relu"}, "activation_function 'relu'"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (
            "text_config",
            {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 3},
            "sliding_window 64",
        ),
        ("text_config", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
    ],
)
def test_refused_configs(folder, part, change, message):
    edit_config(folder, lambda config: config[part].update(change))
    with pytest.raises(ValueError, match=message):
        AutoModelForAudioTextToText.from_pretrained(folder)


def test_subfolder(folder, tmp_path_factory, reference):
    outer = tmp_path_factory.mktemp("outer")
    shutil.copytree(folder, outer / "inner")
    model = AutoModelForAudioTextToText.from_pretrained(outer, subfolder="inner")
    assert relative_error(logits(model), torch_logits(reference)) < 1e-4


def test_tying(tmp_path):
    """A tied checkpoint has no output layer of its own; asked not to tie, the layer starts as the embedding."""
    reference = torch_model(tiny_config(text={"tie_word_embeddings": True}))
    reference.save_pretrained(tmp_path)
    expected = torch_logits(reference)
    names = []
    for keywords in ({}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}):
        model = AutoModelForAudioTextToText.from_pretrained(tmp_path, **keywords)
        assert relative_error(logits(model), expected) < 1e-4
        names.append("language_model.lm_head.weight" in {p.name for p in model.get_parameters()})
    assert names == [False, False, True]


def test_a_model_made_from_a_config_alone_is_random_and_works():
    model = Qwen2AudioForConditionalGeneration(tiny_config())
    assert np.isfinite(logits(model)).all()
    assert model.generate(**INPUTS, max_new_tokens=2, compile=False).shape == (1, INPUTS["input_ids"].shape[1] + 2)


def test_a_model_that_cannot_fit_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr(device, "memory", lambda: ("this machine", 100_000))
    arithmetic = r"takes 0\.\d GB \(parameters as Float32 0\.\d, cache of 1024 tokens 0\.\d, workspace 0\.\d\)"
    with pytest.raises(CheckpointError, match=arithmetic + ", and this machine has 0.0 GB of memory"):
        AutoModelForAudioTextToText.from_pretrained(folder)

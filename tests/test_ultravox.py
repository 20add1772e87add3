"""Ultravox beyond the table of families: repositories put together, its processor, dialogues, and what is refused."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import helpers_ultravox
import mindspore as ms
import numpy as np
import pytest
from families import golden
from helpers import relative_error
from helpers_processor import tone, write_audio
from helpers_ultravox import GOLDENS, split_checkpoint, write_checkpoint
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, WhisperFeatureExtractor

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, UltravoxConfig, pipeline, to_mindspore
from mindone_audio.inputs.audio import AudioError
from mindone_audio.models.ultravox.model import UltravoxForConditionalGeneration, UltravoxProcessor
from mindone_audio.weights.hub import CheckpointError
from mindone_audio.weights.parameters import load_parameters

ROOT = Path(__file__).parent.parent
LLAMA = GOLDENS / "ultravox_llama"


@pytest.fixture(scope="module")
def recordings():
    return golden("ultravox_llama").load(None)[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny v0.5 repository and, beside it, the language model that it names."""
    return write_checkpoint(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return AutoModelForAudioTextToText.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def processor(checkpoint):
    return AutoProcessor.from_pretrained(checkpoint)


def load(folder, **settings):
    return AutoModelForAudioTextToText.from_pretrained(folder, **settings)


def change_config(folder: Path, **changes) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "drop"}))
    return folder


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def assert_as_recorded(model, recordings):
    for recording in recordings.values():
        seen = recording.inputs["attention_mask"] != 0
        logits = model(**recording.inputs).logits.asnumpy()
        assert relative_error(logits[seen], recording.arrays["logits"][seen]) < 1e-4


# Repositories put together


@pytest.mark.parametrize("audio", [True, False], ids=["both", "text only"])
@pytest.mark.parametrize("prefix", ["model.encoder.", "encoder."])
def test_weights_come_from_the_models_that_config_names(tmp_path, recordings, audio, prefix):
    own = split_checkpoint(LLAMA, tmp_path, audio, prefix)
    model = load(own)
    assert_as_recorded(model, recordings)
    assert model.generation_config.eos_token_id == [259, 260]  # the language model's
    # what is saved needs neither of them
    shutil.rmtree(tmp_path / "text")
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["text_model_id"] is config["audio_model_id"] is None
    assert config["architectures"] == ["UltravoxModel"] and "whisper" in config["audio_config"]["_name_or_path"]
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) == set(load_file(LLAMA / "model.safetensors"))
    assert_as_recorded(load(tmp_path / "saved"), recordings)


def test_its_own_weights_come_first(tmp_path, recordings):
    """A repository that holds everything, or a layer that was trained, is not overwritten, and fetches nothing."""
    own = split_checkpoint(LLAMA, tmp_path)
    shutil.copy(LLAMA / "model.safetensors", own)
    (tmp_path / "text" / "model.safetensors").unlink()
    change_tensors(tmp_path / "whisper", lambda tensors: tensors.clear())
    assert_as_recorded(load(own), recordings)

    split_checkpoint(LLAMA, tmp_path / "second")
    trained = "language_model.model.layers.2.mlp.up_proj.weight"
    value = load_file(LLAMA / "model.safetensors")[trained]
    change_tensors(tmp_path / "second" / "ultravox", lambda tensors: tensors.update({trained: value}))
    replaced = {trained.removeprefix("language_model."): value * 0}
    change_tensors(tmp_path / "second" / "text", lambda tensors: tensors.update(replaced))
    assert_as_recorded(load(tmp_path / "second" / "ultravox"), recordings)


def test_parts_get_the_dtype_of_the_repository(tmp_path):
    """Whisper is published in float16 and Llama in bfloat16, and a model has one dtype."""
    own = split_checkpoint(LLAMA, tmp_path)
    change_tensors(tmp_path / "whisper", lambda t: t.update({n: v.astype(np.float16) for n, v in t.items()}))
    model = UltravoxForConditionalGeneration(UltravoxConfig.from_pretrained(own))
    parts = load_parameters(model, own, lambda name, stored: stored, sources=model.weight_sources(own))
    assert {parameter.dtype for parameter in model.get_parameters()} == {ms.bfloat16}
    assert parts == {"language_model.": tmp_path / "text", "audio_tower.": tmp_path / "whisper"}


@pytest.mark.parametrize("field", ["text_model_id", "audio_model_id"])
def test_a_missing_repository_is_named(tmp_path, field):
    own = split_checkpoint(LLAMA, tmp_path)
    folder = tmp_path / {"text_model_id": "text", "audio_model_id": "whisper"}[field]
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"{folder}/model.safetensors does not exist"):
        load(own)
    for name, reason in ((str(folder), "no checkpoint folder"), ("nobody/nothing", "config.json of 'nobody/nothing'")):
        change_config(own, **{field: name})
        shutil.rmtree(folder, ignore_errors=True)
        with pytest.raises(FileNotFoundError, match=f"{field} '{name}'.*cannot be had.*{reason}"):
            load(own, local_files_only=True, cache_dir=tmp_path)
        with pytest.raises(FileNotFoundError, match=f"{field} '{name}'.*cannot be had"):
            AutoProcessor.from_pretrained(own, local_files_only=True, cache_dir=tmp_path)


def test_a_repository_of_the_hub_from_the_cache(tmp_path):
    """Offline, with only some of its files there at first."""
    own = split_checkpoint(LLAMA, tmp_path)
    cached = tmp_path / "cache" / "models--some--llama"
    (cached / "snapshots" / "1").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1")
    shutil.copy(tmp_path / "text" / "config.json", cached / "snapshots" / "1")
    change_config(own, text_model_id="some/llama")
    access = {"local_files_only": True, "cache_dir": tmp_path / "cache"}
    with pytest.raises(CheckpointError, match="models--some--llama.*model.safetensors does not exist"):
        load(own, **access)
    shutil.copy(tmp_path / "text" / "model.safetensors", cached / "snapshots" / "1")
    load(own, **access)
    with pytest.raises(FileNotFoundError, match="some/llama has no tokenizer_config.json"):
        AutoProcessor.from_pretrained(own, **access)
    helpers_ultravox.tokenizer().save_pretrained(cached / "snapshots" / "1")
    assert AutoProcessor.from_pretrained(own, **access).feature_extractor.feature_size == 16


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "text",
            lambda t: t.pop("model.norm.weight"),
            "ultravox and .*text.* 1 missing: language_model.model.norm",
        ),
        ("text", lambda t: t.update(odd=np.ones(1, np.float32)), "1 unexpected: odd"),
        ("ultravox", lambda t: t.update(odd=np.ones(1, np.float32)), "1 unexpected: odd"),
        ("whisper", lambda t: t.pop("model.encoder.conv1.bias"), "1 missing: audio_tower.conv1.bias"),
        (
            "whisper",
            lambda t: t.update({"model.encoder.conv1.bias": np.ones(7, np.float32)}),
            "whisper.*has shape",
        ),
        ("ultravox", lambda t: t.pop("multi_modal_projector.ln_mid.weight"), "1 missing: multi_modal_projector.ln_mid"),
    ],
)
def test_parts_are_checked(tmp_path, part, change, message):
    own = split_checkpoint(LLAMA, tmp_path)
    change_tensors(tmp_path / part, change)
    with pytest.raises(CheckpointError, match=message):
        load(own)


def test_unmerged_lora_weights_are_refused(tmp_path):
    own = split_checkpoint(LLAMA, tmp_path)
    change_config(own, text_model_lora_config={"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]})
    with pytest.raises(ValueError, match="text_model_lora_config has r=8.*merge_and_unload"):
        load(own)


# Configs


def test_the_config_of_a_published_checkpoint(tmp_path):
    """v0.5 gives its encoder's config inside and the language model's by name; older ones name both."""
    config = {
        "architectures": ["UltravoxModel"],
        "audio_config": {"_name_or_path": "openai/whisper-large-v3-turbo", "model_type": "whisper", "num_mel_bins": 128,
                         "d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "encoder_layers": 32},
        "audio_latency_block_size": None,
        "audio_model_id": None,
        "auto_map": {"AutoConfig": "ultravox_config.UltravoxConfig", "AutoModel": "ultravox_model.UltravoxModel"},
        "custom_pipelines": {"ultravox-pipeline": {"impl": "ultravox_pipeline.UltravoxPipeline", "type": "multimodal"}},
        "hidden_size": 2048,
        "model_type": "ultravox",
        "projector_ln_mid": True,
        "text_model_id": str(tmp_path / "llama"),
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
    }  # fmt: skip
    (tmp_path / "llama").mkdir()
    llama = {"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "tie_word_embeddings": True}
    (tmp_path / "llama" / "config.json").write_text(json.dumps(llama))
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = UltravoxConfig.from_pretrained(tmp_path)
    text = read.text_config
    assert (text.vocab_size, text.tie_word_embeddings, read.vocab_size) == (128256, True, 128256)
    assert (read.audio_config.d_model, read.stack_factor, read.projector_act) == (1280, 8, "swiglu")
    assert read.get_text_config() is read.text_config
    again = UltravoxConfig(**json.loads(read.to_json_string()))
    assert again.to_dict() == read.to_dict()
    assert UltravoxConfig(text_model_id=str(tmp_path / "llama")).text_config.hidden_size == 2048
    assert UltravoxConfig().projector_ln_mid is False  # up to v0.4.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projector_act": "gelu_new"}, "projector_act 'gelu_new' is not supported: known are swiglu, silu, gelu"),
        ({"llm_only_training": True}, "llm_only_training"),
        ({"num_projector_layers": 2}, "num_projector_layers 2 is not supported"),
        ({"audio_config": {"model_type": "wav2vec2"}}, "audio_config.model_type 'wav2vec2' is not supported"),
        ({"text_config": {"model_type": "gemma3_text"}}, "model_type 'gemma3_text' is not supported: known are"),
        ({"text_config": {"model_type": "nonsense"}}, "nonsense"),
        ({"audio_latency_block_size": 7}, "audio_latency_block_size 7 does not divide the window of 3000"),
        ({"audio_latency_block_size": 0}, "audio_latency_block_size 0"),
        ({"audio_model_lora_config": {"r": 4}}, "audio_model_lora_config has r=4"),
    ],
)
def test_refused_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        UltravoxForConditionalGeneration(UltravoxConfig(**changes))


# Processor


@pytest.fixture(scope="module")
def plain():
    """A processor with Whisper's window of 30 s, without a checkpoint."""
    return UltravoxProcessor(helpers_ultravox.feature_extractor(), helpers_ultravox.tokenizer())


@pytest.mark.parametrize("case", helpers_ultravox.processor_cases())
def test_the_processor_equals_the_reference(plain, case):
    expected = {
        name.removeprefix(f"{case}."): value
        for name, value in load_file(GOLDENS / "ultravox_processor.safetensors").items()
        if name.startswith(f"{case}.")
    }
    text, clips = helpers_ultravox.processor_cases()[case]
    ours = plain(text=text, audio=clips)
    assert set(ours) == set(expected)
    for name, value in expected.items():
        got = helpers_ultravox.sampled(name, ours[name])
        assert got.dtype == value.dtype and got.shape == value.shape, name
        assert np.abs(got - value).max() < (1e-5 if name == "audio_values" else 1), name
        assert name == "audio_values" or np.array_equal(got, value), name


def test_features_equal_the_numpy_path(plain):
    """With PyTorch installed the feature extractor uses it; users without it must get the same numbers."""
    clip = tone(1)
    expected = plain.feature_extractor._np_extract_fbank_features([clip], "cpu")
    assert np.abs(plain("<|audio|>", clip)["audio_values"] - expected).max() < 1e-4


def test_a_batch_of_prompts_equals_single_prompts(processor):
    texts, clips = ["a <|audio|> b", "no audio", "<|audio|>, then <|audio|>"], [tone(0.3), tone(1.1), tone(0.123)]
    for side in ("left", "right"):
        batch = processor(texts, clips, padding_side=side)
        singles = [processor(texts[0], clips[:1]), processor(texts[1]), processor(texts[2], clips[1:])]
        assert batch["audio_batch_size"].tolist() == [1, 0, 3]
        window = 0
        for row, single in enumerate(singles):
            mask = batch["attention_mask"][row] == 1
            assert np.array_equal(batch["input_ids"][row][mask], single["input_ids"][0])
            count = batch["audio_batch_size"][row]
            part = slice(window, window + count)
            if count:
                width = single["audio_values"].shape[2]
                assert np.array_equal(batch["audio_values"][part, :, :width], single["audio_values"])
                assert (batch["audio_values"][part, :, width:] == 0).all()
                assert (batch["audio_frames"][part] == width).all()
                start = batch["audio_token_start_idx"][part] - np.argmax(mask)
                assert np.array_equal(start, single["audio_token_start_idx"])
            window += count
        assert window == len(batch["audio_values"])


def test_labels(processor):
    inputs = processor(["<|audio|>answer<|eot|>", "x"], tone(0.2), output_labels=True)
    ids, labels = inputs["input_ids"], inputs["labels"]
    audio = inputs["audio_token_len"].sum()
    assert (labels[0] == -100).sum() == audio and labels[0, audio:].tolist() == ids[0, audio:].tolist()
    assert labels[0, -1] == processor.tokenizer.eos_token_id  # the end of an answer is learned
    assert (labels[1, :-1] == -100).all() and labels[1, -1] == ids[1, -1]
    chat = [{"role": "user", "content": [{"audio": tone(0.2)}]}, {"role": "assistant", "content": "yes"}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, output_labels=True)
    assert (inputs["labels"] == -100).sum() == inputs["audio_token_len"].sum()


def test_a_dialogue(processor, tmp_path):
    """Clips in any turn, in whatever form; content that is a string goes through as it is."""
    path = write_audio(tmp_path / "a.wav", tone(0.4))
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "audio", "path": str(path)}]},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "audio", "audio": tone(0.2)}]},
    ]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == (
        "<|begin|><|start|>system<|end|>\n\nBe brief.<|eot|><|start|>user<|end|>\n\n<|audio|><|eot|>"
        "<|start|>assistant<|end|>\n\nYes?<|eot|><|start|>user<|end|>\n\nAnd this?\n<|audio|><|eot|>"
        "<|start|>assistant<|end|>\n\n"
    )
    inputs = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True)
    expected = processor(text, [path, tone(0.2)])
    assert all(np.array_equal(inputs[name], expected[name]) for name in expected)
    both = processor.apply_chat_template([chat, chat[:2]], tokenize=True, return_dict=True)
    assert both["audio_batch_size"].tolist() == [2, 1] and both["input_ids"].shape[0] == 2
    decoded = processor.decode(expected["input_ids"][0], skip_special_tokens=True)
    assert "Be brief." in decoded and processor.batch_decode(inputs["input_ids"], skip_special_tokens=True) == [decoded]


@pytest.mark.parametrize(
    ("text", "arguments", "error", "message"),
    [
        ("<|audio|>", {}, ValueError, r"has 1 <\|audio\|> placeholder\(s\) and 0 audio"),
        ("x", {"audio": tone(0.1)}, ValueError, r"has 0 .* and 1 audio.*write <\|audio\|> once"),
        ("<|audio|>", {"audio": np.zeros(0)}, AudioError, "audio clip 0.*holds no samples"),
        ("<|audio|>", {"audio": "nope.wav"}, FileNotFoundError, "audio clip 0: no audio file"),
        ("<|audio|>", {"audio": tone(0.1), "audios": tone(0.1)}, ValueError, "both given"),
        ("<|audio|>", {"audio": tone(0.1), "sampling_rate": 8000}, ValueError, "8000.*16000 Hz"),
        ("x", {"return_tensors": "pt"}, ValueError, "return_tensors='pt'"),
        ("x", {"typo": 1}, TypeError, "does not know typo"),
        ("x", {"add_special_tokens": True}, TypeError, "does not know add_special_tokens"),
        (["x", "xyz"], {"padding": False}, ValueError, r"rows of \[1, 3\] tokens"),
        ("xyz", {"padding": "max_length", "max_length": 2}, ValueError, "3 tokens.*max_length=2"),
        (None, {}, ValueError, "text must be a string"),
    ],
)
def test_refused_by_the_processor(processor, text, arguments, error, message):
    with pytest.raises(error, match=message):
        processor(text, **arguments)


def test_padding_and_windows(processor):
    assert processor("xyz", padding="max_length", max_length=8)["attention_mask"].sum() == 3
    assert processor("xyz", pad_to_multiple_of=8)["input_ids"].shape == (1, 8)
    long = tone(1.5)  # windows of 60 frames
    assert processor("<|audio|>", long)["audio_lens"].tolist() == [60, 60, 30]
    assert processor("<|audio|>", long, truncation=True)["audio_lens"].tolist() == [60]


def test_saved_processors_and_where_parts_come_from(processor, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "text").mkdir()
    text, clip = "<|audio|>hello", tone(0.5)
    expected = processor(text, clip)
    again = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert all(np.array_equal(value, expected[name]) for name, value in again(text, clip).items())

    own = split_checkpoint(LLAMA, tmp_path / "parts")  # neither a tokenizer nor a feature extractor of its own
    helpers_ultravox.tokenizer().save_pretrained(tmp_path / "parts" / "text")
    made = AutoProcessor.from_pretrained(own)
    assert made.feature_extractor.feature_size == 16 and made.audio_context_size == 40
    WhisperFeatureExtractor(feature_size=16, hop_length=80).save_pretrained(tmp_path / "parts" / "whisper")
    assert AutoProcessor.from_pretrained(own).feature_extractor.hop_length == 80
    assert made.tokenizer.pad_token == made.tokenizer.eos_token == "<|eot|>"
    tokenizer = helpers_ultravox.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        UltravoxProcessor(helpers_ultravox.feature_extractor(), tokenizer)


@pytest.mark.slow
def test_works_without_torch(checkpoint, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
import numpy as np
from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, to_mindspore
inputs = AutoProcessor.from_pretrained({str(checkpoint)!r})("<|audio|>", np.ones(1600, np.float32))
assert inputs["audio_values"].dtype == np.float32 and inputs["audio_lens"].tolist() == [10]
model = AutoModelForAudioTextToText.from_pretrained({str(checkpoint)!r})
assert model.generate(**to_mindspore(inputs, dtype=model.dtype), max_new_tokens=2).shape == (1, 3)
assert "torch" not in sys.modules
""")
    command = [sys.executable, str(ROOT / "tests" / "without_torch.py"), str(script)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr[-2000:]


# Model


def test_prompts_of_different_clips_in_a_batch_equal_single_ones(model, processor):
    """The last frames of a clip see what pads it, so only `audio_frames` makes a batch the same as its parts."""
    texts, clips = ["<|audio|>a", "bcd", "<|audio|><|audio|>"], [tone(0.11), tone(0.35, seed=1), tone(0.8, seed=2)]
    batch = processor(texts, clips)
    singles = [processor(texts[0], clips[0]), processor(texts[1]), processor(texts[2], clips[1:])]
    logits = model(**batch).logits.asnumpy()
    for row, single in enumerate(singles):
        expected = model(**single).logits.asnumpy()[0]
        assert relative_error(logits[row, -len(expected) :], expected) < 1e-5
    without = {name: value for name, value in batch.items() if name != "audio_frames"}
    assert relative_error(model(**without).logits.asnumpy()[0], logits[0]) > 1e-3
    together = model.generate(**to_mindspore(batch), max_new_tokens=12, eos_token_id=-1).asnumpy()[:, -12:]
    for row, single in enumerate(singles):
        alone = model.generate(**to_mindspore(single), max_new_tokens=12, eos_token_id=-1).asnumpy()[:, -12:]
        assert together[row].tolist() == alone[0].tolist()


def test_four_encoder_graphs_for_all_lengths(model, processor):
    """For clips of up to a sixth, a third, half of the window, and for all others."""
    shapes = [model.clips(dict(processor("<|audio|>", tone(s)).items()))[0].shape for s in (0.03, 0.2, 0.3, 0.5)]
    assert shapes == [(1, 8, 16), (1, 8, 24), (1, 8, 36), (1, 8, 60)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_lens": None}, "audio came without audio_lens"),
        ({"audio_values": None}, "audio came without audio_values"),
        ({"audio_values": np.zeros((2, 8, 61))}, r"shape \(2, 8, 61\), this model takes \(windows, 8, up to 60\)"),
        ({"audio_values": np.zeros((2, 9, 30))}, r"shape \(2, 9, 30\)"),
        ({"audio_values": np.zeros((2, 8, 0))}, r"shape \(2, 8, 0\)"),
        ({"audio_lens": [20]}, r"audio_lens has shape \(1,\), audio_values has 2 windows"),
        ({"audio_lens": [20, 31]}, "audio_lens .* must be from 1 to the frames given"),
        ({"audio_lens": [0, 30]}, "audio_lens .* must be from 1 to the frames given"),
        ({"audio_frames": [30, 31]}, "must be from 1 to the frames given"),
        ({"audio_token_len": [2, 3]}, "audio_token_len .* does not fit audio_lens"),
        ({"audio_batch_size": [1]}, "audio_batch_size .1. does not share 2 windows among 1 prompts"),
        ({"audio_batch_size": [1, 1]}, "audio_batch_size .1 1. does not share 2 windows among 1 prompts"),
        ({"audio_token_start_idx": [1, 2]}, "audio_token_start_idx 2 does not fit prompt 0"),
        ({"audio_token_start_idx": [1, 6]}, "audio_token_start_idx 6 does not fit prompt 0"),
        ({"audio_token_start_idx": [0, 4]}, "audio_token_start_idx 0 does not fit prompt 0"),
        ({"audio_token_start_idx": [-1, 4]}, "audio_token_start_idx -1 does not fit prompt 0"),
    ],
)
def test_refused_by_the_model(model, changes, message):
    inputs = {
        "input_ids": np.zeros((1, 7), int),
        "attention_mask": np.array([[0, 1, 1, 1, 1, 1, 1]]),
        "audio_values": np.zeros((2, 8, 30), np.float32),
        "audio_lens": np.array([20, 30]),
        "audio_token_len": np.array([2, 2]),
        "audio_token_start_idx": np.array([1, 4]),
        "audio_batch_size": np.array([2]),
    }
    model(**inputs)
    with pytest.raises(ValueError, match=message):
        model(**inputs | {name: None if value is None else np.array(value) for name, value in changes.items()})


def test_an_unknown_keyword_is_refused(model):
    with pytest.raises(TypeError, match="takes no input_features: it takes .*audio_values"):
        model(np.zeros((1, 3), int), input_features=np.zeros((1, 8, 60)))


def test_the_norms_epsilon():
    """The table's features are too large to tell: here the mean square of what comes in is about the epsilon, 1e-6."""
    projector = load(LLAMA).multi_modal_projector
    weights = {name: parameter.asnumpy().astype(np.float64) for name, parameter in projector.parameters_and_names()}
    x = np.random.default_rng(0).normal(0, 1e-3, (1, 16, 24)).astype(np.float32)

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weights[f"{name}.weight"]

    hidden, gate = np.split(norm(x.reshape(1, 2, -1), "ln_pre") @ weights["linear_1.weight"].T, 2, -1)
    expected = norm(gate / (1 + np.exp(-gate)) * hidden, "ln_mid") @ weights["linear_2.weight"].T
    assert relative_error(projector(ms.Tensor(x)).asnumpy(), expected) < 1e-5


def test_the_projector_starts_as_the_config_says():
    config = AutoConfig.for_model("whisper", d_model=8, encoder_layers=1, encoder_attention_heads=2)
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    model = UltravoxForConditionalGeneration(
        UltravoxConfig(audio_config=config, text_config=text, hidden_size=8, norm_init=0.25)
    )
    assert (model.multi_modal_projector.ln_pre.weight.asnumpy() == 0.25).all()


def test_in_the_pipeline(model, processor):
    """Clips of any length, and transcriptions asked for in the words that Ultravox was trained with."""
    pipe = pipeline(model=model, processor=processor)
    answers = pipe([tone(0.3), tone(1.4)], "What is said?", max_new_tokens=3)
    assert answers == pipe([tone(0.3), tone(1.4)], "What is said?", max_new_tokens=3, batch_size=1)
    assert len(pipe(tone(1.4), task="transcribe", max_new_tokens=3)[0]["chunks"]) == 1
    inputs = processor.transcription_inputs([tone(0.1)], language=None, chat=True)
    asked = "user<|end|>\n\nRepeat the following text, without any explanation: <|eot|><|eot|><|start|>assistant"
    assert asked in processor.decode(inputs["input_ids"][0])
    with pytest.raises(ValueError, match="language='en'"):
        processor.transcription_inputs([tone(0.1)], language="en", chat=True)


# The example


@pytest.fixture
def chat(monkeypatch, capsys):
    """Run the example in this process: exit status and lines of its output."""

    def run(*arguments):
        example = ROOT / "examples" / "ultravox_chat.py"
        monkeypatch.setattr(sys, "argv", [str(example), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(example), run_name="__main__")
        return stop.value.code, capsys.readouterr().out.splitlines()

    return run


@pytest.mark.slow
def test_the_two_turn_dialogue(chat, checkpoint, model, processor, tmp_path):
    """As the dialogue of Ultravox's documentation: two spoken turns, and the second answer knows of the first."""
    turns = [write_audio(tmp_path / f"{name}.wav", tone(0.4, seed=i)) for i, name in enumerate(("dinner", "budget"))]
    arguments = ("--model", checkpoint, "--max-new-tokens", 6, "--device", "cpu")
    status, lines = chat(*arguments, "--audio", turns[0], "--audio", turns[1])
    assert status == 0
    answers = [line for line in lines if line.startswith("assistant: ")]
    assert len(answers) == 2 and [line for line in lines if line.startswith("user: ")] == [f"user: {t}" for t in turns]
    _, alone = chat(*arguments, "--audio", turns[1])
    assert [line[:-10] for line in alone if line.startswith("assistant: ")] != [answers[1][:-10]]
    options = ("--system", "", "--prompt", "Hi", "--dtype", "float32", "--do-sample", "--temperature", 2, "--seed", 1)
    assert chat(*arguments, *options, "--audio", turns[0])[0] == 0
    status, _ = chat(*arguments, "--audio", tmp_path / "missing.wav")
    assert "error: audio clip 0: no audio file" in status

"""Audio Flamingo 3's config and processor against what transformers 5 wrote and computed (tests/goldens)."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import helpers_audioflamingo3 as flamingo
import numpy as np
import pytest
from families import GOLDENS
from helpers_processor import RATE, tone, write_audio
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import Qwen2Config, WhisperFeatureExtractor

from mindone_audio import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    AutoModelForAudioTextToText,
    AutoProcessor,
    pipeline,
    to_mindspore,
)
from mindone_audio.generation.settings import settle
from mindone_audio.inputs.audio import AudioError
from mindone_audio.pipelines import audio_text_to_text

ROOT = Path(__file__).parent.parent
MODEL, SAVED = GOLDENS / "audioflamingo3", GOLDENS / "audioflamingo3_processor"
SOUND = "<sound>"
OUTPUTS = load_file(SAVED / "outputs.safetensors")
CHAT = {"tokenize": True, "return_dict": True}


@pytest.fixture(scope="module")
def facts() -> dict:
    with safe_open(SAVED / "outputs.safetensors", "np") as stream:
        return json.loads(stream.metadata()["facts"])


@pytest.fixture(scope="module")
def processor():
    """The files of transformers 5: the feature extractor inside processor_config.json, special tokens as a list."""
    return AudioFlamingo3Processor.from_pretrained(SAVED)


def check(ours, case: str):
    """Equal to transformers 5: integers exactly, features to 1e-5, and nothing more or less."""
    expected = {name.split(".")[1]: value for name, value in OUTPUTS.items() if name.split(".")[0] == case}
    assert set(ours) == set(expected)
    for name, value in expected.items():
        mine = flamingo.sample(ours[name]) if case == "real" and name == "input_features" else ours[name]
        assert (mine.dtype, mine.shape) == (value.dtype, value.shape), name
        if name == "input_features":
            assert np.abs(mine - value).max() < 1e-5
        else:
            assert np.array_equal(mine, value), name


@pytest.mark.parametrize("case", flamingo.processor_cases())
def test_equals_transformers_5(processor, case):
    method, arguments = flamingo.processor_cases()[case]
    check(getattr(processor, method)(**arguments, **({"truncation": True} if case == "too_long" else {})), case)


def test_equals_transformers_5_at_the_published_sizes(processor):
    published = AudioFlamingo3Processor(WhisperFeatureExtractor(feature_size=128), processor.tokenizer)
    inputs = published(**flamingo.real_case())
    check(inputs, "real")
    assert inputs["input_features"].shape == (3, 128, 3000)
    assert (inputs["input_ids"] == published.audio_token_id).sum() == 750 + 750 + 136
    quiet = inputs["input_features"][1]  # normalised by its own maximum, not the clip's
    assert np.isclose(quiet.max() - quiet.min(), 2, atol=1e-4)


def test_windows_need_no_pytorch(processor):
    """With PyTorch installed the feature extractor uses it; users without it must get the same numbers."""
    clip = tone(WINDOW := flamingo.WINDOW)
    extractor = processor.feature_extractor
    expected = extractor._np_extract_fbank_features([clip, clip[::-1]], "cpu")
    both = processor(SOUND, np.concatenate([clip, clip[::-1]]))
    assert np.abs(both["input_features"] - expected).max() < 1e-4
    assert both["input_features_mask"].sum() == 2 * WINDOW * 100


def test_ten_minutes_and_no_more(processor):
    longest = tone(flamingo.LONGEST)
    assert len(processor(SOUND, longest)["input_features"]) == 5
    too_long = np.append(longest, np.float32(0))
    with pytest.raises(AudioError, match="audio clip 1 is 10.00 s long and the model hears 10 s.*truncation=True"):
        processor(SOUND * 2, [longest, too_long])
    cut = processor(SOUND, too_long, truncation=True)
    assert np.array_equal(cut["input_features"], processor(SOUND, longest)["input_features"])
    published = AudioFlamingo3Processor(WhisperFeatureExtractor(feature_size=128), processor.tokenizer)
    assert published.max_audio_len == 600
    with pytest.raises(AudioError, match="audio clip 0 is 600.01 s long and the model hears 600 s"):
        published(SOUND, np.zeros(600 * RATE + 160, np.float32))
    with pytest.raises(ValueError, match="max_audio_len=10 s is less than one window of 30 s"):
        AudioFlamingo3Processor(WhisperFeatureExtractor(feature_size=128), processor.tokenizer, max_audio_len=10)


def test_several_clips_in_one_prompt(processor):
    """Which transformers 5 refuses; the windows of all clips come in the order of their placeholders."""
    long, short = tone(4.6, seed=2), tone(0.7, seed=1)
    texts = [f"{SOUND} then {SOUND}", "none", f"{SOUND}?"]
    inputs = processor(texts, [long, short, short], output_labels=True)
    assert [len(processor(SOUND, clip)["input_features"]) for clip in (long, short)] == [3, 1]
    assert np.array_equal(inputs["input_features"][:3], processor(SOUND, long)["input_features"])
    assert np.array_equal(inputs["input_features"][3], inputs["input_features"][4])
    counts = (inputs["input_ids"] == processor.audio_token_id).sum(1)
    assert counts.tolist() == [115 + 17, 0, 17]
    assert ((inputs["labels"] == -100).sum(1) == counts + (inputs["attention_mask"] == 0).sum(1)).all()
    turns = [message for clip in (long, short) for message in flamingo.conversation(clip, "Yes.")]
    chat = processor.apply_chat_template(turns, **CHAT)
    assert np.array_equal(chat["input_features"], inputs["input_features"][:4])
    both = [{"type": "audio", "audio": long}, {"type": "audio", "audio": short}]
    with pytest.raises(ValueError, match=r"the text has 1 <sound> placeholder\(s\) and 2 audio clip\(s\)"):
        processor.apply_chat_template([{"role": "user", "content": both}], **CHAT)  # the template writes one a message


def test_batch_rows_equal_single_rows(processor):
    clips, texts = [tone(3), tone(0.5, seed=1)], [f"{SOUND}one", f"{SOUND}number two"]
    batch = processor(texts, audios=clips, sampling_rate=RATE)
    singles = [processor(text, clip) for text, clip in zip(texts, clips)]
    for row, single in zip(batch["input_ids"], singles):
        assert np.array_equal(row[-single["input_ids"].shape[1] :], single["input_ids"][0])
    assert np.array_equal(batch["input_features"], np.concatenate([single["input_features"] for single in singles]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"audio": np.zeros(320, np.float32)}, AudioError, "audio clip 0 has 320 samples.*at least 321"),
        ({"audio": np.zeros(0)}, AudioError, "audio clip 0.*holds no samples"),
        ({"audio": "nope.wav"}, FileNotFoundError, "audio clip 0: no audio file 'nope.wav'"),
        ({"audio": [tone(1)] * 2}, ValueError, "has 1 <sound> .* and 2 audio"),
        ({"audio": None}, ValueError, "has 1 <sound> .* and 0 audio"),
        ({"audio": tone(1), "audios": tone(1)}, ValueError, "both given"),
        ({"audio": tone(1), "sampling_rate": 44100}, ValueError, "44100.*16000 Hz"),
        ({"audio": tone(1), "return_tensors": "pt"}, ValueError, "return_tensors='pt'.*to_mindspore"),
        ({"audio": tone(1), "text_kwargs": {}}, TypeError, "does not know text_kwargs: it takes .*output_labels"),
        ({"text": None}, ValueError, "text must be a string or a list"),
    ],
)
def test_refused_arguments(processor, arguments, error, message):
    with pytest.raises(error, match=message):
        processor(**{"text": SOUND, **arguments})


def test_transcription_requests(processor, facts, tmp_path):
    assert processor.apply_transcription_request(["a.wav", "b.wav"], tokenize=False) == facts["prompts"]
    path = write_audio(tmp_path / "clip.wav", tone(1))
    one, many = processor.apply_transcription_request(path), processor.apply_transcription_request([path], [None])
    assert one["input_ids"].shape == many["input_ids"].shape == (1, one["input_ids"].shape[1])
    assert "Transcribe the input speech." in processor.decode(one["input_ids"][0])
    asked = processor.apply_transcription_request([path, path], "Word for word.", output_labels=True)
    assert all("Word for word." in text for text in processor.batch_decode(asked["input_ids"])) and "labels" in asked
    with pytest.raises(ValueError, match=r"1 prompt\(s\) for 2 clip\(s\)"):
        processor.apply_transcription_request([path, path], ["one"])
    with pytest.raises(ValueError, match=r"0 prompt\(s\) for 0 clip\(s\)"):
        processor.apply_transcription_request([])
    with pytest.raises(TypeError, match="a prompt must be a string or None, not 3"):
        processor.apply_transcription_request(path, [3])


def test_decoding(processor, facts):
    ids = [processor.tokenizer(answer)["input_ids"] for answer in flamingo.ANSWERS]
    assert processor.batch_decode(ids, skip_special_tokens=True, strip_prefix=True) == facts["decoded"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == flamingo.ANSWERS
    assert [processor.decode(row, strip_prefix=True) for row in ids] == facts["decoded"]
    assert processor.decode(ids[0]) == flamingo.ANSWERS[0]


def test_save_and_load_again(processor, tmp_path):
    """Saved in the older format, which both versions of transformers read: each part has a file of its own."""
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config == {
        "audio_token": SOUND,
        "default_transcription_prompt": "Transcribe the input speech.",
        "max_audio_len": flamingo.LONGEST,
        "processor_class": "AudioFlamingo3Processor",
    }
    again = AudioFlamingo3Processor.from_pretrained(tmp_path)
    assert again.max_audio_len == flamingo.LONGEST and again.chat_template == processor.chat_template
    assert again.tokenizer.additional_special_tokens == flamingo.SPECIAL_TOKENS
    check(again(**flamingo.processor_cases()["edges"][1]), "edges")
    (tmp_path / "config.json").write_text('{"model_type": "audioflamingo3"}')
    assert type(AutoProcessor.from_pretrained(tmp_path)) is AudioFlamingo3Processor


def test_a_foreign_tokenizer_is_refused(processor):
    with pytest.raises(ValueError, match="has no token <noise>: it is not the tokenizer of a AudioFlamingo3Processor"):
        AudioFlamingo3Processor(processor.feature_extractor, processor.tokenizer, audio_token="<noise>")


def published_config() -> dict:
    """config.json of the converted checkpoint, in the spelling of transformers 4 for the text model."""
    return {
        "architectures": ["AudioFlamingo3ForConditionalGeneration"],
        "model_type": "audioflamingo3",
        "audio_config": {"model_type": "audioflamingo3_encoder", "hidden_size": 1280, "num_hidden_layers": 32},
        "audio_token_id": 151669,
        "projector_bias": True,
        "projector_hidden_act": "gelu",
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "rope_theta": 1000000.0,
            "vocab_size": 151672,
        },
    }


def test_config_spellings(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(published_config()))
    config = AudioFlamingo3Config.from_pretrained(tmp_path)
    audio, text = config.audio_config, config.get_text_config()
    assert (audio.d_model, audio.encoder_ffn_dim, audio.encoder_attention_heads) == (1280, 5120, 20)
    assert (audio.num_mel_bins, audio.max_source_positions, audio.encoder_layers) == (128, 1500, 32)
    assert (text.hidden_size, text.num_key_value_heads, text.rope_theta) == (3584, 4, 1e6)
    assert config.audio_token_id == 151669
    defaults = AudioFlamingo3Config()
    assert defaults.audio_config.to_dict() == audio.to_dict()
    assert type(defaults.text_config) is Qwen2Config

    old = {"d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 40}
    new = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    assert AudioFlamingo3Config(audio_config=old).to_dict() == AudioFlamingo3Config(audio_config=new).to_dict()
    config = AudioFlamingo3Config(audio_config=new, text_config={"hidden_size": 48}, projector_bias=False)
    config.save_pretrained(tmp_path)
    assert AudioFlamingo3Config.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu' is not supported: only gelu"),
        ({"text_config": {"model_type": "gemma2"}}, "model_type 'gemma2' is not supported"),
        ({"text_config": {"model_type": "nothing"}}, "nothing"),
        ({"audio_config": {"activation_function": "relu"}}, "activation_function 'relu'"),
    ],
)
def test_refused_configs(tmp_path, changes, message):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        AutoModelForAudioTextToText.from_pretrained(folder)


def tiny_model_with(folder: Path, change) -> AudioFlamingo3ForConditionalGeneration:
    """The golden model after `change(config, tensors)`."""
    shutil.copytree(MODEL, folder)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return AutoModelForAudioTextToText.from_pretrained(folder)


def test_names_as_transformers_5_has_them_in_memory(tmp_path):
    def rename(config, tensors):
        for name in list(tensors):
            new = name.replace("language_model.model.", "model.language_model.").removeprefix("language_model.lm_head.")
            new = f"lm_head.{new}" if new == "weight" else new
            tensors[re.sub("^(audio_tower|multi_modal_projector)", r"model.\1", new)] = tensors.pop(name)
        assert {"model.audio_tower.conv1.bias", "model.language_model.norm.weight", "lm_head.weight"} <= set(tensors)

    renamed = tiny_model_with(tmp_path / "renamed", rename)
    inputs = flamingo.model_cases()["batch"]()
    expected = AutoModelForAudioTextToText.from_pretrained(MODEL)(**inputs).logits.asnumpy()
    assert np.array_equal(renamed(**inputs).logits.asnumpy(), expected)


def test_a_projector_without_bias(tmp_path):
    def remove(config, tensors):
        config["projector_bias"] = False
        for name in ("linear_1", "linear_2"):
            tensors[f"multi_modal_projector.{name}.bias"][:] = 0
            bias[name] = tensors.pop(f"multi_modal_projector.{name}.bias")

    def zero(config, tensors):
        tensors.update({f"multi_modal_projector.{name}.bias": value for name, value in bias.items()})

    bias, inputs = {}, flamingo.model_cases()["one clip"]()
    models = [tiny_model_with(tmp_path / change.__name__, change) for change in (remove, zero)]
    without, zeros = (model(**inputs).logits.asnumpy() for model in models)
    assert np.array_equal(without, zeros)


def test_the_checkpoint_samples_by_default():
    model = AutoModelForAudioTextToText.from_pretrained(MODEL)
    chosen = settle(model.generation_config, {})
    assert (chosen.do_sample, chosen.temperature, chosen.top_p, chosen.top_k) == (True, 0.7, 0.8, 20)
    assert chosen.repetition_penalty == 1.05
    inputs = flamingo.model_cases()["one clip"]()
    drawn = [model.generate(**inputs, max_new_tokens=24, seed=seed).asnumpy().tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_windows_beyond_one_encoding(processor):
    """Twelve windows are encoded in two goes (generate) and in one (construct)."""
    model = AutoModelForAudioTextToText.from_pretrained(MODEL)
    rng = np.random.default_rng(0)
    windows = rng.normal(size=(12, 16, 40)).astype(np.float32)
    mask = np.ones((12, 40), np.int64)
    mask[11, 13:] = 0
    ids = np.array([[5, *[90] * (110 + 3), 7]])
    inputs = to_mindspore({"input_ids": ids, "input_features": windows, "input_features_mask": mask})
    tokens = model.generate(**inputs, do_sample=False, repetition_penalty=1.0, max_new_tokens=1).asnumpy()
    assert tokens[0, -1] == model(**inputs).logits.asnumpy()[0, -1].argmax()
    with pytest.raises(ValueError, match="the prompts hold 113 audio tokens, but the 11 given clips need 110"):
        model.generate(ids, input_features=windows[:11], input_features_mask=mask[:11])
    with pytest.raises(ValueError, match="feature_attention_mask"):
        model.generate(ids, input_features=windows, feature_attention_mask=mask)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole checkpoint with random weights, in files of today's save_pretrained."""
    folder = tmp_path_factory.mktemp("checkpoint")
    sizes = json.loads((MODEL / "config.json").read_text())
    vocabulary = len(flamingo.tokenizer())
    windows = {"num_mel_bins": flamingo.MELS, "max_source_positions": 50 * flamingo.WINDOW}
    sizes["audio_config"].update(windows, num_hidden_layers=1)
    sizes["text_config"].update(vocab_size=vocabulary, num_hidden_layers=1, layer_types=None)
    config = AudioFlamingo3Config(**{**sizes, "audio_token_id": vocabulary - 1})
    AudioFlamingo3ForConditionalGeneration(config).save_pretrained(folder)
    AudioFlamingo3Processor.from_pretrained(SAVED).save_pretrained(folder)
    shutil.copy(MODEL / "generation_config.json", folder)
    return folder


EXAMPLE = ROOT / "examples" / "audio_flamingo3_caption.py"


@pytest.mark.slow
def test_the_example_without_pytorch(checkpoint):
    """Both prompts about a clip of several windows."""
    clip = ROOT / "examples" / "audio" / "rain.mp3"
    command = [sys.executable, str(ROOT / "tests" / "without_torch.py"), str(EXAMPLE), "--model", str(checkpoint)]
    command += ["--audio", str(clip), "--max-new-tokens", "4", "--seed", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert re.search(f"{clip}\n  Transcribe the input speech.  .*\n(.*\n)*?  Describe the audio.  ", result.stdout)


def test_the_example_and_bad_arguments(checkpoint, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        return stop.value.code, capsys.readouterr()

    clip = ROOT / "examples" / "audio" / "spoken_command.wav"
    choices = ("--max-new-tokens", 3, "--greedy", "--device", "cpu", "--dtype", "float32", "--prompt", "What is it?")
    status, captured = run("--model", checkpoint, "--audio", "nowhere.wav", "--audio", clip, *choices)
    assert status == 1 and "  What is it?  " in captured.out
    assert "\nerror: no audio file 'nowhere.wav'" in f"\n{captured.err}"
    assert run("--model", checkpoint, "--audio", clip, "--max-new-tokens", 0)[0] == 1
    assert run("--model", "./nowhere", "--audio", clip)[0].startswith("error: no checkpoint folder './nowhere'")


def test_auto_classes(checkpoint):
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForAudioTextToText.from_pretrained(checkpoint)
    assert (type(processor), type(model)) == (AudioFlamingo3Processor, AudioFlamingo3ForConditionalGeneration)
    inputs = processor.apply_transcription_request([tone(1), tone(4.6)], output_labels=True)
    output = model(**to_mindspore(inputs, dtype=model.dtype))
    assert np.isfinite(output.loss.asnumpy()) and output.logits.shape == (*inputs["input_ids"].shape, 260)


def test_the_pipeline(checkpoint, monkeypatch):
    """A clip of several windows is one question; to be transcribed it is cut into windows, or longer pieces."""
    pipe = pipeline(model=checkpoint)
    ids = pipe.processor.tokenizer(flamingo.ANSWERS[0])["input_ids"]

    def generated(engine, requests, most):
        return ((tag, np.array(ids, np.int32)) for tag, _ in requests)

    monkeypatch.setattr(audio_text_to_text, "generated", generated)
    answers = pipe([tone(1), tone(7.5)], text="What is said?")
    assert answers == [{"generated_text": flamingo.ANSWERS[0]}] * 2
    written = pipe(tone(7.5), task="transcribe", window=8)[0]
    assert written["generated_text"] == "hello there"
    assert [chunk["timestamp"] for chunk in written["chunks"]] == [(0.0, 7.5)]
    assert len(pipe(tone(21), task="transcribe", window=100)[0]["chunks"]) == 3
    pieces = pipe(tone(7.5), task="transcribe")[0]
    assert len(pieces["chunks"]) >= 4 and set(pieces["generated_text"].split()) == {"hello", "there"}
    assert "".join(pipe(tone(7.5), task="transcribe", stream=True)) == pieces["generated_text"]
    with pytest.raises(AudioError, match="21.00 s long and the model hears 10 s"):
        pipe(tone(21))
    assert pipe.processor.questions["transcribe"] == "Transcribe the input speech."

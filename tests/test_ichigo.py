"""Ichigo's processor, checkpoints, generation and example; its numbers are rows of tests/families.py."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import helpers
import helpers_ichigo
import helpers_whisper_vq
import mindspore as ms
import numpy as np
import pytest
import torch
from helpers_ichigo import END, START, sounds
from transformers import AutoTokenizer, LlamaForCausalLM

from mindone_audio import (
    AutoModelForAudioTextToText,
    AutoProcessor,
    IchigoForConditionalGeneration,
    IchigoProcessor,
    WhisperVQ,
    pipeline,
    to_mindspore,
)
from mindone_audio.inputs.audio import AudioError
from mindone_audio.models import family, known_families
from mindone_audio.weights.parameters import stored_tensors

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "ichigo_tokens.py"
SPEECH = ROOT / "examples" / "audio" / "speech_in_noise.wav"
CLIPS = helpers_whisper_vq.clips()
AUDIO = "<|audio|>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ichigo")
    helpers_ichigo.write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def processor(checkpoint):
    return AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint):
    return AutoModelForAudioTextToText.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    """The reference: the tokenizer as transformers loads it, and the tokens that whisperspeech computed."""
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def reference():
    from safetensors.numpy import load_file

    arrays = load_file(helpers_whisper_vq.GOLDEN / "clips.safetensors")
    return {name: sounds(arrays[f"{name}.tokens"].tolist()) for name in CLIPS}


# The processor


def test_ids_are_those_of_the_original_recipe(processor, tokenizer, reference):
    ours = processor(f"{AUDIO}What is it?", CLIPS["speech"])
    assert set(ours) == {"input_ids", "attention_mask"} and ours["input_ids"].dtype == np.int64
    assert ours["input_ids"].tolist() == [tokenizer(reference["speech"] + "What is it?")["input_ids"]]
    texts = [f"{AUDIO} then {AUDIO}", "nothing", f"last{AUDIO}"]
    batch = processor(texts, audios=[CLIPS["odd"], CLIPS["short"], SPEECH], sampling_rate=16_000)
    expanded = [f"{reference['odd']} then {reference['short']}", "nothing", f"last{reference['speech']}"]
    for row, mask, text in zip(batch["input_ids"], batch["attention_mask"], expanded):
        assert row[mask == 1].tolist() == tokenizer(text)["input_ids"]
        assert mask[-1] == 1  # padded on the left
    assert processor("")["input_ids"].tolist() == [tokenizer("")["input_ids"]]


def test_the_original_chat(processor, tokenizer, reference):
    chat = [{"role": "user", "content": [{"type": "audio", "path": SPEECH}]}]
    original = [{"role": "user", "content": reference["speech"]}]
    expected = tokenizer.apply_chat_template(original, add_generation_prompt=True)
    ours = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
    assert ours.tolist() == [expected]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text.count(AUDIO) == 1
    assert processor(text, SPEECH)["input_ids"].tolist() == [expected]  # the start of the text is written once
    assert processor(text, SPEECH, add_special_tokens=False)["input_ids"].tolist() == [expected]


def test_audio_in_any_turn_and_batches(processor, tokenizer, reference):
    audio = {name: {"type": "audio", "audio": CLIPS[name]} for name in ("odd", "speech", "short")}
    text = {"type": "text", "text": "And what is this? "}
    chat = [
        {"role": "system", "content": [audio["odd"], {"type": "text", "text": "is your voice"}]},
        {"role": "user", "content": [text, audio["speech"], audio["short"]]},
        {"role": "assistant", "content": "A voice."},
        {"role": "user", "content": "Thanks"},
    ]
    original = [
        {"role": "system", "content": reference["odd"] + "is your voice"},
        {"role": "user", "content": "And what is this? " + reference["speech"] + reference["short"]},
        *chat[2:],
    ]
    batch = processor.apply_chat_template([chat, chat[2:]], tokenize=True, return_dict=True)
    for row, mask, messages in zip(batch["input_ids"], batch["attention_mask"], (original, original[2:])):
        assert row[mask == 1].tolist() == tokenizer.apply_chat_template(messages)
    final = processor.apply_chat_template(chat[:3], continue_final_message=True)
    assert final.endswith("A voice.")
    assert processor.apply_chat_template(chat, "{{ messages[1]['content'] }}") == f"And what is this? {AUDIO}{AUDIO}"


def test_labels_leave_out_sound_and_padding(processor, tokenizer):
    inputs = processor([f"{AUDIO}short", "a longer text of words only" * 3], [CLIPS["speech"]], output_labels=True)
    kept = inputs["labels"] != -100
    assert np.array_equal(inputs["labels"][kept], inputs["input_ids"][kept])
    assert tokenizer.decode(inputs["labels"][0][kept[0]]) == "<|begin_of_text|>short"
    assert kept[1].tolist() == (inputs["attention_mask"][1] == 1).tolist()
    chat = [{"role": "user", "content": [{"type": "audio", "path": SPEECH}]}, {"role": "assistant", "content": "Yes"}]
    labels = processor.apply_chat_template(chat, tokenize=True, return_dict=True, output_labels=True)["labels"][0]
    assert tokenizer.decode(labels[labels != -100]).endswith("Yes<|eot_id|>")
    assert not np.isin(labels, tokenizer.convert_tokens_to_ids([START, END, "<|sound_0003|>"])).any()


def test_a_literal_sound_token_is_that_token(processor, tokenizer):
    """Tokens made earlier, with WhisperVQ.encode, can be written into a prompt."""
    text = sounds([0, 40, 7])
    assert processor(text)["input_ids"][0, 1:].tolist() == tokenizer.convert_tokens_to_ids(
        [START, "<|sound_0000|>", "<|sound_0040|>", "<|sound_0007|>", END]
    )


def test_decoding(processor):
    ids = processor(["hello", "world"])["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["hello", "world"]
    assert processor.decode(ms.Tensor(ids[1].astype(np.int32))) == "<|begin_of_text|>world"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"audio": None}, ValueError, r"has 1 <\|audio\|> placeholder\(s\) and 0 audio clip"),
        ({"text": "none"}, ValueError, "has 0 .* and 1 audio"),
        ({"audios": CLIPS["odd"]}, ValueError, "both given"),
        ({"audio": np.zeros(300, np.float32)}, AudioError, "audio clip 0 has 300 samples, too few for one sound token"),
        ({"audio": CLIPS["long"]}, AudioError, "audio clip 0 is 35.01 s long and the model hears 30 s"),
        ({"audio": "nope.wav"}, FileNotFoundError, "audio clip 0: no audio file 'nope.wav'"),
        ({"sampling_rate": 8000}, ValueError, "8000.*16000 Hz"),
        ({"return_tensors": "pt"}, ValueError, "return_tensors='pt'"),
        ({"input_features": 1}, TypeError, "does not know input_features"),
    ],
)
def test_refused_arguments(processor, arguments, error, message):
    with pytest.raises(error, match=message):
        processor(**{"text": AUDIO, "audio": CLIPS["odd"], **arguments})


def test_truncation_is_the_originals(processor, tokenizer, reference):
    ids = processor(AUDIO, CLIPS["long"], truncation=True)["input_ids"]
    assert ids.tolist() == [tokenizer(reference["long"])["input_ids"]]


def test_saving_and_loading(processor, checkpoint, tmp_path):
    processor.save_pretrained(tmp_path / "saved")
    shutil.copy(checkpoint / "config.json", tmp_path / "saved")
    again = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(again) is IchigoProcessor
    chat = [{"role": "user", "content": [{"type": "audio", "path": SPEECH}]}]
    ids = [p.apply_chat_template(chat, tokenize=True).tolist() for p in (processor, again)]
    assert ids[0] == ids[1]


def test_where_whisper_vq_is_found(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "published", ignore=shutil.ignore_patterns("whisper_vq"))
    for load in (AutoProcessor, IchigoProcessor):
        with pytest.raises(
            FileNotFoundError, match=r"published has no folder whisper_vq.*convert_whisper_vq.py.*whisper_vq=FOLDER"
        ):
            load.from_pretrained(folder)
        for given in (helpers_whisper_vq.CONVERTED, str(helpers_whisper_vq.CONVERTED)):
            assert load.from_pretrained(folder, whisper_vq=given).whisper_vq.config["codebook_size"] == 41
    whisper_vq = WhisperVQ.from_pretrained(helpers_whisper_vq.CONVERTED)
    assert AutoProcessor.from_pretrained(folder, whisper_vq=whisper_vq).whisper_vq is whisper_vq
    shutil.copytree(checkpoint, tmp_path / "all" / "inner")
    assert AutoProcessor.from_pretrained(tmp_path / "all", subfolder="inner").whisper_vq.sampling_rate == 16_000
    with pytest.raises(ValueError, match="is a file, and WhisperVQ loads folders"):
        AutoProcessor.from_pretrained(folder, whisper_vq=helpers_whisper_vq.VQ_FILE)
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        IchigoProcessor.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="does not know whisper: it takes .*whisper_vq"):
        AutoProcessor.from_pretrained(folder, whisper=given)


def test_tokenizers_of_other_models_are_refused(processor):
    for codes, message in (
        (0, "lacks 41 of the 43 sound tokens, first <.sound_0000.>"),
        (40, "lacks 1 .*_0040"),
        (42, "has <.sound_0041.>.*only 41"),
    ):
        with pytest.raises(ValueError, match=message):
            IchigoProcessor(helpers_ichigo.llama_tokenizer(codes), processor.whisper_vq)


# The model


def test_llama_is_ichigo():
    assert {"ichigo", "qwen2_audio"} <= set(known_families()) and "whisper_vq" not in known_families()
    assert family("llama").MODEL is IchigoForConditionalGeneration
    for unknown in ("ichigo", "whisper_vq", None):  # no config.json of an audio-language model says so
        with pytest.raises(ValueError, match="known are .*llama.*qwen2_audio"):
            family(unknown)


def test_answers_equal_pytorchs(checkpoint, model, processor):
    assert type(model) is IchigoForConditionalGeneration
    chats = [[{"role": "user", "content": [{"type": "audio", "audio": CLIPS[name]}]}] for name in ("odd", "speech")]
    inputs = processor.apply_chat_template(chats, tokenize=True, return_dict=True, add_generation_prompt=True)
    theirs = LlamaForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    expected = theirs.generate(**helpers.to_torch(inputs), max_new_tokens=32, do_sample=False, pad_token_id=0)
    ours = model.generate(**to_mindspore(inputs), max_new_tokens=32, pad_token_id=0)
    assert ours.asnumpy().tolist() == expected.tolist()
    assert len(set(expected[:, -32:].reshape(-1).tolist())) > 3


def test_what_is_saved_is_a_llama_for_pytorch(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    theirs, notes = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(notes.values())
    inputs = processor([f"{AUDIO}what?", "text"], CLIPS["odd"])
    with torch.no_grad():
        expected = theirs(**helpers.to_torch(inputs)).logits.numpy()
    seen = inputs["attention_mask"] == 1
    assert helpers.relative_error(model(**inputs).logits.asnumpy()[seen], expected[seen]) < 1e-4
    again = IchigoForConditionalGeneration.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again(**inputs).logits.asnumpy(), model(**inputs).logits.asnumpy())


def test_saving_in_several_files(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    names = {tensor.name for tensor in stored_tensors(tmp_path)}
    assert "lm_head.weight" in names and "model.layers.0.self_attn.q_proj.weight" in names
    LlamaForCausalLM.from_pretrained(tmp_path)
    IchigoForConditionalGeneration.from_pretrained(tmp_path)


def test_generation_stops_at_the_end_of_a_turn(tmp_path):
    sizes = {"vocab_size": 128_011, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    theirs = helpers.torch_llama(**sizes, num_attention_heads=2, num_key_value_heads=1, eos_token_id=128_001)
    with torch.no_grad():
        best = int(theirs(torch.tensor([[5]])).logits[0, -1].argmax())
        theirs.lm_head.weight[[best, 128_009]] = theirs.lm_head.weight[[128_009, best]]
    theirs.save_pretrained(tmp_path)
    model = IchigoForConditionalGeneration.from_pretrained(tmp_path)
    assert model.generation_config.eos_token_id == [128_001, 128_009]
    assert model.generate(np.array([[5]]), max_new_tokens=8).asnumpy().tolist() == [[5, 128_009]]
    model.save_pretrained(tmp_path)
    assert IchigoForConditionalGeneration.from_pretrained(tmp_path).generation_config.eos_token_id == [128_001, 128_009]


def test_published_configs(tmp_path, checkpoint):
    """As transformers 5 spells it, and a checkpoint that is no Llama of this kind."""
    folder = shutil.copytree(checkpoint, tmp_path / "five")
    config = json.loads((folder / "config.json").read_text())
    scaling = helpers.ICHIGO["llama3 positions"]["rope_scaling"]
    inputs = {"input_ids": np.arange(3, 90)[None]}
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5, "rope_scaling": scaling}))
    four = IchigoForConditionalGeneration.from_pretrained(folder)(**inputs).logits.asnumpy()
    config = {name: value for name, value in config.items() if name not in ("rope_theta", "rope_scaling")}
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": scaling | {"rope_theta": 5e5}}))
    five = IchigoForConditionalGeneration.from_pretrained(folder)(**inputs).logits.asnumpy()
    np.testing.assert_array_equal(four, five)
    (folder / "config.json").write_text(json.dumps(config | {"mlp_bias": True}))
    with pytest.raises(ValueError, match="mlp_bias"):
        IchigoForConditionalGeneration.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="holds a 'qwen2' model, IchigoForConditionalGeneration loads 'llama'"):
        IchigoForConditionalGeneration.from_pretrained(folder)


def test_the_pipeline(model, processor):
    content = [{"type": "audio", "audio": SPEECH}, {"type": "text", "text": "What?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    tokens = model.generate(**to_mindspore(inputs), max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    ask = pipeline(model=model, processor=processor)
    answer = ask(str(SPEECH), "What?", max_new_tokens=6)
    assert answer["generated_text"] == processor.decode(tokens, skip_special_tokens=True).strip()
    assert "".join(ask(str(SPEECH), "What?", max_new_tokens=6, stream=True)).strip() == answer["generated_text"]
    with pytest.raises(AudioError, match="35.01 s long and the model hears 30 s"):
        ask(CLIPS["long"], "What?")


def test_audio_inputs_are_refused_by_the_model(model):
    with pytest.raises(TypeError, match="takes no input_features"):
        model(input_ids=np.array([[1, 2]]), input_features=np.zeros((1, 80, 3000), np.float32))
    with pytest.raises(ValueError, match="input_features"):
        model.generate(np.array([[1, 2]]), input_features=np.zeros((1, 80, 3000), np.float32))


# The example


def run_example(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return stop.value.code, capsys.readouterr()


def test_the_example(checkpoint, model, processor, reference, monkeypatch, capsys):
    chat = [{"role": "user", "content": [{"type": "audio", "path": SPEECH}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    new = model.generate(**to_mindspore(inputs), max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    status, output = run_example(
        monkeypatch, capsys, "--model", checkpoint, "--audio", SPEECH, "--max-new-tokens", 5, "--device", "cpu"
    )
    assert (status, output.err) == (0, "")
    lines = output.out.splitlines()
    assert lines[0] == f"{SPEECH}: 43 tokens, 1.74 s"
    assert lines[1] == reference["speech"]
    assert "\n".join(lines[2:]).strip() == processor.decode(new, skip_special_tokens=True).strip()


def test_the_example_without_a_model_and_without_pytorch(reference):
    command = [sys.executable, str(ROOT / "tests" / "without_torch.py"), str(EXAMPLE)]
    command += ["--whisper-vq", str(helpers_whisper_vq.CONVERTED), "--audio", str(SPEECH), "--audio", "nowhere.wav"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert result.returncode == 1, result.stderr[-2000:]
    assert result.stdout.splitlines()[1] == reference["speech"] and len(result.stdout.splitlines()) == 2
    assert "error: no audio file 'nowhere.wav'" in result.stderr


def test_the_examples_errors(checkpoint, tmp_path, monkeypatch, capsys):
    status, output = run_example(monkeypatch, capsys, "--audio", SPEECH)
    assert status == 2 and "--whisper-vq or --model" in output.err
    status, _ = run_example(monkeypatch, capsys, "--whisper-vq", tmp_path, "--audio", SPEECH)
    assert "cannot read config.json" in status
    status, output = run_example(monkeypatch, capsys, "--model", checkpoint, "--audio", SPEECH, "--prompt", AUDIO)
    assert status == 1 and "placeholder" in output.err

"""Voxtral's processor equals transformers' and mistral-common's where they can be called, and takes more than they."""

import base64
import copy
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import record_parity
import torch
import transformers
from helpers import relative_error, to_torch
from helpers_processor import RATE, make_reference_exact, tone, write_audio
from helpers_voxtral import (
    tiny_voxtral_config,
    torch_voxtral,
    voxtral_cases,
    write_checkpoint,
    write_processor,
    write_tekken,
)
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.protocol.transcription.request import TranscriptionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from transformers import VoxtralConfig

from mindone_audio import AutoProcessor, VoxtralForConditionalGeneration, VoxtralProcessor, cli, load_audio
from mindone_audio.backbone.published_config import decoder_config, encoder_config
from mindone_audio.inputs.audio import AudioError
from mindone_audio.models.qwen2_audio import Qwen2AudioForConditionalGeneration

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "voxtral_transcribe.py"
AUDIO, CLIP = "[AUDIO]", "[BEGIN_AUDIO][AUDIO]"


@pytest.fixture(autouse=True)
def exact_reference(monkeypatch):
    make_reference_exact(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_processor(tmp_path_factory.mktemp("voxtral"))


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def reference(folder):
    return transformers.VoxtralProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A window of 2 s, which is 25 tokens, and 8 mels: fast."""
    return AutoProcessor.from_pretrained(write_processor(tmp_path_factory.mktemp("s"), feature_size=8, chunk_length=2))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Files of 16-bit samples, which transformers' detour over a wav file does not round: the seconds are the names."""
    folder = tmp_path_factory.mktemp("clips")
    return {s: str(write_audio(folder / f"{s}.wav", tone(s, seed=i))) for i, s in enumerate((0.001, 0.5, 1.5, 30, 61))}


def user(*parts):
    """A message of the user's: strings are text, everything else is a clip's element without its type."""
    elements = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "audio", **p} for p in parts]
    return {"role": "user", "content": elements}


def assert_equal(ours, theirs):
    theirs = {name: np.asarray(value) for name, value in theirs.items()}
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and value.shape == theirs[name].shape, name
        if name == "input_features":
            assert np.abs(value - theirs[name]).max() < 1e-5
        else:
            assert np.array_equal(value, theirs[name]), name


def conversations(clips):
    a, b, long = ({"path": clips[s]} for s in (0.5, 1.5, 61))
    answer = {"role": "assistant", "content": "The thing is in the house. "}
    return {
        "one clip": [user(a, "What is the thing?")],
        "text first": [user("First: ", a, "then café 你好", b)],
        "no text": [user(a)],
        "texts in a row": [user("one", "two", a, "three", "four")],
        "two users in a row": [user(a, "one"), user("two", b)],
        "turns": [user(a, "What?"), answer, user(b, "And now?"), answer, {"role": "user", "content": "Why?"}],
        "text": [{"role": "user", "content": "hello [INST] the [AUDIO]"}],
        "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "long": [user(long, "What is said?")],
    }


@pytest.mark.parametrize("name", conversations(dict.fromkeys((0.5, 1.5, 61))))
def test_chat_equals_transformers(processor, reference, clips, name):
    conversation = conversations(clips)[name]
    theirs = reference.apply_chat_template(copy.deepcopy(conversation))  # it changes what it is given
    assert_equal(processor.apply_chat_template(conversation), theirs)
    generation = processor.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert np.array_equal(generation, theirs["input_ids"])


def test_batch_equals_transformers_and_its_rows(processor, reference, clips):
    batch = [conversations(clips)[name] for name in ("turns", "text", "one clip", "long")]
    ours = processor.apply_chat_template(batch, return_tensors="np", padding=True, sampling_rate=RATE)
    assert_equal(ours, reference.apply_chat_template(copy.deepcopy(batch), return_tensors="pt", padding=True))
    assert ours["input_features"].shape == (2 + 1 + 3, 128, 3000)
    for row, conversation in enumerate(batch):
        single = processor.apply_chat_template(conversation)["input_ids"][0]
        assert ours["input_ids"][row, -len(single) :].tolist() == single.tolist()
        assert ours["attention_mask"][row].sum() == len(single)
        assert set(ours["input_ids"][row, : -len(single)].tolist()) <= {11}


@pytest.mark.parametrize("version", ["v7", "v11", "v13"])
def test_answers_equal_mistral_common(clips, tmp_path, version):
    """Whole conversations for training, which transformers 4 refuses, and open ones."""
    write_processor(tmp_path)
    path = write_tekken(tmp_path, version)
    processor = VoxtralProcessor.from_pretrained(tmp_path)
    conversation = [
        {"role": "user", "content": "What is the thing?"},
        {"role": "assistant", "content": "The thing is in the house."},
    ]
    for mode, open_end in ((ValidationMode.finetuning, False), (ValidationMode.test, True)):
        request = ChatCompletionRequest.from_openai(messages=conversation, continue_final_message=open_end)
        expected = MistralTokenizer.from_file(path, mode=mode).encode_chat_completion(request).tokens
        ours = processor.apply_chat_template(conversation, continue_final_message=open_end, return_dict=False)
        assert ours.tolist() == [expected]
        assert (expected[-1] == 2) is not open_end


@pytest.mark.parametrize("seconds", [0.001, 1.5, 30, 61])
def test_transcription_equals_transformers(processor, reference, clips, seconds):
    ours = processor.apply_transcription_request(language="en", audio=clips[seconds], model_id="mistralai/Voxtral")
    theirs = reference.apply_transcription_request(language="en", audio=clips[seconds], model_id="mistralai/Voxtral")
    assert_equal(ours, theirs)
    assert (
        processor.decode(ours["input_ids"][0]).replace(AUDIO, "") == "<s>[INST][BEGIN_AUDIO][/INST]lang:en[TRANSCRIBE]"
    )


def test_a_transcription_takes_no_prompt(processor, clips):
    with pytest.raises(ValueError, match="prompt: this model family transcribes by a token, and takes no words"):
        processor.transcription_inputs([tone(1)], language="en", chat=True, prompt="Names: Ada.")


def test_transcriptions_in_a_batch(processor, reference, clips):
    paths = [clips[61], clips[0.5]]
    ours = processor.apply_transcription_request(paths, ["fr", "en"])
    assert_equal(ours, reference.apply_transcription_request(language=["fr", "en"], audio=paths, model_id="x"))


def test_the_language_is_detected(processor, folder, clips):
    file = {"file": io.BytesIO(Path(clips[1.5]).read_bytes()), "model": "x", "language": None}
    tokenizer = MistralTokenizer.from_file(folder / "tekken.json")
    expected = tokenizer.encode_transcription(TranscriptionRequest.from_openai(file)).tokens
    ours = processor.apply_transcription_request(clips[1.5])
    assert ours["input_ids"].tolist() == [expected]
    assert processor.decode(ours["input_ids"][0]).endswith(f"{AUDIO}[/INST][TRANSCRIBE]")
    mixed = processor.apply_transcription_request([clips[1.5]] * 2, [None, "en"])["input_ids"]
    assert mixed[0, -len(expected) :].tolist() == expected


def test_every_source_is_the_same_clip(small, clips):
    path = Path(clips[1.5])
    encoded = base64.b64encode(path.read_bytes()).decode()
    sources = [path, path.as_uri(), path.read_bytes(), encoded, f"data:audio/wav;base64,{encoded}", load_audio(path)]
    expected = small.apply_transcription_request(str(path), "en")
    assert (expected["input_ids"] == 24).sum() == 25 and expected["input_features"].shape == (1, 8, 200)
    for source in sources:
        assert_equal(small.apply_transcription_request(source, "en"), expected)
    every = small.apply_transcription_request(sources, "en")
    assert np.array_equal(every["input_features"], np.repeat(expected["input_features"], len(sources), 0))
    elements = [
        {"path": str(path)},
        {"url": path.as_uri()},
        {"audio_url": str(path)},
        {"base64": encoded},
        {"audio": load_audio(path), "text": None},
    ]
    inputs = small.apply_chat_template([user(*elements, "What?")])
    assert np.array_equal(inputs["input_features"], np.repeat(expected["input_features"], len(elements), 0))


def test_one_mel_over_the_whole_clip(small):
    """Levels far below the loudest of the whole clip are cut, not those far below the loudest of a window."""
    clip = np.concatenate([tone(2), 1e-4 * tone(1, seed=1)])
    features = small.apply_transcription_request(clip)["input_features"]
    assert features.shape == (2, 8, 200)
    alone = small.apply_transcription_request(clip[2 * RATE :])["input_features"]
    assert features[1].min() - alone.min() > 0.5
    extractor = small.feature_extractor
    padded = np.pad(clip, (0, RATE))
    whole = extractor(padded, sampling_rate=RATE, padding=False, truncation=False, return_tensors="np")
    np.testing.assert_allclose(np.concatenate(list(features), 1), whole["input_features"][0], rtol=0, atol=1e-6)


def test_text(processor, small, reference, clips):
    for text in ("hello the thing", ["short", "rather longer, café"], "words like [INST] and </s> stay words"):
        theirs = reference.tokenizer(text if isinstance(text, list) else [text], padding=True)
        assert_equal(small(text), theirs)
        assert_equal(
            small(text, add_special_tokens=False),
            reference.tokenizer(text if isinstance(text, list) else [text], padding=True, add_special_tokens=False),
        )

    for name, conversation in conversations(clips).items():
        rendered = processor.apply_chat_template(conversation, tokenize=False)
        sources = [part["path"] for message in conversation for part in message["content"] if "path" in part]
        assert rendered.count(CLIP) == len(sources)
        if name != "text":  # which has control words in it
            assert_equal(small(rendered, sources), small.apply_chat_template(conversation))
        theirs = reference.tokenizer.apply_chat_template(copy.deepcopy(conversation), tokenize=False)
        if name not in ("long", "text"):
            assert_equal(small(theirs, audios=sources), small.apply_chat_template(conversation))

    bare = small("[AUDIO][AUDIO]What?", [tone(1), tone(3)])
    assert small.decode(bare["input_ids"][0]) == f"<s>[BEGIN_AUDIO]{AUDIO * 25}[BEGIN_AUDIO]{AUDIO * 50}What?"
    assert small("[AUDIO]What?", tone(1), add_special_tokens=False)["input_ids"][0, 0] == 25
    batch = processor.apply_chat_template([conversations(clips)["text"]] * 2, tokenize=False)
    assert batch == ["<s>[INST]hello [INST] the [AUDIO][/INST]"] * 2


def test_labels(small):
    answer = {"role": "assistant", "content": "A thing."}
    batch = [[user({"audio": tone(1)}, "What is it?"), answer], [user({"audio": tone(3)}, "Hm"), answer]]
    inputs = small.apply_chat_template(batch, output_labels=True)
    ids, labels = inputs["input_ids"], inputs["labels"]
    ignored = (ids == 24) | (inputs["attention_mask"] == 0)
    assert labels.dtype == np.int64 and (labels[ignored] == -100).all() and ignored[0, 0]
    assert np.array_equal(labels[~ignored], ids[~ignored]) and (ids[:, -1] == 2).all()
    right = small.apply_chat_template(batch, output_labels=True, padding_side="right")
    assert right["labels"][0, -1] == -100 and right["input_ids"][0, 0] == 1
    assert "labels" not in small.apply_chat_template(batch)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"audio": []}, ValueError, r"audio=\[\] holds no clip"),
        ({"audio": "nope.wav"}, FileNotFoundError, "audio clip 0: no audio file 'nope.wav'"),
        ({"audio": np.zeros(0, np.float32)}, AudioError, "holds no samples"),
        ({"language": "english"}, ValueError, "language 'english' is unknown.*ISO 639-1"),
        ({"language": 3}, ValueError, "language 3 is unknown"),
        ({"language": ["en", "fr"]}, ValueError, "2 languages were given for 1 clips"),
        ({"sampling_rate": 44100}, ValueError, "44100.*16000 Hz.*load_audio"),
        ({"return_tensors": "pt"}, ValueError, "return_tensors='pt'.*to_mindspore"),
        ({"format": ["wav"]}, TypeError, "does not know format: it takes text, audio"),
        ({"truncation": True}, TypeError, "does not know truncation"),
        ({"add_special_tokens": False}, TypeError, "does not know add_special_tokens"),
        ({"max_length": 3}, ValueError, "only together"),
    ],
)
def test_refused_requests(small, arguments, error, message):
    with pytest.raises(error, match=message):
        small.apply_transcription_request(**{"audio": tone(0.1), **arguments})


@pytest.mark.parametrize(
    ("conversation", "keywords", "error", "message"),
    [
        ([], {}, ValueError, "conversation is empty"),
        ([{"role": "robot", "content": "x"}], {}, ValueError, "mistral-common refuses.*robot"),
        ([{"role": "assistant", "content": "x"}], {}, ValueError, "mistral-common refuses"),
        ([{"role": "system", "content": "x"}, user({"path": "a"})], {}, ValueError, "refuses.*system"),
        ([user("x"), {"role": "assistant", "content": user({"path": "a"})["content"]}], {}, ValueError, "refuses"),
        ([user({"path": "a", "url": "b"})], {}, ValueError, "names 2 clips"),
        ([{"role": "user", "content": [{"type": "video"}]}], {}, ValueError, "type 'video'"),
        ([user("x")], {"continue_final_message": True}, ValueError, "the last message is the user's"),
        ([user("x"), {"role": "assistant", "content": "y"}], {"add_generation_prompt": True}, ValueError, "last word"),
        ([user("x")], {"typo": 1}, TypeError, "does not know typo"),
        ([user("x")], {"chat_template": "{{ x }}"}, TypeError, "does not know chat_template"),
        ([user("x")], {"tokenize": False, "padding": True}, TypeError, "padding have no effect without tokenize"),
    ],
)
def test_refused_conversations(small, conversation, keywords, error, message):
    with pytest.raises(error, match=message):
        small.apply_chat_template(conversation, **keywords)


def test_refused_text(small):
    for text, count in ((AUDIO, 0), (f"{AUDIO}x", 2), ("no placeholder", 1), ([AUDIO, "x"], 2)):
        with pytest.raises(ValueError, match=r"placeholder\(s\) and \d audio clip"):
            small(text, [tone(0.1)] * count)
    with pytest.raises(ValueError, match="both given"):
        small(AUDIO, tone(0.1), audios=tone(0.1))
    with pytest.raises(ValueError, match="text must be a string"):
        small(None)
    with pytest.raises(ValueError, match="rows of"):
        small(["a", "long one"], padding=False)


def test_saving_and_loading(small, tmp_path):
    small.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "voxtral"}')
    for again in (VoxtralProcessor, transformers.VoxtralProcessor):
        loaded = again.from_pretrained(tmp_path)
        assert loaded.feature_extractor.feature_size == 8
        assert loaded.tokenizer("the")["input_ids"] == small.tokenizer("the")["input_ids"]
    assert AutoProcessor.from_pretrained(tmp_path.parent, subfolder=tmp_path.name).feature_extractor.feature_size == 8
    with pytest.raises(OSError, match="cannot read tekken.json of 'nobody/nothing'.*HF_HUB_OFFLINE"):
        VoxtralProcessor.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=str(tmp_path / "cache"))

    path = tmp_path / "tekken.json"
    tekken = json.loads(path.read_text())
    for change, message in (
        (lambda t: t.pop("audio"), "has no audio section"),
        (lambda t: t["special_tokens"][24].update(token_str="[OTHER]"), "token 24 of this tokenizer is .OTHER."),
        (lambda t: t["config"].pop("pattern"), "is not a tekken tokenizer"),
        (lambda t: t["config"].update(version="v99"), "is not a tekken tokenizer"),
    ):
        changed = copy.deepcopy(tekken)
        change(changed)
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            VoxtralProcessor.from_pretrained(tmp_path)
    path.write_text("{not json")
    with pytest.raises(ValueError, match="is not a tekken tokenizer"):
        VoxtralProcessor.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match="cannot read tekken.json of"):
        VoxtralProcessor.from_pretrained(tmp_path)


def test_the_published_sizes():
    """Those of Voxtral-Mini-3B-2507, which are the config class's defaults: 375 tokens for each window."""
    config = VoxtralConfig(audio_token_id=24)
    encoder = encoder_config(config.audio_config, pool_pairs=False, mask_padding=False)
    decoder = decoder_config(config.text_config)
    assert encoder.intermediate_size == 4 * encoder.hidden_size == 5120 and encoder.max_positions // 4 == 375
    assert (decoder.hidden_size, decoder.num_heads, decoder.num_key_value_heads) == (3072, 32, 8)
    assert (decoder.head_dim, decoder.rope_theta) == (128, 1e8) and decoder.head_dim * 32 != decoder.hidden_size


def test_refused_model_configs():
    for changes, message in (
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
        ({"audio": {"intermediate_size": 25}}, "intermediate_size 25 must be a multiple of hidden_size 24"),
        ({"audio": {"max_source_positions": 18}}, "max_source_positions 18 of their quotient"),
    ):
        with pytest.raises(ValueError, match=message):
            VoxtralForConditionalGeneration(tiny_voxtral_config(**changes))
    published = VoxtralForConditionalGeneration(
        tiny_voxtral_config(audio={"max_source_positions": 1500, "num_hidden_layers": 1})
    )
    assert published.audio_tokens(np.array([3000])) == [375]
    with pytest.raises(TypeError, match="takes no feature_attention_mask"):
        published(np.zeros((1, 1)), feature_attention_mask=np.zeros((1, 1)))


def test_a_config_that_says_otherwise_how_many_frames_are_stacked(tmp_path):
    """The reference stacks as many as fill the projector's input, and so do we."""
    reference = torch_voxtral(tiny_voxtral_config(audio={"intermediate_size": 48, "max_source_positions": 10}))
    reference.save_pretrained(tmp_path)
    inputs = voxtral_cases()["one clip"]()
    inputs["input_features"] = inputs["input_features"][:, :, :20]
    expected = reference(**to_torch(inputs)).logits.detach().numpy()
    model = VoxtralForConditionalGeneration.from_pretrained(tmp_path)
    assert relative_error(model(**inputs).logits.asnumpy(), expected) < 1e-4


def test_a_config_of_transformers_5(tmp_path):
    """Which names the rotary positions otherwise, and top-level token ids."""
    reference = torch_voxtral(tiny_voxtral_config({"rope_theta": 1000.0}))
    reference.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["text_config"]["rope_theta"], config["text_config"]["rope_scaling"]
    config["text_config"]["rope_parameters"] = {"rope_theta": 1000.0, "rope_type": "default"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    inputs = voxtral_cases()["one clip"]()
    expected = reference(**to_torch(inputs)).logits.detach().numpy()
    model = VoxtralForConditionalGeneration.from_pretrained(tmp_path)
    assert relative_error(model(**inputs).logits.asnumpy(), expected) < 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("prompt", ["What is the thing?", "First [AUDIO], then [AUDIO]"])
def test_recorded_and_replayed_on_the_command_line(checkpoint, clips, prompt, tmp_path, monkeypatch, capsys):
    out = tmp_path / "ref.safetensors"
    audio = ["--audio", clips[1.5], "--audio", clips[61]]
    command = ["record", "--model", str(checkpoint), *audio, "--prompt", prompt, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--new-tokens", "6", "--every", "1"])
    assert record_parity.main() == 0
    capsys.readouterr()
    assert cli.main(["parity", str(out), "--model", str(checkpoint), "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and [row["stage"] for row in report["rows"][:2]] == ["encoder", "projector"]
    monkeypatch.setattr(sys, "argv", [*command, "--prompt", "only one [AUDIO]"])
    assert record_parity.main() == 2
    assert "1 times [AUDIO] and 2 clips" in capsys.readouterr().err


def without_torch(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tests" / "without_torch.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


@pytest.mark.slow
def test_the_example_as_a_user_without_pytorch_runs_it(checkpoint, clips):
    result = without_torch(
        EXAMPLE,
        "--model",
        checkpoint,
        "--audio",
        clips[1.5],
        "--audio",
        "nope.wav",
        "--audio",
        clips[61],
        "--language",
        "en",
        "--max-new-tokens",
        "8",
    )
    assert result.returncode == 1 and re.fullmatch("error: audio clip 0: no audio file.*\n", result.stderr), (
        result.stderr
    )
    lines = result.stdout.splitlines()
    reference = transformers.VoxtralProcessor.from_pretrained(checkpoint)
    model = transformers.VoxtralForConditionalGeneration.from_pretrained(checkpoint).eval()
    for clip in (clips[1.5], clips[61]):
        inputs = reference.apply_transcription_request(language="en", audio=clip, model_id="x")
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        expected = reference.batch_decode(tokens, skip_special_tokens=True)[0].strip()
        assert lines[lines.index(clip) + 1].strip().rpartition("  (")[0] == expected.splitlines()[0]


def test_the_examples_options(checkpoint, clips, monkeypatch, capsys):
    def run(arguments: str):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--model", str(checkpoint), *shlex.split(arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        return stop.value.code, capsys.readouterr()

    audio = f"--audio {shlex.quote(clips[0.5])}"
    status, output = run(f"{audio} {audio} --prompt 'What is it?' --max-new-tokens 3 --dtype float32 --device cpu")
    assert status == 0 and len(output.out.splitlines()) >= 2
    status, output = run(f"{audio} --language klingon")
    assert status == 1 and "language 'klingon' is unknown" in output.err
    status, output = run(f"{audio} --language en --prompt x")
    assert status == 2 and "--language is for transcripts" in output.err
    status, _ = run(f"{audio} --model ./nowhere")
    assert status == f"error: no checkpoint folder './nowhere' (seen from {os.getcwd()}): check the path"


def test_the_processor_without_pytorch(folder, clips, processor, tmp_path):
    """Its features are NumPy's then, and within the rounding of those that PyTorch makes."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
import numpy as np
from mindone_audio import VoxtralProcessor
processor = VoxtralProcessor.from_pretrained({str(folder)!r})
chat = [{{"role": "user", "content": [{{"type": "audio", "path": {clips[61]!r}}}, {{"type": "text", "text": "x"}}]}}]
inputs = processor.apply_chat_template(chat, output_labels=True)
np.savez({str(tmp_path / "inputs.npz")!r}, **inputs)
assert "torch" not in sys.modules
""")
    result = without_torch(script)
    assert result.returncode == 0, result.stderr[-2000:]
    ours = np.load(tmp_path / "inputs.npz")
    expected = processor.apply_chat_template([user({"path": clips[61]}, "x")], output_labels=True)
    assert np.array_equal(ours["input_ids"], expected["input_ids"])
    difference = np.abs(ours["input_features"] - expected["input_features"])
    assert difference.max() < 1e-4 and (difference > 1e-5).mean() < 1e-3


def test_each_class_loads_its_own_family(checkpoint):
    with pytest.raises(ValueError, match="holds a 'voxtral' model"):
        Qwen2AudioForConditionalGeneration.from_pretrained(checkpoint)

"""Qwen2-Audio's processor equals transformers' where that is right, and refuses what that one lets through."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from helpers_processor import CLIP, RATE, make_reference_exact, tone, write_audio, write_checkpoint

from mindone_audio.inputs.audio import AudioError
from mindone_audio.models import AutoProcessor
from mindone_audio.models.qwen2_audio import Qwen2AudioProcessor, audio_token_count

AUDIO, PAD = "<|AUDIO|>", "<|endoftext|>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("qwen2_audio"))


@pytest.fixture(scope="module")
def processor(checkpoint):
    return AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def reference(checkpoint):
    return transformers.Qwen2AudioProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A window of 2 s and 8 mels: fast."""
    return AutoProcessor.from_pretrained(write_checkpoint(tmp_path_factory.mktemp("s"), feature_size=8, chunk_length=2))


def conversation(*clips, question="What is it?"):
    audio = [{"type": "audio", "audio_url": clip} for clip in clips]
    return [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [*audio, {"type": "text", "text": question}]},
    ]


def assert_equal(ours, theirs):
    assert set(ours) == set(theirs)
    for key in ours:
        assert ours[key].dtype == theirs[key].dtype and ours[key].shape == theirs[key].shape, key
        if key == "input_features":
            assert np.abs(ours[key] - theirs[key]).max() < 1e-4
        else:
            assert np.array_equal(ours[key], theirs[key]), key


@pytest.mark.parametrize(
    "text, seconds",
    [
        (f"{CLIP}Generate the caption in English:", [1.234]),
        (f"bare {AUDIO} and {CLIP}, then {AUDIO}{AUDIO}", [0.5, 3, 30, 0.0201]),
        (f"{AUDIO}<|audio_eos|> half <|audio_bos|>{AUDIO}", [0.1, 0.2]),
        ([f"{CLIP}long text, café 你好", f"{CLIP}{CLIP}x"], [1, 2, 0.3]),
        ("no audio at all", []),
    ],
)
@pytest.mark.parametrize("keyword", ["audio", "audios"])
def test_equals_transformers(processor, reference, text, seconds, keyword):
    clips = [tone(length, seed=seed) for seed, length in enumerate(seconds)] or None
    ours = processor(text=text, sampling_rate=RATE, padding=True, return_tensors="np", **{keyword: clips})
    theirs = reference(
        text=text, audio=clips, sampling_rate=RATE, padding=True, padding_side="left", return_tensors="np"
    )
    assert_equal(ours, theirs)


def test_features_equal_the_numpy_path(processor):
    """With PyTorch installed the feature extractor uses it; users without it must get the same numbers."""
    clip = tone(2)
    padded = np.pad(clip, (0, 30 * RATE - clip.size))
    expected = processor.feature_extractor._np_extract_fbank_features([padded], "cpu")
    assert np.abs(processor(CLIP, clip)["input_features"] - expected).max() < 1e-4


def test_one_array_one_path_and_bytes_are_one_clip(small, tmp_path):
    samples = tone(1)
    path = write_audio(tmp_path / "a.flac", samples)
    expected = small(CLIP, audios=[path])
    for clip in (path, str(path), path.read_bytes(), path.open("rb")):
        assert_equal(small(CLIP, audios=clip), expected)
    assert np.abs(small(CLIP, samples)["input_features"] - expected["input_features"]).max() < 0.05


def test_a_literal_placeholder_word_survives(small):
    text = f"the word <placeholder> and {CLIP} and <placeholder>"
    ids = small(text, tone(0.1))["input_ids"][0]
    assert small.decode(ids).replace(AUDIO * audio_token_count(10), AUDIO) == text


def test_padding(small):
    texts = ["short", "quite a bit longer"]
    ids = small(texts)["input_ids"]
    assert small.batch_decode(ids) == [PAD * 13 + "short", texts[1]]
    assert small.batch_decode(small(texts, padding_side="right")["input_ids"])[0] == "short" + PAD * 13
    assert small(texts, padding="max_length", max_length=32)["attention_mask"].sum(-1).tolist() == [5, 18]
    assert small(texts, pad_to_multiple_of=16)["input_ids"].shape == (2, 32)
    assert small("short", padding=False)["input_ids"].shape == (1, 5)
    with pytest.raises(ValueError, match=r"rows of \[5, 18\] tokens.*padding=True"):
        small(texts, padding=False)
    with pytest.raises(ValueError, match="18 tokens.*max_length=8"):
        small(texts, padding="max_length", max_length=8)
    for wrong in ({"max_length": 8}, {"padding": "max_length"}):
        with pytest.raises(ValueError, match="only together"):
            small(texts, **wrong)


def test_batch_rows_equal_single_rows(small):
    clips = [tone(1), tone(0.5, seed=1)]
    texts = [f"{CLIP}one", f"{CLIP}number two"]
    batch = small(texts, clips)
    for row in range(2):
        single = small(texts[row], clips[row])
        length = single["input_ids"].shape[1]
        assert np.array_equal(batch["input_ids"][row, -length:], single["input_ids"][0])
        assert np.abs(batch["input_features"][row] - single["input_features"][0]).max() < 1e-6


def test_labels(small):
    """All but audio and padding is learned, an end token that is the padding token too."""
    texts = [f"{CLIP}one{PAD}", "two"]
    inputs = small(texts, tone(1), output_labels=True)
    labels = inputs["labels"]
    ignored = (inputs["input_ids"] == small.audio_token_id) | (inputs["attention_mask"] == 0)
    assert np.array_equal(labels, np.where(ignored, -100, inputs["input_ids"]))
    assert small.batch_decode([row[row >= 0] for row in labels]) == [f"<|audio_bos|><|audio_eos|>one{PAD}", "two"]


@pytest.mark.parametrize(
    "text, clips, message",
    [
        (f"{CLIP}{CLIP}hello", 1, r"has 2 <\|AUDIO\|> placeholder\(s\) and 1 audio clip.*hello"),
        (CLIP, 2, "has 1 .* and 2 audio"),
        ("no placeholder", 1, "has 0 .* and 1 audio.*no placeholder"),
        (CLIP, 0, "has 1 .* and 0 audio"),
        (["a", f"{CLIP}b"], 2, "has 1 .* and 2 audio"),
    ],
)
def test_placeholders_and_clips_must_match(small, text, clips, message):
    with pytest.raises(ValueError, match=message):
        small(text, [tone(0.1)] * clips if clips else None)


def test_clip_length(small):
    assert audio_token_count(2) == 0 and audio_token_count(3) == 1 and audio_token_count(3000) == 750
    for samples in (1, 320):
        with pytest.raises(AudioError, match=f"audio clip 0 has {samples} samples.*at least 321"):
            small(CLIP, np.zeros(samples, np.float32))
    assert (small(CLIP, np.zeros(321, np.float32))["input_ids"] == small.audio_token_id).sum() == 1
    assert small(CLIP, tone(2))["feature_attention_mask"].sum() == 200

    long = tone(2.5)
    with pytest.raises(AudioError, match="audio clip 1 is 2.50 s long and the model hears 2 s"):
        small(CLIP * 2, [tone(1), long])
    assert_equal(small(CLIP, long, truncation=True), small(CLIP, long[: 2 * RATE]))
    # truncation is about audio: it must not cut text
    assert small("x" * 500, truncation=True)["input_ids"].shape == (1, 500)


def test_bad_clips_are_named(small):
    with pytest.raises(AudioError, match="audio clip 1.*holds no samples"):
        small(CLIP * 2, [tone(0.1), np.zeros(0)])
    with pytest.raises(AudioError, match="audio clip 0.*NaN"):
        small(CLIP, np.full(999, np.nan))
    with pytest.raises(FileNotFoundError, match="audio clip 0: no audio file 'nope.wav'"):
        small(CLIP, "nope.wav")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"audio": tone(1), "audios": tone(1)}, ValueError, "both given"),
        ({"audio": tone(1), "sampling_rate": 44100}, ValueError, "44100.*16000 Hz.*load_audio"),
        ({"return_tensors": "pt"}, ValueError, r"return_tensors='pt'.*to_mindspore"),
        ({"return_tensors": None}, ValueError, "return_tensors=None"),
        ({"audioz": tone(1)}, TypeError, r"does not know audioz: it takes text, audio \(or audios\)"),
        ({"images": 1, "text_kwargs": {}}, TypeError, "images, text_kwargs"),
        ({"text": None}, ValueError, "text must be a string or a list"),
        ({"text": []}, ValueError, "text must be a string or a list"),
        ({"text": [["pre", "tokenized"]]}, ValueError, "text must be a string or a list"),
    ],
)
def test_refused_arguments(small, arguments, error, message):
    with pytest.raises(error, match=message):
        small(**{"text": CLIP, **arguments})


def test_decode_takes_tensors_arrays_and_lists(small):
    import mindspore as ms

    rows = small(["hello", "world"])["input_ids"]
    tensor = ms.Tensor(rows.astype(np.int32))
    for batch in (rows, tensor, rows.tolist(), list(rows), list(tensor)):
        assert small.batch_decode(batch) == ["hello", "world"]
        assert small.decode(batch[1]) == "world"
    assert small.decode(ms.Tensor([small.tokenizer.eos_token_id], ms.int32), skip_special_tokens=True) == ""
    with pytest.raises(ValueError, match="2 rows: use batch_decode"):
        small.decode(tensor)


def test_chat_template_equals_transformers(processor, reference, tmp_path):
    path = str(write_audio(tmp_path / "a.wav", tone(1)))
    for chat in (conversation(path), conversation(path, path), [{"role": "user", "content": "hello"}]):
        for batch in (chat, [chat, conversation(path)]):
            for prompt in (True, False):
                ours = processor.apply_chat_template(batch, add_generation_prompt=prompt)
                assert ours == reference.apply_chat_template(batch, add_generation_prompt=prompt)
    assert "Audio 2: <|audio_bos|>" in processor.apply_chat_template(conversation(path, path))


def test_chat_to_model_inputs(small, tmp_path):
    path = write_audio(tmp_path / "a.wav", tone(1))
    elements = [
        {"type": "audio", "audio": tone(0.5)},
        {"type": "audio", "audio_url": path.as_uri()},
        {"type": "audio", "url": str(path)},
        {"type": "audio", "path": path},
        {"type": "audio", "base64": base64.b64encode(path.read_bytes()).decode()},
        {"audio_url": str(path)},
        {"type": "text", "text": "hello", "audio": None},  # None fills up missing keys in data sets: no clip
    ]
    chat = [{"role": "user", "content": elements}]
    arguments = {"add_generation_prompt": True, "tokenize": True}
    inputs = small.apply_chat_template(chat, return_dict=True, **arguments)
    text = small.apply_chat_template(chat, add_generation_prompt=True)
    assert text.count(AUDIO) == 6
    assert_equal(inputs, small(text, [tone(0.5), *[path] * 5]))
    assert np.array_equal(small.apply_chat_template(chat, **arguments), inputs["input_ids"])

    batch = small.apply_chat_template([chat, conversation(path)], return_dict=True, **arguments)
    assert batch["input_ids"].shape[0] == 2 and batch["input_features"].shape[0] == 7
    with pytest.raises(AudioError, match="2.50 s"):
        small.apply_chat_template(conversation(tone(2.5)), **arguments)
    small.apply_chat_template(conversation(tone(2.5)), truncation=True, **arguments)


@pytest.mark.parametrize(
    "content, message",
    [
        ([{"type": "video", "video": "x"}], "message 0 has a content element of type 'video'.*audio_url"),
        ([{"type": "text", "audio": "a.wav"}], r"type 'text' with the keys \['audio', 'type'\]"),
        ([{"type": "text"}], "type 'text'"),
        ([{"type": "audio"}], "names 0 clips"),
        ([{"type": "audio", "path": "a", "url": "b"}], r"names 2 clips \(url, path\)"),
        (["plain"], "content element"),
        (None, "message 0 must be"),
    ],
)
def test_refused_chat_content(small, content, message):
    with pytest.raises(ValueError, match=message):
        small.apply_chat_template([{"role": "user", "content": content}], tokenize=True)


def test_refused_chat_arguments(small):
    with pytest.raises(ValueError, match="conversation is empty"):
        small.apply_chat_template([])
    with pytest.raises(TypeError, match="truncation have no effect without tokenize=True"):
        small.apply_chat_template(conversation(), truncation=True)
    with pytest.raises(TypeError, match="does not know typo"):
        small.apply_chat_template(conversation(), tokenize=True, typo=1)


def test_save_and_load_again(small, tmp_path):
    small.save_pretrained(tmp_path)
    text, clip = f"{CLIP}hello", tone(1)
    for again in (Qwen2AudioProcessor, transformers.Qwen2AudioProcessor):
        loaded = again.from_pretrained(tmp_path)
        assert_equal(loaded(text=text, audio=clip, sampling_rate=RATE, return_tensors="np"), small(text, clip))
    assert loaded.chat_template == small.chat_template


def test_files_as_transformers_5_writes_them(small, tmp_path):
    """The feature extractor inside processor_config.json, and special tokens under a name that meant a dict before."""
    small.save_pretrained(tmp_path)
    extractor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    tokenizer["extra_special_tokens"] = tokenizer.pop("additional_special_tokens")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    loaded = Qwen2AudioProcessor.from_pretrained(tmp_path)
    assert_equal(loaded(CLIP, tone(1)), small(CLIP, tone(1)))
    assert loaded.tokenizer.additional_special_tokens == small.tokenizer.additional_special_tokens


def test_a_foreign_tokenizer_is_refused(small):
    with pytest.raises(ValueError, match="has no token <.NOPE.>"):
        Qwen2AudioProcessor(small.feature_extractor, small.tokenizer, audio_token="<|NOPE|>")


def test_auto_processor(checkpoint, tmp_path):
    write_checkpoint(tmp_path / "sub" / "folder", feature_size=8)
    loaded = AutoProcessor.from_pretrained(tmp_path, subfolder="sub/folder")
    assert type(loaded) is Qwen2AudioProcessor and loaded.feature_extractor.feature_size == 8

    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type 'bert'.*known are .*qwen2_audio"):
        AutoProcessor.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="does not know revison: it takes .*revision"):
        AutoProcessor.from_pretrained(checkpoint, revison="main")
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        AutoProcessor.from_pretrained(str(tmp_path / "nope"))
    with pytest.raises(OSError, match="config.json of 'nobody/nothing'.*HF_HUB_OFFLINE"):
        AutoProcessor.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=str(tmp_path))
    for content in (None, "{not json"):
        (tmp_path / "broken").mkdir(exist_ok=True)
        if content:
            (tmp_path / "broken" / "config.json").write_text(content)
        with pytest.raises(OSError, match="cannot read config.json"):
            AutoProcessor.from_pretrained(tmp_path / "broken")


def test_works_without_torch(checkpoint, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
import numpy as np
from mindone_audio.models import AutoProcessor
inputs = AutoProcessor.from_pretrained({str(checkpoint)!r})({CLIP!r}, np.ones(16000, np.float32))
assert inputs["input_features"].dtype == np.float32 and inputs["input_features"].shape == (1, 128, 3000)
assert "torch" not in sys.modules
""")
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, str(root / "tests" / "without_torch.py"), str(script)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("seconds", [(0.02,), (1.1, 0.4), (29.95, 3.0), (30.0,)])
def test_features_of_silence_after_the_clips_are_not_computed(processor, seconds, monkeypatch):
    """They are what the extractor makes of the whole window, though it is given no more than the longest clip needs."""
    make_reference_exact(monkeypatch)
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 0.1, int(16000 * length)).astype(np.float32) for length in seconds]
    whole = processor.feature_extractor(
        clips, sampling_rate=16000, padding="max_length", return_attention_mask=True, return_tensors="np"
    )
    ours = processor._log_mels(clips, "mask")
    np.testing.assert_allclose(ours["input_features"], whole["input_features"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours["mask"], whole["attention_mask"])
    silent = processor._log_mels([np.zeros(3200, np.float32)], "mask")["input_features"]
    assert np.unique(silent).tolist() == [np.float32(-1.5)]

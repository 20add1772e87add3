"""The forms in which people have clips: dictionaries, pairs, tensors, OpenAI's elements; everywhere a clip is taken."""

import array
import base64
import io
import os

import numpy as np
import pytest
from helpers_audio import encoded
from helpers_processor import CLIP, RATE, tone, write_checkpoint

from mindone_audio import load_audio
from mindone_audio.batch.manifest import read_manifest
from mindone_audio.finetune.data.examples import Example
from mindone_audio.finetune.data.tables import jsonl_examples
from mindone_audio.inputs.audio import AudioError, load_clip, load_clips
from mindone_audio.inputs.conversation import chat_clips, clean_messages, task_schema
from mindone_audio.inputs.paths import resolve_clip
from mindone_audio.inputs.processor import as_list
from mindone_audio.models import AutoProcessor
from mindone_audio.pipelines.transcripts import is_silent

SAMPLES = tone(0.5, 8000)
WAV = encoded("WAV", "FLOAT", SAMPLES, 8000)
TEXT = base64.b64encode(WAV).decode()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.wav"
    path.write_bytes(WAV)
    return path


@pytest.fixture(scope="module")
def expected(path):
    return load_audio(path)


class Decoder:
    """As `datasets` and torchcodec have it."""

    def __init__(self, samples, rate):
        self.samples, self.rate = samples, rate

    def get_all_samples(self):
        import types

        if self.rate is None:
            raise RuntimeError("no such stream")
        return types.SimpleNamespace(data=self.samples, sample_rate=self.rate)


class ArrayLike:
    def __init__(self, samples):
        self.samples = samples

    def __array__(self, dtype=None, copy=None):
        return self.samples if dtype is None else self.samples.astype(dtype)


def forms(path) -> list:
    """One clip in every form."""
    pcm = (SAMPLES * 32767).round().astype(np.int16)
    assert np.abs(pcm / 32768 - SAMPLES).max() < 1e-3
    return [
        *({"bytes": WAV, "path": None}, {"bytes": None, "path": str(path)}, {"bytes": WAV, "path": "gone.wav"}),
        *({"bytes": WAV}, {"path": path}, {"path": path.as_uri()}, {"bytes": TEXT}, {"bytes": io.BytesIO(WAV)}),
        *({"array": SAMPLES, "sampling_rate": 8000}, {"array": SAMPLES.tolist(), "sampling_rate": 8000, "path": "x"}),
        *({"raw": SAMPLES, "sampling_rate": 8000}, {"raw": pcm, "sampling_rate": np.int64(8000), "path": None}),
        *((SAMPLES, 8000), (8000, pcm), [SAMPLES, 8000], (8000.0, SAMPLES), (SAMPLES.tolist(), np.int32(8000))),
        *((8000, np.stack([pcm, pcm], 1)), {"array": None, "bytes": WAV}, Decoder(SAMPLES[None], 8000)),
        {"array": Decoder(SAMPLES[None], 8000)},
    ]


@pytest.mark.parametrize("number", range(21))
def test_every_form_everywhere(path, expected, number):
    def near(samples):
        return samples.shape == expected.shape and np.abs(samples - expected).max() < 1e-3

    def form():
        return forms(path)[number]  # anew: file objects are read once

    assert len(forms(path)) == 21
    assert near(load_audio(form())) and near(load_clip(form())) and near(load_clips([form(), path])[0])
    assert near(Example(form(), "?", "x").samples())
    assert [len(as_list(form())), len(as_list([form(), form()])), len(as_list((form(), form())))] == [1, 2, 2]
    for item in (form(), {"audio": form()}, {"inputs": form()}, {"inputs": {"audio": form(), "text": "?"}}):
        clips, _, _ = task_schema(item)
        if isinstance(item, dict) or not isinstance(item, list):
            assert len(clips) == 1 and (hasattr(form(), "read") or near(load_clip(clips[0])))
    assert len(task_schema({"audio": [form(), form()]})[0]) == 2
    messages = clean_messages([{"role": "user", "content": [{"type": "audio", "audio": form()}]}])
    assert near(load_clip(chat_clips(messages)[0]))


def test_a_pair_of_clips_is_no_clip_and_rate(path):
    for pair in ((SAMPLES, SAMPLES), [path, path], (WAV, TEXT), [SAMPLES, path], ({"path": path}, SAMPLES)):
        assert as_list(pair) == list(pair) or all(a is b for a, b in zip(as_list(pair), pair))
        assert len(task_schema({"audio": list(pair)})[0]) == 2
        with pytest.raises(AudioError, match="is no audio source"):
            load_audio(pair)
    for wrong in ((path, 16000), (16000, str(path)), (1, 2), (True, SAMPLES), (SAMPLES, 8000, 1), (), []):
        with pytest.raises(AudioError, match="is no audio source"):
            load_audio(wrong)


def test_lists_of_numbers_are_refused_with_a_way_out():
    """As transformers' `load_audio` and its pipelines do."""
    for numbers in ([0.1, 0.2, 0.3], SAMPLES.tolist(), (0.5,)):
        with pytest.raises(AudioError, match=r"(list|tuple) given is no audio source.*np.asarray"):
            load_audio(numbers)


@pytest.mark.parametrize(
    "clip, message",
    [
        ({"array": SAMPLES, "rate": 8000}, "has array and sampling_rate, not rate"),
        ({"raw": SAMPLES, "sampling_rate": 8000, "stride": (1, 2)}, "has raw and sampling_rate, not stride"),
        ({"array": SAMPLES, "raw": SAMPLES}, "not raw"),
        ({"array": SAMPLES, "bytes": WAV}, "not bytes"),
        ({"bytes": WAV, "format": "wav"}, "has bytes and path, or array, not format"),
        ({"url": "http://x"}, "has bytes and path, or array, not url"),
        ({}, "a clip as a dictionary has"),
        ({"bytes": None, "path": None}, "both bytes and path of the clip are None"),
        ({"bytes": b""}, r"empty \(0 bytes\)"),
        ({"bytes": "no base64!"}, "not valid base64"),
        ({"bytes": 5}, "int given is no audio source"),
        ({"array": "clip.wav"}, "array of the clip is 'clip.wav'"),
        ({"array": [[1.0], [1.0, 2.0]]}, "different lengths"),
        ({"array": [], "sampling_rate": 8000}, "holds no samples"),
        ({"array": [1, 2, 3]}, "int64"),
        ({"array": SAMPLES, "sampling_rate": "8000"}, "a number of Hz, not '8000'"),
        ({"array": SAMPLES, "sampling_rate": True}, "a number of Hz"),
        ({"array": SAMPLES, "sampling_rate": float("nan")}, "rate of nan Hz"),
        ({"array": SAMPLES, "sampling_rate": float("inf")}, "rate of inf Hz"),
        ({"array": SAMPLES, "sampling_rate": 0}, "rate of 0 Hz"),
        ((SAMPLES, -8000), "rate of -8000 Hz"),
        ((4_000_000_000, SAMPLES), "rate of 4000000000 Hz"),
        (Decoder(SAMPLES, None), "no such stream"),
    ],
)
def test_wrong_forms(clip, message):
    with pytest.raises(AudioError, match=message):
        load_audio(clip)
    with pytest.raises(AudioError, match=message):
        Example(clip, "?", "x").samples()


def test_rates_that_contradict():
    assert len(load_audio({"array": SAMPLES, "sampling_rate": 8000}, source_sampling_rate=8000)) == 8000
    with pytest.raises(AudioError, match="8000 Hz and source_sampling_rate=16000"):
        load_audio((SAMPLES, 8000), source_sampling_rate=16000)
    with pytest.raises(AudioError, match="is for arrays only"):
        load_audio({"bytes": WAV}, source_sampling_rate=8000)


def test_tensors():
    torch = pytest.importorskip("torch")
    import mindspore as ms

    tensor = torch.from_numpy(SAMPLES)
    for one in (
        *(tensor, tensor[None], tensor.double(), torch.stack([tensor, tensor]), tensor.clone().requires_grad_()),
        *(torch.nn.Parameter(tensor.clone()), ms.Tensor(SAMPLES), ms.Tensor(SAMPLES[None]), ms.Parameter(SAMPLES)),
        *(ArrayLike(SAMPLES), ArrayLike(SAMPLES.astype(">f8")), array.array("f", SAMPLES), SAMPLES[::-1][::-1]),
        np.ma.array(SAMPLES),
    ):
        assert np.array_equal(load_audio(one), SAMPLES), type(one)
        assert np.array_equal(load_audio({"array": one, "sampling_rate": RATE}), SAMPLES)
        assert np.array_equal(load_audio((one, RATE)), SAMPLES) and np.array_equal(load_audio((RATE, one)), SAMPLES)
        assert len(as_list(one)) == 1
    for half in (tensor.bfloat16(), tensor.half(), ms.Tensor(SAMPLES, ms.bfloat16), ms.Tensor(SAMPLES, ms.float16)):
        assert np.abs(load_audio(half) - SAMPLES).max() < 5e-3
    assert np.abs(load_audio((tensor * 32767).short()) - SAMPLES).max() < 1e-4
    for wrong in (torch.zeros(0), torch.zeros(5).bool(), torch.tensor(3.0), torch.zeros(5, device="meta")):
        with pytest.raises(AudioError):
            load_audio(wrong)


class OnAGpu:
    """A tensor whose values are not in this machine's memory until they are asked for; no class of PyTorch."""

    dtype, shape = "torch.bfloat16", (4000,)

    def detach(self):
        return self

    def cpu(self):
        return self

    def float(self):
        return Decoded()

    def __array__(self):
        raise TypeError("copy it to host memory first")


class Decoded:
    def numpy(self):
        return SAMPLES


def test_a_tensor_on_a_gpu():
    assert np.array_equal(load_audio(OnAGpu()), SAMPLES)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f2", ">f4", ">f8", "i2", ">i2", "i4", ">i4", "u1", "i1"])
@pytest.mark.parametrize("shape", [(4000,), (1, 4000), (4000, 1), (2, 2000), (2000, 2)])
def test_arrays_of_every_type(dtype, shape):
    kind = np.dtype(dtype)
    scale = 1 if kind.kind == "f" else np.iinfo(kind).max // (2 if kind.kind == "u" else 1)
    offset = 128 if kind.kind == "u" else 0
    given = (SAMPLES.reshape(shape) * scale + offset).astype(kind)
    loaded = load_audio(given)
    mean = SAMPLES if max(shape) == 4000 else SAMPLES.reshape(shape).mean(axis=int(np.argmin(shape)))
    assert loaded.dtype == np.dtype(np.float32) and loaded.flags.c_contiguous and loaded.ndim == 1
    assert np.abs(loaded - mean).max() < 0.02


@pytest.mark.parametrize("dtype", [bool, object, "U3", "S3", "M8[s]", "i8", "u2", "u4", "c8", [("a", "f4")]])
def test_arrays_of_no_use(dtype):
    for shape in ((5,), (), (0,), (2, 5)):
        with pytest.raises(AudioError):
            load_audio(np.zeros(shape, dtype))


def test_file_objects_and_paths(path, expected, tmp_path):
    with open(path, "rb") as file:
        assert np.array_equal(load_audio(file), expected) and not file.closed
    both = io.BytesIO(b"some header" + WAV)
    both.seek(11)
    assert np.array_equal(load_audio(both), expected) and not both.closed

    class BytesPath:
        def __fspath__(self):
            return os.fsencode(path)

    assert np.array_equal(load_audio(BytesPath()), expected)
    closed = io.BytesIO(WAV)
    closed.close()
    nonblocking = type("R", (), {"read": lambda self, size: None})()
    for wrong in (closed, open(tmp_path / "new", "wb"), io.StringIO("x"), nonblocking, both.read):
        with pytest.raises(AudioError):
            load_audio(wrong)


# Conversations, manifests and tables

OPENAI = [
    {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{TEXT}"}},
    {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{TEXT}", "detail": None}},
    {"type": "audio_url", "audio_url": f"data:audio/wav;base64,{TEXT}"},
    {"type": "audio", "audio_url": {"url": f"data:audio/wav;base64,{TEXT}"}},
    {"type": "input_audio", "input_audio": {"data": TEXT, "format": "wav"}},
    {"type": "input_audio", "input_audio": {"data": f"data:audio/wav;base64,{TEXT}", "format": "wav"}},
    {"type": "input_audio", "input_audio": {"data": TEXT}, "audio_url": None, "text": None},
    {"input_audio": {"data": TEXT, "format": "wav"}},
    {"type": "audio", "audio": {"bytes": WAV, "path": None}},
    {"type": "audio", "audio": {"url": f"data:audio/wav;base64,{TEXT}"}},
    {"type": "audio", "audio": {"data": TEXT, "format": "wav"}},
    {"type": "audio", "audio": (8000, SAMPLES)},
]


@pytest.mark.parametrize("element", OPENAI)
def test_elements_of_conversations(expected, element):
    given = {**element}
    (message,) = clean_messages([{"role": "user", "content": [element, {"type": "text", "text": "?"}]}])
    assert [part["type"] for part in message["content"]] == ["audio", "text"] and element == given
    assert np.allclose(load_clip(chat_clips([message])[0]), expected, atol=1e-6)


def test_a_template_sees_them_all(tmp_path):
    small = AutoProcessor.from_pretrained(write_checkpoint(tmp_path, feature_size=8, chunk_length=2))
    chat = [{"role": "user", "content": [*OPENAI, {"type": "text", "text": "What?"}]}]
    text = small.apply_chat_template(chat, add_generation_prompt=True)
    assert text.count("<|AUDIO|>") == len(OPENAI) and TEXT[:50] not in text
    inputs = small.apply_chat_template(chat, tokenize=True, return_dict=True)
    features = inputs["input_features"]
    assert len(features) == len(OPENAI) and np.abs(features - features[0]).max() < 1e-3
    one = small(CLIP, (8000, SAMPLES))["input_features"]
    assert np.abs(one - features[0]).max() < 1e-3
    assert len(small(CLIP * 2, [(8000, SAMPLES), {"bytes": WAV}])["input_features"]) == 2


@pytest.mark.parametrize(
    "element, message",
    [
        ({"type": "input_audio", "input_audio": {"data": TEXT, "name": "x"}}, "not an object with data, name"),
        ({"type": "input_audio", "input_audio": TEXT}, '"input_audio" must be'),
        ({"type": "input_audio", "input_audio": {"format": "wav"}}, "object with format"),
        ({"type": "input_audio", "input_audio": {"data": 5}}, '"input_audio" must be'),
        ({"type": "audio_url", "audio_url": {"url": "a", "uri": "b"}}, "not an object with url, uri"),
        ({"type": "audio_url", "audio_url": {"url": 3}}, '"audio_url" is a URL'),
        ({"type": "audio_url", "audio_url": "a", "input_audio": {"data": TEXT}}, "names 2 clips"),
        ({"type": "input_audio"}, "names 0 clips"),
        ({"type": "text", "input_audio": {"data": TEXT}}, "type 'text'"),
        ({"type": "x" * 500, "text": TEXT}, "type 'x+…'"),
    ],
)
def test_wrong_elements(element, message):
    with pytest.raises(ValueError, match=message) as raised:
        chat_clips(clean_messages([{"role": "user", "content": [element]}]))
    assert TEXT[:200] not in str(raised.value) and len(str(raised.value)) < 600


def test_data_of_a_request_never_opens_a_file(path):
    for data in (str(path), path.as_uri()):
        messages = clean_messages(
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data}}]}]
        )
        with pytest.raises(AudioError, match="base64|not audio"):
            load_clip(chat_clips(messages)[0])


def test_long_values_are_not_repeated_by_the_schema():
    long = "x" * 5000
    for item in (
        *({"audio": "a.wav", "text": [long]}, {"audio": "a.wav", long: 1}, {"inputs": {"audio": "a"}, long: 1}),
        *({"inputs": {"audio": "a"}, "parameters": long}, {"input_audio": long}, {"audio_url": {"url": 1, long: 2}}),
    ):
        with pytest.raises(ValueError) as raised:
            task_schema(item)
        assert long[:500] not in str(raised.value)
    for messages in ([{"role": "user", "content": np.zeros(9999)}], [{"role": "user", "text": long}], [long], [None]):
        with pytest.raises(ValueError) as raised:
            clean_messages(messages)
        assert long[:500] not in str(raised.value) and "0. 0." not in str(raised.value)


def test_manifests_and_tables(path, expected):
    import json

    lines = [
        *({"audio": {"path": "clip.wav"}}, {"audio": {"bytes": TEXT, "path": None}}, {"audio": f"data:;base64,{TEXT}"}),
        *({"audio": {"array": SAMPLES.tolist(), "sampling_rate": 8000}}, {"input_audio": {"data": TEXT}}),
        *({"audio_url": {"url": f"data:;base64,{TEXT}"}}, {"audio": [SAMPLES.tolist(), 8000]}, {"audio": TEXT}),
    ]
    manifest = path.parent / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({**line, "answer": "x", "text": "?"}) + "\n" for line in lines))
    for example in jsonl_examples(manifest):
        assert np.allclose(example.samples(), expected, atol=1e-6)
    manifest.write_text("".join(json.dumps({**line, "text": "?"}) + "\n" for line in lines))
    items = read_manifest(manifest).items
    assert [item.error for item in items] == [None] * len(lines)
    for item in items:
        (clip,) = item.clips
        assert np.allclose(load_clip(resolve_clip(clip, str(path.parent))), expected, atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.05, -1.0, 0.9])
def test_silence_is_judged_without_the_mean(level):
    rng = np.random.default_rng(0)
    still = np.full(RATE, level, np.float32)
    assert is_silent(still)
    assert is_silent(still + rng.uniform(-4e-5, 4e-5, RATE).astype(np.float32))
    assert not is_silent(still + 1e-3 * tone(1))

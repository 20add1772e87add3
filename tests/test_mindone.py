"""MindONE's parts are imported without its models, MindONE is whole for who imports it besides, and its own Qwen2-Audio
is served by what serves ours."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from helpers import (
    PAD,
    QWEN2_AUDIO,
    audio_tokens,
    batch,
    clips,
    prompt,
    qwen2_audio_cases,
    relative_error,
    tiny_config,
    to_torch,
    torch_model,
)
from mindone_on_cpu import STAND_INS, mindone_on_cpu
from mindspore import Tensor, mint, ops
from mindspore.mint.nn import functional
from transformers import Qwen2AudioForConditionalGeneration as TorchQwen2Audio

from mindone_audio import AutoProcessor, Qwen2AudioForConditionalGeneration, load_audio, to_mindspore
from mindone_audio.checkpoints import demo_checkpoint

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 5e-4  # of MindONE's own tests, in float32

BASE = "from mindone_audio.backbone.pretrained_model import PreTrainedModel as Base"
OURS = "from mindone_audio import AutoProcessor as OurProcessor, Qwen2AudioForConditionalGeneration as Ours"
FEW = """
import sys
assert sum(name.startswith("mindone.transformers") for name in sys.modules) < 100 and "sklearn" not in sys.modules
"""
CLASS = "from mindone.transformers import Qwen2AudioForConditionalGeneration"
MODULE = "from mindone.transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioForConditionalGeneration"
PEFT = """
from mindone_audio.adapters import mindone_peft
assert "sklearn" not in __import__("sys").modules
import mindone.peft as peft
assert peft.__version__ == mindone_peft.VERSION == peft.peft_model.__version__
assert peft.PeftModel is mindone_peft.PeftModel and peft.LoraConfig is mindone_peft.LoraConfig
assert peft.tuners.lora.Linear is mindone_peft.PeftLoraLinear and peft.get_peft_model and peft.AutoPeftModel
"""
THREADS = """
from concurrent.futures import ThreadPoolExecutor
def theirs(_):
    from mindone.transformers import Qwen2AudioForConditionalGeneration
    return Qwen2AudioForConditionalGeneration
with ThreadPoolExecutor(2) as threads:
    assert len(set(threads.map(theirs, range(2)))) == 1
"""
WHOLE = """
import mindone.transformers as whole
from mindone.transformers import AutoModel, AutoProcessor, PreTrainedModel, Qwen2AudioForConditionalGeneration
from mindone.transformers.generation import LogitsProcessorList
from mindone.transformers.models.qwen2_audio import modeling_qwen2_audio
assert whole.PreTrainedModel is PreTrainedModel is Base is whole.modeling_utils.PreTrainedModel
assert Qwen2AudioForConditionalGeneration is modeling_qwen2_audio.Qwen2AudioForConditionalGeneration is not Ours
assert issubclass(Qwen2AudioForConditionalGeneration, Base) and issubclass(Ours, Base)
assert AutoProcessor is whole.AutoProcessor is not OurProcessor
assert whole.__version__ == "4.57.1" and "LogitsProcessorList" in dir(whole.generation)
assert whole.generation.configuration_utils and whole.generation.GenerationMixin and whole.pipelines.pipeline
"""


LONG = pytest.mark.slow, pytest.mark.long


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(f"{BASE}\n{FEW}\n{OURS}\n{THREADS}{WHOLE}", id="ours first"),
        pytest.param(f"{OURS}\n{BASE}\n{MODULE}\n{WHOLE}", id="ours first, then a model's module", marks=LONG),
        pytest.param(f"{CLASS}\n{BASE}\n{OURS}\n{WHOLE}", id="ours last", marks=LONG),
        pytest.param(f"{OURS}\n{PEFT}\n{BASE}\n{WHOLE}", id="ours first, then mindone.peft", marks=LONG),
        pytest.param(f"{CLASS}\n{BASE}\n{OURS}\n{PEFT.replace('not in', 'in')}", id="mindone.peft last"),
    ],
)
def test_both_are_of_the_same_classes(program):
    """Beside PyTorch in the first order, without it, as users have it, in the others."""
    environment = os.environ | ({} if FEW in program else {"USE_TORCH": "0"})
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr


_random = np.random.default_rng(0)
X = _random.normal(size=(3, 5)).astype(np.float32)
IDS = _random.integers(0, 3, (2, 4)).astype(np.int32)
SOUND, KERNEL = (_random.normal(size=shape).astype(np.float32) for shape in ((2, 3, 9), (4, 3, 2)))
WEIGHT, BIAS = X[0] + 1, X[1, :4]
CERTAIN = np.eye(5, dtype=np.float32)[[4, 0, 2]]

# Each is called with `mint` or `torch`, its functions of networks, and `t`, which makes a tensor of an array.
OPERATIONS = {
    "arange": lambda m, f, t: (m.arange(4), m.arange(2, 9, 3), m.arange(0, 1, 0.25), m.arange(3).float()),
    "argmax": lambda m, f, t: (m.argmax(t(X), dim=-1), m.argmax(t(X)), m.argmax(t(X), dim=0, keepdim=True)),
    "avg_pool1d": lambda m, f, t: (f.avg_pool1d(t(SOUND), 2, 2), f.avg_pool1d(t(SOUND), 3), f.avg_pool1d(t(X), 2, 1)),
    "cat": lambda m, f, t: (m.cat([t(IDS), m.arange(8).reshape(2, 4)], dim=-1), m.cat((t(X), t(X)))),
    "clone": lambda m, f, t: (m.clone(t(X)), t(IDS).clone()),
    "conv1d": lambda m, f, t: (
        f.conv1d(t(SOUND), t(KERNEL)),
        f.conv1d(t(SOUND), t(KERNEL), t(BIAS), stride=2, padding=1, dilation=3),
    ),
    "cumsum": lambda m, f, t: (m.cumsum(t(IDS), -1), m.cumsum(t(X), dim=0)),
    "embedding": lambda m, f, t: f.embedding(t(IDS), t(X)),
    "full": lambda m, f, t: (m.full((2, 3), 1.5), m.full((2,), True), m.full([1, 2], 3, dtype=t(IDS).dtype)),
    "gelu": lambda m, f, t: (f.gelu(t(X)), f.gelu(t(X), approximate="tanh")),
    "layer_norm": lambda m, f, t: (f.layer_norm(t(X), (5,)), f.layer_norm(t(X), (5,), t(WEIGHT), t(X[1]), 1e-3)),
    "masked_fill_": lambda m, f, t: (x := t(X), x.masked_fill_(x > 0, -1.0)),
    "multinomial": lambda m, f, t: m.multinomial(t(CERTAIN), num_samples=1),
    "ones_like": lambda m, f, t: (m.ones_like(t(X)), m.ones_like(t(IDS), dtype=t(X).dtype)),
    "pad": lambda m, f, t: (f.pad(t(IDS), (1, 2), value=7), f.pad(t(X), (0, 1, 2, 0))),
    "repeat_interleave": lambda m, f, t: (m.repeat_interleave(t(X), 2, dim=0), m.repeat_interleave(t(IDS), 3)),
    "rms_norm": lambda m, f, t: (
        ops.rms_norm(t(X), t(WEIGHT), epsilon=1e-3)[0] if m is mint else f.rms_norm(t(X), (5,), t(WEIGHT), 1e-3)
    ),
    "sort": lambda m, f, t: (*m.sort(t(X)), *m.sort(t(IDS), dim=0, descending=True, stable=True)),
    "stack": lambda m, f, t: (m.stack([t(X), t(X)]), m.stack((t(IDS), t(IDS)), dim=-1)),
    "topk": lambda m, f, t: (*m.topk(t(X), 2), *m.topk(t(X), k=1, dim=0, largest=False)),
    "where": lambda m, f, t: (*m.where(t(X) > 0), m.where(t(X) > 0, t(X), 0.0)),
    "zeros_like": lambda m, f, t: (m.zeros_like(t(X)), m.zeros_like(t(IDS))),
}


def test_every_stand_in_is_compared():
    assert set(OPERATIONS) == {name for _, name in STAND_INS}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_stand_in_computes_what_pytorch_does(name):
    with mindone_on_cpu():
        actual = OPERATIONS[name](mint, functional, lambda array: Tensor(array.copy()))
    expected = OPERATIONS[name](torch, torch.nn.functional, lambda array: torch.tensor(array))
    actual, expected = (value if isinstance(value, tuple) else (value,) for value in (actual, expected))
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected):
        ours, theirs = ours.asnumpy(), theirs.numpy()
        assert ours.shape == theirs.shape and ours.dtype.kind == theirs.dtype.kind
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_the_stand_ins_leave_nothing_behind(tmp_path, monkeypatch):
    (tmp_path / "imported_meanwhile.py").write_text("from mindspore.mint import arange\nfrom mindspore import mint\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = {place: getattr(*place) for place in STAND_INS}
    own = set(vars(Tensor))
    with pytest.raises(ZeroDivisionError), mindone_on_cpu():
        import imported_meanwhile

        assert imported_meanwhile.arange is imported_meanwhile.mint.arange is STAND_INS[mint, "arange"]
        assert all(getattr(*place) is stand_in for place, stand_in in STAND_INS.items())
        raise ZeroDivisionError
    assert {place: getattr(*place) for place in STAND_INS} == before and set(vars(Tensor)) == own
    assert imported_meanwhile.arange is before[mint, "arange"]
    del sys.modules["imported_meanwhile"]


def load_all(folder: Path) -> tuple:
    """PyTorch's, MindONE's and our model of one checkpoint, in float32."""
    from mindone.transformers import Qwen2AudioForConditionalGeneration as MindONEQwen2Audio

    ours = Qwen2AudioForConditionalGeneration.from_pretrained(folder)
    with mindone_on_cpu():
        theirs = MindONEQwen2Audio.from_pretrained(folder, attn_implementation="eager", mindspore_dtype=ms.float32)
    assert type(theirs) is MindONEQwen2Audio and not isinstance(ours, MindONEQwen2Audio)
    torch_eager = {"attn_implementation": "eager", "dtype": torch.float32}
    return TorchQwen2Audio.from_pretrained(folder, **torch_eager).eval(), theirs, ours


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The three models of a variant's checkpoint, by the variant's name; each is loaded once."""
    loaded = {}

    def load(variant: str) -> tuple:
        if variant not in loaded:
            folder = tmp_path_factory.mktemp(variant)
            torch_model(tiny_config(**QWEN2_AUDIO[variant])).save_pretrained(folder)
            loaded[variant] = load_all(folder)
        return loaded[variant]

    return load


@pytest.fixture(scope="module")
def trained():
    """The three models of the bundled checkpoint."""
    return load_all(demo_checkpoint())


def assert_logits_agree(models: tuple, inputs: dict) -> None:
    """Wherever the prompt is no padding, whose logits mean nothing."""
    reference, theirs, ours = models
    with torch.no_grad():
        expected = reference(**to_torch(inputs)).logits.numpy()
    tensors = to_mindspore(inputs, dtype=theirs.dtype)
    with mindone_on_cpu():
        actual = theirs(**tensors).logits.asnumpy()
    by_us = ours(**tensors).logits.asnumpy()
    heard = inputs["attention_mask"] == 1
    assert relative_error(actual[heard], expected[heard]) < TOLERANCE
    assert relative_error(by_us[heard], expected[heard]) < TOLERANCE
    assert relative_error(by_us[heard], actual[heard]) < TOLERANCE


def assert_tokens_agree(models: tuple, inputs: dict, **settings) -> Tensor:
    """The greedy tokens of the three are equal; returns MindONE's as they come, after their prompts."""
    reference, theirs, ours = models
    tensors, settings = to_mindspore(inputs, dtype=theirs.dtype), {"do_sample": False, **settings}
    with torch.no_grad():
        expected = reference.generate(**to_torch(inputs), **settings).numpy()
    with mindone_on_cpu():
        tokens = theirs.generate(**tensors, **settings)
    np.testing.assert_array_equal(tokens.asnumpy(), expected)
    np.testing.assert_array_equal(ours.generate(**tensors, **settings).asnumpy(), expected)
    return tokens


def right_padded() -> dict:
    return {**batch([prompt([1, "a40", 9], 2), prompt([4, "a17", 3], 3)], "right"), **clips([40, 17], 2)}


@pytest.mark.parametrize(
    "variant, case",
    [*(("grouped", case) for case in (*qwen2_audio_cases(), "right padded")), ("tied", "batch"), ("odd", "batch")],
)
def test_logits_three_ways(tiny, variant, case):
    inputs = {**qwen2_audio_cases(), "right padded": right_padded}[case]()
    assert_logits_agree(tiny(variant), inputs)


def test_tokens_three_ways(tiny):
    """A batch of unequal prompts with unequal clips, padded on the left: padded on the right, MindONE and PyTorch go on
    after the padding."""
    assert_tokens_agree(tiny("grouped"), qwen2_audio_cases()["batch"](), max_new_tokens=6, pad_token_id=PAD)


def test_one_placeholder_a_clip_is_not_for_mindone(tiny):
    """Placeholders that the model shall multiply: ours does, as PyTorch's. MindONE 0.5's class calls `mint.zeros` with
    several sizes, which MindSpore's takes on no device. So it does too for clips of a single embedding (of 3 to 6
    frames, about 60 ms), where no other clip in the batch has more.

    Our processor multiplies them itself, and so what it returns for longer clips never comes there.
    """
    reference, theirs, ours = tiny("grouped")
    assert audio_tokens(6) == 1 and audio_tokens(7) == 2
    for inputs in (
        {**batch([prompt([3, "a", 5, "a", 2], 7), prompt([2, "a", 3], 8)]), **clips([40, 13, 27], 3)},
        {**batch([prompt([3, "a6", 5], 7)]), **clips([6], 3)},
    ):
        tensors = to_mindspore(inputs, dtype=theirs.dtype)
        with torch.no_grad():
            expected = reference(**to_torch(inputs))
        heard = (expected.attention_mask == 1).numpy()
        assert relative_error(ours(**tensors).logits.asnumpy()[heard], expected.logits.numpy()[heard]) < TOLERANCE
        with mindone_on_cpu(), pytest.raises(TypeError, match="zeros"):
            theirs(**tensors)
    longer = {**batch([prompt([3, "a6", 5], 7), prompt([2, "a9", 3], 8)]), **clips([6, 9], 3)}
    assert_logits_agree(tiny("grouped"), longer)


def test_the_loss_is_not_for_mindone(tiny):
    """MindONE 0.5's class calls `Tensor.size`, which is a number in MindSpore, on every device; ours is PyTorch's."""
    reference, theirs, ours = tiny("grouped")
    inputs = qwen2_audio_cases()["three clips"]()
    inputs["labels"] = inputs["input_ids"]
    with torch.no_grad():
        expected = reference(**to_torch(inputs)).loss.item()
    assert ours(**to_mindspore(inputs)).loss.item() == pytest.approx(expected, rel=TOLERANCE)
    with mindone_on_cpu(), pytest.raises(TypeError, match="not callable"):
        theirs(**to_mindspore(inputs))


def test_our_processor_serves_mindones_class(trained):
    """`load_audio`, our processor and `to_mindspore` give it what it takes, unchanged; our `batch_decode` takes its
    tokens; and it says what ours and PyTorch's say.

    One prompt has one placeholder and nothing around it, as people write it: the processor completes it.
    """
    _, theirs, _ = trained
    processor, audio = AutoProcessor.from_pretrained(demo_checkpoint()), ROOT / "examples" / "audio"
    prompts = [
        "<|AUDIO|>What does the person say?",
        "<|audio_bos|><|AUDIO|><|audio_eos|>Generate the caption in English:",
    ]
    clips = [load_audio(audio / "spoken_command.wav"), load_audio(audio / "three_beeps.wav")]
    arrays = processor(text=prompts, audio=clips)
    for mask in ("attention_mask", "feature_attention_mask"):
        assert len(set(arrays[mask].sum(-1))) == 2
    inputs = to_mindspore(arrays, dtype=theirs.dtype)
    assert set(inputs) <= set(inspect.signature(type(theirs).construct).parameters)
    length, frames = inputs.input_ids.shape[1], processor.feature_extractor.nb_max_frames
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in inputs.items()} == {
        "input_ids": (ms.int32, (2, length)),
        "attention_mask": (ms.int32, (2, length)),
        "input_features": (theirs.dtype, (2, processor.feature_extractor.feature_size, frames)),
        "feature_attention_mask": (ms.int32, (2, frames)),
    }
    assert_logits_agree(trained, dict(arrays))
    tokens = assert_tokens_agree(trained, dict(arrays), max_new_tokens=5)
    answers = processor.batch_decode(tokens[:, length:], skip_special_tokens=True)
    assert answers == ["open the door", "Three beeps."]
    assert all(answer in text for text, answer in zip(processor.batch_decode(tokens), answers))

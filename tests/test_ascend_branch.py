"""The graphs of an NPU on this CPU: the same tokens, in float32 and float16, and bfloat16's types as far as they go."""

import functools
import re

import mindspore as ms
import numpy as np
import pytest
from ascend_branch import OLD_KERNELS, as_on_ascend, graphs_of, primitives, read_graphs
from families import ROWS
from helpers import PAD, relative_error, tiny_config
from helpers_bodies import BODIES
from mindspore import ops as msops

from mindone_audio import AutoModelForAudioTextToText, Qwen2AudioForConditionalGeneration, pipeline
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.machine import device
from mindone_audio.weights.hub import CheckpointError

# One of each architecture, and of how weights are stored.
FAST = ("qwen2_audio grouped", "ultravox_qwen3")
SLOW = (
    *("voxtral grouped", "audioflamingo3", "qwen2_5_omni grouped", "phi4_multimodal adapter", "glmasr", "qwen3_asr"),
    *("ichigo llama3 positions", "qwen2_audio_nf4_double"),
)
assert {row.name for row in ROWS} >= {*FAST, *SLOW}


@pytest.fixture
def ascend():
    with as_on_ascend():
        yield


def tokens(model, recording, count: int, **settings) -> list[list[int]]:
    settings = {"max_new_tokens": count, "pad_token_id": PAD, "do_sample": False, **settings}
    width = recording.inputs["input_ids"].shape[1]
    return model.generate(**recording.inputs, **settings).asnumpy()[:, width:].tolist()


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[] if row.name in FAST else pytest.mark.slow, id=row.name)
        for row in ROWS
        if row.name in (*FAST, *SLOW)
    ],
)
def test_tokens_are_those_of_pytorch(row, ascend, tmp_path):
    """Those of the CPU's branch are too, see test_families."""
    folder, recordings = row.load(tmp_path)
    model = AutoModelForAudioTextToText.from_pretrained(folder, mindspore_dtype=ms.float32)
    assert model.packed_weights is None  # parts of one memory are for a CPU
    expected = recordings["batch"].arrays["tokens"]
    assert tokens(model, recordings["batch"], expected.shape[1]) == expected.tolist()
    assert all(slots.cache.flat for slots in model._engines[True]._slots.values())


def test_half_precision_says_what_single_says(ascend):
    """The bundled checkpoint in float16, which a CPU can compute, as on a chip without bfloat16."""
    pipe = pipeline(model=demo_checkpoint(), mindspore_dtype=ms.float16)
    assert pipe.model.dtype == pipe.model.audio_dtype == ms.float16
    assert pipe("examples/audio/siren.ogg", "What's that sound?")["generated_text"] == "It is a siren."


@pytest.mark.parametrize("half", ["audio_tower", "language_model"])
def test_parts_in_two_dtypes(half, ascend, tmp_path):
    folder, recordings = ROWS[0].load(tmp_path)
    dtypes = {half: ms.float16, "": ms.float32}
    model = AutoModelForAudioTextToText.from_pretrained(folder, mindspore_dtype=dtypes)
    for name, parameter in model.parameters_and_names():
        assert (parameter.dtype == ms.float16) == (name.startswith("language_model") == (half == "language_model"))
    recording = recordings["three clips"]
    error = relative_error(model(**recording.inputs).logits.asnumpy(), recording.arrays["logits"])
    assert 1e-5 < error < 2e-2  # PyTorch in float32 with the weights rounded to float16: 5e-3
    if half == "language_model":  # whose graphs take what is encoded in the other dtype
        assert len(tokens(model, recording, 2)[0]) == 2


# One process compiles them all, since it takes longer to start than to compile one of them.
IN_BFLOAT16 = """
from pathlib import Path
import mindspore as ms, numpy as np
from mindspore import Tensor
import helpers_bodies, helpers_seamless, helpers_speecht5, helpers_whisper
from ascend_branch import as_on_ascend
from helpers import tiny_config
from mindone_audio import Qwen2AudioForConditionalGeneration
from mindone_audio.generation import engine
from mindone_audio.models.seamless_m4t_v2 import speaking as saying, units
from mindone_audio.models.seamless_m4t_v2.model import SeamlessM4Tv2ForTextToSpeech, SeamlessM4Tv2Model
from mindone_audio.models.seamless_m4t_v2.text_encoder import EncodeText
from mindone_audio.models.speecht5 import speaking
from mindone_audio.models.speecht5.text_to_speech import SpeechT5ForTextToSpeech
from mindone_audio.models.speecht5.vocoder import SpeechT5HifiGan, Vocode
from mindone_audio.models.whisper.alignment import Attention
from mindone_audio.models.whisper.model import WhisperForConditionalGeneration

def call(graph, *arguments):
    try:  # a CPU has no kernel for bfloat16, which it says when the graph's types are settled
        graph(*arguments)
    except TypeError as error:
        assert "Kernel select failed" in str(error), error

def halved(*models):
    for model in models:
        for parameter in model.get_parameters():
            parameter.set_dtype(ms.bfloat16)
    return models[0]

whole = lambda *shape: Tensor(np.zeros(shape, np.int32))
floats = lambda *shape: Tensor(np.zeros(shape), ms.bfloat16)

def qwen2_audio():
    model = halved(Qwen2AudioForConditionalGeneration(tiny_config()))
    made = engine.Engine(model, compiled=True)
    call(made.graph(engine.EncodeAudio(model), "the encoder"), floats(1, 16, 40), Tensor([40], ms.int32))
    slots, width = made.slots(1, 512, True), engine.CHUNK
    call(slots.step, Tensor([[1]], ms.int32), Tensor(3, ms.int32), whole(1, 1))
    inputs = whole(1, width), whole(), whole(1, width), whole(engine.PACKED), floats(1, width, 48), whole(1, width)
    for first in (True, False):
        call(slots.prefill(width, first), *inputs)

def whisper():
    model = halved(WhisperForConditionalGeneration(helpers_whisper.tiny_config()))
    made = engine.Engine(model, compiled=True)
    slots, rows = made.slots(1, 512, True), floats(20, 24)
    call(made.graph(engine.WriteContext(model.language_model, slots.context), "the context"), rows)
    call(slots.step, Tensor([[1]], ms.int32), Tensor(3, ms.int32), whole(1, 1))
    call(slots.prefill(48, True), whole(1, 48), whole(), whole(1, 48), whole(engine.PACKED))
    call(made.graph(Attention(model, ((1, 0), (2, 3)), 64), "times"), whole(1, 64), rows)

def speech():
    vocoder = SpeechT5HifiGan(helpers_speecht5.vocoder().config)
    model = halved(SpeechT5ForTextToSpeech(helpers_speecht5.config()), vocoder)
    made = speaking.SpeechEngine(model, compiled=True)
    slots = made.place(2, 20, 200)
    call(slots.encode, whole(2, 32), whole(2))
    call(slots.step, floats(2, 10), whole(1), floats(2, 512), floats(2, 1, 14), whole(2))
    call(made.graph(speaking.SmoothFrames(model), "the postnet"), floats(1, 64, 10), whole(1))
    call(made.graph(Vocode(vocoder.vocoder), "the vocoder"), floats(1, 32, 10), whole(1))

def translated_units():
    model = halved(SeamlessM4Tv2ForTextToSpeech(helpers_seamless.config()))
    made, width = engine.Engine(model, compiled=True), model.config.hidden_size
    read = saying.ReadTranslation(model, 32)
    call(made.graph(read, "a translation"), whole(1, 32), whole(1), floats(40, width), whole(1))
    call(made.graph(units.Spell(model.t2u_model), "characters"), floats(1, 64, width), whole(1, 64), whole(1))
    call(made.graph(units.ChooseUnits(model.t2u_model), "units"), floats(1, 64, width), whole(1))
    call(made.graph(saying.SoundUnits(model.vocoder), "sound"), whole(1, 32), whole(1), whole(1), whole(1))

def translation():
    model = halved(SeamlessM4Tv2Model(helpers_seamless.config()))
    made = model.engine()
    slots = made.slots(1, 512, True)
    call(made.graph(EncodeText(model), "a text"), whole(1, 16), whole(1))
    call(made.graph(engine.EncodeAudio(model), "a clip"), floats(1, 160, 64), whole(1))
    call(made.graph(engine.WriteContext(model.language_model, slots.context), "the context"), floats(256, 24))
    call(slots.step, Tensor([[1]], ms.int32), Tensor(3, ms.int32), whole(1, 1))
    call(slots.prefill(48, True), whole(1, 48), whole(), whole(1, 48), whole(engine.PACKED))

def bodies():
    helpers_bodies.run_all(ms.bfloat16)

for part in (qwen2_audio, whisper, speech, translated_units, translation, bodies):
    with as_on_ascend():
        part()
    own = Path(FOLDER, part.__name__)
    own.mkdir()
    for file in Path(FOLDER).glob("*.ir"):
        file.rename(own / file.name)
"""


@pytest.fixture(scope="module")
def in_bfloat16(tmp_path_factory):
    """The graphs of each part in bfloat16, by its name."""
    folder = tmp_path_factory.mktemp("graphs")
    graphs_of(f"FOLDER = {str(folder)!r}\n{IN_BFLOAT16}", folder)
    return lambda part: read_graphs(folder / part)


def float_types(graphs: list[str]) -> dict[str, set[frozenset]]:
    """Which types of floats the inputs of each primitive have together."""
    types: dict[str, set[frozenset]] = {}
    for graph in graphs:
        for name, inputs in re.findall(r"= (?:PrimFunc_)?([A-Z]\w*)\(.*?\n +: \((.*)\) -> ", graph):
            floats = frozenset(re.findall(r"Tensor\[((?:B?Float)\d+)", inputs))
            types.setdefault(name, set()).add(floats)
    return types


def check_types(types: dict[str, set[frozenset]]) -> None:
    for name, sets in types.items():
        if name not in ("Depend", "MakeTuple", "Return", "UpdateState"):
            assert all(len(floats) <= 1 for floats in sets), (name, sets)
        assert "Float64" not in set().union(*sets), name


def test_types_in_bfloat16(in_bfloat16):
    """No operation has floats of two types, none is float64, and sums of scores and squares are float32."""
    graphs = in_bfloat16("qwen2_audio")
    assert len(graphs) == 4
    types = float_types(graphs)
    check_types(types)
    for name in ("MatMul", "BatchMatMul", "Erf", "SiLU", "ScatterUpdate"):
        assert types[name] == {frozenset({"BFloat16"})}, name
    for name in ("Softmax", "MeanExt", "Rsqrt", "Argmax"):
        assert types[name] == {frozenset({"Float32"})}, name
    assert OLD_KERNELS & primitives(graphs) == set()


def test_types_of_whisper_in_bfloat16(in_bfloat16):
    graphs = in_bfloat16("whisper")
    assert len(graphs) == 4
    types = float_types(graphs)
    check_types(types)
    for name in ("MatMul", "Erf", "ScatterUpdate"):
        assert types[name] == {frozenset({"BFloat16"})}, name
    assert types["Softmax"] == types["MeanExt"] == {frozenset({"Float32"})}
    assert OLD_KERNELS & primitives(graphs) == set()


def test_types_of_speech_in_bfloat16(in_bfloat16):
    """The batch norm of the postnet and the probability of the end are float32."""
    graphs = in_bfloat16("speech")
    assert len(graphs) == 4
    types = float_types(graphs)
    check_types(types)
    assert types["MatMul"] == {frozenset({"BFloat16"})}
    for name in ("Softmax", "MeanExt", "Rsqrt"):
        assert types[name] == {frozenset({"Float32"})}, name
    assert OLD_KERNELS & primitives(graphs) == set()


def test_types_of_units_in_bfloat16(in_bfloat16):
    """The best unit is that of scores in float32."""
    graphs = in_bfloat16("translated_units")
    assert len(graphs) == 4
    types = float_types(graphs)
    check_types(types)
    assert types["MatMul"] == {frozenset({"BFloat16"})}
    for name in ("Softmax", "MeanExt", "Rsqrt", "Argmax"):
        assert types[name] == {frozenset({"Float32"})}, name
    assert OLD_KERNELS & primitives(graphs) == set()


def test_types_of_translation_in_bfloat16(in_bfloat16):
    graphs = in_bfloat16("translation")
    assert len(graphs) == 5
    types = float_types(graphs)
    check_types(types)
    for name in ("MatMul", "ScatterUpdate"):
        assert types[name] == {frozenset({"BFloat16"})}, name
    for name in ("Softmax", "MeanExt", "Rsqrt"):
        assert types[name] == {frozenset({"Float32"})}, name
    assert OLD_KERNELS & primitives(graphs) == set()


def test_types_of_the_bodies_in_bfloat16(in_bfloat16):
    """As for the models; the norm over time, whose sums are products, has some in float32."""
    graphs = in_bfloat16("bodies")
    assert len(graphs) == BODIES
    types = float_types(graphs)
    check_types(types)
    assert types["MatMul"] == {frozenset({"BFloat16"})}
    for name in ("Softmax", "MeanExt", "Rsqrt"):
        assert types[name] == {frozenset({"Float32"})}, name
    assert OLD_KERNELS & primitives(graphs) == set()


def test_values_that_became_infinite_do_not_stay(ascend):
    """A mask cannot hide NaN: the cache of the next generation is cleared, or overwritten whole."""
    model = Qwen2AudioForConditionalGeneration(tiny_config(text={"num_hidden_layers": 1}))
    ids = np.array([[3, 4, 5, 6], [7, 8, 9, 10]], np.int32)
    before = [model.generate(input_ids=ids[:rows], max_new_tokens=6).asnumpy() for rows in (1, 2)]
    for slots in model._engines[True]._slots.values():
        for table in (*slots.cache.keys, *slots.cache.values):
            msops.assign(table, ms.Tensor(np.full(table.shape, np.nan, np.float32)))
    after = [model.generate(input_ids=ids[:rows], max_new_tokens=6).asnumpy() for rows in (1, 2)]
    for one, other in zip(before, after):
        np.testing.assert_array_equal(one, other)


def test_an_array_may_be_changed_right_after_a_call(ascend):
    array = np.array([1.0], np.float32)
    tensor = device.tensor(array)
    array[:] = 2
    assert tensor.asnumpy().tolist() == [1.0]


def test_set_data_is_told_to_the_graphs(ascend):
    model = Qwen2AudioForConditionalGeneration(tiny_config(text={"num_hidden_layers": 1}))
    ids = np.array([[3, 4, 5, 6]], np.int32)
    model.generate(input_ids=ids, max_new_tokens=4)
    version = model.weights_version
    weight = model.language_model.lm_head.weight
    weight.set_data(ms.Tensor(-weight.asnumpy()))
    assert model.weights_version == version  # nothing tells on Ascend
    model.weights_changed()
    assert model.weights_version != version
    fresh = model.generate(input_ids=ids, max_new_tokens=4, compile=False).asnumpy()
    np.testing.assert_array_equal(model.generate(input_ids=ids, max_new_tokens=4).asnumpy(), fresh)


@pytest.mark.parametrize(("soc", "expected"), [("ascend310p", ms.float16), ("ascend910", ms.float16)])
def test_a_chip_without_bfloat16(soc, expected, ascend, monkeypatch, caplog):
    class Context:
        get_instance = staticmethod(lambda: Context)
        get_ascend_soc_version = staticmethod(lambda: soc)

    monkeypatch.setattr(device, "MSContext", Context)
    monkeypatch.setattr(device, "_log_once", functools.cache(device._log_once.__wrapped__))
    assert device.compute_dtypes() == (ms.float32, ms.float16)
    for _ in range(2):
        assert device.compute_dtype(ms.bfloat16) == expected
    assert [text for text in caplog.messages if "has no bfloat16: the weights are converted" in text] == caplog.messages
    assert len(caplog.messages) == 1
    soc = "ascend910b"
    assert device.compute_dtype(ms.bfloat16) == ms.bfloat16 and device.compute_dtypes()[-1] == ms.bfloat16


def test_a_value_beyond_float16_names_its_tensor(ascend, tmp_path):
    model = Qwen2AudioForConditionalGeneration(tiny_config())
    weight = model.language_model.model.layers[1].mlp.up_proj.weight
    values = weight.asnumpy().copy()
    values[3, 4] = -1e5
    weight.set_data(ms.Tensor(values))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'language_model.model.layers.1.mlp.up_proj.weight' has values that fl"):
        AutoModelForAudioTextToText.from_pretrained(tmp_path, mindspore_dtype=ms.float16)
    mixed = {"audio_tower": ms.float16, "": ms.float32}
    assert AutoModelForAudioTextToText.from_pretrained(tmp_path, mindspore_dtype=mixed).dtype == ms.float32


def test_a_part_that_is_not_there():
    with pytest.raises(ValueError, match="mindspore_dtype has no part 'decoder'"):
        AutoModelForAudioTextToText.from_pretrained(demo_checkpoint(), mindspore_dtype={"decoder": ms.float16})


@pytest.mark.parametrize("wrong", [-1, 97, 2**31 - 1])
def test_token_ids_beyond_the_vocabulary(wrong):
    """A CPU reads zeros there, an NPU anything."""
    model = Qwen2AudioForConditionalGeneration(tiny_config())
    with pytest.raises(ValueError, match=f"input_ids hold {wrong}, and this model has the tokens 0 to 96"):
        model.generate(input_ids=np.array([[3, wrong]]), max_new_tokens=1)


def test_kept_4_bit_weights_are_warned_of(ascend, caplog):
    AutoModelForAudioTextToText.from_pretrained("tests/goldens/qwen2_audio_nf4_plain", keep_quantized=True)
    assert "4 bits" in caplog.text and "keep_quantized" in caplog.text

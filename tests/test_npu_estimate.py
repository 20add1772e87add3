"""What docs/npu-estimate.md says is what the graphs have: the reader of dumps, its costs, and the page's numbers."""

import re
from collections import Counter
from pathlib import Path

import mindspore as ms
import npu_estimate
import numpy as np
import pytest
from ascend_branch import as_on_ascend, graphs_of
from graph_counts import Counts, extrapolated, read_graph
from mindspore import Tensor, nn
from mindspore import ops as msops
from transformers import Qwen2AudioConfig

from mindone_audio import Qwen2AudioForConditionalGeneration
from mindone_audio.backbone import ops
from mindone_audio.machine.chips import Speed, speed_by_name
from mindone_audio.proof import op_times
from mindone_audio.proof.kernel_cost import Array, Kernel, Work


class Known(nn.Cell):
    def construct(self, x, weight, table, rows):
        y = ops.linear(x, weight)
        return msops.softmax(y * y, -1), ops.embed(table, rows)


def floats(*shape: int) -> Tensor:
    return Tensor(np.ones(shape, np.float32))


def model(layers: int) -> Qwen2AudioForConditionalGeneration:
    audio = {"num_mel_bins": 16, "d_model": 24, "encoder_layers": layers, "encoder_attention_heads": 3}
    audio |= {"encoder_ffn_dim": 40, "max_source_positions": 20}
    text = {"model_type": "qwen2", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 72}
    text |= {"num_hidden_layers": layers, "num_attention_heads": 6, "num_key_value_heads": 2}
    return Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(audio, text, audio_token_index=90))


def compile_all(*models: int) -> None:
    """A known graph, a kernel as `doctor --ops --time` repeats it, and models of so many layers."""
    with as_on_ascend():
        ms.jit(Known().construct)(floats(3, 5), floats(7, 5), floats(100, 6), Tensor([[4, 2]], ms.int32))
        ms.jit(op_times._Repeated(ops.silu, 4).construct)(floats(2, 3))
        for layers in models:
            npu_estimate.compile_graphs(model(layers), 30, (1,), 40)


def dumped(folder: Path, *models: int) -> list[str]:
    script = f"import os; os.environ['USE_TORCH'] = '0'; import test_npu_estimate as t; t.compile_all(*{models})"
    found = graphs_of(script, folder)
    assert len(found) == 2 + 3 * len(models)
    return found


@pytest.fixture(scope="module")
def dumps(tmp_path_factory) -> list[str]:
    """The two that are known, and those of a clip, of a prefill and of a step with one layer."""
    return dumped(tmp_path_factory.mktemp("graphs"), 1)


CLIP, PREFILL, STEP = range(2, 5)


def test_a_known_graph(dumps):
    def wide(*shape):
        return Array("Float32", shape)

    y, rows = wide(3, 7), Array("Int32", (1, 2))
    counts = read_graph(dumps[0])
    assert counts.kernels == {
        Kernel("MatMul", (wide(3, 5), wide(7, 5)), (y,)): 1,
        Kernel("Mul", (y,), (y,)): 1,  # it reads y once
        Kernel("Softmax", (y,), (y,)): 1,
        Kernel("Gather", (wide(100, 6), rows), (wide(1, 2, 6),)): 1,
    }
    product, others = 4 * (3 * 5 + 7 * 5 + 3 * 7), 4 * 2 * 2 * 21
    gathered = 2 * 4 * 12 + 4 * 2  # two rows are read and written, and their numbers are read
    assert counts.work == Work(product + others + gathered, 2 * 3 * 5 * 7)


def test_doctor_times_as_many_kernels_as_it_divides_by(dumps):
    assert read_graph(dumps[1]).kernels == {Kernel("SiLU", (Array("Float32", (2, 3)),), (Array("Float32", (2, 3)),)): 4}


def test_layers_follow_from_one_and_two():
    add, mul = (Kernel(name, (), ()) for name in ("Add", "Mul"))
    one, two = Counts(Counter({add: 5, mul: 1}), held=100), Counts(Counter({add: 7, mul: 1}), held=130)
    assert extrapolated(one, two, 4) == Counts(Counter({add: 11, mul: 1}), held=190)
    with pytest.raises(ValueError, match="fewer kernels"):
        extrapolated(two, one, 9)


@pytest.mark.slow
def test_three_layers_follow_from_one_and_two(tmp_path):
    graphs = [read_graph(text) for text in dumped(tmp_path, 1, 2, 3)[2:]]
    for one, two, three in zip(graphs[:3], graphs[3:6], graphs[6:]):
        assert two.kernels.total() > one.kernels.total()
        assert extrapolated(one, two, 3) == three


def test_a_kernel_less_is_seen(dumps):
    text = dumps[STEP]
    before, after = read_graph(text), read_graph(text.replace("PrimFunc_MatMul(", "PrimFunc_Reshape(", 1))
    assert before.kernels.total() - after.kernels.total() == 1
    assert before.work.operations - after.work.operations == 2 * 48 * 48  # of the queries
    assert before.work.nbytes - after.work.nbytes == 2 * (48 * 48 + 48 + 48)


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("PrimFunc_SiLU(", "PrimFunc_Mystery(", "nobody has said what Mystery costs"),
        ("\n      : (<", "\n      ; (<", "nodes of another form"),
        ("\nsubgraph @", "\nsubgraph @\nsubgraph @", "graphs within the graph"),
    ],
)
def test_what_cannot_be_read_is_refused(dumps, written, instead, said):
    with pytest.raises(ValueError, match=said):
        read_graph(dumps[STEP].replace(written, instead, 1))


def test_what_would_be_fused(dumps):
    """No kernel that begins or ends such a group stands outside of one."""
    clip, prefill, step = (read_graph(dumps[graph]) for graph in (CLIP, PREFILL, STEP))
    for counts, families in (
        (clip, {"flash attention": "Softmax", "gelu": "Erf", "layer_norm": "Rsqrt"}),
        (prefill, {"flash attention": "Softmax", "rms_norm": "Rsqrt", "swiglu": "SiLU"}),
        (step, {"flash attention": "Softmax", "rms_norm": "Rsqrt", "swiglu": "SiLU"}),
    ):
        groups = Counter()
        for (family, _), number in counts.fused.items():
            groups[family] += number
        primitives = Counter(kernel.primitive for kernel in counts.kernels.elements())
        others = {} if counts is clip else {"rotary positions": 1, "one product for queries, keys, values": 1}
        assert groups == {family: primitives[primitive] for family, primitive in families.items()} | others
    row = 2 * 48
    assert step.fused["rms_norm", Work(3 * row, 0)] == 3  # x, the weight, and the result
    keys, query = 2 * 2 * 512 * 8, 2 * 6 * 8
    attention = Work(2 * keys + 2 * query + 4 * 512, 2 * 2 * 6 * 8 * 512)  # with its mask
    assert step.fused["flash attention", attention] == 1


def test_a_write_into_a_table():
    table, rows, values = Array("BFloat16", (1000, 8)), Array("Int32", (3,)), Array("BFloat16", (3, 8))
    assert Kernel("ScatterUpdate", (table, rows, values), (table,)).work == Work(4 * 3 + 2 * 2 * 24, 0)


def test_time_on_a_chip():
    speed = Speed(100.0, 1000.0, 0)
    assert Work(200, 1000).seconds(speed) == 2 and Work(200, 3000).seconds(speed) == 3
    kernels = {Kernel("Add", (Array("Int8", (50,)),), (Array("Int8", (50,)),)): 2}
    assert Counts(Counter(kernels)).floor(speed) == 2
    assert speed_by_name("Ascend910B3") == speed_by_name("910B3") != speed_by_name("910B4") is not None
    assert speed_by_name("310P3") is None


def page() -> tuple[str, str]:
    """The document's text and its tables."""
    text = npu_estimate.DOCUMENT.read_text(encoding="utf-8")
    tables = text.partition(npu_estimate.BEGIN)[2].partition(npu_estimate.END)[0]
    return text.replace(tables, ""), tables.strip()


def test_the_page_has_both_models_and_says_what_it_is():
    text, tables = page()
    assert [f"### {model.name}" in tables for model in npu_estimate.MODELS] == [True, True]
    assert "Nothing on this page was measured on an NPU" in text


def test_the_text_has_the_numbers_of_the_tables():
    text, tables = page()
    said = re.findall(r"(?<![\w.])([\d,.]*\d) (?:ms|GB|kernels|launches)\b", text.partition("## How it is counted")[0])
    known = set(re.findall(r"(?<![\w.])[\d,.]*\d", tables))
    assert len(said) > 10 and [number for number in said if number not in known] == []


def compile_timed() -> None:
    with as_on_ascend():
        for timed in op_times.kernels("BFloat16"):
            inputs = [op_times._filled(array) for array in timed.kernel.inputs]
            npu_estimate.compiled(ms.jit(op_times._Repeated(timed.run, 3).construct), *inputs)


@pytest.mark.slow
def test_doctor_times_the_kernels_that_it_names(tmp_path):
    """An interpreted function, or a second kernel, would be in the time."""
    dumps = graphs_of("import test_npu_estimate; test_npu_estimate.compile_timed()", tmp_path)
    for dump, timed in zip(dumps, op_times.kernels("BFloat16"), strict=True):
        assert read_graph(dump).kernels == {timed.kernel: 3}


@pytest.mark.slow
def test_the_tables_are_those_of_the_graphs():
    """`python scripts/npu_estimate.py` writes them again."""
    assert npu_estimate.estimate() == page()[1]

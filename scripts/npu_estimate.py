"""Estimate from our compiled graphs how fast two models can be on an Ascend 910B, and write it to docs/npu-estimate.md.

    python scripts/npu_estimate.py

MindSpore compiles the graphs in their version for an NPU and in bfloat16, with the published widths and one or two
layers, on any machine; the rest is arithmetic. No weights are needed, and nothing is run.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # runs from a checkout, whose tests have NPU graphs on a CPU

from ascend_branch import as_on_ascend, graphs_of  # noqa: E402
from benchmark.readme import rewrite  # noqa: E402
from graph_counts import BEGIN_OTHER, BEGIN_PRODUCT, FUSED, Counts, extrapolated, read_graph  # noqa: E402

from mindone_audio.machine.chips import SPEEDS  # noqa: E402
from mindone_audio.proof.op_times import kernels  # noqa: E402

DOCUMENT = ROOT / "docs" / "npu-estimate.md"
BEGIN, END = "<!-- estimate -->", "<!-- /estimate -->"
CHIPS = ("910B2", "910B3", "910B4")
CHIP = "910B3"  # whose floors say what a fused kernel changes
# Seconds that the host needs to hand a kernel over: measured for torch.add without graphs on a 910B2, by
# github.com/triton-lang/triton-ascend/issues/1675. MindSpore's graphs may need less.
HAND_OVER = 12.142e-6
TEXT = 20  # tokens of a prompt besides the clip's
LAYERS = 32  # of the encoders of both


@dataclass(frozen=True)
class Model:
    """A published model. make: of so many layers, its encoder and its decoder; clip: tokens of 30 s of audio."""

    name: str
    layers: int  # of the decoder
    clip: int
    make: Callable[[int], object]


def qwen2_audio(layers: int):
    from transformers import Qwen2AudioConfig

    from mindone_audio import Qwen2AudioForConditionalGeneration

    text = {"model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": layers}
    text |= {"vocab_size": 156032, "max_position_embeddings": 8192}
    audio = {"encoder_layers": layers}  # the rest of both is transformers' default
    return Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(audio, text, audio_token_index=151646))


def voxtral(layers: int):
    from transformers import VoxtralConfig

    from mindone_audio import VoxtralForConditionalGeneration

    # As published of Mistral Small 3, which Voxtral's is built on.
    text = {"model_type": "llama", "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": layers}
    text |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072}
    audio = {"num_hidden_layers": layers}
    return VoxtralForConditionalGeneration(VoxtralConfig(audio, text, audio_token_id=24))


MODELS = (Model("Qwen2-Audio-7B", 32, 750, qwen2_audio), Model("Voxtral-24B", 40, 375, voxtral))


# What is compiled


def compiled(graph: Callable, *arguments) -> None:
    """Call a graph for what is compiled of it: a CPU lacks kernels for bfloat16, which it says after that."""
    try:
        graph(*arguments)
    except (RuntimeError, TypeError) as error:
        if "Kernel select failed" not in str(error):
            raise


def compile_graphs(model, prompt: int, batches: Iterable[int], frames: int) -> None:
    """Compile the graphs that `generate` runs: of a clip, of each piece of its prompt, of a step of each batch.

    model: with parameters of any dtype, which need no values. frames: of the clip's log-mel.
    """
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor

    from mindone_audio.generation import engine

    def whole(*shape):
        return Tensor(np.zeros(shape, np.int32))

    def half(*shape):
        return ms.ops.zeros(shape, ms.bfloat16)

    for parameter in model.get_parameters():
        parameter.set_dtype(ms.bfloat16)
    made = engine.Engine(model, compiled=True)
    tower, decoder = model.audio_tower.config, model.language_model.config
    compiled(
        made.graph(engine.EncodeAudio(model), "a clip"), half(1, tower.num_mel_bins, frames), Tensor([frames], ms.int32)
    )
    positions = engine.cache_bucket(prompt + 1)
    widths = engine.pieces(prompt, engine.FIRST)
    for number, width in enumerate(widths):
        row, audio = whole(1, width), half(1, width, decoder.hidden_size)
        graph = made.slots(1, positions, True).prefill(width, sum(widths[: number + 1]))
        compiled(graph, row, whole(), row, whole(engine.PACKED), audio, row)
    for batch in batches:
        compiled(made.slots(batch, positions, False).step, whole(batch, 1), whole(), whole(batch, 1))


def compile_published() -> None:
    """Both models with one layer and with two, in this order."""
    from mindspore.nn.utils import no_init_parameters

    for model in MODELS:
        for layers in (1, 2):
            with as_on_ascend(), no_init_parameters():
                made = model.make(layers)
                compile_graphs(made, model.clip + TEXT, (1, 8), 3000)


# What is written


def table(rows: list[tuple]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def report(graphs: dict[str, dict[str, Counts]]) -> str:
    """The tables, of the counts of each model's graphs by their names."""
    parts = []
    for model, counts in graphs.items():
        clip, *others = counts.values()
        held = clip.held + max(count.held for count in others)
        floors = [f"floor, {chip}, ms" for chip in CHIPS]
        rows = [("what", "kernels", "GB", "TFLOP", *floors, "begin, ms", "hand over, ms", f"together, {CHIP}, ms")]
        for name, count in counts.items():
            total, work = sum(count.kernels.values()), count.work
            floors = [count.floor(SPEEDS[chip]) for chip in CHIPS]
            shown = [_ms(f) if held < SPEEDS[chip].memory else "too large" for f, chip in zip(floors, CHIPS)]
            numbers = f"{work.nbytes / 1e9:.3g}", f"{work.operations / 1e12:.3g}"
            begin, handed = count.begun(), total * HAND_OVER
            together = max(floors[CHIPS.index(CHIP)] + begin, handed)
            rows.append((name, f"{total:,}", *numbers, *shown, *map(_ms, (begin, handed, together))))
        memory = f"Weights and a cache for 8 sequences take {held / 1e9:.3g} GB."
        parts += [f"### {model}", memory, table(rows), fused_table(counts)]
    return "\n\n".join([*parts, "### The kernels that `doctor --ops --time` measures", kernel_table(graphs)])


def fused_table(counts: dict[str, Counts]) -> str:
    """What fused kernels would save of a clip with its prompt, and of a token."""
    clip, prompt, token, _ = counts.values()
    what = ("kernels", "device, ms", "host, ms")
    rows = [("fused", *(f"{name}: {part}" for name in ("a clip", "a token") for part in what))]
    for family in (*FUSED, "all of these"):
        cells = []
        for count in (clip + prompt, token):
            replaced = Counts(Counter())
            for (of, kernel), number in count.replaced.items():
                replaced.kernels[kernel] += number * (family in (of, "all of these"))
            fused = [(work, number) for (of, work), number in count.fused.items() if family in (of, "all of these")]
            fewer = sum(replaced.kernels.values()) - sum(number for _, number in fused)
            begin = sum((BEGIN_PRODUCT if work.operations else BEGIN_OTHER) * number for work, number in fused)
            least = sum(work.seconds(SPEEDS[CHIP]) * number for work, number in fused)
            saved = replaced.floor(SPEEDS[CHIP]) + replaced.begun() - least - begin
            cells += [f"{fewer:,}", _ms(saved), _ms(fewer * HAND_OVER)]
        rows.append((family, *cells))
    return table(rows)


def kernel_table(graphs: dict[str, dict[str, Counts]]) -> str:
    """The floors of what `op_times` measures, and how often the first model's graphs run it."""
    counts = next(iter(graphs.values()))
    rows = [("kernel and what it reads", *(f"floor, {chip}, µs" for chip in CHIPS), *(f"in {name}" for name in counts))]
    for timed in kernels("BFloat16"):
        often = [count.kernels[timed.kernel] for count in counts.values()]
        if not any(often):
            raise ValueError(f"no graph has the kernel {timed.kernel} that doctor measures: change op_times.kernels")
        rows.append((timed.kernel, *(f"{timed.kernel.work.seconds(SPEEDS[c]) * 1e6:.1f}" for c in CHIPS), *often))
    return table(rows)


def named(model: Model, one: list[Counts], two: list[Counts]) -> dict[str, Counts]:
    """The counts of a model's graphs with all layers, by what the tables call them."""
    clip = extrapolated(one[0], two[0], LAYERS)
    rest = [extrapolated(*pair, model.layers) for pair in zip(one[1:], two[1:], strict=True)]
    prompt = sum(rest[:-2], Counts())
    return {
        "encode 30 s": clip,
        f"prefill {model.clip + TEXT} tokens": prompt,
        "a token": rest[-2],
        "a token each of 8": rest[-1],
    }


def estimate() -> str:
    """Compile, count and write the tables."""
    with tempfile.TemporaryDirectory() as folder:
        texts = graphs_of("import npu_estimate; npu_estimate.compile_published()", Path(folder))
    counts, graphs = iter([read_graph(text) for text in texts]), {}
    for model in MODELS:
        from mindone_audio.generation import engine

        each = 1 + len(engine.pieces(model.clip + TEXT, engine.FIRST)) + 2
        one, two = ([next(counts) for _ in range(each)] for _ in range(2))
        graphs[model.name] = named(model, one, two)
    return report(graphs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--file", type=Path, default=DOCUMENT, help="that has the tables (default: docs/npu-estimate.md)"
    )
    options = parser.parse_args()
    before = options.file.read_text(encoding="utf-8")
    content = estimate()
    options.file.write_text(rewrite(before, content, BEGIN, END), encoding="utf-8")
    print(content)


if __name__ == "__main__":
    main()

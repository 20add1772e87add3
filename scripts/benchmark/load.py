"""`benchmark.py load`: how long a checkpoint takes from the disk to parameters, and how much memory meanwhile.

The checkpoint is made on the spot with random bfloat16 values and deleted afterwards. Every contender runs in a process
of its own after the files have been read once, so that all find them in the system's page cache.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmark.common import (
    BenchmarkError,
    Figure,
    add_common,
    at_least,
    check_common,
    cores,
    finish,
    machine,
    paired,
    plot,
)
from benchmark.processes import in_a_process, order, peak_memory, resident, show_progress

BLOCK = 1 << 25  # random values that are repeated

# Encoder: layers, width, heads, feed-forward width. Decoder: the same, key-value heads and vocabulary.
SIZES = {
    "tiny": {"encoder": (2, 64, 4, 128), "decoder": (2, 128, 4, 256, 2, 512)},
    "1.7b": {"encoder": (24, 1024, 16, 4096), "decoder": (24, 2048, 16, 5504, 16, 65536)},
    "7b": {"encoder": (32, 1280, 20, 5120), "decoder": (32, 4096, 32, 11008, 32, 156032)},  # Qwen2-Audio-7B's
}


def make_config(size: str):
    """A Qwen2Audio config of a named size."""
    from transformers import Qwen2AudioConfig

    encoder, decoder = SIZES[size]["encoder"], SIZES[size]["decoder"]
    audio = dict(zip(("encoder_layers", "d_model", "encoder_attention_heads", "encoder_ffn_dim"), encoder))
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    text = dict(zip((*names, "num_key_value_heads", "vocab_size"), decoder))
    text |= {"model_type": "qwen2", "tie_word_embeddings": False, "max_position_embeddings": 8192}
    return Qwen2AudioConfig(
        audio_config={"num_mel_bins": 128, "max_source_positions": 1500, **audio},
        text_config=text,
        audio_token_index=text["vocab_size"] - 1,
        torch_dtype="bfloat16",
    )


def empty_model(config):
    """Our model without memory for its parameters."""
    from mindspore.nn.utils import no_init_parameters

    from mindone_audio import Qwen2AudioForConditionalGeneration

    with no_init_parameters():
        return Qwen2AudioForConditionalGeneration(config)


def write_checkpoint(folder: Path, size: str, shards: int) -> int:
    """Write config, shards and index with random bfloat16 values of about 0.02; returns the number of parameters."""
    from mindone_audio.weights.parameters import INDEX_FILE, SINGLE_FILE

    config = make_config(size)
    config.save_pretrained(folder)
    shapes = {parameter.name: tuple(parameter.shape) for parameter in named_parameters(empty_model(config))}
    block = random_block()
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    groups: list[dict] = [{}]
    for name, shape in shapes.items():
        if sum(int(np.prod(s)) for s in groups[-1].values()) >= total / shards and len(groups) < shards:
            groups.append({})
        groups[-1][name] = shape
    files = [SINGLE_FILE] if shards == 1 else [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for file, group in zip(files, groups):
        write_safetensors(folder / file, group, block)
    if shards > 1:
        places = {name: file for file, group in zip(files, groups) for name in group}
        index = {"metadata": {"total_size": 2 * total}, "weight_map": places}
        (folder / INDEX_FILE).write_text(json.dumps(index))
    return total


def random_block() -> np.ndarray:
    """Bits of bfloat16 values."""
    block = np.random.default_rng(0).normal(0, 0.02, BLOCK).astype(np.float32)
    return (block.view(np.uint32) >> 16).astype(np.uint16)


def named_parameters(model):
    """The model's parameters, named by their place."""
    for prefix, cell in model.cells_and_names():
        for attribute, parameter in cell._params.items():
            parameter.name = f"{prefix}.{attribute}"
            yield parameter


def write_safetensors(file: Path, shapes: dict[str, tuple[int, ...]], block: np.ndarray) -> None:
    """A safetensors file of bfloat16 tensors filled with the values of `block` over and over."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            rest = int(np.prod(shape))
            while rest:
                count = min(rest, len(block))
                stream.write(memoryview(block[:count]))
                rest -= count


def load_ours(folder: Path):
    """This package, in bfloat16 on any device."""
    import mindspore as ms
    from transformers import Qwen2AudioConfig

    from mindone_audio.weights.parameters import load_parameters

    model = empty_model(Qwen2AudioConfig.from_pretrained(folder))
    yield
    load_parameters(model, folder, lambda name, stored: ms.bfloat16)
    yield


def load_plain(folder: Path):
    """Reading the files into NumPy arrays with safetensors, which is what a loader cannot avoid."""
    from safetensors import deserialize

    yield
    arrays = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in deserialize(file.read_bytes()):
            arrays[name] = np.frombuffer(entry["data"], np.uint16).reshape(entry["shape"])
    yield


def load_mindone(folder: Path):
    """MindONE's own loader on the same class; its Qwen2-Audio class cannot be constructed on CPU."""
    import mindspore as ms

    from mindone_audio import Qwen2AudioForConditionalGeneration
    from mindone_audio.backbone.audio_language_model import AudioLanguageModel

    yield
    super(AudioLanguageModel, Qwen2AudioForConditionalGeneration).from_pretrained(folder, mindspore_dtype=ms.bfloat16)
    yield


CONTENDERS = {"ours": load_ours, "plain read": load_plain, "mindone": load_mindone}


def measure(contender: str, folder: Path) -> Callable:
    """A process that answers with seconds of loading, and bytes resident before and at the peak."""
    steps = CONTENDERS[contender](folder)
    next(steps)

    def answer(request: str) -> dict[str, float]:
        base = resident()
        start = time.perf_counter()
        next(steps)
        return {"seconds": time.perf_counter() - start, "base": base, "peak": peak_memory()}

    return answer


def prepare(folder: Path, size: str, shards: int) -> Callable:
    """A process that writes the checkpoint and answers with the number of its parameters."""
    return lambda request: write_checkpoint(folder, size, shards)


def measure_load(options: argparse.Namespace, names: list[str]) -> tuple[int, dict[str, dict[str, list[float]]]]:
    """The number of parameters; seconds, base and peak of each contender, a value for each round."""
    with tempfile.TemporaryDirectory(prefix="benchmark", dir=options.folder) as scratch:
        folder = Path(scratch)
        parameters = in_a_process(prepare, folder, options.size, options.shards, request="write")
        results: dict[str, dict[str, list[float]]] = {name: {} for name in names}
        for number in range(options.rounds):
            show_progress(f"round {number + 1} of {options.rounds}")
            for name in order(names, number):
                for figure, value in in_a_process(measure, name, folder, request="load").items():
                    results[name].setdefault(figure, []).append(value)
    show_progress("")
    return parameters, results


def make_figures(results: dict[str, dict], size: int, label: str) -> list[Figure]:
    """Rows of the table of figures: seconds to those of a plain read, and memory to that of the parameters (bytes)."""
    ours, plain = results["ours"], results["plain read"]
    seconds = [statistics.median(found["seconds"]) for found in (ours, plain)]
    ratio = statistics.median(paired(ours["seconds"], plain["seconds"]))
    grown = max(peak - base for peak, base in zip(ours["peak"], ours["base"]))
    return [
        Figure(f"loading, {label}, s; ratio: to a plain read in {seconds[1]:.3g} s", seconds[0], None, ratio),
        Figure(f"loading, {label}, peak memory, MiB; ratio: to parameters", grown * 2**-20, None, grown / size),
    ]


def run_load(options: argparse.Namespace) -> None:
    """`load`: the same checkpoint by each contender, in turn."""
    check_common(options)
    if options.folder and not Path(options.folder).is_dir():
        raise BenchmarkError(f"--folder {options.folder} is no folder")
    names = ["ours", "plain read"] + ["mindone"] * options.mindone
    found = machine(cores())
    parameters, results = measure_load(options, names)
    size = 2 * parameters
    print(f"{parameters / 1e9:.2f} B parameters in bfloat16, {size / 1e9:.1f} GB in {options.shards} files,")
    print("read before, so in the page cache; seconds are medians, memory the most of all rounds\n")
    print(f"{'':<12}{'seconds':>9}{'GB/s':>7}{'peak, GB':>10}{'before, GB':>12}{'(peak - before) / parameters':>31}")
    for name, result in results.items():
        seconds, peak, base = statistics.median(result["seconds"]), max(result["peak"]), max(result["base"])
        line = f"{name:<12}{seconds:>9.2f}{size / seconds / 1e9:>7.2f}{peak / 1e9:>10.2f}{base / 1e9:>12.2f}"
        print(line + f"{(peak - base) / size:>31.2f}")
    for name in names[1:]:
        ratio = statistics.median(paired(results["ours"]["seconds"], results[name]["seconds"]))
        print(f"ours / {name}: {ratio:.3f} of the time")
    label = f"{parameters / 1e9:.2g} B parameters"
    setting = {name: getattr(options, name) for name in ("size", "shards", "rounds")}
    content = {**setting, "machine": found, "parameters": parameters, "contenders": results}
    finish(options, content, make_figures(results, size, label))
    if options.plot:
        seconds = {name: {label: statistics.median(result["seconds"])} for name, result in results.items()}
        plot(options.plot, "from the disk to parameters", "s", seconds)


def add_load(subparsers) -> None:
    """The command line of `load`."""
    parser = subparsers.add_parser("load", help="a checkpoint from the disk to parameters, against a plain read")
    parser.add_argument("--size", choices=SIZES, default="1.7b", help="of the checkpoint made (default: %(default)s)")
    parser.add_argument("--shards", type=at_least(1), default=2, help="files (default: %(default)s)")
    parser.add_argument("--folder", help="where to make the checkpoint (default: the system's temporary folder)")
    parser.add_argument("--mindone", action="store_true", help="also MindONE's own loader")
    add_common(parser, run_load, threads=False)

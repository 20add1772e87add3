"""Every primitive in the compiled graphs has a kernel on Ascend too, as far as the installed wheel tells.

MindSpore's wheel carries its Ascend plugin: the names of the kernels it calls (aclnn...) and of the operators that it
passes on to CANN. What is in neither is an operation that only CPU has, and a model that nobody's NPU can run.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import mindspore
import pytest

PLUGIN = Path(mindspore.__file__).parent / "lib" / "plugin"
LIBRARIES = (PLUGIN / "libmindspore_ops_ascend.so", PLUGIN / "ascend" / "libmindspore_ascend_res_manager.so")
# They order and group other nodes and run nothing, or are views of a tensor's memory.
STRUCTURE = {"Depend", "Load", "MakeTuple", "Return", "TupleGetItem", "UpdateState"}

GENERATE = """
from functools import partial
import helpers_whisper_vq
from families import GOLDENS
from helpers import batch, clips, prompt, tiny_config
from helpers_ultravox import cases
from helpers_voxtral import tiny_voxtral_config, voxtral_cases
from mindone_audio import (
    AutoModelForAudioTextToText, Qwen2AudioForConditionalGeneration, VoxtralForConditionalGeneration, WhisperVQ
)
from mindone_audio.generation import engine
from mindone_audio.proof.parity import read_recording
engine.KVCache = partial(engine.KVCache, flat=True)  # as Ascend has it
model = Qwen2AudioForConditionalGeneration(tiny_config())
inputs = {**batch([prompt([3, "a40", 5]), prompt([4])]), **clips([40])}
model.generate(**inputs, max_new_tokens=3, num_beams=2)
VoxtralForConditionalGeneration(tiny_voxtral_config()).generate(**voxtral_cases()["one clip"](), max_new_tokens=2)
for name in ("audioflamingo3",):
    model = AutoModelForAudioTextToText.from_pretrained(GOLDENS / name)
    model.generate(**read_recording(GOLDENS / name / "one_clip.safetensors").inputs, max_new_tokens=1)
WhisperVQ.from_pretrained(helpers_whisper_vq.CONVERTED).encode(helpers_whisper_vq.clips()["short"])
quantised = AutoModelForAudioTextToText.from_pretrained(GOLDENS / "qwen2_audio_nf4_double", keep_quantized=True)
quantised.generate(**inputs, max_new_tokens=3)
for name, frames, stack in (("ultravox_llama", 40, 8), ("ultravox_qwen2", 38, 3), ("ultravox_qwen3", 33, 8)):
    model = AutoModelForAudioTextToText.from_pretrained(GOLDENS / name)
    model.generate(**cases(frames, stack)["one clip"](), max_new_tokens=2)
"""


@pytest.fixture(scope="module")
def libraries() -> list[bytes]:
    for library in LIBRARIES:
        if not library.exists():
            pytest.skip(f"this wheel has no {library.name}")
    return [library.read_bytes() for library in LIBRARIES]


def has_kernel(primitive: str, libraries: list[bytes]) -> bool:
    names = (primitive, f"{primitive}Ascend", f"aclnn{primitive}")
    return any(has_word(name.encode(), library) for name in names for library in libraries)


def has_word(word: bytes, library: bytes) -> bool:
    place = library.find(word)
    while place >= 0:
        around = library[place - 1 : place], library[place + len(word) : place + len(word) + 1]
        if not any(character.isalnum() for character in around):
            return True
        place = library.find(word, place + 1)
    return False


def compiled_primitives(script: str, folder: Path, least_graphs: int) -> set[str]:
    """The primitives of all graphs that a script compiles, before any back end has changed them."""
    here = Path(__file__).parent
    paths = [str(here / folder) for folder in (".", "..", "../scripts")]
    script = f"import sys; sys.path[:0] = {paths!r}\n{script}"
    # A graph that is loaded from the cache is not compiled, so its file would not be written.
    environment = os.environ | {"MS_DEV_SAVE_GRAPHS": "2", "MS_DEV_SAVE_GRAPHS_PATH": str(folder)}
    environment |= {"MINDONE_AUDIO_COMPILE_CACHE": "0"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, timeout=900)
    graphs = list(folder.rglob("*validate*.ir"))
    assert len(graphs) >= least_graphs
    text = "".join(graph.read_text(errors="replace") for graph in graphs)
    return set(re.findall(r"= (?:PrimFunc_)?([A-Z]\w*)\(", text)) - STRUCTURE


@pytest.fixture(scope="module")
def primitives(tmp_path_factory) -> set[str]:
    """The primitives of the graphs of encoder, prefill and step, and of what the other families change."""
    return compiled_primitives(GENERATE, tmp_path_factory.mktemp("graphs"), 4 + 3 + 1 + 3 * 3)


@pytest.mark.slow
def test_every_primitive_has_an_ascend_kernel(primitives, libraries):
    assert {"MatMul", "BatchMatMul", "Gather", "ScatterUpdate", "Softmax", "Argmax", "Sigmoid"} <= primitives
    half_precision = {"Erf"}  # of `gelu`, which on CPU computes in fp32
    assert sorted(p for p in primitives | half_precision if not has_kernel(p, libraries)) == []


@pytest.mark.slow
def test_the_operation_check_runs_every_primitive(primitives, tmp_path):
    """`doctor --ops` would be silent about a wrong kernel that it never calls."""
    checked = compiled_primitives("from mindone_audio.proof import op_check\nop_check.check_ops()", tmp_path, 10)
    assert sorted(primitives - checked) == []


def test_an_operation_of_cpu_alone_would_be_found(libraries):
    assert not has_kernel("Geqrf", libraries)
    assert not has_kernel("NoSuchPrimitive", libraries)

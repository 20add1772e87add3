"""Every primitive in the compiled graphs has a kernel on Ascend too, as far as the installed wheel tells.

MindSpore's wheel carries its Ascend plugin: the names of the kernels it calls (aclnn...) and of the operators that it
passes on to CANN. What is in neither is an operation that only CPU has, and a model that nobody's NPU can run.
"""

import re
from pathlib import Path

import helpers_bodies
import mindspore
import pytest
from ascend_branch import OLD_KERNELS, graphs_of, primitives

PLUGIN = Path(mindspore.__file__).parent / "lib" / "plugin"
LIBRARIES = (PLUGIN / "libmindspore_ops_ascend.so", PLUGIN / "ascend" / "libmindspore_ascend_res_manager.so")
# They order and group other nodes and run nothing, or are views of a tensor's memory.
STRUCTURE = {"Depend", "Load", "MakeTuple", "Return", "TupleGetItem", "UpdateState"}

GENERATE = """
import mindspore as ms
import helpers_bodies
import helpers_seamless
import helpers_whisper_vq
from ascend_branch import as_on_ascend
from families import GOLDENS
from helpers import batch, clips, prompt, tiny_config
from helpers_ultravox import cases
from helpers_voxtral import tiny_voxtral_config, voxtral_cases
from mindone_audio import (
    AutoModelForAudioTextToText,
    Qwen2AudioForConditionalGeneration,
    SeamlessM4Tv2Model,
    VoxtralForConditionalGeneration,
    WhisperVQ,
)
from mindone_audio.generation.sequences import Sequences
from mindone_audio.proof.parity import read_recording
with as_on_ascend():
    model = Qwen2AudioForConditionalGeneration(tiny_config())
    inputs = {**batch([prompt([3, "a40", 5]), prompt([4])]), **clips([40])}
    model.generate(**inputs, max_new_tokens=3, num_beams=2)
    Sequences(model.engine(), 1, 64).extend_by([1, 2])
    VoxtralForConditionalGeneration(tiny_voxtral_config()).generate(**voxtral_cases()["one clip"](), max_new_tokens=2)
    for name in ("audioflamingo3",):
        model = AutoModelForAudioTextToText.from_pretrained(GOLDENS / name, mindspore_dtype=ms.float32)
        model.generate(**read_recording(GOLDENS / name / "one_clip.safetensors").inputs, max_new_tokens=1)
    WhisperVQ.from_pretrained(helpers_whisper_vq.CONVERTED).encode(helpers_whisper_vq.clips()["short"])
    quantised = AutoModelForAudioTextToText.from_pretrained(
        GOLDENS / "qwen2_audio_nf4_double", mindspore_dtype=ms.float32, keep_quantized=True
    )
    quantised.generate(**inputs, max_new_tokens=3)
    for name, frames, stack in (("ultravox_llama", 40, 8), ("ultravox_qwen2", 38, 3), ("ultravox_qwen3", 33, 8)):
        model = AutoModelForAudioTextToText.from_pretrained(GOLDENS / name, mindspore_dtype=ms.float32)
        model.generate(**cases(frames, stack)["one clip"](), max_new_tokens=2)
    model = SeamlessM4Tv2Model(helpers_seamless.config())
    model.generation_config = helpers_seamless.generation_config()
    model.generate(helpers_seamless.texts(9)[0][None], tgt_lang="eng", max_new_tokens=3, suppress_tokens=[0, 3])
    clip = helpers_seamless.clips(40)[0][None]
    model.generate(input_features=clip, tgt_lang="fra", max_new_tokens=2, generate_speech=False)
    helpers_bodies.run_all()
"""


TRAIN = """
import tempfile
from pathlib import Path
import helpers_whisper
import numpy as np
from ascend_branch import as_on_ascend
from mindone_audio import AutoModelForAudioTextToText, AutoProcessor
from mindone_audio.finetune import Example, FinetuneSettings, LoraSettings, Trainer, TranscriptCollator, add_lora
folder = Path(tempfile.mkdtemp())
helpers_whisper.save_checkpoint(folder)
examples = [Example(np.zeros(size, np.float32), "", text) for size, text in ((4000, "abc"), (6000, "ab"))]
with as_on_ascend():
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForAudioTextToText.from_pretrained(folder)
    collator = TranscriptCollator(processor, model, language="en")
    settings = FinetuneSettings(str(folder / "out"), max_steps=1)
    adapted = add_lora(model, LoraSettings(r=2, dropout=0.1, encoder=True, target_modules=("q_proj", "fc1")))
    Trainer(adapted, processor, collator, settings, examples).train(progress=False)
"""


CHECK = """
import mindspore
from ascend_branch import as_on_ascend
from mindone_audio.proof import op_check

op_check.compute_dtypes = lambda: (mindspore.float32,)
with as_on_ascend():
    op_check.check_ops()
"""


@pytest.fixture(scope="module")
def libraries() -> list[bytes]:
    for library in LIBRARIES:
        if not library.exists():
            pytest.skip(f"this wheel has no {library.name}")
    return [library.read_bytes() for library in LIBRARIES]


def has_kernel(primitive: str, libraries: list[bytes]) -> bool:
    names = (primitive, f"{primitive}Ascend", f"aclnn{primitive}")
    if any(has_word(name.encode(), library) for name in names for library in libraries):
        return True
    # A class of the compiled graphs' kernels, which calls an operator of another name: MeanExt is aclnnMean. Those of
    # interpreted operations are in the namespace pyboost.
    own = f"{primitive}Ascend"
    a_class = re.compile(rf"N9mindspore6kernel(?!7pyboost)\d+[a-z_]+{len(own)}{own}E".encode())
    return any(a_class.search(library) for library in libraries)


def has_word(word: bytes, library: bytes) -> bool:
    place = library.find(word)
    while place >= 0:
        around = library[place - 1 : place], library[place + len(word) : place + len(word) + 1]
        if not any(character.isalnum() for character in around):
            return True
        place = library.find(word, place + 1)
    return False


@pytest.fixture(scope="module")
def used(tmp_path_factory) -> set[str]:
    """The primitives of the graphs of encoder, prefill and step, and of what the other families change."""
    graphs = graphs_of(GENERATE, tmp_path_factory.mktemp("graphs"))
    assert len(graphs) >= 4 + 3 + 1 + 3 * 3 + 5 + helpers_bodies.BODIES
    return primitives(graphs) - STRUCTURE


@pytest.mark.slow
def test_every_primitive_has_an_ascend_kernel(used, libraries):
    assert {"MatMul", "BatchMatMul", "Gather", "ScatterUpdate", "Softmax", "Argmax", "MeanExt"} <= used
    assert used & OLD_KERNELS == set()
    half_precision = {"Erf"}  # of `gelu`, which on CPU computes in fp32
    assert sorted(p for p in used | half_precision if not has_kernel(p, libraries)) == []


@pytest.mark.slow
def test_the_operation_check_runs_every_primitive(used, tmp_path):
    """`doctor --ops` would be silent about a wrong kernel that it never calls."""
    graphs = graphs_of(CHECK, tmp_path)
    assert len(graphs) >= 10
    assert sorted(used - primitives(graphs)) == []


def test_an_operation_of_cpu_alone_would_be_found(libraries):
    assert not has_kernel("Geqrf", libraries)
    assert not has_kernel("NoSuchPrimitive", libraries)


@pytest.mark.long
@pytest.mark.slow
def test_the_training_of_a_whisper_model_has_kernels(libraries, tmp_path):
    """Its losses, gradients and updates, with the encoder's and dropout."""
    graphs = graphs_of(TRAIN, tmp_path)
    assert len(graphs) >= 3
    used = primitives(graphs) - STRUCTURE
    assert {"SoftmaxBackward", "UnsortedSegmentSum", "AssignAdd"} <= used and used & OLD_KERNELS == set()
    assert sorted(primitive for primitive in used if not has_kernel(primitive, libraries)) == []

"""A process that answers for hours: few graphs, memory that stays, and the answers of a process that just began."""

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from benchmark.start import Compilations
from helpers import batch, clips, prompt, tiny_config, torch_model
from mindspore import _c_expression

from mindone_audio import AutoModelForAudioTextToText, pipeline
from mindone_audio.backbone.compiled import _release
from mindone_audio.finetune.graphs import MicroBatch, prompt_bucket
from mindone_audio.machine import device

CALLS = 600
MOST_GRAPHS = 16
FRESH = "import sys; sys.path[:0] = {paths!r}; import test_long_life as t; print(t.fresh({number}))"


def ask(pipe, number: int) -> list[str]:
    """A call that depends on its number alone: 1 to 8 clips of 0.3 to 5 s, beams, several clips at once, samples."""
    rng = np.random.default_rng(number)
    sounds = [
        (rng.normal(size=int(16000 * rng.uniform(0.3, 5))) * 10 ** rng.uniform(-3, -0.5)).astype(np.float32)
        for _ in range(int(rng.integers(1, 9)))
    ]
    text, settings = "What" + " else" * int(rng.integers(0, 40)) + "?", {"max_new_tokens": int(rng.integers(1, 10))}
    kind = number % 4
    if kind == 1:
        settings["num_beams"] = int(rng.integers(2, 5))
    if kind == 2:
        return [pipe({"audio": sounds[:3], "text": text}, **settings)["generated_text"]]
    if kind < 2:
        return pipe(sounds, text=text, **settings)["generated_text"]
    inputs = pipe.processor(text=[pipe.processor.placeholder + text] * len(sounds), audio=sounds)
    settings |= {"do_sample": True, "seed": number, "num_return_sequences": int(rng.integers(1, 4))}
    return pipe.processor.batch_decode(pipe.model.generate(**inputs, **settings))


def fresh(number: int) -> str:
    return json.dumps(ask(pipeline(), number))


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of a process where Linux has it")
def test_six_hundred_mixed_calls():
    pipe, sizes, answers = pipeline(), [], []
    with Compilations() as compiled:
        for number in range(CALLS):
            answers.append(ask(pipe, number))
            sizes.append(resident())
    assert len(compiled.seconds) <= MOST_GRAPHS
    third, last = np.median(sizes[CALLS // 2 : CALLS * 3 // 4]), np.median(sizes[CALLS * 3 // 4 :])
    assert last < 1.02 * third
    assert max(sizes[CALLS // 2 :]) < 1.02 * min(sizes[CALLS // 2 :])
    paths = [str(Path(__file__).parent / folder) for folder in (".", "..", "../scripts")]
    for number in (CALLS - 4, CALLS - 3, CALLS - 2, CALLS - 1):  # one of each kind
        command = [sys.executable, "-c", FRESH.format(paths=paths, number=number)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
        assert json.loads(output.splitlines()[-1]) == answers[number], number


@pytest.fixture
def folder(tmp_path):
    torch_model(tiny_config()).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.long
def test_lists_of_all_sizes_compile_a_graph_for_each_power_of_two(folder):
    model = AutoModelForAudioTextToText.from_pretrained(folder)
    rng = np.random.default_rng(0)
    with Compilations() as compiled:
        for size in (*range(1, 9), *range(8, 0, -1)):
            lengths = rng.integers(1, 12, size)
            prompts = [prompt([int(length), "a5"], int(length)) for length in lengths]
            beams = 1 + size % 2
            inputs = batch(prompts) | clips([5] * size)
            assert model.generate(**inputs, max_new_tokens=2, num_beams=beams).shape[0] == size
    # Encoders of one and of four clips, prefills of 48 and of 160 tokens; steps of 2, 4, 8 and 16.
    assert len(compiled.seconds) == 4 + 4


def test_what_is_dropped_gives_its_memory_back(folder):
    """A model that is gone, and one whose weights were replaced: neither keeps its graphs."""
    model = AutoModelForAudioTextToText.from_pretrained(folder)
    model.generate(**batch([prompt([4])]), max_new_tokens=2)
    steps = [weakref.ref(model._engines[True]._slots[1, 512].step)]
    weight = model.language_model.model.norm.weight
    weight.set_data(weight.value().copy())
    model.generate(**batch([prompt([4])]), max_new_tokens=2)
    gc.collect()
    assert steps[0]() is None
    steps.append(weakref.ref(model._engines[True]._slots[1, 512].step))
    del model, weight
    gc.collect()
    assert steps[1]() is None


def test_a_run_ends_before_its_graph_goes(monkeypatch):
    """A graph that was dropped while it still ran ended the process, once in some hundred times."""
    happened = []

    class Executor:
        @staticmethod
        def get_instance():
            return Executor

        @staticmethod
        def del_net_res(_, phases):
            happened.append(phases)

    monkeypatch.setattr(device, "synchronize", lambda: happened.append("waited"))
    for name in ("JitExecutor_", "GraphExecutor_"):
        monkeypatch.setattr(_c_expression, name, Executor, raising=False)
    _release({"": "phase"})
    assert happened == ["waited", {"phase"}, {"phase"}]


@pytest.mark.parametrize("by_layer", [False, True])
def test_training_needs_few_shapes(folder, by_layer):
    """They follow from the length of the prompts: neither the clips' lengths nor those of the answers add any."""
    model, rng, shapes, lengths = (
        AutoModelForAudioTextToText.from_pretrained(folder),
        np.random.default_rng(0),
        set(),
        set(),
    )
    for _ in range(200):
        frames = rng.integers(4, 41, int(rng.integers(1, 3))).tolist()
        inputs = batch([prompt([int(rng.integers(30, 120)), f"a{count}"]) for count in frames]) | clips(frames)
        answer = int(rng.integers(1, 16))
        inputs["labels"] = np.full_like(inputs["input_ids"], -100)
        inputs["labels"][:, -answer:] = inputs["input_ids"][:, -answer:]
        made = MicroBatch(model, inputs, 2, whole_windows=True, by_layer=by_layer)
        lengths.add(prompt_bucket(inputs["input_ids"].shape[1], by_layer))
        shapes.add((*(tensor.shape for tensor in made.tokens), made.where.shape, made.lengths.shape))
    assert len(shapes) == len(lengths) <= 4

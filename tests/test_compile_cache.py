"""Graphs that are kept: whatever is in the cache, a model says what it says without, and the next compiles nothing."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from families import GOLDENS
from helpers import batch, clips, prompt, tiny_config, torch_model
from helpers_whisper_vq import CONVERTED
from mindone.peft import LoraConfig, get_peft_model
from mindspore import Tensor, nn

from mindone_audio import AutoModelForAudioTextToText
from mindone_audio.adapters.lora import LoraSettings, add_lora
from mindone_audio.backbone import ops
from mindone_audio.backbone.cache import KVCache
from mindone_audio.backbone.compiled import graphs, one_graph
from mindone_audio.backbone.layers import Linear, RMSNorm, name_parameters
from mindone_audio.generation.engine import EncodeAudio, Engine
from mindone_audio.machine import device
from mindone_audio.models.ichigo.whisper_vq import WhisperVQ
from mindone_audio.weights import compile_cache
from mindone_audio.weights.graph_key import NoKey, graph_key, source_digest, source_stamps

VARIABLE = compile_cache.VARIABLE
SETTINGS = {"max_new_tokens": 4, "eos_token_id": None}
# Changes of a tiny decoder. The last ones change no shape and no name, only numbers that a graph holds.
MODELS = {
    "small": {"num_hidden_layers": 1},
    "more layers": {"num_hidden_layers": 2},
    "other sizes": {"num_hidden_layers": 1, "hidden_size": 36, "intermediate_size": 20, "num_attention_heads": 2},
    "tied": {"num_hidden_layers": 1, "tie_word_embeddings": True},
    "rope_theta": {"num_hidden_layers": 1, "rope_theta": 3.0},
    "norm epsilon": {"num_hidden_layers": 1, "rms_norm_eps": 30.0},
}
AUDIO = {"encoder_layers": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of this test alone."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "graphs"))
    return tmp_path / "graphs"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folders of checkpoints, by what is changed and how their weights are drawn."""
    made = {}

    def make(name: str = "small", seed: int = 0) -> Path:
        if (name, seed) not in made:
            made[name, seed] = tmp_path_factory.mktemp("checkpoint")
            torch_model(tiny_config(AUDIO, MODELS[name]), seed).save_pretrained(made[name, seed])
        return made[name, seed]

    return make


@pytest.fixture
def load(checkpoint):
    return lambda *which: AutoModelForAudioTextToText.from_pretrained(checkpoint(*which))


def say(model, compile: bool = True) -> list[int]:
    """New tokens of a prompt of text: two graphs, prefill and step."""
    ids = np.array([prompt([12], 1)])
    return model.generate(ids, compile=compile, **SETTINGS).asnumpy()[0, 12:].tolist()


def normalise() -> None:
    """Compile and check the smallest graph."""
    norm, x = RMSNorm(8, 1e-5), Tensor(np.arange(16, dtype=np.float32).reshape(2, 8))
    np.testing.assert_allclose(one_graph(norm)(x).asnumpy(), norm(x).asnumpy(), rtol=1e-6)


def entries(cache: Path) -> dict[str, int]:
    """The files of the cache by their names: an entry that is written again is another file."""
    return {file.name: file.stat().st_ino for file in cache.iterdir()} if cache.exists() else {}


@pytest.mark.slow
@pytest.mark.long
def test_every_model_in_one_cache_says_its_own(load, cache):
    said = {}
    for name in MODELS:
        before = entries(cache)
        said[name] = say(load(name))
        assert said[name] == say(load(name), compile=False), name
        assert len(entries(cache)) == len(before) + 2, name
        assert before.items() <= entries(cache).items(), name
    assert len(set(map(tuple, said.values()))) == len(MODELS)  # so that a graph of another model would be seen
    before = entries(cache)
    for name in MODELS:
        model = load(name, 1)  # the same graphs with other weights
        assert say(model) == say(model, compile=False) != said[name], name
    assert entries(cache) == before  # nothing was compiled


def test_clips_and_batches(load, cache):
    inputs = {**batch([prompt([1, "a33", 3]), prompt([5], 1), prompt(["a9", 2], 2)]), **clips([33, 9])}
    model = load()
    expected = model.generate(**inputs, compile=False, **SETTINGS).asnumpy()
    np.testing.assert_array_equal(model.generate(**inputs, **SETTINGS).asnumpy(), expected)
    before = entries(cache)
    np.testing.assert_array_equal(load().generate(**inputs, **SETTINGS).asnumpy(), expected)
    assert entries(cache) == before


def test_two_models_of_one_structure_side_by_side(load, cache):
    models = [load("small", 0), load("small", 1)]
    expected = [say(model, compile=False) for model in models]
    assert expected[0] != expected[1]
    for _ in range(2):
        assert [say(model) for model in models] == expected
    assert len(entries(cache)) == 2


def adapted(model):
    """`model` with an adapter that changes what it says."""
    result = add_lora(model, LoraSettings(target_modules=["q_proj", "down_proj"], r=4, dropout=0.1))
    for name, parameter in result.parameters_and_names():
        if "lora_B" in name:
            values = np.random.default_rng(len(name)).normal(0, 2, parameter.shape)
            parameter.set_data(Tensor(values.astype(np.float32)))
    return result


def test_changed_adapters(load, cache):
    """Whatever was compiled before with which adapters, in this process or another."""
    said = {}
    for number in range(2):
        base = load()
        said["base", number] = say(base)
        model = adapted(base)
        model.set_train(False)
        said["adapted", number] = say(base)
        assert said["adapted", number] == say(base, compile=False) != said["base", number]
        with model.disable_adapter():
            said["disabled", number] = say(base)
        for layer in [cell for _, cell in base.cells_and_names() if hasattr(cell, "scaling")]:
            layer.scaling["default"] *= 5
        said["scaled", number] = say(base)
        assert said["scaled", number] == say(base, compile=False) != said["adapted", number]
        model.base_model.merge_adapter()
        said["merged", number] = say(base)
        model.base_model.unmerge_adapter()
        said["unmerged", number] = say(base)
        said["unloaded", number] = say(model.unload())
        if number == 0:
            before = entries(cache)
    assert entries(cache) == before
    for number in range(2):
        assert said["base", number] == said["disabled", number] == said["unloaded", number] == said["base", 0]
        assert said["scaled", number] == said["merged", number] == said["unmerged", number] == said["scaled", 0]


def test_every_state_of_adapters_has_its_own_key(load):
    base = load()

    def key() -> str:
        name_parameters(base)
        return graph_key(Engine(base, compiled=False).slots(1, 1, prefills=False).step, ())

    keys = [key()]
    model = adapted(base)
    layers = [cell for _, cell in base.cells_and_names() if hasattr(cell, "scaling")]
    keys.append(key())
    layers[-1].merged_adapters.append("default")
    keys.append(key())
    layers[-1].merged_adapters.clear()
    layers[0]._disable_adapters = True
    keys.append(key())
    layers[0]._disable_adapters = False
    layers[0]._active_adapter = []
    keys.append(key())
    layers[0]._active_adapter = ["default"]
    assert key() == keys[1]
    layers[0].scaling["default"] *= 2
    keys.append(key())
    model.set_train()
    keys.append(key())
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "others can write it"])
def test_a_damaged_entry_is_compiled_again(load, cache, damage, caplog):
    expected = say(load())
    before = entries(cache)
    for file in cache.iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        if damage == "others can write it":
            file.chmod(0o666)
        else:
            kept = {"truncated": content[: len(content) // 2], "changed": content, "empty": b""}[damage]
            file.write_bytes(kept)
    with caplog.at_level(logging.INFO, "mindone_audio"):
        assert say(load()) == expected
    assert sum("is damaged, or others can write it" in record.message for record in caplog.records) == 2
    assert entries(cache).keys() == before.keys()
    assert all(map(compile_cache._read, cache.iterdir()))


def test_a_graph_that_mindspore_does_not_load_is_compiled_again(load, cache):
    """Its checksum is right, as after a version of MindSpore that writes what it cannot read."""
    expected = say(load())
    before = entries(cache)
    for file in cache.iterdir():
        compile_cache._write(file, file.read_bytes()[32:200])
    damaged = entries(cache)
    assert say(load()) == expected
    assert entries(cache).keys() == before.keys()
    assert all(entries(cache)[name] != damaged[name] for name in before)
    last = entries(cache)
    assert say(load()) == expected
    assert entries(cache) == last


def test_a_failure_to_load_is_no_error_and_one_to_compile_is(cache):
    x, tries = Tensor(np.ones((2, 8), np.float32)), []

    def compiled(x):
        tries.append(len(entries(cache)))
        if len(tries) % 2:
            raise RuntimeError("cannot")
        return x

    normalise()
    assert compile_cache.first_call(RMSNorm(8, 1e-5), compiled, (x,)) is x
    assert tries == [1, 0]  # it is gone before the second
    with pytest.raises(RuntimeError, match="cannot"):
        compile_cache.first_call(RMSNorm(8, 1e-5), compiled, (x,))


def test_off(load, cache, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    model = load()
    assert say(model) == say(model, compile=False)
    assert not cache.exists()


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert compile_cache._folder() == tmp_path / "caches" / "mindone_audio" / "graphs"
    assert compile_cache._folder().stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert compile_cache._folder() == tmp_path / "home" / ".cache" / "mindone_audio" / "graphs"
    monkeypatch.setenv(VARIABLE, "~/elsewhere")
    assert compile_cache._folder() == tmp_path / "home" / "elsewhere"


@pytest.mark.parametrize("fault", ["a file", "others can write it", "another user's"])
def test_a_folder_that_is_not_ours_alone_is_no_error(tmp_path, monkeypatch, fault, caplog):
    folder = tmp_path / "folder"
    if fault == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777 if fault == "others can write it" else 0o700)
    if fault == "another user's":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setenv(VARIABLE, str(folder))
    with caplog.at_level(logging.INFO, "mindone_audio"):
        normalise()
        normalise()
    notes = [record for record in caplog.records if str(folder) in record.getMessage()]
    assert [record.levelno for record in notes] == [logging.INFO]
    assert folder.is_file() or not list(folder.iterdir())


def test_a_full_disk_is_no_error(load, cache, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    expected = say(load())
    before = entries(cache)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert say(load()) == expected  # MindSpore cannot be given the entries
    assert say(load("tied")) == say(load("tied"), compile=False)
    assert entries(cache) == before


def test_the_oldest_entries_go(cache, monkeypatch):
    cache.mkdir(mode=0o700)
    monkeypatch.setattr(compile_cache, "MOST_BYTES", 3 * 132)
    names = [cache / f"{letter}.graph" for letter in "abcde"]
    for age, name in enumerate(names[:3]):
        compile_cache._write(name, bytes(100))
        os.utime(name, (1e9 + age, 1e9 + age))
    (cache / ".x.0.part").write_bytes(b"left by a killed process")
    os.utime(cache / ".x.0.part", (1e9, 1e9))
    (cache / ".y.0.part").write_bytes(b"being written")
    assert compile_cache._read(names[0]) == bytes(100)  # which counts as used
    for name in names[3:]:
        compile_cache._write(name, bytes(100))
        time.sleep(0.01)
    assert {file.name for file in cache.iterdir()} == {"a.graph", "d.graph", "e.graph", ".y.0.part"}


def test_mindspores_warnings_do_not_show_and_no_other_line_is_lost(capfd):
    for said in (b"] Be aware of correctness risks.\n", b"an error\nhalf a line"):
        with compile_cache._without_lines(compile_cache._SAID):
            os.write(2, said)
    with pytest.raises(KeyError), compile_cache._without_lines(compile_cache._SAID):
        os.write(2, b" and a failure\n")
        raise KeyError
    assert capfd.readouterr().err == "an error\nhalf a line and a failure\n"


def test_nothing_is_said(load, capfd):
    for _ in range(2):
        say(load())
    assert "cache" not in capfd.readouterr().err


def test_a_cache_of_mindspores_own_is_left_alone(cache, monkeypatch):
    monkeypatch.setenv("MS_COMPILER_CACHE_PATH", "/nowhere")
    normalise()
    assert entries(cache) == {}
    monkeypatch.delenv("MS_COMPILER_CACHE_PATH")
    normalise()
    assert len(entries(cache)) == 1


def test_a_graph_of_many_shapes_is_compiled_as_ever(cache):
    """Those of fine-tuning."""
    norm, x = RMSNorm(8, 1e-5), np.arange(16, dtype=np.float32).reshape(2, 8)
    run = graphs(norm)
    for some in (x, x[:1]):
        np.testing.assert_allclose(run(Tensor(some)).asnumpy(), norm(Tensor(some)).asnumpy(), rtol=1e-6)
    assert entries(cache) == {}


def test_on_ascend_it_is_off(monkeypatch):
    monkeypatch.setattr(device, "is_ascend", lambda: True)
    assert compile_cache._folder() is None


def test_of_two_compilations_in_one_call_none_is_kept(cache):
    x, cells = Tensor(np.ones((2, 8), np.float32)), [RMSNorm(8, 1e-5), RMSNorm(8, 1e-6)]
    first, second = (ms.jit(cell.construct) for cell in cells)
    compile_cache.first_call(cells[0], lambda x: second(first(x)), (x,))
    assert entries(cache) == {}
    normalise()
    kept = entries(cache)
    normalise()
    assert entries(cache) == kept and len(kept) == 1


def test_another_version_of_mindspore_keeps_nothing(cache, monkeypatch):
    monkeypatch.setattr(ms, "__version__", "2.9.0")
    normalise()
    assert entries(cache) == {}


FAMILIES = [
    ("ultravox_llama", {}),
    ("ultravox_qwen3", {}),
    ("audioflamingo3", {}),
    ("voxtral_nf4", {"keep_quantized": True}),
    ("qwen2_audio_nf4_double", {"keep_quantized": True}),
]


def test_graphs_of_every_family_are_kept():
    """All of them have keys, the same when a checkpoint is loaded again, of which no two are equal."""
    found = []
    for name, options in FAMILIES:
        for _ in range(2):
            model = AutoModelForAudioTextToText.from_pretrained(GOLDENS / name, **options)
            name_parameters(model)
            engine = Engine(model, compiled=False)
            cells = [EncodeAudio(model)]
            for rows in (1, 2):
                slots = engine.slots(rows, 1, prefills=rows == 1)
                cells += [slots.step] + [slots.prefill(48, end) for end in (48, 96)] * (rows == 1)
            found.append([graph_key(cell, ()) for cell in cells])
    assert found[::2] == found[1::2]
    assert len(set(sum(found, []))) == len(sum(found[::2], [])) == 5 * len(FAMILIES)
    assert graph_key(WhisperVQ.from_pretrained(CONVERTED).cell, ())


def test_the_lora_layers_of_mindone_peft_are_kept(load):
    model = get_peft_model(load(), LoraConfig(r=2, target_modules=["q_proj"])).get_base_model()
    name_parameters(model)
    assert graph_key(Engine(model, compiled=False).slots(1, 1, prefills=False).step, ())


class Foreign(nn.Cell):
    def construct(self, x):
        return x + 1


class TestKey:
    x = Tensor(np.ones((2, 8), np.float32))

    def key(self, cell, *arguments) -> str:
        return graph_key(cell, arguments or (self.x,))

    def linear(self, *sizes) -> Linear:
        linear = Linear(*sizes)
        linear.weight.name = "weight"
        return linear

    def test_equal_cells_have_equal_keys(self):
        assert self.key(RMSNorm(8, 1e-5)) == self.key(RMSNorm(8, 1e-5))
        assert self.key(RMSNorm(8, 1e-5), Tensor(np.zeros((2, 8), np.float32))) == self.key(RMSNorm(8, 1e-5))

    def test_a_call_changes_no_key(self):
        norm = RMSNorm(8, 1e-5)
        before = self.key(norm)
        norm(self.x)
        assert self.key(norm) == before
        one_graph(norm)(self.x)
        assert self.key(norm) == before

    def test_everything_that_a_graph_holds_is_part_of_it(self):
        def with_attribute(value):
            norm = RMSNorm(8, 1e-5)
            norm.something = value
            return norm

        def changed(change):
            norm = RMSNorm(8, 1e-5)
            change(norm)
            return norm

        table = np.arange(8, dtype=np.float32)
        cells = [
            RMSNorm(8, 1e-5),
            RMSNorm(8, 1e-6),
            RMSNorm(9, 1e-5),
            self.linear(8, 8, False),
            self.linear(8, 8, True),
            changed(lambda norm: setattr(norm.weight, "name", "other")),
            changed(lambda norm: setattr(norm.weight, "requires_grad", False)),
            changed(lambda norm: norm.weight.set_dtype(ms.float16)),
            changed(lambda norm: norm.set_train()),
            changed(lambda norm: norm.add_flags(something=True)),
            *map(with_attribute, (1, 1.0, True, "1", None, (1,), [1], {"a": 1}, {"a": 2}, {1, 2})),
            *map(with_attribute, (table, table + 1, table.astype(np.float64), table.reshape(2, 4))),
            *map(with_attribute, (Tensor(table), Tensor(table + 1), [Tensor(table)], Tensor(table, ms.bfloat16))),
            *map(with_attribute, (RMSNorm(8, 1e-5), RMSNorm(8, 1e-6), ops.silu, ops.gelu, RMSNorm, Linear, ms.float32)),
            *(KVCache(layers, 1, 2, 8, 4, ms.float32, flat) for layers in (1, 2) for flat in (False, True)),
        ]
        keys = [self.key(cell) for cell in cells]
        assert len(set(keys)) == len(keys)

    def test_shapes_and_dtypes_of_arguments(self):
        norm = RMSNorm(8, 1e-5)
        arguments = [
            (self.x,),
            (self.x, self.x),
            (self.x, None),
            (self.x, 1),
            (Tensor(np.ones((1, 8), np.float32)),),
            (self.x.astype(ms.float16),),
            ((self.x,),),
        ]
        assert len({graph_key(norm, some) for some in arguments}) == len(arguments)

    def test_shared_and_equal_are_not_the_same(self):
        def pair(first, second):
            cells = nn.CellList([first, second])
            cells[1].weight.name = "second"
            return cells

        one, other, equal = RMSNorm(8, 1e-5), RMSNorm(8, 1e-5), RMSNorm(8, 1e-5)
        equal.weight = other.weight  # one parameter in two cells, or one cell twice
        assert len({self.key(pair(first, one)) for first in (one, other)}) == 2
        assert len({self.key(pair(first, other)) for first in (other, equal)}) == 2

    def test_a_parameter_that_mindspore_would_not_find_by_its_name(self):
        """It would make one of zeros."""
        hidden, twice = RMSNorm(8, 1e-5), nn.CellList([RMSNorm(8, 1e-5), RMSNorm(8, 1e-5)])
        hidden.something = [RMSNorm(8, 1e-5).weight]
        for _, parameter in twice.parameters_and_names():
            parameter.name = "one"
        for cell in (hidden, twice):
            with pytest.raises(NoKey, match="by name"):
                self.key(cell)

    @pytest.mark.parametrize("name, value", [("MASKED", -1.0), ("_FEW_ROWS", (1, 2)), ("rms_norm", lambda x, w, e: x)])
    def test_what_a_program_has_changed(self, monkeypatch, name, value):
        before = self.key(RMSNorm(8, 1e-5))
        if callable(value):
            value.__module__ = ops.__name__
        monkeypatch.setattr(ops, name, value)
        assert self.key(RMSNorm(8, 1e-5)) != before

    def test_a_method_that_a_program_has_changed(self, monkeypatch):
        before = self.key(RMSNorm(8, 1e-5))
        monkeypatch.setattr(RMSNorm, "construct", lambda self, x: x)
        assert self.key(RMSNorm(8, 1e-5)) != before

    def test_settings(self, monkeypatch):
        before = self.key(RMSNorm(8, 1e-5))
        monkeypatch.setenv("MS_DEV_SOMETHING", "1")
        assert self.key(RMSNorm(8, 1e-5)) != before

    def test_a_source_file_that_was_edited(self, monkeypatch):
        monkeypatch.setattr("mindone_audio.weights.graph_key._IMPORTED", ())
        with pytest.raises(NoKey, match="changed since"):
            self.key(RMSNorm(8, 1e-5))

    def test_every_source_file_counts(self, tmp_path, monkeypatch):
        digests = []
        for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2"), ("deep/er/a.py", "2")):
            file = tmp_path / str(len(digests)) / name
            file.parent.mkdir(parents=True)
            file.write_text(text)
            package = tmp_path / str(len(digests))
            digests.append(source_digest(package, source_stamps(package)))
        assert len(set(digests)) == len(digests)
        before = self.key(RMSNorm(8, 1e-5))
        monkeypatch.setattr("mindone_audio.weights.graph_key.source_digest", lambda *_: "another")
        assert self.key(RMSNorm(8, 1e-5)) != before

    def test_what_is_not_known_has_no_key(self, cache):
        changes = [
            *(lambda norm, value=value: setattr(norm, "something", value) for value in (Foreign(), object(), iter(()))),
            lambda norm: setattr(norm, "something", lambda x: x),
            lambda norm: norm.register_forward_hook(lambda *_: None),
            lambda norm: norm.to_float(ms.float16),
        ]
        for change in changes:
            norm = RMSNorm(8, 1e-5)
            change(norm)
            with pytest.raises(NoKey):
                self.key(norm)
        np.testing.assert_array_equal(one_graph(Foreign())(self.x).asnumpy(), self.x.asnumpy() + 1)
        assert entries(cache) == {}


PROCESS = """
import sys
sys.path[:0] = {paths!r}
import test_compile_cache as tests
from mindone_audio import AutoModelForAudioTextToText
print(tests.say(AutoModelForAudioTextToText.from_pretrained({folder!r})))
"""


@pytest.mark.slow
@pytest.mark.long
def test_processes(checkpoint, load, cache):
    """Three at once, and then one that compiles nothing; none has anything to say on standard error."""
    paths = [str(Path(__file__).parent / folder) for folder in (".", "..", "../scripts")]
    program = PROCESS.format(paths=paths, folder=str(checkpoint()))

    def begin():
        command, pipe = [sys.executable, "-c", program], subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | {VARIABLE: str(cache)})

    expected = say(load(), compile=False)
    for count in (3, 1):
        before = entries(cache)
        running = [begin() for _ in range(count)]
        for process in running:
            output, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            assert output.splitlines()[-1] == str(expected)
            assert "cache" not in errors
        assert len(entries(cache)) == 2
    assert entries(cache) == before
    assert not [file for file in cache.iterdir() if file.suffix != ".graph"]

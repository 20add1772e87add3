"""LoRA adapters: the same files, names and numbers as PyTorch's PEFT, and `generate` follows what is done to them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import helpers
import helpers_peft
import helpers_voxtral
import mindspore as ms
import numpy as np
import peft
import pytest
import torch
import transformers
from families import GOLDENS
from helpers import PAD, relative_error, to_torch
from huggingface_hub import ModelCard
from mindone.peft import PeftModelForCausalLM, get_peft_model
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mindone_audio import AutoModelForAudioTextToText
from mindone_audio.adapters.dropout import Dropout
from mindone_audio.adapters.lora import (
    AdaptedModel,
    LoraSettings,
    add_lora,
    load_adapter,
    set_dropout_seed,
    trainable_parameters,
)
from mindone_audio.adapters.mindone_peft import LoraConfig, PeftLoraLinear, PeftModel
from mindone_audio.weights.hub import CheckpointError

TOLERANCE = 1e-4
NEW_TOKENS = 12
PROJECTOR = "multi_modal_projector"


@dataclass(frozen=True)
class Family:
    """A tiny checkpoint, transformers' class for it, and a batch of inputs."""

    folder: Path
    torch_class: type
    inputs: dict

    def ours(self):
        return AutoModelForAudioTextToText.from_pretrained(self.folder)

    def theirs(self) -> torch.nn.Module:
        return self.torch_class.from_pretrained(self.folder, attn_implementation="eager").eval()

    def seen(self, logits: np.ndarray) -> np.ndarray:
        return logits[self.inputs["attention_mask"] != 0]


MAKERS = {
    "qwen2_audio": (
        lambda: helpers.torch_model(helpers.tiny_config()),
        helpers.qwen2_audio_cases,
    ),
    "voxtral": (
        lambda: helpers_voxtral.torch_voxtral(helpers_voxtral.tiny_voxtral_config()),
        helpers_voxtral.voxtral_cases,
    ),
    "ichigo": (lambda: helpers.torch_llama(**helpers.ICHIGO["llama3 positions"]), helpers.ichigo_cases),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, Family]:
    found = {}
    for name, (make_model, make_cases) in MAKERS.items():
        folder = tmp_path_factory.mktemp(name)
        model = make_model()
        model.save_pretrained(folder)
        found[name] = Family(folder, type(model), make_cases()["batch"]())
    return found


@pytest.fixture(params=MAKERS)
def family(request, families) -> Family:
    return families[request.param]


@pytest.fixture
def qwen2_audio(families) -> Family:
    return families["qwen2_audio"]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Family:
    """Two layers and no encoder: its graphs compile fast."""
    folder = tmp_path_factory.mktemp("small")
    model = helpers.torch_llama(num_hidden_layers=2)
    model.save_pretrained(folder)
    return Family(folder, type(model), helpers.ichigo_cases()["one clip"]())


def adapted(family: Family, seed: int = 0, **settings) -> AdaptedModel:
    """A model of which every adapter changes what it says."""
    model = add_lora(family.ours(), LoraSettings(**{"r": 4, "alpha": 8, **settings}))
    helpers_peft.randomise_adapters(model, seed)
    return model


def our_logits(family: Family, model) -> np.ndarray:
    return family.seen(model(**family.inputs).logits.asnumpy())


def torch_logits(family: Family, model) -> np.ndarray:
    with torch.no_grad():
        return family.seen(model(**to_torch(family.inputs)).logits.numpy())


def tokens(family: Family, model, **settings) -> list[list[int]]:
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": PAD, **settings}
    return model.generate(**family.inputs, **settings).asnumpy()[:, family.inputs["input_ids"].shape[1] :].tolist()


def adapted_names(model) -> set[str]:
    """The modules with adapters of a PyTorch model, by their names in it."""
    return {name for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}


def stored_modules(folder: Path) -> set[str]:
    """The modules of an adapter's file."""
    names = load_file(folder / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model.").rsplit(".", 2)[0] for name in names}


# --- to PyTorch's PEFT and back


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"encoder": True, "use_rslora": True, "init": "gaussian", "dropout": 0.1},
        {"target_modules": ("v_proj", "layers.1.mlp.up_proj"), "r": 3, "alpha": 5.5},
    ],
    ids=["guides", "encoder", "few"],
)
def test_peft_loads_our_adapter(family, tmp_path, settings):
    model = adapted(family, **settings)
    model.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    plain = torch_logits(family, family.theirs())
    theirs = peft.PeftModel.from_pretrained(family.theirs(), tmp_path).eval()
    assert adapted_names(theirs) == stored_modules(tmp_path)
    expected = torch_logits(family, theirs)
    assert relative_error(expected, plain) > 0.1  # the adapter says something else than its base model
    assert relative_error(our_logits(family, model), expected) < TOLERANCE


def test_peft_finds_the_base_model_of_our_adapter(qwen2_audio, tmp_path):
    model = adapted(qwen2_audio)
    model.save_pretrained(tmp_path)
    theirs = peft.AutoPeftModel.from_pretrained(tmp_path).eval()
    assert type(theirs.get_base_model()) is transformers.Qwen2AudioForConditionalGeneration
    assert relative_error(our_logits(qwen2_audio, model), torch_logits(qwen2_audio, theirs)) < TOLERANCE


def test_the_files_say_what_pefts_say(family, tmp_path):
    """The same adapter saved by both: the same tensors, and a configuration without a value of ours."""
    adapted(family, encoder=True).save_pretrained(tmp_path / "ours")
    peft.PeftModel.from_pretrained(family.theirs(), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    with safe_open(tmp_path / "ours" / "adapter_model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    ours, theirs = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    assert ours["base_model_name_or_path"] == str(family.folder)
    different = {name for name in ours if name in theirs and ours[name] != theirs[name]}
    assert different <= {"target_modules", "auto_mapping"}  # of lists the order; of modules the path
    assert set(ours["target_modules"]) == set(theirs["target_modules"])
    assert ours.keys() <= theirs.keys()


PEFT_CONFIGS = {
    "the guides' list": {"target_modules": helpers_peft.GUIDES, "task_type": "CAUSAL_LM", "lora_dropout": 0.05},
    "an expression": {"target_modules": r".*layers\.[02]\.(self_attn|mlp)\.(q_proj|down_proj)", "use_rslora": True},
    "one layer": {"target_modules": ["v_proj"], "layers_to_transform": [1], "init_lora_weights": "gaussian"},
    "own ranks": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"up_proj": 2},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 3},
        "exclude_modules": ["layers.1.mlp.up_proj"],
    },
}


@pytest.mark.parametrize("config", PEFT_CONFIGS.values(), ids=PEFT_CONFIGS)
def test_we_load_pefts_adapter(family, tmp_path, config):
    theirs = helpers_peft.torch_adapter(family.theirs(), **config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_adapter(family.ours(), tmp_path / "theirs")
    expected = torch_logits(family, theirs)
    assert relative_error(expected, torch_logits(family, family.theirs())) > 0.05
    assert relative_error(our_logits(family, ours), expected) < TOLERANCE
    assert trainable_parameters(ours)[0] == 0
    ours.save_pretrained(tmp_path / "again")
    assert stored_modules(tmp_path / "again") == adapted_names(theirs)
    again = peft.PeftModel.from_pretrained(family.theirs(), tmp_path / "again").eval()
    assert relative_error(torch_logits(family, again), expected) < 1e-6


def test_the_guides_list_adapts_the_encoder_too(qwen2_audio, tmp_path):
    """As PEFT does it, while ours leaves the encoder alone unless it is asked for."""
    theirs = helpers_peft.torch_adapter(qwen2_audio.theirs(), target_modules=helpers_peft.GUIDES)
    theirs.save_pretrained(tmp_path / "theirs")
    load_adapter(qwen2_audio.ours(), tmp_path / "theirs").save_pretrained(tmp_path / "again")
    assert sum("audio_tower" in name for name in stored_modules(tmp_path / "again")) == 2 * 3
    adapted(qwen2_audio).save_pretrained(tmp_path / "ours")
    assert sum("audio_tower" in name for name in stored_modules(tmp_path / "ours")) == 0


def test_an_adapter_in_half_precision_is_read_as_float32(qwen2_audio, tmp_path):
    theirs = helpers_peft.torch_adapter(qwen2_audio.theirs(), target_modules=["v_proj"])
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    save_torch({name: value.bfloat16() for name, value in load_torch(file).items()}, file, {"format": "pt"})
    expected = torch_logits(qwen2_audio, peft.PeftModel.from_pretrained(qwen2_audio.theirs(), tmp_path).eval())
    assert relative_error(our_logits(qwen2_audio, load_adapter(qwen2_audio.ours(), tmp_path)), expected) < TOLERANCE


# --- training


def test_gradients_are_pefts(family, tmp_path):
    model = adapted(family, target_modules=("q_proj", "down_proj"))
    model.save_pretrained(tmp_path)
    seen = family.inputs["attention_mask"] != 0
    # Nor the first token of a prompt padded on the left: what predicts it is padding, which nobody defines.
    learned = seen & np.concatenate([seen[:, :1] & False, seen[:, :-1]], 1)
    labels = np.where(learned, family.inputs["input_ids"], -100)
    parameters = model.trainable_params()
    loss, gradients = ms.value_and_grad(lambda: model(**family.inputs, labels=labels).loss, None, parameters)()
    theirs = peft.PeftModel.from_pretrained(family.theirs(), tmp_path, is_trainable=True).eval()
    expected = theirs(**to_torch(family.inputs), labels=torch.from_numpy(labels)).loss
    expected.backward()
    assert abs(float(loss) - expected.item()) < TOLERANCE * expected.item()
    grads = {
        name.removeprefix("base_model.model."): parameter.grad.numpy()
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    assert len(parameters) == len(grads) == 2 * len(stored_modules(tmp_path))
    for parameter, gradient in zip(parameters, gradients):
        name = parameter.name.removeprefix("language_model.") if "ichigo" in str(family.folder) else parameter.name
        assert relative_error(gradient.asnumpy(), grads[name]) < TOLERANCE


def test_a_new_adapter_changes_nothing_and_only_it_is_trained(family):
    model = family.ours()
    before = our_logits(family, model)
    model = add_lora(model)
    np.testing.assert_array_equal(our_logits(family, model), before)
    assert all(".lora_A." in p.name or ".lora_B." in p.name for p in model.trainable_params())
    assert len({p.name for p in model.get_parameters()}) == len(list(model.get_parameters()))


def test_what_is_trained_is_counted_as_peft_does(qwen2_audio, capsys):
    theirs = helpers_peft.torch_adapter(qwen2_audio.theirs(), r=4, target_modules=helpers_peft.GUIDES)
    theirs.print_trainable_parameters()
    expected = capsys.readouterr().out
    model = add_lora(qwen2_audio.ours(), LoraSettings(r=4, encoder=True, dropout=0.1))
    model.print_trainable_parameters()
    assert capsys.readouterr().out == expected
    assert trainable_parameters(model) == theirs.get_nb_trainable_parameters()


@pytest.mark.parametrize("init", ["default", "gaussian"])
def test_new_adapters_are_distributed_as_pefts_and_repeatable(qwen2_audio, init):
    def first(seed: int) -> np.ndarray:
        model = add_lora(qwen2_audio.ours(), LoraSettings(r=64, init=init, seed=seed))
        layer = model.language_model.model.layers[0].self_attn.q_proj
        assert not layer.lora_B["default"].weight.asnumpy().any()
        return layer.lora_A["default"].weight.asnumpy()

    values = first(1)
    np.testing.assert_array_equal(first(1), values)
    assert (first(2) != values).all()
    scale = 1 / 64 if init == "gaussian" else 1 / np.sqrt(48) / np.sqrt(3)  # standard deviations
    assert abs(values.std() / scale - 1) < 0.05
    if init == "default":
        assert np.abs(values).max() <= 1 / np.sqrt(48)


def test_training_goes_on_from_a_stored_adapter(qwen2_audio, tmp_path):
    adapted(qwen2_audio).save_pretrained(tmp_path)
    model = load_adapter(qwen2_audio.ours(), tmp_path, trainable=True)
    assert trainable_parameters(model) == trainable_parameters(adapted(qwen2_audio))
    assert len(model.trainable_params()) == 2 * len(stored_modules(tmp_path))


def test_dropout_is_a_function_of_its_seed(qwen2_audio):
    model = adapted(qwen2_audio, dropout=0.4)
    labels = qwen2_audio.inputs["input_ids"]

    def losses(count: int) -> list[float]:
        return [float(model(**qwen2_audio.inputs, labels=labels).loss) for _ in range(count)]

    assert len(set(losses(2))) == 1  # not while it is evaluated
    model.set_train(True)
    set_dropout_seed(model, 7)
    drawn = losses(4)
    assert len(set(drawn)) == 4
    set_dropout_seed(model, 9)
    assert losses(2) == drawn[2:]  # an interrupted run goes on with the same masks


def test_dropout_masks():
    seed = ms.Parameter(ms.Tensor([5], ms.int32), requires_grad=False)
    one, other = (Dropout(0.25, 256, seed, stream).set_train(True) for stream in (1, 2))
    compiled = ms.jit(one.construct)
    x = ms.ops.ones((4, 128, 256))
    masks = [one(x).asnumpy(), other(x).asnumpy()]
    np.testing.assert_array_equal(compiled(x).asnumpy(), masks[0])
    ms.ops.assign(seed, ms.Tensor([6], ms.int32))
    masks.append(compiled(x).asnumpy())
    np.testing.assert_array_equal(one(x).asnumpy(), masks[2])
    for mask in masks:
        assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.75)}
        kept = (mask != 0).reshape(512, 256) - 0.75
        assert abs(kept.mean()) < 0.005  # five standard deviations of so many draws
        for means, draws in ((kept.mean(1), 256), (kept.mean(0), 512)):
            assert 0.85 < means.std() / np.sqrt(0.75 * 0.25 / draws) < 1.15
        # Of independent values, the largest singular value is near sqrt(512) + sqrt(256) standard deviations.
        assert np.linalg.norm(kept, 2) < 1.05 * (np.sqrt(512) + 16) * np.sqrt(0.75 * 0.25)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        agree = ((masks[a] != 0) == (masks[b] != 0)).mean()
        assert abs(agree - (0.75**2 + 0.25**2)) < 0.01
    gradient = ms.grad(lambda value: one(value).sum())(x).asnumpy()
    np.testing.assert_array_equal(gradient, masks[2])


# --- merging, and what `generate` does


def test_merged_says_the_same_and_is_a_checkpoint(family, tmp_path):
    model = adapted(family, encoder=True)
    logits, said = our_logits(family, model), tokens(family, model, compile=False)
    merged = model.merge_and_unload()
    assert type(merged) is type(family.ours())
    assert tokens(family, merged, compile=False) == said != tokens(family, family.ours(), compile=False)
    merged.save_pretrained(tmp_path)
    published = load_file(family.folder / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() == published.keys()
    for loaded in (AutoModelForAudioTextToText.from_pretrained(tmp_path), merged):
        assert relative_error(our_logits(family, loaded), logits) < TOLERANCE
    theirs = family.torch_class.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert relative_error(torch_logits(family, theirs), logits) < TOLERANCE


@pytest.mark.slow
def test_compiled_generation_follows_the_adapters(small, tmp_path):
    other = adapted(small, seed=1)
    other.save_pretrained(tmp_path)
    expected_of_other = tokens(small, other)
    model = small.ours()
    said = {}

    def say(what: str, model) -> None:
        said[what] = tokens(small, model)
        assert said[what] == tokens(small, model, compile=False), what

    say("base", model)
    model = add_lora(model, LoraSettings(r=4, alpha=8))
    helpers_peft.randomise_adapters(model)
    say("added", model)
    with model.disable_adapter():
        say("disabled", model)
    say("enabled", model)
    model.base_model.merge_adapter()
    say("merged", model)
    with model.disable_adapter():
        say("disabled while merged", model)
    say("merged again", model)
    model.base_model.unmerge_adapter()
    say("unmerged", model)
    model.load_adapter(tmp_path, "other")
    say("another loaded", model)
    model.set_adapter("other")
    say("another active", model)
    model.set_adapter("default")
    say("first active", model)
    model.load_adapter(tmp_path, "default")
    say("replaced in place", model)
    say("unloaded", model.unload())
    of_first = ["enabled", "merged", "merged again", "unmerged", "another loaded", "first active"]
    assert all(said[what] == said["added"] for what in of_first)
    assert all(said[what] == said["base"] for what in ("disabled", "disabled while merged", "unloaded"))
    assert said["another active"] == said["replaced in place"] == expected_of_other
    assert len({str(said[what]) for what in ("base", "added", "another active")}) == 3


@pytest.mark.slow
def test_scaling_an_adapter_is_followed(small):
    model = adapted(small)
    before = tokens(small, model)
    for layer in (cell for _, cell in model.cells_and_names() if isinstance(cell, PeftLoraLinear)):
        layer.set_scale("default", 0.0)
    assert tokens(small, model) == tokens(small, small.ours()) != before


def test_graphs_are_kept_while_adapters_stay(small):
    model = adapted(small)
    tokens(small, model)
    engine = model.get_base_model().engine()
    helpers_peft.randomise_adapters(model, seed=2)  # other numbers need no other graph
    tokens(small, model)
    assert model.get_base_model().engine() is engine


@pytest.mark.slow
def test_compiled_encoder_and_projector_are_adapted(qwen2_audio):
    model = adapted(qwen2_audio, target_modules=(*helpers_peft.GUIDES, PROJECTOR), encoder=True)
    assert tokens(qwen2_audio, model) == tokens(qwen2_audio, model, compile=False)


def test_merging_in_place_is_undone(qwen2_audio):
    model = adapted(qwen2_audio)
    weight = model.language_model.model.layers[0].self_attn.q_proj.base_layer.weight
    before, logits = weight.asnumpy().copy(), our_logits(qwen2_audio, model)
    model.base_model.merge_adapter()
    assert np.abs(weight.asnumpy() - before).max() > 0.01
    assert relative_error(our_logits(qwen2_audio, model), logits) < TOLERANCE
    model.base_model.unmerge_adapter()
    assert np.abs(weight.asnumpy() - before).max() < 1e-6
    assert relative_error(our_logits(qwen2_audio, model), logits) < TOLERANCE


def test_disabling_leaves_what_is_trained(qwen2_audio, tmp_path):
    adapted(qwen2_audio).save_pretrained(tmp_path)
    for trainable in (True, False):
        model = load_adapter(qwen2_audio.ours(), tmp_path, trainable=trainable)
        before = trainable_parameters(model)
        with model.disable_adapter():
            np.testing.assert_array_equal(our_logits(qwen2_audio, model), our_logits(qwen2_audio, qwen2_audio.ours()))
        assert trainable_parameters(model) == before


# --- the layers


def test_the_projector_is_adapted_by_its_name(families, tmp_path):
    for name, layers in (("qwen2_audio", ["linear"]), ("voxtral", ["linear_1", "linear_2"])):
        family, folder = families[name], tmp_path / name
        model = adapted(family, target_modules=(PROJECTOR,))
        model.save_pretrained(folder)
        assert stored_modules(folder) == {f"{PROJECTOR}.{layer}" for layer in layers}
        theirs = peft.PeftModel.from_pretrained(family.theirs(), folder).eval()
        assert adapted_names(theirs) == stored_modules(folder)
        expected = torch_logits(family, theirs)
        assert relative_error(our_logits(family, model), expected) < TOLERANCE
        assert relative_error(expected, torch_logits(family, family.theirs())) > 0.01


@pytest.mark.parametrize(
    "golden",
    ["audioflamingo3", "ultravox_llama", "ultravox_qwen3", "qwen2_audio_transformers5", "qwen2_audio_nf4_plain"],
)
def test_names_on_disk_are_the_checkpoints(golden, tmp_path):
    """For families without a PyTorch class here: every adapted layer is one whose weight the checkpoint has."""
    model = AutoModelForAudioTextToText.from_pretrained(GOLDENS / golden)
    model = add_lora(model, LoraSettings(target_modules=("q_proj", "down_proj", PROJECTOR), encoder=True))
    helpers_peft.randomise_adapters(model)
    model.save_pretrained(tmp_path / "adapter")
    modules = stored_modules(tmp_path / "adapter")
    base = AutoModelForAudioTextToText.from_pretrained(GOLDENS / golden)
    base.save_pretrained(tmp_path / "base")
    if golden == "audioflamingo3":  # whose class has other names than its checkpoints; PEFT's adapter was recorded
        assert {module for module in modules if PROJECTOR not in module} <= stored_modules(GOLDENS / f"{golden}_lora")
    else:
        assert {f"{module}.weight" for module in modules} <= load_file(tmp_path / "base" / "model.safetensors").keys()
    assert any("q_proj" in module for module in modules) and any(PROJECTOR in module for module in modules)
    again = load_adapter(base, tmp_path / "adapter")
    ours, loaded = (dict(m.get_base_model().parameters_and_names()) for m in (model, again))
    for name, parameter in ours.items():
        np.testing.assert_array_equal(loaded[name].asnumpy(), parameter.asnumpy())


def test_a_name_of_ours_becomes_transformers(families, tmp_path):
    family = families["ichigo"]
    model = adapted(family, target_modules=("language_model.model.layers.1.self_attn.q_proj",))
    model.save_pretrained(tmp_path)
    assert stored_modules(tmp_path) == {"model.layers.1.self_attn.q_proj"}
    theirs = peft.PeftModel.from_pretrained(family.theirs(), tmp_path).eval()
    assert relative_error(our_logits(family, model), torch_logits(family, theirs)) < TOLERANCE


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_proj", "qproj"), "'qproj' matches no linear layer.*did you mean q_proj"),
        (("multi_modal_projecter",), f"did you mean {PROJECTOR}"),
        (("layers.7.self_attn.q_proj",), "layers.7.self_attn.q_proj.*did you mean .*self_attn.q_proj"),
        (("zzz",), "there are .*q_proj.*gate_proj"),
        (("self_attn",), "'self_attn' matches no linear layer"),
        (("embed_tokens",), "'embed_tokens' matches no linear layer"),
        (("fc1",), "'fc1' is only in the audio encoder.*encoder=True"),
    ],
)
def test_targets_that_match_nothing(qwen2_audio, targets, message):
    model = qwen2_audio.ours()
    with pytest.raises(ValueError, match=message):
        add_lora(model, LoraSettings(target_modules=targets))
    assert not any(isinstance(cell, PeftLoraLinear) for _, cell in model.cells_and_names())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": 2.5}, "r is 2.5"),
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"target_modules": "q_proj"}, "give a list"),
        ({"target_modules": ()}, "give a list"),
        ({"init": "pissa"}, "init is 'pissa': use one of default, gaussian"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        LoraSettings(**settings)


def test_a_model_is_adapted_once(qwen2_audio, tmp_path):
    model = adapted(qwen2_audio)
    model.save_pretrained(tmp_path)
    for again in (lambda: add_lora(model.get_base_model()), lambda: load_adapter(model.get_base_model(), tmp_path)):
        with pytest.raises(ValueError, match="has adapters already"):
            again()
    model.unload()
    load_adapter(model.get_base_model(), tmp_path)


def test_layers_in_4_bits_are_not_adapted():
    model = AutoModelForAudioTextToText.from_pretrained(GOLDENS / "qwen2_audio_nf4_plain", keep_quantized=True)
    with pytest.raises(ValueError, match="are in 4 bits, such as .*q_proj.*keep_quantized"):
        add_lora(model)


# --- adapters that do not fit


def refusal(model, folder) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_adapter(model, folder)
    assert not any(isinstance(cell, PeftLoraLinear) for _, cell in model.cells_and_names())
    return str(caught.value)


def changed(folder: Path, **config) -> Path:
    """The same adapter with other values in adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return folder


def test_an_adapter_of_another_family_is_refused(families, tmp_path):
    folder = tmp_path / "adapter"
    adapted(families["voxtral"]).save_pretrained(folder)
    names = [str(families[name].folder) for name in ("voxtral", "qwen2_audio")]
    message = refusal(families["qwen2_audio"].ours(), folder)  # by its class
    assert all(name in message for name in names) and "VoxtralForConditionalGeneration" in message
    message = refusal(families["qwen2_audio"].ours(), changed(folder, auto_mapping=None))  # by the base's config.json
    assert all(name in message for name in names) and "'voxtral'" in message
    changed(folder, base_model_name_or_path="someone/moved")  # by the shapes
    message = refusal(families["qwen2_audio"].ours(), folder)
    assert "someone/moved" in message and names[1] in message and "this model needs" in message
    message = refusal(families["ichigo"].ours(), folder)  # by the names
    assert "someone/moved" in message and "language_model.model.layers.0" in message


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"hidden_size": 24}, "this model needs"),
        ({"num_hidden_layers": 2}, "layers.2"),
        ({"num_hidden_layers": 4}, "no tensors for 7 layers, such as .*layers.3"),
    ],
)
def test_an_adapter_of_other_sizes_is_refused(qwen2_audio, tmp_path, sizes, reason):
    adapted(qwen2_audio).save_pretrained(tmp_path / "adapter")
    helpers.torch_model(helpers.tiny_config(text=sizes)).save_pretrained(tmp_path / "smaller")
    message = refusal(AutoModelForAudioTextToText.from_pretrained(tmp_path / "smaller"), tmp_path / "adapter")
    assert str(qwen2_audio.folder) in message and str(tmp_path / "smaller") in message
    assert re.search(reason, message)


def test_a_moved_base_model_is_the_same(qwen2_audio, tmp_path, caplog):
    adapted(qwen2_audio).save_pretrained(tmp_path)
    load_adapter(qwen2_audio.ours(), changed(tmp_path, base_model_name_or_path=f"/moved/{qwen2_audio.folder.name}"))
    assert "make sure" not in caplog.text
    load_adapter(qwen2_audio.ours(), changed(tmp_path, base_model_name_or_path="someone/similar"))
    assert "someone/similar" in caplog.text and "make sure that the weights are the same" in caplog.text


def test_files_that_cannot_be_used(qwen2_audio, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_adapter(qwen2_audio.ours(), tmp_path / "nowhere")
    with pytest.raises(OSError, match="adapter_config.json"):
        load_adapter(qwen2_audio.ours(), qwen2_audio.folder)
    folder = tmp_path / "adapter"
    adapted(qwen2_audio).save_pretrained(folder)
    kept = (folder / "adapter_config.json").read_text()
    for config in ({"peft_type": "IA3"}, {"use_dora": True}, {"bias": "all"}, {"init_lora_weights": "pissa"}):
        message = refusal(qwen2_audio.ours(), changed(folder, **config))
        assert next(iter(config)) in message and "support" in message
        (folder / "adapter_config.json").write_text(kept)
    tensors = load_file(folder / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    save_file({name: value for name, value in tensors.items() if name != first}, folder / "adapter_model.safetensors")
    assert "no tensors for 1 layers" in refusal(qwen2_audio.ours(), folder)
    save_file({**tensors, "base_model.model.lm_head.weight": tensors[first]}, folder / "adapter_model.safetensors")
    assert "base_model.model.lm_head.weight" in refusal(qwen2_audio.ours(), folder)


# --- mindone.peft's own wrapper, and the hub


def wrapped_by_peft(family: Family):
    """What a reader of MindONE's documentation writes: mindone.peft alone, with the guides' task_type."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(family.ours(), config)
    assert type(model) is PeftModelForCausalLM
    helpers_peft.randomise_adapters(model, scale=1.0)
    return model


def test_pefts_wrapper_for_causal_language_models_runs(family):
    model, labels = wrapped_by_peft(family), family.inputs["input_ids"]
    output = model(**family.inputs, labels=labels)
    assert output.loss.asnumpy() > 0 and output.logits.shape[0] == len(labels)
    assert relative_error(our_logits(family, model), our_logits(family, family.ours())) > 0.1
    with pytest.raises(TypeError, match="takes no inputs_embeds"):
        model(**family.inputs, inputs_embeds=output.logits)


@pytest.mark.slow
def test_pefts_wrapper_for_causal_language_models_generates(small):
    model = wrapped_by_peft(small)
    said = tokens(small, model)
    assert said == tokens(small, model, compile=False) != tokens(small, small.ours())
    assert tokens(small, model.merge_and_unload()) == said


def test_adapters_are_pushed(qwen2_audio, monkeypatch):
    """`push_to_hub` is transformers': it gets a folder with the adapter's files."""
    pushed = {}

    def upload(self, working_dir, repo_id, files_timestamps, **keywords):
        pushed[repo_id] = sorted(file.name for file in Path(working_dir).iterdir())

    # It would ask the hub for the repository's model card.
    monkeypatch.setattr(transformers.utils.hub, "create_and_tag_model_card", lambda *a, **k: ModelCard("---\n---\n"))
    monkeypatch.setattr(PeftModel, "_create_repo", lambda self, repo_id, **keywords: repo_id)
    monkeypatch.setattr(PeftModel, "_upload_modified_files", upload)
    adapted(qwen2_audio).push_to_hub("someone/adapter")
    assert pushed == {"someone/adapter": ["README.md", "adapter_config.json", "adapter_model.safetensors"]}


def test_several_adapters_are_saved_by_name(qwen2_audio, tmp_path):
    model = adapted(qwen2_audio)
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "second")
    model.save_pretrained(tmp_path / "both")
    assert stored_modules(tmp_path / "both") == stored_modules(tmp_path / "both" / "second")
    with pytest.raises(ValueError, match="no adapter third: this model has default, second"):
        model.save_pretrained(tmp_path, selected_adapters=["third"])
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()

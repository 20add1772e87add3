"""bitsandbytes NF4 checkpoints: its own files, its own numbers, and whatever is wrong with one is named."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import helpers_voxtral
import mindspore as ms
import numpy as np
import pytest
import torch
from families import CASES, GOLDENS, SINGLES, golden, published_weights
from helpers import PAD, batch, clips, prompt, relative_error, tiny_config, to_torch, torch_model
from helpers_quantization import STATE, in_4_bits, quantise
from mindone.peft import LoraConfig, get_peft_model
from mindspore.common import np_dtype
from safetensors.torch import load_file, save_file
from transformers import Qwen2AudioForConditionalGeneration as TorchQwen2Audio

from mindone_audio import AutoModelForAudioTextToText
from mindone_audio.backbone.layers import Linear, QuantizedLinear
from mindone_audio.weights import nf4
from mindone_audio.weights.hub import CheckpointError
from mindone_audio.weights.parameters import read_tensor, stored_tensors

ROOT = Path(__file__).parent.parent
MODELS = ("qwen2_audio_nf4_plain", "qwen2_audio_nf4_double")
PROJECTION = "language_model.model.layers.1.self_attn.q_proj"
LAYER = f"{PROJECTION}.weight"


@pytest.fixture(scope="module", params=MODELS)
def both(request):
    """A golden's recordings, the model dequantised and the model that keeps its 4 bits."""
    folder, recordings = golden(request.param).load(None)
    load = AutoModelForAudioTextToText.from_pretrained
    return recordings, load(folder), load(folder, keep_quantized=True)


@pytest.fixture(params=MODELS)
def folder(request, tmp_path):
    return shutil.copytree(GOLDENS / request.param, tmp_path / request.param)


@pytest.fixture
def double(tmp_path):
    return shutil.copytree(GOLDENS / "qwen2_audio_nf4_double", tmp_path / "double")


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_state(tensors, **fields):
    """Set fields of a weight's JSON; None removes one."""
    state = {**json.loads(bytes(tensors[f"{LAYER}.{STATE}"].tolist())), **fields}
    state = {name: value for name, value in state.items() if value is not None}
    tensors[f"{LAYER}.{STATE}"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def new_tokens(model, recording, count=16, **settings):
    settings = {"max_new_tokens": count, "pad_token_id": PAD, "do_sample": False, **settings}
    tokens = model.generate(**recording.inputs, **settings).asnumpy()
    return tokens[:, recording.inputs["input_ids"].shape[1] :].tolist()


def seen_logits(model, recording):
    return model(**recording.inputs).logits.asnumpy()[recording.inputs["attention_mask"] != 0]


@pytest.mark.parametrize("at_once", [1 << 17, 64])
def test_every_kind_of_weight_is_dequantised_as_bitsandbytes_does(at_once, monkeypatch):
    """Odd shapes, other block sizes, other dtypes of the codes; in fp32 and rounded. The difference is zero."""
    monkeypatch.setattr(nf4, "_BYTES_AT_ONCE", at_once)
    stored = {tensor.name: tensor for tensor in stored_tensors(GOLDENS / "nf4_layers")}
    found = nf4.group(stored, read_tensor)
    expected = np.load(GOLDENS / "nf4_layers" / "dequantised.npz")
    names = {name for name in expected.files if "." not in name}
    assert {f"{name}.weight" for name in names} == set(found) and len(found) == 11
    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": np.dtype(np_dtype.bfloat16)}
    for name in names:
        weight = found[f"{name}.weight"]
        np.testing.assert_array_equal(weight.dequantized(np.float32), expected[name], strict=True)
        if f"{name}.rounded" in expected:
            rounded = weight.dequantized(dtypes[weight.dtype]).astype(np.float32)
            np.testing.assert_array_equal(rounded, expected[f"{name}.rounded"])


def test_what_is_computed_is_what_bitsandbytes_layers_compute(both):
    recordings, *models = both
    recording = recordings["batch"]
    expected = recording.arrays["bitsandbytes.logits"][recording.inputs["attention_mask"] != 0]
    for model in models:
        assert relative_error(seen_logits(model, recording), expected) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_kept_equals_dequantised(both, case):
    recordings, dequantised, kept = both
    recording = recordings[case]
    expected = seen_logits(dequantised, recording)
    assert relative_error(seen_logits(kept, recording), expected) < 1e-5
    assert new_tokens(kept, recording) == recording.arrays["tokens"].tolist()


def test_kept_batch_equals_its_singles_and_compiled_equals_interpreted(both):
    recordings, _, kept = both
    together = new_tokens(kept, recordings["batch"])
    assert together == [new_tokens(kept, recordings[single])[0] for single in SINGLES]
    assert [row[:4] for row in together] == new_tokens(kept, recordings["batch"], 4, compile=False)


def test_kept_weights_take_a_third_of_bfloat16(both):
    _, dequantised, kept = both
    linear = {name for name, cell in kept.cells_and_names() if isinstance(cell, QuantizedLinear)}
    plain = {name for name, cell in dequantised.cells_and_names() if isinstance(cell, Linear)}
    assert len(linear) >= 20 and plain - linear <= {"language_model.lm_head"}
    in_bfloat16 = sum(2 * p.size for p in dequantised.get_parameters() if p.name in {f"{n}.weight" for n in linear})
    ours = sum(
        p.nbytes
        for p in kept.get_parameters()
        if p.name.rpartition(".")[0] in linear and p.name.rpartition(".")[2] in ("weight", "absmax", "nested_absmax")
    )
    assert ours <= 0.3 * in_bfloat16
    names = [p.name for p in kept.get_parameters()]
    assert len(names) == len(set(names))
    assert not any(p.requires_grad for p in kept.get_parameters() if p.dtype == ms.uint8)


def test_dequantising_needs_little_beside_its_result():
    count = 1 << 22
    codes = np.random.default_rng(0).integers(0, 256, count // 2, dtype=np.uint8)
    blocks = nf4.Blocks(codes, np.ones((256, 2), np.float32), np.ones(count // 64, np.float32), count)
    tracemalloc.start()
    target = np.empty(count, np.float32)
    nf4.dequantize(blocks, target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * target.nbytes


CHAIN = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import mindspore as ms, numpy as np
from mindspore import nn
from mindone_audio.weights.parameters import read_tensor, stored_tensors
from mindone_audio.machine import device
from mindone_audio.weights import nf4
from mindone_audio.backbone.layers import QuantizedLinear
device.prepare()
stored = {{tensor.name: tensor for tensor in stored_tensors(Path({folder!r}))}}
layers = nn.SequentialCell([QuantizedLinear(w, None) for w in nf4.group(stored, read_tensor).values()])

def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) * 1024

before = resident()
ms.jit(layers.construct)(ms.Tensor(np.ones((1, 1024), np.float32)))
print(resident() - before)
"""


def test_a_graph_has_the_weights_of_one_layer_at_a_time_in_memory(tmp_path):
    """24 layers of 4 MiB in fp32: what one run adds to the process's memory is less than all of them."""
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    weight = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    tensors = {name: tensor for n in range(24) for name, tensor in in_4_bits(f"{n}.weight", weight).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    root = Path(__file__).parent.parent
    script = CHAIN.format(paths=[str(root)], folder=str(tmp_path))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert int(result.stdout.split()[-1]) < 24 * (4 << 20)


def test_a_dequantised_model_is_saved_as_a_plain_checkpoint(folder, tmp_path_factory):
    model = AutoModelForAudioTextToText.from_pretrained(folder)
    saved = tmp_path_factory.mktemp("saved")
    model.save_pretrained(saved)
    assert "quantization_config" not in json.loads((saved / "config.json").read_text())
    back, info = TorchQwen2Audio.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values())
    _, recordings = golden(folder.name).load(None)
    recording = recordings["three clips"]
    with torch.no_grad():
        logits = back.eval()(**to_torch(recording.inputs)).logits.numpy()
    assert relative_error(logits, recording.arrays["logits"]) < 1e-5


def test_a_kept_model_is_not_saved(double, tmp_path):
    model = AutoModelForAudioTextToText.from_pretrained(double, keep_quantized=True)
    with pytest.raises(ValueError, match="weights in 4 bits cannot be saved.*without keep_quantized=True"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_adapters_on_kept_layers_are_refused_and_gradients_pass_through(both):
    recordings, dequantised, kept = both
    with pytest.raises(ValueError, match="QuantizedLinear.*is not supported"):
        get_peft_model(kept, LoraConfig(target_modules=["q_proj"]))
    recording = recordings["text only"]
    ids = ms.Tensor(recording.inputs["input_ids"], ms.int32)
    gradients = []
    for model in (dequantised, kept):
        norm = model.language_model.model.layers[0].input_layernorm.weight
        loss = ms.value_and_grad(lambda ids: model(ids, labels=ids).loss, None, [norm])  # noqa: B023
        gradients.append(loss(ids)[1][0].asnumpy())
    assert np.abs(gradients[0]).max() > 1e-3
    assert relative_error(gradients[1], gradients[0]) < 1e-4


def test_only_linear_layers_are_kept(tmp_path):
    """Where another cell's weight is in 4 bits, or a head is copied from it, it is dequantised in both modes."""
    torch_model(tiny_config(text={"tie_word_embeddings": True})).save_pretrained(tmp_path)
    name = "language_model.model.embed_tokens.weight"
    original = load_file(tmp_path / "model.safetensors")[name].numpy()
    quantise(tmp_path, [name])
    for keywords in ({}, {"keep_quantized": True}, {"keep_quantized": True, "tie_word_embeddings": False}):
        model = AutoModelForAudioTextToText.from_pretrained(tmp_path, **keywords)
        table = model.get_input_embeddings().weight.asnumpy()
        assert np.abs(table - original).max() <= np.abs(original).max() / 15
        if "tie_word_embeddings" in keywords:
            np.testing.assert_array_equal(model.get_output_embeddings().weight.asnumpy(), table)


def test_names_as_transformers_5_may_write_them_and_companions_in_another_shard(double):
    recording = golden("qwen2_audio_nf4_double").load(None)[1]["three clips"]
    tensors = load_file(double / "model.safetensors")
    tensors = {
        name.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        ): tensor
        for name, tensor in tensors.items()
    }
    shards = {"a.safetensors": {}, "b.safetensors": {}}
    for number, name in enumerate(sorted(tensors)):
        shards["ab"[number % 2] + ".safetensors"][name] = tensors[name]
    for file, content in shards.items():
        save_file(content, double / file)
    (double / "model.safetensors").unlink()
    places = {name: file for file, content in shards.items() for name in content}
    (double / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for keywords in ({}, {"keep_quantized": True}):
        model = AutoModelForAudioTextToText.from_pretrained(double, **keywords)
        assert relative_error(seen_logits(model, recording), recording.arrays["logits"][0]) < 1e-4


def test_the_tensors_decide_not_the_config(double):
    edit_config(double, lambda config: config.pop("quantization_config"))
    model = AutoModelForAudioTextToText.from_pretrained(double)
    value = dict(model.parameters_and_names())[LAYER].asnumpy()
    np.testing.assert_array_equal(value, published_weights(double)[LAYER])


def test_keep_quantized_of_a_checkpoint_that_is_not(tmp_path):
    torch_model(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="keep_quantized=True, but .* has no weights in 4 bits"):
        AutoModelForAudioTextToText.from_pretrained(tmp_path, keep_quantized=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type 'fp4'"),
        ({"load_in_8bit": True, "quant_method": "bitsandbytes"}, "load_in_8bit .int8, llm_int8."),
        ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq'"),
        ({"quant_method": "compressed-tensors"}, "quant_method 'compressed-tensors'"),
    ],
)
def test_other_quantisations_are_refused_by_the_config(double, settings, message):
    edit_config(double, lambda config: config.update(quantization_config=settings))
    with pytest.raises(CheckpointError, match=f"config.json: quantization_config.{message}.*is not supported: load"):
        AutoModelForAudioTextToText.from_pretrained(double)


def test_a_broken_quantization_config(double):
    edit_config(double, lambda config: config.update(quantization_config="nf4"))
    with pytest.raises(CheckpointError, match="config.json: quantization_config 'nf4' is not a JSON object"):
        AutoModelForAudioTextToText.from_pretrained(double)


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


BYTES = torch.zeros(4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename(f"{LAYER}.{STATE}", f"{LAYER}.quant_state.bitsandbytes__fp4"), f"'{LAYER}' is quantised to FP4.*nf4"),
        (rename(f"{LAYER}.{STATE}", f"{LAYER}.quant_state.bitsandbytes__af4"), f"'{LAYER}' is quantised to AF4"),
        (lambda t: t.update({f"{PROJECTION}.SCB": torch.ones(4)}), rf"{PROJECTION}.SCB' is .* int8"),
        (lambda t: t.update({f"{PROJECTION}.weight_format": BYTES}), r"weight_format' is .* int8"),
        (lambda t: t.update({LAYER: BYTES.to(torch.int8)}), f"{LAYER}' is .* int8"),
    ],
)
def test_other_quantisations_are_refused_by_the_tensors(double, change, message):
    edit(double, change)
    with pytest.raises(CheckpointError, match=f"model.safetensors: tensor .*{message}"):
        AutoModelForAudioTextToText.from_pretrained(double)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{LAYER}.{STATE}"), f"it has no {LAYER}.{STATE}"),
        (lambda t: [t.pop(f"{LAYER}.{p}") for p in ("absmax", "quant_map")], "no .*absmax, .*quant_map"),
        (lambda t: t.pop(f"{LAYER}.nested_absmax"), f"it has no {LAYER}.nested_absmax"),
        (lambda t: t.update({f"{LAYER}.{STATE}": BYTES}), f"its {STATE} cannot be read"),
        (lambda t: t.update({f"{LAYER}.{STATE}": torch.tensor([91, 93])}), "is not a JSON object|cannot be read"),
        (lambda t: edit_state(t, quant_type="fp4"), "says quant_type 'fp4'"),
        (lambda t: edit_state(t, shape=None), "says shape 'nothing'"),
        (lambda t: edit_state(t, shape=[0, 40]), r"says shape \[0, 40\]"),
        (lambda t: edit_state(t, shape=[40, 400]), r"has 800 bytes and needs 8000 for the shape \[40, 400\]"),
        (lambda t: edit_state(t, blocksize=0), "says blocksize 0"),
        (lambda t: edit_state(t, blocksize=True), "says blocksize True"),
        (lambda t: edit_state(t, blocksize=128), "absmax has dtype U8 and 25 values and needs U8 and 13"),
        (lambda t: edit_state(t, dtype="int8"), "says dtype 'int8'"),
        (lambda t: edit_state(t, dtype=["float32"]), "says dtype"),
        (lambda t: edit_state(t, nested_offset=10**400), "says nested_offset 1000"),
        (lambda t: edit_state(t, nested_offset="a"), "says nested_offset 'a'"),
        (lambda t: edit_state(t, nested_offset=float("inf")), "says nested_offset inf"),
        (lambda t: edit_state(t, nested_dtype="float16"), "says nested_dtype 'float16'"),
        (lambda t: edit_state(t, nested_blocksize=8), "nested_absmax has dtype F32 and 1 values and needs .* and 4"),
        (lambda t: edit_state(t, rotated=1), "has rotated, which is unknown"),
        (lambda t: t.update({f"{LAYER}.quant_map": torch.ones(15)}), "quant_map has dtype F32 and 15 values"),
        (lambda t: t.update({f"{LAYER}.quant_map": torch.ones(16, dtype=torch.int32)}), "quant_map has dtype I32"),
        (lambda t: t.update({f"{LAYER}.absmax": torch.ones(25)}), "absmax has dtype F32 and 25 values and needs U8"),
        (lambda t: [t.pop(f"{LAYER}.nested_{p}") for p in ("absmax", "quant_map")], "nested_.*needs its nested_absmax"),
        (lambda t: t.update({LAYER: BYTES}), "has 4 bytes and needs 800"),
    ],
)
@pytest.mark.parametrize("keywords", [{}, {"keep_quantized": True}])
def test_a_broken_weight_is_named(double, change, message, keywords):
    edit(double, change)
    with pytest.raises(CheckpointError, match=f"model.safetensors: tensor '{LAYER}' is no complete NF4.*{message}"):
        AutoModelForAudioTextToText.from_pretrained(double, **keywords)


def test_what_is_missing_or_unexpected_stays_named(double):
    edit(double, lambda t: t.pop(LAYER))
    with pytest.raises(CheckpointError, match=f"model.safetensors has {LAYER}.absmax, but nowhere is '{LAYER}'"):
        AutoModelForAudioTextToText.from_pretrained(double)
    edit(double, lambda t: [t.pop(name) for name in list(t) if name.startswith(LAYER)])
    with pytest.raises(CheckpointError, match=f"1 missing: {LAYER}"):
        AutoModelForAudioTextToText.from_pretrained(double)


def test_the_true_shape_is_checked_against_the_model(double):
    edit(double, lambda t: edit_state(t, shape=[20, 80]))
    with pytest.raises(CheckpointError, match=rf"{LAYER}' has shape \(20, 80\), the model .* needs \(40, 40\)"):
        AutoModelForAudioTextToText.from_pretrained(double)


def test_random_inputs_after_loading_with_a_dtype(double):
    """mindspore_dtype is that of what is not quantised; on CPU every float is float32."""
    inputs = {**batch([prompt([3, "a40", 5])]), **clips([40])}
    model = AutoModelForAudioTextToText.from_pretrained(double, keep_quantized=True, mindspore_dtype=ms.bfloat16)
    assert model.dtype == ms.float32
    assert np.isfinite(model(**inputs).logits.asnumpy()).all()


@pytest.mark.slow
def test_the_example(tmp_path, monkeypatch, capsys):
    """Both modes answer the same, and as the example says."""
    helpers_voxtral.write_checkpoint(tmp_path)
    names = [
        name for name in load_file(tmp_path / "model.safetensors") if re.search(r"(_proj|linear_\d)\.weight$", name)
    ]
    quantise(tmp_path, names)
    example, audio = ROOT / "examples" / "voxtral_4bit.py", ROOT / "examples" / "audio" / "siren.ogg"
    texts = []
    for more in ([], ["--keep-quantized"]):
        command = [
            str(example),
            "--model",
            str(tmp_path),
            "--audio",
            str(audio),
            "--prompt",
            "What?",
            "--device",
            "cpu",
        ]
        monkeypatch.setattr(sys, "argv", [*command, "--max-new-tokens", "6", *more])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(example), run_name="__main__")
        assert stop.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != "\n"
    monkeypatch.setattr(sys, "argv", [str(example), "--model", str(tmp_path), "--audio", "nope.wav"])
    with pytest.raises(SystemExit, match="error: audio clip 0: no audio file"):
        runpy.run_path(str(example), run_name="__main__")


@pytest.mark.parametrize("part", ["text_config", "audio_config"])
@pytest.mark.parametrize("field", ["quantization_config", "compression_config"])
def test_a_quantisation_that_a_parts_config_tells_of_is_refused(tmp_path, part, field):
    config = {part: {field: {"quant_method": "gptq"}}}
    with pytest.raises(CheckpointError, match=f"config.json: {part}.{field}.quant_method 'gptq' is not supported"):
        nf4.check_config(config, tmp_path)

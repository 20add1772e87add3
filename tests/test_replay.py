"""Recordings from PyTorch are replayed stage by stage, and a wrong weight is found where it is."""

import json
import sys
from pathlib import Path

import helpers_phi4
import helpers_qwen2_5_omni
import numpy as np
import pytest
import record_parity
import torch
from benchmark import measure_rounding
from helpers import batch, clips, prompt, tiny_config, to_torch, torch_model
from mindspore import Tensor
from safetensors.numpy import load_file, save_file

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, cli
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.proof import parity

RECORDING = Path(__file__).parent / "recordings" / "demo.safetensors"
INPUTS = {**batch([prompt([3, "a40", 5, "a20", 2])]), **clips([40, 20])}


def write(arrays, file, **facts):
    facts = {"model_type": "qwen2_audio", "dtype": "float32", **facts}
    save_file(arrays, file, metadata={"format": parity.FORMAT, "facts": json.dumps(facts)})
    return file


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A checkpoint folder and a recording of it, every layer."""
    folder = tmp_path_factory.mktemp("recorded")
    reference = torch_model(tiny_config())
    reference.save_pretrained(folder)
    inputs = {name: torch.from_numpy(value) for name, value in INPUTS.items()}
    write(record_parity.record(reference, inputs, every=1, positions=6, new_tokens=10), folder / "ref.safetensors")
    return folder


def change(model, name: str, factor: float):
    parameter = dict(model.parameters_and_names())[name]
    parameter.set_data(Tensor(parameter.asnumpy() * np.float32(factor)))


def test_a_right_port_passes(recorded):
    model = AutoModelForAudioTextToText.from_pretrained(recorded)
    report = parity.replay(model, parity.read_recording(recorded / "ref.safetensors"))
    assert [row.stage for row in report.rows] == ["encoder", "projector", "layer.1", "layer.2", "layer.3", "logits"]
    assert all(row.relative_error < 1e-5 and row.cosine > 0.999999 for row in report.rows)
    assert (report.tokens_equal, report.tokens_total, report.passed) == (10, 10, True)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("audio_tower.layers.1.fc1.weight", "encoder"),
        ("multi_modal_projector.linear.weight", "projector"),
        ("language_model.model.layers.1.mlp.up_proj.weight", "layer.2"),
        ("language_model.model.layers.2.self_attn.k_proj.bias", "layer.3"),
        ("language_model.model.norm.weight", "logits"),
    ],
)
def test_a_wrong_weight_is_found_where_it_is(recorded, name, stage):
    model = AutoModelForAudioTextToText.from_pretrained(recorded)
    change(model, name, 1.05)
    recording = parity.read_recording(recorded / "ref.safetensors")
    report = parity.replay(model, recording)
    assert report.first_outside == stage and not report.passed
    text = parity.format_report(report, recording)
    assert "outside (first)" in text and f"failed: {stage} is the first stage" in text


def test_the_bundled_checkpoint_on_the_command_line(capsys):
    arguments = ["parity", str(RECORDING), "--model", str(demo_checkpoint()), "--device", "cpu"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "tokens      " in text and text.strip().endswith("passed")
    assert cli.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["first_outside"] is None and len(report["rows"]) >= 5


def test_tokens_that_differ_fail_unless_the_reference_nearly_ties(recorded, tmp_path):
    model = AutoModelForAudioTextToText.from_pretrained(recorded)
    arrays = load_file(recorded / "ref.safetensors")
    arrays["tokens"][0, 4] += 1
    for margin, passed in ((1.0, False), (1e-6, True)):
        arrays["margins"][0, 4] = margin
        report = parity.replay(model, parity.read_recording(write(arrays, tmp_path / "x.safetensors")))
        assert (report.tokens_equal, report.passed) == (4, passed)


def test_what_is_no_recording_is_named(recorded, tmp_path, capsys):
    model = ["--model", str(recorded)]
    assert cli.main(["parity", str(tmp_path / "none.safetensors"), *model]) == 2
    assert "no recording" in capsys.readouterr().err
    assert cli.main(["parity", str(recorded / "model.safetensors"), *model]) == 2
    assert "is no recording: its format is 'pt'" in capsys.readouterr().err
    (tmp_path / "cut.safetensors").write_bytes((recorded / "ref.safetensors").read_bytes()[:1000])
    assert cli.main(["parity", str(tmp_path / "cut.safetensors"), *model]) == 2
    assert "cannot be read as a recording" in capsys.readouterr().err
    arrays = load_file(recorded / "ref.safetensors")
    other = write(arrays, tmp_path / "other.safetensors", model_type="voxtral")
    assert cli.main(["parity", str(other), *model]) == 2
    assert "of a 'voxtral' model and this is a 'qwen2_audio'" in capsys.readouterr().err
    deeper = write({**arrays, "layer.9": arrays["layer.3"]}, tmp_path / "deeper.safetensors")
    assert cli.main(["parity", str(deeper), *model]) == 2
    assert "has layer.9 and this model 3 layers" in capsys.readouterr().err


def test_the_recorder_on_the_command_line(tmp_path, monkeypatch, capsys):
    out = tmp_path / "ref.safetensors"
    audio = Path(__file__).parent.parent / "examples" / "audio" / "spoken_command.wav"
    question = "<|audio_bos|><|AUDIO|><|audio_eos|>What does the person say?"
    command = ["record", "--model", str(demo_checkpoint()), "--audio", str(audio), "--prompt", question]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(out), "--new-tokens", "6", "--every", "2"])
    assert record_parity.main() == 0
    recording = parity.read_recording(out)
    assert recording.facts["dtype"] == "float32" and recording.facts["layers"] == 3
    monkeypatch.setattr(sys, "argv", ["record", "--model", str(tmp_path), "--prompt", "x", "--out", str(out)])
    assert record_parity.main() == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_tolerances_of_half_precision_leave_room_for_rounding(dtype):
    """PyTorch in another order of summation, and our formulas rounded, are apart from PyTorch, and within tolerance."""
    for logits, worst in measure_rounding.measure(demo_checkpoint(), dtype):
        assert parity.TOLERANCES["float32"] < logits and max(logits, worst) < parity.TOLERANCES[dtype] / 2


@pytest.mark.parametrize("family", ("qwen2_5_omni", "phi4_multimodal"))
def test_the_recorder_makes_what_a_whole_checkpoint_says(family, tmp_path, monkeypatch, capsys):
    """Of Qwen2.5-Omni the thinker, and Phi-4-multimodal with its speech adapter, as this package loads them."""
    folder, placeholder = tmp_path / "whole", "<|endoftext11|>"
    if family == "qwen2_5_omni":
        helpers_qwen2_5_omni.write_checkpoint(tmp_path / "thinker")
        folder, placeholder = helpers_qwen2_5_omni.write_whole(tmp_path / "thinker", folder), "<|AUDIO|>"
        helpers_qwen2_5_omni.write_processor(folder, feature_size=8)
    else:
        folder.mkdir()
        helpers_phi4.write_checkpoint(folder)

    def inputs(name, audio, prompt, text):  # transformers' processors of both load images too, and need torchvision
        return to_torch(dict(AutoProcessor.from_pretrained(name)(prompt, audio)))

    monkeypatch.setattr(record_parity, "processor_inputs", inputs)
    audio = Path(__file__).parent.parent / "examples" / "audio" / "three_beeps.wav"
    command = ["record", "--model", str(folder), "--audio", str(audio), "--prompt", f"{placeholder}How many?"]
    out = tmp_path / "ref.safetensors"
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(out), "--new-tokens", "6"])
    assert record_parity.main() == 0
    assert cli.main(["parity", str(out), "--model", str(folder), "--dtype", "float32"]) == 0, capsys.readouterr().out

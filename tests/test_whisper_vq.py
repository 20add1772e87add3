"""WhisperVQ against whisperspeech, whose numbers are in tests/goldens/whisper_vq, and the converter of its file."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import convert_whisper_vq
import helpers_whisper_vq
import mindspore as ms
import numpy as np
import pytest
import torch
from helpers import relative_error
from helpers_processor import tone, write_audio
from helpers_whisper_vq import CONVERTED, GOLDEN, VQ_FILE, WHISPER, WINDOW
from safetensors.numpy import load_file, save_file

from mindone_audio import WhisperVQ
from mindone_audio.backbone.checkpoint_model import to_numpy
from mindone_audio.inputs.audio import AudioError
from mindone_audio.weights.hub import CheckpointError

ROOT = Path(__file__).parents[1]
CLIPS = helpers_whisper_vq.clips()
REFERENCE = load_file(GOLDEN / "clips.safetensors")


@pytest.fixture(scope="module")
def whisper_vq():
    return WhisperVQ.from_pretrained(CONVERTED)


def of_clip(name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}."): value for key, value in REFERENCE.items() if key.startswith(f"{name}.")}


@pytest.mark.parametrize("name", CLIPS)
def test_tokens_are_whisperspeechs(whisper_vq, name):
    expected = of_clip(name)["tokens"]
    tokens = whisper_vq.encode(CLIPS[name], truncation=True)
    assert tokens.dtype == np.int32 and tokens.shape == (min(750, len(CLIPS[name]) // 640),)
    assert tokens.tolist() == expected.tolist()


def test_the_clips_have_many_tokens_and_no_ties():
    assert len(set(REFERENCE["window.tokens"].tolist())) > 25
    assert min(REFERENCE[f"{name}.margins"].min() for name in CLIPS) > 1e-4


@pytest.mark.parametrize("name", CLIPS)
def test_every_stage_is_whisperspeechs(whisper_vq, name):
    expected, kept = of_clip(name), {}
    log_mel = whisper_vq.log_mel(CLIPS[name])
    assert log_mel.shape == (80, expected["frames"]) and log_mel.dtype == np.float32
    padded = np.full((1, 80, 3000), -1.5, np.float32)
    padded[0, :, : log_mel.shape[1]] = log_mel[:, :3000]
    cells = {"encoder": whisper_vq.cell.encoder, "projected": whisper_vq.cell.project_in}
    handles = [
        cell.register_forward_hook(lambda cell, inputs, output, stage=stage: kept.update({stage: to_numpy(output)[0]}))
        for stage, cell in cells.items()
    ]
    whisper_vq.cell(ms.Tensor(padded), ms.Tensor([3000], ms.int32))
    for handle in handles:
        handle.remove()
    assert relative_error(kept["encoder"][::25], expected["encoder"]) < 1e-4
    assert relative_error(kept["projected"], expected["projected"]) < 1e-4


def test_every_parameter_is_proved(whisper_vq):
    """The stages test can fail: a 2 % change of any one parameter before the codebook is beyond its tolerance."""
    expected, kept = of_clip("speech")["projected"], {}
    log_mel = np.full((1, 80, 3000), -1.5, np.float32)
    log_mel[0, :, :173] = whisper_vq.log_mel(CLIPS["speech"])
    handle = whisper_vq.cell.project_in.register_forward_hook(lambda *args: kept.update(value=to_numpy(args[2])[0]))
    for parameter in whisper_vq.cell.get_parameters():
        if parameter.name == "codebook":
            continue
        value = parameter.asnumpy().copy()
        parameter.set_data(ms.Tensor(value * 1.02 + 0.02 * np.abs(value).mean()))
        whisper_vq.cell(ms.Tensor(log_mel), ms.Tensor([173], ms.int32))
        parameter.set_data(ms.Tensor(value))
        assert relative_error(kept["value"], expected) > 2e-4, parameter.name
    handle.remove()


def test_log_mels_are_whisperspeechs(whisper_vq):
    """In float64 they are nearer to the true value than the reference, whose float32 is 3e-5 off it."""
    for name, clip in CLIPS.items():
        difference = np.abs(helpers_whisper_vq.some_frames(whisper_vq.log_mel(clip)) - of_clip(name)["log_mel"])
        assert difference.max() < 5e-5 and (difference < 1e-5).mean() > 0.999


def test_works_without_torch_and_pickle(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
import numpy as np
import helpers_whisper_vq
from safetensors.numpy import load_file
from mindone_audio import WhisperVQ
expected = load_file(helpers_whisper_vq.GOLDEN / "clips.safetensors")
whisper_vq = WhisperVQ.from_pretrained(helpers_whisper_vq.CONVERTED)
for name, clip in helpers_whisper_vq.clips().items():
    assert whisper_vq.encode(clip, truncation=True).tolist() == expected[name + ".tokens"].tolist(), name
assert "torch" not in sys.modules
""")
    command = [sys.executable, str(ROOT / "tests" / "without_torch.py"), str(script)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr[-2000:]


def test_any_source_and_lists(whisper_vq, tmp_path):
    speech = ROOT / "examples" / "audio" / "speech_in_noise.wav"
    expected = of_clip("speech")["tokens"].tolist()
    for source in (speech, str(speech), speech.as_uri(), speech.read_bytes(), CLIPS["speech"]):
        assert whisper_vq.encode(source).tolist() == expected
    several = whisper_vq.encode([speech, CLIPS["odd"]])
    assert [tokens.tolist() for tokens in several] == [expected, of_clip("odd")["tokens"].tolist()]
    assert whisper_vq.encode([]) == []
    stereo = np.stack([CLIPS["speech"]] * 2, 1)  # at another rate: mixed down and resampled
    resampled = whisper_vq.encode(write_audio(tmp_path / "a.wav", stereo, 32_000))
    assert len(resampled) == len(CLIPS["speech"]) // 2 // 640


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "audio clip 0: .*holds no samples"),
        (np.zeros(639, np.float32), "audio clip 0 has 639 samples, too few for one sound token: give at least 640"),
        (tone(30.5), "audio clip 0 is 30.50 s long and the model hears 30 s: .*truncation=True"),
        ([tone(0.1), np.full(999, np.nan)], "audio clip 1: .*NaN"),
        ("nowhere.wav", "audio clip 0: no audio file 'nowhere.wav'"),
        (None, "no audio source"),
    ],
)
def test_refused_audio(whisper_vq, audio, message):
    with pytest.raises(AudioError, match=message):
        whisper_vq.encode(audio)


def test_lengths(whisper_vq):
    assert [len(whisper_vq.encode(np.zeros(n, np.float32))) for n in (640, 1279, 1280, WINDOW)] == [1, 1, 2, 750]


def test_one_graph_for_all_lengths(whisper_vq):
    """Compiling takes seconds for Whisper-medium; the graph's input has one shape."""
    shapes, graph = set(), whisper_vq._graph

    def watched(log_mel, lengths):
        shapes.add((log_mel.shape, lengths.shape))
        return graph(log_mel, lengths)

    whisper_vq._graph = watched
    try:
        whisper_vq.encode([CLIPS["short"], CLIPS["odd"], CLIPS["window"]])
    finally:
        whisper_vq._graph = graph
    assert shapes == {((1, 80, 3000), (1,))}


def test_saving(whisper_vq, tmp_path):
    whisper_vq.save_pretrained(tmp_path / "saved")
    again = WhisperVQ.from_pretrained(tmp_path / "saved")
    assert again.encode(CLIPS["speech"]).tolist() == of_clip("speech")["tokens"].tolist()
    assert again.config == whisper_vq.config


def test_refused_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        WhisperVQ.from_pretrained(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(ValueError, match="is a file, and WhisperVQ loads folders: .*convert_whisper_vq.py"):
        WhisperVQ.from_pretrained(VQ_FILE)
    with pytest.raises(ValueError, match="model_type 'whisper' is no 'whisper_vq'.*convert_whisper_vq.py"):
        WhisperVQ.from_pretrained(WHISPER)
    folder = shutil.copytree(CONVERTED, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"codebook_size": 42}))
    with pytest.raises(CheckpointError, match=r"'codebook' has shape \(41, 5\).*needs \(42, 5\)"):
        WhisperVQ.from_pretrained(folder)
    config.pop("codebook_dim")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks codebook_dim"):
        WhisperVQ.from_pretrained(folder)


# The converter


def run_converter(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["convert_whisper_vq.py", *map(str, arguments)])
    status = convert_whisper_vq.main()
    return status, "".join(capsys.readouterr())


def test_the_golden_is_what_the_converter_writes(tmp_path, monkeypatch, capsys):
    status, output = run_converter(monkeypatch, capsys, VQ_FILE, "--whisper", WHISPER, "--out", tmp_path / "new")
    assert status == 0 and "0.1 MB" in output
    new, old = (load_file(folder / "model.safetensors") for folder in (tmp_path / "new", CONVERTED))
    assert set(new) == set(old)
    for name, value in old.items():
        np.testing.assert_array_equal(new[name], value)
    assert (tmp_path / "new" / "config.json").read_text() == (CONVERTED / "config.json").read_text()


def changed(folder: Path, change) -> Path:
    """A copy of the quantiser's file, under its right name, with its content changed."""
    spec = torch.load(VQ_FILE, weights_only=True)
    change(spec)
    torch.save(spec, folder / VQ_FILE.name)
    return folder / VQ_FILE.name


def rename_unfixed(spec):
    for end in ("in.weight", "in.bias", "out.weight", "out.bias"):
        spec["state_dict"][f"rq.layers.0.project_{end}"] = spec["state_dict"].pop(f"rq.project_{end}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_unfixed, "rq.layers.0.project_.*not the fixed file.*hf download"),
        (lambda spec: spec["state_dict"].pop("mlp.0.bias"), "lacks the tensors mlp.0.bias"),
        (lambda spec: spec["config"].update(vq_codes=99), r"_codebook.embed has shape \(41, 5\), not \(100, 5\)"),
        (lambda spec: spec["config"].update(whisper_model_name="base.en"), "whisper_model_name='base.en'"),
        (lambda spec: spec["config"].update(q_depth=2, use_cosine_sim=False), "q_depth=2.*use_cosine_sim=False"),
        (lambda spec: spec["tunables"].update(downsample_conv=True), "downsample_conv=True"),
        (lambda spec: spec.pop("tunables"), "mask_embs=False"),
        (lambda spec: spec.pop("config"), "does not hold a config and a state_dict"),
    ],
)
def test_other_quantisers_are_refused(tmp_path, monkeypatch, capsys, change, message):
    file = changed(tmp_path, change)
    status, output = run_converter(monkeypatch, capsys, file, "--whisper", WHISPER, "--out", tmp_path / "out")
    assert status == 2 and not (tmp_path / "out").exists()
    assert re.search(message, output), output


@pytest.mark.parametrize("name", ["whisper-vq-stoks-medium-en+pl-fixed.model", "whisper-vq-stoks-v3-7lang.model"])
def test_other_names_are_refused(tmp_path, monkeypatch, capsys, name):
    status, output = run_converter(monkeypatch, capsys, shutil.copy(VQ_FILE, tmp_path / name), "--whisper", WHISPER)
    assert status == 2 and f"{name} is another Whisper-VQ than Ichigo's" in output


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_no_code_of_a_pickle_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / VQ_FILE.name
    torch.save({"config": {}, "state_dict": Harmful()}, file)
    status, output = run_converter(monkeypatch, capsys, file, "--whisper", WHISPER)
    assert status == 2 and "cannot be read as tensors and plain values" in output
    for content in (b"", b"text", pickle.dumps(Harmful())):
        file.write_bytes(content)
        status, output = run_converter(monkeypatch, capsys, file, "--whisper", WHISPER)
        assert status == 2 and "is not what torch.save writes" in output
    assert not (tmp_path / "harmed").exists()
    assert run_converter(monkeypatch, capsys, tmp_path / "none.model")[0] == 2


def test_wrong_whispers_are_refused(tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(WHISPER, tmp_path / "whisper")
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")

    def message(**changes):
        (folder / "config.json").write_text(json.dumps(config | changes))
        status, output = run_converter(monkeypatch, capsys, VQ_FILE, "--whisper", folder, "--out", tmp_path / "out")
        assert status == 2
        return output

    assert "a 'whisper' model of width 24, and the quantiser needs a Whisper of width 12" in message(d_model=24)
    assert "a 'bert' model" in message(model_type="bert")
    assert "hears 20 positions, not 1500" in message(max_source_positions=20)
    save_file({n: v for n, v in tensors.items() if ".encoder." not in n}, folder / "model.safetensors")
    assert "has no encoder in its 1 safetensors files" in message()
    (folder / "model.safetensors").unlink()
    assert "has no encoder in its 0 safetensors files" in message()
    assert run_converter(monkeypatch, capsys, VQ_FILE, "--whisper", "./nowhere")[0] == 2

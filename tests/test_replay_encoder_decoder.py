"""Recordings of SpeechT5 and SeamlessM4T are made from clips and texts, replayed, and a wrong weight is found."""

import sys

import helpers_seamless as seamless
import helpers_speecht5 as speecht5
import numpy as np
import pytest
import record_parity
import torch
from helpers_audio import encoded
from mindspore import Tensor

from mindone_audio import AutoModelForAudioTextToText, cli
from mindone_audio.generation.generate import EngineMixin
from mindone_audio.models.seamless_m4t_v2.model import SeamlessM4Tv2ForTextToText
from mindone_audio.proof import parity

# Of which transformers' feature extractor makes 27 frames and one of padding.
SAMPLES = speecht5.clips(9100)[0]
STAGES = ["encoder", "layer.1", "layer.2", "layer.3", "logits"]
CASES = {
    "speech": ("seamless", ["--audio", "clip.wav", "--prompt", "__fra__"]),
    "text": ("seamless", ["--text", "ab cde fgh", "--prompt", "__fra__"]),
    "transcript": ("writer", ["--audio", "clip.wav", "--prompt", ""]),
    "words": ("writer", ["--audio", "clip.wav", "--prompt", "ab"]),
}


def record(folder, arguments: list[str]) -> int:
    """What the script exits with; it writes ref.safetensors into the folder."""
    command = ["record", "--model", str(folder), "--out", str(folder / "ref.safetensors"), *arguments]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder.parent)  # where the clip is
        patched.setattr(sys, "argv", [*command, "--every", "1", "--new-tokens", "9"])
        return record_parity.main()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints `seamless`, `writer` and `speaker`, and a clip, in a folder; what they say is not all one token."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("seamless", "writer"):
        (folder / name).mkdir()
    (folder / "clip.wav").write_bytes(encoded("WAV", "FLOAT", SAMPLES))
    seamless.save_checkpoint(folder / "seamless", seed=11)
    speecht5.save_writer(folder / "writer", seed=28)
    speecht5.text_to_speech().save_pretrained(folder / "speaker")
    return folder


@pytest.fixture(scope="module")
def recordings(folders):
    """A recording of each case."""
    found = {}
    for case, (name, arguments) in CASES.items():
        assert record(folders / name, arguments) == 0
        found[case] = parity.read_recording(folders / name / "ref.safetensors")
    return found


@pytest.fixture(scope="module")
def models(folders):
    return {name: AutoModelForAudioTextToText.from_pretrained(folders / name) for name in ("seamless", "writer")}


@pytest.mark.parametrize("case", CASES)
def test_a_right_port_passes(recordings, models, case):
    recording = recordings[case]
    report = parity.replay(models[CASES[case][0]], recording)
    assert [row.stage for row in report.rows] == STAGES
    assert report.passed and report.tokens_equal == report.tokens_total == 9
    assert all(row.relative_error < 1e-5 for row in report.rows)


def test_recorded_are_clips_and_texts_without_padding(recordings):
    assert recordings["speech"].inputs["input_features"].shape == (1, 27, 160)
    assert recordings["text"].inputs["input_ids"].shape == (1, 9)  # the tokenizer makes it 10
    assert recordings["transcript"].inputs["input_values"].shape == (1, 9100)
    begins = {case: recording.inputs["decoder_input_ids"].tolist()[0] for case, recording in recordings.items()}
    assert begins["speech"] == begins["text"] == [seamless.END, seamless.CODES["fra"]]
    assert begins["transcript"] == [2] and begins["words"][0] == 2 and len(begins["words"]) == 4


def test_a_recording_ends_where_the_answer_does():
    """Behind the end a model may choose padding, which has no position in transformers."""
    inputs = {
        "input_features": torch.from_numpy(seamless.clips(27)[0][None]),
        "decoder_input_ids": torch.tensor([[seamless.END, seamless.CODES["fra"]]]),
    }
    model = seamless.torch_model()
    with torch.no_grad():
        model.shared.weight[seamless.END] *= 9
        tokens, margins = record_parity.greedy(model, inputs, 9)
    assert tokens.shape == margins.shape and tokens.shape[1] < 9 and tokens[0, -1] in (seamless.END, seamless.PAD)


@pytest.mark.parametrize(
    ("case", "name", "stage"),
    [
        ("speech", "audio_tower.encoder.layers.1.conv_module.pointwise_conv2.weight", "encoder"),
        ("speech", "language_model.model.layers.1.encoder_attn.v_proj.weight", "layer.2"),
        ("speech", "language_model.model.layer_norm.weight", "logits"),
        ("text", "text_encoder.layers.0.fc1.weight", "encoder"),
        ("transcript", "audio_tower.prenet.feature_projection.projection.weight", "encoder"),
        ("words", "language_model.model.layers.2.fc2.weight", "layer.3"),
    ],
)
def test_a_wrong_weight_is_found_where_it_is(recordings, models, monkeypatch, case, name, stage):
    made = EngineMixin.engine
    monkeypatch.setattr(EngineMixin, "engine", lambda model, compiled=True: made(model, False))
    model = models[CASES[case][0]]
    parameter = dict(model.parameters_and_names())[name]
    right = parameter.asnumpy().copy()
    try:
        parameter.set_data(Tensor(right * np.float32(1.1)))
        report = parity.replay(model, recordings[case])
    finally:
        parameter.set_data(Tensor(right))
    assert report.first_outside == stage and not report.passed


@pytest.mark.parametrize("case", ["speech", "transcript"])
def test_a_graph_that_is_given_another_clip_is_seen(recordings, models, monkeypatch, case):
    model = models[CASES[case][0]]
    sources = model.sources
    monkeypatch.setattr(
        model, "sources", lambda **inputs: [(clip[..., ::-1], length) for clip, length in sources(**inputs)]
    )
    report = parity.replay(model, recordings[case])
    assert report.first_outside is None and not report.passed and report.tokens_equal < 9


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("seamless", ["--audio", "clip.wav", "--audio", "clip.wav", "--prompt", "__fra__"], "2 clips and 0 texts were"),
        ("seamless", ["--audio", "clip.wav", "--text", "ab", "--prompt", "__fra__"], "1 clips and 1 texts were given"),
        ("seamless", ["--prompt", "__fra__"], "give one clip, or SeamlessM4T one text"),
        ("seamless", ["--audio", "clip.wav", "--prompt", "fra"], "'fra' is no language of SeamlessM4T"),
        ("seamless", ["--audio", "clip.wav", "--prompt", "__spa__"], "'__spa__' is no language of SeamlessM4T"),
        ("writer", ["--text", "ab", "--prompt", ""], "SpeechT5 writes down what is said: give --audio"),
        ("speaker", ["--text", "ab", "--prompt", ""], "a SpeechT5ForTextToSpeech, which makes sound and no tokens"),
    ],
)
def test_what_is_not_recorded(folders, capsys, name, arguments, said):
    assert record(folders / name, arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and said in error


def test_another_model_is_refused(folders, recordings, capsys):
    record(folders / "writer", CASES["words"][1])
    recording, model = str(folders / "writer" / "ref.safetensors"), str(folders / "speaker")
    capsys.readouterr()
    assert cli.main(["parity", recording, "--model", model, "--device", "cpu"]) == 2
    error = capsys.readouterr().err.strip()
    assert "SpeechT5ForTextToSpeech does not write what was recorded" in error and "\n" not in error
    reader = SeamlessM4Tv2ForTextToText.from_pretrained(folders / "seamless")
    with pytest.raises(ValueError, match="SeamlessM4Tv2ForTextToText takes input_ids, and was given input_features"):
        parity.replay(reader, recordings["speech"])
    assert all(row.within for row in parity.replay(reader, recordings["text"]).rows)

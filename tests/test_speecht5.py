"""SpeechT5 against transformers on PyTorch: the vocoder, text to speech, and speech to text.

Single samples are compared: in a batch of transformers a shorter sample hears the padding of a longer one.
"""

import helpers_speecht5 as speecht5
import numpy as np
import pytest
import torch
from helpers import relative_error
from safetensors.numpy import load_file, save_file

from mindone_audio.models.speecht5.vocoder import SpeechT5HifiGan
from mindone_audio.weights.hub import CheckpointError


@pytest.fixture(scope="module")
def vocoders(tmp_path_factory):
    """PyTorch's vocoder and ours."""
    folder = tmp_path_factory.mktemp("hifigan")
    theirs = speecht5.vocoder()
    theirs.save_pretrained(folder)
    return theirs, SpeechT5HifiGan.from_pretrained(folder)


def sound(theirs, frames: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return theirs(torch.from_numpy(frames)).numpy()


def test_the_vocoder_sounds_as_in_pytorch(vocoders):
    theirs, ours = vocoders
    frames = speecht5.mels(23, 9, 1)
    together = np.full((3, 23, speecht5.BINS), 7, np.float32)
    for row, one in zip(together, frames):
        row[: len(one)] = one
    waves = ours(together, [23, 9, 1]).asnumpy()
    for one, wave in zip(frames, waves):
        expected = sound(theirs, one)
        assert relative_error(wave[: len(expected)], expected) < 1e-5 and not wave[len(expected) :].any()
        assert relative_error(ours(one).asnumpy(), expected) < 1e-5
        for compile in (True, False):
            assert relative_error(ours.waveform(one, compile=compile), expected) < 1e-5


def test_parts_of_a_long_spectrogram_are_the_whole(vocoders):
    theirs, ours = vocoders
    (frames,) = speecht5.mels(700)
    expected = sound(theirs, frames)
    assert relative_error(ours.waveform(frames), expected) < 1e-5
    parts, first = [], 0
    for last in (5, 90, 333, 700 - ours.reach):
        parts.append(ours.waveform(frames[: last + ours.reach], first, last))
        first = last
    parts.append(ours.waveform(frames, first))
    assert relative_error(np.concatenate(parts), expected) < 1e-5
    parts[1] = ours.waveform(frames[:90], 5, 90)  # without the frames behind, the seam is heard
    assert relative_error(np.concatenate(parts), expected) > 1e-3


def test_a_broken_vocoder_is_heard(vocoders):
    theirs, ours = vocoders
    (frames,) = speecht5.mels(9)
    with torch.no_grad():
        theirs.mean[2] += 0.1
        expected = sound(theirs, frames)
        theirs.mean[2] -= 0.1
    assert relative_error(ours(frames).asnumpy(), expected) > 1e-3


@pytest.mark.parametrize("parametrized", [True, False])
def test_a_vocoder_of_lengths_and_directions(vocoders, tmp_path, parametrized):
    theirs = speecht5.vocoder(1)
    theirs.apply_weight_norm()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    if not parametrized:
        for new, old in (
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ):
            tensors = {name.replace(new, old): value for name, value in tensors.items()}
        save_file(tensors, file)
    assert any(name.endswith("original0" if parametrized else "weight_g") for name in tensors)
    (frames,) = speecht5.mels(9)
    assert relative_error(SpeechT5HifiGan.from_pretrained(tmp_path)(frames).asnumpy(), sound(theirs, frames)) < 1e-5
    tensors.pop(next(name for name in tensors if name.endswith(("original0", "weight_g"))))
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="has only one of"):
        SpeechT5HifiGan.from_pretrained(tmp_path)


def test_a_saved_vocoder_loads_in_transformers(vocoders, tmp_path):
    theirs, ours = vocoders
    ours.save_pretrained(tmp_path)
    again = speecht5.TorchHifiGan.from_pretrained(tmp_path)
    assert set(again.state_dict()) == set(load_file(tmp_path / "model.safetensors"))
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_what_a_vocoder_refuses(vocoders, tmp_path):
    _, ours = vocoders
    with pytest.raises(ValueError, match=r"shape \(9, 4\), this vocoder takes \(frames, 10\)"):
        ours(np.zeros((9, 4), np.float32))
    with pytest.raises(ValueError, match=r"lengths \[10\] do not fit"):
        ours(np.zeros((1, 9, 10), np.float32), [10])
    with pytest.raises(ValueError, match="'hifigan'"):
        theirs = speecht5.vocoder()
        theirs.config.model_type = "other"
        theirs.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace("hifigan", "other"))
        SpeechT5HifiGan.from_pretrained(tmp_path)

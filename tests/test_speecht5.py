"""SpeechT5 against transformers on PyTorch: the vocoder, text to speech, and speech to text.

Single samples are compared: in a batch of transformers a shorter sample hears the padding of a longer one.
"""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import helpers_speecht5 as speecht5
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from ascend_branch import as_on_ascend
from helpers import relative_error
from safetensors.numpy import load_file, save_file

from mindone_audio import cli, pipeline
from mindone_audio.generation.engine import Slots
from mindone_audio.models import AutoModelForAudioTextToText, AutoProcessor
from mindone_audio.models.speecht5 import speaking
from mindone_audio.models.speecht5.speech_to_text import SpeechT5ForSpeechToText
from mindone_audio.models.speecht5.text_to_speech import SpeechT5ForTextToSpeech
from mindone_audio.models.speecht5.vocoder import SpeechT5HifiGan
from mindone_audio.weights.hub import CheckpointError

ROOT = Path(__file__).parents[1]


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


# Text to speech


def pair(folder, seed: int = 1, **changes):
    theirs = speecht5.text_to_speech(seed, **changes)
    theirs.save_pretrained(folder)
    return theirs, SpeechT5ForTextToSpeech.from_pretrained(folder)


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    """PyTorch's text to speech and ours."""
    return pair(tmp_path_factory.mktemp("speecht5"))


TEXTS, VOICES = speecht5.texts(13, 6, 3), speecht5.voices(3)


def padded(texts: list[np.ndarray]) -> np.ndarray:
    return np.stack([np.pad(text, (0, max(map(len, texts)) - len(text)), constant_values=1) for text in texts])


def spoken(theirs, text: int, vocoder=None, **settings) -> np.ndarray:
    """What PyTorch makes of one text alone."""
    ids, voice = torch.from_numpy(TEXTS[text])[None], torch.from_numpy(VOICES[[text]])
    with torch.no_grad():
        return theirs.generate_speech(ids, voice, vocoder=vocoder, **settings).numpy()


def same(made, expected: np.ndarray, tolerance: float = 1e-5) -> bool:
    """tolerance: of steps that are fed what was made before, so that errors add up."""
    made = made if isinstance(made, np.ndarray) else made.asnumpy()
    return made.shape == expected.shape and relative_error(made, expected) < tolerance


LIMITS = [{}, {"threshold": 0.55}, {"minlenratio": 4.0, "maxlenratio": 5.0}, {"minlenratio": 5, "maxlenratio": 1}]


@pytest.mark.parametrize("settings", LIMITS)
def test_texts_together_are_each_alone_in_pytorch(speakers, settings):
    """In transformers the shorter texts have the limits of the longest one."""
    theirs, ours = speakers
    alone = [spoken(theirs, text, **settings) for text in range(3)]
    frames, lengths = ours.generate_speech(padded(TEXTS), VOICES, return_output_lengths=True, **settings)
    assert lengths == list(map(len, alone)) and len(set(lengths)) == 3
    for made, length, expected in zip(frames.asnumpy(), lengths, alone):
        assert same(made[:length], expected) and not made[length:].any()
    assert same(ours.generate_speech(TEXTS[1], VOICES[1], **settings), alone[1])
    ids, mask = np.full((1, 9), 5), np.zeros((1, 9), np.int64)
    ids[0, 3:], mask[0, 3:] = TEXTS[1], 1  # padding on the left, which is none by its token
    assert same(ours.generate_speech(ids, VOICES[1], mask, **settings), alone[1])


def test_a_batch_of_transformers_is_not_its_singles(speakers):
    """Why singles are compared."""
    theirs, _ = speakers
    with torch.no_grad():
        ids, settings = torch.from_numpy(padded(TEXTS)), {"minlenratio": 4.0, "maxlenratio": 5.0}
        _, lengths = theirs.generate_speech(ids, torch.from_numpy(VOICES), return_output_lengths=True, **settings)
    assert lengths != [len(spoken(theirs, text, **settings)) for text in range(3)]


def test_interpreted_is_compiled(speakers, vocoders):
    _, ours = speakers
    made = [
        ours.generate_speech(
            padded(TEXTS),
            VOICES,
            maxlenratio=2,
            vocoder=vocoders[1],
            seed=3,
            return_output_lengths=True,
            compile=compile,
        )
        for compile in (True, False)
    ]
    assert made[0][1] == made[1][1] and same(made[0][0], made[1][0].asnumpy())


def test_frames_that_are_given(speakers):
    """Steps that are computed at once, against PyTorch and against one step after the other."""
    theirs, ours = speakers
    given = np.concatenate([np.zeros((3, 1, speecht5.BINS), np.float32), np.stack(speecht5.mels(5, 5, 5))], 1)
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            inputs = {"decoder_input_values": torch.from_numpy(given[[row]])}
            voice = torch.from_numpy(VOICES[[row]])
            expected = theirs(torch.from_numpy(text)[None], speaker_embeddings=voice, **inputs).spectrogram.numpy()[0]
        assert same(ours(padded(TEXTS), given, VOICES)[row], expected)


@pytest.mark.parametrize(
    "changes", [{"reduction_factor": 1}, {"reduction_factor": 3, "speech_decoder_prenet_layers": 1}]
)
def test_other_sizes(tmp_path, changes):
    theirs, ours = pair(tmp_path, 2, **changes)
    assert same(ours.generate_speech(TEXTS[2], VOICES[2]), spoken(theirs, 2))


def test_with_a_vocoder_and_in_pieces(speakers, vocoders):
    theirs, ours = speakers
    settings = {"minlenratio": 20.0}
    expected = spoken(theirs, 1, vocoders[0], **settings)
    whole = ours.generate_speech(TEXTS[1], VOICES[1], vocoder=vocoders[1], **settings)
    assert same(whole, expected)
    pieces = list(ours.stream_speech(TEXTS[1], VOICES[1], vocoders[1], chunk_frames=20, **settings))
    assert len(pieces) >= 4 and all(len(piece) >= 120 for piece in pieces[:-1])
    assert same(np.concatenate(pieces), expected)
    both, lengths = ours.generate_speech(
        padded(TEXTS[:2]), VOICES[:2], vocoder=vocoders[1], return_output_lengths=True, **settings
    )
    assert lengths[1] == len(expected) < lengths[0] and same(both.asnumpy()[1, : lengths[1]], expected)


def test_dropout_is_drawn_by_a_seed(speakers):
    """With the noise that we draw, PyTorch makes the same frames; it is the same for a text alone and among others."""
    theirs, ours = speakers
    settings, noise = {"maxlenratio": 4.0, "minlenratio": 4.0}, []
    speaking = ours._speaking(TEXTS[1], VOICES[1], None, 0.5, 0, 20, 7, True)
    for _ in range(12):
        noise.append(torch.from_numpy(speaking._kept()))
    assert {round(float(value), 3) for value in torch.stack(noise).unique()} == {0, 2}
    calls = []

    def dropout(inputs, p):
        layer = len(calls) % 2
        calls.append(inputs.shape[1])
        return inputs * torch.cat([step[layer] for step in noise[: inputs.shape[1]]])

    plain, theirs.speecht5.decoder.prenet._consistent_dropout = (
        theirs.speecht5.decoder.prenet._consistent_dropout,
        dropout,
    )
    expected = spoken(theirs, 1, **settings)
    theirs.speecht5.decoder.prenet._consistent_dropout = plain
    assert same(ours.generate_speech(TEXTS[1], VOICES[1], seed=7, **settings), expected)
    together, lengths = ours.generate_speech(padded(TEXTS), VOICES, seed=7, return_output_lengths=True, **settings)
    assert same(together.asnumpy()[1, : lengths[1]], expected)
    for other in (8, None):
        assert not same(ours.generate_speech(TEXTS[1], VOICES[1], seed=other, **settings), expected, 1e-2)


def test_a_speech_longer_than_its_cache(speakers, monkeypatch):
    monkeypatch.setattr(speaking, "_STEPS", 8)
    theirs, ours = speakers
    settings = {"minlenratio": 20.0}
    alone = [spoken(theirs, text, **settings) for text in (2, 1)]
    ids = padded([TEXTS[2], TEXTS[1]])
    ours.weights_changed()  # so that its caches are made anew
    frames, lengths = ours.generate_speech(ids, VOICES[[2, 1]], compile=False, return_output_lengths=True, **settings)
    ours.weights_changed()
    assert lengths == [60, 120]
    for made, expected in zip(frames.asnumpy(), alone):
        assert same(made[: len(expected)], expected)


def test_the_branch_of_an_npu(speakers, vocoders, tmp_path, monkeypatch):
    """On this CPU: flat caches, which grow too, and the operations of Ascend."""
    monkeypatch.setattr(speaking, "_STEPS", 16)
    for model, name in zip((speakers[1], vocoders[1]), ("a", "b")):
        model.save_pretrained(tmp_path / name)
    expected = spoken(speakers[0], 1, vocoders[0], minlenratio=5, maxlenratio=6)
    with as_on_ascend():
        ours = SpeechT5ForTextToSpeech.from_pretrained(tmp_path / "a")
        sound = SpeechT5HifiGan.from_pretrained(tmp_path / "b")
        made = ours.generate_speech(TEXTS[1], VOICES[1], vocoder=sound, minlenratio=5, maxlenratio=6)
        assert all(slots.cache.flat for slots in ours.engine().places) and len(ours.engine().places) == 2
    assert same(made, expected)


def test_the_most_steps_are_those_of_the_config(tmp_path):
    _, ours = pair(tmp_path, max_speech_positions=7)
    assert ours.generate_speech(TEXTS[0], VOICES[0], minlenratio=20).shape == (14, speecht5.BINS)


@pytest.mark.parametrize(
    "name",
    [
        "speecht5.encoder.wrapped_encoder.embed_positions.pe_k.weight",
        "speecht5.encoder.prenet.encode_positions.alpha",
        "speecht5.decoder.prenet.speaker_embeds_layer.weight",
        "speecht5.decoder.prenet.encode_positions.alpha",
        "speecht5.decoder.wrapped_decoder.layers.1.encoder_attn.k_proj.weight",
        "speecht5.decoder.wrapped_decoder.layers.2.feed_forward.output_dense.weight",
        "speech_decoder_postnet.layers.1.batch_norm.running_var",
    ],
)
def test_a_broken_speaker_is_heard(speakers, name):
    theirs, ours = speakers
    tensor = theirs.state_dict()[name]
    right = tensor.clone()
    with torch.no_grad():
        tensor[...] = tensor * 1.1
        wrong = spoken(theirs, 1, minlenratio=4, maxlenratio=4)
        tensor[...] = right
    assert not same(ours.generate_speech(TEXTS[1], VOICES[1], minlenratio=4, maxlenratio=4), wrong, 1e-3)


def test_a_saved_speaker_loads_in_transformers(speakers, tmp_path):
    theirs, ours = speakers
    ours.save_pretrained(tmp_path)
    again = speecht5.TorchTextToSpeech.from_pretrained(tmp_path).state_dict()
    for name, value in theirs.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(again[name], value), name


def test_missing_and_unexpected_weights(speakers, tmp_path):
    speakers[1].save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["speecht5.decoder.prenet.other.weight"] = tensors.pop("speecht5.decoder.prenet.final_layer.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        SpeechT5ForTextToSpeech.from_pretrained(tmp_path)
    assert "1 missing: prenet.final_layer.weight. 1 unexpected: prenet.other.weight" in str(refused.value)


def test_voices_from_files(speakers, tmp_path):
    _, ours = speakers
    settings = {"maxlenratio": 1.0, "compile": False}
    expected = ours.generate_speech(TEXTS[2], VOICES[2], **settings).asnumpy()
    np.save(tmp_path / "a.npy", VOICES[2])
    save_file({"x": VOICES[[2]]}, tmp_path / "a.safetensors")
    for source in (tmp_path / "a.npy", str(tmp_path / "a.safetensors"), VOICES[[2]] * 3):
        assert same(ours.generate_speech(TEXTS[2], source, **settings), expected)
    save_file({"x": VOICES[2], "y": VOICES[2]}, tmp_path / "two.safetensors")
    (tmp_path / "a.txt").write_text("1 2 3")
    (tmp_path / "bad.npy").write_bytes(b"no")
    for file, message in (
        ("two.safetensors", r"has 2 tensors \(x, y\)"),
        ("a.txt", "a voice is a .npy or a .safetensors file, not .txt"),
        ("bad.npy", "is not an array that NumPy saved"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.generate_speech(TEXTS[2], tmp_path / file)
    with pytest.raises(FileNotFoundError, match="no file 'none.npy' with a voice"):
        ours.generate_speech(TEXTS[2], "none.npy")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"speaker_embeddings": None}, "Matthijs/cmu-arctic-xvectors"),
        ({"speaker_embeddings": VOICES[0, :256]}, r"shape \(256,\) of float32 is not \(512,\) or \(batch, 512\)"),
        ({"speaker_embeddings": VOICES[:2]}, "2 voices for 1 texts"),
        ({"speaker_embeddings": VOICES[0] * 0}, "all zeros"),
        ({"input_ids": np.array([[4, 99]])}, "input_ids hold 99, and this model has the tokens 0 to 29"),
        ({"input_ids": np.array([[1, 1]])}, "text 0 has no token"),
        ({"input_ids": np.full((1, 41), 4)}, "text 0 has 41 tokens, the model has 40 positions"),
        ({"attention_mask": np.ones((1, 2))}, r"attention_mask \(1, 2\)"),
        ({"threshold": "x"}, "threshold"),
        ({"maxlenratio": -1}, "maxlenratio"),
        ({"seed": 0.5}, "seed"),
        ({"vocoder": "hifigan"}, "vocoder must be a SpeechT5HifiGan, not a str"),
    ],
)
def test_what_cannot_be_spoken(speakers, changes, message):
    arguments = {"input_ids": TEXTS[1], "speaker_embeddings": VOICES[1], **changes}
    with pytest.raises(ValueError, match=message):
        speakers[1].generate_speech(**arguments)


def test_what_cannot_be_streamed(speakers, vocoders):
    _, ours = speakers
    with pytest.raises(ValueError, match="takes a vocoder"):
        ours.stream_speech(TEXTS[1], VOICES[1])
    with pytest.raises(ValueError, match="3 texts cannot be streamed at once"):
        ours.stream_speech(padded(TEXTS), VOICES, vocoders[1])
    first = ours.stream_speech(TEXTS[1], VOICES[1], vocoders[1], minlenratio=20, chunk_frames=1)
    next(first)
    ours.generate_speech(TEXTS[1], VOICES[1], maxlenratio=1)
    with pytest.raises(RuntimeError, match="somebody else speaks with this model"):
        next(first)


@pytest.mark.parametrize("field, value", [("hidden_act", "relu"), ("scale_embedding", True), ("layer_norm_eps", 1e-6)])
def test_refused_configs(field, value):
    with pytest.raises(ValueError, match=f"config.json.{field} {value!r} is not supported"):
        SpeechT5ForTextToSpeech(speecht5.config(**{field: value}))


# The processor


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with all that the pipeline and the command take."""
    folder = tmp_path_factory.mktemp("saved")
    speecht5.save_all(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(saved):
    return saved / "speaker"


def test_the_processor_is_transformers(checkpoint):
    ours, theirs = AutoProcessor.from_pretrained(checkpoint), transformers.SpeechT5Processor.from_pretrained(checkpoint)
    texts = ["abc de", " a  b", "fed"]
    made, expected = ours(texts), theirs(text=texts, padding=True, return_tensors="np")
    for name in ("input_ids", "attention_mask"):
        assert np.array_equal(made[name], expected[name])
    assert (made["input_ids"] == 2).any(1).all()
    clips = [np.random.default_rng(seed).normal(size=size).astype(np.float32) for seed, size in ((0, 900), (1, 500))]
    made = ours(audio=clips, text=texts[:2])
    expected = theirs(audio=clips, sampling_rate=16000, padding=True, return_attention_mask=True, return_tensors="np")
    np.testing.assert_allclose(made["input_values"], expected["input_values"], atol=1e-5)
    assert np.array_equal(made["attention_mask"], expected["attention_mask"])
    labels = [[token for token in row if token != -100] for row in made["labels"].tolist()]
    assert labels == theirs.tokenizer(texts[:2]).input_ids
    assert ours.batch_decode(ours("abc de")["input_ids"], skip_special_tokens=True) == ["abc de"]


def test_a_fast_tokenizer_is_read_first(checkpoint, tmp_path, monkeypatch):
    """It needs no sentencepiece, and gives the same tokens."""
    slow = AutoProcessor.from_pretrained(checkpoint)
    folder = shutil.copytree(checkpoint, tmp_path / "fast", ignore=shutil.ignore_patterns("*.safetensors", "*.model"))
    pieces = [(slow.tokenizer.sp_model.id_to_piece(i), 0.0) for i in range(slow.tokenizer.vocab_size)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=3))
    made.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(" +"), " ")
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    made.save(str(folder / "tokenizer.json"))
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    fast = AutoProcessor.from_pretrained(folder)
    for text in ("abc de", "a  b", ["fed", "q"]):
        assert np.array_equal(fast(text)["input_ids"], slow(text)["input_ids"])
    with pytest.raises(ValueError, match="does not know: 'Z'"):
        fast("aZ")
    (folder / "tokenizer.json").unlink()
    shutil.copy(checkpoint / "spm_char.model", folder)
    with pytest.raises(OSError, match="pip install sentencepiece"):
        AutoProcessor.from_pretrained(folder)


def test_numbers_are_spelled_when_asked_for(checkpoint):
    processor = AutoProcessor.from_pretrained(checkpoint)
    assert processor.decode(processor("a 12", normalize=True)["input_ids"][0], skip_special_tokens=True) == "a twelve"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"text": ""}, "text 0 is empty"),
        ({"text": ["a", " \n"]}, "text 1 is empty"),
        ({"text": "a%Zb%"}, "text 0, 'a%Zb%', has what the tokenizer does not know: '%', 'Z': spell them"),
        ({"text": "a 7"}, "does not know: '7': spell them, or normalize=True for numbers"),
        ({"text": 5}, "text must be a string"),
        ({}, "neither text nor audio"),
        ({"text": "a", "audio": [np.ones(500, np.float32)] * 2}, "1 texts for 2 clips"),
        ({"audio": np.ones(500, np.float32), "sampling_rate": 8000}, "sampling_rate=8000"),
        ({"text": "a", "return_tensors": "pt"}, "return_tensors='pt'"),
    ],
)
def test_what_the_processor_refuses(checkpoint, arguments, message):
    processor = AutoProcessor.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match=re.escape(message)):
        processor(**arguments)
    with pytest.raises(TypeError, match="does not know padding"):
        processor("a", padding=True)
    with pytest.raises(ValueError, match="answers no questions"):
        processor.apply_chat_template([{"role": "user", "content": "?"}])


def test_the_class_is_chosen_by_the_architecture(checkpoint, tmp_path):
    assert isinstance(AutoModelForAudioTextToText.from_pretrained(checkpoint), SpeechT5ForTextToSpeech)
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["SpeechT5ForSpeechToSpeech"]}))
    with pytest.raises(ValueError, match="architectures SpeechT5ForSpeechToSpeech are not supported: known are"):
        AutoModelForAudioTextToText.from_pretrained(tmp_path)


# The pipeline and the command


@pytest.fixture(scope="module")
def pipe(saved):
    return pipeline("text-to-speech", model=saved / "speaker", vocoder=saved / "hifigan", voice=saved / "voice.npy")


def test_the_pipeline_speaks_as_pytorch(pipe, saved):
    theirs, sound = speecht5.text_to_speech(1), speecht5.vocoder()
    voice = np.load(saved / "voice.npy")
    made = pipe(["abc de", "b"], seed=None, minlenratio=4, maxlenratio=5)
    for text, answer in zip(["abc de", "b"], made):
        ids = torch.from_numpy(pipe.processor(text)["input_ids"])
        with torch.no_grad():
            expected = theirs.generate_speech(
                ids, torch.from_numpy(voice)[None], minlenratio=4, maxlenratio=5, vocoder=sound
            )
        assert answer["sampling_rate"] == 16000 and answer["audio"].dtype == np.float32
        assert same(answer["audio"], expected.numpy())


def test_the_pipeline_draws_dropout_by_default(pipe):
    settings = {"minlenratio": 4, "maxlenratio": 5}
    made = pipe("abc de", **settings)["audio"]
    assert same(pipe("abc de", seed=0, **settings)["audio"], made)
    assert not same(pipe("abc de", seed=None, **settings)["audio"], made, 1e-2)
    given = {"speaker_embeddings": pipe.voice, **settings}
    assert same(pipe("abc de", forward_params=given)["audio"], made)
    pieces = list(pipe("abc de", stream=True, **settings))
    assert same(np.concatenate([piece["audio"] for piece in pieces]), made)
    one_by_one = pipe(["abc de", "b"], batch_size=1, **settings)
    for a, b in zip(one_by_one, pipe(["abc de", "b"], **settings)):
        assert same(a["audio"], b["audio"])


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"text": ""}, ValueError, "text 0 is empty"),
        ({"text": "a", "temperature": 1}, TypeError, "text-to-speech does not know temperature"),
        ({"text": ["a"], "stream": True}, ValueError, "stream=True takes one text"),
        ({"text": "a", "voice": np.zeros(256)}, ValueError, r"shape \(256,\)"),
        ({"text": "a", "seed": -1}, ValueError, "seed"),
    ],
)
def test_what_the_pipeline_refuses(pipe, arguments, error, message):
    with pytest.raises(error, match=message):
        pipe(**arguments)


def test_what_no_pipeline_is_made_of(saved):
    for arguments, message in (
        ({}, "such as microsoft/speecht5_hifigan, as vocoder"),
        ({"vocoder": saved / "speaker"}, "holds a 'speecht5' model, SpeechT5HifiGan loads 'hifigan'"),
        ({"task": "audio-text-to-text", "vocoder": saved / "hifigan"}, r"speaks texts \(text-to-speech, not audio-t"),
        ({"vocoder": saved / "hifigan", "adapter": "x"}, "adapter='x': a speecht5 model that speaks takes none"),
        ({"model": None, "voice": saved / "voice.npy"}, "takes no vocoder and no voice"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(**{"model": saved / "speaker", **arguments})


@pytest.mark.parametrize("form", ["wav", "flac", "mp3"])
def test_the_command(saved, tmp_path, capsys, form):
    import soundfile

    out = tmp_path / "new" / f"said.{form}"
    parts = ["--model", str(saved / "speaker"), "--vocoder", str(saved / "hifigan")]
    text = "abcdefghij" * 2
    assert cli.main(["speak", text, "-o", str(out), *parts, "--voice", str(saved / "voice.npy"), "--seed", "3"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    samples, rate = soundfile.read(out, dtype="float32")
    expected = pipeline(model=saved / "speaker", vocoder=saved / "hifigan")(text, voice=saved / "voice.npy", seed=3)
    assert rate == 16000 and soundfile.info(out).format == form.upper()
    if form != "mp3":
        np.testing.assert_allclose(samples, expected["audio"], atol=1e-4)


@pytest.mark.parametrize(
    "left_out, more, message",
    [
        ("--vocoder", [], "--vocoder is missing: give the folder or Hugging Face id of one"),
        ("--voice", [], "--voice is missing: give a .npy or .safetensors file with an x-vector"),
        (None, ["-o", "said.ogg"], "--out said.ogg: the file's name must end in .wav, .flac, .mp3"),
        (None, ["--voice", "none.npy"], "no file 'none.npy' with a voice"),
        (None, ["--seed", "x"], "--seed must be"),
    ],
)
def test_what_the_command_refuses(saved, tmp_path, capsys, left_out, more, message):
    given = {"--model": "speaker", "--vocoder": "hifigan", "--voice": "voice.npy"}
    arguments = sum(([name, str(saved / file)] for name, file in given.items() if name != left_out), [])
    assert cli.main(["speak", "abc", "-o", str(tmp_path / "a.wav"), *arguments, *more]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_example(saved, pipe, tmp_path, monkeypatch, capsys):
    """The pieces that it writes are the whole; what is wrong is one line."""
    import soundfile

    example = ROOT / "examples" / "speecht5_speak.py"
    given = ["--model", saved / "speaker", "--vocoder", saved / "hifigan", "--text", "abc de", "--seed", "3"]

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", list(map(str, [example, *given, *arguments])))
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(example), run_name="__main__")
        return end.value.code

    assert run("--voice", saved / "voice.npy", "--out", tmp_path / "said.wav") == 0
    samples, rate = soundfile.read(tmp_path / "said.wav", dtype="float32")
    expected = pipe("abc de", seed=3)["audio"]
    np.testing.assert_allclose(samples, expected, atol=1e-4)
    *pieces, said = capsys.readouterr().out.splitlines()
    assert said == str(tmp_path / "said.wav") and pieces[-1].endswith(f": {len(samples) / rate:.1f} s of speech")
    assert run("--voice", "none.npy").startswith("error: no file 'none.npy' with a voice")


# Speech to text


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    """PyTorch's speech to text and ours."""
    folder = tmp_path_factory.mktemp("writer")
    theirs = speecht5.speech_to_text()
    theirs.save_pretrained(folder)
    return theirs, AutoModelForAudioTextToText.from_pretrained(folder)


CLIPS = speecht5.clips(640, 333, 47, 900, 1200)
IDS = np.array([[2, 5, 6, 7], [2, 8, 9, 10], [2, 11, 12, 13], [2, 4, 4, 5], [2, 20, 3, 9]])


def together(clips: list[np.ndarray], behind: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, clips))
    samples = np.stack([np.pad(clip, (0, longest - len(clip)), constant_values=behind) for clip in clips])
    return samples, np.array([[1] * len(clip) + [0] * (longest - len(clip)) for clip in clips])


def alone(theirs, clip: int, **inputs):
    with torch.no_grad():
        return theirs(torch.from_numpy(CLIPS[clip])[None], **{k: torch.from_numpy(v) for k, v in inputs.items()})


def written(theirs, clip: int, **settings) -> list[int]:
    with torch.no_grad():
        return theirs.generate(torch.from_numpy(CLIPS[clip])[None], **settings)[0].tolist()


def test_scores_and_loss(writers):
    """Whatever stands behind the clips."""
    theirs, ours = writers
    made = ours(*together(CLIPS, 3.0), IDS).logits.asnumpy()
    for clip in range(5):
        expected = alone(theirs, clip, decoder_input_ids=IDS[[clip]]).logits.numpy()[0]
        assert relative_error(made[clip], expected) < 1e-5
    labels = np.array([[5, 6, 2, -100]])
    expected, made = alone(theirs, 0, labels=labels), ours(CLIPS[0][None], labels=labels)
    assert abs(float(expected.loss) - float(made.loss)) < 1e-5
    weight = theirs.speecht5.decoder.wrapped_decoder.layers[2].encoder_attn.v_proj.weight
    right = weight.detach().clone()
    with torch.no_grad():
        weight *= 1.1
        broken = alone(theirs, 0, decoder_input_ids=IDS[[0]]).logits.numpy()[0]
        weight[...] = right
    assert relative_error(ours(CLIPS[0][None], None, IDS[[0]]).logits.asnumpy()[0], broken) > 1e-3


WRITING = [{}, {"no_repeat_ngram_size": 1}, {"repetition_penalty": 1.9}, {"num_beams": 3, "no_repeat_ngram_size": 2}]


@pytest.mark.parametrize("settings", WRITING)
def test_clips_together_are_each_alone_in_pytorch(writers, settings):
    """Two at a time: a slot that was another clip's hears as much as its own clip has."""
    theirs, ours = writers
    settings = {"max_new_tokens": 14, "suppress_tokens": [1], **settings}  # padding has no position in transformers
    made = ours.generate(*together(CLIPS, 3.0), batch_size=2, **settings).asnumpy().tolist()
    expected = [written(theirs, clip, **settings) for clip in range(5)]
    assert [row[: len(one)] for row, one in zip(made, expected)] == expected
    assert all(set(row[len(one) :]) <= {1} for row, one in zip(made, expected))
    assert len({tuple(row) for row in made}) >= (3 if "no_repeat_ngram_size" in settings else 2)
    few = [
        ours.generate(*together(CLIPS), compile=compile, **{**settings, "max_new_tokens": 3}).asnumpy()
        for compile in (True, False)
    ]
    assert np.array_equal(*few)


def test_a_clip_hears_no_more_than_its_own(writers, monkeypatch):
    """Without the lengths of what is heard the tokens are other ones, so that the test above would see it."""
    theirs, ours = writers
    settings = {"max_new_tokens": 14, "suppress_tokens": [1], "no_repeat_ngram_size": 1}
    expected = [written(theirs, clip, **settings) for clip in range(5)]
    monkeypatch.setattr(Slots, "hear", lambda *arguments: None)
    ours.weights_changed()  # so that its slots are made anew
    made = ours.generate(*together(CLIPS), compile=False, **settings).asnumpy().tolist()
    ours.weights_changed()
    assert made != expected


def test_a_saved_writer_loads_in_transformers(writers, tmp_path):
    theirs, ours = writers
    ours.save_pretrained(tmp_path)
    again = speecht5.TorchSpeechToText.from_pretrained(tmp_path)
    for name, value in theirs.state_dict().items():
        assert ".original" in name or torch.equal(again.state_dict()[name], value), name
    expected = alone(theirs, 0, decoder_input_ids=IDS[[0]]).logits.numpy()
    assert relative_error(alone(again, 0, decoder_input_ids=IDS[[0]]).logits.numpy(), expected) < 1e-5
    ours = SpeechT5ForSpeechToText.from_pretrained(tmp_path)
    assert relative_error(ours(CLIPS[0][None], None, IDS[[0]]).logits.asnumpy(), expected) < 1e-5


@pytest.mark.parametrize(
    "samples, mask, message",
    [
        (np.zeros((1, 29), np.float32), None, "clip 0 has 29 samples, this model takes 30 to"),
        (np.zeros((1, 9000), np.float32), None, "clip 0 has 9000 samples"),
        (np.zeros(640, np.float32), None, r"input_values have shape \(640,\)"),
        (np.zeros((1, 640), np.float32), np.ones((1, 9)), r"attention_mask of shape \(1, 9\)"),
        (np.zeros((1, 640), np.float32), np.arange(640)[None] > 9, "clips are padded on the right"),
        (None, None, "input_values are missing"),
    ],
)
def test_clips_that_do_not_fit(writers, samples, mask, message):
    for call in (writers[1].generate, lambda *inputs: writers[1](*inputs, IDS[:1])):
        with pytest.raises(ValueError, match=message):
            call(samples, mask)


# The tokens of a random model would be one and the same otherwise.
FEW = {"max_new_tokens": 12, "no_repeat_ngram_size": 1}


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A folder with a model that takes nearly two seconds, and its pipeline."""
    folder = tmp_path_factory.mktemp("writes")
    speecht5.save_writer(folder)
    return folder, pipeline("automatic-speech-recognition", model=folder)


def test_the_pipeline_writes_what_generate_says(writer):
    model, processor = writer[1].model, writer[1].processor
    clips = speecht5.clips(16000, 9000, 28000)
    answers = writer[1](clips, **FEW)
    for clip, answer in zip(clips, answers):
        said = model.generate(**processor(audio=clip), **FEW)
        text = processor.batch_decode(said, skip_special_tokens=True)[0].strip()
        assert answer["text"] == answer["generated_text"] == text
        assert answer["chunks"] == [
            {"start": 0.0, "end": len(clip) / 16000, "timestamp": (0.0, len(clip) / 16000), "text": text}
        ]
    assert len({answer["text"] for answer in answers}) == 3
    (long,) = speecht5.clips(40000)
    parts = writer[1](long, window=1.5, **FEW)[0]["chunks"]
    assert len(parts) > 1 and parts[-1]["end"] == 2.5
    for part in parts:
        samples = long[round(part["start"] * 16000) : round(part["end"] * 16000)]
        assert part["text"] == writer[1](samples, **FEW)[0]["text"]
    assert "".join(writer[1](clips[0], stream=True, **FEW)) == answers[0]["text"]
    assert writer[1](clips[0], language="en", **FEW)[0] == answers[0]


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"language": "de"}, "language='de': this model family writes English alone: leave it out"),
        ({"prompt": "names"}, "prompt='names': this model family takes no words beside the clip"),
        ({"text": "What?"}, "this model transcribes and answers no questions"),
        ({"task": "translate"}, "task='translate': this model knows no tasks"),
    ],
)
def test_what_the_writing_pipeline_refuses(writer, asked, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        writer[1](speecht5.clips(16000)[0], **asked)


def test_the_command_transcribes(writer, tmp_path, capsys):
    import soundfile

    soundfile.write(tmp_path / "a.wav", speecht5.clips(16000)[0], 16000, subtype="FLOAT")
    run = ["transcribe", str(tmp_path / "a.wav"), "--model", str(writer[0]), "--max-new-tokens", "12"]
    assert cli.main(run) == 0
    assert capsys.readouterr().out == writer[1](tmp_path / "a.wav", max_new_tokens=12)[0]["text"] + "\n"
    assert cli.main([*run, "--language", "de"]) != 0
    assert "--language='de': this model family writes English alone" in capsys.readouterr().err
    assert cli.main(["ask", str(tmp_path / "a.wav"), "What?", "--model", str(writer[0])]) != 0
    assert "use mindone-audio transcribe" in capsys.readouterr().err

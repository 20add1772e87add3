"""SpeechT5's encoders against PyTorch's: of raw samples and of text, alone and in batches of unequal lengths."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import relative_error
from helpers_bodies import WAVE, int32, load, random_module, wrong_parameters
from mindspore import Tensor
from transformers import SpeechT5Config
from transformers.models.speecht5.modeling_speecht5 import (
    SpeechT5EncoderWithSpeechPrenet,
    SpeechT5EncoderWithTextPrenet,
)

from mindone_audio.backbone.compiled import graphs
from mindone_audio.models.speecht5.encoder import TextEncoder
from mindone_audio.models.speecht5.wave_encoder import WaveEncoder

RNG = np.random.default_rng(0)
LENGTHS = [640, 333, 47]  # 31, 15 and 1 positions; distances go up to 4
CLIPS = [RNG.normal(size=length).astype(np.float32) for length in LENGTHS]
VOCAB = 30
TEXTS = [RNG.integers(2, VOCAB, length) for length in (13, 6, 1)]


def torch_config(config=WAVE) -> SpeechT5Config:
    return SpeechT5Config(
        vocab_size=VOCAB,
        hidden_size=config.stack.hidden_size,
        encoder_layers=config.stack.num_layers,
        encoder_attention_heads=config.stack.num_heads,
        encoder_ffn_dim=config.stack.intermediate_size,
        encoder_max_relative_position=config.stack.max_distance,
        conv_dim=config.conv_dim,
        conv_kernel=config.conv_kernel,
        conv_stride=config.conv_stride,
        conv_bias=config.conv_bias,
        num_feat_extract_layers=len(config.conv_dim),
        num_conv_pos_embeddings=config.positions_kernel,
        num_conv_pos_embedding_groups=config.positions_groups,
        max_text_positions=20,
    )


def encoders(config):
    theirs = random_module(SpeechT5EncoderWithSpeechPrenet(torch_config(config)))
    return load(WaveEncoder(config), theirs, ignored=("prenet.masked_spec_embed",)), theirs


@pytest.fixture(scope="module")
def speech():
    return encoders(WAVE)


@pytest.fixture(scope="module")
def text():
    theirs = random_module(SpeechT5EncoderWithTextPrenet(torch_config()))
    return load(TextEncoder(WAVE.stack, VOCAB), theirs), theirs


def singles(theirs, inputs) -> list[np.ndarray]:
    with torch.no_grad():
        return [theirs(torch.from_numpy(one)[None]).last_hidden_state[0].numpy() for one in inputs]


def samples(width: int) -> Tensor:
    """(clips, samples), with noise behind each clip."""
    full = 2 * RNG.normal(size=(len(CLIPS), width)).astype(np.float32)
    for row, clip in zip(full, CLIPS):
        row[: len(clip)] = clip
    return Tensor(full)


def check(ours: np.ndarray, expected: list[np.ndarray], tolerance: float = 1e-5):
    for one, other in zip(ours, expected):
        assert relative_error(one[: len(other)], other) < tolerance


@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_is_what_each_clip_is_alone_in_pytorch(speech, compiled):
    ours, theirs = speech
    run = graphs(ours) if compiled else ours
    width = WAVE.frames_to_encode(640)
    encoded = run(samples(width), int32(LENGTHS)).asnumpy()
    assert encoded.shape == (3, WAVE.positions(width), 24)
    expected = singles(theirs, CLIPS)
    assert ours.output_lengths(np.array(LENGTHS)).tolist() == [len(one) for one in expected]
    check(encoded, expected)


def test_padding_is_heard_in_pytorch(speech):
    """Why singles are compared."""
    full = np.zeros((1, 640), np.float32)
    full[0, :333] = CLIPS[1]
    mask = (torch.arange(640) < 333)[None].long()
    with torch.no_grad():
        batched = speech[1](torch.from_numpy(full), attention_mask=mask).last_hidden_state[0].numpy()
    expected = singles(speech[1], CLIPS)[1]
    assert relative_error(batched[: len(expected)], expected) > 1e-2


def test_parts_are_the_whole(speech):
    ours, _ = speech
    x, lengths = samples(640), int32(LENGTHS)
    whole = ours(x, lengths).asnumpy()
    first = ours.through(ours.begin(x, lengths), lengths, 0, 1)
    parts = ours.end(ours.through(first, lengths, 1, len(ours.layers)), lengths).asnumpy()
    np.testing.assert_array_equal(parts, whole)


def test_every_parameter_is_proved(speech):
    """Of the keys' biases a softmax knows nothing: they add the same to all scores of a query."""
    ours, theirs = speech
    expected = singles(theirs, CLIPS[:1])[0]

    def run():
        return ours(Tensor(CLIPS[0][None]), int32([640])).asnumpy()[0]

    unnoticed = wrong_parameters(ours, run, expected, 3e-5)
    assert [name for name in unnoticed if not name.endswith("k_proj.bias")] == []


@pytest.mark.parametrize("changes", [{"positions_kernel": 7, "conv_bias": True}, {"conv_stride": (4, 3, 1)}])
def test_other_sizes(changes):
    config = replace(WAVE, **changes)
    ours, theirs = encoders(config)
    expected = singles(theirs, CLIPS)
    assert ours.output_lengths(np.array(LENGTHS)).tolist() == [len(one) for one in expected]
    check(ours(samples(700), int32(LENGTHS)).asnumpy(), expected)


def test_few_graphs_for_any_length():
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    published = replace(WAVE, conv_dim=(512,) * 7, conv_kernel=kernels, conv_stride=strides, longest=480_000)
    assert published.samples(1) == 400 and published.positions(16_000) == 49
    assert len(published.widths) == 10
    for length in (1, 399, 400, 20_560, 20_561, 30_000, 480_000, 500_000):
        width = published.frames_to_encode(length)
        assert width >= length and width == published.samples(published.positions(width))
        assert length > 480_000 or width in published.widths
    assert published.layer_work(32_000) > 2 * published.layer_work(16_000)


@pytest.mark.parametrize("compiled", [False, True])
def test_texts_are_encoded_as_in_pytorch(text, compiled):
    ours, theirs = text
    ids = np.full((3, 16), 1, np.int32)
    for row, one in zip(ids, TEXTS):
        row[: len(one)] = one
    run = graphs(ours) if compiled else ours
    check(run(int32(ids), int32([13, 6, 1])).asnumpy(), singles(theirs, TEXTS))


def test_every_parameter_of_the_text_encoder_is_proved(text):
    ours, theirs = text
    expected = singles(theirs, TEXTS[:1])[0]

    def run():
        return ours(int32(TEXTS[0][None]), int32([13])).asnumpy()[0]

    unnoticed = wrong_parameters(ours, run, expected, 3e-5)
    assert [name for name in unnoticed if not name.endswith("k_proj.bias")] == []


def test_refused_sizes():
    with pytest.raises(ValueError, match="width 24 is not a multiple of its 5 heads"):
        replace(WAVE.stack, num_heads=5)

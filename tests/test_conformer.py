"""The conformer against PyTorch's SeamlessM4T v2 speech encoder: alone, in unequal batches, and in parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import relative_error
from helpers_bodies import CONFORMER, int32, load, random_module, wrong_parameters
from mindspore import Tensor
from transformers import SeamlessM4Tv2Config
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder

from mindone_audio.backbone.buckets import bucket, buckets
from mindone_audio.backbone.compiled import graphs
from mindone_audio.backbone.conformer import ConformerEncoder

RNG = np.random.default_rng(0)
LENGTHS = [45, 26, 8]  # further apart than the tables reach, in up to five chunks, and one adapter row or two
CLIPS = [RNG.normal(size=(length, CONFORMER.num_mel_bins)).astype(np.float32) for length in LENGTHS]


def torch_encoder(config) -> SeamlessM4Tv2SpeechEncoder:
    return random_module(
        SeamlessM4Tv2SpeechEncoder(
            SeamlessM4Tv2Config(
                hidden_size=config.hidden_size,
                feature_projection_input_dim=config.num_mel_bins,
                speech_encoder_layers=config.num_layers,
                speech_encoder_attention_heads=config.num_heads,
                speech_encoder_intermediate_size=config.intermediate_size,
                conv_depthwise_kernel_size=config.conv_kernel,
                left_max_position_embeddings=config.left_positions,
                right_max_position_embeddings=config.right_positions,
                speech_encoder_chunk_size=config.chunk_size,
                speech_encoder_left_chunk_num=config.left_chunks,
                add_adapter=config.num_adapters > 0,
                num_adapter_layers=config.num_adapters,
                adaptor_kernel_size=config.adapter_kernel,
                adaptor_stride=config.adapter_stride,
            )
        )
    )


@pytest.fixture(scope="module")
def theirs():
    return torch_encoder(CONFORMER)


@pytest.fixture(scope="module")
def ours(theirs):
    return load(ConformerEncoder(CONFORMER), theirs)


def singles(theirs) -> list[np.ndarray]:
    with torch.no_grad():
        return [theirs(torch.from_numpy(clip)[None]).last_hidden_state[0].numpy() for clip in CLIPS]


def features(frames: int, clips=CLIPS) -> Tensor:
    """(clips, bins, frames), with something behind each clip that would be heard."""
    full = np.full((len(clips), CONFORMER.num_mel_bins, frames), 3.0, np.float32)
    full += RNG.normal(size=full.shape).astype(np.float32)
    for row, clip in zip(full, clips):
        row[:, : len(clip)] = clip.T
    return Tensor(full)


def check(ours: np.ndarray, expected: list[np.ndarray], tolerance: float = 1e-5):
    for one, other in zip(ours, expected):
        assert relative_error(one[: len(other)], other) < tolerance


@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_is_what_each_clip_is_alone_in_pytorch(ours, theirs, compiled):
    run = graphs(ours) if compiled else ours
    width = CONFORMER.frames_to_encode(45)
    encoded = run(features(width), int32(LENGTHS)).asnumpy()
    assert encoded.shape == (3, CONFORMER.positions(width), 24)
    expected = singles(theirs)
    assert ours.output_lengths(np.array(LENGTHS)).tolist() == [len(one) for one in expected] == [6, 4, 2]
    check(encoded, expected)


def test_padding_is_heard_in_pytorch(theirs):
    """Why singles are compared: the last row of a padded clip there is another one than that of the clip alone."""
    full = np.zeros((1, 45, CONFORMER.num_mel_bins), np.float32)
    full[0, :26] = CLIPS[1]
    mask = (torch.arange(45) < 26)[None].long()
    with torch.no_grad():
        batched = theirs(torch.from_numpy(full), attention_mask=mask).last_hidden_state[0, :4].numpy()
    assert relative_error(batched, singles(theirs)[1]) > 1e-2


def test_parts_are_the_whole(ours):
    """The engine encodes in parts where one graph would be too large."""
    x, lengths = features(48), int32(LENGTHS)
    whole = ours(x, lengths).asnumpy()
    first = ours.through(ours.begin(x, lengths), lengths, 0, 1)
    parts = ours.end(ours.through(first, lengths, 1, len(ours.layers)), lengths).asnumpy()
    np.testing.assert_array_equal(parts, whole)


def test_every_parameter_is_proved(ours, theirs):
    """Of the keys' biases a softmax knows nothing: they add the same to all scores of a query."""
    expected = singles(theirs)[0]

    def run():
        return ours(features(45, CLIPS[:1]), int32([45])).asnumpy()[0]

    unnoticed = wrong_parameters(ours, run, expected, 3e-5)
    assert [name for name in unnoticed if not name.endswith("linear_k.bias")] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk_size": None},
        {"left_chunks": -1},
        {"left_chunks": 0, "num_adapters": 0},
        {"adapter_kernel": 4, "adapter_stride": 3, "num_adapters": 2, "num_layers": 1},
        {"left_positions": 2, "right_positions": 60, "conv_kernel": 31, "chunk_size": 20_000, "left_chunks": 128},
    ],
)
def test_other_sizes(changes):
    config = replace(CONFORMER, **changes)
    theirs = torch_encoder(config)
    ours = load(ConformerEncoder(config), theirs)
    expected = singles(theirs)
    assert ours.output_lengths(np.array(LENGTHS)).tolist() == [len(one) for one in expected]
    check(ours(features(48), int32(LENGTHS)).asnumpy(), expected)


def test_refused_sizes():
    with pytest.raises(ValueError, match="width 24 is not a multiple of its 5 heads"):
        replace(CONFORMER, num_heads=5)
    with pytest.raises(ValueError, match="a chunk of 0 positions"):
        replace(CONFORMER, chunk_size=0)


def test_few_graphs_for_any_length():
    assert buckets(1500, 64) == [64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536]
    for length in range(1, 1000):
        size = bucket(length, 64)
        assert length <= size and size in buckets(1500, 64) and (length <= 64 or size < 1.5 * length)
    assert CONFORMER.widths == [64, 96, 128]
    assert CONFORMER.frames_to_encode(129) == 192  # longer than is expected


def test_work_grows_with_frames_and_their_square():
    works = [CONFORMER.layer_work(frames) for frames in (100, 200)]
    assert 2 < works[1] / works[0] < 4

"""Both HiFi-GANs against PyTorch's, in batches of unequal lengths too, and weights stored as length and direction."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import relative_error
from helpers_bodies import VOCODER, int32, load, numpy_of, random_module, wrong_parameters
from mindspore import Tensor
from mindspore.common.np_dtype import bfloat16
from transformers import SeamlessM4Tv2Config, SpeechT5HifiGan, SpeechT5HifiGanConfig
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2CodeHifiGan

from mindone_audio.backbone.compiled import graphs
from mindone_audio.backbone.vocoder import CodeHifiGan, HifiGan, PredictDurations, repeat_units
from mindone_audio.weights.weight_norm import fold_weight_norm

RNG = np.random.default_rng(0)
LENGTHS = [23, 9, 1]
PAD = 1  # SeamlessM4T's unit


@pytest.fixture(scope="module")
def theirs() -> SpeechT5HifiGan:
    config = SpeechT5HifiGanConfig(
        model_in_dim=VOCODER.in_channels,
        upsample_initial_channel=VOCODER.upsample_initial_channel,
        upsample_rates=list(VOCODER.upsample_rates),
        upsample_kernel_sizes=list(VOCODER.upsample_kernel_sizes),
        resblock_kernel_sizes=list(VOCODER.resblock_kernel_sizes),
        resblock_dilation_sizes=[list(sizes) for sizes in VOCODER.resblock_dilation_sizes],
        leaky_relu_slope=VOCODER.leaky_relu_slope,
    )
    model = random_module(SpeechT5HifiGan(config))
    with torch.no_grad():  # a waveform that tanh does not flatten
        model.conv_post.weight *= 0.2
    return model


@pytest.fixture(scope="module")
def ours(theirs) -> HifiGan:
    return load(HifiGan(VOCODER), theirs)


MELS = [RNG.normal(size=(length, VOCODER.in_channels)).astype(np.float32) for length in LENGTHS]


def padded(clips: list[np.ndarray], value: float = 7.0) -> np.ndarray:
    """Stacked, with a value behind them that would be heard."""
    full = np.full((len(clips), max(map(len, clips)), clips[0].shape[1]), value, np.float32)
    for row, clip in zip(full, clips):
        row[: len(clip)] = clip
    return full


def singles(theirs) -> list[np.ndarray]:
    with torch.no_grad():
        return [theirs(torch.from_numpy(mel)).numpy() for mel in MELS]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_is_what_each_sample_is_alone_in_pytorch(ours, theirs, compiled):
    run = graphs(ours) if compiled else ours
    waves = run(Tensor(padded(MELS)), int32(LENGTHS)).asnumpy()
    assert waves.shape == (3, VOCODER.num_samples(23))
    for wave, expected in zip(waves, singles(theirs)):
        assert 0.1 < np.abs(expected).mean() < 0.9
        assert relative_error(wave[: len(expected)], expected) < 1e-5
        assert not wave[len(expected) :].any()


def test_lengths_of_waveforms(theirs):
    assert [VOCODER.num_samples(length) for length in LENGTHS] == [len(wave) for wave in singles(theirs)]
    assert VOCODER.num_samples(np.array(LENGTHS)).tolist() == [len(wave) for wave in singles(theirs)]


def test_every_parameter_is_heard(ours, theirs):
    expected = singles(theirs)[0]

    def run():
        return ours(Tensor(MELS[0][None]), int32([23])).asnumpy()[0]

    assert wrong_parameters(ours, run, expected, 3e-5) == []


def test_without_normalisation(theirs):
    plain = load(HifiGan(replace(VOCODER, normalize_before=False)), theirs)
    bare = HifiGan(replace(VOCODER, normalize_before=None))
    names, others = ({name for name, _ in cell.parameters_and_names()} for cell in (plain, bare))
    assert names - others == {"mean", "scale"} and others < names
    theirs.config.normalize_before = False
    try:
        expected = singles(theirs)[0]
    finally:
        theirs.config.normalize_before = True
    assert relative_error(plain(Tensor(MELS[0][None]), int32([23])).asnumpy()[0], expected) < 1e-5


@pytest.mark.parametrize("parametrized", [True, False])
def test_weights_as_length_and_direction(ours, theirs, parametrized):
    """The published forks store them so, in the spelling of PyTorch's newer function or of its older one."""
    model = random_module(SpeechT5HifiGan(theirs.config), seed=1)
    plain = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    model.apply_weight_norm()
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    if not parametrized:
        state = {
            name.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): value
            for name, value in state.items()
        }
    assert any(name.endswith("original0" if parametrized else "weight_g") for name in state)
    folded = fold_weight_norm(state)
    assert set(folded) == set(plain)
    for name, value in plain.items():
        np.testing.assert_allclose(folded[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("shape", [(4, 3, 5), (1, 3, 5), (4, 3, 1)])
def test_folding_is_pytorchs(dim, shape):
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(shape[1], shape[0], shape[2]), dim=dim)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(torch.rand(layer.parametrizations.weight.original0.shape) + 0.5)
    state = {f"a.b.{name}": value.detach().numpy() for name, value in layer.state_dict().items()}
    folded = fold_weight_norm({**state, "other.weight": np.ones(3)})
    assert sorted(folded) == ["a.b.bias", "a.b.weight", "other.weight"] and folded["other.weight"].sum() == 3
    assert relative_error(folded["a.b.weight"], layer.weight.detach().numpy()) < 1e-6
    half = fold_weight_norm({name: value.astype(bfloat16) for name, value in state.items()})["a.b.weight"]
    assert half.dtype == bfloat16
    assert relative_error(half.astype(np.float32), layer.weight.detach().numpy()) < 2e-2


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight_g": (4, 1, 1)}, "a has only one of .weight_g and .weight_v"),
        ({"a.weight_g": (3, 1, 1), "a.weight_v": (4, 3, 5)}, r"lengths of shape \(3, 1, 1\).*\(4, 3, 5\)"),
        ({"a.weight_g": (1, 1), "a.weight_v": (4, 3, 5)}, "do not fit"),
        ({"a.weight_g": (4, 1, 1), "a.weight_v": (4, 3, 5), "a.weight": (4, 3, 5)}, "a has a weight twice"),
    ],
)
def test_what_cannot_be_folded(tensors, message):
    with pytest.raises(ValueError, match=message):
        fold_weight_norm({name: np.ones(shape, np.float32) for name, shape in tensors.items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upsample_rates": (3, 2, 2)}, "upsample_rates and upsample_kernel_sizes"),
        ({"resblock_kernel_sizes": (3,)}, "resblock_kernel_sizes and resblock_dilation_sizes"),
        ({"resblock_kernel_sizes": (3, 4)}, "resblock_kernel_sizes has 4"),
        ({"upsample_kernel_sizes": (2, 5)}, "upsample_kernel_sizes has 2"),
    ],
)
def test_refused_vocoders(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(VOCODER, **changes)


# SeamlessM4T's: units in a language, with a speaker's voice

UNITS = [RNG.integers(2, 20, length) for length in (8, 5)]
SPEAKERS, LANGUAGES = [2, 0], [1, 3]


@pytest.fixture(scope="module")
def code_vocoders() -> tuple[CodeHifiGan, SeamlessM4Tv2CodeHifiGan]:
    config = SeamlessM4Tv2Config(
        **{"unit_hifi_gan_vocab_size": 20, "unit_embed_dim": 6, "lang_embed_dim": 3, "spkr_embed_dim": 5},
        **{"vocoder_num_langs": 4, "vocoder_num_spkrs": 3, "variance_predictor_kernel_size": 4},
        upsample_initial_channel=16,
        upsample_rates=[3, 2],
        upsample_kernel_sizes=[7, 4],
        resblock_kernel_sizes=[3, 5],
        resblock_dilation_sizes=[[1, 3], [1, 2]],
        t2u_pad_token_id=PAD,
    )
    theirs = random_module(SeamlessM4Tv2CodeHifiGan(config))
    with torch.no_grad():
        theirs.dur_predictor.proj.bias.fill_(1.1)  # some units last for several frames
        theirs.hifi_gan.conv_post.weight *= 0.2
    sizes = replace(VOCODER, in_channels=14, upsample_kernel_sizes=(7, 4), normalize_before=None)
    return load(CodeHifiGan(sizes, (20, 6), (4, 3), (3, 5), 4), theirs), theirs


def code_singles(theirs) -> list[np.ndarray]:
    made = []
    for units, speaker, language in zip(UNITS, SPEAKERS, LANGUAGES):
        with torch.no_grad():
            wave, length = theirs(torch.from_numpy(units)[None], torch.tensor([[speaker]]), torch.tensor([[language]]))
        assert int(length) == wave.shape[1]
        made.append(wave[0].numpy())
    return made


@pytest.mark.parametrize("compiled", [False, True])
def test_units_sound_as_in_pytorch(code_vocoders, compiled):
    """Two of unequal lengths together as each alone; units behind the shorter one are not heard."""
    ours, theirs = code_vocoders
    units = np.full((2, 8), 19, np.int32)
    units[0], units[1, :5] = UNITS
    counts = np.array([8, 5])
    wrap = graphs if compiled else lambda cell: cell
    predict, sound = wrap(PredictDurations(ours)), wrap(ours)
    predicted = predict(int32(units), int32(counts)).asnumpy()
    repeated = repeat_units(units, counts, predicted)
    assert len(repeated[0]) > 8 and len({np.sum(repeated[0] == unit) for unit in UNITS[0]}) > 1
    frames = [len(row) for row in repeated]
    together = np.full((2, max(frames)), 19, np.int32)
    for row, one in zip(together, repeated):
        row[: len(one)] = one
    waves = sound(int32(together), int32(frames), int32(LANGUAGES), int32(SPEAKERS)).asnumpy()
    for wave, expected in zip(waves, code_singles(theirs)):
        assert relative_error(wave[: len(expected)], expected) < 1e-5
        assert not wave[len(expected) :].any()


def test_durations_are_rounded_as_in_pytorch():
    log = RNG.normal(1, 0.8, (1, 300)).astype(np.float32)
    expected = torch.clamp(torch.round(torch.expm1(torch.from_numpy(log))).long(), min=1)[0].numpy()
    assert expected.min() == 1 and len(set(expected.tolist())) > 5
    units = np.arange(300)[None]
    np.testing.assert_array_equal(repeat_units(units, np.array([300]), log)[0], np.repeat(units[0], expected))
    assert len(repeat_units(units, np.array([7]), log)[0]) == expected[:7].sum()


@pytest.mark.parametrize("value", [np.nan, 500.0])
def test_durations_that_are_no_numbers(value):
    log = np.full((1, 3), 0.5, np.float32)
    log[0, 2] = value
    with pytest.raises(ValueError, match="durations that are not finite numbers"):
        repeat_units(np.arange(3)[None], np.array([3]), log)
    assert repeat_units(np.arange(3)[None], np.array([2]), log)[0].tolist() == [0, 1]


def test_every_parameter_of_the_code_vocoder_is_heard(code_vocoders):
    """A change of 2 % of what predicts durations shows in the predictions, of all others in the waveform."""
    ours, theirs = code_vocoders
    units, count = int32(UNITS[0][None]), int32([8])
    durations = PredictDurations(ours)
    predicted = numpy_of(durations(units, count))
    frames = repeat_units(UNITS[0][None], np.array([8]), predicted)[0]
    expected = code_singles(theirs)[0]

    def wave():
        return ours(int32(frames[None]), int32([len(frames)]), int32(LANGUAGES[:1]), int32(SPEAKERS[:1])).asnumpy()[0]

    unheard = wrong_parameters(ours, wave, expected, 3e-5)
    unpredicted = wrong_parameters(durations, lambda: numpy_of(durations(units, count)), predicted, 3e-5)
    assert [name for name in unheard if not name.startswith("dur_predictor.")] == []
    assert len(unheard) == 10
    assert unpredicted == []


def test_widths_of_embeddings_must_fit():
    with pytest.raises(ValueError, match="in_channels 10 is not the sum"):
        CodeHifiGan(VOCODER, (20, 6), (4, 3), (3, 5), 4)

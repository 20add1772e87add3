"""SeamlessM4T v2's speech: text to units and units to sound against transformers on PyTorch.

Single texts are compared: in a batch of transformers a shorter text is given one more state, and hears padding.
"""

import inspect

import numpy as np
import pytest
import torch
from helpers import relative_error
from helpers_bodies import int32, load, numpy_of, random_module, wrong_parameters
from mindspore import Tensor, nn
from transformers import SeamlessM4Tv2Config
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import (
    SeamlessM4Tv2CodeHifiGan,
    SeamlessM4Tv2TextToUnitForConditionalGeneration,
)

from mindone_audio.generation.engine import Engine
from mindone_audio.models.seamless_m4t_v2.speaking import Voice, choose_units, code_vocoder, sound
from mindone_audio.models.seamless_m4t_v2.units import WEIGHT_PREFIXES, TextToUnit

RNG = np.random.default_rng(0)
UNITS, CHARACTERS = 40, 30
LENGTHS = [9, 4, 1]  # texts, in tokens


def tiny_config(**changes) -> SeamlessM4Tv2Config:
    """Unequal counts of heads, an even and an odd kernel, units that are several frames long."""
    sizes = {
        "hidden_size": 24,
        "vocab_size": 50,
        "t2u_vocab_size": UNITS,
        "char_vocab_size": CHARACTERS,
        "t2u_encoder_layers": 2,
        "t2u_encoder_attention_heads": 3,
        "t2u_encoder_ffn_dim": 40,
        "t2u_decoder_layers": 2,
        "t2u_decoder_attention_heads": 4,
        "t2u_decoder_ffn_dim": 40,
        "t2u_variance_predictor_embed_dim": 24,
        "t2u_variance_predictor_hidden_dim": 10,
        "t2u_variance_predictor_kernel_size": 3,
        "variance_predictor_kernel_size": 4,
        "t2u_max_position_embeddings": 64,
        "vocoder_offset": 4,
        "unit_hifi_gan_vocab_size": 32,
        "unit_embed_dim": 6,
        "lang_embed_dim": 3,
        "spkr_embed_dim": 5,
        "vocoder_num_langs": 4,
        "vocoder_num_spkrs": 3,
        "upsample_initial_channel": 16,
        "upsample_rates": [3, 2],
        "upsample_kernel_sizes": [7, 4],
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1, 2]],
    }
    return SeamlessM4Tv2Config(**{**sizes, **changes})


def torch_models(**changes) -> torch.nn.Module:
    """PyTorch's two models that make speech, in one."""
    config = tiny_config(**changes)
    t2u_model = SeamlessM4Tv2TextToUnitForConditionalGeneration(config)
    both = torch.nn.ModuleDict({"t2u_model": t2u_model, "vocoder": SeamlessM4Tv2CodeHifiGan(config)})
    random_module(both)
    t2u_model.tie_weights()
    with torch.no_grad():
        for predictor in (t2u_model.model.decoder.duration_predictor, both.vocoder.dur_predictor):
            predictor.proj.weight *= 0.4
            predictor.proj.bias.fill_(1.1)  # some last for several units or frames
        both.vocoder.hifi_gan.conv_post.weight *= 0.2
    return both


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    return torch_models()


class Speech(nn.Cell):
    """What `choose_units` and `sound` take of a model."""

    packed_weights = None

    def __init__(self, config: SeamlessM4Tv2Config):
        super().__init__()
        self.config, self.t2u_model, self.vocoder = config, TextToUnit(config), code_vocoder(config)


@pytest.fixture(scope="module")
def ours(theirs) -> Speech:
    return load(Speech(tiny_config()), theirs, prefixes=WEIGHT_PREFIXES)


@pytest.fixture(scope="module")
def engines(ours) -> dict[bool, Engine]:
    return {compiled: Engine(ours, compiled) for compiled in (True, False)}


def states(length: int) -> np.ndarray:
    """A text decoder's, fp32 (tokens, hidden_size)."""
    return np.random.default_rng(length).normal(size=(length, 24)).astype(np.float32)


def spelled(length: int) -> tuple[list[int], list[int]]:
    """Characters, and how many each token has: none of the first and the last one."""
    rng = np.random.default_rng(length)
    counts = [0, *rng.integers(1, 5, max(1, length - 2)).tolist(), 0][:length] if length > 2 else [3, 0][:length]
    return rng.integers(2, CHARACTERS, sum(counts)).tolist(), counts


def their_units(theirs, length: int) -> np.ndarray:
    """Scores of units fp32 (units, UNITS)."""
    characters, counts = spelled(length)
    asked = {"char_input_ids": torch.tensor([characters]), "char_count_per_id": torch.tensor([counts])}
    predicted, predictor = [], theirs.t2u_model.model.decoder.duration_predictor
    watch = predictor.register_forward_hook(lambda module, given, made: predicted.append(made))
    with torch.no_grad():
        made = theirs.t2u_model(inputs_embeds=torch.from_numpy(states(length))[None], attention_mask=None, **asked)
    watch.remove()
    assert len(made.last_hidden_state[0]) == durations(predicted[0]).sum() > len(characters)
    return made.last_hidden_state[0].numpy()


def durations(log_durations: torch.Tensor) -> np.ndarray:
    """What PyTorch makes of them, so far from half a unit or frame that rounding noise does not change it."""
    exact = torch.expm1(log_durations).detach().numpy()
    assert (np.abs(exact % 1 - 0.5) > 3e-4).all()
    return np.maximum(1, np.rint(exact)).astype(int)


def padded(*rows: np.ndarray) -> np.ndarray:
    """Stacked, with values behind the shorter ones that would be heard."""
    full = np.full((len(rows), max(map(len, rows)) + 2, *rows[0].shape[1:]), 7, rows[0].dtype)
    for place, row in zip(full, rows):
        place[: len(row)] = row
    return full


@pytest.mark.parametrize("compiled", [False, True])
def test_units_are_pytorchs(engines, theirs, compiled):
    """Texts of unequal lengths, encoded together."""
    encoded = engines[compiled].model.t2u_model.encode(Tensor(padded(*map(states, LENGTHS))), int32(LENGTHS))
    for row, length in enumerate(LENGTHS):
        units = choose_units(engines[compiled], encoded[row : row + 1], *spelled(length))
        expected = their_units(theirs, length)
        np.testing.assert_array_equal(units, expected.argmax(-1))
        assert length < 9 or len(set(units.tolist())) > 3, units


def scores(ours: Speech, lengths: list[int]) -> list[np.ndarray]:
    """Of units, as `choose_units` has them, but of all texts side by side."""
    decoder = ours.t2u_model.model.decoder
    encoded = ours.t2u_model.encode(Tensor(padded(*map(states, lengths))), int32(lengths)).asnumpy()
    texts = [spelled(length) for length in lengths]
    counts = int32([len(characters) for characters, _ in texts])
    rows = padded(*(np.repeat(row[: len(each)], each, 0) for row, (_, each) in zip(encoded, texts)))
    ids = padded(*(np.array(characters) for characters, _ in texts))
    x, log_durations = map(numpy_of, decoder.spell(Tensor(rows), int32(ids), counts))
    long = [
        np.repeat(row[: len(characters)], durations(torch.from_numpy(log[: len(characters)])), 0)
        for row, log, (characters, _) in zip(x, log_durations, texts)
    ]
    made = ours.t2u_model.logits(Tensor(padded(*long)), int32(list(map(len, long))))
    return [numpy_of(row)[: len(one)] for row, one in zip(made, long)]


def test_scores_of_a_batch_are_those_of_each_text(ours, theirs):
    for length, found in zip(LENGTHS, scores(ours, LENGTHS)):
        assert relative_error(found, their_units(theirs, length)) < 1e-5


def test_another_activation_and_no_scale():
    changes = {"activation_function": "gelu", "scale_embedding": False}
    theirs = torch_models(**changes)
    ours = load(Speech(tiny_config(**changes)), theirs, prefixes=WEIGHT_PREFIXES)
    assert relative_error(scores(ours, [9])[0], their_units(theirs, 9)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t2u_variance_predictor_embed_dim": 20}, "t2u_variance_predictor_embed_dim 20 is not the hidden_size 24"),
        ({"activation_function": "swish"}, "activation_function 'swish' is not supported"),
        ({"t2u_decoder_attention_heads": 5}, "width 24 is not a multiple of its 5 heads"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TextToUnit(tiny_config(**changes))


TRAINING, ONE_BY_ONE = "only while training", "of units that are generated one by one, as in SeamlessM4T v1"
UNREAD = {
    **dict.fromkeys(("t2u_variance_pred_dropout", "var_pred_dropout"), TRAINING),
    **dict.fromkeys(("t2u_bos_token_id", "t2u_max_new_tokens"), ONE_BY_ONE),
    "t2u_decoder_ffn_dim": "its layers have convolutions instead, also in transformers",
    "t2u_max_position_embeddings": "positions are computed, as many as there are, also in transformers",
    "t2u_eos_token_id": "read in `sound`",
    "vocoder_offset": "read in `sound`",
}
OWN = (
    "variance_predictor_kernel_size",
    "unit_hifi_gan_vocab_size",
    "unit_embed_dim",
    "lang_embed_dim",
    "spkr_embed_dim",
)
OF_SPEECH = ("t2u_", "vocoder_", "upsample_", "resblock_", "char_vocab_size", "leaky_relu_slope", "var_pred", *OWN)


@pytest.mark.parametrize(
    "field", [name for name in inspect.signature(SeamlessM4Tv2Config).parameters if name.startswith(OF_SPEECH)]
)
def test_every_field_of_the_config(field):
    """It makes other models, or is refused, or left unread for a reason that stands here."""

    def sizes(config):
        made = Speech(config)
        body = made.t2u_model.model
        numbers = body.encoder.num_heads, body.decoder.num_heads, body.decoder.first_position
        shapes = {name: parameter.shape for name, parameter in made.parameters_and_names()}
        return shapes, numbers, made.vocoder.hifi_gan.config

    value = getattr(tiny_config(), field)
    try:
        changed = sizes(tiny_config(**{field: value * 2})) != sizes(tiny_config())
    except ValueError as error:
        changed = field in str(error)
    assert changed != (field in UNREAD)


def test_every_parameter_of_the_units_is_heard(ours, theirs):
    """A change by 2 % of each; what predicts durations shows in their number."""
    expected = their_units(theirs, 9)

    def found() -> np.ndarray:
        (made,) = scores(ours, [9])
        return made if made.shape == expected.shape else np.full(expected.shape, np.inf)

    silent = wrong_parameters(ours.t2u_model, found, expected, 1e-4)
    predictor = "model.decoder.duration_predictor."
    # Softmax does not see what all keys have in common.
    assert [name for name in silent if not name.startswith(predictor) and not name.endswith("k_proj.bias")] == []


def units_of(length: int) -> np.ndarray:
    """Units that there are, and the end among them."""
    return np.random.default_rng(length).integers(4, 36, length).astype(np.int32)


def their_sound(theirs, units: np.ndarray, language: int, speaker: int) -> np.ndarray:
    """As `SeamlessM4Tv2Model.generate` calls the vocoder."""
    config = tiny_config()
    codes = torch.from_numpy(units).long()
    codes = codes.masked_fill(codes == config.t2u_eos_token_id, config.t2u_pad_token_id)
    codes = torch.where(codes == config.t2u_pad_token_id, codes, codes - config.vocoder_offset)
    with torch.no_grad():
        durations(theirs.vocoder.dur_predictor(theirs.vocoder.unit_embedding(codes)[None]))
        wave, length = theirs.vocoder(codes[None], torch.tensor([[speaker]]), torch.tensor([[language]]))
    if not (codes == config.t2u_pad_token_id).any():
        assert int(length) == wave.shape[1]
    return wave[0].numpy()


@pytest.mark.parametrize("compiled", [False, True])
def test_units_sound_as_in_pytorch(engines, theirs, compiled):
    for length, language, speaker in ((1, 0, 0), (12, 2, 1)):
        units = units_of(length)
        wave = sound(engines[compiled], units, Voice(language, speaker))
        expected = their_sound(theirs, units, language, speaker)
        assert wave.shape == expected.shape and relative_error(wave, expected) < 1e-5
        assert 0.05 < np.abs(expected).mean() < 0.9


def test_a_long_speech_is_made_in_parts(engines, theirs):
    """With ends and padding among its units, which are a unit to the vocoder too."""
    units = units_of(200)
    units[[3, 80]], units[150] = 2, 1
    wave = sound(engines[False], units, Voice(1, 2))
    expected = their_sound(theirs, units, 1, 2)
    assert len(wave) > 6 * 256 and relative_error(wave, expected) < 1e-5


def test_units_that_the_vocoder_lacks(engines):
    """PyTorch fails at them."""
    units = units_of(6)
    outside, nearest = units.copy(), units.copy()
    outside[[1, 4]], nearest[[1, 4]] = (3, 39), (4, 35)
    np.testing.assert_array_equal(
        sound(engines[False], outside, Voice(0, 0)), sound(engines[False], nearest, Voice(0, 0))
    )

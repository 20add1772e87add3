"""What only Qwen2-Audio has, and what one family proves for all: beams, settings, padding sides, dtypes of inputs."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import (
    FRAMES,
    PAD,
    QWEN2_AUDIO,
    audio_tokens,
    batch,
    clips,
    prompt,
    relative_error,
    tiny_config,
    to_torch,
    torch_beams,
    torch_model,
)

from mindone_audio import AutoModelForAudioTextToText, to_mindspore
from mindone_audio.backbone.cache import KVCache
from mindone_audio.generation import engine, running_batch

TOLERANCE = 1e-4


def inputs_one_clip():
    return {**batch([prompt([3, "a40", 5])]), **clips([40])}


def inputs_two_clips():
    return {**batch([prompt([2, "a17", 3, "a38", 4], 1)]), **clips([17, 38], 1)}


def inputs_padded_batch(side="left"):
    prompts = [prompt([1, "a40", 9], 2), prompt([4], 3), prompt([2, "a9", 1, "a21", 1, "a33", 2], 4)]
    return {**batch(prompts, side), **clips([40, 9, 21, 33], 2)}


def inputs_text_only():
    return batch([prompt([7], 5), prompt([3], 6)])


def inputs_legacy():
    return {**batch([prompt([3, "a", 5, "a", 2], 7), prompt([2, "a", 3], 8)]), **clips([40, 13, 27], 3)}


CASES = {
    "one clip": inputs_one_clip,
    "two clips": inputs_two_clips,
    "padded batch": inputs_padded_batch,
    "text only": inputs_text_only,
}


@pytest.fixture(scope="module", params=QWEN2_AUDIO)
def models(request, tmp_path_factory):
    """The PyTorch model and ours, loaded from the checkpoint that PyTorch saved."""
    folder = tmp_path_factory.mktemp(request.param)
    reference = torch_model(tiny_config(**QWEN2_AUDIO[request.param]))
    reference.save_pretrained(folder)
    return reference, AutoModelForAudioTextToText.from_pretrained(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One PyTorch model and ours."""
    folder = tmp_path_factory.mktemp("pair")
    reference = torch_model(tiny_config(), seed=1)
    reference.save_pretrained(folder)
    return reference, AutoModelForAudioTextToText.from_pretrained(folder)


def torch_forward(model, inputs, **more):
    with torch.no_grad():
        return model(**to_torch({**inputs, **more}))


def test_logits_of_the_legacy_placeholder(models):
    reference, ours = models
    inputs = inputs_legacy()
    expected = torch_forward(reference, inputs)
    mask = expected.attention_mask.numpy() != 0
    logits = ours(**inputs).logits.asnumpy()
    assert logits.shape == tuple(expected.logits.shape)
    assert expected.logits.std() > 0.5  # flat logits would agree about anything
    assert relative_error(logits[mask], expected.logits.numpy()[mask]) < TOLERANCE


def test_logits_of_a_right_padded_batch(pair):
    reference, ours = pair
    inputs = inputs_padded_batch("right")
    mask = inputs["attention_mask"] != 0
    expected = torch_forward(reference, inputs).logits.numpy()
    assert relative_error(ours(**inputs).logits.asnumpy()[mask], expected[mask]) < TOLERANCE


def test_loss_of_the_legacy_placeholder(pair):
    reference, ours = pair
    inputs = inputs_legacy()
    labels = np.where(np.random.default_rng(0).random(inputs["input_ids"].shape) < 0.3, -100, inputs["input_ids"])
    labels[inputs["attention_mask"] == 0] = 5  # padding must not count whatever its label
    labels[labels == 90] = -100
    reference.config.ignore_index = -100  # transformers 4.57 reads it on this path and never sets it
    expected = torch_forward(reference, inputs, labels=labels).loss.item()
    assert abs(ours(**inputs, labels=labels).loss.asnumpy() - expected) < TOLERANCE * abs(expected)


@pytest.mark.parametrize("case", CASES)
def test_beams(models, case):
    reference, ours = models
    inputs = CASES[case]()
    length = inputs["input_ids"].shape[1]
    expected = torch_beams(reference, inputs, max_new_tokens=12, num_beams=3, do_sample=False, pad_token_id=PAD)
    tokens = ours.generate(**inputs, max_new_tokens=12, num_beams=3, pad_token_id=PAD).asnumpy()
    assert tokens[:, length:].tolist() == expected.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"early_stopping": True, "num_return_sequences": 2},
        {"early_stopping": "never", "length_penalty": 2.0, "num_return_sequences": 3},
        {"length_penalty": -1.0, "min_new_tokens": 5, "num_beams": 4},
    ],
)
def test_beams_that_end(pair, settings):
    reference, ours = pair
    inputs = inputs_padded_batch()
    settings = {"max_new_tokens": 20, "num_beams": 3, "pad_token_id": PAD, "eos_token_id": list(range(8)), **settings}
    expected = torch_beams(reference, inputs, do_sample=False, **settings)
    tokens = ours.generate(**inputs, **settings).asnumpy()[:, inputs["input_ids"].shape[1] :]
    assert tokens.tolist() == expected.tolist()
    assert np.isin(tokens, settings["eos_token_id"]).any()


def test_beams_equal_the_whole_reference_for_one_clip_each(pair):
    """Where transformers' own `generate` repeats clips rightly, its beams with a repetition penalty are ours too."""
    reference, ours = pair
    inputs = inputs_one_clip()
    settings = {"max_new_tokens": 16, "num_beams": 3, "pad_token_id": PAD, "repetition_penalty": 1.4}
    with torch.no_grad():
        expected = reference.generate(**to_torch(inputs), do_sample=False, **settings)
    assert ours.generate(**inputs, **settings).asnumpy().tolist() == expected.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": 17},
        {"eos_token_id": list(range(30))},
        {"eos_token_id": list(range(30)), "min_new_tokens": 6},
        {"eos_token_id": list(range(30)), "min_length": 30},
        {"max_length": 60, "max_new_tokens": None},
        {"max_new_tokens": None},
    ],
)
def test_greedy_settings(pair, settings):
    reference, ours = pair
    inputs = inputs_padded_batch()
    settings = {"max_new_tokens": 24, "pad_token_id": PAD, **settings}
    settings = {name: value for name, value in settings.items() if value is not None}
    with torch.no_grad():
        expected = reference.generate(**to_torch(inputs), do_sample=False, **settings)
    assert ours.generate(**inputs, **settings).asnumpy().tolist() == expected.tolist()


def test_the_repetition_penalty_does_not_see_padding(pair):
    """transformers penalises the padding token in rows that have some: what is right is what it says of a row alone."""
    reference, ours = pair
    inputs, counts = inputs_padded_batch(), (1, 0, 3)
    settings = {"max_new_tokens": 24, "pad_token_id": PAD, "repetition_penalty": 1.3}
    together = ours.generate(**inputs, **settings).asnumpy()[:, -24:]
    for row, (first, count) in enumerate(zip(np.cumsum((0, *counts)), counts)):
        own = inputs["attention_mask"][row] != 0
        alone = {name: inputs[name][row : row + 1, own] for name in ("input_ids", "attention_mask")}
        if count:
            names = ("input_features", "feature_attention_mask")
            alone |= {name: inputs[name][first : first + count] for name in names}
        with torch.no_grad():
            expected = reference.generate(**to_torch(alone), do_sample=False, **settings)[:, -24:]
        assert together[row].tolist() == expected[0].tolist()


@pytest.fixture(scope="module")
def long_pair(tmp_path_factory):
    """A PyTorch model that goes on for 2048 positions, and the folder of its checkpoint."""
    folder = tmp_path_factory.mktemp("long")
    reference = torch_model(tiny_config(text={"max_position_embeddings": 2048}), seed=2)
    reference.save_pretrained(folder)
    return reference, folder


@pytest.mark.parametrize(
    ("settings", "flat"),
    [
        ({}, False),
        pytest.param({}, True, marks=pytest.mark.slow),
        pytest.param({"num_beams": 2}, False, marks=pytest.mark.slow),
    ],
)
def test_a_prompt_of_several_pieces_and_an_answer_that_outgrows_its_cache(long_pair, flat, settings, monkeypatch):
    """Both layouts of the cache: a CPU's and, `flat`, that of an NPU."""
    monkeypatch.setattr(engine, "KVCache", partial(KVCache, flat=flat))
    reference, folder = long_pair
    ours = AutoModelForAudioTextToText.from_pretrained(folder)
    prompts = [prompt([250, "a40", 120, "a17", 4]), prompt([4, "a9", 3], 1), prompt([130], 2)]
    inputs = {**batch(prompts), **clips([40, 17, 9], 3)}
    settings = {"max_new_tokens": 140, "pad_token_id": PAD, **settings}
    expected = torch_beams(reference, inputs, do_sample=False, **settings)
    monkeypatch.setattr(running_batch, "EXPECTED_TOKENS", 1)
    for _ in range(2):  # the second time in caches that are not new
        tokens = ours.generate(**inputs, **settings).asnumpy()[:, -140:]
        assert tokens.tolist() == expected.tolist()
    assert {size for _, size in ours._engines[True]._slots} == {512, 1024}


def test_right_padding_gives_the_same_tokens_as_left_padding(pair):
    ours = pair[1]
    left, right = inputs_padded_batch("left"), inputs_padded_batch("right")
    width = left["input_ids"].shape[1]
    tokens = [ours.generate(**inputs, max_new_tokens=20).asnumpy()[:, width:].tolist() for inputs in (left, right)]
    assert tokens[0] == tokens[1]


def test_the_legacy_placeholder_gives_the_tokens_of_the_expanded_prompt(pair):
    ours = pair[1]
    legacy = inputs_legacy()
    expanded = {**batch([prompt([3, "a40", 5, "a13", 2], 7), prompt([2, "a27", 3], 8)]), **clips([40, 13, 27], 3)}
    assert audio_tokens(13) != audio_tokens(40)
    tokens = [ours.generate(**inputs, max_new_tokens=20).asnumpy()[:, -20:].tolist() for inputs in (legacy, expanded)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 3, "num_return_sequences": 2}])
def test_compiled_equals_interpreted(pair, settings):
    ours = pair[1]
    inputs = inputs_padded_batch()
    compiled, interpreted = (
        ours.generate(**inputs, max_new_tokens=16, compile=compile, **settings).asnumpy() for compile in (True, False)
    )
    assert compiled.tolist() == interpreted.tolist()


@pytest.mark.parametrize(("longest", "encoded"), [(9, 12), (10, 20), (17, 20), (21, 24), (22, FRAMES)])
def test_short_clips_do_not_need_the_whole_window(pair, longest, encoded):
    """A sixth, a third and half of the 40 frames, and what the convolutions see beyond them, fit in 12, 20 and 24."""
    reference, ours = pair
    inputs = {**batch([prompt([3, f"a{longest}", 5]), prompt([2, "a5", 1])]), **clips([longest, 5])}
    seen = []
    hook = ours.audio_tower.register_forward_pre_hook(lambda cell, given: seen.append(given[0].shape[2]))
    logits = ours(**inputs).logits.asnumpy()
    hook.remove()
    assert seen == [encoded]
    mask = inputs["attention_mask"] != 0
    expected = torch_forward(reference, inputs).logits.numpy()
    assert relative_error(logits[mask], expected[mask]) < TOLERANCE
    with torch.no_grad():
        tokens = reference.generate(**to_torch(inputs), do_sample=False, max_new_tokens=16, pad_token_id=PAD)
    assert ours.generate(**inputs, max_new_tokens=16, pad_token_id=PAD).asnumpy().tolist() == tokens.tolist()


def test_each_clip_of_a_batch_is_encoded_at_its_own_width(pair):
    """Narrow ones four at a time, and the last of them together with copies where one is missing."""
    reference, ours = pair
    lengths = [9, 40, 5, 17, 21, 8, 4, 36, 3, 9, 7]
    inputs = {**batch([prompt([2, f"a{length}", 1 + row % 3], row) for row, length in enumerate(lengths)])}
    inputs |= clips(lengths)
    seen = []
    hook = ours.audio_tower.conv1.register_forward_pre_hook(lambda cell, given: seen.append(given[0].shape[:2]))
    interpreted = ours.generate(**inputs, max_new_tokens=8, pad_token_id=PAD, compile=False).asnumpy()
    hook.remove()
    assert seen == [(4, 12), (4, 12), (1, 20), (1, 24), (1, FRAMES), (1, FRAMES)]
    with torch.no_grad():
        tokens = reference.generate(**to_torch(inputs), do_sample=False, max_new_tokens=8, pad_token_id=PAD)
    compiled = ours.generate(**inputs, max_new_tokens=8, pad_token_id=PAD).asnumpy()
    assert compiled.tolist() == interpreted.tolist() == tokens.tolist()


def test_float_masks_and_tensors_are_taken(pair):
    """The published loop casts masks to the model's dtype."""
    ours = pair[1]
    inputs = inputs_padded_batch()
    cast = {name: value.astype(np.float32) for name, value in inputs.items() if "mask" in name}
    tensors = to_mindspore({**inputs, **cast}, dtype=ours.dtype)
    np.testing.assert_array_equal(ours(**tensors).logits.asnumpy(), ours(**inputs).logits.asnumpy())
    assert ours.generate(**tensors, max_new_tokens=8).asnumpy().tolist() == (
        ours.generate(**inputs, max_new_tokens=8).asnumpy().tolist()
    )

"""Score functions and draws: equal to transformers' processors, and the same in a batch as alone."""

import numpy as np
import pytest
import torch
import transformers
from helpers import batch, prompt, tiny_config, torch_model

from mindone_audio import AutoModelForAudioTextToText
from mindone_audio.generation import sampling
from mindone_audio.generation.beam import BeamSearch
from mindone_audio.generation.settings import GenerationSettings

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(5, 12)).astype(np.float32) * 3
TOKENS = RNG.integers(0, 4, (5, 9))


def check(ours: np.ndarray, processor, tokens: np.ndarray = TOKENS, scores: np.ndarray = SCORES) -> None:
    theirs = processor(torch.from_numpy(tokens), torch.from_numpy(scores)).numpy()
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 11, 20])
def test_ngrams_are_those_of_transformers(size):
    function = sampling.no_repeat_ngram(size)
    for length in range(1, TOKENS.shape[1] + 1):
        tokens = TOKENS[:, :length]
        check(function(SCORES, tokens), transformers.NoRepeatNGramLogitsProcessor(size), tokens)


def test_suppressed_tokens_are_those_of_transformers():
    check(sampling.suppress([3, 5, 3])(SCORES, TOKENS), transformers.SuppressTokensLogitsProcessor([3, 5, 3]))
    for begin in (8, 9):
        theirs = transformers.SuppressTokensAtBeginLogitsProcessor([0, 11], begin)
        check(sampling.suppress([0, 11], at=begin)(SCORES, TOKENS), theirs)
    penalty = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    check(sampling.repetition_penalty(1.3)(SCORES, TOKENS), penalty)


def test_padding_is_not_seen():
    """On either side and between: -1 stands for it."""
    padded = np.full((5, 15), -1)
    padded[0, 6:], padded[1, :9], padded[2, 3:12] = TOKENS[0], TOKENS[1], TOKENS[2]
    padded[3, [*range(4), *range(9, 14)]], padded[4, ::2] = TOKENS[3], TOKENS[4, :8]
    for function in (sampling.repetition_penalty(1.5), sampling.no_repeat_ngram(2), sampling.no_repeat_ngram(1)):
        ours = function(SCORES, padded)
        np.testing.assert_array_equal(ours[:4], function(SCORES, TOKENS)[:4])
        np.testing.assert_array_equal(ours[4:], function(SCORES[4:], TOKENS[4:, :8]))


def test_biases_and_penalties_of_openai():
    """Of a prompt of three tokens, the first row's padding, and three generated ones: only these are counted."""
    settings = GenerationSettings(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={"3": -100, 1: 2})
    tokens = np.array([[-1, 4, 4, 0, 0, 2], [5, 1, 2, 5, 5, 5]])
    scores = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    expected = scores + np.array([0, 2, 0, -100, 0, 0], np.float32)
    expected[0, [0, 2]] -= [2 * 0.25 + 0.5, 0.25 + 0.5]
    expected[1, 5] -= 3 * 0.25 + 0.5
    np.testing.assert_allclose(
        sampling.process(sampling.score_functions(settings, 3), scores, tokens), expected, rtol=1e-6
    )
    np.testing.assert_allclose(
        sampling.process(sampling.score_functions(settings, 6), scores, tokens)[:, [0, 4]], scores[:, [0, 4]]
    )
    assert sampling.score_functions(GenerationSettings(presence_penalty=0, frequency_penalty=0, logit_bias={}), 3) == []


def test_the_order_is_that_of_transformers():
    settings = {
        **{"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4, "suppress_tokens": [2, 7]},
        **{
            "begin_suppress_tokens": [1],
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 6,
            "top_p": 0.9,
            "min_p": 0.01,
        },
        "eos_token_id": [0],
    }
    config = transformers.GenerationConfig(**settings)
    config._eos_token_tensor = torch.tensor([0])
    for prompt_length in (9, 7):
        theirs = transformers.GenerationMixin()._get_logits_processor(config, prompt_length, device="cpu")
        chosen = GenerationSettings(**settings)
        chain = sampling.score_functions(chosen, prompt_length) + sampling.draw_functions(chosen)
        ours = sampling.process(chain, SCORES, TOKENS)
        np.testing.assert_allclose(ours, theirs(torch.from_numpy(TOKENS), torch.from_numpy(SCORES)), rtol=1e-6)


def test_nothing_is_drawn_from_nothing():
    nothing = np.full((2, 5), -np.inf, np.float32)
    nothing[0, 3] = 1
    broken = np.zeros((2, 5), np.float32)
    broken[1, 2] = np.nan
    settings = GenerationSettings(num_beams=2, max_new_tokens=3)
    sampled = {"do_sample": True, "top_p": 0.5, "top_k": 2, "min_p": 0.1}
    chain = sampling.draw_functions(GenerationSettings(**sampled))
    for choose in (sampling.greedy, lambda scores: sampling.process(chain, scores, None)):
        with pytest.raises(ValueError, match="every token of row 1 is forbidden: suppress_tokens"):
            choose(nothing)
        with pytest.raises(ValueError, match="scores of row 1 are NaN"):
            choose(broken)
    stream = sampling.random_stream(0, 0)
    for scores, message in ((nothing[1], "every token of row 0 is forbidden"), (broken[1], "scores of row 0 are NaN")):
        with pytest.raises(ValueError, match=message):
            sampling.draw(scores, stream)
    assert sampling.greedy(nothing[:1]).tolist() == [sampling.draw(nothing[0], stream)] == [3]
    for scores, message in ((nothing[1:].repeat(2, 0), "is forbidden"), (broken, "NaN")):
        with pytest.raises(ValueError, match=message):
            BeamSearch(1, settings).step(scores, lambda tokens: np.zeros(len(tokens), bool))
    BeamSearch(1, settings).step(nothing, lambda tokens: np.zeros(len(tokens), bool))  # one beam goes on


def test_a_prompts_copies_draw_the_same_every_time():
    def drawn(seed, copies):
        return [sampling.draw(np.zeros(1000, np.float32), sampling.random_stream(seed, copy)) for copy in copies]

    assert len(set(drawn(7, range(3)))) == 3
    assert drawn(7, [0, 1, 2, 0]) == [*drawn(7, range(3)), *drawn(7, [0])]
    assert len(set(drawn(None, [0, 0, 0]))) > 1


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    reference = torch_model(tiny_config())
    reference.save_pretrained(folder)
    return AutoModelForAudioTextToText.from_pretrained(folder), reference


PENALTIES = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "begin_suppress_tokens": [5], "suppress_tokens": [9]}


def new_tokens(model, inputs, **settings):
    return model.generate(**inputs, **settings).asnumpy()[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"num_beams": 3, "renormalize_logits": True}])
def test_penalties_give_the_tokens_of_transformers(models, settings):
    model, reference = models
    ids = [[7, 8, 7, 8, 7, 30, 31, 7]]
    settings = {"max_new_tokens": 12, "no_repeat_ngram_size": 2, "suppress_tokens": [9, 60], **settings}
    plain = new_tokens(model, batch(ids), max_new_tokens=1)[0]
    settings |= {"begin_suppress_tokens": plain, "repetition_penalty": 1.3}
    with torch.no_grad():
        theirs = reference.generate(input_ids=torch.tensor(ids), do_sample=False, **settings)[:, len(ids[0]) :]
    assert new_tokens(model, batch(ids), **settings) == theirs.tolist()


@pytest.mark.parametrize("settings", [{"do_sample": True, "seed": 3, "temperature": 1.5}, {}, {"num_beams": 2}])
def test_each_row_of_a_padded_batch_is_what_it_is_alone(models, settings):
    """Also where some rows end early, and with an end token and padding that the penalties would see."""
    model, _ = models
    rows = [[7, 8, 7, 8, 7, 30, 31, 7], prompt([3], 4), prompt([20], 2)]
    settings = {**settings, **PENALTIES, "max_new_tokens": 12, "pad_token_id": 0}
    free = [new_tokens(model, batch([row]), **settings)[0] for row in rows]
    for ends in (None, free[0][4]):
        settings["eos_token_id"] = ends
        alone = [new_tokens(model, batch([row]), **settings)[0] for row in rows]
        for side in ("left", "right"):
            together = new_tokens(model, batch(rows, side), **settings)
            assert [row[: len(own)] for row, own in zip(together, alone)] == alone
            assert not any(any(row[len(own) :]) for row, own in zip(together, alone))


def test_a_finished_row_does_not_stop_the_others(models):
    """A prompt that has used up its tokens is forbidden every other one, and has ended."""
    model, _ = models
    rows = [prompt([4], 1), prompt([5], 2)]
    first = new_tokens(model, batch(rows[:1]), max_new_tokens=1)[0][0]
    settings = {"max_new_tokens": 20, "no_repeat_ngram_size": 1, "eos_token_id": first, "pad_token_id": 0}
    assert len(new_tokens(model, batch(rows), **settings)[1]) > 5
    every = list(range(model.language_model.config.vocab_size))
    for more in ({}, {"do_sample": True, "top_p": 0.9}, {"num_beams": 2}):
        with pytest.raises(ValueError, match="every token of row 0 is forbidden"):
            model.generate(**batch(rows), suppress_tokens=every, max_new_tokens=2, **more)

"""Settings: every field of Hugging Face's GenerationConfig, and every type and range that a request can get wrong."""

import json

import numpy as np
import pytest
from transformers import GenerationConfig

from mindone_audio.generation.settings import GenerationSettings, settle, split_request

SUPPORTED = """max_length max_new_tokens min_length min_new_tokens early_stopping stop_strings do_sample num_beams
temperature top_k top_p min_p repetition_penalty length_penalty no_repeat_ngram_size renormalize_logits suppress_tokens
begin_suppress_tokens num_return_sequences pad_token_id eos_token_id prompt_lookup_num_tokens
max_matching_ngram_size""".split()
# Taken at any value, since no value changes the tokens.
TAKEN = {
    **{"use_cache": False, "cache_implementation": "offloaded", "cache_config": {"nbits": 4}, "low_memory": True},
    **{"return_legacy_cache": True, "prefill_chunk_size": 64, "compile_config": None, "disable_compile": True},
    **{"bos_token_id": 1, "decoder_start_token_id": 2, "is_assistant": True, "num_assistant_tokens": 5},
    **{"num_assistant_tokens_schedule": "heuristic", "assistant_confidence_threshold": 0.1},
    **{"assistant_lookbehind": 3, "target_lookbehind": 3, "transformers_version": "5.0"},
    **{"_from_model_config": True, "_commit_hash": "abc"},
}
# Taken at these values, which change nothing, and refused at those.
PARTLY = {
    **{"output_scores": ([False], [True]), "output_logits": ([None, False], [True])},
    **{"output_attentions": ([False], [True]), "output_hidden_states": ([False], [True])},
    **{"return_dict_in_generate": ([False], [True]), "remove_invalid_values": ([False], [True])},
    **{"token_healing": ([False], [True]), "typical_p": ([1.0, 1], [0.9]), "epsilon_cutoff": ([0.0, 0], [0.1])},
    **{
        "eta_cutoff": ([0.0], [0.1]),
        "encoder_repetition_penalty": ([1.0, 1], [1.2]),
        "guidance_scale": ([1, 1.0], [2]),
    },
    **{"penalty_alpha": ([0, 0.0], [0.6]), "diversity_penalty": ([0.0], [0.5]), "num_beam_groups": ([1], [2])},
    **{"encoder_no_repeat_ngram_size": ([0], [3]), "max_time": ([], [1.0]), "bad_words_ids": ([], [[[1]]])},
    **{"force_words_ids": ([], [[[1]]]), "constraints": ([], [[1]]), "sequence_bias": ([], [{(1,): 2.0}])},
    **{"forced_bos_token_id": ([], [1]), "forced_eos_token_id": ([], [1]), "dola_layers": ([], ["low"])},
    **{"exponential_decay_length_penalty": ([], [(5, 1.1)]), "watermarking_config": ([], [{"bias": 2.0}])},
    "assistant_early_exit": ([], [3]),
}
ARGUMENTS = {"logits_processor": [1], "stopping_criteria": [1], "prefix_allowed_tokens_fn": len, "assistant_model": "x"}
PLAIN = GenerationSettings()


def test_every_field_of_transformers_is_supported_taken_or_refused():
    fields = set(GenerationConfig().__dict__)
    assert fields - {"_original_object_hash"} == {*SUPPORTED, *TAKEN, *PARTLY}
    assert not set(SUPPORTED) & {*TAKEN, *PARTLY}
    for name, default in GenerationConfig().__dict__.items():
        plain = settle({name: default}, {}) == PLAIN
        assert plain or name in ("max_length", "min_length")  # which a dict sets, and an object leaves at 20
    assert settle(GenerationConfig(), {}) == settle(None, {}, GenerationConfig()) == PLAIN


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True}])
def test_what_changes_nothing_is_taken_from_anywhere(sampling):
    for name, value in [*TAKEN.items(), *((name, value) for name, (taken, _) in PARTLY.items() for value in taken)]:
        for chosen in (settle(None, {name: value} | sampling), settle({name: value}, sampling)):
            assert chosen == GenerationSettings(**sampling), name
        assert settle(None, sampling, {name: value}) == GenerationSettings(**sampling), name
    for name in (*PARTLY, *ARGUMENTS):
        assert settle({name: None}, {name: None} | sampling) == GenerationSettings(**sampling)


def test_what_changes_something_is_refused_by_name():
    for name, value in [*ARGUMENTS.items(), *((name, value) for name, (_, no) in PARTLY.items() for value in no)]:
        for call in (lambda given: settle(None, given), lambda given: settle(given, {}), lambda g: settle(None, {}, g)):
            with pytest.raises(ValueError, match=f"{name}=.* is not supported"):
                call({name: value, "do_sample": True})
        assert settle({name: value, "do_sample": True}, {name: None}) == GenerationSettings(do_sample=True)


def test_sampling_settings_are_taken_without_sampling(caplog):
    settings = {"temperature": 0.0, "typical_p": 0.9, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_k": 0, "top_p": 0}
    assert settle(None, {"do_sample": False, **settings}).do_sample is False
    assert settle(settings, {}).temperature == 0 and caplog.text == ""
    settle(None, {"temperature": 0.5, "min_p": 0.1})
    assert "temperature, min_p has no effect" in caplog.text
    for name in ("typical_p", "epsilon_cutoff", "eta_cutoff"):
        with pytest.raises(ValueError, match=name):
            settle(None, {"do_sample": True, name: settings[name]})
        with pytest.raises(ValueError, match=name):
            settle(None, {name: "high"})


def test_fields_of_published_files_for_other_programs():
    published = {"chat_format": "chatml", "max_window_size": 6144, "eos_token_id": [3], "pad_token_id": -1}
    chosen = settle(published, {"chat_format": "raw"})
    assert (chosen.eos_token_ids, chosen.padding) == ([3], 3)
    assert settle(GenerationConfig(**published), {}, GenerationConfig(own_field=5)).eos_token_ids == [3]
    for call in (lambda: settle(None, {"chat_format": "raw"}), lambda: settle(None, {}, {"maximum_tokens": 5})):
        with pytest.raises(ValueError, match="is not supported"):
            call()


def test_an_object_changes_what_it_sets_and_a_dict_all_that_it_has():
    base = GenerationConfig(do_sample=True, temperature=0.5, eos_token_id=7, max_new_tokens=64)
    chosen = settle(base, {}, GenerationConfig(max_new_tokens=20, do_sample=False))  # as it is by default
    assert (chosen.max_new_tokens, chosen.do_sample, chosen.temperature, chosen.eos_token_ids) == (20, True, 0.5, [7])
    assert settle(base, {}, {"do_sample": False, "eos_token_id": None}).eos_token_ids == [7]
    assert settle(base, {}, {"do_sample": False}).do_sample is False
    assert settle(base, {}, GenerationConfig(temperature=0.0)).do_sample is False
    assert settle(base, {"eos_token_id": None}, GenerationConfig(eos_token_id=5)).eos_token_ids == []
    assert settle(base, {"top_k": 3}, {"top_k": 5}).top_k == 3


WHOLE = "max_new_tokens max_length num_return_sequences num_beams min_new_tokens min_length top_k seed".split()
WHOLE += ["no_repeat_ngram_size", "prompt_lookup_num_tokens", "eos_token_id", "pad_token_id"]
REAL = "temperature top_p min_p repetition_penalty length_penalty".split()
FLAGS = ["do_sample", "renormalize_logits"]
LISTS = ["suppress_tokens", "begin_suppress_tokens"]
NEVER = [{}, "20", "", object(), 1 + 2j, float("nan"), float("inf"), -float("inf"), 10**400]


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name):
    several = {"num_return_sequences": {"do_sample": True}}.get(name, {})
    for value in (20, 20.0, np.int64(20), np.float32(20), np.uint8(20)):
        got = getattr(settle(None, {name: value, **several}), name)
        assert got == 20 and type(got) is int
    wrong = [*NEVER, True, np.True_, 20.5, -2, -2.0, 10**30, 1e300, [[]], ["a"], b"1", np.float64("nan")]
    wrong += [] if name.endswith("token_id") else [[], [20], np.array([20])]
    wrong += [0] if name in WHOLE[:4] else []
    wrong += [-1, -1.0] if name != "eos_token_id" else []
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{name} must be "):
            settle(None, {name: value, **several})


def test_an_end_token_of_minus_1_never_comes():
    """As in Hugging Face; it neither forbids the last token of the vocabulary nor fills sequences."""
    settings = settle({"eos_token_id": 7}, {"eos_token_id": [-1], "min_new_tokens": 3})
    assert settings.eos_token_ids == [] and settings.padding == 0


@pytest.mark.parametrize("name", REAL)
def test_real_numbers(name):
    for value in (1, 0.5, np.float32(0.5), np.int32(1)):
        got = getattr(settle(None, {name: value}), name)
        assert got == value and type(got) is float
    wrong = [*NEVER, True, [], [1.0], None if name == "x" else "1.0"]
    wrong += [] if name == "length_penalty" else [-0.1]
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{name} must be "):
            settle(None, {name: value})


def test_flags_lists_and_strings():
    for name in FLAGS:
        assert getattr(settle(None, {name: np.True_}), name) is True
        for value in (*NEVER, "false", "true", 0, 1, [], 1.0):
            with pytest.raises(ValueError, match=f"^{name} must be true or false"):
                settle(None, {name: value})
    for name in LISTS:
        assert getattr(settle(None, {name: np.array([3, 4])}), name) == [3, 4]
        assert getattr(settle(None, {name: (3.0,)}), name) == [3]
        for value in ({}, "20", 5, [-1], [True], ["a"], [[1]], [1.5], [None]):
            with pytest.raises(ValueError, match=f"^{name} must be "):
                settle(None, {name: value})
    for value in ("", ["x", ""], [5], 5, {}, [None], b"x"):
        with pytest.raises(ValueError, match="^stop_strings "):
            settle(None, {"stop_strings": value})
    for value in ("soon", 1, 0, [], {}):
        with pytest.raises(ValueError, match="^early_stopping must be"):
            settle(None, {"early_stopping": value})
    assert settle(None, {"eos_token_id": np.array([3, 4])}).eos_token_ids == [3, 4]
    assert settle(None, {"pad_token_id": [5, 6]}).padding == 5
    assert settle(None, {"eos_token_id": []}).padding == 0


def test_biases_and_penalties():
    assert settle(None, {"logit_bias": {"7": 1, 8: -100, np.int64(9): 0.5}}).logit_bias == {7: 1.0, 8: -100.0, 9: 0.5}
    for value in (*NEVER[1:], [7], "7", {"a": 1}, {-1: 1}, {7: 101}, {7: "1"}, {7: None}, {1.5: 1}, {True: 1}):
        with pytest.raises(ValueError, match="^logit_bias must be "):
            settle(None, {"logit_bias": value})
    with pytest.raises(ValueError, match="logit_bias has the token 10, but the model has the tokens 0 to 9"):
        settle(None, {"logit_bias": {10: 1}}, vocabulary=10)
    for name in ("presence_penalty", "frequency_penalty"):
        assert getattr(settle(None, {name: -2}), name) == -2.0
        for value in (*NEVER, 2.1, "1", True):
            with pytest.raises(ValueError, match=f"^{name} must be "):
                settle(None, {name: value})


def test_tokens_that_the_model_has_not():
    for name in ("eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens"):
        settle(None, {name: [0, 9]}, vocabulary=10)
        with pytest.raises(ValueError, match=f"{name} has the token 10, but the model has the tokens 0 to 9"):
            settle({name: [3, 10]}, {}, vocabulary=10)


def test_parameters_of_a_request():
    options, settings = split_request({"stop_sequence": "x", "language": "en", "top_k": 3, "return_full_text": None})
    assert (options.stop_sequence, options.language, options.return_full_text) == (["x"], "en", False)
    assert settings == {"top_k": 3}
    for line in (
        *('{"stop_sequence": [5]}', '{"stop_sequence": 5}', '{"stop_sequence": ""}', '{"stop_sequence": ["a", ""]}'),
        *('{"stop_sequence": {}}', '{"return_full_text": "false"}', '{"return_full_text": 1}', '{"language": 5}'),
        *('{"language": ""}', '{"language": []}', '{"return_token_count": 0}', '{"streamer": 1}', '{"streamer": null}'),
        *('{"tokenizer": "x"}', '{"input_ids": [1]}', '{"attention_mask": null}', '{"compile": false}'),
        *('{"generation_config": {}}', '{"input_features": 1}'),
    ):
        parameters = json.loads(line)
        with pytest.raises(ValueError, match=next(iter(parameters))):
            split_request(parameters)


def test_tables_of_a_family_are_not_copied_with_each_request():
    """SeamlessM4T keeps a text for each of its tokens in generation_config.json."""

    class Table(dict):
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    config = GenerationConfig(max_new_tokens=5, eos_token_id=3)
    config.id_to_text = Table({"4": "a"})
    assert settle(config, {}).max_new_tokens == 5 and config.id_to_text == {"4": "a"}

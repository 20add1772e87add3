"""Prompt lookup: the tokens of an answer are those of steps one by one, in fewer graph calls."""

import helpers_phi4
import helpers_whisper
import numpy as np
import pytest
from helpers import batch, clips, prompt, tiny_config, torch_model

from mindone_audio import AutoModelForAudioTextToText, pipeline
from mindone_audio.generation import engine
from mindone_audio.generation.generate import columns
from mindone_audio.generation.prompt_lookup import looked_up, rest
from mindone_audio.generation.row import Row
from mindone_audio.generation.running_batch import RunningBatch
from mindone_audio.generation.scheduler import Ticket
from mindone_audio.generation.sequences import Sequences

LOOKUP = {"prompt_lookup_num_tokens": 7}
FREE = {"eos_token_id": -1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch_model(tiny_config(text={"max_position_embeddings": 4096})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    """Its caches have 128 positions at first, so that answers outgrow them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_SMALLEST_CACHE", 128)
        yield AutoModelForAudioTextToText.from_pretrained(folder)


@pytest.fixture
def calls(monkeypatch):
    """How many graph calls took one token of each sequence, and how many took a draft."""
    counts, own = {"extend": 0, "extend_by": 0}, {name: getattr(Sequences, name) for name in ("extend", "extend_by")}
    for name in counts:

        def counted(self, tokens, name=name):
            counts[name] += 1
            return own[name](self, tokens)

        monkeypatch.setattr(Sequences, name, counted)
    return counts


def question(seed: int, length: int = 20, repeats: int = 1) -> dict:
    """Random tokens, also some that come again, or with a clip between them."""
    if seed % 3 == 2:
        return {**batch([prompt([3, "a40", length], seed)]), **clips([40], seed)}
    (ids,) = batch([prompt([length], seed)])["input_ids"]
    return batch([np.tile(ids, repeats)])


def new_tokens(model, inputs: dict, **settings) -> list[list[int]]:
    """Of each sequence, from `stream`."""
    return np.stack(list(model.stream(**inputs, **settings)), 1).tolist()


def test_what_is_looked_up():
    def found(tokens, most=4, ngram=2):
        return looked_up(np.array(tokens), most, ngram)

    assert found([1, 2, 3, 4, 5, 6, 1, 2]) == [3, 4, 5, 6]
    assert found([1, 2, 3, 9, 1, 2, 4, 9, 1, 2]) == [4, 9, 1, 2]  # the last of two
    assert found([0, 1, 2, 3, 9, 7, 1, 2, 4, 9, 0, 1, 2], ngram=3) == [3, 9, 7, 1]  # the longest of two
    assert found([5, 6, 5, 6]) == [5, 6, 5, 6] and found([5, 5, 5], 3) == [5, 5, 5]
    assert found([1, 2, 3]) == found([1, 2, 3, 2]) == found([7]) == found([1, 2, 1]) == []
    assert found([1, 2, 3, 2], ngram=1) == [3, 2, 3, 2]
    assert found([1, 2, 3, -1, 4, 1, 2]) == [3]  # no audio is said again
    assert found([-1, 5, 8, -1, 5]) == []
    assert [rest(misses) for misses in (0, 1, 2, 6, 9)] == [0, 1, 3, 63, 63]


@pytest.mark.parametrize("number", [1, 7])
def test_any_number_of_tokens_gives_the_tokens_of_greedy(model, number):
    for seed in range(3 * number, 3 * number + 4):
        inputs = question(seed, 4 + seed, 1 + seed % 2)
        settings = {"max_new_tokens": 40 + seed, **(FREE if seed % 4 else {"eos_token_id": list(range(3, 9))})}
        expected = new_tokens(model, inputs, **settings)
        tried = {"prompt_lookup_num_tokens": number, "max_matching_ngram_size": 1 + seed % 4}
        assert new_tokens(model, inputs, **settings, **tried) == expected


def test_an_answer_that_repeats_itself_takes_fewer_graph_calls(model, calls):
    """Through a ring of 128 positions into one of 256 and one of 512."""
    expected = new_tokens(model, question(0), max_new_tokens=300, **FREE)
    assert calls == {"extend": 299, "extend_by": 0}
    calls.update(extend=0)
    assert new_tokens(model, question(0), max_new_tokens=300, **FREE, **LOOKUP) == expected
    assert calls["extend_by"] > 10 and sum(calls.values()) < 150


def test_drafts_that_are_wrong_change_nothing_and_are_tried_less_and_less(model, calls, monkeypatch):
    """Whatever a draft says, also where it is right up to some place."""
    expected = new_tokens(model, question(1), max_new_tokens=100, **FREE)[0]
    rng = np.random.default_rng(0)

    def draft(self, most):
        found = np.array(expected[len(self.tokens) :][:most])[: 100 - len(self.tokens) - 1]
        found[rng.integers(0, len(found) + 1) :] = 5 + rng.integers(0, 3)
        return found.tolist()

    calls.update(extend=0)
    with monkeypatch.context() as patch:
        patch.setattr(Row, "draft", draft)
        assert new_tokens(model, question(1), max_new_tokens=100, **FREE)[0] == expected
    assert calls["extend_by"] > 20 and sum(calls.values()) < 60
    calls.update(extend=0, extend_by=0)
    monkeypatch.setattr("mindone_audio.generation.row.looked_up", lambda tokens, most, ngram: [2] * most)
    assert new_tokens(model, question(1), max_new_tokens=100, **FREE, **LOOKUP)[0] == expected
    assert 5 <= calls["extend_by"] <= 8 and sum(calls.values()) == 99


@pytest.mark.parametrize("broken", ["checks nothing", "takes nothing back", "leaves what was written"])
def test_a_broken_check_is_seen(model, monkeypatch, broken):
    def followed(self, draft, scores, best):
        for token in draft:
            self.tokens.append(token)
        return len(draft)

    if broken == "checks nothing":
        monkeypatch.setattr(Row, "follow", followed)
    elif broken == "takes nothing back":
        monkeypatch.setattr(Sequences, "keep", lambda self, count: None)
    else:
        monkeypatch.setattr(engine.Slots, "empty", lambda self, column: None)
    settings = {"max_new_tokens": 100, **FREE}
    expected = new_tokens(model, question(4), **settings)
    assert new_tokens(model, question(4), **settings, **LOOKUP) != expected


OTHERS = (
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 6},
    {"suppress_tokens": [5, 9], "presence_penalty": 0.2, "logit_bias": {7: 1.0}},
    {"min_new_tokens": 40, "eos_token_id": list(range(3, 30))},
    {"do_sample": True, "seed": 3, "temperature": 0.1},
    {"num_return_sequences": 2, "do_sample": True, "seed": 5, "temperature": 0.2},
)


@pytest.mark.parametrize("settings", OTHERS)
def test_settings_that_choose_other_tokens(model, settings):
    """A drawn token is the same too: each has the random number that it has without a draft."""
    settings = {**FREE, "max_new_tokens": 60, **settings}
    expected = new_tokens(model, question(1), **settings)
    assert new_tokens(model, question(1), **settings, **LOOKUP) == expected


def test_ends_within_a_draft(model, calls):
    """By an end token, a stop string and the number of tokens; what follows is not said."""

    class Letters:
        def decode(self, ids, **_):
            return "".join(chr(0x4E00 + token) for token in ids)

    (whole,) = new_tokens(model, question(0), max_new_tokens=150, **FREE, **LOOKUP)
    for length in (89, 110):
        (cut,) = new_tokens(model, question(0), max_new_tokens=length, **FREE, **LOOKUP)
        assert cut == whole[:length]
        settings = {"max_new_tokens": 150, "min_new_tokens": length, "eos_token_id": whole[length]}
        expected = new_tokens(model, question(0), **settings)
        assert new_tokens(model, question(0), **settings, **LOOKUP) == expected
    stop = Letters().decode(whole[20:90])  # which does not come before its place
    settings = {"max_new_tokens": 150, "stop_strings": [stop], "tokenizer": Letters(), **FREE}
    expected = new_tokens(model, question(0), **settings)
    calls.update(extend_by=0)
    assert new_tokens(model, question(0), **settings, **LOOKUP) == expected
    assert calls["extend_by"] and expected == [whole[:90]]


def test_rows_that_join_and_leave(model, calls):
    """Drafts are tried while a row is alone; beside others it takes steps."""
    numbers, settings = (0, 1, 3), {"max_new_tokens": 120, **FREE}
    expected = [new_tokens(model, question(number), **settings)[0] for number in numbers]
    requests = [model.requests(**question(number), **settings, **LOOKUP)[0] for number in numbers]
    running, rows = RunningBatch(model.engine()), [request.rows()[0] for request in requests]
    calls.update(extend=0, extend_by=0)
    assert not list(running.admit([rows[:1]]))[1:]
    while len(rows[0].tokens) < 60:
        running.step()
    alone = calls["extend_by"]
    for _ in running.admit([rows[1:2]]):
        running.step()
    for _ in range(10):
        running.step()
    assert calls["extend_by"] == alone > 0
    running.drop(rows[0])  # cancelled
    for _ in range(40):
        running.step()
    for _ in running.admit([rows[2:]]):
        running.step()
    while running.step():
        pass
    assert rows[0].tokens == expected[0][: len(rows[0].tokens)]
    assert [row.tokens for row in rows[1:]] == expected[1:] and calls["extend_by"] > alone


def test_an_error_within_a_draft_comes_after_the_tokens_before_it(model, monkeypatch):
    (request,) = model.requests(**question(0), max_new_tokens=100, **FREE, **LOOKUP)
    choose = Row._choose

    def failing(self, scores, best):
        if len(self.tokens) == 90:
            raise ValueError("no token is left")
        return choose(self, scores, best)

    monkeypatch.setattr(Row, "_choose", failing)
    told = []
    with pytest.raises(ValueError, match="no token is left"):
        for step in columns(model.engine(), [request]):
            told.append(int(step[0]))
    monkeypatch.undo()
    assert told == new_tokens(model, question(0), max_new_tokens=90, **FREE)[0]


def test_a_listener_hears_each_token_with_its_log_probability(model):
    def answer(**settings):
        (request,) = model.requests(**question(0), max_new_tokens=80, **FREE, **settings)
        heard, running = [], RunningBatch(model.engine())
        ticket = Ticket(request, heard.append, None, 2, None)
        assert not list(running.admit([ticket.rows]))[1:]
        while running.active:
            ticket.tell()
            running.step()
        ticket.tell()
        return [token for delta in heard for token in delta.tokens], heard

    plain, one_by_one = answer()
    tokens, heard = answer(**LOOKUP)
    assert [token.id for token in tokens] == [token.id for token in plain]
    np.testing.assert_allclose([t.logprob for t in tokens], [t.logprob for t in plain], atol=1e-5)
    assert [[i for i, _ in t.top] for t in tokens] == [[i for i, _ in t.top] for t in plain]
    assert len(heard) < len(one_by_one) and heard[-1].finish_reason == "length"


def test_tables_that_are_overwritten_need_nothing_taken_back(folder, monkeypatch):
    """The caches of an NPU."""
    monkeypatch.setattr("mindone_audio.machine.device.scatters_rows", lambda: True)
    model = AutoModelForAudioTextToText.from_pretrained(folder)
    for seed in range(3):
        expected = new_tokens(model, question(seed), max_new_tokens=60, **FREE)
        assert new_tokens(model, question(seed), max_new_tokens=60, **FREE, **LOOKUP) == expected
    (slots,) = model.engine()._slots.values()
    assert slots.cache.flat and slots._check is not None and slots._empty is None


def test_graphs_are_compiled_when_the_first_draft_comes(folder):
    model = AutoModelForAudioTextToText.from_pretrained(folder)
    new_tokens(model, question(0), max_new_tokens=60, **FREE)
    plain = model.engine().graphs
    new_tokens(model, question(0), max_new_tokens=2, **FREE, **LOOKUP)
    assert model.engine().graphs == plain
    new_tokens(model, question(0), max_new_tokens=60, **FREE, **LOOKUP)
    assert model.engine().graphs == plain + 2


def test_a_form_is_a_draft_where_nobody_says_otherwise(calls):
    pytest.importorskip("llguidance")
    pipe = pipeline()
    schema = {"type": "array", "items": {"type": "object", "properties": {"device": {"enum": ["door", "light"]}}}}
    schema["items"]["required"] = ["device"]
    settings = {"constraint": {"json_schema": schema | {"minItems": 4}}, "tokenizer": pipe.processor.tokenizer}
    settings["max_new_tokens"] = 120
    expected = new_tokens(pipe.model, question(0), **settings, prompt_lookup_num_tokens=0)
    assert calls["extend_by"] == 0
    for lookup in ({}, LOOKUP):
        calls.update(extend=0, extend_by=0)
        assert new_tokens(pipe.model, question(0), **settings, **lookup) == expected
        assert calls["extend_by"] and sum(calls.values()) < len(expected[0]) // 2


def test_whisper_and_a_model_that_goes_on_in_another_way(tmp_path, calls):
    """Phi-4 computes sequences of more than 64 tokens otherwise, and runs them again as prompts there."""
    helpers_whisper.save_checkpoint(tmp_path / "whisper")
    helpers_phi4.write_checkpoint(tmp_path / "phi4")
    clip, ids = helpers_whisper.features(1), np.array([helpers_phi4.prompt(12)], np.int32)
    for name, inputs in (("whisper", {"input_features": clip, "language": "en"}), ("phi4", {"input_ids": ids})):
        model = AutoModelForAudioTextToText.from_pretrained(tmp_path / name)
        settings = {**inputs, **FREE, "max_new_tokens": 60 if name == "phi4" else 40}
        expected = model.generate(**settings).asnumpy()
        calls.update(extend=0, extend_by=0)
        assert model.generate(**settings, **LOOKUP).asnumpy().tolist() == expected.tolist()
        assert calls["extend_by"] and sum(calls.values()) < 35


def test_beams_are_refused(model):
    for settings in ({"num_beams": 2, **LOOKUP}, {"prompt_lookup_num_tokens": -1}, {"max_matching_ngram_size": 0}):
        with pytest.raises(ValueError, match="prompt_lookup_num_tokens|max_matching_ngram_size"):
            model.generate(**question(0), **settings)
    model.generate(**question(0), num_beams=2, prompt_lookup_num_tokens=0, max_new_tokens=2)

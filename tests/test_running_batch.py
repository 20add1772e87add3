"""Rows that are admitted, stepped and dropped while others go on: each is what it is alone."""

import threading
import time
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from helpers import VOCAB, batch, clips, prompt, tiny_config, torch_model

from mindone_audio import AutoModelForAudioTextToText
from mindone_audio.adapters.lora import LoraSettings, add_lora
from mindone_audio.adapters.selection import select_adapter
from mindone_audio.generation import engine, sequences
from mindone_audio.generation.events import Overloaded
from mindone_audio.generation.running_batch import RunningBatch
from mindone_audio.generation.sampling import log_softmax
from mindone_audio.generation.scheduler import Scheduler

SETTINGS = (
    {},
    {"do_sample": True, "seed": 3, "temperature": 1.3},
    {"repetition_penalty": 1.5},
    {"do_sample": True, "seed": 8, "top_k": 5, "num_return_sequences": 2},
    {"logit_bias": {5: 4.0, 7: -100}, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"eos_token_id": list(range(3, 30))},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch_model(tiny_config(text={"max_position_embeddings": 4096})).save_pretrained(folder)
    return AutoModelForAudioTextToText.from_pretrained(folder)


@pytest.fixture
def small(model, monkeypatch):
    """Caches of 128 positions, so that rings go round."""
    monkeypatch.setattr(engine, "_SMALLEST_CACHE", 128)
    model._engines_of = None
    yield model
    model._engines_of = None


def finish(work) -> None:
    for _ in work:
        pass


def text(model, length, **settings):
    """A request of so many random tokens."""
    return model.requests(**batch([prompt([length], length)]), **settings)[0]


def generated(model, length, **settings) -> list[int]:
    return model.generate(**batch([prompt([length], length)]), **settings).asnumpy()[0, length:].tolist()


def asked(number: int) -> tuple[dict, dict]:
    """Inputs and settings of a request: text, one clip, or two of different lengths."""
    parts = ([4 + number], [3, f"a{5 + number % 30}", 2], ["a9", 1 + number % 7, "a40", 5])[number % 3]
    lengths = [int(part[1:]) for part in parts if isinstance(part, str)]
    inputs = batch([prompt(parts, number)]) | (clips(lengths, number) if lengths else {})
    return inputs, {"max_new_tokens": 10 + 9 * (number % 8), **SETTINGS[number % len(SETTINGS)]}


def alone(model, number: int) -> list[list[int]]:
    inputs, settings = asked(number)
    (request,) = model.requests(**inputs, **settings)
    running, rows = RunningBatch(model.engine()), request.rows()
    finish(running.admit([rows]))
    while running.step():
        pass
    return [row.tokens for row in rows]


def test_rows_that_come_and_go_are_what_each_is_alone(small):
    """40 requests admitted at different steps, at most 8 rows at a time: the ring goes round, grows and shrinks."""
    expected = [alone(small, number) for number in range(40)]
    running, waiting, rows, columns, batches = RunningBatch(small.engine()), list(range(40)), {}, [], set()
    rng, work, step = np.random.default_rng(0), None, 0
    while waiting or running.active or work:
        if work is None and waiting and rng.random() < (0.9 if 60 < step % 200 else 0.05):
            requests = {
                n: small.requests(**asked(n)[0], **asked(n)[1])[0].rows() for n in waiting[: rng.integers(1, 4)]
            }
            if sum(map(len, requests.values())) + len(running.active) <= 8:
                waiting, rows = waiting[len(requests) :], rows | requests
                work = running.admit(list(requests.values()), longest_piece=int(rng.choice([160, 640])))
        work = work if work is None or next(work, "end") is None else None
        if running.step():
            columns.append(running.sequences.column if running.sequences else 0)
            batches.add(running.sequences.batch if running.sequences else 0)
        step += 1
    assert [[row.tokens for row in rows[number]] for number in range(40)] == expected
    assert (np.diff(columns) < 0).sum() > 3
    assert {1, 2, 4, 8} <= batches
    assert {row.reason for number in range(40) for row in rows[number]} == {"stop", "length"}


def test_a_row_outgrows_its_cache_beside_others(small):
    asked = {5: 300, 9: 30, 4: 300}
    requests = [text(small, n, max_new_tokens=new) for n, new in asked.items()]
    expected = [generated(small, n, max_new_tokens=new) for n, new in asked.items()]
    running, rows = RunningBatch(small.engine()), [request.rows() for request in requests]
    finish(running.admit(rows[:2]))
    seen = set()
    for step in range(400):
        if step == 20:
            finish(running.admit(rows[2:]))
        running.step()
        seen.add(running.sequences.positions if running.sequences else 0)
    assert [row.tokens for (row,) in rows] == expected
    assert seen >= {256, 512}


class Counting:
    """What stands for a `Matcher`: token n of a row must be n more than a start."""

    ended = whole = False

    def __init__(self, start):
        self.next = start

    def look(self):
        pass

    def best(self, scores):
        return self.next

    def masked(self, scores):
        return np.where(np.arange(len(scores)) == self.next, scores, -np.inf)

    def take(self, token, remaining):
        assert token == self.next
        self.next += 1
        return token


def test_each_row_has_its_own_constraint(small):
    free = text(small, 5, max_new_tokens=8)
    requests = [
        replace(text(small, 5, max_new_tokens=8), constraint=lambda start=start: Counting(start)) for start in (3, 40)
    ]
    sampled = text(small, 5, max_new_tokens=8, do_sample=True, num_return_sequences=2)
    requests.append(replace(sampled, constraint=lambda: Counting(60)))
    rows = [request.rows() for request in (free, *requests)]
    running = RunningBatch(small.engine())
    finish(running.admit(rows))
    while running.step():
        pass
    found = [row.tokens for group in rows for row in group]
    assert found[0] == generated(small, 5, max_new_tokens=8)
    assert found[1:] == [list(range(start, start + 8)) for start in (3, 40, 60, 60)]


def test_dropped_rows_leave_the_others_alone(small):
    requests = [text(small, n, max_new_tokens=40) for n in (3, 6, 11)]
    expected = [generated(small, n, max_new_tokens=40) for n in (3, 6, 11)]
    running, rows = RunningBatch(small.engine()), [request.rows()[0] for request in requests]
    finish(running.admit([[row] for row in rows[:2]]))
    for _ in range(5):
        running.step()
    running.drop(rows[1])
    assert len(rows[1].tokens) == 6 and len(running.active) == 1
    finish(running.admit([[rows[2]]]))
    while running.step():
        pass
    assert [rows[0].tokens, rows[2].tokens] == [expected[0], expected[2]]
    assert running.sequences is None


def test_an_encoder_in_parts_is_the_whole_one(model, monkeypatch):
    inputs = {**batch([prompt([3, "a40", 5, "a9"])]), **clips([40, 9])}
    (request,) = model.requests(**inputs, max_new_tokens=1)

    def encoded():
        model._engines_of = None
        work = model.engine().encode([request.clips])
        units = 0
        while True:
            try:
                next(work)
                units += 1
            except StopIteration as end:
                return end.value[0].asnumpy(), units

    whole, few = encoded()
    monkeypatch.setattr(engine, "_LEAST_WORK", 1)
    monkeypatch.setattr(engine, "_PART_WORK", 0)
    parts, many = encoded()
    assert (few, many) == (2, 4)  # two clips of two layers
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_log_probabilities_are_the_models(model):
    inputs = {**batch([prompt([3, "a40", 5])]), **clips([40])}
    (request,) = model.requests(**inputs, max_new_tokens=3, logit_bias={4: 3.0})
    running, (row,) = RunningBatch(model.engine()), request.rows(logprobs=4)
    finish(running.admit([[row]]))
    while running.step():
        pass
    ids = np.concatenate([inputs["input_ids"][0], row.tokens])[None]
    scores = log_softmax(model(**inputs | {"input_ids": ids, "attention_mask": np.ones_like(ids)}).logits.asnumpy()[0])
    for place, token in enumerate(row.chosen):
        own = scores[-4 + place]
        assert token.id == row.tokens[place]
        assert token.logprob == pytest.approx(own[token.id], abs=1e-4)
        best = np.argsort(-own)[:4]
        assert [other for other, _ in token.top] == best.tolist()
        np.testing.assert_allclose([value for _, value in token.top], own[best], atol=1e-4)


class Heard:
    """A listener that keeps what it is told. `result`: of each answer text and reason, or what was raised."""

    def __init__(self, answers=1):
        self.events, self.done, self.open = [], Future(), answers

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, Exception):
            self.done.set_exception(event)
            return
        self.open -= event.finish_reason is not None
        if not self.open:
            self.done.set_result(None)

    def tokens(self, index=0):
        self.done.result(60)
        return [token.id for event in self.events if event.index == index for token in event.tokens]


def decode(ids):
    return "".join(f"<{number}>" for number in ids)


@pytest.fixture(scope="module")
def scheduler(model):
    parts = []
    made = Scheduler(
        lambda: model, max_batch=4, max_queue=30, timed=lambda part, seconds: parts.append((part, seconds))
    )
    made.start()
    wait_for(lambda: made.ready)
    assert parts == []  # an idle turn has none
    assert made.run_with_engine(lambda own: own.keeps_clips, None).result(60)
    yield made
    made.stop()
    assert not made.alive
    assert {part for part, _ in parts} == {"step", "unit"} and all(seconds > 0 for _, seconds in parts)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.005)


def request_of(model, number, **more):
    inputs, settings = asked(number)
    (request,) = model.requests(**inputs, **settings | more)
    return replace(request, decode=decode)


def test_requests_of_many_threads_are_answered_as_each_alone(model, scheduler):
    heard = [Heard(asked(number)[1].get("num_return_sequences", 1)) for number in range(24)]
    requests = [request_of(model, number) for number in range(24)]

    def send(numbers):
        for number in numbers:
            scheduler.submit(requests[number], heard[number])
            time.sleep(0.002)

    threads = [threading.Thread(target=send, args=(range(first, 24, 3),)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (request, listener) in enumerate(zip(requests, heard)):
        found = [listener.tokens(index) for index in range(request.settings.num_return_sequences)]
        assert found == scheduler.run(lambda number=number: alone(model, number)).result(60)
        for index, tokens in enumerate(found):
            assert "".join(event.text for event in listener.events if event.index == index) == decode(tokens)
        assert [event.finish_reason for event in listener.events if event.finish_reason].count("length") <= len(found)
    wait_for(lambda: scheduler.running == scheduler.waiting == 0)


def test_what_is_cancelled_ends_within_a_step(model, scheduler):
    long = {"max_new_tokens": 3000, "eos_token_id": None}
    heard = [Heard() for _ in range(6)]
    tickets = [scheduler.submit(request_of(model, 0, **long), listener) for listener in heard]
    wait_for(lambda: all(listener.events for listener in heard[:4]))
    assert scheduler.running == 4 and scheduler.waiting == 2
    for ticket in (tickets[5], *tickets[:4]):  # one that waits, and all that run
        ticket.cancel()
    wait_for(lambda: heard[4].events and scheduler.running == 1 and scheduler.waiting == 0)
    told = [len(listener.events) for listener in heard]
    tickets[4].cancel()
    wait_for(lambda: scheduler.running == 0)
    assert [len(listener.events) for listener in heard][:4] == told[:4] and told[5] == 0


def test_stop_strings_and_deltas(model, scheduler):
    first = Heard()
    scheduler.submit(request_of(model, 0), first)
    tokens = first.tokens()
    stop = decode(tokens)[decode(tokens).index(">") + 4 :][:9]
    settings = asked(0)[1] | {"stop_strings": [stop]}
    heard, (shorter,) = Heard(), model.requests(**asked(0)[0], **settings, tokenizer=Words())
    scheduler.submit(replace(shorter, decode=decode), heard)
    given = heard.tokens()
    assert given == tokens[: len(given)] and len(given) < len(tokens)
    assert "".join(event.text for event in heard.events) == decode(tokens)[: decode(tokens).index(stop)]
    assert heard.events[-1].finish_reason == "stop"


class Words:
    def decode(self, ids, **settings):
        return decode(ids)


def test_who_is_refused(model):
    quiet = Scheduler(lambda: model, max_batch=2, max_queue=2, max_model_len=100)
    held = threading.Event()
    quiet._load = lambda: held.wait(60) and model  # nothing is taken before
    quiet.start()
    request, late = request_of(model, 0), Heard()
    quiet.submit(request, late, deadline=0.0)
    other = Heard()
    quiet.submit(request, other)
    with pytest.raises(Overloaded, match="2 requests are waiting") as error:
        quiet.submit(request, Heard())
    assert error.value.reason == "queue" and error.value.retry_after >= 1
    for wrong, message in (
        (request_of(model, 0, num_return_sequences=3, do_sample=True), "3 answers at once are more than the 2 here"),
        (request_of(model, 0, num_beams=2), "num_beams=2"),
        (model.requests(**batch([prompt([120])]))[0], "the prompt has 120 tokens.*room for 99"),
    ):
        with pytest.raises(ValueError, match=message):
            quiet.submit(wrong, Heard())
    held.set()
    assert isinstance(late.done.exception(60), Overloaded) and late.done.exception().reason == "deadline"
    assert len(other.tokens()) == 10
    cut = Heard()
    quiet.submit(request_of(model, 0, max_new_tokens=500, eos_token_id=None), cut)
    assert len(cut.tokens()) == 100 - 4
    assert quiet.drain(30)
    quiet.stop()
    for late in (lambda: quiet.submit(request, Heard()), lambda: quiet.run(list)):
        with pytest.raises(Overloaded) as error:
            late()
        assert error.value.reason == "draining"


def test_a_model_that_cannot_be_loaded():
    def load():
        raise OSError("no such folder")

    broken = Scheduler(load)
    broken.start()
    wait_for(lambda: not broken.alive)
    assert str(broken.failure) == "no such folder" and not broken.ready


def test_what_fails_alone_and_what_fails_together(model, scheduler, monkeypatch):
    """A unit of work that fails costs its request; a step its rows; the next requests are answered."""
    expected = scheduler.run(lambda: [alone(model, number) for number in range(4)]).result(60)
    bad, original = request_of(model, 1), engine.Engine.encode

    def encode(self, clips):
        if any(entry is bad.clips for entry in clips):
            raise RuntimeError("too little memory")
        return (yield from original(self, clips))

    monkeypatch.setattr(engine.Engine, "encode", encode)
    held = threading.Event()
    scheduler.run(lambda: held.wait(60))
    heard = {number: Heard(len(expected[number])) for number in range(4)}
    for number, listener in heard.items():
        scheduler.submit(bad if number == 1 else request_of(model, number), listener)
    held.set()
    assert str(heard[1].done.exception(60)) == "too little memory"
    for number in (0, 2, 3):
        assert [heard[number].tokens(index) for index in range(len(expected[number]))] == expected[number]

    extend, failing = sequences.Sequences.extend, threading.Event()

    def failing_extend(self, tokens):
        if failing.is_set():
            failing.clear()
            raise RuntimeError("a kernel has failed")
        return extend(self, tokens)

    monkeypatch.setattr(sequences.Sequences, "extend", failing_extend)
    rows = [Heard(), Heard()]
    for listener in rows:
        scheduler.submit(request_of(model, 0, max_new_tokens=3000, eos_token_id=None), listener)
    wait_for(lambda: all(listener.events for listener in rows))
    failing.set()
    assert [str(listener.done.exception(60)) for listener in rows] == ["a kernel has failed"] * 2
    again = Heard()
    scheduler.submit(request_of(model, 0), again)
    assert again.tokens() == expected[0][0] and scheduler.alive


def test_a_prompt_that_fails_leaves_those_that_are_done(model, scheduler, monkeypatch):
    """Four prompts that are too long to be run together: the third fails when the first two have their first tokens."""
    prompts = [model.requests(**batch([prompt([150], seed)]), max_new_tokens=30)[0] for seed in range(4)]
    expected = [generated_alone(model, scheduler, request) for request in prompts]
    prefill = sequences.Sequences.prefill

    def failing(self, input_ids, *arguments):
        if input_ids is not None and np.array_equal(input_ids, prompts[2].input_ids):
            raise RuntimeError("too little memory")
        return (yield from prefill(self, input_ids, *arguments))

    monkeypatch.setattr(sequences.Sequences, "prefill", failing)
    held = threading.Event()
    scheduler.run(lambda: held.wait(60))
    heard = [Heard() for _ in prompts]
    for request, listener in zip(prompts, heard):
        scheduler.submit(replace(request, decode=decode), listener)
    held.set()
    assert str(heard[2].done.exception(60)) == "too little memory"
    assert [heard[number].tokens() for number in (0, 1, 3)] == [expected[number] for number in (0, 1, 3)]


def generated_alone(model, scheduler, request):
    def work():
        running, (row,) = RunningBatch(model.engine()), request.rows()
        finish(running.admit([[row]]))
        while running.step():
            pass
        return row.tokens

    return scheduler.run(work).result(60)


def test_text_that_cannot_be_decoded_fails_alone(model, scheduler):
    def broken(ids):
        raise KeyError(ids[0])

    wrong, right = Heard(), Heard()
    scheduler.submit(replace(request_of(model, 0), decode=broken), wrong)
    scheduler.submit(request_of(model, 0), right)
    assert isinstance(wrong.done.exception(60), KeyError)
    assert len(right.tokens()) == 10 and scheduler.alive
    with pytest.raises(ValueError, match="there is no adapter 'other': this model has none"):
        scheduler.submit(request_of(model, 0), Heard(), adapter="other")


def test_a_clip_that_was_heard_lately_is_not_encoded_again(model, monkeypatch):
    """Whatever is beside it, and only where all of it is the same."""
    own, other = (model.engine_class(model, compiled=False) for _ in range(2))
    own.keeps_clips = True
    calls, encoder = [], own._encoder
    monkeypatch.setattr(own, "_encoder", lambda *width: calls.append(width) or encoder(*width))
    found = [model.clips(clips([length], number)) for number, length in enumerate((15, 13, 14, 16, 12))]

    def rows(of, *numbers):
        encoded, firsts = engine.returned(of.encode([found[number] for number in numbers]))
        sizes = [int(model.audio_tokens(found[number][1]).max()) for number in numbers]
        return [encoded[first : first + size].asnumpy() for first, size in zip(firsts, sizes)]

    rows(own, 0)
    monkeypatch.setattr(engine, "_KEPT_BYTES", 4 * own._rows.popitem()[1].nbytes)
    for numbers, encoded in (
        ((0, 1), 1),
        ((1,), 0),
        ((0, 2, 3, 1), 1),
        ((3, 2, 1), 0),
        ((4, 1), 1),
        ((1,), 0),
        ((0,), 1),
    ):
        calls.clear()
        for ours, theirs in zip(rows(own, *numbers), rows(other, *numbers), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        assert bool(calls) == encoded, numbers
    assert len(own._rows) == 4 and not other._rows
    features, lengths = found[1]
    for changed in ((features * 0.999, lengths), (features, lengths - 1)):
        calls.clear()
        engine.returned(own.encode([changed]))
        assert calls


def test_a_row_without_a_token_to_choose_fails_alone(model, scheduler):
    wrong, right = Heard(), Heard()
    scheduler.submit(request_of(model, 0, suppress_tokens=list(range(VOCAB))), wrong)
    scheduler.submit(request_of(model, 0), right)
    assert "every token of row 0 is forbidden" in str(wrong.done.exception(60))
    assert len(right.tokens()) == 10


@pytest.mark.slow
@pytest.mark.long
def test_adapters_are_served_side_by_side(tmp_path):
    """Two adapters and none, at the same time: each answer is that of a model with this adapter alone."""
    torch_model(tiny_config(text={"num_hidden_layers": 1})).save_pretrained(tmp_path)
    model = AutoModelForAudioTextToText.from_pretrained(tmp_path)
    plain = alone(model, 0)
    adapted = add_lora(model, LoraSettings(r=2))
    adapted.add_adapter("second", adapted.peft_config["default"])
    rng = np.random.default_rng(0)
    for name, parameter in model.parameters_and_names():
        if "lora_B" in name:
            parameter.set_data(type(parameter.value())(rng.normal(0, 1, parameter.shape).astype(np.float32)))
    expected = {}
    for name in ("default", "second"):
        select_adapter(model, name)
        expected[name] = alone(model, 0)
    select_adapter(model, None)
    assert alone(model, 0) == plain
    expected[None] = plain
    assert len({str(tokens) for tokens in expected.values()}) == 3
    scheduler = Scheduler(lambda: model, max_batch=2, adapters=["default", "second"])
    scheduler.start()
    heard = [(name, Heard()) for name in ("default", None, "second", None, "default", "second")]
    for name, listener in heard:
        scheduler.submit(request_of(model, 0), listener, adapter=name)
    for name, listener in heard:
        assert [listener.tokens()] == expected[name], name
    scheduler.stop()

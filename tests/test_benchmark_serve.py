"""`scripts/benchmark.py serve`: reads streams, finds wrong answers, writes tables; no test says how fast."""

import json
import sys

import pytest
from benchmark import command, serving
from benchmark import serve as benchmark_serve
from benchmark.common import BenchmarkError
from benchmark.serving import NEW_TOKENS, PEER, Answer, Server, check_answers, grown, read_answer
from fake_service import running
from test_benchmark import MACHINE, figures_of, run_command

OURS = "mindone-audio serve"


@pytest.mark.slow
@pytest.mark.long
def test_serve(tmp_path):
    options = ("--concurrency", 1, 8, "--requests", 1, "--rounds", 1, "--json", tmp_path / "figures.json")
    done = run_command("serve", *options)
    content = json.loads((tmp_path / "figures.json").read_text())
    one, eight = content["rows"]
    assert (one["clients"], eight["clients"]) == (1, 8) and one["requests"] > 0
    assert eight["tokens"] == pytest.approx(NEW_TOKENS * eight["requests"])
    for shown in (one, eight):
        assert shown["step"] > 0 and shown["unit"] > 0
        assert sorted(shown["first"]) == shown["first"] and sorted(shown["between"]) == shown["between"]
    alone, between = figures_of(tmp_path / "figures.json").values()
    assert alone.ours == eight["requests"] and alone.ratio == pytest.approx(eight["requests"] / one["requests"])
    assert between.ratio == pytest.approx(eight["between"][1] / (eight["step"] + eight["unit"]))
    assert "2 clients" not in done.stderr and "round 1 of 1, 8 clients, 16 requests" in done.stderr


def chunk(content=None, **more):
    return b"data: " + json.dumps({"choices": [{"delta": {"content": content}}]} | more).encode() + b"\n\n"


def test_an_answer_is_read_from_pieces_of_any_size():
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}\n\n'
    usage = b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n'
    first, second, third = chunk("It"), chunk(" is"), chunk(" a siren.")
    pieces = [(1.0, role), (2.0, first + second[:9]), (3.0, second[9:] + third), (4.0, usage + b"data: [DONE]\n\n")]
    assert read_answer("a", 0.5, pieces) == Answer("It is a siren.", 3, 0.5, (2.0, 3.0, 3.0))
    theirs = [(1.0, first), (2.0, chunk(usage={"completion_tokens": 1}))]  # usage with the last chunk, no [DONE]
    assert read_answer("a", 0.5, theirs) == Answer("It", 1, 0.5, (1.0,))
    with pytest.raises(BenchmarkError, match="a broke an answer off: .*out of memory"):
        read_answer("a", 0, [(1.0, first + b'data: {"error":{"message":"out of memory"}}\n\ndata: [DONE]\n\n')])


def test_every_request_gets_its_own_answer_from_a_server(monkeypatch):
    monkeypatch.setattr(serving, "NEW_TOKENS", 3)  # the end is a token, too
    requests = [
        {"messages": [{"role": "user", "content": f"say {word} ."}], "stream": True}
        | {"stream_options": {"include_usage": True}}
        for word in ("one", "two", "three")
    ]
    with running() as (url, _):
        server = Server("ours", url, "demo")
        seconds, answers = serving.send(server, requests, 2, 7)
        with pytest.raises(BenchmarkError, match="ours answered 404: .*there is no model 'other' here"):
            serving.send(Server("ours", url, "other"), requests, 1, 1)
    assert [answer.text for answer in answers] == ["one .", "two .", "three ."] * 2 + ["one ."]
    assert seconds > 0 and all(answer.start < answer.arrivals[0] <= answer.arrivals[1] for answer in answers)
    check_answers(server, answers, ["one .", "two .", "three ."], 2)
    with pytest.raises(BenchmarkError, match="ours gave 'two .' to request 2 of 2 clients, and 'three .' alone"):
        check_answers(server, answers, ["one .", "three ."], 2)
    with pytest.raises(BenchmarkError, match="an answer of 3 tokens, not 64"):
        monkeypatch.undo()
        check_answers(server, answers, ["one .", "two .", "three ."], 2)


def test_the_requests_have_all_clips_and_no_end():
    from mindone_audio.checkpoints import demo_checkpoint

    requests = serving.make_requests(demo_checkpoint())
    assert len(requests) == 16 == len({json.dumps(request) for request in requests})
    assert all(request["logit_bias"] == {"785": -100.0, "787": -100.0} for request in requests)


def test_times_of_the_schedulers_turns():
    with running() as (url, service):
        before = serving.histogram(url, "step")
        for seconds in (0.0031, 0.0032, 0.0039, 0.2):
            service.metrics.timed("step", seconds)
        median, longest = grown(before, serving.histogram(url, "step"))
        assert 0.0025 <= median <= 0.004 and longest == 0.2
        assert grown(serving.histogram(url, "unit"), serving.histogram(url, "unit")) == (0, 0)
    assert grown({0.1: 0, 0.2: 0, 0.4: 5}, {0.1: 0, 0.2: 4, 0.4: 9}) == (pytest.approx(0.15), 0.2)
    assert grown({}, {}) == (0, 0)


def level(requests, first=0.1, gap=0.01):
    return {
        "requests": requests,
        "tokens": 64 * requests,
        "first": [first],
        "between": [gap],
        "step": 0.008,
        "unit": 0.05,
    }


def rows_of(levels):
    other = levels.get(PEER, {})
    return [benchmark_serve.row(int(n), rounds, other.get(n)) for n, rounds in levels[OURS].items()]


def test_figures_are_ratios_within_a_round():
    """The machine was busy in the second round."""
    levels = {
        OURS: {"1": [level(2), level(1), level(2)], "8": [level(6), level(3), level(7)]},
        PEER: {"1": [level(3)] * 3, "8": [level(3), level(1.5), level(3)]},
    }
    alone, beside, between = benchmark_serve.make_figures(levels, rows_of(levels))
    assert (alone.ours, alone.ratio, alone.missed) == (6, 3, False)
    assert (beside.ours, beside.torch, beside.ratio, beside.missed) == (6, 3, 2, True)
    assert between.ours == pytest.approx(10) and between.ratio == pytest.approx(10 / 58) and not between.missed
    assert benchmark_serve.make_figures({OURS: {"1": [level(2)]}}, rows_of({OURS: {"1": [level(2)]}})) == []


def test_the_tables_of_the_documents(tmp_path, monkeypatch):
    levels = {name: {str(n): [level(n)] for n in benchmark_serve.CONCURRENCY} for name in (OURS, PEER)}
    rows, figures = rows_of(levels), benchmark_serve.make_figures(levels, rows_of(levels))
    content = {"rows": rows, "machine": MACHINE, "note": "A note."}
    places = []
    for name, marks in (("DOCUMENT", ("BEGIN", "END")), ("README", ("ROWS", "ROWS_END"))):
        begin, end = (getattr(benchmark_serve, mark) for mark in marks)
        assert getattr(benchmark_serve, name).read_text().count(begin) == 1  # the documents have a place for it
        places.append(tmp_path / name)
        places[-1].write_text(f"before\n{begin}\nold\n{end}\nafter\n")
        monkeypatch.setattr(benchmark_serve, name, places[-1])
    benchmark_serve.write_documents(content, figures)
    table, five = (place.read_text() for place in places)
    assert all(
        text.startswith("before\n<!--") and text.endswith("-->\nafter\n") and "old" not in text
        for text in (table, five)
    )
    assert table.count("| 32 | 32.00 | 2048 | 100 | 100 | 100 | 10 | 10 | 10 | 32.00 | 100 | 10 | 1.00 |") == 1
    assert "at least 2.5, **missed**" in table and "A note." in table and "Some CPU" in table
    assert [line.split("|")[1].strip() for line in five.splitlines()[4:-2]] == ["1", "4", "8", "16", "32"]
    alone = benchmark_serve.readme_rows(rows_of({OURS: levels[OURS]}))
    assert PEER not in alone and PEER in five


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--model", "nowhere"), "no checkpoint in nowhere"),
        (("--concurrency", "0"), "'0' is not a whole number of at least 1"),
        (("--against", PEER), "--against and --peer go together"),
        (("--against", PEER, "--peer", "nowhere/python"), "--peer nowhere/python: there is no transformers beside it"),
        (("--against", "vllm"), "invalid choice: 'vllm'"),
        (("--json", "nowhere/figures.json"), "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    try:
        status = command.main(["serve", *arguments])
    except SystemExit as error:  # argparse's
        status = error.code
    said = capsys.readouterr()
    assert status == 2 and not said.out and message in said.err.splitlines()[-1]


def test_a_server_that_does_not_start_says_why():
    with pytest.raises(BenchmarkError, match="did not start: ValueError: no memory"):
        command = [sys.executable, "-c", "raise ValueError('no memory')"]
        with serving._process("a", command, 1) as (process, output):
            serving._wait(lambda: None, process, output)

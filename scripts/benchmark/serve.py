"""`benchmark.py serve`: `mindone-audio serve` under load, and beside it `transformers serve`.

Both get the same requests, clips of examples/audio with a question, and answer with 64 tokens, streamed. Each text must
be the one that the same request got alone. The servers take turns at each number of clients within a round.
"""

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmark.common import (
    ROOT,
    BenchmarkError,
    Figure,
    add_common,
    at_least,
    check_common,
    columns,
    finish,
    machine,
    machine_line,
    paired,
    plot,
)
from benchmark.processes import order
from benchmark.readme import rewrite
from benchmark.serving import (
    NEW_TOKENS,
    PEER,
    Answer,
    Server,
    check_answers,
    grown,
    histogram,
    make_requests,
    send,
    versions,
)
from benchmark.serving import ours as our_server
from benchmark.serving import theirs as their_server

CONCURRENCY = (1, 2, 4, 8, 16, 32)
LIMITED, THROUGHPUT_LIMIT = 8, 2.5  # clients at which throughput has a limit: to that of one client, and to theirs
PERCENTILES = (50, 95, 99)
SHOWN = (1, 4, 8, 16, 32)  # clients, in the README
DOCUMENT, BEGIN, END = ROOT / "docs" / "serving.md", "<!-- serve benchmark -->", "<!-- /serve benchmark -->"
README, ROWS, ROWS_END = ROOT / "README.md", "<!-- serve rows -->", "<!-- /serve rows -->"


def say(text: str) -> None:
    """A line on the standard error, for who waits."""
    print(text, file=sys.stderr, flush=True)


def measure_level(server: Server, requests: list[dict], texts: list[str], clients: int, count: int) -> dict:
    """Throughput of one level; times in seconds. step: the median; unit: the longest, up to its bucket's edge."""
    before = {part: histogram(server.url, part) for part in ("step", "unit")}
    seconds, answers = send(server, requests, clients, count)
    check_answers(server, answers, texts, clients)
    step, _ = grown(before["step"], histogram(server.url, "step"))
    _, unit = grown(before["unit"], histogram(server.url, "unit"))
    return {
        "requests": count / seconds,
        "tokens": NEW_TOKENS * count / seconds,
        "first": [answer.arrivals[0] - answer.start for answer in answers],
        "between": [gap for answer in answers for gap in gaps(answer)],
        "step": step,
        "unit": unit,
    }


def gaps(answer: Answer) -> list[float]:
    """Seconds between the pieces of an answer's text."""
    return [later - earlier for earlier, later in zip(answer.arrivals, answer.arrivals[1:])]


def warm_up(server: Server, requests: list[dict]) -> list[str]:
    """The text of each request alone. Then graphs that only many clients need are compiled, and nothing is measured."""
    say(f"{server.name}: {len(requests)} requests alone")
    send(server, requests, 1, 1)  # the first one compiles
    _, alone = send(server, requests, 1, len(requests))
    texts = [answer.text for answer in alone]
    check_answers(server, alone, texts, 1)
    for clients in (LIMITED, 4 * LIMITED):
        _, answers = send(server, requests, clients, clients)
        check_answers(server, answers, texts, clients)
    return texts


def measure(options: argparse.Namespace) -> tuple[dict[str, dict[str, list[dict]]], int]:
    """By server and clients, a level for each round; and how many texts alone both servers agree on."""
    model = model_folder(options)
    requests = make_requests(model)
    with ExitStack() as stack:
        say("starting")
        servers = [stack.enter_context(our_server(model, options.threads, options.max_batch))]
        if options.against:
            servers.append(stack.enter_context(their_server(model, options.threads, options.peer)))
        texts = {server.name: warm_up(server, requests) for server in servers}
        levels = {server.name: {str(clients): [] for clients in options.concurrency} for server in servers}
        for number in range(options.rounds):
            for clients in options.concurrency:
                count = max(len(requests), options.requests * clients)
                for server in order(servers, number):
                    level = measure_level(server, requests, texts[server.name], clients, count)
                    levels[server.name][str(clients)].append(level)
                    place = f"round {number + 1} of {options.rounds}, {clients} clients, {count} requests"
                    say(f"{place}: {level['requests']:.2f} requests/s by {server.name}")
    return levels, sum(len(set(pair)) == 1 for pair in zip(*texts.values()))


def pooled(rounds: Sequence[dict], part: str) -> list[float]:
    """Percentiles of all rounds' times together, in milliseconds."""
    return [1e3 * float(value) for value in np.percentile([t for level in rounds for t in level[part]], PERCENTILES)]


def row(clients: int, own: Sequence[dict], other: Sequence[dict] | None) -> dict:
    """What is shown of one number of clients."""
    shown = {"clients": clients} | {name: statistics.median(level[name] for level in own) for name in RATES}
    shown |= {part: pooled(own, part) for part in ("first", "between")}
    shown |= {"step": 1e3 * statistics.median(level["step"] for level in own)}
    shown |= {"unit": 1e3 * max(level["unit"] for level in own)}
    if other:
        shown["theirs"] = {name: statistics.median(level[name] for level in other) for name in RATES}
        shown["theirs"] |= {part: pooled(other, part) for part in ("first", "between")}
        shown["ratio"] = ratio(own, other)
    return shown


RATES = ("requests", "tokens")


def ratio(one: Sequence[dict], other: Sequence[dict]) -> float:
    """The median over the rounds of one's throughput / the other's."""
    return statistics.median(paired(*([level["requests"] for level in rounds] for rounds in (one, other))))


HEAD = ("clients", "requests/s", "tokens/s", "first token p50", "p95", "p99", "between p50", "p95", "p99")
THEIR_HEAD = ("theirs, requests/s", "first token p95", "between p95", "ours / theirs")


def lines(rows: Sequence[dict]) -> list[list[str]]:
    """The cells of the table, its head first; times in milliseconds."""
    against = "theirs" in rows[0]
    table = [[*HEAD, *THEIR_HEAD * against]]
    for shown in rows:
        cells = [str(shown["clients"]), f"{shown['requests']:.2f}", f"{shown['tokens']:.0f}"]
        cells += [
            f"{value:.3g}" if value < 1000 else f"{value:.0f}" for part in ("first", "between") for value in shown[part]
        ]
        if against:
            other = shown["theirs"]
            cells += [f"{other['requests']:.2f}", f"{other['first'][1]:.0f}", f"{other['between'][1]:.3g}"]
            cells.append(f"{shown['ratio']:.2f}")
        table.append(cells)
    return table


def make_figures(levels: dict[str, dict[str, list[dict]]], rows: Sequence[dict]) -> list[Figure]:
    """Rows of the table of figures at `LIMITED` clients, where they were measured."""
    own, other = levels["mindone-audio serve"], levels.get(PEER)
    at, name = str(LIMITED), f"{LIMITED} clients"
    if at not in own:
        return []
    (shown,) = [shown for shown in rows if shown["clients"] == LIMITED]
    figures = []
    if "1" in own:
        times = ratio(own[at], own["1"])
        figures.append(
            Figure(f"requests/s, {name}; ratio: to 1 client", shown["requests"], None, times, THROUGHPUT_LIMIT, True)
        )
    if other:
        both = shown["requests"], shown["theirs"]["requests"]
        figures.append(Figure(f"requests/s, {name}; PyTorch: {PEER}", *both, shown["ratio"], THROUGHPUT_LIMIT, True))
    bound = shown["step"] + shown["unit"]
    label = f"p95 of time between tokens, {name}, ms; ratio: to step {shown['step']:.3g} + unit {shown['unit']:.3g}"
    figures.append(Figure(label, shown["between"][1], None, shown["between"][1] / bound, 1))
    return figures


def markdown(table: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    head, *rest = ["| " + " | ".join(cells) + " |" for cells in table]
    return [head, "|" + "---|" * len(table[0]), *rest]


def document_table(content: dict, figures: Sequence[Figure]) -> str:
    """What stands between the markers of docs/serving.md."""
    limits = ["", "| at 8 clients | ours | theirs | ratio | limit |", "|---|---|---|---|---|"]
    for figure in figures:
        values = ("" if value is None else f"{value:.3g}" for value in (figure.ours, figure.torch, figure.ratio))
        limit = f"{'at least' if figure.at_least else 'at most'} {figure.limit:g}" + ", **missed**" * figure.missed
        limits.append("| " + " | ".join([figure.name.replace("PyTorch", "theirs"), *values, limit]) + " |")
    told = ["", f"Times in milliseconds. {content['note']}", "", f"{machine_line(content['machine'])}."]
    return "\n".join([*markdown(lines(content["rows"])), *limits * bool(figures), *told])


def readme_rows(rows: Sequence[dict]) -> str:
    """What stands between the markers of the README: five rows, four columns."""
    table = [["clients", "answers a second", "first token, p95, ms", "between tokens, p95, ms"]]
    table[0] += ["transformers serve, answers a second"] * ("theirs" in rows[0])
    for shown in rows:
        if shown["clients"] in SHOWN:
            cells = [str(shown["clients"]), f"{shown['requests']:.1f}", f"{shown['first'][1]:.0f}"]
            cells += [f"{shown['between'][1]:.1f}"] + [f"{s['requests']:.1f}" for s in [shown.get("theirs")] if s]
            table.append(cells)
    return "\n".join(markdown(table))


def write_documents(content: dict, figures: Sequence[Figure], write: bool = True) -> None:
    """Rewrite the tables; with write=False only see that their places are marked."""
    for file, begin, end, text in (
        (DOCUMENT, BEGIN, END, lambda: document_table(content, figures)),
        (README, ROWS, ROWS_END, lambda: readme_rows(content["rows"])),
    ):
        made = rewrite(file.read_bytes().decode(), text() if write else "", begin, end)
        if write:
            file.write_bytes(made.encode())
            say(f"written to {file}")


def model_folder(options: argparse.Namespace) -> Path:
    """The folder of the checkpoint; `BenchmarkError` where there is none."""
    from mindone_audio.checkpoints import demo_checkpoint

    folder = Path(options.model or demo_checkpoint())
    if not (folder / "generation_config.json").exists():
        raise BenchmarkError(f"no checkpoint in {folder} (no generation_config.json): correct --model, or leave it out")
    return folder.resolve()


def check(options: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before anything is started."""
    check_common(options)
    model_folder(options)
    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise BenchmarkError(f'serve needs {", ".join(missing)}: pip install "mindone_audio[serve]"')
    if bool(options.against) != bool(options.peer):
        raise BenchmarkError("--against and --peer go together: give both")
    if options.peer and not Path(options.peer).with_name("transformers").exists():
        raise BenchmarkError(
            f"--peer {options.peer}: there is no transformers beside it: install transformers[serving]>=5"
        )
    if options.readme:
        write_documents({}, [], write=False)


def run_serve(options: argparse.Namespace) -> None:
    """`serve`: the same requests by more and more clients."""
    check(options)
    found = machine(options.threads)
    peer = f"{PEER}: {versions(options.peer)}" if options.peer else ""
    levels, equal = measure(options)
    own, other = levels["mindone-audio serve"], levels.get(PEER, {})
    rows = [row(clients, own[str(clients)], other.get(str(clients))) for clients in options.concurrency]
    setting = {name: getattr(options, name) for name in ("concurrency", "requests", "rounds", "max_batch", "model")}
    note = f"Answers of {NEW_TOKENS} tokens, streamed, --max-batch {options.max_batch}, {options.rounds} rounds"
    note += f"; theirs: {peer}, which gave the same text to {equal} of the requests" * bool(peer) + "."
    print(f"{note}\nTimes in milliseconds.\n\n" + "\n".join(columns(lines(rows))))
    for shown in rows:
        print(f"{shown['clients']} clients: step {shown['step']:.3g}, longest unit at most {shown['unit']:.3g}")
    figures = make_figures(levels, rows)
    content = {**setting, "machine": found, "note": note, "rows": rows}
    finish(options, content, figures)
    if options.readme:
        write_documents(content, figures)
    if options.plot:
        series = {"ours": {shown["clients"]: shown["requests"] for shown in rows}}
        if other:
            series[PEER] = {shown["clients"]: shown["theirs"]["requests"] for shown in rows}
        plot(options.plot, f"answers of {NEW_TOKENS} tokens", "requests/s", series, along="clients")


def add_serve(subparsers) -> None:
    """The command line of `serve`."""
    parser = subparsers.add_parser("serve", help="the server under load, against transformers serve")
    help = "clients at a time (default: 1 2 4 8 16 32)"
    parser.add_argument("--concurrency", type=at_least(1), nargs="+", default=CONCURRENCY, metavar="N", help=help)
    help = "of each client in a round, and all of them at least each once (default: %(default)s)"
    parser.add_argument("--requests", type=at_least(1), default=2, metavar="N", help=help)
    help = "of our server (default: %(default)s)"
    parser.add_argument("--max-batch", type=at_least(1), default=8, metavar="N", help=help)
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder (default: the bundled demo checkpoint)")
    parser.add_argument("--against", choices=[PEER], help="another server with the same checkpoint; with --peer")
    parser.add_argument("--peer", metavar="PYTHON", help="the interpreter of its environment: transformers[serving]>=5")
    parser.add_argument("--readme", action="store_true", help="rewrite the tables of docs/serving.md and README.md")
    add_common(parser, run_serve)
    parser.set_defaults(rounds=3)

"""`benchmark.py lookup`: answers with prompt lookup, and the same answers token by token.

The answers take turns in one process, and have the same tokens. What the bundled model says of three clips, a JSON
answer of it, and an answer that repeats itself: of random weights, which come into a loop soon. This is the best case.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from benchmark.checkpoint import RANDOM, text_tokens, write_random_checkpoint
from benchmark.common import Figure, add_common, at_least, check_common, columns, compare, finish, machine, plot
from benchmark.constrained import CASES as FORMS
from benchmark.constrained import CLIP, LIST
from benchmark.processes import use_threads

CAPTIONS, JSON, LOOP = "captions", "a list of objects, JSON", "a loop"
QUESTION = "What do you hear?"


class Answers:
    """The answers of a case. Called with a number of tokens to look up: seconds, tokens of the answers, graph calls."""

    def __init__(self, model: Any, requests: list[tuple[dict, dict]]):
        self.model, self.requests = model, requests

    def __call__(self, number: int) -> tuple[float, list[list[int]], int]:
        """The time is that from the first token of an answer to its last."""
        from mindone_audio.generation.running_batch import RunningBatch

        engine, seconds, found, calls = self.model.engine(), 0.0, [], 0
        for inputs, settings in self.requests:
            (request,) = self.model.requests(**inputs, **settings, prompt_lookup_num_tokens=number)
            running, rows = RunningBatch(engine), request.rows()
            for _ in running.admit([rows]):
                pass
            start = time.perf_counter()
            while running.step():
                calls += 1
            seconds += time.perf_counter() - start
            rows[0].check()
            found.append(rows[0].tokens)
        return seconds, found, calls


def cases(tokens: int, random: str, folder: str) -> dict[str, Answers]:
    """The cases by name; answers of up to so many tokens."""
    from mindone_audio import AutoModelForAudioTextToText, pipeline
    from mindone_audio.inputs.audio import load_audio

    pipe = pipeline()
    processor = pipe.processor
    chat = processor.answers_chats(pipe.model.generation_config)

    def asked(file: Any) -> dict:
        content = [{"type": "audio", "audio": load_audio(str(file))}, {"type": "text", "text": QUESTION}]
        return processor.conversation_inputs([[{"role": "user", "content": content}]], chat=chat)

    captions = [(asked(file), {"max_new_tokens": tokens}) for file in sorted(CLIP.parent.glob("*.wav"))[:3]]
    form = {"constraint": {"json_schema": FORMS[LIST][0]}, "tokenizer": processor.tokenizer}
    write_random_checkpoint(folder, **RANDOM[random])
    model = AutoModelForAudioTextToText.from_pretrained(folder)
    ids = np.array([text_tokens(model.config, 64, 0)], np.int32)
    return {
        CAPTIONS: Answers(pipe.model, captions),
        JSON: Answers(pipe.model, [(asked(CLIP), {**form, "max_new_tokens": tokens})]),
        LOOP: Answers(model, [({"input_ids": ids}, {"max_new_tokens": tokens, "eos_token_id": -1})]),
    }


def run_lookup(options: argparse.Namespace) -> None:
    """`lookup`: each case in turn, with and without."""
    check_common(options)
    found = machine(options.threads)
    use_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        answers = cases(options.tokens, options.random, folder)
    seconds = {case: ([], []) for case in answers}
    rows, rates = [["", "tokens", "graph calls", "with", "tokens/s", "with"]], {}
    for case, answer in answers.items():
        (_, expected, calls), (_, tokens, fewer) = answer(0), answer(options.lookup)  # compiles
        if tokens != expected:
            raise AssertionError(f"{case}: prompt lookup has changed the tokens")
        count = sum(map(len, tokens)) - len(tokens)
        for number in range(options.rounds):
            for looks in (0, 1) if number % 2 else (1, 0):
                seconds[case][looks].append(answer(options.lookup * looks)[0])
        rates[case] = [count / statistics.median(of) for of in seconds[case]]
        rows.append([case, *map(str, (count, calls, fewer)), *(f"{rate:.0f}" for rate in rates[case])])
    print(f"{options.rounds} rounds\n" + "\n".join(columns(rows)))
    figures: list[Figure] = [
        compare(f"{case}, ms; ratio: to token by token", looked, plain, 1e3)
        for case, (plain, looked) in seconds.items()
    ]
    finish(options, {"tokens": options.tokens, "machine": found, "seconds": seconds}, figures)
    if options.plot:
        names = ("token by token", "prompt lookup")
        plot(
            options.plot,
            "prompt lookup",
            "tokens/s",
            {n: {c: r[i] for c, r in rates.items()} for i, n in enumerate(names)},
        )


def add_lookup(subparsers) -> None:
    """The command line of `lookup`."""
    parser = subparsers.add_parser("lookup", help="answers with prompt lookup")
    help = "of each answer, at most (default and least: %(default)s, which the JSON answer needs)"
    parser.add_argument("--tokens", type=at_least(128), default=128, metavar="N", help=help)
    help = "prompt_lookup_num_tokens (default: %(default)s)"
    parser.add_argument("--lookup", type=at_least(1), default=7, metavar="N", help=help)
    help = "size of the random weights (default: %(default)s)"
    parser.add_argument("--random", choices=RANDOM, default="small", help=help)
    add_common(parser, run_lookup)

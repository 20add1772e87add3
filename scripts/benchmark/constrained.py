"""`benchmark.py constrained`: a token of an answer that must follow a JSON schema, and of one that may be anything.

The answers take turns in one process, on the same clip and question, and have the same number of tokens: no end token
can come.
"""

import argparse
import statistics
import time
from itertools import islice

from benchmark.common import ROOT, Figure, add_common, at_least, check_common, columns, compare, finish, machine, plot
from benchmark.processes import use_threads

LIMIT = 1.1  # of a token's time to that without a schema
CLIP, QUESTION = ROOT / "examples" / "audio" / "spoken_command.wav", "What is said?"
FREE, LIST, TEXT = "no schema", "a list of objects", "a text, closed at the limit"
COMMAND = {
    "type": "object",
    "properties": {
        "action": {"enum": ["open", "close"]},
        "device": {"enum": ["door", "light"]},
        "minutes": {"type": "integer", "minimum": 0, "maximum": 59},
    },
    "required": ["action", "device", "minutes"],
}
# A schema, and how many times the tokens that are timed an answer may have: the list is longer than they are, and the
# text would never end by itself.
CASES: dict[str, tuple[dict | None, int]] = {
    FREE: (None, 1),
    LIST: ({"type": "array", "items": COMMAND, "minItems": 2}, 100),
    TEXT: ({"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}, 1),
}


class Asked:
    """A model, and a question about a clip. Called with a case and a number of tokens: seconds for one of them."""

    def __init__(self, model: str | None):
        from mindone_audio import pipeline
        from mindone_audio.inputs.audio import load_audio

        self.pipe = pipeline(model=model)
        self.clip = [{"type": "audio", "audio": load_audio(str(CLIP))}, {"type": "text", "text": QUESTION}]

    def __call__(self, case: str, tokens: int) -> float:
        """From the first token to the last."""
        (schema, times), processor, model = CASES[case], self.pipe.processor, self.pipe.model
        chat = processor.answers_chats(model.generation_config)
        inputs = processor.conversation_inputs([[{"role": "user", "content": self.clip}]], chat=chat)
        settings = {} if schema is None else {"constraint": {"json_schema": schema}, "tokenizer": processor.tokenizer}
        room = model.language_model.config.max_positions - inputs["input_ids"].shape[1]
        settings |= {"max_new_tokens": min(times * tokens, room), "eos_token_id": -1}
        moments = [time.perf_counter() for _ in islice(model.stream(**inputs, **settings), tokens)]
        return (moments[-1] - moments[0]) / (len(moments) - 1)


def run_constrained(options: argparse.Namespace) -> None:
    """`constrained`: each case in turn."""
    check_common(options)
    found = machine(options.threads)
    use_threads(options.threads)
    asked = Asked(options.model)
    for case in (*CASES, *CASES):  # compiles
        asked(case, options.tokens)
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    for number in range(options.rounds):
        for case in list(CASES)[:: 1 if number % 2 else -1]:
            seconds[case].append(asked(case, options.tokens))
    rows = [["a token, medians", "ms"]]
    rows += [[case, f"{1e3 * statistics.median(of):.3f}"] for case, of in seconds.items()]
    print(f"{options.tokens} tokens, {options.rounds} rounds\n" + "\n".join(columns(rows)))
    figures: list[Figure] = [
        compare(f"a token of {case}, ms; ratio: to no schema", seconds[case], seconds[FREE], 1e3, LIMIT)
        for case in (LIST, TEXT)
    ]
    finish(options, {"tokens": options.tokens, "machine": found, "seconds": seconds}, figures)
    if options.plot:
        shown = {case: {"a token": 1e3 * statistics.median(of)} for case, of in seconds.items()}
        plot(options.plot, "with and without a schema", "ms", shown)


def add_constrained(subparsers) -> None:
    """The command line of `constrained`."""
    parser = subparsers.add_parser("constrained", help="a token of an answer that must follow a schema")
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder (default: the bundled demo checkpoint)")
    help = "of each answer (default: %(default)s)"
    parser.add_argument("--tokens", type=at_least(16), default=64, metavar="N", help=help)
    add_common(parser, run_constrained)
    parser.set_defaults(rounds=31)

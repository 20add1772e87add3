"""`mindone-audio chat`: a conversation about clips in the terminal."""

import argparse
import json
import sys

from mindone_audio.commands import options as shared

HELP = """/audio FILE   the next message is about this clip too (a path or a URL)
/reset        forget the conversation
/help         this
/exit         leave, as does the end of input (Ctrl-D); Ctrl-C ends an answer"""

_LOST = 0.5  # seconds after which a KeyboardInterrupt will not come any more


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("chat", help="talk about clips, several turns")
    parser.add_argument("clips", nargs="*", metavar="CLIP", help="that the first message is about")
    parser.add_argument("--system", help="a system message")
    parser.add_argument("--json", action="store_true", help="one JSON object an answer, for scripts")
    shared.add_model(parser)
    shared.add_generation(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read messages until the input ends; 0, or 1 where something failed and the input was no terminal."""
    clips = shared.expand(options.clips)
    if "-" in clips:
        raise shared.WrongUse("chat reads its messages from standard input: give the clip as a file")
    pipe = shared.load_pipeline(options)
    from mindone_audio.inputs.audio import load_clip

    opening = [{"role": "system", "content": options.system}] if options.system else []
    interactive, explain = sys.stdin.isatty(), shared.explain("chat")
    if interactive:
        print(HELP, file=sys.stderr)
    messages, waiting, failed = list(opening), [], 0
    lines = [f"/audio {clip}" for clip in clips]
    while True:
        line = lines.pop(0) if lines else _read(interactive)
        if line is None or line == "/exit":
            return failed
        command, _, argument = line.partition(" ")
        try:
            if command == "/audio":
                waiting.append({"type": "audio", "audio": load_clip(argument.strip())})
            elif command == "/reset":
                messages, waiting = list(opening), []
            elif command == "/help":
                print(HELP, file=sys.stderr)
            elif command.startswith("/"):
                raise ValueError(f"unknown command {command}: /help lists them")
            elif line:
                turn = {"role": "user", "content": [*waiting, {"type": "text", "text": line}]}
                answer = _answer(pipe, [*messages, turn], options)
                messages += [turn, {"role": "assistant", "content": answer}]
                waiting = []
        except (OSError, ValueError) as error:
            if options.json:
                print(json.dumps({"text": line, "generated_text": None, "error": explain(error)}, ensure_ascii=False))
            else:
                print(f"error: {explain(error)}", file=sys.stderr)
            failed = 0 if interactive else 1
        except KeyboardInterrupt:
            if not interactive:
                raise
            options.signals.interrupted = False
            print("\ninterrupted: that message and its answer are forgotten", file=sys.stderr)


def _read(interactive: bool) -> str | None:
    """The next line, None at the end of the input."""
    if interactive:
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.strip() if line else None


def _answer(pipe, messages: list[dict], options: argparse.Namespace) -> str:
    deltas = []
    for delta in pipe(messages, stream=True, generate_kwargs=shared.settings(options)):
        options.signals.check(older=_LOST)
        deltas.append(delta)
        if not options.json:
            print(delta, end="", flush=True)
    answer = "".join(deltas)
    if options.json:
        text = messages[-1]["content"][-1]["text"]
        print(json.dumps({"text": text, "generated_text": answer}, ensure_ascii=False), flush=True)
    else:
        print(flush=True)
    return answer

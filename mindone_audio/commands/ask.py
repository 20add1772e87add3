"""`mindone-audio ask` and `caption`: a question about clips, or what they sound like."""

import argparse
import json
import sys

from mindone_audio.commands import options as shared


def add(commands) -> None:
    """Declare both commands."""
    ask = commands.add_parser("ask", help="ask something about each clip", usage="%(prog)s [options] CLIP... PROMPT")
    ask.add_argument("clips", nargs="+", metavar="CLIP... PROMPT", help="files, globs, URLs or - (standard input)")
    ask.add_argument("--together", action="store_true", help="ask once about all clips, not about each")
    caption = commands.add_parser("caption", help="say what each clip sounds like")
    caption.add_argument("clips", nargs="+", metavar="CLIP", help="files, globs, URLs or - (standard input)")
    for parser in (ask, caption):
        parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="of several clips (default: 8)")
        parser.add_argument("--long-audio", choices=("windows",), help="one answer for each window of a long clip")
        shared.add_output(parser)
        shared.add_model(parser)
        shared.add_generation(parser)
        parser.set_defaults(run=run)
    shared.add_form(ask)
    caption.set_defaults(together=False)


def run(options: argparse.Namespace) -> int:
    """0, or 1 where a clip failed."""
    clips, prompt = options.clips, None
    if options.command == "ask":
        clips, prompt = clips[:-1], clips[-1]
        if not clips:
            raise shared.WrongUse('give clips and then a question, as in: mindone-audio ask clip.wav "What is it?"')
    if options.batch_size < 1:
        raise shared.WrongUse(f"--batch-size {options.batch_size}: give a number of clips, at least 1")
    clips = shared.expand(clips)
    pipe = shared.load_pipeline(options)
    pipe.explain = shared.explain(options.command)
    settings = {"generate_kwargs": shared.settings(options), "long_audio": options.long_audio, "text": prompt}
    if options.together:
        clips, inputs = [" ".join(clips)], [{"audio": [shared.clip_source(clip) for clip in clips]}]
    else:
        inputs = [shared.clip_source(clip) for clip in clips]
    if options.stream or (len(clips) == 1 and not options.json):
        return _stream(pipe, clips, inputs, settings, options)
    failed, size = 0, options.batch_size
    for first in range(0, len(clips), size):  # so that an interruption costs one batch
        batch = slice(first, first + size)
        answers = pipe(inputs[batch], on_error="return", batch_size=size, **settings)
        options.signals.check()
        for clip, answer in zip(clips[batch], answers):
            _show(clip, answer, options.json)
            failed = 1 if "error" in answer else failed
    return failed


def _stream(pipe, clips: list[str], inputs: list, settings: dict, options: argparse.Namespace) -> int:
    """One clip after the other, each text delta as it comes."""
    failed, as_json, explain = 0, options.json, shared.explain(options.command)
    for clip, source in zip(clips, inputs):
        options.signals.check()
        name, deltas = "" if len(clips) == 1 else f"{clip}: ", []
        try:
            for delta in pipe(source, stream=True, **settings):
                options.signals.check(older=1.0)
                deltas.append(delta)
                if not as_json:
                    print(name + delta, end="", flush=True)
                    name = ""
        except (OSError, ValueError) as error:
            options.signals.check()
            failed = 1
            if deltas and not as_json:
                print()
            _show(clip, {"generated_text": "".join(deltas) or None, "error": explain(error)}, as_json)
            continue
        if as_json:
            _show(clip, {"generated_text": "".join(deltas)}, as_json)
        else:
            print(name if not deltas else "")
    return failed


def _show(clip: str, answer: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"audio": clip} | answer, ensure_ascii=False), flush=True)
    elif "error" in answer:
        print(f"error: {clip}: {answer['error']}", file=sys.stderr)
    else:
        print(f"{clip}: {answer['generated_text']}", flush=True)

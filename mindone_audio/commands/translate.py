"""`mindone-audio translate`: speech or texts in one language as text in another, by a SeamlessM4T model."""

import argparse
import json
import os
import sys
from typing import Any

from mindone_audio.commands import options as shared
from mindone_audio.setting_fields import in_words, option

_TOGETHER = 8  # inputs, so that an interruption costs no more
_OPTIONS = {"tgt_lang": "--to", "language": "--to", "src_lang": "--from"}


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("translate", help="write in another language what is said, or a text")
    parser.add_argument("clips", nargs="*", metavar="CLIP", help="files, globs, URLs or - (standard input)")
    parser.add_argument(
        "--text", help="translate this text instead of clips; -: each line of standard input", metavar="TEXT"
    )
    parser.add_argument("--to", required=True, metavar="LANGUAGE", help="the language to write, such as deu")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="LANGUAGE",
        help="of the text (default: eng); speech may be in any language",
    )
    shared.add_output(parser)
    shared.add_model(parser)
    shared.add_generation(parser)
    parser.set_defaults(run=run, say=_option)


def run(options: argparse.Namespace) -> int:
    """0, or 1 where an input failed."""
    names, inputs = _inputs(options)
    if options.model is None:
        raise shared.WrongUse("--model is missing: give a SeamlessM4T v2, such as facebook/seamless-m4t-v2-large")
    pipe = shared.load_pipeline(options, "translation")
    pipe.explain = _explain
    settings = {"tgt_lang": options.to, "src_lang": options.source, "generate_kwargs": shared.settings(options)}
    failed = 0
    for first in range(0, len(inputs), 1 if options.stream else _TOGETHER):
        options.signals.check()
        some = slice(first, first + (1 if options.stream else _TOGETHER))
        if options.stream and not options.json:
            answers = [_streamed(pipe, names[first], inputs[first], settings)]
        else:
            answers = pipe(inputs[some], on_error="return", **settings)
        for name, answer in zip(names[some], answers):
            _show(name, answer, options)
            failed = 1 if "error" in answer else failed
    return failed


def _inputs(options: argparse.Namespace) -> tuple[list[str], list[Any]]:
    """What is translated, and what is written before its translation; `WrongUse` for what cannot be."""
    if bool(options.clips) == (options.text is not None):
        both = "both" if options.clips else "neither"
        raise shared.WrongUse(f"{both} of clips and --text were given: give clips, or a text")
    if options.text is not None:
        texts = [line.strip() for line in (sys.stdin if options.text == "-" else [options.text])]
        texts = [text for text in texts if text]
        if not texts:
            raise shared.WrongUse("there is no text to translate")
        return [""] * len(texts), texts
    if options.source is not None:
        raise shared.WrongUse(f"--from {options.source} is for --text: speech may be in any language, leave it out")
    clips = shared.expand(options.clips)
    for clip in clips:
        if clip != "-" and "://" not in clip and not clip.startswith("data:") and not os.path.exists(clip):
            raise shared.WrongUse(f"no file {clip!r} (seen from {os.getcwd()}): give a text as --text {clip!r}")
    return [clip if len(clips) > 1 or options.json else "" for clip in clips], [
        {"audio": shared.clip_source(clip)} for clip in clips
    ]


def _streamed(pipe, name: str, source: Any, settings: dict) -> dict:
    """Print a translation as it is produced."""
    lead = f"{name}: " if name else ""
    try:
        for delta in pipe(source, stream=True, **settings):
            print(lead + delta, end="", flush=True)
            lead = ""
    except (OSError, ValueError) as error:
        return {"error": _explain(error)}
    print(lead)
    return {}


def _show(name: str, answer: dict, options: argparse.Namespace) -> None:
    if options.json:
        kept = {key: value for key, value in answer.items() if key not in ("text", "generated_text")}
        print(json.dumps(({"audio": name} if name else {}) | kept, ensure_ascii=False), flush=True)
    elif "error" in answer:
        print(f"error: {name + ': ' if name else ''}{answer['error']}", file=sys.stderr)
    elif answer:
        print(f"{name + ': ' if name else ''}{answer['translation_text']}", flush=True)


def _option(name: str, value: Any = None) -> str:
    """A setting on this command line."""
    return _OPTIONS.get(name) or option(name, value)


def _explain(error: Exception) -> str:
    return in_words(error, _option)

"""`mindone-audio translate`: speech or texts in one language as text or speech in another, by a SeamlessM4T model."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from mindone_audio.commands import options as shared
from mindone_audio.commands.sound_file import check_name, write_sound
from mindone_audio.setting_fields import in_words, option

_TOGETHER = 8  # inputs, so that an interruption costs no more
_OPTIONS = {"tgt_lang": "--to", "language": "--to", "src_lang": "--from", "speaker_id": "--speaker"}


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
    parser.add_argument(
        "--speak",
        type=Path,
        metavar="FILE",
        help="also say the translation of one clip or text: a .wav, .flac or .mp3 file",
    )
    parser.add_argument(
        "--speaker", type=shared.number, metavar="N", help="whose voice --speak has, from 0 on (default: 0)"
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
    if options.speaker is not None and options.speak is None:
        raise shared.WrongUse(f"--speaker {options.speaker} is the voice of --speak FILE: give both")
    if options.speak is not None:
        return _speak(options, names, inputs)
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


def _speak(options: argparse.Namespace, names: list[str], inputs: list[Any]) -> int:
    """`run` where the translation is also said."""
    check_name("--speak", options.speak)
    if len(inputs) > 1:
        raise shared.WrongUse(f"--speak {options.speak} is for one clip or text, not for {len(inputs)}: give one")
    if options.stream:
        raise shared.WrongUse("--stream writes text as it is produced, and --speak says it when it is known: leave one")
    pipe = shared.load_pipeline(options, "translation")
    asked = {"tgt_lang": options.to, "src_lang": options.source, **shared.settings(options)}
    from mindone_audio.inputs.audio import AudioError

    try:
        answer = pipe.speak(inputs[0], speaker_id=options.speaker or 0, **asked)
    except AudioError as error:
        _show(names[0], {"error": _explain(error)}, options)
        return 1
    done = write_sound(options.speak, answer.pop("audio"), answer.pop("sampling_rate"))
    _show(names[0], answer | {"speech": str(options.speak)}, options)
    if not options.json:
        print(done)
    return 0


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

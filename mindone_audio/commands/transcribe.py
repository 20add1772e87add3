"""`mindone-audio transcribe`: what is said, as text, JSON or subtitles; clips of any length."""

import argparse
import json
import os
import sys
from pathlib import Path

from mindone_audio.commands import options as shared
from mindone_audio.machine.files import replacing
from mindone_audio.setting_fields import in_words, option

FORMATS = ("txt", "json", "srt", "vtt")
TASKS = ("transcribe", "translate")
TIMESTAMPS = ("segment", "word")
SHORTEST_WINDOW = 1.0  # seconds


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("transcribe", help="write down what is said, of clips of any length")
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="files, globs, URLs or - (standard input)")
    parser.add_argument("--format", choices=FORMATS, default="txt", help="default: txt")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write one file a clip instead of standard output")
    parser.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="cut clips into windows of at most so long (default: the model's window)",
    )
    parser.add_argument("--language", help="of the speech, as en; SeamlessM4T: to write, as eng")
    parser.add_argument(
        "--task", choices=TASKS, default=TASKS[0], help="translate: write English, whatever is spoken (Whisper)"
    )
    parser.add_argument(
        "--timestamps", choices=TIMESTAMPS, default=TIMESTAMPS[0], help="word: the times of words too (Whisper)"
    )
    shared.add_output(parser)
    shared.add_model(parser)
    shared.add_generation(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """0, or 1 where a clip failed."""
    form = "json" if options.json else options.format
    clips = shared.expand(options.clips)
    targets = _targets(clips, options.out, form)
    window = options.window
    if window is not None and not window >= SHORTEST_WINDOW:
        raise shared.WrongUse(f"--window {window:g}: give seconds, at least {SHORTEST_WINDOW:g}")
    pipe = shared.load_pipeline(options, None)
    settings = _settings(options, form, not pipe.tells_times)
    failed = 0
    for clip, target in zip(clips, targets):
        options.signals.check()
        source = shared.clip_source(clip)
        try:
            if form == "txt" and target is None:
                _stream(pipe, clip if len(clips) > 1 else "", source, settings)
                continue
            text = render(clip, pipe(source, **settings)[0], form)
            if target is None:
                print(text, end="", flush=True)
            else:
                with replacing(target) as new:
                    new.write_text(text, encoding="utf-8")
                print(target, file=sys.stderr)
        except (OSError, ValueError) as error:
            options.signals.check()
            print(f"error: {clip}: {in_words(error, option)}", file=sys.stderr)
            failed = 1
    return failed


def _settings(options: argparse.Namespace, form: str, windows: bool) -> dict:
    """The arguments of the pipeline. windows: it cuts clips at quiet places, and does not tell times by itself."""
    from mindone_audio.pipelines.subtitles import SUBTITLE_SECONDS

    settings = {"task": options.task, "generate_kwargs": shared.settings(options)}
    if options.language:
        settings["language"] = options.language
    if windows:
        for name, value, default in (("--task", options.task, TASKS), ("--timestamps", options.timestamps, TIMESTAMPS)):
            if value != default[0]:
                raise shared.WrongUse(f"{name} {value}: this model has no such thing; take a Whisper model")
        settings["window"] = options.window or (SUBTITLE_SECONDS if form in ("srt", "vtt") else None)
    elif options.window is not None:
        raise shared.WrongUse(f"--window {options.window:g}: a Whisper model has windows of its own: leave it out")
    elif options.timestamps == "word":
        settings["return_timestamps"] = "word"
    return settings


def _stream(pipe, name: str, source, settings: dict) -> None:
    lead = f"{name}: " if name else ""
    for delta in pipe(source, stream=True, **settings):
        print(lead + delta, end="", flush=True)
        lead = ""
    print(lead)


def _targets(clips: list[str], folder: Path | None, form: str) -> list[Path | None]:
    """The file of each clip; `WrongUse` where two clips would share one."""
    if folder is None:
        if form in ("srt", "vtt") and len(clips) > 1:
            raise shared.WrongUse(f"{len(clips)} clips make as many {form} files: give a folder with --out DIR")
        return [None] * len(clips)
    folder.mkdir(parents=True, exist_ok=True)
    names = ["stdin" if clip == "-" else Path(os.path.basename(clip.split("?")[0]) or "clip").stem for clip in clips]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise shared.WrongUse(f"several clips would be written to {folder / twice[0]}.{form}: transcribe them apart")
    return [folder / f"{name}.{form}" for name in names]


def render(clip: str, answer: dict, form: str) -> str:
    """A transcription in one of `FORMATS`, ending with a newline."""
    if form == "txt":
        return answer["generated_text"] + "\n"
    if form == "json":
        return json.dumps({"audio": clip} | answer, ensure_ascii=False) + "\n"
    from mindone_audio.pipelines.subtitles import subtitles

    words = [
        {"text": word["word"].strip(), "start": word["start"], "end": word["end"]}
        for chunk in answer["chunks"]
        for word in chunk.get("words", ())
    ]
    return subtitles(words or answer["chunks"], form)

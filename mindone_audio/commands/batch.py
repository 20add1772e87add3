"""`mindone-audio batch`: a manifest of clips to JSONL, resumable, one process or a rank a device."""

import argparse

from mindone_audio.commands.options import add_adapter, add_settings, number


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "batch",
        help="answer many clips: a JSONL manifest, a folder or a glob to JSONL",
        epilog="Exit status: 0 all clips answered, 1 some failed or the job could not go on (a rerun of the same "
        "command continues), 2 wrong use, 130 Ctrl-C, 143 SIGTERM. One of several ranks exits with 0 when its share is "
        "complete, whatever failed in it, because msrun kills the others otherwise; --merge then says 1.",
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="one manifest.jsonl, or folders, globs and clips")
    parser.add_argument("--out", metavar="FOLDER", help="for the results")
    parser.add_argument("--merge", metavar="FOLDER", help="instead: join the parts that several ranks left there")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--task", help="caption (default) or transcribe, for items without a text of their own")
    asked.add_argument("--prompt", help="what to ask about items without a text of their own")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--batch-size", type=int, default=16, metavar="N", help="clips at a time (default: %(default)s)")
    sizes.add_argument("--batch-seconds", type=float, metavar="S", help="instead: seconds of audio at a time")
    parser.add_argument("--model", help="checkpoint folder or Hugging Face id (default: the bundled one)")
    add_adapter(parser)
    parser.add_argument("--device", default="auto", help="auto, ascend, ascend:1 or cpu (default: %(default)s)")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16 (default: the checkpoint's)")
    parser.add_argument("--do-sample", action="store_true", help="sample, one clip at a time; otherwise greedy")
    parser.add_argument("--seed", type=number, help="of the first item, one more for each after it (default: 0)")
    add_settings(parser)
    parser.add_argument("--language", help="of the speech, for families that take one, with --task transcribe")
    parser.add_argument("--long-audio", help='"windows": answer for each window of a clip longer than the model hears')
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode audio (default: 1 to 4)")
    parser.add_argument("--max-errors", type=int, metavar="N", help="stop when more clips than that have failed")
    parser.add_argument("--restart", action="store_true", help="drop the results of an earlier job in --out")
    parser.add_argument("--json", action="store_true", help="totals for scripts")
    parser.set_defaults(run=run, hold_terminate=True)  # the batch at hand is finished first


def run(options: argparse.Namespace) -> int:
    """The exit status that `--help` explains."""
    from mindone_audio.commands.batch_job import batch_command

    def should_stop() -> bool:
        options.signals.check()
        return options.signals.terminated

    return batch_command(options, should_stop)

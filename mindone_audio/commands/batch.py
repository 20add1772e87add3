"""`mindone-audio batch`: a manifest of clips to JSONL, resumable, one process or a rank a device."""

import argparse

from mindone_audio.batch.job import BatchJob
from mindone_audio.commands.options import add_field, add_form, add_generation, number


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "batch",
        help="answer many clips: a JSONL manifest, a folder or a glob to JSONL",
        epilog="Exit status: 0 all clips answered, 1 some failed or the job could not go on (a rerun of the same "
        "command continues), 2 wrong use, 130 Ctrl-C, 143 SIGTERM. One of several ranks exits with 0 when its share is "
        "complete, whatever failed in it, because msrun kills the others otherwise; --merge then says 1.",
    )
    add_field(parser, BatchJob, "inputs", flag="inputs", nargs="*")
    add_field(parser, BatchJob, "out")
    parser.add_argument("--merge", metavar="FOLDER", help="instead: join the parts that several ranks left there")
    asked = parser.add_mutually_exclusive_group()
    add_field(asked, BatchJob, "task")
    add_field(asked, BatchJob, "text", flag="--prompt")
    sizes = parser.add_mutually_exclusive_group()
    add_field(sizes, BatchJob, "batch_size", type=number)
    add_field(sizes, BatchJob, "batch_seconds", type=number)
    for name in ("model", "adapter", "device", "device_memory", "dtype", "long_audio", "restart"):
        add_field(parser, BatchJob, name)
    for name in ("workers", "max_errors"):
        add_field(parser, BatchJob, name, type=number)
    parser.add_argument("--language", help="of the speech, for families that take one, with --task transcribe")
    parser.add_argument("--json", action="store_true", help="totals for scripts")
    add_generation(
        parser,
        do_sample="sample, one clip at a time; otherwise greedy",
        seed="of the first item, one more for each after it (default: 0)",
    )
    add_form(parser)
    parser.set_defaults(run=run, hold_terminate=True)  # the batch at hand is finished first


def run(options: argparse.Namespace) -> int:
    """The exit status that `--help` explains."""
    from mindone_audio.commands.batch_job import batch_command

    def should_stop() -> bool:
        options.signals.check()
        return options.signals.terminated

    return batch_command(options, should_stop)

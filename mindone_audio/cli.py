"""`mindone-audio`: the commands. Each imports what it needs when it runs, so that `doctor` works without MindSpore."""

import argparse
import json
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status. A mistake of the user's is one line on stderr and status 2."""
    parser = argparse.ArgumentParser(prog="mindone-audio", description="Audio-language models on MindSpore.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_doctor, _add_parity, _add_batch):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _add_doctor(commands) -> None:
    parser = commands.add_parser("doctor", help="say whether this machine can run the models, and what is missing")
    parser.add_argument("--device", choices=("auto", "ascend", "npu", "cpu"), default="auto", help="to be used")
    parser.add_argument("--ops", action="store_true", help="instead: run every operation and compare with NumPy")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    if options.ops:
        return _doctor_ops(options)
    from mindone_audio import environment

    report = environment.inspect_environment(device=None if options.device == "auto" else options.device)
    if options.json:
        print(json.dumps(environment.report_as_json(report), indent=1))
    else:
        print(environment.format_report(report))
    return environment.exit_status(report)


def _doctor_ops(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from mindone_audio import device, op_check

    device.set_device(options.device)
    device.prepare()
    results = op_check.check_ops()
    if options.json:
        print(json.dumps([asdict(result) | {"passed": result.passed} for result in results], indent=1))
    else:
        print(op_check.format_results(results))
    return 0 if all(result.passed for result in results) else 2


def _add_parity(commands) -> None:
    parser = commands.add_parser("parity", help="replay what scripts/record_parity.py recorded on PyTorch")
    parser.add_argument("recording", type=Path)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hugging Face id")
    parser.add_argument("--device", default="auto", help="auto, ascend, ascend:1 or cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: the recording's")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=_parity)


def _parity(options: argparse.Namespace) -> int:
    import mindspore as ms

    from mindone_audio import device, parity
    from mindone_audio.models import AutoModelForAudioTextToText

    recording = parity.read_recording(options.recording)
    device.set_device(options.device)
    dtype = getattr(ms, options.dtype or recording.facts.get("dtype", "float32"))
    model = AutoModelForAudioTextToText.from_pretrained(options.model, mindspore_dtype=dtype)
    report = parity.replay(model, recording)
    if options.json:
        print(json.dumps(report.as_json(), indent=1))
    else:
        print(parity.format_report(report, recording))
    return 0 if report.passed else 2


def _add_batch(commands) -> None:
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
    parser.add_argument("--device", default="auto", help="auto, ascend, ascend:1 or cpu (default: %(default)s)")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16 (default: the checkpoint's)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: 128")
    parser.add_argument("--do-sample", action="store_true", help="sample, one clip at a time; otherwise greedy")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--seed", type=int, help="of the first item, one more for each after it (default: 0)")
    parser.add_argument("--num-beams", type=int)
    parser.add_argument("--language", help="of the speech, for families that take one, with --task transcribe")
    parser.add_argument("--long-audio", help='"windows": answer for each window of a clip longer than the model hears')
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode audio (default: 1 to 4)")
    parser.add_argument("--max-errors", type=int, metavar="N", help="stop when more clips than that have failed")
    parser.add_argument("--restart", action="store_true", help="drop the results of an earlier job in --out")
    parser.add_argument("--json", action="store_true", help="totals for scripts")
    parser.set_defaults(run=_batch)


def _batch(options: argparse.Namespace) -> int:
    from mindone_audio.batch.signals import Signals

    with Signals() as signals:
        from mindone_audio.batch.command import batch_command

        return batch_command(options, lambda: signals.terminated)


if __name__ == "__main__":
    sys.exit(main())

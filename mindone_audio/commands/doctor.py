"""`mindone-audio doctor`: versions, devices and operations of this machine."""

import argparse
import json
from pathlib import Path

from mindone_audio.setting_fields import DTYPES, MODEL_HELP, refusal

_REPORT = Path("mindone-audio-report.md")


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("doctor", help="say whether this machine can run the models, and what is missing")
    parser.add_argument("--device", default="auto", help="to be used: auto, ascend, ascend:1 or cpu")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--ops", action="store_true", help="instead: run every operation and compare with NumPy")
    instead.add_argument(
        "--run",
        action="store_true",
        dest="first_run",
        help="instead: ten minutes of checks, one after the other, and a report to attach to an issue",
    )
    parser.add_argument("--time", action="store_true", help="with --ops, also how long kernels of a 7B model take here")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--model", help=f"with --run, whose answers are timed: {MODEL_HELP}")
    parser.add_argument("--dtype", choices=DTYPES, help="with --run, of that model")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"with --run, the report (default: {_REPORT})")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """0 where all is well, 1 for warnings, 2 for errors."""
    if options.time and not options.ops:
        raise refusal("time", " goes with --ops: leave it out, or add --ops")
    if options.first_run:
        return _first_run(options)
    for name in ("model", "dtype", "out"):
        if getattr(options, name) is not None:
            raise refusal(name, " goes with --run: leave it out, or add --run")
    if options.ops:
        return _run_ops(options)
    from mindone_audio.machine import doctor

    report = doctor.inspect_environment(device=options.device)
    if options.json:
        print(json.dumps(doctor.report_as_json(report), indent=1))
    else:
        print(doctor.format_report(report))
    return doctor.exit_status(report)


def _run_ops(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from mindone_audio.machine import affinity, device
    from mindone_audio.proof import op_check, op_times

    affinity.bind_cores(options.device)
    device.set_device(options.device)
    device.prepare()
    results = op_check.check_ops()
    if not options.json:
        print(op_check.format_results(results), flush=True)  # before what comes next, which may end the process
    times = op_times.measure() if options.time else []
    if options.json:
        checked = [asdict(result) | {"passed": result.passed} for result in results]
        timed = {"operations": checked, "times": [asdict(time) for time in times]}
        print(json.dumps(timed if options.time else checked, indent=1))
    elif times:
        print(f"\n{op_times.format_times(times)}")
    return 0 if all(result.passed for result in results) else 2


def _first_run(options: argparse.Namespace) -> int:
    from mindone_audio.machine import doctor
    from mindone_audio.proof import first_run

    if options.json:
        raise refusal("json", " is not for --run, which writes its report to a file: leave it out")
    doctor.device_kind(options.device)  # a wrong name is an error now, and not one of every step
    out = _REPORT if options.out is None else options.out
    out.write_text("")  # a folder that cannot be written is an error now, and not in ten minutes
    chain, outcomes = first_run.steps(options.device, options.model, options.dtype), []
    for outcome in first_run.run(chain):
        outcomes.append(outcome)
        print(f"{outcome.status:<9}{outcome.step.name} ({outcome.seconds:.1f} s)", flush=True)
        if outcome.status == "failed" or outcome.step.name == "answers":
            print("".join(f"         {line}\n" for line in outcome.output.splitlines()[-8:]), end="", flush=True)
    out.write_text(first_run.report(outcomes, chain[len(outcomes) :]), encoding="utf-8")
    print(f"the report is in {out}: look through it before you give it to others")
    states = {outcome.status for outcome in outcomes}
    return 2 if "failed" in states else int("warnings" in states)

"""`mindone-audio doctor`: versions, devices and operations of this machine."""

import argparse
import json


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("doctor", help="say whether this machine can run the models, and what is missing")
    parser.add_argument("--device", choices=("auto", "ascend", "npu", "cpu"), default="auto", help="to be used")
    parser.add_argument("--ops", action="store_true", help="instead: run every operation and compare with NumPy")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """0 where all is well, 1 for warnings, 2 for errors."""
    if options.ops:
        return _run_ops(options)
    from mindone_audio.machine import doctor

    report = doctor.inspect_environment(device=None if options.device == "auto" else options.device)
    if options.json:
        print(json.dumps(doctor.report_as_json(report), indent=1))
    else:
        print(doctor.format_report(report))
    return doctor.exit_status(report)


def _run_ops(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from mindone_audio.machine import affinity, device
    from mindone_audio.proof import op_check

    affinity.bind_cores(options.device)
    device.set_device(options.device)
    device.prepare()
    results = op_check.check_ops()
    if options.json:
        print(json.dumps([asdict(result) | {"passed": result.passed} for result in results], indent=1))
    else:
        print(op_check.format_results(results))
    return 0 if all(result.passed for result in results) else 2

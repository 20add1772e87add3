"""`mindone-audio parity`: replay a recording of PyTorch."""

import argparse
import json
from pathlib import Path

from mindone_audio.commands.options import add_device
from mindone_audio.machine import affinity


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("parity", help="replay what scripts/record_parity.py recorded on PyTorch")
    parser.add_argument("recording", type=Path)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hugging Face id")
    add_device(parser, dtype_help="default: the recording's")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """0 where every stage is within tolerance and the tokens agree, 2 otherwise."""
    affinity.bind_cores(options.device)
    import mindspore as ms

    from mindone_audio.machine import device
    from mindone_audio.models import AutoModelForAudioTextToText
    from mindone_audio.proof import parity

    recording = parity.read_recording(options.recording)
    device.set_device(options.device, options.device_memory)
    dtype = getattr(ms, options.dtype or recording.facts.get("dtype", "float32"))
    model = AutoModelForAudioTextToText.from_pretrained(options.model, mindspore_dtype=dtype)
    report = parity.replay(model, recording)
    if options.json:
        print(json.dumps(report.as_json(), indent=1))
    else:
        print(parity.format_report(report, recording))
    return 0 if report.passed else 2

"""The command line of `scripts/benchmark.py`."""

import argparse
import importlib.metadata
import sys

from benchmark.batch import add_batch
from benchmark.common import BenchmarkError
from benchmark.constrained import add_constrained
from benchmark.features import add_features
from benchmark.finetune import add_finetune
from benchmark.generate import add_generate
from benchmark.load import add_load
from benchmark.long_audio import add_long_audio
from benchmark.lookup import add_lookup
from benchmark.readme import add_readme
from benchmark.real import add_real
from benchmark.serve import add_serve
from benchmark.speech import add_tts
from benchmark.start import add_start
from benchmark.transcribe import add_transcribe
from benchmark.voice import add_voice
from benchmark.whisper import add_whisper

DESCRIPTION = (
    """Measure this package against transformers on PyTorch: same checkpoint, clip, tokens, threads and dtype (fp32)."""
)


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns its exit status, 2 for wrong use, which is told in one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--readme"]:
        arguments = ["readme", *arguments[1:]]
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    adds = (
        add_generate,
        add_start,
        add_load,
        add_batch,
        add_features,
        add_finetune,
        add_serve,
        add_constrained,
        add_lookup,
        add_whisper,
        add_transcribe,
        add_tts,
        add_voice,
        add_real,
        add_long_audio,
    )
    for add in (*adds, add_readme):
        add(subparsers)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (BenchmarkError, OSError, importlib.metadata.PackageNotFoundError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    return 0

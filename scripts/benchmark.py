"""Measure this package against transformers on PyTorch: same checkpoint, clip, tokens, threads and dtype (fp32).

    python scripts/benchmark.py generate                      # the bundled demo checkpoint
    python scripts/benchmark.py generate --random small       # 12 + 12 layers of 512, random weights
    python scripts/benchmark.py generate --model DIR --audio clip.wav --prompt "What do you hear?" --json out.json
    python scripts/benchmark.py generate --random small --filled 512 1024 2048 4096 8192 --plot long.png
    python scripts/benchmark.py start                         # first answer, imports, compilations
    python scripts/benchmark.py load --size 1.7b --mindone    # from the disk to parameters
    python scripts/benchmark.py batch --clips 64              # a batch job against one clip after the other
    python scripts/benchmark.py features                      # log-mels
    python scripts/benchmark.py finetune --random small       # LoRA steps, and memory by the length of the prompts
    python scripts/benchmark.py readme                        # all that README's table shows, and the table

Machines are shared and noisy, so an absolute time says little. Every contender lives in a process of its own, all of
them take turns within a round, and what counts is the median over the rounds of the ratio within a round. Needs
PyTorch (tests/requirements.txt).
"""

import argparse
import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also in processes that are started, which import this

from benchmark_batch import add_batch  # noqa: E402
from benchmark_common import BenchmarkError  # noqa: E402
from benchmark_features import add_features  # noqa: E402
from benchmark_finetune import add_finetune  # noqa: E402
from benchmark_generate import add_generate  # noqa: E402
from benchmark_load import add_load  # noqa: E402
from benchmark_readme import add_readme  # noqa: E402
from benchmark_start import add_start  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns its exit status, 2 for wrong use, which is told in one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--readme"]:
        arguments = ["readme", *arguments[1:]]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_generate, add_start, add_load, add_batch, add_features, add_finetune, add_readme):
        add(subparsers)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (BenchmarkError, OSError, importlib.metadata.PackageNotFoundError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

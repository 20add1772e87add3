"""What the subcommands of `benchmark.py` share: ratios within a round, figures, tables, plots, options.

Machines are shared and noisy, so an absolute time says little. Every contender lives in a process of its own, all of
them take turns within a round, and what counts is the median over the rounds of the ratio within a round.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mindspore", "mindone", "torch", "transformers", "numpy")


class BenchmarkError(Exception):
    """What the user can correct: printed as one line."""


@dataclass(frozen=True)
class Figure:
    """A row of the table of figures: a name with its unit, medians, and what they may be.

    ratio: the median of the ratios within a round. limit: of the ratio, or of ours where there is no ratio; the value
    may be at most that, or at least with `at_least`. torch: PyTorch's median; None where there is nothing to compare.
    """

    name: str
    ours: float
    torch: float | None = None
    ratio: float | None = None
    limit: float | None = None
    at_least: bool = False

    @property
    def missed(self) -> bool:
        """Whether there is a limit that the figure does not keep."""
        if self.limit is None:
            return False
        value = self.ours if self.ratio is None else self.ratio
        return not (value >= self.limit if self.at_least else value <= self.limit)  # NaN keeps no limit


def paired(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours divided by theirs in each round."""
    return [a / b for a, b in zip(ours, theirs) if b > 0]


def better(*contenders: Sequence[float]) -> list[float]:
    """The least of several contenders in each round."""
    return [min(values) for values in zip(*contenders)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    scale: float = 1,
    limit: float | None = None,
    at_least: bool = False,
) -> Figure:
    """A figure of two series over the same rounds, shown in units `scale` times as small."""
    medians = statistics.median(ours) * scale, statistics.median(theirs) * scale
    return Figure(name, *medians, statistics.median(paired(ours, theirs)), limit, at_least)


def machine(threads: int) -> dict:
    """What a figure depends on."""
    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    versions = {"Python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"versions": versions, "cpus": cores(), "cpu": cpu, "threads": threads, "load": os.getloadavg()[0]}


def machine_line(found: dict) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['cpus']} cores ({found['cpu']}), threads of each: {found['threads']}; {versions}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) for row in rows]


def cells(figure: Figure) -> list[str]:
    """A figure as the cells of a row: name, ours, PyTorch, ratio, limit."""
    limit = ""
    if figure.limit is not None:
        limit = f"{'at least' if figure.at_least else 'at most'} {figure.limit:g}" + ", missed" * figure.missed
    values = (figure.ours, figure.torch, figure.ratio)
    shown = ["" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}" for value in values]
    return [figure.name, *shown, limit]


def finish(options: argparse.Namespace, content: dict, figures: Sequence[Figure]) -> None:
    """Print the figures, and write everything where --json asks for it.

    The table is made of the "figures" of the JSON files, their "machine" and, where there is one, their "note".
    """
    print("\n" + "\n".join(columns([["", "ours", "PyTorch", "ratio", "limit"], *map(cells, figures)])))
    if options.json:
        content = {**content, "figures": [asdict(figure) for figure in figures]}
        unfinished = Path(f"{options.json}.part")  # an interrupted run leaves no half of a file
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(options.json)


def plot(file: str, title: str, unit: str, series: Mapping[str, Mapping], along: str = "") -> None:
    """A PNG: lines over numbers where `along` names the axis below, else bars; series by contender, {place: value}."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    places = list(dict.fromkeys(place for values in series.values() for place in values))
    for number, (name, values) in enumerate(series.items()):
        if along:
            axes.plot(list(values), list(values.values()), marker="o", label=name)
        else:
            width = 0.8 / len(series)
            left = [places.index(place) + width * number for place in values]
            axes.bar(left, list(values.values()), width, label=name)
    if not along:
        axes.set_xticks([place + 0.4 - 0.4 / len(series) for place in range(len(places))], map(str, places))
    axes.set(title=title, xlabel=along, ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_least(low: int) -> Callable[[str], int]:
    """A whole number for argparse."""

    def integer(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
        return int(text)

    return integer


def add_common(parser: argparse.ArgumentParser, run: Callable, threads: bool = True) -> None:
    """The options of every subcommand that measures."""
    parser.add_argument("--rounds", type=at_least(1), default=5, help="of all contenders (default: %(default)s)")
    if threads:
        help = "of each (default: the cores, %(default)s)"
        parser.add_argument("--threads", type=at_least(1), default=cores(), help=help)
    parser.add_argument("--json", metavar="FILE", help="also write all figures there")
    parser.add_argument("--plot", metavar="FILE", help="also draw them: a PNG")
    parser.set_defaults(run=run)


def check_common(options: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before anything is measured."""
    if getattr(options, "threads", 1) > cores():
        raise BenchmarkError(f"--threads {options.threads} is not between 1 and the {cores()} cores")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise BenchmarkError("--plot needs matplotlib: pip install -r tests/requirements.txt")
    for name in ("json", "plot"):
        file = getattr(options, name)
        if file and not Path(file).absolute().parent.is_dir():
            raise BenchmarkError(f"--{name} {file}: there is no folder {Path(file).parent}")

"""`benchmark.py generate --filled`: how long a decode step takes with ever more tokens in the cache."""

import argparse
import statistics

from benchmark.common import Figure, better, columns, compare, finish, plot, spread
from benchmark.contenders import contender
from benchmark.processes import Team

NAMES = ("ours", "torch eager", "torch sdpa")
GROWTH_LIMIT = 1.1  # ours to PyTorch's, from 512 to 8192 tokens
LIMITED = (512, 8192)


def growth(steps: dict[str, list[float]], least: int, most: int) -> list[float]:
    """How many times as long as at `least` filled positions a step takes at `most`, in each round."""
    return [long / short for short, long in zip(steps[str(least)], steps[str(most)])]


def better_torch(results: dict[str, dict[str, list[float]]], length: int) -> list[float]:
    """The better of PyTorch's times at a filled length, in each round."""
    return better(*(results[name][str(length)] for name in NAMES[1:]))


def growths(results: dict[str, dict[str, list[float]]], least: int, most: int) -> dict[str, list[float]]:
    """`growth` of each contender, and of the better of PyTorch's times in a round."""
    torch = {str(length): better_torch(results, length) for length in (least, most)}
    return {
        **{name: growth(steps, least, most) for name, steps in results.items()},
        "torch": growth(torch, least, most),
    }


def report_long(options: argparse.Namespace, arguments: tuple, setting: dict, label: str) -> None:
    """Measure, print, write and draw steps at the lengths of --filled, batch 1."""
    lengths = sorted(set(options.filled))
    with Team({name: (contender, name, *arguments) for name in NAMES}) as team:
        team.take_turns(lengths, 1)  # compiles
        results = team.take_turns(lengths, options.rounds)
    medians = {name: {n: 1e3 * statistics.median(steps[str(n)]) for n in lengths} for name, steps in results.items()}
    rows = [[f"{n} tokens, ms", *(f"{medians[name][n]:.2f}" for name in NAMES)] for n in lengths]
    grown = growths(results, lengths[0], lengths[-1])
    rows.append([f"{lengths[-1]} / {lengths[0]}", *(f"{statistics.median(grown[name]):.3f}" for name in NAMES)])
    print(f"\nA step at so many filled positions, medians of {options.rounds} rounds")
    print("\n".join(columns([["", *NAMES], *rows])))
    ratio = [a / b for a, b in zip(grown["ours"], grown["torch"])]
    limit = GROWTH_LIMIT if (lengths[0], lengths[-1]) == LIMITED and options.random == "small" else None
    name = f"a step's time at {lengths[-1]} tokens / at {lengths[0]}, {label}"
    figures = [
        compare(f"a step at {n} tokens, {label}, ms", results["ours"][str(n)], better_torch(results, n), 1e3)
        for n in lengths
    ]
    medians_grown = [statistics.median(grown[side]) for side in ("ours", "torch")]
    figures.append(Figure(name, *medians_grown, statistics.median(ratio), limit))
    content = {**setting, "filled": results, "growth": {side: spread(values) for side, values in grown.items()}}
    finish(options, content, figures)
    if options.plot:
        plot(options.plot, f"decode step, {label}, batch 1", "ms", medians, along="tokens in the cache")

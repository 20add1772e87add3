"""What `benchmark.py generate` says about its measurements: ratios, limits, tables."""

import statistics

from benchmark.common import Figure, better, columns, compare, machine_line, paired, spread

BATCH_LENGTHS = (32, 256)  # tokens of the shortest and the longest prompt of a batch
PYTORCH = ("torch eager", "torch sdpa")
COPY, BETTER = "plain copy", "better of torch"
TIMES = {  # figure: its name in the table, and what turns seconds into the unit shown
    "prefill": ("encoder + prefill, ms", 1e3),
    "token": ("generate, ms/token", 1e3),
    "step": ("bare decode step, ms/token", 1e3),
    "compile": ("compile (first call's extra), s", 1),
    "memory": ("peak memory, MiB", 2**-20),
}
# What the medians of ratios may be, by size and batch: of ours to the better of PyTorch's times in a round; bandwidth:
# at least that share of a plain copy's; memory: generation's peak to parameters and cache.
LIMITS = {
    ("small", 1): {"token": 0.7, "step": 0.7, "memory": 1.25},
    ("small", 8): {"token": 0.8, "step": 0.8, "memory": 1.25},
    ("small", 16): {"token": 0.8, "step": 0.8, "memory": 1.25},
    ("1b", 1): {"token": 1.0, "step": 1.0, "bandwidth": 0.8, "memory": 1.25},
    ("phi4", 1): {"token": 0.8},
    ("whisper-1b", 1): {"prefill": 0.9, "memory": 1.25},
}


def as_list(value) -> list:
    """A series of one where there is no round."""
    return value if isinstance(value, list) else [value]


def ratios(ours: dict, theirs: dict) -> dict[str, dict[str, float]]:
    """Ours divided by theirs, for each figure: the median over the rounds, and the least and the most."""
    both = {figure: paired(as_list(ours[figure]), as_list(theirs[figure])) for figure in TIMES}
    return {figure: spread(values) for figure, values in both.items() if values}


def better_of(results: dict[str, dict]) -> dict[str, list]:
    """For each figure the better of PyTorch's attention implementations in each round."""
    return {figure: better(*(as_list(results[name][figure]) for name in PYTORCH)) for figure in TIMES}


def bandwidths(results: dict[str, dict], weights: int) -> tuple[list[float], list[float]]:
    """Bytes a second in each round: of weights (bytes) read by our step, and by a plain copy."""
    return tuple([weights / seconds for seconds in results[name]["step"]] for name in ("ours", COPY))


def make_figures(results: dict[str, dict], limits: dict, label: str, whole: str, weights: int) -> list[Figure]:
    """Rows of the table: those with a limit, or all of a model of another size; weights: bytes that a step reads.

    label: decoder and input; whole: the same with the encoder, where it is at work.
    """
    torch, ours = better_of(results), results["ours"]
    names = {
        "prefill": f"prefill, {whole}, ms",
        "token": f"decode, {label}, generate, ms/token",
        "step": f"decode, {label}, bare step, ms/token",
    }
    limits = limits or dict.fromkeys([*names, *["bandwidth"] * (COPY in results), "memory"])
    figures = [compare(names[n], ours[n], torch[n], 1e3, limits[n]) for n in names if n in limits]
    if COPY in results and "bandwidth" in limits:
        name = f"bandwidth of decode's weights, {label}, GB/s; PyTorch: plain copy"
        figures.append(compare(name, *bandwidths(results, weights), 1e-9, limits["bandwidth"], at_least=True))
    if "memory" in limits:
        name = f"peak memory, {whole}, MiB; ratio: to parameters + cache"
        held = {"ours": ours["grown"] * 2**-20, "ratio": ours["grown"] / ours["needed"]}
        figures.append(Figure(name, **held, limit=limits["memory"]))
    return figures


def report(results: dict[str, dict], compared: dict[str, dict]) -> list[str]:
    """The table: a line for each figure, medians of each contender, then ratios with their range."""
    shown = {name: result for name, result in results.items() if name != COPY}
    rows = [["", *shown, *(f"ours / {name}" for name in compared)]]
    for figure, (label, scale) in TIMES.items():
        row = [label]
        for result in shown.values():
            row.append(f"{statistics.median(as_list(result[figure])) * scale:.4g}")
        for ratio in (ratio.get(figure) for ratio in compared.values()):
            if ratio is None:
                row.append("-")
            elif ratio["min"] == ratio["max"]:
                row.append(f"{ratio['median']:.2f}")
            else:
                row.append(f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
        rows.append(row)
    return columns(rows)


def describe(setting: dict) -> list[str]:
    """What is measured, on what."""
    if setting["batch"] > 1:
        shortest, longest = BATCH_LENGTHS
        given = f"{setting['batch']} prompts of {shortest} to {longest} text tokens, padded on the left"
    else:
        given = f"{setting['clip_seconds']:g} s clip, {setting['prompt_tokens']} prompt tokens with audio"
    lines = [
        f"model    {setting['model']}, fp32, batch {setting['batch']}, greedy",
        f"input    {given}, {setting['new_tokens']} new tokens",
        f"machine  {machine_line(setting['machine'])}; load {setting['machine']['load']:.1f} at the start",
    ]
    if setting["note"]:
        lines.insert(1, f"         {setting['note']}")
    if setting["machine"]["load"] > setting["machine"]["cpus"] / 2:
        advice = "; try --threads 1 too" if setting["machine"]["threads"] > 1 else ""
        lines.append(f"         busy: other work slows most whoever's threads wait for each other{advice}")
    return lines


def compare_tokens(results: dict[str, dict]) -> dict[str, int | None]:
    """For each other contender, the first place where its tokens differ from ours; None where all are equal."""
    ours = results["ours"]["tokens"]
    return {
        name: next((i for i, (a, b) in enumerate(zip(ours, result["tokens"])) if a != b), None)
        for name, result in results.items()
        if name not in ("ours", COPY)
    }

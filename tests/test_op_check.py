"""`doctor --ops` covers every operation, passes here, and finds a wrong kernel."""

import inspect
import json
import re

import numpy as np
import pytest

from mindone_audio import cli
from mindone_audio.backbone import conv_ops, ops
from mindone_audio.backbone.cache import KVCache
from mindone_audio.conversion import share
from mindone_audio.machine import device
from mindone_audio.machine.chips import SPEEDS
from mindone_audio.proof import experiments, op_cases, op_check, op_times


def test_every_operation_has_a_case():
    functions = inspect.getmembers(ops, inspect.isfunction) + inspect.getmembers(conv_ops, inspect.isfunction)
    public = {name for name, _ in functions if not name.startswith("_")}
    assert {"attention", "conv1d"} <= public
    checked = {case.name.split(",")[0] for case in op_cases.cases()}
    assert public <= checked


@pytest.mark.parametrize("compiled", [True, False])
def test_all_pass_here(compiled):
    results = op_check.check_ops(compiled)
    assert [result.name for result in results if not result.passed] == []
    assert {result.dtype for result in results} == {"float32"}


def test_wrong_and_failing_kernels_are_reported(monkeypatch, capsys):
    def wrong(x):
        return ops.silu(x) * 1.01

    def failing(x):
        raise RuntimeError(
            "no such kernel\nmore\n\n" + "-" * 20 + "\n- C++ Call Stack: (For framework developers)\nx.cc:1"
        )

    cases = {case.name: case for case in op_cases.cases()}
    changed = [
        op_cases.Case("silu", wrong, cases["silu"].reference, cases["silu"].floats),
        op_cases.Case("gelu", failing, cases["gelu"].reference, cases["gelu"].floats),
        op_cases.Case("merge_heads", ops.gelu, cases["merge_heads"].reference, cases["merge_heads"].floats),
    ]
    monkeypatch.setattr(op_check, "cases", lambda dtype: changed)
    monkeypatch.setattr(op_check, "EXPERIMENTS", ())
    assert cli.main(["doctor", "--ops", "--device", "cpu"]) == 2
    text = capsys.readouterr().out
    assert "OUTSIDE" in text and text.count("FAILED") == 2 and "0 of 3 within tolerance" in text
    assert "no such kernel more" in text and "C++" not in text  # codes are below the first line
    assert cli.main(["doctor", "--ops", "--device", "cpu", "--json"]) == 2
    assert [entry["passed"] for entry in json.loads(capsys.readouterr().out)] == [False] * 3


@pytest.mark.parametrize("speed", [None, SPEEDS["910B3"]])
def test_kernels_are_timed(speed, monkeypatch, capsys):
    """Beside the least time, where the chip's figures are published; one that fails costs its own line."""

    def failing(x):
        raise RuntimeError("no such kernel")

    by_name = {str(timed.kernel): timed for timed in op_times.kernels("Float32")}
    add, product = by_name["Add 1x4096 1x4096"], by_name["MatMul 1x4096 4096x4096"]
    silu = op_times.Timed(by_name["SiLU 1x11008"].kernel, failing)
    monkeypatch.setattr(op_times, "kernels", lambda dtype: [add, product, silu])
    monkeypatch.setattr(op_times, "_speed", lambda dtype: speed)
    monkeypatch.setattr(op_times, "_SECONDS", 0)
    monkeypatch.setattr(op_check, "cases", lambda dtype: [])
    monkeypatch.setattr(op_check, "EXPERIMENTS", [experiments.nan_is_cleared])
    assert cli.main(["doctor", "--ops", "--time", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert re.search(
        r"^MatMul 1x4096 4096x4096 +Float32 +[\d.]+ µs +" + ("—" if speed is None else r"42\.0 µs"), lines[1]
    )
    assert lines[2].endswith("FAILED: 'no such kernel'")
    assert cli.main(["doctor", "--ops", "--time", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [entry["passed"] for entry in report["operations"]] == [True]
    first, second, third = report["times"]
    assert first["measured"] < second["measured"] and third["measured"] is None
    moved = 4 * (4096 * 4096 + 2 * 4096)
    assert second["gigabytes"] == pytest.approx(moved / second["measured"] / 1e3)
    assert second["floor"] == (None if speed is None else pytest.approx(moved / speed.bandwidth * 1e6))


def test_the_report_on_versions(capsys):
    assert cli.main(["doctor", "--device", "cpu"]) in (0, 1)
    assert "mindspore" in capsys.readouterr().out
    assert cli.main(["doctor", "--device", "cpu", "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["packages"]["numpy"]


def broken_cache(monkeypatch):
    monkeypatch.setattr(experiments, "_host", lambda table: np.ones(table.shape, np.float32))


def kept_nan(monkeypatch):
    def clear(self):
        return None

    monkeypatch.setattr(KVCache, "clear", clear)


def late_copies(monkeypatch):
    monkeypatch.setattr(device, "tensor", lambda array: LATE.append(share(array)) or LATE[-1])
    monkeypatch.setattr(experiments, "one_graph", lambda cell, what: lambda x: Late(x))


def wrong_slot(monkeypatch):
    def insert(self, row, source, columns):
        return None

    monkeypatch.setattr(KVCache, "insert", insert)


def no_kernel(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("")

    monkeypatch.setattr(experiments.ops, "embed", fail)


LATE = []


class Late:
    """A graph's output that is computed when it is read, from an argument that has changed by then."""

    def __init__(self, x):
        self.x = LATE[-1]

    def astype(self, dtype):
        return self.x


@pytest.mark.parametrize(
    ("fault", "name", "said"),
    [
        (broken_cache, "cache_between_graphs", "WRONG: what one graph writes is not what the graph reads"),
        (wrong_slot, "sequences_are_copied", "WRONG: a sequence that was copied into a slot is not what it was"),
        (kept_nan, "nan_is_cleared", "WRONG: a NaN in the cache stays"),
        (late_copies, "arguments_may_change", "WRONG: a graph reads an argument after it has returned"),
        (no_kernel, "interpreted_equals_compiled", "FAILED: RuntimeError"),
    ],
)
def test_an_experiment_tells_what_is_wrong(fault, name, said, monkeypatch):
    fault(monkeypatch)
    monkeypatch.setattr(op_check, "cases", lambda dtype: [])
    monkeypatch.setattr(op_check, "EXPERIMENTS", [getattr(experiments, name)])
    results = op_check.check_ops()
    text = op_check.format_results(results)
    assert said in text and name in text and "0 of 1 within tolerance" in text
    assert not results[0].passed

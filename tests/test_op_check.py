"""`doctor --ops` covers every operation, passes here, and finds a wrong kernel."""

import inspect
import json

import pytest

from mindone_audio import cli
from mindone_audio.backbone import ops
from mindone_audio.proof import op_check


def test_every_operation_has_a_case():
    public = {name for name, _ in inspect.getmembers(ops, inspect.isfunction) if not name.startswith("_")}
    checked = {case.name.split(",")[0] for case in op_check.cases()}
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
        raise RuntimeError("no such kernel\nmore")

    cases = {case.name: case for case in op_check.cases()}
    changed = [
        op_check.Case("silu", wrong, cases["silu"].reference, cases["silu"].floats),
        op_check.Case("gelu", failing, cases["gelu"].reference, cases["gelu"].floats),
        op_check.Case("merge_heads", ops.gelu, cases["merge_heads"].reference, cases["merge_heads"].floats),
    ]
    monkeypatch.setattr(op_check, "cases", lambda dtype: changed)
    assert cli.main(["doctor", "--ops", "--device", "cpu"]) == 2
    text = capsys.readouterr().out
    assert "OUTSIDE" in text and text.count("FAILED") == 2 and "0 of 3 within tolerance" in text
    assert cli.main(["doctor", "--ops", "--device", "cpu", "--json"]) == 2
    assert [entry["passed"] for entry in json.loads(capsys.readouterr().out)] == [False] * 3


def test_the_report_on_versions(capsys):
    assert cli.main(["doctor", "--device", "cpu"]) in (0, 1)
    assert "mindspore" in capsys.readouterr().out
    assert cli.main(["doctor", "--device", "cpu", "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["packages"]["numpy"]

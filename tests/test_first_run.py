"""`doctor --run`: the chain of checks, what a step that fails costs, and a report without personal data."""

import getpass
import os
import socket
from pathlib import Path

import pytest

from mindone_audio import cli
from mindone_audio.proof import first_run
from mindone_audio.proof.first_run import Step

FINE = Step("fine", ("-c", "print('all is well')"), 60)
OTHERS = {
    "wrong": (Step("wrong", ("-c", "raise SystemExit('a kernel is wrong')"), 60), "a kernel is wrong"),
    "crash": (
        Step("crash", ("-c", "import os; print('here', flush=True); os.abort()"), 60),
        "it crashed, exit status -6",
    ),
    "hang": (
        Step("hang", ("-c", "import time; print('before', flush=True); time.sleep(60)"), 1),
        "before\n\nnot done after 1 s: it was ended",
    ),
    "unsaid": (Step("unsaid", ("-c", "print('installed, not well')"), 60, expected="successfully"), "not well"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("needed", [False, True])
def test_a_step_costs_its_own_result(name, needed, monkeypatch, capsys, tmp_path):
    step, said = OTHERS[name]
    chain = [FINE, Step(step.name, step.arguments, step.limit, step.expected, needed), Step("last", FINE.arguments, 60)]
    monkeypatch.setattr(first_run, "steps", lambda *arguments: chain)
    assert cli.main(["doctor", "--run", "--device", "cpu", "--out", str(tmp_path / "report.md")]) == 2
    printed, report = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    assert "## fine: ok, " in report and "all is well" in report
    assert f"## {name}: failed, " in report and said in report and said.splitlines()[-1] in printed
    assert ("Fatal Python error: Aborted" in report) is (name == "crash")  # and in which line
    assert ("last: left out, since MindSpore does not run" if needed else "## last: ok") in report


def test_warnings_of_doctor_are_no_failure(monkeypatch, tmp_path):
    chain = [FINE, Step("versions", ("-c", "raise SystemExit(1)", "doctor"), 60)]
    monkeypatch.setattr(first_run, "steps", lambda *arguments: chain)
    assert cli.main(["doctor", "--run", "--out", str(tmp_path / "report.md")]) == 1
    assert "versions: warnings" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_the_chain_on_this_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parent.parent)
    report = tmp_path / "report.md"
    assert cli.main(["doctor", "--run", "--device", "cpu", "--out", str(report)]) == 0, capsys.readouterr().out
    text = report.read_text()
    assert text.count(": ok, ") == 5 and "failed" not in text
    for part in ("has been installed on platform [CPU] successfully", "within tolerance", "tokens      4 of 4 equal"):
        assert part in text
    assert "first answer: " in text and "a token: " in text and str(Path.cwd()) not in text


def test_a_report_has_no_personal_data(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "mueller")
    monkeypatch.setattr(socket, "gethostname", lambda: "npu-17")
    monkeypatch.setattr(os.path, "expanduser", lambda path: "/data/people/mueller")
    monkeypatch.setattr(os, "getcwd", lambda: "/data/secret project")
    text = first_run.without_personal_data(
        "/data/people/mueller/model by mueller on npu-17, /home/anna/x:/home/anna, /data/secret project/clip.wav, "
        "hf_abcdefghijkl, a.b@example.org, 192.168.3.44, 10.0.0.7, 172.20.1.1, 00:1A:2b:3c:4d:5e, "
        "MindSpore 2.10.0, driver 25.5.0.1, 127.0.0.1, muellerite, 0000:C1:00.0"
    )
    assert text == (
        "~/model by <user> on <host>, /home/<user>/x:/home/<user>, <here>/clip.wav, "
        "<token>, <address>, <address>, <address>, <address>, <address>, "
        "MindSpore 2.10.0, driver 25.5.0.1, 127.0.0.1, muellerite, 0000:C1:00.0"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "somewhere"], "error: --model goes with --run: leave it out, or add --run"),
        (["--ops", "--out", "x"], "error: --out goes with --run: leave it out, or add --run"),
        (["--time"], "error: --time goes with --ops: leave it out, or add --ops"),
        (["--run", "--time"], "error: --time goes with --ops: leave it out, or add --ops"),
        (["--run", "--json"], "error: --json is not for --run"),
        (["--run", "--device", "abacus"], "error: unknown device 'abacus': use one of auto, cpu, ascend, npu"),
        (["--run", "--out", "/nowhere/at/all.md"], "No such file or directory: '/nowhere/at/all.md'"),
    ],
)
def test_wrong_use(options, said, capsys):
    assert cli.main(["doctor", *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_model_that_is_not_there_fails_its_step_alone():
    step = first_run.steps("cpu", "./no such model", None)[-1]
    outcome = next(first_run.run([step]))
    assert outcome.status == "failed" and "no checkpoint folder './no such model'" in outcome.output

"""The faults that Ascend users ran into, each put on a good machine: doctor finds it and names it; and all of them."""

import json
import random
import re
from pathlib import Path

import pytest
from fake_machine import (
    KERNELS,
    TOOLKIT_82,
    another_te,
    bare_machine,
    chip,
    codes,
    found,
    good_machine,
    newer_mindspore,
    npu_table,
    remove,
    set_to,
    with_plugin,
)
from test_npu_smi import SMI_A3

from mindone_audio.machine.doctor import (
    ERROR,
    INFO,
    OK,
    VARIABLES,
    WARNING,
    exit_status,
    format_report,
    inspect_environment,
    report_as_json,
)
from mindone_audio.machine.doctor.finding import REQUIRED
from mindone_audio.machine.doctor.kinds import KINDS

LEVELS = {INFO: "Info", WARNING: "Warning", ERROR: "Error", REQUIRED: "Error or warning"}
PAGE = Path(__file__).parents[1] / "docs" / "npu-troubleshooting.md"
BUSY = npu_table(used={0: 65000}, processes=[(0, 4123, "python", 60000), (0, 4124, "", 700)])


@pytest.fixture
def machine(tmp_path):
    return good_machine(tmp_path)


def test_a_good_machine_has_nothing_to_say(machine):
    report = machine.report("ascend")
    assert codes(report) == set() and exit_status(report) == 0
    assert codes(machine.report()) == set()
    assert len({finding.code for finding in report.findings}) == len(report.findings)


# What 14 machines had, of which doctor once called 12 well.
PROBE = [
    (lambda m: chip(m, "310P3"), "chip-without-bfloat16", WARNING, "--dtype float16"),
    (lambda m: chip(m, "910A"), "chip-default-graph-engine", WARNING, "MindSpore 2.10"),
    (lambda m: setattr(m, "smi", BUSY), "npu-memory-occupied", WARNING, "export ASCEND_RT_VISIBLE_DEVICES=1,2,3,4"),
    (lambda m: m.nodes(), "device-node-missing", ERROR, "--device /dev/davinci0"),
    (
        lambda m: remove(m, "/dev/devmm_svm", "/dev/hisi_hdc"),
        "device-helper-missing",
        ERROR,
        "--device /dev/devmm_svm --device /dev/hisi_hdc",
    ),
    (
        lambda m: (m.nodes(0, 1), set_to(m, ASCEND_RT_VISIBLE_DEVICES="6,7")),
        "visible-devices-beyond",
        ERROR,
        "unset ASCEND_RT_VISIBLE_DEVICES",
    ),
    (lambda m: another_te(m), "te-of-another-cann", WARNING, "/opt/cann-8.5.0/python/site-packages"),
    (
        lambda m: set_to(m, LD_LIBRARY_PATH=f"{TOOLKIT_82}/lib64"),
        "driver-libraries-not-found",
        ERROR,
        "export LD_LIBRARY_PATH=/usr/local/Ascend/driver/lib64/driver:/usr/local/Ascend/driver/lib64/common:",
    ),
    (lambda m: remove(m, KERNELS), "ops-package-missing", ERROR, "Ascend-cann-kernels-910b"),
    (lambda m: remove(m, "/etc/ascend_install.info"), "install-info-missing", WARNING, "-v /etc/ascend_install.info"),
    (lambda m: remove(m, f"{TOOLKIT_82}/compiler"), "cann-without-compiler", ERROR, "Ascend-cann-toolkit"),
    (
        lambda m: (m.write("/opt/lib/libx.so"), set_to(m, LD_PRELOAD="/opt/lib/libx.so")),
        "preload-foreign",
        WARNING,
        "unset LD_PRELOAD",
    ),
    (lambda m: newer_mindspore(m, driver="25.0.RC1"), "pair-unpublished", WARNING, "CANN 9.1"),
    (lambda m: setattr(m, "environ", {"HOME": "/home/user"}), "cann-not-sourced", ERROR, "source /usr/local/Ascend"),
]


@pytest.mark.parametrize("spoil, code, level, action", PROBE, ids=[row[1] for row in PROBE])
def test_the_faults_of_the_probe(machine, spoil, code, level, action):
    spoil(machine)
    for device in (None, "ascend"):
        report = machine.report(device)
        finding = found(report, code)[0]
        assert finding.level == level and action in finding.action
        assert exit_status(report) == {WARNING: 1, ERROR: 2}[level]
        text = format_report(report)
        assert f"[{code}]" in text and finding.symptom in text
        assert str(machine.root) not in text


# All of them


def test_a_machine_without_npu_is_told_one_thing(tmp_path):
    assert codes(bare_machine(tmp_path).report()) == {"no-npu"}
    assert codes(bare_machine(tmp_path).report("cpu")) == set()


def test_every_finding_has_a_code(machine):
    another_te(machine)
    machine.environ["ASCEND_RT_VISIBLE_DEVICES"] = "9, 10"
    plain = report_as_json(machine.report())
    assert {finding["code"] for finding in plain["findings"] if finding["level"] != OK} <= set(KINDS)
    assert all(re.fullmatch(r"[a-z0-9'./_-]+", finding["code"]) for finding in plain["findings"])
    assert all(finding["symptom"] and finding["action"] for finding in plain["findings"] if finding["level"] != OK)


def test_kinds_are_told_apart_by_their_codes():
    for code, kind in KINDS.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", code) and kind.action and kind.found


def sections() -> dict[str, str]:
    """The entries of the page of troubles, by their codes."""
    parts = re.split(r"^### `?([a-z0-9-]+)`?$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def test_the_page_has_an_entry_for_each_kind_and_no_other():
    entries = sections()
    assert set(entries) == set(KINDS)
    plain = {code: " ".join(text.split()) for code, text in entries.items()}
    for code, kind in KINDS.items():
        assert [line for line in kind.symptom.split("; ") if line not in plain[code]] == [], code
        assert f"{LEVELS[kind.level]}. " in plain[code] and "What to do: " in plain[code], code


ODD = ("", "\0", "\udcff", "-1", "9" * 400, "a:b c", "=", "0-", "::", "//", "~", "{x}", "%s", "٣")


def test_odd_files_and_variables_are_never_an_exception(machine):
    machine, chance = with_plugin(machine), random.Random(3)
    files = [path for path in machine.root.rglob("*") if path.is_file() and not path.is_symlink()]
    lines = (BUSY + SMI_A3).splitlines()
    names = (*VARIABLES, "HOME", "PATH", "VIRTUAL_ENV", "ASCEND_WORK_PATH")
    for _ in range(150):
        file = chance.choice(files)
        old = file.read_bytes()
        place = chance.randrange(len(old) + 1)
        odd = chance.choice(ODD).encode("utf-8", "replace")
        file.write_bytes(old[:place] + odd + old[place + chance.randrange(9) :])
        machine.smi = "\n".join(chance.sample(lines, 12)).replace("0", chance.choice(("0", "", "|", "99999999999")))
        environ = dict(machine.environ)
        for name in chance.sample(names, 3):
            value = environ.get(name, "")
            environ[name] = chance.choice((chance.choice(ODD), f"{value}:{chance.choice(ODD)}", value[:7]))
        report = inspect_environment(
            machine.root, environ, run=machine.run, package_version=machine.package_version, folder=chance.choice(ODD)
        )
        format_report(report).encode()
        json.dumps(report_as_json(report))
        if chance.random() < 0.7:
            file.write_bytes(old)

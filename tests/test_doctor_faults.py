"""Each fault that Ascend users ran into is put on a good machine: doctor finds it, names it, and says what to do."""

import json
import os
import platform
import random
import re
import shlex
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from fake_machine import MODULES, SITE, TOOLKIT_82, bare_machine, codes, found, good_machine, npu_table
from test_npu_smi import SMI_A3

from mindone_audio.machine.chips import CHIPS, chip_by_name, chip_by_soc
from mindone_audio.machine.doctor import (
    ERROR,
    INFO,
    OK,
    VARIABLES,
    WARNING,
    check_ascend,
    exit_status,
    format_report,
    inspect_environment,
    report_as_json,
)
from mindone_audio.machine.doctor.kinds import KINDS
from mindone_audio.machine.shared_libraries import loader_folders, missing_libraries

PAGE = Path(__file__).parents[1] / "docs" / "npu-troubleshooting.md"
KERNELS = f"{TOOLKIT_82}/opp/built-in/op_impl/ai_core/tbe/kernel"
BUSY = npu_table(used={0: 65000}, processes=[(0, 4123, "python", 60000), (0, 4124, "", 700)])


@pytest.fixture
def machine(tmp_path):
    return good_machine(tmp_path)


@pytest.fixture
def on_aarch64(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")


def remove(machine, *paths: str) -> None:
    for path in paths:
        place = machine.path(path)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()


def set_to(machine, **variables: str) -> None:
    machine.environ |= variables


def chip(machine, name: str) -> None:
    """NPUs of another kind, with the operators of that kind."""
    machine.smi = npu_table(name)
    machine.write(f"{KERNELS}/{chip_by_name(name).soc}/add/Add_1.o")


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


def another_te(machine) -> None:
    machine.cann("/opt/cann-8.5.0", "8.5.0")
    set_to(machine, PYTHONPATH=f"/opt/cann-8.5.0/python/site-packages:{machine.environ['PYTHONPATH']}")


def newer_mindspore(machine, driver: str) -> None:
    machine.packages["mindspore"] = "2.10.0"
    machine.driver(driver)
    machine.smi = npu_table().replace("25.2.0", driver)


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


# Chips


@pytest.mark.parametrize(
    "names, soc, bfloat16",
    [
        (("910B1", "910B2C", "910B3", "910B4", "910B4-1", "Ascend910B2"), "ascend910b", True),
        (("Ascend910", "Ascend910_9392", "910_9362"), "ascend910_93", True),
        (("Ascend950PR", "950DT"), "ascend950", True),
        (("910A", "910ProA", "910ProB", "910PremiumA", "Ascend910A", "Ascend910ProB"), "ascend910", False),
        (("310P", "310P1", "310P3", "Ascend310P3"), "ascend310p", False),
        (("310B1", "310B4", "Ascend310B4"), "ascend310b", False),
    ],
)
def test_chips(names, soc, bfloat16):
    for name in names:
        assert chip_by_name(name).soc == soc and chip_by_name(name).bfloat16 is bfloat16
    assert chip_by_soc(soc).bfloat16 is bfloat16
    assert chip_by_name("H100") is chip_by_name("") is chip_by_soc("") is None
    assert len({chip.soc for chip in CHIPS}) == len(CHIPS)


@pytest.mark.parametrize("name", ["310P3", "310B4", "910ProA", "910PremiumA", "910A", "910ProB"])
def test_chips_without_bfloat16(machine, name):
    chip(machine, name)
    report = machine.report()
    (finding,) = found(report, "chip-without-bfloat16")  # one for eight of them
    assert finding.level == WARNING and name in finding.found and "!!!!" in finding.symptom
    assert ("chip-default-graph-engine" in codes(report)) == name.startswith("910")
    assert ("chip-experimental" in codes(report)) == name.startswith("310")
    machine.packages["mindspore"] = "2.10.0"
    assert "chip-default-graph-engine" not in codes(machine.report())


def test_the_check_before_a_model_loads_knows_the_chip(machine):
    keywords = {"package_version": machine.package_version}
    for soc, expected in (("ascend910", {"chip-default-graph-engine"}), ("ascend910b", set()), ("", set())):
        assert codes(check_ascend(machine.environ, machine.root, soc=soc, **keywords)) == expected


@pytest.mark.parametrize("name", ["910B2C", "Ascend910", "Ascend950PR"])
def test_chips_with_bfloat16(machine, name):
    chip(machine, name)
    assert codes(machine.report()) == set()


def test_a_chip_that_is_not_known(machine):
    machine.smi = npu_table("1000X")
    report = machine.report()
    assert codes(report) == {"chip-unknown"} and exit_status(report) == 0


# CANN


@pytest.mark.parametrize(
    "names, package",
    [
        (("sympy",), "pip install sympy"),
        (("attrs", "yaml", "absl", "Cython"), "pip install attrs pyyaml absl-py cython"),
        (("google/protobuf",), "pip install protobuf"),
    ],
)
def test_modules_that_cann_imports(machine, names, package):
    remove(machine, *(f"{SITE}/{name}" for name in names))
    (finding,) = found(machine.report(), "python-modules-missing")
    assert finding.level == ERROR and finding.action == package and "sympy" in finding.symptom
    assert all(name.replace("/", ".") in finding.found for name in names)


def test_modules_are_looked_for_and_not_imported(machine):
    for name in MODULES:
        machine.write(f"{SITE}/{name}/__init__.py", "raise SystemExit")
    remove(machine, f"{SITE}/psutil")
    machine.write("/own/psutil.cpython-311-x86_64-linux-gnu.so")
    assert "python-modules-missing" in codes(machine.report())
    machine.environ["PYTHONPATH"] += ":/own"
    machine.write("/own/psutil.py")
    assert codes(machine.report()) == set()
    asked = []
    machine.keywords["find_spec"] = lambda name: asked.append(name)
    assert codes(machine.report()) == {"python-modules-missing", "cann-modules-missing"}
    assert {"sympy", "google.protobuf", "tbe", "hccl"} < set(asked)


def test_modules_of_cann(machine):
    remove(machine, f"{TOOLKIT_82}/python/site-packages/tbe")
    (finding,) = found(machine.report(), "cann-modules-missing")
    assert finding.level == ERROR and finding.found.startswith("tbe of CANN")
    assert "source /usr/local/Ascend/ascend-toolkit/set_env.sh" in finding.action


@pytest.mark.parametrize("place", ["te", "tbe"])
def test_te_of_another_python(machine, place):
    machine.write(f"{TOOLKIT_82}/python/site-packages/{place}/core.cpython-39-aarch64-linux-gnu.so")
    (finding,) = found(machine.report(), "te-for-another-python")
    assert "Python 3.9" in finding.found and "python-for" not in finding.action
    own = "".join(platform.python_version_tuple()[:2])
    machine.write(f"{TOOLKIT_82}/python/site-packages/{place}/core.cpython-{own}-aarch64-linux-gnu.so")
    assert codes(machine.report()) == set()


def test_te_in_the_folder_of_another_python(machine):
    machine.write("/usr/lib/python3.9/site-packages/te/__init__.py")
    machine.environ["PYTHONPATH"] = f"/usr/lib/python3.9/site-packages:{machine.environ['PYTHONPATH']}"
    assert codes(machine.report()) == {"te-for-another-python"}


@pytest.mark.parametrize("home", ["/opt/cann-8.5.0", "/data/ascend toolkit/8.3.RC1", "/usr/local/Ascend/nnae/8.2.RC1"])
def test_te_of_another_cann(machine, home):
    machine.write(f"{home}/python/site-packages/te/__init__.py")
    machine.environ["PYTHONPATH"] = f"{home}/python/site-packages/:{machine.environ['PYTHONPATH']}"
    report = machine.report()
    assert codes(report) == {"te-of-another-cann"} and exit_status(report) == 1


@pytest.mark.parametrize(
    "release, name, package",
    [
        ("8.2.RC1", "310P3", "Ascend-cann-kernels-310p"),
        ("8.2.RC1", "Ascend910", "Atlas-A3-cann-kernels"),
        ("8.5.0", "910B4", "Ascend-cann-910b-ops"),
        ("9.0.0", "Ascend910", "Ascend-cann-A3-ops"),
    ],
)
def test_operators_of_another_chip(machine, release, name, package):
    home = "/opt/cann"
    other = "ascend310p" if name == "910B4" else "ascend910b"
    machine.cann(home, release, chips=(other, "config"))
    machine.source(home)
    machine.smi = npu_table(name)
    (finding,) = found(machine.report(), "ops-package-of-another-chip")
    assert finding.level == ERROR and f"only of {other}" in finding.found and package in finding.action


def test_the_toolkit_alone_has_no_operators(machine):
    remove(machine, KERNELS)
    machine.write(f"{KERNELS}/ascend910b/ops_oam/oam.o")
    assert codes(machine.report()) == {"ops-package-missing"}
    machine.smi = None  # no chip is known
    assert "ops-package-missing" in codes(machine.report())


@pytest.mark.parametrize("name", ["nnrt", "nnae"])
def test_a_runtime_instead_of_the_toolkit(machine, name):
    home = f"/usr/local/Ascend/{name}/8.2.RC1"
    machine.path(home).parent.mkdir(parents=True)
    machine.path("/usr/local/Ascend/ascend-toolkit/8.2.RC1").rename(machine.path(home))
    remove(machine, f"{home}/compiler", "/usr/local/Ascend/ascend-toolkit")
    machine.write(f"{home}/set_env.sh")
    machine.source(home)
    (finding,) = found(machine.report(), "cann-without-compiler")
    assert f"({name})" in finding.found and finding.level == ERROR
    machine.environ = {"HOME": "/home/user"}
    (finding,) = found(machine.report(), "cann-without-compiler")
    assert f"({name})" in finding.found


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
@pytest.mark.parametrize("prefix", ["/opt/venv", "/home/user/my env"])
def test_cann_by_pip_that_was_not_sourced(machine, variable, prefix):
    remove(machine, "/usr/local/Ascend/ascend-toolkit")
    home = f"{prefix}/lib/python3.11/site-packages/ascend/cann-8.5.0"
    machine.cann(home, "8.5.0")
    machine.environ = {"HOME": "/home/user", variable: prefix}
    (finding,) = found(machine.report(), "cann-not-sourced")
    assert home in finding.found and f"source {shlex.quote(home + '/set_env.sh')}" in finding.action
    assert "cann-not-found" not in codes(machine.report())


@pytest.mark.parametrize(
    "file, line, is_reason",
    [
        ("/home/user/.bashrc", "source /usr/local/Ascend/ascend-toolkit/set_env.sh", True),
        ("/home/user/.profile", "  . /opt/cann/set_env.sh", True),
        ("/etc/profile.d/ascend.sh", "export ASCEND_HOME_PATH=/opt/cann", True),
        ("/home/user/.bashrc", "# source /usr/local/Ascend/ascend-toolkit/set_env.sh", False),
    ],
)
def test_cann_is_sourced_in_a_file_of_terminals(machine, file, line, is_reason):
    machine.write(file, f"x=1\n{line}\n")
    assert codes(machine.report()) == set()
    machine.environ = {"HOME": "/home/user"}
    report = machine.report()
    assert "cann-not-sourced" in codes(report)
    assert [file in finding.found for finding in found(report, "cann-sourced-in-startup-file")] == [True] * is_reason


def test_the_list_of_the_installed_mindspore(machine):
    machine.write(
        f"{SITE}/mindspore/run_check/_check_version.py",
        "class GPUEnvChecker:\n    self.version = ['11.6']\n"
        "class AscendEnvChecker:\n    self.version = ['8.1', \"8.2\"]\n",
    )
    machine.write(f"{SITE}/mindspore/lib/plugin/libmindspore_ascend.so.2")
    machine.cann("/opt/cann-8.1", "8.1.RC1")
    machine.source("/opt/cann-8.1")
    remove(machine, "/usr/local/Ascend/ascend-toolkit")
    (finding,) = found(machine.report(), "pair-accepted")
    assert finding.level == INFO and "MindSpore's own check accepts CANN 8.1, 8.2" in finding.found
    assert "goes with CANN 8.2.RC1" in finding.found


def test_a_newer_protobuf_is_no_error(machine):
    machine.packages["protobuf"] = "7.34.1"
    report = machine.report("ascend")
    assert codes(report) == {"protobuf-newer-than-cann-asks"} and exit_status(report) == 0
    machine.packages["protobuf"] = "3.20.3"
    assert codes(machine.report("ascend")) == set()


@pytest.mark.parametrize("version, is_told", [("3.10.1", False), ("3.11.9", False), ("3.12.1", True)])
def test_nnal_and_python(machine, monkeypatch, version, is_told):
    monkeypatch.setattr(platform, "python_version", lambda: version)
    assert "nnal-python" not in codes(machine.report())
    machine.write("/usr/local/Ascend/nnal/atb/set_env.sh")
    report = machine.report()
    assert ("nnal-python" in codes(report)) == is_told and exit_status(report) == 0


# MindSpore's plugin and libraries


def elf(needed: tuple[str, ...], run_path: str = "") -> bytes:
    """A shared library of 64 bits that needs others, with nothing else in it."""
    strings, offsets = b"\0", []
    for text in (*needed, run_path):
        offsets.append(len(strings))
        strings += text.encode() + b"\0"
    base, start = 0x10000, 64 + 2 * 56  # in memory, and in the file after the headers
    entries = [(1, offset) for offset in offsets[:-1]] + [(15, offsets[-1])] * bool(run_path)
    entries += [(5, base + start), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    size = start + len(strings) + len(dynamic)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096)
    place = start + len(strings)
    segment = struct.pack("<IIQQQQQQ", 2, 6, place, base + place, base + place, len(dynamic), len(dynamic), 8)
    return header + load + segment + strings + dynamic


@pytest.fixture
def with_plugin(machine):
    plugin = f"{SITE}/mindspore/lib/plugin"
    needed = ("libge_runner.so", "libmindspore_core.so", "libown.so", "libc.so.6", "libascendcl.so")
    machine.write(f"{plugin}/libmindspore_ascend.so.2", elf(needed, "$ORIGIN:$ORIGIN/../"))
    machine.write(f"{SITE}/mindspore/lib/libmindspore_core.so", elf(()))
    machine.write(f"{plugin}/libown.so", elf(("libdeep.so",)))
    machine.write(f"{TOOLKIT_82}/lib64/libge_runner.so", elf(("libdeep.so",)))
    machine.write(f"{TOOLKIT_82}/lib64/libascendcl.so", elf(("libascend_hal.so",)))
    machine.write("/opt/more libraries/libdeep.so", elf(()))
    machine.write("/etc/ld.so.conf", "include ld.so.conf.d/*.conf\n# include nothing\n")
    machine.write("/etc/ld.so.conf.d/more.conf", "/opt/more libraries\n")
    return machine


def test_a_plugin_whose_libraries_are_found(with_plugin):
    assert codes(with_plugin.report()) == set()


@pytest.mark.parametrize(
    "path, library, user",
    [
        (f"{TOOLKIT_82}/lib64/libge_runner.so", "libge_runner.so", "libmindspore_ascend.so.2"),
        ("/etc/ld.so.conf.d/more.conf", "libdeep.so", "libown.so|libge_runner.so"),
        ("/usr/local/Ascend/driver/lib64/driver/libascend_hal.so", "libascend_hal.so", "libascendcl.so"),
    ],
)
def test_a_plugin_that_does_not_load(with_plugin, path, library, user):
    remove(with_plugin, path)
    (finding,) = found(with_plugin.report(), "plugin-does-not-load")
    said = f"{library}: cannot open shared object file: No such file or directory"
    assert finding.level == ERROR and said in finding.found and re.search(rf"needed by ({user})", finding.found)


def test_a_plugin_without_any_cann(with_plugin):
    with_plugin.environ = {"HOME": "/home/user"}
    (finding,) = found(with_plugin.report(), "plugin-does-not-load")
    assert "libascendcl.so" in finding.found and "libge_runner.so" in finding.found
    assert finding.action == "source /usr/local/Ascend/ascend-toolkit/set_env.sh"


@pytest.mark.skipif(shutil.which("ldd") is None, reason="there is no ldd to compare with")
def test_the_loader_of_this_system_agrees():
    """The plugin of the installed MindSpore, whose libraries of CANN are not here."""
    plugin = f"{SITE}/mindspore/lib/plugin/libmindspore_ascend.so.2"
    said = subprocess.run(["ldd", plugin], capture_output=True, text=True, timeout=60).stdout
    not_found = set(re.findall(r"^\s*(\S+) => not found", said, re.MULTILINE))
    assert set(missing_libraries("/", plugin, loader_folders("/", os.environ))) == not_found
    assert "libge_runner.so" in not_found or not not_found


def test_a_mindspore_without_ascend(with_plugin):
    remove(with_plugin, f"{SITE}/mindspore/lib/plugin/libmindspore_ascend.so.2")
    (finding,) = found(with_plugin.report(), "mindspore-without-ascend")
    assert finding.level == ERROR and "pip install" in finding.action


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF\x02\x01", b"\x7fELF\x01" + bytes(80), b"no library", b"\x7fELF\x02\x01" + b"\xff" * 99]
)
def test_a_plugin_that_is_no_library(with_plugin, content):
    with_plugin.write(f"{SITE}/mindspore/lib/plugin/libmindspore_ascend.so.2", content)
    with_plugin.report("ascend")


@pytest.mark.parametrize(
    "place",
    ["scikit_learn.libs/libgomp-d22c30c5.so.1.0.0", "torch.libs/libgomp-6e1a1d1b.so.1", "torch/lib/libgomp.so.1"],
)
def test_libgomp_on_aarch64(machine, on_aarch64, place):
    assert codes(machine.report()) == set()
    machine.write(f"{SITE}/{place}")
    (finding,) = found(machine.report(), "libgomp-static-tls")
    assert finding.level == INFO and "static TLS block" in finding.symptom
    assert finding.action == f"export LD_PRELOAD={SITE}/{place}"
    machine.environ["LD_PRELOAD"] = f"{SITE}/{place}"
    assert codes(machine.report()) == set()


def test_libgomp_in_a_folder_with_spaces(machine, on_aarch64):
    machine.write("/my env/scikit_learn.libs/libgomp-1.so.1.0.0")
    machine.write("/usr/lib/libjemalloc.so.2")
    machine.environ["PYTHONPATH"] += ":/my env"
    machine.environ["LD_PRELOAD"] = "/usr/lib/libjemalloc.so.2"
    (finding,) = found(machine.report(), "libgomp-static-tls")
    link = "ln -sf '/my env/scikit_learn.libs/libgomp-1.so.1.0.0' /var/tmp/libgomp-1.so.1.0.0"
    assert finding.action == f"{link} && export LD_PRELOAD=/var/tmp/libgomp-1.so.1.0.0:/usr/lib/libjemalloc.so.2"


def test_libgomp_elsewhere_is_no_trouble(machine, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    machine.write(f"{SITE}/scikit_learn.libs/libgomp-d22c30c5.so.1.0.0")
    assert codes(machine.report()) == set()


def test_a_preload_that_is_not_there(machine):
    machine.environ["LD_PRELOAD"] = "/gone/libgomp.so.1"
    assert codes(machine.report()) == {"preload-missing"}


def test_a_libstdcxx_before_the_systems(machine):
    machine.write("/opt/conda/lib/libstdc++.so.6")
    machine.environ["LD_LIBRARY_PATH"] += ":/opt/conda/lib"
    report = machine.report()
    assert codes(report) == {"libstdcxx-shadowed"} and exit_status(report) == 0


@pytest.mark.parametrize("how", ["variable", "ld.so.conf", "other base", "common"])
def test_driver_libraries_are_found(machine, how):
    set_to(machine, LD_LIBRARY_PATH=f"{TOOLKIT_82}/lib64")
    if how == "variable":
        machine.environ["LD_LIBRARY_PATH"] += ":/usr/local/Ascend/driver/lib64/driver/"
    elif how == "ld.so.conf":
        machine.write("/etc/ld.so.conf", "/usr/local/Ascend/driver/lib64/driver\n")
    elif how == "other base":
        machine.write("/opt/hal/libascend_hal.so")
        machine.environ["LD_LIBRARY_PATH"] += ":/opt/hal"
    else:
        machine.write("/usr/local/Ascend/driver/lib64/libascend_hal.so")
        machine.environ["LD_LIBRARY_PATH"] += ":/usr/local/Ascend/driver/lib64"
    assert codes(machine.report()) == set()


def test_driver_libraries_that_were_not_mounted(machine):
    remove(machine, "/usr/local/Ascend/driver/lib64")
    (finding,) = found(machine.report(), "driver-libraries-not-found")
    assert "docker run -v /usr/local/Ascend/driver/lib64:/usr/local/Ascend/driver/lib64" in finding.action


def test_driver_libraries_of_a_driver_elsewhere(machine):
    machine.write("/etc/ascend_install.info", "Driver_Install_Path_Param=/opt/my npu\n")
    machine.driver("25.2.0", "/opt/my npu")
    set_to(machine, LD_LIBRARY_PATH=f"{TOOLKIT_82}/lib64")
    (finding,) = found(machine.report(), "driver-libraries-not-found")
    assert finding.action.startswith("export LD_LIBRARY_PATH='/opt/my npu/driver/lib64/driver:")


# Devices


def test_only_the_manager_was_given(machine):
    remove(machine, "/usr/local/Ascend/driver/version.info")
    machine.nodes(helpers=("davinci_manager",))
    machine.smi = None
    (finding,) = found(machine.report("ascend"), "device-node-missing")
    assert "/dev/davinci_manager is there" in finding.found


def test_a_310b_has_other_nodes(machine):
    chip(machine, "310B4")
    machine.nodes(0, helpers=("davinci_manager", "svm0"))
    assert "device-helper-missing" not in codes(machine.report())
    machine.nodes(0, helpers=("svm0",))
    (finding,) = found(machine.report(), "device-helper-missing")
    assert finding.action == "start the container with `--device /dev/davinci_manager`"


def run_as(machine, user: int = 54321, groups: str = "") -> None:
    """A user with an account and folders, and without root's rights."""
    machine.process(uid=user, groups=groups, capabilities="0000000000000000")
    machine.write("/etc/passwd", f"me:x:{user}:{user}::/home/user:/bin/bash\n")
    for folder in ("/home/user", "/work"):
        machine.path(folder).chmod(0o777)


def guard(machine, group: int | None = None, mode: int = 0o660) -> int:
    """Rights of the device nodes, as the driver gives them; the group where it may not be changed is the test's own."""
    for node in machine.path("/dev").iterdir():
        node.chmod(mode)
        if os.geteuid() == 0:
            os.chown(node, 1000, 1000 if group is None else group)
    return node.stat().st_gid


@pytest.mark.parametrize("group", [1000, 1005, 7777])
def test_nodes_that_a_user_may_not_open(machine, group):
    group = guard(machine, group)
    run_as(machine, groups="54321")
    (finding,) = found(machine.report(), "device-node-forbidden")
    assert finding.level == ERROR and "/dev/davinci0" in finding.found and "54321" in finding.found
    assert f"--group-add {group}" in finding.action and "usermod -aG HwHiAiUser $USER" in finding.action
    assert (f"groupadd -g {group}" in finding.action) == (group != 1000)
    run_as(machine, groups=f"54321 {group}")
    assert codes(machine.report()) == set()


def test_nodes_that_everyone_may_open(machine):
    guard(machine, mode=0o666)
    run_as(machine)
    assert codes(machine.report()) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_that_lost_its_rights(machine):
    guard(machine)
    machine.process(capabilities="00000000a80425fb")  # docker's
    assert codes(machine.report()) == set()
    machine.process(capabilities="00000000a80425f9")
    (finding,) = found(machine.report(), "device-node-forbidden")
    assert "--cap-add DAC_OVERRIDE" in finding.action and "--group-add 1000" in finding.action


@pytest.mark.parametrize("user", [1234, 54321])
def test_a_user_without_an_account(machine, user):
    machine.process(uid=user)
    (finding,) = found(machine.report(), "user-without-entry")
    assert finding.level == WARNING and f"echo 'npu:x:{user}:" in finding.action


def test_nobody(machine):
    machine.write("/etc/passwd", "nobody:x:65534:65534::/:/bin/false\n")
    machine.process(uid=65534)
    (finding,) = found(machine.report(), "user-nobody")
    assert finding.level == ERROR


@pytest.mark.parametrize(
    "nodes, variables, code, action",
    [
        (
            (4, 5, 6, 7),
            {"ASCEND_RT_VISIBLE_DEVICES": "4,5"},
            "visible-devices-beyond",
            "export ASCEND_RT_VISIBLE_DEVICES=0,1",
        ),
        ((3,), {"ASCEND_RT_VISIBLE_DEVICES": "3"}, "visible-devices-beyond", "unset ASCEND_RT_VISIBLE_DEVICES"),
        ((0, 1), {"ASCEND_RT_VISIBLE_DEVICES": "4"}, "visible-devices-beyond", "unset ASCEND_RT_VISIBLE_DEVICES"),
        ((2, 3, 4, 5), {"ASCEND_RT_VISIBLE_DEVICES": "2,3"}, "visible-devices-renumbered", "unset"),
        (
            range(8),
            {"ASCEND_VISIBLE_DEVICES": "6,7"},
            "visible-devices-of-container",
            "export ASCEND_RT_VISIBLE_DEVICES=6,7",
        ),
        ((0, 1), {"DEVICE_ID": "2"}, "device-id", "unset"),
        ((4, 5, 6, 7), {"ASCEND_RT_VISIBLE_DEVICES": "0,1"}, None, ""),
        (range(8), {"ASCEND_RT_VISIBLE_DEVICES": "0,7", "DEVICE_ID": "1"}, None, ""),
        ((4, 5), {"ASCEND_VISIBLE_DEVICES": "4,5"}, None, ""),
        ((4, 5), {"ASCEND_VISIBLE_DEVICES": "4-5"}, None, ""),
    ],
)
def test_numbers_of_devices(machine, nodes, variables, code, action):
    machine.nodes(*nodes)
    machine.environ |= variables
    report = machine.report()
    assert codes(report) == ({code} if code else set())
    assert not code or action in found(report, code)[0].action
    if code == "visible-devices-renumbered":
        assert "it means /dev/davinci4, /dev/davinci5" in found(report, code)[0].found


def test_numbers_where_only_npu_smi_tells(machine):
    machine.nodes()
    machine.smi = npu_table(count=2)
    machine.environ["ASCEND_RT_VISIBLE_DEVICES"] = "6,7"
    assert "visible-devices-beyond" in codes(machine.report())


def test_who_uses_an_npu(machine):
    machine.smi = npu_table(used={2: 65000, 5: 9000}, processes=[(2, 11, "python3.11", 60000), (2, 12, "a b", 200)])
    first, second = found(machine.report(), "npu-memory-occupied")
    assert first.about == "NPU 2" and "python3.11 (pid 11, 60000 MB), a b (pid 12, 200 MB)" in first.found
    assert second.about == "NPU 5" and "no process that is seen here" in second.found
    assert first.action == second.action == "export ASCEND_RT_VISIBLE_DEVICES=0,1,3,4,6,7"
    machine.environ["ASCEND_RT_VISIBLE_DEVICES"] = "0,1"
    assert codes(machine.report()) == set()


def test_who_uses_a_chip_of_an_a3(machine):
    chip(machine, "Ascend910")
    machine.smi = SMI_A3.replace("46536/", "2886/") + "| 1       1                 | 77 | python | 900 |\n"
    machine.nodes(2, 3)
    (finding,) = found(machine.report(), "npu-memory-occupied")
    assert finding.about == "NPU 3" and "pid 77" in finding.found
    assert finding.action == "export ASCEND_RT_VISIBLE_DEVICES=0"


def test_only_the_devices_that_are_here_count(machine):
    machine.smi = npu_table(used={0: 60000, 5: 60000})  # a container may see all of the host's
    machine.nodes(4, 5)
    (finding,) = found(machine.report(), "npu-memory-occupied")
    assert finding.about == "NPU 5" and finding.action == "export ASCEND_RT_VISIBLE_DEVICES=0"


def test_all_npus_are_used(machine):
    machine.smi = npu_table(count=1, used={0: 60000})
    machine.nodes(0)
    assert "wait for" in found(machine.report(), "npu-memory-occupied")[0].action


def test_an_npu_with_little_memory(machine):
    machine.smi = npu_table(total=32768)
    report = machine.report()
    assert codes(report) == {"npu-memory-small"} and len(found(report, "npu-memory-small")) == 1


# The host


@pytest.mark.parametrize(
    "what, prepare",
    [
        ("working folder", lambda m: m.keywords.update(folder="/")),
        ("working folder", lambda m: m.keywords.update(folder="/usr/bin")),
        ("HOME", lambda m: None),
        ("ASCEND_CACHE_PATH", lambda m: set_to(m, ASCEND_CACHE_PATH="/opt/not there/yet")),
    ],
)
def test_folders_that_cannot_be_written(machine, what, prepare):
    run_as(machine)
    for folder in ("/", "/opt", "/usr", "/usr/bin", "/home/user"):
        machine.path(folder).mkdir(exist_ok=True)
        machine.path(folder).chmod(0o755)
    guard(machine, mode=0o666)
    prepare(machine)
    findings = found(machine.report(), "folder-not-writable")
    assert {finding.about for finding in findings} == {what, "HOME"}
    assert all(finding.level == WARNING and finding.action for finding in findings)


def test_a_folder_that_is_mounted_to_be_read(machine):
    machine.write("/proc/mounts", "overlay / overlay rw 0 0\n/dev/sda /my\\040work ext4 ro,noatime 0 0\n")
    machine.keywords["folder"] = "/my work/folder"
    assert [finding.about for finding in found(machine.report(), "folder-not-writable")] == ["working folder"]


@pytest.mark.parametrize(
    "mount, variables, what",
    [
        ("nas:/h /home nfs rw,vers=3,nolock", {}, "HOME"),
        ("nas:/h /home nfs4 rw,vers=4.2", {}, "HOME"),
        ("nas:/c /cache nfs rw,vers=3", {"ASCEND_CACHE_PATH": "/cache/ascend"}, "ASCEND_CACHE_PATH"),
        ("nas:/h /home nfs rw,vers=3", {"ASCEND_CACHE_PATH": "/tmp/ascend"}, None),
        ("nas:/h /homes nfs rw,vers=3", {}, None),
    ],
)
def test_a_cache_on_a_network(machine, mount, variables, what):
    machine.write("/proc/mounts", f"overlay / overlay rw 0 0\n{mount} 0 0\n")
    machine.environ |= variables
    findings = found(machine.report(), "cache-on-network")
    assert [finding.about for finding in findings] == ([what] if what else [])


def numa(machine, cores: str = "24-47", node: int = 1) -> None:
    machine.write("/sys/bus/pci/devices/0000:00:00.0/numa_node", f"{node}\n")
    machine.write(f"/sys/devices/system/node/node{node}/cpulist", f"{cores}\n")


def test_cores_of_a_host_with_cgroup_v2(machine):
    machine.write("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory\n")
    report = machine.report()
    assert codes(report) == {"cgroup-v2"} and exit_status(report) == 0
    assert "taskset -c 0-23 python -m mindone_audio" in found(report, "cgroup-v2")[0].action
    numa(machine)
    assert "taskset -c 24-47 " in found(machine.report(), "cgroup-v2")[0].action
    assert "NPU 0 is on NUMA node 1 (cores 24-47)" in found(machine.report(), "cores-ok")[0].found
    machine.process(cores="24-31")  # it was bound
    assert codes(machine.report()) == set()


@pytest.mark.parametrize(
    "cores, expected", [("0-191", set()), ("0-23", {"cores-far-from-npu"}), ("24,25", {"cores-few"}), ("24-27", set())]
)
def test_cores(machine, cores, expected):
    numa(machine)
    machine.process(cores=cores)
    assert codes(machine.report()) == expected


@pytest.mark.parametrize(
    "size, is_small", [("65536k", True), ("512M", True), ("1g", False), ("8388608k", False), ("", False)]
)
def test_shared_memory(machine, size, is_small):
    machine.write("/proc/mounts", f"shm /dev/shm tmpfs rw{',size=' * bool(size)}{size} 0 0\n")
    assert codes(machine.report()) == ({"shared-memory-small"} if is_small else set())


@pytest.mark.parametrize("limit, is_low", [("1024", True), ("65536", False), ("unlimited", False)])
def test_open_files(machine, limit, is_low):
    machine.write(
        "/proc/self/limits", f"Limit  Soft Limit  Hard Limit\nMax open files            {limit}   1048576  files\n"
    )
    report = machine.report()
    assert codes(report) == ({"open-files-low"} if is_low else set()) and exit_status(report) == 0


def test_a_job_of_several_devices(machine):
    machine.environ |= {"RANK_ID": "0", "RANK_SIZE": "8"}
    report = machine.report()
    assert codes(report) == {"hccl-defaults", "hccn-tool-missing"} and exit_status(report) == 0
    machine.environ |= {"HCCL_CONNECT_TIMEOUT": "600", "HCCL_IF_BASE_PORT": "61000"}
    machine.write("/usr/local/Ascend/driver/tools/hccn_tool")
    assert codes(machine.report()) == set()


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


ODD = ("", "\0", "\udcff", "-1", "9" * 400, "a:b c", "=", "0-", "::", "//", "~", "{x}", "%s", "٣")


def test_odd_files_and_variables_are_never_an_exception(with_plugin):
    machine, chance = with_plugin, random.Random(3)
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

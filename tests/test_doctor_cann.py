"""What doctor says of CANN, of its Python part, and of the shared libraries of MindSpore and the driver."""

import os
import platform
import re
import shlex
import shutil
import subprocess

import pytest
from fake_machine import (
    KERNELS,
    MODULES,
    SITE,
    TOOLKIT_82,
    codes,
    found,
    good_machine,
    npu_table,
    remove,
    set_to,
    with_plugin,
)

from mindone_audio.machine.doctor import (
    ERROR,
    INFO,
    WARNING,
    exit_status,
)
from mindone_audio.machine.shared_libraries import loader_folders, missing_libraries


@pytest.fixture
def machine(tmp_path):
    return good_machine(tmp_path)


@pytest.fixture
def on_aarch64(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")


@pytest.fixture
def plugged(machine):
    return with_plugin(machine)


# CANN


@pytest.mark.parametrize(
    "names, package",
    [
        (("sympy",), "pip install sympy"),
        (("attrs", "yaml", "absl", "cython"), "pip install attrs pyyaml absl-py cython"),
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
    assert codes(machine.report()) == {"python-modules-missing", "tbe-missing", "hccl-module-missing"}
    assert {"sympy", "google.protobuf", "tbe", "hccl"} < set(asked)


@pytest.mark.parametrize("name, code, level", [("tbe", "tbe-missing", WARNING), ("hccl", "hccl-module-missing", INFO)])
def test_modules_of_cann(machine, name, code, level):
    remove(machine, f"{TOOLKIT_82}/python/site-packages/{name}")
    (finding,) = found(machine.report(), code)
    assert finding.level == level and "source /usr/local/Ascend/ascend-toolkit/set_env.sh" in finding.action


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


def test_a_plugin_whose_libraries_are_found(plugged):
    assert codes(plugged.report()) == set()


@pytest.mark.parametrize(
    "path, library, user",
    [
        (f"{TOOLKIT_82}/lib64/libge_runner.so", "libge_runner.so", "libmindspore_ascend.so.2"),
        ("/etc/ld.so.conf.d/more.conf", "libdeep.so", "libown.so|libge_runner.so"),
        ("/usr/local/Ascend/driver/lib64/driver/libascend_hal.so", "libascend_hal.so", "libascendcl.so"),
    ],
)
def test_a_plugin_that_does_not_load(plugged, path, library, user):
    remove(plugged, path)
    (finding,) = found(plugged.report(), "plugin-does-not-load")
    said = f"{library}: cannot open shared object file: No such file or directory"
    assert finding.level == ERROR and said in finding.found and re.search(rf"needed by ({user})", finding.found)


def test_a_plugin_without_any_cann(plugged):
    plugged.environ = {"HOME": "/home/user"}
    (finding,) = found(plugged.report(), "plugin-does-not-load")
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


def test_a_mindspore_without_ascend(plugged):
    remove(plugged, f"{SITE}/mindspore/lib/plugin/libmindspore_ascend.so.2")
    (finding,) = found(plugged.report(), "mindspore-without-ascend")
    assert finding.level == ERROR and "pip install" in finding.action


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF\x02\x01", b"\x7fELF\x01" + bytes(80), b"no library", b"\x7fELF\x02\x01" + b"\xff" * 99]
)
def test_a_plugin_that_is_no_library(plugged, content):
    plugged.write(f"{SITE}/mindspore/lib/plugin/libmindspore_ascend.so.2", content)
    plugged.report("ascend")


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

"""The judgement of a machine, on file trees in the formats that Ascend's installers write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_machine import COMPONENT, DRIVER, FIRMWARE, GOOD, TOOLKIT, bare_machine, good_machine, levels, npu_table, of
from test_npu_smi import NO_ACCESS

from mindone_audio.machine import doctor, versions
from mindone_audio.machine.doctor import (
    ERROR,
    INFO,
    OK,
    WARNING,
    exit_status,
    format_report,
    inspect_environment,
    report_as_json,
    visible_devices,
)
from mindone_audio.machine.versions import find_cann, read_driver

REPOSITORY = Path(__file__).parents[1]
VERSION_CFG = """# version: 1.0
runtime_running_version=[{1}:{0}]
toolkit_running_version=[{1}:{0}]
runtime_upgrade_version=[{1}:7.0.0]
"""


@pytest.fixture
def bare(tmp_path):
    return bare_machine(tmp_path)


@pytest.fixture
def machine(tmp_path):
    return good_machine(tmp_path)


# A machine where all is well, and one without an NPU


def test_all_is_well(machine):
    report = machine.report("ascend")
    assert levels(report) == {}
    assert exit_status(report) == 0
    assert (report.driver.chosen, report.firmware.chosen, report.cann.chosen) == ("25.2.0", "7.7.0.1.231", "8.2.RC1")
    assert report.packages == GOOD
    assert [source.field for source in report.driver.sources] == ["package_version", "Version", "Version"]
    assert of(report, "published versions")[0].found == "MindSpore 2.7.0 goes with CANN 8.2.RC1 and driver 25.2.0"
    assert levels(machine.check()) == {}


def test_a_machine_without_npu(bare):
    report = bare.report()
    assert exit_status(report) == 1 and levels(report) == {"device": WARNING}
    assert "CPU-only machine" in format_report(report) and "float32" in format_report(report)
    assert exit_status(bare.report("cpu")) == 0
    report = bare.report("ascend:1")
    assert exit_status(report) == 2
    assert levels(report) == {"driver": ERROR, "CANN": ERROR, "npu-smi": WARNING}


def test_cpu_leaves_ascend_out(machine):
    def never():
        raise AssertionError("npu-smi was run")

    machine.driver("20.0.0")
    machine.environ["ASCEND_RT_VISIBLE_DEVICES"] = "1, 0"
    report = inspect_environment(
        machine.root, machine.environ, device="cpu", run=never, package_version=machine.package_version
    )
    assert exit_status(report) == 0
    assert (report.driver.chosen, report.cann_installs, report.variables) == (None, (), {})
    assert "driver" not in format_report(report)


def test_unknown_device(bare):
    with pytest.raises(ValueError, match="unknown device 'gpu': use one of auto, cpu, ascend, npu"):
        bare.report("gpu")


# Packages


@pytest.mark.parametrize(
    "name, version, level, words",
    [
        ("mindspore", None, ERROR, "not installed"),
        ("mindspore", "2.5.0", ERROR, "older than 2.6.0"),
        ("mindspore", "2.6.0rc1", ERROR, "older than 2.6.0"),
        ("mindspore", "2.6.0", WARNING, "tested with no other"),
        ("mindspore", "2.11.0", WARNING, "tested with no other"),
        ("mindspore", "2.10.0", OK, "2.10.0"),
        ("mindspore", "master", WARNING, "'master' is not understood"),
        ("mindone", None, ERROR, "not installed"),
        ("mindone", "0.4.0", WARNING, "0.4.0 is not mindone==0.5.0"),
        ("mindone", "nightly", WARNING, "'nightly' is not understood"),
        ("transformers", None, ERROR, "not installed"),
        ("transformers", "4.57.3", WARNING, "4.57.3 is not transformers==4.57.1"),
        ("numpy", None, ERROR, "not installed"),
        ("numpy", "2.0.0", ERROR, "2.0.0 is not numpy<2"),
        ("numpy", "1.26.4", OK, "1.26.4"),
    ],
)
def test_packages(bare, name, version, level, words):
    bare.packages[name] = version
    report = bare.report("cpu")
    (finding,) = of(report, name)
    assert finding.level == level and words in finding.found
    assert bool(finding.action) == (level != OK)
    assert exit_status(report) == {OK: 0, WARNING: 1, ERROR: 2}[level]


def test_requirements_are_the_ones_that_are_installed():
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert set(doctor.REQUIREMENTS) <= {line.partition("#")[0].strip() for line in lines}


def test_broken_metadata_is_no_package(bare):
    def broken(name):
        raise KeyError("Version")

    report = inspect_environment(bare.root, bare.environ, device="cpu", run=bare.run, package_version=broken)
    assert set(report.packages.values()) == {None}
    assert exit_status(report) == 2


@pytest.mark.parametrize("version, level", [("3.9.1", WARNING), ("3.10.0", OK), ("3.12.9", OK), ("3.13.0rc1", WARNING)])
def test_python(bare, monkeypatch, version, level):
    monkeypatch.setattr("platform.python_version", lambda: version)
    assert of(bare.report("cpu"), "Python")[0].level == level


# Driver


def test_container_without_the_note_of_the_installer(machine):
    (machine.root / "etc/ascend_install.info").unlink()
    assert read_driver(machine.root)[0].chosen == "25.2.0"
    assert levels(machine.report()) == {"/etc/ascend_install.info": WARNING}


@pytest.mark.parametrize("base", ["/opt/npu", "/opt/npu/"])
def test_driver_in_another_folder(machine, base):
    machine.write("/etc/ascend_install.info", f"Driver_Install_Path_Param={base}\n")
    machine.driver("25.0.rc1.1", "/opt/npu")
    driver, firmware = read_driver(machine.root)
    assert driver.chosen == "25.0.rc1.1" and firmware.chosen == "7.7.0.1.231"
    assert driver.sources[0].file == "/opt/npu/driver/version.info"


def test_noted_folder_without_driver(machine):
    machine.write("/etc/ascend_install.info", "Driver_Install_Path_Param=/nowhere\n")
    assert read_driver(machine.root)[0].chosen == "25.2.0"


def test_old_driver_without_package_version(machine):
    machine.write("/usr/local/Ascend/driver/version.info", "Version=24.1.rc2.2\nascendhal_version=7.35.23\n")
    driver, _ = read_driver(machine.root)
    assert driver.chosen == "24.1.rc2.2" and [source.field for source in driver.sources] == ["Version"]


@pytest.mark.parametrize(
    "version, level",
    [("23.0.3", ERROR), ("24.1.T5", ERROR), ("24.1.RC1", OK), ("24.1.rc2.2", OK), ("V100R001", WARNING)],
)
def test_driver_minimum(machine, version, level):
    machine.driver(version)
    machine.smi = None
    assert of(machine.report(), "driver")[0].level == level
    assert of(machine.check(), "driver")[0].level == level


def test_missing_driver(machine):
    (machine.root / "usr/local/Ascend/driver/version.info").unlink()
    machine.nodes(helpers=())
    machine.smi = None
    report = machine.report()  # CANN alone: an image that may be used on CPU
    assert levels(report) == {"driver": WARNING, "npu-smi": WARNING}
    assert "/usr/local/Ascend/driver/version.info" in of(report, "driver")[0].found
    assert levels(machine.report("ascend"))["driver"] == ERROR
    assert levels(machine.check()) == {"driver": WARNING}


def test_driver_version_from_npu_smi_alone(machine):
    (machine.root / "usr/local/Ascend/driver/version.info").unlink()
    report = machine.report()
    assert report.driver.chosen == "25.2.0" and report.driver.sources[0].file == "npu-smi info"
    assert levels(report) == {}


def test_devices_without_any_driver_version(machine):
    (machine.root / "usr/local/Ascend/driver/version.info").unlink()
    machine.smi = None
    machine.write("/dev/davinci3")
    assert levels(machine.report("ascend")) == {"driver": WARNING, "npu-smi": WARNING}


def test_npu_smi_and_file_disagree(machine):
    machine.driver("25.5.0")
    report = machine.report()
    finding = of(report, "driver")[1]
    assert finding.level == WARNING
    assert "25.5.0 in /usr/local/Ascend/driver/version.info (package_version)" in finding.found
    assert "25.2.0 in npu-smi info (Version)" in finding.found
    machine.driver("25.2.0.B080")  # only the build number differs
    assert len(of(machine.report(), "driver")) == 1


# Firmware


@pytest.mark.parametrize(
    "driver, firmware, level, words",
    [
        ("25.2.0", "7.7.0.1.231", OK, "7.7.0.1.231 goes with driver 25.2.0"),
        ("25.2.0", "7.8.0.1.231", WARNING, "7.8.0.1.231 is outside [7.0.0,7.7.99], the firmware that driver 25.2.0"),
        ("25.2.0", "6.4.12.1.241", WARNING, "6.4.12.1.241 is outside [7.0.0,7.7.99]"),
        ("25.0.rc1.1", "7.8.0.1.231", OK, "goes with driver 25.0.rc1.1"),  # the firmware lists the driver
        ("25.2.0", "master", WARNING, "'master' cannot be compared with '[7.0.0,7.7.99]'"),
    ],
)
def test_firmware(machine, driver, firmware, level, words):
    machine.driver(driver)
    machine.smi = npu_table().replace("25.2.0", driver)
    machine.write("/usr/local/Ascend/firmware/version.info", FIRMWARE.format(firmware))
    report = machine.report()
    (finding,) = of(report, "firmware")
    assert finding.level == level and words in finding.found
    assert ("published together" in finding.action) == (level != OK)
    assert str(report.firmware).startswith(f"{'25.0.rc1.1' if firmware == 'master' else firmware} in ")


def test_firmware_of_a_driver_whose_list_is_not_understood(machine):
    machine.write("/usr/local/Ascend/driver/version.info", DRIVER.format("25.2.0").replace("[7.0.0,7.7.99]", "all"))
    (finding,) = of(machine.report(), "firmware")
    assert finding.level == WARNING and "'7.7.0.1.231' cannot be compared with 'all'" in finding.found


@pytest.mark.parametrize(
    "path, text",
    [
        ("driver", "Version=25.2.0\n"),  # an old driver has no list
        ("firmware", ""),
        ("firmware", "package_version=25.2.0\n"),  # the driver's numbers, not the firmware's
    ],
)
def test_firmware_that_cannot_be_compared(machine, path, text):
    machine.write(f"/usr/local/Ascend/{path}/version.info", text)
    report = machine.report()
    assert of(report, "firmware") == [] and levels(report) == {}


def test_a_long_list_of_drivers_is_read_to_its_end(machine):
    drivers = ",".join(f"[{major}.0.rc1,{major}.0.rc1.]" for major in range(1, 25)) + ",[25.2,25.2.]"
    machine.write("/usr/local/Ascend/firmware/version.info", f"Version=9.0.0\ncompatible_version_drv={drivers}\n")
    assert levels(machine.report()) == {}


# CANN


CANN_PLACES = [
    ("/usr/local/Ascend/ascend-toolkit/latest", "8.1.RC1", "/usr/local/Ascend/ascend-toolkit/set_env.sh"),
    ("/usr/local/Ascend/ascend-toolkit/8.2.RC1", "8.2.RC1", "/usr/local/Ascend/ascend-toolkit/set_env.sh"),
    ("/usr/local/Ascend/cann-8.5.0", "8.5.0", "/usr/local/Ascend/cann-8.5.0/set_env.sh"),
    ("/usr/local/Ascend/cann", "9.0.0", "/usr/local/Ascend/cann/set_env.sh"),
    ("/home/user/Ascend/ascend-toolkit/latest", "8.2.RC1", "/home/user/Ascend/ascend-toolkit/set_env.sh"),
    ("/home/user/Ascend/cann-9.0.0", "9.0.0", "/home/user/Ascend/cann-9.0.0/set_env.sh"),
    ("/opt/conda/envs/ms/Ascend/cann-8.5.0", "8.5.0", "/opt/conda/envs/ms/Ascend/cann-8.5.0/set_env.sh"),
]


@pytest.mark.parametrize("path, release, script", CANN_PLACES)
def test_cann_is_found_and_has_to_be_sourced(bare, path, release, script):
    bare.environ["CONDA_PREFIX"] = "/opt/conda/envs/ms"
    bare.cann(path, release)
    for home in ("/home/user", "/home/user/"):
        bare.environ["HOME"] = home
        (install,) = find_cann(bare.root, bare.environ)
        assert install.path == path
    assert (install.version.chosen, install.set_env, install.active) == (release, script, False)
    assert (bare.root / script.lstrip("/")).is_file()
    bare.driver("25.2.0")
    finding = of(bare.report(), "CANN")[1]
    assert finding.level == ERROR and f"source {script}" in finding.action and "set +u" in finding.action


@pytest.mark.parametrize("name", ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"])
def test_cann_where_the_environment_says(bare, name):
    bare.cann("/data/cann-9.0.0", "9.0.0")
    bare.environ[name] = "/data/cann-9.0.0/"
    (install,) = find_cann(bare.root, bare.environ)
    assert install.active and install.version.chosen == "9.0.0" and install.path == "/data/cann-9.0.0"


def test_sources_of_cann_in_order_of_trust(bare):
    path = "/usr/local/Ascend/ascend-toolkit/latest"
    bare.write(f"{path}/version.cfg", VERSION_CFG.format("8.0.0", "7.6.0.1.220"))
    assert find_cann(bare.root, {})[0].version.chosen == "8.0.0"
    bare.write(f"{path}/opp/version.info", COMPONENT.format("8.1.RC1", "7.7.T20.0.B210"))
    assert find_cann(bare.root, {})[0].version.chosen == "8.1.RC1"
    bare.write(f"{path}/aarch64-linux/ascend_toolkit_install.info", TOOLKIT.format("8.2.RC1"))
    (install,) = find_cann(bare.root, {})
    assert [(source.field, source.value) for source in install.version.sources] == [
        ("version", "8.2.RC1"),
        ("version_dir", "8.1.RC1"),
        ("runtime_running_version", "8.0.0"),
        ("toolkit_running_version", "8.0.0"),
    ]
    assert install.version.chosen == "8.2.RC1"
    bare.write(f"{path}/aarch64-linux/ascend_toolkit_install.info", TOOLKIT.format("master"))
    assert find_cann(bare.root, {})[0].version.chosen == "8.1.RC1"  # the first that is understood


def test_sources_of_cann_disagree(machine):
    machine.write(
        "/usr/local/Ascend/ascend-toolkit/8.2.RC1/opp_kernel/version.info", COMPONENT.format("8.1.RC1", "7.7")
    )
    finding = of(machine.report(), "CANN")[1]
    assert finding.level == WARNING and "disagree" in finding.found
    path = "/usr/local/Ascend/ascend-toolkit/latest"
    assert f"8.2.RC1 in {path}/x86_64-linux/ascend_toolkit_install.info (version)" in finding.found
    assert f"8.1.RC1 in {path}/opp_kernel/version.info (version_dir)" in finding.found
    assert [finding.level for finding in of(machine.check(), "CANN")] == [OK, WARNING]


def test_folder_name_where_no_file_tells(bare):
    bare.write("/usr/local/Ascend/cann-9.0.0/set_env.sh")
    (install,) = find_cann(bare.root, {})
    assert install.version.chosen == "9.0.0" and install.version.sources[0].field == "folder name"


def test_release_in_share_info(bare):
    bare.write("/usr/local/Ascend/cann/share/info/runtime/version.info", COMPONENT.format("8.5.0", "8.5.0.2.220"))
    assert find_cann(bare.root, {})[0].version.chosen == "8.5.0"


def test_one_cann_of_several_names(bare):
    bare.cann("/usr/local/Ascend/cann-8.5.0", "8.5.0")
    bare.link("/usr/local/Ascend/cann", "cann-8.5.0")
    # `latest` as a folder of links, to another folder and to the one beside it
    bare.link("/usr/local/Ascend/ascend-toolkit/latest/x86_64-linux", "../../cann-8.5.0/x86_64-linux")
    bare.cann("/home/user/Ascend/ascend-toolkit/8.2.RC1", "8.2.RC1")
    bare.link("/home/user/Ascend/ascend-toolkit/latest/opp", "../8.2.RC1/opp")
    bare.write("/home/user/Ascend/ascend-toolkit/latest/version.cfg", VERSION_CFG.format("8.2.RC1", "8.2.0.0.201"))
    found = [(install.path, install.version.chosen) for install in find_cann(bare.root, bare.environ)]
    assert found == [
        ("/usr/local/Ascend/cann", "8.5.0"),
        ("/home/user/Ascend/ascend-toolkit/latest", "8.2.RC1"),
    ]


def test_active_cann_is_not_the_newest(machine):
    machine.cann("/usr/local/Ascend/cann-8.5.0", "8.5.0")
    report = machine.report()
    assert report.cann.chosen == "8.2.RC1"
    assert [(install.version.chosen, install.active) for install in report.cann_installs] == [
        ("8.2.RC1", True),
        ("8.5.0", False),
    ]
    finding = of(report, "CANN")[1]
    assert finding.level == WARNING and "source /usr/local/Ascend/cann-8.5.0/set_env.sh" in finding.action
    machine.source("/usr/local/Ascend/cann-8.5.0")
    assert [finding.level for finding in of(machine.report(), "CANN")] == [OK]


@pytest.mark.parametrize(
    "release, level",
    [("8.0.0", ERROR), ("8.1.RC1.beta1", ERROR), ("8.1.RC1", OK), ("9.2.0-beta.2", OK), ("master", WARNING)],
)
def test_cann_minimum(machine, release, level):
    machine.cann("/usr/local/Ascend/ascend-toolkit/8.2.RC1", release)
    assert of(machine.report(), "CANN")[0].level == level
    assert of(machine.check(), "CANN")[0].level == level


def test_cann_without_any_version(bare):
    (bare.root / "data/cann").mkdir(parents=True)
    bare.environ["ASCEND_HOME_PATH"] = "/data/cann"
    (install,) = find_cann(bare.root, bare.environ)
    assert install.active and install.version.chosen is None
    assert "version not found" in of(bare.report(), "CANN")[0].found
    assert "CANN              unknown at /data/cann, active" in format_report(bare.report()).splitlines()


# The Python package te, and NNAL


def test_te_is_found_where_it_is(machine):
    home = "/usr/local/Ascend/ascend-toolkit/latest"
    assert of(machine.report(), "te")[0].found == f"{home}/python/site-packages/te"
    machine.write("/opt/operators/te/__init__.py")
    machine.environ["PYTHONPATH"] = f":/nowhere:/opt/operators/:{machine.environ['PYTHONPATH']}"
    assert of(machine.report(), "te")[0].found == "/opt/operators/te"
    assert levels(machine.report()) == {}


@pytest.mark.parametrize("python_path", [None, "", "/nowhere", "/usr/local/Ascend/ascend-toolkit/latest/lib64"])
def test_te_is_not_on_the_python_path(machine, python_path):
    machine.write("/te/__init__.py")  # an empty entry is not the root
    del machine.environ["PYTHONPATH"]
    if python_path is not None:
        machine.environ["PYTHONPATH"] = python_path
    (finding,) = of(machine.report(), "te")
    assert finding.level == WARNING and "no folder of PYTHONPATH has it" in finding.found
    assert finding.action == "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
    machine.packages["te"] = "0.4.0"  # pip install of CANN's wheel
    assert [(finding.level, finding.found) for finding in of(machine.report(), "te")] == [(OK, "0.4.0")]


def test_te_that_cann_lacks(machine):
    folder = machine.root / "usr/local/Ascend/ascend-toolkit/8.2.RC1/python/site-packages/te"
    (folder / "__init__.py").rename(folder.parent / "te.py")
    folder.rmdir()
    (finding,) = of(machine.report(), "te")
    assert finding.level == WARNING
    assert "nor is there /usr/local/Ascend/ascend-toolkit/latest/python/site-packages/te" in finding.found
    assert "pip install /usr/local/Ascend/ascend-toolkit/latest/lib64/te-*.whl" in finding.action


@pytest.mark.parametrize(
    "home, place, found",
    [
        (None, None, "not found"),
        (None, "/usr/local/Ascend/nnal/atb", "/usr/local/Ascend/nnal/atb"),
        (None, "/home/user/Ascend/nnal/atb", "/home/user/Ascend/nnal/atb"),
        ("/opt/atb/latest/atb/cxx_abi_1", "/opt/atb/latest/atb/cxx_abi_1", "/opt/atb/latest/atb/cxx_abi_1"),
        ("/nowhere", "/usr/local/Ascend/nnal/atb", "/usr/local/Ascend/nnal/atb"),
        ("/nowhere", None, "not found"),
    ],
)
def test_nnal_is_reported_and_never_missed(machine, home, place, found):
    if home:
        machine.environ["ATB_HOME_PATH"] = home
    if place:
        machine.write(f"{place}/set_env.sh")
    report = machine.report("ascend")
    assert levels(report) == {}
    assert of(report, "NNAL")[0].found == f"{found}; the models here do not need its libatb"
    assert report.variables.get("ATB_HOME_PATH") == home


@pytest.mark.parametrize("device", [None, "cpu"])
def test_nothing_of_ascend_is_said_where_there_is_none(bare, device):
    report = bare.report(device)
    assert {finding.about for finding in report.findings} - {"device"} == {"Python", *GOOD}


def test_nothing_of_te_is_said_before_cann_is_sourced(machine):
    machine.environ = {"HOME": "/home/user"}
    report = machine.report()
    assert of(report, "te") == [] and "set_env.sh" in of(report, "CANN")[1].action


# Published combinations


@pytest.mark.parametrize(
    "mindspore, cann, driver, level, words",
    [
        ("2.6.0", "8.1.RC1", "25.0.rc1", OK, ""),
        ("2.7.0", "8.2.RC1", "25.2.0", OK, ""),
        ("2.7.0", "8.2.RC1", "24.1.RC1", WARNING, "driver here is older"),
        ("2.7.0", "8.2.RC1", "25.5.0", OK, "driver here is newer (25.5.0): this is not a published combination"),
        ("2.7.0", "8.1.RC1", "25.2.0", WARNING, "CANN here is older (8.1.RC1)"),
        ("2.7.0", "8.5.0", "25.2.0", WARNING, "CANN here is newer (8.5.0)"),
        ("2.7.0", "8.1.RC1", "25.0.rc1.1", WARNING, "CANN here is older (8.1.RC1), and the driver here is older"),
        ("2.7.1", "8.3.RC1", "25.3.rc1", OK, ""),
        ("2.7.2", "8.5.1", "25.5.0", OK, "CANN here is newer (8.5.1)"),
        ("2.7.2", "8.5.0.alpha002", "25.5.0", WARNING, "CANN here is older"),
        ("2.8.0", "8.5.0.alpha002", "24.1.RC1", OK, ""),
        ("2.8.0", "8.5.1", "24.1.RC1", OK, ""),
        ("2.9.0", "9.0.0", "25.5.0", WARNING, "driver here is older"),
        ("2.10.0", "9.1.0", "26.0.rc1", OK, ""),
        ("2.10.0", "9.0.0", "26.0.rc1", INFO, "CANN here is older (9.0.0)"),
        ("2.10.0", "8.2.RC1", "25.2.0", INFO, "MindSpore's own check accepts CANN 8.2, 8.3, 8.5, 9.0, 9.1"),
        ("2.10.0", "8.5.1", "25.2.0", WARNING, "CANN 8.5.1 goes with driver 25.5.0"),
        ("2.10.0", "8.1.RC1", "26.0.rc1", WARNING, "CANN here is older (8.1.RC1)"),
        ("2.7.0rc1", "8.2.RC1", "25.2.0", OK, ""),
        ("2.11.0", "9.1.0", "26.0.rc1", WARNING, "none are known here for MindSpore 2.11.0"),
    ],
)
def test_published_combinations(machine, mindspore, cann, driver, level, words):
    machine.packages["mindspore"] = mindspore
    machine.cann("/usr/local/Ascend/ascend-toolkit/8.2.RC1", cann)
    machine.driver(driver)
    machine.smi = None
    (finding,) = of(machine.report(), "published versions")
    assert finding.level == level and words in finding.found
    assert ("not a published" in finding.found) == bool(words and "none are known" not in words)
    assert of(machine.check(), "published versions") == [finding]


# npu-smi


def test_unhealthy_device(machine):
    machine.smi = npu_table().replace("| 3     910B4               | OK     ", "| 3     910B4               | Warning")
    report = machine.report()
    assert levels(report) == {"NPU 3": WARNING} and exit_status(report) == 1
    assert "health Warning" in of(report, "NPU 3")[0].found


@pytest.mark.parametrize(
    "text", [NO_ACCESS, "dcmi model initialized failed, because the device is used. ret is -8020\n"]
)
@pytest.mark.parametrize("device", [None, "ascend"])
def test_no_access_to_the_devices(machine, text, device):
    machine.smi = text
    (finding,) = of(machine.report(device), "npu-smi")
    assert finding.level == ERROR and text.splitlines()[-1] in finding.found
    for word in ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc", "/usr/local/Ascend/driver"):
        assert word in finding.action


def test_no_npu_smi(machine):
    machine.smi = None
    assert levels(machine.report("ascend")) == {"npu-smi": WARNING}


@pytest.mark.parametrize("text", ["", "npu-smi: error while loading shared libraries: libdcmi.so", "?\n" * 9, "\0"])
def test_other_output_of_npu_smi(machine, text):
    machine.smi = text
    report = machine.report()
    assert report.npu_smi.devices == () and levels(report) == {"npu-smi": ERROR}


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), subprocess.TimeoutExpired(["npu-smi", "info"], 30)])
def test_npu_smi_that_does_not_run(machine, error):
    def run():
        raise error

    machine.run = run
    report = machine.report()
    assert type(error).__name__ in of(report, "npu-smi")[0].found


# Variables


@pytest.mark.parametrize(
    "text, used",
    [
        ("0", [0]),
        ("0,1,3", [0, 1, 3]),
        ("0, 1", [0]),
        (" 0,1", []),
        ("2,1", [2]),
        ("0,0", [0]),
        ("0,1,", [0, 1]),
        ("0-7", [0]),
        ("", []),
        ("x", []),
        ("4,7", [4, 7]),
    ],
)
def test_visible_devices(machine, text, used):
    assert visible_devices(text) == used
    machine.environ["ASCEND_RT_VISIBLE_DEVICES"] = text
    found = of(machine.report(), "ASCEND_RT_VISIBLE_DEVICES")
    assert bool(found) == (text not in ("0", "0,1,3", "4,7"))
    if found:
        assert found[0].level == WARNING and repr(text) in found[0].found
        assert f"it means {','.join(map(str, used)) or 'no device'}" in found[0].found
        named = found[0].action.removeprefix("export ASCEND_RT_VISIBLE_DEVICES=").partition(":")[0]
        assert visible_devices(named) and ",".join(map(str, visible_devices(named))) == named


@pytest.mark.parametrize(
    "variables, about",
    [
        ({"ASCEND_VISIBLE_DEVICES": "void"}, "ASCEND_VISIBLE_DEVICES"),
        ({"ASCEND_VISIBLE_DEVICES": "0-7"}, None),
        ({"DEVICE_ID": "1"}, None),
        ({"DEVICE_ID": "npu"}, "DEVICE_ID"),
        ({"DEVICE_ID": "2", "ASCEND_RT_VISIBLE_DEVICES": "2,3"}, "DEVICE_ID"),
        ({"DEVICE_ID": "1", "ASCEND_RT_VISIBLE_DEVICES": "2,3"}, None),
        ({"RANK_ID": "0"}, "RANK_ID"),
        ({"RANK_SIZE": "8"}, "RANK_ID"),
        ({"RANK_ID": "8", "RANK_SIZE": "8"}, "RANK_ID"),
        ({"RANK_ID": "7", "RANK_SIZE": "8"}, None),
        ({"RANK_TABLE_FILE": "/job/ranks.json"}, "RANK_TABLE_FILE"),
        ({"RANK_TABLE_FILE": "/usr/local"}, None),
        ({"MINDONE_AUDIO_SKIP_CHECKS": "1"}, "MINDONE_AUDIO_SKIP_CHECKS"),
        ({"MINDONE_AUDIO_SKIP_CHECKS": "0"}, None),
        ({"ASCEND_OPP_PATH": "/usr/local/Ascend/cann-9.0.0/opp"}, "ASCEND_OPP_PATH"),
        ({"ASCEND_TOOLKIT_HOME": "/usr/local/Ascend/cann-9.0.0"}, "ASCEND_TOOLKIT_HOME"),
        ({"ASCEND_TOOLKIT_HOME": "/usr/local/Ascend/ascend-toolkit/8.2.RC1"}, None),  # where `latest` leads
    ],
)
def test_variables(machine, variables, about):
    machine.environ |= variables
    report = machine.report()
    assert levels(report) == ({about: WARNING} if about else {})
    assert all(report.variables[name] == value for name, value in variables.items())


def test_home_that_does_not_exist(machine):
    machine.environ["ASCEND_HOME_PATH"] = "/usr/local/Ascend/cann-8.3.0"
    (finding,) = of(machine.report(), "ASCEND_HOME_PATH")
    assert finding.level == ERROR and "/usr/local/Ascend/cann-8.3.0 does not exist" in finding.found
    assert finding.action == "source /usr/local/Ascend/ascend-toolkit/set_env.sh"


@pytest.mark.parametrize(
    "name, lacks",
    [
        ("LD_LIBRARY_PATH", "lib64"),
        ("PYTHONPATH", "opp/built-in/op_impl/ai_core/tbe"),
        ("ASCEND_OPP_PATH", "ASCEND_OPP_PATH is not set"),
    ],
)
def test_set_env_was_sourced_in_part(machine, name, lacks):
    del machine.environ[name]
    finding = of(machine.report(), "CANN")[1]
    assert finding.level == WARNING and name in finding.found and lacks in finding.found
    assert finding.action == "source /usr/local/Ascend/ascend-toolkit/set_env.sh"


def test_cann_not_sourced(machine):
    machine.environ = {"HOME": "/home/user"}
    assert levels(machine.report()) == {"CANN": ERROR}
    machine.smi = None
    machine.nodes(helpers=())
    (machine.root / "usr/local/Ascend/driver/version.info").unlink()
    assert levels(machine.report())["CANN"] == WARNING  # an image with CANN, on a machine without an NPU


def test_skipped_checks(machine):
    machine.driver("20.0.0")
    assert of(machine.check(), "driver")[0].level == ERROR
    machine.environ["MINDONE_AUDIO_SKIP_CHECKS"] = "1"
    assert machine.check() == []


def test_check_ascend_does_not_run_npu_smi(machine, monkeypatch):
    monkeypatch.setattr(doctor, "run_npu_smi", None)
    monkeypatch.setattr(subprocess, "run", None)
    assert levels(machine.check()) == {}


# Files


def test_files_that_cannot_be_read(machine):
    info = machine.root / "usr/local/Ascend/driver/version.info"
    machine.smi = None
    for content in (b"\x7fELF\0\nVersion=25.2.0\n", b"\xff\xfe\n=\n=5\nVersion\nVersion=\n", b""):
        info.write_bytes(content)
        assert read_driver(machine.root)[0] == versions.Found()
    info.write_bytes(b"\xff\nVersion=25.2.0\n")
    assert read_driver(machine.root)[0].chosen == "25.2.0"
    info.write_bytes(b"x" * 1_000_000 + b"\nVersion=25.2.0\n")  # only the beginning of a huge file is read
    assert read_driver(machine.root)[0] == versions.Found()
    info.unlink()
    info.mkdir()
    assert read_driver(machine.root)[0] == versions.Found()
    info.rmdir()
    os.mkfifo(info)  # opening it would wait for a writer
    assert read_driver(machine.root)[0] == versions.Found()
    info.unlink()
    info.symlink_to("version.info")
    assert read_driver(machine.root)[0] == versions.Found()
    assert exit_status(machine.report()) == 1


def test_a_file_that_is_forbidden(machine, monkeypatch):
    def forbidden(*arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    machine.smi = None
    monkeypatch.setattr("builtins.open", forbidden)
    driver, firmware = read_driver(machine.root)
    assert driver == firmware == versions.Found()
    monkeypatch.setattr(os, "listdir", forbidden)
    assert exit_status(machine.report("ascend")) == 2


def test_paths_of_variables_that_are_no_paths(machine):
    for name in doctor.VARIABLES + ("HOME", "CONDA_PREFIX", "PATH"):
        machine.environ[name] = "\0\udcff~"
    report = machine.report()
    assert exit_status(report) == 2
    format_report(report).encode("utf-8")


# Reports


def test_report_as_json(machine):
    report = machine.report()
    plain = report_as_json(report)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["exit_status"] == 0 and plain["cann"]["chosen"] == "8.2.RC1"
    assert plain["npu_smi"]["devices"][1]["memory_used_mb"] == 2886
    assert plain["driver"]["sources"][0] == {
        "file": "/usr/local/Ascend/driver/version.info",
        "field": "package_version",
        "value": "25.2.0",
    }
    assert {finding["level"] for finding in plain["findings"]} == {OK}


def test_format_report(machine):
    machine.driver("23.0.3")
    machine.environ["DEVICE_ID"] = "0"
    text = format_report(machine.report())
    lines = text.splitlines()
    # Columns are as wide as the widest name, ASCEND_TOOLKIT_HOME.
    assert "driver               23.0.3 in /usr/local/Ascend/driver/version.info (package_version) and 2 more" in lines
    home = "/usr/local/Ascend/ascend-toolkit/latest"
    toolkit = f"{home}/x86_64-linux/ascend_toolkit_install.info (version) and 5 more, active"
    assert f"CANN                 8.2.RC1 in {toolkit}" in lines
    assert "NPU 3                910B4, OK, 2886 / 65536 MB used" in lines
    assert "DEVICE_ID            0" in lines
    assert not any(line.startswith(("LD_LIBRARY_PATH", "PYTHONPATH")) for line in lines)  # too long to be read
    place = lines.index("error    driver: 23.0.3 is older than 24.1.RC1, the oldest that is supported")
    assert lines[place + 1].startswith("         what to do: install driver 24.1.RC1 or newer")
    assert lines[place + 2].startswith("         [driver-too-old] seen elsewhere as: error code 561103")
    assert lines[-1] == "errors: 1, warnings: 2"
    assert str(machine.root) not in text


def test_nothing_outside_the_root_is_read(bare, monkeypatch):
    """A tree of nothing gives nothing, whatever this machine has."""
    seen = []
    listdir, status = os.listdir, os.stat
    monkeypatch.setattr(os, "listdir", lambda path=".": seen.append(path) or listdir(path))
    monkeypatch.setattr(os, "stat", lambda path, **keywords: seen.append(path) or status(path, **keywords))
    bare.environ["ASCEND_HOME_PATH"] = "/usr/local/Ascend/cann"
    bare.report("ascend")
    places = [str(path) for path in seen if isinstance(path, str) and "scend" in path]
    assert len(places) > 3
    assert all(place.startswith(str(bare.root)) for place in places)


def test_import_is_cheap():
    code = (
        "import sys, mindone_audio.machine.doctor\n"
        "slow = {'mindspore', 'mindone', 'numpy', 'transformers', 'torch', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=60)

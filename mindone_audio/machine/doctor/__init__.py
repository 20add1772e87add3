"""What this machine has for MindSpore, whether it goes together, and what to do where it does not.

Only the standard library is used and neither MindSpore nor MindONE is imported, because this has to work where they
fail to import. Every absolute path, those in environment variables included, is looked up below `root`. What is
missing, unreadable or unknown is reported, and is never an exception.
"""

import importlib
import os
import platform
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata

from mindone_audio.machine.chips import chip_by_soc
from mindone_audio.machine.doctor import cann, devices, host, libraries, versions_fit
from mindone_audio.machine.doctor.devices import visible_devices
from mindone_audio.machine.doctor.finding import ERROR, INFO, OK, WARNING, Finding
from mindone_audio.machine.doctor.machine import Machine
from mindone_audio.machine.doctor.report import Report, exit_status, format_report, report_as_json
from mindone_audio.machine.doctor.versions_fit import REQUIREMENTS
from mindone_audio.machine.npu_smi import read_npu_smi, run_npu_smi
from mindone_audio.machine.versions import HOMES, active_cann, find_cann, read_driver

__all__ = ["ERROR", "INFO", "OK", "REQUIREMENTS", "SKIP_CHECKS", "VARIABLES", "WARNING", "Finding", "Report"]
__all__ += ["check_ascend", "exit_status", "format_report", "inspect_environment", "report_as_json", "skips_checks"]
__all__ += ["visible_devices"]

SKIP_CHECKS = "MINDONE_AUDIO_SKIP_CHECKS"
DEVICE_VARIABLES = (devices.MOUNTED, devices.VISIBLE, devices.DEVICE_ID)
VARIABLES = (*HOMES, "ASCEND_OPP_PATH", "ATB_HOME_PATH", *cann.SEARCH_PATHS, *DEVICE_VARIABLES, *host.JOB_VARIABLES)
VARIABLES += (*host.FOLDER_VARIABLES, "LD_PRELOAD", SKIP_CHECKS)

# In the order in which they are reported. What stands first is often the cause of what follows.
ALWAYS = (versions_fit.check_python, versions_fit.check_packages)
OF_ASCEND = (  # where there is a CANN or an NPU, or one is asked for
    versions_fit.check_driver,
    cann.check_cann,
    cann.check_variables,
    versions_fit.check_pair,
    versions_fit.check_firmware,
    cann.check_parts,
    cann.check_te,
    cann.check_python_modules,
    versions_fit.check_side_packages,
    libraries.check_plugin,
    libraries.check_preloads,
    devices.check_npu_smi,
)
OF_NPU = (  # where there is one
    libraries.check_driver_libraries,
    devices.check_chips,
    devices.check_nodes,
    devices.check_user,
    devices.check_memory,
    host.check_folders,
    host.check_cores,
    host.check_limits,
)
OF_VARIABLES = (devices.check_device_variables, host.check_job)


def inspect_environment(
    root: str | os.PathLike = "/",
    environ: Mapping[str, str] | None = None,
    *,
    device: str | None = None,
    run: Callable[[], str] | None = None,
    package_version: Callable[[str], str] = metadata.version,
    find_spec: Callable[[str], object | None] | None = None,
    folder: str | None = None,
) -> Report:
    """Look at the machine and judge what it has.

    `device` is what the caller wants to run on. `"cpu"` leaves the Ascend part out; with `"ascend"` whatever an NPU
    needs and is not there is an error; with `None` a machine without an NPU is only told that it runs on CPU.
    `run` returns the output of `npu-smi info`, or raises `OSError` or `subprocess.SubprocessError`; `find_spec` says
    whether this Python has a module, otherwise its folders are looked through; `folder` is the working folder.
    Raises `ValueError` for another device, and nothing else.
    """
    environ = os.environ if environ is None else environ
    device = device_kind(device)
    importlib.invalidate_caches()  # modules that were installed since this process began
    machine = Machine(
        root, environ, package_version, find_spec, tuple(filter(os.path.isabs, sys.path)), folder or _working_folder()
    )
    machine.packages = {name: machine.version_of(name) for name in ("mindspore", "mindone", "transformers", "numpy")}
    checks, variables = ALWAYS, {}
    if device != "cpu":
        machine.smi = read_npu_smi(run or partial(run_npu_smi, root, environ))
        machine.driver, machine.firmware = read_driver(root, machine.smi.driver_version)
        machine.installs = find_cann(root, environ)
        variables = {name: environ[name] for name in VARIABLES if name in environ}
        has_npu = machine.has_nodes or bool(machine.driver.sources) or not machine.smi.missing
        machine.required = ERROR if has_npu or device == "ascend" else WARNING
        checks += OF_ASCEND if has_npu or machine.installs or device == "ascend" else (_check_no_npu,)
        checks += (OF_NPU if has_npu else ()) + OF_VARIABLES + (_check_skips,)
    return Report(
        device=device,
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        python=platform.python_version(),
        packages=machine.packages,
        driver=machine.driver,
        firmware=machine.firmware,
        cann=active_cann(machine.installs),
        cann_installs=machine.installs,
        npu_smi=machine.smi,
        variables=variables,
        findings=tuple(finding for check in checks for finding in check(machine)),
    )


def check_ascend(
    environ: Mapping[str, str] | None = None,
    root: str | os.PathLike = "/",
    *,
    package_version: Callable[[str], str] = metadata.version,
    soc: str = "",
) -> list[Finding]:
    """The versions of MindSpore, the driver and CANN, from files alone, for a program that already runs on an NPU.

    `soc` is the chip's name for MindSpore, such as ascend910b; with it, a chip whose graphs go elsewhere is told of.
    It takes milliseconds. What is known to be too old is an error, for the caller to raise before it reads a weight.
    What is not found is a warning: a container may hide the files of a driver that works. Empty where
    MINDONE_AUDIO_SKIP_CHECKS is set.
    """
    environ = os.environ if environ is None else environ
    if skips_checks(environ):
        return []
    machine = Machine(root, environ, package_version, python_path=tuple(filter(os.path.isabs, sys.path)))
    machine.packages = {"mindspore": machine.version_of("mindspore")}
    machine.driver, _ = read_driver(root)
    machine.installs = find_cann(root, environ)
    return [
        versions_fit.check_minimum(machine, "mindspore", machine.packages["mindspore"]),
        *versions_fit.check_release(machine, "driver", machine.driver),
        *versions_fit.check_release(machine, "CANN", active_cann(machine.installs)),
        *versions_fit.check_pair(machine),
        *(devices.check_graph_engine(machine, soc, chip) if (chip := chip_by_soc(soc)) else ()),
    ]


def skips_checks(environ: Mapping[str, str]) -> bool:
    return environ.get(SKIP_CHECKS, "").strip().lower() not in ("", "0", "false", "no")


def _check_no_npu(machine: Machine):
    yield machine.say("no-npu")


def _check_skips(machine: Machine):
    if skips_checks(machine.environ):
        yield machine.say("checks-skipped", name=SKIP_CHECKS, value=machine.environ[SKIP_CHECKS])


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return "/"


def device_kind(device: str | None) -> str | None:
    """cpu or ascend of a device's name, None where the machine is to be judged; `ValueError` for another name."""
    kinds = {"auto": None, "cpu": "cpu", "ascend": "ascend", "npu": "ascend"}
    kind = "auto" if device is None else str(device).lower().partition(":")[0]
    if kind not in kinds:
        raise ValueError(f"unknown device {device!r}: use one of {', '.join(kinds)}")
    return kinds[kind]

"""What this machine has for MindSpore, whether it goes together, and what to do where it does not.

Only the standard library is used and neither MindSpore nor MindONE is imported, because this has to work where they
fail to import. Every absolute path, those in environment variables included, is looked up below `root`. What is
missing, unreadable or unknown is reported, and is never an exception.
"""

import json
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata

from mindone_audio.machine.npu_smi import NpuSmi, read_npu_smi, run_npu_smi
from mindone_audio.machine.versions import (
    ASCEND,
    HOMES,
    MINIMUM,
    PUBLISHED,
    CannInstall,
    Found,
    Source,
    VersionKey,
    active_cann,
    ascend_folders,
    below,
    children,
    compare,
    find_cann,
    find_nnal,
    firmware_fit,
    is_folder,
    read_driver,
    resolved,
    satisfies,
    set_env,
    version_key,
)

OK, WARNING, ERROR = "ok", "warning", "error"
SKIP_CHECKS = "MINDONE_AUDIO_SKIP_CHECKS"

# This library's own requirements: what another version is, and why.
REQUIREMENTS = {
    "mindspore>=2.7.0,<2.11": (WARNING, "this library is tested with no other versions"),
    "mindone==0.5.0": (WARNING, "the models extend classes of this version"),
    "transformers==4.57.1": (WARNING, "mindone 0.5.0 is written for this version and requires it"),
    "numpy<2": (ERROR, "mindone 0.5.0 requires it, and CANN's operator compilers may use names that numpy 2 removed"),
}

# Which CANN (its set_env.sh sets these), where its libraries and operator compilers are, the devices of the container
# and of the process, and what a job of several devices leaves behind: with it, one process waits for the others.
SEARCH_PATHS = ("LD_LIBRARY_PATH", "PYTHONPATH")
DEVICE_VARIABLES = ("ASCEND_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "DEVICE_ID")
JOB_VARIABLES = ("RANK_TABLE_FILE", "RANK_ID", "RANK_SIZE")
VARIABLES = (*HOMES, "ASCEND_OPP_PATH", "ATB_HOME_PATH", *SEARCH_PATHS, *DEVICE_VARIABLES, *JOB_VARIABLES, SKIP_CHECKS)


@dataclass(frozen=True)
class Finding:
    level: str  # ok, warning or error
    about: str
    found: str
    action: str = ""


@dataclass(frozen=True)
class Report:
    device: str | None  # what the caller wants to run on: cpu, ascend, or None
    system: str
    architecture: str
    python: str
    packages: dict[str, str | None]
    driver: Found
    firmware: Found
    cann: Found
    cann_installs: tuple[CannInstall, ...]
    npu_smi: NpuSmi
    variables: dict[str, str]
    findings: tuple[Finding, ...]


def inspect_environment(
    root: str | os.PathLike = "/",
    environ: Mapping[str, str] | None = None,
    *,
    device: str | None = None,
    run: Callable[[], str] | None = None,
    package_version: Callable[[str], str] = metadata.version,
) -> Report:
    """Look at the machine and judge what it has.

    `device` is what the caller wants to run on. `"cpu"` leaves the Ascend part out; with `"ascend"` whatever an NPU
    needs and is not there is an error; with `None` a machine without an NPU is only told that it runs on CPU.
    `run` returns the output of `npu-smi info`, or raises `OSError` or `subprocess.SubprocessError`.
    Raises `ValueError` for another device, and nothing else.
    """
    environ = os.environ if environ is None else environ
    device = _device_kind(device)
    packages = {name: _package(name, package_version) for name in ("mindspore", "mindone", "transformers", "numpy")}
    findings = [_python_finding(), *_package_findings(packages)]
    driver, firmware, installs, smi, variables = Found(), Found(), (), NpuSmi(), {}
    if device != "cpu":
        smi = read_npu_smi(run or partial(run_npu_smi, root, environ))
        driver, firmware = read_driver(root, smi.driver_version)
        installs = find_cann(root, environ)
        variables = {name: environ[name] for name in VARIABLES if name in environ}
        has_nodes = any(re.fullmatch("davinci[0-9]+", name) for name in children(root, "/dev"))
        has_npu = has_nodes or bool(driver.sources) or not smi.missing
        required = ERROR if has_npu or device == "ascend" else WARNING
        if has_npu or installs or device == "ascend":
            findings += _driver_findings(root, driver, has_nodes or bool(smi.devices), required)
            findings += _cann_findings(installs, environ, required)
            findings += _pair_findings(packages["mindspore"], active_cann(installs).chosen, driver.chosen)
            findings += _firmware_findings(root, driver, firmware)
            findings += _te_findings(root, environ, installs, _package("te", package_version))
            nnal = find_nnal(root, environ) or "not found"
            findings.append(Finding(OK, "NNAL", f"{nnal}; the models here do not need its libatb"))
            findings += _npu_smi_findings(smi, required)
        else:
            found = "CPU-only machine: no driver, no CANN and no npu-smi. Everything runs on CPU, in float32"
            action = "nothing if that is what you want; otherwise install the Ascend driver and CANN"
            findings.append(Finding(WARNING, "device", found, action))
        findings += _variable_findings(root, environ, installs, required)
    return Report(
        device=device,
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        python=platform.python_version(),
        packages=packages,
        driver=driver,
        firmware=firmware,
        cann=active_cann(installs),
        cann_installs=installs,
        npu_smi=smi,
        variables=variables,
        findings=tuple(findings),
    )


def check_ascend(
    environ: Mapping[str, str] | None = None,
    root: str | os.PathLike = "/",
    *,
    package_version: Callable[[str], str] = metadata.version,
) -> list[Finding]:
    """The versions of MindSpore, the driver and CANN, from files alone, for a program that already runs on an NPU.

    It takes milliseconds. What is known to be too old is an error, for the caller to raise before it reads a weight.
    What is not found is a warning: a container may hide the files of a driver that works. Empty where
    MINDONE_AUDIO_SKIP_CHECKS is set.
    """
    environ = os.environ if environ is None else environ
    if skips_checks(environ):
        return []
    mindspore = _package("mindspore", package_version)
    driver, _ = read_driver(root)
    cann = active_cann(find_cann(root, environ))
    return [
        _minimum_finding("mindspore", mindspore),
        *_release_findings("driver", driver),
        *_release_findings("CANN", cann),
        *_pair_findings(mindspore, cann.chosen, driver.chosen),
    ]


def exit_status(report: Report) -> int:
    """2 where there is an error, 1 where there is a warning, otherwise 0."""
    levels = {finding.level for finding in report.findings}
    return 2 if ERROR in levels else int(WARNING in levels)


def report_as_json(report: Report) -> dict:
    """The report as lists, dictionaries, strings, numbers and `None`, with its exit status."""
    return json.loads(json.dumps(asdict(report))) | {"exit_status": exit_status(report)}


def format_report(report: Report) -> str:
    """The report for people: what there is, then each finding with what to do about it."""
    rows = [("system", f"{report.system}, {report.architecture}"), ("Python", report.python)]
    rows += [(name, version or "not installed") for name, version in report.packages.items()]
    if report.device != "cpu":
        rows += [("driver", str(report.driver)), ("firmware", str(report.firmware))]
        for install in report.cann_installs:
            version = str(install.version) if install.version.chosen else f"unknown at {install.path}"
            rows.append(("CANN", version + (", active" if install.active else ", not active")))
        if not report.cann_installs:
            rows.append(("CANN", "not found"))
        for npu in report.npu_smi.devices:
            used = f"{npu.memory_used_mb} / {npu.memory_total_mb} MB used" if npu.memory_total_mb else "memory unknown"
            rows.append((f"NPU {npu.id}", f"{npu.name}, {npu.health}, {used}"))
        rows += [(name, value) for name, value in report.variables.items() if name not in SEARCH_PATHS]
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:<{width}}{value}".rstrip() for name, value in rows] + [""]
    for finding in report.findings:
        lines.append(f"{finding.level:<9}{finding.about}: {finding.found}")
        if finding.action:
            lines.append(f"{'':<9}what to do: {finding.action}")
    errors, warnings = (sum(finding.level == level for finding in report.findings) for level in (ERROR, WARNING))
    lines += ["", f"errors: {errors}, warnings: {warnings}"]
    return "\n".join(lines).encode("utf-8", "replace").decode()  # a variable may hold bytes that are no text


def visible_devices(text: str) -> list[int]:
    """The devices that ASCEND_RT_VISIBLE_DEVICES gives a process: it is read while its numbers ascend.

    A space or any other character ends it, so that "0, 1" is device 0 alone, and "2,1" is device 2.
    """
    devices: list[int] = []
    for number in re.match("[0-9,]*", text)[0].split(","):
        if not _is_number(number) or (devices and int(number) <= devices[-1]):
            break
        devices.append(int(number))
    return devices


def _device_kind(device: str | None) -> str | None:
    kinds = {"cpu": "cpu", "ascend": "ascend", "npu": "ascend"}
    kind = str(device).lower().partition(":")[0]
    if device is not None and kind not in kinds:
        known = ", ".join(kinds)
        raise ValueError(f"unknown device {device!r}: use one of {known}, or none to have the machine judged")
    return kinds.get(kind)


def _package(name: str, package_version: Callable[[str], str]) -> str | None:
    try:
        return package_version(name)
    except (metadata.PackageNotFoundError, KeyError, OSError, ValueError):  # absent, or its metadata is broken
        return None


def _python_finding() -> Finding:
    version = platform.python_version()
    key = version_key(version)
    if key and (3, 10) <= key[:2] < (3, 13):
        return Finding(OK, "Python", version)
    action = "make a virtual environment with Python 3.11"
    return Finding(WARNING, "Python", f"{version} is outside 3.10 to 3.12", action)


def _package_findings(packages: Mapping[str, str | None]) -> list[Finding]:
    findings = []
    for requirement, (level, reason) in REQUIREMENTS.items():
        name = re.match("[a-z]+", requirement)[0]
        version, install = packages[name], f'pip install "{requirement}"'
        key = version_key(version)
        if version is None:
            findings.append(Finding(ERROR, name, "not installed", install))
        elif key is None:
            found = f"version {version!r} is not understood, so it cannot be checked"
            findings.append(Finding(WARNING, name, found, f"make sure that it is {requirement}, or {install}"))
        elif name in MINIMUM and key < version_key(MINIMUM[name]):
            findings.append(_minimum_finding(name, version))
        elif not satisfies(key, requirement):
            findings.append(Finding(level, name, f"{version} is not {requirement}: {reason}", install))
        else:
            findings.append(Finding(OK, name, version))
    return findings


def _minimum_finding(about: str, version: str | None) -> Finding:
    minimum = MINIMUM[about]
    action = {
        "mindspore": f'pip install "{next(iter(REQUIREMENTS))}"',
        "driver": f"install driver {minimum} or newer on the host, with its firmware, and restart the machine",
        "CANN": f"install CANN {minimum} or newer, the toolkit and the kernels of your chip, and source its set_env.sh",
    }[about]
    if version_key(version) is None:
        said = "version not found" if version is None else f"version {version!r} is not understood"
        return Finding(WARNING, about, f"{said}, so it cannot be checked", f"make sure that it is {minimum} or newer")
    if version_key(version) < version_key(minimum):
        return Finding(ERROR, about, f"{version} is older than {minimum}, the oldest that is supported", action)
    return Finding(OK, about, version)


def _release_findings(about: str, version: Found) -> list[Finding]:
    """Whether a version is new enough, and a warning where two sources differ by more than case or build number."""
    findings = [_minimum_finding(about, version.chosen)]
    distinct: dict[VersionKey | str, Source] = {}
    for source in version.sources:
        distinct.setdefault(version_key(source.value) or source.value.lower(), source)
    if len(distinct) > 1:
        action = {
            "driver": "restart the machine after an upgrade; in a container, mount the driver folder of the host",
            "CANN": "install the toolkit and the kernels of one version, in one folder",
        }[about]
        found = f"the sources disagree: {'; '.join(map(str, distinct.values()))}. {version.chosen} is used here"
        findings.append(Finding(WARNING, about, found, action))
    return findings


def _driver_findings(root, driver: Found, has_devices: bool, required: str) -> list[Finding]:
    if driver.chosen or has_devices:
        return _release_findings("driver", driver)
    places = " or ".join(f"{folder}/driver/version.info" for folder in ascend_folders(root))
    action = "install the Ascend driver; in a container, mount the host's driver folder and /etc/ascend_install.info"
    return [Finding(required, "driver", f"no version in {places}, so no NPU can be used", action)]


def _cann_findings(installs: tuple[CannInstall, ...], environ: Mapping[str, str], required: str) -> list[Finding]:
    if not installs:
        action = f"install CANN {MINIMUM['CANN']} or newer and source its set_env.sh"
        return [Finding(required, "CANN", f"not found below {ASCEND}, the home folder or a conda environment", action)]
    findings = _release_findings("CANN", active_cann(installs))
    newest = max(installs, key=lambda install: install.order)
    source = f"source {newest.set_env} (in a script, after `set +u`: it reads variables that are not set)"
    if not any(environ.get(name) for name in HOMES):
        found = f"{newest.path} is installed, but its set_env.sh was not sourced: ASCEND_HOME_PATH is not set"
        findings.append(Finding(required, "CANN", found, source))
    for install in installs:
        if install.active and () < install.order < newest.order:
            found = f"{install.version.chosen} at {install.path} is active; {newest.path} has {newest.version.chosen}"
            action = f"keep it if it is the one that goes with your MindSpore, otherwise {source}"
            findings.append(Finding(WARNING, "CANN", found, action))
    return findings


def _pair_findings(mindspore: str | None, cann: str | None, driver: str | None) -> list[Finding]:
    """Whether MindSpore, CANN and the driver were published together; nothing where a version is not known."""
    release, key = version_key(mindspore), version_key(cann)
    if release is None or key is None:
        return []
    about, name = "published versions", ".".join(map(str, release[:3]))
    if name not in PUBLISHED:
        action = "look CANN and the driver up in MindSpore's installation guide"
        return [Finding(WARNING, about, f"none are known here for MindSpore {mindspore}", action)]
    published_cann, published_driver = PUBLISHED[name]
    published = f"CANN {published_cann}" + (f" and driver {published_driver}" if published_driver else "")
    said, serious = [], False
    if order := compare(key, published_cann):
        said.append(f"CANN here is {'older' if order < 0 else 'newer'} ({cann})")
        serious = order < 0 or key[:2] != version_key(published_cann)[:2]  # a newer patch is the same interface
    if published_driver and version_key(driver) and (order := compare(version_key(driver), published_driver)):
        said.append(f"the driver here is {'older' if order < 0 else 'newer'} ({driver})")
        serious = serious or order < 0
    found = f"MindSpore {name} goes with {published}"
    if said:
        found += f"; {', and '.join(said)}: this is not a published combination"
    if serious:
        return [Finding(WARNING, about, found, f"it may work; if an operator fails, use {published}")]
    return [Finding(OK, about, found)]


def _firmware_findings(root, driver: Found, firmware: Found) -> list[Finding]:
    """Whether the driver and the firmware go together; nothing where no file says, as in most containers."""
    fit = firmware_fit(root, driver, firmware)
    if fit is None:
        return []
    if fit.fits:
        return [Finding(OK, "firmware", f"{fit.firmware} goes with driver {driver.chosen}")]
    works = f"the firmware that driver {driver.chosen} works with"
    if fit.fits is None:
        found = f"{fit.firmware!r} cannot be compared with {fit.accepted!r}, {works}: a version is not understood"
        return [Finding(WARNING, "firmware", found, "make sure that driver and firmware were published together")]
    action = "on the host, install a driver and a firmware that were published together, and restart the machine"
    return [Finding(WARNING, "firmware", f"{fit.firmware} is outside {fit.accepted}, {works}", action)]


def _te_findings(root, environ: Mapping[str, str], installs, by_pip: str | None) -> list[Finding]:
    """Whether Python finds CANN's package te, in PYTHONPATH or by pip; nothing before set_env.sh is sourced."""
    active = next((install for install in installs if install.active), None)
    if active is None:
        return []
    places = [f"{entry.rstrip('/')}/te" for entry in environ.get("PYTHONPATH", "").split(":") if entry]
    if place := next((place for place in places if is_folder(root, place)), by_pip):
        return [Finding(OK, "te", place)]
    found = "MindSpore imports this Python package of CANN on Ascend, and no folder of PYTHONPATH has it"
    shipped, action = f"{active.path}/python/site-packages/te", f"source {active.set_env}"
    if not is_folder(root, shipped):
        found += f", nor is there {shipped}"
        action = f"install the CANN toolkit again or `pip install {active.path}/lib64/te-*.whl`, and {action}"
    return [Finding(WARNING, "te", found, action)]


def _npu_smi_findings(smi: NpuSmi, required: str) -> list[Finding]:
    if smi.missing:
        action = "add /usr/local/sbin to PATH; in a container, mount the host's npu-smi and /usr/local/dcmi"
        return [Finding(WARNING, "npu-smi", "not found, so the health of the devices is not known", action)]
    if smi.problem and re.search("ret is -[0-9]+", smi.problem):
        action = (
            "in a container, start it with /dev/davinci<N>, /dev/davinci_manager, /dev/devmm_svm and /dev/hisi_hdc, "
            f"and mount {ASCEND}/driver and /usr/local/dcmi; make sure that no other container has the device; on the "
            "host, join the group that owns /dev/davinci*, and restart after the driver was installed"
        )
        return [Finding(ERROR, "npu-smi", f"no access to the devices: {smi.problem}", action)]
    if smi.problem:
        action = "run `npu-smi info` by hand; if a library is not found, add the driver's lib64 to LD_LIBRARY_PATH"
        return [Finding(required, "npu-smi", f"shows no device: {smi.problem}", action)]
    action = "use other devices (ASCEND_RT_VISIBLE_DEVICES); `npu-smi info -t health -i <NPU>` tells the fault"
    findings = [
        Finding(WARNING, f"NPU {npu.id}", f"{npu.name} has health {npu.health}, not OK", action)
        for npu in smi.devices
        if npu.health.upper() != "OK"
    ]
    return findings or [Finding(OK, "npu-smi", f"healthy devices: {len(smi.devices)}")]


def _variable_findings(root, environ: Mapping[str, str], installs, required: str) -> list[Finding]:
    findings = _cann_variable_findings(root, environ, installs, required) + _device_variable_findings(environ)
    table, rank, size = (environ.get(name) for name in JOB_VARIABLES)
    if table and not os.path.exists(below(root, table)):
        action = "unset it if this is not a job of several devices, otherwise give the rank table's path"
        findings.append(Finding(WARNING, "RANK_TABLE_FILE", f"{table} does not exist", action))
    if (rank or size) and not (_is_number(rank) and _is_number(size) and int(rank) < int(size)):
        action = "set both, RANK_ID below RANK_SIZE, or unset both if this is not a job of several devices"
        findings.append(Finding(WARNING, "RANK_ID", f"RANK_ID is {rank!r} and RANK_SIZE is {size!r}", action))
    if skips_checks(environ):
        found = f"set to {environ[SKIP_CHECKS]!r}: loading a model on Ascend does not look at versions"
        findings.append(Finding(WARNING, SKIP_CHECKS, found, f"unset {SKIP_CHECKS}"))
    return findings


def _cann_variable_findings(root, environ: Mapping[str, str], installs, required: str) -> list[Finding]:
    """Whether the variables belong to one CANN that exists, as its set_env.sh leaves them."""
    name = next((name for name in HOMES if environ.get(name)), None)
    if name is None:
        return []
    home = environ[name].rstrip("/")
    if not is_folder(root, home):
        action = " or ".join(f"source {install.set_env}" for install in installs) or f"unset {name}, or install CANN"
        return [Finding(required, name, f"{home} does not exist", action)]
    source = f"source {set_env(root, home)}"
    findings = []
    for other, place in (("ASCEND_TOOLKIT_HOME", home), ("ASCEND_OPP_PATH", f"{home}/opp")):
        value = environ.get(other)
        if value and resolved(root, value) != resolved(root, place):
            found = f"{value} is not {place}: two installations of CANN are mixed"
            findings.append(Finding(WARNING, other, found, f"unset it, start from a new shell and {source}"))
    lacking = [] if environ.get("ASCEND_OPP_PATH") else ["ASCEND_OPP_PATH is not set"]
    for variable, part in zip(SEARCH_PATHS, ("lib64", "opp/built-in/op_impl/ai_core/tbe")):
        entries = [resolved(root, entry) for entry in environ.get(variable, "").split(":") if entry]
        if resolved(root, f"{home}/{part}") not in entries:
            lacking.append(f"{variable} lacks {home}/{part}")
    if lacking:
        found = f"set_env.sh was sourced in part or not at all: {'; '.join(lacking)}"
        findings.append(Finding(WARNING, "CANN", found, source))
    return findings


def _device_variable_findings(environ: Mapping[str, str]) -> list[Finding]:
    findings = []
    mounted, visible, device = (environ.get(name) for name in DEVICE_VARIABLES)
    if mounted is not None and mounted.strip().lower() in ("", "void"):
        action = "start the container with the devices that it may use, such as ASCEND_VISIBLE_DEVICES=0-7"
        found = f"{mounted!r} gives this container no device"
        findings.append(Finding(WARNING, "ASCEND_VISIBLE_DEVICES", found, action))
    used = None if visible is None else visible_devices(visible)
    if used is not None and (not used or ",".join(map(str, used)) != visible):
        found = f"{visible!r} is read only up to the first space, unknown character or number out of order: "
        found += f"it means {','.join(map(str, used)) or 'no device'}"
        action = "give ascending numbers with commas and without spaces, such as 0,1,2"
        findings.append(Finding(WARNING, "ASCEND_RT_VISIBLE_DEVICES", found, action))
    if device is not None and (not _is_number(device) or (used is not None and int(device) >= len(used))):
        action = "unset it, or count from 0 among the devices of ASCEND_RT_VISIBLE_DEVICES"
        findings.append(Finding(WARNING, "DEVICE_ID", f"{device!r} is not the number of a visible device", action))
    return findings


def _is_number(text: str | None) -> bool:
    return bool(text and re.fullmatch("[0-9]{1,9}", text))


def skips_checks(environ: Mapping[str, str]) -> bool:
    return environ.get(SKIP_CHECKS, "").strip().lower() not in ("", "0", "false", "no")

"""The report of a machine, for people and for programs."""

import json
from dataclasses import asdict, dataclass

from mindone_audio.machine.doctor.cann import SEARCH_PATHS
from mindone_audio.machine.doctor.finding import ERROR, OK, WARNING, Finding
from mindone_audio.machine.npu_smi import NpuSmi
from mindone_audio.machine.versions import CannInstall, Found


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


def exit_status(report: Report) -> int:
    """2 where there is an error, 1 where there is a warning, otherwise 0."""
    levels = {finding.level for finding in report.findings}
    return 2 if ERROR in levels else int(WARNING in levels)


def report_as_json(report: Report) -> dict:
    """The report as lists, dictionaries, strings, numbers and `None`, with its exit status."""
    return json.loads(json.dumps(asdict(report))) | {"exit_status": exit_status(report)}


def format_report(report: Report) -> str:
    """The report for people: what there is, then each finding with its code and with what to do about it."""
    rows = [("system", f"{report.system}, {report.architecture}"), ("Python", report.python)]
    rows += [(name, version or "not installed") for name, version in report.packages.items()]
    if report.device != "cpu":
        rows += _ascend_rows(report)
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:<{width}}{value}".rstrip() for name, value in rows] + [""]
    for finding in report.findings:
        lines.append(f"{finding.level:<9}{finding.about}: {finding.found}")
        if finding.action:
            lines.append(f"{'':<9}what to do: {finding.action}")
        if finding.level != OK:
            lines.append(
                f"{'':<9}[{finding.code}]" + (f" seen elsewhere as: {finding.symptom}" * bool(finding.symptom))
            )
    errors, warnings = (sum(finding.level == level for finding in report.findings) for level in (ERROR, WARNING))
    lines += ["", f"errors: {errors}, warnings: {warnings}"]
    return "\n".join(lines).encode("utf-8", "replace").decode()  # a variable may hold bytes that are no text


def _ascend_rows(report: Report) -> list[tuple[str, str]]:
    rows = [("driver", str(report.driver)), ("firmware", str(report.firmware))]
    for install in report.cann_installs:
        version = str(install.version) if install.version.chosen else f"unknown at {install.path}"
        rows.append(("CANN", version + (", active" if install.active else ", not active")))
    if not report.cann_installs:
        rows.append(("CANN", "not found"))
    for npu in report.npu_smi.devices:
        used = f"{npu.memory_used_mb} / {npu.memory_total_mb} MB used" if npu.memory_total_mb else "memory unknown"
        rows.append((f"NPU {npu.id}", f"{npu.name}, {npu.health}, {used}"))
    return rows + [(name, value) for name, value in report.variables.items() if name not in SEARCH_PATHS]

"""The devices that `npu-smi info` prints, read from its table without MindSpore and without CANN."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mindone_audio.machine.tree import below

_SECONDS = 30  # before it is given up
_CHARACTERS = 1_000_000  # that are read

# A device takes two lines. The columns drift and differ between generations, so only their order is relied on:
#   | 0     910B4               | OK            | 105.5       39                0    / 0             |
#   | 0                         | xxxx:xx:xx.x  | 5           0    / 0          6154 / 65536         |
# The second line of an A3 has the chip and its physical number. The 950 series puts a bar after the NPU's number, and
# nothing before the second line's address. The last pair is the memory that models use, on all of them. The table of
# processes that follows has numbers where the names are here; the 950 series has no chip there.
_DEVICE_LINE = re.compile(
    r"\|\s*(?P<npu>[0-9]{1,6})(?:\s+|\s*\|\s*)(?P<name>[\w-]{0,40}[A-Za-z][\w-]{0,40})\s*\|\s*(?P<health>[A-Za-z]+)\s*\|"
    r"\s*(?:-|NA|[0-9.]+)\s+(?:-|NA|[0-9]+)\s"
)
_CHIP_LINE = re.compile(
    r"\|\s*(?:(?P<chip>[0-9]{1,6})(?:\s+(?P<physical>[0-9]{1,6}))?)?\s*\|.*?(?P<used>[0-9]{1,9})\s*/\s*(?P<total>[0-9]{1,9})\s*\|?\s*$"
)
_BUS = re.compile(r"\b[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]\b")
_PROCESS_LINE = re.compile(
    r"\|\s*(?P<npu>[0-9]{1,6})(?:\s+(?P<chip>[0-9]{1,6}))?\s*\|\s*(?P<pid>[0-9]{1,10})\s*\|"
    r"(?P<name>[^|]*)\|\s*(?P<memory>[0-9]{1,9})?[^|]*\|"
)
_TOOL_LINE = re.compile(r"npu-smi\s+\S+\s+Version:\s*(\S+)")


@dataclass(frozen=True)
class NpuDevice:
    id: int  # the physical chip where npu-smi prints it, otherwise the NPU
    npu: int
    name: str
    health: str
    memory_used_mb: int | None = None
    memory_total_mb: int | None = None
    chip: int = 0  # among the chips of the NPU
    bus: str | None = None  # its address on the PCI bus


@dataclass(frozen=True)
class NpuProcess:
    npu: int
    chip: int | None  # None where npu-smi does not tell
    pid: int
    name: str
    memory_mb: int | None


@dataclass(frozen=True)
class NpuSmi:
    driver_version: str | None = None
    devices: tuple[NpuDevice, ...] = ()
    processes: tuple[NpuProcess, ...] = ()
    problem: str | None = None  # what it said instead of a table
    missing: bool = False


def run_npu_smi(root: str | os.PathLike, environ: Mapping[str, str]) -> str:
    """What `npu-smi info` prints. Raises `FileNotFoundError` without the tool, and what `subprocess.run` raises."""
    folders = [folder for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    folders += [below(root, "/usr/local/sbin"), below(root, "/usr/local/bin")]  # not on every user's PATH
    tool = shutil.which("npu-smi", path=os.pathsep.join(folders))
    if tool is None:
        raise FileNotFoundError("npu-smi is not on PATH")
    finished = subprocess.run(
        [tool, "info"],
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_SECONDS,
    )
    return finished.stdout.decode("utf-8", "replace")


def read_npu_smi(run: Callable[[], str]) -> NpuSmi:
    """What `run` returns as devices, or why it has none."""
    try:
        return parse_npu_smi(run())
    except FileNotFoundError:
        return NpuSmi(missing=True)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return NpuSmi(problem=f"npu-smi info does not run: {type(error).__name__}: {error}")


def parse_npu_smi(output: str) -> NpuSmi:
    """The devices, the processes on them and the driver's version, in the text that `npu-smi info` prints."""
    lines = [line.strip()[:400] for line in output[:_CHARACTERS].splitlines() if line.strip()]
    version = _TOOL_LINE.search("\n".join(lines))
    devices, processes, waiting = [], [], False
    for line in lines:
        if match := _DEVICE_LINE.match(line):
            devices.append(NpuDevice(int(match["npu"]), int(match["npu"]), match["name"], match["health"]))
            waiting = True
        elif waiting and (match := _CHIP_LINE.match(line)):
            npu, waiting = devices.pop(), False
            memory = int(match["used"]), int(match["total"])
            bus = _BUS.search(line)
            where = int(match["chip"] or 0), bus[0] if bus else None
            number = int(match["physical"] or npu.npu)
            devices.append(NpuDevice(number, npu.npu, npu.name, npu.health, *memory, *where))
        elif match := _PROCESS_LINE.match(line):
            chip, memory = (int(text) if text else None for text in (match["chip"], match["memory"]))
            processes.append(NpuProcess(int(match["npu"]), chip, int(match["pid"]), match["name"].strip(), memory))
    problem = None
    if not devices:
        telling = [line for line in lines if re.search("ret is|fail|error", line, re.IGNORECASE)]
        problem = (telling[-1:] or lines[:1] or ["npu-smi info prints nothing"])[0][:200]
    return NpuSmi(version[1] if version else None, tuple(devices), tuple(processes), problem)

"""Checks: folders that are written, cores and memory of the host, and the variables of a job of several devices."""

import os
import shlex
from collections.abc import Iterator

from mindone_audio.machine.doctor.devices import VISIBLE, is_number, visible_devices
from mindone_audio.machine.doctor.finding import Finding, fine
from mindone_audio.machine.doctor.machine import Machine
from mindone_audio.machine.doctor.process import in_list, may_use, open_files
from mindone_audio.machine.tree import exists, read_text
from mindone_audio.machine.versions import ascend_folders

JOB_VARIABLES = ("RANK_TABLE_FILE", "RANK_ID", "RANK_SIZE")  # with one left over, a process waits for the others
HCCL_VARIABLES = ("HCCL_CONNECT_TIMEOUT", "HCCL_IF_BASE_PORT")
FOLDER_VARIABLES = ("ASCEND_CACHE_PATH", "ASCEND_WORK_PATH", "ASCEND_PROCESS_LOG_PATH")
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "gpfs", "beegfs", "fuse.sshfs", "fuse.juicefs")
FEW_CORES = 4
SMALL_MB = 1024  # of /dev/shm
FEW_FILES = 4096
UNITS = {"k": 1 / 1024, "m": 1, "g": 1024}  # of a size in /proc/mounts, in MB


def _mounts(machine: Machine) -> dict[str, tuple[str, list[str]]]:
    """The kind and the options of every mount, by its folder."""
    lines = [line.split() for line in read_text(machine.root, "/proc/mounts").splitlines()]
    return {line[1].replace("\\040", " "): (line[2], line[3].split(",")) for line in lines if len(line) > 3}


def check_folders(machine: Machine) -> Iterator[Finding]:
    """Whether the folders that CANN and MindSpore write can be written, and are no network's."""
    environ, mounts = machine.environ, _mounts(machine)
    home = environ.get("HOME", "")
    wanted = {"working folder": machine.folder, "HOME": home}
    wanted |= {name: environ[name] for name in FOLDER_VARIABLES if environ.get(name)}
    for what, folder in wanted.items():
        if not os.path.isabs(folder):
            continue
        kind, options = _mount_of(mounts, folder)
        if "ro" in options or not may_use(machine.root, _existing(machine, folder), machine.process, os.W_OK | os.X_OK):
            action = f"sudo chown $(id -u) {shlex.quote(folder)}, or set {what} to a folder of your own"
            if what == "working folder":
                action = "mkdir -p ~/work && cd ~/work; in an image: WORKDIR with a folder of the user"
            yield machine.say("folder-not-writable", what=what, folder=folder, action=action)
    cache = "ASCEND_CACHE_PATH" if environ.get("ASCEND_CACHE_PATH") else "HOME"
    kind, options = _mount_of(mounts, environ.get(cache, ""))
    if kind in NETWORK:
        version = next((option for option in options if option.startswith("vers=")), "")
        kind = f"a network file system ({' '.join(filter(None, (kind, version)))})"
        yield machine.say("cache-on-network", what=cache, folder=environ[cache], kind=kind)


def _mount_of(mounts: dict[str, tuple[str, list[str]]], folder: str) -> tuple[str, list[str]]:
    """The mount that a folder is on: the one with the longest path."""
    holding = [place for place in mounts if f"{folder.rstrip('/')}/".startswith(f"{place.rstrip('/')}/")]
    return mounts[max(holding, key=len)] if holding and folder else ("", [])


def _existing(machine: Machine, folder: str) -> str:
    """The folder, or the first above it that is there: the one in which it would be made."""
    while folder != "/" and not exists(machine.root, folder):
        folder = os.path.dirname(folder)
    return folder


def check_cores(machine: Machine) -> Iterator[Finding]:
    """On which cores this process may run, and whether they are near its NPU."""
    listed = machine.process.cores if machine.process else ""
    allowed = in_list(listed)
    if not allowed:
        return
    npu, node, near = _near(machine)
    there = len(allowed & in_list(near))
    fact = f"{len(allowed)} may be used ({listed})"
    fact += f"; NPU {npu} is on NUMA node {node} (cores {near})" if near else ""
    yield fine("cores", fact)
    if len(allowed) < FEW_CORES:
        yield machine.say("cores-few", count=len(allowed), cores=listed)
    elif near and not there:
        yield machine.say("cores-far-from-npu", cores=listed, id=npu, node=node, near=near)
    is_bound = near and there == len(allowed)
    if exists(machine.root, "/sys/fs/cgroup/cgroup.controllers") and not is_bound:
        cores = near or f"{min(allowed)}-{sorted(allowed)[:24][-1]}"
        yield machine.say("cgroup-v2", taskset=f"taskset -c {cores}")


def _near(machine: Machine) -> tuple[int | None, str, str]:
    """The first NPU of this process, its NUMA node and the cores of that node; empty where the system does not tell."""
    visible = visible_devices(machine.environ.get(VISIBLE, ""))
    number = visible[0] if visible else 0
    if number >= len(machine.devices) or not machine.devices[number].bus:
        return None, "", ""
    npu = machine.devices[number]
    node = read_text(machine.root, f"/sys/bus/pci/devices/{npu.bus.lower()}/numa_node").strip()
    near = read_text(machine.root, f"/sys/devices/system/node/node{node}/cpulist").strip() if is_number(node) else ""
    return npu.id, node, near


def check_limits(machine: Machine) -> Iterator[Finding]:
    _, options = _mounts(machine).get("/dev/shm", ("", []))
    size = next((option.removeprefix("size=") for option in options if option.startswith("size=")), "")
    if is_number(size[:-1]) and size[-1].lower() in UNITS:
        megabytes = int(size[:-1]) * UNITS[size[-1].lower()]
        if megabytes < SMALL_MB:
            yield machine.say("shared-memory-small", size=int(megabytes))
    limit = open_files(machine.root)
    if limit is not None and limit < FEW_FILES:
        yield machine.say("open-files-low", limit=limit)


def check_job(machine: Machine) -> Iterator[Finding]:
    """The variables of a job of several devices, and what HCCL needs in one."""
    environ = machine.environ
    table, rank, size = (environ.get(name) for name in JOB_VARIABLES)
    if table and not exists(machine.root, table):
        yield machine.say("rank-table-missing", value=table)
    if (rank or size) and not (is_number(rank) and is_number(size) and int(rank) < int(size)):
        yield machine.say("rank-variables", rank=rank, size=size)
    elif size and int(size) > 1:
        lacking = [name for name in HCCL_VARIABLES if not environ.get(name)]
        if lacking:
            yield machine.say("hccl-defaults", size=size, variables=" and ".join(lacking))
        bases = ascend_folders(machine.root)
        places = [*(f"{base}/driver/tools" for base in bases), *environ.get("PATH", "").split(":")]
        if not any(exists(machine.root, f"{place}/hccn_tool") for place in places if place):
            yield machine.say("hccn-tool-missing", size=size, places=places[0], ascend=bases[0])

"""Checks: what npu-smi shows, the chips, the device nodes and who may open them, and which devices a process gets."""

import os
import re
import shlex
import stat
from collections.abc import Iterator

from mindone_audio.machine.chips import Chip
from mindone_audio.machine.doctor.finding import Finding, fine
from mindone_audio.machine.doctor.machine import Machine
from mindone_audio.machine.doctor.process import group_name, has_account, in_list, may_use
from mindone_audio.machine.npu_smi import NpuDevice
from mindone_audio.machine.tree import exists, status
from mindone_audio.machine.versions import ASCEND, version_key

HELPERS = (("davinci_manager",), ("devmm_svm", "svm0"), ("hisi_hdc", "svm0"))  # one name of each; svm0 is a 310B's
NODE_RIGHTS = os.R_OK | os.W_OK
NOBODY = 65534
GROUP = "HwHiAiUser"  # what the driver's installer calls the group of the device nodes

OCCUPIED_MB = 8192  # what an idle NPU uses is 2 to 4 GB
MOST_DEVICES = 64  # of one host
SMALL_MB = 40960  # of an NPU of 32 GB
LAST_WITH_GE = (2, 8)  # MindSpore's default back end on the first generation, up to this version

MOUNTED, VISIBLE, DEVICE_ID = "ASCEND_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "DEVICE_ID"


def visible_devices(text: str) -> list[int]:
    """The devices that ASCEND_RT_VISIBLE_DEVICES gives a process: it is read while its numbers ascend.

    A space or any other character ends it, so that "0, 1" is device 0 alone, and "2,1" is device 2.
    """
    devices: list[int] = []
    for number in re.match("[0-9,]*", text)[0].split(","):
        if not is_number(number) or (devices and int(number) <= devices[-1]):
            break
        devices.append(int(number))
    return devices


def is_number(text: str | None) -> bool:
    return bool(text and re.fullmatch("[0-9]{1,9}", text))


def check_npu_smi(machine: Machine) -> Iterator[Finding]:
    smi = machine.smi
    if smi.missing:
        yield machine.say("npu-smi-missing")
    elif smi.problem and re.search("ret is -[0-9]+", smi.problem):
        yield machine.say("npu-smi-no-access", problem=smi.problem, ascend=ASCEND)
    elif smi.problem:
        yield machine.say("npu-smi-shows-nothing", problem=smi.problem)
    else:
        ill = [npu for npu in smi.devices if npu.health.upper() != "OK"]
        for npu in ill:
            yield machine.say("npu-unhealthy", id=npu.id, npu=npu.npu, name=npu.name, health=npu.health)
        if not ill:
            yield fine("npu-smi", f"healthy devices: {len(smi.devices)}")


def check_chips(machine: Machine) -> Iterator[Finding]:
    for name, chip in machine.chips.items():
        if chip is None:
            yield machine.say("chip-unknown", name=name)
            continue
        facts = {"name": name, "title": chip.title}
        if not chip.bfloat16:
            yield machine.say("chip-without-bfloat16", **facts)
        elsewhere = list(check_graph_engine(machine, name, chip))
        yield from elsewhere
        if not chip.established and not elsewhere:
            yield machine.say("chip-experimental", **facts)
        if chip.bfloat16 and chip.established:
            yield fine("chip", f"{name} ({chip.title})")


def check_graph_engine(machine: Machine, name: str, chip: Chip) -> Iterator[Finding]:
    """Whether MindSpore's default back end on this chip is the one that the models are written for."""
    release = version_key(machine.packages["mindspore"])
    if chip.soc == "ascend910" and release and release[:2] <= LAST_WITH_GE:
        yield machine.say(
            "chip-default-graph-engine", name=name, title=chip.title, mindspore=machine.packages["mindspore"]
        )


def check_memory(machine: Machine) -> Iterator[Finding]:
    """Whether the devices that this process may use are free, and who has the others."""
    devices = machine.devices
    visible = _visible(machine)
    free = [str(number) for number, npu in enumerate(devices) if not _is_occupied(machine, npu)]
    action = "wait for those processes, or end your own with `kill`"
    if free:
        action = f"export {VISIBLE}={','.join(free)}"
    for number, npu in enumerate(devices):
        if visible is not None and number not in visible:
            continue
        if _is_occupied(machine, npu):
            users = [f"{p.name or 'a process'} (pid {p.pid}, {p.memory_mb or '?'} MB)" for p in _users(machine, npu)]
            said = f", by {', '.join(users)}" if users else ", by no process that is seen here: one of another "
            said += "" if users else "container, or what is left of one that was killed"
            facts = {
                "used": "?" if npu.memory_used_mb is None else npu.memory_used_mb,
                "total": npu.memory_total_mb,
                "processes": said,
            }
            yield machine.say("npu-memory-occupied", id=npu.id, action=action, **facts)
    small = [npu for npu in devices if npu.memory_total_mb and npu.memory_total_mb < SMALL_MB]
    for npu in small[:1]:
        yield machine.say("npu-memory-small", id=npu.id, total=npu.memory_total_mb)


def _users(machine: Machine, npu: NpuDevice) -> list:
    return [p for p in machine.smi.processes if p.npu == npu.npu and p.chip in (None, npu.chip)]


def _is_occupied(machine: Machine, npu: NpuDevice) -> bool:
    return bool(_users(machine, npu)) or (npu.memory_used_mb or 0) > OCCUPIED_MB


def _visible(machine: Machine) -> list[int] | None:
    """What ASCEND_RT_VISIBLE_DEVICES says, as numbers from 0; `None` without it."""
    text = machine.environ.get(VISIBLE)
    return None if text is None else visible_devices(text)


def check_nodes(machine: Machine) -> Iterator[Finding]:
    """Whether the device nodes are there and may be opened, and the user is one that the driver takes."""
    root = machine.root
    names = [f"davinci{number}" for number in machine.nodes]
    if not names:
        signs = ("/dev/davinci_manager", *(source.file for source in machine.driver.sources[:1]))
        there = " and ".join(f"{sign} is there" for sign in signs if exists(root, sign))
        there = there or ("npu-smi shows devices" if machine.devices else "")
        if there:
            yield machine.say("device-node-missing", there=there)
        return
    helpers = [next((name for name in group if exists(root, f"/dev/{name}")), None) for group in HELPERS]
    missing = [f"/dev/{group[0]}" for group, name in zip(HELPERS, helpers) if name is None]
    if missing:
        verb = " is" if len(missing) == 1 else " are"
        options = " ".join(f"--device {node}" for node in missing)
        yield machine.say("device-helper-missing", nodes=" and ".join(missing) + verb, options=options)
    names += dict.fromkeys(name for name in helpers if name)
    forbidden = [name for name in names if not may_use(root, f"/dev/{name}", machine.process, NODE_RIGHTS)]
    if forbidden:
        yield _forbidden(machine, [f"/dev/{name}" for name in forbidden])
    elif not missing:
        yield fine("device nodes", ", ".join(names))


def _forbidden(machine: Machine, nodes: list[str]) -> Finding:
    first = status(machine.root, nodes[0])
    user = machine.process.user if machine.process else "this user"
    group, name = first.st_gid, group_name(machine.root, first.st_gid)
    join = f"sudo usermod -aG {shlex.quote(name or GROUP)} $USER"
    if name is None:
        join = f"sudo groupadd -g {group} {GROUP} && {join}"
    action = f"`{join}` and log in again; in a container: `docker run --group-add {group} …`"
    if user == 0:
        action = f"root lost its rights here: `docker run --cap-add DAC_OVERRIDE …` or `--group-add {group}`"
    facts = {"mode": stat.filemode(first.st_mode), "group": f"{name or 'without a name'}, {group}"}
    return machine.say("device-node-forbidden", user=user, nodes=", ".join(nodes), action=action, **facts)


def check_user(machine: Machine) -> Iterator[Finding]:
    if machine.process is None:
        return
    user, node = machine.process.user, status(machine.root, f"/dev/davinci{(machine.nodes or [0])[0]}")
    group = node.st_gid if node else 1000
    if user == NOBODY:
        yield machine.say("user-nobody", user=user, group=group)
    elif not has_account(machine.root, user):
        home = machine.environ.get("HOME") or "/tmp"
        yield machine.say("user-without-entry", user=user, group=group, home=home)


def check_device_variables(machine: Machine) -> Iterator[Finding]:
    mounted, visible, device = (machine.environ.get(name) for name in (MOUNTED, VISIBLE, DEVICE_ID))
    nodes = machine.nodes
    count = len(nodes) or (machine.devices[-1].id + 1 if machine.devices else None)
    if mounted is not None and mounted.strip().lower() in ("", "void"):
        yield machine.say("visible-devices-none", value=mounted)
    elif mounted and visible is None and re.fullmatch("[0-9]{1,3}([,-][0-9]{1,3})*", mounted):
        chosen = in_list(mounted)
        if not set(nodes) <= chosen and len(nodes) > len(chosen):
            numbers = ",".join(str(number) for number, node in enumerate(nodes) if node in chosen)
            action = f"export {VISIBLE}={numbers}" if numbers else f"set {VISIBLE} in the process"
            yield machine.say("visible-devices-of-container", value=mounted, count=count, action=action)
    used = None if visible is None else visible_devices(visible)
    if used is not None and (not used or ",".join(map(str, used)) != visible):
        said = ",".join(map(str, used)) or "no device"
        numbers = ",".join(map(str, sorted(in_list(visible))[:MOST_DEVICES])) or "0"
        yield machine.say("visible-devices-malformed", value=visible, used=said, numbers=numbers)
    if used and count is not None:
        yield from _numbering(machine, visible, used, count)
    limit = count if used is None else len(used)
    if device is not None and (not is_number(device) or (limit is not None and int(device) >= limit)):
        yield machine.say("device-id", value=device)


def _numbering(machine: Machine, visible: str, used: list[int], count: int) -> Iterator[Finding]:
    """Whether the numbers of ASCEND_RT_VISIBLE_DEVICES are of devices that are here, which it counts from 0."""
    nodes = machine.nodes
    if used[-1] >= count:
        there = ", ".join(f"/dev/davinci{node}" for node in nodes) or "npu-smi's"
        there = f"here {'is one device' if count == 1 else f'are {count} devices'} ({there})"
        meant = [str(nodes.index(number)) for number in used if number in nodes]
        action = f"unset {VISIBLE} to use them all"
        if len(meant) == len(used) < count:
            action = f"export {VISIBLE}={','.join(meant)}"
        yield machine.say("visible-devices-beyond", value=visible, there=there, action=action)
    elif any(number in nodes and nodes[number] != number for number in used):  # 4 of 4 to 7 may mean either
        means = ", ".join(f"/dev/davinci{nodes[number]}" for number in used)
        yield machine.say("visible-devices-renumbered", value=visible, means=means)

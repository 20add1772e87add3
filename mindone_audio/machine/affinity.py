"""Binds a process on an NPU to a share of the machine's cores, near its NPU where the system tells which these are.

MindSpore's own binding (`set_cpu_affinity`, `msrun --bind_core`) reads the cores of cgroup version 1 only and does
nothing where the system has version 2. Standard library only. Every path is looked up below `root`.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Set

from mindone_audio.machine.doctor import visible_devices
from mindone_audio.machine.msrun import number_of_ranks
from mindone_audio.machine.tree import below, children

logger = logging.getLogger(__name__)

BIND_CORES = "MINDONE_AUDIO_BIND_CORES"  # 0 turns it off
_LOCAL_RANKS = "MS_LOCAL_WORKER"  # how many ranks msrun starts on this machine; msrun.sh and MindCluster set it
_PCI = "/sys/bus/pci/devices"
_HUAWEI, _ACCELERATOR = "0x19e5", "0x1200"  # the vendor, and the beginning of the class


def bind_cores(device: str | None, environ: Mapping[str, str] | None = None, root: str | os.PathLike = "/") -> None:
    """Bind this process and the threads that it has to `own_cores`; nothing where there are none. It never raises.

    Call it early: threads and processes that start later inherit the cores.
    """
    if not hasattr(os, "sched_setaffinity"):  # only Linux has it
        return
    cores = own_cores(device, os.sched_getaffinity(0), os.environ if environ is None else environ, root)
    if cores is None:
        return
    for thread in children("/", "/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except OSError as error:  # the thread has ended, or a container forbids it
            logger.debug("thread %s was not bound to its cores: %s", thread, error)
    logger.info("bound to %d cores of this machine; %s=0 turns it off", len(cores), BIND_CORES)


def own_cores(
    device: str | None, allowed: Set[int], environ: Mapping[str, str], root: str | os.PathLike = "/"
) -> set[int] | None:
    """The cores that this process should run on, or `None` to leave it as it is.

    One rank of several gets its share: of the cores near its NPU, which it divides with the ranks whose NPUs are near
    the same ones, or else an equal part of all. Shares do not overlap. A process alone gets the cores of its NPU's NUMA
    node. `None` if the device is not an NPU of this machine, the node is not known, there are fewer cores than ranks,
    the user bound the process before, or MINDONE_AUDIO_BIND_CORES is 0.

    device: as for `set_device`; None is "auto". allowed: the cores that the process may use now.
    """
    kind, _, index = (device or "auto").lower().partition(":")
    if kind not in ("auto", "ascend", "npu") or environ.get("MS_ROLE") == "MS_SCHED":
        return None
    if environ.get(BIND_CORES, "").strip().lower() in ("0", "false", "no", "off"):
        return None
    try:
        ranks = number_of_ranks(environ)
    except ValueError:  # the command itself will say so
        return None
    if not index:
        index = environ.get("DEVICE_ID", "0" if ranks == 1 else "")
    npus = _visible_npus(environ, root)
    if not re.fullmatch("[0-9]{1,6}", index) or int(index) >= len(npus):
        return None
    limit = _limit(allowed, environ, root)
    if limit is None or not limit <= allowed:
        return None
    nodes = _numa_nodes(npus, root)
    if ranks == 1:
        return _cores_of_node(nodes.get(npus[int(index)]), limit, root) or None
    local = environ.get(_LOCAL_RANKS, "")
    if re.fullmatch("[0-9]{1,6}", local) and int(index) < int(local):  # msrun gives rank n of a machine its NPU n
        npus = npus[: int(local)]
    return _shares(npus, nodes, limit, root).get(npus[int(index)])


def cores_of(text: str | None) -> set[int] | None:
    """The numbers of a list as the system writes it, such as "0-3,8"; `None` for what is none."""
    if text is None or not re.fullmatch(r"([0-9]{1,6}(-[0-9]{1,6})?(,|$))*", text.strip()):
        return None
    ranges = [entry.split("-") for entry in text.strip().split(",") if entry]
    return {core for entry in ranges for core in range(int(entry[0]), int(entry[-1]) + 1)}


def _shares(npus: list[int], nodes: Mapping[int, int], cores: Set[int], root) -> dict[int, set[int]]:
    """Cores by NPU, none of them twice; empty where there are not enough."""
    near = defaultdict(list)
    for npu in npus:
        near[nodes.get(npu)].append(npu)
    groups = [(group, _cores_of_node(node, cores, root)) for node, group in near.items()]
    if any(len(there) < len(group) for group, there in groups):
        groups = [(npus, cores)]
    shares = {}
    for group, there in groups:
        ordered, count = _by_physical_core(there, root), len(group)
        for place, npu in enumerate(group):
            shares[npu] = set(ordered[place * len(ordered) // count : (place + 1) * len(ordered) // count])
    return shares if all(shares.values()) else {}


def _by_physical_core(cores: Set[int], root) -> list[int]:
    """In an order in which the hardware threads of one core are neighbours."""

    def place(core: int) -> tuple[int, int]:
        path = f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"
        return min(cores_of(_read(root, path)) or {core}), core

    return sorted(cores, key=place)


def _visible_npus(environ: Mapping[str, str], root) -> list[int]:
    """The numbers of the device nodes, of those that ASCEND_RT_VISIBLE_DEVICES leaves; it counts them from 0."""
    names = [re.fullmatch("davinci([0-9]{1,6})", name) for name in children(root, "/dev")]
    nodes = sorted(int(name[1]) for name in names if name)
    listed = environ.get("ASCEND_RT_VISIBLE_DEVICES")
    chosen = range(len(nodes)) if listed is None else visible_devices(listed)
    return [nodes[number] for number in chosen if number < len(nodes)]


def _numa_nodes(npus: list[int], root) -> dict[int, int]:
    """NUMA node by NPU, as far as the system tells.

    The driver has a table from PCI addresses to NPUs, which only root may read. Where all NPUs are near the same node
    no table is needed.
    """
    node_of_bus, table = {}, {}
    for bus in children(root, _PCI):
        vendor, kind, node = (_read(root, f"{_PCI}/{bus}/{name}") for name in ("vendor", "class", "numa_node"))
        if vendor == _HUAWEI and (kind or "").startswith(_ACCELERATOR):
            node_of_bus[bus] = int(node) if node and node.isdigit() else None
            lines = _read(root, f"{_PCI}/{bus}/devdrv_sysfs_bdf_to_devid") or ""
            table |= {int(npu): name for name, npu in re.findall(r"^(\S+) ---> ([0-9]{1,6})$", lines, re.MULTILINE)}
    if len(set(node_of_bus.values())) == 1:
        (node,) = set(node_of_bus.values())
        return {} if node is None else dict.fromkeys(npus, node)
    # The table leaves the PCI domain out.
    found = {npu: [node for bus, node in node_of_bus.items() if bus.endswith(name)] for npu, name in table.items()}
    return {npu: nodes[0] for npu, nodes in found.items() if len(nodes) == 1 and nodes[0] is not None}


def _cores_of_node(node: int | None, cores: Set[int], root) -> set[int]:
    """Those of the cores that are in a NUMA node; none where it is not known."""
    if node is None:
        return set()
    return cores & (cores_of(_read(root, f"/sys/devices/system/node/node{node}/cpulist")) or set())


def _limit(allowed: Set[int], environ: Mapping[str, str], root) -> set[int] | None:
    """The cores that a process has here if nobody binds it; `None` where that is not known."""
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    if tasks and {entry.partition("(")[0] for entry in tasks.split(",")} == {"1"}:
        return set(allowed)  # Slurm bound the one task of this machine, which starts the ranks
    online = cores_of(_read(root, "/sys/devices/system/cpu/online"))
    if online is None:
        return None
    isolated = cores_of(_read(root, "/sys/devices/system/cpu/isolated")) or set()
    container = _container_cores(root)
    return online - isolated if container is None else (online - isolated) & container


def _container_cores(root) -> set[int] | None:
    """What the control group leaves, of version 2 or 1; `None` where it does not say."""
    for line in (_read(root, "/proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpuset" not in controllers.split(","):
            continue
        base, names = "/sys/fs/cgroup", ("cpuset.cpus.effective",)
        if controllers:
            base, names = "/sys/fs/cgroup/cpuset", ("cpuset.effective_cpus", "cpuset.cpus")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):  # a container sees its own group at the top, under the host's name
            for name in names:
                if cores := cores_of(_read(root, "/".join([base, *parts[:depth], name]))):
                    return cores
    return None


def _read(root, path: str) -> str | None:
    """A small text file without the blanks around it; `None` for one that cannot be read."""
    try:
        with open(below(root, path), encoding="ascii") as file:
            return file.read(65536).strip()
    except (OSError, ValueError):
        return None

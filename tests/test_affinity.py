"""Which cores a process on an NPU takes, on machines that are folders, and the taking itself, on this one."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mindone_audio import cli
from mindone_audio.machine import affinity
from mindone_audio.machine.affinity import cores_of, own_cores

ROOT = Path(__file__).parent.parent


class Machine:
    """Eight NPUs and 192 cores in eight NUMA nodes, as a Kunpeng server has them: two NPUs on every other node."""

    NODE_OF_NPU = (6, 6, 4, 4, 0, 0, 2, 2)
    BUSES = ("c1", "c2", "81", "82", "01", "02", "41", "42")

    def __init__(self, root: Path, cores: int = 192, nodes: int = 8, npus: int = 8):
        self.root, self.allowed, self.environ = root, set(range(cores)), {}
        self.write("/sys/devices/system/cpu/online", f"0-{cores - 1}\n")
        self.write("/proc/self/cgroup", "0::/user.slice\n")
        for node in range(nodes):
            first = node * cores // nodes
            self.write(f"/sys/devices/system/node/node{node}/cpulist", f"{first}-{first + cores // nodes - 1}\n")
        table = "".join(f"{bus}:00.0 ---> {npu}\n" for npu, bus in enumerate(self.BUSES[:npus]))
        for npu in range(npus):
            self.write(f"/dev/davinci{npu}")
            self.device(npu, "vendor", "0x19e5\n")
            self.device(npu, "class", "0x120000\n")
            self.device(npu, "numa_node", f"{self.NODE_OF_NPU[npu]}\n")
            self.device(npu, "devdrv_sysfs_bdf_to_devid", table)
        self.write("/sys/bus/pci/devices/0000:03:00.0/vendor", "0x19e5\n")  # Huawei's network card
        self.write("/sys/bus/pci/devices/0000:03:00.0/class", "0x020000\n")
        self.write("/sys/bus/pci/devices/0000:03:00.0/numa_node", "1\n")

    def write(self, path: str, text: str = "") -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def device(self, npu: int, name: str, text: str) -> None:
        self.write(f"/sys/bus/pci/devices/0000:{self.BUSES[npu]}:00.0/{name}", text)

    def cores(self, device: str | None = "ascend", **environ: str) -> set[int] | None:
        return own_cores(device, self.allowed, {**self.environ, **environ}, self.root)

    def ranks(self, count: int, **environ: str) -> list[set[int] | None]:
        job = {"RANK_SIZE": str(count), "MS_LOCAL_WORKER": str(count), **environ}
        return [self.cores(RANK_ID=str(rank), DEVICE_ID=str(rank), **job) for rank in range(count)]

    def without_numa(self) -> None:
        for npu in range(8):
            self.device(npu, "numa_node", "-1\n")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_lists_of_cores():
    assert cores_of("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert cores_of("") == cores_of("\n") == set()
    assert cores_of("all") is cores_of("3-") is cores_of(None) is None


def test_one_process_takes_the_cores_beside_its_npu(machine):
    assert machine.cores() == set(range(144, 168))
    assert machine.cores("ascend:2") == machine.cores(DEVICE_ID="2") == set(range(96, 120))
    assert machine.cores("npu:4") == set(range(24))
    assert machine.cores("auto", ASCEND_RT_VISIBLE_DEVICES="4,5") == set(range(24))
    assert machine.cores("ascend:1", ASCEND_RT_VISIBLE_DEVICES="0,4") == set(range(24))
    machine.allowed = set(range(150, 192))
    machine.write("/sys/fs/cgroup/user.slice/cpuset.cpus.effective", "150-191\n")
    assert machine.cores() == set(range(150, 168))


def test_a_container_with_two_of_the_npus(machine):
    for npu in (0, 1, 2, 3, 6, 7):
        (machine.root / f"dev/davinci{npu}").unlink()
    assert machine.cores() == set(range(24))
    first, second = machine.ranks(2)
    assert (first, second) == (set(range(12)), set(range(12, 24)))


def test_one_process_is_left_alone_where_the_node_is_not_known(machine):
    for npu in range(8):
        (machine.root / f"sys/bus/pci/devices/0000:{machine.BUSES[npu]}:00.0/devdrv_sysfs_bdf_to_devid").unlink()
    assert machine.cores() is None  # the driver's table is root's, and the NPUs are on several nodes
    for npu in range(8):
        machine.device(npu, "numa_node", "3\n")
    assert machine.cores() == set(range(72, 96))  # all on one
    machine.without_numa()
    assert machine.cores() is None


@pytest.mark.parametrize("device", ["cpu", "CPU", "nonsense"])
def test_only_on_ascend(machine, device):
    assert machine.cores(device) is None
    assert all(cores is not None for cores in machine.ranks(8))


def test_nothing_without_an_npu_or_for_an_npu_that_is_not_there(tmp_path):
    machine = Machine(tmp_path, npus=0)
    assert machine.cores("auto") is machine.cores("ascend") is machine.cores(None) is None
    machine = Machine(tmp_path, npus=2)
    assert machine.cores("ascend:2") is machine.cores(DEVICE_ID="two") is machine.cores("ascend:x") is None


def test_ranks_share_the_cores_beside_their_npus(machine):
    shares = machine.ranks(8)
    assert shares[0] == set(range(144, 156)) and shares[1] == set(range(156, 168))
    assert shares[4] == set(range(12)) and shares[7] == set(range(60, 72))
    assert sum(map(len, shares)) == len(set.union(*shares)) == 96
    assert machine.ranks(2)[0] == set(range(144, 156))
    assert machine.ranks(1) == [set(range(144, 168))]


def test_ranks_divide_all_cores_where_a_node_is_not_known(machine):
    machine.device(3, "numa_node", "-1\n")
    assert machine.ranks(8) == [set(range(24 * rank, 24 * rank + 24)) for rank in range(8)]


def test_an_uneven_number_of_cores_is_divided_without_a_rest(machine):
    machine.without_numa()
    machine.allowed = set(range(10, 21))
    machine.write("/sys/fs/cgroup/user.slice/cpuset.cpus.effective", "10-20\n")
    shares = machine.ranks(4)
    assert sorted(map(len, shares)) == [2, 3, 3, 3] and set.union(*shares) == machine.allowed


def test_a_rank_whose_launcher_does_not_say_how_many_there_are_counts_the_npus(machine):
    machine.without_numa()
    share = machine.cores(RANK_ID="9", RANK_SIZE="16", DEVICE_ID="1")  # the second node of ModelArts
    assert share == set(range(24, 48))
    assert machine.cores(RANK_ID="1", RANK_SIZE="2", DEVICE_ID="1", MS_LOCAL_WORKER="two") == set(range(24, 48))


def test_a_rank_that_does_not_know_its_npu_is_left_alone(machine):
    """All ranks would take the cores of NPU 0."""
    assert machine.cores(RANK_ID="1", RANK_SIZE="2") is None
    assert machine.cores("ascend:1", RANK_ID="1", RANK_SIZE="2") == set(range(156, 168))
    assert machine.cores(RANK_ID="1", RANK_SIZE="2", DEVICE_ID="\u00b9") is machine.cores("ascend:\u00b9") is None
    assert machine.cores(RANK_ID="0", RANK_SIZE="two", DEVICE_ID="0") is None  # the command says what is wrong


def test_fewer_cores_than_ranks(machine):
    machine.allowed = set(range(7))
    machine.write("/sys/fs/cgroup/user.slice/cpuset.cpus.effective", "0-6\n")
    assert machine.ranks(8) == [None] * 8
    assert all(machine.ranks(7))


def test_nodes_with_fewer_cores_than_ranks(machine):
    """The container has one core beside NPUs 0 and 1: all its cores are divided instead."""
    machine.allowed = {144, *range(96, 111)}
    machine.write("/sys/fs/cgroup/user.slice/cpuset.cpus.effective", "96-110,144\n")
    shares = machine.ranks(8)
    assert [len(share) for share in shares] == [2] * 8 and set.union(*shares) == machine.allowed


def test_threads_of_one_core_stay_together(tmp_path):
    machine = Machine(tmp_path, cores=16, nodes=1, npus=2)
    for core in range(16):
        machine.write(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list", f"{core % 8},{core % 8 + 8}")
    for npu in range(2):
        machine.device(npu, "numa_node", "0\n")
    assert machine.ranks(2) == [{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}]


def test_the_scheduler_of_msrun_is_left_alone(machine):
    assert machine.cores(MS_ROLE="MS_SCHED", RANK_ID="0", RANK_SIZE="8") is None


@pytest.mark.parametrize("value", ["0", "false", "off", "NO"])
def test_a_variable_turns_it_off(machine, value):
    assert machine.ranks(8, MINDONE_AUDIO_BIND_CORES=value) == [None] * 8
    assert machine.cores(MINDONE_AUDIO_BIND_CORES=value) is None
    assert machine.cores(MINDONE_AUDIO_BIND_CORES="1") == machine.cores() == set(range(144, 168))


# Who has bound the process already


def test_a_process_that_the_user_has_bound_is_left_alone(machine):
    machine.allowed = set(range(144, 160))  # taskset, numactl, msrun --bind_core
    assert machine.cores() is None and machine.ranks(8) == [None] * 8


@pytest.mark.parametrize(
    "lines, file",
    [
        ("0::/", "/sys/fs/cgroup/cpuset.cpus.effective"),  # a container's own view
        ("0::/kubepods/pod1/one", "/sys/fs/cgroup/kubepods/pod1/one/cpuset.cpus.effective"),
        ("0::/kubepods/pod1/one", "/sys/fs/cgroup/kubepods/cpuset.cpus.effective"),  # the folder above has it
        ("0::/system.slice/docker-1.scope", "/sys/fs/cgroup/cpuset.cpus.effective"),  # the host's name of a container
        ("12:cpuset:/docker/1\n1:name=systemd:/", "/sys/fs/cgroup/cpuset/docker/1/cpuset.cpus"),  # version 1
        ("12:cpu:/a\n3:cpuset:/docker/1", "/sys/fs/cgroup/cpuset/cpuset.cpus"),
    ],
)
def test_what_a_container_may_use_is_divided(machine, lines, file):
    machine.write("/proc/self/cgroup", f"{lines}\n")
    machine.allowed = set(range(64))
    assert machine.ranks(8) == [None] * 8
    machine.write(file, "0-63\n")
    machine.without_numa()
    assert machine.ranks(8) == [set(range(8 * rank, 8 * rank + 8)) for rank in range(8)]


def test_isolated_and_absent_cores_are_nobodys_choice(machine):
    machine.write("/sys/devices/system/cpu/isolated", "0-7\n")
    machine.allowed = set(range(8, 192))
    assert machine.cores() == set(range(144, 168))


@pytest.mark.parametrize("tasks, divided", [("1", True), ("1(x2)", True), ("8", False), ("8(x2)", False), ("", False)])
def test_slurm(machine, tasks, divided):
    """One task a node starts the ranks, so its cores are theirs together; one of several tasks is a rank itself."""
    machine.without_numa()
    machine.allowed = set(range(32))
    shares = machine.ranks(8, SLURM_STEP_TASKS_PER_NODE=tasks)
    assert shares == ([set(range(4 * rank, 4 * rank + 4)) for rank in range(8)] if divided else [None] * 8)


def test_files_that_cannot_be_understood(machine):
    for path in ("cpu/online", "node/node6/cpulist"):
        machine.write(f"/sys/devices/system/{path}", "\0broken")
    machine.write("/proc/self/cgroup", "what is this")
    machine.write("/sys/bus/pci/devices/nonsense/vendor", "0x19e5")
    assert machine.cores() is None


# On this machine

BIND = """
import os, sys, threading
stop = threading.Event()
started = threading.Thread(target=stop.wait)
started.start()
from mindone_audio import cli
from mindone_audio.machine import affinity
from mindone_audio.machine.affinity import bind_cores
bind_cores("ascend", root=sys.argv[1])
print([sorted(os.sched_getaffinity(int(thread))) for thread in sorted(os.listdir("/proc/self/task"))])
print(sorted(__import__("ast").literal_eval(os.popen(
    f"{sys.executable} -c 'import os; print(os.sched_getaffinity(0))'").read())))
stop.set()
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_ranks_bind_themselves_with_their_threads_and_children(tmp_path):
    here = sorted(os.sched_getaffinity(0))
    listed = ",".join(map(str, here))
    machine = Machine(tmp_path, npus=2)
    machine.without_numa()
    machine.write("/sys/devices/system/cpu/online", listed)
    taken = []
    for rank in range(2):
        job = {"RANK_ID": str(rank), "DEVICE_ID": str(rank), "RANK_SIZE": "2", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", BIND, str(tmp_path)], env={**os.environ, **job}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        *threads, child = re.findall(r"\[([0-9, ]+)\]", done.stdout)
        assert len(threads) == 2 and set(threads) == {child}, done.stdout
        taken.append({int(core) for core in child.split(",")})
    assert set.union(*taken) == set(here) and not set.intersection(*taken)


# The commands

ON_AN_NPU = {
    "ask": ["ask", "clip.wav", "What is it?", "--device", "ascend:1"],
    "transcribe": ["transcribe", "clip.wav", "--device", "ascend:1"],
    "chat": ["chat", "clip.wav", "--device", "ascend:1"],
    "batch": ["batch", "clip.wav", "--out", "results", "--device", "ascend:1"],
    "finetune": ["finetune", "train.yaml"],
    "parity": [
        "parity",
        str(ROOT / "tests" / "recordings" / "demo.safetensors"),
        "--model",
        "x",
        "--device",
        "ascend:1",
    ],
    "doctor": ["doctor", "--ops", "--device", "ascend"],
}


class Bound(Exception):
    pass


@pytest.mark.parametrize("command", ON_AN_NPU)
def test_each_command_binds_itself_to_the_cores_of_its_device(command, monkeypatch, tmp_path):
    def bound(device):
        raise Bound(device)

    (tmp_path / "train.yaml").write_text("output_dir: out\ntrain: train.jsonl\ndevice: ascend:1\n")
    (tmp_path / "clip.wav").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(affinity, "bind_cores", bound)
    with pytest.raises(Bound, match="^ascend(:1)?$"):
        cli.main(ON_AN_NPU[command])
    assert os.listdir(tmp_path) and not (tmp_path / "results").exists()


@pytest.mark.parametrize("command", [["doctor"], ["doctor", "--help"], ["models"], ["batch", "--merge", "results"]])
def test_what_computes_nothing_is_not_bound(command, monkeypatch, capsys):
    monkeypatch.setattr(affinity, "bind_cores", pytest.fail)
    with contextlib.suppress(SystemExit):
        cli.main(command)

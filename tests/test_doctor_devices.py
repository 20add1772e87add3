"""What doctor says of chips, device nodes, users, memory, and of the host around them."""

import os

import pytest
from fake_machine import chip, codes, found, good_machine, guard, npu_table, remove, run_as, set_to
from test_npu_smi import SMI_A3

from mindone_audio.machine.chips import CHIPS, chip_by_name, chip_by_soc
from mindone_audio.machine.doctor import ERROR, WARNING, check_ascend, exit_status


@pytest.fixture
def machine(tmp_path):
    return good_machine(tmp_path)


# Chips


@pytest.mark.parametrize(
    "names, soc, bfloat16",
    [
        (("910B1", "910B2C", "910B3", "910B4", "910B4-1", "Ascend910B2"), "ascend910b", True),
        (("Ascend910", "Ascend910_9392", "910_9362"), "ascend910_93", True),
        (("Ascend950PR", "950DT"), "ascend950", True),
        (("910A", "910ProA", "910ProB", "910PremiumA", "Ascend910A", "Ascend910ProB"), "ascend910", False),
        (("310P", "310P1", "310P3", "Ascend310P3"), "ascend310p", False),
        (("310B1", "310B4", "Ascend310B4"), "ascend310b", False),
    ],
)
def test_chips(names, soc, bfloat16):
    for name in names:
        assert chip_by_name(name).soc == soc and chip_by_name(name).bfloat16 is bfloat16
    assert chip_by_soc(soc).bfloat16 is bfloat16
    assert chip_by_name("H100") is chip_by_name("") is chip_by_soc("") is None
    assert len({chip.soc for chip in CHIPS}) == len(CHIPS)


@pytest.mark.parametrize("name", ["310P3", "310B4", "910ProA", "910PremiumA", "910A", "910ProB"])
def test_chips_without_bfloat16(machine, name):
    chip(machine, name)
    report = machine.report()
    (finding,) = found(report, "chip-without-bfloat16")  # one for eight of them
    assert finding.level == WARNING and name in finding.found and "!!!!" in finding.symptom
    assert ("chip-default-graph-engine" in codes(report)) == name.startswith("910")
    assert ("chip-experimental" in codes(report)) == name.startswith("310")
    machine.packages["mindspore"] = "2.10.0"
    assert "chip-default-graph-engine" not in codes(machine.report())


def test_the_check_before_a_model_loads_knows_the_chip(machine):
    keywords = {"package_version": machine.package_version}
    for soc, expected in (("ascend910", {"chip-default-graph-engine"}), ("ascend910b", set()), ("", set())):
        assert codes(check_ascend(machine.environ, machine.root, soc=soc, **keywords)) == expected


@pytest.mark.parametrize("name", ["910B2C", "Ascend910", "Ascend950PR"])
def test_chips_with_bfloat16(machine, name):
    chip(machine, name)
    assert codes(machine.report()) == set()


def test_a_chip_that_is_not_known(machine):
    machine.smi = npu_table("1000X")
    report = machine.report()
    assert codes(report) == {"chip-unknown"} and exit_status(report) == 0


# Devices


def test_only_the_manager_was_given(machine):
    remove(machine, "/usr/local/Ascend/driver/version.info")
    machine.nodes(helpers=("davinci_manager",))
    machine.smi = None
    (finding,) = found(machine.report("ascend"), "device-node-missing")
    assert "/dev/davinci_manager is there" in finding.found


def test_a_310b_has_other_nodes(machine):
    chip(machine, "310B4")
    machine.nodes(0, helpers=("davinci_manager", "svm0"))
    assert "device-helper-missing" not in codes(machine.report())
    machine.nodes(0, helpers=("svm0",))
    (finding,) = found(machine.report(), "device-helper-missing")
    assert finding.action == "start the container with `--device /dev/davinci_manager`"


@pytest.mark.parametrize("group", [1000, 1005, 7777])
def test_nodes_that_a_user_may_not_open(machine, group):
    group = guard(machine, group)
    run_as(machine, groups="54321")
    (finding,) = found(machine.report(), "device-node-forbidden")
    assert finding.level == ERROR and "/dev/davinci0" in finding.found and "54321" in finding.found
    assert f"--group-add {group}" in finding.action and "usermod -aG HwHiAiUser $USER" in finding.action
    assert (f"groupadd -g {group}" in finding.action) == (group != 1000)
    run_as(machine, groups=f"54321 {group}")
    assert codes(machine.report()) == set()


def test_nodes_that_everyone_may_open(machine):
    guard(machine, mode=0o666)
    run_as(machine)
    assert codes(machine.report()) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_that_lost_its_rights(machine):
    guard(machine)
    machine.process(capabilities="00000000a80425fb")  # docker's
    assert codes(machine.report()) == set()
    machine.process(capabilities="00000000a80425f9")
    (finding,) = found(machine.report(), "device-node-forbidden")
    assert "--cap-add DAC_OVERRIDE" in finding.action and "--group-add 1000" in finding.action


@pytest.mark.parametrize("user", [1234, 54321])
def test_a_user_without_an_account(machine, user):
    machine.process(uid=user)
    (finding,) = found(machine.report(), "user-without-entry")
    assert finding.level == WARNING and f"echo 'npu:x:{user}:" in finding.action


def test_nobody(machine):
    machine.write("/etc/passwd", "nobody:x:65534:65534::/:/bin/false\n")
    machine.process(uid=65534)
    (finding,) = found(machine.report(), "user-nobody")
    assert finding.level == ERROR


@pytest.mark.parametrize(
    "nodes, variables, code, action",
    [
        (
            (4, 5, 6, 7),
            {"ASCEND_RT_VISIBLE_DEVICES": "4,5"},
            "visible-devices-beyond",
            "export ASCEND_RT_VISIBLE_DEVICES=0,1",
        ),
        ((3,), {"ASCEND_RT_VISIBLE_DEVICES": "3"}, "visible-devices-beyond", "unset ASCEND_RT_VISIBLE_DEVICES"),
        ((0, 1), {"ASCEND_RT_VISIBLE_DEVICES": "4"}, "visible-devices-beyond", "unset ASCEND_RT_VISIBLE_DEVICES"),
        ((2, 3, 4, 5), {"ASCEND_RT_VISIBLE_DEVICES": "2,3"}, "visible-devices-renumbered", "unset"),
        (
            range(8),
            {"ASCEND_VISIBLE_DEVICES": "6,7"},
            "visible-devices-of-container",
            "export ASCEND_RT_VISIBLE_DEVICES=6,7",
        ),
        ((0, 1), {"DEVICE_ID": "2"}, "device-id", "unset"),
        ((4, 5, 6, 7), {"ASCEND_RT_VISIBLE_DEVICES": "0,1"}, None, ""),
        (range(8), {"ASCEND_RT_VISIBLE_DEVICES": "0,7", "DEVICE_ID": "1"}, None, ""),
        ((4, 5), {"ASCEND_VISIBLE_DEVICES": "4,5"}, None, ""),
        ((4, 5), {"ASCEND_VISIBLE_DEVICES": "4-5"}, None, ""),
    ],
)
def test_numbers_of_devices(machine, nodes, variables, code, action):
    machine.nodes(*nodes)
    machine.environ |= variables
    report = machine.report()
    assert codes(report) == ({code} if code else set())
    assert not code or action in found(report, code)[0].action
    if code == "visible-devices-renumbered":
        assert "it means /dev/davinci4, /dev/davinci5" in found(report, code)[0].found


def test_numbers_where_only_npu_smi_tells(machine):
    machine.nodes()
    machine.smi = npu_table(count=2)
    machine.environ["ASCEND_RT_VISIBLE_DEVICES"] = "6,7"
    assert "visible-devices-beyond" in codes(machine.report())


def test_who_uses_an_npu(machine):
    machine.smi = npu_table(used={2: 65000, 5: 9000}, processes=[(2, 11, "python3.11", 60000), (2, 12, "a b", 200)])
    first, second = found(machine.report(), "npu-memory-occupied")
    assert first.about == "NPU 2" and "python3.11 (pid 11, 60000 MB), a b (pid 12, 200 MB)" in first.found
    assert second.about == "NPU 5" and "no process that is seen here" in second.found
    assert first.action == second.action == "export ASCEND_RT_VISIBLE_DEVICES=0,1,3,4,6,7"
    machine.environ["ASCEND_RT_VISIBLE_DEVICES"] = "0,1"
    assert codes(machine.report()) == set()


def test_who_uses_a_chip_of_an_a3(machine):
    chip(machine, "Ascend910")
    machine.smi = SMI_A3.replace("46536/", "2886/") + "| 1       1                 | 77 | python | 900 |\n"
    machine.nodes(2, 3)
    (finding,) = found(machine.report(), "npu-memory-occupied")
    assert finding.about == "NPU 3" and "pid 77" in finding.found
    assert finding.action == "export ASCEND_RT_VISIBLE_DEVICES=0"


def test_only_the_devices_that_are_here_count(machine):
    machine.smi = npu_table(used={0: 60000, 5: 60000})  # a container may see all of the host's
    machine.nodes(4, 5)
    (finding,) = found(machine.report(), "npu-memory-occupied")
    assert finding.about == "NPU 5" and finding.action == "export ASCEND_RT_VISIBLE_DEVICES=0"


def test_all_npus_are_used(machine):
    machine.smi = npu_table(count=1, used={0: 60000})
    machine.nodes(0)
    assert "wait for" in found(machine.report(), "npu-memory-occupied")[0].action


def test_an_npu_with_little_memory(machine):
    machine.smi = npu_table(total=32768)
    report = machine.report()
    assert codes(report) == {"npu-memory-small"} and len(found(report, "npu-memory-small")) == 1


# The host


@pytest.mark.parametrize(
    "what, prepare",
    [
        ("working folder", lambda m: m.keywords.update(folder="/")),
        ("working folder", lambda m: m.keywords.update(folder="/usr/bin")),
        ("HOME", lambda m: None),
        ("ASCEND_CACHE_PATH", lambda m: set_to(m, ASCEND_CACHE_PATH="/opt/not there/yet")),
    ],
)
def test_folders_that_cannot_be_written(machine, what, prepare):
    run_as(machine)
    for folder in ("/", "/opt", "/usr", "/usr/bin", "/home/user"):
        machine.path(folder).mkdir(exist_ok=True)
        machine.path(folder).chmod(0o755)
    guard(machine, mode=0o666)
    prepare(machine)
    findings = found(machine.report(), "folder-not-writable")
    assert {finding.about for finding in findings} == {what, "HOME"}
    assert all(finding.level == WARNING and finding.action for finding in findings)


def test_a_folder_that_is_mounted_to_be_read(machine):
    machine.write("/proc/mounts", "overlay / overlay rw 0 0\n/dev/sda /my\\040work ext4 ro,noatime 0 0\n")
    machine.keywords["folder"] = "/my work/folder"
    assert [finding.about for finding in found(machine.report(), "folder-not-writable")] == ["working folder"]


@pytest.mark.parametrize(
    "mount, variables, what",
    [
        ("nas:/h /home nfs rw,vers=3,nolock", {}, "HOME"),
        ("nas:/h /home nfs4 rw,vers=4.2", {}, "HOME"),
        ("nas:/c /cache nfs rw,vers=3", {"ASCEND_CACHE_PATH": "/cache/ascend"}, "ASCEND_CACHE_PATH"),
        ("nas:/h /home nfs rw,vers=3", {"ASCEND_CACHE_PATH": "/tmp/ascend"}, None),
        ("nas:/h /homes nfs rw,vers=3", {}, None),
    ],
)
def test_a_cache_on_a_network(machine, mount, variables, what):
    machine.write("/proc/mounts", f"overlay / overlay rw 0 0\n{mount} 0 0\n")
    machine.environ |= variables
    findings = found(machine.report(), "cache-on-network")
    assert [finding.about for finding in findings] == ([what] if what else [])


def numa(machine, cores: str = "24-47", node: int = 1) -> None:
    machine.write("/sys/bus/pci/devices/0000:00:00.0/numa_node", f"{node}\n")
    machine.write(f"/sys/devices/system/node/node{node}/cpulist", f"{cores}\n")


def test_cores_of_a_host_with_cgroup_v2(machine):
    machine.write("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory\n")
    report = machine.report()
    assert codes(report) == {"cgroup-v2"} and exit_status(report) == 0
    assert "taskset -c 0-23 python …" in found(report, "cgroup-v2")[0].action
    numa(machine)
    assert "taskset -c 24-47 " in found(machine.report(), "cgroup-v2")[0].action
    assert "NPU 0 is on NUMA node 1 (cores 24-47)" in found(machine.report(), "cores-ok")[0].found
    machine.process(cores="24-31")  # it was bound
    assert codes(machine.report()) == set()


@pytest.mark.parametrize(
    "cores, expected", [("0-191", set()), ("0-23", {"cores-far-from-npu"}), ("24,25", {"cores-few"}), ("24-27", set())]
)
def test_cores(machine, cores, expected):
    numa(machine)
    machine.process(cores=cores)
    assert codes(machine.report()) == expected


@pytest.mark.parametrize(
    "size, is_small", [("65536k", True), ("512M", True), ("1g", False), ("8388608k", False), ("", False)]
)
def test_shared_memory(machine, size, is_small):
    machine.write("/proc/mounts", f"shm /dev/shm tmpfs rw{',size=' * bool(size)}{size} 0 0\n")
    assert codes(machine.report()) == ({"shared-memory-small"} if is_small else set())


@pytest.mark.parametrize("limit, is_low", [("1024", True), ("65536", False), ("unlimited", False)])
def test_open_files(machine, limit, is_low):
    machine.write(
        "/proc/self/limits", f"Limit  Soft Limit  Hard Limit\nMax open files            {limit}   1048576  files\n"
    )
    report = machine.report()
    assert codes(report) == ({"open-files-low"} if is_low else set()) and exit_status(report) == 0


def test_a_job_of_several_devices(machine):
    machine.environ |= {"RANK_ID": "0", "RANK_SIZE": "8"}
    report = machine.report()
    assert codes(report) == {"hccl-defaults", "hccn-tool-missing"} and exit_status(report) == 0
    machine.environ |= {"HCCL_CONNECT_TIMEOUT": "600", "HCCL_IF_BASE_PORT": "61000"}
    machine.write("/usr/local/Ascend/driver/tools/hccn_tool")
    assert codes(machine.report()) == set()

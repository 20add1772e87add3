"""A machine made of files: a driver, a CANN, device nodes and what else a good machine with NPUs has."""

import importlib.metadata
import os
import shutil
import struct
import sys
from pathlib import Path

from mindone_audio.machine.chips import chip_by_name
from mindone_audio.machine.doctor import INFO, OK, check_ascend, inspect_environment

GOOD = {"mindspore": "2.7.0", "mindone": "0.5.0", "transformers": "4.57.1", "numpy": "1.26.4"}
TOOLKIT_82 = "/usr/local/Ascend/ascend-toolkit/latest"
KERNELS = f"{TOOLKIT_82}/opp/built-in/op_impl/ai_core/tbe/kernel"
SITE = next(path for path in sys.path if path.endswith("site-packages"))  # where this Python has its packages

DRIVER = """Version={0}
ascendhal_version=7.35.23
Innerversion=V100R001C21SPC002B220
compatible_version=[V100R001C17],[V100R001C21]
compatible_version_fw=[7.0.0,7.7.99]
package_version={0}
"""
FIRMWARE = """Version={0}
firmware_version=1.0
package_version=25.0.rc1.1
compatible_version_drv=[23.0.0,23.0.0.],[24.0,24.0.],[25.0,25.0.]
"""
TOOLKIT = """package_name=Ascend-cann-toolkit
version={0}
innerversion=V100R001C25SPC001B212
arch=x86_64
"""
COMPONENT = "Version={1}\nversion_dir={0}\ntimestamp=20250724_194044950\n"
MODULES = ("decorator", "attrs", "sympy", "cffi", "psutil", "scipy", "yaml", "absl", "pathlib2", "cython", "requests")
PROC_STATUS = """Name:\tpython
Uid:\t{uid}\t{uid}\t{uid}\t{uid}
Gid:\t{gid}\t{gid}\t{gid}\t{gid}
Groups:\t{groups}
CapEff:\t{capabilities}
Cpus_allowed_list:\t{cores}
"""


def npu_table(
    name: str = "910B4", count: int = 8, used: dict[int, int] | None = None, processes=(), total=65536
) -> str:
    """What `npu-smi info` prints of `count` NPUs of one chip each; `processes` are (NPU, pid, name, MB)."""
    lines = ["| npu-smi 25.2.0                   Version: 25.2.0                                      |"]
    for npu in range(count):
        memory = (used or {}).get(npu, 2886)
        lines.append(f"| {npu:<5} {name:<19} | OK            | 98.0        41                0    / 0             |")
        lines.append(
            f"| 0                         | 0000:{npu:02X}:00.0  | 0           0    / 0          {memory}/ {total} |"
        )
    lines.append("| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |")
    lines += [
        f"| {npu}       0                 | {pid} | {what}   | {memory}    |" for npu, pid, what, memory in processes
    ]
    return "\n".join(lines) + "\n"


class Machine:
    """A file tree with a driver, a CANN and the variables that its set_env.sh sets."""

    def __init__(self, root: Path):
        self.root = root
        self.environ = {"HOME": "/home/user", "PATH": "/usr/bin"}
        self.smi = npu_table()
        self.packages = dict(GOOD)
        self.keywords = {"folder": "/work"}

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def write(self, path: str, text: str | bytes = "") -> Path:
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    def link(self, path: str, target: str) -> None:
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(target)

    def driver(self, version: str, base: str = "/usr/local/Ascend") -> None:
        self.write(f"{base}/driver/version.info", DRIVER.format(version))
        self.write(f"{base}/firmware/version.info", FIRMWARE.format("7.7.0.1.231"))
        self.write(f"{base}/driver/lib64/driver/libascend_hal.so")

    def cann(self, path: str, release: str, component: str = "8.2.0.0.201", chips=("ascend910b",)) -> None:
        self.write(f"{path}/x86_64-linux/ascend_toolkit_install.info", TOOLKIT.format(release))
        for part in ("toolkit", "opp", "compiler", "opp_kernel", "runtime"):
            self.write(f"{path}/{part}/version.info", COMPONENT.format(release, component))
        for module in ("te", "tbe", "hccl"):
            self.write(f"{path}/python/site-packages/{module}/__init__.py")
        for chip in chips:
            self.write(f"{path}/opp/built-in/op_impl/ai_core/tbe/kernel/{chip}/add/Add_1.o")
        inside = os.path.basename(path).startswith("cann")
        self.write(f"{path if inside else os.path.dirname(path)}/set_env.sh")

    def source(self, home: str) -> None:
        self.environ |= {
            "ASCEND_HOME_PATH": home,
            "ASCEND_TOOLKIT_HOME": home,
            "ASCEND_OPP_PATH": f"{home}/opp",
            "LD_LIBRARY_PATH": f"{home}/lib64:/usr/local/Ascend/driver/lib64/driver",
            "PYTHONPATH": f"{home}/python/site-packages:{home}/opp/built-in/op_impl/ai_core/tbe:",
        }

    def nodes(self, *npus: int, helpers=("davinci_manager", "devmm_svm", "hisi_hdc")) -> None:
        """The device nodes of these NPUs and no others."""
        for node in self.path("/dev").glob("*"):
            node.unlink()
        for name in (*(f"davinci{npu}" for npu in npus), *helpers):
            self.write(f"/dev/{name}")

    def modules(self, *names: str) -> None:
        for name in names:
            self.write(f"{SITE}/{name}/__init__.py")
        self.write(f"{SITE}/google/protobuf/__init__.py")

    def process(self, uid=0, groups="0", capabilities="000001ffffffffff", cores="0-191") -> None:
        """What /proc tells of the process that runs doctor: its user, its groups, what it may do and where it runs."""
        text = PROC_STATUS.format(uid=uid, gid=uid, groups=groups, capabilities=capabilities, cores=cores)
        self.write("/proc/self/status", text)

    def package_version(self, name: str) -> str:
        if self.packages.get(name) is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return self.packages[name]

    def run(self) -> str:
        if self.smi is None:
            raise FileNotFoundError("npu-smi")
        return self.smi

    def report(self, device: str | None = None):
        keywords = {"device": device, "run": self.run, "package_version": self.package_version} | self.keywords
        return inspect_environment(self.root, self.environ, **keywords)

    def check(self):
        return check_ascend(self.environ, self.root, package_version=self.package_version)


def bare_machine(root: Path) -> Machine:
    """Linux without an NPU."""
    machine = Machine(root)
    machine.smi = None
    return machine


def good_machine(root: Path) -> Machine:
    """A machine where all is well: eight NPUs, MindSpore 2.7.0 with the CANN and the driver published with it."""
    machine = Machine(root)
    machine.write("/etc/ascend_install.info", "UserName=HwHiAiUser\nDriver_Install_Path_Param=/usr/local/Ascend\n")
    machine.write("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\nuser:x:1005:1005::/home/user:/bin/bash\n")
    machine.write("/etc/group", "root:x:0:\nHwHiAiUser:x:1000:user\n")
    machine.write("/proc/mounts", "overlay / overlay rw 0 0\nshm /dev/shm tmpfs rw,nosuid,size=8388608k 0 0\n")
    machine.write("/proc/self/limits", "Limit  Soft Limit  Hard Limit  Units\nMax open files  65536  1048576  files\n")
    machine.write("/home/user/.bashrc", "alias ll='ls -l'\n")
    machine.path("/work").mkdir()
    machine.nodes(*range(8))
    machine.process()
    machine.modules(*MODULES)
    machine.driver("25.2.0")
    machine.cann("/usr/local/Ascend/ascend-toolkit/8.2.RC1", "8.2.RC1")
    machine.link(TOOLKIT_82, "8.2.RC1")
    machine.source(TOOLKIT_82)
    return machine


def of(report, about: str) -> list:
    """The findings about a subject."""
    return [finding for finding in getattr(report, "findings", report) if finding.about == about]


def levels(report) -> dict[str, str]:
    """What is not well, by subject."""
    findings = getattr(report, "findings", report)
    return {finding.about: finding.level for finding in findings if finding.level not in (OK, INFO)}


def found(report, code: str) -> list:
    """The findings of a kind."""
    return [finding for finding in getattr(report, "findings", report) if finding.code == code]


def codes(report) -> set[str]:
    """The kinds of what is not plainly well, information included."""
    return {finding.code for finding in getattr(report, "findings", report) if finding.level != OK}


def remove(machine: Machine, *paths: str) -> None:
    for path in paths:
        place = machine.path(path)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()


def set_to(machine: Machine, **variables: str) -> None:
    machine.environ |= variables


def chip(machine: Machine, name: str) -> None:
    """NPUs of another kind, with the operators of that kind."""
    machine.smi = npu_table(name)
    machine.write(f"{KERNELS}/{chip_by_name(name).soc}/add/Add_1.o")


def run_as(machine: Machine, user: int = 54321, groups: str = "") -> None:
    """A user with an account and folders, and without root's rights."""
    machine.process(uid=user, groups=groups, capabilities="0000000000000000")
    machine.write("/etc/passwd", f"me:x:{user}:{user}::/home/user:/bin/bash\n")
    for folder in ("/home/user", "/work"):
        machine.path(folder).chmod(0o777)


def guard(machine: Machine, group: int | None = None, mode: int = 0o660) -> int:
    """Rights of the device nodes, as the driver gives them; the group where it may not be changed is the test's own."""
    for node in machine.path("/dev").iterdir():
        node.chmod(mode)
        if os.geteuid() == 0:
            os.chown(node, 1000, 1000 if group is None else group)
    return node.stat().st_gid


def another_te(machine: Machine) -> None:
    machine.cann("/opt/cann-8.5.0", "8.5.0")
    set_to(machine, PYTHONPATH=f"/opt/cann-8.5.0/python/site-packages:{machine.environ['PYTHONPATH']}")


def newer_mindspore(machine: Machine, driver: str) -> None:
    machine.packages["mindspore"] = "2.10.0"
    machine.driver(driver)
    machine.smi = npu_table().replace("25.2.0", driver)


def elf(needed: tuple[str, ...], run_path: str = "") -> bytes:
    """A shared library of 64 bits that needs others, with nothing else in it."""
    strings, offsets = b"\0", []
    for text in (*needed, run_path):
        offsets.append(len(strings))
        strings += text.encode() + b"\0"
    base, start = 0x10000, 64 + 2 * 56  # in memory, and in the file after the headers
    entries = [(1, offset) for offset in offsets[:-1]] + [(15, offsets[-1])] * bool(run_path)
    entries += [(5, base + start), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    size = start + len(strings) + len(dynamic)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096)
    place = start + len(strings)
    segment = struct.pack("<IIQQQQQQ", 2, 6, place, base + place, base + place, len(dynamic), len(dynamic), 8)
    return header + load + segment + strings + dynamic


def with_plugin(machine: Machine) -> Machine:
    """MindSpore's Ascend plugin, whose libraries are found: beside it, in CANN, and where ld.so.conf says."""
    plugin = f"{SITE}/mindspore/lib/plugin"
    needed = ("libge_runner.so", "libmindspore_core.so", "libown.so", "libc.so.6", "libascendcl.so")
    machine.write(f"{plugin}/libmindspore_ascend.so.2", elf(needed, "$ORIGIN:$ORIGIN/../"))
    machine.write(f"{SITE}/mindspore/lib/libmindspore_core.so", elf(()))
    machine.write(f"{plugin}/libown.so", elf(("libdeep.so",)))
    machine.write(f"{TOOLKIT_82}/lib64/libge_runner.so", elf(("libdeep.so",)))
    machine.write(f"{TOOLKIT_82}/lib64/libascendcl.so", elf(("libascend_hal.so",)))
    machine.write("/opt/more libraries/libdeep.so", elf(()))
    machine.write("/etc/ld.so.conf", "include ld.so.conf.d/*.conf\n# include nothing\n")
    machine.write("/etc/ld.so.conf.d/more.conf", "/opt/more libraries\n")
    return machine

"""What the checks look at: one machine, found below one root."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from importlib.machinery import PathFinder

from mindone_audio.machine.chips import Chip, chip_by_name
from mindone_audio.machine.doctor.finding import ERROR, REQUIRED, Finding
from mindone_audio.machine.doctor.kinds import KINDS
from mindone_audio.machine.doctor.process import Process, read_process
from mindone_audio.machine.npu_smi import NpuDevice, NpuSmi
from mindone_audio.machine.tree import below, children, exists, is_folder, split_paths
from mindone_audio.machine.versions import CannInstall, Found


@dataclass
class Machine:
    root: str | os.PathLike
    environ: Mapping[str, str]
    package_version: Callable[[str], str] = metadata.version
    find_spec: Callable[[str], object | None] | None = None  # of a module of Python, without importing it
    python_path: tuple[str, ...] = ()  # where this Python looks for modules, PYTHONPATH left out
    folder: str = "/"  # the working folder
    packages: dict[str, str | None] = field(default_factory=dict)
    smi: NpuSmi = NpuSmi(missing=True)
    driver: Found = Found()
    firmware: Found = Found()
    installs: tuple[CannInstall, ...] = ()
    required: str = ERROR  # the level of what an NPU cannot work without

    def say(self, code: str, **facts) -> Finding:
        """A finding of a known kind, its texts filled with facts."""
        kind = KINDS[code]
        level = self.required if kind.level == REQUIRED else kind.level
        texts = (text.format_map(facts) for text in (kind.about, kind.found, kind.action))
        return Finding(level, *texts, code=code, symptom=kind.symptom)

    def version_of(self, package: str) -> str | None:
        try:
            return self.package_version(package)
        except (metadata.PackageNotFoundError, KeyError, OSError, ValueError):  # absent, or its metadata is broken
            return None

    def has_module(self, name: str) -> bool:
        """Whether Python finds a module; only its file is looked for, and nothing is imported."""
        if self.find_spec:
            return self.find_spec(name) is not None
        folders = [below(self.root, entry) for entry in (*self.python_entries, *self.python_path)]
        parts = name.split(".")
        try:
            for depth in range(1, len(parts) + 1):
                spec = PathFinder.find_spec(".".join(parts[:depth]), folders)
                folders = list(spec.submodule_search_locations or ()) if spec else []
        except (OSError, ValueError, ImportError):
            return False
        return spec is not None

    @property
    def python_entries(self) -> list[str]:
        """The folders of PYTHONPATH, in the order in which they are searched."""
        return split_paths(self.environ.get("PYTHONPATH"))

    @cached_property
    def active(self) -> CannInstall | None:
        """The CANN whose set_env.sh was sourced."""
        return next((install for install in self.installs if install.active), None)

    @cached_property
    def nodes(self) -> list[int]:
        """The numbers of /dev/davinci<N>."""
        names = [name.removeprefix("davinci") for name in children(self.root, "/dev") if name.startswith("davinci")]
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    @property
    def has_nodes(self) -> bool:
        """Whether there is a node of any NPU, or the one that manages them."""
        return bool(self.nodes) or exists(self.root, "/dev/davinci_manager")

    @cached_property
    def process(self) -> Process | None:
        return read_process(self.root)

    @property
    def devices(self) -> list[NpuDevice]:
        """What npu-smi shows of the devices that are here, in the order in which a process counts them."""
        here = [device for device in self.smi.devices if device.id in self.nodes] or self.smi.devices
        return sorted(here, key=lambda device: device.id)

    @cached_property
    def chips(self) -> dict[str, Chip | None]:
        """The kinds of chips, by the names that npu-smi prints."""
        return {device.name: chip_by_name(device.name) for device in self.devices}

    @cached_property
    def mindspore_folder(self) -> str | None:
        """Where the package is installed."""
        places = (f"{entry}/mindspore" for entry in (*self.python_entries, *self.python_path))
        return next((place for place in places if is_folder(self.root, place)), None)

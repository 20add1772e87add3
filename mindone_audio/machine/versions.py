"""Versions: how they are ordered, which go together, and where Ascend's installers write them.

Standard library only. Every absolute path, those in environment variables included, is looked up below `root`.
A file that is missing, unreadable or in an unknown format has no version; it is never an exception.
"""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mindone_audio.machine.tree import below, children, is_folder, read_pairs, read_text, resolved

INSTALLER_NOTE = "/etc/ascend_install.info"  # where the driver is; MindSpore reads it as well
ASCEND = "/usr/local/Ascend"  # where the installers put the driver, and root's CANN
HOMES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")  # the variables that say where CANN is

MINIMUM = {"mindspore": "2.6.0", "driver": "24.1.RC1", "CANN": "8.1.RC1"}

# The versions that MindSpore's release notes and installation guide name together. "8.5" means any 8.5.
PUBLISHED = {  # MindSpore: (CANN, driver)
    "2.6.0": ("8.1.RC1", "25.0.RC1"),
    "2.7.0": ("8.2.RC1", "25.2.0"),
    "2.7.1": ("8.3.RC1", "25.3.RC1"),
    "2.7.2": ("8.5.0", "25.5.0"),
    "2.8.0": ("8.5", None),
    "2.9.0": ("9.0.0", "26.0.RC1"),
    "2.10.0": ("9.1", None),
}
# The versions of CANN of which MindSpore's own check does not complain, where its wheel cannot be asked.
ACCEPTED = {"2.10": ("8.2", "8.3", "8.5", "9.0", "9.1")}

_DEV, _T, _ALPHA, _BETA, _RC, _FINAL, _POST = range(7)
_STAGES = {"dev": _DEV, "t": _T, "alpha": _ALPHA, "a": _ALPHA, "beta": _BETA, "b": _BETA, "rc": _RC, "post": _POST}

# `.B150` and `.b080` are build numbers, while the `b1` of a Python package's 2.7.0b1 is a beta: hence the (?<!\.).
# Numbers are at most 15 digits, because int() refuses very long ones.
_VERSION = re.compile(
    r"""v?([0-9]{1,15}) \. ([0-9]{1,15}) (?:\.([0-9]{1,15}))?                                      # 8.2 or 8.5.0
    (?:[._-]?(dev|t|alpha|a|beta|(?<!\.)b|rc|post)[._-]?([0-9]{1,15})? | \.([0-9]{1,15}))?         # RC1, or a number
    (?:[._-]?(dev|alpha|beta|post)[._-]?([0-9]{1,15})? | \.([0-9]{1,15}))?                         # .alpha003 or .2
    (?:\.b[0-9]+)? (?:\+[0-9a-z._-]+)?                                                             # build, local part
    """,
    re.VERBOSE,
)


class VersionKey(NamedTuple):
    """What versions are ordered by; `stage` and `sub_stage` are dev < T < alpha < beta < RC < final < post."""

    major: int
    minor: int
    patch: int
    stage: int
    number: int
    sub_stage: int
    sub_number: int


def version_key(text: str | None) -> VersionKey | None:
    """The key that orders `text` among versions, or `None` for a string that is not understood; it never raises.

    Upper and lower case are the same. A build number (`8.2.RC1.B150`) does not count. A pre-release of a release
    candidate comes before it (`8.2.RC1.alpha003` < `8.2.RC1`, the order that torch_npu uses) and a further number
    after it (`25.0.rc1` < `25.0.rc1.1`). Absent parts are 0: `9.1` is `9.1.0`.
    """
    match = _VERSION.fullmatch(text.strip().lower()) if isinstance(text, str) else None
    if match is None:
        return None
    major, minor, patch, stage, number, fourth, sub_stage, sub_number, fifth = match.groups()
    return VersionKey(
        int(major),
        int(minor),
        int(patch or 0),
        _STAGES[stage] if stage else _FINAL,
        int(number or fourth or 0),
        _STAGES[sub_stage] if sub_stage else _FINAL,
        int(sub_number or fifth or 0),
    )


def satisfies(key: VersionKey, requirement: str) -> bool:
    """Whether a version is what a requirement such as `mindspore>=2.7.0,<2.11` asks for."""
    tests = {"==": VersionKey.__eq__, ">=": VersionKey.__ge__, "<": VersionKey.__lt__}
    bounds = re.findall(r"(==|>=|<)([0-9.]+)", requirement)
    return all(tests[sign](key, version_key(bound if "." in bound else f"{bound}.0")) for sign, bound in bounds)


def compare(key: VersionKey, published: str) -> int:
    """-1, 0 or 1 as `key` is older than, of or newer than `published`, by major and minor where it has only these."""
    parts = 2 if published.count(".") == 1 else len(key)
    mine, other = key[:parts], version_key(published)[:parts]
    return (mine > other) - (mine < other)


def in_ranges(version: str | None, ranges: str | None) -> bool | None:
    """Whether `version` is in one of `[first,last],[first,last]`, or `None` for a string that is not understood.

    A bound counts as far as it goes, as for the driver's own tool: 7.7.99.1 is in `[7.0.0,7.7.99]`, and 25.0.rc1.1 in
    `[25.0,25.0.]`.
    """
    pairs = re.findall(r"\[([^][,]+?)\.?,([^][,]+?)\.?\]", ranges or "")
    if not pairs or None in map(version_key, (version, *(bound for pair in pairs for bound in pair))):
        return None
    own, pairs = _parts(version), [(_parts(first), _parts(last)) for first, last in pairs]
    return any(first <= own[: len(first)] and own[: len(last)] <= last for first, last in pairs)


def _parts(version: str) -> tuple:
    """Numbers and words for comparison, words first: 7.7.T20 is before 7.7.0."""
    parts = re.findall("[0-9]{1,15}|[a-z]+", version.strip().lower().removeprefix("v"))
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)


@dataclass(frozen=True)
class Source:
    file: str
    field: str
    value: str

    def __str__(self) -> str:
        return f"{self.value} in {self.file} ({self.field})"


@dataclass(frozen=True)
class Found:
    """A version: the one chosen (`None` where there is none) and every source, the most trusted one first."""

    chosen: str | None = None
    sources: tuple[Source, ...] = ()

    def __str__(self) -> str:
        """For people: the first source of the chosen value. The JSON has all, and a finding tells where they differ."""
        source = next((source for source in self.sources if source.value == self.chosen), "not found")
        return f"{source} and {len(self.sources) - 1} more" if len(self.sources) > 1 else str(source)


@dataclass(frozen=True)
class FirmwareFit:
    firmware: str
    accepted: str  # what the driver says that it works with: [7.0.0,7.7.99]
    fits: bool | None  # None where it is not understood


@dataclass(frozen=True)
class CannInstall:
    path: str
    version: Found
    set_env: str  # the script to source
    active: bool  # the environment variables point at it

    @property
    def order(self) -> tuple:
        return version_key(self.version.chosen) or ()


def read_driver(root: str | os.PathLike = "/", told_by_npu_smi: str | None = None) -> tuple[Found, Found]:
    """The versions of the driver and of the firmware.

    /etc/ascend_install.info tells where they are; containers often lack it, and the default folder is tried then.
    Older drivers have `Version` and no `package_version`. A firmware's `Version` is a number of its own (7.7.0.1.231),
    and its `package_version` the driver that it was published with.
    """
    driver = firmware = ()
    for base in ascend_folders(root):
        driver = driver or _fields(root, f"{base}/driver/version.info", ("package_version", "Version"))
        firmware = firmware or _fields(root, f"{base}/firmware/version.info", ("Version", "package_version"))
    if told_by_npu_smi:
        driver += (Source("npu-smi info", "Version", told_by_npu_smi),)
    return _choose(driver), _choose(firmware)


def firmware_fit(root: str | os.PathLike, driver: Found, firmware: Found) -> FirmwareFit | None:
    """Whether the driver lists the firmware or the firmware lists the driver: one is enough, as for the driver's tool.

    `None` where the driver has no list, as old ones, or the firmware no file, as in a container.
    """
    number = next((source.value for source in firmware.sources if source.field == "Version"), None)
    accepted = _beside(root, driver, "compatible_version_fw")
    if number is None or accepted is None:
        return None
    drivers = _beside(root, firmware, "compatible_version_drv")
    fits = in_ranges(driver.chosen, drivers) or in_ranges(number, accepted)
    return FirmwareFit(number, accepted, fits)


def _beside(root, version: Found, name: str) -> str | None:
    """Another field of the file that a version is from."""
    fields = _fields(root, version.sources[0].file, (name,)) if version.sources else ()
    return fields[0].value if fields else None


def find_cann(root: str | os.PathLike, environ: Mapping[str, str]) -> tuple[CannInstall, ...]:
    """Every CANN toolkit, the one that the environment points at first.

    CANN is in ascend-toolkit/<version> with a `latest` beside it up to 8.3, and in cann-<version> with a link `cann`
    from 8.5; below /usr/local/Ascend, the home folder of a user who is not root, or a conda environment.
    """
    pointed = [environ[name].rstrip("/") for name in HOMES if environ.get(name)]
    candidates = list(pointed)
    for folder in _cann_folders(root, environ):
        candidates += [f"{folder}/{name}" for name in children(root, folder) if re.match("cann(-|$)", name)]
        names = sorted(children(root, f"{folder}/ascend-toolkit"), key=lambda name: name != "latest")
        candidates += [f"{folder}/ascend-toolkit/{name}" for name in names if re.match("latest$|[0-9]", name)]
    installs, seen = [], set()
    for path in candidates:
        version = _choose(_cann_sources(root, path))
        # The same CANN has several names: `latest` is a link, or a folder of links with a version.cfg of its own.
        names = {(os.path.dirname(resolved(root, path)), version_key(version.chosen) or version.chosen)}
        names |= {resolved(root, source.file) for source in version.sources[:1]}
        is_there = version.sources or (path in pointed and is_folder(root, path))
        if is_there and not names & seen:
            seen |= names
            installs.append(CannInstall(path, version, set_env(root, path), active=path in pointed[:1]))
    return tuple(installs)


def active_cann(installs: tuple[CannInstall, ...]) -> Found:
    """The version of the CANN that the environment points at, otherwise of the newest."""
    chosen = max(installs, key=lambda install: (install.active, install.order), default=None)
    return chosen.version if chosen else Found()


def find_nnal(root: str | os.PathLike, environ: Mapping[str, str]) -> str | None:
    """Where NNAL is, the library with libatb: what its set_env.sh says, otherwise beside CANN."""
    places = [environ.get("ATB_HOME_PATH"), *(f"{folder}/nnal/atb" for folder in _cann_folders(root, environ))]
    return next((place for place in places if place and is_folder(root, place)), None)


def set_env(root: str | os.PathLike, path: str) -> str:
    """The script to source: beside the versions up to CANN 8.3, inside the folder from 8.5."""
    inside, beside = f"{path}/set_env.sh", f"{os.path.dirname(path)}/set_env.sh"
    return beside if os.path.isfile(below(root, beside)) and not os.path.isfile(below(root, inside)) else inside


def ascend_folders(root: str | os.PathLike) -> list[str]:
    """Where the driver may be installed, the place that its installer noted first."""
    noted = _fields(root, INSTALLER_NOTE, ("Driver_Install_Path_Param",))
    return list(dict.fromkeys([*(source.value.rstrip("/") for source in noted), ASCEND]))


def _cann_folders(root, environ: Mapping[str, str]) -> list[str]:
    """Where CANN may be installed: beside the driver, by a user who is not root, by conda or by pip."""
    own = [f"{environ[name].rstrip('/')}/Ascend" for name in ("HOME", "CONDA_PREFIX") if environ.get(name)]
    for prefix in dict.fromkeys([environ.get("VIRTUAL_ENV"), environ.get("CONDA_PREFIX"), sys.prefix]):
        library = f"{(prefix or '').rstrip('/')}/lib"
        pythons = [name for name in children(root, library) if prefix and name.startswith("python3")]
        own += [f"{library}/{name}/site-packages/ascend" for name in pythons]
    return list(dict.fromkeys(ascend_folders(root) + own))


def _cann_sources(root, path: str) -> tuple[Source, ...]:
    """Releases only: `Version=` in CANN's version.info is the number of a component (8.2.RC1 has 8.2.0.0.201)."""
    sources = ()
    for name in children(root, path):
        if name.endswith("-linux"):
            sources += _fields(root, f"{path}/{name}/ascend_toolkit_install.info", ("version",))
    for part in ("toolkit", "opp", "compiler", "opp_kernel", "runtime", "share/info/runtime"):
        sources += _fields(root, f"{path}/{part}/version.info", ("version_dir",))
    file = f"{path}/version.cfg"
    for match in re.finditer(r"^\s*(\w+_running_version)=\[[^:\]\n]*:([^,\]\n]+)", read_text(root, file), re.MULTILINE):
        sources += (Source(file, match[1], match[2].strip()),)
    if not sources and os.path.isfile(below(root, f"{path}/set_env.sh")):
        name = os.path.basename(resolved(root, path)).removeprefix("cann-")
        sources += (Source(path, "folder name", name),)
    return sources


def _choose(sources: tuple[Source, ...]) -> Found:
    values = [source.value for source in sources]
    understood = [value for value in values if version_key(value)]
    return Found((understood or values or [None])[0], sources)


def _fields(root, path: str, names: tuple[str, ...]) -> tuple[Source, ...]:
    """The lines `name=value` of a file, in the order of `names`."""
    values = read_pairs(root, path)
    return tuple(Source(path, name, values[name]) for name in names if name in values)

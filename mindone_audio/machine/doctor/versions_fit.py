"""Checks: Python, the packages, the driver, its firmware and CANN, and whether their versions go together."""

import platform
import re
from collections.abc import Iterator

from mindone_audio.machine.doctor.finding import Finding, fine
from mindone_audio.machine.doctor.machine import Machine
from mindone_audio.machine.tree import exists, read_text
from mindone_audio.machine.versions import (
    ACCEPTED,
    INSTALLER_NOTE,
    MINIMUM,
    PUBLISHED,
    Found,
    Source,
    VersionKey,
    active_cann,
    ascend_folders,
    compare,
    find_nnal,
    firmware_fit,
    satisfies,
    version_key,
)

# This library's own requirements: the kind of fault that another version is, and why.
REQUIREMENTS = {
    "mindspore>=2.7.0,<2.11": ("package-untested", "this library is tested with no other versions"),
    "mindone==0.5.0": ("package-untested", "the models extend classes of this version"),
    "transformers==4.57.1": ("package-untested", "mindone 0.5.0 is written for this version and requires it"),
    "numpy<2": (
        "numpy-too-new",
        "mindone 0.5.0 requires it, and CANN's operator compilers may use names that numpy 2 removed",
    ),
}
INSTALL_MINDSPORE = f'pip install "{next(iter(REQUIREMENTS))}"'


def check_python(machine: Machine) -> Iterator[Finding]:
    version = platform.python_version()
    key = version_key(version)
    fits = key and (3, 10) <= key[:2] < (3, 13)
    yield fine("Python", version) if fits else machine.say("python-untested", version=version)


def check_packages(machine: Machine) -> Iterator[Finding]:
    for requirement, (kind, reason) in REQUIREMENTS.items():
        name = re.match("[a-z]+", requirement)[0]
        version, install = machine.packages[name], f'pip install "{requirement}"'
        key = version_key(version)
        if version is None:
            yield machine.say("package-missing", name=name, install=install)
        elif key is None:
            said = f"version {version!r} is not understood"
            yield machine.say("version-unknown", about=name, said=said, wanted=f"{requirement}, or {install}")
        elif name in MINIMUM and key < version_key(MINIMUM[name]):
            yield check_minimum(machine, name, version)
        elif not satisfies(key, requirement):
            facts = {"version": version, "requirement": requirement, "reason": reason}
            yield machine.say(kind, name=name, install=install, **facts)
        else:
            yield fine(name, version)


def check_minimum(machine: Machine, about: str, version: str | None) -> Finding:
    """Whether MindSpore, the driver or CANN is new enough."""
    minimum = MINIMUM[about]
    if version_key(version) is None:
        said = "version not found" if version is None else f"version {version!r} is not understood"
        return machine.say("version-unknown", about=about, said=said, wanted=f"{minimum} or newer")
    if version_key(version) < version_key(minimum):
        kind = f"{about.lower()}-too-old"
        return machine.say(kind, version=version, minimum=minimum, install=INSTALL_MINDSPORE)
    return fine(about, version)


def check_release(machine: Machine, about: str, version: Found) -> Iterator[Finding]:
    """Whether a version is new enough, and a warning where two sources differ by more than case or build number."""
    yield check_minimum(machine, about, version.chosen)
    distinct: dict[VersionKey | str, Source] = {}
    for source in version.sources:
        distinct.setdefault(version_key(source.value) or source.value.lower(), source)
    if len(distinct) > 1:
        sources = "; ".join(map(str, distinct.values()))
        yield machine.say(f"{about.lower()}-versions-disagree", sources=sources, version=version.chosen)


def check_driver(machine: Machine) -> Iterator[Finding]:
    if machine.driver.chosen or machine.nodes or machine.devices:
        yield from check_release(machine, "driver", machine.driver)
        if not exists(machine.root, INSTALLER_NOTE):
            yield machine.say("install-info-missing")
    else:
        places = " or ".join(f"{folder}/driver/version.info" for folder in ascend_folders(machine.root))
        yield machine.say("driver-not-found", places=places)


def check_firmware(machine: Machine) -> Iterator[Finding]:
    """Whether the driver and the firmware go together; nothing where no file says, as in most containers."""
    fit = firmware_fit(machine.root, machine.driver, machine.firmware)
    if fit is None:
        return
    driver = machine.driver.chosen
    if fit.fits:
        yield fine("firmware", f"{fit.firmware} goes with driver {driver}")
        return
    kind = "firmware-unknown" if fit.fits is None else "firmware-mismatch"
    yield machine.say(kind, firmware=fit.firmware, accepted=fit.accepted, driver=driver)


def check_pair(machine: Machine) -> Iterator[Finding]:
    """Whether MindSpore, CANN and the driver were published together; nothing where a version is not known."""
    mindspore, cann, driver = machine.packages["mindspore"], active_cann(machine.installs).chosen, machine.driver.chosen
    release, key = version_key(mindspore), version_key(cann)
    if release is None or key is None:
        return
    name = ".".join(map(str, release[:3]))
    if name not in PUBLISHED:
        yield machine.say("pair-unknown", mindspore=mindspore)
        return
    published_cann, published_driver = PUBLISHED[name]
    published = f"CANN {published_cann}" + (f" and driver {published_driver}" if published_driver else "")
    accepted = accepted_cann(machine, release)
    said, level = [], None
    if order := compare(key, published_cann):
        said.append(f"CANN here is {'older' if order < 0 else 'newer'} ({cann})")
        if order < 0 or key[:2] != version_key(published_cann)[:2]:  # a newer patch is the same interface
            level = "pair-accepted" if f"{key.major}.{key.minor}" in accepted else "pair-unpublished"
    needed = _driver_of(key) if level == "pair-accepted" else published_driver
    if needed and version_key(driver) and (order := compare(version_key(driver), needed)):
        said.append(f"the driver here is {'older' if order < 0 else 'newer'} ({driver})")
        if order < 0:
            level = "pair-unpublished"
            published += f"; CANN {cann} goes with driver {needed}" if needed != published_driver else ""
    facts = {"mindspore": name, "published": published, "said": ", and ".join(said), "accepted": ", ".join(accepted)}
    found = f"MindSpore {name} goes with {published}"
    found += f"; {facts['said']}: this is not a published combination" if said else ""
    yield machine.say(level, **facts) if level else fine("published versions", found)


def accepted_cann(machine: Machine, release: VersionKey) -> tuple[str, ...]:
    """The versions of CANN of which the installed MindSpore does not complain: its own list, otherwise ours."""
    text = read_text(machine.root, f"{machine.mindspore_folder}/run_check/_check_version.py")
    own = re.search(r"class AscendEnvChecker.*?self\.version = \[([^\]]*)\]", text, re.DOTALL)
    listed = re.findall(r"[0-9]+\.[0-9]+", own[1]) if own else ()
    return tuple(listed) or ACCEPTED.get(f"{release.major}.{release.minor}", ())


def _driver_of(cann: VersionKey) -> str | None:
    """The driver that was published with a CANN."""
    drivers = (driver for name, driver in PUBLISHED.values() if driver and version_key(name)[:2] == cann[:2])
    return next(drivers, None)


def check_side_packages(machine: Machine) -> Iterator[Finding]:
    """protobuf, which CANN and MindSpore want in different versions, and NNAL, which the models do not need."""
    protobuf, cann = version_key(machine.version_of("protobuf")), active_cann(machine.installs).chosen
    if protobuf and protobuf.major > 3 and version_key(cann) and version_key(cann)[:2] < (9, 1):
        yield machine.say("protobuf-newer-than-cann-asks", version=machine.version_of("protobuf"), cann=cann)
    place = find_nnal(machine.root, machine.environ)
    yield fine("NNAL", f"{place or 'not found'}; the models here do not need its libatb")
    python = version_key(platform.python_version())
    if place and python and python[:2] not in ((3, 10), (3, 11)):
        yield machine.say("nnal-python", place=place, version=platform.python_version())

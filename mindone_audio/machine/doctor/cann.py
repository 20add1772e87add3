"""Checks: which CANN is there and active, whether it is whole and fits the chips, and what its Python part needs."""

import os
import platform
import re
import shlex
from collections.abc import Iterator

from mindone_audio.machine.doctor.finding import Finding, fine
from mindone_audio.machine.doctor.machine import Machine
from mindone_audio.machine.doctor.versions_fit import check_release
from mindone_audio.machine.tree import children, is_folder, read_text, resolved, split_paths
from mindone_audio.machine.versions import ASCEND, HOMES, MINIMUM, active_cann, ascend_folders, set_env, version_key

# Which CANN (its set_env.sh sets these), and where its libraries and operator compilers are.
PLACES = f"{ASCEND}, the home folder, a conda environment or the Python packages"
SEARCH_PATHS = ("LD_LIBRARY_PATH", "PYTHONPATH")
RUNTIMES = ("nnrt", "nnae")  # packages of CANN that only run compiled models
KERNELS = "opp/built-in/op_impl/ai_core/tbe/kernel"  # a folder for each chip
# What CANN's operator compilers import: the module, and the package that has it.
PYTHON_MODULES = {
    "decorator": "decorator",
    "attrs": "attrs",
    "sympy": "sympy",
    "cffi": "cffi",
    "psutil": "psutil",
    "scipy": "scipy",
    "yaml": "pyyaml",
    "absl": "absl-py",
    "pathlib2": "pathlib2",
    "cython": "cython",
    "requests": "requests",
    "google.protobuf": "protobuf",
}
STARTUP_FILES = (".bashrc", ".bash_profile", ".profile", ".zshrc")  # of a terminal, below HOME


def check_cann(machine: Machine) -> Iterator[Finding]:
    if not machine.installs:
        places = [f"{base}/{name}" for base in ascend_folders(machine.root) for name in RUNTIMES]
        partial = [place for place in places if is_folder(machine.root, place)]
        yield (
            machine.say("cann-without-compiler", path=partial[0], name=f" ({os.path.basename(partial[0])})")
            if partial
            else machine.say("cann-not-found", minimum=MINIMUM["CANN"], places=PLACES)
        )
        return
    yield from check_release(machine, "CANN", active_cann(machine.installs))
    newest = max(machine.installs, key=lambda install: install.order)
    if not any(machine.environ.get(name) for name in HOMES):
        source = _source(newest.set_env)
        yield machine.say("cann-not-sourced", path=newest.path, source=source)
        for file in _startup_files(machine):
            yield machine.say("cann-sourced-in-startup-file", file=file, source=source)
    for install in machine.installs:
        if install.active and () < install.order < newest.order:
            facts = {"newest": newest.path, "newest_version": newest.version.chosen, "source": _source(newest.set_env)}
            yield machine.say("cann-older-than-installed", version=install.version.chosen, path=install.path, **facts)


def _source(script: str) -> str:
    return f"source {shlex.quote(script)}"


def _startup_files(machine: Machine) -> list[str]:
    """The files of a terminal's start that source a set_env.sh, the user's own before the system's."""
    home = machine.environ.get("HOME", "").rstrip("/")
    system = [f"/etc/profile.d/{name}" for name in children(machine.root, "/etc/profile.d")]
    own = [f"{home}/{name}" for name in STARTUP_FILES] if home else []
    files = [*own, *system, "/etc/profile", "/etc/bash.bashrc", "/etc/bashrc"]
    sources = re.compile(r"^[^#\n]*(set_env\.sh|ASCEND_HOME_PATH=)", re.MULTILINE)
    return [file for file in files if sources.search(read_text(machine.root, file))][:1]


def check_variables(machine: Machine) -> Iterator[Finding]:
    """Whether the variables belong to one CANN that exists, as its set_env.sh leaves them."""
    root, environ = machine.root, machine.environ
    name = next((name for name in HOMES if environ.get(name)), None)
    if name is None:
        return
    home = environ[name].rstrip("/")
    if not is_folder(root, home):
        sources = [_source(install.set_env) for install in machine.installs]
        yield machine.say(
            "cann-home-missing", name=name, home=home, source=" or ".join(sources) or f"unset {name}, or install CANN"
        )
        return
    source = _source(set_env(root, home))
    for other, place in (("ASCEND_TOOLKIT_HOME", home), ("ASCEND_OPP_PATH", f"{home}/opp")):
        value = environ.get(other)
        if value and resolved(root, value) != resolved(root, place):
            yield machine.say("cann-mixed", name=other, value=value, place=place, source=source)
    lacking = [] if environ.get("ASCEND_OPP_PATH") else ["ASCEND_OPP_PATH is not set"]
    for variable, part in zip(SEARCH_PATHS, ("lib64", "opp/built-in/op_impl/ai_core/tbe")):
        entries = [resolved(root, entry) for entry in split_paths(environ.get(variable))]
        if resolved(root, f"{home}/{part}") not in entries:
            lacking.append(f"{variable} lacks {home}/{part}")
    if lacking:
        yield machine.say("cann-sourced-in-part", lacking="; ".join(lacking), source=source)


def check_parts(machine: Machine) -> Iterator[Finding]:
    """Whether the active CANN has its compiler and the operators of the chips; nothing before it is sourced."""
    if machine.active is None or not is_folder(machine.root, machine.active.path):
        return
    home = machine.active.path
    if not is_folder(machine.root, f"{home}/compiler"):
        runtime = re.search("|".join(RUNTIMES), resolved(machine.root, home))
        yield machine.say("cann-without-compiler", path=home, name=f" ({runtime[0]})" if runtime else "")
    folder = f"{home}/{KERNELS}"
    there = [name for name in children(machine.root, folder) if _has_kernels(machine, f"{folder}/{name}")]
    facts = {"folder": folder, "version": machine.active.version.chosen or "the installed version"}
    newer = (version_key(machine.active.version.chosen) or (9,))[:2] >= (8, 5)
    others = f", only of {', '.join(there)}" if there else ", nor of any other chip"
    for name, chip in machine.chips.items():
        if chip and chip.soc not in there:
            kind = "ops-package-of-another-chip" if there else "ops-package-missing"
            package = chip.packages[newer]
            yield machine.say(kind, chip=f"{name} ({chip.soc})", package=package, others=others, **facts)
    if not there and not any(machine.chips.values()):
        package = ("Ascend-cann-kernels-<chip>", "Ascend-cann-<chip>-ops")[newer]
        yield machine.say("ops-package-missing", chip="any chip", package=package, others="", **facts)


def _has_kernels(machine: Machine, folder: str) -> bool:
    """Whether a chip's folder is of an operator package; the toolkit alone puts `ops_oam` there."""
    return os.path.basename(folder) != "config" and bool(set(children(machine.root, folder)) - {"ops_oam", "config"})


def check_te(machine: Machine) -> Iterator[Finding]:
    """Which te Python finds, in PYTHONPATH or by pip, and whether it is the active CANN's and this Python's."""
    active = machine.active
    if active is None:
        return
    source = _source(active.set_env)
    entry = next((entry for entry in machine.python_entries if is_folder(machine.root, f"{entry}/te")), None)
    if entry is None:
        if by_pip := machine.version_of("te"):
            yield fine("te", by_pip)
            return
        shipped, action, note = f"{active.path}/python/site-packages/te", source, ""
        if not is_folder(machine.root, shipped):
            note = f", nor is there {shipped}"
            wheel = shlex.quote(f"{active.path}/lib64/") + "te-*.whl"
            action = f"install the CANN toolkit again or `pip install {wheel}`, and {source}"
        yield machine.say("te-missing", shipped=note, action=action)
        return
    place, built = f"{entry}/te", _python_of(machine, entry)
    version = re.match(r"[0-9]+\.[0-9]+", platform.python_version())[0]
    other = _owner(machine, entry)
    if other and other != resolved(machine.root, active.path):
        yield machine.say("te-of-another-cann", place=place, home=active.path, entry=entry, source=source)
    elif built and version not in built:
        yield machine.say("te-for-another-python", place=place, built=" and ".join(sorted(built)), version=version)
    else:
        yield fine("te", place)


def _owner(machine: Machine, entry: str) -> str | None:
    """The CANN that a folder of PYTHONPATH belongs to, as a resolved path; `None` for a folder of no CANN."""
    folder = resolved(machine.root, entry)
    for install in machine.installs:
        home = resolved(machine.root, install.path)
        if folder.startswith(f"{home}/"):
            return home
    match = re.fullmatch(r"(.+)/python/site-packages|(.+)/opp/built-in/.*", folder)
    return match and (match[1] or match[2])


def _python_of(machine: Machine, entry: str) -> set[str]:
    """The versions of Python that the compiled parts of te were built for, or that its folder is named after."""
    names = [name for part in ("te", "tbe") for name in children(machine.root, f"{entry}/{part}")]
    tags = {match[1] for name in names if (match := re.search(r"\.cpython-3([0-9]{1,2})", name))}
    tags = tags or set(re.findall(r"/python3\.([0-9]{1,2})/", f"{entry}/"))
    return {f"3.{minor}" for minor in tags}


def check_python_modules(machine: Machine) -> Iterator[Finding]:
    """Whether this Python has what CANN's compilers import; nothing before CANN is sourced."""
    if machine.active is None:
        return
    missing = [name for name in PYTHON_MODULES if not machine.has_module(name)]
    if missing:
        packages = " ".join(PYTHON_MODULES[name] for name in missing)
        yield machine.say("python-modules-missing", modules=", ".join(missing), install=f"pip install {packages}")
    source = _source(machine.active.set_env)
    if not machine.has_module("tbe"):  # te has a check of its own
        yield machine.say("tbe-missing", source=source)
    if not machine.has_module("hccl"):
        yield machine.say("hccl-module-missing", source=source)
    if not missing:
        yield fine("Python modules", "all that CANN imports are there")

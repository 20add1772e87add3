"""Checks: MindSpore's Ascend plugin, the driver's libraries, and what is loaded before or instead of them."""

import os
import platform
import re
import shlex
from collections.abc import Iterator

from mindone_audio.machine.doctor.finding import Finding, fine
from mindone_audio.machine.doctor.machine import Machine
from mindone_audio.machine.doctor.versions_fit import INSTALL_MINDSPORE
from mindone_audio.machine.shared_libraries import find_library, loader_folders, missing_libraries
from mindone_audio.machine.tree import children, exists, resolved, split_paths
from mindone_audio.machine.versions import ascend_folders

DRIVER_LIBRARY = "libascend_hal.so"
DRIVER_PARTS = ("driver", "common", "")  # below lib64
EXPECTED_PRELOADS = re.compile(r"lib(gomp|jemalloc|tcmalloc|mimalloc)\b")
TLS_LIBRARY = re.compile(r"libgomp.*\.so")
SHADOWING = "libstdc++.so.6"


def check_driver_libraries(machine: Machine) -> Iterator[Finding]:
    """Whether the loader finds the driver; nothing before CANN is sourced, which may name its folders."""
    if machine.active is None:
        return
    folders = loader_folders(machine.root, machine.environ)
    if place := find_library(machine.root, DRIVER_LIBRARY, folders):
        yield fine("driver libraries", place)
        return
    homes = [f"{base}/driver/lib64" for base in ascend_folders(machine.root)]
    places = [f"{home}/{part}".rstrip("/") for home in homes for part in DRIVER_PARTS]
    if shipped := find_library(machine.root, DRIVER_LIBRARY, places):
        base = os.path.dirname(shipped).removesuffix("/driver").removesuffix("/common")
        entries = ":".join(f"{base}/{part}".rstrip("/") for part in DRIVER_PARTS)
        action = f"export LD_LIBRARY_PATH={shlex.quote(entries)}:$LD_LIBRARY_PATH"
    else:
        action = f"in a container: `docker run -v {homes[0]}:{homes[0]} …`; on the host, install the driver again"
    yield machine.say("driver-libraries-not-found", action=action)


def check_plugin(machine: Machine) -> Iterator[Finding]:
    """Whether MindSpore has a plugin for Ascend whose libraries are all found."""
    if machine.mindspore_folder is None:
        return
    folder = f"{machine.mindspore_folder}/lib/plugin"
    names = [name for name in children(machine.root, folder) if name.startswith("libmindspore_ascend.so")]
    if not names:
        yield machine.say("mindspore-without-ascend", folder=folder, install=f"{INSTALL_MINDSPORE} --force-reinstall")
        return
    plugin = f"{folder}/{names[-1]}"
    # What MindSpore has in lib/ is loaded before its plugin is.
    folders = [f"{machine.mindspore_folder}/lib", *loader_folders(machine.root, machine.environ)]
    missing = missing_libraries(machine.root, plugin, folders)
    if not missing:
        yield fine("MindSpore's Ascend plugin", plugin)
        return
    first, user = next(iter(missing.items()))
    text = f"{first}: cannot open shared object file: No such file or directory (needed by {user})"
    if len(missing) > 1:
        text += f"; nor are {', '.join(list(missing)[1:])} found"
    script = machine.active or next(iter(machine.installs), None)
    action = f"source {shlex.quote(script.set_env)}" if script else "install CANN and source its set_env.sh"
    if machine.active:
        action += "; if it was sourced, install the CANN toolkit and the driver again, or mount the driver's lib64"
    yield machine.say("plugin-does-not-load", plugin=os.path.basename(plugin), text=text, action=action)


def check_preloads(machine: Machine) -> Iterator[Finding]:
    """LD_PRELOAD, and libraries that need to be in it on aarch64."""
    preloaded = re.split("[ :]+", machine.environ.get("LD_PRELOAD", "").strip())
    for library in filter(None, preloaded):
        if library.startswith("/") and not exists(machine.root, library):
            yield machine.say("preload-missing", library=library)
        elif not EXPECTED_PRELOADS.match(os.path.basename(library)):
            yield machine.say("preload-foreign", library=library)
    known = {resolved(machine.root, library) for library in preloaded}
    libraries = [path for path in _tls_libraries(machine) if resolved(machine.root, path) not in known]
    if libraries and platform.machine().lower() in ("aarch64", "arm64"):
        action = _preload_command(libraries, [library for library in preloaded if library])
        yield machine.say("libgomp-static-tls", library=" and ".join(libraries), action=action)
    for folder in split_paths(machine.environ.get("LD_LIBRARY_PATH")):
        if exists(machine.root, f"{folder}/{SHADOWING}"):
            yield machine.say("libstdcxx-shadowed", folder=folder)
            break


def _tls_libraries(machine: Machine) -> list[str]:
    """The libgomp that packages bring along, such as scikit_learn.libs/libgomp-d22c30c5.so.1.0.0."""
    found = []
    for entry in dict.fromkeys((*machine.python_entries, *machine.python_path)):
        folders = [f"{entry}/{name}" for name in children(machine.root, entry) if name.endswith(".libs")]
        for folder in (*folders, f"{entry}/torch/lib", f"{entry}/lightgbm/lib"):
            names = children(machine.root, folder)
            found += [f"{folder}/{name}" for name in names if TLS_LIBRARY.match(name)]
    return found


def _preload_command(libraries: list[str], before: list[str]) -> str:
    """The line to paste. LD_PRELOAD is split at spaces and colons, so a path with one gets a link."""
    links, entries = [], []
    for library in libraries:
        entry = library
        if re.search(r"[\s:]", library):
            entry = f"/var/tmp/{os.path.basename(library)}"
            links.append(f"ln -sf {shlex.quote(library)} {entry} && ")
        entries.append(entry)
    return f"{''.join(links)}export LD_PRELOAD={shlex.quote(':'.join(entries + before))}"

"""Python runs this at its start where this folder is on PYTHONPATH, in child processes too.

REFUSED="sklearn,numba": these modules are installed and refuse to be imported. REFUSED_LOG: a file that gets who asked.
ABSENT="librosa,torch": these modules are not installed.
"""

import importlib.machinery
import importlib.util
import os
import sys
import traceback

REFUSED, ABSENT = (set(filter(None, os.environ.get(name, "").split(","))) for name in ("REFUSED", "ABSENT"))


class Refuse:
    """A meta path finder for these modules, and the loader of those that it finds."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        first = name.partition(".")[0]
        if first in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r} (absent in this test)", name=name)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if first in REFUSED else None
        if spec is not None:
            spec.loader = Refuse  # whoever only asks whether it is installed gets a spec
        return spec

    @staticmethod
    def create_module(spec):
        frames = [frame for frame in traceback.extract_stack()[:-1] if "importlib" not in frame.filename]
        with open(os.environ["REFUSED_LOG"], "a", encoding="utf-8") as log:
            print(spec.name, "".join(traceback.format_list(frames)), sep="\n", file=log)
        raise ImportError(f"{spec.name} refuses to be imported in this test", name=spec.name)

    @staticmethod
    def exec_module(module):
        raise AssertionError("create_module does not return")


installed = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] in ABSENT else installed(name, *rest)
sys.meta_path.insert(0, Refuse)

"""Run a script as users do who have no PyTorch: `python without_torch.py SCRIPT ARGUMENTS...`, torch not importable."""

import importlib.util
import runpy
import sys


class Blocker:
    """A meta path finder that refuses torch; everything else goes on to the ordinary finders."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)


find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] == "torch" else find_spec(name, *rest)
sys.meta_path.insert(0, Blocker)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")

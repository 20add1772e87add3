"""Imports MindONE's submodules without the `__init__` of their packages, which import all models and scikit-learn.

Python runs such an `__init__` as soon as somebody asks for the package or for another submodule of it, and the classes
are the same.
"""

import contextlib
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Any

_packages: dict[str, types.ModuleType] = {}  # by name, those whose `__init__` has not run yet or runs later


class _Loader(SourceFileLoader):
    """Runs a package's `__init__` in the module that has its imported submodules as attributes."""

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _packages[spec.name]


def _find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
    if name not in _packages:
        return None
    spec = _packages[name].__spec__
    loader, folders = _Loader(name, spec.origin), spec.submodule_search_locations
    return importlib.util.spec_from_file_location(name, spec.origin, loader=loader, submodule_search_locations=folders)


sys.meta_path.insert(0, types.SimpleNamespace(find_spec=_find_spec))


@contextlib.contextmanager
def without_init(name: str, **known: Any) -> Iterator[None]:
    """Within, a package has its submodules and `known`; afterwards it counts as not imported, its submodules do not."""
    if name in sys.modules:
        yield
        return
    if name not in _packages:
        _packages[name] = importlib.util.module_from_spec(importlib.util.find_spec(name))
    sys.modules[name] = _packages[name]
    vars(_packages[name]).update(known)
    try:
        yield
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Within, MindONE prints no notices about models that are not used here."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

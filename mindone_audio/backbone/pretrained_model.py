"""MindONE's `PreTrainedModel` and its config classes, imported without MindONE's models, which take seconds.

`mindone.transformers` imports all its models, and its `generation` imports scikit-learn. This module imports their
submodules before the `__init__` of both has run. Python imports both whole as soon as somebody asks for them or for
another submodule, and the classes are the same. The import also hides notices about models that are not used here.
"""

import contextlib
import importlib.metadata
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


@contextlib.contextmanager
def _without_init(name: str, **known: Any) -> Iterator[None]:
    """Within, a package has its submodules and `known`; afterwards it counts as not imported, its submodules do not."""
    if name in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(name)
    _packages[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
    vars(_packages[name]).update(known)
    try:
        yield
    finally:
        del sys.modules[name]


with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with (
        _without_init("mindone.transformers", __version__=importlib.metadata.version("transformers")),
        _without_init("mindone.transformers.generation"),
    ):
        from mindone.transformers.generation.configuration_utils import GenerationConfig
        from mindone.transformers.modeling_outputs import CausalLMOutput
        from mindone.transformers.modeling_utils import PreTrainedModel
sys.meta_path.insert(0, types.SimpleNamespace(find_spec=_find_spec))

__all__ = ["CausalLMOutput", "GenerationConfig", "PreTrainedModel"]

"""What is used of MindONE, without all its models, which take seconds to import.

`mindone.transformers` imports 900 modules, and its `generation` scikit-learn. Here both are made packages that run
their `__init__` once something is asked of them that only that provides: so they are whole for whoever imports them
besides. Importing them also prints notices about models that are not used here.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import sys
import warnings
from typing import Any


def _put_off(name: str, **known: Any) -> None:
    """Let a package run its `__init__` when something is asked of it that is neither a submodule nor `known`."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    package = importlib.util.module_from_spec(spec)

    def run(attribute: str) -> Any:
        if attribute.startswith("__") and attribute != "__all__":
            raise AttributeError(attribute)  # what is asked of every module, such as by `inspect`
        vars(package).pop("__getattr__", None)
        spec.loader.exec_module(package)
        return getattr(package, attribute)

    vars(package).update(known, __getattr__=run)
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, package)


with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _put_off("mindone.transformers", __version__=importlib.metadata.version("transformers"))
    _put_off("mindone.transformers.generation")
    from mindone.transformers.generation.configuration_utils import GenerationConfig
    from mindone.transformers.modeling_outputs import CausalLMOutput
    from mindone.transformers.modeling_utils import PreTrainedModel

__all__ = ["CausalLMOutput", "GenerationConfig", "PreTrainedModel"]

"""What is used of MindONE, without running the `__init__` of its `transformers`, which imports all its models.

Those are 900 modules, and three quarters of the time until a first answer. A later `import mindone.transformers` runs
it, with the modules that are there already. Importing also prints notices about models that are not used here.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Iterator

_PACKAGE = "mindone.transformers"


@contextlib.contextmanager
def _without_its_models() -> Iterator[None]:
    """While modules of the package are imported, a package of its name and place that has nothing else in it."""
    if _PACKAGE in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(_PACKAGE)
    package = types.ModuleType(_PACKAGE)
    package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
    package.__version__ = importlib.metadata.version("transformers")  # which its generation configs note
    sys.modules[_PACKAGE] = package
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]


with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), _without_its_models():
    warnings.simplefilter("ignore")
    from mindone.transformers.generation.configuration_utils import GenerationConfig
    from mindone.transformers.modeling_outputs import CausalLMOutput
    from mindone.transformers.modeling_utils import PreTrainedModel

__all__ = ["CausalLMOutput", "GenerationConfig", "PreTrainedModel"]

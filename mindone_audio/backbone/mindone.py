"""What is used of MindONE, imported without the notices that its import prints about models not used here."""

import contextlib
import io
import warnings

with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mindone.transformers.generation.configuration_utils import GenerationConfig
    from mindone.transformers.modeling_outputs import CausalLMOutput
    from mindone.transformers.modeling_utils import PreTrainedModel

__all__ = ["CausalLMOutput", "GenerationConfig", "PreTrainedModel"]

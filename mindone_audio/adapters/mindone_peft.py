"""What is used of `mindone.peft`, imported without the notices that importing MindONE prints."""

import contextlib
import io
import warnings

with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mindone.peft import LoraConfig, PeftModel, PeftModelForCausalLM, get_peft_model
    from mindone.peft.tuners.lora import Linear as PeftLoraLinear
    from mindone.peft.tuners.lora import LoraLayer
    from mindone.peft.tuners.tuners_utils import check_adapters_to_merge, check_target_module_exists
    from mindone.peft.utils.other import get_pattern_key

__all__ = [
    "LoraConfig",
    "LoraLayer",
    "PeftLoraLinear",
    "PeftModel",
    "PeftModelForCausalLM",
    "check_adapters_to_merge",
    "check_target_module_exists",
    "get_pattern_key",
    "get_peft_model",
]

"""What is used of `mindone.peft`, imported without MindONE's models and without scikit-learn."""

from mindone_audio.backbone.mindone_packages import without_init, without_notices
from mindone_audio.backbone.pretrained_model import MSPreTrainedModel

VERSION = "0.15.2"  # mindone.peft's, which it writes on the cards of adapters

with (
    without_notices(),
    without_init("mindone.transformers", MSPreTrainedModel=MSPreTrainedModel),
    without_init("mindone.transformers.generation"),
    without_init("mindone.peft", __version__=VERSION),
):
    from mindone.peft.peft_model import PeftModel
    from mindone.peft.tuners.lora import Linear as PeftLoraLinear
    from mindone.peft.tuners.lora import LoraConfig, LoraLayer
    from mindone.peft.tuners.tuners_utils import check_adapters_to_merge, check_target_module_exists
    from mindone.peft.utils.other import get_pattern_key

__all__ = [
    "LoraConfig",
    "LoraLayer",
    "PeftLoraLinear",
    "PeftModel",
    "check_adapters_to_merge",
    "check_target_module_exists",
    "get_pattern_key",
]

"""MindONE's `PreTrainedModel` and its config classes, imported without MindONE's models, which take seconds."""

import importlib.metadata

from mindone_audio.backbone.mindone_packages import without_init, without_notices

with (
    without_notices(),
    without_init("mindone.transformers", __version__=importlib.metadata.version("transformers")),
    without_init("mindone.transformers.generation"),
):
    from mindone.transformers.generation.configuration_utils import GenerationConfig
    from mindone.transformers.modeling_outputs import CausalLMOutput, Seq2SeqLMOutput
    from mindone.transformers.modeling_utils import MSPreTrainedModel, PreTrainedModel

__all__ = ["CausalLMOutput", "GenerationConfig", "MSPreTrainedModel", "PreTrainedModel", "Seq2SeqLMOutput"]

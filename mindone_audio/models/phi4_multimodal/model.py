"""Phi-4-multimodal (arXiv 2503.01743), speech and text: a conformer, a two-layer projector, Phi-4-mini with an adapter.

The adapter (LoRA) is a part of the checkpoint. It is on for prompts with audio and off for those without, in one batch.
"""

import logging
from pathlib import Path

import numpy as np
from transformers import Phi4MultimodalConfig

from mindone_audio.backbone.audio_language_model import AudioLanguageModel
from mindone_audio.backbone.checkpoint_model import to_numpy
from mindone_audio.backbone.decoder import Decoder
from mindone_audio.backbone.packed_weights import PackedOutputs
from mindone_audio.generation import GenerationMixin
from mindone_audio.models.audioflamingo3 import Projector
from mindone_audio.models.phi4_multimodal import layouts
from mindone_audio.models.phi4_multimodal.encoder import Phi4Encoder
from mindone_audio.models.phi4_multimodal.processor import Phi4MultimodalProcessor
from mindone_audio.weights.hub import CheckpointError

CHECKPOINTS = ("microsoft/Phi-4-multimodal-instruct",)
PROVED = (
    "float32 on CPU against transformers 4.57 (PyTorch, model and processor), with small random models in both layouts"
)

logger = logging.getLogger(__name__)


class Phi4MultimodalForCausalLM(AudioLanguageModel, GenerationMixin):
    """Phi-4-multimodal on MindSpore: `from_pretrained`, `construct` (logits and loss) and `generate`.

    It loads Microsoft's layout (`phi4mm`) and that of transformers (`phi4_multimodal`, with the speech adapter in the
    folder speech-lora), and saves the latter. What it sees with is not read.
    """

    config_class = Phi4MultimodalConfig
    audio_inputs = ("audio_input_features", "audio_embed_sizes", "audio_attention_mask")
    weight_prefixes, saved_prefixes = layouts.PREFIXES, layouts.TRANSFORMERS
    adapter_prefixes = layouts.TRANSFORMERS
    packed_class = PackedOutputs  # its matrices are large ones on disk
    adapted_modules = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

    def __init__(self, config: Phi4MultimodalConfig):
        encoder, decoder = layouts.encoder_sizes(config.audio_config), layouts.decoder_sizes(config)
        projector = Projector(encoder.hidden_size, decoder.hidden_size, bias=True)
        super().__init__(config, Phi4Encoder(encoder), projector, Decoder(decoder), config.audio_config.audio_token_id)

    @classmethod
    def published_config(cls, stored: dict, folder: Path) -> dict:
        """config.json in transformers' layout, with the sizes of the speech adapter, if there is one."""
        config = layouts.transformers_config(stored, folder)
        if not config.get("speech_lora"):
            logger.warning("%s has no speech adapter, so that answers about audio are those of the bare model", folder)
        return config

    @classmethod
    def more_files(cls, folder: Path) -> list[Path]:
        """The speech adapter's, where it is not in the model's files."""
        return layouts.adapter_files(folder)

    @classmethod
    def unread(cls, names: set[str]) -> set[str]:
        """What sees. Raises `CheckpointError` where the only adapter is for that."""
        kinds = {kind for kind in ("speech", "vision") if any(f".lora_A.{kind}." in name for name in names)}
        if kinds == {"vision"}:
            raise CheckpointError(
                "this checkpoint has the adapter for images alone, and without the one for speech it does not hear: "
                "take the whole checkpoint, microsoft/Phi-4-multimodal-instruct"
            )
        return {name for name in names if any(part in name for part in layouts.UNREAD)}

    @property
    def audio_dtype(self):
        """That of the encoder's weights."""
        return self.audio_tower.embed.out.weight.dtype

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, **kwargs) -> None:
        """As for other models, in transformers' layout: the speech adapter goes to the folder speech-lora."""
        state_dict = dict(self.parameters_and_names()) if state_dict is None else state_dict
        base = {name: value for name, value in state_dict.items() if ".lora_" not in name}
        super().save_pretrained(save_directory, is_main_process, base, **kwargs)
        adapter = {name: to_numpy(value) for name, value in state_dict.items() if name not in base}
        if adapter and is_main_process:
            layouts.save_adapter(Path(save_directory), self.config, adapter)

    def clips(self, audio: dict) -> tuple[np.ndarray | None, np.ndarray]:
        """The features of all clips (clips, mel bins, frames), as wide as a graph takes, and int32 (clips) frames."""
        features, sizes, mask = (to_numpy(audio.get(name)) for name in self.audio_inputs)
        if features is None:
            return None, np.zeros(0, np.int32)
        encoder = self.audio_tower.config
        if features.ndim != 3 or features.shape[2] != encoder.num_mel_bins or not features.size:
            raise ValueError(
                f"audio_input_features has shape {features.shape}, this model takes (clips, frames, "
                f"{encoder.num_mel_bins}): use the checkpoint's own processor"
            )
        mask = np.ones(features.shape[:2], bool) if mask is None else mask != 0
        if mask.shape != features.shape[:2]:
            raise ValueError(f"audio_attention_mask has shape {mask.shape}, not {features.shape[:2]}")
        lengths = mask.sum(1).astype(np.int32)
        if sizes is not None and not np.array_equal(sizes.reshape(-1), self.audio_tokens(lengths)):
            raise ValueError(
                f"audio_embed_sizes {sizes} does not fit the clips, of {lengths} frames: {self.audio_tokens(lengths)}"
            )
        width = encoder.frames_to_encode(int(lengths.max()))
        features = features[:, :width].transpose(0, 2, 1)
        return np.pad(features, ((0, 0), (0, 0), (0, width - features.shape[2]))), lengths


MODEL, PROCESSOR = Phi4MultimodalForCausalLM, Phi4MultimodalProcessor

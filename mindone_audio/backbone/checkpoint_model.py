"""What the models of all families share, whatever their body: how they are loaded, saved, watched, and given clips."""

import os
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindone_audio.backbone.encoder import AudioEncoder
from mindone_audio.backbone.layers import QuantizedLinear, name_parameters
from mindone_audio.backbone.loading import load_checkpoint
from mindone_audio.backbone.packed_weights import PackedOutputs, PackedWeights
from mindone_audio.backbone.pretrained_model import PreTrainedModel
from mindone_audio.backbone.weights_state import WeightsState
from mindone_audio.machine import device
from mindone_audio.weights.parameters import Prefixes, Source, mark_as_pytorch, replace_prefix


def to_numpy(value) -> np.ndarray | None:
    """A NumPy array of a MindSpore tensor (bfloat16 as float32), an array or nested lists; None stays None."""
    if isinstance(value, Tensor):
        return (value.astype(ms.float32) if value.dtype == ms.bfloat16 else value).asnumpy()
    return None if value is None else np.asarray(value)


def audio_frames(lengths: np.ndarray) -> np.ndarray:
    """The frames of audio of each clip, of what `AudioLanguageModel.clips` gives as lengths."""
    return lengths if lengths.ndim == 1 else lengths[:, 0]


class CheckpointModel(PreTrainedModel):
    """An audio encoder and a language model with Hugging Face's parameter names.

    A family subclasses one of its subclasses with `config_class`, and an `__init__(config)` that describes its parts.
    One that hears only tokens has no encoder, one whose encoder fits its decoder no projector, and a vocoder no
    language model: it says what its `dtype` is. The class takes part
    in MindONE: `save_pretrained`, `mindone.peft` and its Trainer accept it.
    """

    base_model_prefix = ""
    main_input_name = "input_ids"
    # What the family's processor calls the features of the clips and, where there is one, their mask.
    audio_inputs: tuple[str, ...] = ("input_features", "feature_attention_mask")

    # How the names of a checkpoint begin where they are not the published layout's: (on disk, here).
    weight_prefixes: Prefixes = ()

    # The same of the layout that is saved, where a checkpoint may be in another one.
    saved_prefixes: Prefixes = ()

    # How the modules of transformers' class are called, after which adapters are named, where that differs from names
    # on disk: (there, here).
    adapter_prefixes: Prefixes = ()

    answers_questions = True  # or it writes down what is said, and is asked nothing
    is_taught = True  # whether `finetune` teaches it

    # The linear layers that adapters are for where nobody names others: those of the published guides.
    adapted_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __init__(
        self,
        config,
        audio_tower: AudioEncoder | None,
        projector: nn.Cell | None,
        language_model: nn.Cell | None,
    ):
        device.prepare()
        super().__init__(config)
        self.audio_tower, self.multi_modal_projector, self.language_model = audio_tower, projector, language_model
        self._packed: list[PackedOutputs] = []  # a list, since the cell's parameters are the model's own under others
        self._weights_state, self._weights_version = None, 0
        self.post_init()

    @classmethod
    def can_generate(cls) -> bool:
        return True

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config=None,
        mindspore_dtype: ms.Type | dict[str, ms.Type] | None = None,
        attn_implementation: str | None = "eager",
        tie_word_embeddings: bool | None = None,
        device_map: str | None = None,
        keep_quantized: bool = False,
        **download,
    ):
        """Load a checkpoint from a local folder or the Hugging Face hub.

        mindspore_dtype: dtype of the weights, None for the stored one, or one for each part: {"audio_tower":
        mindspore.float32, "": mindspore.float16}, where "audio_tower" counts the projector, "language_model" is the
        rest, and "" is for what is not named. On CPU half precision becomes float32, on an NPU without bfloat16 that
        becomes float16, which one log line says. attn_implementation: "eager". tie_word_embeddings: False gives the
        output layer its own copy where the checkpoint ties it. device_map: "auto" or None, both the current MindSpore
        device. keep_quantized: linear layers that the checkpoint has in bitsandbytes' NF4 keep their 4 bits in memory
        and are dequantised in every call, which is slower, instead of once here; such a model cannot be saved.
        download: revision, cache_dir, token, local_files_only, subfolder. Raises `hub.CheckpointError` (missing,
        unexpected or wrongly shaped tensors), `FileNotFoundError`, `ValueError`, or on Ascend
        `device.UnsupportedEnvironment`; no keyword is ignored.
        """
        if attn_implementation not in (None, "eager"):
            raise ValueError(f"attn_implementation {attn_implementation!r} is not supported: use 'eager'")
        if device_map not in (None, "auto"):
            raise ValueError(f"device_map {device_map!r} is not supported: call mindspore.set_device before loading")
        return load_checkpoint(
            cls, pretrained_model_name_or_path, config, mindspore_dtype, tie_word_embeddings, keep_quantized, **download
        )

    @property
    def dtype(self) -> ms.Type:
        """That of the language model's weights."""
        return self.language_model.model.embed_tokens.weight.dtype

    @property
    def audio_dtype(self) -> ms.Type:
        """That of the encoder's weights."""
        return self.dtype if self.audio_tower is None else self.audio_tower.conv1.weight.dtype

    packed_class: type[PackedOutputs] = PackedWeights

    @property
    def packed_weights(self) -> PackedOutputs | None:
        """The decoder's weights in other matrices, which `generate` reads; None where they are not packed."""
        return self._packed[0] if self._packed else None

    def pack_weights(self, packed: bool = True) -> None:
        """Put the decoder's weights, which have no memory yet, into other matrices. False: forget these matrices."""
        self._packed = [self.packed_class(self.language_model)] if packed else []

    @property
    def weights_version(self) -> int:
        """A number that is another one after each change that compiled graphs do not see.

        Adapters that are added, removed, activated, disabled, scaled or merged are such changes, and parameters whose
        memory is another one; values that are written in place are not.
        """
        state = WeightsState(self)
        if state != self._weights_state:
            self._weights_state, self._weights_version = state, self._weights_version + 1
            name_parameters(self)
        return self._weights_version

    def weights_changed(self) -> None:
        """Say that `set_data` has given a parameter other memory, after `generate` has been called.

        On a CPU it is noticed without this. On Ascend a parameter's address also changes when MindSpore moves it there.
        """
        self._weights_state = None

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process=True, state_dict=None, **kwargs
    ) -> None:
        """MindONE's `save_pretrained`, and transformers on PyTorch loads what it writes.

        Raises `ValueError` for a model that was loaded with `keep_quantized`.
        """
        if any(isinstance(cell, QuantizedLinear) for _, cell in self.cells_and_names()):
            raise ValueError(
                "a model with weights in 4 bits cannot be saved: copy its checkpoint, or load it without "
                "keep_quantized=True to save it dequantised"
            )
        state_dict = dict(self.parameters_and_names()) if state_dict is None else state_dict
        prefixes = tuple((here, on_disk) for on_disk, here in self.saved_prefixes or self.weight_prefixes)
        state_dict = {replace_prefix(name, prefixes): value for name, value in state_dict.items()}
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        for file in Path(save_directory).glob("*.safetensors"):
            mark_as_pytorch(file)

    @classmethod
    def unread(cls, names: set[str]) -> set[str]:
        """Which of the tensors on disk, by their names there, are of parts that this class does not have: for most
        classes none."""
        return set()

    @classmethod
    def published_config(cls, stored: dict, folder: Path) -> dict:
        """A folder's config.json in the layout of `config_class`, of whatever layout it is: mostly the same."""
        return stored

    @classmethod
    def more_files(cls, folder: Path) -> list[Path]:
        """Other safetensors files of a folder with tensors of the model: mostly none."""
        return []

    def weight_sources(self, folder: Path, **access) -> list[Source]:
        """Other checkpoints with what a repository leaves out; `access` are `hub.ACCESS_KEYWORDS`. Most have none."""
        return []

    def prepare_inputs_for_generation(self, input_ids, **inputs) -> dict:
        """The arguments of `construct`, unchanged. PEFT asks for this method; `generate` here does not call it."""
        return {"input_ids": input_ids, **inputs}

    def get_input_embeddings(self) -> nn.Cell:
        return self.language_model.model.embed_tokens

    def get_output_embeddings(self) -> nn.Cell | None:
        """The output layer; None where it is tied to the input embeddings."""
        return self.language_model.lm_head

    def encode_audio(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        """Clips (clips, mel bins, frames), lengths int32 in frames, to what the decoder takes (clips, rows, hidden)."""
        return self.project(self.audio_tower(input_features, lengths))

    def encoder_of(self, inputs: dict) -> nn.Cell | None:
        """The encoder that these arguments of `construct` go through; None where there are no encoded clips."""
        return self.audio_tower

    def project(self, encoded: Tensor) -> Tensor:
        """What the encoder makes of clips, as the decoder takes it: (clips, rows, hidden)."""
        return encoded if self.multi_modal_projector is None else self.multi_modal_projector(encoded)

    @property
    def context_positions(self) -> int:
        """How many positions of an encoder's output the decoder attends to; 0 where it reads audio in its prompt."""
        return 0

    def heard(self, lengths: np.ndarray) -> np.ndarray | None:
        """How many of `context_positions` the decoder attends to of clips of these lengths, as `clips` gives them,
        int32 (clips); None: always all."""
        return None

    def audio_tokens(self, frames: np.ndarray) -> np.ndarray:
        """How many tokens the decoder sees of clips of so many mel frames."""
        return self.audio_tower.output_lengths(frames)

    def clips(self, audio: dict) -> tuple[np.ndarray | None, np.ndarray]:
        """The features of all clips (clips, mel bins, frames), or None; int32 (clips), how many frames are audio.

        Frames are those of the window, or what `EncoderConfig.frames_to_encode` finds enough for these clips.
        Where the encoder takes partial windows, lengths are (clips, 2), as `AudioEncoder.construct` says.
        """
        if self.audio_tower is None:
            return None, np.zeros(0, np.int32)
        features_name, mask_name = (*self.audio_inputs, None)[:2]
        input_features, feature_mask = audio.get(features_name), to_numpy(audio.get(mask_name))
        if input_features is None:
            return None, np.zeros(0, np.int32)
        config = self.audio_tower.config
        expected = (config.num_mel_bins, config.num_mel_frames)
        shape = tuple(np.shape(input_features))
        if len(shape) != 3 or shape[1:] != expected:
            raise ValueError(
                f"{features_name} has shape {shape}, this model takes (clips, {expected[0]}, {expected[1]}): "
                "use the checkpoint's own processor, which pads each clip to the window"
            )
        if feature_mask is None:
            feature_mask = np.ones((shape[0], shape[2]), np.int32)
        if feature_mask.shape != (shape[0], shape[2]):
            raise ValueError(f"{mask_name} has shape {feature_mask.shape}, not {(shape[0], shape[2])}")
        lengths = (feature_mask != 0).sum(1).astype(np.int32)
        return to_numpy(input_features)[:, :, : config.frames_to_encode(int(lengths.max(initial=0)))], lengths

    def blank(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """A clip without a sound, as `clips` gives it, for which the encoder's graph of so many frames is taken."""
        return np.zeros((1, self.audio_tower.config.num_mel_bins, width), np.float32), np.array([width - 3], np.int32)

    def features_tensor(self, features: np.ndarray) -> Tensor:
        """Features of clips as the encoder takes them."""
        return Tensor(np.ascontiguousarray(features)).astype(self.audio_dtype)

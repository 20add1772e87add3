"""Adapters on disk, as PyTorch's PEFT reads and writes them: adapter_config.json and adapter_model.safetensors.

Tensors are named after the modules of transformers' class: `base_model.model.<module>.lora_A.weight`.
"""

import json
import logging
import math
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import transformers
from mindspore import Tensor, nn
from mindspore import ops as msops
from safetensors.numpy import save_file

from mindone_audio.adapters.mindone_peft import LoraConfig, LoraLayer, check_target_module_exists, get_pattern_key
from mindone_audio.backbone.checkpoint_model import CheckpointModel, to_numpy
from mindone_audio.backbone.layers import Linear, QuantizedLinear
from mindone_audio.machine.files import filling, replacing
from mindone_audio.weights import hub
from mindone_audio.weights.hub import CheckpointError
from mindone_audio.weights.parameters import published_name, read_tensor, replace_prefix, tensors_in

logger = logging.getLogger(__name__)

CONFIG_FILE, WEIGHTS_FILE, README_FILE = "adapter_config.json", "adapter_model.safetensors", "README.md"
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"base_model\.model\.(.+)\.(lora_[AB])\.weight")
# Fields that change what an adapter computes in ways that are not supported here.
_UNSUPPORTED = (
    *("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication"),
    *("alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config"),
    "monteclora_config",
)
# Initialisations that subtract from the base weights, so that the adapter is of other weights than the base model's.
_CHANGED_BASES = ("pissa", "olora", "corda", "lora_ga")
# What later versions of PEFT write and what does not change what an adapter computes.
_HARMLESS = {"peft_version", "qalora_group_size", "megatron_core", "ensure_weight_tying", "lora_ga_config"}


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter that was read: its name or folder, the configuration as it is in the file, tensors by PEFT's names."""

    name: str
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def lora_config(self) -> LoraConfig:
        """The configuration as `mindone.peft`'s; fields that it does not have are left out, with a warning."""
        known = {field.name for field in fields(LoraConfig)}
        given = {name: value for name, value in self.config.items() if value not in (None, False, {}, [])}
        if unknown := sorted(set(given) - known - _HARMLESS):
            logger.warning("%s of %s: %s is not known here and left out", CONFIG_FILE, self.name, ", ".join(unknown))
        values = {name: value for name, value in self.config.items() if name in known}
        return LoraConfig(**{**values, "init_lora_weights": True})  # what A and B started from no longer matters


def linear_layers(model: nn.Cell) -> dict[str, nn.Cell]:
    """The linear layers of a model by name; one that has adapters counts as one layer."""
    layers = {}
    for name, cell in model.cells_and_names():
        inside = any(name.startswith(f"{other}.") for other in _adapted_parents(name, layers))
        if isinstance(cell, (Linear, QuantizedLinear, LoraLayer)) and not inside:
            layers[name] = cell
    return layers


def _adapted_parents(name: str, layers: dict[str, nn.Cell]) -> list[str]:
    parts = name.split(".")
    parents = (".".join(parts[:count]) for count in range(1, len(parts)))
    return [parent for parent in parents if parent in layers]


def name_on_disk(model: CheckpointModel, name: str) -> str:
    """How transformers' class names the module that is `name` here."""
    prefixes = model.adapter_prefixes or model.weight_prefixes
    # A prefix may be a layer's whole name, with the point behind it.
    return replace_prefix(f"{name}.", tuple((here, there) for there, here in prefixes)).removesuffix(".")


def matching_modules(model: CheckpointModel, config: LoraConfig) -> list[str]:
    """The linear layers of `model`, by their names here, that PyTorch's PEFT would adapt with this configuration."""
    return [name for name in linear_layers(model) if check_target_module_exists(config, name_on_disk(model, name))]


def read_adapter(name_or_dir: str | os.PathLike, **download) -> StoredAdapter:
    """Read an adapter of a folder or a Hugging Face repository; `download` as for `hub.checkpoint_folder`.

    Raises `FileNotFoundError` for a folder that does not exist, `OSError` where a file cannot be had, and
    `CheckpointError` for a damaged file and for an adapter that is no LoRA or of an unsupported kind.
    """
    name = os.fspath(name_or_dir)
    config = hub.read_config(name, CONFIG_FILE, **download)
    path = hub.checkpoint_file(name, CONFIG_FILE, **download)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {config.get('peft_type')!r}, and only 'LORA' is supported")
    wrong = {field: config[field] for field in _UNSUPPORTED if config.get(field)}
    wrong |= {"bias": config["bias"]} if config.get("bias", "none") != "none" else {}
    initialised = str(config.get("init_lora_weights")).lower()
    wrong |= {"init_lora_weights": initialised} if initialised.startswith(_CHANGED_BASES) else {}
    if wrong:
        listed = ", ".join(f"{field}={value!r}" for field, value in wrong.items())
        raise CheckpointError(
            f"{path}: {listed} is not supported: merge the adapter on PyTorch (merge_and_unload) and load the result"
        )
    file = hub.checkpoint_file(name, WEIGHTS_FILE, **download)
    tensors = {tensor.name: read_tensor(tensor, ms.float32) for tensor in tensors_in(file)}
    return StoredAdapter(name, config, tensors)


def module_tensors(model: CheckpointModel, adapter: StoredAdapter) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A (r, in) and B (out, r), fp32, of each module that the adapter is for, by the module's name here.

    Raises `CheckpointError`, with the names of both base models, for an adapter of another one. What decides, in this
    order: the class of the base model, where adapter_config.json says it; the model_type of the base model that it
    names, where its config.json is on this machine; the names of the tensors; their shapes. The base model's own name
    does not, since folders are moved: if all of that fits, another name is only logged.
    """
    _check_architecture(model, adapter)
    config, layers = adapter.lora_config(), linear_layers(model)
    expected = {name_on_disk(model, name): name for name in matching_modules(model, config)}
    found = _by_module(adapter, expected)
    unexpected = sorted(set(found) - set(expected))
    missing = [name for name in expected if set(found.get(name, ())) != {"lora_A", "lora_B"}]
    if unexpected or missing:
        reasons = [f"it has no tensors for {len(missing)} layers, such as {missing[0]}"] if missing else []
        reasons += [f"it has tensors for what is not there, such as {unexpected[0]}"] if unexpected else []
        raise _another_base(model, adapter, " and ".join(reasons))
    for on_disk, name in expected.items():
        rank = _own(config.rank_pattern, name, config.r)
        rows, columns = _size(layers[name])
        for part, shape in (("lora_A", (rank, columns)), ("lora_B", (rows, rank))):
            if (stored := found[on_disk][part].shape) != shape:
                raise _another_base(model, adapter, f"its {on_disk}.{part} is {stored}, this model needs {shape}")
    _log_other_name(model, adapter)
    return {name: (found[on_disk]["lora_A"], found[on_disk]["lora_B"]) for on_disk, name in expected.items()}


def _by_module(adapter: StoredAdapter, expected: dict[str, str]) -> dict[str, dict[str, np.ndarray]]:
    """The tensors by module and part; a name that no LoRA tensor has stands for itself.

    A module may be spelled as version 5 of transformers does.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in adapter.tensors.items():
        parts = _TENSOR.fullmatch(name)
        module, part = (parts[1], parts[2]) if parts else (name, "")
        if module not in expected:
            older = published_name(module + ".")[:-1]
            module = older if older in expected else module
        found.setdefault(module, {})[part] = array
    return found


def scaling(config: LoraConfig, module: str) -> float:
    """What the product of B and A of a module is multiplied by."""
    rank, alpha = _own(config.rank_pattern, module, config.r), _own(config.alpha_pattern, module, config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _own(pattern: dict, module: str, default: float) -> float:
    """A module's own rank or alpha, where the configuration has one for it."""
    return pattern.get(get_pattern_key(pattern.keys(), module), default)


def assign_adapter(layers: dict[str, nn.Cell], name: str, tensors: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write A and B of the modules into the adapter `name` of LoRA layers, in place, so that graphs see them."""
    for module, (a, b) in tensors.items():
        for cell, array in ((layers[module].lora_A[name], a), (layers[module].lora_B[name], b)):
            msops.assign(cell.weight, Tensor(array).astype(cell.weight.dtype))


def save_adapter(
    model: CheckpointModel,
    folder: str | os.PathLike,
    config: dict[str, Any],
    adapter_name: str = "default",
) -> None:
    """Write one adapter of `model` with this configuration, and a README.md where there is none.

    A process that is killed meanwhile leaves the old adapter or the new one; where the configuration changes, for a
    moment none.
    """
    folder = Path(folder)
    arrays = {}
    for name, layer in linear_layers(model).items():
        if isinstance(layer, LoraLayer) and adapter_name in layer.lora_A:
            for part, cells in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
                array = to_numpy(cells[adapter_name].weight)
                arrays[f"{_PREFIX}{name_on_disk(model, name)}.{part}.weight"] = np.ascontiguousarray(array)
    base = model.name_or_path or None
    config = {**config, "base_model_name_or_path": base, "inference_mode": True, "auto_mapping": _auto_mapping(model)}
    config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    with filling(folder, CONFIG_FILE) as new:
        save_file(arrays, new / WEIGHTS_FILE, metadata={"format": "pt"})
        (new / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if not (folder / README_FILE).exists():
            with replacing(folder / README_FILE) as readme:
                readme.write_text(_readme(model, base), encoding="utf-8")


def _readme(model: CheckpointModel, base: str | None) -> str:
    published = f"base_model: {base}\n" if base and not Path(base).is_dir() else ""
    return f"---\n{published}library_name: peft\n---\n\nA LoRA adapter for {base or type(model).__name__}.\n"


def _auto_mapping(model: CheckpointModel) -> dict[str, str] | None:
    """What PEFT's `AutoPeftModel` finds the base model's class by; None for a class that is not in transformers."""
    name = _architecture(model)
    return {"base_model_class": name, "parent_library": "transformers"} if hasattr(transformers, name) else None


def _architecture(model: CheckpointModel) -> str:
    return (model.config.architectures or [type(model).__name__])[0]


def _size(layer: nn.Cell) -> tuple[int, int]:
    """The shape of a linear layer's weight, (out, in)."""
    if isinstance(layer, QuantizedLinear):
        return tuple(layer.weight_shape)
    return tuple((layer.get_base_layer() if isinstance(layer, LoraLayer) else layer).weight.shape)


def _check_architecture(model: CheckpointModel, adapter: StoredAdapter) -> None:
    stored, here = (adapter.config.get("auto_mapping") or {}).get("base_model_class"), _architecture(model)
    if stored not in (None, here):
        raise _another_base(model, adapter, f"it says that its base model's class is {stored}, this one's is {here}")
    base = adapter.config.get("base_model_name_or_path")
    if not base:
        return
    try:
        model_type = hub.read_config(base, local_files_only=True).get("model_type")
    except OSError:  # moved, or never on this machine
        return
    if model_type != model.config.model_type:
        raise _another_base(model, adapter, f"{base} is a {model_type!r} model, this is {model.config.model_type!r}")


def _another_base(model: CheckpointModel, adapter: StoredAdapter, reason: str) -> CheckpointError:
    base = adapter.config.get("base_model_name_or_path") or "a model that it does not name"
    return CheckpointError(
        f"the adapter {adapter.name} was made for {base}, and this model is {model.name_or_path or 'new'} "
        f"({model.config.model_type}): {reason}. Load the adapter's own base model"
    )


def _log_other_name(model: CheckpointModel, adapter: StoredAdapter) -> None:
    base, here = adapter.config.get("base_model_name_or_path"), model.name_or_path
    if base and here and Path(base).name != Path(here).name:
        logger.warning(
            "the adapter %s was made for %s and fits %s by names and shapes: make sure that the weights are the same",
            *(adapter.name, base, here),
        )

"""LoRA adapters (arXiv 2106.09685) on a model, over `mindone.peft`, with files that PyTorch's PEFT loads.

What differs from `mindone.peft` 0.5's own: dropout exists on CPU and is repeatable, adapters can be disabled and
unmerged, new adapters are the same in every process, and files have the names of transformers' classes.
"""

import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as msops

from mindone_audio.adapters import files as adapter_files
from mindone_audio.adapters.dropout import Dropout
from mindone_audio.adapters.files import linear_layers, name_on_disk
from mindone_audio.adapters.mindone_peft import (
    LoraConfig,
    LoraLayer,
    PeftLoraLinear,
    PeftModel,
    check_adapters_to_merge,
)
from mindone_audio.adapters.settings import LoraSettings, target_modules
from mindone_audio.backbone.checkpoint_model import CheckpointModel
from mindone_audio.backbone.layers import Linear, QuantizedLinear, name_parameters

__all__ = ["AdaptedModel", "LoraSettings", "add_lora", "load_adapter", "set_dropout_seed", "trainable_parameters"]


def add_lora(model: CheckpointModel, settings: LoraSettings | None = None) -> "AdaptedModel":
    """Give `model` new adapters, of which B is zero, and freeze everything else. The model is changed in place.

    settings: default `LoraSettings()`. Raises `ValueError` for a target that matches no linear layer, naming close
    ones, and for a model that has adapters or whose targets are in 4 bits.
    """
    settings = settings or LoraSettings()
    _check_no_adapters(model)
    targets, excluded = target_modules(model, settings)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        exclude_modules=excluded,
        init_lora_weights=True if settings.init == "default" else settings.init,
        use_rslora=settings.use_rslora,
    )
    return AdaptedModel(model, config, seed=settings.seed)


def load_adapter(
    model: CheckpointModel,
    name_or_dir: str | os.PathLike,
    *,
    adapter_name: str = "default",
    trainable: bool = False,
    **download,
) -> "AdaptedModel":
    """Put a stored adapter, ours or of PyTorch's PEFT, on its base model, which is changed in place.

    name_or_dir: a folder or a Hugging Face repository; `download` as for `hub.checkpoint_folder`. adapter_name: what
    the model calls it. trainable: whether its numbers are to be trained further. Raises `hub.CheckpointError` for an
    adapter of another base model, with the names of both (`adapter_files.module_tensors` says what decides), or of a
    kind that is not supported, `OSError` where it cannot be had, and `ValueError` for a model that has adapters.
    """
    _check_no_adapters(model)
    adapter = adapter_files.read_adapter(name_or_dir, **download)
    tensors = adapter_files.module_tensors(model, adapter)
    config = adapter.lora_config()
    config.inference_mode = not trainable
    adapted = AdaptedModel(model, config, adapter_name)
    adapter_files.assign_adapter(linear_layers(model), adapter_name, tensors)
    return adapted


def trainable_parameters(model: nn.Cell) -> tuple[int, int]:
    """How many numbers are trained, and how many there are in all; the state of dropout is not counted."""
    sizes = [(p.requires_grad, p.size) for name, p in model.parameters_and_names() if "lora_dropout" not in name]
    return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)


def set_dropout_seed(model: nn.Cell, seed: int) -> None:
    """Make the dropout masks of the next forward passes a function of `seed`; a model without dropout is left alone.

    A training loop that calls it before each micro-batch, with a number of the step, the micro-batch and the rank,
    draws the same masks after it was interrupted.
    """
    for _, cell in model.cells_and_names():
        if isinstance(cell, Dropout):
            # In place: a compiled graph does not see the memory that `set_data` gives a parameter.
            msops.assign(cell.seed, Tensor([seed % (1 << 31)], ms.int32))
            return  # all cells share it


class LoraLinear(PeftLoraLinear):
    """`base_layer(x) + scaling * B(A(dropout(x)))`, with `mindone.peft`'s interface and names."""

    def update_layer(
        self,
        adapter_name,
        r,
        lora_alpha,
        lora_dropout,
        init_lora_weights,
        use_rslora,
        use_dora: bool = False,
        lora_bias: bool = False,
    ):
        """Give this layer an adapter; `AdaptedModel` draws its numbers and its dropout, which depend on its name."""
        if use_dora or lora_bias:
            raise ValueError("use_dora and lora_bias are not supported: leave them out of the adapter's configuration")
        self.r[adapter_name], self.lora_alpha[adapter_name] = r, lora_alpha
        self.scaling[adapter_name] = lora_alpha / (math.sqrt(r) if use_rslora else r)
        self.use_dora[adapter_name] = self.lora_bias[adapter_name] = False
        self.lora_dropout.update(nn.CellDict({adapter_name: nn.Identity()}))
        self.lora_A[adapter_name] = Linear(self.in_features, r, bias=False)
        self.lora_B[adapter_name] = Linear(r, self.out_features, bias=False)
        self.set_adapter(self.active_adapters)

    def draw(self, adapter_name: str, gaussian: bool, key: tuple[int, ...]) -> None:
        """Set A to random numbers of `key`, as PEFT distributes them, and B to zero."""
        a, b = self.lora_A[adapter_name].weight, self.lora_B[adapter_name].weight
        random = np.random.default_rng(key)
        bound = 1 / math.sqrt(a.shape[1])
        values = random.normal(0, 1 / a.shape[0], a.shape) if gaussian else random.uniform(-bound, bound, a.shape)
        a.set_data(Tensor(values.astype(np.float32)))
        b.set_data(Tensor(np.zeros(b.shape, np.float32)))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters (default: the active ones) to the base layer's weight.

        safe_merge: raise `ValueError` instead where the sum would not be finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.lora_A.keys():
                continue
            merged = self._weight_with(name, 1)
            if safe_merge and not np.isfinite(merged.astype(ms.float32).asnumpy()).all():
                raise ValueError(f"adapter {name!r} makes {self.get_base_layer().weight.name} infinite: it is broken")
            msops.assign(self.get_base_layer().weight, merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take all merged adapters out of the base layer's weight again, up to rounding."""
        while self.merged_adapters:
            msops.assign(self.get_base_layer().weight, self._weight_with(self.merged_adapters.pop(), -1))

    def _weight_with(self, name: str, sign: int) -> Tensor:
        weight = self.get_base_layer().weight
        return (weight.astype(ms.float32) + sign * self.get_delta_weight(name)).astype(weight.dtype)


class AdaptedModel(PeftModel):
    """A `CheckpointModel` with adapters: `mindone.peft`'s `PeftModel`, called and saved like the model itself.

    `get_base_model()` is the model; `merge_and_unload()` gives it with the adapters in its weights, `unload()` without
    them. `with disable_adapter():` is the model as it was. Whatever was done to adapters, `generate` follows.
    """

    def __init__(
        self, model: CheckpointModel, peft_config: LoraConfig, adapter_name: str = "default", *, seed: int = 0
    ):
        published = _resolve(model, peft_config)
        super().__init__(model, peft_config, adapter_name)
        self.published = {adapter_name: published}
        self._dropouts: list[Dropout] = []
        self._complete(adapter_name, seed)

    def construct(self, *args, **kwargs):
        """The model's output. While training, each call draws other dropout masks (see `set_dropout_seed`)."""
        if self.training and self._dropouts:
            set_dropout_seed(self, int(self._dropouts[0].seed.asnumpy()[0]) + 1)
        return super().construct(*args, **kwargs)

    def add_adapter(self, adapter_name: str, peft_config: LoraConfig, *, seed: int = 0) -> None:
        """Add another adapter, of random A and zero B; `set_adapter` makes it the active one."""
        published = _resolve(self.get_base_model(), peft_config)
        super().add_adapter(adapter_name, peft_config)
        self.published[adapter_name] = published
        self._complete(adapter_name, seed)

    def load_adapter(
        self, model_id: str | os.PathLike, adapter_name: str, is_trainable: bool = False, **download
    ) -> None:
        """Read another adapter, or other numbers for one of the same layers; errors as for `load_adapter` above."""
        model, adapter = self.get_base_model(), adapter_files.read_adapter(model_id, **download)
        tensors, config = adapter_files.module_tensors(model, adapter), adapter.lora_config()
        if adapter_name not in self.peft_config:
            config.inference_mode = not is_trainable
            self.add_adapter(adapter_name, config)
        layers = {name: cell for name, cell in linear_layers(model).items() if isinstance(cell, LoraLayer)}
        present = {name: layer for name, layer in layers.items() if adapter_name in layer.lora_A.keys()}
        sizes = {name: layer.lora_A[adapter_name].weight.shape for name, layer in present.items()}
        if sizes != {name: a.shape for name, (a, _) in tensors.items()}:
            raise ValueError(
                f"the adapter {adapter.name} has other layers or another rank than {adapter_name!r} here: give it "
                "another adapter_name"
            )
        for name, layer in present.items():
            layer.scaling[adapter_name] = adapter_files.scaling(config, name)
        self.published[adapter_name] = adapter.config
        adapter_files.assign_adapter(present, adapter_name, tensors)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        is_main_process: bool = True,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Write adapter_config.json and adapter_model.safetensors, with PEFT's names; the base model is not written.

        selected_adapters: default all; each but "default" gets a folder of its name. is_main_process: False writes
        nothing. max_shard_size is what `push_to_hub` passes, and an adapter is one file. Raises `ValueError` for an
        adapter that is not there, and for safe_serialization=False.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False is not supported: adapters are saved as safetensors")
        names = list(self.peft_config) if selected_adapters is None else selected_adapters
        if unknown := sorted(set(names) - set(self.peft_config)):
            raise ValueError(f"no adapter {', '.join(unknown)}: this model has {', '.join(self.peft_config)}")
        for name in names if is_main_process else ():
            folder = save_directory if name == "default" else os.path.join(save_directory, name)
            adapter_files.save_adapter(self.get_base_model(), folder, self.published[name], name)

    def merge_and_unload(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> CheckpointModel:
        """The base model with the adapters in its weights; it is saved as a checkpoint like any other."""
        model = self.base_model.merge_and_unload(safe_merge=safe_merge, adapter_names=adapter_names)
        name_parameters(model)
        return model

    def unload(self) -> CheckpointModel:
        """The base model without the adapters."""
        model = self.base_model.unload()
        name_parameters(model)
        return model

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The model without its adapters inside the `with`; afterwards they are trained, or not, as before."""
        layers = [cell for _, cell in self.cells_and_names() if isinstance(cell, LoraLayer)]
        before = [(layer, layer.disable_adapters, list(layer.merged_adapters)) for layer in layers]
        trained = [(p, p.requires_grad) for p in self.get_parameters()]
        try:
            for layer in layers:
                layer.unmerge()
                layer.enable_adapters(False)
            yield
        finally:
            for layer, disabled, merged in before:
                layer.enable_adapters(not disabled)
                if merged:
                    layer.merge(adapter_names=merged)
            for parameter, requires_grad in trained:
                parameter.requires_grad = requires_grad

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """`trainable_parameters` of this model; `print_trainable_parameters()` prints them."""
        return trainable_parameters(self)

    def _complete(self, adapter_name: str, seed: int) -> None:
        """Draw the numbers of a new adapter, and put its dropout in place."""
        config = self.peft_config[adapter_name]
        for name, layer in linear_layers(self.get_base_model()).items():
            if not (isinstance(layer, LoraLinear) and adapter_name in layer.lora_A.keys()):
                continue
            key = zlib.crc32(name.encode())  # the same in every process, whatever the order
            layer.draw(adapter_name, config.init_lora_weights == "gaussian", (seed, key))
            if config.lora_dropout > 0:
                known = self._dropouts[0].seed if self._dropouts else None  # one seed for all cells
                shared = Parameter(Tensor([seed], ms.int32), requires_grad=False) if known is None else known
                dropout = Dropout(config.lora_dropout, layer.in_features, shared, key)
                layer.lora_dropout[adapter_name] = dropout.set_train(layer.training)
                self._dropouts.append(dropout)
        name_parameters(self.get_base_model())


def _check_no_adapters(model: nn.Cell) -> None:
    if any(isinstance(cell, LoraLayer) for _, cell in model.cells_and_names()):
        raise ValueError(
            "this model has adapters already: call unload() or merge_and_unload() of the adapted model first, or its "
            "load_adapter(folder, name) for several at once"
        )


def _resolve(model: CheckpointModel, config: LoraConfig) -> dict:
    """Make `config` name exactly the layers here that PEFT would adapt; what is to be saved: `config` as it was.

    Raises `ValueError` where there are none, or where one is in 4 bits.
    """
    published, names = config.to_dict(), adapter_files.matching_modules(model, config)
    published["target_modules"] = _names_on_disk(model, published["target_modules"])
    if not names:
        raise ValueError(f"target_modules {config.target_modules} match no linear layer of {type(model).__name__}")
    layers = linear_layers(model)
    if quantized := [name for name in names if isinstance(layers[name], QuantizedLinear)]:
        raise ValueError(
            f"{len(quantized)} of the layers to adapt are in 4 bits, such as {quantized[0]}: load the model without "
            "keep_quantized=True"
        )
    config.target_modules, config.exclude_modules = set(names), None
    config.layers_to_transform = config.layers_pattern = None
    config._register_custom_module({Linear: LoraLinear})
    return published


def _names_on_disk(model: CheckpointModel, targets: str | set[str] | list[str]) -> str | list[str]:
    return targets if isinstance(targets, str) else sorted(name_on_disk(model, name) for name in targets)

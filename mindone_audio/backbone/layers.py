"""The few parameter-holding layers, with the parameter names and shapes of Hugging Face checkpoints.

MindSpore's own layers rename parameters (`gamma`, `embedding_table`) or reshape them, so a checkpoint would need a
translation in both directions. `Linear` is an `nn.Dense` so that adapters (`mindone.peft`) recognise it; a
`QuantizedLinear` is none, so that they say that they cannot adapt it.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import Normal, initializer

from mindone_audio.backbone import conv_ops, ops
from mindone_audio.conversion import share
from mindone_audio.weights.nf4 import QuantizedWeight

_INIT_STD = 0.02


def parameter(shape: tuple[int, ...], init="normal", trainable: bool = True) -> Parameter:
    """A named-by-its-cell fp32 parameter; nothing is allocated inside `mindspore.nn.utils.no_init_parameters()`."""
    init = Normal(_INIT_STD) if init == "normal" else init
    return Parameter(initializer(init, shape, ms.float32), requires_grad=trainable)


def share_rows(parameters: Sequence[Parameter], name: str) -> Parameter:
    """An fp32 parameter whose rows are those of all of these, which get their places in its memory; to be filled.

    Only inside `mindspore.nn.utils.no_init_parameters()`, and on a CPU.
    """
    rows = np.empty((sum(map(len, parameters)), *parameters[0].shape[1:]), np.float32)
    for parameter, start in zip(parameters, _starts(parameters)):
        parameter.set_data(share(rows[start : start + len(parameter)]))
    return _placed(rows, name)


def parts_of(whole: Parameter, most: int, name: str) -> list[Parameter]:
    """Parameters that each are up to `most` rows of this one, which gets new memory; to be filled.

    Only inside `mindspore.nn.utils.no_init_parameters()`, and on a CPU.
    """
    rows = np.empty(whole.shape, np.float32)
    whole.set_data(share(rows))
    return [_placed(rows[start : start + most], f"{name}.{start}") for start in range(0, len(rows), most)]


def _placed(rows: np.ndarray, name: str) -> Parameter:
    """A frozen parameter in an array's memory."""
    parameter = Parameter(initializer("zeros", rows.shape, ms.float32), name=name, requires_grad=False)
    parameter.set_data(share(rows))
    return parameter


def has_rows(whole: Parameter, parameters: Sequence[Parameter]) -> bool:
    """Whether these still are, one after the other, in the memory of the whole."""
    row = whole.nbytes // len(whole)
    places = [whole.data_ptr() + start * row for start in _starts(parameters)]
    return [parameter.data_ptr() for parameter in parameters] == places


def _starts(parameters: Sequence[Parameter]) -> list[int]:
    return [0, *accumulate(map(len, parameters))][:-1]


def name_parameters(model: nn.Cell) -> None:
    """Name each parameter after its place, which adapters change: a graph refuses two parameters of one name."""
    for name, parameter in model.parameters_and_names():
        parameter.name = name


class Linear(nn.Dense):
    """`ops.linear` with `weight` (out, in) and, where `bias`, `bias` (out)."""

    def __init__(self, in_features: int, out_features: int, bias: bool):
        nn.Cell.__init__(self)  # nn.Dense would draw random weights twice
        self.in_channels, self.out_channels, self.has_bias = in_features, out_features, bias
        self.activation, self.activation_flag = None, False
        self.weight = parameter((out_features, in_features))
        self.bias = parameter((out_features,), "zeros") if bias else None

    def construct(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class SwitchedLinear(Linear):
    """A `Linear` without bias with an adapter (LoRA) of its checkpoint's own, which some of its rows go through."""

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float):
        super().__init__(in_features, out_features, bias=False)
        self.lora_A, self.lora_B = Linear(in_features, rank, bias=False), Linear(rank, out_features, bias=False)
        self.lora_scale = scale

    def construct(self, x: Tensor, gate: Tensor) -> Tensor:
        """x (rows, in); gate (rows, 1): 1 for rows that go through the adapter, else 0."""
        added = self.lora_B(self.lora_A(x) * (gate * self.lora_scale))
        return ops.linear(x, self.weight, self.bias) + added


class QuantizedLinear(nn.Cell):
    """A `Linear` whose weight (out, in) stays in 4 bits; every call dequantises it to the dtype of its input.

    weight uint8, two codes each; absmax fp32 (blocks); or doubly quantised absmax uint8 and nested_absmax fp32: see
    `mindone_audio.weights.nf4`. They are frozen, `bias` (out) is not.
    """

    def __init__(self, weight: QuantizedWeight, bias: Parameter | None):
        super().__init__()
        self.weight_shape, self.nested, self.bias = weight.shape, weight.nested, bias
        scales = np.zeros(0, np.float32) if weight.nested else weight.absmax()
        codes = weight.codes(scales)
        self.weight, self.levels, self.count = _frozen(codes.codes), Tensor(codes.levels), codes.count
        if weight.nested:
            codes = weight.absmax_codes()
            self.absmax, self.nested_absmax = _frozen(codes.codes), _frozen(codes.scales)
            self.nested_levels, self.blocks, self.offset = Tensor(codes.levels), codes.count, codes.offset
        else:
            self.absmax = _frozen(scales)

    def construct(self, x: Tensor) -> Tensor:
        absmax = ops.not_before(x, self.absmax)
        if self.nested:
            scales = ops.not_before(x, self.nested_absmax)
            absmax = ops.dequantize(absmax, self.nested_levels, scales, self.blocks) + self.offset
        weight = ops.dequantize(ops.not_before(x, self.weight), self.levels, absmax, self.count)
        return ops.linear(x, weight.reshape(self.weight_shape).astype(x.dtype), self.bias)


def _frozen(array: np.ndarray) -> Parameter:
    return Parameter(share(array), requires_grad=False)


def put_quantized_linear(model: nn.Cell, weight: QuantizedWeight) -> bool:
    """Make the `Linear` of `model` that has this weight a `QuantizedLinear`; False where it is another cell's."""
    *parents, own, _ = weight.name.split(".")
    parent = reduce(getattr, parents, model)
    linear = getattr(parent, own)
    if type(linear) is not Linear:
        return False
    kept = QuantizedLinear(weight, linear.bias)
    setattr(parent, own, kept)
    for attribute, value in kept._params.items():  # a graph refuses two parameters of one name
        value.name = f"{weight.name.removesuffix('.weight')}.{attribute}"
    return True


class Conv1d(nn.Cell):
    """`conv_ops.conv1d` with `weight` (out, in / groups, kernel) and, where `bias`, `bias` (out)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = parameter((out_channels, in_channels // groups, kernel))
        self.bias = parameter((out_channels,), "zeros") if bias else None

    def construct(self, x: Tensor) -> Tensor:
        return conv_ops.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class HalvingConv2d(nn.Cell):
    """`conv_ops.halving_conv2d` with `weight` (out, in / groups, 3, 3) and `bias` (out)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1):
        super().__init__()
        self.weight = parameter((out_channels, in_channels // groups, 3, 3))
        self.bias = parameter((out_channels,), "zeros")

    def construct(self, x: Tensor) -> Tensor:
        return conv_ops.halving_conv2d(x, self.weight, self.bias)


class ConvTranspose1d(nn.Cell):
    """`conv_ops.transposed_conv1d` with `weight` (in, out, kernel) and `bias` (out)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int):
        super().__init__()
        self.stride, self.padding = stride, padding
        self.weight = parameter((in_channels, out_channels, kernel))
        self.bias = parameter((out_channels,), "zeros")

    def construct(self, x: Tensor) -> Tensor:
        return conv_ops.transposed_conv1d(x, self.weight, self.bias, self.stride, self.padding)


class Embedding(nn.Cell):
    """Rows of `weight` (rows, width) by index."""

    def __init__(self, rows: int, width: int, init="normal", trainable: bool = True):
        super().__init__()
        self.weight = parameter((rows, width), init, trainable)

    def construct(self, ids: Tensor) -> Tensor:
        return ops.embed(self.weight, ids)


class LayerNorm(nn.Cell):
    """`ops.layer_norm` with `weight` and `bias` (width)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = parameter((width,), "ones")
        self.bias = parameter((width,), "zeros")

    def construct(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias)


class RMSNorm(nn.Cell):
    """`ops.rms_norm` with `weight` (width)."""

    def __init__(self, width: int, epsilon: float, init="ones"):
        super().__init__()
        self.epsilon = epsilon
        self.weight = parameter((width,), init)

    def construct(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.epsilon)

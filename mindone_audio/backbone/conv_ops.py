"""Operations over time: convolutions, each as one matrix product, and the norm over time.

The taps of every output are gathered side by side. MindSpore's own kernel for convolutions takes a hundred times as
long on a CPU (docs/performance-notes.md), and the products are right on every device.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as msops

from mindone_audio.backbone import ops

_product = msops.BatchMatMul()
_product_transposed = msops.BatchMatMul(transpose_b=True)
_BLOCK = 16  # times of a depthwise convolution that are computed by one product


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """1-D convolution, as PyTorch defines it: x (batch, time, in) to (batch, time', out).

    weight (out, in / groups, kernel) as PyTorch stores it, bias (out). padding: how many zeros stand before x and
    after it. time' = (time + both paddings - dilation * (kernel - 1) - 1) // stride + 1.
    """
    outputs, width, kernel = weight.shape
    before, after = padding
    if groups == 1 and kernel == 1 and stride == 1 and before + after == 0:
        return ops.linear(x, weight.reshape((outputs, width)), bias)
    if groups == 1 and kernel == 3 and stride < 3 and before == 1 and after == 1 and dilation == 1:
        return ops.linear(_taps_of_three(x, stride), _by_tap(weight), bias)
    x = _padded(x, before, after)
    if width == 1 and groups == outputs and stride == 1 and dilation == 1:
        return _depthwise(x, weight, bias)
    batch, time, channels = x.shape
    count = (time - dilation * (kernel - 1) - 1) // stride + 1
    rows = (ops.counting(count) * stride).expand_dims(1) + ops.counting(kernel) * dilation  # (time', kernel)
    if groups == 1:
        taps = msops.gather(x, rows.reshape((-1,)), 1).reshape((batch, count, kernel * channels))
        return ops.linear(taps, _by_tap(weight), bias)
    x = ops.transpose(x.reshape((batch * time, groups, width)), (1, 0, 2)).reshape((groups, batch, time, width))
    taps = msops.gather(x, rows.reshape((-1,)), 2).reshape((groups, batch * count, kernel * width))
    y = _product_transposed(taps, _by_tap(weight).reshape((groups, -1, kernel * width)))
    y = ops.transpose(y, (1, 0, 2)).reshape((batch * count, outputs))
    return (y if bias is None else ops.add_bias(y, bias)).reshape((batch, count, outputs))


def _by_tap(weight: Tensor) -> Tensor:
    """(out, in, kernel) to (out, kernel * in), as taps stand side by side."""
    return ops.transpose(weight, (0, 2, 1)).reshape((weight.shape[0], -1))


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    """x (batch, time, n) with so many zeros before its first time and after its last one."""
    batch, _, width = x.shape
    parts = () if before == 0 else (ops.zeros((batch, before, width), x.dtype),)
    parts = (*parts, x) if after == 0 else (*parts, x, ops.zeros((batch, after, width), x.dtype))
    return x if before + after == 0 else msops.concat(parts, 1)


def _taps_of_three(x: Tensor, stride: int) -> Tensor:
    """(batch, time', 3 * in): the taps with kernel 3, padding 1 and stride 1 or 2, without a gather.

    The encoders that are trained have such convolutions, and the gradient of a gather is slow.
    """
    batch, time, channels = x.shape
    edge = ops.zeros((batch, 1, channels), x.dtype)
    if stride == 1:
        padded = msops.concat((edge, x, edge), 1)
        first, middle = ops.split(padded, (time, 2), 1)[0], ops.split(padded, (1, time, 1), 1)[1]
        taps = (first, middle, ops.split(padded, (2, time), 1)[1])
    else:
        # Rows in pairs: the first two taps are a pair, the third is the first row of the next one.
        edges = (edge, x, edge, edge) if time % 2 else (edge, x, edge)
        pairs = msops.concat(edges, 1).reshape((batch, -1, 2 * channels))
        count = pairs.shape[1] - 1
        following = ops.split(pairs, (1, count), 1)[1]
        taps = (ops.split(pairs, (count, 1), 1)[0], ops.split(following, (channels, channels), 2)[0])
    return msops.concat(taps, -1)


def halving_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3 x 3 convolution with stride 2 and a zero around x (batch, time, bins, in): (batch, time', bins', out).

    weight (out, in / groups, 3, 3) as PyTorch stores it, one group or as many as there are channels; bias (out). time'
    and bins' are half of time and bins, rounded up.
    """
    outputs, width = weight.shape[:2]
    taps = ()
    for row in _taps_of_halving(x, 1):
        taps += _taps_of_halving(row, 2)
    if width > 1 or x.shape[3] == 1:
        return ops.linear(msops.concat(taps, -1), ops.transpose(weight, (0, 2, 3, 1)).reshape((outputs, -1)), bias)
    factors = ops.transpose(weight.reshape((outputs, 9)), (1, 0))
    y = bias.reshape((1, 1, 1, -1))
    for i in range(9):
        y = y + taps[i] * factors[i]
    return y


def _taps_of_halving(x: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the three taps of a kernel with stride 2 and a zero at both ends see along an axis."""
    size = x.shape[axis]
    edge = ops.zeros((*x.shape[:axis], 1, *x.shape[axis + 1 :]), x.dtype)
    padded, places = msops.concat((edge, x, edge), axis), ops.counting((size + 1) // 2) * 2
    return (
        msops.gather(padded, places, axis),
        msops.gather(padded, places + 1, axis),
        msops.gather(padded, places + 2, axis),
    )


@msops.constexpr
def _block_places(blocks: int, parts: int) -> Tensor:
    """int32 (blocks * parts): which blocks of x each block of outputs needs: the same one and those behind it."""
    return Tensor((np.arange(blocks)[:, None] + np.arange(parts)).reshape(-1).astype(np.int32))


@msops.constexpr
def _band_places(kernel: int, parts: int) -> Tensor:
    """int32 (parts * block * block): the tap that joins each time of x with each output; `kernel` where none does."""
    ahead = np.arange(parts * _BLOCK)[:, None] - np.arange(_BLOCK)
    return Tensor(np.where((ahead >= 0) & (ahead < kernel), ahead, kernel).reshape(-1).astype(np.int32))


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of each channel for itself, x (batch, time, channels) and weight (channels, 1, kernel).

    A block of outputs is the product of the times that it needs with a band matrix of the channel's taps.
    """
    channels, _, kernel = weight.shape
    batch, time, _ = x.shape
    count = time - kernel + 1
    blocks, parts = -(-count // _BLOCK), 1 - (-(kernel - 1) // _BLOCK)
    x = _padded(x, 0, (blocks + parts - 1) * _BLOCK - time)
    x = ops.transpose(x.reshape((-1, channels)), (1, 0)).reshape((channels * batch, blocks + parts - 1, _BLOCK))
    x = msops.gather(x, _block_places(blocks, parts), 1).reshape((channels, batch * blocks, parts * _BLOCK))
    taps = msops.concat((weight.reshape((channels, kernel)), ops.zeros((channels, 1), weight.dtype)), 1)
    bands = msops.gather(taps, _band_places(kernel, parts), 1).reshape((channels, parts * _BLOCK, _BLOCK))
    y = ops.transpose(_product(x, bands).reshape((channels, -1)), (1, 0))
    y = y if bias is None else ops.add_bias(y, bias)
    return _between(y.reshape((batch, blocks * _BLOCK, channels)), 0, count)


def _between(x: Tensor, first: int, count: int) -> Tensor:
    """x (batch, time, n) from the time `first` on, so many times of it."""
    rest = x.shape[1] - first - count
    if first > 0:
        x = ops.split(x, (first, count + rest), 1)[1]
    return x if rest == 0 else ops.split(x, (count, rest), 1)[0]


def transposed_conv1d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Transposed 1-D convolution, as PyTorch defines it: x (batch, time, in) to (batch, time', out).

    weight (in, out, kernel) as PyTorch stores it, bias (out). padding: how many outputs are left out at each end.
    time' = (time - 1) * stride + kernel - 2 * padding.

    Each time makes `stride` outputs, from itself and the times before it that the kernel reaches.
    """
    batch, time, channels = x.shape
    _, outputs, kernel = weight.shape
    reach = -(-kernel // stride)
    if kernel % stride:
        lacking = ops.zeros((channels, outputs, reach * stride - kernel), weight.dtype)
        weight = msops.concat((weight, lacking), 2)
    weight = ops.transpose(weight.reshape((channels, outputs, reach, stride)), (3, 1, 2, 0))
    count = time + reach - 1
    rows = (ops.counting(count) + (reach - 1)).expand_dims(1) - ops.counting(reach)  # (count, reach)
    taps = msops.gather(_padded(x, reach - 1, reach - 1), rows.reshape((-1,)), 1)
    y = ops.linear(taps.reshape((batch * count, reach * channels)), weight.reshape((-1, reach * channels)))
    y = ops.add_bias(y.reshape((-1, outputs)), bias).reshape((batch, count * stride, outputs))
    return _between(y, padding, (time - 1) * stride + kernel - 2 * padding)


def norm_over_time(x: Tensor, weight: Tensor, bias: Tensor, counts: Tensor) -> Tensor:
    """Each channel of x (batch, time, channels) with mean 0 and variance 1 over time, times weight plus bias.

    PyTorch's GroupNorm with a group for each channel, epsilon 1e-5, but the mean and the variance are those of the
    first `counts`, int32 (batch), times of each sample. Computed in fp32.
    """
    time = x.shape[1]
    wide = x.astype(ms.float32)
    # (batch, 1, time): what the times are multiplied with for their mean.
    shares = ops.time_mask(counts, time, 1).reshape((-1, 1, time)) / counts.astype(ms.float32).reshape((-1, 1, 1))
    wide = wide - msops.tile(_product(shares, wide), (1, time, 1))
    scale = msops.rsqrt(_product(shares, wide * wide) + 1e-5) * weight.astype(ms.float32)
    wide = wide * msops.tile(scale, (1, time, 1))
    return (wide + msops.tile(bias.astype(ms.float32).reshape((1, 1, -1)), (x.shape[0], time, 1))).astype(x.dtype)

"""Stands in for the operations that MindONE's models call and that a CPU lacks; for tests only.

MindONE's models are written with `mindspore.mint`, much of which has kernels on Ascend alone. Inside `mindone_on_cpu()`
NumPy computes those operations, so that MindONE's own code runs here: interpreted, slow, and without gradients. The
values are those that MindSpore documents; no NPU's kernels were compared. Afterwards MindSpore is as it was.
"""

import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops
from mindspore.mint.nn import functional

_mint_cat, _mint_where = mint.cat, mint.where  # a CPU has these, but not for all that they are given


@contextmanager
def mindone_on_cpu() -> Iterator[None]:
    """Puts the stand-ins in place, and takes them away again, also from modules that were imported meanwhile.

    A model that is built within keeps some: use it within, and drop it.
    """
    known, originals = set(sys.modules), {}
    with ExitStack() as stack:
        for (owner, name), stand_in in STAND_INS.items():
            originals[stand_in] = getattr(owner, name)
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.callback(_take_back, known, originals)
        yield


def _take_back(known: set[str], originals: dict) -> None:
    """Gives the modules that are not `known` the originals of the stand-ins that they imported by name."""
    for module in (sys.modules[name] for name in set(sys.modules) - known):
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType) and value in originals:
                setattr(module, name, originals[value])


def _array(value):
    return value.asnumpy() if isinstance(value, Tensor) else value


def _tensor(array, dtype: ms.Type | None = None) -> Tensor:
    """The array as a tensor; without a dtype floats are float32, as everywhere in `mint`."""
    tensor = Tensor(np.asarray(array))
    return tensor.astype(dtype or (ms.float32 if tensor.dtype == ms.float64 else tensor.dtype))


def arange(start=0, end=None, step=1, *, dtype=None):
    start, end = (0, start) if end is None else (start, end)
    return _tensor(np.arange(*map(_array, (start, end, step))), dtype)


def full(size, fill_value, *, dtype=None):
    return _tensor(np.full([int(length) for length in size], _array(fill_value)), dtype)


def zeros_like(input, *, dtype=None):
    return full(input.shape, 0, dtype=dtype or input.dtype)


def ones_like(input, *, dtype=None):
    return full(input.shape, 1, dtype=dtype or input.dtype)


def clone(input):
    return Tensor(input.asnumpy().copy())


def cat(tensors, dim=0):
    """Tensors of different types become the type that holds them all."""
    if len({tensor.dtype for tensor in tensors}) == 1:
        return _mint_cat(tensors, dim)
    return _tensor(np.concatenate([tensor.asnumpy() for tensor in tensors], dim))


def stack(tensors, dim=0):
    return _tensor(np.stack([tensor.asnumpy() for tensor in tensors], dim), tensors[0].dtype)


def repeat_interleave(input, repeats, dim=None):
    return _tensor(np.repeat(input.asnumpy(), _array(repeats), dim), input.dtype)


def pad(input, pad, mode="constant", value=None):
    """`pad` has a pair (before, after) for each axis, the last axis first."""
    if mode != "constant":
        raise NotImplementedError(f"pad with mode={mode!r} has no stand-in")
    pairs = [(0, 0)] * (input.ndim - len(pad) // 2) + list(zip(pad[::2], pad[1::2]))[::-1]
    return _tensor(np.pad(input.asnumpy(), pairs, constant_values=value or 0), input.dtype)


def where(condition, *values):
    """With a condition alone, its indices, a tensor an axis."""
    return _mint_where(condition, *values) if values else tuple(map(_tensor, np.nonzero(condition.asnumpy())))


def masked_fill_(self, mask, value):
    """`Tensor.masked_fill_`: in place."""
    self.assign_value(self.masked_fill(mask, value))
    return self


def cumsum(input, dim, dtype=None):
    return _tensor(np.cumsum(input.asnumpy(), dim), dtype or input.dtype)


def argmax(input, dim=None, keepdim=False):
    return _tensor(np.argmax(input.asnumpy(), dim, keepdims=keepdim))


def sort(input, *, dim=-1, descending=False, stable=False):
    array = input.asnumpy()
    order = np.argsort(-array if descending else array, dim, kind="stable")
    return _tensor(np.take_along_axis(array, order, dim), input.dtype), _tensor(order)


def topk(input, k, dim=-1, largest=True, sorted=True):
    return tuple(mint.narrow(part, dim, 0, k) for part in sort(input, dim=dim, descending=largest))


def multinomial(input, num_samples, replacement=False, *, generator=None):
    """Draws from each row of probabilities with NumPy's global generator: `np.random.seed` repeats it."""
    rows = input.asnumpy().astype(np.float64)
    drawn = [np.random.choice(len(row), num_samples, replacement, row / row.sum()) for row in rows]
    return _tensor(np.stack(drawn))


def gelu(input, *, approximate="none"):
    return ops.gelu(input, approximate)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    array = input.asnumpy()
    axes = tuple(range(-len(normalized_shape), 0))
    normal = (array - array.mean(axes, keepdims=True)) / np.sqrt(array.var(axes, keepdims=True) + eps)
    normal = normal if weight is None else normal * weight.asnumpy()
    return _tensor(normal if bias is None else normal + bias.asnumpy(), input.dtype)


def rms_norm(x, gamma, epsilon=1e-6):
    """The normalised tensor, and the reciprocal root of the mean square."""
    array = x.asnumpy()
    reciprocal = 1 / np.sqrt((array**2).mean(-1, keepdims=True) + epsilon)
    return _tensor(array * reciprocal * gamma.asnumpy(), x.dtype), _tensor(reciprocal)


def embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False):
    if max_norm is not None:
        raise NotImplementedError(f"embedding with max_norm={max_norm} has no stand-in")
    return _tensor(weight.asnumpy()[input.asnumpy()], weight.dtype)


def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if groups != 1:
        raise NotImplementedError(f"conv1d with groups={groups} has no stand-in")
    (stride,), (padding,), (dilation,) = (np.atleast_1d(value) for value in (stride, padding, dilation))
    array, kernel = np.pad(input.asnumpy(), ((0, 0), (0, 0), (padding, padding))), weight.asnumpy()
    heard = dilation * (kernel.shape[-1] - 1) + 1
    windows = np.lib.stride_tricks.sliding_window_view(array, heard, -1)[:, :, ::stride, ::dilation]
    result = np.einsum("bcnk,ock->bon", windows, kernel)
    return _tensor(result if bias is None else result + bias.asnumpy()[:, None], input.dtype)


def avg_pool1d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    if padding or ceil_mode:
        raise NotImplementedError(f"avg_pool1d with {padding=} and {ceil_mode=} has no stand-in")
    (kernel_size,), (stride,) = np.atleast_1d(kernel_size), np.atleast_1d(kernel_size if stride is None else stride)
    windows = np.lib.stride_tricks.sliding_window_view(input.asnumpy(), kernel_size, -1)[..., ::stride, :]
    return _tensor(windows.mean(-1), input.dtype)


_MINT = (arange, argmax, cat, clone, cumsum, full, multinomial, ones_like, repeat_interleave, sort, stack, topk, where)
_FUNCTIONAL = (avg_pool1d, conv1d, embedding, gelu, layer_norm, pad)
STAND_INS = {
    **{(mint, function.__name__): function for function in (*_MINT, zeros_like)},
    **{(functional, function.__name__): function for function in _FUNCTIONAL},
    # `mint.nn.LayerNorm` and `mint.nn.Embedding` call these.
    **{(ops, function.__name__): function for function in (embedding, layer_norm, rms_norm)},
    (Tensor, "clone"): clone,
    (Tensor, "masked_fill_"): masked_fill_,
}

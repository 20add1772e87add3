"""Every tensor operation of the backbone, each once: the only place where a device may get its own version.

Those over time, such as convolutions, are in `conv_ops`, made of these.

MindSpore's CPU back end decides how they are written. The launch of a kernel costs the same whatever its size, so a
decode step uses few kernels. An element-wise kernel that broadcasts an operand keeps several times its output as long
as the graph lives, so operands of large tensors get one shape first. A transpose keeps memory too, so heads are
gathered.

MindSpore's compiler also decides: it spends most of its time on the functions of `mindspore.ops` that are written in
Python. So this file uses operators, and NumPy computes what depends on shapes alone while a graph is compiled.
docs/performance-notes.md has the measurements.

On Ascend an operation has its own version where MindSpore passes the CPU's on to CANN's older operator compiler, which
compiles for each new shape or may choose a slow kernel. Everything here also runs on a CPU, so that tests can run both.
"""

import functools
import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindone_audio.machine import device

transpose = ops.Transpose()  # of a tensor and its axes' new order

# Added to the score of a key that must not be seen. Finite, so that a row with nothing to see stays finite.
MASKED = -1.0e9

_matmul = ops.MatMul()
_matmul_transposed = ops.MatMul(transpose_b=True)
_scores = ops.BatchMatMul(transpose_b=True)
_product = ops.BatchMatMul()
_add_bias = ops.BiasAdd()
_softmax = ops.Softmax(-1)
_mean = ops.ReduceMean(keep_dims=True)
_mean_ext = ops.auto_generate.MeanExt()
_split = ops.auto_generate.SplitWithSize()
_layer_norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=1e-5)
_maximum = ops.Maximum()
_write = ops.ScatterUpdate()
_add_along_rows, _add_along_last = ops.IndexAdd(axis=2), ops.IndexAdd(axis=3)
# From how many rows on, and up to how many, a CPU multiplies faster with the weight as the first operand.
_FEW_ROWS = (8, 64)
_MANY_ROWS = 32  # beyond which `rms_norm` broadcasts nothing: it would take longer, and keep too much
_BLOCK = 160  # queries at a time whose later keys are not computed
_SCORES = 128 << 20  # bytes of the scores that `attention` has in memory at a time, where a key head has fewer
# Values that a CPU adds to a table without waking threads, which takes longer than adding some columns one by one.
_ADDED_ALONE, _FEW_COLUMNS = 1024, 8
# Factors of x^12, x^10, ... x^0 in p of `gelu`, and the square from which on Phi(x) is 1 to fp32. Beyond abs(x) of
# 8,000 p would be infinite without the limit, and a gradient not a number.
_GELU = (3.6112371e-09, -2.66893011e-07)
_GELU_REST = (7.93822204e-06, -0.00011048034, -6.6259912e-05, 0.0726685669, 1.59576843)
_GELU_LIMIT = 5.5**2
_OTHER_HALF = Tensor([1, 0], ms.int32)


@ops.constexpr
def _weight_goes_first(rows: int) -> bool:
    """Whether `linear` computes the transpose of its result: decided while a graph is compiled."""
    return not device.is_ascend() and _FEW_ROWS[0] <= rows <= _FEW_ROWS[1]


@ops.constexpr
def _added_at_once(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """How many columns of values of this shape `add_columns` adds at a time."""
    columns = shape[axis]
    alone = _ADDED_ALONE // (math.prod(shape) // columns)
    if columns > _FEW_COLUMNS or alone == 0:
        return (columns,)
    return tuple(min(alone, columns - first) for first in range(0, columns, alone))


@ops.constexpr
def _in_blocks(queries: int) -> tuple[int, ...]:
    """Sizes of the blocks of queries of `causal_attention`, about the same; none of few queries, or on an NPU, where
    more kernels would cost what they save."""
    if queries < 2 * _BLOCK or device.is_ascend():
        return ()
    count = -(-queries // _BLOCK)
    return tuple((queries + i) // count for i in range(count))


@ops.constexpr
def heads_together(heads: int, key_value_heads: int, queries: int, keys: int) -> int:
    """How many heads' scores are computed at a time, of as many queries in all samples, and keys.

    All of them, or where those are too large, those of some key heads, which divide all. One mask serves all parts.
    """
    parts = [1, *(count for count in range(2, min(heads, key_value_heads + 1)) if key_value_heads % count == 0)]
    fitting = (count for count in parts if 4 * heads // count * queries * keys <= _SCORES)
    return heads // next(fitting, parts[-1])


@ops.constexpr
def _are_many(shape: tuple[int, ...]) -> bool:
    return math.prod(shape[:-1]) > _MANY_ROWS


@ops.constexpr
def _is_a_column(mask: tuple[int, ...], dtype: ms.Type, transposed: bool) -> bool:
    """Whether `attention` makes a mask of this shape a column of the keys; an NPU multiplies by whole blocks of 16."""
    return mask[1] == mask[2] == 1 and dtype == ms.float32 and not transposed and not device.is_ascend()


@ops.constexpr
def _is_ascend() -> bool:
    """Which version of an operation is compiled."""
    return device.is_ascend()


@ops.constexpr
@functools.cache  # one tensor for all layers
def _swapped(first: int, second: int) -> Tensor:
    """int32 (first * second): where in rows (first, second) those of (second, first) are."""
    return Tensor(np.arange(first * second, dtype=np.int32).reshape(first, second).T.reshape(-1))


class _SwapMiddle(nn.Cell):
    """(a, b, c, n) to (a, c, b, n).

    A cell for its gradient, which is itself: the gradient that MindSpore knows of a gather adds up, on one core.
    """

    def construct(self, x):
        return _with_middle_swapped(x)

    def bprop(self, x, out, gradient):
        return (_with_middle_swapped(gradient),)


_swap_middle = _SwapMiddle()


def _with_middle_swapped(x: Tensor) -> Tensor:
    if _is_ascend():  # on a CPU a gather is faster and takes less memory
        return transpose(x, (0, 2, 1, 3))
    a, b, c, n = x.shape
    return ops.gather(x.reshape((a, b * c, n)), _swapped(b, c), 1).reshape((a, c, b, n))


@ops.constexpr
def counting(count: int) -> Tensor:
    """int32 (count): 0, 1, 2, ..."""
    return Tensor(np.arange(count, dtype=np.int32))


@ops.constexpr
def _averaging(width: int) -> Tensor:
    """fp32 (width, 1): what a row is multiplied with for its mean."""
    return Tensor(np.full((width, 1), 1 / width, np.float32))


@ops.constexpr
def repeated(values: tuple[int, ...], counts: tuple[int, ...]) -> Tensor:
    """int32: each of the values so many times."""
    return Tensor(np.repeat(np.array(values, np.int32), counts))


@ops.constexpr
def zeros(shape: tuple[int, ...], dtype: ms.Type) -> Tensor:
    """A constant of a graph."""
    return Tensor(np.zeros(shape), dtype)


@ops.constexpr
def _ones(shape: tuple[int, ...], dtype: ms.Type) -> Tensor:
    return Tensor(np.ones(shape), dtype)


@ops.constexpr
def _with_width(shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    return (*shape[:-1], width)


def split(x: Tensor, sizes: tuple[int, ...], axis: int) -> tuple[Tensor, ...]:
    """x in parts of these sizes along an axis."""
    return (x,) if len(sizes) == 1 else _split(x, sizes, axis)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for x (..., in) and weight (out, in)."""
    if x.ndim == 2:
        return _linear_of_rows(x, weight, bias)
    y = _linear_of_rows(x.reshape((-1, x.shape[-1])), weight, bias)
    return y.reshape(_with_width(x.shape, weight.shape[0]))


def _linear_of_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _weight_goes_first(x.shape[0]):
        y = transpose(_matmul_transposed(weight, x), (1, 0))
    else:
        y = _matmul_transposed(x, weight)
    return y if bias is None else add_bias(y, bias)


def add_bias(rows: Tensor, bias: Tensor) -> Tensor:
    """`rows + bias` for rows (n, width) and bias (width)."""
    return rows + bias if _is_ascend() else _add_bias(rows, bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer normalisation over the last axis, epsilon 1e-5 (PyTorch's default, which Whisper's encoder uses)."""
    if not _is_ascend():
        return _layer_norm(x, weight, bias)[0]
    wide = x.astype(ms.float32)
    wide = wide - _mean_ext(wide, (-1,), True)
    wide = wide * ops.rsqrt(_mean_ext(wide * wide, (-1,), True) + 1e-5)
    return (wide * weight.astype(ms.float32) + bias.astype(ms.float32)).astype(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`x / sqrt(mean(x^2) + epsilon) * weight` over the last axis, computed in fp32 (arXiv 1910.07467)."""
    wide = x.astype(ms.float32)
    if x.dtype == ms.float32 and _are_many(x.shape) and not _is_ascend():
        # Products with a column and a row do what broadcasting would.
        flat = wide.reshape((-1, x.shape[-1]))
        mean = _matmul(flat * flat, _averaging(x.shape[-1]))
        return (flat * _matmul(ops.rsqrt(mean + epsilon), weight.expand_dims(0))).reshape(x.shape)
    mean = _mean_ext(wide * wide, (-1,), True) if _is_ascend() else _mean(wide * wide, -1)
    wide = wide * ops.rsqrt(mean + epsilon)
    return weight * wide.astype(x.dtype)


def dequantize(codes: Tensor, levels: Tensor, scales: Tensor, count: int) -> Tensor:
    """`levels[code] * scale`: the first `count` values, fp32, of codes in blocks that share a scale.

    codes uint8 (blocks * codes of a block); levels fp32 (256, values of one code); scales fp32 (blocks). The scales are
    repeated before the product, see above.
    """
    values = ops.gather(levels, codes.astype(ms.int32), 0).reshape((scales.shape[0], -1))
    values = (values * ops.tile(scales.reshape((-1, 1)), (1, values.shape[1]))).reshape((-1,))
    return values if values.shape[0] == count else _split(values, (count, values.shape[0] - count), 0)[0]


def not_before(x: Tensor, value: Tensor) -> Tensor:
    """`value`, which a graph does not use before it has x.

    What needs only parameters is ready at once, and a graph runs what is ready: it would dequantise the weights of all
    layers first and have them in memory together.
    """
    return ops.depend(value, x)


def split_heads(x: Tensor, batch: int, heads: int) -> Tensor:
    """(batch * length, heads * head_dim) to (batch, heads, length, head_dim)."""
    rows, width = x.shape
    if rows == batch:  # the same memory: a decode step needs no copy
        return x.reshape((batch, heads, 1, width // heads))
    return _swap_middle(x.reshape((batch, rows // batch, heads, width // heads)))


def merge_heads(x: Tensor) -> Tensor:
    """(batch, heads, length, head_dim) to (batch * length, heads * head_dim)."""
    batch, heads, length, head_dim = x.shape
    if length > 1:
        x = _swap_middle(x)
    return x.reshape((batch * length, heads * head_dim))


def choose_heads(x: Tensor, kinds: Tensor) -> Tensor:
    """(batch, length, kinds of head, n) to (batch, heads, length, n), where int32 kinds (heads) says which is which."""
    batch, length, _, width = x.shape
    x = ops.gather(x, kinds, 2)
    return x.reshape((batch, -1, 1, width)) if length == 1 else _swap_middle(x)


def for_heads(x: Tensor, heads: int) -> Tensor:
    """(batch, 1, length, n) repeated for each head, once for all layers; a single row is cheaper left to broadcast."""
    return x if x.shape[2] == 1 else ops.tile(x, (1, heads, 1, 1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, rotated: int | None = None) -> Tensor:
    """`x * cos + swapped * sin` for x (batch, heads, length, head_dim); `swapped` is x's second half, then its first.

    cos and sin are of x's shape, from `rotary.rotation_tables`. rotated: how many of the dimensions are rotated, the
    first ones; None: all. On a CPU a gather of two rows swaps the halves.
    """
    if rotated is not None and rotated < x.shape[-1]:
        half = rotated // 2
        first, second, rest = _split(x, (half, half, x.shape[-1] - rotated), 3)
        return x * cos + ops.concat((second, first, rest), 3) * sin
    if _is_ascend():
        half = x.shape[-1] // 2
        first, second = _split(x, (half, half), 3)
        return x * cos + ops.concat((second, first), 3) * sin
    swapped = ops.gather(x.reshape((-1, 2, x.shape[-1] // 2)), _OTHER_HALF, 1).reshape(x.shape)
    return x * cos + swapped * sin


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, transposed: bool = False) -> Tensor:
    """Dot-product attention with grouped key and value heads, softmax in fp32.

    query (batch, heads, queries, head_dim), already divided by sqrt(head_dim); key and value (batch, key_value_heads,
    keys, head_dim), or the key with its last axes `transposed`. Every `heads / key_value_heads` neighbouring query
    heads share one key head; mask fp32, added to the scores (batch, heads, queries, keys), or (batch, 1, 1, keys) for
    all queries; None hides nothing. Returns (batch, heads, queries, head_dim).

    With a mask of fewer heads, as `heads_together` tells, so many are computed at a time, and the mask serves them all.
    """
    together = query.shape[1] if mask is None or mask.shape[1] == 1 else mask.shape[1]
    count = query.shape[1] // together
    if count == 1:
        return _attention(query, key, value, mask, transposed)
    sizes, mixed = (value.shape[1] // count,) * count, ()
    queries, keys, values = _split(query, (together,) * count, 1), _split(key, sizes, 1), _split(value, sizes, 1)
    for i in range(count):
        # A graph runs what is ready, and would have all scores in memory.
        some = not_before(mixed[-1], queries[i]) if i else queries[i]
        mixed += (_attention(some, keys[i], values[i], mask, transposed),)
    return ops.concat(mixed, 1)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, transposed: bool) -> Tensor:
    batch, heads, queries, head_dim = query.shape
    key_value_heads, keys = value.shape[1], value.shape[2]
    groups = heads // key_value_heads
    if mask is not None and queries > 1 and _is_a_column(mask.shape, query.dtype, transposed):
        # One more dimension, which is 1 in each query: what is as large as the scores is neither read nor made.
        query = ops.concat((query, _ones((batch, heads, queries, 1), query.dtype)), 3)
        key = ops.concat((key, ops.tile(mask.reshape((batch, 1, keys, 1)), (1, key_value_heads, 1, 1))), 3)
        mask = None
    query = query.reshape((batch, key_value_heads, groups * queries, query.shape[3]))
    scores = _product(query, key) if transposed else _scores(query, key)
    scores = scores.astype(ms.float32)
    if queries > 1:  # one query's mask fits the grouped heads as it is
        scores = scores.reshape((batch, heads, queries, keys))
    if mask is not None:
        scores = scores + mask
    weights = _softmax(scores).astype(value.dtype)
    mixed = _product(weights.reshape((batch, key_value_heads, groups * queries, keys)), value)
    return mixed.reshape((batch, heads, queries, head_dim))


def causal_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """`attention` of as many queries as keys, with a mask that hides from each query the keys after its own.

    Many queries go in blocks, whose later keys are left out: they would be half of all scores.
    """
    blocks, keys = _in_blocks(query.shape[2]), 0
    if not blocks:
        return attention(query, key, value, mask)
    mixed, queries, masks = (), _split(query, blocks, 2), _split(mask, blocks, 2)
    for i, size in enumerate(blocks):
        keys += size
        sizes = (keys, query.shape[2] - keys)
        if sizes[1]:
            some = (_split(key, sizes, 2)[0], _split(value, sizes, 2)[0], _split(masks[i], sizes, 3)[0])
        else:
            some = (key, value, masks[i])
        mixed += (attention(queries[i], *some),)
    return ops.concat(mixed, 2)


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """How much `attention` takes of each key, fp32 (batch, heads, queries, keys): of as many query as key heads."""
    return _softmax(_scores(query, key).astype(ms.float32))


@ops.constexpr
def distances(positions: int, left: int, right: int, of_key: bool) -> Tensor:
    """int32 (positions, positions): the row of a table of distances from -left to right for each query and key.

    The distance is the key's position minus the query's, or with of_key False the query's minus the key's; what is
    beyond the table has the row at its end.
    """
    ahead = np.arange(positions)[None, :] - np.arange(positions)[:, None]
    return Tensor((np.clip(ahead if of_key else -ahead, -left, right) + left).astype(np.int32))


def relative_scores(query: Tensor | None, table: Tensor, index: Tensor) -> Tensor:
    """What relative positions add to the scores of `attention`: fp32 (batch, heads, queries, keys).

    index int32 (queries, keys), such as `distances`: a row of the table for each query and key. With a query (batch,
    heads, queries, head_dim), already divided by sqrt(head_dim), the table is (rows, head_dim) and the score is the
    query's dot product with the row (arXiv 1803.02155). Without one the table is (rows, heads), and the score is the
    number in it, for any batch: batch is 1.
    """
    queries, keys = index.shape
    if query is None:
        scores = transpose(ops.gather(table, index.reshape((-1,)), 0), (1, 0))
        return scores.reshape((1, -1, queries, keys)).astype(ms.float32)
    batch, heads, _, width = query.shape
    rows = table.shape[0]
    # The products with all rows are few, and those that belong to each pair are gathered.
    products = _matmul_transposed(query.reshape((-1, width)), table).reshape((batch * heads, queries * rows))
    pairs = (index + (counting(queries) * rows).expand_dims(1)).reshape((-1,))
    return ops.gather(products, pairs, 1).reshape((batch, heads, queries, keys)).astype(ms.float32)


def time_mask(counts: Tensor, time: int, width: int) -> Tensor:
    """fp32 (batch, time, width): 1 before the time `counts`, int32 (batch), and 0 from it on."""
    kept = (counting(time).expand_dims(0) < counts.expand_dims(1)).astype(ms.float32)
    return ops.tile(kept.reshape((-1, time, 1)), (1, 1, width))


def average_pairs(x: Tensor) -> Tensor:
    """The mean of each two neighbours in time, an odd last one dropped: (batch, time, n) to (batch, time // 2, n)."""
    batch, time, channels = x.shape
    if time % 2:
        x = _split(x, (time - 1, 1), 1)[0]
    first, second = _split(x.reshape((batch, time // 2, 2 * channels)), (channels, channels), 2)
    return first * 0.5 + second * 0.5  # a sum of both could overflow in half precision


def gelu(x: Tensor) -> Tensor:
    """x * Phi(x), Phi the normal distribution: the exact GELU (arXiv 1606.08415).

    In fp32 it is x * sigmoid(x * p(x^2)), where p is a minimax fit of logit(Phi(x)) / x, because `erf` is slower. Its
    error is at most 6e-7 of the larger of 1 and |x|, as small as that of PyTorch's.
    """
    if x.dtype != ms.float32:  # whose powers of x would overflow
        return x * (ops.erf(x * 0.5**0.5) * 0.5 + 0.5)
    square = ops.minimum(x * x, Tensor(_GELU_LIMIT, ms.float32))
    slope = square * _GELU[0] + _GELU[1]
    for factor in _GELU_REST:
        slope = slope * square + factor
    return x * ops.sigmoid(x * slope)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return ops.silu(x)


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`(silu(x @ gate.T) * (x @ up.T)) @ down.T` for x (rows, in); gate_up (2 * inner, in) has gate's rows first."""
    inner = down.shape[1]
    if _weight_goes_first(x.shape[0]):  # on its side, so that the result alone is transposed
        gate, up = _split(_matmul_transposed(gate_up, x), (inner, inner), 0)
        return transpose(_matmul(down, silu(gate) * up), (1, 0))
    gate, up = _split(linear(x, gate_up), (inner, inner), -1)
    return linear(silu(gate) * up, down)


def relu(x: Tensor) -> Tensor:
    """The larger of x and 0, by an operator that the wheel has an Ascend kernel for under its own name."""
    return _maximum(x, zeros((), x.dtype))


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """x where it is positive, otherwise `slope * x`, for a slope between 0 and 1."""
    return _maximum(x, x * slope)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent, by the sigmoid: MindSpore's own is off by 3e-5 on a CPU."""
    return ops.sigmoid(x * 2) * 2 - 1


def glu(x: Tensor) -> Tensor:
    """`a * sigmoid(b)`, where a and b are the halves of the last axis (arXiv 1612.08083)."""
    half = x.shape[-1] // 2
    a, b = _split(x, (half, half), -1)
    return a * ops.sigmoid(b)


def embed(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of `table` (rows, n) by `ids` (...): (..., n)."""
    return ops.gather(table, ids, 0)


def write_rows(table: ms.Parameter, rows: Tensor, values: Tensor) -> Tensor:
    """Overwrite `table[rows]` (n, width) in place with `values` (len(rows), width); returns the table as written."""
    return _write(table, rows, values)


def add_columns(table: ms.Parameter, columns: Tensor, values: Tensor, axis: int) -> Tensor:
    """Add `values` in place to the `columns`, int32 (length), of a table; returns the table as written.

    With axis 2 the table is (batch, heads, positions, n) and values (batch, heads, length, n); with axis 3 the last two
    axes of both are transposed. On Ascend the device's own CPU runs it, which is slow, and not in bfloat16.
    """
    sizes = _added_at_once(values.shape, axis)
    if len(sizes) == 1:
        return _add_along_rows(table, columns, values) if axis == 2 else _add_along_last(table, columns, values)
    parts, some, done = _split(values, sizes, axis), _split(columns, sizes, 0), columns
    for i in range(len(sizes)):
        done = not_before(done, add_columns(table, some[i], parts[i], axis))
    return done


def swap_last_axes(x: Tensor) -> Tensor:
    """(batch, heads, length, n) to (batch, heads, n, length)."""
    batch, heads, length, width = x.shape
    if length > 1:  # a transpose takes more memory
        x = ops.gather(x.reshape((batch * heads, length * width)), _swapped(length, width), 1)
    return x.reshape((batch, heads, width, length))

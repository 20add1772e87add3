"""The cases of `doctor --ops`: each operation of the models, in small and published sizes, and a NumPy reference."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn
from mindspore import ops as msops

from mindone_audio.backbone import conv_ops, ops
from mindone_audio.backbone.audio_language_model import audio_rows, merge_audio
from mindone_audio.backbone.decoder import causal_mask, ring_mask, ring_places
from mindone_audio.backbone.encoder import first_frames, padding_mask
from mindone_audio.machine.device import scatters_rows
from mindone_audio.proof.experiments import quantized_linear

_argmax = msops.Argmax(-1, ms.int32)


@dataclass(frozen=True)
class Case:
    """One operation: how to run it on tensors, what NumPy gives for the same arrays in float64, and its inputs.

    floats are rounded to the dtype that is checked; fixed inputs (indices, masks) keep their own.
    """

    name: str
    run: Callable
    reference: Callable
    floats: tuple[np.ndarray, ...]
    fixed: tuple[np.ndarray, ...] = ()


def cases(dtype: ms.Type = ms.float32) -> list[Case]:
    """All cases for a dtype, with inputs from a fixed seed."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    one, many = normal(2, 6, 1, 16), normal(2, 6, 9, 16)
    keys, values = normal(2, 2, 12, 16), normal(2, 2, 12, 16)
    hidden = rng.random((2, 1, 9, 12)) < 0.3
    later = np.triu(np.ones((1, 1, 320, 320), bool), 1)
    whole = normal(1, 2, 320, 4), normal(1, 1, 320, 4), normal(1, 1, 320, 4)
    angles = np.arange(9)[:, None] * np.array([1.0, 0.1, 0.01, 0.001])
    cos, sin = (function(angles).astype(np.float32) for function in (np.cos, np.sin))
    tables = np.concatenate([cos, cos], 1)[None, None], np.concatenate([-sin, sin], 1)[None, None]
    rows, table = np.array([3, 0, 5], np.int32), normal(7, 16)
    columns, places = np.arange(3, 6, dtype=np.int32), np.arange(8, dtype=np.int32)
    starts = np.array([[0, 0, 0], [2, 6, 5]], np.int32)
    audio_index = np.array([[-1, 3, 4, -1]] * 2, np.int32)
    row, row_weight = normal(1, 1, 256), normal(128, 256)
    codes = rng.integers(0, 256, 96).astype(np.int32)
    pairs = np.array([[7, 9], [40, 41]], np.int32)
    pairs_at = rng.integers(0, 7, (5, 6)).astype(np.int32)
    added = normal(2, 3, 8, 4), normal(2, 3, 3, 4)
    only_cpu = [
        Case("add_columns", _AddColumns(dtype, 2), _add_columns, added, (columns,)),
        Case("add_columns, transposed", _AddColumns(dtype, 3), _add_columns, added, (columns,)),
    ]
    return [
        *([] if scatters_rows() else only_cpu),
        Case("linear", ops.linear, lambda x, w, b: x @ w.T + b, (normal(2, 5, 16), normal(24, 16), normal(24))),
        Case("linear, no bias", ops.linear, lambda x, w: x @ w.T, (normal(2, 5, 16), normal(24, 16))),
        Case("linear, ten rows", ops.linear, lambda x, w: x @ w.T, (normal(10, 16), normal(24, 16))),
        Case("linear, one row", ops.linear, lambda x, w: x @ w.T, (row, row_weight)),
        Case("layer_norm", ops.layer_norm, _layer_norm, (normal(2, 5, 16) * 3, normal(16), normal(16))),
        Case("rms_norm, many rows", _run_rms_norm, _rms_norm, (normal(70, 16) * 3, normal(16))),
        Case("rms_norm, many heads", _run_rms_norm, _rms_norm, (normal(2, 7, 5, 16) * 3, normal(16))),
        Case("rms_norm, one row", _run_rms_norm, _rms_norm, (normal(1, 16), normal(16))),
        Case("dequantize", _run_dequantize, _dequantize, (normal(256, 2), normal(6)), (codes,)),
        Case("not_before", ops.not_before, lambda x, value: value, (normal(3), normal(2, 5))),
        Case("split_heads", _run_split_heads, lambda x: x.reshape(2, 5, 4, 4).swapaxes(1, 2), (normal(10, 16),)),
        Case("merge_heads", ops.merge_heads, lambda x: x.swapaxes(1, 2).reshape(10, 12), (normal(2, 3, 5, 4),)),
        Case("split, concat", _run_split, lambda x: np.roll(x, -4, 1), (normal(2, 6, 3, 4),)),
        Case(
            "choose_heads", ops.choose_heads, _choose_heads, (normal(2, 5, 3, 4),), (np.array([0, 2, 1, 1], np.int32),)
        ),
        Case("for_heads", _run_for_heads, lambda x: np.tile(x, (1, 3, 1, 1)), (normal(2, 1, 5, 4),)),
        Case(
            "gather", _run_gather, lambda x, rows: x[:, :, rows], (normal(2, 3, 5, 4),), (np.array([1, 4], np.int32),)
        ),
        Case("rotate", ops.rotate, _rotate, (normal(2, 3, 9, 8), *tables)),
        Case("rotate, a part", _run_rotate_part, _rotate_part, (normal(2, 3, 9, 8), *tables)),
        Case("attention", _run_attention, _attention, (many, keys, values), (hidden,)),
        Case(
            "attention, a mask for all queries", _run_attention, _attention, (many, keys, values), (hidden[:, :, :1],)
        ),
        Case("attention, a part of the heads at a time", _run_parts, _attention, (many, keys, values), (hidden,)),
        Case("attention, one query", _run_attention, _attention, (one, keys, values), (hidden[:, :, :1],)),
        Case("causal_attention", _run_causal, _attention, whole, (later,)),
        Case("swap_last_axes", ops.swap_last_axes, lambda x: x.swapaxes(2, 3), (normal(2, 3, 5, 4),)),
        Case("attention, transposed keys", _run_transposed, _attention, (one, keys, values), (hidden[:, :, :1],)),
        Case("average_pairs", ops.average_pairs, lambda x: (x[:, 0:6:2] + x[:, 1:6:2]) / 2, (normal(2, 7, 4),)),
        Case("gelu", ops.gelu, _gelu, (normal(2, 5, 16) * 2,)),
        Case("attention_weights", ops.attention_weights, _weights, (normal(2, 3, 4, 8), normal(2, 3, 5, 8))),
        Case("silu", ops.silu, lambda x: x / (1 + np.exp(-x)), (normal(2, 5, 16) * 2,)),
        Case("swiglu", ops.swiglu, _swiglu, (normal(10, 16), normal(24, 16), normal(8, 12))),
        Case("swiglu, one row", ops.swiglu, _swiglu, (normal(1, 16), normal(24, 16), normal(8, 12))),
        Case("relu", ops.relu, lambda x: np.maximum(x, 0), (normal(2, 5, 16),)),
        Case("leaky_relu", _run_leaky_relu, lambda x: np.where(x > 0, x, 0.1 * x), (normal(2, 5, 16),)),
        Case("tanh", ops.tanh, np.tanh, (normal(2, 5, 16) * 2,)),
        Case("glu", ops.glu, lambda x: x[..., :8] / (1 + np.exp(-x[..., 8:])), (normal(2, 5, 16) * 2,)),
        Case("add_bias", ops.add_bias, lambda x, bias: x + bias, (normal(5, 16), normal(16))),
        Case("time_mask", _run_time_mask, _time_mask, (), (np.array([5, 2], np.int32),)),
        Case("relative_scores", ops.relative_scores, _relative_scores, (normal(2, 3, 5, 4), normal(7, 4)), (pairs_at,)),
        Case("relative_scores, bias", _run_bias, _bias, (normal(7, 3),), (pairs_at,)),
        Case("embed", ops.embed, lambda table, rows: table[rows], (table,), (rows,)),
        Case("write_rows", _WriteRows(table.shape, dtype), _write_rows, (table, normal(3, 16)), (rows,)),
        Case("causal_mask", _run_mask, _mask, (normal(2, 1, 3, 3),), (columns, np.array([[1, 1, 1], [0, 1, 1]], bool))),
        Case("ring_mask", _run_ring, _ring, (normal(2, 1, 3, 8),), (columns, places, starts)),
        Case("padding_mask", _run_padding, _padding, (normal(2, 3, 6, 6),), (np.array([11, 4], np.int32),)),
        Case("padding_mask, blocks", _run_blocks, _blocks, (normal(2, 3, 6, 6),), (np.array([11, 4], np.int32),)),
        Case("first_frames", first_frames, _first_frames, (normal(2, 5, 4),), (np.array([5, 2], np.int32),)),
        Case("merge_audio", _run_merge, _merge, (normal(2, 4, 3), normal(5, 3)), (audio_index,)),
        Case("argmax", _run_argmax, lambda x: x.argmax(-1), (normal(3, 40),)),
        Case("lengths and given frames", _run_lengths, lambda lengths: lengths[:, 0] - lengths[:, 1], (), (pairs,)),
        *_over_time(normal),
        *_quantized(normal(2, 128)),
        *_large(normal, dtype),
    ]


def _over_time(normal: Callable[..., np.ndarray]) -> list[Case]:
    """Convolutions of every form that the models have, and the norm over time."""
    convolutions = {  # weight, and (stride, padding, dilation, groups)
        "stride 1": (normal(4, 6, 3), (1, (1, 1), 1, 1)),
        "stride 2": (normal(4, 6, 3), (2, (1, 1), 1, 1)),
        "kernel 1": (normal(4, 6, 1), (1, (0, 0), 1, 1)),
        "kernel 5, stride 3": (normal(4, 6, 5), (3, (0, 2), 1, 1)),
        "dilated": (normal(4, 6, 3), (1, (3, 3), 3, 1)),
        "groups": (normal(8, 3, 4), (1, (2, 1), 1, 2)),
        "depthwise": (normal(6, 1, 18), (1, (17, 0), 1, 6)),
    }
    cases = []
    for name, (weight, form) in convolutions.items():
        inputs = normal(2, 37, 6), weight, normal(len(weight))
        cases.append(Case(f"conv1d, {name}", _Convolve(*form), partial(_conv1d, *form), inputs))
    for kernel, stride in ((8, 4), (7, 3)):
        padding, inputs = (kernel - stride) // 2, (normal(2, 5, 6), normal(6, 4, kernel), normal(4))
        run, reference = _ConvolveBack(stride, padding), partial(_transposed_conv1d, stride, padding)
        cases.append(Case(f"transposed_conv1d, kernel {kernel}, stride {stride}", run, reference, inputs))
    for name, (into, out, width) in {"": (3, 5, 3), ", depthwise": (4, 4, 1)}.items():
        inputs = normal(2, 7, 6, into), normal(out, width, 3, 3), normal(out)
        cases.append(Case(f"halving_conv2d{name}", conv_ops.halving_conv2d, _halving_conv2d, inputs))
    inputs = normal(2, 9, 6) * 3, normal(6), normal(6)
    counts = np.array([9, 4], np.int32)
    return [*cases, Case("norm_over_time", conv_ops.norm_over_time, _norm_over_time, inputs, (counts,))]


def _quantized(x: np.ndarray) -> list[Case]:
    """Layers that keep their weights in 4 bits, with scales that are numbers and scales that are codes."""
    made = []
    for nested in (False, True):
        layer, weight = quantized_linear(64, 128, nested)
        name = f"quantized linear{', nested' if nested else ''}"
        made.append(Case(name, layer, lambda x, weight=weight: x @ weight.T.astype(np.float64), (x,)))
    return made


def _large(normal: Callable[..., np.ndarray], dtype: ms.Type) -> list[Case]:
    """Operations in the sizes of published models: a kernel may be another one there."""
    keys, values = normal(1, 4, 512, 128), normal(1, 4, 512, 128)
    seen = np.zeros((1, 1, 1, 512), bool)
    frames = normal(1, 2, 1500, 64), normal(1, 2, 1500, 64), normal(1, 2, 1500, 64)
    angles = np.arange(3)[:, None] * 10000.0 ** -np.linspace(0, 1, 64)
    cos, sin = (np.concatenate([f(angles)] * 2, 1).astype(np.float32)[None, None] for f in (np.cos, np.sin))
    sin = np.concatenate([-sin[..., :64], sin[..., 64:]], -1)
    rows, table = np.array([0, 152_063, 7], np.int32), normal(152_064, 16)
    cells = np.array([1023, 5], np.int32)
    return [
        Case(
            "linear, 3584 to 4608",
            ops.linear,
            lambda x, w, b: x @ w.T + b,
            (normal(1, 3584), normal(4608, 3584), normal(4608)),
        ),
        Case("linear, odd widths", ops.linear, lambda x, w: x @ w.T, (normal(3, 1283), normal(77, 1283))),
        Case("layer_norm, 1280", ops.layer_norm, _layer_norm, (normal(3, 1280) * 3, normal(1280), normal(1280))),
        Case("rms_norm, 4096", _run_rms_norm, _rms_norm, (normal(2, 4096) * 3, normal(4096))),
        Case(
            "attention, heads of 128", _run_attention, _attention, (normal(1, 28, 1, 128) / 11, keys, values), (seen,)
        ),
        Case("attention, 1500 frames", _run_whole, _whole, frames),
        Case("rotate, heads of 128", ops.rotate, _rotate, (normal(1, 2, 3, 128), cos, sin)),
        Case("embed, 152064 tokens", ops.embed, lambda table, rows: table[rows], (table,), (rows,)),
        Case(
            "write_rows of 128",
            _WriteRows((1024, 128), dtype),
            _write_rows,
            (normal(1024, 128), normal(2, 128)),
            (cells,),
        ),
        Case("argmax, 152064 tokens", _run_argmax, lambda x: x.argmax(-1), (table[:, :2].T.copy(),)),
    ]


def _run_rms_norm(x, weight):
    return ops.rms_norm(x, weight, 1e-5)


def _run_dequantize(levels, scales, codes):
    return ops.dequantize(codes.astype(ms.uint8), levels, scales, 187)


def _run_split_heads(x):
    return ops.split_heads(x, 2, 4)


def _run_split(x):
    first, second = ops.split(x, (4, 2), 1)
    return msops.concat((second, first), 1)


def _run_for_heads(x):
    return ops.for_heads(x, 3)


def _run_gather(x, rows):
    return msops.gather(x, rows, 2)


def _run_attention(query, key, value, hidden):
    return ops.attention(query, key, value, hidden.astype(ms.float32) * ops.MASKED)


def _run_parts(query, key, value, hidden):
    return ops.attention(query, key, value, ops.for_heads(hidden.astype(ms.float32) * ops.MASKED, 3))


def _run_causal(query, key, value, hidden):
    return ops.causal_attention(query, key, value, hidden.astype(ms.float32) * ops.MASKED)


def _run_transposed(query, key, value, hidden):
    return ops.attention(query, ops.swap_last_axes(key), value, hidden.astype(ms.float32) * ops.MASKED, transposed=True)


def _run_leaky_relu(x):
    return ops.leaky_relu(x, 0.1)


def _run_time_mask(counts):
    return ops.time_mask(counts, 6, 3)


def _run_bias(table, index):
    return ops.relative_scores(None, table, index)


def _run_mask(scores, columns, visible):
    return msops.softmax(scores.astype(ms.float32) + causal_mask(columns, visible), -1)


def _run_ring(scores, columns, keys, start):
    mask = ring_mask(keys, start, ring_places(columns, start, 8), 8)
    return msops.softmax(scores.astype(ms.float32) + mask, -1)


def _run_padding(scores, lengths):
    return msops.softmax(scores.astype(ms.float32) + padding_mask((lengths - 1) // 2 + 1, 6, 3), -1)


def _run_blocks(scores, lengths):
    return msops.softmax(scores.astype(ms.float32) + padding_mask((lengths - 1) // 2 + 1, 6, 3, latency_block=2), -1)


def _run_merge(text, audio, index):
    return merge_audio(text, audio_rows(audio, index), index)


def _run_argmax(x):
    return _argmax(x)


def _run_lengths(pairs):
    lengths, given = ops.split(pairs, (1, 1), 1)
    return lengths.reshape((-1,)) - given.reshape((-1,))


def _run_whole(query, key, value):
    return ops.attention(query * 0.125, key, value, None)


class _Convolve(nn.Cell):
    """`conv_ops.conv1d` of one form."""

    def __init__(self, *form):
        super().__init__()
        self.form = form

    def construct(self, x, weight, bias):
        return conv_ops.conv1d(x, weight, bias, *self.form)


class _ConvolveBack(nn.Cell):
    """`conv_ops.transposed_conv1d` of one form."""

    def __init__(self, *form):
        super().__init__()
        self.form = form

    def construct(self, x, weight, bias):
        return conv_ops.transposed_conv1d(x, weight, bias, *self.form)


class _WriteRows(nn.Cell):
    """`ops.write_rows` on a parameter that first takes the values of `table`."""

    def __init__(self, shape: tuple[int, ...], dtype: ms.Type):
        super().__init__()
        self.table = Parameter(msops.zeros(shape, dtype), name="table", requires_grad=False)

    def construct(self, table, values, rows):
        msops.assign(self.table, table)
        return ops.write_rows(self.table, rows, values)


class _AddColumns(nn.Cell):
    """`ops.add_columns`, likewise; along the last axis with everything transposed, and the result transposed back."""

    def __init__(self, dtype: ms.Type, axis: int):
        super().__init__()
        self.axis, shape = axis, (2, 3, 8, 4) if axis == 2 else (2, 3, 4, 8)
        self.table = Parameter(msops.zeros(shape, dtype), name="columns", requires_grad=False)

    def construct(self, table, values, columns):
        if self.axis == 2:
            msops.assign(self.table, table)
            return ops.add_columns(self.table, columns, values, 2)
        msops.assign(self.table, ops.swap_last_axes(table))
        return ops.swap_last_axes(ops.add_columns(self.table, columns, ops.swap_last_axes(values), 3))


def _layer_norm(x, weight, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def _rms_norm(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def _dequantize(levels, scales, codes):
    return (levels[codes].reshape(len(scales), -1) * scales[:, None]).reshape(-1)[:187]


def _choose_heads(x, kinds):
    return x[:, :, kinds].swapaxes(1, 2)


def _rotate(x, cos, sin):
    return x * cos + np.roll(x, x.shape[-1] // 2, -1) * sin


def _run_rotate_part(x, cos, sin):
    return ops.rotate(x, cos, sin, 6)


def _rotate_part(x, cos, sin):
    return x * cos + np.concatenate([x[..., 3:6], x[..., :3], x[..., 6:]], -1) * sin


def _softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _weights(query, key):
    return _softmax(query @ key.swapaxes(2, 3))


def _attention(query, key, value, hidden):
    groups = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, groups, 1), np.repeat(value, groups, 1)
    return _softmax(query @ key.swapaxes(2, 3) + hidden * ops.MASKED) @ value


def _swiglu(x, gate_up, down):
    gate, up = np.split(x @ gate_up.T, 2, 1)
    return (gate / (1 + np.exp(-gate)) * up) @ down.T


def _whole(query, key, value):
    return _softmax(query * 0.125 @ key.swapaxes(2, 3)) @ value


def _conv1d(stride, padding, dilation, groups, x, weight, bias):
    padded = np.pad(x, ((0, 0), padding, (0, 0)))
    reach = dilation * (weight.shape[2] - 1) + 1
    times = range(0, padded.shape[1] - reach + 1, stride)
    made = []
    for part, rows in zip(np.split(padded, groups, 2), np.split(weight, groups)):
        made.append(np.stack([np.einsum("bki,oik->bo", part[:, t : t + reach : dilation], rows) for t in times], 1))
    return np.concatenate(made, 2) + bias


def _halving_conv2d(x, weight, bias):
    padded, depthwise = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), weight.shape[1] == 1
    times, bins = ((size + 1) // 2 for size in x.shape[1:3])
    form = "bklo,okl->bo" if depthwise else "bkli,oikl->bo"
    weight = weight[:, 0] if depthwise else weight
    patch = [[padded[:, 2 * t : 2 * t + 3, 2 * f : 2 * f + 3] for f in range(bins)] for t in range(times)]
    return np.stack([np.stack([np.einsum(form, one, weight) for one in row], 1) for row in patch], 1) + bias


def _transposed_conv1d(stride, padding, x, weight, bias):
    time, kernel = x.shape[1], weight.shape[2]
    y = np.zeros((len(x), (time - 1) * stride + kernel, weight.shape[1]))
    for t in range(time):
        y[:, t * stride : t * stride + kernel] += np.einsum("bi,iok->bko", x[:, t], weight)
    return y[:, padding : y.shape[1] - padding] + bias


def _norm_over_time(x, weight, bias, counts):
    valid = [sample[:count] for sample, count in zip(x, counts)]
    made = [(sample - v.mean(0)) / np.sqrt(v.var(0) + 1e-5) for sample, v in zip(x, valid)]
    return np.stack(made) * weight + bias


def _time_mask(counts):
    return np.repeat((np.arange(6) < counts[:, None])[..., None], 3, 2)


def _relative_scores(query, table, index):
    return np.einsum("bhqn,qkn->bhqk", query, table[index])


def _bias(table, index):
    return table[index].transpose(2, 0, 1)[None]


def _gelu(x):
    return x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / 2**0.5)))(x)


def _write_rows(table, values, rows):
    result = table.copy()
    result[rows] = values
    return result


def _add_columns(table, values, columns):
    result = table.copy()
    result[:, :, columns] += values
    return result


def _mask(scores, columns, visible):
    seen = (columns <= columns[:, None])[None, None] & visible[:, None, None]
    return _softmax(np.where(seen, scores, ops.MASKED))


def _ring(scores, columns, keys, start):
    seen = (keys - start[:, :, None]) % 8 <= ((columns - start) % 8)[:, :, None]
    return _softmax(np.where(seen[:, None], scores, ops.MASKED))


def _padding(scores, lengths):
    hidden = np.arange(6) >= (lengths[:, None, None, None] + 1) // 2
    return _softmax(np.where(hidden, -np.inf, scores))


def _blocks(scores, lengths):
    later = np.arange(6) // 2 > np.arange(6)[:, None] // 2
    return _padding(np.where(later, -np.inf, scores), lengths)


def _first_frames(x, counts):
    return np.where(np.arange(5)[:, None] < counts[:, None, None], x, 0)


def _merge(text, audio, index):
    return np.where(index[..., None] >= 0, audio[np.maximum(index, 0)], text)

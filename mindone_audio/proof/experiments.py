"""What is known of MindSpore on a CPU and can only be found out of an NPU on one: small experiments with a verdict.

`doctor --ops` runs them after the operations. A CPU passes all of them, so that a verdict that differs is Ascend's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.cache import KVCache, update
from mindone_audio.backbone.compiled import one_graph
from mindone_audio.backbone.layers import QuantizedLinear
from mindone_audio.conversion import share, to_mindspore
from mindone_audio.machine import device
from mindone_audio.weights.nf4 import QuantizedWeight
from mindone_audio.weights.parameters import StoredTensor


@dataclass(frozen=True)
class Verdict:
    """What an experiment showed. ok: generation computes the right thing; words: what was seen, for people."""

    ok: bool
    words: str


class _Write(nn.Cell):
    """Writes a layer of a cache, as prefill and decode step do."""

    def __init__(self, cache: KVCache):
        super().__init__(auto_prefix=False)
        self.cache = cache

    def construct(self, columns, key, value):
        keys, values = update(self.cache, 0, self.cache.write_indices(columns), key, value)
        return keys.sum() + values.sum()


class _Read(nn.Cell):
    """What another graph sees of a cache's values, (batch, heads, positions, head_dim)."""

    def __init__(self, cache: KVCache):
        super().__init__(auto_prefix=False)
        self.cache = cache

    def construct(self, factor):
        return self.cache.values[0].reshape(self.cache.shape) * factor


class _Scale(nn.Cell):
    def __init__(self, dtype: ms.Type, size: int = 4):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(size), dtype), name="weight", requires_grad=False)

    def construct(self, x):
        return x * self.weight


def _cache(dtype: ms.Type, batch: int = 2, positions: int = 16) -> KVCache:
    return KVCache(1, batch, 2, positions, 128, dtype)


def _numbers(seed: int, *shape: int) -> np.ndarray:
    """Small whole numbers, which every dtype holds exactly."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def _host(table: Tensor) -> np.ndarray:
    return table.astype(ms.float32).asnumpy()


def _written(cache: KVCache, dtype: ms.Type) -> np.ndarray:
    """Write two pieces into a cache; the values that it should have then."""
    write, expected = one_graph(_Write(cache), "a write to the cache"), np.zeros(cache.shape, np.float32)
    cache.clear()
    for first in (0, 3):
        piece = _numbers(first, cache.batch, 2, 3, 128)
        columns = device.tensor(np.arange(first, first + 3, dtype=np.int32))
        write(columns, to_mindspore(piece, dtype), to_mindspore(piece, dtype))
        expected[:, :, first : first + 3] = piece
    return expected


def cache_between_graphs(dtype: ms.Type) -> Verdict:
    """One graph writes the cache in place, another reads it, and so does the host, twice."""
    cache = _cache(dtype)
    expected = _written(cache, dtype)
    read = one_graph(_Read(cache), "a read of the cache")
    seen = [_host(read(Tensor(1, dtype))), _host(cache.values[0]).reshape(cache.shape), _host(read(Tensor(1, dtype)))]
    wrong = [name for name, values in zip(("graph", "host", "graph again"), seen) if (values != expected).any()]
    if wrong:
        return Verdict(False, f"what one graph writes is not what the {wrong[0]} reads")
    return Verdict(True, "what one graph writes, another graph and the host read")


def sequences_are_copied(dtype: ms.Type) -> Verdict:
    """Slots are filled from a cache of one, exchanged as beams go on, and taken over into a larger cache."""
    one, batch = _cache(dtype, batch=1), _cache(dtype)
    source = _written(one, dtype)
    batch.clear()
    columns = np.full(16, 15)
    columns[4:10] = np.arange(6)
    batch.insert(1, one, columns)
    expected = np.zeros(batch.shape, np.float32)
    expected[1, :, 4:10] = source[0, :, :6]
    if (_host(batch.values[0]).reshape(batch.shape) != expected).any():
        return Verdict(False, "a sequence that was copied into a slot is not what it was")
    batch.reorder(np.array([1, 1]))
    expected[0] = expected[1]
    if (_host(batch.values[0]).reshape(batch.shape) != expected).any():
        return Verdict(False, "beams that were exchanged are not what they were")
    larger = _cache(dtype, batch=4, positions=32)
    kept = np.arange(32) < np.array([[16], [16], [0], [0]])
    larger.take(batch, np.array([0, 1, 0, 0]), np.arange(32) % 16, kept)
    values = _host(larger.values[0]).reshape(larger.shape)
    if (values[:2, :, :16] != expected).any() or values[2:].any() or values[:, :, 16:].any():
        return Verdict(False, "a larger cache is not a copy of the smaller one")
    return Verdict(True, "sequences are copied between slots and caches as they are")


def nan_is_cleared(dtype: ms.Type) -> Verdict:
    """What became NaN in a cache must be gone for the next generation, since a mask cannot hide it."""
    cache = _cache(dtype)
    for table in (*cache.keys, *cache.values):
        msops.assign(table, Tensor(np.full(table.shape, np.nan), dtype))
    cache.clear()
    if any(_host(table).any() for table in (*cache.keys, *cache.values)):
        return Verdict(False, "a NaN in the cache stays: after one, all later answers are nonsense")
    return Verdict(True, "a NaN in the cache does not reach the next generation")


def arguments_may_change(dtype: ms.Type) -> Verdict:
    """The host changes an array right after the graph was called with it."""
    read = one_graph(_Scale(dtype, 1 << 16), "a product")

    def result(make: Callable[[np.ndarray], Tensor]) -> float:
        array = np.ones(1 << 16, np.float32)
        output = read(make(array).astype(dtype))
        array[:] = 2
        return float(_host(output).max())

    if result(device.tensor) != 1:
        return Verdict(False, "a graph reads an argument after it has returned: answers may mix tokens")
    shared = "also where MindSpore shares its memory" if result(share) == 1 else "only where MindSpore has copied it"
    return Verdict(True, f"an argument may be changed after the call, {shared}")


def changed_weights_are_seen(dtype: ms.Type) -> Verdict:
    """A parameter gets new values in place, and then new memory, after a graph was compiled."""
    cell = _Scale(dtype)
    run, x = one_graph(cell, "a product"), Tensor(np.ones(4), dtype)
    run(x)
    msops.assign(cell.weight, Tensor(np.full(4, 2), dtype))
    in_place = float(_host(run(x))[0]) == 2
    cell.weight.set_data(Tensor(np.full(4, 3), dtype))
    elsewhere = float(_host(run(x))[0]) == 3
    if not in_place:
        return Verdict(False, "a graph does not see what `assign` writes into a parameter: merged adapters are ignored")
    if elsewhere:
        return Verdict(True, "a graph sees `assign` and `set_data`")
    return Verdict(True, "a graph sees `assign`, and not `set_data`, of which model.weights_changed() tells it")


def first_of_equals(dtype: ms.Type) -> Verdict:
    """Greedy decoding takes the first of equal scores, of a vocabulary as large as Qwen2-Audio's, as NumPy does."""
    scores = np.zeros((2, 156032), np.float32)
    scores[0, [77, 100_000, 156_031]] = scores[1, [5, 6]] = 1
    argmax = msops.Argmax(-1, ms.int32)
    best = argmax(Tensor(scores)).asnumpy().tolist()
    if best != [77, 5]:
        return Verdict(False, f"of equal scores not the first is taken: {best} instead of [77, 5]")
    return Verdict(True, "of equal scores the first is taken, among 156,032")


def interpreted_equals_compiled(dtype: ms.Type) -> Verdict:
    """What generation does outside of graphs: rows of audio, scores, the best token."""
    table, ids = to_mindspore(_numbers(0, 50, 64), dtype), Tensor(np.array([[3, 49], [0, 7]], np.int32))
    rows = ops.embed(table, ids)
    if (_host(rows) != _host(table)[ids.asnumpy()]).any():
        return Verdict(False, "rows that are looked up outside of a graph are wrong")
    scores = _host(ops.linear(rows, table))
    expected = _host(table)[ids.asnumpy()] @ _host(table).T
    if np.abs(scores - expected).max() > np.abs(expected).max() * 2**-7:
        return Verdict(False, "a product outside of a graph is wrong")
    return Verdict(True, "look-ups and products outside of graphs are right")


def quantized_linear(out: int, width: int, nested: bool) -> tuple[QuantizedLinear, np.ndarray]:
    """A layer of random 4-bit codes, and its weight (out, in) in float32."""
    rng, count = np.random.default_rng(0), out * width
    arrays = {
        "weight": rng.integers(0, 256, count // 2).astype(np.uint8),
        "quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        "absmax": rng.random(count // 64).astype(np.float32),
    }
    if nested:
        arrays["absmax"] = rng.integers(0, 256, count // 64).astype(np.uint8)
        arrays["nested_quant_map"] = np.linspace(-1, 1, 256, dtype=np.float32)
        arrays["nested_absmax"] = rng.random(-(-count // 64 // 256)).astype(np.float32)
    parts = {
        name: StoredTensor(None, name, "U8" if array.dtype == np.uint8 else "F32", array.shape, 0, array.nbytes)
        for name, array in arrays.items()
    }
    state = {"blocksize": 64, "nested_blocksize": 256, "nested_offset": 0.5}
    stored = QuantizedWeight(None, "weight", "F32", (out, width), count // 2, state, parts, lambda t: arrays[t.name])
    return QuantizedLinear(stored, None), stored.dequantized(np.float32)


def time_of_4_bits(dtype: ms.Type) -> Verdict:
    """One layer of 4096 x 4096 in 4 bits, as a 7B model has some 200."""
    layer, _ = quantized_linear(4096, 4096, nested=False)
    run, x = one_graph(layer, "a layer in 4 bits"), to_mindspore(_numbers(0, 1, 4096), dtype)
    _host(run(x))
    start = time.perf_counter()
    _host(run(x))
    seconds = time.perf_counter() - start
    advice = "" if seconds < 0.02 else ": load without keep_quantized where memory allows"
    return Verdict(True, f"a layer of 4096 x 4096 in 4 bits takes {seconds * 1000:.1f} ms a call{advice}")


EXPERIMENTS = (
    cache_between_graphs,
    sequences_are_copied,
    nan_is_cleared,
    arguments_may_change,
    changed_weights_are_seen,
    first_of_equals,
    interpreted_equals_compiled,
    time_of_4_bits,
)

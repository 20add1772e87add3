"""The static key-value cache: it only writes at positions, and copies rows between caches."""

import itertools

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops

_names = itertools.count()


class KVCache(nn.Cell):
    """Keys and values of every layer for `batch` sequences of up to `positions` tokens, written in place.

    Each layer's keys are one table (batch * key_value_heads * positions, head_dim), because a scatter along the first
    axis is the in-place write that every back end compiles.
    """

    def __init__(self, layers: int, batch: int, key_value_heads: int, positions: int, head_dim: int, dtype: ms.Type):
        super().__init__()
        self.batch, self.key_value_heads = batch, key_value_heads
        self.positions, self.head_dim = positions, head_dim
        name = f"kv_cache_{next(_names)}"  # a graph refuses two parameters of one name
        shape = (batch * key_value_heads * positions, head_dim)
        self.keys = ParameterTuple([self._table(shape, dtype, f"{name}.keys.{i}") for i in range(layers)])
        self.values = ParameterTuple([self._table(shape, dtype, f"{name}.values.{i}") for i in range(layers)])

    @staticmethod
    def _table(shape: tuple[int, int], dtype: ms.Type, name: str) -> Parameter:
        return Parameter(msops.zeros(shape, dtype), name=name, requires_grad=False)

    def rows(self, columns: Tensor) -> Tensor:
        """Table rows of positions `columns`, int32 (length), of every sequence and head: int32 (all heads * length)."""
        heads = msops.arange(self.batch * self.key_value_heads, dtype=ms.int32) * self.positions
        return (heads.reshape((-1, 1)) + columns).reshape((-1,))

    def update(self, layer: int, rows: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write key and value (batch, key_value_heads, length, head_dim) at `rows`; returns all of the layer's."""
        shape = (self.batch, self.key_value_heads, self.positions, self.head_dim)
        keys = ops.write_rows(self.keys[layer], rows, key.reshape((-1, self.head_dim)))
        values = ops.write_rows(self.values[layer], rows, value.reshape((-1, self.head_dim)))
        return keys.reshape(shape), values.reshape(shape)


class CopySequences(nn.Cell):
    """Fill a cache with chosen sequences of another one, or of itself: beams that continue, copies of a prompt."""

    def __init__(self, source: KVCache, target: KVCache):
        super().__init__(auto_prefix=False)
        self.source, self.target = source, target

    def construct(self, index: Tensor) -> Tensor:
        """index int32 (target.batch): which sequence of the source each sequence of the target becomes."""
        for source, target in zip(self.source.keys + self.source.values, self.target.keys + self.target.values):
            chosen = msops.gather(source.reshape((self.source.batch, -1)), index, 0)
            msops.assign(target, chosen.reshape(target.shape))
        return index

"""The static key-value cache: graphs only write at positions; between them, whole sequences are copied."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.machine import device


class KVCache(nn.Cell):
    """Keys and values of every layer for `batch` sequences of up to `positions` tokens, written in place.

    On a CPU the tables have the shapes that attention reads: values (batch, key_value_heads, positions, head_dim), and
    keys with the last two axes transposed, which makes a decode step faster. A CPU writes in place by adding along any
    axis, so a table must be zero where nothing is written yet: see `clear`. On Ascend the tables are `flat`, both
    (batch * key_value_heads * positions, head_dim), because a scatter along the first axis is the in-place write that
    Ascend has for every dtype. flat: None chooses by the device. name: of its
    parameters, since a graph refuses two of one name.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        key_value_heads: int,
        positions: int,
        head_dim: int,
        dtype: ms.Type,
        flat: bool | None = None,
        name: str = "kv_cache",
    ):
        super().__init__()
        self.flat = device.scatters_rows() if flat is None else flat
        self.batch, self.key_value_heads = batch, key_value_heads
        self.positions, self.head_dim = positions, head_dim
        self.shape = (batch, key_value_heads, positions, head_dim)
        flattened = (batch * key_value_heads * positions, head_dim)
        keys = flattened if self.flat else (batch, key_value_heads, head_dim, positions)
        values = flattened if self.flat else self.shape
        self.keys = ParameterTuple([self._table(keys, dtype, f"{name}.keys.{i}") for i in range(layers)])
        self.values = ParameterTuple([self._table(values, dtype, f"{name}.values.{i}") for i in range(layers)])

    @staticmethod
    def _table(shape: tuple[int, ...], dtype: ms.Type, name: str) -> Parameter:
        return Parameter(msops.zeros(shape, dtype), name=name, requires_grad=False)

    def write_indices(self, columns: Tensor) -> Tensor:
        """What `update` takes to write at positions int32 (length): those, or their rows in flat tables."""
        if not self.flat:
            return columns
        heads = ops.counting(self.batch * self.key_value_heads) * self.positions
        return (heads.reshape((-1, 1)) + columns).reshape((-1,))

    def clear(self, columns: int | None = None) -> None:
        """Zero in the first so many columns, or everywhere, as on an NPU always: what is added in place needs it, and
        a NaN would get through a mask; not for a graph."""
        if device.shares_memory():
            device.synchronize()
            for table in self.keys:
                keys = table.asnumpy()  # the table's own memory
                (keys.reshape(self.shape).swapaxes(2, 3) if self.flat else keys)[..., :columns] = 0
            for table in self.values:
                table.asnumpy().reshape(self.shape)[:, :, :columns] = 0
            return
        for tables in (self.keys, self.values):
            empty = msops.zeros(tables[0].shape, tables[0].dtype)
            for table in tables:
                msops.assign(table, empty)

    def empty(self, columns: Tensor) -> Tensor:
        """Zero at int32 columns (n) of tables that are not flat, so that they can be written again; returns something
        that a graph can wait for. What is there is added with the other sign, since a CPU writes no other way."""
        done = columns
        for key, value in zip(self.keys, self.values):
            keys = ops.add_columns(key, columns, -msops.gather(key, columns, 3), 3)
            values = ops.add_columns(value, columns, -msops.gather(value, columns, 2), 2)
            done = ops.not_before(values, ops.not_before(keys, done))
        return done

    def take(self, other: "KVCache", rows: np.ndarray, columns: np.ndarray, valid: np.ndarray) -> None:
        """Become a copy of sequences of another cache: column j of row i is columns[j] of rows[i]; not for a graph.

        rows int (batch), columns int (positions); valid bool (batch, positions): what is not becomes zero.
        """
        rows, columns = Tensor(rows.astype(np.int32)), Tensor(columns.astype(np.int32))
        for own, others, axis in ((self.keys, other.keys, 2 if self.flat else 3), (self.values, other.values, 2)):
            shape = [self.batch, 1, 1, 1]
            shape[axis] = self.positions
            kept, nothing = Tensor(valid.reshape(shape)), Tensor(0, own[0].dtype)
            for target, table in zip(own, others):
                taken = msops.gather(msops.gather(other._by_sequence(table), rows, 0), columns, axis)
                msops.assign(target, msops.where(kept, taken, nothing).reshape(target.shape))

    def insert(self, row: int, source: "KVCache", columns: np.ndarray) -> None:
        """Overwrite a sequence whole by that of a cache of one: column i is columns[i] of it; not for a graph.

        columns int (positions): a column that is empty in `source` makes an empty one here.
        """
        index = Tensor(columns.astype(np.int32))
        for own, others, axis in ((self.keys, source.keys, 2 if self.flat else 3), (self.values, source.values, 2)):
            for target, table in zip(own, others):
                self._by_sequence(target)[row] = msops.gather(source._by_sequence(table), index, axis)[0]

    def reorder(self, index: np.ndarray) -> None:
        """Make sequence i a copy of sequence index[i], int (batch), as beams go on; not for a graph."""
        changed = np.flatnonzero(index != np.arange(len(index))).tolist()
        origins = Tensor(index[changed].astype(np.int32))
        for table in (*self.keys, *self.values):
            table = self._by_sequence(table)
            for row, values in zip(changed, msops.gather(table, origins, 0)):
                table[row] = values

    def _by_sequence(self, table: Parameter) -> Tensor:
        """A table as it is in memory, its first axis the sequences."""
        return table.view(self.shape) if self.flat else table

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(table.nbytes for table in (*self.keys, *self.values))


def update(cache: KVCache, layer: int, indices: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Write key and value (batch, key_value_heads, length, head_dim) at `write_indices`; returns all of the layer's,
    the keys transposed unless the cache is flat.

    A function, because MindSpore parses one once, and a method for every layer.
    """
    if not cache.flat:
        keys = ops.add_columns(cache.keys[layer], indices, ops.swap_last_axes(key), 3)
        return keys, ops.add_columns(cache.values[layer], indices, value, 2)
    keys = ops.write_rows(cache.keys[layer], indices, key.reshape((-1, cache.head_dim)))
    values = ops.write_rows(cache.values[layer], indices, value.reshape((-1, cache.head_dim)))
    return keys.reshape(cache.shape), values.reshape(cache.shape)


def stored(cache: KVCache, layer: int) -> tuple[Tensor, Tensor, bool]:
    """All keys and values of a layer, and whether the keys are transposed."""
    if not cache.flat:
        return cache.keys[layer], cache.values[layer], True
    return cache.keys[layer].reshape(cache.shape), cache.values[layer].reshape(cache.shape), False


def through_cache(
    cache: KVCache, layer: int, indices: Tensor, key: Tensor, value: Tensor, keys: int
) -> tuple[Tensor, Tensor, bool]:
    """`update`, and what attention with a mask of so many keys reads: the new ones where they are as many, else the
    first ones of the layer; and whether the keys are transposed."""
    all_keys, all_values = update(cache, layer, indices, key, value)
    if keys == cache.positions:
        return all_keys, all_values, not cache.flat
    if keys > key.shape[2]:
        sizes = (keys, cache.positions - keys)
        all_keys = ops.split(all_keys, sizes, 2 if cache.flat else 3)[0]
        return all_keys, ops.split(all_values, sizes, 2)[0], not cache.flat
    # The tokens attend to each other alone, but a graph leaves out a write that nothing waits for.
    return ops.not_before(all_keys, key), ops.not_before(all_values, value), False

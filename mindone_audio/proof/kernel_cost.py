"""What a kernel costs at least: bytes to and from memory, operations of the matrix unit, and the time of both.

A roofline (Williams et al. 2009, doi 10.1145/1498765.1498785): a kernel takes as long as the longer of the two. Other
arithmetic than that of products is not counted, since moving the numbers takes longer. Standard library only.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from mindone_audio.machine.chips import Speed

_WIDTHS = {"Bool": 1, "Int8": 1, "UInt8": 1, "BFloat16": 2, "Float16": 2, "Float32": 4, "Int32": 4, "Int64": 8}
PRODUCTS = {"MatMul", "BatchMatMul"}
# They read each input once and write each output once.
_PLAIN = {
    *("Add", "Argmax", "Cast", "Concat", "Erf", "FloorDiv", "GreaterEqual", "Less", "LessEqual", "LessScalar"),
    *("LogicalAnd", "MeanExt", "Mul", "Muls", "Rsqrt", "Select", "SiLU", "Softmax", "SplitWithSize", "Sub", "Tile"),
    "Transpose",
}


class Array(NamedTuple):
    """dtype: as MindSpore's dumps write it, such as BFloat16."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * _WIDTHS[self.dtype]


class Work(NamedTuple):
    """Bytes to and from memory, and operations of the matrix unit: two for each multiplication and addition."""

    nbytes: int
    operations: int

    def seconds(self, speed: Speed) -> float:
        """The least time on a chip."""
        return max(self.nbytes / speed.bandwidth, self.operations / speed.operations)


@dataclass(frozen=True)
class Kernel:
    """A primitive of a graph with the arrays that it takes and gives."""

    primitive: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]

    def __str__(self) -> str:
        return " ".join([self.primitive, *("x".join(map(str, array.shape)) for array in self.inputs if array.shape)])

    @property
    def work(self) -> Work:
        """Raises `ValueError` for a primitive that is not known here: it would count as something it is not."""
        operations = 0
        if self.primitive == "Gather":  # of the table it reads the rows that it gives
            nbytes = self.inputs[-1].nbytes + 2 * self.outputs[0].nbytes
        elif self.primitive == "ScatterUpdate":  # of the table it writes the rows that it takes
            nbytes = self.inputs[-2].nbytes + 2 * self.inputs[-1].nbytes
        elif self.primitive in PRODUCTS | _PLAIN:
            nbytes = sum(array.nbytes for array in (*self.inputs, *self.outputs))
        else:
            raise ValueError(f"nobody has said what {self.primitive} costs: add it to proof/kernel_cost.py")
        if self.primitive in PRODUCTS:
            first, rows = self.inputs[0].shape[-2:], self.outputs[0].shape[-2]
            operations = 2 * self.outputs[0].size * (math.prod(first) // rows)  # each is a sum over the other axis
        return Work(nbytes, operations)

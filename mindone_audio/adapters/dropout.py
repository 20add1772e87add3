"""Dropout whose masks are a function of one number, so that a resumed run draws the masks of an uninterrupted one.

MindSpore's CPU back end has no kernel for the dropout that `mindone.peft` uses, and the one that it has cannot be told
where in its sequence to begin.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindone_audio.backbone.ops import counting

_FACTORS = 16  # of the product that spreads a few random numbers over a whole mask
_LARGEST = 31  # of its whole numbers: sums stay below 512, whose fractions fp32 knows to 2^-15
_LOW_BITS = (1 << 23) - 1
_product = ops.MatMul()  # of two matrices; `ops.matmul` is a primitive that Ascend's graphs have no kernel for


class Dropout(nn.Cell):
    """Zeroes each value with probability p while training, and divides the others by 1 - p.

    seed: int32 Parameter (1), shared by the cells of a model; the masks of two numbers are independent. stream: tells
    the cells that share it apart.

    The mask is `fraction(a @ m) >= p`, where a (rows, 16) is uniform on [0, 1), a hash of seed, stream and position,
    and m (16, width) are whole numbers drawn once: rows are independent, and so are the columns of a row in every set
    of up to 16 whose m are linearly independent. It costs a narrow product instead of a hash of every value.
    """

    def __init__(self, p: float, width: int, seed: Parameter, stream: int):
        super().__init__()
        self.p, self.seed, self.stream = p, seed, stream % (1 << 31)
        whole = np.random.default_rng(stream).integers(-_LARGEST, _LARGEST + 1, (_FACTORS, width))
        self.whole = Tensor(whole.astype(np.float32))

    def construct(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (self.kept(x.shape) / (1 - self.p)).astype(x.dtype)

    def kept(self, shape: tuple[int, ...]) -> Tensor:
        """1.0 where a value is kept and 0.0 elsewhere, fp32 of that shape, whose last size is the width."""
        rows = 1
        for size in shape[:-1]:
            rows *= size
        sums = _product(self._uniform(rows), self.whole)
        return ((sums - ops.floor(sums)) >= self.p).astype(ms.float32).reshape(shape)

    def _uniform(self, rows: int) -> Tensor:
        """fp32 (rows, 16) on [0, 1): rounds of multiply and xor-shift of int32, which wraps around."""
        x = counting(rows * _FACTORS) + self.stream
        x = _mixed(x) + _mixed(self.seed)
        x = ops.bitwise_and(_mixed(x), Tensor([_LOW_BITS], ms.int32))
        return (x.astype(ms.float32) / (_LOW_BITS + 1)).reshape((rows, _FACTORS))


def _mixed(x: Tensor) -> Tensor:
    """A one-to-one map of int32 that looks random; the factors are those of MurmurHash3's last step."""
    for factor, shift in ((-2048144789, 13), (-1028477387, 16)):
        x = ops.bitwise_xor(x, ops.floor_divide(x, Tensor([1 << shift], ms.int32))) * Tensor([factor], ms.int32)
    return ops.bitwise_xor(x, ops.floor_divide(x, Tensor([1 << 15], ms.int32)))

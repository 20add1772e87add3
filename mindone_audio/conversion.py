"""NumPy in, MindSpore out: what a processor returns becomes what a model takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore.common import np_dtype
from transformers import BatchFeature

FLOAT_TYPES = {
    ms.float16: np.float16,
    ms.bfloat16: np_dtype.bfloat16,
    ms.float32: np.float32,
    ms.float64: np.float64,
}
INTEGER_TYPES = (ms.int8, ms.int16, ms.int32, ms.int64, ms.uint8, ms.uint16, ms.uint32, ms.uint64)
INT32 = np.iinfo(np.int32)


def to_mindspore(inputs: Any, dtype: ms.Type | None = None) -> Any:
    """Turn NumPy values into MindSpore tensors of the types that models here take.

    | in | out |
    |---|---|
    | bool | bool |
    | any integer | int32: MindSpore's index type; a value that does not fit is an error, never wrapped |
    | any float | `dtype` (default float32) |

    An array that already has its final type, is contiguous and writable shares its memory with the tensor (0 copies:
    do not write to it afterwards); any other is copied once. Tensors are cast by the same rules.
    On a CPU keep float32: MindSpore has almost no bfloat16 operations there, and float16 is slow.

    Args:
        inputs: a mapping of names to values (dict, `BatchFeature`, `UserDict`), or one value. A value is an array, a
            MindSpore tensor, a number, or a (nested, rectangular) list of numbers.
        dtype: `ms.float16`, `ms.bfloat16`, `ms.float32` or `ms.float64`; usually `model.dtype`.

    Returns:
        For a mapping a `transformers.BatchFeature`: `inputs["input_ids"]`, `inputs.input_ids` and `**inputs` all work.
        For one value a tensor.

    Raises:
        TypeError: `dtype` is no MindSpore float type, or a value has no tensor form (None, strings, objects, complex).
        ValueError: an integer does not fit int32, or a list is ragged.
    """
    dtype = ms.float32 if dtype is None else dtype
    if dtype not in FLOAT_TYPES:
        raise TypeError(
            f"dtype={dtype!r} cannot hold audio features: pass mindspore.float32, float16, bfloat16 or float64"
        )
    if isinstance(inputs, Mapping):
        return BatchFeature({key: _to_tensor(value, dtype, f"input {key!r}") for key, value in inputs.items()})
    return _to_tensor(inputs, dtype, "the input")


def _to_tensor(value: Any, dtype: ms.Type, name: str) -> ms.Tensor:
    if isinstance(value, ms.Tensor):
        if value.dtype in FLOAT_TYPES:
            return value if value.dtype == dtype else value.astype(dtype)
        if value.dtype in (ms.bool_, ms.int32):
            return value
        value = value.asnumpy()
    elif isinstance(value, (bool, int, float, list, tuple, np.generic)):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name} is a list of unequal lengths: pad it first ({error})") from error
    elif not isinstance(value, np.ndarray):
        raise TypeError(
            f"{name} is a {type(value).__name__}, which has no tensor form: pass arrays, numbers or lists of numbers, "
            "and leave everything else out"
        )
    return share(np.require(value, _numpy_type(value, dtype, name), ["C", "W"]))


def share(array: np.ndarray) -> ms.Tensor:
    """A tensor of an array, in the array's own memory while MindSpore can do that: it says that it will not."""
    return ms.Tensor.from_numpy(array) if hasattr(ms.Tensor, "from_numpy") else ms.Tensor(array)


def _numpy_type(value: np.ndarray, dtype: ms.Type, name: str) -> type:
    """The NumPy type that `value` is given to MindSpore in."""
    if value.dtype.kind == "b":
        return np.bool_
    if value.dtype.kind == "f" or value.dtype == np_dtype.bfloat16:
        return FLOAT_TYPES[dtype]
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name} has the NumPy type {value.dtype}, which is no bool, integer or float: leave it out")
    if value.size and value.dtype.itemsize >= 4 and value.dtype != np.int32:
        for extreme in (int(value.min()), int(value.max())):
            if not INT32.min <= extreme <= INT32.max:
                raise ValueError(
                    f"{name} holds {extreme}, which does not fit int32 ({INT32.min} to {INT32.max}): "
                    "token ids and lengths must"
                )
    return np.int32

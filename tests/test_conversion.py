"""NumPy values become tensors of the documented types, never wrapped, and not copied where that can be avoided."""

import gc
from collections import UserDict

import mindspore as ms
import numpy as np
import pytest
from mindspore.common import np_dtype
from transformers import BatchFeature

from mindone_audio.conversion import to_mindspore

INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
FLOATS = [np.float16, np.float32, np.float64, np_dtype.bfloat16, ">f4"]


@pytest.mark.parametrize("kind", [dict, UserDict, BatchFeature])
def test_mapping(kind):
    inputs = kind({"input_ids": np.array([[1, 2]]), "input_features": np.ones((1, 2)), "mask": np.array([True])})
    tensors = to_mindspore(inputs)
    assert isinstance(tensors, BatchFeature)
    assert tensors.input_ids is tensors["input_ids"] and dict(**tensors).keys() == dict(inputs).keys()
    assert [value.dtype for value in tensors.values()] == [ms.int32, ms.float32, ms.bool_]
    assert tensors.input_ids.asnumpy().tolist() == [[1, 2]]


@pytest.mark.parametrize("source", INTEGERS)
def test_integers_become_int32(source):
    tensor = to_mindspore(np.array([[0, 1], [2, 100]], source))
    assert tensor.dtype == ms.int32 and tensor.asnumpy().tolist() == [[0, 1], [2, 100]]


@pytest.mark.parametrize("target", [ms.float16, ms.bfloat16, ms.float32, ms.float64])
@pytest.mark.parametrize("source", FLOATS)
def test_floats_become_dtype(source, target):
    array = np.array([0.5, -2.0], np.float32).astype(source)
    for value in (array, to_mindspore(array)):
        tensor = to_mindspore(value, target)
        assert tensor.dtype == target
        assert tensor.astype(ms.float32).asnumpy().tolist() == [0.5, -2.0]


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_an_integer_that_does_not_fit_is_named(value):
    for array in (np.array([0, value]), ms.Tensor(np.array([0, value]))):
        with pytest.raises(ValueError, match=rf"'input_ids' holds {value}, which does not fit int32"):
            to_mindspore({"input_ids": array})
    with pytest.raises(ValueError, match="holds 4294967295"):
        to_mindspore(np.array([2**32 - 1], np.uint32))


def test_int32_limits_fit():
    assert to_mindspore(np.array([2**31 - 1, -(2**31)])).asnumpy().tolist() == [2**31 - 1, -(2**31)]


def test_numbers_lists_and_tensors():
    assert to_mindspore(3).dtype == ms.int32 and to_mindspore(3).shape == ()
    assert to_mindspore(True).dtype == ms.bool_
    assert to_mindspore([[1.0, 2.0]], ms.float16).dtype == ms.float16
    assert to_mindspore(np.float64(2)).dtype == ms.float32
    assert to_mindspore(np.zeros((0, 3), np.int64)).shape == (0, 3)
    assert to_mindspore(ms.Tensor([1, 2], ms.int64)).dtype == ms.int32
    for tensor in (ms.Tensor([1], ms.int32), ms.Tensor([1.0], ms.float32), ms.Tensor([True])):
        assert to_mindspore(tensor) is tensor


@pytest.mark.parametrize(
    "value, error, message",
    [
        (None, TypeError, "'x' is a NoneType"),
        ("text", TypeError, "'x' is a str"),
        (["a", "b"], TypeError, "'x' has the NumPy type"),
        (np.array([object()]), TypeError, "'x' has the NumPy type object"),
        (np.ones(2, complex), TypeError, "complex128"),
        ([[1], [1, 2]], ValueError, "'x' is a list of unequal lengths"),
    ],
)
def test_values_without_a_tensor_form(value, error, message):
    with pytest.raises(error, match=message):
        to_mindspore({"x": value})


@pytest.mark.parametrize("dtype", [ms.int32, np.float32, "float32"])
def test_dtype_must_be_a_mindspore_float(dtype):
    with pytest.raises(TypeError, match="pass mindspore.float32"):
        to_mindspore({}, dtype)


def test_memory_is_shared_only_where_that_is_safe():
    array = np.zeros((4, 4), np.float32)
    tensor = to_mindspore(array)
    array[0, 0] = 7
    assert tensor.asnumpy()[0, 0] == 7

    array.flags.writeable = False  # a tensor can be written to: it must not be this memory
    tensor = to_mindspore(array)
    assert not np.shares_memory(tensor.asnumpy(), array)
    assert np.array_equal(to_mindspore(array.T[::2]).asnumpy(), array.T[::2])


def test_a_shared_array_outlives_its_name():
    tensor = to_mindspore(np.arange(100_000, dtype=np.float32))
    gc.collect()
    overwritten = [np.full(100_000, -1, np.float32) for _ in range(10)]
    assert np.array_equal(tensor.asnumpy(), np.arange(100_000, dtype=np.float32)) and overwritten

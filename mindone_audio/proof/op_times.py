"""`doctor --ops --time`: how long kernels of Qwen2-Audio-7B's graphs take on this device, beside what a chip allows.

docs/npu-estimate.md has the same kernels with their estimates, and how often the graphs run each.
"""

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.conversion import to_mindspore
from mindone_audio.machine import device
from mindone_audio.machine.ascend_errors import own_words
from mindone_audio.machine.chips import Speed, speed_by_name
from mindone_audio.machine.npu_smi import read_npu_smi, run_npu_smi
from mindone_audio.proof.kernel_cost import Array, Kernel

_DTYPES = {"BFloat16": ms.bfloat16, "Float16": ms.float16, "Float32": ms.float32}
_SECONDS, _FEWEST, _MOST = 0.5, 3, 41  # of rounds: they end after this time, but are so many
_LONG = 10**7  # bytes from which on a few repetitions of a kernel are enough
_mean = msops.auto_generate.MeanExt()


@dataclass(frozen=True)
class Timed:
    """A kernel, and a function of its inputs that runs it."""

    kernel: Kernel
    run: Callable


@dataclass(frozen=True)
class Time:
    """Microseconds of one kernel in a graph, with its launch, and at least by published figures (None: there are none).

    gigabytes and teraflops: how many a second it moved and computed. failure: the error message, where it did not run.
    """

    kernel: str
    dtype: str
    measured: float | None = None
    floor: float | None = None
    gigabytes: float | None = None
    teraflops: float | None = None
    failure: str = ""


class _Write(nn.Cell):
    """`ops.write_rows` of a table of its own."""

    def __init__(self, table: Array):
        super().__init__()
        self.table = Parameter(msops.zeros(table.shape, _DTYPES[table.dtype]), name="table", requires_grad=False)

    def construct(self, table, rows, values):
        return ops.write_rows(self.table, rows, values)


def kernels(dtype: str) -> list[Timed]:
    """What is timed, with the decoder's numbers in this dtype: of a decode step, of a prefill and of the encoder."""
    half, wide, whole = (partial(_array, name) for name in (dtype, "Float32", "Int32"))
    scores, mixed = msops.BatchMatMul(transpose_b=True), msops.BatchMatMul()
    query, cached, seen, frames = half(1, 32, 1, 128), half(1, 32, 1024, 128), (1, 32, 1, 1024), half(1, 20, 1500, 64)
    row, inner, among_frames, table = half(1, 4096), half(1, 11008), (1, 20, 1500, 1500), half(32 * 1024, 128)
    made = [  # primitive, function, inputs, output
        ("MatMul", ops.linear, [row, half(4096, 4096)], row),
        ("MatMul", ops.linear, [row, half(11008, 4096)], inner),
        ("MatMul", ops.linear, [inner, half(4096, 11008)], row),
        ("MatMul", ops.linear, [half(8, 4096), half(11008, 4096)], half(8, 11008)),
        ("MatMul", ops.linear, [half(640, 4096), half(4096, 4096)], half(640, 4096)),
        ("BatchMatMul", scores, [query, cached], half(*seen)),
        ("BatchMatMul", mixed, [half(*seen), cached], query),
        ("BatchMatMul", scores, [frames, frames], half(*among_frames)),
        ("Softmax", _run_softmax, [wide(*seen)], wide(*seen)),
        ("Softmax", _run_softmax, [wide(*among_frames)], wide(*among_frames)),
        ("MeanExt", _run_mean, [wide(1, 4096)], wide(1, 1)),
        ("Rsqrt", msops.rsqrt, [wide(1, 1)], wide(1, 1)),
        ("Cast", _run_cast, [row], wide(1, 4096)),
        ("Add", msops.add, [row, row], row),
        ("Mul", msops.mul, [half(640, 11008), half(640, 11008)], half(640, 11008)),
        ("SiLU", ops.silu, [inner], inner),
        ("Erf", msops.erf, [half(1500, 5120)], half(1500, 5120)),
        ("Concat", _run_concat, [row, row, row], half(1, 3 * 4096)),
        ("Transpose", _run_transpose, [half(1, 640, 96, 128)], half(1, 96, 640, 128)),
        ("Gather", ops.embed, [half(1024, 3, 128), whole(1, 1)], half(1, 1, 3, 128)),
        ("ScatterUpdate", _Write(table), [table, whole(32), half(32, 128)], table),
        ("Argmax", msops.Argmax(-1, ms.int32), [wide(1, 156032)], whole(1)),
    ]
    return [Timed(Kernel(name, tuple(inputs), (output,)), run) for name, run, inputs, output in made]


def _array(dtype: str, *shape: int) -> Array:
    return Array(dtype, shape)


def _run_softmax(x):
    return msops.softmax(x, -1)


def _run_mean(x):
    return _mean(x, (-1,), True)


def _run_cast(x):
    return x.astype(ms.float32) if x.dtype != ms.float32 else x.astype(ms.float16)  # a CPU has float32 alone


def _run_concat(a, b, c):
    return msops.concat((a, b, c), -1)


def _run_transpose(x):
    return msops.transpose(x, (0, 2, 1, 3))


class _Repeated(nn.Cell):
    """A kernel so many times in one graph, one after the other."""

    def __init__(self, run: Callable, times: int):
        super().__init__()
        self.run, self.times = run, times

    def construct(self, first, *others):
        result = self.run(first, *others)
        for _ in range(self.times - 1):
            result = self.run(ops.not_before(result, first), *others)
        return result


def measure() -> list[Time]:
    """Time all kernels in the dtype that models would have here: bfloat16, float16 on older chips, float32 on a CPU."""
    dtype = next(name for name, of in _DTYPES.items() if of == device.compute_dtypes()[-1])
    speed = _speed(dtype)
    return [_measure(timed, dtype, speed) for timed in kernels(dtype)]


def _speed(dtype: str) -> Speed | None:
    """The published speed of the NPUs here, if they are all of one kind and it is known."""
    if dtype == "Float32":  # a CPU's
        return None
    names = {npu.name for npu in read_npu_smi(partial(run_npu_smi, "/", os.environ)).devices}
    return speed_by_name(names.pop()) if len(names) == 1 else None


def _measure(timed: Timed, dtype: str, speed: Speed | None) -> Time:
    kernel, work = timed.kernel, timed.kernel.work
    floor = None if speed is None else work.seconds(speed) * 1e6
    try:
        seconds = seconds_of(timed)
    except (RuntimeError, TypeError, ValueError) as error:
        return Time(str(kernel), dtype, floor=floor, failure=own_words(str(error)) or type(error).__name__)
    return Time(str(kernel), dtype, seconds * 1e6, floor, work.nbytes / seconds / 1e9, work.operations / seconds / 1e12)


def seconds_of(timed: Timed) -> float:
    """Seconds of one kernel of many in a graph: what the call of a graph costs besides is not in it."""
    inputs = [_filled(array) for array in timed.kernel.inputs]
    more = 4 if timed.kernel.work.nbytes > _LONG else 64
    graphs = [ms.jit(_Repeated(timed.run, times).construct) for times in (1, 1 + more)]
    for graph in 2 * graphs:  # compiles them, and brings the inputs to the device
        _seconds(graph, inputs)
    found, end = [], perf_counter() + _SECONDS
    while len(found) < _FEWEST or (len(found) < _MOST and perf_counter() < end):
        once, often = (_seconds(graph, inputs) for graph in graphs)
        found.append((often - once) / more)
    return max(statistics.median(found), 1e-9)


def _filled(array: Array) -> Tensor:
    """A tensor of random numbers, or of 0, 1, 2, ... where it holds rows."""
    if array.dtype == "Int32":
        return Tensor(np.arange(array.size, dtype=np.int32).reshape(array.shape))
    values = np.random.default_rng(0).normal(size=4099).astype(np.float32)
    return to_mindspore(np.resize(values, array.shape), _DTYPES[array.dtype])


def _seconds(graph: Callable, inputs: list[Tensor]) -> float:
    start = perf_counter()
    graph(*inputs)
    device.synchronize()
    return perf_counter() - start


def format_times(times: list[Time]) -> str:
    """A table: a line for each kernel with the shapes that it reads."""
    width = max(len(time.kernel) for time in times)
    lines = [f"{'kernel':<{width}}  dtype     measured    at least      GB/s  TFLOP/s"]
    for time in times:
        start = f"{time.kernel:<{width}}  {time.dtype:<8}"
        if time.failure:
            lines.append(f"{start}  FAILED: {time.failure}")
            continue
        floor = f"{'—':>10}" if time.floor is None else f"{time.floor:>7.1f} µs"
        flops = f"{time.teraflops:>7.2f}" if time.teraflops else ""
        lines.append(f"{start}  {time.measured:>7.1f} µs  {floor}  {time.gigabytes:>8.1f}  {flops}".rstrip())
    return "\n".join(lines)

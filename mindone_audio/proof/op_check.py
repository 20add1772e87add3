"""Every operation of the models on this device against NumPy in double precision: how to find a wrong kernel."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import mindspore as ms
import numpy as np
from mindspore import nn

from mindone_audio.conversion import to_mindspore
from mindone_audio.machine.ascend_errors import own_words
from mindone_audio.machine.device import compute_dtypes
from mindone_audio.proof.experiments import EXPERIMENTS
from mindone_audio.proof.op_cases import Case, cases

# Relative error of a result, |ours - reference| / |reference|, that rounding explains: inputs are rounded before both
# sides see them, so what is left is a few roundings of 2**-24, 2**-11 or 2**-8 and the order of sums.
TOLERANCES = {ms.float32: 2e-5, ms.float16: 5e-3, ms.bfloat16: 3e-2}
NAMES = {ms.float32: "float32", ms.float16: "float16", ms.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Result:
    """Relative error of a case in a dtype; `failure` is the error message where it could not be run at all.

    words: of an experiment, what it showed, where a failed one has NaN for an error. seconds: of the first call, with
    what was compiled for it.
    """

    name: str
    dtype: str
    relative_error: float
    tolerance: float
    failure: str = ""
    words: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.failure and self.relative_error <= self.tolerance


class _Run(nn.Cell):
    """A case's function as a cell, so that it is compiled as the models are."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def construct(self, *inputs):
        return self.function(*inputs)


def check_ops(compiled: bool = True) -> list[Result]:
    """Run every case and every experiment in every dtype that this device computes in."""
    results = []
    for dtype in compute_dtypes():
        results += [_attempt(case.name, dtype, partial(_check, case, dtype, compiled)) for case in cases(dtype)]
        results += [_attempt(run.__name__, dtype, partial(_experiment, run, dtype)) for run in EXPERIMENTS]
    return results


def _attempt(name: str, dtype: ms.Type, run: Callable[[], Result]) -> Result:
    """The result of `run`, or the error that it raised."""
    start = perf_counter()
    try:
        return replace(run(), seconds=perf_counter() - start)
    except (RuntimeError, TypeError, ValueError) as error:
        failure = own_words(str(error)) or type(error).__name__
        return Result(name, NAMES[dtype], math.nan, TOLERANCES[dtype], failure, seconds=perf_counter() - start)


def _experiment(run: Callable, dtype: ms.Type) -> Result:
    verdict = run(dtype)
    return Result(run.__name__, NAMES[dtype], 0.0 if verdict.ok else math.nan, TOLERANCES[dtype], words=verdict.words)


def _check(case: Case, dtype: ms.Type, compiled: bool) -> Result:
    tensors = [to_mindspore(array, dtype) for array in case.floats] + [to_mindspore(array) for array in case.fixed]
    rounded = [tensor.astype(ms.float32).asnumpy().astype(np.float64) for tensor in tensors[: len(case.floats)]]
    expected = np.asarray(case.reference(*rounded, *case.fixed), np.float64)
    cell = case.run if isinstance(case.run, nn.Cell) else _Run(case.run)
    output = (ms.jit(cell.construct) if compiled else cell)(*tensors)
    actual = output.astype(ms.float32).asnumpy().astype(np.float64)
    if actual.shape != expected.shape:
        raise ValueError(f"the shape is {actual.shape} and should be {expected.shape}")
    error = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)
    return Result(case.name, NAMES[dtype], float(error), TOLERANCES[dtype])


def format_results(results: list[Result]) -> str:
    """A table: a line for each operation and dtype, those out of tolerance marked, and the verdicts in words."""
    width = max(len(result.name) for result in results)
    lines = [f"{'operation':<{width}}  {'dtype':<8}  relative error  tolerance  first call"]
    for result in results:
        start = f"{result.name:<{width}}  {result.dtype:<8}"
        if result.failure:
            lines.append(f"{start}  FAILED: {result.failure}")
        elif result.words:
            lines.append(f"{start}  {'' if result.passed else 'WRONG: '}{result.words}")
        else:
            numbers = f"{result.relative_error:>14.1e}  {result.tolerance:>9.0e}  {result.seconds:>8.2f} s"
            lines.append(f"{start}  {numbers}{'' if result.passed else '  OUTSIDE'}")
    wrong = [result for result in results if not result.passed]
    lines.append(f"{len(results) - len(wrong)} of {len(results)} within tolerance")
    return "\n".join(lines)

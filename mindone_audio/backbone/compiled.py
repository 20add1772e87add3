"""Cells compiled into graphs, whose memory is given back when nothing uses them any more.

MindSpore keeps what it compiled from a cell that is gone, with its parameters, until it is told. It is told here.
"""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count

import mindspore as ms
from mindspore import _c_expression, nn

from mindone_audio.machine import device
from mindone_audio.weights import compile_cache

_ONE_GRAPH = "increment"  # MindSpore's name for the phase of a cell that has one graph, whatever its arguments
_numbers = count()


def one_graph(cell: nn.Cell, what: str = "a graph") -> Callable:
    """The cell as one graph of the shapes that it is first called with: later calls do not look at theirs.

    A graph that this or another process has compiled before is loaded, see `compile_cache`. what: it is, for people who
    wait until it is compiled.
    """
    if not device.fixes_shapes():
        return graphs(cell, what)
    cell.phase = _ONE_GRAPH
    _release_with(cell, cell.phase_cache)
    compiled, called = ms.jit(cell.construct), False

    def run(*arguments):
        nonlocal called
        if called:
            return compiled(*arguments)
        output = compile_cache.first_call(cell, compiled, arguments, what)
        called = True
        return output

    return run


def graphs(cell: nn.Cell, what: str = "a graph") -> Callable:
    """The cell as a graph for each set of shapes that it is called with. what: as for `one_graph`."""
    compiled, number, phases = ms.jit(cell.construct), next(_numbers), {}

    def run(*arguments):
        before, key = cell.phase, f"graph.{number}.{[getattr(argument, 'shape', None) for argument in arguments]}"
        cell.phase = key  # under which MindSpore stores what it compiles
        try:
            with nullcontext() if key in phases else compile_cache.announced(what):
                return compiled(*arguments)
        finally:
            cell.phase = before
            phases[key] = cell.phase_cache.get(key, "")

    _release_with(run, phases)
    return run


def _release_with(owner, phases: dict[str, str]) -> None:
    weakref.finalize(owner, _release, phases).atexit = False


def _release(phases: dict[str, str]) -> None:
    device.synchronize()  # a run that has not ended uses what MindSpore would take away: it ended the process
    for name in ("JitExecutor_", "GraphExecutor_"):  # which of them compiles depends on MindSpore's version
        executor = getattr(_c_expression, name, None)
        if executor is not None:
            executor.get_instance().del_net_res(None, set(phases.values()))

"""What a compiled graph depends on, as one hash: two graphs that could differ in anything have different keys.

MindSpore's compiler bakes in the code, the structure of the cells, every plain attribute and constant tensor (its
values too), and the names, shapes and dtypes of parameters and arguments. All of it is part of the key, by value.
What is neither known nor listed here makes a graph one that has no key.
"""

import dataclasses
import enum
import functools
import hashlib
import inspect
import os
import platform
import sys
import types
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore._c_expression import MSContext, ms_ctx_param
from mindspore._c_expression import typing as ms_types
from mindspore.ops import Primitive

from mindone_audio.machine import device

PACKAGE = "mindone_audio"
_KNOWN_CODE = (PACKAGE, "mindspore", "mindone", "builtins", "collections")  # packages whose source or version is known
# What MindSpore keeps in every cell and no graph reads: its own bookkeeping.
_BOOKKEEPING = {
    *("_create_time", "_id", "_phase", "_phase_cache", "_compile_cache", "_compile_phase", "_compiled", "_init_flag"),
    *("arguments_key", "current_phase", "compile_phase", "_exist_objs", "_exist_names", "_is_check_and_refresh"),
    *("_lazy_construct_sig", "_jit_graph_name", "_scope", "_param_prefix", "is_top_cell", "_mutable_flags"),
    "__parse_method__",
}
# Settings of MindSpore that say where and how fast, not what is compiled.
_NOT_COMPILED = {
    *("device_id", "max_device_memory", "mempool_block_size", "_graph_memory_max_size", "variable_memory_max_size"),
    *("inter_op_parallel_num", "runtime_num_threads", "save_graphs", "save_graphs_path", "print_file_path"),
    *("enable_profiling", "profiling_options", "env_config_path", "op_timeout", "pynative_synchronize"),
    *("enable_compile_cache", "compile_cache_path", "cur_step_num", "need_ckpt", "save_checkpoint_steps"),
    *("last_triggered_step",),
}
_PLAIN = (
    *(bool, int, float, complex, str, bytes, type(None), type(Ellipsis), enum.Enum),
    *(np.generic, np.dtype, ms_types.Type),
)


class NoKey(Exception):
    """A graph depends on something that this module cannot tell from another thing of its kind."""


def graph_key(cell: nn.Cell, arguments: tuple) -> str:
    """The key of the graph that MindSpore makes of `cell` for arguments (tensors, of which only shape and dtype count,
    or constants): 64 hexadecimal digits, equal in every process. Raises `NoKey`."""
    walk = _Walk()
    structure = walk.describe(cell)
    shapes = [_shape(argument) if type(argument) is Tensor else walk.describe(argument) for argument in arguments]
    own = cell.parameters_dict()  # where MindSpore looks for the parameters of a graph that it loads
    if strangers := [p.name for p in walk.parameters if own.get(p.name) is not p]:
        raise NoKey(f"{', '.join(strangers)} would not be found by name")
    parts = (_environment(), _sources(), _outside(walk.classes), _run_time_code(walk.classes), structure, shapes)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class _Walk:
    """Describes values by nested tuples of plain ones; an object that it meets again is told by its number."""

    def __init__(self):
        self.classes: set[type] = set()
        self.parameters: list[Parameter] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []  # the id of one that is gone may be another's

    def describe(self, value) -> object:
        if isinstance(value, _PLAIN):
            return type(value).__name__, repr(value)
        if isinstance(value, (types.FunctionType, type)):
            return self._code(value)
        if isinstance(value, (list, tuple)) and not isinstance(value, nn.Cell):
            return type(value).__name__, [self.describe(item) for item in value]
        if isinstance(value, Mapping) and not isinstance(value, nn.Cell):  # in its order, which a loop would have
            return type(value).__name__, [(self.describe(key), self.describe(value[key])) for key in value]
        if isinstance(value, (set, frozenset)):
            return type(value).__name__, sorted(map(repr, map(self.describe, value)))
        if id(value) in self._numbers:
            return "again", self._numbers[id(value)]
        self._numbers[id(value)] = len(self._numbers)
        self._kept.append(value)
        return self._describe_object(value)

    def _describe_object(self, value) -> object:
        if isinstance(value, Parameter):
            self.parameters.append(value)
            return "parameter", value.name, *_shape(value), value.requires_grad
        if isinstance(value, Tensor):
            values = value.astype(ms.float32) if value.dtype == ms.bfloat16 else value  # which NumPy does not have
            return "tensor", *_shape(value), hashlib.sha256(values.asnumpy().tobytes()).hexdigest()
        if isinstance(value, np.ndarray):
            return "array", value.shape, str(value.dtype), hashlib.sha256(value.tobytes()).hexdigest()
        if isinstance(value, nn.Cell):
            own = {name: self.describe(item) for name, item in vars(value).items() if _counts(name, item)}
            return "cell", self._code(type(value)), sorted(own.items())
        if isinstance(value, Primitive):
            own = {name: self.describe(item) for name, item in vars(value).items()}
            return "primitive", self._code(type(value)), value.name, sorted(own.items()), self.describe(value.attrs)
        if dataclasses.is_dataclass(value):
            own = {field.name: self.describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return "dataclass", self._code(type(value)), sorted(own.items())
        if isinstance(value, functools.partial):
            return "partial", self.describe(value.func), self.describe(value.args), self.describe(value.keywords)
        raise NoKey(f"{type(value).__module__}.{type(value).__qualname__} is not known")

    def _code(self, value: types.FunctionType | type) -> tuple:
        module = _module(value)
        if module.partition(".")[0] not in _KNOWN_CODE:
            raise NoKey(f"{module}.{value.__qualname__} is of another package")
        if isinstance(value, type):
            self.classes.add(value)
            return "class", module, value.__qualname__
        closure = [self.describe(cell.cell_contents) for cell in value.__closure__ or ()]
        return "function", module, value.__qualname__, _code_digest(value.__code__), closure


def _counts(name: str, value) -> bool:
    """Whether a graph may depend on an attribute of a cell: not where MindSpore makes it empty when it is asked for."""
    return name not in _BOOKKEEPING and not (name.startswith("_lazy_") and not value)


def _module(value: types.FunctionType | type) -> str:
    return getattr(value, "__module__", None) or ""  # MindSpore has classes without


def _shape(tensor: Tensor) -> tuple:
    return tuple(tensor.shape), str(tensor.dtype)


@functools.cache
def _code_digest(code: types.CodeType) -> str:
    constants = [_constant(value) for value in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, code.co_varnames, constants)).encode()).hexdigest()


def _constant(value: object) -> object:
    """A constant of compiled code; a set's order is another one in every process."""
    if isinstance(value, types.CodeType):
        return _code_digest(value)
    if isinstance(value, (tuple, frozenset)):
        parts = map(repr, map(_constant, value))
        return type(value).__name__, list(parts) if isinstance(value, tuple) else sorted(parts)
    return repr(value)


def _environment() -> tuple:
    """Versions, the device, and the settings of MindSpore that its compiler may read."""
    context = MSContext.get_instance()
    names = sorted(set(ms_ctx_param.__members__) - _NOT_COMPILED)
    settings = [(name, repr(context.get_param(ms_ctx_param.__members__[name]))) for name in names]
    variables = sorted((name, value) for name, value in os.environ.items() if name.startswith("MS_"))
    devices = (device.scatters_rows(), device.shares_memory())
    return _versions(), devices, settings, repr(ms.get_context("jit_config")), variables


@functools.cache
def _versions() -> tuple:
    commit = Path(ms.__file__).with_name(".commit_id")
    return (
        *(ms.__version__, commit.read_text() if commit.exists() else "", metadata.version("mindone")),
        np.__version__,
        *(platform.python_version(), platform.machine()),
    )


def source_stamps(package: Path) -> tuple:
    """Paths, sizes and times of all source files of a package."""
    files = ((file, file.stat()) for file in sorted(package.rglob("*.py")))
    return tuple((file, status.st_size, status.st_mtime_ns) for file, status in files)


_PACKAGE = Path(__file__).parents[1]
_IMPORTED = source_stamps(_PACKAGE)


def _sources() -> str:
    """Every source file of this package: which of them a graph is built from is not worth a guess.

    Raises `NoKey` where one was changed since the import: MindSpore's compiler reads it now, Python has read it then.
    """
    if source_stamps(_PACKAGE) != _IMPORTED:
        raise NoKey("the source files have changed since they were imported")
    return source_digest(_PACKAGE, _IMPORTED)


@functools.cache
def source_digest(package: Path, stamps: tuple) -> str:
    """A hash of the names and bytes of the files that `source_stamps` found."""
    digest = hashlib.sha256()
    for file, *_ in stamps:
        digest.update(repr((file.relative_to(package).as_posix(), file.read_bytes())).encode())
    return digest.hexdigest()


def _outside(classes: set[type]) -> list[str]:
    """The source files of the classes of mindone, which may be changed where it is installed to be edited."""
    bases = {base for known in classes for base in known.__mro__ if base.__module__.partition(".")[0] == "mindone"}
    return sorted({_file_digest(inspect.getfile(base)) for base in bases})


@functools.cache
def _file_digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _run_time_code(classes: set[type]) -> list[tuple]:
    """Constants and functions of the modules that the cells' code can reach, as they are now and not in the files."""
    waiting, seen, found = {known.__module__ for known in classes}, set(), []
    while waiting:
        name = waiting.pop()
        seen.add(name)
        if name.partition(".")[0] != PACKAGE or name not in sys.modules:
            continue
        module = sys.modules[name]
        for own, value in vars(module).items():
            if own.startswith("__"):  # among them what MindSpore's parser puts there
                continue
            if isinstance(value, types.ModuleType):
                if not hasattr(module, "__path__"):  # a package has what was imported of it so far
                    waiting |= {value.__name__} - seen
            elif isinstance(value, (types.FunctionType, type)):
                waiting |= {_module(value)} - seen
                found.append((name, own, _module(value), value.__qualname__, _codes(value)))
            elif _is_plain(value):
                found.append((name, own, repr(value)))
    return sorted(found)


def _codes(value: types.FunctionType | type) -> list[str]:
    functions = [value] if isinstance(value, types.FunctionType) else vars(value).values()
    return [_code_digest(f.__code__) for f in functions if isinstance(f, types.FunctionType)]


def _is_plain(value) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, _PLAIN)

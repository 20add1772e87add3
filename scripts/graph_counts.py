"""What a compiled graph runs: kernels, their work, and which of them a fused kernel could replace, read from its dump.

MindSpore writes the text with MS_DEV_SAVE_GRAPHS=2 and MS_DEV_DUMP_IR_PASSES=validate in the environment.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from mindone_audio.machine.chips import Speed
from mindone_audio.proof.kernel_cost import PRODUCTS, Array, Kernel, Work

# Seconds that the device needs to begin a kernel, of the matrix unit and another: msmodeling's `ATLAS_800.STATIC_COST`.
BEGIN_PRODUCT, BEGIN_OTHER = 5e-6, 2e-6
_NODE = re.compile(
    r"^  (%\d+)\([^\n]*?\) = (?:PrimFunc_)?([^\n(]+)\(([\s\S]*?)"  # its name, its primitive, what it takes
    r"\n {6}: \(([^\n]*)\) -> \(([^\n]*)\)\n",  # its types
    re.MULTILINE,
)
_NAME = re.compile(r"%(?:para)?\d+")  # a parameter's goes on with words, which can differ between its places
_ARRAY = re.compile(r"Tensor\[(\w+)\]\]?, \(([\d, ]*)\)")
_ARRAYS = re.compile(r"Tuple\[Tensor\[(\w+)\](?:\*\d+)?\], TupleShape\((.*?)\)(?:, elements|>)")
# They run nothing: what they give is their first input's memory. So is what TupleGetItem gives.
_VIEWS = {"Depend", "ExpandDims", "Load", "Reshape"}
# What one kernel of CANN could do instead of several of ours: a kernel, and after it those whose results it must read.
_SCORES = ("Cast", "BatchMatMul")
_VARIANCE = ("Rsqrt", ("Add", ("MeanExt", "Mul")))
FUSED = {
    "flash attention": [
        ("BatchMatMul", ("Cast", ("Softmax", ("Add", _SCORES)))),
        ("BatchMatMul", ("Cast", ("Softmax", _SCORES))),
    ],
    "rms_norm": [("Mul", ("Cast", ("Mul", "Cast", _VARIANCE)))],
    "layer_norm": [("Cast", ("Add", ("Mul", ("Mul", ("Sub", "Cast", "MeanExt"), _VARIANCE), "Cast"), "Cast"))],
    "rotary positions": [("Add", "Mul", ("Mul", ("Concat", "SplitWithSize")))],
    "swiglu": [("Mul", "SiLU")],
    "one product for queries, keys, values": [("Concat", *[("Add", "MatMul")] * 3), ("Concat", *["MatMul"] * 3)],
    "gelu": [("Mul", ("Add", ("Muls", ("Erf", "Muls"))))],
}


@dataclass
class Counts:
    """Kernels of a graph, the work of what would be one fused kernel each, and bytes of weights and cache."""

    kernels: Counter[Kernel] = field(default_factory=Counter)
    fused: Counter[tuple[str, Work]] = field(default_factory=Counter)
    replaced: Counter[tuple[str, Kernel]] = field(default_factory=Counter)
    held: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        both = (self.kernels + other.kernels, self.fused + other.fused, self.replaced + other.replaced)
        return Counts(*both, max(self.held, other.held))  # graphs of one model share them

    @property
    def work(self) -> Work:
        works = [(kernel.work, count) for kernel, count in self.kernels.items()]
        return Work(sum(w.nbytes * n for w, n in works), sum(w.operations * n for w, n in works))

    def floor(self, speed: Speed) -> float:
        """Seconds that all kernels take at least, one after the other."""
        return sum(kernel.work.seconds(speed) * count for kernel, count in self.kernels.items())

    def begun(self) -> float:
        """Seconds that the device needs besides, to begin them."""
        return sum((BEGIN_PRODUCT if k.primitive in PRODUCTS else BEGIN_OTHER) * n for k, n in self.kernels.items())


def extrapolated(one: Counts, two: Counts, layers: int) -> Counts:
    """The counts for so many layers, of those with one and two."""

    def line(first: Counter, second: Counter) -> Counter:
        return Counter({key: first[key] + (layers - 1) * (second[key] - first[key]) for key in first | second})

    held = one.held + (layers - 1) * (two.held - one.held)
    made = Counts(line(one.kernels, two.kernels), line(one.fused, two.fused), line(one.replaced, two.replaced), held)
    if min([*made.kernels.values(), *made.fused.values()]) < 0:
        raise ValueError("a graph of two layers has fewer kernels of a kind than that of one")
    return made


def arrays(text: str) -> tuple[Array, ...]:
    """The tensors of a type, such as <Tensor[Float32], (2, 3)>, or of a tuple's."""
    if found := _ARRAYS.search(text):
        shapes = re.findall(r"\(([\d, ]*)\)", found[2])
    elif found := _ARRAY.search(text):
        shapes = [found[2]]
    elif "Tensor" in text:
        raise ValueError(f"this type cannot be read: {text[:200]}")
    else:
        return ()
    return tuple(Array(found[1], tuple(map(int, re.findall(r"\d+", shape)))) for shape in shapes)


def read_graph(text: str) -> Counts:
    """Count what a graph runs, of the text that MindSpore dumps of it. Raises `ValueError` for what it cannot read."""
    nodes = _NODE.findall(text)
    if len(nodes) != len(re.findall(r"^  %\d+\(", text, re.MULTILINE)) or text.count("\nsubgraph @") != 1:
        raise ValueError("this dump has nodes of another form, or graphs within the graph")
    types = dict(re.findall(r"^(%para\d+)[\w.]*: (<.*>)", text, re.MULTILINE))
    counts = Counts(held=sum(a.nbytes for t in types.values() if "is_param" in t for a in arrays(t)))
    values: dict[str, list[tuple[str, str]]] = {}  # what a node is a view of: which kernel gave it, and as which node
    runs: dict[str, tuple[Kernel, list[tuple[str, str]]]] = {}  # a kernel, and what it reads

    def read(names: list[str]) -> list[tuple[str, str]]:
        return [value for name in names for value in values.get(name, [(name, name)])]

    for name, primitive, given, inputs, outputs in nodes:
        types[name] = outputs
        given = re.findall(_NAME, given)
        if primitive == "TupleGetItem":
            values[name] = [(kernel, name) for kernel, _ in read(given)]
        elif primitive in _VIEWS:
            values[name] = read(given[:1])
        elif primitive == "MakeTuple":
            values[name] = read(given)
        elif primitive == "UpdateState":
            values[name] = []  # an order, and no value
        else:
            kernel = Kernel(primitive, _read_once(given, inputs, types), arrays(outputs))
            _ = kernel.work  # refuses what it does not know
            counts.kernels[kernel] += 1
            runs[name] = kernel, read(given)
    wanted = {one for one, _ in read(re.findall(_NAME, re.search(r"^  Return\((.*?)\) ", text, re.MULTILINE)[1]))}
    for family, patterns in FUSED.items():
        for group in [found for name in runs for pattern in patterns if (found := _match(name, pattern, runs))]:
            counts.replaced.update((family, runs[name][0]) for name in group)
            counts.fused[family, _as_one(group, runs, types, wanted)] += 1
    return counts


def _read_once(given: list[str], declared: str, types: dict[str, str]) -> tuple[Array, ...]:
    """The arrays that a kernel reads, constants too, in their order: what it takes twice it reads once."""
    nodes, seen, taken = iter([name for name in given if arrays(types[name])]), set(), []
    for text in re.findall(r"<[^<>]*>", declared):
        if found := arrays(text):
            name = text if "value=" in text else next(nodes)
            taken += [] if name in seen else found
            seen |= {name} - {text}
    return tuple(taken)


def _match(name: str, pattern: str | tuple, runs: dict) -> set[str]:
    """The kernels from this one back that have the form of a pattern; none if they have not."""
    primitive, *parts = (pattern,) if isinstance(pattern, str) else pattern
    if name not in runs or runs[name][0].primitive != primitive:
        return set()
    found = {name}
    for part in parts:
        fitting = (_match(kernel, part, runs) for kernel, _ in runs[name][1])
        more = next((group for group in fitting if not group <= found), None)
        if more is None:
            return set()
        found |= more
    return found


def _as_one(group: set[str], runs: dict, types: dict[str, str], wanted: set[str]) -> Work:
    """The work of a group as one kernel: it reads what others give it, and writes what others take."""
    given = {value for name in group for kernel, value in runs[name][1] if kernel not in group}
    taken = {kernel for name, run in runs.items() if name not in group for kernel, _ in run[1]} | wanted
    nbytes = sum(array.nbytes for name in [*given, *(group & taken)] for array in arrays(types[name]))
    return Work(nbytes, sum(runs[name][0].work.operations for name in group))

"""docs/architecture.md names what exists: every code span in it is a path, a name of the library, or a command."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mindone_audio"
PAGE = ROOT / "docs" / "architecture.md"
FENCED = re.compile(r"```.*?\n(.*?)```", re.DOTALL)
PATH = re.compile(r"[\w.-]+(/[\w.-]*)+|[\w-]+\.(py|sh|md|json|jsonl|yaml|txt|toml)")
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
SETTING = re.compile(r"(\w+)=\w+")  # such as compile=False
COMMANDS = ("python ", "bash ", "mindone-audio ")
QUESTIONS = ("the log-mel", "the KV cache", "the stop strings", "the LoRA layer", "driver's version", "tokenizer")


def spans(text: str) -> list[str]:
    """The code spans of a page, those of fenced blocks left out."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text))


@cache
def definitions(file: Path) -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """What a file defines at its top level, and the methods and fields of its classes."""
    top, members = set(), {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        top |= _bound(node)
        if isinstance(node, ast.ClassDef):
            inner = set().union(*map(_bound, node.body))
            for method in node.body:  # also what a method gives the object
                inner |= {a.attr for a in ast.walk(method) if isinstance(a, ast.Attribute) and _is_self(a.value)}
            members[node.name] = frozenset(inner)
    return frozenset(top), members


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _bound(node: ast.AST) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    found = [inner for target in targets if target is not None for inner in ast.walk(target)]
    return {inner.id for inner in found if isinstance(inner, ast.Name)}


def exists(span: str) -> bool:
    """Whether a code span is of something that is there.

    Paths are those of the repository, of the package or, for a bare file name, of anywhere below the root. A name is a
    module, class, function or constant of the library (one without dots may be of scripts/ or tests/); what stands
    before its last dot is its module or class.
    """
    if span.startswith(COMMANDS):
        return all(exists(word) for word in span.split()[1:] if word.endswith((".py", ".sh")))
    if PATH.fullmatch(span):
        return any((folder / span).exists() for folder in (ROOT, PACKAGE)) or (
            "/" not in span and any(ROOT.glob(f"[a-z]*/**/{span}"))
        )
    if setting := SETTING.fullmatch(span):
        return any(re.search(rf"\b{setting[1]}\b", file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py"))
    if not NAME.fullmatch(span):
        return False
    *owners, name = span.split(".")
    if owners[:1] == ["mindone_audio"]:
        owners = owners[1:]
    if not owners:
        files = [file for folder in (PACKAGE, ROOT / "scripts", ROOT / "tests") for file in folder.rglob("*.py")]
        return any(file.stem == name or name in definitions(file)[0] for file in files)
    if (PACKAGE.joinpath(*owners, name)).is_dir() or PACKAGE.joinpath(*owners, f"{name}.py").exists():
        return True
    for file in PACKAGE.rglob("*.py"):
        module = file.relative_to(PACKAGE).with_suffix("").parts
        module = module[:-1] if module[-1] == "__init__" else module
        top, members = definitions(file)
        if module and list(module[-len(owners) :]) == owners and name in top:
            return True
        if owners[-1] in members and name in members[owners[-1]]:
            return len(owners) == 1 or list(module[1 - len(owners) :]) == owners[:-1]
    return False


def test_every_name_on_the_page_exists():
    text = PAGE.read_text(encoding="utf-8")
    named = spans(text)
    assert len(named) > 40
    assert [line for line in FENCED.sub("", text).splitlines() if line.count("`") % 2] == []  # a span is on one line
    assert [span for span in named if not exists(span)] == []


def floors() -> list[list[str]]:
    """The rooms of the picture, from the top floor down."""
    picture = FENCED.search(PAGE.read_text(encoding="utf-8"))[1]
    return [line.split() for line in re.findall(r"^((?:[a-z_]+(?:/|\.py) *)+)", picture, re.MULTILINE)]


def imported_rooms(file: Path) -> set[str]:
    """The rooms of the package that a file imports from, also within functions."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    firsts = {name.split(".")[1] for name in modules if name.startswith("mindone_audio.")}
    return {f"{first}.py" if (PACKAGE / f"{first}.py").exists() else f"{first}/" for first in firsts}


def test_imports_go_down_only():
    """A room imports from the floors below it, `cli.py` also from its neighbour `commands/`."""
    floor = {room: number for number, rooms in enumerate(floors()) for room in rooms}
    upward = []
    for room in floor:
        for file in (PACKAGE / room).rglob("*.py") if room.endswith("/") else [PACKAGE / room]:
            for other in (imported_rooms(file) & set(floor)) - {room}:
                if floor[other] <= floor[room] and (room, other) != ("cli.py", "commands/"):
                    upward.append((str(file.relative_to(PACKAGE)), other))
    assert upward == []


def test_every_room_in_the_picture_exists():
    named = {room for rooms in floors() for room in rooms}
    assert len(named) >= 12
    assert [room for room in named if not (PACKAGE / room).exists()] == []
    there = {f"{folder.name}/" for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    there |= {file.name for file in PACKAGE.glob("*.py") if not file.name.startswith("_")}
    assert there <= named


def test_the_page_says_where_things_are():
    text = PAGE.read_text(encoding="utf-8")
    assert [question for question in QUESTIONS if question not in text] == []


@pytest.mark.parametrize(
    "span, right",
    [
        ("mindone_audio/backbone/ops.py", True),
        ("backbone/ops.py", True),
        ("tests/", True),
        ("backbone/no_such_file.py", False),
        ("record_parity.py", True),
        ("no_such_file.py", False),
        ("inputs.log_mel.log_mels", True),
        ("log_mel.no_such_function", False),
        ("KVCache", True),
        ("KVCache.update_nothing", False),
        ("KVCache.clear", True),
        ("backbone.cache.KVCache.clear", True),
        ("NoSuchClass", False),
        ("compile=False", True),
        ("no_such_keyword=False", False),
        ("python scripts/record_parity.py", True),
        ("python scripts/no_such_file.py", False),
        ("two words", False),
    ],
)
def test_what_does_not_exist_is_found(span, right):
    assert exists(span) is right

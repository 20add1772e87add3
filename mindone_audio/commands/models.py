"""`mindone-audio models`: the families, which checkpoints they load, and what was proved of them."""

import argparse
import ast
import json
from importlib.util import find_spec
from pathlib import Path

# What a family's file says of itself, besides its docstring.
_CONSTANTS = ("CHECKPOINTS", "PROVED")


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("models", help="list the model families")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print them."""
    found = families()
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for name, facts in found.items():
        print(f"{name}\n  {facts['about']}\n  checkpoints: {', '.join(facts['checkpoints'])}")
        print(f"  proved: {facts['proved']}")
    return 0


def families() -> dict[str, dict]:
    """Facts by model_type, read from the files without importing them, which takes seconds."""
    folder = Path(find_spec("mindone_audio.models").submodule_search_locations[0])
    found = {}
    for file in sorted([*folder.glob("*.py"), *folder.glob("*/model.py")]):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants = {
            node.targets[0].id.lower(): ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in _CONSTANTS
        }
        if constants:
            name = file.parent.name if file.stem == "model" else file.stem
            found[name] = {"about": (ast.get_docstring(tree) or "").splitlines()[0], **constants}
    return dict(sorted(found.items()))

"""Every family has what docs/adding-a-family.md asks of it."""

import re
from pathlib import Path

import pytest
from families import ROWS

import mindone_audio
from mindone_audio.commands.models import families as described
from mindone_audio.models import FAMILIES, family, known_families

ROOT = Path(__file__).parent.parent
TESTS, EXAMPLES = ROOT / "tests", ROOT / "examples"
# Encoder-decoder models, and those that speak, are compared in test modules of their own.
OWN_TESTS = {
    "seamless_m4t_v2": "test_seamless.py",
    "speecht5": "test_speecht5.py",
    "whisper": "test_whisper.py",
}
# Those of which nothing is taught: `is_taught` is False, or they are taught transcripts in a test of their own.
TAUGHT_ELSEWHERE = {"seamless_m4t_v2", "speecht5", "whisper"}


def module_name(name: str) -> str:
    return FAMILIES[name].split(".")[0]


@pytest.fixture(params=known_families())
def name(request):
    return request.param


def test_it_says_what_it_is(name):
    facts = described()[module_name(name)]
    assert facts["about"] and facts["checkpoints"]
    assert "float32 on CPU against" in facts["proved"]


def test_it_is_compared_with_pytorch(name):
    rows = [row.name for row in ROWS if row.name.startswith(name)]
    assert rows or (TESTS / OWN_TESTS[name]).exists()


def test_its_classes_are_public(name):
    module = family(_model_type(name))
    classes = {module.MODEL.__name__, module.PROCESSOR.__name__}
    assert classes <= set(mindone_audio.__all__)


def test_it_has_an_example(name):
    module = family(_model_type(name))
    texts = [file.read_text(encoding="utf-8") for file in EXAMPLES.glob("*.py")]
    assert any(checkpoint in text for checkpoint in module.CHECKPOINTS for text in texts)


def test_the_readme_lists_it(name):
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## Families")[1]
    assert re.search(rf"^\| [^|]*`{name}`", table, re.M)


def test_it_is_taught_in_the_tests(name):
    text = (TESTS / "test_finetune_collator.py").read_text(encoding="utf-8")
    newer = (TESTS / "helpers_transformers5.py").read_text(encoding="utf-8")
    assert name in TAUGHT_ELSEWHERE or f'"{name}":' in text or re.search(rf'^FAMILIES = .*"{name}"', newer, re.M)


def _model_type(name: str) -> str:
    return "llama" if name == "ichigo" else name

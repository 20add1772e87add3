"""MindONE's parts are imported without its models, and MindONE is whole for who imports it besides."""

import subprocess
import sys
from pathlib import Path

import pytest

OURS = "from mindone_audio.backbone.mindone import PreTrainedModel as Ours"
FEW = """
import sys
assert sum(name.startswith("mindone.transformers") for name in sys.modules) < 100 and "sklearn" not in sys.modules
"""
WHOLE = """
import mindone.transformers as whole
from mindone.transformers import PreTrainedModel
from mindone.transformers.generation import LogitsProcessorList
assert whole.PreTrainedModel is PreTrainedModel is Ours is whole.modeling_utils.PreTrainedModel
assert issubclass(whole.Qwen2AudioForConditionalGeneration, Ours) and whole.generation.configuration_utils
assert whole.__version__ == "4.57.1" and "LogitsProcessorList" in dir(whole.generation)
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(f"{OURS}\n{FEW}{WHOLE}", id="ours first"),
        pytest.param(f"import mindone.transformers\n{OURS}\n{WHOLE}", id="the whole first"),
    ],
)
def test_both_are_of_the_same_classes(program):
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr

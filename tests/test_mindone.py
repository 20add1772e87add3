"""MindONE's parts are imported without its models, and MindONE is whole for who imports it besides."""

import subprocess
import sys
from pathlib import Path

import pytest

OURS = "from mindone_audio.backbone.mindone import PreTrainedModel"
WHOLE = "import mindone.transformers as whole"
COUNT = "import sys; few = sum(name.startswith('mindone.transformers') for name in sys.modules) < 100"
SAME = "assert issubclass(whole.Qwen2AudioForConditionalGeneration, PreTrainedModel)"


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(f"{OURS}; {COUNT}; assert few; {WHOLE}; {SAME}", id="ours first"),
        pytest.param(f"{WHOLE}; {OURS}; {SAME}", id="the whole first"),
    ],
)
def test_both_are_of_the_same_classes(program):
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr

"""Goldens of what only transformers 5 has, or only it saves so, into tests/goldens.

python -m venv reference && reference/bin/pip install -r scripts/reference/transformers5/requirements.txt
reference/bin/python scripts/reference/transformers5/record.py
"""

import copy
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "scripts", "scripts/reference")]

import helpers  # noqa: E402
import record_parity  # noqa: E402

COMMAND = "python scripts/reference/transformers5/record.py"


def write(folder: Path, model, cases: dict) -> None:
    """A checkpoint with weights rounded to bfloat16, half the bytes, and a recording of each case in float32."""
    copy.deepcopy(model).bfloat16().save_pretrained(folder)  # a copy, because this rounds buffers as well
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    for case, inputs in cases.items():
        arrays = helpers.record_case(model, inputs(), new_tokens=24)
        record_parity.save(arrays, folder / f"{case.replace(' ', '_')}.safetensors", model, command=COMMAND)


def main() -> None:
    """Write every golden."""
    goldens = ROOT / "tests" / "goldens"
    model = helpers.torch_model(helpers.tiny_config())
    write(goldens / "qwen2_audio_transformers5", model, helpers.qwen2_audio_cases())


if __name__ == "__main__":
    main()

"""Settings of the whole suite."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# The models are tiny: threads of PyTorch and MindSpore would only wait for each other, for minutes on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

torch.set_num_threads(1)

# The suite's own graphs, not the user's; a run compiles what has changed since the last one.
os.environ.setdefault("MINDONE_AUDIO_COMPILE_CACHE", str(Path(__file__).parents[1] / "build" / "graphs"))

from mindone_audio.machine import device  # noqa: E402

device.prepare()  # has an effect before the first operation alone, and tests run some before they make a model

# The files that take longest, so that neither of two processes is left with one of them at the end.
LONGEST = (
    *("lora_sounds", "long_life", "benchmark", "finetune_end", "finetune_trainer", "finetune_lora", "finetune_command"),
    *("families", "ascend_kernels", "compile_cache", "ascend_branch", "documents", "mindone", "generation", "parity"),
)


def pytest_collection_modifyitems(items) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))  # stable: the others stay as they were


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A folder with cert.pem for localhost and 127.0.0.1, its key.pem, and the same key with a password."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem"
        " -addext subjectAltName=DNS:localhost,IP:127.0.0.1",
        "rsa -in key.pem -aes128 -passout pass:secret -out locked.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder

"""Settings of the whole suite."""

import os
from pathlib import Path

import torch

# The models are tiny: PyTorch's threads would only wait for each other, and for minutes on a busy machine.
torch.set_num_threads(1)

# The suite's own graphs, not the user's; a run compiles what has changed since the last one.
os.environ.setdefault("MINDONE_AUDIO_COMPILE_CACHE", str(Path(__file__).parents[1] / "build" / "graphs"))

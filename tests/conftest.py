"""Settings of the whole suite."""

import torch

# The models are tiny: PyTorch's threads would only wait for each other, and for minutes on a busy machine.
torch.set_num_threads(1)

"""What the tests of the bodies share: PyTorch's weights in our cells, and small random bodies."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor, nn
from random_weights import randomise_parameters

from mindone_audio.backbone.compiled import graphs
from mindone_audio.backbone.conformer import ConformerConfig, ConformerEncoder
from mindone_audio.backbone.layers import name_parameters
from mindone_audio.backbone.vocoder import CodeHifiGan, HifiGan, PredictDurations, VocoderConfig
from mindone_audio.models.speecht5.encoder import StackConfig, TextEncoder
from mindone_audio.models.speecht5.wave_encoder import WaveConfig, WaveEncoder
from mindone_audio.weights.parameters import Prefixes, replace_prefix
from mindone_audio.weights.weight_norm import fold_weight_norm


def random_module(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """In evaluation, with weights and buffers that all matter."""
    torch.manual_seed(seed)
    randomise_parameters(module.eval())
    for name, buffer in module.named_buffers():
        if name in ("mean", "scale"):
            buffer.uniform_(0.5, 1.5)
    return module


def load(cell: nn.Cell, module: torch.nn.Module, ignored: tuple[str, ...] = (), prefixes: Prefixes = ()) -> nn.Cell:
    """Give every parameter the tensor of its name in the module's state; all names but the ignored must be the same.

    prefixes: how names begin there and here.
    """
    state = {replace_prefix(name, prefixes): value.numpy() for name, value in module.state_dict().items()}
    tensors = fold_weight_norm(state)
    parameters = dict(cell.parameters_and_names())
    assert set(parameters) == set(tensors) - set(ignored)
    for name, parameter in parameters.items():
        assert parameter.shape == tensors[name].shape, name
        parameter.set_data(Tensor(tensors[name].copy()))
    return cell.set_train(False)


def int32(values) -> Tensor:
    return Tensor(np.array(values, np.int32))


def numpy_of(tensor: Tensor) -> np.ndarray:
    return tensor.astype(ms.float32).asnumpy()


def wrong_parameters(cell: nn.Cell, run, expected: np.ndarray, tolerance: float) -> list[str]:
    """The names of the parameters of which a change by some 2 % leaves what `run` gives within the tolerance."""
    unnoticed = []
    for name, parameter in cell.parameters_and_names():
        value = parameter.asnumpy().copy()
        parameter.set_data(Tensor(value * 1.02 + 0.03 * np.abs(value).mean(), ms.float32).reshape(value.shape))
        if not np.abs(run() - expected).max() / np.abs(expected).max() > tolerance:
            unnoticed.append(name)
        parameter.set_data(Tensor(value))
    return unnoticed


VOCODER = VocoderConfig(
    in_channels=10,
    upsample_initial_channel=16,
    upsample_rates=(3, 2),
    upsample_kernel_sizes=(7, 5),  # 5 over 2: a length that is no multiple
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 3), (1, 2)),
    leaky_relu_slope=0.1,
    normalize_before=True,
)
CONFORMER = ConformerConfig(
    num_mel_bins=10,
    num_mel_frames=128,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=3,
    left_positions=5,
    right_positions=3,
    conv_kernel=7,
    chunk_size=11,
    left_chunks=1,
    num_adapters=1,
    adapter_kernel=8,
    adapter_stride=8,
)
WAVE = WaveConfig(
    stack=StackConfig(hidden_size=24, intermediate_size=40, num_layers=2, num_heads=3, max_distance=4),
    longest=3000,
    conv_dim=(12, 16, 10),
    conv_kernel=(10, 3, 2),
    conv_stride=(5, 2, 2),
    conv_bias=False,
    positions_kernel=6,
    positions_groups=4,
)
BODIES = 6  # graphs that `run_all` compiles


def run_all(dtype: ms.Type = ms.float32) -> None:
    """Compile every body with parameters of a dtype and call it once, as far as a CPU has kernels of that dtype."""
    units = CodeHifiGan(replace(VOCODER, normalize_before=None), (20, 4), (4, 3), (3, 3), 4)
    mels, features = (np.zeros((2, *shape), np.float32) for shape in ((9, 10), (10, 45)))
    few, many = int32([9, 4]), int32([45, 26])
    ids, ones = int32(np.zeros((2, 9))), int32([1, 1])
    calls = (
        (HifiGan(VOCODER), (Tensor(mels), few)),
        (units, (ids, few, ones, ones)),
        (PredictDurations(units), (ids, few)),
        (ConformerEncoder(CONFORMER), (Tensor(features), many)),
        (WaveEncoder(WAVE), (Tensor(np.zeros((2, 640), np.float32)), int32([640, 333]))),
        (TextEncoder(WAVE.stack, 30), (ids, few)),
    )
    assert len(calls) == BODIES
    for cell, arguments in calls:
        name_parameters(cell)
        for parameter in cell.get_parameters():
            parameter.set_dtype(dtype)
        run = graphs(cell.set_train(False))
        try:
            run(*arguments).asnumpy()  # before the graph goes: as on Ascend, it may still be running when it returns
        except TypeError as error:  # when the graph's types are settled
            assert dtype == ms.bfloat16 and "Kernel select failed" in str(error), error

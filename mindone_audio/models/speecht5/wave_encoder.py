"""SpeechT5's speech encoder: raw samples through convolutions to frames, then the layers."""

from dataclasses import dataclass, replace

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import conv_ops, ops
from mindone_audio.backbone.buckets import bucket, buckets
from mindone_audio.backbone.encoder import first_frames, sinusoids
from mindone_audio.backbone.layers import Conv1d, LayerNorm, Linear
from mindone_audio.models.speecht5.encoder import EncoderStack, StackConfig

_SMALLEST = 64  # positions of the shortest graph
# Sinusoids are counted from here on. fairseq's positions start behind the id of padding, which is 1.
_FIRST_POSITION = 2


@dataclass(frozen=True)
class WaveConfig:
    """Sizes of the layers, and of the convolutions in front of them.

    `longest`: samples of the longest clip that is expected; longer ones are encoded too. `conv_dim`, `conv_kernel`,
    `conv_stride`: of each convolution of the samples, without padding. `positions_kernel`, `positions_groups`: of the
    convolution that tells positions apart.
    """

    stack: StackConfig
    longest: int
    conv_dim: tuple[int, ...]
    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]
    conv_bias: bool
    positions_kernel: int
    positions_groups: int
    frames_per_second = 16_000  # samples

    @property
    def convolutions(self) -> tuple[tuple[int, int], ...]:
        """(kernel, stride) of each convolution of the samples."""
        return tuple(zip(self.conv_kernel, self.conv_stride))

    def up_to(self, positions: int) -> "WaveConfig":
        """The same for clips of so many frames."""
        return replace(self, longest=self.samples(positions))

    @property
    def num_heads(self) -> int:
        return self.stack.num_heads

    @property
    def intermediate_size(self) -> int:
        return self.stack.intermediate_size

    @property
    def max_positions(self) -> int:
        """Of the longest clip, in the graph for it."""
        return self.positions(self.num_mel_frames)

    @property
    def num_mel_frames(self) -> int:
        """What stands for the frames of a window in `EncoderConfig`: samples of the longest clip, in its graph."""
        return self.frames_to_encode(self.longest)

    def positions(self, samples: int | np.ndarray) -> int | np.ndarray:
        """How many frames the convolutions make of so many samples."""
        for kernel, stride in self.convolutions:
            samples = (samples - kernel) // stride + 1
        return samples

    def samples(self, positions: int) -> int:
        """The fewest samples of which the convolutions make so many frames."""
        for kernel, stride in reversed(self.convolutions):
            positions = (positions - 1) * stride + kernel
        return positions

    @property
    def widths(self) -> list[int]:
        """How many samples graphs are compiled for, in ascending order, up to `longest`."""
        return [self.samples(count) for count in buckets(self._enough_positions(self.longest), _SMALLEST)]

    def frames_to_encode(self, samples: int) -> int:
        """How many samples are enough where the longest clip has so many."""
        return self.samples(bucket(self._enough_positions(samples), _SMALLEST))

    def _enough_positions(self, samples: int) -> int:
        """The fewest positions whose samples are not below so many, of which the last may belong to no frame."""
        positions = max(1, self.positions(samples))
        return positions if self.samples(positions) >= samples else positions + 1

    def layer_work(self, samples: int) -> int:
        """How many multiplications a layer takes for so many samples of a clip."""
        return self.stack.layer_work(max(1, self.positions(samples)))


class NormedConvolution(nn.Cell):
    """The first convolution of the samples, its channels normalised over the time that is no padding."""

    def __init__(self, channels: int, kernel: int, stride: int, bias: bool):
        super().__init__()
        self.conv = Conv1d(1, channels, kernel, stride, bias=bias)
        self.layer_norm = LayerNorm(channels)  # its parameters, which are a group norm's

    def construct(self, x: Tensor, counts: Tensor) -> Tensor:
        x = conv_ops.norm_over_time(self.conv(x), self.layer_norm.weight, self.layer_norm.bias, counts)
        return ops.gelu(x)


class Convolution(nn.Cell):
    """A later convolution."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, bias: bool):
        super().__init__()
        self.conv = Conv1d(in_channels, channels, kernel, stride, bias=bias)

    def construct(self, x: Tensor) -> Tensor:
        return ops.gelu(self.conv(x))


class FeatureEncoder(nn.Cell):
    """Samples (clips, samples) to frames (clips, positions, channels)."""

    def __init__(self, config: WaveConfig):
        super().__init__()
        self.kernel, self.stride = config.convolutions[0]
        first = NormedConvolution(config.conv_dim[0], self.kernel, self.stride, config.conv_bias)
        sizes = zip(config.conv_dim, config.conv_dim[1:], config.conv_kernel[1:], config.conv_stride[1:])
        self.conv_layers = nn.CellList([first, *(Convolution(*size, config.conv_bias) for size in sizes)])
        self.count = len(config.conv_dim)

    def construct(self, samples: Tensor, lengths: Tensor) -> Tensor:
        x = self.conv_layers[0](samples.expand_dims(2), (lengths - self.kernel) // self.stride + 1)
        for i in range(1, self.count):
            x = self.conv_layers[i](x)
        return x


class FeatureProjection(nn.Cell):
    """Frames of the convolutions to frames of the encoder's width."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.layer_norm = LayerNorm(features)
        self.projection = Linear(features, width, bias=True)

    def construct(self, x: Tensor) -> Tensor:
        return self.projection(self.layer_norm(x))


class ConvolutionalPositions(nn.Cell):
    """What a wide convolution makes of a frame's neighbours; its weight is multiplied out, see `fold_weight_norm`."""

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        self.conv = Conv1d(width, width, kernel, padding=(kernel // 2, (kernel - 1) // 2), groups=groups)

    def construct(self, x: Tensor) -> Tensor:
        return ops.gelu(self.conv(x))


@msops.constexpr
def _sinusoids(positions: int, width: int) -> Tensor:
    """fp32 (positions, width)."""
    return Tensor(sinusoids(_FIRST_POSITION + positions, width)[_FIRST_POSITION:], ms.float32)


class SpeechPrenet(nn.Cell):
    """Samples to frames that know where they are."""

    def __init__(self, config: WaveConfig):
        super().__init__()
        width = config.stack.hidden_size
        self.feature_encoder = FeatureEncoder(config)
        self.feature_projection = FeatureProjection(config.conv_dim[-1], width)
        self.pos_conv_embed = ConvolutionalPositions(width, config.positions_kernel, config.positions_groups)

    def construct(self, samples: Tensor, lengths: Tensor, counts: Tensor) -> Tensor:
        """lengths and counts int32 (clips): the samples and the frames of each clip that are not padding.

        What is behind a clip is zeroed in front of the convolution of positions, which PyTorch's class does not do: a
        padded clip would not come out as it does alone.
        """
        x = first_frames(self.feature_projection(self.feature_encoder(samples, lengths)), counts)
        x = x + self.pos_conv_embed(x)
        return x + _sinusoids(x.shape[1], x.shape[2]).astype(x.dtype)


class WaveEncoder(nn.Cell):
    """Raw samples to frames of features, with the interface of `AudioEncoder`."""

    def __init__(self, config: WaveConfig):
        super().__init__()
        self.config = config
        self.num_layers, self.convolutions = config.stack.num_layers, config.convolutions
        self.prenet = SpeechPrenet(config)
        self.wrapped_encoder = EncoderStack(config.stack)

    @property
    def layers(self) -> nn.CellList:
        """Those that `through` counts."""
        return self.wrapped_encoder.layers

    def construct(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """samples (clips, samples), of which int32 lengths (clips) are no padding; each at least the first kernels'.

        Returns (clips, positions, hidden_size), of which a clip has `output_lengths` of its samples.
        """
        return self.end(self.through(self.begin(samples, lengths), lengths, 0, self.num_layers), lengths)

    def begin(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """What the first layer takes: (clips, positions, hidden_size)."""
        samples = samples.astype(self.prenet.feature_projection.projection.weight.dtype)
        return self.wrapped_encoder.layer_norm(self.prenet(samples, lengths, self._positions(lengths)))

    def through(self, x: Tensor, lengths: Tensor, first: int, last: int) -> Tensor:
        """x (clips, positions, hidden_size) after the layers from `first` on, before `last`."""
        return self.wrapped_encoder(x, self._positions(lengths), first, last)

    def end(self, x: Tensor, lengths: Tensor) -> Tensor:
        """What the encoder returns, of what the last layer gives: the same."""
        return x

    def output_lengths(self, samples: np.ndarray) -> np.ndarray:
        """How many of its rows the encoder makes of so many samples."""
        return self.config.positions(samples)

    def _positions(self, lengths: Tensor) -> Tensor:
        for kernel, stride in self.convolutions:
            lengths = (lengths - kernel) // stride + 1
        return lengths

"""Phi-4-multimodal's audio encoder: strided convolutions, then conformer blocks that share a table of distances.

The formulas are those of transformers' modeling_phi4_multimodal.py, but for the mask: that file adds it to the scores
as 0 or 1, so that a clip attends to the padding behind it, and its convolutions hear it. Here a clip is what it is
alone, as in Microsoft's own code.
"""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.buckets import bucket, buckets
from mindone_audio.backbone.conformer import ConformerAttention, ConformerConfig
from mindone_audio.backbone.encoder import first_frames, hidden_keys
from mindone_audio.backbone.layers import Conv1d, Embedding, HalvingConv2d, LayerNorm, Linear, parameter

WINDOW = 500  # positions that attend to each other: 40 s
REDUCTION = 8  # frames of a position
_SMALLEST = 64  # frames of the shortest graph
LONGEST = 3000  # frames of a clip that is expected; longer ones are encoded too


@dataclass(frozen=True)
class Phi4EncoderConfig(ConformerConfig):
    """A conformer's sizes; `left_positions` and `right_positions`: how far keys are told apart, by one table."""

    conv_channels: int = 1024
    frames_per_second = 100

    @property
    def max_positions(self) -> int:
        """Positions that attend to each other, at most."""
        return WINDOW

    @property
    def widths(self) -> list[int]:
        """How many frames graphs are compiled for, in ascending order, up to `num_mel_frames`."""
        return buckets(self.num_mel_frames, _SMALLEST)

    def frames_to_encode(self, frames: int) -> int:
        """How many frames are enough for a clip of so many; a longer one than a window has whole windows."""
        window = REDUCTION * WINDOW
        return min(bucket(frames, _SMALLEST), window) if frames <= window else -(-frames // window) * window

    def layer_work(self, frames: int) -> int:
        """How many multiplications a layer takes for so many frames of a clip."""
        positions, width = -(-frames // REDUCTION), self.hidden_size
        weights = 8 * width**2 + 6 * width * self.intermediate_size
        return positions * (weights + 2 * width * min(positions, WINDOW))

    def positions(self, frames):
        """How many rows the encoder makes of so many frames."""
        return (frames + REDUCTION - 1) // REDUCTION


class Normalise(nn.Cell):
    """Frames of log-mels by the mean and the spread of all of the training's."""

    def __init__(self, bins: int):
        super().__init__()
        self.global_mean = parameter((bins,), "zeros", trainable=False)
        self.global_invstd = parameter((bins,), "ones", trainable=False)

    def construct(self, x: Tensor) -> Tensor:
        return (x - self.global_mean) * self.global_invstd


class Pointwise(nn.Cell):
    """A linear map over the channels of x (..., channels)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = parameter((channels, channels, 1, 1))
        self.bias = parameter((channels,), "zeros")

    def construct(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight.reshape(self.weight.shape[:2]), self.bias)


class Subsampling(nn.Cell):
    """Three convolutions that each halve time and bins, and a linear layer: (clips, frames, bins) to an eighth.

    What is behind a clip is zero at each of them.
    """

    def __init__(self, config: Phi4EncoderConfig):
        super().__init__()
        channels, bins = config.conv_channels, config.num_mel_bins
        cells = [HalvingConv2d(1, channels), nn.Identity()]
        for _ in range(2):
            cells += [HalvingConv2d(channels, channels, groups=channels), Pointwise(channels), nn.Identity()]
        self.conv = nn.CellList(cells)  # whose names count activations too
        self.out = Linear(channels * -(-bins // REDUCTION), config.hidden_size, bias=True)

    def construct(self, x: Tensor, lengths: Tensor) -> Tensor:
        """lengths int32 (clips): frames of audio."""
        x = ops.relu(self.conv[0](first_frames(x, lengths).expand_dims(-1)))
        for i in (2, 5):
            lengths = (lengths + 1) // 2
            x = ops.relu(self.conv[i + 1](self.conv[i](_first_times(x, lengths))))
        clips, positions, bins, channels = x.shape
        return self.out(ops.transpose(x, (0, 1, 3, 2)).reshape((clips, positions, channels * bins)))


def _first_times(x: Tensor, counts: Tensor) -> Tensor:
    """`first_frames` of x (clips, time, bins, channels)."""
    clips, time, bins, channels = x.shape
    return first_frames(x.reshape((clips, time, bins * channels)), counts).reshape(x.shape)


class GatedFeedForward(nn.Cell):
    """A norm, two matrices of which one gates the other by SiLU, and one back."""

    def __init__(self, config: Phi4EncoderConfig):
        super().__init__()
        self.halves = (config.intermediate_size, config.intermediate_size)
        self.layer_norm = LayerNorm(config.hidden_size)
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, bias=True)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def construct(self, x: Tensor) -> Tensor:
        up, gate = ops.split(self.gate_up_proj(self.layer_norm(x)), self.halves, -1)
        return self.down_proj(up * ops.silu(gate))


class Gate(nn.Cell):
    """Two linear maps, of which the second gates the first by SiLU; each has a second bias."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.ext_pw_conv_1d = Conv1d(width, 2 * width, 1)
        self.b1, self.b2 = parameter((1, width, 1), "zeros"), parameter((1, width, 1), "zeros")

    def construct(self, x: Tensor) -> Tensor:
        value, gate = ops.split(self.ext_pw_conv_1d(x), (self.width, self.width), -1)
        shape = (1, 1, self.width)
        return (value + self.b1.reshape(shape)) * ops.silu(gate + self.b2.reshape(shape))


class SeparableConv(nn.Cell):
    """A causal convolution of each channel, and a linear map over the channels."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.dw_conv = Conv1d(width, width, kernel, padding=(kernel - 1, 0), groups=width)
        self.pw_conv = Conv1d(width, width, 1)

    def construct(self, x: Tensor) -> Tensor:
        return self.pw_conv(self.dw_conv(x))


class Convolution(nn.Cell):
    """A norm, a gate, a separable convolution and a linear map, of x (clips, positions, hidden_size)."""

    def __init__(self, config: Phi4EncoderConfig):
        super().__init__()
        self.layer_norm = LayerNorm(config.hidden_size)
        self.glu = Gate(config.hidden_size)
        self.dw_sep_conv_1d = SeparableConv(config.hidden_size, config.conv_kernel)
        self.ext_pw_conv_1d = Conv1d(config.hidden_size, config.hidden_size, 1)

    def construct(self, x: Tensor) -> Tensor:
        return self.ext_pw_conv_1d(ops.silu(self.dw_sep_conv_1d(self.glu(self.layer_norm(x)))))


class Block(nn.Cell):
    """Half a feed-forward, attention, convolution, half a feed-forward, each with a residual, and a norm."""

    def __init__(self, config: Phi4EncoderConfig):
        super().__init__()
        self.feed_forward_in = GatedFeedForward(config)
        self.self_attn = ConformerAttention(config, relative=False)
        self.conv = Convolution(config)
        self.feed_forward_out = GatedFeedForward(config)
        self.layer_norm_att = LayerNorm(config.hidden_size)
        self.layer_norm = LayerNorm(config.hidden_size)

    def construct(self, x: Tensor, windows: int, mask: Tensor) -> Tensor:
        """x (windows * positions, hidden_size); mask fp32 (windows, heads, positions, positions)."""
        rows, width = x.shape
        x = x + self.feed_forward_in(x) * 0.5
        x = x + self.self_attn(self.layer_norm_att(x), windows, mask)
        x = x + self.conv(x.reshape((windows, -1, width))).reshape((rows, width))
        return self.layer_norm(x + self.feed_forward_out(x) * 0.5)


class Distances(nn.Cell):
    """What each distance between a query and a key adds to their score, for each head."""

    def __init__(self, config: Phi4EncoderConfig):
        super().__init__()
        self.bias_values = Embedding(config.left_positions + config.right_positions + 1, config.num_heads)


class Phi4Encoder(nn.Cell):
    """Log-mels to positions of 80 ms, with the interface of `AudioEncoder`."""

    def __init__(self, config: Phi4EncoderConfig):
        super().__init__()
        self.config = config
        self.num_heads, self.left, self.right = config.num_heads, config.left_positions, config.right_positions
        self.encoder_embedding = Normalise(config.num_mel_bins)
        self.embed = Subsampling(config)
        self.relative_attention_bias_layer = Distances(config)
        self.layers = nn.CellList([Block(config) for _ in range(config.num_layers)])

    def construct(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        """input_features (clips, mel bins, frames); lengths int32 (clips), the frames that are not padding.

        Of more frames than those of a window there are whole windows. Returns (clips, positions, hidden_size).
        """
        return self.end(self.through(self.begin(input_features, lengths), lengths, 0, len(self.layers)), lengths)

    def begin(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        """What the first layer takes: (clips, positions, hidden_size)."""
        x = ops.transpose(input_features.astype(self.embed.out.weight.dtype), (0, 2, 1))
        return self.embed(self.encoder_embedding(x), lengths)

    def through(self, x: Tensor, lengths: Tensor, first: int, last: int) -> Tensor:
        """x (clips, positions, hidden_size) after the layers from `first` on, before `last`.

        Each window of a clip is by itself: what it attends to, and what its convolutions see.
        """
        clips, positions, width = x.shape
        window = min(positions, WINDOW)
        before = ops.counting(positions // window) * window
        own = (lengths + REDUCTION - 1) // REDUCTION
        counts = msops.clip_by_value(own.expand_dims(1) - before, 0, window).reshape((-1,))
        table = self.relative_attention_bias_layer.bias_values.weight
        scores = ops.relative_scores(None, table, ops.distances(window, self.left, self.right, True))
        mask = msops.tile(hidden_keys(counts, window), (1, self.num_heads, window, 1)) + scores
        x = x.reshape((clips * positions, width))
        for i in range(first, last):
            x = self.layers[i](x, clips * positions // window, mask)
        return x.reshape((clips, positions, width))

    def end(self, x: Tensor, lengths: Tensor) -> Tensor:
        """What the encoder returns, of what the last layer gives."""
        return x

    def output_lengths(self, frames: np.ndarray) -> np.ndarray:
        """How many of its rows the encoder makes of so many frames."""
        return self.config.positions(frames)

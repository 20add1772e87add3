"""HiFi-GAN (arXiv 2010.05646): features of speech to samples, with the variations of the families as fields."""

import math
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.encoder import first_frames
from mindone_audio.backbone.layers import Conv1d, ConvTranspose1d, Embedding, LayerNorm, Linear, parameter

_EDGE = 7  # kernel of the first and the last convolution
_LAST_SLOPE = 0.01  # PyTorch's default, which the published code has before the last convolution


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of a HiFi-GAN.

    `normalize_before`: whether the features are normalised with the checkpoint's `mean` and `scale` (SpeechT5). None:
    the checkpoint has neither (SeamlessM4T).
    """

    in_channels: int
    upsample_initial_channel: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    leaky_relu_slope: float
    normalize_before: bool | None = None

    def __post_init__(self):
        pairs = (("upsample_rates", "upsample_kernel_sizes"), ("resblock_kernel_sizes", "resblock_dilation_sizes"))
        for one, other in pairs:
            if len(getattr(self, one)) != len(getattr(self, other)):
                raise ValueError(f"{one} and {other} have unequal lengths: correct config.json")
        if even := [kernel for kernel in self.resblock_kernel_sizes if kernel % 2 == 0]:
            raise ValueError(
                f"resblock_kernel_sizes has {even[0]}, and only odd ones keep a length: correct config.json"
            )
        if short := [kernel for kernel, stride in self.upsampling if kernel < stride]:
            raise ValueError(f"upsample_kernel_sizes has {short[0]}, which is below its rate: correct config.json")

    @property
    def upsampling(self) -> tuple[tuple[int, int], ...]:
        """(kernel, stride) of each transposed convolution."""
        return tuple(zip(self.upsample_kernel_sizes, self.upsample_rates))

    def num_samples(self, frames: int | np.ndarray) -> int | np.ndarray:
        """How many samples the vocoder makes of so many frames, at least one."""
        for kernel, stride in self.upsampling:
            frames = _upsampled(frames, kernel, stride)
        return frames

    @property
    def hop(self) -> int:
        """How many samples a frame has."""
        return math.prod(self.upsample_rates)

    @property
    def reach(self) -> int:
        """How many frames before and after its own a sample depends on, at most."""
        pairs = zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes)
        widest = max(sum((kernel - 1) // 2 * (dilation + 1) for dilation in sizes) for kernel, sizes in pairs)
        far = _EDGE // 2
        for kernel, stride in reversed(self.upsampling):
            far = -(-(far + widest + kernel) // stride)
        return far + _EDGE // 2


def _upsampled(frames, kernel: int, stride: int):
    """How many times a transposed convolution makes of so many."""
    return (frames - 1) * stride + kernel - (kernel - stride) // 2 * 2


class ResidualBlock(nn.Cell):
    """Pairs of a dilated and a plain convolution, each pair with a residual, of x (batch, time, channels)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], slope: float):
        super().__init__()
        self.slope, self.pairs = slope, len(dilations)
        edges = [(kernel - 1) * dilation // 2 for dilation in (*dilations, 1)]
        self.convs1 = nn.CellList(
            [Conv1d(channels, channels, kernel, 1, (edge, edge), d) for d, edge in zip(dilations, edges)]
        )
        last = (edges[-1], edges[-1])
        self.convs2 = nn.CellList([Conv1d(channels, channels, kernel, 1, last) for _ in dilations])

    def construct(self, x: Tensor, kept: Tensor) -> Tensor:
        """kept: of x's shape, 1 where there is sound and 0 beyond it; x is zero there, and so is what is returned."""
        for i in range(self.pairs):
            y = self.convs1[i](ops.leaky_relu(x, self.slope)) * kept
            x = x + self.convs2[i](ops.leaky_relu(y, self.slope)) * kept
        return x


class HifiGan(nn.Cell):
    """Frames of features to a waveform.

    Every convolution sees zeros beyond a sample's own length, as it does beyond the longest one's. So a batch gives
    what each sample gives alone. PyTorch's classes let the padding sound, up to a receptive field before the end.
    """

    def __init__(self, config: VocoderConfig):
        super().__init__()
        self.config = config
        self.slope, self.upsampling = config.leaky_relu_slope, config.upsampling  # graphs cannot read a dataclass
        self.stages, self.kernels = len(config.upsample_rates), len(config.resblock_kernel_sizes)
        self.normalizes, edge = config.normalize_before is True, (_EDGE // 2, _EDGE // 2)
        if config.normalize_before is not None:
            self.mean = parameter((config.in_channels,), "zeros", trainable=False)
            self.scale = parameter((config.in_channels,), "ones", trainable=False)
        widths = [config.upsample_initial_channel // 2**stage for stage in range(self.stages + 1)]
        self.conv_pre = Conv1d(config.in_channels, widths[0], _EDGE, padding=edge)
        self.upsampler = nn.CellList(
            [
                ConvTranspose1d(wide, narrow, kernel, stride, (kernel - stride) // 2)
                for wide, narrow, (kernel, stride) in zip(widths, widths[1:], config.upsampling)
            ]
        )
        forms = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes))
        self.resblocks = nn.CellList(
            [ResidualBlock(width, *form, config.leaky_relu_slope) for width in widths[1:] for form in forms]
        )
        self.conv_post = Conv1d(widths[-1], 1, _EDGE, padding=edge)

    def construct(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x (batch, frames, in_channels) and lengths int32 (batch), in frames, to samples (batch, num_samples(frames)).

        Samples are between -1 and 1, and zero from num_samples(length) on.
        """
        x = x.astype(self.conv_pre.weight.dtype)
        if self.normalizes:
            x = (x - self.mean) / self.scale
        x = self.conv_pre(first_frames(x, lengths))
        for stage in range(self.stages):
            kernel, stride = self.upsampling[stage]
            x = self.upsampler[stage](ops.leaky_relu(first_frames(x, lengths), self.slope))
            lengths = _upsampled(lengths, kernel, stride)
            kept = ops.time_mask(lengths, x.shape[1], x.shape[2]).astype(x.dtype)
            x = x * kept
            total = self.resblocks[stage * self.kernels](x, kept)
            for other in range(1, self.kernels):
                total = total + self.resblocks[stage * self.kernels + other](x, kept)
            x = total * (1 / self.kernels)
        x = ops.tanh(self.conv_post(ops.leaky_relu(x, _LAST_SLOPE)))
        return first_frames(x, lengths).reshape((x.shape[0], x.shape[1]))


class DurationPredictor(nn.Cell):
    """ln(1 + frames) of each unit, of x (batch, units, width)."""

    def __init__(self, width: int, hidden: int, kernel: int):
        super().__init__()
        edges = ((kernel - 1) // 2, kernel // 2)  # PyTorch's padding "same"
        self.conv1 = Conv1d(width, hidden, kernel, padding=edges)
        self.ln1 = LayerNorm(hidden)
        self.conv2 = Conv1d(hidden, hidden, kernel, padding=edges)
        self.ln2 = LayerNorm(hidden)
        self.proj = Linear(hidden, 1, bias=True)

    def construct(self, x: Tensor, lengths: Tensor) -> Tensor:
        """lengths int32 (batch), in units, beyond which zeros are seen; returns (batch, units)."""
        x = self.ln1(ops.relu(self.conv1(first_frames(x, lengths))))
        x = self.ln2(ops.relu(self.conv2(first_frames(x, lengths))))
        return self.proj(x).reshape((x.shape[0], x.shape[1]))


class CodeHifiGan(nn.Cell):
    """Units of speech to a waveform, in a language and with a speaker's voice.

    The number of frames depends on what is predicted, so this is two graphs: `PredictDurations`, and, of units that
    `repeat_units` has repeated, this cell.
    """

    def __init__(
        self,
        config: VocoderConfig,
        units: tuple[int, int],
        languages: tuple[int, int],
        speakers: tuple[int, int],
        duration_kernel: int,
    ):
        """units, languages, speakers: how many there are, and how wide their embeddings are."""
        super().__init__()
        if config.in_channels != units[1] + languages[1] + speakers[1]:
            raise ValueError(f"in_channels {config.in_channels} is not the sum of the widths of the three embeddings")
        self.dur_predictor = DurationPredictor(units[1], units[1], duration_kernel)
        self.unit_embedding = Embedding(*units)
        self.language_embedding = Embedding(*languages)
        self.speaker_embedding = Embedding(*speakers)
        self.hifi_gan = HifiGan(config)

    def construct(self, units: Tensor, lengths: Tensor, languages: Tensor, speakers: Tensor) -> Tensor:
        """units int32 (batch, frames), one for each frame; lengths in frames, languages and speakers int32 (batch).

        Returns samples as `HifiGan` does.
        """
        batch, frames = units.shape
        language = msops.tile(self.language_embedding(languages).reshape((batch, 1, -1)), (1, frames, 1))
        speaker = msops.tile(self.speaker_embedding(speakers).reshape((batch, 1, -1)), (1, frames, 1))
        return self.hifi_gan(msops.concat((language, self.unit_embedding(units), speaker), -1), lengths)


class PredictDurations(nn.Cell):
    """ln(1 + frames) of each unit as a graph: units int32 (batch, units), lengths int32 (batch) to (batch, units)."""

    def __init__(self, vocoder: CodeHifiGan):
        super().__init__(auto_prefix=False)
        self.unit_embedding, self.dur_predictor = vocoder.unit_embedding, vocoder.dur_predictor

    def construct(self, units: Tensor, lengths: Tensor) -> Tensor:
        return self.dur_predictor(self.unit_embedding(units), lengths)


def repeat_units(units: np.ndarray, lengths: np.ndarray, log_durations: np.ndarray) -> list[np.ndarray]:
    """Of each sample its units, each as often as it has frames: int32 (frames).

    units (batch, units), lengths (batch) in units, log_durations as `PredictDurations` gives them. A unit has at least
    one frame; half a frame is rounded to an even number, as PyTorch does. Raises `ValueError` for a duration that is
    not finite.
    """
    with np.errstate(over="ignore"):
        durations = np.maximum(1, np.rint(np.expm1(log_durations.astype(np.float32))))
    found = []
    for row, n, count in zip(units, lengths, durations):
        if not np.isfinite(count[:n]).all():
            raise ValueError(
                "the model predicts durations that are not finite numbers: its weights are broken, or overflow in this "
                "dtype, so load it with mindspore_dtype=mindspore.float32"
            )
        found.append(np.repeat(row[:n], count[:n].astype(np.int64)).astype(np.int32))
    return found

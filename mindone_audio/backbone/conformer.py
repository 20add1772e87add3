"""The conformer speech encoder (arXiv 2005.08100), with the variations of the families as fields."""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.buckets import bucket, buckets
from mindone_audio.backbone.encoder import first_frames, hidden_keys
from mindone_audio.backbone.layers import Conv1d, Embedding, LayerNorm, Linear

_SMALLEST = 64  # frames of the shortest graph


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes of a conformer and what its family does differently.

    `num_mel_bins`: the width of a frame, which may be two stacked ones. `num_mel_frames`: of the longest clip that is
    expected; longer ones are encoded too. `left_positions`, `right_positions`: how far keys are told apart before and
    after a query, by a table of each layer. `chunk_size`: positions of a chunk; no position attends to a later chunk,
    nor to chunks before the `left_chunks` ones (-1: to all before). None: every position attends to all.
    `num_adapters`: layers behind the others, each of which shortens time by `adapter_stride`.
    """

    num_mel_bins: int
    num_mel_frames: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    left_positions: int
    right_positions: int
    conv_kernel: int
    chunk_size: int | None = None
    left_chunks: int = -1
    num_adapters: int = 0
    adapter_kernel: int = 8
    adapter_stride: int = 8
    frames_per_second = 50  # of two stacked ones

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"the speech encoder's width {self.hidden_size} is not a multiple of its {self.num_heads} heads: "
                "correct hidden_size or speech_encoder_attention_heads in config.json"
            )
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"a chunk of {self.chunk_size} positions holds nothing: correct config.json")

    @property
    def max_positions(self) -> int:
        """How many positions the layers attend to, of the longest clip in the graph for it."""
        return self.frames_to_encode(self.num_mel_frames)

    @property
    def widths(self) -> list[int]:
        """How many frames graphs are compiled for, in ascending order, up to `num_mel_frames`."""
        return buckets(self.num_mel_frames, _SMALLEST)

    def frames_to_encode(self, frames: int) -> int:
        """How many frames of padded features are enough where the longest clip has so many."""
        return bucket(frames, _SMALLEST)

    def layer_work(self, frames: int) -> int:
        """How many multiplications a layer takes for so many frames of a clip."""
        width, relative = self.hidden_size, self.left_positions + self.right_positions + 1
        weights = 7 * width**2 + 4 * width * self.intermediate_size + self.conv_kernel * width
        return frames * (weights + width * (2 * frames + relative))

    def positions(self, frames: int | np.ndarray | Tensor) -> int | np.ndarray | Tensor:
        """How many rows the encoder makes of so many frames."""
        for _ in range(self.num_adapters):
            frames = shortened(frames, self.adapter_kernel, self.adapter_stride)
        return frames


def shortened(frames, kernel: int, stride: int):
    """What an adapter's convolution, which sees stride // 2 zeros at each end, leaves of so many frames."""
    return (frames + stride // 2 * 2 - kernel) // stride + 1


class FeatureProjection(nn.Cell):
    """Frames of features to frames of the encoder's width."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.layer_norm = LayerNorm(features)
        self.projection = Linear(features, width, bias=True)

    def construct(self, x: Tensor) -> Tensor:
        return self.projection(self.layer_norm(x))


class FeedForward(nn.Cell):
    """Two matrices with a SiLU between them, or a ReLU."""

    def __init__(self, config: ConformerConfig, relu: bool = False):
        super().__init__()
        self.relu = relu
        self.intermediate_dense = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.output_dense = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def construct(self, x: Tensor) -> Tensor:
        x = self.intermediate_dense(x)
        return self.output_dense(ops.relu(x) if self.relu else ops.silu(x))


class ConformerAttention(nn.Cell):
    """Attention of x (clips * positions, hidden_size); where `relative`, with a table of distances from key to query.

    index: int32 (positions, positions), from `ops.distances`. mask: fp32, of the scores' shape.
    """

    def __init__(self, config: ConformerConfig, relative: bool):
        super().__init__()
        self.num_heads, head_dim = config.num_heads, config.hidden_size // config.num_heads
        self.scale = head_dim**-0.5
        self.linear_q = Linear(config.hidden_size, config.hidden_size, bias=True)
        self.linear_k = Linear(config.hidden_size, config.hidden_size, bias=True)
        self.linear_v = Linear(config.hidden_size, config.hidden_size, bias=True)
        self.linear_out = Linear(config.hidden_size, config.hidden_size, bias=True)
        rows = config.left_positions + config.right_positions + 1
        self.distance_embedding = Embedding(rows, head_dim) if relative else None

    def construct(self, x: Tensor, clips: int, mask: Tensor, index: Tensor | None = None) -> Tensor:
        query = ops.split_heads(self.linear_q(x) * self.scale, clips, self.num_heads)
        key = ops.split_heads(self.linear_k(x), clips, self.num_heads)
        value = ops.split_heads(self.linear_v(x), clips, self.num_heads)
        if self.distance_embedding is not None:
            mask = mask + ops.relative_scores(query, self.distance_embedding.weight, index)
        return self.linear_out(ops.merge_heads(ops.attention(query, key, value, mask)))


class ConvolutionModule(nn.Cell):
    """Gated, causal depthwise convolution of x (clips, positions, hidden_size).

    Causal, so padding behind a clip is not seen by the clip.
    """

    def __init__(self, config: ConformerConfig):
        super().__init__()
        width, kernel = config.hidden_size, config.conv_kernel
        self.layer_norm = LayerNorm(width)
        self.pointwise_conv1 = Conv1d(width, 2 * width, 1, bias=False)
        self.depthwise_conv = Conv1d(width, width, kernel, padding=(kernel - 1, 0), groups=width, bias=False)
        self.depthwise_layer_norm = LayerNorm(width)
        self.pointwise_conv2 = Conv1d(width, width, 1, bias=False)

    def construct(self, x: Tensor) -> Tensor:
        x = self.depthwise_conv(ops.glu(self.pointwise_conv1(self.layer_norm(x))))
        return self.pointwise_conv2(ops.silu(self.depthwise_layer_norm(x)))


class ConformerLayer(nn.Cell):
    """Half a feed-forward, attention, convolution, half a feed-forward, each with a residual, and a norm."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.ffn1_layer_norm = LayerNorm(config.hidden_size)
        self.ffn1 = FeedForward(config)
        self.self_attn_layer_norm = LayerNorm(config.hidden_size)
        self.self_attn = ConformerAttention(config, relative=True)
        self.conv_module = ConvolutionModule(config)
        self.ffn2_layer_norm = LayerNorm(config.hidden_size)
        self.ffn2 = FeedForward(config)
        self.final_layer_norm = LayerNorm(config.hidden_size)

    def construct(self, x: Tensor, clips: int, mask: Tensor, index: Tensor) -> Tensor:
        """x (clips * positions, hidden_size); mask and index as for `ConformerAttention`."""
        rows, width = x.shape
        x = x + self.ffn1(self.ffn1_layer_norm(x)) * 0.5
        x = x + self.self_attn(self.self_attn_layer_norm(x), clips, mask, index)
        x = x + self.conv_module(x.reshape((clips, -1, width))).reshape((rows, width))
        x = x + self.ffn2(self.ffn2_layer_norm(x)) * 0.5
        return self.final_layer_norm(x)


class AdapterLayer(nn.Cell):
    """Strided, gated convolutions that shorten time, then attention without positions and a feed-forward.

    A clip's padding is zeroed before the convolutions, so that they see behind a clip what they see behind the longest
    one. PyTorch's class does not do that: there the last row of a padded clip depends on what follows it.
    """

    def __init__(self, config: ConformerConfig):
        super().__init__()
        width, kernel, stride = config.hidden_size, config.adapter_kernel, config.adapter_stride
        self.kernel, self.stride, self.num_heads = kernel, stride, config.num_heads
        edges = (stride // 2, stride // 2)
        self.residual_layer_norm = LayerNorm(width)
        self.residual_conv = Conv1d(width, 2 * width, kernel, stride, edges)
        self.self_attn_layer_norm = LayerNorm(width)
        self.self_attn_conv = Conv1d(width, 2 * width, kernel, stride, edges)
        self.self_attn = ConformerAttention(config, relative=False)
        self.ffn_layer_norm = LayerNorm(width)
        self.ffn = FeedForward(config, relu=True)

    def construct(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x (clips, positions, hidden_size), of which int32 lengths (clips) are a clip's."""
        residual = ops.glu(self.residual_conv(first_frames(self.residual_layer_norm(x), lengths)))
        x = ops.glu(self.self_attn_conv(first_frames(self.self_attn_layer_norm(x), lengths)))
        clips, positions, width = x.shape
        mask = hidden_keys(shortened(lengths, self.kernel, self.stride), positions)
        mask = msops.tile(mask, (1, self.num_heads, positions, 1))
        x = self.self_attn(x.reshape((clips * positions, width)), clips, mask) + residual.reshape((-1, width))
        x = x + self.ffn(self.ffn_layer_norm(x))
        return x.reshape((clips, positions, width))


class Adapter(nn.Cell):
    """The adapter layers, one after the other."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.kernel, self.stride, self.count = config.adapter_kernel, config.adapter_stride, config.num_adapters
        self.layers = nn.CellList([AdapterLayer(config) for _ in range(config.num_adapters)])

    def construct(self, x: Tensor, lengths: Tensor) -> Tensor:
        for i in range(self.count):
            x = self.layers[i](x, lengths)
            lengths = shortened(lengths, self.kernel, self.stride)
        return x


class ConformerStack(nn.Cell):
    """The layers and the norm behind them, which the checkpoints have under one name."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.layers = nn.CellList([ConformerLayer(config) for _ in range(config.num_layers)])
        self.layer_norm = LayerNorm(config.hidden_size)


class ConformerEncoder(nn.Cell):
    """Frames of features to frames of the encoder's width, with the interface of `AudioEncoder`."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.config = config
        self.num_heads, self.num_layers = config.num_heads, config.num_layers  # graphs cannot read a dataclass
        self.left, self.right = config.left_positions, config.right_positions
        self.chunk_size, self.left_chunks = config.chunk_size, config.left_chunks
        self.feature_projection = FeatureProjection(config.num_mel_bins, config.hidden_size)
        self.encoder = ConformerStack(config)
        self.intermediate_ffn = FeedForward(config, relu=True)
        self.adapter = Adapter(config) if config.num_adapters else None
        self.inner_layer_norm = LayerNorm(config.hidden_size)

    @property
    def layers(self) -> nn.CellList:
        """Those that `through` counts."""
        return self.encoder.layers

    def construct(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        """input_features (clips, num_mel_bins, frames); lengths int32 (clips), the frames that are not padding.

        Returns (clips, positions, hidden_size), of which a clip has `output_lengths` of its frames.
        """
        return self.end(self.through(self.begin(input_features, lengths), lengths, 0, self.num_layers), lengths)

    def begin(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        """What the first layer takes: (clips, frames, hidden_size)."""
        x = ops.transpose(input_features.astype(self.feature_projection.projection.weight.dtype), (0, 2, 1))
        return self.feature_projection(x)

    def through(self, x: Tensor, lengths: Tensor, first: int, last: int) -> Tensor:
        """x (clips, frames, hidden_size) after the layers from `first` on, before `last`."""
        clips, positions, width = x.shape
        mask = hidden_keys(lengths, positions)
        if self.chunk_size is not None:
            mask = mask + _other_chunks(positions, self.chunk_size, self.left_chunks)
            mask = msops.tile(mask, (1, self.num_heads, 1, 1))
        else:
            mask = msops.tile(mask, (1, self.num_heads, positions, 1))
        index = ops.distances(positions, self.left, self.right, True)
        x = x.reshape((clips * positions, width))
        for i in range(first, last):
            x = self.encoder.layers[i](x, clips, mask, index)
        return x.reshape((clips, positions, width))

    def end(self, x: Tensor, lengths: Tensor) -> Tensor:
        """What the encoder returns, of what the last layer gives."""
        x = self.encoder.layer_norm(x)
        x = x + self.intermediate_ffn(x) * 0.5
        if self.adapter is not None:
            x = self.adapter(x, lengths)
        return self.inner_layer_norm(x)

    def output_lengths(self, frames: np.ndarray) -> np.ndarray:
        """How many of its rows the encoder makes of so many frames."""
        return self.config.positions(frames)


@msops.constexpr
def _other_chunks(positions: int, size: int, left: int) -> Tensor:
    """fp32 (1, 1, positions, positions): `ops.MASKED` for keys of later chunks, and of those before the `left` ones."""
    chunk = np.arange(positions) // size
    behind = chunk[:, None] - chunk[None, :]
    hidden = (behind < 0) | ((left >= 0) & (behind > left))
    return Tensor(np.where(hidden, ops.MASKED, 0).astype(np.float32)[None, None], ms.float32)

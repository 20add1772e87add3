"""The Whisper-shaped audio encoder (arXiv 2212.04356), with the variations of the audio-language models as fields."""

import math
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.layers import Conv1d, Embedding, LayerNorm, Linear
from mindone_audio.backbone.rotary import inverse_frequencies, rotation_tables


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder and what its family does differently.

    `pool_pairs`: average neighbouring frames before the final norm (Qwen2-Audio, Audio Flamingo 3).
    `mask_padding`: frames beyond a clip's length are not attended to.
    `partial_windows`: a clip may come with fewer frames than a window, and then nothing is computed of what is beyond
    them (Ultravox).
    `latency_block`: positions of a block; no position attends to a later block. None: every position attends to all.
    `window_frames`: frames of the windows that a clip is cut into, each encoded as if it were alone (Qwen2.5-Omni).
    Such checkpoints hold no table of positions. None: a clip is one window.
    `rotary`: how many dimensions of each head are rotated by its position, and the base of their wavelengths, instead
    of a table of positions that is added (GLM-ASR). `key_bias`: keys have a bias too (Qwen3-ASR).
    """

    num_mel_bins: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_positions: int
    pool_pairs: bool
    mask_padding: bool
    partial_windows: bool = False
    latency_block: int | None = None
    window_frames: int | None = None
    rotary: tuple[int, float] | None = None
    key_bias: bool = False
    frames_per_second = 100

    def __post_init__(self):
        if self.window_frames is not None and (self.window_frames % 4 or self.num_mel_frames % self.window_frames):
            raise ValueError(
                f"windows of {self.window_frames} frames do not fit the audio encoder: they must be a multiple of 4, "
                f"and max_source_positions ({self.max_positions}) a multiple of n_window ({self.window_frames // 2}): "
                "correct config.json"
            )
        if self.latency_block is not None and (self.latency_block < 1 or self.num_mel_frames % self.latency_block):
            raise ValueError(
                f"audio_latency_block_size {self.latency_block} does not divide the window of {self.num_mel_frames} "
                "frames: correct it in config.json"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"the audio encoder's width {self.hidden_size} is not a multiple of its {self.num_heads} heads: "
                "correct d_model or encoder_attention_heads in config.json"
            )

    @property
    def num_mel_frames(self) -> int:
        """Frames of one whole window: the strided convolution halves them to `max_positions`."""
        return 2 * self.max_positions

    @property
    def widths(self) -> list[int]:
        """How many frames of a window may be encoded, in ascending order.

        Where padding is not attended to, clips of up to a sixth, a third or half of the window come out the same
        without the rest of it. Only these widths, because each is a graph to compile.
        """
        shares = (6, 3, 2) if self.mask_padding else ()
        if self.window_frames is not None:
            windows = self.num_mel_frames // self.window_frames
            return sorted({-(-windows // share) * self.window_frames for share in (*shares, 1)})
        # With what the convolutions see beyond such a clip.
        return [(self.num_mel_frames // share + 7) // 4 * 4 for share in shares] + [self.num_mel_frames]

    def frames_to_encode(self, frames: int) -> int:
        """The one of `widths` that is enough where the longest clip has so many frames."""
        beyond = 0 if self.window_frames else 3
        return next((width for width in self.widths[:-1] if frames <= width - beyond), self.num_mel_frames)

    def layer_work(self, frames: int) -> int:
        """How many multiplications a layer takes for so many mel frames of clips."""
        positions, width = frames // 2, self.hidden_size
        attended = min(positions, (self.window_frames or self.num_mel_frames) // 2)
        return positions * (4 * width**2 + 2 * width * self.intermediate_size + 2 * width * attended)


def sinusoids(positions: int, width: int) -> np.ndarray:
    """Whisper's fixed position table, fp32 (positions, width): sines of geometric wavelengths, then cosines."""
    half = max(1, math.ceil(width / 2))
    rates = np.exp(-math.log(10000) / max(1, half - 1) * np.arange(half))
    angles = np.arange(positions)[:, None] * rates[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width].astype(np.float32)


class EncoderAttention(nn.Cell):
    """Full attention over all frames of a clip, of x (clips * positions, hidden_size).

    rotation: cos and sin for queries and keys, each of their shape, and how many dimensions are rotated; or None.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.scale = (config.hidden_size // config.num_heads) ** -0.5
        self.k_proj = Linear(config.hidden_size, config.hidden_size, config.key_bias)
        self.v_proj = Linear(config.hidden_size, config.hidden_size, bias=True)
        self.q_proj = Linear(config.hidden_size, config.hidden_size, bias=True)
        self.out_proj = Linear(config.hidden_size, config.hidden_size, bias=True)

    def construct(self, x: Tensor, clips: int, mask: Tensor | None, rotation: tuple | None) -> Tensor:
        query = ops.split_heads(self.q_proj(x) * self.scale, clips, self.num_heads)
        key = ops.split_heads(self.k_proj(x), clips, self.num_heads)
        if rotation is not None:
            query, key = ops.rotate(query, *rotation), ops.rotate(key, *rotation)
        value = ops.split_heads(self.v_proj(x), clips, self.num_heads)
        return self.out_proj(ops.merge_heads(ops.attention(query, key, value, mask)))


class EncoderLayer(nn.Cell):
    """Pre-norm attention and GELU feed-forward, each with a residual, of x (clips * positions, hidden_size)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.self_attn = EncoderAttention(config)
        self.self_attn_layer_norm = LayerNorm(config.hidden_size)
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True)
        self.final_layer_norm = LayerNorm(config.hidden_size)

    def construct(self, x: Tensor, clips: int, mask: Tensor | None, rotation: tuple | None = None) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), clips, mask, rotation)
        return x + self.fc2(ops.gelu(self.fc1(self.final_layer_norm(x))))


class AudioEncoder(nn.Cell):
    """Log-mel spectrograms to frames of features."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_heads
        self.pool_pairs, self.mask_padding = config.pool_pairs, config.mask_padding  # graphs cannot read a dataclass
        self.partial_windows, self.latency_block = config.partial_windows, config.latency_block
        self.window_frames = config.window_frames
        self.conv1 = Conv1d(config.num_mel_bins, config.hidden_size, 3, padding=(1, 1))
        self.conv2 = Conv1d(config.hidden_size, config.hidden_size, 3, stride=2, padding=(1, 1))
        positions = (config.window_frames or config.num_mel_frames) // 2
        self.embed_positions, self.table, self.rotated = None, None, None
        if config.rotary is not None:
            self.rotated, theta = config.rotary
            frequencies = inverse_frequencies(self.rotated, theta)
            cos, sin = rotation_tables(positions, frequencies, config.hidden_size // config.num_heads)
            self.table = Tensor(np.stack([cos[:, 1], sin[:, 1]]))  # those of keys: queries are divided by themselves
        elif config.window_frames is not None:
            self.table = Tensor(sinusoids(positions, config.hidden_size))
        else:
            table = Tensor(sinusoids(positions, config.hidden_size))
            self.embed_positions = Embedding(positions, config.hidden_size, table, trainable=False)
        self.layers = nn.CellList([EncoderLayer(config) for _ in range(config.num_layers)])
        self.layer_norm = LayerNorm(config.hidden_size)

    def construct(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        """input_features (clips, mel bins, frames); lengths int32 (clips), the frames that are not padding.

        With `window_frames` there are whole windows of frames. With `partial_windows` lengths is (clips, 2): the second
        number counts the frames that the clip came with. What is beyond them must be zero, and its positions come out
        as zero.

        Returns (clips, positions, hidden_size): half as many positions as frames, a quarter where pairs are pooled.
        """
        return self.end(self.through(self.begin(input_features, lengths), lengths, 0, len(self.layers)), lengths)

    def begin(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        """What the first layer takes: (clips, positions, hidden_size), or the windows of all clips as so many clips."""
        x = ops.transpose(input_features.astype(self.conv1.weight.dtype), (0, 2, 1))
        if self.window_frames is not None:
            x = x.reshape((-1, self.window_frames, x.shape[2]))
        x = ops.gelu(self.conv1(x))
        # conv2 pads with zeros where the frames end, not with what conv1 makes of zeros.
        if self.partial_windows:
            x = first_frames(x, _numbers(lengths, 1))
        if self.window_frames is not None:
            x = first_frames(x, self._frames(lengths, x.shape[0]))
        x = ops.gelu(self.conv2(x))
        if self.rotated is not None:
            return x
        if self.embed_positions is None:
            return x + self.table.astype(x.dtype)
        return x + self.embed_positions(ops.counting(x.shape[1]))

    def through(self, x: Tensor, lengths: Tensor, first: int, last: int) -> Tensor:
        """x, as `begin` gives it, after the layers from `first` on, before `last`."""
        clips, positions, width = x.shape
        mask = None
        if self.mask_padding:
            counts = self.positions(self._frames(lengths, clips))
            mask = padding_mask(counts, positions, self.num_heads, self.latency_block)
        rotation = None
        if self.rotated is not None:
            shape, table = (clips, self.num_heads, positions, width // self.num_heads), self.table.astype(x.dtype)
            rotation = (msops.broadcast_to(table[0], shape), msops.broadcast_to(table[1], shape), self.rotated)
        x = x.reshape((clips * positions, width))
        for i in range(first, last):
            x = self.layers[i](x, clips, mask, rotation)
        return x.reshape((clips, positions, width))

    def end(self, x: Tensor, lengths: Tensor) -> Tensor:
        """What the encoder returns, of what the last layer gives."""
        if self.window_frames is not None:
            x = x.reshape((lengths.shape[0], -1, x.shape[2]))
        if self.pool_pairs:
            x = ops.average_pairs(x)
        x = self.layer_norm(x)
        return first_frames(x, (_numbers(lengths, 1) - 1) // 2 + 1) if self.partial_windows else x

    def _frames(self, lengths: Tensor, windows: int) -> Tensor:
        """The frames of audio in each of so many windows of all clips, int32 (windows)."""
        if self.partial_windows:
            return _numbers(lengths, 0)
        if self.window_frames is None:
            return lengths
        before = ops.counting(windows // lengths.shape[0]) * self.window_frames
        return msops.clip_by_value(lengths.expand_dims(1) - before, 0, self.window_frames).reshape((-1,))

    def positions(self, frames: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """How many positions the layers see of so many mel frames."""
        return (frames - 1) // 2 + 1  # conv2

    def output_lengths(self, frames: np.ndarray) -> np.ndarray:
        """How many of its rows the encoder makes of so many mel frames."""
        positions = self.positions(frames)
        return (positions - 2) // 2 + 1 if self.pool_pairs else positions


def padding_mask(counts: Tensor, positions: int, heads: int, latency_block: int | None = None) -> Tensor:
    """fp32 (clips, 1, 1, positions): `ops.MASKED` from the position `counts`, int32 (clips), on.

    With latency_block (clips, heads, positions, positions), also for those in a later block of so many positions than
    the one that attends.
    """
    row = hidden_keys(counts, positions)
    if latency_block is None:
        return row
    block = ops.counting(positions) // latency_block
    later = (block.expand_dims(0) > block.expand_dims(1)).astype(ms.float32) * ops.MASKED  # (queries, keys)
    return msops.tile(row + later, (1, heads, 1, 1))


def hidden_keys(counts: Tensor, positions: int) -> Tensor:
    """fp32 (batch, 1, 1, positions): `ops.MASKED` from the position `counts`, int32 (batch), on."""
    hidden = ops.counting(positions).expand_dims(0) >= counts.expand_dims(1)
    return (hidden.astype(ms.float32) * ops.MASKED).reshape((-1, 1, 1, positions))


def first_frames(x: Tensor, counts: Tensor) -> Tensor:
    """x (clips, time, width) with zeros from the time `counts`, int32 (clips), on."""
    _, time, width = x.shape
    return x * ops.time_mask(counts, time, width).astype(x.dtype)


def _numbers(lengths: Tensor, which: int) -> Tensor:
    """Of int32 lengths (clips, 2) the first or the second number of each clip."""
    return ops.split(lengths, (1, 1), 1)[which].reshape((-1,))

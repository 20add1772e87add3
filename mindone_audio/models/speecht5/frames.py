"""The ends of SpeechT5's decoder of speech: the prenet of log-mel frames, and the postnet that smooths them."""

import mindspore as ms
from mindspore import Tensor, nn
from mindspore import ops as msops
from transformers import SpeechT5Config

from mindone_audio.backbone import conv_ops, ops
from mindone_audio.backbone.encoder import first_frames
from mindone_audio.backbone.layers import Conv1d, Linear, parameter
from mindone_audio.models.speecht5.encoder import ScaledPositions

_EPSILON = 1e-5  # of PyTorch's BatchNorm1d


class FramePrenet(nn.Cell):
    """Log-mel frames and a voice to what the decoder's layers take (arXiv 1712.05884, section 2.2)."""

    def __init__(self, config: SpeechT5Config):
        super().__init__()
        units, layers = config.speech_decoder_prenet_units, config.speech_decoder_prenet_layers
        widths = [config.num_mel_bins, *[units] * layers]
        self.layers = nn.CellList([Linear(a, b, bias=True) for a, b in zip(widths, widths[1:])])
        self.final_layer = Linear(units, config.hidden_size, bias=True)
        self.encode_positions = ScaledPositions()
        speaker = config.speaker_embedding_dim
        self.speaker_embeds_layer = Linear(config.hidden_size + speaker, config.hidden_size, bias=True)

    def construct(self, frames: Tensor, positions: Tensor, voices: Tensor, kept: Tensor) -> Tensor:
        """(rows, hidden_size) of frames (rows, bins).

        positions (1 or rows, hidden_size): rows of `interleaved_sinusoids`; voices (rows, speaker_embedding_dim) of
        length 1; kept (layers, 1, units): what each layer's outputs are multiplied with, 1 for all without dropout.
        """
        x, kept = frames, ops.split(kept, (1,) * len(self.layers), 0)
        for i, layer in enumerate(self.layers):
            x = ops.relu(layer(x)) * kept[i].reshape((1, -1))
        x = self.final_layer(x) + positions.astype(x.dtype) * self.encode_positions.alpha
        return ops.relu(self.speaker_embeds_layer(msops.concat((x, voices), -1)))


class BatchNorm(nn.Cell):
    """The parameters of PyTorch's BatchNorm1d, whose statistics are those of its training."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = parameter((channels,), "ones")
        self.bias = parameter((channels,), "zeros")
        self.running_mean = parameter((channels,), "zeros", trainable=False)
        self.running_var = parameter((channels,), "ones", trainable=False)

    def affine(self) -> tuple[Tensor, Tensor]:
        """What x is multiplied with and what is added then, both fp32 (channels)."""
        weight, bias, mean, variance = (
            value.astype(ms.float32) for value in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * msops.rsqrt(variance + _EPSILON)
        return scale, bias - mean * scale


class PostnetLayer(nn.Cell):
    """A convolution and a batch norm, as one convolution."""

    def __init__(self, in_channels: int, channels: int, kernel: int):
        super().__init__()
        self.edge = (kernel - 1) // 2
        self.conv = Conv1d(in_channels, channels, kernel, padding=(self.edge, self.edge), bias=False)
        self.batch_norm = BatchNorm(channels)

    def construct(self, x: Tensor) -> Tensor:
        scale, bias = self.batch_norm.affine()
        weight = (self.conv.weight.astype(ms.float32) * scale.reshape((-1, 1, 1))).astype(x.dtype)
        return conv_ops.conv1d(x, weight, bias.astype(x.dtype), 1, (self.edge, self.edge))


class SpeechPostnet(nn.Cell):
    """Hidden states to frames and the probability that the speech ends, and frames to smoother ones."""

    def __init__(self, config: SpeechT5Config):
        super().__init__()
        kernel, layers = config.speech_decoder_postnet_kernel, config.speech_decoder_postnet_layers
        if kernel % 2 == 0:
            raise ValueError(
                f"speech_decoder_postnet_kernel {kernel} is even, and only odd ones keep a length: correct config.json"
            )
        self.feat_out = Linear(config.hidden_size, config.num_mel_bins * config.reduction_factor, bias=True)
        self.prob_out = Linear(config.hidden_size, config.reduction_factor, bias=True)
        widths = [config.num_mel_bins, *[config.speech_decoder_postnet_units] * (layers - 1), config.num_mel_bins]
        self.layers = nn.CellList([PostnetLayer(a, b, kernel) for a, b in zip(widths, widths[1:])])
        self.last, self.reach = layers - 1, layers * (kernel // 2)

    def construct(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Smoother frames (batch, frames, bins), each of which depends on `reach` frames before and after it.

        lengths int32 (batch): how many frames are there; the others are seen as zeros, which is what is beyond all of
        them.
        """
        y = frames
        for i, layer in enumerate(self.layers):
            y = layer(first_frames(y, lengths))
            y = y if i == self.last else ops.tanh(y)
        return frames + y

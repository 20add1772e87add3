"""`SpeechT5HifiGan`: the vocoder of SpeechT5, published as a checkpoint of its own."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from transformers import SpeechT5HifiGanConfig

from mindone_audio.backbone.checkpoint_model import CheckpointModel, to_numpy
from mindone_audio.backbone.vocoder import HifiGan, VocoderConfig
from mindone_audio.backbone.vocoder_parts import frames_of_graph, in_parts
from mindone_audio.generation.generate import EngineMixin


class Vocode(nn.Cell):
    """`HifiGan` as one graph."""

    def __init__(self, vocoder: HifiGan):
        super().__init__(auto_prefix=False)
        self.vocoder = vocoder

    def construct(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return self.vocoder(frames, lengths)


class SpeechT5HifiGan(CheckpointModel, EngineMixin):
    """Log-mel frames to a waveform: `from_pretrained`, `construct`, and `waveform` by compiled graphs.

    Weights may be stored whole, or as length and direction in either of PyTorch's spellings.
    """

    config_class = SpeechT5HifiGanConfig
    main_input_name = "spectrogram"
    weight_prefixes = (("", "vocoder."),)

    def __init__(self, config: SpeechT5HifiGanConfig):
        sizes = VocoderConfig(
            in_channels=config.model_in_dim,
            upsample_initial_channel=config.upsample_initial_channel,
            upsample_rates=tuple(config.upsample_rates),
            upsample_kernel_sizes=tuple(config.upsample_kernel_sizes),
            resblock_kernel_sizes=tuple(config.resblock_kernel_sizes),
            resblock_dilation_sizes=tuple(map(tuple, config.resblock_dilation_sizes)),
            leaky_relu_slope=config.leaky_relu_slope,
            normalize_before=bool(config.normalize_before),
        )
        super().__init__(config, None, None, None)
        self.vocoder = HifiGan(sizes)

    @classmethod
    def can_generate(cls) -> bool:
        return False

    def pack_weights(self, packed: bool = True) -> None:
        """Nothing: convolutions are not packed."""

    def get_input_embeddings(self) -> None:
        """It has none."""

    def get_output_embeddings(self) -> None:
        """It has none."""

    @property
    def dtype(self) -> ms.Type:
        """That of the weights."""
        return self.vocoder.conv_pre.weight.dtype

    @property
    def sampling_rate(self) -> int:
        """Of what it makes, in Hz."""
        return self.config.sampling_rate

    def construct(self, spectrogram, lengths=None) -> Tensor:
        """Waveforms (batch, samples) of log-mel frames (batch, frames, bins), or (samples) of one (frames, bins).

        lengths: how many frames of each are no padding, by default all. A batch gives what each gives alone, and zeros
        behind it; transformers' class has no lengths and lets padding sound. Raises `ValueError` for other shapes.
        """
        frames = to_numpy(spectrogram)
        single = frames.ndim == 2
        frames = frames[None] if single else frames
        self._check(frames.shape[1:] if frames.ndim == 3 else frames.shape)
        lengths = np.full(len(frames), frames.shape[1]) if lengths is None else np.asarray(to_numpy(lengths))
        if lengths.shape != frames.shape[:1] or lengths.min() < 1 or lengths.max() > frames.shape[1]:
            raise ValueError(f"lengths {lengths.tolist()} do not fit spectrograms of shape {frames.shape}")
        waves = self.vocoder(Tensor(frames.astype(np.float32)), Tensor(lengths.astype(np.int32)))
        return waves[0] if single else waves

    def waveform(self, frames: np.ndarray, first: int = 0, last: int | None = None, compile: bool = True) -> np.ndarray:
        """The samples fp32 of log-mel frames (frames, bins), or of those from `first` on before `last`.

        `last` None: up to the end of the waveform. What is vocoded of a part is what is vocoded of the whole, as long
        as `reach` frames behind the part are given. compile=False interprets the same code. Raises `ValueError` for
        other shapes.
        """
        self._check(frames.shape)

        def sound(begin: int, end: int) -> np.ndarray:
            return self._sound(frames[begin:end], compile)

        return in_parts(self.vocoder.config, sound, len(frames), first, last)

    @property
    def reach(self) -> int:
        """How many frames before and after its own a sample depends on, at most."""
        return self.vocoder.config.reach

    def _sound(self, frames: np.ndarray, compile: bool) -> np.ndarray:
        width = frames_of_graph(len(frames))
        run = self.engine(compile).other(("vocoder", width), lambda: Vocode(self.vocoder), f"{width} frames of sound")
        padded = np.pad(frames.astype(np.float32), ((0, width - len(frames)), (0, 0)))
        samples = run(Tensor(padded[None]), Tensor(np.array([len(frames)], np.int32)))
        return to_numpy(samples)[0, : self.vocoder.config.num_samples(len(frames))].astype(np.float32)

    def _check(self, shape: tuple[int, ...]) -> None:
        bins = self.vocoder.config.in_channels
        if len(shape) != 2 or shape[1] != bins or not shape[0]:
            raise ValueError(
                f"the spectrogram has shape {tuple(shape)}, this vocoder takes (frames, {bins}) or a batch of them: "
                "take the vocoder that belongs to the model"
            )

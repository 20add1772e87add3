"""WhisperVQ: speech to tokens, 25 a second, by a vector quantiser behind Whisper's encoder (as in arXiv 2402.01912).

The speech tokenizer of Ichigo, and of use without it. `scripts/convert_whisper_vq.py` makes its checkpoints.
"""

import json
import os
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops
from mindspore.nn.utils import no_init_parameters
from safetensors.numpy import save_file
from transformers import WhisperConfig, WhisperFeatureExtractor

from mindone_audio.backbone import ops
from mindone_audio.backbone.compiled import one_graph
from mindone_audio.backbone.encoder import AudioEncoder, EncoderConfig
from mindone_audio.backbone.layers import LayerNorm, Linear, parameter
from mindone_audio.backbone.published_config import encoder_config
from mindone_audio.inputs.audio import AudioError, fit_window, is_one_clip, load_clips
from mindone_audio.inputs.log_mel import log_mel
from mindone_audio.machine import device
from mindone_audio.weights import hub
from mindone_audio.weights.parameters import SINGLE_FILE, load_parameters

MODEL_TYPE = "whisper_vq"
CONVERT = "python scripts/convert_whisper_vq.py whisper-vq-stoks-v3-7lang-fixed.model --out whisper_vq"
FRAMES_PER_TOKEN = 4  # mel frames: the encoder's convolution halves them, the mean of pairs does so again
SILENCE = -1.5  # of a log-mel without any energy: (log10(1e-10) + 4) / 4
_best = msops.Argmax(-1, ms.int32)


class SoundTokens(nn.Cell):
    """The graph: the log-mel of a whole window to its tokens."""

    def __init__(self, encoder: EncoderConfig, intermediate_size: int, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.encoder = AudioEncoder(encoder)
        self.layer_norm = LayerNorm(encoder.hidden_size)
        self.fc1 = Linear(encoder.hidden_size, intermediate_size, bias=True)
        self.fc2 = Linear(intermediate_size, encoder.hidden_size, bias=True)
        self.project_in = Linear(encoder.hidden_size, codebook_dim, bias=True)
        self.codebook = parameter((codebook_size, codebook_dim))

    def construct(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        """log_mel fp32 (clips, mel bins, frames) and lengths int32 (clips), in frames, to int32 (clips, frames // 4).

        Whisper hears padding like sound, so lengths mask nothing. The codebook's rows have unit length, therefore the
        largest dot product is the most similar one.
        """
        x = ops.average_pairs(self.encoder(log_mel, lengths))
        x = x + self.fc2(ops.gelu(self.fc1(self.layer_norm(x))))
        return _best(ops.linear(self.project_in(x), self.codebook))


class WhisperVQ:
    """A speech tokenizer: `WhisperVQ.from_pretrained(folder).encode(audio)`."""

    def __init__(self, config: dict):
        """config: a checkpoint's config.json. Raises `ValueError` where it describes another model or lacks a field."""
        if config.get("model_type") != MODEL_TYPE:
            raise ValueError(f"model_type {config.get('model_type')!r} is no {MODEL_TYPE!r}: make one with `{CONVERT}`")
        device.prepare()
        sizes = ("intermediate_size", "codebook_size", "codebook_dim")
        if missing := [name for name in (*sizes, "encoder") if name not in config]:
            raise ValueError(f"the config of WhisperVQ lacks {', '.join(missing)}: convert again with `{CONVERT}`")
        self.config = config
        encoder = encoder_config(WhisperConfig(**config["encoder"]), pool_pairs=False, mask_padding=False)
        self.cell = SoundTokens(encoder, *(config[name] for name in sizes)).set_train(False)
        self.window = encoder.num_mel_frames
        self.feature_extractor = WhisperFeatureExtractor(feature_size=encoder.num_mel_bins)
        self._graph = one_graph(self.cell, "the speech tokenizer")

    @classmethod
    def from_pretrained(cls, name_or_dir: str | os.PathLike, **download) -> "WhisperVQ":
        """Load a converted checkpoint from a folder or the Hugging Face hub, in float32 as the original computes.

        download: revision, cache_dir, token, local_files_only, subfolder. Raises `FileNotFoundError`, `OSError`,
        `ValueError` for a checkpoint of another kind, `hub.CheckpointError` for wrong tensors.
        """
        if os.path.isfile(name_or_dir):
            raise ValueError(f"{name_or_dir} is a file, and WhisperVQ loads folders: convert it with `{CONVERT}`")
        device.check_versions()
        folder = hub.checkpoint_folder(name_or_dir, **download)
        with no_init_parameters():
            tokenizer = cls(hub.read_config(folder))
        load_parameters(tokenizer.cell, folder, lambda name, stored: ms.float32)
        return tokenizer

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write config.json and model.safetensors, which `from_pretrained` loads."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.asnumpy() for name, p in self.cell.parameters_and_names()}, folder / SINGLE_FILE)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")

    @property
    def sampling_rate(self) -> int:
        """Of the samples that `encode` takes, in Hz."""
        return self.feature_extractor.sampling_rate

    def encode(self, audio: Any, *, truncation: bool = False) -> np.ndarray | list[np.ndarray]:
        """The tokens of a clip, or of each clip of a list: int32 [tokens], one for each 40 ms that are complete.

        audio: anything `mindone_audio.load_audio` takes, or a list of such; an array must be at `sampling_rate`.
        truncation: the tokens of the first 30 s of a longer clip, as the original gives without being asked. Raises
        `AudioError` for a clip that cannot be read, is longer than 30 s, or is too short for one token.
        """
        several = isinstance(audio, (list, tuple)) and not is_one_clip(audio)
        clips = load_clips(audio if several else [audio], self.sampling_rate)
        tokens = [self._tokens(clip, truncation, f"audio clip {number}") for number, clip in enumerate(clips)]
        return tokens if several else tokens[0]

    def _tokens(self, clip: np.ndarray, truncation: bool, name: str) -> np.ndarray:
        hop = self.feature_extractor.hop_length
        if len(clip) < FRAMES_PER_TOKEN * hop:
            raise AudioError(
                f"{name} has {len(clip)} samples, too few for one sound token: "
                f"give at least {FRAMES_PER_TOKEN * hop} ({self.sampling_rate} a second)"
            )
        fit_window(clip, self.window * hop / self.sampling_rate, self.sampling_rate, truncation=truncation, name=name)
        mel = self.log_mel(clip)[:, : self.window]
        frames = mel.shape[1]
        padded = np.full((1, len(mel), self.window), SILENCE, np.float32)
        padded[0, :, :frames] = mel
        tokens = self._graph(Tensor(padded), Tensor([frames], ms.int32)).asnumpy()[0]
        return tokens[: frames // FRAMES_PER_TOKEN]

    def log_mel(self, clip: np.ndarray) -> np.ndarray:
        """Whisper's log-mel spectrogram of samples [samples], not padded: float32 [mel bins, samples // 160]."""
        return log_mel(clip, self.feature_extractor)

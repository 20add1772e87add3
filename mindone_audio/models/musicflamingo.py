"""Audio Flamingo Next and Music Flamingo: Audio Flamingo 3 whose audio embeddings are rotated by when they were heard.

The formula of the rotation is that of transformers' modeling_musicflamingo.py, which is what the checkpoints were
trained with: pairs of dimensions turn by the window's number and by the place in it, both times the seconds since the
clip began.
"""

import math
from typing import Any

import numpy as np
from mindspore import Tensor
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.audio_language_model import AudioLanguageModel
from mindone_audio.backbone.config_fields import refuse_fields
from mindone_audio.backbone.decoder import Decoder
from mindone_audio.backbone.encoder import AudioEncoder, EncoderConfig
from mindone_audio.backbone.prompt import Prompt
from mindone_audio.backbone.published_config import decoder_config, encoder_config
from mindone_audio.models.audioflamingo3 import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    Projector,
)

CHECKPOINTS = ("nvidia/audio-flamingo-next-hf", "nvidia/audio-flamingo-next-think-hf", "nvidia/music-flamingo-2601-hf")
PROVED = "float32 on CPU against transformers 5.23 (PyTorch, model and processor), with a small random model"

_FRAMES_PER_TOKEN = 4
_SWAPPED = Tensor(np.array([1, 0], np.int32))


class MusicFlamingoConfig(AudioFlamingo3Config):
    """config.json of the checkpoints, which transformers has from version 5 on; the defaults are that one's."""

    model_type = "musicflamingo"

    def __init__(
        self,
        audio_config: Any = None,
        audio_bos_token_id: int = 151670,
        audio_eos_token_id: int = 151671,
        audio_frame_step: float = 0.01,
        rope_parameters: dict | None = None,
        partial_rotary_factor: float = 0.2,
        **others: Any,
    ):
        self.audio_bos_token_id, self.audio_eos_token_id = audio_bos_token_id, audio_eos_token_id
        self.audio_frame_step = audio_frame_step
        self.rope_parameters = {
            **{"rope_type": "default", "rope_theta": 1200.0, "partial_rotary_factor": partial_rotary_factor},
            **(rope_parameters or {}),
        }
        super().__init__(audio_config, **others)


class TimedEncoder(AudioEncoder):
    """Audio Flamingo 3's encoder, whose rows are rotated by time at its end.

    Its lengths are int32 (windows, 2): frames of audio, and the number of the window in its clip.
    """

    def __init__(self, config: EncoderConfig, theta: float, part: float, frame_step: float):
        super().__init__(config)
        width = int(config.hidden_size * part)
        frequencies = (1 / theta ** (np.arange(0, width, 2) / width)).astype(np.float32)
        self.rows = config.num_mel_frames // _FRAMES_PER_TOKEN  # of a whole window
        self.turned, self.seconds, self.theta = 4 * len(frequencies), frame_step * _FRAMES_PER_TOKEN, theta
        self.frequencies = Tensor(np.repeat(frequencies, 2))
        turns = (np.arange(self.rows, dtype=np.float32) / np.float32(theta)) * np.float32(2 * math.pi)
        self.place_angles = Tensor(turns[:, None] * np.repeat(frequencies, 2))
        self.signs = Tensor(np.tile(np.array([-1, 1], np.float32), self.turned // 2))

    def begin(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        return super().begin(input_features, _column(lengths, 0))

    def through(self, x: Tensor, lengths: Tensor, first: int, last: int) -> Tensor:
        return super().through(x, _column(lengths, 0), first, last)

    def end(self, x: Tensor, lengths: Tensor) -> Tensor:
        """What the encoder returns, of what the last layer gives."""
        x = super().end(x, _column(lengths, 0))
        windows, rows, width = x.shape
        number = _column(lengths, 1).astype(self.frequencies.dtype).reshape((windows, 1, 1))
        seconds = number * self.rows * self.seconds
        seconds = seconds + (ops.counting(rows).astype(seconds.dtype) * self.seconds).reshape((1, rows, 1))
        window_angles = (number / self.theta) * self.frequencies.reshape((1, 1, -1))
        shape = (windows, rows, self.turned // 2)
        place_angles = self.place_angles
        if rows < self.rows:
            place_angles = ops.split(place_angles, (rows, self.rows - rows), 0)[0]
        angles = msops.concat(
            (msops.broadcast_to(window_angles, shape), msops.broadcast_to(place_angles.expand_dims(0), shape)), -1
        )
        angles = angles * (-seconds * 2 * math.pi)
        turned, rest = ops.split(x, (self.turned, width - self.turned), 2)
        pairs = turned.reshape((-1, self.turned // 2, 2))
        swapped = msops.gather(pairs, _SWAPPED, 2).reshape(turned.shape)
        turned = turned * msops.cos(angles).astype(x.dtype) + swapped * (msops.sin(angles) * self.signs).astype(x.dtype)
        return msops.concat((turned, rest), -1)


def _column(lengths: Tensor, which: int) -> Tensor:
    return ops.split(lengths, (1, 1), 1)[which].reshape((-1,))


class MusicFlamingoForConditionalGeneration(AudioFlamingo3ForConditionalGeneration):
    """Audio Flamingo Next on MindSpore: `from_pretrained`, `construct` (logits and loss) and `generate`."""

    config_class = MusicFlamingoConfig

    def __init__(self, config: MusicFlamingoConfig):
        refuse_fields(config, "config.json")
        rope = config.rope_parameters
        if config.projector_hidden_act != "gelu" or rope["rope_type"] != "default":
            raise ValueError(
                f"projector_hidden_act {config.projector_hidden_act!r} and rope_parameters {rope}: only gelu and the "
                "default type are supported"
            )
        encoder = encoder_config(config.audio_config, pool_pairs=True, mask_padding=True)
        if (turned := 2 * int(encoder.hidden_size * rope["partial_rotary_factor"])) > encoder.hidden_size or turned % 4:
            raise ValueError(
                f"rope_parameters.partial_rotary_factor {rope['partial_rotary_factor']} rotates {turned} of "
                f"{encoder.hidden_size} dimensions: it must be a multiple of 4, and not more: correct config.json"
            )
        decoder = decoder_config(config.text_config)
        tower = TimedEncoder(encoder, rope["rope_theta"], rope["partial_rotary_factor"], config.audio_frame_step)
        projector = Projector(encoder.hidden_size, decoder.hidden_size, config.projector_bias)
        AudioLanguageModel.__init__(self, config, tower, projector, Decoder(decoder), config.audio_token_id)

    def blank(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """As for other models, the first window of a clip."""
        features, lengths = super().blank(width)
        return features, np.stack([lengths, np.zeros_like(lengths)], 1)

    def prompt(
        self, input_ids, attention_mask=None, labels=None, **audio
    ) -> tuple[Prompt, np.ndarray | None, np.ndarray]:
        """As for other models, with lengths int32 (windows, 2): see `TimedEncoder`.

        Placeholders that follow each other are a clip, so that its windows are those that fill them.
        """
        prompt, features, lengths = super().prompt(input_ids, attention_mask, labels, **audio)
        is_audio = np.pad(prompt.audio_index >= 0, ((0, 0), (1, 1))).astype(int)
        _, begins = np.nonzero(np.diff(is_audio) == 1)
        _, ends = np.nonzero(np.diff(is_audio) == -1)
        tokens = self.audio_tokens(lengths) if len(lengths) else lengths
        firsts = np.cumsum(tokens) - tokens  # before each window
        clips = np.searchsorted(np.cumsum(ends - begins), firsts, side="right")
        numbers = np.arange(len(clips)) - np.searchsorted(clips, clips)
        return prompt, features, np.stack([lengths, numbers], 1).astype(np.int32)


class MusicFlamingoProcessor(AudioFlamingo3Processor):
    """Text and audio to model inputs, and tokens back to text, in the file formats of transformers 5."""

    frames_transcriptions = False

    def __init__(
        self,
        feature_extractor=None,
        tokenizer=None,
        chat_template=None,
        audio_token="<sound>",
        audio_bos_token="<|sound_bos|>",
        audio_eos_token="<|sound_eos|>",
        max_audio_len=1200,
    ):
        super().__init__(feature_extractor, tokenizer, chat_template, audio_token, max_audio_len=max_audio_len)
        self.audio_bos_token, self.audio_eos_token = audio_bos_token, audio_eos_token
        self.around_audio = self._token_id(audio_bos_token), self._token_id(audio_eos_token)

    def expanded(self, count: int) -> str:
        """What a placeholder of so many embeddings becomes."""
        return self.audio_bos_token + self.audio_token * count + self.audio_eos_token

    def transcription(self, answer: str) -> str:
        """What was said: the whole answer."""
        return answer.strip()


MODEL, PROCESSOR = MusicFlamingoForConditionalGeneration, MusicFlamingoProcessor

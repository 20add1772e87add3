"""`SpeechT5ForTextToSpeech`: text and a voice to log-mel frames and, with a vocoder, to a waveform."""

from collections.abc import Iterator

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops
from transformers import SpeechT5Config

from mindone_audio.backbone import ops
from mindone_audio.backbone.checkpoint_model import CheckpointModel, to_numpy
from mindone_audio.backbone.decoder import causal_mask
from mindone_audio.backbone.encoder import hidden_keys
from mindone_audio.backbone.text_decoder import TextDecoder
from mindone_audio.generation.generate import EngineMixin
from mindone_audio.generation.settings import real, whole
from mindone_audio.models.speecht5.encoder import TextEncoder, interleaved_sinusoids
from mindone_audio.models.speecht5.frames import FramePrenet, SpeechPostnet
from mindone_audio.models.speecht5.sizes import DECODER_PREFIXES, check_config, decoder_config, stack_config
from mindone_audio.models.speecht5.speaking import Speaking, SpeechEngine, Text
from mindone_audio.models.speecht5.vocoder import SpeechT5HifiGan
from mindone_audio.models.speecht5.voices import speaker_embeddings as voices_of


class SpeechT5ForTextToSpeech(CheckpointModel, EngineMixin):
    """SpeechT5 that speaks: `from_pretrained`, `generate_speech`, `stream_speech`, and `construct` (frames)."""

    config_class = SpeechT5Config
    engine_class = SpeechEngine
    is_taught = False
    weight_prefixes = (
        ("speecht5.encoder.", "text_encoder."),
        ("speecht5.decoder.prenet.", "prenet."),
        *DECODER_PREFIXES,
        ("speech_decoder_postnet.", "postnet."),
    )

    def __init__(self, config: SpeechT5Config):
        check_config(config)
        decoder = TextDecoder(decoder_config(config, 0, config.max_speech_positions))
        super().__init__(config, None, None, decoder)
        self.text_encoder = TextEncoder(stack_config(config), config.vocab_size)
        self.prenet, self.postnet = FramePrenet(config), SpeechPostnet(config)

    def pack_weights(self, packed: bool = True) -> None:
        """Nothing: this decoder's weights are not packed."""

    @property
    def dtype(self) -> ms.Type:
        """That of the decoder's weights."""
        return self.language_model.model.layers[0].fc1.weight.dtype

    def warm_up(self, rows: int = 1, tokens: int = 512) -> None:
        """Raises `ValueError`: what is compiled depends on the text and on how long it is spoken."""
        raise ValueError("a SpeechT5 model that speaks has no sizes to warm up: speak a text with it")

    def get_input_embeddings(self) -> nn.Cell:
        return self.text_encoder.prenet.embed_tokens

    def get_output_embeddings(self) -> None:
        """It has none: it makes frames."""

    def construct(self, input_ids, decoder_input_values, speaker_embeddings, attention_mask=None) -> Tensor:
        """Log-mel frames fp32 (batch, steps * reduction_factor, bins), given what was said before; not for training.

        input_ids int (batch, tokens) and their attention_mask; decoder_input_values (batch, steps, bins): the frame
        that each step is given, the first of zeros; speaker_embeddings as for `generate_speech`.
        """
        ids = self._texts(input_ids, attention_mask)
        frames = to_numpy(decoder_input_values).astype(np.float32)
        batch, steps, bins = frames.shape
        voices = np.repeat(self.voices(speaker_embeddings, len(ids)), steps, 0)
        lengths, longest = Tensor(np.array(list(map(len, ids)), np.int32)), max(map(len, ids))
        padded = np.stack([np.pad(row, (0, longest - len(row))) for row in ids]).astype(np.int32)
        context = self.text_encoder(Tensor(padded), lengths)
        places = msops.tile(interleaved_sinusoids(steps, self.config.hidden_size), (batch, 1))
        kept = [self.config.speech_decoder_prenet_layers, 1, self.config.speech_decoder_prenet_units]
        rows = Tensor(frames.reshape((-1, bins))).astype(self.dtype)
        x = self.prenet(rows, places, Tensor(voices).astype(self.dtype), msops.ones(tuple(kept), self.dtype))
        mask = causal_mask(ops.counting(steps), Tensor(np.ones((batch, steps), bool)))
        heard = msops.tile(hidden_keys(lengths, longest), (1, self.config.decoder_attention_heads, steps, 1))
        context = context.reshape((-1, context.shape[-1]))
        hidden = self.language_model.model(x.reshape((batch, steps, -1)), mask, None, None, None, None, context, heard)
        made = self.postnet.feat_out(hidden).reshape((batch, -1, bins))
        return self.postnet(made, Tensor(np.full(batch, made.shape[1], np.int32))).astype(ms.float32)

    def generate_speech(
        self,
        input_ids,
        speaker_embeddings=None,
        attention_mask=None,
        threshold: float = 0.5,
        minlenratio: float = 0.0,
        maxlenratio: float = 20.0,
        vocoder: SpeechT5HifiGan | None = None,
        return_output_lengths: bool = False,
        *,
        seed: int | None = None,
        compile: bool = True,
    ) -> Tensor | tuple[Tensor, list[int]]:
        """Speak texts: waveforms fp32 (batch, samples) by a vocoder, or log-mel frames fp32 (batch, frames, bins).

        A single text gives (samples) or (frames, bins). With return_output_lengths there is always a batch, and beside
        it how many samples or frames of each are no padding, which is zeros.

        input_ids int (batch, tokens) or (tokens), as the processor makes them, padded where attention_mask is 0, or
        where they are the padding token. speaker_embeddings: an array (speaker_embedding_dim), the same for all, or
        (batch, speaker_embedding_dim), or a .npy or .safetensors file. threshold: the probability of the end at which a
        text ends. minlenratio, maxlenratio: how many frames there are at least and at most for each token of the text;
        max_speech_positions of config.json are the most steps. seed: of the prenet's dropout, None for none. It is
        how the model was trained and what published speech is made with: without it the voice is monotonous.
        compile=False interprets the same code. Raises `ValueError` for what does not fit together or cannot be, and
        `OSError` for a voice's file that cannot be read.

        A batch gives what each text gives alone. In transformers limits come from the longest text, and the vocoder
        hears the padding of shorter ones; its dropout is always on and drawn from PyTorch's global state.
        """
        speaking = self._speaking(
            input_ids, speaker_embeddings, attention_mask, threshold, minlenratio, maxlenratio, seed, compile
        )
        self._check_vocoder(vocoder)
        for _ in speaking.steps():
            pass
        made = [speaking.engine.smooth(speaking.frames(text)) for text in range(len(speaking.texts))]
        if vocoder is not None:
            made = [vocoder.waveform(frames, compile=compile) for frames in made]
        if len(made) == 1 and not return_output_lengths:
            return Tensor(made[0])
        lengths = [len(one) for one in made]
        padded = [np.pad(one, ((0, max(lengths) - len(one)), *[(0, 0)] * (one.ndim - 1))) for one in made]
        return (Tensor(np.stack(padded)), lengths) if return_output_lengths else Tensor(np.stack(padded))

    def stream_speech(
        self,
        input_ids,
        speaker_embeddings=None,
        vocoder: SpeechT5HifiGan | None = None,
        *,
        threshold: float = 0.5,
        minlenratio: float = 0.0,
        maxlenratio: float = 20.0,
        seed: int | None = None,
        chunk_frames: int = 32,
        compile: bool = True,
    ) -> Iterator[np.ndarray]:
        """The waveform of one text in pieces fp32 (samples), as soon as they are made; together they are the whole.

        chunk_frames: of a piece at least; the last one has what is left. A piece comes when the frames behind it are
        made that the postnet and the vocoder look at. The other arguments and errors are those of `generate_speech`,
        checked here and not at the first piece.
        """
        chunk_frames = whole("chunk_frames", chunk_frames, 1)
        if vocoder is None:
            raise ValueError("stream_speech makes sound, which takes a vocoder: SpeechT5HifiGan.from_pretrained(...)")
        self._check_vocoder(vocoder)
        speaking = self._speaking(
            input_ids, speaker_embeddings, None, threshold, minlenratio, maxlenratio, seed, compile
        )
        if len(speaking.texts) != 1:
            raise ValueError(
                f"{len(speaking.texts)} texts cannot be streamed at once: give one, or use generate_speech"
            )
        return self._pieces(speaking, vocoder, chunk_frames, compile)

    def _pieces(self, speaking: Speaking, vocoder: SpeechT5HifiGan, chunk: int, compile: bool) -> Iterator[np.ndarray]:
        smooth, sounded = np.zeros((0, self.config.num_mel_bins), np.float32), 0
        for _ in speaking.steps():
            made = speaking.count(0) - self.postnet.reach
            if speaking.ended[0] or made - vocoder.reach - sounded < chunk:
                continue
            smooth = np.concatenate([smooth, speaking.engine.smooth(speaking.frames(0), len(smooth), made)])
            yield vocoder.waveform(smooth, sounded, made - vocoder.reach, compile)
            sounded = made - vocoder.reach
        smooth = np.concatenate([smooth, speaking.engine.smooth(speaking.frames(0), len(smooth))])
        yield vocoder.waveform(smooth, sounded, compile=compile)

    def _speaking(
        self, input_ids, speaker_embeddings, attention_mask, threshold, minlenratio, maxlenratio, seed, compile
    ) -> Speaking:
        """The arguments of `generate_speech`, checked."""
        threshold = real("threshold", threshold, 0)
        ratios = real("minlenratio", minlenratio, 0), real("maxlenratio", maxlenratio, 0)
        seed = None if seed is None else whole("seed", seed, 0)
        texts, most = [], self.config.max_speech_positions
        ids = self._texts(input_ids, attention_mask)
        for row, voice in zip(ids, self.voices(speaker_embeddings, len(ids))):
            limits = (min(most, int(len(row) * ratio / self.config.reduction_factor)) for ratio in ratios)
            texts.append(Text(row, voice, *limits))
        return Speaking(self.engine(compile), texts, threshold, seed)

    def voices(self, speaker_embeddings, batch: int) -> np.ndarray:
        """Voices fp32 (batch, speaker_embedding_dim) of length 1; arguments and errors as for `generate_speech`."""
        voices = voices_of(speaker_embeddings, self.config.speaker_embedding_dim)
        if len(voices) not in (1, batch):
            raise ValueError(f"{len(voices)} voices for {batch} texts: give one, or one for each")
        return np.repeat(voices, batch, 0) if len(voices) == 1 else voices

    def _texts(self, input_ids, attention_mask) -> list[np.ndarray]:
        """The tokens of each text, without padding."""
        ids, mask = np.atleast_2d(to_numpy(input_ids)), to_numpy(attention_mask)
        mask = ids != self.config.pad_token_id if mask is None else np.atleast_2d(mask) != 0
        if ids.ndim != 2 or not len(ids) or mask.shape != ids.shape:
            raise ValueError(f"input_ids have shape {ids.shape} and attention_mask {mask.shape}: both (batch, tokens)")
        rows = [row[kept] for row, kept in zip(ids, mask)]
        for place, row in enumerate(rows):
            if not len(row):
                raise ValueError(f"text {place} has no token: leave empty texts out")
            if len(row) > self.config.max_text_positions:
                raise ValueError(
                    f"text {place} has {len(row)} tokens, the model has {self.config.max_text_positions} positions: "
                    "speak it sentence by sentence"
                )
            if row.min() < 0 or row.max() >= self.config.vocab_size:
                wrong = row[(row < 0) | (row >= self.config.vocab_size)][0]
                raise ValueError(
                    f"input_ids hold {wrong}, and this model has the tokens 0 to {self.config.vocab_size - 1}: use the "
                    "checkpoint's own processor"
                )
        return rows

    def _check_vocoder(self, vocoder) -> None:
        if vocoder is None:
            return
        if not isinstance(vocoder, SpeechT5HifiGan):
            raise ValueError(f"vocoder must be a SpeechT5HifiGan, not a {type(vocoder).__name__}")
        if vocoder.config.model_in_dim != self.config.num_mel_bins:
            raise ValueError(
                f"the vocoder takes {vocoder.config.model_in_dim} mel bins and the model makes "
                f"{self.config.num_mel_bins}: take the vocoder that belongs to the model"
            )

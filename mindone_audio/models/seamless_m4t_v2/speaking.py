"""From a translation to units of speech, and from units to a waveform, one text at a time."""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops
from transformers import SeamlessM4Tv2Config

from mindone_audio.backbone import ops
from mindone_audio.backbone.buckets import bucket
from mindone_audio.backbone.checkpoint_model import to_numpy
from mindone_audio.backbone.decoder import causal_mask
from mindone_audio.backbone.encoder import hidden_keys
from mindone_audio.backbone.vocoder import CodeHifiGan, PredictDurations, VocoderConfig, repeat_units
from mindone_audio.backbone.vocoder_parts import frames_of_graph, in_parts
from mindone_audio.generation.engine import Engine, returned
from mindone_audio.models.seamless_m4t_v2.units import ChooseUnits, Spell

_TOKENS, _CHARACTERS, _UNITS = 32, 64, 128  # of the shortest graphs


@dataclass(frozen=True)
class Translation:
    """A text that is to be spoken.

    source: what it translates, as the engine encodes it. tokens int32 (tokens): what the text decoder has read, from
    its start token on, without the end. characters, and counts: how many of them are each token's.
    """

    source: tuple[np.ndarray, np.ndarray]
    tokens: np.ndarray
    characters: list[int]
    counts: list[int]


@dataclass(frozen=True)
class Voice:
    """The vocoder's numbers of a language and of a speaker."""

    language: int
    speaker: int


def code_vocoder(config: SeamlessM4Tv2Config) -> CodeHifiGan:
    """The vocoder of a published config."""
    units = config.unit_hifi_gan_vocab_size, config.unit_embed_dim
    languages = config.vocoder_num_langs, config.lang_embed_dim
    speakers = config.vocoder_num_spkrs, config.spkr_embed_dim
    sizes = VocoderConfig(
        in_channels=units[1] + languages[1] + speakers[1],
        upsample_initial_channel=config.upsample_initial_channel,
        upsample_rates=tuple(config.upsample_rates),
        upsample_kernel_sizes=tuple(config.upsample_kernel_sizes),
        resblock_kernel_sizes=tuple(config.resblock_kernel_sizes),
        resblock_dilation_sizes=tuple(map(tuple, config.resblock_dilation_sizes)),
        leaky_relu_slope=config.leaky_relu_slope,
    )
    return CodeHifiGan(sizes, units, languages, speakers, config.variance_predictor_kernel_size)


class ReadTranslation(nn.Cell):
    """The text decoder on a translation, and on its hidden states the text-to-unit model's encoder, as a graph."""

    def __init__(self, model, tokens: int):
        super().__init__(auto_prefix=False)
        self.language_model, self.t2u_model = model.language_model, model.t2u_model
        self.num_heads, self.dtype = model.language_model.config.num_heads, model.t2u_model.dtype
        self.tables = model.language_model.position_tables(tokens, model.dtype)

    def construct(self, input_ids: Tensor, count: Tensor, rows: Tensor, heard: Tensor) -> Tensor:
        """input_ids int32 (1, length), of which int32 count (1) are no padding; rows (source positions, hidden), of
        which the decoder attends to int32 heard (1). Returns (1, length, hidden)."""
        length, columns = input_ids.shape[1], ops.counting(input_ids.shape[1])
        mask = causal_mask(columns, input_ids >= 0)
        hides = msops.tile(hidden_keys(heard, rows.shape[0]), (1, self.num_heads, length, 1))
        at = self.language_model.positions_at(self.tables, columns.expand_dims(0))
        embeddings = self.language_model.embed(input_ids)
        hidden = self.language_model(embeddings, at, mask, None, None, None, None, rows, hides)
        return self.t2u_model.encode(hidden.astype(self.dtype), count)


class SoundUnits(nn.Cell):
    """`CodeHifiGan` as a graph."""

    def __init__(self, vocoder: CodeHifiGan):
        super().__init__(auto_prefix=False)
        self.vocoder = vocoder

    def construct(self, units: Tensor, lengths: Tensor, language: Tensor, speaker: Tensor) -> Tensor:
        return self.vocoder(units, lengths, language, speaker)


def read(engine: Engine, text: Translation) -> Tensor:
    """States (1, tokens, hidden_size) of the text-to-unit model's encoder, with padding behind them."""
    rows, count = returned(engine.heard(text.source))
    model, many = engine.model, len(text.tokens)
    positions, width = model.context_positions, bucket(many, _TOKENS)
    if (lacking := positions - len(rows)) > 0:
        rows = msops.concat((rows, msops.zeros((lacking, rows.shape[1]), rows.dtype)))
    what = f"the hidden states of {width} tokens"
    run = engine.other(("translation", width), lambda: ReadTranslation(model, width), what)
    return run(_padded(text.tokens, width), _count(many), rows, _count(count))


def choose_units(engine: Engine, states: Tensor, characters: list[int], counts: list[int]) -> np.ndarray:
    """Units int32 (units) of a text, at least one for each character.

    states (1, tokens, hidden_size): of the text-to-unit model's encoder, with any padding behind them. characters, and
    counts: how many of them are each token's, as `Spelling` tells them.
    """
    t2u_model, many = engine.model.t2u_model, len(characters)
    width = bucket(many, _CHARACTERS)
    spell = engine.other(("spell", width), lambda: Spell(t2u_model), f"the units of {width} characters")
    x = _rows(states, np.repeat(np.arange(len(counts)), counts), width)
    x, log_durations = spell(x, _padded(characters, width), _count(many))
    places = np.arange(width)[None]
    places = repeat_units(places, np.array([many]), to_numpy(log_durations))[0]
    width = bucket(len(places), _UNITS)
    choose = engine.other(("units", width), lambda: ChooseUnits(t2u_model), f"{width} units of speech")
    return to_numpy(choose(_rows(x, places, width), _count(len(places))))[0, : len(places)]


def sound(engine: Engine, units: np.ndarray, voice: Voice) -> np.ndarray:
    """The waveform fp32 (samples) of units int32 (units), as `choose_units` gives them.

    What is no sound, the end and padding, is the unit that transformers takes for them. A unit that the vocoder does
    not have, at which transformers fails, is the next one that it has.
    """
    config, vocoder = engine.model.config, engine.model.vocoder
    silent = np.isin(units, (config.t2u_eos_token_id, config.t2u_pad_token_id))
    codes = np.clip(units - config.vocoder_offset, 0, config.unit_hifi_gan_vocab_size - 1)
    codes = np.where(silent, config.t2u_pad_token_id, codes)
    width = bucket(len(codes), _UNITS)
    what = f"the durations of {width} units"
    predict = engine.other(("durations", width), lambda: PredictDurations(vocoder), what)
    predicted = to_numpy(predict(_padded(codes, width), _count(len(codes))))
    frames = repeat_units(codes[None], np.array([len(codes)]), predicted)[0]
    language, speaker = _count(voice.language), _count(voice.speaker)

    def samples(begin: int, end: int) -> np.ndarray:
        count, width = end - begin, frames_of_graph(end - begin)
        run = engine.other(("vocoder", width), lambda: SoundUnits(vocoder), f"{width} frames of sound")
        made = run(_padded(frames[begin:end], width), _count(count), language, speaker)
        return to_numpy(made)[0, : vocoder.hifi_gan.config.num_samples(count)].astype(np.float32)

    return in_parts(vocoder.hifi_gan.config, samples, len(frames))


def _count(number: int) -> Tensor:
    """int32 (1)."""
    return Tensor(np.array([number], np.int32))


def _padded(numbers, width: int) -> Tensor:
    """int32 (1, width): these, and zeros behind them."""
    numbers = np.asarray(numbers, np.int32)
    return Tensor(np.pad(numbers, (0, width - len(numbers)))[None])


def _rows(x: Tensor, places: np.ndarray, width: int) -> Tensor:
    """(1, width, n): the rows of x (1, rows, n) in these places, and the first row behind them."""
    return msops.gather(x, _padded(places, width).reshape((width,)), 1)

"""The graphs and caches with which SpeechT5 speaks, and texts that are spoken side by side."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.buckets import bucket
from mindone_audio.backbone.cache import KVCache
from mindone_audio.backbone.checkpoint_model import to_numpy
from mindone_audio.backbone.encoder import hidden_keys
from mindone_audio.generation.engine import Engine, power_of_two
from mindone_audio.machine import device
from mindone_audio.models.speecht5.encoder import interleaved_sinusoids

_TOKENS, _STEPS, _FRAMES = 32, 256, 64  # of the shortest graphs
_MOST_SLOTS = 4  # that are kept


class EncodeText(nn.Cell):
    """The encoder, and the keys and values that the decoder attends to, as one graph."""

    def __init__(self, model, context: KVCache):
        super().__init__(auto_prefix=False)
        self.text_encoder, self.decoder, self.context = model.text_encoder, model.language_model, context

    def construct(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids int32 (batch, tokens), lengths int32 (batch); returns numbers that one can wait for."""
        hidden = self.text_encoder(ids, lengths)
        return self.decoder.write_context(self.context, hidden.reshape((-1, hidden.shape[-1])))


class DecodeFrames(nn.Cell):
    """A decode step as one graph: the last frame of each text in, the next frames out."""

    def __init__(self, model, cache: KVCache, context: KVCache):
        super().__init__(auto_prefix=False)
        self.prenet, self.decoder, self.postnet = model.prenet, model.language_model, model.postnet
        self.cache, self.context, self.width = cache, context, model.config.hidden_size
        self.bins, self.before = model.config.num_mel_bins, model.config.reduction_factor - 1

    def construct(self, frame: Tensor, step: Tensor, voices: Tensor, kept: Tensor, lengths: Tensor):
        """frame (batch, bins); step int32 (1): from 0 on; voices and kept as for `FramePrenet`; lengths int32 (batch):
        of the texts.

        Returns the frames (batch, reduction_factor * bins), the last of them (batch, bins), and fp32 (batch) the sum of
        their probabilities of being the end.
        """
        batch = frame.shape[0]
        position = ops.embed(interleaved_sinusoids(self.cache.positions, self.width), step)
        x = self.prenet(frame, position, voices, kept).reshape((batch, 1, -1))
        mask, heard = hidden_keys(step + 1, self.cache.positions), hidden_keys(lengths, self.context.positions)
        indices = self.cache.write_indices(step)
        hidden = self.decoder.model(x, mask, self.cache, indices, None, self.context, None, heard)
        hidden = hidden.reshape((batch, -1))
        frames = self.postnet.feat_out(hidden)
        last = ops.split(frames, (self.before * self.bins, self.bins), 1)[1] if self.before else frames
        ends = msops.sigmoid(self.postnet.prob_out(hidden).astype(ms.float32))
        return frames, last, ends.sum(1)


class SmoothFrames(nn.Cell):
    """`SpeechPostnet` as one graph."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.postnet = model.postnet

    def construct(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return self.postnet(frames, lengths)


@dataclass
class Slots:
    """A place for texts that are spoken: caches and the graphs that write them. owner(): who speaks, None if nobody."""

    cache: KVCache
    context: KVCache
    encode: Callable
    step: Callable
    owner: Callable = field(default=lambda: None)


class SpeechEngine(Engine):
    """The graphs and caches of a `SpeechT5ForTextToSpeech`."""

    def __init__(self, model, compiled: bool):
        super().__init__(model, compiled)
        self._places: OrderedDict[tuple[int, int, int], Slots] = OrderedDict()

    @property
    def places(self) -> list[Slots]:
        """Those that there are."""
        return list(self._places.values())

    def place(self, rows: int, tokens: int, steps: int) -> Slots:
        """Slots for so many texts of up to so many tokens, and for so many steps."""
        key = power_of_two(rows), bucket(tokens, _TOKENS), bucket(steps, _STEPS)
        if key not in self._places:
            batch, width, positions = key
            sizes = self.model.language_model.config
            shape = sizes.num_layers, batch, sizes.num_heads
            cache = KVCache(*shape, positions, sizes.head_dim, self.model.dtype)
            context = KVCache(*shape, width, sizes.head_dim, self.model.dtype, name="context")
            encode = self.graph(EncodeText(self.model, context), f"the encoder of {batch} texts of {width} tokens")
            step = DecodeFrames(self.model, cache, context)
            step = self.graph(step, f"the decode step of {batch} texts, {positions} steps")
            self._places[key] = Slots(cache, context, encode, step)
        self._places.move_to_end(key)
        for old in [key for key, slots in self._places.items() if slots.owner() is None][:-1]:
            if len(self._places) > _MOST_SLOTS:
                del self._places[old]
        return self._places[key]

    def smooth(self, frames: np.ndarray, first: int = 0, last: int | None = None) -> np.ndarray:
        """What the postnet makes of frames (frames, bins), fp32, or of those from `first` on before `last`.

        last None: up to the end, beyond which there is nothing. Otherwise there must be `reach` frames behind it.
        """
        reach = self.model.postnet.reach
        begin, last = max(0, first - reach), len(frames) if last is None else last
        part = frames[begin : last + reach]
        width = bucket(len(part), _FRAMES)
        run = self.other(("postnet", width), lambda: SmoothFrames(self.model), f"the postnet of {width} frames")
        padded = np.pad(part, ((0, width - len(part)), (0, 0)))
        made = run(Tensor(padded[None]).astype(self.model.dtype), Tensor(np.array([len(part)], np.int32)))
        return to_numpy(made)[0, first - begin : last - begin].astype(np.float32)


@dataclass(frozen=True)
class Text:
    """A text to be spoken: ids int32 (tokens), its voice fp32 (speaker_embedding_dim) of length 1, and how many steps
    are taken at least and at most."""

    ids: np.ndarray
    voice: np.ndarray
    least: int
    most: int


class Speaking:
    """Texts that are spoken side by side, each as it would be alone.

    threshold: at which probability a text ends. seed: of the prenet's dropout, None for none. Its noise is the same for
    all texts.
    """

    def __init__(self, engine: SpeechEngine, texts: list[Text], threshold: float, seed: int | None):
        self.engine, self.texts, self.threshold = engine, texts, threshold
        config = engine.model.config
        self.bins, self.rate = config.num_mel_bins, config.speech_decoder_prenet_dropout
        self.noise = (config.speech_decoder_prenet_layers, 1, config.speech_decoder_prenet_units)
        self.random = None if seed is None else np.random.default_rng(seed)
        self.made: list[list[np.ndarray]] = [[] for _ in texts]
        self.ended = np.zeros(len(texts), bool)

    def frames(self, text: int) -> np.ndarray:
        """What has been made of a text so far, fp32 (frames, bins), without the postnet."""
        return np.concatenate(self.made[text]) if self.made[text] else np.zeros((0, self.bins), np.float32)

    def count(self, text: int) -> int:
        """How many frames these are."""
        return sum(map(len, self.made[text]))

    def steps(self) -> Iterator[None]:
        """Speak, a step each time that the generator goes on, until all texts have ended."""
        dtype, texts = self.engine.model.dtype, self.texts
        lengths = [len(text.ids) for text in texts]
        slots = self._place(0, max(lengths))
        rows = slots.cache.batch
        whole = [*range(len(texts)), *[0] * (rows - len(texts))]  # empty slots repeat the first text
        ids = np.stack([np.pad(texts[i].ids, (0, slots.context.positions - lengths[i])) for i in whole])
        lengths = Tensor(np.array([lengths[i] for i in whole], np.int32))
        voices = Tensor(np.stack([texts[i].voice for i in whole])).astype(dtype)
        slots.cache.clear()
        slots.context.clear()
        slots.encode(Tensor(ids.astype(np.int32)), lengths)
        last, count = msops.zeros((rows, self.bins), dtype), 0
        kept = Tensor(np.ones(self.noise, np.float32)).astype(dtype)
        while not self.ended.all():
            if slots.owner() is not self:
                raise RuntimeError("somebody else speaks with this model: finish or drop a stream before the next")
            if count == slots.cache.positions:
                slots = self._moved(slots, count)
            if self.random is not None:
                kept = Tensor(self._kept()).astype(dtype)
            made, last, ends = slots.step(last, device.tensor(np.array([count], np.int32)), voices, kept, lengths)
            made, ends, count = to_numpy(made).astype(np.float32), to_numpy(ends), count + 1
            for row in np.flatnonzero(~self.ended):
                self.made[row].append(made[row].reshape((-1, self.bins)))
                ends_here = count >= texts[row].most or ends[row] >= self.threshold
                self.ended[row] = count >= texts[row].least and ends_here
            yield

    def _kept(self) -> np.ndarray:
        """Of each unit of the prenet 0 or what makes up for those that are 0."""
        return ((self.random.random(self.noise) >= self.rate) / (1 - self.rate)).astype(np.float32)

    def _place(self, count: int, tokens: int) -> Slots:
        slots = self.engine.place(len(self.texts), tokens, count + 1)
        slots.owner = weakref.ref(self)
        return slots

    def _moved(self, slots: Slots, count: int) -> Slots:
        """The same in a longer cache."""
        larger = self._place(count, slots.context.positions)
        for old, new in ((slots.cache, larger.cache), (slots.context, larger.context)):
            columns = np.arange(new.positions)
            valid = np.tile(columns < old.positions, (new.batch, 1))
            new.take(old, np.arange(new.batch), np.minimum(columns, old.positions - 1), valid)
        slots.owner = lambda: None
        return larger

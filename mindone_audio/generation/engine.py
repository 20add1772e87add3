"""The compiled graphs behind `generate`: encode clips, prefill a prompt, decode one token, copy sequences.

Shapes are fixed or rounded up to buckets, so that a new prompt or clip seldom compiles anything. A prompt goes through
one prefill graph in pieces of equal length; the step graph reads the whole cache, so a cache begins small and is
exchanged for a larger one when it is full. Both are compiled once for each (batch, cache bucket).
"""

from collections import OrderedDict
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio import device
from mindone_audio.backbone import ops
from mindone_audio.backbone.audio_language_model import AudioLanguageModel, audio_rows, merge_audio
from mindone_audio.backbone.cache import CopySequences, KVCache
from mindone_audio.backbone.decoder import Decoder, causal_mask, look_up

# Columns of a prompt that the prefill graph takes at a time, of few prompts. One piece holds 5 s at Qwen2-Audio's 25
# tokens a second with a question, five hold 30 s; the last piece of a prompt is half empty on average.
PIECE = 160
_MOST_ROWS = 1024  # of all prompts that it takes at a time: bounds its memory, and more are no faster
_LEAST_PIECE = 16  # which its width is a multiple of
_CACHES = (256, 384, 512, 640)  # positions, of the small ones; what a step of a batch reads is mostly its cache
_LEAST_ALONE = 640  # of one sequence: three pieces of prompt and 128 tokens of answer, so few caches are exchanged
_EVEN_CACHE = 2048  # from which on there is a bucket between two powers of two
_MOST_CLIPS = 8  # that are encoded at once: bounds the memory that ten minutes of windows need
_CACHES_KEPT = 4  # beams need two at once; more only save compilations
_best = msops.Argmax(-1, ms.int32)


# What a batch is: prompts as they were given, or copies of such a batch, whose cache is as large as the original's.
PROMPTS, COPIES = "prompts", "copies"


def piece_width(batch: int) -> int:
    """How many columns of so many prompts the prefill graph takes at a time: `PIECE`, or fewer of many prompts."""
    fitting = _MOST_ROWS // batch // _LEAST_PIECE * _LEAST_PIECE
    return min(PIECE, max(_LEAST_PIECE, fitting))


def prompt_width(length: int, batch: int) -> int:
    """The next multiple of `piece_width`."""
    piece = piece_width(batch)
    return -(-length // piece) * piece


def cache_bucket(length: int, batch: int) -> int:
    """The next of 256, 384 and 512 (for several sequences), 640, 1024, 2048, 3072, 4096, 6144, 8192, ..."""
    length = max(length, _LEAST_ALONE) if batch == 1 else length
    small = [bucket for bucket in _CACHES if bucket >= length]
    if small:
        return small[0]
    bucket = 1024
    while bucket < length:
        if bucket >= _EVEN_CACHE and bucket * 3 // 2 >= length:
            return bucket * 3 // 2
        bucket *= 2
    return bucket


def clips_bucket(clips: int) -> int:
    """The next power of two."""
    return 1 << (clips - 1).bit_length()


class EncodeAudio(nn.Cell):
    """Encoder and projector as one graph: clips to rows of decoder embeddings."""

    def __init__(self, model: AudioLanguageModel):
        super().__init__(auto_prefix=False)
        self.audio_tower, self.multi_modal_projector = model.audio_tower, model.multi_modal_projector

    def construct(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        audio = self.multi_modal_projector(self.audio_tower(input_features, lengths))
        return audio.reshape((-1, audio.shape[-1]))


class Forward(nn.Cell):
    """Prefill and decode step: tokens in at `offset`, the cache written, and what the last of them leads to out."""

    def __init__(self, language_model: Decoder, cache: KVCache, tables: list[Tensor], packed, scores: bool):
        super().__init__(auto_prefix=False)
        self.language_model, self.cache, self.tables, self.packed = language_model, cache, tables, packed
        self.scores = scores

    def construct(self, input_ids: Tensor, offset: Tensor, start: Tensor, audio=None, audio_index=None):
        """input_ids int32 (batch, length); offset int32: column of the first token; start int32 (batch): first column
        of each sample that is not padding; audio (batch, length, hidden), which replaces the tokens' embeddings where
        audio_index int32 (batch, length) is not -1, or neither.

        Returns hidden states (batch, hidden) of the last token, or with `scores` those of the next token and the best.
        """
        columns = offset + ops.counting(input_ids.shape[1])
        keys = ops.counting(self.cache.positions)
        start = start.reshape((-1, 1))
        rotation = look_up(self.tables, msops.maximum(columns - start, 0))
        mask = causal_mask(columns, keys, keys >= start)
        embeddings = self.language_model.embed(input_ids)
        if audio is not None:
            embeddings = merge_audio(embeddings, audio, audio_index)
        places = self.cache.places(columns)
        hidden = self.language_model(embeddings, rotation, mask, self.cache, places, self.packed, last=True)
        last = hidden.reshape((-1, hidden.shape[-1]))
        if not self.scores:
            return last
        scores = self.language_model.logits(last) if self.packed is None else self.packed.logits(last)
        return scores, _best(scores)


class Room:
    """A cache and the graphs that write it, for one batch at a time: `owner` is whose it is."""

    def __init__(self, cache: KVCache, prefill: Callable, step: Callable, silence: Tensor):
        self.cache, self.prefill, self.step, self.silence = cache, prefill, step, silence
        self.owner: Sequences | None = None

    def given_to(self, owner: "Sequences") -> "Room":
        """Empty it for a batch that begins."""
        if self.owner is not None:
            self.cache.clear()
        self.owner = owner
        return self


class Sequences:
    """A batch under generation, and how far it is.

    length: columns written so far. start: int32 (batch), the first column of each sample that is not padding.
    """

    def __init__(self, engine: "Engine", role: str, batch: int, positions: int):
        self.engine, self.role, self.batch = engine, role, batch
        self.length, self.start = 0, Tensor(np.zeros(batch, np.int32))
        self.room = engine.room(role, batch, positions).given_to(self)

    def extend(self, input_ids: np.ndarray, audio: Tensor | None = None, audio_index: np.ndarray | None = None):
        """Run tokens int32 (batch, length) through the model: scores and best token, still on the device.

        length: 1, or a multiple of `piece_width`. audio (rows, hidden) with audio_index int32 (batch, length), or
        neither. Raises `RuntimeError` where another batch has taken this one's cache.
        """
        if self.room.owner is not self:
            raise RuntimeError("another generation has begun on this model: finish or drop a stream before the next")
        if self.length + input_ids.shape[1] > self.room.cache.positions:
            self._move(self.length + input_ids.shape[1])
        if input_ids.shape[1] == 1:
            return self.room.step(*self._tokens(input_ids))
        if audio is None:
            audio_index = np.full(input_ids.shape, -1, np.int32)
        width = piece_width(self.batch)
        for first in range(0, input_ids.shape[1], width):
            piece = np.ascontiguousarray(input_ids[:, first : first + width])
            index = Tensor(np.ascontiguousarray(audio_index[:, first : first + width]))
            rows = self.room.silence
            if audio is not None:  # of that dtype, which the graph was compiled for
                rows = audio_rows(audio, index).astype(rows.dtype)
            last = self.room.prefill(*self._tokens(piece), rows, index)
        scores = self.engine.model.language_model.logits(last)
        return scores, _best(scores)

    def _tokens(self, input_ids: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of a graph for the next columns."""
        offset, self.length = self.length, self.length + input_ids.shape[1]
        # from_numpy shares the array's memory and takes a tenth of Tensor's time.
        return Tensor.from_numpy(input_ids), Tensor.from_numpy(np.array(offset, np.int32)), self.start

    def _move(self, positions: int) -> None:
        """Go on in a larger cache."""
        room = self.engine.room(self.role, self.batch, positions)
        room.owner = self
        room.cache.take(self.room.cache)
        self.room = room


class Structure:
    """What a compiled graph has taken from a model for good: its cells, which adapters they use and how, its memory.

    A graph reads the parameters each time it runs, but always where they were, and not where `set_data` has put them
    since. Nor does it see whether a `mindone.peft` layer stands in a cell's place, is disabled or merged, which
    adapters are active, how they are scaled, and whether the cell is being trained.
    """

    def __init__(self, model: nn.Cell):
        # The cells themselves are kept, since the id of one that is gone may be another's.
        self.cells = [cell for _, cell in model.cells_and_names()]
        self.states = [_state(cell) for cell in self.cells]
        parameters = [p for cell in self.cells for p in cell._params.values() if p is not None]
        self.places = [parameter.data_ptr() for parameter in parameters] if device.shares_memory() else []

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Structure) or len(self.cells) != len(other.cells):
            return False
        same = all(a is b for a, b in zip(self.cells, other.cells))
        return same and self.states == other.states and self.places == other.places


def _state(cell: nn.Cell) -> tuple:
    own = cell.__dict__
    if "merged_adapters" not in own:  # by name: a model without adapters does not import mindone.peft
        return (cell.training,)
    active = own["_active_adapter"]
    active = (active,) if isinstance(active, str) else tuple(active)
    return cell.training, own["_disable_adapters"], tuple(own["merged_adapters"]), active, dict(own["scaling"])


class Engine:
    """Owns the caches and graphs of one model; `compiled=False` runs the same cells interpreted."""

    def __init__(self, model: AudioLanguageModel, compiled: bool):
        self.model, self.compiled = model, compiled
        packed = model.packed_weights
        self.packed = packed if packed is not None and packed.serve(model.language_model) else None
        self._encode = self._graph(EncodeAudio(model))
        self._rooms: OrderedDict[tuple, Room] = OrderedDict()
        self._copies: dict[tuple[int, int], Callable] = {}

    def _graph(self, cell: nn.Cell) -> Callable:
        return ms.jit(cell.construct) if self.compiled else cell

    def encode(self, input_features: Tensor, lengths: np.ndarray) -> Tensor:
        """Rows of decoder embeddings (clips * tokens, hidden) of clips (clips, mel bins, frames)."""
        if len(lengths) > _MOST_CLIPS:
            starts = range(0, len(lengths), _MOST_CLIPS)
            parts = [slice(start, start + _MOST_CLIPS) for start in starts]
            return msops.concat([self.encode(input_features[part], lengths[part]) for part in parts])
        spare = clips_bucket(len(lengths)) - len(lengths)
        if spare:
            empty = msops.zeros((spare,) + input_features.shape[1:], input_features.dtype)
            input_features = msops.concat((input_features, empty))
            lengths = np.concatenate([lengths, np.ones((spare, *lengths.shape[1:]), np.int32)])
        return self._encode(input_features, Tensor(lengths))

    def sequences(self, batch: int, positions: int) -> Sequences:
        """A batch of empty sequences, at first with room for `positions` tokens."""
        return Sequences(self, PROMPTS, batch, positions)

    def repeated(self, source: Sequences, copies: int) -> Sequences:
        """A batch with so many copies of each sequence, next to each other, in a cache as large."""
        target = Sequences(self, COPIES, source.batch * copies, source.room.cache.positions)
        self.copy(source, target, np.repeat(np.arange(source.batch), copies))
        return target

    def room(self, role: str, batch: int, positions: int) -> Room:
        """A cache of at least so many positions, which may have been used before and be twice as large as needed."""
        bucket = cache_bucket(positions, batch)
        made = [size for (*of, size) in self._rooms if of == [role, batch] and bucket <= size <= 2 * bucket]
        key = (role, batch, bucket if role == COPIES else min(made, default=bucket))
        if key not in self._rooms:
            while len(self._rooms) >= _CACHES_KEPT:
                _, dropped = self._rooms.popitem(last=False)
                self._copies = {k: v for k, v in self._copies.items() if id(dropped.cache) not in k}
            decoder = self.model.language_model
            sizes, dtype = decoder.config, self.model.dtype
            cache = KVCache(sizes.num_layers, batch, sizes.num_key_value_heads, key[2], sizes.head_dim, dtype)
            tables = decoder.rotation_tables(cache.positions, dtype)
            prefill = Forward(decoder, cache, tables, None, scores=False)  # many rows gain nothing from packed weights
            step = Forward(decoder, cache, tables, self.packed, scores=True)
            # In this phase MindSpore runs the cell's only graph, without looking each time for one that fits.
            prefill.phase = step.phase = "increment"
            silence = msops.zeros((batch, piece_width(batch), sizes.hidden_size), dtype)
            self._rooms[key] = Room(cache, self._graph(prefill), self._graph(step), silence)
        self._rooms.move_to_end(key)
        return self._rooms[key]

    def copy(self, source: Sequences, target: Sequences, index: np.ndarray) -> None:
        """Make each sequence of `target` a copy of sequence index[i] of `source`, which may be the same object."""
        origin, copied = source.room.cache, target.room.cache
        key = (id(origin), id(copied))
        if key not in self._copies:
            self._copies[key] = self._graph(CopySequences(origin, copied))
        self._copies[key](Tensor(index.astype(np.int32)))
        target.start = Tensor(source.start.asnumpy()[index])
        target.length = source.length

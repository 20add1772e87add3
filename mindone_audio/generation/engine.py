"""The compiled graphs behind `generate`: encode a clip, prefill a prompt, decode one token of every sequence.

A compiled graph costs seconds and memory, so there are few shapes, and what is compiled is kept. Clips are encoded one
or four at a time, in one of four widths. Prompts go through a prefill graph of one sequence, a long one in chunks of
equal length, short ones of a batch one behind the other, and the batch is filled with what came out. The step graph is
that of 1, 2, 4, 8, ... sequences, of which some may be empty. It reads the whole cache, so a cache begins small and is
exchanged for a larger one when it is full. Prefill and step are compiled once for each size of cache, the step also for
each number of sequences: at most 16 graphs for up to 16 sequences of up to 1,024 tokens, whatever is asked in which
order.
"""

import logging
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.audio_language_model import AudioLanguageModel, audio_rows, merge_audio
from mindone_audio.backbone.cache import KVCache
from mindone_audio.backbone.compiled import one_graph
from mindone_audio.backbone.decoder import Decoder, causal_mask, rotation_at
from mindone_audio.machine import device

logger = logging.getLogger(__name__)

# Columns of a prompt that the prefill graph takes at a time. One chunk holds 5 s at Qwen2-Audio's 25 tokens a second
# and a question, five chunks hold 30 s. The last chunk of a prompt is half empty on average.
CHUNK = 160
PACK = 3 * CHUNK  # columns that several prompts share: the smallest cache holds them, and one more that stays empty
PACKED = 16  # prompts that share them, at most
TOGETHER = 4  # clips that are encoded at a time, if they are much shorter than a window
_SMALLEST_CACHE = 512  # positions: three chunks of prompt, or two and 128 tokens of answer or more
_EVEN_CACHE = 2048  # from which on there is a bucket between two powers of two
# From so many graphs on, a batch takes larger slots than it needs, and new slots are as many as any before.
_MANY_GRAPHS = 12
# All caches of a model together may take these bytes, or those of its parameters if they are more.
_LEAST_BYTES = 4 << 30
_EMPTY = np.int32(1 << 30)  # the start of an empty slot: no column is as far
_best = msops.Argmax(-1, ms.int32)


def prompt_width(length: int) -> int:
    """The next multiple of `CHUNK`."""
    return -(-length // CHUNK) * CHUNK


def cache_bucket(length: int) -> int:
    """The next of 512, 1024, 2048, 3072, 4096, 6144, 8192, ..."""
    bucket = _SMALLEST_CACHE
    while bucket < length:
        if bucket >= _EVEN_CACHE and bucket * 3 // 2 >= length:
            return bucket * 3 // 2
        bucket *= 2
    return bucket


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def power_of_two(count: int) -> int:
    """The next power of two, which numbers of sequences and of clips are rounded up to."""
    return 1 << (count - 1).bit_length()


class EncodeAudio(nn.Cell):
    """Encoder and projector as one graph: clips to rows of decoder embeddings."""

    def __init__(self, model: AudioLanguageModel):
        super().__init__(auto_prefix=False)
        self.audio_tower, self.multi_modal_projector = model.audio_tower, model.multi_modal_projector

    def construct(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        audio = self.multi_modal_projector(self.audio_tower(input_features, lengths))
        return audio.reshape((-1, audio.shape[-1]))


class Forward(nn.Cell):
    """Prefill and decode step: it takes tokens, writes the cache from column `offset` on, and gives hidden states."""

    def __init__(self, language_model: Decoder, cache: KVCache, tables: list[Tensor], packed, scores: bool):
        super().__init__(auto_prefix=False)
        self.language_model, self.cache, self.tables, self.packed = language_model, cache, tables, packed
        self.scores = scores

    def construct(self, input_ids: Tensor, offset: Tensor, start: Tensor, chosen=None, audio=None, audio_index=None):
        """input_ids int32 (batch, length); offset int32: column of the first token; start int32 (batch, length): the
        first column of each token's prompt; audio (batch, length, hidden), which replaces the tokens' embeddings where
        audio_index int32 (batch, length) is not -1, or neither.

        Returns hidden states (batch * n, hidden) of the tokens `chosen` int32 (n), None: all, or with `scores` those
        of the next token and the best.
        """
        columns = offset + ops.counting(input_ids.shape[1])
        keys = ops.counting(self.cache.positions)
        rotation = rotation_at(self.tables, msops.maximum(columns - start, 0))
        mask = causal_mask(columns, keys, keys >= start.expand_dims(-1))
        embeddings = self.language_model.embed(input_ids)
        if audio is not None:
            embeddings = merge_audio(embeddings, audio, audio_index)
        indices = self.cache.write_indices(columns)
        hidden = self.language_model(embeddings, rotation, mask, self.cache, indices, self.packed, chosen)
        hidden = hidden.reshape((-1, hidden.shape[-1]))
        if not self.scores:
            return hidden
        scores = self.language_model.logits(hidden) if self.packed is None else self.packed.logits(hidden)
        return scores, _best(scores)


class Slots:
    """A cache of `batch` slots, and the graphs that write it: the decode step, and for one slot the prefills.

    prefills: by how many columns they take. owner(): the sequences that have the slots, None if they are gone.
    """

    def __init__(self, engine: "Engine", batch: int, positions: int):
        decoder, dtype = engine.model.language_model, engine.model.dtype
        sizes = decoder.config
        self.cache = KVCache(sizes.num_layers, batch, sizes.num_key_value_heads, positions, sizes.head_dim, dtype)
        self._tables = decoder.rotation_tables(positions, dtype)
        step = Forward(decoder, self.cache, self._tables, engine.packed, scores=True)
        self.step = engine.graph(step, f"the decode step of {_counted(batch, 'sequence')}, {positions} tokens")
        self.prefills: dict[int, Callable] = {}
        if batch == 1:
            self.add_prefill(engine, CHUNK)
        self.owner: Callable[[], Sequences | None] = lambda: None

    def add_prefill(self, engine: "Engine", width: int) -> None:
        """Add a graph for so many columns. It reads no packed weights: many rows gain nothing from them."""
        decoder = engine.model.language_model
        prefill = Forward(decoder, self.cache, self._tables, None, scores=False)
        what = f"the prefill of {width} tokens at a time, {self.cache.positions} in all"
        self.prefills[width] = engine.graph(prefill, what)


class Sequences:
    """The sequences of a batch, while tokens are generated.

    rows: how many; the cache has a slot for each, and empty slots up to a power of two. length: columns written so far.
    start: int32 (slots, 1), the first column of each slot that is not padding; an empty slot has one beyond the cache.
    """

    def __init__(self, engine: "Engine", rows: int, positions: int):
        self.engine, self.rows = engine, rows
        self.slots = engine.slots(rows, positions, prefills=rows == 1)
        self.slots.owner = weakref.ref(self)
        self.length, self.start = 0, np.zeros((self.slots.cache.batch, 1), np.int32)
        if rows == 1:
            self.slots.cache.clear()
        else:  # `insert` overwrites each of them whole
            self.start[:] = _EMPTY

    def prefill(
        self, input_ids: np.ndarray, lengths: np.ndarray, audio: Tensor | None = None, audio_index=None
    ) -> tuple[Tensor, Tensor]:
        """Run prompts through the model, in the slot of one: scores and best next tokens of each, on the device.

        input_ids int32 (sum of lengths): one prompt behind the other, of which the last goes on; lengths int (prompts).
        audio (rows, hidden) with audio_index int32 like input_ids, -1 where a token is text, or neither.
        """
        self._check_owner()
        padding = prompt_width(len(input_ids)) - len(input_ids)
        ends = padding + np.cumsum(lengths)
        starts = np.repeat(ends - lengths, lengths)
        index = np.full(len(input_ids), -1) if audio is None else audio_index
        # The start of padding is the first column, so that it attends to something; nothing attends to it.
        tokens, starts, index = (
            np.pad(array.astype(np.int32), (padding, 0), constant_values=fill)
            for array, fill in ((input_ids, 0), (starts, 0), (index, -1))
        )
        self.start[0], hidden = starts[-1], []
        model = self.engine.model
        if audio is None:
            audio = msops.zeros((1, model.language_model.config.hidden_size), model.dtype)
        graph, width = self.engine.prefill_graph(self.slots, len(tokens), len(lengths))
        for first in range(0, len(tokens), width):
            ids, start, rows = (array[None, first : first + width].copy() for array in (tokens, starts, index))
            rows = Tensor(rows)
            embeddings = audio_rows(audio, rows).astype(model.dtype)  # the graph was compiled for that dtype
            last = ends[(first < ends) & (ends <= first + width)] - first - 1
            chosen = Tensor(np.pad(last, (0, PACKED - len(last))).astype(np.int32))
            output = graph(*self._tokens(ids, start), chosen, embeddings, rows)
            if len(last):
                hidden.append(output[: len(last)])
        scores = model.language_model.logits(msops.concat(hidden))
        return scores, _best(scores)

    def extend(self, tokens: np.ndarray) -> tuple[Tensor, Tensor]:
        """Append one token, int32 (rows), to each sequence: scores and best next tokens of all slots, on the device.

        Raises `RuntimeError` where another batch has taken this one's cache.
        """
        self._check_owner()
        if self.length == self.slots.cache.positions:
            self._move(self.length + 1)
        ids = np.zeros((self.slots.cache.batch, 1), np.int32)
        ids[: self.rows, 0] = tokens
        return self.slots.step(*self._tokens(ids, self.start))

    def insert(self, rows: np.ndarray, prompts: "Sequences", lengths: np.ndarray) -> None:
        """Make rows int (prompts, copies) copies of what was prefilled in `prompts`; all end at this batch's `length`.

        lengths int (prompts): their tokens.
        """
        cache, source = self.slots.cache, prompts.slots.cache
        ends = prompts.length - lengths.sum() + np.cumsum(lengths)
        for copies, length, end in zip(rows.tolist(), lengths.tolist(), ends.tolist()):
            columns = np.full(cache.positions, source.positions - 1)  # where nothing has been written
            columns[self.length - length : self.length] = np.arange(end - length, end)
            for row in copies:
                cache.insert(row, source, columns)
                self.start[row] = self.length - length

    def reorder(self, index: np.ndarray) -> None:
        """Make row i a copy of row index[i], int (rows)."""
        if (index != np.arange(self.rows)).any():
            whole = np.arange(self.slots.cache.batch)
            whole[: self.rows] = index
            self.slots.cache.reorder(whole)
            self.start = self.start[whole]

    def _check_owner(self) -> None:
        if self.slots.owner() is not self:
            raise RuntimeError("another generation has begun on this model: finish or drop a stream before the next")

    def _tokens(self, input_ids: np.ndarray, start: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of a graph for the next columns."""
        offset, self.length = self.length, self.length + input_ids.shape[1]
        return device.tensor(input_ids), device.tensor(np.array(offset, np.int32)), device.tensor(start)

    def _move(self, positions: int) -> None:
        """Go on in a larger cache."""
        slots = self.engine.slots(self.slots.cache.batch, positions, prefills=False)
        slots.owner = weakref.ref(self)
        slots.cache.take(self.slots.cache)
        more = slots.cache.batch - self.slots.cache.batch
        self.start = np.concatenate([self.start, np.full((more, 1), _EMPTY)])
        self.slots = slots


class Engine:
    """Owns the caches and graphs of one model; `compiled=False` runs the same cells interpreted."""

    def __init__(self, model: AudioLanguageModel, compiled: bool):
        self.model, self.compiled = model, compiled
        packed = model.packed_weights
        self.packed = packed if packed is not None and packed.is_current(model.language_model) else None
        self._encoders: dict[tuple[int, ...], Callable] = {}
        self._slots: OrderedDict[tuple[int, int], Slots] = OrderedDict()

    def graph(self, cell: nn.Cell, what: str) -> Callable:
        """The cell as one graph, or as it is. what: as for `one_graph`."""
        return one_graph(cell, what) if self.compiled else cell

    def encode(self, input_features: Tensor, lengths: np.ndarray) -> Tensor:
        """Rows of decoder embeddings (clips * tokens, hidden) of clips (clips, mel bins, frames).

        Each is encoded at its own width; tokens are as many as these frames have, anything where a clip has fewer.
        """
        config, frames = self.model.audio_tower.config, input_features.shape[2]
        widths = np.array([config.frames_to_encode(int(length.max())) for length in lengths])
        encoded, order, written = [], np.zeros((len(lengths), int(self.model.audio_tokens(np.array(frames)))), int), 0
        for width in np.unique(widths).tolist():
            clips = np.flatnonzero(widths == width)
            while len(clips):
                graph, count = self._encoder(width, len(clips), lengths.shape[1:])
                some = np.pad(clips[:count], (0, max(0, count - len(clips))), mode="edge")
                features = msops.gather(input_features, Tensor(some.astype(np.int32)), 0)
                features = features[:, :, :width] if width < frames else features
                encoded.append(graph(features, Tensor(lengths[some])))
                tokens = len(encoded[-1]) // count
                order[some, :tokens] = np.arange(written, written + count * tokens).reshape((count, tokens))
                clips, written = clips[count:], written + count * tokens
        return msops.gather(msops.concat(encoded), Tensor(order.reshape(-1).astype(np.int32)), 0)

    def _encoder(self, width: int, clips: int, more: tuple[int, ...]) -> tuple[Callable, int]:
        """A graph for clips of this width, and how many it takes: narrow ones together, to launch fewer kernels."""
        key = width, TOGETHER, *more
        count = TOGETHER if clips > TOGETHER // 2 and width < self.model.audio_tower.config.num_mel_frames else 1
        if key not in self._encoders and self.graphs >= _MANY_GRAPHS:
            count = 1
        key = width, count, *more
        if key not in self._encoders:
            what = f"the encoder of {_counted(count, 'clip')} of {width / 100:g} s"
            self._encoders[key] = self.graph(EncodeAudio(self.model), what)
        return self._encoders[key], count

    def sequences(self, rows: int, positions: int) -> Sequences:
        """A batch of so many empty sequences, at first with room for `positions` tokens."""
        return Sequences(self, rows, positions)

    def slots(self, rows: int, positions: int, prefills: bool) -> Slots:
        """Slots for at least so many sequences of at least so many positions, which may have been used before.

        prefills: whether a prompt is to be prefilled there, which takes slots for one.
        """
        key = (power_of_two(rows), cache_bucket(positions))
        if key not in self._slots and self.graphs >= _MANY_GRAPHS:
            fitting = [(b, p) for b, p in self._slots if p >= positions and (b == 1 if prefills else b >= rows)]
            widest = 1 if prefills else max(key[0], *(b for b, _ in self._slots))
            key = min(fitting, key=math.prod, default=(widest, key[1]))
        if key not in self._slots:
            made = Slots(self, *key)
            self._make_room(made.cache.nbytes)
            self._slots[key] = made
        self._slots.move_to_end(key)
        return self._slots[key]

    def prefill_graph(self, slots: Slots, columns: int, prompts: int) -> tuple[Callable, int]:
        """A graph, and how many columns it takes at a time: `CHUNK`, or a full pack, to launch fewer kernels."""
        width = PACK if prompts > 1 and columns == PACK else CHUNK
        if width not in slots.prefills:
            if self.graphs < _MANY_GRAPHS:
                slots.add_prefill(self, width)
            else:
                width = CHUNK
        return slots.prefills[width], width

    @property
    def graphs(self) -> int:
        """How many there are, each compiled when it is first used."""
        return len(self._encoders) + sum(1 + len(slots.prefills) for slots in self._slots.values())

    def _make_room(self, needed: int) -> None:
        """Drop what was not used for longest, where all caches together would be too large with so many bytes more."""
        most = max(_LEAST_BYTES, sum(parameter.nbytes for parameter in self.model.get_parameters()))
        for key in [key for key, slots in self._slots.items() if slots.owner() is None]:
            if needed + sum(slots.cache.nbytes for slots in self._slots.values()) <= most:
                return
            del self._slots[key]
            logger.warning(
                "the cache of %d sequences of %d tokens is dropped to make room, and its graphs are compiled again "
                "when needed: fewer different sizes of batches, or shorter answers, take less",
                *key,
            )

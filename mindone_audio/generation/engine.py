"""The compiled graphs behind `generate`: encode a clip, prefill a prompt, decode one token of every sequence.

A compiled graph costs seconds and memory, so there are few shapes, and what is compiled is kept. Clips are encoded one
or four at a time, in one of four widths. Prompts go through prefill graphs of one sequence: the first piece of a prompt
through one that is hardly wider than it, the rest of a long one in chunks of equal length, short ones of a batch one
behind the other. The step graph is that of 1, 2, 4, 8, ... sequences, of which some may be empty. It reads the whole
cache, so a cache begins small and is exchanged for a larger one when it is full.
"""

import hashlib
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.audio_language_model import merge_audio
from mindone_audio.backbone.cache import KVCache
from mindone_audio.backbone.checkpoint_model import CheckpointModel
from mindone_audio.backbone.compiled import one_graph
from mindone_audio.backbone.decoder import ring_mask, ring_places
from mindone_audio.backbone.encoder import hidden_keys
from mindone_audio.backbone.text_decoder import TextDecoder
from mindone_audio.machine import device

logger = logging.getLogger(__name__)

# Columns that a prefill graph takes of the beginning of a prompt, whose tokens attend to each other alone. The last one
# holds 25 s at Qwen2-Audio's 25 tokens a second.
FIRST = (48, 96, *range(160, 641, 80))
CHUNK = 160  # columns of each later piece, whose tokens attend to the cache too
PACK = 480  # columns that several prompts share, at most
PACKS = (160, 320, PACK)  # widths of their graphs: few, because a batch's lengths are different each time
PACKED = 16  # prompts that share them, at most
TOGETHER = 4  # clips that are encoded at a time, if they are much shorter than a window
DRAFT = 7  # tokens after the last one that are computed at once where they are expected
_HEARD = 16  # clips whose encoding is kept, for another prompt about them
_KEPT_BYTES = 192 << 20  # of rows of clips, where `keeps_clips` is set: 32 clips of a 7B model, of 6 MB each
_SMALLEST_CACHE = 512  # positions
_EVEN_CACHE = 2048  # from which on there is a bucket between two powers of two
# From so many graphs on, a batch takes larger slots than it needs, new slots are as many as any before, and a prompt
# goes through the prefill graphs that there are.
_MANY_GRAPHS = 12
# All caches of a model together may take these bytes, or those of its parameters if they are more.
_LEAST_BYTES = 4 << 30
# A clip is encoded in parts of so many multiplications for each weight of the decoder, but not of fewer than so many in
# all. A decode step takes about 20 for each weight on a CPU, and more on an NPU.
_PART_WORK, _LEAST_WORK = 60, 4 * 10**9
_best = msops.Argmax(-1, ms.int32)


def cache_bucket(length: int) -> int:
    """The next of 512, 1024, 2048, 3072, 4096, 6144, 8192, ..."""
    bucket = _SMALLEST_CACHE
    while bucket < length:
        if bucket >= _EVEN_CACHE and bucket * 3 // 2 >= length:
            return bucket * 3 // 2
        bucket *= 2
    return bucket


def key_buckets(positions: int) -> tuple[int, ...]:
    """Up to how many columns of a cache of so many the later pieces of a prompt read: all of a small one."""
    return (positions,) if positions < _EVEN_CACHE else (positions // 4, positions // 2, positions)


def pieces(length: int, first: Sequence[int]) -> list[int]:
    """Widths of the pieces of a prompt of so many tokens: the smallest of `first` that holds it, and chunks."""
    begin = min((width for width in first if width >= length), default=max(first))
    return [begin] + [CHUNK] * -(-max(0, length - begin) // CHUNK)


def returned(work: Iterator[None]) -> Any:
    """What a generator returns at its end, to which it is brought."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def power_of_two(count: int) -> int:
    """The next power of two, which numbers of sequences and of clips are rounded up to."""
    return 1 << (count - 1).bit_length()


class EncodeAudio(nn.Cell):
    """Some layers of the encoder as one graph; the first part also begins it, and the last one projects.

    layers: (first, beyond the last) of them. Clips become rows of decoder embeddings (clips * tokens, hidden).
    """

    def __init__(self, model: CheckpointModel, layers: tuple[int, int] | None = None):
        super().__init__(auto_prefix=False)
        tower = model.audio_tower
        first, last = (0, len(tower.layers)) if layers is None else layers
        self.audio_tower, self.first, self.last = tower, first, last
        self.begins, self.ends = first == 0, last == len(tower.layers)
        self.multi_modal_projector = model.multi_modal_projector if self.ends else None

    def construct(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: features (clips, mel bins, frames), or what the part before gives; lengths as for `AudioEncoder`."""
        if self.begins:
            x = self.audio_tower.begin(x, lengths)
        x = self.audio_tower.through(x, lengths, self.first, self.last)
        if not self.ends:
            return x
        audio = self.audio_tower.end(x, lengths)
        if self.multi_modal_projector is not None:
            audio = self.multi_modal_projector(audio)
        return audio.reshape((-1, audio.shape[-1]))


class Forward(nn.Cell):
    """Prefill and decode step: it takes tokens, writes the cache from column `offset` on, and gives hidden states.

    The cache is a ring: a sequence may go on in column 0 after the last one. keys: how many columns there are up to the
    last token, or more; as many as tokens where these begin their sequences, so that they attend to each other alone.
    """

    def __init__(self, slots: "Slots", step: bool, keys: int | None = None):
        super().__init__(auto_prefix=False)
        self.language_model, self.packed = slots.engine.model.language_model, slots.engine.packed
        self.cache, self.context, self.tables = slots.cache, slots.context, slots.tables
        self.scores, self.heard, self.modes = step, slots.heard, slots.modes
        self.keys = self.cache.positions if keys is None else keys

    def construct(
        self, input_ids: Tensor, offset: Tensor, start: Tensor, chosen=None, audio=None, audio_index=None, modes=None
    ):
        """input_ids int32 (batch, length); offset int32: column of the first token; start int32 (batch, length): the
        first column of each token's sequence; audio (batch, length, hidden), which replaces the tokens' embeddings
        where audio_index int32 (batch, length) is not -1, or neither. modes int32 (batch, length): of a decoder that
        `switches`, in a prefill; a step has those of its slots.

        Returns hidden states (n, hidden) of the tokens `chosen` int32 (n), or in a step the scores of the next token
        fp32 (batch, vocab) and the best int32 (batch).
        """
        positions = self.cache.positions
        columns = offset + ops.counting(input_ids.shape[1])
        places = ring_places(columns, start, positions)
        mask = ring_mask(ops.counting(self.keys), start, places, positions)
        embeddings = self.language_model.embed(input_ids)
        if audio is not None:
            embeddings = merge_audio(embeddings, audio, audio_index)
        indices = self.cache.write_indices(columns)
        if self.modes is not None:
            modes = self.modes if self.scores else modes
            at = self.language_model.positions_at(self.tables, places, modes)
            hidden = self.language_model(embeddings, at, mask, self.cache, indices, self.packed, chosen, modes)
            return self.result(hidden)
        at = self.language_model.positions_at(self.tables, places)
        if self.context is None:
            hidden = self.language_model(embeddings, at, mask, self.cache, indices, self.packed, chosen)
        else:
            hides = None if self.heard is None else hidden_keys(self.heard, self.context.positions)
            hidden = self.language_model(embeddings, at, mask, self.cache, indices, chosen, self.context, None, hides)
        return self.result(hidden)

    def result(self, hidden: Tensor):
        """What `construct` returns of hidden states."""
        hidden = hidden.reshape((-1, hidden.shape[-1]))
        if not self.scores:
            return hidden
        scores = self.language_model.logits(hidden) if self.packed is None else self.packed.logits(hidden)
        return scores, _best(scores)


class WriteContext(nn.Cell):
    """`TextDecoder.write_context` as one graph."""

    def __init__(self, language_model: TextDecoder, context: KVCache):
        super().__init__(auto_prefix=False)
        self.language_model, self.context = language_model, context

    def construct(self, rows: Tensor) -> Tensor:
        return self.language_model.write_context(self.context, rows)


class EmptyColumns(nn.Cell):
    """`KVCache.empty` as one graph."""

    def __init__(self, cache: KVCache):
        super().__init__(auto_prefix=False)
        self.cache = cache

    def construct(self, columns: Tensor) -> Tensor:
        return self.cache.empty(columns)


class Slots:
    """A cache of `batch` slots, and the graphs that write it: the decode step, and for one slot the prefills.

    context: the keys and values that encoder-decoder models attend to in each slot; None for others. heard: of how many
    positions, int32 (batch), and `counts` the same on the host; None where it is always all of them. modes: of each
    slot's sequence, int32 (batch, 1), of a decoder that `switches`, and `own_modes` on the host. prefills: by how
    many columns they take and how many keys they read. reached: from which column on the cache is empty. owner():
    the `Sequences` that have the slots, None if they are gone.
    """

    def __init__(self, engine: "Engine", batch: int, positions: int):
        decoder, dtype = engine.model.language_model, engine.model.dtype
        sizes = decoder.config
        self.engine = engine
        shape = sizes.num_layers, batch, sizes.num_key_value_heads
        self.cache, self.context = KVCache(*shape, positions, sizes.head_dim, dtype), None
        if engine.model.context_positions:
            self.context = KVCache(*shape, engine.model.context_positions, sizes.head_dim, dtype, name="context")
        self.counts = np.full(batch, engine.model.context_positions, np.int32)
        self.heard = None
        if engine.model.heard(np.zeros(1, np.int32)) is not None:
            self.heard = Parameter(Tensor(self.counts), name="context.heard", requires_grad=False)
        self.own_modes, self.modes = np.zeros((batch, 1), np.int32), None
        if decoder.switches:
            self.modes = Parameter(Tensor(self.own_modes), name="modes", requires_grad=False)
        self.tables = decoder.position_tables(positions, dtype)
        step = Forward(self, step=True)
        self.step = engine.graph(step, f"the decode step of {_counted(batch, 'sequence')}, {positions} tokens")
        self.prefills: dict[tuple[int, int], Callable] = {}
        self.reached = 0
        self.owner: Callable = lambda: None
        self._write_context: Callable | None = None
        self._check: Callable | None = None
        self._empty: Callable | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what the slots hold."""
        return self.cache.nbytes + (0 if self.context is None else self.context.nbytes)

    @property
    def graphs(self) -> int:
        """How many there are."""
        return 1 + len(self.prefills) + sum(graph is not None for graph in (self._check, self._empty))

    def hear(self, slots: int | list[int] | slice, counts: int | np.ndarray) -> None:
        """Let these slots attend to so many positions of the context, where the model does not always to all."""
        if self.heard is not None:
            self.counts[slots] = counts
            msops.assign(self.heard, Tensor(self.counts.copy()))

    def switch(self, slots: int | list[int] | slice, modes: int | np.ndarray) -> None:
        """Compute the sequences of these slots in these modes from now on, where the decoder switches."""
        if self.modes is not None and (self.own_modes[slots] != modes).any():
            self.own_modes[slots] = modes
            msops.assign(self.modes, Tensor(self.own_modes.copy()))

    def write_context(self, rows: Tensor, count: int) -> None:
        """Let the sequence of the only slot attend to rows (source positions, hidden), the first `count` of them."""
        if (lacking := self.context.positions - len(rows)) > 0:
            rows = msops.concat((rows, msops.zeros((lacking, rows.shape[1]), rows.dtype)))
        self.hear(0, count)
        if self._write_context is None:
            cell = WriteContext(self.engine.model.language_model, self.context)
            self._write_context = self.engine.graph(cell, "the keys and values of what is heard")
        self.context.clear()
        self._write_context(rows)

    @property
    def check(self) -> Callable:
        """The graph of the decode step for the last token of the only sequence and the `DRAFT` that may follow."""
        if self._check is None:
            cell = Forward(self, step=True)
            what = f"the decode step of {DRAFT + 1} tokens of 1 sequence, {self.cache.positions} tokens"
            self._check = self.engine.graph(cell, what)
        return self._check

    def empty(self, column: int) -> None:
        """Let the `DRAFT` columns of the only slot from this one on be written again."""
        if self.cache.flat:  # such tables are overwritten
            return
        if self._empty is None:
            self._empty = self.engine.graph(EmptyColumns(self.cache), "what takes columns of 1 sequence back")
        self._empty(device.tensor(column + np.arange(DRAFT, dtype=np.int32)))

    def prefill(self, width: int, end: int) -> Callable:
        """The graph for so many columns, of which the last is before the column `end`."""
        first = end == width
        keys = end if first else next(keys for keys in key_buckets(self.cache.positions) if keys >= end)
        if (width, keys) not in self.prefills:
            which = f"the first {width} tokens" if first else f"{width} tokens up to the {keys}th"
            what = f"the prefill of {which}, {self.cache.positions} in all"
            self.prefills[width, keys] = self.engine.graph(Forward(self, step=False, keys=keys), what)
        return self.prefills[width, keys]


class Engine:
    """Owns the caches and graphs of one model; `compiled=False` runs the same cells interpreted.

    keeps_clips: whether a clip that was encoded lately is not encoded again, as in a conversation whose every turn has
    all clips of those before; for who never writes other values into the weights.
    """

    keeps_clips = False

    def __init__(self, model: CheckpointModel, compiled: bool):
        self.model, self.compiled = model, compiled
        packed = model.packed_weights
        self.packed = packed if packed is not None and packed.is_current(model.language_model) else None
        self._encoders: dict[tuple[int, ...], list[Callable]] = {}
        self._slots: OrderedDict[tuple[int, int], Slots] = OrderedDict()
        self._others: dict[Any, Callable] = {}
        self._heard: deque[tuple[tuple, Tensor]] = deque(maxlen=_HEARD)
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()  # of clips, the one used last at the end

    def graph(self, cell: nn.Cell, what: str) -> Callable:
        """The cell as one graph, or as it is. what: as for `one_graph`."""
        return one_graph(cell, what) if self.compiled else cell

    def other(self, key: Any, make: Callable[[], nn.Cell], what: str) -> Callable:
        """A graph of the family's own, made when it is first asked for by this key."""
        if key not in self._others:
            self._others[key] = self.graph(make(), what)
        return self._others[key]

    def encode(self, clips: list[tuple[np.ndarray, np.ndarray] | None]) -> Iterator[None]:
        """Encode the clips of some prompts, a unit of work each time that the generator goes on.

        clips: for each prompt features (clips, mel bins, frames) and int32 lengths, as `AudioLanguageModel.clips` gives
        them, or None. The generator returns rows of decoder embeddings (rows, hidden), None where no prompt has a clip,
        and for each prompt its first row. Each clip is encoded at its own width; its rows are as many as the prompt's
        frames have, anything where it has fewer.
        """
        tower, encoded, written = self.model.audio_tower, [], 0
        found = [(*entry, clip) for entry in clips if entry is not None for clip in range(len(entry[1]))]
        firsts, sizes = _first_rows(clips, self.model.audio_tokens)
        widths = np.array([tower.config.frames_to_encode(int(lengths[clip].max())) for _, lengths, clip in found], int)
        begins = np.cumsum(sizes) - sizes
        order = np.zeros(int(np.sum(sizes)), np.int32)
        keys: list[bytes | None] = [None] * len(found)
        if self.keeps_clips and not self.model.context_positions:  # whose windows are asked about once
            keys = [_clip_key(features[clip, ..., :w], n[clip]) for (features, n, clip), w in zip(found, widths)]
        for number, key in enumerate(keys):
            if key in self._rows:
                self._rows.move_to_end(key)
                rows = self._rows[key]
                order[begins[number] : begins[number] + len(rows)] = written + np.arange(len(rows))
                encoded.append(rows)
                written, widths[number] = written + len(rows), -1
        for width in np.unique(widths[widths >= 0]).tolist():
            some = np.flatnonzero(widths == width).tolist()
            while some:
                parts, count = self._encoder(width, len(some), found[some[0]][1].shape[1:])
                now = [found[number] for number in (some + some[-1:] * count)[:count]]
                x = self.model.features_tensor(np.stack([features[clip, ..., :width] for features, _, clip in now]))
                lengths = Tensor(np.stack([lengths[clip] for _, lengths, clip in now]))
                for part in parts:
                    x = part(x, lengths)
                    yield
                encoded.append(x)
                tokens = len(x) // count
                for place, number in enumerate(some[:count]):
                    own = np.arange(begins[number], begins[number] + tokens)
                    order[own] = written + place * tokens + np.arange(tokens)
                    if keys[number] is not None:
                        self._keep(keys[number], x, place * tokens, tokens)
                some, written = some[count:], written + len(x)
        return _in_order(encoded, order), firsts

    def _keep(self, key: bytes, rows: Tensor, first: int, count: int) -> None:
        """Keep so many rows of what was encoded."""
        if count < len(rows):
            rows = msops.gather(rows, Tensor(np.arange(first, first + count, dtype=np.int32)), 0)
        self._rows[key] = rows
        while sum(kept.nbytes for kept in self._rows.values()) > _KEPT_BYTES:
            self._rows.popitem(last=False)

    def heard(self, clips: tuple[np.ndarray, np.ndarray]) -> Iterator[None]:
        """`listen` to one prompt's clip; what was heard last is kept for prompts that have the same tuple."""
        for kept, found in self._heard:
            if kept is clips:
                return found
        found = yield from self.listen(clips)
        self._heard.append((clips, found))
        return found

    def listen(self, clips: tuple[np.ndarray, np.ndarray]) -> Iterator[None]:
        """`encode` one prompt's clip, which a model with a context hears. The generator returns rows (source positions,
        hidden), and how many of them the decoder attends to."""
        rows, _ = yield from self.encode([clips])
        counts = self.model.heard(clips[1])
        return rows.astype(self.model.dtype), len(rows) if counts is None else int(counts[0])

    def _encoder(self, width: int, clips: int, more: tuple[int, ...]) -> tuple[list[Callable], int]:
        """Graphs one after another for clips of this width, and how many they take: narrow ones together, to launch
        fewer kernels."""
        key = width, TOGETHER, *more
        count = TOGETHER if clips > TOGETHER // 2 and width < self.model.audio_tower.config.num_mel_frames else 1
        if key not in self._encoders and self.graphs >= _MANY_GRAPHS:
            count = 1
        key = width, count, *more
        if key not in self._encoders:
            seconds = width / self.model.audio_tower.config.frames_per_second
            what = f"the encoder of {_counted(count, 'clip')} of {seconds:g} s"
            cells = [EncodeAudio(self.model, layers) for layers in self._parts(width * count)]
            names = [f"{what}, part {i + 1} of {len(cells)}" if len(cells) > 1 else what for i in range(len(cells))]
            self._encoders[key] = [self.graph(cell, name) for cell, name in zip(cells, names)]
        return self._encoders[key], count

    def _parts(self, frames: int) -> list[tuple[int, int]]:
        """The encoder's layers in parts that take hardly longer than a few decode steps."""
        layers = len(self.model.audio_tower.layers)
        weights = sum(parameter.size for parameter in self.model.language_model.get_parameters())
        most = max(_LEAST_WORK, _PART_WORK * weights)
        some = max(1, int(most // self.model.audio_tower.config.layer_work(frames)))
        return [(first, min(layers, first + some)) for first in range(0, layers, some)] or [(0, 0)]

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
            self._make_room(made.nbytes)
            self._slots[key] = made
        self._slots.move_to_end(key)
        return self._slots[key]

    def has_slots(self, batch: int, positions: int) -> bool:
        """Whether slots of exactly these sizes were made before, and nobody has them."""
        slots = self._slots.get((batch, positions))
        return slots is not None and slots.owner() is None

    def piece_widths(self, slots: Slots, length: int, widths: Sequence[int]) -> list[int]:
        """`pieces` of prompts of so many tokens in all; where there are many graphs, such as these slots have."""
        known = [width for width, keys in slots.prefills if width == keys]
        wanted = pieces(length, widths)
        if known and wanted[0] not in known and self.graphs >= _MANY_GRAPHS:
            return pieces(length, known)
        return wanted

    @property
    def graphs(self) -> int:
        """How many there are, each compiled when it is first used; the parts of an encoder are one."""
        others = len(self._encoders) + len(self._others)
        return others + sum(slots.graphs for slots in self._slots.values())

    def _make_room(self, needed: int) -> None:
        """Drop what was not used for longest, where all caches together would be too large with so many bytes more."""
        most = max(_LEAST_BYTES, sum(parameter.nbytes for parameter in self.model.get_parameters()))
        for key in [key for key, slots in self._slots.items() if slots.owner() is None]:
            if needed + sum(slots.nbytes for slots in self._slots.values()) <= most:
                return
            del self._slots[key]
            logger.warning(
                "the cache of %d sequences of %d tokens is dropped to make room, and its graphs are compiled again "
                "when needed: fewer different sizes of batches, or shorter answers, take less",
                *key,
            )


def _in_order(encoded: list[Tensor], order: np.ndarray) -> Tensor | None:
    """These of all rows (int32), of which a long recording has many: they are copied no more than they must."""
    if not encoded:
        return None
    rows = encoded[0] if len(encoded) == 1 else msops.concat(encoded)
    return rows if np.array_equal(order, np.arange(len(rows))) else msops.gather(rows, Tensor(order), 0)


def _clip_key(features: np.ndarray, lengths: np.ndarray) -> bytes:
    """What two clips have in common only if all their features are the same."""
    digest = hashlib.blake2b(repr((features.shape, str(features.dtype), lengths.tolist())).encode())
    digest.update(np.ascontiguousarray(features))
    return digest.digest()


def _first_rows(clips: list, audio_tokens: Callable[[np.ndarray], np.ndarray]) -> tuple[list[int], list[int]]:
    """For each prompt the row at which the embeddings of its clips begin, and for each clip how many it has."""
    firsts, sizes = [], []
    for entry in clips:
        firsts.append(sum(sizes))
        if entry is not None:
            sizes += [int(audio_tokens(np.array(entry[0].shape[-1])))] * len(entry[1])
    return firsts, sizes

"""The compiled graphs behind `generate`: encode clips, prefill a prompt, decode one token, copy sequences.

Shapes are rounded up to buckets, so that a new prompt or clip seldom compiles anything: the step graph is compiled once
for each (batch, cache bucket), a prefill graph once for each prompt bucket in it.
"""

from collections import OrderedDict
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone.audio_language_model import AudioLanguageModel, merge_audio
from mindone_audio.backbone.cache import CopySequences, KVCache
from mindone_audio.backbone.decoder import Decoder, causal_mask, look_up

_SMALLEST_PROMPT = 64
_SMALLEST_CACHE = 256
_MOST_CLIPS = 8  # that are encoded at once: bounds the memory that ten minutes of windows need
_CACHES_KEPT = 4  # beams need two at once; more only save compilations
_best = msops.Argmax(-1, ms.int32)


def prompt_bucket(length: int) -> int:
    """The next of 64, 96, 128, 192, 256, 384, ...: at most half of a prompt is padding."""
    bucket = _SMALLEST_PROMPT
    while bucket < length:
        if bucket * 3 // 2 >= length:
            return bucket * 3 // 2
        bucket *= 2
    return bucket


def cache_bucket(length: int) -> int:
    """The next power of two from 256 on."""
    return max(_SMALLEST_CACHE, 1 << (length - 1).bit_length())


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
    """Prefill and decode step: tokens in at `offset`, the next token's scores out, the cache written in between."""

    def __init__(self, language_model: Decoder, cache: KVCache, tables: list[Tensor]):
        super().__init__(auto_prefix=False)
        self.language_model, self.cache, self.tables = language_model, cache, tables

    def construct(self, input_ids: Tensor, offset: Tensor, start: Tensor, audio=None, audio_index=None):
        """input_ids int32 (batch, length); offset int32: column of the first token; start int32 (batch): first column
        of each sample that is not padding; audio (rows, hidden) with audio_index int32 (batch, length), or neither.

        Returns scores fp32 (batch, vocab) after the last token, and the best token int32 (batch).
        """
        columns = offset + msops.arange(input_ids.shape[1], dtype=ms.int32)
        keys = msops.arange(self.cache.positions, dtype=ms.int32)
        start = start.reshape((-1, 1))
        rotation = look_up(self.tables, msops.maximum(columns - start, 0))
        mask = causal_mask(columns, keys, keys >= start)
        embeddings = self.language_model.embed(input_ids)
        if audio is not None:
            embeddings = merge_audio(embeddings, audio, audio_index)
        hidden = self.language_model(embeddings, rotation, mask, self.cache, self.cache.rows(columns))
        last = hidden[:, -1] if input_ids.shape[1] > 1 else hidden.reshape((hidden.shape[0], hidden.shape[2]))
        scores = self.language_model.logits(last)
        return scores, _best(scores)


class Sequences:
    """A batch under generation: its cache, the graphs that extend it by a prompt or a token, and how far it is.

    length: columns written so far. start: int32 (batch), the first column of each sample that is not padding. turn:
    counts the generations that this object served.
    """

    def __init__(self, cache: KVCache, prefill: Callable, step: Callable):
        self.cache, self.prefill, self.step = cache, prefill, step
        self.length, self.turn, self.start = 0, 0, Tensor(np.zeros(cache.batch, np.int32))

    def extend(self, input_ids: np.ndarray, audio: Tensor | None = None, audio_index: np.ndarray | None = None):
        """Run tokens int32 (batch, length) through the model: scores and best token, still on the device."""
        # from_numpy shares the array's memory and takes a tenth of Tensor's time.
        inputs = Tensor.from_numpy(input_ids), Tensor.from_numpy(np.array(self.length, np.int32)), self.start
        self.length += input_ids.shape[1]
        if audio is not None:
            return self.prefill(*inputs, audio, Tensor(audio_index))
        return self.prefill(*inputs) if input_ids.shape[1] > 1 else self.step(*inputs)


class Structure:
    """What a compiled graph has taken from a model for good: its cells, and which adapters they use and how.

    A graph reads the parameters each time it runs, but not whether a `mindone.peft` layer stands in a cell's place, is
    disabled or merged, which adapters are active, how they are scaled, and whether the cell is being trained.
    """

    def __init__(self, model: nn.Cell):
        # The cells themselves are kept, since the id of one that is gone may be another's.
        self.cells = [cell for _, cell in model.cells_and_names()]
        self.states = [_state(cell) for cell in self.cells]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Structure) or len(self.cells) != len(other.cells):
            return False
        return all(a is b for a, b in zip(self.cells, other.cells)) and self.states == other.states


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
        self._encode = self._graph(EncodeAudio(model))
        self._sequences: OrderedDict[tuple, Sequences] = OrderedDict()
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

    def sequences(self, batch: int, positions: int, role: str = "prompt") -> Sequences:
        """A batch of empty sequences with room for `positions` tokens; its cache may have been used before."""
        key = (role, batch, cache_bucket(positions))
        if key not in self._sequences:
            while len(self._sequences) >= _CACHES_KEPT:
                _, dropped = self._sequences.popitem(last=False)
                self._copies = {k: v for k, v in self._copies.items() if id(dropped.cache) not in k}
            decoder = self.model.language_model
            sizes = decoder.config
            cache = KVCache(
                sizes.num_layers, batch, sizes.num_key_value_heads, key[2], sizes.head_dim, self.model.dtype
            )
            tables = decoder.rotation_tables(cache.positions, self.model.dtype)
            prefill, step = (Forward(decoder, cache, tables) for _ in range(2))
            # In this phase MindSpore runs the cell's only graph, without looking each time for one that fits.
            step.phase = "increment"
            self._sequences[key] = Sequences(cache, self._graph(prefill), self._graph(step))
        self._sequences.move_to_end(key)
        sequences = self._sequences[key]
        sequences.length = 0
        sequences.turn += 1
        return sequences

    def copy(self, source: Sequences, target: Sequences, index: np.ndarray) -> None:
        """Make each sequence of `target` a copy of sequence index[i] of `source`, which may be the same object."""
        key = (id(source.cache), id(target.cache))
        if key not in self._copies:
            self._copies[key] = self._graph(CopySequences(source.cache, target.cache))
        self._copies[key](Tensor(index.astype(np.int32)))
        target.start = Tensor(source.start.asnumpy()[index])
        target.length = source.length

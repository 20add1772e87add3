"""Sequences in the slots of a cache, whose columns are a ring: each has its own first column, all the same next one."""

import weakref
from collections.abc import Iterator, Sequence

import numpy as np
from mindspore import Tensor
from mindspore import ops as msops

from mindone_audio.backbone.audio_language_model import audio_rows
from mindone_audio.generation.engine import DRAFT, PACKED, Engine, _best
from mindone_audio.machine import device


class Sequences:
    """What the slots of a cache hold while tokens are generated.

    column: where the next token of every sequence is written. start int32 (slots): the column of the first token of
    each, and begin: of the first that is not empty, which may be padding. idle bool (slots): which have no sequence.
    A sequence is at most one column shorter than the ring.
    """

    def __init__(self, engine: Engine, rows: int, positions: int, prefills: bool = False):
        """Slots for so many sequences, none of them there yet, of up to `positions` tokens. prefills: of one, to run
        a prompt in it."""
        self.engine, self.slots = engine, engine.slots(rows, positions, prefills)
        self.slots.owner = weakref.ref(self)
        self.batch, self.positions, self.column = self.slots.cache.batch, self.slots.cache.positions, 0
        self.start, self.begin = np.zeros(self.batch, np.int32), np.zeros(self.batch, np.int32)
        self.idle = np.ones(self.batch, bool)

    def prefill(
        self,
        input_ids: np.ndarray,
        lengths: np.ndarray,
        audio: Tensor | None,
        audio_index: np.ndarray,
        widths: list[int],
        also: Sequence[int] = (),
        modes: np.ndarray | None = None,
    ) -> Iterator[None]:
        """Run prompts through the model, in the slot of one, a piece each time that the generator goes on.

        input_ids int32 (sum of lengths): one prompt behind the other, of which the last goes on; lengths int (prompts).
        audio (rows, hidden) or None, with audio_index int32 like input_ids, -1 where a token is text. widths: of the
        pieces. also: other places in input_ids. modes int32 like input_ids, where the decoder switches. The generator
        returns scores and best next tokens of the end of each prompt and then of these, on the device.
        """
        self.slots.cache.clear(self.slots.reached)
        self.column = self.slots.reached = 0
        padding = sum(widths) - len(input_ids)
        ends = padding + np.cumsum(lengths)
        starts = np.repeat(ends - lengths, lengths)
        # The start of padding is the first column, so that it attends to something; nothing attends to it.
        modes = np.zeros(len(input_ids)) if modes is None else modes
        tokens, starts, index, modes = (
            np.pad(array.astype(np.int32), (padding, 0), constant_values=fill)
            for array, fill in ((input_ids, 0), (starts, 0), (audio_index, -1), (modes, 0))
        )
        self.slots.switch(0, modes[-1])
        self.start[0], self.idle[0], hidden, order = starts[-1], False, [], []
        model, first = self.engine.model, 0
        wanted = np.concatenate([ends - 1, padding + np.array(also, int)])
        merges = self.slots.context is None  # what an encoder-decoder model hears is in its context
        if audio is None and merges:
            audio = msops.zeros((1, model.language_model.config.hidden_size), model.dtype)
        for width in widths:
            self._check_owner()
            ids, start, rows, mode = (
                array[None, first : first + width].copy() for array in (tokens, starts, index, modes)
            )
            here = np.flatnonzero((first <= wanted) & (wanted < first + width))
            chosen = np.pad(wanted[here] - first, (0, PACKED - len(here))).astype(np.int32)
            arguments = [*self._tokens(ids, start), Tensor(chosen)]
            if merges:
                rows = Tensor(rows)
                arguments += audio_rows(audio, rows).astype(model.dtype), rows  # the graph was compiled for that dtype
            if self.slots.modes is not None:
                arguments.append(Tensor(mode))
            output = self.slots.prefill(width, first + width)(*arguments)
            if len(here):
                hidden.append(output)
                order += [*here.tolist(), *[len(wanted)] * (PACKED - len(here))]
            first += width
            yield
        rows = msops.gather(msops.concat(hidden), Tensor(np.argsort(order)[: len(wanted)].astype(np.int32)), 0)
        scores = (self.engine.packed or model.language_model).logits(rows)
        return scores, _best(scores)

    def warm_up(self, prompts: list[list[int]]) -> None:
        """Compile the step, and in the slot of one the prefills of pieces of these widths."""
        if prompts and (context := self.slots.context) is not None:
            self.slots.write_context(
                msops.zeros(
                    (context.positions, self.engine.model.language_model.config.hidden_size), self.engine.model.dtype
                ),
                context.positions,
            )
        for widths in prompts:
            ids = np.zeros(sum(widths), np.int32)
            for _ in self.prefill(ids, np.array([len(ids)]), None, ids - 1, widths):
                pass
        self.extend(np.zeros(self.batch, np.int32))

    def extend(self, tokens: np.ndarray) -> tuple[Tensor, Tensor]:
        """Append one token, int32 (slots), to each sequence: scores and best next tokens of all slots, on the device.

        Raises `RuntimeError` where another generation has taken the cache.
        """
        self._check_owner()
        self.start[self.idle] = self.column  # an empty slot sees only what is written now
        return self.slots.step(*self._tokens(tokens[:, None].copy(), self.start[:, None].copy()))

    @property
    def takes_drafts(self) -> bool:
        """Whether `extend_by` can be called: for one sequence, while the columns that it and `keep` write are free.

        Several sequences would agree with their drafts up to different columns.
        """
        return self.batch == 1 and self.column + 2 * DRAFT + 1 < self.positions

    def extend_by(self, tokens: list[int]) -> tuple[Tensor, Tensor]:
        """`extend` the only sequence by up to `DRAFT` + 1 tokens at once; `keep` says afterwards which of them stay.

        Returns scores (`DRAFT` + 1, vocab) and best next tokens (`DRAFT` + 1) after each token, on the device; after
        the last of them they mean nothing.
        """
        self._check_owner()
        ids = np.zeros((1, DRAFT + 1), np.int32)
        ids[0, : len(tokens)] = tokens
        return self.slots.check(*self._tokens(ids, np.repeat(self.start[:, None], DRAFT + 1, 1)))

    def keep(self, count: int) -> None:
        """Take back all but the first `count` columns of the last `extend_by`, which are written again later."""
        self.column -= DRAFT + 1 - count
        if count <= DRAFT:
            self.slots.empty(self.column)

    def insert(self, slots: list[int], prompts: "Sequences", length: int, end: int, mode: int = 0) -> None:
        """Make slots copies of a prompt of so many tokens, which ends before the column `end` in `prompts`, of one.

        mode: `Decoder.mode` of the prompt.
        """
        source, context = prompts.slots.cache, prompts.slots.context
        columns = np.full(self.positions, source.positions - 1)  # where nothing has been written
        columns[(self.column - length + np.arange(length)) % self.positions] = np.arange(end - length, end)
        self.slots.reached = self.positions
        for slot in slots:
            self.slots.cache.insert(slot, source, columns)
            if context is not None:
                self.slots.context.insert(slot, context, np.arange(context.positions))
                self.slots.hear(slot, prompts.slots.counts[0])
        self.slots.switch(slots, mode)
        self.start[slots] = self.begin[slots] = (self.column - length) % self.positions
        self.idle[slots] = False

    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int (slots); 0 where there is none."""
        return np.where(self.idle, 0, (self.column - self.start) % self.positions)

    @property
    def full(self) -> bool:
        """Whether a sequence fills the ring: `moved` to a larger one, all can go on."""
        return bool((~self.idle & ((self.column - self.begin) % self.positions == self.positions - 1)).any())

    def moved(self, rows: list[int], batch: int, positions: int) -> "Sequences":
        """The sequences of these slots in the first slots of another cache, of at least these sizes."""
        other = Sequences(self.engine, batch, positions)
        lengths = self.lengths()[rows]
        longest = int(lengths.max(initial=0))
        columns = np.zeros(other.positions, int)
        columns[:longest] = (self.column - longest + np.arange(longest)) % self.positions
        other.column = longest
        other.start[: len(rows)] = other.begin[: len(rows)] = longest - lengths
        other.idle[: len(rows)] = False
        counted = np.arange(other.positions)
        valid = (counted >= other.start[:, None]) & (counted < longest) & ~other.idle[:, None]
        index = np.zeros(other.batch, int)
        index[: len(rows)] = rows
        other.slots.reached = other.positions
        other.slots.cache.take(self.slots.cache, index, columns, valid)
        if (context := self.slots.context) is not None:
            whole = np.arange(context.positions)
            other.slots.context.take(context, index, whole, np.ones((other.batch, len(whole)), bool))
            other.slots.hear(slice(None), self.slots.counts[index])
        other.slots.switch(slice(None), self.slots.own_modes[index])
        return other

    def reorder(self, index: np.ndarray) -> None:
        """Make the sequence of slot i a copy of that of slot index[i], int (rows) of the first slots.

        Both attend to the same context, as beams of one prompt do.
        """
        if (index != np.arange(len(index))).any():
            whole = np.arange(self.batch)
            whole[: len(index)] = index
            self.slots.cache.reorder(whole)
            self.start, self.begin = self.start[whole], self.begin[whole]

    def _check_owner(self) -> None:
        if self.slots.owner() is not self:
            raise RuntimeError("another generation has begun on this model: finish or drop a stream before the next")

    def _tokens(self, input_ids: np.ndarray, start: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of a graph for the next columns."""
        offset, self.column = self.column, (self.column + input_ids.shape[1]) % self.positions
        self.slots.reached = max(self.slots.reached, min(offset + input_ids.shape[1], self.positions))
        return device.tensor(input_ids), device.tensor(np.array(offset, np.int32)), device.tensor(start)

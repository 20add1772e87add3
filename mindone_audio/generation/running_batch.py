"""Rows that are admitted, stepped and dropped while others go on: the one way to generate, but for beams."""

from collections.abc import Iterator, Sequence

import numpy as np

from mindone_audio.generation.engine import DRAFT, FIRST, PACK, PACKED, PACKS, Engine, pieces, power_of_two
from mindone_audio.generation.row import GenerationRequest, Row
from mindone_audio.generation.sequences import Sequences

EXPECTED_TOKENS = 128  # that a cache has room for at first; few answers are longer, whatever max_new_tokens allows
_SPARE_STEPS = 16  # in which a batch is half empty before it becomes smaller


class RunningBatch:
    """The rows of one engine that are generated together.

    rows: that of each slot, None where it is free. positions: tokens of a sequence that there is room for from the
    beginning, so that the cache rarely grows.
    """

    def __init__(self, engine: Engine, positions: int = 0):
        self.engine, self.positions = engine, positions
        self.rows: list[Row | None] = []
        self.sequences: Sequences | None = None
        self._admitting = False
        self._spare = 0  # steps in a row in which the batch was half empty

    @property
    def active(self) -> list[Row]:
        """The rows that go on."""
        return [row for row in self.rows if row is not None]

    def admit(self, groups: list[list[Row]], longest_piece: int = max(FIRST)) -> Iterator[None]:
        """Prefill prompts and choose the first token of their rows, a unit each time that the generator goes on.

        groups: the rows of each request. longest_piece: the most columns of prompts to run at a time, `CHUNK` or more.
        Between two units `step` and `drop` may be called, but no other prompts admitted. A row that ends with its first
        token takes no slot. A generator that is closed before its end leaves out the rows that have no token yet.
        """
        requests, count = [group[0].request for group in groups], sum(map(len, groups))
        room = max(self.positions, *(_positions(row) for group in groups for row in group))
        alone = count == 1 and not self.active  # it goes on in the slot in which its prompt was run
        self._admitting = True
        try:
            if not alone:
                self._make_room(count, room)
            answer = room - requests[0].prompt_tokens if alone else 1
            for result in prefilled(self.engine, requests, answer, longest_piece):
                if result is None:
                    yield
                    continue
                number, source, end, scores, best, also = result
                for row in groups[number]:
                    row.prompt_scores, row.mode = also, mode_of(self.engine, requests[number])
                    row.add(scores, best)
                staying = [row for row in groups[number] if not row.ended]
                if alone:
                    self._place(source, staying)
                elif staying:
                    free = [slot for slot, row in enumerate(self.rows) if row is None][: len(staying)]
                    self.sequences.insert(free, source, requests[number].prompt_tokens, end, staying[0].mode)
                    for slot, row in zip(free, staying):
                        self.rows[slot], row.slot = row, slot
        finally:
            self._admitting = False

    def step(self) -> list[Row]:
        """Choose one more token of each row, or several of one that is alone; returns the rows.

        Those that have ended are dropped.
        """
        active = self.active
        if not active:
            return []
        if self.sequences.full:
            self._move(self.sequences.batch, self.sequences.positions + 1)
        self._shrink()
        again = [row for row in active if self._changes_mode(row)]
        self._extend([row for row in active if row not in again])
        for row in again:
            self._run_again(row)
        for row in active:
            if row.ended:
                self.drop(row)
        return active

    def _extend(self, rows: list[Row]) -> None:
        """`step` these rows, in one graph call."""
        if not rows:
            return
        if self.sequences.takes_drafts and (draft := rows[0].draft(DRAFT)) and not self._changes_mode(rows[0], DRAFT):
            self._follow(rows[0], draft)
            return
        tokens = np.zeros(self.sequences.batch, np.int32)
        for row in rows:
            tokens[row.slot] = row.tokens[-1]
        scores, best = self.sequences.extend(tokens)
        for row in rows:
            row.look_ahead()
        best = best.asnumpy()
        scores = scores.asnumpy() if any(row.reads_scores for row in rows) else None
        for row in rows:
            row.add(scores[row.slot] if row.reads_scores else None, best[row.slot])

    def _follow(self, row: Row, draft: list[int]) -> None:
        """`step` the only row by as many tokens of a draft as it chooses itself, and one more, in one graph call."""
        scores, best = self.sequences.extend_by([row.tokens[-1], *draft])
        row.look_ahead()
        scores = scores.asnumpy() if row.reads_scores else None
        self.sequences.keep(row.follow(draft, scores, best.asnumpy()))

    def _changes_mode(self, row: Row, more: int = 0) -> bool:
        """Whether the row has become so long, or will with so many more tokens, that all its tokens are computed in
        another way."""
        request, decoder = row.request, self.engine.model.language_model
        if not decoder.switches:
            return False
        return decoder.mode(request.audio_tokens > 0, request.prompt_tokens + len(row.tokens) + more) != row.mode

    def _run_again(self, row: Row) -> None:
        """`step` a row by running all its tokens as a prompt."""
        request = row.request.continued(row.tokens)
        row.mode, self.sequences.idle[row.slot] = mode_of(self.engine, request), True
        alone = self.sequences.batch == 1  # these slots are the prefill's
        for result in prefilled(self.engine, [request], _positions(row) - request.prompt_tokens if alone else 1):
            if result is not None:
                _, source, end, scores, best, _ = result
        row.add(scores, best)
        if alone:
            self._place(source, [row])
        else:
            self.sequences.insert([row.slot], source, request.prompt_tokens, end, row.mode)

    def drop(self, row: Row) -> None:
        """Take a row out, which makes its slot free; one that has no slot is left as it is."""
        if row.slot is None:
            return
        self.rows[row.slot], self.sequences.idle[row.slot] = None, True
        row.slot = None
        if not self.active and not self._admitting:
            self._place(None, [])

    def _place(self, sequences: Sequences | None, rows: list[Row]) -> None:
        """Go on with these rows, in the first slots of `sequences`."""
        if not rows and not self._admitting:
            sequences = None
        self.sequences, self._spare = sequences, 0
        self.rows = [*rows, *[None] * ((0 if sequences is None else sequences.batch) - len(rows))]
        for slot, row in enumerate(rows):
            row.slot = slot

    def _make_room(self, count: int, positions: int) -> None:
        """Have free slots for so many more rows of so many tokens."""
        rows, now = len(self.active) + count, self.sequences
        if now is None or now.batch < rows or now.positions < positions:
            self._move(rows, max([positions, *(_positions(row) for row in self.active)]))

    def _move(self, batch: int, positions: int) -> None:
        """Go on in other slots, of at least these sizes."""
        active = self.active
        if active:
            self._place(self.sequences.moved([row.slot for row in active], batch, positions), active)
        else:
            self._place(Sequences(self.engine, batch, positions), [])

    def _shrink(self) -> None:
        """Go on in fewer slots, where enough have been empty for long and the graph for fewer is there."""
        now, fewer = self.sequences, power_of_two(len(self.active))
        self._spare = self._spare + 1 if fewer < now.batch and not self._admitting else 0
        if self._spare >= _SPARE_STEPS and self.engine.has_slots(fewer, now.positions):
            self._move(fewer, now.positions)


def mode_of(engine: Engine, request: GenerationRequest) -> int:
    """How the tokens of a request's prompt are computed."""
    decoder = engine.model.language_model
    return decoder.mode(request.audio_tokens > 0, request.prompt_tokens) if decoder.switches else 0


def _positions(row: Row) -> int:
    """Tokens that there should be room for at first, or now."""
    settings, made = row.settings, len(row.tokens)
    return row.request.prompt_tokens + made + min(settings.max_new_tokens - made, EXPECTED_TOKENS)


def prefilled(
    engine: Engine, requests: Sequence[GenerationRequest], answer: int, longest_piece: int = max(FIRST)
) -> Iterator[tuple[int, Sequences, int, np.ndarray, int, np.ndarray] | None]:
    """Encode clips and run prompts, in the slot of one: None after each unit of work, and what came out of each prompt.

    answer: tokens that may follow in that slot. Yields for each prompt its number, the sequences of one and the column
    before which it ends there, scores fp32 (vocab) of the next token, the best one, and scores (n, vocab) at the places
    of the prompt that the request also asks for.
    """
    together, lengths = not engine.model.context_positions, np.array([request.prompt_tokens for request in requests])
    if together:
        audio, firsts = yield from engine.encode([request.clips for request in requests])
    alone = [[number] for number in range(len(requests))]
    for pack in packs(lengths, min(PACK, longest_piece)) if together else alone:
        total, widths = int(lengths[pack].sum()), FIRST if len(pack) == 1 else PACKS
        widths = [width for width in widths if width <= longest_piece]
        one = Sequences(engine, 1, sum(pieces(total, widths)) + answer, prefills=True)
        widths = engine.piece_widths(one.slots, total, widths)
        if not together:
            (audio, count), firsts = (yield from engine.heard(requests[pack[0]].clips)), [0] * len(requests)
            one.slots.write_context(audio, count)
            yield
        indices = [requests[number].audio_index for number in pack]
        index = [np.where(own < 0, -1, own + firsts[number]) for number, own in zip(pack, indices)]
        ids = np.concatenate([requests[number].input_ids for number in pack])
        also = requests[pack[0]].also
        modes = np.repeat([mode_of(engine, requests[number]) for number in pack], lengths[pack])
        outputs = yield from one.prefill(ids, lengths[pack], audio, np.concatenate(index), widths, also, modes)
        scores, best = (output.asnumpy() for output in outputs)
        ends = sum(widths) - total + np.cumsum(lengths[pack])
        for place, number in enumerate(pack):
            yield number, one, int(ends[place]), scores[place], int(best[place]), scores[len(pack) :]


def packs(lengths: np.ndarray, most: int) -> list[list[int]]:
    """Which prompts, of so many tokens, are run together, up to `most` tokens: each goes to the first with room."""
    found: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        fitting = (pack for pack in found if len(pack) < PACKED and lengths[[*pack, row]].sum() <= most)
        if pack := next(fitting, None):
            pack.append(row)
        else:
            found.append([row])
    return found

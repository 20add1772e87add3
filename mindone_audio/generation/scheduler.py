"""Many requests on one model: a thread that makes every MindSpore call, and what its callers hear back."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np

from mindone_audio.adapters.selection import select_adapter
from mindone_audio.generation.engine import CHUNK, FIRST, TOGETHER, Engine, cache_bucket
from mindone_audio.generation.events import Delta, Overloaded
from mindone_audio.generation.row import GenerationRequest
from mindone_audio.generation.running_batch import EXPECTED_TOKENS, RunningBatch
from mindone_audio.generation.sequences import Sequences
from mindone_audio.generation.text_stream import TextDecoder
from mindone_audio.machine import device

logger = logging.getLogger(__name__)

Listener = Callable[[Delta | Exception], None]
_FAILURES = 3  # of steps, one after another, after which the model is taken to be broken
_QUESTION = 64  # tokens of text beside the audio of a prompt, for which there is room from the beginning


class Ticket:
    """A request in the scheduler. submitted, begun, answered, ended: when it came, when its prompt was taken up, when
    its first token and its last one were chosen; None before that."""

    def __init__(
        self, request: GenerationRequest, listener: Listener, adapter: str | None, logprobs: int | None, expires
    ):
        self.request, self.listener, self.adapter = request, listener, adapter
        self.expires: float | None = expires
        self.rows = request.rows(logprobs)
        self.decoders = [self._decoder() for _ in self.rows]
        self.told = [0] * len(self.rows)  # tokens of each answer that the listener knows
        self.alone = False  # whether it has failed together with others, and is tried by itself
        self.cancelled = False
        self.open = len(self.rows)  # answers that have not ended
        self.submitted = time.monotonic()
        self.begun = self.answered = self.ended = None

    def _decoder(self) -> TextDecoder | None:
        """What makes the text of an answer, of a request for text."""
        if self.request.decode is None:
            return None
        return TextDecoder(self.request.decode, self.request.settings.stops, strip=True)

    @property
    def placed(self) -> bool:
        """Whether its prompt is done: each of its answers has a slot, or has ended."""
        return all(row.ended or row.slot is not None for row in self.rows)

    def cancel(self) -> None:
        """End the request, from any thread: within a step nothing more is computed for it, or told."""
        self.cancelled = True

    def tell(self) -> None:
        """Tell the listener what is new in each answer."""
        for index, (row, decoder) in enumerate(zip(self.rows, self.decoders)):
            new = row.chosen[self.told[index] :]
            if self.cancelled or self.open == 0 or not new:
                continue
            self.told[index] += len(new)
            self.answered = self.answered or time.monotonic()
            text = "" if decoder is None else "".join(decoder.add(token.id) for token in new)
            if row.ended:
                text += "" if decoder is None else decoder.end()
                self.open -= 1
                self.ended = time.monotonic()
            self.listener(Delta(index, text, tuple(new), row.reason))

    def fail(self, error: Exception) -> None:
        """Tell the listener that nothing more will come."""
        if self.open and not self.cancelled:
            self.listener(error)
        self.open = 0


class Scheduler:
    """Answers requests side by side.

    Its thread loads the model and makes every call of MindSpore. In each turn it drops what was cancelled, chooses one
    more token of each row, and does one unit of work for the requests that come next: a part of an encoder, a piece of
    a prompt. So nobody who has an answer begun waits longer than a step and a unit. Requests are taken in the order in
    which they came. running: rows that are generated now; waiting: requests in the queue. ready: whether the model is
    loaded and its first graphs compiled; alive: whether requests will be answered; failure: what loading raised.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        *,
        max_batch: int = 8,
        max_queue: int = 64,
        max_model_len: int | None = None,
        adapters: Sequence[str] = (),
        timed: Callable[[str, float], None] = lambda part, seconds: None,
    ):
        """load: gives the model, in the scheduler's thread. max_batch: answers at a time. max_queue: requests that may
        wait. max_model_len: tokens of a prompt with its answer, for which there is room from the beginning; None: as
        many as the model can have, where room is made as needed. adapters: names of the model's, which have graphs of
        their own. timed: told how many seconds each part of a turn took, which is "step" or "unit".
        """
        self._adapters, self._timed = adapters, timed
        self._load, self.max_batch, self.max_queue = load, max_batch, max_queue
        self.max_model_len = max_model_len
        self.model: Any = None
        self.ready, self.failure = False, None
        self._waiting: deque[Ticket] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._running: list[Ticket] = []
        self._admission: tuple[list[Ticket], Iterator[None]] | None = None
        self._batches: dict[str | None, RunningBatch] = {}
        self._engines: dict[str | None, Engine] = {}
        self._changed = threading.Condition()
        self._draining, self._stopped, self._over, self._failures = False, False, False, 0
        self._selected: tuple = ()
        self._seconds = 1.0  # that a request took, lately
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)

    def start(self) -> None:
        """Start the thread, which first loads the model."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None and self._failures < _FAILURES

    @property
    def running(self) -> int:
        return sum(len(batch.active) for batch in list(self._batches.values()))

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def cache_usage(self) -> float:
        """The share of the running caches' columns that have a token, 0 to 1."""
        running = [batch.sequences for batch in list(self._batches.values()) if batch.sequences is not None]
        columns = sum(sequences.batch * sequences.positions for sequences in running)
        return sum(int(sequences.lengths().sum()) for sequences in running) / columns if columns else 0.0

    def submit(
        self,
        request: GenerationRequest,
        listener: Listener,
        *,
        adapter: str | None = None,
        logprobs: int | None = None,
        deadline: float | None = None,
    ) -> Ticket:
        """Queue a request, from any thread.

        listener: called from the scheduler's thread with each `Delta`, or with an exception after which nothing
        follows: `ValueError` for a fault of the request, `Overloaded` where it waited longer than `deadline` seconds,
        any other for a fault of the machine. It must not block. adapter: the name of one of the model's, None: none.
        logprobs: how many of the best tokens are told beside each token, None: no log probabilities. Raises
        `Overloaded`, and `ValueError` for a request that never fits.
        """
        if adapter not in (None, *self._adapters):
            raise ValueError(f"there is no adapter {adapter!r}: this model has {', '.join(self._adapters) or 'none'}")
        request = self._fitting(request)
        expires = None if deadline is None else time.monotonic() + deadline
        ticket = Ticket(request, listener, adapter, logprobs, expires)
        with self._changed:
            if self._draining or self._stopped or self._over:
                raise Overloaded("the server is being stopped: ask another one, or later", "draining", 5.0)
            if len(self._waiting) >= self.max_queue:
                seconds = max(1.0, self._seconds * len(self._waiting) / self.max_batch)
                raise Overloaded(f"{len(self._waiting)} requests are waiting: ask again later", "queue", seconds)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def run(self, function: Callable[[], Any]) -> Future:
        """Call a function that uses MindSpore in the scheduler's thread, between two turns."""
        future: Future = Future()
        with self._changed:
            if self._over:
                raise Overloaded("the server has stopped: ask another one", "draining", 5.0)
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def run_with_engine(self, function: Callable[[Engine], Any], adapter: str | None = None) -> Future:
        """`run` of a function that takes the engine of an adapter, as `submit` takes it."""

        def call() -> Any:
            self._select(adapter)
            return function(self._engine(adapter))

        return self.run(call)

    def drain(self, seconds: float) -> bool:
        """Take no more requests and wait until those that are here have ended: whether they have, in that time."""
        ends = time.monotonic() + seconds
        with self._changed:
            self._draining = True
            while (self._waiting or self._running) and self.alive and time.monotonic() < ends:
                self._changed.wait(min(0.1, max(0.0, ends - time.monotonic())))
            return not (self._waiting or self._running)

    def stop(self) -> None:
        """End the thread after its present unit of work; whoever is still here is told."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _fitting(self, request: GenerationRequest) -> GenerationRequest:
        """The request with an answer that fits; `ValueError` for one that never does."""
        settings, most = request.settings, self.max_model_len
        if settings.num_return_sequences > self.max_batch:
            raise ValueError(f"{settings.num_return_sequences} answers at once are more than the {self.max_batch} here")
        if settings.num_beams > 1:
            raise ValueError(f"num_beams={settings.num_beams}: beams are not generated here")
        if most is None or request.prompt_tokens + settings.max_new_tokens <= most:
            return request
        if request.prompt_tokens >= most:
            raise ValueError(
                f"the prompt has {request.prompt_tokens} tokens, audio included, and there is room for {most - 1}: use "
                "fewer or shorter clips, or less text"
            )
        return replace(request, settings=replace(settings, max_new_tokens=most - request.prompt_tokens))

    def _work(self) -> None:
        """The thread."""
        try:
            self.model = self._load()
            for adapter in (None, *self._adapters):
                self._warm_up(adapter)
            self.ready = True
        except Exception as error:
            self.failure = error  # for whoever asks why there is no model
        while self.failure is None and not self._stopped and self._failures < _FAILURES:
            self._drop()
            worked = self._call() | self._part("step", self._step) | self._part("unit", self._unit)
            with self._changed:
                self._changed.notify_all()
                if not (worked or self._waiting or self._calls or self._stopped):
                    self._changed.wait()
        self.ready = False
        error = self.failure or RuntimeError("the server has stopped")
        with self._changed:
            self._over = True
            for ticket in (*self._running, *self._waiting):
                ticket.fail(error)
            self._running.clear()
            self._waiting.clear()
            for _, future in self._calls:
                future.set_exception(error)
            self._changed.notify_all()

    def _part(self, name: str, work: Callable[[], bool]) -> bool:
        """Do a part of a turn, and say how long it took where there was something to do."""
        start = time.monotonic()
        worked = work()
        if worked:
            self._timed(name, time.monotonic() - start)
        return worked

    def _call(self) -> bool:
        if not self._calls:
            return False
        function, future = self._calls.popleft()
        if not future.set_running_or_notify_cancel():
            return True
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
        return True

    def _drop(self) -> None:
        """Forget what was cancelled or has ended, and what has waited too long."""
        now = time.monotonic()
        with self._changed:
            for ticket in list(self._waiting):
                if ticket.expires is not None and now > ticket.expires and not ticket.alone:
                    ticket.fail(Overloaded("this request has waited too long: ask again", "deadline", self._seconds))
                if ticket.cancelled or not ticket.open:
                    self._waiting.remove(ticket)
        for ticket in [ticket for ticket in self._running if ticket.cancelled or not ticket.open]:
            batch = self._batches.get(ticket.adapter)
            for row in ticket.rows:
                if batch is not None:
                    batch.drop(row)
        if self._admission is not None and all(ticket.cancelled for ticket in self._admission[0]):
            self._admission[1].close()
            self._admission = None
        admitting = [] if self._admission is None else self._admission[0]
        with self._changed:
            over = [t for t in self._running if t not in admitting and (t.cancelled or not t.open)]
            self._running = [ticket for ticket in self._running if ticket not in over]
        for ticket in over:
            self._seconds += 0.1 * (now - ticket.begun - self._seconds)

    def _step(self) -> bool:
        """One token more of every row; where it fails, the rows of its batch do."""
        worked = False
        for adapter, batch in list(self._batches.items()):
            if not batch.active:
                continue
            worked, tickets = True, [ticket for ticket in self._running if ticket.adapter == adapter]
            try:
                self._select(adapter)
                batch.step()
                self._failures = 0
            except Exception as error:
                logger.exception("a step failed")
                self._failures = _FAILURES if device.is_lost(error) else self._failures + 1
                if self._admission is not None and self._admission[0][0].adapter == adapter:
                    self._admission[1].close()
                    self._admission = None
                del self._batches[adapter]
                for ticket in tickets:
                    ticket.fail(error)
                continue
            self._tell(tickets)
        return worked

    def _unit(self) -> bool:
        """One unit of work for the requests that come next, which it chooses where none are at hand."""
        if self._admission is None and not self._begin():
            return False
        tickets, work = self._admission
        try:
            self._select(tickets[0].adapter)
            next(work)
        except StopIteration:
            self._admission = None
        except Exception as error:
            self._admission = None
            self._give_up(tickets, error)
        self._tell(tickets)
        return True

    def _begin(self) -> bool:
        """Choose the next requests, those of one adapter in the order of the queue, as far as there are slots."""
        free = self.max_batch - self.running
        tickets: list[Ticket] = []
        with self._changed:
            while self._waiting and len(tickets) < TOGETHER:
                ticket = self._waiting[0]
                other = tickets and (ticket.adapter != tickets[0].adapter or ticket.alone or tickets[0].alone)
                if other or len(ticket.rows) > free:
                    break
                free -= len(ticket.rows)
                tickets.append(self._waiting.popleft())
            self._running += tickets
        if not tickets:
            return False
        for ticket in tickets:
            ticket.begun = time.monotonic()
        adapter = tickets[0].adapter
        if adapter not in self._batches:
            self._batches[adapter] = RunningBatch(self._engine(adapter), self._positions())
        # In small pieces, which are compiled, and for which nobody waits long for the next token.
        self._admission = tickets, self._batches[adapter].admit([ticket.rows for ticket in tickets], CHUNK)
        return True

    def _give_up(self, tickets: list[Ticket], error: Exception) -> None:
        """A unit of work has failed: requests whose prompts are done go on, the others are tried alone, which shows the
        one at fault."""
        if device.is_lost(error):
            self._failures = _FAILURES
        else:
            tickets = [ticket for ticket in tickets if not ticket.placed]
        for ticket in tickets:
            batch = self._batches[ticket.adapter]
            for row in ticket.rows:
                batch.drop(row)
        if len(tickets) == 1 or self._failures >= _FAILURES:
            if not isinstance(error, ValueError):
                logger.error("a request failed", exc_info=error)
            for ticket in tickets:
                ticket.fail(error)
            return
        with self._changed:
            for ticket in reversed(tickets):
                self._running.remove(ticket)
                if any(ticket.told):  # it has an answer begun, which nobody can take back
                    ticket.fail(error)
                else:
                    ticket.alone, ticket.rows = True, ticket.request.rows(ticket.rows[0].logprobs)
                    self._waiting.appendleft(ticket)

    def _tell(self, tickets: list[Ticket]) -> None:
        """Tell what is new; a row that could not go on fails its request, and nobody else's."""
        for ticket in tickets:
            if errors := [row.error for row in ticket.rows if row.error is not None]:
                ticket.fail(errors[0])
                continue
            try:
                ticket.tell()
            except Exception as error:  # as of a tokenizer that does not know a token
                logger.exception("what was generated could not be told")
                ticket.fail(error)

    def _select(self, adapter: str | None) -> None:
        """Have the adapter take part in what is compiled or computed outside graphs next."""
        if self._selected != (adapter,):
            select_adapter(self.model, adapter)
            self._selected = (adapter,)

    def _engine(self, adapter: str | None) -> Engine:
        if adapter not in self._engines:
            self._select(adapter)
            self._engines[adapter] = self.model.engine_class(self.model, compiled=True)
        return self._engines[adapter]

    def _positions(self) -> int:
        """Tokens of a sequence that there is room for from the beginning: of a window of audio, a question and an
        answer, or as many as were asked for."""
        decoder, tower = self.model.language_model.config, self.model.audio_tower
        if self.max_model_len is not None:
            return min(self.max_model_len, decoder.max_positions) + 1
        window = 0 if tower is None else int(self.model.audio_tokens(np.array(tower.config.num_mel_frames)))
        return min(window + _QUESTION + EXPECTED_TOKENS, decoder.max_positions) + 1

    def _warm_up(self, adapter: str | None) -> None:
        """Compile what requests need that fit into the first cache: encoders of all widths, prefills, and the steps of
        every number of rows. Nothing of a model that has no tokens to say."""
        if not self.model.language_model.config.vocab_size:
            return
        engine, positions = self._engine(adapter), cache_bucket(self._positions())
        self._select(adapter)
        if self.model.audio_tower is not None:
            for width in self.model.audio_tower.config.widths:
                for clips in {1} if self.model.context_positions else {1, min(TOGETHER, self.max_batch)}:
                    for _ in engine.encode([self.model.blank(width)] * clips):
                        pass
        widths = [[width] for width in FIRST if width <= CHUNK]
        one = Sequences(engine, 1, positions, prefills=True)
        one.warm_up([*widths, [CHUNK, CHUNK]])
        drafts = getattr(self.model.generation_config, "prompt_lookup_num_tokens", None)
        if drafts or drafts is None and not self.model.context_positions:  # answers of a given form have them
            one.extend_by([0])
            one.keep(1)
        for power in range(1, (self.max_batch - 1).bit_length() + 1):
            Sequences(engine, 1 << power, positions).warm_up([])
        self.model.warm_up_more(engine)
        engine.keeps_clips = True  # not before: it would encode each width once

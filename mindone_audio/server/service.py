"""What the HTTP layer needs of models: their names, a place for a request, threads that prepare it, its deltas."""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mindone_audio.generation.events import Delta, Overloaded
from mindone_audio.generation.row import GenerationRequest, Row
from mindone_audio.inputs.audio import SAMPLING_RATE
from mindone_audio.pipelines.requests import Request, prepared
from mindone_audio.server.errors import RequestError
from mindone_audio.server.media import MediaPolicy
from mindone_audio.server.metrics import Metrics
from mindone_audio.server.options import ServerOptions

AT_A_TIME = 2  # windows of one transcription, or inputs of one list, that are in the scheduler
_AGAIN = 0.5  # seconds until a later window asks again for a place
_LOADING = 5.0  # seconds after which a client may ask again while the model is loaded
_HELD = 4  # times the audio of one request: what all of them together may keep in memory
Job = Callable[[Callable[[Any], None]], Awaitable[Any]]


@dataclass
class Place:
    """What one request takes of a server. key: a name of the client's key; seconds: of samples in memory."""

    key: str = ""
    seconds: float = 0.0


class Service:
    """The models of a server.

    pipe is None until the model is loaded, scheduler until loading has begun. speaker: what speaks the answers of
    conversations, None if nobody does. voices: those of a model that speaks, by their names. draining: no new request
    is taken.
    active: how many requests are answered now, bodies that are still being sent included. seconds: of samples that
    they keep in memory.
    """

    def __init__(self, options: ServerOptions):
        self.options, self.created = options, int(time.time())
        self.pipe: Any = None
        self.scheduler: Any = None
        self.speaker: Any = None
        self.voices: dict[str, Any] = {}
        self._speaking = asyncio.Lock()
        self.draining, self.active, self.seconds = False, 0, 0.0
        self._of_key: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="requests")
        self._heard: deque[tuple[asyncio.Queue, Delta | Exception]] = deque()
        self._hearing = threading.Lock()
        self.metrics = Metrics(*(partial(self._scheduled, name) for name in ("running", "waiting", "cache_usage")))
        self.policy = MediaPolicy(
            allowed_domains=tuple(options.allow_media_domain),
            allowed_path=None if options.allow_media_path is None else Path(options.allow_media_path),
            max_bytes=options.max_body_bytes,
            max_seconds=options.max_audio_seconds,
            timeout=options.media_timeout,
        )

    def _scheduled(self, name: str) -> float:
        return 0 if self.scheduler is None else getattr(self.scheduler, name)

    @property
    def alive(self) -> bool:
        """Whether requests will be answered: also while the model is loaded."""
        return self.scheduler is None or self.scheduler.alive

    @property
    def ready(self) -> bool:
        """Whether requests are answered now."""
        return self.scheduler is not None and self.scheduler.alive and self.scheduler.ready and not self.draining

    @property
    def max_model_len(self) -> int | None:
        """Tokens of a prompt and its answer together; None until the model is loaded."""
        if self.options.max_model_len is not None or self.pipe is None:
            return self.options.max_model_len
        return self.pipe.model.language_model.config.max_positions

    @property
    def transcribes_only(self) -> bool:
        """Whether the model writes down what is said and answers no questions; False until it is loaded."""
        return self.pipe is not None and self.pipe.task == "automatic-speech-recognition"

    @property
    def speaks(self) -> bool:
        """Whether the model makes sound of texts, and nothing else; False until it is loaded."""
        return self.pipe is not None and self.pipe.task == "text-to-speech"

    def check_hears(self) -> None:
        """`RequestError` where the model takes no clips."""
        if self.speaks:
            message = (
                f"model {next(iter(self.options.models))} speaks and does not hear: send a text to /v1/audio/speech"
            )
            raise RequestError(message, "model")

    def check_questions(self) -> None:
        """`RequestError` where the model answers no questions."""
        self.check_hears()
        if self.transcribes_only:
            name = next(iter(self.options.models))
            message = f"model {name} transcribes and answers no questions: send the clip to /v1/audio/transcriptions"
            raise RequestError(message, "model")

    def check_model(self, name: Any) -> str:
        """The name of a model; `RequestError` for one that is not here."""
        if not isinstance(name, str) or not name:
            raise RequestError(f"model must be one of {', '.join(self.options.models)}", "model")
        if name not in self.options.models:
            message = f"there is no model {name[:100]!r} here: use {', '.join(self.options.models)}"
            raise RequestError(message, "model", status=404, code="model_not_found")
        return name

    @contextmanager
    def admitted(self, key: str) -> Iterator[Place]:
        """A place for one request, from before its body is read; `Overloaded` where there is none."""
        options = self.options
        if self.draining:
            raise Overloaded("the server is being stopped: ask another one, or later", "draining", _LOADING)
        if self.pipe is None:
            raise Overloaded("the model is being loaded: ask again soon", "loading", _LOADING)
        if self.active >= options.max_queue + options.max_batch:
            raise Overloaded(f"{self.active} requests are waiting or answered: ask again soon", "queue", 1.0)
        if options.max_per_key is not None and self._of_key[key] >= options.max_per_key:
            raise Overloaded(f"this key has {self._of_key[key]} requests already: wait for one to end", "key", 1.0)
        self.active += 1
        self._of_key[key] += 1
        place = Place(key)
        try:
            yield place
        finally:
            self.active -= 1
            self.seconds -= place.seconds
            self._of_key[key] -= 1

    def hold(self, place: Place, samples: int) -> None:
        """Count the samples of a request until its place is free again; `Overloaded` where all have too many."""
        seconds = samples / SAMPLING_RATE
        if self.seconds + seconds > _HELD * self.options.max_audio_seconds:
            raise Overloaded("the clips of other requests fill the memory: ask again soon", "queue", 5.0)
        self.seconds += seconds
        place.seconds += seconds

    async def in_pool(self, function: Callable, *arguments: Any) -> Any:
        """The result of a function that takes long, or reads much, in one of two threads beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *arguments))

    def prepare(self, request: Request) -> Any:
        """A request as the scheduler takes it, in any thread but the scheduler's; `ValueError` where it cannot be."""
        return prepared(self.pipe, self.scheduler, request)

    def deltas(
        self,
        prepared: Any,
        *,
        model: str,
        logprobs: int | None = None,
        patient: bool = False,
        submitted: Callable[[Any], None] = lambda ticket: None,
    ) -> AsyncIterator[Delta]:
        """What the answers to a prepared request grow by; closing it cancels the request.

        patient: wait where there is no place, and however long, as for a later window of a transcription that has
        begun. submitted: is given the scheduler's ticket. Raises `Overloaded`, `ValueError` for a fault of the request,
        and anything else for one of the server.
        """
        return self.metrics.watched(self._deltas(prepared, model, logprobs, patient, submitted), prepared, model)

    async def row(
        self, request: GenerationRequest, *, model: str, logprobs: int | None = None, patient: bool = False
    ) -> Row:
        """The only row of a request, once it has ended; the arguments and errors are those of `deltas`."""
        tickets: list[Any] = []
        deltas = self.deltas(request, model=model, logprobs=logprobs, patient=patient, submitted=tickets.append)
        await collected(deltas, lambda delta: None)
        return tickets[0].rows[0]

    async def with_engine(self, function: Callable[[Any], Any], model: str) -> Any:
        """The result of a function that takes the engine of a model, in the scheduler's thread."""
        adapter = model if self.options.models[model] else None
        return await asyncio.wrap_future(self.scheduler.run_with_engine(function, adapter))

    async def pieces(self, make: Callable[[], Iterator], model: str) -> AsyncIterator[Any]:
        """What the iterator gives that `make` makes, which compute in the scheduler's thread; closing this stops them.

        One iterator is at work at a time; it does not wait for whoever reads this. Raises `Overloaded` where another
        one takes too long, and what the iterator raises.
        """
        found: asyncio.Queue = asyncio.Queue()

        async def work() -> None:
            start = time.monotonic()
            try:
                async with self._turn():
                    iterator = await asyncio.wrap_future(self.scheduler.run(make))
                    following = partial(next, iterator, None)
                    while (piece := await asyncio.wrap_future(self.scheduler.run(following))) is not None:
                        found.put_nowait(piece)
            except Exception as error:  # raised again below, behind the pieces
                found.put_nowait(error)
            else:
                self.metrics.answered(model, time.monotonic() - start)
                found.put_nowait(None)

        working = asyncio.create_task(work())
        try:
            while (piece := await found.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait until nobody else speaks; `Overloaded` where that takes too long."""
        waiting = asyncio.ensure_future(self._speaking.acquire())
        try:
            await asyncio.wait((waiting,), timeout=self.options.queue_timeout)
            if not waiting.done():
                raise Overloaded("this request has waited too long: ask again", "deadline", 1.0)
            yield
        finally:
            if waiting.done() and not waiting.cancelled():
                self._speaking.release()
            waiting.cancel()

    async def _deltas(
        self, prepared: Any, model: str, logprobs: int | None, patient: bool, submitted: Callable[[Any], None]
    ) -> AsyncIterator[Delta]:
        loop, events = asyncio.get_running_loop(), asyncio.Queue()

        def listen(event: Delta | Exception) -> None:
            with self._hearing:
                sleeping = not self._heard
                self._heard.append((events, event))
            if sleeping:  # else it has been woken: once a step, and not once for each of its tokens
                with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                    loop.call_soon_threadsafe(self._hand_out)

        submit = partial(
            self.scheduler.submit,
            *(prepared, listen),
            adapter=model if self.options.models[model] else None,
            logprobs=logprobs,
            deadline=None if patient else self.options.queue_timeout,
        )
        ticket = None
        while ticket is None:
            try:
                ticket = submit()
            except Overloaded as error:
                if not patient or error.reason == "draining":
                    raise
                await asyncio.sleep(_AGAIN)
        submitted(ticket)
        unfinished = prepared.settings.num_return_sequences
        try:
            while unfinished:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                unfinished -= event.finish_reason is not None
                yield event
        finally:
            ticket.cancel()
            self.metrics.over(ticket, model)

    def _hand_out(self) -> None:
        """Give what was heard to those who wait for it, in the event loop."""
        while self._heard:
            events, event = self._heard[0]
            events.put_nowait(event)
            self._heard.popleft()  # only now, so that `listen` wakes the loop for what comes after the last one


async def in_order(jobs: Sequence[Job]) -> AsyncIterator[tuple[bool, Any]]:
    """What jobs say and what they return, all of one job before that of the next: (False, said), (True, returned).

    A job is called with a function that says something. `AT_A_TIME` of them are at work; closing this, or the first
    error, cancels the others.
    """
    gate, said = asyncio.Semaphore(AT_A_TIME), [asyncio.Queue() for _ in jobs]

    async def work(job: Job, events: asyncio.Queue) -> None:
        async with gate:
            try:
                result = await job(lambda value: events.put_nowait((False, value)))
            except Exception as error:  # raised again below, when its turn has come
                events.put_nowait((True, error))
            else:
                events.put_nowait((True, result))

    tasks = [asyncio.create_task(work(job, events)) for job, events in zip(jobs, said)]
    try:
        for events in said:
            ended = False
            while not ended:
                ended, value = await events.get()
                if isinstance(value, Exception):
                    raise value
                yield ended, value
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def collected(deltas: AsyncIterator[Delta], heard: Callable[[Delta], None]) -> None:
    """Call `heard` with each delta, and cancel the request if this is cancelled."""
    async with aclosing(deltas):
        async for delta in deltas:
            heard(delta)

"""What /metrics tells Prometheus, under vLLM's names with the prefix `mindone_audio:`."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mindone_audio.generation.events import Delta, Overloaded

PREFIX = "mindone_audio:"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_PARTS = tuple(float(f"{10 ** (n / 10 - 3):.2g}") for n in range(41))  # 1 ms to 10 s, each 1.26 times the last
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)


class Metrics:
    """Counts of one server, in a registry of its own.

    running, waiting: how many answers are computed, and how many requests wait; cache_usage: the share of the cache.
    """

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int], cache_usage: Callable[[], float]):
        self.registry = CollectorRegistry()
        for name, text, read in (
            ("num_requests_running", "Answers that are being computed", running),
            ("num_requests_waiting", "Requests that wait for a place in the batch", waiting),
            ("kv_cache_usage_perc", "Share of the running caches that holds tokens, 0 to 1", cache_usage),
        ):
            Gauge(PREFIX + name, text, registry=self.registry).set_function(read)
        self.first = self._histogram("time_to_first_token_seconds", "From submission to the first token", _SECONDS)
        self.between = self._histogram("inter_token_latency_seconds", "From one token to the next", _SECONDS)
        self.a_token = self._histogram("request_time_per_output_token_seconds", "The mean of a request", _SECONDS)
        self.whole = self._histogram("e2e_request_latency_seconds", "From submission to the last token", _SECONDS)
        self.phases = {
            name: self._histogram(f"request_{name}_time_seconds", text, _SECONDS)
            for name, text in (
                ("queue", "From submission until its prompt is taken up"),
                ("prefill", "From then to the first token"),
                ("decode", "From the first token to the last"),
                ("inference", "Prefill and decode together"),
            )
        }
        self.parts = {
            part: Histogram(f"{PREFIX}{part}_seconds", text, registry=self.registry, buckets=_PARTS)
            for part, text in (
                ("step", "One token more of every answer"),
                ("unit", "Work for prompts between two steps"),
            )
        }
        self.prompt_size = self._histogram("request_prompt_tokens", "Tokens of a prompt, audio included", _TOKENS)
        self.answer_size = self._histogram("request_generation_tokens", "Tokens of a request's answers", _TOKENS)
        self.prompts = self._counter("prompt_tokens", "Tokens of prompts, audio included")
        self.tokens = self._counter("generation_tokens", "Tokens that were generated")
        self.finished = self._counter("request_success", "Answers that came to their end", "finished_reason")
        self.rejected = self._counter("admission_rejections", "Requests that were not taken", "reason")

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, text, ["model_name"], registry=self.registry, buckets=buckets)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        labels = labels if labels == ("reason",) else ("model_name", *labels)
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def exposition(self) -> bytes:
        """All counts in Prometheus' text format."""
        return generate_latest(self.registry)

    async def watched(self, deltas: AsyncIterator[Delta], prepared: Any, model: str) -> AsyncIterator[Delta]:
        """The deltas of a request, which are counted as they pass. prepared: the request as the scheduler takes it."""
        start = time.monotonic()
        first, latest, count = None, {}, 0
        self.prompts.labels(model).inc(prepared.prompt_tokens)
        async with aclosing(deltas):
            async for delta in deltas:
                if delta.tokens:
                    now = time.monotonic()
                    if first is None:
                        first = now
                        self.first.labels(model).observe(now - start)
                    elif delta.index in latest:
                        self.between.labels(model).observe(now - latest[delta.index])
                    latest[delta.index], count = now, count + len(delta.tokens)
                    self.tokens.labels(model).inc(len(delta.tokens))
                if delta.finish_reason is not None:
                    self.finished.labels(model, delta.finish_reason).inc()
                yield delta
        self.whole.labels(model).observe(time.monotonic() - start)
        self.prompt_size.labels(model).observe(prepared.prompt_tokens)
        self.answer_size.labels(model).observe(count)
        if count > 1:
            self.a_token.labels(model).observe((max(latest.values()) - first) / (count - 1))

    def answered(self, model: str, seconds: float) -> None:
        """Count a request that is answered by something else than tokens."""
        self.whole.labels(model).observe(seconds)
        self.finished.labels(model, "stop").inc()

    def over(self, ticket: Any, model: str) -> None:
        """Count the times of a request that has come to its end."""
        if ticket.ended is not None:
            times = (ticket.submitted, ticket.begun, ticket.answered, ticket.ended)
            for name, start, end in zip(("queue", "prefill", "decode"), times, times[1:]):
                self.phases[name].labels(model).observe(end - start)
            self.phases["inference"].labels(model).observe(ticket.ended - ticket.begun)

    def timed(self, part: str, seconds: float) -> None:
        """Count a part of the scheduler's turn, "step" or "unit"; from any thread."""
        self.parts[part].observe(seconds)

    def refused(self, error: BaseException) -> None:
        """Count a request that was not taken."""
        if isinstance(error, Overloaded):
            self.rejected.labels(error.reason).inc()

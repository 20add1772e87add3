"""What a scheduler tells its callers. Standard library only: a server answers before MindSpore is imported."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Token:
    """A token that was chosen. logprob: its log probability; top: (token id, log probability) of the best, best first.

    Both are only there where log probabilities were asked for.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What one answer of a request has grown by.

    index: which answer, 0 to n - 1. text: never taken back, and empty where the next tokens may still change it.
    tokens: those that were chosen since the last delta. finish_reason: "stop" or "length" in the last one of an answer.
    """

    index: int
    text: str
    tokens: tuple[Token, ...] = field(default=())
    finish_reason: str | None = None


class Overloaded(RuntimeError):
    """A request that is not taken now. reason: "queue", "key" (that key's share), "deadline", "loading" or
    "draining"; retry_after: seconds."""

    def __init__(self, message: str, reason: str, retry_after: float):
        super().__init__(message)
        self.reason, self.retry_after = reason, retry_after

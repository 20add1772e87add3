"""How far a job is: a bar on a terminal, otherwise a log line now and then."""

import logging
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_EVERY = 10.0  # seconds


class Progress:
    """Counts items. show: a bar; None: log lines instead."""

    def __init__(self, total: int, done: int, label: str, bar: bool):
        self._total, self._first, self._done, self._label = total, done, done, label
        self._start: float | None = None
        self._told = 0.0
        self._bar = tqdm(desc=label or "batch", total=total, initial=done, unit="clip", disable=not bar)
        self._logs = not bar

    def update(self, count: int, answered: bool = True) -> None:
        """So many more items have results. The clock starts with the first answers."""
        now = time.monotonic()
        self._done += count
        self._bar.update(count)
        if self._start is None and not answered:
            return
        if self._start is None:  # Loading and compiling are over: only later answers count for the rate.
            self._start, self._first = now, self._done
        elif self._logs and now - self._told >= LOG_EVERY and self._done > self._first:
            rate = (self._done - self._first) / max(now - self._start, 1e-9)
            left = (self._total - self._done) / rate
            prefix = f"{self._label}: " if self._label else ""
            logger.info(
                "%s%d of %d clips, %.2f a second, %s left", prefix, self._done, self._total, rate, _duration(left)
            )
            self._told = now

    def close(self) -> None:
        """Take the bar away, or leave it as it is where all is done."""
        self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"

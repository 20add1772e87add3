"""A spoken conversation: samples in, events out.

Turns are found by voice activity. When a turn may have ended, its answer is computed already, and kept back until it
has. Who begins to speak interrupts: within a step nothing more is computed for the answer, and the history keeps of it
what was told or sounded until then.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mindone_audio.setting_fields import explained, setting
from mindone_audio.voice.activity import RATE, Activity, Began, Ended, Paused, Resumed, Turns, TurnSettings
from mindone_audio.voice.agreement import Agreement
from mindone_audio.voice.events import (
    AnswerAudio,
    AnswerDone,
    AnswerStarted,
    AnswerText,
    Event,
    Failed,
    FinalText,
    HistoryShortened,
    Interrupted,
    PartialText,
    SpeechStarted,
    SpeechStopped,
)
from mindone_audio.voice.history import History, Message, as_chat
from mindone_audio.voice.model import Cancelled, VoiceModel
from mindone_audio.voice.sentences import Sentences

_THREADS = 4  # an answer, its sound, and what was begun before and is being cancelled


@explained
@dataclass(frozen=True)
class ConversationSettings:
    """What a conversation does."""

    turns: TurnSettings = setting(TurnSettings(), "when a turn begins and ends")
    answer: bool = setting(True, "whether turns are answered")
    interrupt: bool = setting(True, "whether speech breaks an answer off")
    transcribe: bool = setting(False, "whether `FinalText` tells what was said in each turn")
    partial_ms: int = setting(0, "of speech between two looks at a growing turn, for `PartialText`; 0: none")
    language: str | None = setting(None, "of transcripts, as en, for families that take one")
    prompt: str | None = setting(None, "words that may be said, such as names, for families that take some")
    system: str = setting("", "what the model is told first")
    history_s: float = setting(600.0, "of sound that the history keeps; older clips become what was said in them")
    remember: bool = setting(True, "whether the model hears the turns before too")
    question: str = setting("", "words beside each spoken turn, for models that are asked about clips")
    generate: dict = setting({}, "settings of `generate` for answers")
    tools: tuple = setting((), "functions that the model may call, as `apply_chat_template` takes them")
    speak: bool = setting(True, "whether answers are spoken, where a speaker is loaded")
    voice: Any = setting(None, "of spoken answers, as `speaker_embeddings` of the speaker's `generate_speech`")


@dataclass
class _Answer:
    """An answer on its way. confirmed: its turn has ended, so that its events are told as they come; before, they are
    kept in `kept`. spoken: in sound. text: what was told. sounded: sentences and their seconds; begun: when the first
    one was told. sentences: to be spoken, and then the event that ends the answer, None where there is none."""

    message: Message
    settings: ConversationSettings
    confirmed: bool
    spoken: bool
    cancelled: threading.Event = field(default_factory=threading.Event)
    kept: list[Event] = field(default_factory=list)
    text: str = ""
    sounded: list[tuple[str, float]] = field(default_factory=list)
    begun: float | None = None
    sentences: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)

    @property
    def turn(self) -> int:
        """That which it answers."""
        return self.message.turn


class Conversation:
    """One conversation with one model, which several may share.

    listener: called with each event, from several threads but never from two at once; it must not block. activity: as
    `Turns` takes it. Close it when it is over, or use it in a `with` statement.
    """

    def __init__(
        self,
        model: VoiceModel,
        listener: Callable[[Event], None],
        settings: ConversationSettings | None = None,
        activity: Activity | None = None,
    ):
        self.model, self.listener, self.settings = model, listener, settings or ConversationSettings()
        if self.settings.answer and not model.answers:
            raise ValueError(
                f"this model transcribes and answers nothing ({model.pipe.task}): set answer=False, or take another one"
            )
        self._turns = Turns(self.settings.turns, model.longest, activity)
        self._lock = threading.RLock()
        self._history = History(self._lock)
        self._changed = threading.Condition(self._lock)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="conversation")
        self._scribe = ThreadPoolExecutor(1, thread_name_prefix="transcripts")  # one, so that they come in order
        self._turn, self._answer, self._closed = 0, None, False
        self._sounding: _Answer | None = None  # the last one, if it was spoken
        self._unanswered = False  # whether a turn waits for the end of the answer before
        self._parts: list[np.ndarray] = []  # of the turn, which were cut off because it is long
        self._agreement, self._looking, self._looked = Agreement(), False, 0
        self._behind = 0
        self._over, self._unlooked = threading.Event(), threading.Event()

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def messages(self) -> list[dict]:
        """The history, as `apply_chat_template` takes it."""
        with self._lock:
            return as_chat(self._history.messages, self.settings.system, self.settings.question)

    @property
    def speaking(self) -> bool:
        """Whether somebody speaks, by what was heard until now."""
        with self._lock:
            return self._turns.speaking

    @property
    def answering(self) -> bool:
        """Whether an answer is on its way."""
        with self._lock:
            return self._answer is not None

    @property
    def behind(self) -> int:
        """How many turns, and parts of turns, are not written down yet."""
        return self._behind

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until turns that have ended are answered and written down: whether they are, in so many seconds."""
        with self._changed:
            return self._changed.wait_for(self._settled, timeout)

    def _settled(self) -> bool:
        return self._closed or not (self._behind or (self._answer is not None and self._answer.confirmed))

    def configure(self, settings: ConversationSettings) -> None:
        """Go on with other settings; the history stays."""
        with self._lock:
            self.settings = settings
            self._turns.settings = settings.turns

    def hear(self, samples: np.ndarray) -> None:
        """What was heard next: mono at 16 kHz, float32 or int16 (count), any number of samples."""
        samples = np.asarray(samples)
        if samples.dtype == np.int16:
            samples = samples.astype(np.float32) / 32768
        with self._lock:
            if self._closed:
                return
            for event in self._turns.hear(samples.astype(np.float32, copy=False)):
                self._on_turn(event)
            self._look()

    def say(self, text: str) -> None:
        """Answer words instead of speech; an answer on its way is broken off."""
        with self._lock:
            self.interrupt()
            self.add("user", text)
            self.respond()

    def add(self, role: str, said: str | np.ndarray, **fields: Any) -> int:
        """Add words, or a clip of float32 samples at 16 kHz, to the history; the number of their turn.

        A clip is one that the model hears at a time, and is written down like what is heard. fields: others of the
        message, such as tool_call_id of the role "tool".
        """
        with self._lock:
            self._turn += 1
            message = Message(self._turn, role, fields=fields)
            if isinstance(said, str):
                message.text = said
            else:
                message.clips = [said]
                self._write_down(Ended(0, said), message)
            if not self.settings.remember and self._history.messages[-1:] and self._history.messages[-1].role != "user":
                self._history.messages = []
            self._history.append(message, self.settings.history_s)
            return self._turn

    def respond(self, **changes: Any) -> int:
        """Answer the history as it is; an answer on its way is broken off. Returns the number of the turn.

        changes: of settings, for this answer.
        """
        with self._lock:
            self.interrupt()
            if not self._history.messages:
                raise ValueError("there is nothing to answer: say something first")
            self._begin(self._history.messages[-1], True, replace(self.settings, **changes))
            return self._history.messages[-1].turn

    def end_turn(self) -> None:
        """Take the turn to be over, where there is one."""
        with self._lock:
            for event in self._turns.end():
                self._on_turn(event)

    def clear(self) -> None:
        """Forget the turn that there is."""
        with self._lock:
            self._turns.clear()
            self._parts = []
            self._discard()
            self._unlooked.set()

    def interrupt(self, played_ms: int | None = None) -> None:
        """Break the answer off, if there is one.

        played_ms: of its sound that was heard; None: as much as there has been time for since it began.
        """
        with self._lock:
            answer = self._answer
            if answer is None:
                self._silence(played_ms)
                return
            self._answer, self._unanswered = None, False
            answer.cancelled.set()
            if answer.confirmed:
                text = _remembered(answer, played_ms)
                self._history.answered(answer.turn, text)
                self.listener(Interrupted(answer.turn, text))
                self._changed.notify_all()

    def _silence(self, played_ms: int | None) -> None:
        """Break the sound of an answer off that is complete, and still to be heard."""
        answer, self._sounding = self._sounding, None
        if answer is None:
            return
        left = sum(seconds for _, seconds in answer.sounded) - (time.monotonic() - answer.begun)
        if played_ms is not None or left > 0:
            text = _remembered(answer, played_ms)
            self._history.answered(answer.turn, text)
            self.listener(Interrupted(answer.turn, text))

    def correct(self, turn: int, text: str, **fields: Any) -> None:
        """Remember this of an answer that was told instead: of one whose sound was not heard to the end the words that
        were, or of calls of tools `tool_calls`, as `apply_chat_template` takes them."""
        with self._lock:
            self._history.answered(turn, text, **fields)

    def close(self) -> None:
        """Compute nothing more."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            self._over.set()
            self._unlooked.set()
            if self._answer is not None:
                self._answer.cancelled.set()
        self._threads.shutdown(wait=False)
        self._scribe.shutdown(wait=False)

    def _on_turn(self, event: Began | Paused | Resumed | Ended) -> None:
        milliseconds = 1000 / RATE
        if isinstance(event, Began):
            self._turn += 1
            self._parts = []
            self._look_anew()
            self.listener(SpeechStarted(self._turn, round(event.start * milliseconds)))
            if self.settings.interrupt:
                self.interrupt()
        elif isinstance(event, Paused):
            if self.settings.answer and self._answer is None:
                self._begin(self._user(event.clip), confirmed=False)
        elif isinstance(event, Resumed):
            self._discard()
        elif event.full:
            self._parts.append(event.clip)
            self._discard()
            self._write_down(event)
            self._look_anew()
            if self.settings.answer:
                self._submit(self._hear_ahead, Message(self._turn, "user", [event.clip]))
        else:
            self._end(event)

    def _end(self, event: Ended) -> None:
        """A turn has ended: its answer, if it was begun, is told from now on."""
        message = self._user(event.clip)
        start = event.start - sum(map(len, self._parts))
        end = event.start + len(event.clip)
        clip = np.concatenate([*self._parts, event.clip])
        self._parts = []
        self.listener(SpeechStopped(self._turn, start * 1000 // RATE, end * 1000 // RATE, clip))
        self._unlooked.set()
        self._write_down(event, message)
        if not self.settings.remember:
            self._history.messages = []
        self._history.append(message, self.settings.history_s)
        if not self.settings.answer:
            return
        begun = self._answer
        if begun is None or begun.confirmed or len(begun.message.clips[-1]) != len(event.clip):
            self._discard()
            if self._answer is None:
                self._begin(message, confirmed=True)
            else:  # nothing interrupts, and the answer before goes on
                self._unanswered = True
            return
        begun.confirmed = True
        self.listener(AnswerStarted(begun.turn))
        kept, begun.kept = begun.kept, []
        for told in kept:
            self._tell(begun, told)

    def _user(self, clip: np.ndarray) -> Message:
        return Message(self._turn, "user", [*self._parts, clip])

    def _discard(self) -> None:
        """Drop an answer that was begun too early."""
        if self._answer is not None and not self._answer.confirmed:
            self._answer.cancelled.set()
            self._answer = None

    def _begin(self, message: Message, confirmed: bool, settings: ConversationSettings | None = None) -> None:
        settings = settings or self.settings
        messages = [*self._history.messages] if confirmed or settings.remember else []
        messages += [] if confirmed else [message]
        spoken = settings.speak and self.model.speaker is not None
        self._answer = _Answer(message, settings, confirmed, spoken)
        if confirmed:
            self.listener(AnswerStarted(message.turn))
        self._submit(self._compute, self._answer, messages)

    def _submit(self, function: Callable, *arguments: Any) -> None:
        if not self._closed:
            self._threads.submit(function, *arguments)

    def _compute(self, answer: _Answer, messages: list[Message]) -> None:
        """An answer, in a thread of its own."""
        settings = answer.settings
        if answer.spoken:
            self._submit(self._sound, answer)
        done: Event | None
        try:
            prepared = self._prompt(answer, messages)
            sentences, reason = Sentences(calls=bool(settings.tools)), "stop"
            for delta in self.model.deltas(prepared, answer.cancelled):
                reason = delta.finish_reason or reason
                tokens = tuple(token.id for token in delta.tokens)
                self._event(answer, AnswerText(answer.turn, delta.text, tokens))
                for sentence in sentences.add(delta.text):
                    answer.sentences.put(sentence)
            for sentence in sentences.end():
                answer.sentences.put(sentence)
            done = AnswerDone(answer.turn, "", reason)
        except Cancelled:
            done = None
        except Exception as error:
            done = Failed(answer.turn, error)
        if answer.spoken:
            answer.sentences.put(done)
        else:
            self._event(answer, done)

    def _hear_ahead(self, message: Message) -> None:
        """Encode a part of a long turn while the turn goes on."""
        with suppress(Exception):  # the turn's end will tell
            chat = as_chat([message], self.settings.system, self.settings.question)
            self.model.hear_ahead(chat, self._over)

    def _sound(self, answer: _Answer) -> None:
        """The sound of an answer, sentence by sentence."""
        try:
            while isinstance(text := answer.sentences.get(), str):
                for samples in self.model.sound(text, answer.settings.voice, answer.cancelled):
                    self._event(answer, AnswerAudio(answer.turn, samples, self.model.rate, text))
                    text = ""
            self._event(answer, text)
        except Cancelled:
            pass
        except Exception as error:
            self._event(answer, Failed(answer.turn, error))

    def _event(self, answer: _Answer, event: Event | None) -> None:
        """What comes of an answer: told now, or kept until its turn has ended."""
        with self._lock:
            if event is None or answer.cancelled.is_set() or self._closed:
                return
            if answer.confirmed:
                self._tell(answer, event)
            else:
                answer.kept.append(event)

    def _tell(self, answer: _Answer, event: Event) -> None:
        if isinstance(event, AnswerText):
            answer.text += event.text
        elif isinstance(event, AnswerAudio):
            answer.begun = answer.begun or time.monotonic()
            answer.sounded.append((event.text, len(event.samples) / event.rate))
        elif isinstance(event, AnswerDone):
            event = replace(event, text=answer.text)
            self._history.answered(answer.turn, answer.text)
        elif isinstance(event, Failed):
            answer.cancelled.set()
        over = isinstance(event, AnswerDone | Failed) and self._answer is answer
        if over:
            self._answer, self._sounding = None, answer if answer.sounded else None
        self.listener(event)
        if over and self._unanswered and self._answer is None:
            self._unanswered = False
            self._begin(self._history.messages[-1], confirmed=True)
        self._changed.notify_all()

    def _prompt(self, answer: _Answer, messages: list[Message]) -> Any:
        """What the model is asked, of messages that are shortened until there is room for an answer."""
        settings = answer.settings

        def prepare(some: list[Message]) -> tuple[Any, int]:
            chat = as_chat(some, settings.system, settings.question)
            return self.model.prepared(chat, settings.generate, settings.tools)

        def write(message: Message) -> str:
            if message.written is not None:
                return message.written
            texts = [self.model.transcript(clip, self._asked, answer.cancelled) for clip in message.clips]
            return " ".join(filter(None, texts))

        prompt, shortened, dropped = self._history.fitting(messages, settings.history_s, prepare, write)
        if shortened or dropped:
            self._event(answer, HistoryShortened(tuple(shortened), tuple(dropped)))
        return prompt

    @property
    def _asked(self) -> dict:
        """Settings of transcripts."""
        asked = {"language": self.settings.language, "prompt": self.settings.prompt}
        return {name: value for name, value in asked.items() if value is not None}

    def _write_down(self, event: Ended, message: Message | None = None) -> None:
        """Tell what was said in a turn, or in a part of a long one."""
        if self.settings.transcribe and not self._closed:
            self._behind += 1
            self._scribe.submit(self._transcribe, self._turn, event, message)

    def _transcribe(self, turn: int, event: Ended, message: Message | None) -> None:
        start, end = (1000 * place // RATE for place in (event.start, event.start + len(event.clip)))
        try:
            text = self.model.transcript(event.clip, self._asked, self._over)
            told: Event = FinalText(turn, text, start, end, last=not event.full)
        except Cancelled:  # it is closed
            return
        except Exception as error:
            told = Failed(turn, error, answer=False)
        with self._lock:
            self._behind -= 1
            self._changed.notify_all()
            if not self._closed:
                if message is not None and isinstance(told, FinalText) and len(message.clips) == 1:
                    message.written = told.text
                self.listener(told)

    def _look(self) -> None:
        """Look at a turn that has grown, where nobody looks yet."""
        every, clip = self.settings.partial_ms * RATE // 1000, self._turns.clip
        if every and not self._looking and len(clip) >= self._looked + every:
            self._looking, self._looked = True, len(clip)
            if not self._closed:
                self._scribe.submit(self._partial, self._turn, self._agreement, clip.copy(), self._unlooked)

    def _look_anew(self) -> None:
        """Agree on nothing, as at the beginning of a turn; who still looks is in vain."""
        self._unlooked.set()
        self._agreement, self._looked, self._unlooked = Agreement(), 0, threading.Event()

    def _partial(self, turn: int, agreement: Agreement, clip: np.ndarray, cancelled: threading.Event) -> None:
        try:
            text = self.model.transcript(clip, self._asked, cancelled)
        except Exception:  # the turn's end will tell
            text = None
        with self._lock:
            self._looking = False
            if self._closed or text is None or agreement is not self._agreement or not self._turns.speaking:
                return
            before = agreement.committed, agreement.tentative
            agreement.look(text)
            if (agreement.committed, agreement.tentative) != before:
                self.listener(PartialText(turn, agreement.committed, agreement.tentative))


def _remembered(answer: _Answer, played_ms: int | None) -> str:
    """Of an answer that was broken off, what was told, or of a spoken one the words that sounded."""
    if not answer.spoken:
        return answer.text
    left = 0.0 if answer.begun is None else time.monotonic() - answer.begun
    if played_ms is not None:
        left = played_ms / 1000
    sentences: list[list] = []  # [text, seconds]
    for text, seconds in answer.sounded:
        if text or not sentences:
            sentences.append([text, 0.0])
        sentences[-1][1] += seconds
    said = []
    for text, seconds in sentences:
        words = text.split()
        share = min(1.0, left / seconds) if seconds else 1.0
        said += words[: round(share * len(words))]
        left -= seconds
        if left <= 0:
            break
    return " ".join(said)

"""What was said in a conversation, as messages of a chat, and how it is shortened."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mindone_audio.generation.settings import PromptTooLongError
from mindone_audio.voice.activity import RATE

_HARD = 2  # times the sound that a history may have, also where no answer shortens it


@dataclass
class Message:
    """What one turn adds: clips, or a text. written: what is said in the clips, once that is known. fields: others that
    a message of a chat may have, such as tool_calls."""

    turn: int
    role: str
    clips: list[np.ndarray] = field(default_factory=list)
    text: str = ""
    written: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def parts(self, question: str) -> list[dict]:
        """As content of a message of the user. question: words beside clips."""
        if not self.clips:
            return [{"type": "text", "text": self.text}]
        clips: list[dict] = [{"type": "audio", "audio": clip} for clip in self.clips]
        return clips + ([{"type": "text", "text": question}] if question else [])


def seconds(messages: list[Message]) -> float:
    """Of the sound in messages."""
    return sum(len(clip) for message in messages for clip in message.clips) / RATE


def as_chat(messages: list[Message], system: str, question: str) -> list[dict]:
    """Messages as `apply_chat_template` takes them; those of one side that follow each other are one."""
    found: list[dict] = [{"role": "system", "content": system}] if system else []
    for message in messages:
        before = found[-1] if found else {"role": None}
        again = set(before) == {"role", "content"} and before["role"] == message.role and not message.fields
        if message.role == "user" and again:
            before["content"] += message.parts(question)
        elif message.role == "user":
            found.append({"role": "user", "content": message.parts(question)})
        elif again and message.role != "tool":
            before["content"] = f"{before['content']} {message.text}"
        else:
            found.append({"role": message.role, "content": message.text, **message.fields})
    return found


class History:
    """The messages of a conversation. What it does to them is done under `lock`."""

    def __init__(self, lock: threading.RLock):
        self.lock, self.messages = lock, []

    def append(self, message: Message, most: float) -> None:
        """One more. Where there are more than `most` seconds of sound twice over, as where nothing is answered, the
        oldest clips become what was said in them, or are forgotten where that is not known."""
        self.messages.append(message)
        for old in self.messages[:-1]:
            if seconds(self.messages) <= _HARD * most:
                break
            if old.clips:
                old.text, old.clips = old.written or "", []
        self.messages = [each for each in self.messages if each.clips or each.text or each.fields]

    def answered(self, turn: int, text: str, **fields: Any) -> None:
        """Remember what was answered, behind what was said in that turn; instead of what was remembered before."""
        self.messages = [each for each in self.messages if each.turn != turn or each.role != "assistant"]
        place = max((i + 1 for i, each in enumerate(self.messages) if each.turn <= turn), default=0)
        if text or fields:
            self.messages.insert(place, Message(turn, "assistant", text=text, fields=fields))

    def fitting(
        self,
        messages: list[Message],
        most: float,
        prepare: Callable[[list[Message]], tuple[Any, int]],
        write: Callable[[Message], str],
    ) -> tuple[Any, list[int], list[int]]:
        """A prompt of some messages, shortened until it fits; the last one stays as it is.

        most: seconds of sound. prepare: makes a prompt, and says for how many tokens more there is room; it raises
        `PromptTooLongError` where there is none for the prompt. write: what is said in a message. Returns the prompt,
        the turns whose clips became text, and those that were left out.
        """
        shortened: list[int] = []
        dropped: list[int] = []
        while True:
            last = messages[-1].turn
            old = [each for each in messages if each.clips and each.turn != last]
            earlier = next((each.turn for each in messages if each.turn != last), None)
            try:
                prompt, room = prepare(messages)
                fits = room >= 0 and (seconds(messages) <= most or not old)
            except PromptTooLongError:
                if earlier is None:
                    raise
                fits = False
            if fits or earlier is None:
                break
            if old:
                text = write(old[0])
                with self.lock:
                    old[0].text, old[0].clips = text, []
                shortened.append(old[0].turn)
            else:
                dropped.append(earlier)
                messages = [each for each in messages if each.turn != earlier]
        with self.lock:
            self.messages = [each for each in self.messages if each.turn not in dropped]
        return prompt, shortened, dropped

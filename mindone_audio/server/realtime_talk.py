"""OpenAI's realtime events on both sides of a `Conversation`: what a client sends is done, what happens is told."""

import base64
import binascii
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mindone_audio.generation.events import Delta, Token
from mindone_audio.inputs.audio import SAMPLING_RATE
from mindone_audio.server.errors import RequestError, as_request_error
from mindone_audio.server.realtime_settings import Session, read_response, read_session, tool_use
from mindone_audio.server.sounds import sixteen_bits
from mindone_audio.server.tools import Choice, read_call_id
from mindone_audio.voice.activity import TurnSettings
from mindone_audio.voice.conversation import Conversation, ConversationSettings
from mindone_audio.voice.events import (
    AnswerAudio,
    AnswerDone,
    AnswerStarted,
    AnswerText,
    Event,
    Failed,
    FinalText,
    Interrupted,
    PartialText,
    SpeechStarted,
    SpeechStopped,
)
from mindone_audio.voice.model import VoiceModel

PARTIAL_MS = 1000  # of speech between two looks at a growing turn
MOST_TEXT = 2**20  # characters of one item
_HISTORY = 300.0  # seconds of sound that a session keeps
_KEPT = 64  # turns, answers and calls whose ids a session knows
_OF_ANSWERS = ("system", "question", "generate", "tools", "speak", "voice")  # settings that one answer may have
Send = Callable[[dict], None]


def new_id(kind: str) -> str:
    """An id of an event, an item or a response."""
    return f"{kind}_{secrets.token_hex(10)}"


@dataclass
class _Response:
    """An answer on its way. item: of its words, once there are some. calls: of tools, as items. samples: of its sound
    that the client has been sent. output: items that are done."""

    id: str
    settings: Session
    choice: Choice
    item: str | None = None
    text: list[str] = field(default_factory=list)
    calls: list[dict] = field(default_factory=list)
    samples: int = 0
    output: list[dict] = field(default_factory=list)


class Talk:
    """One session. send: gives an event to the client. `do` and `happened` are called from the event loop alone, `hear`
    from any one thread at a time."""

    def __init__(self, service: Any, model: str, send: Send, heard: Callable[[Event], None]):
        adapter = model if service.options.models[model] else None
        self.service, self.send = service, send
        self.session = Session(model, answers=not service.transcribes_only)
        if not self.session.answers:
            self.session = read_session({"type": "transcription"}, self.session, service, started=False)
        self.id, self.started = new_id("sess"), False
        voice_model = VoiceModel(service.pipe, service.scheduler, service.speaker, adapter)
        self.conversation = Conversation(voice_model, heard, self._settings())
        self.items: dict[int, str] = {}  # of turns, the user's
        self.last: str | None = None  # item
        self.response: _Response | None = None
        self.answered: dict[str, tuple[int, _Response]] = {}  # items, of answers whose sound a client may cut
        self.calls: dict[str, int] = {}  # ids, of calls whose results a client may tell, and the turns of their answers
        self.asked: Session | None = None  # of the answer that is about to begin
        self._resampler: Any = None
        self._buffer: list[np.ndarray] = []  # where the client says when a turn has ended
        self._written: dict[int, list[str]] = {}  # parts of transcripts, by turn
        self._told: dict[int, str] = {}  # of transcripts

    def close(self) -> None:
        """Compute nothing more."""
        self.conversation.close()

    def begin(self) -> None:
        """Tell what the session is set to."""
        self.event("session.created", session=self._session())

    def event(self, kind: str, **content: Any) -> None:
        """Tell the client something."""
        self.send({"type": kind, "event_id": new_id("event"), **content})

    def error(self, error: BaseException, event_id: Any = None) -> None:
        """Tell the client what is wrong with what it sent; nobody else's session ends."""
        told = as_request_error(error).body["error"]
        self.event("error", error={**told, "event_id": event_id if isinstance(event_id, str) else None})

    # What a client sends.

    def do(self, event: dict) -> np.ndarray | None:
        """Do what an event says; samples at 16 kHz that are to be heard, if it is sound. `RequestError` for a fault."""
        kind = event.get("type")
        if not isinstance(kind, str) or kind not in _EVENTS:
            raise RequestError(f"type must be one of {', '.join(_EVENTS)}", "type")
        return _EVENTS[kind](self, event)

    def hear(self, samples: np.ndarray) -> None:
        """What was said next, where turns are found here. Takes as long as finding them takes."""
        self.conversation.hear(samples)

    def _update(self, event: dict) -> None:
        before = self.session
        self.session = read_session(event.get("session"), before, self.service, self.started)
        self.started = True
        if self.session.rate != before.rate:
            self._resampler = None
        self.conversation.configure(self._settings())
        self.event("session.updated", session=self._session())

    def _append(self, event: dict) -> np.ndarray | None:
        samples = self._pcm(event.get("audio"), "audio")
        if self.session.turns is not None:
            return samples
        held = (sum(map(len, self._buffer)) + len(samples)) / SAMPLING_RATE
        most = self.conversation.model.longest / SAMPLING_RATE
        if held > most:
            message = f"the buffer has {held:.1f} s of sound, and the model hears {most:g} s: commit or clear it"
            raise RequestError(message, "audio")
        self._buffer.append(samples)
        return None

    def _commit(self, event: dict) -> None:
        if self.session.turns is not None:
            self.conversation.end_turn()
            return
        clip = np.concatenate(self._buffer) if self._buffer else np.zeros(0, np.float32)
        if len(clip) < SAMPLING_RATE // 10:
            message = f"the buffer has {1000 * len(clip) // SAMPLING_RATE} ms of sound: append at least 100 ms first"
            raise RequestError(message, code="input_audio_buffer_commit_empty")
        self._buffer, self._resampler = [], None
        item = new_id("item")
        self.event("input_audio_buffer.committed", item_id=item, previous_item_id=self.last)
        _remember(self.items, self.conversation.add("user", clip), item)
        self._item(item, "user", [{"type": "input_audio", "transcript": None}])

    def _clear(self, event: dict) -> None:
        self._buffer, self._resampler = [], None
        self.conversation.clear()
        self.event("input_audio_buffer.cleared")

    def _create(self, event: dict) -> None:
        item = event.get("item")
        if not isinstance(item, dict):
            raise RequestError("item must be an object", "item")
        kind = item.get("type")
        item_id = item.get("id") if isinstance(item.get("id"), str) and len(item["id"]) <= 64 else new_id("item")
        if kind == "function_call_output":
            if not isinstance(item.get("output"), str):
                raise RequestError("item.output must be a string", "item.output")
            call = read_call_id(item.get("call_id"), self.calls, "item.call_id")
            self.conversation.add("tool", item["output"], tool_call_id=call)
            told = {"id": item_id, "type": kind, "call_id": item["call_id"], "output": item["output"]}
            self._told_item(told)
            return
        if kind != "message":
            raise RequestError("item.type must be message or function_call_output", "item.type")
        role, content = item.get("role"), item.get("content")
        kinds = {"user": ("input_text", "input_audio"), "system": ("input_text",), "assistant": ("output_text", "text")}
        if not isinstance(role, str) or role not in kinds or not isinstance(content, list) or not content:
            raise RequestError("item needs a role (user, system, assistant) and a list as content", "item.content")
        said: list[str | np.ndarray] = []
        for place, part in enumerate(content):
            name = f"item.content[{place}]"
            if not isinstance(part, dict) or part.get("type") not in kinds[role]:
                raise RequestError(f"{name}.type must be one of {', '.join(kinds[role])}", f"{name}.type")
            if part["type"] == "input_audio":
                self._resampler = None
                said.append(self._pcm(part.get("audio"), f"{name}.audio"))
                self._resampler = None
                self._check_length(said[-1], f"{name}.audio")
            elif isinstance(part.get("text"), str) and len(part["text"]) <= MOST_TEXT:
                said.append(part["text"])
            else:
                raise RequestError(f"{name}.text must be a string of at most {MOST_TEXT} characters", f"{name}.text")
        for each in said:
            _remember(self.items, self.conversation.add(role, each), item_id)
        shown = [{name: value for name, value in part.items() if name != "audio"} for part in content]
        self._item(item_id, role, shown)

    def _check_length(self, clip: np.ndarray, name: str) -> None:
        most = self.conversation.model.longest
        if not SAMPLING_RATE // 10 <= len(clip) <= most:
            seconds = f"{len(clip) / SAMPLING_RATE:.2f} s"
            raise RequestError(f"{name} has {seconds} of sound: send 0.1 s to {most / SAMPLING_RATE:g} s", name)

    def _respond(self, event: dict) -> None:
        if not self.session.answers:
            raise RequestError("a session of the type transcription answers nothing", "type")
        if self.response is not None:
            message = f"{self.response.id} is on its way: wait for response.done, or send response.cancel"
            raise RequestError(message, code="conversation_already_has_active_response")
        self.asked = read_response(event.get("response"), self.session, self.service)
        settings = self._settings(self.asked)
        try:
            changes = {name: getattr(settings, name) for name in _OF_ANSWERS}
            self.conversation.respond(**changes)
        except ValueError as error:
            raise RequestError(str(error)) from error

    def _cancel(self, event: dict) -> None:
        if self.response is None:
            raise RequestError("there is no response to cancel", code="response_cancel_not_active")
        self.conversation.interrupt()

    def _truncate(self, event: dict) -> None:
        item, most = event.get("item_id"), event.get("audio_end_ms")
        if (
            not isinstance(item, str)
            or item not in self.answered
            or isinstance(most, bool)
            or not isinstance(most, int)
            or most < 0
        ):
            raise RequestError("item_id must be of an answer in sound, and audio_end_ms a whole number", "item_id")
        turn, response = self.answered[item]
        words = "".join(response.text).split()
        share = min(1.0, most * response.settings.output_rate / 1000 / max(1, response.samples))
        self.conversation.correct(turn, " ".join(words[: round(share * len(words))]))
        self.event("conversation.item.truncated", item_id=item, content_index=0, audio_end_ms=most)

    # What happens.

    def happened(self, event: Event) -> None:
        """Tell the client of an event of the conversation."""
        _HAPPENED.get(type(event), lambda talk, event: None)(self, event)

    def _speech_started(self, event: SpeechStarted) -> None:
        _remember(self.items, event.turn, new_id("item"))
        told = {"audio_start_ms": event.start_ms, "item_id": self.items[event.turn]}
        self.event("input_audio_buffer.speech_started", **told)

    def _speech_stopped(self, event: SpeechStopped) -> None:
        item = self.items[event.turn]
        self.event("input_audio_buffer.speech_stopped", audio_end_ms=event.end_ms, item_id=item)
        self.event("input_audio_buffer.committed", item_id=item, previous_item_id=self.last)
        self._item(item, "user", [{"type": "input_audio", "transcript": None}])

    def _partial(self, event: PartialText) -> None:
        """What of a transcript is agreed on, behind the parts that are written."""
        before = " ".join(filter(None, [*self._written.get(event.turn, []), event.text]))
        told = self._told.get(event.turn, "")
        if before.startswith(told) and len(before) > len(told):
            self._told[event.turn] = before
            self._transcribed("delta", event.turn, delta=before[len(told) :])

    def _final(self, event: FinalText) -> None:
        parts = self._written.setdefault(event.turn, [])
        parts += [event.text] if event.text else []
        text, told = " ".join(parts), self._told.get(event.turn, "")
        if text.startswith(told) and len(text) > len(told):
            self._told[event.turn] = text
            self._transcribed("delta", event.turn, delta=text[len(told) :])
        if event.last:
            usage = {"type": "duration", "seconds": (event.end_ms - event.start_ms) / 1000}
            self._transcribed("completed", event.turn, transcript=text, usage=usage)
            for kept in (self._written, self._told):
                kept.pop(event.turn, None)

    def _transcribed(self, what: str, turn: int, **content: Any) -> None:
        kind = f"conversation.item.input_audio_transcription.{what}"
        self.event(kind, item_id=self.items.get(turn, ""), content_index=0, **content)

    def _answer_started(self, event: AnswerStarted) -> None:
        settings, self.asked = self.asked or self.session, None
        use = tool_use(settings, self.service)
        choice = Choice(None if use is None else use.reader(self.service.pipe.processor.decode))
        self.response = _Response(new_id("resp"), settings, choice)
        self.event("response.created", response=self._shown(self.response, "in_progress"))

    def _answer_text(self, event: AnswerText) -> None:
        if self.response is not None:
            self._grown(Delta(0, event.text, tuple(Token(token) for token in event.tokens)))

    def _grown(self, delta: Delta) -> None:
        """More of an answer: words, or calls of tools."""
        response = self.response
        for told in response.choice.add(delta):
            if text := told.get("content"):
                self._message().append(text)
                spoken = response.settings.spoken
                self._of_content(f"response.output_{'audio_transcript' if spoken else 'text'}.delta", delta=text)
            for call in told.get("tool_calls", ()):
                self._call(call)

    def _message(self) -> list[str]:
        """The words of the answer, whose item is told when the first one comes."""
        response = self.response
        if response.item is None:
            response.item = new_id("item")
            item = {"id": response.item, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
            self._of_output("response.output_item.added", item=item)
            self.event("conversation.item.added", item=item, previous_item_id=self.last)
            self._of_content("response.content_part.added", part=self._part(""))
        return response.text

    def _call(self, grown: dict) -> None:
        """A call begins, or its arguments grow. What calls say is told at the end of the answer too."""
        calls = self.response.calls
        before = self.response.item is not None  # words, which are the first item then
        if "id" in grown:
            item = {"id": new_id("item"), "type": "function_call", "status": "in_progress", "call_id": grown["id"]}
            calls.append({**item, "name": grown["function"]["name"], "arguments": ""})
            self._of_output("response.output_item.added", len(calls) - 1 + before, item=dict(calls[-1]))
            self.event("conversation.item.added", item=dict(calls[-1]), previous_item_id=self.last)
        elif calls:
            calls[-1]["arguments"] += grown["function"]["arguments"]
            told = {"item_id": calls[-1]["id"], "call_id": calls[-1]["call_id"]}
            kind = "response.function_call_arguments.delta"
            self._of_output(kind, len(calls) - 1 + before, **told, delta=grown["function"]["arguments"])

    def _answer_audio(self, event: AnswerAudio) -> None:
        if (response := self.response) is None:
            return
        samples = event.samples
        if event.rate != response.settings.output_rate:
            import soxr

            samples = soxr.resample(samples, event.rate, response.settings.output_rate)
        self._message()
        response.samples += len(samples)
        self._of_content("response.output_audio.delta", delta=base64.b64encode(sixteen_bits(samples)).decode())

    def _answer_done(self, event: AnswerDone) -> None:
        incomplete = event.finish_reason == "length"
        details = {"type": "incomplete", "reason": "max_output_tokens"} if incomplete else None
        self._end("incomplete" if incomplete else "completed", details, event.turn)

    def _interrupted(self, event: Interrupted) -> None:
        speaking = self.conversation.speaking
        reason = "turn_detected" if speaking else "client_cancelled"
        self._end("cancelled", {"type": "cancelled", "reason": reason}, event.turn)

    def _failed(self, event: Failed) -> None:
        told = as_request_error(event.error).body["error"]
        if not event.answer:
            self._transcribed("failed", event.turn, error={name: told[name] for name in ("type", "code", "message")})
            return
        error = {"type": told["type"], "code": told["code"]}
        self.event("error", error={**told, "event_id": None})
        self._end("failed", {"type": "failed", "error": error}, event.turn)

    def _end(self, status: str, details: dict | None, turn: int) -> None:
        """The last events of an answer."""
        if (response := self.response) is None:
            return
        self._grown(Delta(0, "", (), "stop"))
        done = "completed" if status == "completed" else "incomplete"
        if response.item is None and not response.calls:
            self._message()
        if response.item is not None:
            self._message_done(response, done, turn)
        for place, call in enumerate(response.calls, start=response.item is not None):
            call["status"] = done
            told = {name: call[name] for name in ("call_id", "name", "arguments")}
            self._of_output("response.function_call_arguments.done", place, item_id=call["id"], **told)
            self._item_done(call, place)
        if response.calls and status == "completed":
            self._remember_calls(response, turn)
        self.event("response.done", response={**self._shown(response, status), "status_details": details})
        self.response = None

    def _remember_calls(self, response: _Response, turn: int) -> None:
        """Let the history have the calls of an answer as calls, and not as the text that they were written as."""
        calls = [
            {
                "id": call["call_id"],
                "type": "function",
                "function": {name: call[name] for name in ("name", "arguments")},
            }
            for call in response.calls
        ]
        for call in calls:
            _remember(self.calls, call["id"], turn)
        self.conversation.correct(turn, "".join(response.text), tool_calls=calls)

    def _message_done(self, response: _Response, status: str, turn: int) -> None:
        text = "".join(response.text)
        if response.settings.spoken:
            self._of_content("response.output_audio.done")
            self._of_content("response.output_audio_transcript.done", transcript=text)
            _remember(self.answered, response.item, (turn, response))
        else:
            self._of_content("response.output_text.done", text=text)
        self._of_content("response.content_part.done", part=self._part(text))
        shape = ("output_audio", "transcript") if response.settings.spoken else ("output_text", "text")
        content = [{"type": shape[0], shape[1]: text}]
        item = {"id": response.item, "type": "message", "role": "assistant", "status": status, "content": content}
        self._item_done(item, 0)

    def _item_done(self, item: dict, place: int) -> None:
        self.response.output.append(item)
        self._of_output("response.output_item.done", place, item=item)
        self.event("conversation.item.done", item=item, previous_item_id=self.last)
        self.last = item["id"]

    # Shapes.

    def _shown(self, response: _Response, status: str) -> dict:
        return {
            "id": response.id,
            "object": "realtime.response",
            "status": status,
            "status_details": None,
            "output": response.output,
            "output_modalities": ["audio" if response.settings.spoken else "text"],
            "max_output_tokens": response.settings.max_tokens or "inf",
            "usage": None,
        }

    def _part(self, text: str) -> dict:
        if self.response.settings.spoken:
            return {"type": "audio", "transcript": text}
        return {"type": "text", "text": text}

    def _of_output(self, kind: str, place: int = 0, **content: Any) -> None:
        self.event(kind, response_id=self.response.id, output_index=place, **content)

    def _of_content(self, kind: str, **content: Any) -> None:
        self._of_output(kind, item_id=self.response.item, content_index=0, **content)

    def _item(self, item_id: str, role: str, content: list[dict]) -> None:
        item = {"id": item_id, "object": "realtime.item", "type": "message", "role": role, "status": "completed"}
        self._told_item({**item, "content": content})

    def _told_item(self, item: dict) -> None:
        for kind in ("conversation.item.added", "conversation.item.done"):
            self.event(kind, item=item, previous_item_id=self.last)
        self.last = item["id"]

    def _session(self) -> dict:
        return self.session.told(self.id, {"model": self.session.model})

    def _settings(self, session: Session | None = None) -> ConversationSettings:
        """A session as a conversation takes it."""
        session = session or self.session
        generate = {"max_new_tokens": session.max_tokens or self.service.options.max_tokens}
        use = tool_use(session, self.service)
        found = {} if session.transcription is None else session.transcription
        bundled = self.service.options.model is None
        questions = self.service.pipe.processor.questions
        return ConversationSettings(
            turns=session.turns or TurnSettings(),
            answer=session.answers and session.create_response and session.turns is not None,
            interrupt=session.interrupt_response,
            transcribe=session.transcription is not None,
            partial_ms=PARTIAL_MS if session.transcription is not None else 0,
            language=found.get("language"),
            prompt=found.get("prompt"),
            # The bundled model is asked about one clip, and told nothing else.
            system="" if bundled else session.instructions,
            question=(session.instructions or questions["caption"]) if bundled else "",
            remember=not bundled,
            history_s=_HISTORY if session.answers else 0.0,
            generate=generate | ({} if use is None else use.constraint),
            tools=() if use is None else use.tools,
            speak=session.spoken,
            voice=self._voice(session),
        )

    def _voice(self, session: Session) -> Any:
        voices = self.service.voices
        return voices.get(session.voice, next(iter(voices.values()), None))

    def _pcm(self, given: Any, name: str) -> np.ndarray:
        """Samples at 16 kHz of base64 PCM, which goes on where the last one ended."""
        if not isinstance(given, str):
            raise RequestError(f"{name} must be base64 of PCM with 16 bits", name)
        try:
            data = base64.b64decode(given, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"{name} is not base64: {error}", name) from error
        if len(data) % 2:
            raise RequestError(f"{name} has {len(data)} bytes, which is no whole number of samples of 16 bits", name)
        samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        if self.session.rate == SAMPLING_RATE:
            return samples
        if self._resampler is None:
            import soxr

            self._resampler = soxr.ResampleStream(self.session.rate, SAMPLING_RATE, 1, "float32")
        return self._resampler.resample_chunk(samples)


def _remember(kept: dict, key: Any, value: Any) -> None:
    """Put it among the last `_KEPT`."""
    kept[key] = value
    for old in list(kept)[:-_KEPT]:
        del kept[old]


_EVENTS: dict[str, Callable[[Talk, dict], Any]] = {
    "session.update": Talk._update,
    "input_audio_buffer.append": Talk._append,
    "input_audio_buffer.commit": Talk._commit,
    "input_audio_buffer.clear": Talk._clear,
    "conversation.item.create": Talk._create,
    "conversation.item.truncate": Talk._truncate,
    "response.create": Talk._respond,
    "response.cancel": Talk._cancel,
}
_HAPPENED: dict[type, Callable[[Talk, Any], None]] = {
    SpeechStarted: Talk._speech_started,
    SpeechStopped: Talk._speech_stopped,
    PartialText: Talk._partial,
    FinalText: Talk._final,
    AnswerStarted: Talk._answer_started,
    AnswerText: Talk._answer_text,
    AnswerAudio: Talk._answer_audio,
    AnswerDone: Talk._answer_done,
    Interrupted: Talk._interrupted,
    Failed: Talk._failed,
}

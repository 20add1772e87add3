"""What a session of /v1/realtime is set to: OpenAI's `session` object, read, checked, and told."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mindone_audio.generation.settings import flag, real, whole
from mindone_audio.server.errors import RequestError, checked
from mindone_audio.server.tools import FIELDS as TOOLS
from mindone_audio.server.tools import ToolUse, read_tools
from mindone_audio.voice.activity import TurnSettings

RATES = (24_000, 16_000)  # of PCM with 16 bits: OpenAI's, and that which models hear
_TURNS = {"threshold": real, "prefix_padding_ms": whole, "silence_duration_ms": whole}
_LIMITS = {"threshold": (0.01, 0.99), "prefix_padding_ms": (0, 5_000), "silence_duration_ms": (0, 30_000)}
# What this server cannot do, with the values that do not ask for it.
_NOT_HERE: dict[str, tuple] = {
    "session.include": ([],),
    "session.prompt": (),
    "session.reasoning": (),
    "session.tracing": (),
    "session.truncation": ("auto", "disabled"),
    "session.audio.input.noise_reduction": (),
    "session.audio.output.speed": (1, 1.0),
}


@dataclass(frozen=True)
class Session:
    """Settings of a session.

    answers: whether it is of the type realtime, or transcription. turns: None where the client says when a turn has
    ended. spoken: answers in sound, by `voice`. transcription: language and prompt of transcripts, None for none.
    """

    model: str
    answers: bool = True
    instructions: str = ""
    spoken: bool = False
    voice: str | None = None
    max_tokens: int | None = None
    rate: int = RATES[0]
    output_rate: int = RATES[0]
    turns: TurnSettings | None = field(default_factory=TurnSettings)
    create_response: bool = True
    interrupt_response: bool = True
    transcription: Mapping[str, str] | None = None
    tools: Mapping[str, Any] = field(default_factory=dict)

    def told(self, session_id: str, models: Mapping[str, Any]) -> dict:
        """The `session` object that clients read. models: what is told of the model that transcribes."""
        detection = None
        if self.turns is not None:
            detection = {name: getattr(self.turns, name) for name in _TURNS}
            detection = {"type": "server_vad", **detection, "idle_timeout_ms": None}
            if self.answers:
                detection |= {"create_response": self.create_response, "interrupt_response": self.interrupt_response}
        transcription = None if self.transcription is None else {**models, **self.transcription}
        heard = {
            "format": {"type": "audio/pcm", "rate": self.rate},
            "transcription": transcription,
            "noise_reduction": None,
            "turn_detection": detection,
        }
        facts: dict[str, Any] = {"id": session_id, "object": "realtime.session", "audio": {"input": heard}}
        if not self.answers:
            return {"type": "transcription", **facts}
        facts["audio"]["output"] = {
            "format": {"type": "audio/pcm", "rate": self.output_rate},
            "voice": self.voice,
            "speed": 1.0,
        }
        return {
            "type": "realtime",
            **facts,
            "model": self.model,
            "instructions": self.instructions,
            "output_modalities": ["audio" if self.spoken else "text"],
            "max_output_tokens": self.max_tokens or "inf",
            "tools": self.tools.get("tools", []),
            "tool_choice": self.tools.get("tool_choice", "auto" if self.tools.get("tools") else "none"),
        }


def read_session(given: Any, before: Session, service: Any, started: bool) -> Session:
    """The settings of session.update on top of those before; `RequestError` for what cannot be. started: whether the
    session has settings already, whose type stays."""
    fields = _object(given, "session")
    kind = fields.pop("type", "realtime" if before.answers else "transcription")
    if kind not in ("realtime", "transcription"):
        raise RequestError("session.type must be realtime or transcription", "session.type")
    if started and (kind == "realtime") != before.answers:
        raise RequestError("session.type cannot change: connect again", "session.type")
    if kind == "realtime" and service.transcribes_only:
        message = f"model {before.model} transcribes and answers nothing: set session.type to transcription"
        raise RequestError(message, "session.type")
    found = replace(before, answers=kind == "realtime")
    if not found.answers and found.transcription is None:
        found = replace(found, transcription={})
    audio = _object(fields.pop("audio", None) or {}, "session.audio")
    found = _heard(_object(audio.pop("input", None) or {}, "session.audio.input"), found)
    if found.answers:
        found = _answered(fields, found, service)
        found = _sounded(_object(audio.pop("output", None) or {}, "session.audio.output"), found, service)
    _leave_out(audio, "session.audio")
    _leave_out(fields, "session")
    return found


def read_response(given: Any, session: Session, service: Any) -> Session:
    """The settings of one answer: those of the session, but what response.create says."""
    fields = _object(given or {}, "response")
    fields.pop("metadata", None)
    if fields.pop("conversation", "auto") != "auto":
        raise RequestError("response.conversation may be auto alone: this server keeps one", "response.conversation")
    found = _answered(fields, session, service, "response")
    _leave_out(fields, "response")
    return found


def tool_use(session: Session, service: Any) -> ToolUse | None:
    """What a session's tools ask for."""
    if not session.tools.get("tools"):
        return None
    nested = [
        {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
        for tool in session.tools["tools"]
    ]
    choice = session.tools.get("tool_choice")
    if isinstance(choice, dict) and "name" in choice:
        choice = {"type": "function", "function": {"name": choice["name"]}}
    fields = {**session.tools, "tools": nested, "tool_choice": choice}
    given = {name: value for name, value in fields.items() if value is not None}
    return read_tools(given, service.pipe.processor.tool_format, ())


def _answered(fields: dict, found: Session, service: Any, name: str = "session") -> Session:
    """Settings of answers; those read are taken out of `fields`."""
    if (model := fields.pop("model", None)) is not None and service.check_model(model) != found.model:
        raise RequestError(f"{name}.model cannot change: connect again", f"{name}.model")
    if (words := fields.pop("instructions", None)) is not None:
        if not isinstance(words, str):
            raise RequestError(f"{name}.instructions must be a string", f"{name}.instructions")
        found = replace(found, instructions=words)
    if (most := fields.pop("max_output_tokens", None)) is not None:
        param = f"{name}.max_output_tokens"
        found = replace(found, max_tokens=None if most == "inf" else checked(param, whole, most, 1, 2**31))
    if (modalities := fields.pop("output_modalities", None)) is not None:
        param = f"{name}.output_modalities"
        if modalities not in (["text"], ["audio"]):
            raise RequestError(f'{param} must be ["text"] or ["audio"]', param)
        if modalities == ["audio"] and service.speaker is None:
            message = f"{param}: no model that speaks is loaded here: start the server with --speaker, or ask for text"
            raise RequestError(message, param, code="unsupported_value")
        found = replace(found, spoken=modalities == ["audio"])
    tools = {key: fields.pop(key) for key in TOOLS if fields.get(key) is not None}
    if tools:
        if not isinstance(tools.get("tools", []), list) or not all(isinstance(t, dict) for t in tools.get("tools", [])):
            raise RequestError(f"{name}.tools must be a list of functions", f"{name}.tools")
        found = replace(found, tools={**found.tools, **tools})
        try:
            tool_use(found, service)
        except RequestError as error:  # whose fields are those of a chat
            told = error.body["error"]
            message, param = (told[key].replace(".function", "") for key in ("message", "param"))
            raise RequestError(f"{name}.{message}", f"{name}.{param}", code=told["code"]) from error
    return found


def _heard(fields: dict, found: Session) -> Session:
    """Settings of what is heard."""
    name = "session.audio.input"
    if (form := fields.pop("format", None)) is not None:
        found = replace(found, rate=_rate(form, f"{name}.format"))
    if "transcription" in fields:
        given = fields.pop("transcription")
        if given is None and not found.answers:
            given = {}
        found = replace(found, transcription=None if given is None else _transcription(given, f"{name}.transcription"))
    if "turn_detection" in fields:
        found = _turns(fields.pop("turn_detection"), found, f"{name}.turn_detection")
    _leave_out(fields, name)
    return found


def _transcription(given: Any, name: str) -> dict:
    fields = _object(given, name)
    fields.pop("model", None)  # that of the session, whichever OpenAI's clients name
    found = {key: fields.pop(key) for key in ("language", "prompt") if fields.get(key) is not None}
    for key, value in found.items():
        if not isinstance(value, str):
            raise RequestError(f"{name}.{key} must be a string", f"{name}.{key}")
    _leave_out(fields, name)
    return found


def _turns(given: Any, found: Session, name: str) -> Session:
    if given is None:
        return replace(found, turns=None)
    fields = _object(given, name)
    if fields.pop("type", "server_vad") != "server_vad":
        raise RequestError(f"{name}.type must be server_vad, or turn_detection null", f"{name}.type")
    if fields.pop("idle_timeout_ms", None) is not None:
        raise RequestError(f"{name}.idle_timeout_ms is not supported here: leave it out", f"{name}.idle_timeout_ms")
    values = {
        key: checked(f"{name}.{key}", check, fields.pop(key), *_LIMITS[key])
        for key, check in _TURNS.items()
        if fields.get(key) is not None
    }
    for key in ("create_response", "interrupt_response"):
        if fields.get(key) is not None:
            found = replace(found, **{key: checked(f"{name}.{key}", flag, fields.pop(key))})
    _leave_out(fields, name)
    return replace(found, turns=replace(found.turns or TurnSettings(), **values))


def _sounded(fields: dict, found: Session, service: Any) -> Session:
    """Settings of the sound of answers."""
    name = "session.audio.output"
    if (form := fields.pop("format", None)) is not None:
        found = replace(found, output_rate=_rate(form, f"{name}.format"))
    if (voice := fields.pop("voice", None)) is not None:
        known = list(service.voices)
        if service.speaker is not None and voice not in known:
            raise RequestError(f"{name}.voice must be one of {', '.join(known)}", f"{name}.voice")
        found = replace(found, voice=voice if service.speaker is not None else None)
    _leave_out(fields, name)
    return found


def _rate(form: Any, name: str) -> int:
    fields = _object(form, name)
    if fields.pop("type", "audio/pcm") != "audio/pcm":
        raise RequestError(f"{name}.type must be audio/pcm", f"{name}.type")
    rate = fields.pop("rate", RATES[0])
    if isinstance(rate, bool) or rate not in RATES:
        raise RequestError(f"{name}.rate must be one of {', '.join(map(str, RATES))}", f"{name}.rate")
    _leave_out(fields, name)
    return rate


def _object(given: Any, name: str) -> dict:
    if not isinstance(given, dict):
        raise RequestError(f"{name} must be an object", name)
    return dict(given)


def _leave_out(fields: dict, name: str) -> None:
    """`RequestError` for what is left of an object."""
    for key, value in fields.items():
        param = f"{name}.{key}"[:120]
        if value is None or value in _NOT_HERE.get(param, ()):
            continue
        known = param in _NOT_HERE
        words = "is not supported here with this value" if known else "is no field of this object"
        raise RequestError(f"{param} {words}: leave it out", param, code="unsupported_value" if known else None)

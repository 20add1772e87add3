"""What /v1/audio/speech answers: a text as sound, in the bytes of a file, as soon as its pieces are made."""

import base64
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import numpy as np
from fastapi.responses import Response

from mindone_audio.generation.settings import real, whole
from mindone_audio.server.chat import read_object
from mindone_audio.server.errors import RequestError, checked, refused
from mindone_audio.server.exchange import event_stream, frame, stream
from mindone_audio.server.service import Place, Service
from mindone_audio.server.sounds import MEDIA_TYPES, Encoder, encoder

LONGEST_INPUT = 4096  # characters, which is OpenAI's limit
FIELDS = ("model", "input", "voice", "response_format", "stream_format", "speed", "instructions", "seed")


@dataclass(frozen=True)
class SpeechRequest:
    """A checked body. events: whether the sound comes in server-sent events."""

    model: str
    text: str
    voice: np.ndarray
    form: str
    events: bool
    seed: int


async def speech(service: Service, body: bytes, place: Place) -> Response:
    """The answer to {"model", "input", "voice", "response_format", …}."""
    asked = await service.in_pool(read_speech, body, service)
    settings = {"voice": asked.voice, "stream": True, "seed": asked.seed}
    try:
        file = encoder(asked.form, service.pipe.vocoder.sampling_rate)
    except ValueError as error:
        raise RequestError(f"response_format {asked.form}: {error}", "response_format") from error
    pieces = service.pieces(partial(service.pipe, asked.text, **settings), asked.model)
    try:
        if asked.events:
            return await event_stream(_events(_encoded(pieces, file), len(asked.text)))
        return await stream(_encoded(pieces, file), MEDIA_TYPES[asked.form])
    except ValueError as error:
        raise refused(error, param="input") from error


def read_speech(body: bytes, service: Service) -> SpeechRequest:
    """The request that a body is; `RequestError` for anything that is wrong with it."""
    fields = read_object(body)
    if unknown := [name for name in fields if name not in FIELDS]:
        raise RequestError(f"{unknown[0][:100]} is no field of this request: leave it out", unknown[0][:100])
    model = service.check_model(fields.get("model"))
    if not service.speaks:
        message = f"model {model} answers in text and does not speak: this URL is for models that do, such as SpeechT5"
        raise RequestError(message, "model")
    text = fields.get("input")
    if not isinstance(text, str) or not text.strip():
        raise RequestError("input must be the text to speak, and not be empty", "input")
    if len(text) > LONGEST_INPUT:
        message = f"input has {len(text)} characters, at most {LONGEST_INPUT} are spoken at once: send it in parts"
        raise RequestError(message, "input")
    if checked("speed", real, fields.get("speed", 1.0), 0.25, 4) != 1:
        raise RequestError("speed must be 1: this model speaks as fast as it has learned", "speed")
    if fields.get("instructions"):
        raise RequestError("instructions: this model follows none: leave them out", "instructions")
    seed = checked("seed", whole, fields.get("seed", 0), 0, 2**64 - 1)
    form = _one_of("response_format", fields.get("response_format", "mp3"), tuple(MEDIA_TYPES))
    events = _one_of("stream_format", fields.get("stream_format", "audio"), ("audio", "sse")) == "sse"
    return SpeechRequest(model, text.strip(), _voice(fields, service), form, events, seed)


def _one_of(name: str, value: object, known: tuple[str, ...]) -> str:
    if value not in known:
        raise RequestError(f"{name} must be one of {', '.join(known)}, not {str(value)[:80]!r}", name)
    return str(value)


def _voice(fields: dict, service: Service) -> np.ndarray:
    """A voice by its name, which newer clients put into an object; the first one where none is named."""
    name = fields.get("voice", next(iter(service.voices)))
    if isinstance(name, dict) and set(name) == {"id"}:
        name = name["id"]
    if not isinstance(name, str) or name not in service.voices:
        message = f"there is no voice {str(name)[:80]!r} here: use {', '.join(service.voices)}"
        raise RequestError(message, "voice")
    return service.voices[name]


async def _encoded(pieces: AsyncIterator[dict], file: Encoder) -> AsyncIterator[bytes]:
    """The bytes of a file, piece by piece, none of them empty."""
    async with aclosing(pieces):
        async for piece in pieces:
            if made := file.add(piece["audio"]):
                yield made
    if made := file.end():
        yield made


async def _events(made: AsyncIterator[bytes], characters: int) -> AsyncIterator[bytes]:
    """The bytes in server-sent events, as OpenAI's clients read them. The tokens of these models are characters."""
    async with aclosing(made):
        async for some in made:
            yield frame({"type": "speech.audio.delta", "audio": base64.b64encode(some).decode()})
    usage = {"input_tokens": characters, "output_tokens": 0, "total_tokens": characters}
    yield frame({"type": "speech.audio.done", "usage": usage})

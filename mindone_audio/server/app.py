"""The HTTP API: which URL is answered by what."""

import os
from html import escape
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from mindone_audio.server.chat import FIELDS
from mindone_audio.server.completions import chat_completion
from mindone_audio.server.errors import RequestError, response
from mindone_audio.server.exchange import Exchange
from mindone_audio.server.forms import read_form
from mindone_audio.server.guards import guarded
from mindone_audio.server.keys import KeyCheck, read_keys
from mindone_audio.server.options import ServerOptions
from mindone_audio.server.page_files import add_page
from mindone_audio.server.realtime import realtime
from mindone_audio.server.service import Service
from mindone_audio.server.speech import FIELDS as SPEECH_FIELDS
from mindone_audio.server.speech import speech
from mindone_audio.server.task import predict
from mindone_audio.server.transcriptions import transcription, translation

OWNER = "mindone_audio"


def create_app(service: Service, options: ServerOptions) -> FastAPI:
    """The application of a service. Every request passes the check of its key, then `guarded`, then its URL's answer.

    Raises `ValueError` or `OSError` for a file of keys that cannot be.
    """
    app = FastAPI(title="mindone_audio", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(guarded, options=options)
    app.add_middleware(KeyCheck, keys=read_keys(options.api_key_file, os.environ))  # before a body is read

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return response(error)

    add_page(app, service)
    _add_posts(app, service)
    _add_realtime(app, service)
    if options.fastrtc:
        from mindone_audio.server.fastrtc import add_fastrtc

        add_fastrtc(app, service)
    _add_models(app, service, options)
    _add_state(app, service)
    return app


def _add_posts(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", openapi_extra=_json(dict.fromkeys(FIELDS, {}), "model", "messages"))
    async def chat_completions(request: Request) -> Response:
        """Answers a conversation with clips."""
        return Exchange(service, _read_json, chat_completion)

    @app.post("/v1/audio/transcriptions", openapi_extra=_FORM)
    async def transcriptions(request: Request) -> Response:
        """Writes down what is said in a clip."""
        return Exchange(service, read_form, transcription)

    @app.post("/v1/audio/translations", openapi_extra=_FORM)
    async def translations(request: Request) -> Response:
        """Writes down in English what is said in a clip."""
        return Exchange(service, read_form, translation)

    @app.post("/v1/audio/speech", openapi_extra=_json(dict.fromkeys(SPEECH_FIELDS, {}), "model", "input"))
    async def spoken(request: Request) -> Response:
        """Speaks a text, by a model that can."""
        return Exchange(service, _read_json, speech)

    for path in ("/", "/predict"):

        @app.post(path, openapi_extra=_json({"inputs": {}, "parameters": {"type": "object"}}, "inputs"))
        async def task(request: Request) -> Response:
            """Answers a question about a clip: Hugging Face's audio-text-to-text task."""
            return Exchange(service, _read_json, predict)


def _add_realtime(app: FastAPI, service: Service) -> None:
    @app.websocket("/v1/realtime")
    async def session(socket: WebSocket) -> None:
        await realtime(socket, service)


def _add_models(app: FastAPI, service: Service, options: ServerOptions) -> None:
    base = next(iter(options.models))

    def model(name: str) -> dict:
        facts: dict[str, Any] = {"id": name, "object": "model", "created": service.created, "owned_by": OWNER}
        facts |= {"root": base, "max_model_len": service.max_model_len}
        return facts if name == base else facts | {"parent": base}

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        """Lists the model and its adapters."""
        return JSONResponse({"object": "list", "data": [model(name) for name in options.models]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> JSONResponse:
        """Describes one of them."""
        try:
            return JSONResponse(model(service.check_model(name)))
        except RequestError as error:
            return response(error)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        """Says whether the server works: 200 also while it loads the model, else 503."""
        return JSONResponse({"status": "ok" if service.alive else "dead"}, 200 if service.alive else 503)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Says whether requests are answered now: 200, else 503."""
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts, for Prometheus."""
        return Response(service.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_page(app.openapi()))


async def _read_json(request: Request) -> bytes:
    """The body of a request that says it is JSON, or nothing about it."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(f"send application/json, not {kind[:80]}", status=415)
    return await request.body()


def _json(fields: dict, *required: str) -> dict:
    schema = {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_CLIP = {"file": {"type": "string", "format": "binary"}, "model": {"type": "string"}}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "properties": _CLIP, "required": list(_CLIP)}}
        },
    }
}


def _page(schema: dict) -> str:
    """A page of what there is, which loads nothing from elsewhere."""
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td>{escape(path)}</td><td>{escape(entry.get('description', ''))}</td></tr>"
        for path, methods in schema["paths"].items()
        for method, entry in methods.items()
    )
    title = escape(schema["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
        f'<table>{rows}</table><p>The fields: <a href="/openapi.json">openapi.json</a></p></html>'
    )

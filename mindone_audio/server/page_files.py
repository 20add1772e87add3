"""The page at /: its files, which need no key, and the limits of this server that the page checks before it uploads."""

import hashlib
from importlib import resources

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from mindone_audio.server.service import Service

# The files below page/ and their types: there is nothing else at /page/.
FILES = {
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "recorder.js": "text/javascript; charset=utf-8",
    "talk.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
INDEX, FACTS = "index.html", "/page/facts.json"
PATHS = frozenset({"/", FACTS, *(f"/page/{name}" for name in FILES)})
# Clips are played from memory (blob:). Nothing is loaded from elsewhere, no inline script or style runs, and no other
# site may show the page in a frame, where it could be clicked unseen.
POLICY = (
    "default-src 'self'; media-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)


def add_page(app: FastAPI, service: Service) -> None:
    """Let the app answer GET for `PATHS`."""
    for path, name, kind in (
        ("/", INDEX, "text/html; charset=utf-8"),
        *((f"/page/{name}", name, kind) for name, kind in FILES.items()),
    ):
        app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)(_file(name, kind))

    @app.api_route(FACTS, methods=["GET", "HEAD"], include_in_schema=False)
    async def facts() -> JSONResponse:
        return JSONResponse(page_facts(service), headers={"Cache-Control": "no-store"})


def page_facts(service: Service) -> dict:
    """What the page knows of the server.

    tasks: what it offers. longest_clip: seconds of a clip in a conversation; audio_first: whether it goes before the
    question. These and the family's own questions are those of the model when it is loaded. one_clip: the bundled model
    was taught to hear one clip alone. spoken: whether answers of a spoken conversation are sound.
    """
    tasks = ["ask", "caption", "transcribe"]
    if service.transcribes_only or service.speaks:
        tasks = [] if service.speaks else ["transcribe"]
    options, processor = service.options, getattr(service.pipe, "processor", None)
    return {
        "loaded": service.pipe is not None,
        "tasks": tasks,
        "max_body_bytes": options.max_body_bytes,
        "max_audio_seconds": options.max_audio_seconds,
        "max_tokens": options.max_tokens,
        "longest_clip": getattr(processor, "longest_clip", None),
        "audio_first": getattr(processor, "audio_first", True),
        "one_clip": options.model is None,
        "spoken": service.speaker is not None,
        "questions": dict(getattr(processor, "questions", {})),
    }


def _file(name: str, kind: str):
    """What answers a request for a file, which is read once."""
    content = resources.files("mindone_audio.server").joinpath("page", name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    # Browsers ask each time whether it has changed: an upgrade must not leave a new page with old scripts.
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}

    async def answer(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return answer

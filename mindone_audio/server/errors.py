"""Every error as OpenAI's clients read it: a status and `{"error": {"message", "type", "param", "code"}}`."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mindone_audio.generation.events import Overloaded
from mindone_audio.setting_fields import in_words

logger = logging.getLogger(__name__)

INVALID, OVERLOADED, SERVER = "invalid_request_error", "overloaded", "server_error"
# What OpenAI calls settings of `generate`.
OPENAI_NAMES = {"max_new_tokens": "max_tokens", "stop_sequence": "stop", "num_return_sequences": "n"}


class RequestError(Exception):
    """A request that cannot be answered. param: the field that is at fault; code: a word that programs look for."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        kind: str = INVALID,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def checked(param: str, check: Callable, *arguments: Any) -> Any:
    """`check(param, *arguments)`, whose `ValueError` becomes the fault of that field."""
    try:
        return check(param, *arguments)
    except ValueError as error:
        raise RequestError(in_words(error, lambda name, value=None: name), param) from error


def refused(error: ValueError, names: Mapping[str, str] = OPENAI_NAMES, param: str | None = None) -> RequestError:
    """A refusal of the library in a client's words. names: what it calls settings; param: the field at fault where the
    message is about no setting."""
    said: list[str] = []

    def say(name: str, value: Any = None) -> str:
        said.append(names.get(name, name))
        return said[-1] if value is None else f"{said[-1]}={value!r}"

    message = in_words(error, say)
    if hasattr(error, "what"):  # a clip above the model's limit, with advice for callers of the pipeline
        message = f"{error.what}: cut it, or use /v1/audio/transcriptions, which takes clips of any length"
    first = message.split()[0].split("=")[0] if message else ""
    setting = next(iter(said), first if first in _SETTINGS else None)
    if setting is None and param is not None and param not in message:
        message = f"{param}: {message}"
    return RequestError(message, setting or param)


_SETTINGS = ("logit_bias", "language", "stop", "temperature", "max_tokens", "max_length", "n")


def as_request_error(error: BaseException) -> RequestError:
    """What a client is told of any error; of a fault of the server nothing but that there was one, which is logged."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, Overloaded):
        status = 429 if error.reason == "key" else 503
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
        return RequestError(str(error), status=status, kind=OVERLOADED, code=error.reason, headers=headers)
    if isinstance(error, HTTPException):
        return _of_framework(error)
    if isinstance(error, ValueError):
        return refused(error)
    logger.error("a request has failed", exc_info=error)
    return RequestError("the server has failed on this request; its log says why", status=500, kind=SERVER)


def _of_framework(error: HTTPException) -> RequestError:
    words = {404: "there is nothing at this URL", 405: "this URL does not take this method"}
    status = 400 if error.status_code == 422 else error.status_code
    kind = INVALID if status < 500 else SERVER
    message = words.get(status, str(error.detail))
    return RequestError(f"{message}: /docs lists what there is", status=status, kind=kind, headers=error.headers)


def response(error: BaseException) -> JSONResponse:
    """The answer to a request that has failed."""
    told = as_request_error(error)
    return JSONResponse(told.body, told.status, told.headers)

"""Encoded audio that is written as text: plain base64 and data URIs."""

import base64
import binascii
import os
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from mindone_audio.inputs.audio.errors import AudioError, too_many_bytes

MAX_FILE_BYTES = 4 * 2**30  # of an encoded clip that does not come from a URL
SHORTEST_BASE64 = 32  # characters; fewer hold no header
LONGEST_HEADER = 4096  # characters of a data URI before its comma
UNQUOTED_CHARACTERS = 2**16  # at a time
LONGEST_FILE_NAME = 255  # bytes, of one part of a path
_WHITE_SPACE = b" \t\n\r\v\f"
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
_DATA_URI = re.compile(r"\s*data:((?:[^,\"]|\"[^\"]*\")*),", re.IGNORECASE)


def plain_base64(text: Any, max_bytes: int | None, name: str) -> bytes | None:
    """What a string holds that reads as base64, of either alphabet, and is no path of a file; else None."""
    if not isinstance(text, str) or len(text) < SHORTEST_BASE64 or not _BASE64.fullmatch(text) or os.path.exists(text):
        return None
    limit = MAX_FILE_BYTES if max_bytes is None else max_bytes
    try:
        return base64_bytes(text, name, limit)
    except AudioError:
        if len(text) * 3 // 4 > limit:
            raise
        return None


def may_be_path(text: str) -> bool:
    """Whether a string can be the path of a file that is missing, and is not only base64 of something else."""
    long = any(len(part.encode(errors="replace")) > LONGEST_FILE_NAME for part in text.split("/"))
    return not long and "=" not in text and len(text.split()) == 1


def base64_bytes(text: str | bytes, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """Base64 of either alphabet, with white space and without padding too -> bytes; `AudioError` for anything else."""
    if len(text) * 3 // 4 > limit * 1.1:  # a tenth for line breaks
        raise too_many_bytes(name, limit)
    try:
        packed = text.encode("ascii") if isinstance(text, str) else text
        packed = packed.translate(bytes.maketrans(b"-_", b"+/"), delete=_WHITE_SPACE).rstrip(b"=")
        data = base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise AudioError(
            f"{name} is not valid base64 (a character outside the alphabet, or a part is missing): encode the audio "
            "file with base64.b64encode"
        ) from None
    if len(data) > limit:
        raise too_many_bytes(name, limit)
    return data


def data_uri_bytes(text: str, limit: int, name: str) -> bytes:
    """RFC 2397: any media type and parameters, the payload percent-encoded, and base64 or not."""
    header = _DATA_URI.match(text, 0, LONGEST_HEADER)
    if header is None:
        raise AudioError(f"{name} is not a data URI with a comma: write it as data:audio/wav;base64,…")
    payload = _unquoted(text, header.end())
    if _says_base64(header):
        return base64_bytes(payload, name, limit)
    if len(payload) > limit:
        raise too_many_bytes(name, limit)
    return payload


def _unquoted(text: str, start: int) -> bytes:
    """Percent-decoded from `start` on, a piece at a time: `unquote_to_bytes` makes an object of every escape."""
    pieces = []
    while start < len(text):
        end = start + UNQUOTED_CHARACTERS
        if (escape := text.rfind("%", end - 2, end)) > start:
            end = escape
        pieces.append(unquote_to_bytes(text[start:end]))
        start = end
    return b"".join(pieces)


def is_plain_data_uri(text: Any) -> bool:
    """Whether this is a data URI whose payload is not base64."""
    header = _DATA_URI.match(text, 0, LONGEST_HEADER) if isinstance(text, str) else None
    return header is not None and not _says_base64(header)


def _says_base64(header: re.Match) -> bool:
    return header[1].rpartition(";")[2].strip().lower() == "base64"

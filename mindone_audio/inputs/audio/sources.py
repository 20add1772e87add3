"""Where encoded bytes come from: a path, a URL, a data URI, a file object or bytes; bounded in size."""

import os
import re
import stat
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mindone_audio.inputs.audio.arrays import is_numbers
from mindone_audio.inputs.audio.data_uris import MAX_FILE_BYTES, data_uri_bytes
from mindone_audio.inputs.audio.download import read_url
from mindone_audio.inputs.audio.errors import AudioError, AudioNotFoundError, too_many_bytes

MAX_DOWNLOAD_BYTES = 512 * 2**20  # of what a URL sends
READ_BYTES = 2**20  # at a time


def read_source(source: Any, timeout: float, max_bytes: int | None, name: str) -> bytes:
    """The bytes of an encoded clip, at most `max_bytes` (None: what is usual for its kind); `AudioError` for more.

    timeout: seconds, for a URL. A plain string is a path here: see `text.plain_base64`.
    """
    limit = MAX_FILE_BYTES if max_bytes is None else max_bytes
    if isinstance(source, (bytes, bytearray, memoryview)):
        if memoryview(source).nbytes > limit:
            raise too_many_bytes(name, limit)
        return bytes(source)
    if hasattr(source, "read"):
        return read_file_object(source, limit, name)
    if isinstance(source, os.PathLike):
        return _read_path(Path(os.fsdecode(source)), limit, name)
    if not isinstance(source, str):
        numbers = "; numbers first become an array, np.asarray(…, np.float32)" if is_numbers(source) else ""
        raise AudioError(
            f"{name} is no audio source: pass a path, a URL, bytes, a binary file object, base64 or an array of "
            f"samples (several clips go in a flat list of these{numbers})"
        )
    text = source.lstrip()
    if text[:5].lower() == "data:":
        return data_uri_bytes(text, limit, name)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text) or re.match(r"(file):/", text, re.IGNORECASE)
    if scheme is None:
        return _read_path(Path(source), limit, name)
    if scheme[1].lower() in ("http", "https"):
        return read_url(text.rstrip(), timeout, MAX_DOWNLOAD_BYTES if max_bytes is None else max_bytes, name)
    try:
        url = urlsplit(text)
    except ValueError:
        url = None
    if url and url.scheme == "file" and url.netloc in ("", "localhost"):
        return _read_path(Path(urllib.request.url2pathname(url.path)), limit, name)
    raise AudioError(f"{name}: cannot read this kind of URL: use http://, https:// or file:///absolute/path")


def read_file_object(file: Any, limit: int, name: str) -> bytes:
    """What is left in a binary file object, which stays open."""
    data = bytearray()
    while True:
        try:
            block = file.read(min(READ_BYTES, limit + 1 - len(data)))
        except Exception as error:  # whatever an object of somebody else raises
            raise AudioError(f"cannot read {name}: {str(error):.200}: open the file in binary mode, 'rb'") from error
        if not isinstance(block, (bytes, bytearray, memoryview)):
            raise AudioError(f"{name} gave {type(block).__name__}, not bytes: open the file in binary mode, 'rb'")
        if not block:
            return bytes(data)
        data += block
        if len(data) > limit:
            raise too_many_bytes(name, limit)


def _read_path(path: Path, limit: int, name: str) -> bytes:
    """The bytes of a file or a named pipe, such as a shell's `<(command)`: a device never ends."""
    try:
        path = path.expanduser()
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise AudioError(f"{name} is a folder: give the path of one audio file in it")
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
            raise AudioError(f"{name} is a device or a socket and no file: open it and pass the file object")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise too_many_bytes(name, limit)
            return read_file_object(file, limit, name)
    except (FileNotFoundError, NotADirectoryError):
        raise AudioNotFoundError(f"no audio file {name} (seen from {os.getcwd()}): check the path") from None
    except AudioError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # no permission; a null byte in the path; no home folder
        # Not `from error`: its message repeats the whole path.
        reason = getattr(error, "strerror", None) or f"{str(error):.100}"
        raise AudioError(f"cannot read {name}: {reason}: check the path and its permissions") from None

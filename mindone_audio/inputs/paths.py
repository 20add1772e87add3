"""Relative paths of clips in a file that lists them."""

import os
import re
from typing import Any

LONGEST_PATH = 4096  # characters, PATH_MAX of Linux; a longer text is base64
_ADDRESS = re.compile(r"\s*([a-z][a-z0-9+.-]*://|data:|file:/)", re.IGNORECASE)


def resolve_clip(source: Any, folder: str | os.PathLike | None) -> Any:
    """A clip that a file in `folder` names: a relative path starts there, or else in the working directory.

    source: what `load_audio` takes. A relative path, also that of `{"path": …}`, gets `folder` in front if that is the
    path of an existing file. Everything else comes back as it is: absolute paths, `~`, URLs, data URIs, base64, bytes,
    samples, and paths without a file. folder: None leaves every source as it is.
    """
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        return {**source, "path": resolve_clip(source["path"], folder)}
    if folder is None or not isinstance(source, str) or not source.strip() or len(source) > LONGEST_PATH:
        return source
    if os.path.isabs(source) or _ADDRESS.match(source):
        return source
    path = os.path.join(folder, source)
    return path if os.path.exists(path) else source

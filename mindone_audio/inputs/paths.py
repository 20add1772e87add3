"""Relative paths of clips, as manifests and data files have them."""

import os
from pathlib import Path
from typing import Any

_LONGEST = 4096  # characters of a path; longer strings are audio in base64 or data URIs


def resolve(source: Any, folder: str | Path | None) -> Any:
    """A clip's source, where a relative path becomes one in `folder` if that file exists.

    source: whatever `load_audio` takes; the path of `{"path": ...}` is resolved too. URLs, data URIs, base64, absolute
    paths and paths that do not exist in the folder stay as they are. folder: that of the file which names the clip;
    None changes nothing.
    """
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        return {**source, "path": resolve(source["path"], folder)}
    if folder is None or not isinstance(source, str) or not 0 < len(source) <= _LONGEST or os.path.isabs(source):
        return source
    path = os.path.join(folder, source)
    return path if os.path.exists(path) else source

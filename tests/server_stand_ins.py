"""Until mindone_audio/server/{media,guards,connections}.py are there: the least that does their part in tests."""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mindone_audio.inputs.audio import AudioError, load_audio
from mindone_audio.inputs.audio.data_uris import base64_bytes


@dataclass(frozen=True)
class MediaPolicy:
    allowed_domains: tuple = ()
    allowed_path: Path | None = None
    max_bytes: int = 25 << 20
    max_seconds: float = 600.0
    timeout: float = 10.0


def media_samples(source, policy, name):
    if isinstance(source, str):
        if "://" in source[:10]:
            raise AudioError(f"{name}: URLs are not allowed here: send the clip itself")
        source = base64_bytes(source.partition(",")[2] if source[:5] == "data:" else source, name)
    try:
        return load_audio(source)
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from error


def parse_json(body):
    def no(word):
        raise ValueError(f"{word} is no JSON")

    try:
        return json.loads(body, parse_constant=no)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def guarded(app, options):
    return app


def uvicorn_settings():
    return {"server_header": False}


for _name, _members in (
    ("media", (MediaPolicy, media_samples)),
    ("guards", (parse_json, guarded)),
    ("connections", (uvicorn_settings,)),
):
    if importlib.util.find_spec(f"mindone_audio.server.{_name}") is None:
        _module = ModuleType(f"mindone_audio.server.{_name}")
        for _member in _members:
            setattr(_module, _member.__name__, _member)
        sys.modules[_module.__name__] = _module

"""One file a family; the file's name is the `model_type` that a checkpoint's config.json gives."""

import os
import pkgutil
from importlib import import_module
from types import ModuleType

from mindone_audio.hub import DOWNLOAD_KEYWORDS, read_config


def known_families() -> list[str]:
    """The model types that have a file here."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def family(model_type: str | None) -> ModuleType:
    """The module of a model type, with `MODEL` and `PROCESSOR`; `ValueError` with the known types for another."""
    if model_type not in known_families():
        raise ValueError(f"unknown model_type {model_type!r}: known are {', '.join(known_families())}")
    return import_module(f"{__name__}.{model_type}")


class AutoModelForAudioTextToText:
    """Chooses the model class by the `model_type` in a checkpoint's config.json."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """The family's model; keywords are those of its own `from_pretrained`.

        Raises `ValueError` for a model_type that no family has, naming the known ones.
        """
        download = {name: kwargs[name] for name in DOWNLOAD_KEYWORDS if name in kwargs}
        model_type = read_config(pretrained_model_name_or_path, **download).get("model_type")
        return family(model_type).MODEL.from_pretrained(pretrained_model_name_or_path, **kwargs)

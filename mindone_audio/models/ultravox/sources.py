"""Checkpoints that leave out the models they were built on: those are read from where config.json says.

`text_model_id` and `audio_model_id` name the language model and the Whisper, each a Hugging Face repository or a local
folder; null where the checkpoint has that model's config, and weights, itself.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mindone_audio.weights import hub
from mindone_audio.weights.parameters import Source

# Names in the repositories of language models and of Whisper, whose decoder is not used: to ours.
_PARTS = {
    "text_model_id": Source(
        "language_model.", Path, (("model.", "language_model.model."), ("lm_head.", "language_model.lm_head."))
    ),
    "audio_model_id": Source(
        "audio_tower.",
        Path,
        (("model.encoder.", "audio_tower."), ("encoder.", "audio_tower.")),
        ignored=("model.decoder.", "decoder.", "proj_out."),
    ),
}


def named(repository: str, field: str, read: Callable, **access: Any) -> Any:
    """`read(repository)`, where the error for one that cannot be had says which field of config.json names it."""
    try:
        return read(repository, **access)
    except OSError as error:
        raise FileNotFoundError(
            f"{field} {repository!r}, which this checkpoint is completed from, cannot be had: give a token that may "
            f"read it, or set {field} in config.json to a local folder. {error}"
        ) from error


def complete_config(config: dict[str, Any], **access: Any) -> dict[str, Any]:
    """A config.json with the configs of the models that it names; `access` are `hub.ACCESS_KEYWORDS`.

    Raises `FileNotFoundError` with the name of a repository that cannot be had.
    """
    parts = {}
    for part in ("text", "audio"):
        repository = config.get(f"{part}_model_id")
        if repository is not None:
            read = named(repository, f"{part}_model_id", hub.read_config, **access)
            parts[f"{part}_config"] = {**read, "_name_or_path": repository}
    return config | parts


def weight_sources(config: Any, **access: Any) -> list[Source]:
    """Where the weights are that a checkpoint with this config leaves out."""
    sources = []
    for field, source in _PARTS.items():
        repository = getattr(config, field)
        if repository is not None:

            def find(repository=repository, field=field) -> Path:
                return named(repository, field, hub.checkpoint_folder, **access)

            sources.append(replace(source, folder=find))
    return sources

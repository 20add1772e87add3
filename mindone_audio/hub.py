"""Where a checkpoint is: a local folder, or a download from the Hugging Face hub."""

import json
import os
from pathlib import Path

CONFIG_FILE = "config.json"
DOWNLOAD_KEYWORDS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
ACCESS_KEYWORDS = ("cache_dir", "local_files_only", "token")  # those that hold for other repositories as well
# The same weights again: as the model's own makers spell them (Mistral, Llama), or wider (Whisper).
SECOND_COPIES = ["*consolidated*", "original/*", "*.fp32*"]
CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]  # what a repository is downloaded for


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names the file and the tensor."""


def checkpoint_folder(
    name_or_dir: str | os.PathLike,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
) -> Path:
    """The local folder of a checkpoint: `name_or_dir` itself, or a download of that Hugging Face repository.

    HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are honoured. Raises `FileNotFoundError` where neither exists.
    """
    path = Path(name_or_dir).expanduser()
    if not path.is_dir():
        _refuse_missing_folder(os.fspath(name_or_dir))
        path = _download(str(name_or_dir), revision, cache_dir, token, local_files_only, subfolder)
    if not (path / subfolder).is_dir():
        raise FileNotFoundError(f"checkpoint {str(name_or_dir)!r} has no subfolder {subfolder!r}")
    return path / subfolder


def _download(name: str, revision, cache_dir, token, local_files_only: bool, subfolder: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [f"{subfolder}/{p}" for p in CHECKPOINT_FILES] if subfolder else CHECKPOINT_FILES
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=patterns,
            ignore_patterns=SECOND_COPIES,
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"no checkpoint {name!r}: it is not a local folder, and the hub gave no such repository "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). "
            "Check the name, the network, HF_ENDPOINT and the token"
        ) from error
    return Path(folder)


def read_config(name_or_dir: str | os.PathLike, file: str = CONFIG_FILE, **download) -> dict:
    """The config.json, or another file like it, of a checkpoint folder or repository; `download` as for
    `checkpoint_folder`.

    Raises `FileNotFoundError` for a folder that does not exist and `OSError` where the file cannot be had or read.
    """
    path = checkpoint_file(name_or_dir, file, **download)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(file, name_or_dir, error) from error
    if not isinstance(config, dict):
        raise OSError(f"{file} of {str(name_or_dir)!r} should hold a JSON object, not a {type(config).__name__}")
    return config


def checkpoint_file(name_or_dir: str | os.PathLike, file: str, **download) -> Path:
    """The local path of one file of a checkpoint folder or repository; `download` as for `checkpoint_folder`.

    Raises `FileNotFoundError` for a folder that does not exist and `OSError` where the file cannot be had.
    """
    name = os.fspath(name_or_dir)
    _refuse_missing_folder(name)
    from transformers.utils import cached_file  # takes seconds, which a wrong path need not cost

    try:
        path = cached_file(os.path.expanduser(name), file, **download)
        if path is None:  # instead of an error, for a local folder without this one file
            raise FileNotFoundError("It has no such file.")
    except (OSError, ValueError) as error:
        raise _unreadable(file, name, error) from error
    return Path(path)


def _unreadable(file: str, name: str | os.PathLike, error: Exception) -> OSError:
    return OSError(
        f"cannot read {file} of {os.fspath(name)!r}: give a checkpoint folder that holds it, or a repository's name "
        f"that can be reached or is in the cache (HF_ENDPOINT, HF_HUB_OFFLINE, token). {error}"
    )


def _refuse_missing_folder(name: str) -> None:
    looks_like_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if looks_like_path and not os.path.isdir(os.path.expanduser(name)):
        raise FileNotFoundError(f"no checkpoint folder {name!r} (seen from {os.getcwd()}): check the path")

"""What becomes of an adapter: merged into a checkpoint of its own, or put on the Hugging Face hub."""

import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mindone_audio.machine.files import UNFINISHED, new_folder
from mindone_audio.weights.hub import ACCESS_KEYWORDS, CHECKPOINT_FILES, CONFIG_FILE, checkpoint_folder

ADAPTER_FILE = "adapter_config.json"
# What training leaves beside an adapter, and what is for nobody else.
NOT_PUSHED = ["checkpoint-*/**", ".checkpoint-*/**", "events.out.tfevents.*", f".*{UNFINISHED}", f".*{UNFINISHED}/**"]
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def save_merged(model: Any, base: str | os.PathLike, folder: str | os.PathLike, **download: Any) -> Path:
    """Write an adapted model as a checkpoint of its own: the adapter in its weights, and the base's processor.

    The folder is there when all of it is written, and not before.

    model: what `add_lora` or `load_adapter` returned; it is merged in place and has no adapter afterwards. base: the
    folder or Hugging Face id that it was loaded from; `download` are `hub.ACCESS_KEYWORDS`. Raises `ValueError` for a
    folder that has something in it, and `OSError` where files cannot be read or written.
    """
    if unknown := sorted(set(download) - set(ACCESS_KEYWORDS)):
        raise TypeError(f"{', '.join(unknown)} has no effect here: it may be {', '.join(ACCESS_KEYWORDS)}")
    folder = Path(folder).expanduser()
    check_empty(folder)
    source = checkpoint_folder(base, **download)
    with new_folder(folder) as new:
        model.merge_and_unload().save_pretrained(str(new))
        for path in sorted(source.iterdir()):
            if path.is_dir() and (path / CONFIG_FILE).is_file():  # a model that the processor needs, such as WhisperVQ
                shutil.copytree(path, new / path.name)
            elif path.is_file() and _belongs_to_processor(path.name) and not (new / path.name).exists():
                shutil.copyfile(path, new / path.name)
    return folder


def _belongs_to_processor(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in CHECKPOINT_FILES) and not any(
        fnmatch(name, pattern) for pattern in _WEIGHTS
    )


def check_empty(folder: str | os.PathLike) -> None:
    """`ValueError` for a folder that has something in it, or is none, so that nothing is overwritten."""
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already, and the merged model would overwrite it: give a new folder")


def check_repository(repo_id: str) -> None:
    """`ValueError` for what cannot be a repository's name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot be a repository on the hub: {_one_line(error)}") from error


def push_to_hub(
    folder: str | os.PathLike, repo_id: str, *, private: bool | None = None, token: str | None = None
) -> str:
    """Put an adapter, or a checkpoint, on the Hugging Face hub by huggingface_hub; returns its address.

    The checkpoints of a training that are in the folder stay here. repo_id: "owner/name", which is made if there is
    none. private: of a new repository; None for the owner's default. token: None for that of `hf auth login` or
    HF_TOKEN.

    Raises `FileNotFoundError` for a folder that has neither, `ValueError` for a wrong name, `OSError` where the hub
    refuses or cannot be reached, each in one line.
    """
    folder = Path(folder).expanduser()
    if not any((folder / file).is_file() for file in (ADAPTER_FILE, CONFIG_FILE)):
        raise FileNotFoundError(f"{folder} has no {ADAPTER_FILE} and no {CONFIG_FILE}: give an adapter's folder")
    check_repository(repo_id)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    client = HfApi(token=token)
    try:
        address = client.create_repo(repo_id, private=private, exist_ok=True)
        client.upload_folder(repo_id=address.repo_id, folder_path=str(folder), ignore_patterns=NOT_PUSHED)
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        raise OSError(
            f"could not push {folder} to {repo_id} ({type(error).__name__}: {_one_line(error)}): it is kept here; "
            "check the name, the network, HF_ENDPOINT and that the token may write (`hf auth login` or HF_TOKEN)"
        ) from error
    return str(address)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or "no message"

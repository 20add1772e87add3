"""Where a checkpoint is: a local folder, or a download from the Hugging Face hub."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from mindone_audio.weights.folder_check import CONFIG_FILE, explain_file, explain_missing, wrong_content

DOWNLOAD_KEYWORDS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
ACCESS_KEYWORDS = ("cache_dir", "local_files_only", "token")  # those that hold for other repositories as well
# The same weights again: as the model's own makers spell them (Mistral, Llama), or wider (Whisper); and Phi-4's adapter
# for images.
SECOND_COPIES = ["*consolidated*", "original/*", "*.fp32*", "vision-lora/*"]
SMALL_FILES = ["*.json", "*.txt", "*.jinja", "*.model"]
CHECKPOINT_FILES = [*SMALL_FILES, "*.safetensors"]  # what a repository is downloaded for
# A tokenizer has one of these.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "spm_char.model"),
    "sentencepiece.bpe.model",
)
EXTRACTOR_FILE = "preprocessor_config.json"
INDEX_FILE = "model.safetensors.index.json"


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
    unread: Callable[[set[str]], set[str]] | None = None,
) -> Path:
    """The local folder of a checkpoint: `name_or_dir` itself, or a download of that Hugging Face repository.

    unread: of the names of tensors those that nobody will read; where an index tells, files that hold no others are
    not downloaded. HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are honoured. Raises `FileNotFoundError` where neither
    exists, and `OSError` for a folder with files that were not downloaded.
    """
    path = Path(name_or_dir).expanduser()
    if not path.is_dir():
        _refuse_missing_folder(os.fspath(name_or_dir))
        path = _download(str(name_or_dir), revision, cache_dir, token, local_files_only, subfolder, unread)
    if not (path / subfolder).is_dir():
        raise _no_subfolder(name_or_dir, subfolder)
    _check_contents(path / subfolder)
    return path / subfolder


def _download(name: str, revision, cache_dir, token, local_files_only: bool, subfolder: str, unread) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    inside = f"{subfolder}/" if subfolder else ""

    def download(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=[inside + pattern for pattern in patterns],
                ignore_patterns=SECOND_COPIES,
            )
        )

    try:
        if unread is None:
            return download(CHECKPOINT_FILES)
        index = download(SMALL_FILES) / inside / INDEX_FILE
        return download([*SMALL_FILES, *(_files_to_read(index, unread) or CHECKPOINT_FILES)])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"no checkpoint {name!r}: it is not a local folder, and the hub gave no such repository "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). "
            "Check the name, the network, HF_ENDPOINT and the token"
        ) from error


def _files_to_read(index: Path, unread: Callable[[set[str]], set[str]]) -> list[str]:
    """The files with tensors that are read, by an index; none where it is missing or says nothing."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({places[name] for name in set(places) - unread(set(places))})
    except (OSError, ValueError, KeyError, TypeError):  # what is wrong with it is said by who reads the weights
        return []


def read_config(name_or_dir: str | os.PathLike, file: str = CONFIG_FILE, **download) -> dict:
    """The config.json, or another file like it, of a checkpoint folder or repository; `download` as for
    `checkpoint_folder`.

    Raises `FileNotFoundError` for a folder that does not exist and `OSError` where the file cannot be had or read.
    """
    path = checkpoint_file(name_or_dir, file, **download)
    _check_content(path)
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
    if os.path.isdir(os.path.expanduser(name)):
        folder = Path(name).expanduser() / download.get("subfolder", "")
        if not folder.is_dir():
            raise _no_subfolder(name, download["subfolder"])
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"cannot read {file} of {str(folder)!r}, no {file} in it: {explain_missing(folder, file)}"
            )
        return folder / file
    from transformers.utils import cached_file  # takes seconds, which a folder need not cost

    try:
        return Path(cached_file(name, file, **download))
    except (OSError, ValueError) as error:
        raise _unreadable(file, name, error) from error


def only_sentencepiece(name_or_dir: str | os.PathLike, **download) -> bool:
    """Whether a tokenizer is a sentencepiece model and there is no tokenizer.json; `ImportError` where that takes a
    package that is not there."""
    try:
        checkpoint_file(name_or_dir, TOKENIZER_FILES[0], **download)
    except OSError:
        if find_spec("sentencepiece") is None:
            raise ImportError(
                f"this checkpoint has no {TOKENIZER_FILES[0]}, and its sentencepiece model takes a package: "
                "pip install sentencepiece"
            ) from None
        return True
    return False


@contextmanager
def processor_files(
    name_or_dir: str | os.PathLike, *, tokenizer: bool = True, extractor: bool = True, **download
) -> Iterator[None]:
    """Around what loads a checkpoint's tokenizer and feature extractor, whichever are needed: checks a folder first.

    Raises `OSError`, with what to do, for a folder without their files or with files that were not downloaded, and
    instead of whatever the libraries raise for damaged ones.
    """
    _refuse_missing_folder(os.fspath(name_or_dir))
    folder = Path(name_or_dir).expanduser() / download.get("subfolder", "")
    if folder.is_dir():
        _check_contents(folder)
        if tokenizer and not any((folder / file).is_file() for file in TOKENIZER_FILES):
            raise _no_part(folder, "tokenizer", TOKENIZER_FILES[0])
        if extractor and not (folder / EXTRACTOR_FILE).is_file():
            unified = folder / "processor_config.json"  # of transformers 5
            if not unified.is_file() or "feature_extractor" not in read_config(folder, unified.name):
                raise _no_part(folder, "feature extractor", EXTRACTOR_FILE)
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # tokenizers raises `Exception` itself, transformers ImportError, TypeError and others
        if isinstance(error, ValueError) and not isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
            raise
        raise OSError(
            f"the processor of {os.fspath(name_or_dir)!r} cannot be read ({type(error).__name__}: {str(error):.300}): "
            "its files are damaged or of another kind, download them again"
        ) from error


def _no_part(folder: Path, what: str, file: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{str(folder)!r} has no {what}, {file}: copy its files from the checkpoint that this one was made of. "
        f"Or else: {explain_missing(folder, file)}"
    )


def _check_contents(folder: Path) -> None:
    for file in sorted(path for pattern in SMALL_FILES for path in folder.glob(pattern) if path.is_file()):
        _check_content(file)


def _check_content(file: Path) -> None:
    """`OSError` for what only stands for a file."""
    if wrong := wrong_content(file):
        raise OSError(f"{file} {wrong}")


def _no_subfolder(name: str | os.PathLike, subfolder: str) -> FileNotFoundError:
    return FileNotFoundError(f"checkpoint {str(name)!r} has no subfolder {subfolder!r}")


def _unreadable(file: str, name: str | os.PathLike, error: Exception) -> OSError:
    return OSError(
        f"cannot read {file} of {os.fspath(name)!r}: give a checkpoint folder that holds it, or a repository's name "
        f"that can be reached or is in the cache (HF_ENDPOINT, HF_HUB_OFFLINE, token). {error}"
    )


def _refuse_missing_folder(name: str) -> None:
    path = os.path.expanduser(name)
    if os.path.isfile(path):
        raise NotADirectoryError(f"{name!r} is a file, where a checkpoint is a folder: {explain_file(Path(path))}")
    looks_like_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if looks_like_path and not os.path.isdir(path):
        raise FileNotFoundError(f"no checkpoint folder {name!r} (seen from {os.getcwd()}): check the path")

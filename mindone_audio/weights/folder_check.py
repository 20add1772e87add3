"""What is wrong with a checkpoint folder, in words for whoever gave it: what is there instead, and what to do."""

import json
from itertools import islice
from pathlib import Path

CONFIG_FILE, ADAPTER_CONFIG_FILE = "config.json", "adapter_config.json"
_DOWNLOAD = "download it again (`hf download REPOSITORY --local-dir FOLDER` goes on where it stopped)"
_UNFINISHED = ("*.incomplete", "*.crdownload", "*.aria2", "*.part")
# Weights in formats that are not read: how their files end, and what to do.
_OTHER_FORMATS = (
    ((".gguf",), "GGUF is llama.cpp's format: download the safetensors checkpoint that it was made from"),
    (
        (".bin", ".pt", ".pth", ".ckpt", ".pkl"),
        "pickled weights can run code when they are read, so they are not, nor is MindSpore's .ckpt. Save them with "
        "transformers' or MindONE's save_pretrained, which writes safetensors",
    ),
    ((".h5", ".msgpack", ".onnx"), "only safetensors are read: save them with transformers' save_pretrained"),
)
_TRAINERS = ("training_args.", "optimizer.", "scheduler.", "rng_state")  # how names of pickles without weights begin
_DEPTH = 3  # folders below a given one in which a checkpoint is looked for
_MOST = 1000  # of them at a depth
_LISTED = 5  # names in a message


def wrong_content(file: Path) -> str | None:
    """What a file is instead of what its name says, and what to do; None where its first bytes say nothing of it.

    Raises `OSError` where it cannot be opened.
    """
    with open(file, "rb") as stream:
        start = stream.read(64)
    if start.startswith(b"version https://git-lfs"):
        return (
            "is only a Git LFS pointer, which stands for a file that was not downloaded: run `git lfs pull` in its "
            "folder, or " + _DOWNLOAD
        )
    if not start and file.suffix in (".json", ".safetensors", ".model"):
        return "is empty, 0 bytes: " + _DOWNLOAD
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not the file: " + _DOWNLOAD
    return None


def explain_file(path: Path) -> str:
    """What to do with a file that was given as a checkpoint folder."""
    other = next((advice for endings, advice in _OTHER_FORMATS if path.suffix in endings), None)
    return other or f"give the folder that it is in, {str(path.absolute().parent)!r}"


def explain_missing(folder: Path, file: str) -> str:
    """Why `folder`, which exists, has no `file`, and what to do."""
    names = sorted(path.name for path in folder.iterdir())
    if file != ADAPTER_CONFIG_FILE and not file.startswith("adapter_") and ADAPTER_CONFIG_FILE in names:
        return (
            f"it is an adapter of {_base_model(folder)}: give that model as the model, and this folder as the adapter "
            "(--adapter, or adapter= in Python)"
        )
    if file == ADAPTER_CONFIG_FILE and CONFIG_FILE in names:
        return "it is a whole model and no adapter: give it as the model (--model, or model= in Python)"
    if unfinished := _unfinished(folder):
        return f"{unfinished} is a download that was not finished: {_DOWNLOAD}"
    if inside := _below(folder, file):
        return f"it is in {' and in '.join(map(repr, map(str, inside)))}: give that folder"
    for endings, advice in _OTHER_FORMATS if file == CONFIG_FILE or file.endswith(".safetensors") else ():
        if found := [name for name in names if name.endswith(endings) and not name.startswith(_TRAINERS)]:
            return f"it has no {file}, only {_list(found)}: {advice}"
    shown = [name for name in names if not name.startswith(".")]
    if not shown:
        return f"the folder is empty: {_DOWNLOAD}"
    return f"it has no such file, only {_list(shown)}. If it is a checkpoint, {_DOWNLOAD}"


def _base_model(folder: Path) -> str:
    """The name of the model that an adapter is for."""
    try:
        base = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    return repr(base) if base else "a model that it does not name"


def _unfinished(folder: Path) -> str | None:
    """A file that a download leaves while it goes on, of a folder or of the hub's cache that it is in."""
    places = [folder, folder / ".cache" / "huggingface" / "download"]
    if folder.parent.name == "snapshots":
        places.append(folder.parent.parent / "blobs")
    found = (path for place in places for pattern in _UNFINISHED for path in place.glob(pattern))
    first = next(found, None)
    return None if first is None else repr(str(first))


def _below(folder: Path, file: str) -> list[Path]:
    """The nearest folders below that have the file; hidden ones and links are not looked at, nor more than _MOST."""
    level = [folder]
    for _ in range(_DEPTH):
        level = list(islice((inner for outer in level for inner in _folders(outer)), _MOST))
        if found := [path for path in level if (path / file).is_file()]:
            return found[:_LISTED]
    return []


def _folders(folder: Path) -> list[Path]:
    try:
        return [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".") and not p.is_symlink()]
    except OSError:  # not allowed to look
        return []


def _list(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")

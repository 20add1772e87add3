"""Where examples are: a JSONL file, a local folder, or a data set of the Hugging Face hub."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindone_audio.finetune.data.examples import DataError, Example
from mindone_audio.finetune.data.tables import Rows, StreamedRows, dataset_examples, jsonl_examples, records_of
from mindone_audio.inputs.paths import resolve_clip

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
SAVED_FILES = ("state.json", "dataset_dict.json")  # of `save_to_disk`
SNAPSHOT_KEYWORDS = ("revision", "cache_dir", "token")


def load_examples(
    source: str | os.PathLike,
    *,
    split: str = "train",
    streaming: bool = False,
    prompt: str | Mapping | None = None,
    audio: str = "audio",
    answer: str = "answer",
    **load: Any,
) -> Sequence[Example] | StreamedRows:
    """The examples of a JSONL file, a local folder, or a data set of the hub.

    Args:
        source: a `.jsonl` file (`jsonl_examples`); a folder of clips with metadata.jsonl or metadata.csv, whose column
            file_name names a clip (in a subfolder of the split's name, or for "train" in the folder itself); a folder
            that `datasets` wrote or reads (parquet, arrow); or "owner/name" of the hub.
        split: a name; where `datasets` reads the data, as it takes it, also "train[:90%]". JSONL has none.
        streaming: read a data set of `datasets` while it is used, as an iterable.
        prompt, audio, answer: as for `dataset_examples`; for JSONL, lines with a question of their own keep it.
        load: more for `datasets.load_dataset` (name, revision, cache_dir, token, …).

    Raises:
        DataError: what `dataset_examples` and `jsonl_examples` raise, and a split that a folder does not have.
        FileNotFoundError: no such file or folder, or nothing of that name on the hub.
        ImportError: `datasets` is needed and not installed.
        TypeError: a keyword that has no effect on this source.
    """
    names = {"prompt": prompt, "audio": audio, "answer": answer}
    path = Path(source).expanduser()
    if path.suffix.lower() in JSONL_SUFFIXES:
        _refuse_keywords("JSONL", load, split=split != "train", streaming=streaming)
        return jsonl_examples(path, **names)
    if path.is_dir():
        if (metadata := _metadata_file(path, split)) is not None:
            _refuse_keywords("a folder with metadata", load, streaming=streaming)
            return _folder_examples(metadata, names)
        if any((path / file).is_file() for file in SAVED_FILES):
            _refuse_keywords("a folder of save_to_disk", load)
            return dataset_examples(_load_saved(path, split, streaming), **names)
    elif path.exists():
        raise DataError(f"{path} is no JSONL file: give a .jsonl file, a folder, or a name on the hub")
    elif len(path.parts) > 2 or path.is_absolute() or str(source).startswith("."):
        raise FileNotFoundError(f"no file or folder {str(path)!r} (seen from {os.getcwd()}): check the path")
    datasets = _datasets()
    try:
        table = datasets.load_dataset(str(path), split=split, streaming=streaming, **load)
    except (ImportError, datasets.exceptions.DatasetsError) as error:
        if not _lacks_torchcodec(error):
            raise
        return _folder_examples(_clips_of(path, split, load, error), names)
    return dataset_examples(table, **names)


class UnusedKeywords(TypeError):
    """Keywords that have no effect on what kind of source it is; `names` are those of them that are not for `load`."""

    def __init__(self, source: str, names: list[str], load: list[str]):
        super().__init__(f"{', '.join(sorted([*load, *names]))} has no effect on {source}: leave it out")
        self.source, self.names, self.load = source, names, load


def _refuse_keywords(source: str, load: dict, **settings: bool) -> None:
    names = [name for name, given in settings.items() if given]
    if names or load:
        raise UnusedKeywords(source, names, list(load))


def _metadata_file(folder: Path, split: str) -> Path | None:
    """The table of a split beside its clips; `DataError` if there are some, and none for this split."""
    inside = [folder] if split == "train" else []
    for place in (folder / split, folder / "data" / split, *inside):
        for name in METADATA_FILES:
            if (place / name).is_file():
                return place / name
    found = sorted(path for name in METADATA_FILES for path in (*folder.glob(name), *folder.glob(f"*/{name}")))
    if found:
        splits = sorted({"train" if path.parent == folder else path.parent.name for path in found})
        raise DataError(f"{folder} has no split {split!r}: it has {', '.join(splits)}")
    return None


def _folder_examples(metadata: Path, names: dict[str, Any]) -> Rows | StreamedRows:
    """The examples of a table of clips; `datasets` would need torchcodec, and that PyTorch, only to list the files."""
    clip = names["audio"]
    table = _rows(metadata)
    for number, row in enumerate(table):
        file_name = row.get("file_name") or row.get(f"{clip}_file_name")
        if not file_name:
            raise DataError(f"{metadata} row {number} has no file_name; it has {', '.join(map(repr, row))}")
        row[clip] = resolve_clip(file_name, metadata.parent)
    return dataset_examples(table, **names)


def _rows(path: Path) -> list[dict]:
    """The rows of metadata.csv or metadata.jsonl; `DataError`, by the line, for one that cannot be read."""
    table = []
    for record in records_of(path):
        if record.problem is not None or not isinstance(record.value, dict):
            problem = record.problem or f"not {record.value!r:.80}"
            raise DataError(f"{path.name} {record.place} is no JSON object: {problem}")
        table.append(record.value)
    return table


def _datasets():
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "this source needs the package datasets: `pip install datasets`, or write a .jsonl file with one "
            '{"audio": …, "prompt": …, "answer": …} a line'
        ) from error
    return datasets


def _load_saved(folder: Path, split: str, streaming: bool) -> Any:
    saved = _datasets().load_from_disk(os.fspath(folder))
    if isinstance(saved, Mapping):
        if split not in saved:
            raise DataError(f"{folder} has no split {split!r}: it has {', '.join(saved)}")
        saved = saved[split]
    elif split != "train":
        raise DataError(f"{folder} holds one split only: leave out split={split!r}")
    return saved.to_iterable_dataset() if streaming else saved


def _lacks_torchcodec(error: BaseException | None) -> bool:
    """Whether `datasets` gave up on clips beside a table because it lacks torchcodec."""
    return error is not None and (
        (isinstance(error, ImportError) and "torchcodec" in str(error)) or _lacks_torchcodec(error.__cause__)
    )


def _clips_of(path: Path, split: str, load: dict[str, Any], error: Exception) -> Path:
    """The table beside the clips of a folder, or of a repository of the hub, which is downloaded whole."""
    metadata = None
    if path.is_dir():
        metadata = _metadata_file(path, split)
    elif not set(load) - set(SNAPSHOT_KEYWORDS):
        from huggingface_hub import snapshot_download

        metadata = _metadata_file(Path(snapshot_download(str(path), repo_type="dataset", **load)), split)
    if metadata is None:
        raise DataError(
            f"{path} holds clips in a layout that datasets reads only with torchcodec, which needs PyTorch: put their "
            "names and answers into a metadata.csv or metadata.jsonl beside them, or into a .jsonl file"
        ) from error
    return metadata

"""Tables of examples: JSONL files, rows in memory, and data sets and streams of `datasets`."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mindone_audio.finetune.data.examples import OWN_PROMPT, Columns, ColumnsError, DataError, Example, LabelColumns
from mindone_audio.inputs.conversation import AUDIO_KEYS, element_clip
from mindone_audio.inputs.paths import resolve_clip
from mindone_audio.inputs.records import Record, RecordsError, read_records


def jsonl_examples(
    path: str | os.PathLike, prompt: str | Mapping | None = None, *, audio: str = "audio", answer: str = "answer"
) -> list[Example]:
    """The examples of a file of JSON objects `{"audio": …, "prompt": …, "answer": …}`, one a line or in an array.

    "audio" (or audio_url, url, path, base64) is a clip as `load_audio` takes it; a relative path is seen from the
    file's folder first, then from the working directory. "text" is the same as "prompt"; "language" and "task" are for
    models that are told them. Other keys may be there.

    Args:
        prompt: for lines without a question of their own: a text, or a rule as `dataset_examples` takes it.
        audio, answer: other names of these keys.

    Raises:
        FileNotFoundError: no such file.
        DataError: no examples, or a line that is none, by its number.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r} (seen from {os.getcwd()}): check the path")
    columns, own = Columns(audio, answer, prompt), Columns(audio, answer)
    examples = []
    for record in records_of(path):
        name = f"{path.name} {record.place}"
        row = _json_row(record, name, audio)
        row[audio] = resolve_clip(row[audio], path.parent)
        asks = prompt is None or any(row.get(key) is not None for key in own.own_prompt)
        examples.append((own if asks else columns).example(row, name))
    if not examples:
        raise DataError(f'{path.name} has no examples: write one {{"audio": …, "prompt": …, "answer": …}} a line')
    return examples


def records_of(path: Path) -> Iterator[Record]:
    """The records of a file; `DataError` for a file that cannot be read as such."""
    try:
        yield from read_records(path)
    except RecordsError as error:
        raise DataError(str(error)) from error


def _json_row(record: Record, name: str, audio: str) -> dict:
    """A record as a dictionary that has a clip under `audio`."""
    row = record.value
    if record.problem is not None:
        raise DataError(f"{name}: {record.problem}")
    if not isinstance(row, dict):
        raise DataError(f'{name}: a line is an object {{"audio": …, "prompt": …, "answer": …}}, not {row!r:.80}')
    keys = [key for key in dict.fromkeys((audio, *AUDIO_KEYS)) if row.get(key) is not None]
    if len(keys) != 1:
        what = f"{name}: a line needs one clip under {audio!r} and has {len(keys)}: {sorted(row)}"
        raise DataError(what) if keys else ColumnsError(what, "say which of them to use with audio=", ["audio"])
    return row | {audio: element_clip(keys[0], row[keys[0]])}


class Rows(Sequence):
    """The examples of a table, each made when it is read, so that clips are not all in memory."""

    def __init__(self, table: Any, columns: Columns, where: str):
        self.table, self.columns, self.where = table, columns, where

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # IndexError beyond the end
        return self.columns.example(self.table[place], f"row {place}")


class StreamedRows(Iterable):
    """The examples of a stream, which can be gone through again, as `datasets`' streams can."""

    def __init__(self, stream: Iterable, columns: Columns, where: str):
        self.stream, self.columns, self.where = stream, columns, where

    def __iter__(self) -> Iterator[Example]:
        count = 0
        try:
            for row in self.stream:
                yield self.columns.example(row, f"row {count}")
                count += 1
        except ImportError as error:
            raise DataError(
                f"{self.where}: {error} It decodes clips before this package gets them: "
                'call dataset.cast_column("audio", Audio(decode=False)) before map, or use a data set of parquet files'
            ) from error
        if not count:
            raise DataError(f"{self.where} has no rows")

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew, where the stream is one of `datasets` that shuffles."""
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(epoch)


def dataset_examples(
    dataset: Any, *, audio: str = "audio", answer: str = "answer", prompt: str | Mapping | None = None
) -> Rows | StreamedRows:
    """The examples of a `datasets.Dataset`, a streaming `datasets.IterableDataset`, or a list of dictionaries.

    Clips are decoded and resampled to 16 kHz by this package when an example is used, whatever sampling rate the
    `Audio` column was cast to: `datasets` itself needs torchcodec for it, and that PyTorch. Rows that have samples
    already, `{"array": …, "sampling_rate": …}`, are taken as they are.

    Args:
        audio, answer: the columns. Classes (`ClassLabel`) are answered by their names, whole numbers written out.
        prompt: the question for all rows; or `{"column": NAME}` that has it; or `{"column": NAME, "questions":
            {VALUE: TEXT}, "default": TEXT}`, as `BIG_BENCH_AUDIO_QUESTIONS`; None: each row's "prompt" or "text".

    Returns:
        A sequence, whose answers have been checked, or for a stream an iterable that can be iterated again.

    Raises:
        DataError: a column that is missing (with the names of those that there are), no rows, an answer that is empty
            or no text (by its row); for a stream as it is read.
    """
    columns, where = Columns(audio, answer, prompt), "the data set"
    if isinstance(dataset, Mapping):
        raise DataError(f"{where} has the splits {', '.join(map(str, dataset))}: give one of them")
    if iter(dataset) is dataset:
        raise DataError(f"{where} is an iterator, which is used up after one epoch: give a list or a data set")
    if hasattr(dataset, "cast_column"):
        dataset, columns = _readable(dataset, columns, where)
    if not hasattr(dataset, "__len__"):
        return StreamedRows(dataset, columns, where)
    if not len(dataset):
        raise DataError(f"{where} has no rows")
    rows = Rows(dataset, columns, where)
    _check_answers(dataset, columns)
    return rows


def _readable(dataset: Any, columns: Columns, where: str) -> tuple[Any, Columns]:
    """A data set of `datasets` whose clips come as bytes or paths; its columns checked where it says which it has."""
    from datasets import Audio, ClassLabel

    features = dataset.features
    if features is None:  # of a stream after `map`: its rows tell
        return dataset, columns
    columns.check(features, where)
    if isinstance(features[columns.audio], Audio):
        dataset = dataset.cast_column(columns.audio, Audio(decode=False))
    if isinstance(label := features[columns.answer], ClassLabel):
        columns = LabelColumns(columns.audio, columns.answer, columns.prompt, tuple(label.names))
    return dataset, columns


def _check_answers(dataset: Any, columns: Columns) -> None:
    """`DataError` for a row without an answer or a question, without reading the clips of `datasets`' tables."""
    if hasattr(dataset, "select_columns"):
        words = [columns.answer, *columns.for_prompt, *OWN_PROMPT]
        table = dataset.select_columns([name for name in dict.fromkeys(words) if name in dataset.column_names])
        for place, row in enumerate(table):
            columns.example({**row, columns.audio: b""}, f"row {place}")
    elif isinstance(dataset, (list, tuple)):
        for place, row in enumerate(dataset):
            columns.example(row, f"row {place}")

"""What a model learns from: a clip, a question and its answer, and which columns of a table have them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindone_audio.inputs.audio import MAX_DOWNLOAD_BYTES, AudioError, describe, load_clip, read_file_object, unwrapped
from mindone_audio.setting_fields import SettingError

# Which question belongs to which category of Big Bench Audio, as Voxtral's fine-tuning guide has them.
BIG_BENCH_AUDIO_QUESTIONS = {
    "column": "category",
    "questions": {
        "formal_fallacies": "Listen to the logical argument and determine if the conclusion is valid. Answer with the "
        "final conclusion.",
        "navigate": "Listen to the navigation instructions and determine the final direction you are facing.",
        "object_counting": "Listen carefully and count the items mentioned. Answer with the count.",
        "web_of_lies": "Listen to the statements and determine whether the final person is telling the truth or lying.",
    },
    "default": "Listen to the audio and answer the question.",
}
OWN_PROMPT = ("prompt", "text")  # where a row may have a question of its own


class DataError(SettingError):
    """Training data that cannot be used. The message names the row, what is wrong and what to do."""


class ColumnsError(DataError):
    """A table without a column that is needed. what: the message without what to do, for who has other words; missing:
    what has no column, of audio, answer and prompt."""

    def __init__(self, what: str, advice: str, missing: list[str]):
        super().__init__(f"{what}: {advice}")
        self.what, self.missing = what, missing


@dataclass(frozen=True)
class Example:
    """One thing to learn: what to answer when a clip and a question are given, or what is said in the clip.

    audio: what `load_audio` takes, also with a URL of fsspec's; it is read by `samples`. prompt: the question; empty
    where the clip asks it. answer: at least one character that is no white space. name: for messages, as
    "train.jsonl line 7". language, task: for models that are told them, as `TranscriptCollator` takes them; None where
    the data does not say it. Raises `DataError`.
    """

    audio: Any
    prompt: str
    answer: str
    name: str = "an example"
    language: str | None = None
    task: str | None = None

    def __post_init__(self):
        for field in ("prompt", "answer"):
            if not isinstance(value := getattr(self, field), str):
                raise DataError(f"{self.name}: the {field} must be text, not {value!r:.80}")
        if not self.answer.strip():
            raise DataError(f"{self.name}: the answer is empty: leave this example out, or write what to answer")
        if self.audio is None:
            raise DataError(f"{self.name}: there is no clip: leave this example out, or name its audio")

    def samples(self) -> np.ndarray:
        """The clip, mono float32 `[samples]` at 16 kHz; `AudioError` for one that cannot be read."""
        source = unwrapped(self.audio)[0] if isinstance(self.audio, Mapping) else self.audio
        if isinstance(source, str) and re.match(r"(?!https?:|file:)[a-z0-9]+://", source):
            return load_clip(_read_remote(source))
        return load_clip(self.audio)


def _read_remote(url: str) -> bytes:
    """What is at an address of fsspec's, such as the `hf://…` and `zip://…` that streamed data sets have for clips."""
    name = describe(url)[1:-1]
    try:
        import fsspec

        with fsspec.open(url, "rb") as file:
            return read_file_object(file, MAX_DOWNLOAD_BYTES, name)
    except AudioError:
        raise
    except (ImportError, KeyError, OSError, ValueError) as error:
        raise AudioError(f"cannot read {name}: {error!s:.200}: check the address and the network") from error


@dataclass(frozen=True)
class Columns:
    """Which columns of a table have what.

    prompt: the question for all rows; or `{"column": name}`, the column that has it; or also with "questions", from
    what that column has to a question, and "default", the question where it has anything else; or None for the row's
    own "prompt" or "text".
    """

    audio: str = "audio"
    answer: str = "answer"
    prompt: str | Mapping | None = None

    def __post_init__(self):
        rule = self.prompt
        if isinstance(rule, str) or rule is None:
            return
        if not isinstance(rule, Mapping) or "column" not in rule or set(rule) - {"column", "questions", "default"}:
            raise DataError(
                lambda say: (
                    f'{say("prompt")} must be a text, {{"column": NAME}} or {{"column": NAME, "questions": '
                    f'{{VALUE: TEXT, …}}, "default": TEXT}}, not {rule!r:.200}'
                )
            )

    @property
    def for_prompt(self) -> list[str]:
        """The columns that questions depend on, where they are known beforehand."""
        return [self.prompt["column"]] if isinstance(self.prompt, Mapping) else []

    @property
    def own_prompt(self) -> tuple[str, ...]:
        """Where a row may have a question of its own."""
        return tuple(key for key in OWN_PROMPT if key != self.answer)

    def check(self, names: Iterable[str], where: str) -> None:
        """`DataError` unless `names` has the columns that are needed."""
        names = list(names)
        needed = {"audio": self.audio, "answer": self.answer}
        if self.for_prompt and "default" not in self.prompt:
            needed["prompt"] = self.prompt["column"]
        if missing := {use: column for use, column in needed.items() if column not in names}:
            raise ColumnsError(
                f"{where} has no column {', '.join(map(repr, missing.values()))}; it has {', '.join(map(repr, names))}",
                f"say which of them to use with {', '.join(f'{use}=' for use in missing)}",
                list(missing),
            )
        if self.prompt is None and not set(self.own_prompt) & set(names):
            raise ColumnsError(
                f"{where} has no question: it has {', '.join(map(repr, names))}",
                "pass prompt='…' for all, or prompt={\"column\": …}",
                ["prompt"],
            )

    def example(self, row: Mapping, name: str) -> Example:
        """The example in a row; `DataError` for a row that is none."""
        self.check(row, name)
        spoken = (None if row.get(key) == "" else row.get(key) for key in ("language", "task"))
        return Example(row[self.audio], self.question(row, name), as_answer(row[self.answer], name), name, *spoken)

    def question(self, row: Mapping, name: str) -> str:
        """What is asked of a row, by the rule for prompts."""
        rule = self.prompt
        if isinstance(rule, str):
            return rule
        if rule is None:
            return next((row[key] for key in self.own_prompt if row.get(key) is not None), None)
        value = row.get(rule["column"])
        if "questions" not in rule:
            return rule.get("default") if value is None else value
        question = rule["questions"].get(value, rule.get("default"))
        if question is None:
            raise DataError(
                f"{name}: no question for {rule['column']} {value!r}: there are some for "
                f'{", ".join(map(repr, rule["questions"]))}: add it, or a "default"'
            )
        return question


def as_answer(value: Any, name: str) -> str:
    """An answer as text; whole numbers are written out, and nothing at all is an empty answer."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{name}: the answer must be text or a whole number, not {value!r:.80}: convert it first")
    return str(value)


@dataclass(frozen=True)
class LabelColumns(Columns):
    """Columns of which the answers are numbers of classes. names: of the classes."""

    names: tuple[str, ...] = ()

    def example(self, row: Mapping, name: str) -> Example:
        label = row.get(self.answer)
        known = isinstance(label, (int, np.integer)) and 0 <= label < len(self.names)
        return super().example({**row, self.answer: self.names[label] if known else None}, name)

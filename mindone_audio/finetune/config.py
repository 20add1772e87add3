"""One flat configuration of a fine-tuning: what a YAML file and the command line say, by the same names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from mindone_audio.adapters.settings import LoraSettings
from mindone_audio.fields import DTYPES, documented, setting, text_of
from mindone_audio.finetune.settings import FinetuneSettings
from mindone_audio.finetune.values import ConfigError, check_value, suggestion


@documented
@dataclass(frozen=True)
class JobSettings:
    """What is trained, where, and what becomes of it. The settings:"""

    model: str | None = setting("checkpoint folder or Hugging Face id (default: the small bundled one)", None)
    device: str = setting("auto, ascend, ascend:1 or cpu", "auto")
    dtype: str | None = setting("float32, float16 or bfloat16 (default: the checkpoint's)", None)
    resume: bool | str = setting("go on from the last checkpoint of the output folder, or from this one", False)
    merge: str | None = setting("also write the model with the adapter in its weights to this new folder", None)
    push_to_hub: str | None = setting("put the adapter, or the merged model, on the Hugging Face hub: owner/name", None)
    private: bool | None = setting("whether a new repository on the hub is private", None)

    def __post_init__(self):
        if self.dtype not in (None, *DTYPES):
            raise ConfigError(f"dtype {self.dtype!r}: it may be {', '.join(DTYPES)}")
        if self.private is not None and self.push_to_hub is None:
            raise ConfigError("private has no effect without push_to_hub: leave it out")


@documented
@dataclass(frozen=True)
class DataSettings:
    """What is learned from: the arguments of `load_examples`, and which part of the examples. The settings:"""

    train: str = setting("a .jsonl file, a folder or a Hugging Face data set")
    split: str = setting("split of a folder or data set, as datasets takes it", "train")
    skip: int = setting("number of examples left out at the beginning", 0)
    take: int | None = setting("number of examples used (default: all)", None)
    evaluation: str | None = setting("other examples, for evaluation while training", None)
    evaluation_split: str | None = setting("split for evaluation, of these or of the training data", None)
    evaluation_skip: int = setting("number of examples left out at the beginning, of evaluation", 0)
    evaluation_take: int | None = setting("number of examples used for evaluation", None)
    streaming: bool = setting("read a data set while it is used; needs a number of steps", False)
    audio_column: str = setting("column of the clips", "audio")
    answer_column: str = setting("column of the answers", "answer")
    prompt: str | Mapping | None = setting(
        "the question for all; '{column: NAME}' or '{column: NAME, questions: {VALUE: TEXT}, default: TEXT}' (default: "
        "each example's own prompt)",
        None,
    )
    load: Mapping = setting(
        "more arguments of datasets.load_dataset, such as '{name: en, revision: main}'", factory=dict
    )

    def __post_init__(self):
        for name, low in (("skip", 0), ("evaluation_skip", 0), ("take", 1), ("evaluation_take", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} is {value}: give a number of examples, at least {low}")
        if self.streaming and self.evaluates and self.evaluation_take is None:
            raise ConfigError("streamed data has no end: say with evaluation_take how many examples to evaluate on")

    @property
    def evaluates(self) -> bool:
        """Whether there is something to evaluate on."""
        return bool(self.evaluation or self.evaluation_split or self.evaluation_skip or self.evaluation_take)


@documented
@dataclass(frozen=True)
class CollatorSettings:
    """How examples become labels: the arguments of `AnswerCollator`. The settings:"""

    chat: bool | None = setting("ask by the chat template (default: what the checkpoint was tuned for)", None)
    labels: str = setting("answer: learn the answers; all: the whole conversations", "answer")
    max_length: int | None = setting("tokens of the longest example allowed (default: any)", None)
    on_bad_clip: str = setting("raise, or skip and count what cannot be read or is too long", "raise")
    eos_token_id: int | None = setting("what ends an answer (default: found)", None)
    pad_to_multiple_of: int = setting("round lengths up, so that few graphs are compiled", 32)


# The parts of a configuration, and what their fields' names begin with in it.
PARTS: dict[str, tuple[type, str]] = {
    "job": (JobSettings, ""),
    "data": (DataSettings, ""),
    "training": (FinetuneSettings, ""),
    "lora": (LoraSettings, "lora_"),
    "collator": (CollatorSettings, ""),
}


@dataclass(frozen=True)
class Option:
    """One name of a configuration: which field of which part it is, the type of its values, and what it is without."""

    name: str
    part: str
    field: str
    kind: Any
    default: Any
    text: str

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is MISSING


@cache
def options() -> dict[str, Option]:
    """All names, in the order of `PARTS`."""
    found = {}
    for part, (settings, prefix) in PARTS.items():
        kinds = get_type_hints(settings)
        for entry in fields(settings):
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            name = prefix + entry.name
            found[name] = Option(name, part, entry.name, kinds[entry.name], default, text_of(entry))
    return found


@dataclass(frozen=True)
class FinetuneConfig:
    """All of a fine-tuning; made by `from_values` or `read_config`."""

    job: JobSettings
    data: DataSettings
    training: FinetuneSettings
    lora: LoraSettings
    collator: CollatorSettings

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> FinetuneConfig:
        """From values by the names of `options()`; `lora_` stands before the names of `LoraSettings`' fields.

        Raises `ConfigError` for an unknown name, with close ones, for a value of another type, for one that is missing,
        and for those that have no effect together; `ValueError` for what the parts say of their values.
        """
        known = options()
        parts: dict[str, dict] = {part: {} for part in PARTS}
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"unknown name {name!r}: {suggestion(str(name), known)}")
            option = known[name]
            parts[option.part][option.field] = check_value(name, value, option.kind)
        missing = [name for name, option in known.items() if option.required and name not in values]
        if missing:
            raise ConfigError(f"no {' and no '.join(missing)}: {' and '.join(_NEEDED[name] for name in missing)}")
        try:
            config = cls(**{part: settings(**parts[part]) for part, (settings, _) in PARTS.items()})
        except TypeError as error:  # of a value that a part compares before it checks it
            raise ConfigError(str(error)) from error
        config._check()
        return config

    def _check(self) -> None:
        if self.data.streaming and not self.training.max_steps:
            raise ConfigError("streamed data has no length: give max_steps")
        if not self.data.evaluates:
            given = [name for name in ("metrics", "eval_steps") if getattr(self.training, name)]
            if given:
                raise ConfigError(
                    f"{', '.join(given)}: there is nothing to evaluate on: give evaluation or leave it out"
                )
        merged = self.job.merge
        if merged is not None and Path(merged).resolve() == Path(self.training.output_dir).resolve():
            raise ConfigError(f"merge and output_dir are both {merged!r}: give the merged model a folder of its own")

    def values(self) -> dict[str, Any]:
        """All values by name, as YAML writes them; `from_values` makes the same configuration of them."""
        found = {}
        for name, option in options().items():
            value = getattr(getattr(self, option.part), option.field)
            found[name] = _plain(check_value(name, value, option.kind))  # a default of 32 for a float is 32.0
        return found


_NEEDED = {
    "train": "give what to learn from, a .jsonl file, a folder or a data set of the hub",
    "output_dir": "give a folder for the adapter",
}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value

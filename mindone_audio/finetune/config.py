"""One flat configuration of a fine-tuning: what a YAML file and the command line say, by the same names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from mindone_audio.adapters.settings import LoraSettings
from mindone_audio.finetune.settings import LABELS, ON_BAD_CLIP, FinetuneSettings
from mindone_audio.finetune.values import ConfigError, check_value, suggestion
from mindone_audio.setting_fields import (
    DEVICE_HELP,
    DEVICE_MEMORY_HELP,
    DTYPE_HELP,
    DTYPES,
    MODEL_HELP,
    SettingError,
    explained,
    refusal,
    setting,
)


@explained
@dataclass(frozen=True)
class JobSettings:
    """What is trained, where, and what becomes of it."""

    model: str | None = setting(None, MODEL_HELP)
    device: str = setting("auto", DEVICE_HELP)
    device_memory: str | None = setting(None, DEVICE_MEMORY_HELP, metavar="GB")
    dtype: str | None = setting(None, DTYPE_HELP, choices=DTYPES)
    resume: bool | str = setting(
        False, "go on from the last checkpoint in {output_dir}, or from this one", metavar="CHECKPOINT"
    )
    merge: str | None = setting(None, "also write the model with the adapter in its weights to this new folder")
    push_to_hub: str | None = setting(None, "put the adapter, or the merged model, on the Hugging Face hub: owner/name")
    private: bool | None = setting(None, "whether a new repository there is private (default: the hub's)")

    def __post_init__(self):
        if self.dtype not in (None, *DTYPES):
            raise ConfigError(lambda say: f"{say('dtype')} {self.dtype!r}: it may be {', '.join(DTYPES)}")
        if self.private is not None and self.push_to_hub is None:
            raise ConfigError(lambda say: f"{say('private')} has no effect without {say('push_to_hub')}: leave it out")


@explained
@dataclass(frozen=True)
class DataSettings:
    """What is learned from: arguments of `load_examples`, and which part of the examples."""

    train: str = setting(MISSING, "a .jsonl file, a folder or a Hugging Face data set")
    split: str = setting("train", "of a folder or data set, as datasets takes it")
    skip: int = setting(0, "leave out so many examples at the beginning")
    take: int | None = setting(None, "use only so many examples (default: all)")
    evaluation: str | None = setting(None, "other examples, to be asked while training")
    evaluation_split: str | None = setting(None, "evaluate on this split of them, or of {train}")
    evaluation_skip: int = setting(0, "as {skip}")
    evaluation_take: int | None = setting(None, "as {take}")
    streaming: bool = setting(False, "read a data set while it is used; needs {max_steps}")
    audio_column: str = setting("audio", "where the clips are")
    answer_column: str = setting("answer", "where the answers are")
    prompt: str | Mapping | None = setting(
        None,
        "the question for all; '{{column: NAME}}' or '{{column: NAME, questions: {{VALUE: TEXT}}, default: TEXT}}' "
        "(default: each example's own prompt)",
    )
    load: Mapping = setting({}, "more for datasets.load_dataset, such as '{{name: en, revision: main}}'")

    def __post_init__(self):
        for name, low in (("skip", 0), ("evaluation_skip", 0), ("take", 1), ("evaluation_take", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise refusal(name, f" is {value}: give a number of examples, at least {low}")
        if self.streaming and self.evaluates and self.evaluation_take is None:
            raise ConfigError(
                lambda say: (
                    f"streamed data has no end: say with {say('evaluation_take')} how many examples to evaluate on"
                )
            )

    @property
    def evaluates(self) -> bool:
        """Whether there is something to evaluate on."""
        return bool(self.evaluation or self.evaluation_split or self.evaluation_skip or self.evaluation_take)


@explained
@dataclass(frozen=True)
class CollatorSettings:
    """Arguments of `AnswerCollator` or, for a model that writes down what is said, of `TranscriptCollator`."""

    chat: bool | None = setting(None, "ask by the chat template (default: what the checkpoint was tuned for)")
    language: str | None = setting(None, "of examples that do not say what is spoken in them, such as en (Whisper)")
    task: str | None = setting(None, "of examples that do not say it: transcribe (default) or translate (Whisper)")
    labels: str = setting(
        "answer", "learn the answers, or all of the conversations, or what a transcript begins with too", choices=LABELS
    )
    max_length: int | None = setting(
        None, "tokens of the longest example allowed, audio in the prompt included (default: any)"
    )
    on_bad_clip: str = setting(
        "raise", "stop at a clip that cannot be read or is too long, or skip and count it", choices=ON_BAD_CLIP
    )
    eos_token_id: int | None = setting(None, "the token that ends an answer (default: found)")
    pad_to_multiple_of: int = setting(32, "round lengths up, so that few graphs are compiled")


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
    """One name of a configuration: which field of which part it is, the type of its values, and its default."""

    name: str
    part: str
    field: Field
    kind: Any
    default: Any
    prefix: str  # of the names of its part

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
            found[name] = Option(name, part, entry, kinds[entry.name], default, prefix)
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
            parts[option.part][option.field.name] = check_value(name, value, option.kind)
        missing = [name for name, option in known.items() if option.required and name not in values]
        if missing:
            needed = " and ".join(_NEEDED[name] for name in missing)
            raise ConfigError(lambda say: f"no {' and no '.join(map(say, missing))}: {needed}")
        config = cls(**{part: _settings(part, parts[part]) for part in PARTS})
        config._check()
        return config

    def _check(self) -> None:
        if self.data.streaming and not self.training.max_steps:
            raise ConfigError(lambda say: f"streamed data has no length: give {say('max_steps')}")
        if not self.data.evaluates:
            given = [name for name in ("metrics", "eval_steps") if getattr(self.training, name)]
            if given:
                raise ConfigError(
                    lambda say: (
                        f"{', '.join(map(say, given))}: there is nothing to evaluate on: give "
                        f"{say('evaluation')} or leave it out"
                    )
                )
        merged = self.job.merge
        if merged is not None and Path(merged).resolve() == Path(self.training.output_dir).resolve():
            raise ConfigError(
                lambda say: (
                    f"{say('merge')} and {say('output_dir')} are both {merged!r}: give the merged model a "
                    "folder of its own"
                )
            )

    def values(self) -> dict[str, Any]:
        """All values by name, as YAML writes them; `from_values` makes the same configuration of them."""
        found = {}
        for name, option in options().items():
            value = getattr(getattr(self, option.part), option.field.name)
            found[name] = _plain(check_value(name, value, option.kind))  # a default of 32 for a float is 32.0
        return found


_NEEDED = {
    "train": "give what to learn from, a .jsonl file, a folder or a data set of the hub",
    "output_dir": "give a folder for the adapter",
}


def _settings(part: str, values: dict) -> Any:
    """A part of a configuration; its errors have the names of the whole configuration."""
    settings, prefix = PARTS[part]
    try:
        return settings(**values)
    except SettingError as error:
        raise error.prefixed(prefix) from error
    except TypeError as error:  # of a value that a part compares before it checks it
        raise ConfigError(str(error)) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value

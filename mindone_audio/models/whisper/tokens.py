"""Whisper's special tokens: how a prompt says language, task and what came before."""

from dataclasses import dataclass, field
from typing import Any

from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from mindone_audio.setting_fields import SettingError

TASKS = ("transcribe", "translate")
# What an English-only checkpoint does without being told.
_ENGLISH_ONLY = (("task", "transcribe"), ("language", "en"), ("language", "english"), ("language", "<|en|>"))


@dataclass(frozen=True)
class SpecialTokens:
    """Those of a checkpoint, of its generation_config.json.

    languages: by their tokens' texts, "<|en|>", and tasks by their names; neither has an English-only checkpoint.
    forced: what old checkpoints begin with where nobody says otherwise, None for a language to be detected.
    no_timestamps: None in checkpoints that cannot tell times.
    """

    start: int
    end: int
    languages: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    start_of_previous: int | None = None
    no_timestamps: int | None = None
    latest_first: int | None = None
    forced: tuple[int | None, ...] = ()
    multilingual: bool = True

    @classmethod
    def of(cls, generation_config: Any, config: Any) -> "SpecialTokens":
        """Those that a generation config says; some of old checkpoints stand in config.json."""

        def found(name: str, default: Any = None) -> Any:
            value = getattr(generation_config, name, None)
            value = getattr(config, name, None) if value is None else value
            return default if value is None else value

        forced = sorted(map(tuple, found("forced_decoder_ids", [])))
        count = next((i for i, (place, _) in enumerate(forced) if place != i + 1), len(forced))
        end = found("eos_token_id")
        languages = dict(found("lang_to_id", {}))
        return cls(
            found("decoder_start_token_id"),
            end[0] if isinstance(end, list) else end,
            languages,
            dict(found("task_to_id", {})),
            found("prev_sot_token_id"),
            found("no_timestamps_token_id"),
            found("max_initial_timestamp_index"),
            tuple(token for _, token in forced[:count]),
            found("is_multilingual", bool(languages)),
        )

    @property
    def first_timestamp(self) -> int | None:
        return None if self.no_timestamps is None else self.no_timestamps + 1

    @property
    def no_speech(self) -> int | None:
        """The token whose probability at the start says that nobody speaks."""
        return None if self.no_timestamps is None else self.no_timestamps - 1

    def language(self, name: str) -> int:
        """The token of a language, "en", "english" or "<|en|>". Raises `ValueError` for one that the model has not."""
        code = TO_LANGUAGE_CODE.get(str(name).lower(), str(name).lower())
        token = code if code.startswith("<|") else f"<|{code}|>"
        if token not in self.languages:
            known = ", ".join(sorted(token.strip("<|>") for token in self.languages))
            raise SettingError(lambda say: f"{say('language')} {name!r} is none of this model's: it has {known}")
        return self.languages[token]

    def needless(self, name: str, value: Any) -> bool:
        """Whether the model needs not, and cannot, be told this language or task, because it is its only one."""
        return not self.multilingual and (name, str(value).lower()) in _ENGLISH_ONLY

    def check(self, language: Any, task: Any, timestamps: bool) -> None:
        """`ValueError` for what this checkpoint cannot do."""
        if task is not None and task not in TASKS:
            raise SettingError(lambda say: f"{say('task')} {task!r} is unknown: it may be {' or '.join(TASKS)}")
        if not self.multilingual and (language is not None or task is not None):
            name, value = ("language", language) if language is not None else ("task", task)
            raise SettingError(
                lambda say: (
                    f"{say(name)} {value!r} is given to an English-only model, which transcribes English: "
                    "leave it out, or take a multilingual checkpoint"
                )
            )
        for name, value, there in (("language", language, self.languages), ("task", task, self.tasks)):
            if value is not None and not there:
                raise SettingError(
                    lambda say, name=name: (
                        f"{say(name)} is given, and generation_config.json names no "
                        f"{name}s: take the checkpoint's newest version"
                    )
                )
        if timestamps and self.no_timestamps is None:
            raise SettingError(
                lambda say: (
                    f"{say('return_timestamps')} needs no_timestamps_token_id in generation_config.json: take the "
                    "checkpoint's newest version"
                )
            )

    def detects(self, language: Any, task: Any) -> bool:
        """Whether the language has to be detected before the prompt is known."""
        if language is not None or not self.languages:
            return False
        return task is not None or not self.forced or self.forced[0] is None

    def prompt(self, language: int | None, task: str | None, timestamps: bool, given: bool) -> list[int]:
        """The tokens that a window's answer begins with, as transformers makes them.

        language: its token, None where none is said. given: whether the caller named it, who then means a transcription
        unless a task says otherwise; a language that was detected says nothing of the task.
        """
        forced = [] if task is not None or given else list(self.forced)
        tokens = [self.start, *forced]
        if language is not None:
            tokens[1:2] = [language]
        if task is not None:
            tokens = [token for token in tokens if token not in self.tasks.values()] + [self.tasks[task]]
        elif given and self.tasks and not set(tokens) & set(self.tasks.values()):
            tokens.append(self.tasks["transcribe"])
        if timestamps and tokens[-1] == self.no_timestamps:
            tokens = tokens[:-1]
        elif not timestamps and self.no_timestamps is not None and tokens[-1] != self.no_timestamps:
            tokens.append(self.no_timestamps)
        return [token for token in tokens if token is not None]

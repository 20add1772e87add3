"""A setting is told once: a dataclass field with its help text; an error names it in the words of whoever gave it.

Standard library only, so that `--help` answers at once and `doctor` works without MindSpore.
"""

import dataclasses
import string
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

DTYPES = ("float32", "float16", "bfloat16")  # of the weights and of the computation
TASKS = ("caption", "transcribe")  # which a model family has its own words for
MAX_NEW_TOKENS = {False: 128, True: 256}  # of an answer and of a transcription: 30 s of speech have up to 200 tokens
# Help texts of settings that several commands and classes have.
MODEL_HELP = "checkpoint folder or Hugging Face id (default: the small bundled one)"
ADAPTER_HELP = "what finetune made of that model; also a Hugging Face id"
DEVICE_HELP = "auto, ascend, ascend:1 or cpu"
DEVICE_MEMORY_HELP = "the most to take of an NPU's memory, such as 40GB (default: all that is free)"
DTYPE_HELP = "of weights and computation (default: the checkpoint's)"

Say = Callable[..., str]  # (name, value=None) -> how a caller writes a setting


def setting(default: Any, text: str, *, choices: Sequence[str] = (), metavar: str | None = None) -> Any:
    """A field of a dataclass with its help text, its possible values, and the placeholder of its value in `--help`.

    default: `dataclasses.MISSING` for a setting that must be given; a dict stands for a new dict of each object.
    text: `{name}` in it stands for another setting, which `--help` writes as `--name`.
    """
    facts = {"help": text, "choices": tuple(choices), "metavar": metavar}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=facts)
    return dataclasses.field(default=default, metadata=facts)


def help_text(field: dataclasses.Field, say: Say) -> str:
    """The help text of a field, in the words of `say`."""
    text = field.metadata["help"]
    names = [name for _, name, _, _ in string.Formatter().parse(text) if name]
    return text.format(**{name: say(name) for name in names})


def explained(settings: type) -> type:
    """Class decorator: the docstring goes on with the help text of each field that has one."""
    lines = [(settings.__doc__ or "").rstrip(), ""]
    for field in (field for field in dataclasses.fields(settings) if field.metadata):
        choices = " or ".join(map(repr, field.metadata["choices"]))
        text = f"{field.name}: {choices + '; ' if choices else ''}{help_text(field, keyword)}."
        lines += textwrap.wrap(text, 116, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)
    settings.__doc__ = "\n".join([*lines, "    "])
    return settings


def keyword(name: str, value: Any = None) -> str:
    """A setting in Python: max_new_tokens, do_sample=True, task="transcribe"."""
    return name if value is None else f'{name}="{value}"' if isinstance(value, str) else f"{name}={value!r}"


def option(name: str, value: Any = None) -> str:
    """A setting on the command line: --max-new-tokens, --do-sample, --no-shuffle, --task transcribe."""
    name = name.replace("_", "-")
    if value is False:
        return f"--no-{name}"
    return f"--{name}" if value is None or value is True else f"--{name} {value}"


def yaml_entry(name: str, value: Any = None) -> str:
    """A setting in a YAML file: max_new_tokens, lora_encoder: true."""
    return name if value is None else f"{name}: {str(value).lower() if isinstance(value, bool) else value}"


class WordedError(Exception):
    """An error about settings. `str` has the names of Python's keywords; `worded` has another caller's names.

    write: makes the message of a `Say`; or the message, where it names no setting.
    """

    def __init__(self, write: Callable[[Say], str] | str):
        super().__init__(write if isinstance(write, str) else write(keyword))
        self.write = (lambda say: write) if isinstance(write, str) else write

    def __reduce__(self):
        return type(self), (str(self),)  # a function cannot be pickled

    def worded(self, say: Say) -> str:
        """The message in the words of `say`."""
        return self.write(say)


class SettingError(WordedError, ValueError):
    """A setting that cannot be. The message names the setting, its value, and what may be there."""

    def prefixed(self, prefix: str) -> "SettingError":
        """The same error where the settings have `prefix` before their names."""
        return SettingError(lambda say: self.write(lambda name, value=None: say(prefix + name, value)))


def refusal(name: str, text: str) -> SettingError:
    """The error about one setting: its name, then the text."""
    return SettingError(lambda say: f"{say(name)}{text}")


def in_words(error: BaseException, say: Say) -> str:
    """The message of an error; of one about settings in the words of `say`."""
    return error.worded(say) if isinstance(error, WordedError) else str(error)


def about(what: str, error: BaseException) -> Callable[[Say], str]:
    """What writes the message of an error with the thing that it is about before it."""
    return lambda say: f"{what}: {in_words(error, say)}"

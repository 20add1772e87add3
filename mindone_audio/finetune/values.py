"""Values of a configuration, as YAML or a command line has them, held against the types that they should have."""

import difflib
import os
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from mindone_audio.setting_fields import SettingError, option


class ConfigError(SettingError):
    """A configuration that cannot be. The message names the entry, its value, and what may be there."""


def check_value(name: str, value: Any, kind: Any) -> Any:
    """The value as the type `kind`: a list becomes a tuple, and 2e-4, which YAML takes for a text, a number.

    Raises `ConfigError` for a value of another type.
    """
    for one in kinds(kind):
        converted = _converted(value, one)
        if converted is not _WRONG:
            return converted
    wanted = " or ".join(dict.fromkeys(_NAMES[get_origin(one) or one] for one in kinds(kind)))
    raise ConfigError(lambda say: f"{say(name)} is {value!r:.200}: it should be {wanted}")


def parse_text(name: str, text: str, kind: Any) -> Any:
    """What a word of the command line means as a value of the type `kind`; `ConfigError` for one that is none."""
    possible = kinds(kind)
    if type(None) in possible and text.lower() in ("none", "null"):
        return None
    if bool in possible and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if Mapping in possible and text.lstrip().startswith("{"):
        return check_value(name, _yaml(text, option(name)), kind)
    if any(get_origin(one) is tuple for one in possible):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    for one in (int, float):
        if one in possible:
            try:
                return one(text)
            except ValueError:
                continue
    return check_value(name, text, kind)


def read_yaml(path: str) -> dict[str, Any]:
    """The entries of a YAML file. Raises `OSError` for one that cannot be read and `ConfigError` for one that is not
    a list of `name: value`, or that has a name twice."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no configuration file {path!r} (seen from {os.getcwd()}): check the path; options such as --shuffle take "
            "no value"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 ({error}): write it as YAML, lines of `name: value`") from error
    found = _yaml(text, path)
    if not isinstance(found, dict):
        raise ConfigError(f"{path} should have lines of `name: value`, and has {found!r:.80}")
    return found


def suggestion(name: str, known: Iterable[str]) -> str:
    """What may have been meant by an unknown name."""
    known = list(known)
    close = [other for other in known if other.endswith(f"_{name}") or name.endswith(f"_{other}")]
    close += [other for other in difflib.get_close_matches(name, known, n=3) if other not in close]
    return f"did you mean {' or '.join(close[:4])}?" if close else "mindone-audio finetune --help lists them"


def kinds(kind: Any) -> tuple:
    """The types that a union is of."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _yaml(text: str, where: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML itself lets the last of two equal names win."""

        def construct_mapping(self, node, deep=False):
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            if twice := [name for place, name in enumerate(names) if name in names[:place]]:
                raise ConfigError(f"{where} has {twice[0]!r} twice: leave one out")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


_WRONG = object()
_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list of texts",
    Mapping: "a mapping",
    type(None): "null",
}


def _converted(value: Any, kind: Any) -> Any:
    """The value as one type, or `_WRONG`."""
    kind = get_origin(kind) or kind
    if kind is tuple:
        listed = isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value)
        return tuple(value) if listed else _WRONG
    if kind is float:
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                return _WRONG
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else _WRONG
    if kind is int and isinstance(value, bool):
        return _WRONG
    return value if isinstance(value, kind) else _WRONG

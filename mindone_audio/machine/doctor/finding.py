"""What is said about one part of a machine, and the row of a table that it is said with."""

from dataclasses import dataclass

OK, INFO, WARNING, ERROR = "ok", "info", "warning", "error"
REQUIRED = "required"  # of a kind: an error where there is an NPU or one is asked for, otherwise a warning


@dataclass(frozen=True)
class Finding:
    level: str  # ok, info, warning or error
    about: str
    found: str
    action: str = ""
    code: str = ""  # the name of its kind, which stays the same from release to release
    symptom: str = ""  # what is seen elsewhere when this is wrong: lines that people search for


@dataclass(frozen=True)
class Kind:
    """A fault that doctor knows. The texts are templates, filled with what was found."""

    code: str
    level: str  # one of those of a finding, or REQUIRED
    about: str
    found: str
    action: str
    symptom: str


def fine(about: str, found: str) -> Finding:
    """What is well, or a fact that needs no judgement."""
    return Finding(OK, about, found, code=f"{about.lower().replace(' ', '-')}-ok")

"""Sentences of a text that grows, so that the first one is spoken while the rest is written."""

import re

_END = re.compile(r"[.!?…。！？]+[\"'”’)\]]*(?=\s|$)|\n")
_LONGEST = 200  # characters, after which a part of a sentence is taken for one


class Sentences:
    """Takes text bit by bit, and gives whole sentences.

    calls: whether the text may be a call of a tool, which begins with a bracket and has no sentences.
    """

    def __init__(self, calls: bool = False) -> None:
        self._rest, self._calls = "", calls

    def add(self, text: str) -> list[str]:
        """The sentences that end with this text; one at its very end may go on, as of "3.", and is kept."""
        self._rest += text
        found: list[str] = []
        if self._calls and self._rest.lstrip()[:1] in ("", *"[{<"):
            return found
        self._calls = False
        while True:
            ends = [match.end() for match in _END.finditer(self._rest) if match.end() < len(self._rest)]
            end = ends[0] if ends else self._rest.rfind(" ", 0, _LONGEST) if len(self._rest) > _LONGEST else 0
            if end <= 0:
                return found
            found.append(self._rest[:end].strip())
            self._rest = self._rest[end:]

    def end(self) -> list[str]:
        """The rest."""
        rest, self._rest = self._rest.strip(), ""
        return [rest] if rest and not self._calls else []

"""Live transcripts that do not flicker: of a clip that grows, the words that two looks at it agree on are kept.

Local agreement, as in Macháček et al., "Turning Whisper into Real-Time Transcription System" (arXiv 2307.14743).
"""

import re

_WORD = re.compile(r"\S+")


class Agreement:
    """The words of one growing clip. committed: those agreed on, never taken back. tentative: the last look's rest."""

    def __init__(self) -> None:
        self.committed, self.tentative = "", ""
        self._last: list[str] = []
        self._count = 0  # of committed words

    def look(self, text: str) -> str:
        """What is agreed on by this look at the clip and the one before, beyond what was: text to append."""
        words = _WORD.findall(text)
        agreed = 0
        for one, other in zip(words, self._last):
            if one != other:
                break
            agreed += 1
        self._last = words
        new = words[self._count : agreed] if words[: self._count] == self.committed.split() else []
        added = " ".join(new)
        if added and self.committed:
            added = f" {added}"
        self.committed += added
        self._count += len(new)
        self.tentative = " ".join(words[self._count :])
        return added

"""Transcriptions as subtitles: SubRip (srt) and WebVTT (vtt)."""

import re
import unicodedata
from collections.abc import Sequence
from html import escape

SUBTITLE_SECONDS = 10.0  # the longest window of a clip whose transcription becomes subtitles
SHORTEST = 1  # milliseconds of a cue; one that begins and ends at once would not be shown


def subtitles(chunks: Sequence[dict], form: str) -> str:
    """The cues of chunks {"start": seconds, "end": seconds, "text": …} as "srt" or "vtt", ending with a newline.

    Cues come in the order of their starts; one ends when the next one starts, at the latest. A chunk without visible
    text makes none.
    """
    cues = [(chunk, text) for chunk in chunks if (text := cue_text(chunk["text"], form))]
    cues.sort(key=lambda cue: cue[0]["start"])
    point = "," if form == "srt" else "."
    blocks = ["WEBVTT\n"] if form == "vtt" else []
    for number, ((start, end), (_, text)) in enumerate(zip(_times([chunk for chunk, _ in cues]), cues), start=1):
        title = f"{number}\n" if form == "srt" else ""
        blocks.append(f"{title}{_clock(start, point)} --> {_clock(end, point)}\n{text}\n")
    return "\n".join(blocks)


def cue_text(text: str, form: str) -> str:
    """A text as a cue takes it: lines with something to see, no control characters, and no arrow, which is for times.

    Of the lines that str.splitlines knows (also U+2028, U+0085, \\v, \\f) each becomes a line of the cue.
    """
    lines = (" ".join(_visible(line).split()) for line in text.splitlines())
    text = "\n".join(line for line in lines if any(unicodedata.category(letter)[0] not in "CZ" for letter in line))
    if form == "vtt":
        return escape(text, quote=False)
    return re.sub("-{2,}>", "->", text)


def _visible(line: str) -> str:
    """The line with spaces for control characters, which nothing shows."""
    return "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in line)


def _times(chunks: Sequence[dict]) -> list[tuple[int, int]]:
    """Starts and ends in milliseconds: each start after the one before, each end after its start."""
    starts: list[int] = []
    for chunk in chunks:
        earliest = starts[-1] + SHORTEST if starts else 0
        starts.append(max(earliest, round(chunk["start"] * 1000)))
    limits = [*starts[1:], None]
    times = []
    for chunk, start, limit in zip(chunks, starts, limits):
        end = max(start + SHORTEST, round(chunk["end"] * 1000))
        times.append((start, end if limit is None else min(end, limit)))
    return times


def _clock(milliseconds: int, point: str) -> str:
    """00:01:02,345"""
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"

"""Subtitles that players read: cues in order, each of some length, with text that ends no cue."""

import json
import re

import pytest

from mindone_audio.commands.transcribe import render
from mindone_audio.pipelines.subtitles import subtitles

TIMES = {"srt": r"(\d{2,}):(\d\d):(\d\d),(\d{3})", "vtt": r"(\d{2,}):(\d\d):(\d\d)\.(\d{3})"}


def parse(text: str, form: str) -> list[tuple[int, int, str]]:
    """As a player does: blocks between blank lines, of whatever line ends there are; times in milliseconds."""
    blocks = [block for block in re.split(r"(?:\r\n|\r|\n){2,}", text.strip("\n")) if block]
    if form == "vtt":
        assert blocks.pop(0) == "WEBVTT"
    cues = []
    for number, block in enumerate(blocks, 1):
        lines = block.split("\n")
        if form == "srt":
            assert lines.pop(0) == str(number)
        match = re.fullmatch(f"{TIMES[form]} --> {TIMES[form]}", lines[0])
        begin, end = (
            ((int(h) * 60 + int(m)) * 60 + int(s)) * 1000 + int(ms)
            for h, m, s, ms in (match.groups()[:4], match.groups()[4:])
        )
        assert lines[1:] and all(line.strip() for line in lines[1:]) and "-->" not in "\n".join(lines[1:])
        cues.append((begin, end, "\n".join(lines[1:])))
    assert all(begin < end for begin, end, _ in cues)
    assert all(one[1] <= two[0] for one, two in zip(cues, cues[1:]))
    return cues


def chunks(*cues) -> list[dict]:
    return [{"start": start, "end": end, "timestamp": (start, end), "text": text} for start, end, text in cues]


@pytest.mark.parametrize("form", ["srt", "vtt"])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one\n\ntwo", "one\ntwo"),
        ("one\r\n\r\ntwo\r", "one\ntwo"),
        ("one\r\rtwo", "one\ntwo"),
        ("\n\n one\ttwo \n \t\n", "one two"),
        ("a\u2028\u2028b\u2029c\x0bd\x0ce\x85f\x1cg", "a\nb\nc\nd\ne\nf\ng"),
        ("a\x00b\x1fc\x7f", "a b c"),
        ("a\n\u200b\nb\n\ufeff\n\u00a0\nc", "a\nb\nc"),
        ("NOTE this", "NOTE this"),
        ("STYLE", "STYLE"),
        ("WEBVTT\nREGION", "WEBVTT\nREGION"),
        ("7\n8", "7\n8"),
        ("नमस्ते 👩\u200d👩\u200d👧", "नमस्ते 👩\u200d👩\u200d👧"),
    ],
)
def test_a_cue_has_only_lines_with_text(form, text, shown):
    cues = parse(subtitles(chunks((0, 1, text), (1, 2, "next")), form), form)
    assert [cue[2] for cue in cues] == [shown, "next"]


def test_arrows_and_marks():
    text = "a --> b ---> c <b>&amp; x-->y 1 < 2 -\n->"
    (srt,) = parse(subtitles(chunks((0, 1, text)), "srt"), "srt")
    assert srt[2] == "a -> b -> c <b>&amp; x->y 1 < 2 -\n->"
    (vtt,) = parse(subtitles(chunks((0, 1, text)), "vtt"), "vtt")
    assert vtt[2] == "a --&gt; b ---&gt; c &lt;b&gt;&amp;amp; x--&gt;y 1 &lt; 2 -\n-&gt;"


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_what_has_no_text_makes_no_cue(form):
    empty = ["", " ", "\n\r\n", "\u2028", "\u200b\ufeff", "\x00", "\u00a0\t"]
    made = [(i, i + 1, text) for i, text in enumerate(["one", *empty, "two"])]
    assert parse(subtitles(chunks(*made), form), form) == [(0, 1000, "one"), (8000, 9000, "two")]
    assert subtitles(chunks((0, 1, " ")), form) == ("" if form == "srt" else "WEBVTT\n")


@pytest.mark.parametrize("form", ["srt", "vtt"])
@pytest.mark.parametrize(
    ("given", "times"),
    [
        ([(0, 2.5, "a"), (2, 3, "b")], [(0, 2000), (2000, 3000)]),
        ([(0, 10, "a"), (2, 3, "b"), (4, 5, "c")], [(0, 2000), (2000, 3000), (4000, 5000)]),
        ([(5, 6, "b"), (1, 2, "a")], [(1000, 2000), (5000, 6000)]),
        ([(1, 1, "a"), (1, 1, "b"), (1, 4, "c")], [(1000, 1001), (1001, 1002), (1002, 4000)]),
        ([(1.0, 1.0004, "a"), (1.0004, 1.0008, "b")], [(1000, 1001), (1001, 1002)]),
        ([(3, 2, "a"), (3.0001, 2.9, "b")], [(3000, 3001), (3001, 3002)]),
        ([(0.0005, 1.0015, "a"), (1.0015, 1.0025, "b")], [(0, 1002), (1002, 1003)]),
        ([(-1, 0, "a"), (0, 1, "b")], [(0, 1), (1, 1000)]),
        ([(59.9996, 61, "a")], [(60000, 61000)]),
        ([(360_000, 3_600_000.5, "a")], [(360_000_000, 3_600_000_500)]),
    ],
)
def test_times_are_in_order(form, given, times):
    assert [cue[:2] for cue in parse(subtitles(chunks(*given), form), form)] == times


def test_json_keeps_the_chunks():
    answer = {"generated_text": "a", "chunks": chunks((0, 1, "a"), (1, 2, ""))}
    assert json.loads(render("x.wav", answer, "json"))["chunks"][1]["text"] == ""

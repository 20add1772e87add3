"""Relative paths of clips: one set of rules for manifests, JSONL data and metadata tables."""

import base64
import json
import os
from pathlib import Path

import pytest

from mindone_audio.batch import decode_ahead
from mindone_audio.finetune.data.sources import load_examples
from mindone_audio.inputs.paths import resolve_clip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of a listing with two clips, and a working directory that has clips of its own."""
    listing, here = tmp_path / "listing", tmp_path / "here"
    (listing / "sub").mkdir(parents=True)
    (listing / "both.wav").write_bytes(b"listing")
    (listing / "sub" / "inner.wav").write_bytes(b"inner")
    here.mkdir()
    (here / "both.wav").write_bytes(b"here")
    (here / "only.wav").write_bytes(b"only")
    monkeypatch.chdir(here)
    return listing


def test_the_folder_of_the_listing_comes_first(folder):
    assert resolve_clip("both.wav", folder) == str(folder / "both.wav")
    assert resolve_clip("sub/inner.wav", str(folder)) == str(folder / "sub" / "inner.wav")
    assert resolve_clip("only.wav", folder) == "only.wav"  # of the working directory
    assert resolve_clip("none.wav", folder) == "none.wav"
    assert resolve_clip("both.wav", None) == "both.wav"
    assert resolve_clip({"path": "both.wav", "bytes": None}, folder) == {"path": f"{folder}/both.wav", "bytes": None}


@pytest.mark.parametrize(
    "source",
    [
        "/absolute/both.wav",
        "~/both.wav",
        "http://host/both.wav",
        " HTTPS://host/both.wav",
        "file:///both.wav",
        "file:/both.wav",
        "hf://datasets/a/b/both.wav",
        "data:audio/wav;base64,UklGRg==",
        base64.b64encode(b"RIFF" * 9).decode(),
        base64.b64encode(b"RIFF" * 9000).decode(),
        "",
        " ",
        "a\0b",
        b"RIFF",
        None,
        {"array": [0.0], "sampling_rate": 16000},
        {"bytes": b"RIFF", "path": None},
    ],
)
def test_everything_else_comes_back_as_it_is(folder, source):
    assert resolve_clip(source, folder) is source or resolve_clip(source, folder) == source


def test_a_folder_with_the_name_of_an_address_changes_nothing(folder):
    (folder / "https:" / "host").mkdir(parents=True)
    (folder / "https:" / "host" / "a.wav").write_bytes(b"")
    (folder / "data:,a").write_bytes(b"")
    for address in ("https://host/a.wav", "data:,a"):
        assert resolve_clip(address, folder) == address


def test_every_listing_follows_the_same_rules(folder):
    clips = ["both.wav", "only.wav", os.fspath(folder / "both.wav"), "https://host/a.wav"]
    expected = [str(folder / "both.wav"), "only.wav", str(folder / "both.wav"), "https://host/a.wav"]
    lines = [json.dumps({"audio": clip, "prompt": "?", "answer": "x"}) for clip in clips]
    (folder / "train.jsonl").write_text("\n".join(lines))
    assert [example.audio for example in load_examples(folder / "train.jsonl")] == expected
    rows = [json.dumps({"file_name": clip, "prompt": "?", "answer": "x"}) for clip in clips]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    assert [example.audio for example in load_examples(folder)] == expected
    assert decode_ahead.resolve_clip is resolve_clip

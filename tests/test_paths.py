"""Relative paths of clips, as seen from the file that names them."""

import pytest

from mindone_audio.inputs.paths import resolve


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").touch()
    return tmp_path


def test_a_file_in_the_folder_is_found_from_there(folder):
    found = str(folder / "clips/a.wav")
    assert resolve("clips/a.wav", folder) == resolve("clips/a.wav", str(folder)) == found
    assert resolve({"path": "clips/a.wav", "bytes": None}, folder) == {"path": found, "bytes": None}


@pytest.mark.parametrize(
    "source",
    [
        *(
            "clips/b.wav",
            "https://example.org/clips/a.wav",
            "data:audio/wav;base64,UklGRg==",
            "UklGRg" * 2000,
            "a\0b",
            "",
        ),
        *(b"RIFF", None, 5, ["clips/a.wav"], {"bytes": b"RIFF"}, {"path": None}),
    ],
)
def test_what_is_no_file_there_stays_as_it_is(folder, source, monkeypatch):
    monkeypatch.chdir(folder / "clips")
    assert resolve(source, folder) == source
    assert resolve(source, None) == source


def test_an_absolute_path_stays(folder):
    other = folder / "clips" / "a.wav"
    assert resolve(str(other), folder / "elsewhere") == str(other)

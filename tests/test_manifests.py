"""What is read as a manifest or a table of examples, what of a folder, and what is refused as a whole."""

import gzip
import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from mindone_audio import cli
from mindone_audio.batch import BatchJob, merge, run_batch
from mindone_audio.batch.job import Shard
from mindone_audio.batch.manifest import matching, read_manifest
from mindone_audio.finetune import DataError, jsonl_examples, load_examples

ROOT = Path(__file__).parent.parent
AUDIO = ROOT / "examples" / "audio"
CASES = ROOT.parent / "shared" / "cases"
CLIP = str(AUDIO / "siren.ogg")
ROWS = [
    {"audio": "a.wav", "prompt": "What?", "answer": "a dog"},
    {"audio": "b.wav", "prompt": "Who?", "answer": "ein Hündchen", "speaker": 3},
]


class Pipe:
    """Answers with what it is asked."""

    def __call__(self, inputs, *, text, **rest):
        return [{"generated_text": t, "tokens": 1} for t in text or ["caption"] * len(inputs)]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def ids(inputs) -> list:
    return [item.id for item in read_manifest(inputs).items]


# Folders


def test_a_link_to_a_parent_is_no_way_around(tmp_path):
    folder = touch(tmp_path / "clips", "a.wav", "sub/b.wav", "sub/deep/c.wav")
    touch(tmp_path, "beside.wav")
    (folder / "self").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    (folder / "sub" / "up").symlink_to("..")
    (folder / "sub" / "deep" / "sub").symlink_to(folder / "sub")
    assert ids(folder) == ["a.wav", "sub/b.wav", "sub/deep/c.wav"]
    assert [os.path.relpath(p, folder) for p in matching(f"{folder}/**/*.wav")] == ids(folder)


def test_a_folder_that_links_lead_to_comes_once(tmp_path):
    outside = touch(tmp_path / "data", "x.wav", "in/y.wav")
    (outside / "in" / "back").symlink_to(outside)
    folder = touch(tmp_path / "clips", "real/a.wav")
    (folder / "also").symlink_to("real")  # comes before it by name
    (folder / "second").symlink_to(outside)
    (folder / "first").symlink_to(outside)
    (folder / "zz").symlink_to(outside / "in")
    (folder / "broken").symlink_to("nowhere")
    (folder / "gone.wav").symlink_to("nowhere.wav")  # a line with an error, later
    (folder / "same.wav").symlink_to("real/a.wav")  # another name of a file is another item
    assert ids(folder) == ["first/in/y.wav", "first/x.wav", "gone.wav", "real/a.wav", "same.wav"]


def test_globs_look_as_before(tmp_path, monkeypatch):
    import glob

    touch(tmp_path, "a.wav", "b [1]/c.wav", "b [1]/d/e.wav", ".hidden/f.wav", "b [1]/x.txt")
    monkeypatch.chdir(tmp_path)
    for pattern in ("**/*.wav", "*.wav", "**", "b*/**/*.wav", f"{tmp_path}/**/d/**/*", "b*/**", "./**/e.wav", "no/**"):
        expected = {path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
        assert {path for path in matching(pattern) if os.path.isfile(path)} == expected, pattern


def test_files_that_are_left_out_are_counted(tmp_path, caplog):
    known = ("a.wav", "b.AMR", "c.3gp", "d.mka", "e.mkv", "f.mov", "g.mpga", "h.mp2", "i.spx", "j.wv", "k.aifc")
    folder = touch(tmp_path, *known, "no.txt", "no.json", ".x.xyz", "no.md", "no.csv", "no.TextGrid")
    assert len(ids(folder)) == len(known) and not caplog.text
    touch(folder, "1.xyz", "sub/2.xyz", "3.abc", "no_suffix")
    assert len(ids(folder)) == len(known)
    assert "4 files with other suffixes (.xyz, .abc, none) were left out" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING
    caplog.clear()
    read_manifest(folder, 1, 2)  # the first rank says it
    assert not caplog.text


# Records


@pytest.mark.parametrize("form", ["jsonl", "array", "pretty array", "pretty array.jsonl", "csv", "tsv", "semicolons"])
def test_every_form_of_a_manifest(tmp_path, form):
    table = {"csv": ",", "tsv": "\t", "semicolons": ";"}
    if form in table:
        rows = [["audio", "prompt", "answer", "speaker"], *([row.get(k, "") for k in ROWS[1]] for row in ROWS)]
        rows = [[row[0], row[1], row[2], row[3]] for row in rows]
        text = "\n".join(table[form].join(map(str, row)) for row in rows)
        path = tmp_path / f"m.{'tsv' if form == 'tsv' else 'csv'}"
    else:
        text = json.dumps(ROWS, indent=2 if "pretty" in form else None, ensure_ascii=False)
        text = "\n".join(map(json.dumps, ROWS)) if form == "jsonl" else text
        path = tmp_path / ("m.jsonl" if "jsonl" in form else "m.json")
    for mark in ("", "\ufeff"):
        path.write_text(mark + text + "\n", encoding="utf-8")
        first, second = read_manifest(path).items
        assert (first.clips, first.text, first.error) == (["a.wav"], "What?", None)
        assert (second.clips, second.text, second.extra["answer"]) == (["b.wav"], "Who?", "ein Hündchen")
        assert str(second.extra["speaker"]) == "3"
        assert [first.id, second.id] == ([2, 3] if form in table else [1, 2])


def test_fine_tuning_examples_in_an_array(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(ROWS, indent=1))
    assert [(e.prompt, e.answer, e.name) for e in load_examples(path)] == [
        ("What?", "a dog", "train.json item 1"),
        ("Who?", "ein Hündchen", "train.json item 2"),
    ]


@pytest.fixture(autouse=True)
def no_limit():
    """As other libraries set it for the whole process."""
    import csv

    before = csv.field_size_limit(2**31 - 1)
    yield
    csv.field_size_limit(before)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.json", b'[\n {"audio": "a.wav"},\n {"audio": \n]', "m.json line 4: not JSON: .*array of objects, or one"),
        ("m.jsonl", b'{\n "audio": "a.wav"\n}\n{\n "audio": "b.wav"\n}\n', "m.jsonl line 4: not JSON: .*jq -c"),
        ("m.json", json.dumps(ROWS).encode("utf-16"), "m.json is UTF-16: save it as UTF-8"),
        ("m.jsonl", '{"audio": "a"}\n'.encode("utf-16-le"), "m.jsonl is UTF-16"),
        ("m.csv", "audio,text\na,b\n".encode("utf-16"), "m.csv is UTF-16"),
        ("m.xlsx", b"PK\x03\x04\0\0", "m.xlsx is a zip file"),
        ("m.jsonl.gz", gzip.compress(b"{}", mtime=0), "is gzip"),
        ("m.xyz", b"\x01\x02\0\0\0\x03", "m.xyz is not text"),
        ("m.csv", b"name,text\nx,y\n", "m.csv has no column for clips; it has 'name', 'text': write \"audio\""),
        ("m.csv", "audio,text\na,\u4f60\n".encode("gbk"), "m.csv line 2: not UTF-8"),
        ("m.csv", b"audio,text\na,b\nc," + b"x" * 200_000, "m.csv line 3: field larger than"),
        ("m.csv", b'audio,text\na,b\nc,"d\ne,f\n', "m.csv line 4: unexpected end of data"),
        ("m.csv", b"audio,text\na,b,c\n", "m.csv line 2: 3 cells"),
        ("m.csv", b"audio,audio\na,b\n", "has 'audio' twice"),
        ("m.json", b"[]", "has no items"),
        ("m.csv", b"audio,text\n", "has no items"),
        ("m.csv", b"", "has no items"),
    ],
)
def test_manifests_that_are_refused_as_a_whole(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_manifest(path)
    assert cli.main(["batch", str(path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_line_in_another_encoding_is_an_error_of_that_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"audio": "a.wav"}\n' + '{"audio": "\u4f60.wav"}\n'.encode("gbk"))
    good, bad = read_manifest(path).items
    assert good.error is None and "m.jsonl line 2: not UTF-8" in bad.error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "file_name,answer\na.wav,\u4f60\n".encode("gbk"), "metadata.csv line 2: not UTF-8"),
        ("metadata.csv", b"file_name,answer\na.wav,x\nb.wav," + b"x" * 200_000, "metadata.csv line 3: field larger"),
        ("metadata.csv", b'file_name,answer\na.wav,"x\nb.wav,y\n', "metadata.csv line 3: unexpected end"),
        ("metadata.csv", "file_name,answer\na.wav,x\n".encode("utf-16"), "metadata.csv is UTF-16"),
        (
            "metadata.jsonl",
            '{"file_name": "a", "answer": "\u4f60"}\n'.encode("gbk"),
            "metadata.jsonl line 1.*not UTF-8",
        ),
        ("metadata.jsonl", '{"file_name": "a"}\n'.encode("utf-16"), "metadata.jsonl is UTF-16"),
    ],
)
def test_tables_of_examples_that_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_examples(tmp_path, prompt="?")


def test_jsonl_examples_that_are_refused(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"audio": "a", "prompt": "?", "answer": "x"}\n' + '{"audio": "\u4f60"}'.encode("gbk"))
    with pytest.raises(DataError, match="train.jsonl line 2: not UTF-8"):
        jsonl_examples(path)
    path.write_bytes(json.dumps(ROWS[0]).encode("utf-16"))
    with pytest.raises(DataError, match="train.jsonl is UTF-16"):
        jsonl_examples(path)


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
def test_the_shared_cases(tmp_path):
    with pytest.raises(DataError, match=r"metadata.csv line 2: not UTF-8"):
        load_examples(CASES / "csv_gbk", prompt="?")
    (tmp_path / "metadata.csv").write_bytes(
        gzip.decompress((CASES / "csv_long_field" / "metadata.csv.gz").read_bytes())
    )
    with pytest.raises(DataError, match=r"metadata.csv line \d+: field larger"):
        load_examples(tmp_path, prompt="?")


# What else a record has


def test_further_keys_come_with_the_results(tmp_path):
    shutil.copy(CLIP, tmp_path / "a.ogg")
    lines = [
        {"id": "x", "audio": "a.ogg", "prompt": "What?", "answer": "a dog", "meta": {"k": [1, None]}},
        {"inputs": {"audio": "a.ogg", "text": "Who?", "lang": "en"}, "parameters": {"max_new_tokens": 3}, "fold": 2},
        {"audio": "a.ogg", "text": "Why?", "prompt": "Why?"},
        {"audio": "gone.ogg", "text": "Why?", "speaker": "s1"},
        {"audio": "a.ogg", "text": "Why?", "prompt": "What?", "speaker": "s2"},
        {"file_name": "a.ogg", "parameters": {"max_new_tokens": 3}},
        {"audio": "a.ogg", "file_name": "old.wav", "inputs": None},
        {"inputs": {"audio": "a.ogg", "text": "Who?"}, "text": "What?"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = read_manifest(path).items
    assert items[1].parameters == items[5].parameters == {"max_new_tokens": 3}
    assert '"text" and "prompt" are the same thing and differ' in items[4].error
    assert "'text' given in inputs and beside it" in items[7].error
    for ranks in (1, 2):
        out = tmp_path / f"out{ranks}"
        for rank in range(ranks):
            run_batch(BatchJob(path, out), pipe=Pipe(), shard=Shard(rank, ranks), progress=False)
        results = [json.loads(line) for line in merge(out).path.read_text().splitlines()]
        assert [result.get("extra") for result in results] == [
            {"answer": "a dog", "meta": {"k": [1, None]}},
            {"lang": "en", "fold": 2},
            None,
            {"speaker": "s1"},
            {"speaker": "s2"},
            None,
            {"file_name": "old.wav"},
            None,
        ]
        assert [result["generated_text"] for result in results[:3]] == ["What?", "Who?", "Why?"]
        assert list(results[2]) == ["id", "generated_text", "tokens", "seconds", "error"]

"""Batch jobs without a model: input, resuming, full disks, dying decoders, wrong use, and the scripts for clusters."""

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mindone_audio import cli
from mindone_audio.batch import BatchError, BatchJob, merge, part_files, run_batch
from mindone_audio.batch.buckets import Buckets, Question
from mindone_audio.batch.decode_ahead import DecodeAhead, Decoded
from mindone_audio.batch.job import Shard, find_shard
from mindone_audio.batch.manifest import Item, read_manifest
from mindone_audio.batch.progress import Progress, logger
from mindone_audio.inputs.audio import load_audio
from mindone_audio.machine.msrun import number_of_ranks

ROOT = Path(__file__).parent.parent
AUDIO = ROOT / "examples" / "audio"
CLIPS = sorted(str(path) for path in AUDIO.iterdir())


class Pipe:
    """Stands for a pipeline: its answers tell what it was asked; clips of `broken` seconds make it fail."""

    def __init__(self, broken: float | None = None):
        self.batches, self.broken, self.before = [], broken, lambda: None

    def __call__(self, inputs, *, text, task, generate_kwargs, **rest):
        self.before()
        lengths = [sum(map(len, entry["audio"])) for entry in inputs]
        if self.broken in lengths:
            raise RuntimeError("too little memory\nand a long dump")
        self.batches.append(lengths)
        texts = text or [None] * len(inputs)
        seed = generate_kwargs.get("seed")
        return [{"generated_text": f"{t} {task} {n} {seed}", "tokens": 3} for t, n in zip(texts, lengths)]


def write_manifest(folder: Path, lines) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def results(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def run(inputs, out, *, pipe=None, shard=None, should_stop=lambda: False, **options):
    job = BatchJob(inputs, out, **options)
    return run_batch(job, pipe=pipe or Pipe(), shard=shard or Shard(), should_stop=should_stop, progress=False)


def test_a_manifest(tmp_path):
    lines = [
        '\ufeff{"id": "a", "audio": "x.wav", "text": "What?"}',
        {"inputs": {"audio": ["x.wav", "y.wav"]}, "parameters": {"max_new_tokens": 3}},
        "",
        '{"audio": "x.wav"',
        {"id": 7.5, "audio": "x.wav"},
        {"id": "b", "text": "no clip"},
        {"id": 99, "audio": "x.wav", "text": "!", "prompt": "?"},
        ["x.wav"],
        "[" * 100_000,
    ]
    path = write_manifest(tmp_path, lines)
    path.write_bytes(path.read_bytes() + b'{"audio": "\xff"}\n')
    manifest = read_manifest(path)
    assert manifest.count == 9 and manifest.folder == str(tmp_path)
    first, second, *wrong = manifest.items
    assert (first.id, first.clips, first.text) == ("a", ["x.wav"], "What?")
    assert (second.id, second.clips, second.parameters) == (2, ["x.wav", "y.wav"], {"max_new_tokens": 3})
    assert [item.id for item in wrong] == [4, 5, "b", 99, 8, 9, 10]
    messages = ("not JSON", '"id" must be', "needs one clip", "and differ", "a line is an object", "", "not UTF-8")
    for item, message in zip(wrong, messages):
        assert message in item.error and "line" in item.error
    shards = [read_manifest(path, rank, 4) for rank in range(4)]
    assert {shard.digest for shard in shards} == {manifest.digest} and {shard.count for shard in shards} == {9}
    assert sorted(item.index for shard in shards for item in shard.items) == list(range(9))


def test_folders_globs_and_clips(tmp_path):
    shutil.copytree(AUDIO, tmp_path / "clips" / "deep")
    (tmp_path / "clips" / "notes.txt").write_text("x")
    folder = read_manifest(tmp_path / "clips")
    assert [item.id for item in folder.items] == [f"deep/{Path(path).name}" for path in CLIPS]
    pattern = read_manifest(str(tmp_path / "clips" / "**" / "*.wav"))
    assert len(pattern.items) == 5
    assert [item.clips for item in read_manifest(CLIPS).items] == [[path] for path in CLIPS]
    assert read_manifest([CLIPS[0]]).count == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no items: write one JSON object a line"),
        (["", " "], "has no items"),
        ([{"id": "a", "audio": "x"}, {"id": 2, "audio": "x"}, {"audio": "x"}, {"id": "a", "audio": "y"}], "'a' twice"),
        ([{"id": 2, "audio": "x"}, {"audio": "y"}], "id 2 twice, at line 1 and at line 2"),
    ],
)
def test_manifests_that_are_refused(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        read_manifest(write_manifest(tmp_path, lines))


def test_inputs_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no items: clips end in"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="has no items"):
        read_manifest(str(tmp_path / "*.wav"))
    with pytest.raises(ValueError, match="no input"):
        read_manifest([])
    with pytest.raises(FileNotFoundError, match="no manifest, folder or clip"):
        read_manifest(tmp_path / "nothing")
    with pytest.raises(ValueError, match="one manifest alone"):
        read_manifest([CLIPS[0], str(write_manifest(tmp_path, [{}]))])
    with pytest.raises(ValueError, match="twice"):
        read_manifest([CLIPS[0], CLIPS[0]])


def test_every_item_is_asked_as_it_says(tmp_path):
    """Own texts before the job's, seeds by index, sampling alone, settings without effect left out, groups apart."""
    clip = {"audio": CLIPS[0]}
    lines = [
        clip,
        {"inputs": clip | {"text": "Who?"}, "parameters": {"temperature": 0.7}},
        {"inputs": clip, "parameters": {"do_sample": True}},
        {"inputs": clip, "parameters": {"do_sample": True, "seed": 40}},
        {"inputs": clip, "parameters": {"num_beams": 2}},
        {"audio": [CLIPS[0], CLIPS[1]]},
    ]
    pipe = Pipe()
    totals = run(write_manifest(tmp_path, lines), tmp_path / "out", pipe=pipe, task="transcribe", settings={"seed": 10})
    first, second = len(load_audio(CLIPS[0])), len(load_audio(CLIPS[1]))
    texts = [record["generated_text"] for record in results(tmp_path / "out")]
    assert texts == [
        f"None transcribe {first} None",
        f"Who? None {first} None",
        f"None transcribe {first} 12",
        f"None transcribe {first} 40",
        f"None transcribe {first} None",
        f"None transcribe {first + second} None",
    ]
    assert sorted(map(len, pipe.batches)) == [1, 1, 1, 1, 2]
    assert totals.answered == 6 and totals.tokens == 18 and totals.complete
    assert results(tmp_path / "out")[0] == {
        "id": 1,
        "generated_text": texts[0],
        "tokens": 3,
        "seconds": round(first / 16000, 3),
        "error": None,
    }


BAD_PARAMETERS = [
    *({"stop_sequence": [5]}, {"stop_sequence": ""}, {"streamer": 1}, {"tokenizer": "x"}, {"input_ids": [1]}),
    *({"max_new_tokens": "20"}, {"max_new_tokens": []}, {"max_new_tokens": {}}, {"max_new_tokens": -1}),
    *({"max_new_tokens": True}, {"max_new_tokens": 20.5}, {"max_new_tokens": 1e400}, {"max_new_tokens": 10**30}),
    *({"language": 5}, {"return_full_text": "false"}, {"do_sample": "false"}, {"temperature": [1]}, {"seed": "x"}),
    *({"do_sample": True, "temperature": 0}, {"do_sample": True, "seed": [3]}, {"eos_token_id": "x"}, {"beams": 2}),
    *({"generation_config": {}}, {"compile": False}, {"suppress_tokens": 5}, {"top_p": float("nan")}),
]


def test_a_line_with_a_wrong_parameter_costs_that_line(tmp_path):
    clip = {"audio": CLIPS[0]}
    good = [{"inputs": clip, "parameters": p} for p in ({"max_new_tokens": 20.0}, {"max_new_tokens": None})]
    lines = [clip, *({"inputs": clip, "parameters": p} for p in BAD_PARAMETERS), *good]
    pipe = Pipe()
    totals = run(write_manifest(tmp_path, lines), tmp_path / "out", pipe=pipe)
    records = results(tmp_path / "out")
    errors = [record["error"] for record in records]
    assert [error is None for error in errors] == [True, *[False] * len(BAD_PARAMETERS), True, True]
    for error, parameters in zip(errors[1:], BAD_PARAMETERS):
        assert list(parameters)[-1] in error and "\n" not in error
    assert totals.complete and totals.answered == 3 and sum(map(len, pipe.batches)) == 3


def test_whatever_an_item_makes_fail_the_others_are_answered(tmp_path):
    class Broken(Pipe):
        def __call__(self, inputs, **settings):
            if any(sum(map(len, entry["audio"])) == self.broken for entry in inputs):
                raise self.error
            return super().__call__(inputs, **settings)

    for number, error in enumerate((AttributeError("x"), OverflowError("x"), KeyError("x"), MemoryError())):
        pipe = Broken(len(load_audio(CLIPS[3])))
        pipe.error = error
        totals = run(CLIPS, tmp_path / f"out{number}", pipe=pipe)
        assert (totals.failed, totals.answered) == (1, len(CLIPS) - 1)


def test_paths_are_seen_from_the_manifest_then_from_here(tmp_path, monkeypatch):
    shutil.copy(CLIPS[0], tmp_path / "near.wav")
    monkeypatch.chdir(ROOT)
    path = write_manifest(tmp_path, [{"audio": "near.wav"}, {"audio": "examples/audio/siren.ogg"}, {"audio": "no.wav"}])
    run(path, tmp_path / "out")
    errors = [record["error"] for record in results(tmp_path / "out")]
    assert errors[:2] == [None, None] and "no audio file 'no.wav'" in errors[2]


def test_a_batch_that_fails_is_tried_one_by_one(tmp_path):
    broken = len(load_audio(CLIPS[3]))
    totals = run(CLIPS, tmp_path / "out", pipe=Pipe(broken))
    errors = [record["error"] for record in results(tmp_path / "out")]
    assert errors[3].startswith("RuntimeError: too little memory") and errors.count(None) == len(CLIPS) - 1
    assert results(tmp_path / "out")[3]["seconds"] == round(broken / 16000, 3)
    assert totals.failed == 1 and totals.complete


def test_what_failed_is_tried_again(tmp_path):
    inputs = write_manifest(tmp_path, [{"audio": "late.wav"}, {"audio": CLIPS[0]}, "broken"])
    assert run(inputs, tmp_path / "out").failed == 2
    shutil.copy(CLIPS[1], tmp_path / "late.wav")
    again = run(inputs, tmp_path / "out")
    assert (again.resumed, again.answered, again.failed) == (1, 1, 1)
    assert [record["error"] is None for record in results(tmp_path / "out")] == [True, True, False]
    once_more = run(inputs, tmp_path / "out", pipe="not called")
    assert (once_more.resumed, once_more.answered, once_more.failed) == (2, 0, 1)


def test_too_many_errors(tmp_path):
    inputs = write_manifest(tmp_path, [{"audio": CLIPS[0]}] + [{"audio": f"{i}.wav"} for i in range(9)])
    with pytest.raises(BatchError, match="more than max_errors=2"):
        run(inputs, tmp_path / "out", max_errors=2)
    assert run(inputs, tmp_path / "out", max_errors=9).complete  # not one of the job's settings


def test_stopping_finishes_the_batch(tmp_path):
    pipe, told = Pipe(), []
    pipe.before = lambda: told.append(1)
    totals = run(CLIPS, tmp_path / "out", pipe=pipe, should_stop=lambda: bool(told), batch_size=3)
    assert totals.stopped and not totals.complete and totals.answered == 3
    assert not (tmp_path / "out" / "results.jsonl").exists()
    assert merge(tmp_path / "out").missing
    with pytest.raises(KeyboardInterrupt):
        pipe.before = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
        run(CLIPS, tmp_path / "out", pipe=pipe, batch_size=3)
    rest = run(CLIPS, tmp_path / "out", batch_size=2)
    assert rest.resumed == 3 and rest.complete
    run(CLIPS, tmp_path / "undisturbed")
    assert results(tmp_path / "out") == results(tmp_path / "undisturbed")


def test_a_line_that_was_cut_off_and_damage(tmp_path):
    out = tmp_path / "out"
    run(CLIPS, out, shard=Shard(0, 2))
    run(CLIPS, out, shard=Shard(1, 2))
    whole = merge(out).path.read_bytes()
    part = out / "part-0.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:3]) + b"\0\0\n[1]\n" + lines[4][:20])
    assert len(merge(out).missing) == 2
    assert run(CLIPS, out, shard=Shard(0, 2)).answered == 2
    assert merge(out).path.read_bytes() == whole
    assert part.read_bytes().startswith(b"".join(lines[:3]) + b"\0\0\n[1]\n{")
    part.write_bytes(lines[0][:9])
    assert run(CLIPS, out, shard=Shard(0, 2)).answered == 4
    assert merge(out).path.read_bytes() == whole


def test_another_number_of_ranks_goes_on(tmp_path):
    out, told = tmp_path / "out", []
    pipe = Pipe()
    pipe.before = lambda: told.append(1)
    for rank in range(3):
        told.clear()
        run(CLIPS, out, shard=Shard(rank, 3), pipe=pipe, batch_size=1, should_stop=lambda: bool(told))
    totals = [run(CLIPS, out, shard=Shard(rank, 2)) for rank in range(2)]
    assert sum(t.resumed for t in totals) == 3 and sum(t.answered for t in totals) == len(CLIPS) - 3
    assert not merge(out).missing and len(results(out)) == len(CLIPS)
    assert "rank 1 of 2: " in str(totals[1]) and totals[1].as_json()["ranks"] == 2


def test_another_job_is_refused_unless_restarted(tmp_path):
    out = tmp_path / "out"
    run(CLIPS, out, shard=Shard(2, 3), text="Who?")
    run(CLIPS, out, shard=Shard(1, 3), text="Who?")
    for change in ({"text": "What?"}, {"task": "caption"}, {"text": "Who?", "settings": {"num_beams": 2}}):
        with pytest.raises(ValueError, match="holds the results of another job.*restart=True"):
            run(CLIPS, out, **change)
    with pytest.raises(ValueError, match="items was 8, is 7"):
        run(CLIPS[1:], out, text="Who?")
    totals = run(CLIPS, out, text="What?", restart=True, shard=Shard(0, 2))
    assert totals.resumed == 0 and not (out / "part-2.jsonl").exists()  # rank 0 of 2 has that one's place
    assert (out / "part-1.jsonl").exists() and len(merge(out).missing) == 4  # what another job left is not counted
    run(CLIPS, out, text="What?", restart=True, shard=Shard(1, 2))
    assert not merge(out).missing and all("What?" in record["generated_text"] for record in results(out))
    (out / "job.json").write_text("{")
    with pytest.raises(ValueError, match="no readable job.json"):
        run(CLIPS, out, text="What?")


def test_two_processes_never_write_one_part(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(CLIPS, out, shard=Shard(2, 3))
    monkeypatch.setattr(part_files, "LOCK_WAIT", 0.0)
    with open(out / "part-2.jsonl") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for shard in (Shard(2, 3), Shard(0, 2)):
            with pytest.raises(BatchError, match="another process is writing .*part-2.jsonl"):
                run(CLIPS, out, shard=shard)
        run(CLIPS, out, shard=Shard(1, 2))
        monkeypatch.setattr(part_files, "LOCK_WAIT", 60.0)
        threading.Timer(0.5, lambda: fcntl.flock(other, fcntl.LOCK_UN)).start()
        assert run(CLIPS, out, shard=Shard(0, 2)).complete


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(part_files.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(part_files.fcntl, "flock", refuse)
    assert run(CLIPS[:2], tmp_path / "out").complete
    assert "has no locks" in caplog.text


def test_a_full_disk(tmp_path, capsys, monkeypatch):
    """Files may grow to so many bytes only, as on a full disk; then room is made."""
    out, inputs = tmp_path / "out", [str(AUDIO)]
    pipe = Pipe()
    monkeypatch.setattr("mindone_audio.batch.runner._Run._load", lambda self: pipe)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        status = cli.main(["batch", *inputs, "--out", str(out), "--batch-size", "2"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1 and "make room" in capsys.readouterr().err
    part = (out / "part-0.jsonl").read_bytes()
    assert len(part) == 1000 and not part.endswith(b"\n") and part.count(b"\n") > 2
    assert cli.main(["batch", *inputs, "--out", str(out), "--batch-size", "2"]) == 0
    assert cli.main(["batch", *inputs, "--out", str(tmp_path / "undisturbed")]) == 0
    assert results(out) == results(tmp_path / "undisturbed")


def test_a_full_file_system(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12k", "none", str(out)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        lines = [{"audio": CLIPS[0], "text": "x" * 1000} for _ in range(12)]
        with pytest.raises(OSError) as error:
            run(write_manifest(tmp_path, lines), out, batch_size=1)
        assert error.value.errno == part_files.errno.ENOSPC
        subprocess.run(["mount", "-o", "remount,size=10M", str(out)], check=True)
        assert run(write_manifest(tmp_path, lines), out, batch_size=1).resumed > 0
        assert len(results(out)) == 12
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_buckets_keep_groups_and_lengths_together():
    def decoded(index, seconds):
        return Decoded(Item(index, index), [np.zeros(round(seconds * 16000), np.float32)])

    buckets = Buckets(2)
    for index, seconds in enumerate([5, 1, 5.1, 1.1, 3, 9, 9, 9]):
        buckets.add(decoded(index, seconds), Question(None, None, {"top": 1} if index == 4 else {}))
    assert buckets.full and len(buckets) == 8
    taken = [[entry.decoded.item.index for entry in buckets.take()] for _ in range(5)]
    assert taken == [[0, 2], [1, 3], [5, 6], [4], [7]] or taken == [[0, 2], [1, 3], [5, 6], [7], [4]]
    assert buckets.take() == [] and len(buckets) == 0
    buckets = Buckets(8, seconds=10)
    for index, seconds in enumerate([4, 2, 2.5, 3, 11, 2, 2]):
        buckets.add(decoded(index, seconds), Question("a", None))
    sizes = [[entry.decoded.seconds for entry in buckets.take()] for _ in range(5)]
    assert sorted(s for batch in sizes for s in batch) == [2, 2, 2, 2.5, 3, 4, 11]
    assert all(sum(batch) <= 10 or len(batch) == 1 for batch in sizes)
    assert all(len(batch) in (0, 1, 2, 4) for batch in sizes) and max(map(len, sizes)) >= 2


def children(pid: int | str = "self") -> set[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    found = set()
    for task in tasks:
        with contextlib.suppress(FileNotFoundError):  # of a thread that has ended meanwhile
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return value


def test_decoders_that_die_or_hang_cost_one_clip(tmp_path):
    fifo = tmp_path / "hangs.wav"
    os.mkfifo(fifo)
    items = [Item(0, 0, [CLIPS[0]]), Item(1, 1, [str(fifo)]), Item(2, 2, [CLIPS[1]]), Item(3, 3, [str(fifo)])]
    before = children()

    def kill_the_reader():
        with open(fifo, "wb"):  # opens when the decoder does
            (decoder,) = children() - before
            os.kill(decoder, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_reader)
    killer.start()
    with DecodeAhead(items, workers=1, ahead=2, time_limit=1.5) as decoding:
        found = []
        while not decoding.exhausted:
            if decoded := decoding.take():
                found.append(decoded)
    killer.join()
    assert [decoded.item.id for decoded in found] == [0, 1, 2, 3]
    assert found[0].error is None and found[2].error is None and found[0].seconds > 0
    assert "ended its decoder process (signal 9)" in found[1].error
    assert "not decoded within 1.5 s" in found[3].error
    assert children() == before


def test_decoders_that_cannot_start_end_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BatchError, match="status 1 before it began"):
        run(CLIPS, tmp_path / "out")


def test_decoders_import_no_mindspore_and_die_with_their_parent(tmp_path):
    fifo = tmp_path / "hangs.wav"
    os.mkfifo(fifo)
    code = f"""
import sys
from mindone_audio.batch.decode_ahead import DecodeAhead
from mindone_audio.batch.manifest import Item
assert not {{"mindspore", "transformers", "torch"}} & set(sys.modules)
with DecodeAhead([Item(0, 0, [{str(fifo)!r}])], 1, 1) as decoding:
    while True:
        decoding.take()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    with open(fifo, "wb"):  # the decoder reads
        (decoder,) = children(parent.pid)
        assert b"libmindspore" not in Path(f"/proc/{decoder}/maps").read_bytes()
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        wait_for(lambda: not is_running(decoder))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_progress_on_a_terminal_and_in_a_log(caplog, capsys, monkeypatch):
    monkeypatch.setattr("mindone_audio.batch.progress.LOG_EVERY", 0.0)
    with caplog.at_level("INFO", logger.name):
        progress = Progress(100, 10, "rank 1 of 2", bar=False)
        for _ in range(3):
            progress.update(10)
        progress.close()
    assert caplog.messages[-1].startswith("rank 1 of 2: 40 of 100 clips, ") and " a second, 0:00:0" in caplog.text
    assert capsys.readouterr().err == ""
    progress = Progress(4, 0, "", bar=True)
    progress.update(2)
    progress.close()
    assert "2/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "device", "message"),
    [
        ({"RANK_SIZE": "two"}, "cpu", "RANK_SIZE is 'two'"),
        ({"RANK_SIZE": "2"}, "cpu", "does not know its RANK_ID.*--node_rank"),
        ({"RANK_SIZE": "4", "RANK_ID": "0", "MS_ROLE": "MS_WORKER"}, "cpu", "does not know its RANK_ID"),
        ({"RANK_SIZE": "2", "RANK_ID": "2"}, "cpu", "should be 0 to 1"),
        ({"RANK_ID": "1"}, "cpu", "with RANK_SIZE=1 it should be 0 to 0"),
        ({"RANK_SIZE": "2", "RANK_ID": "1"}, "ascend", "DEVICE_ID is not set"),
        ({"RANK_SIZE": "2", "RANK_ID": "1", "DEVICE_ID": "1"}, "ascend:0", "leave the number out"),
    ],
)
def test_shares_that_would_be_wrong(environment, device, message):
    with pytest.raises(ValueError, match=message):
        find_shard(environment, device)


def test_shares():
    assert find_shard({}, "ascend:3") == Shard(0, 1)
    msrun = {"RANK_SIZE": "4", "RANK_ID": "3", "DEVICE_ID": "1", "MS_ROLE": "MS_WORKER", "MS_NODE_ID": "3"}
    assert find_shard(msrun, "auto") == Shard(3, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "translate"}, "unknown task 'translate'"),
        ({"task": "caption", "text": "x"}, "both given"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"long_audio": "cut"}, "long_audio must be"),
        ({"batch_size": 0}, "batch_size must be between 1 and 256"),
        ({"batch_seconds": 0}, "batch_seconds must be more"),
        ({"batch_size": "8"}, "batch_size must be between 1 and 256, not '8'"),
        ({"batch_size": True}, "batch_size must be"),
        ({"batch_seconds": "60"}, "batch_seconds must be a number"),
        ({"batch_seconds": float("nan")}, "batch_seconds must be a number"),
        ({"workers": 0}, "workers must be"),
        ({"settings": {"stop_sequence": [5]}}, "stop_sequence must be a string"),
        ({"settings": {"streamer": 1}}, "unknown parameter streamer"),
        ({"settings": {"language": 5}, "task": "transcribe"}, "language must be a string"),
        ({"max_errors": -1}, "max_errors must be"),
        ({"settings": {"language": "en"}}, "language goes with"),
        ({"settings": {"temperature": 0, "do_sample": True}}, "temperature must be"),
        ({"settings": {"beams": 2}}, "beams=2 is not supported"),
    ],
)
def test_jobs_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchJob("x", "y", **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no input"),
        (["nothing.jsonl", "--out", "{tmp}"], "no manifest, folder or clip 'nothing.jsonl'"),
        ([str(AUDIO)], "no --out"),
        ([str(AUDIO), "--out", __file__], "is not a folder"),
        ([str(AUDIO), "--out", "/proc/results"], "/proc/results"),
        ([str(AUDIO), "--out", "{tmp}", "--task", "translate"], "unknown task 'translate'"),
        ([str(AUDIO), "--out", "{tmp}", "--model", "{tmp}/none"], "no checkpoint folder"),
        ([str(AUDIO), "--out", "{tmp}", "--model", str(AUDIO)], "no config.json"),
        ([str(AUDIO), "--out", "{tmp}", "--temperature", "0.5"], "add --do-sample"),
        ([str(AUDIO), "--out", "{tmp}", "--temperature", "hot", "--do-sample"], "error: --temperature must be"),
        ([str(AUDIO), "--out", "{tmp}", "--max-new-tokens", "20.5"], "error: --max-new-tokens must be"),
        ([str(AUDIO), "--out", "{tmp}", "--no-repeat-ngram-size", "-1"], "error: --no-repeat-ngram-size must be"),
        (["--merge", "{tmp}"], "holds no batch job"),
        (["--merge", "{tmp}/none"], "holds no batch job"),
        ([str(AUDIO), "--merge", "{tmp}"], "stands alone"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(tmp_path, capsys, arguments, message):
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert cli.main(["batch", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_wrong_use_and_help_are_quick():
    """A newcomer's mistakes are answered without MindSpore, and msrun's scheduler does nothing."""
    code = """
import sys
from mindone_audio import cli
assert cli.main(["batch", "nothing", "--out", "x"]) == 2
try:
    cli.main(["batch", "--help"])
except SystemExit as end:
    assert end.code == 0
assert not {"mindspore", "transformers", "torch"} & set(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
    command = [sys.executable, "-m", "mindone_audio.cli", "batch", "nothing"]
    scheduler = subprocess.run(command, cwd=ROOT, env={**os.environ, "MS_ROLE": "MS_SCHED"}, capture_output=True)
    assert scheduler.returncode == 0 and not scheduler.stdout + scheduler.stderr


def test_signals_are_told_apart():
    code = """
import signal, time
from mindone_audio.machine.signals import Signals
try:
    with Signals(hold_terminate=True) as signals:
        print("ready", flush=True)
        while not signals.terminated:
            time.sleep(0.01)
        print("terminated", flush=True)
        time.sleep(600)
except KeyboardInterrupt:
    print("interrupted", signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
    reset = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, **reset)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "terminated\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "interrupted set()\n"


@pytest.mark.parametrize("ranks", ["two", "0", "-1", ""])
def test_a_number_of_ranks_that_is_none(ranks):
    with pytest.raises(ValueError, match=f"RANK_SIZE is '{ranks}': it should be the number of processes"):
        number_of_ranks({"RANK_SIZE": ranks})
    assert number_of_ranks({}) == 1 and number_of_ranks({"RANK_SIZE": "8"}) == 8


def test_who_watches_msrun(tmp_path):
    code = "from mindone_audio.machine.msrun import started_by_msrun as started; print(started())"
    for name, flags, role, expected in (
        ("msrun", ["--join=True"], "MS_WORKER", "True"),
        ("msrun", ["--join", "True"], "MS_WORKER", "True"),
        ("msrun", ["--join", "True"], "", "False"),
        ("msrun", ["--join=False"], "MS_WORKER", "False"),
        ("other", ["--join=True"], "MS_WORKER", "False"),
    ):
        (tmp_path / name).write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}])\n")
        command = [sys.executable, str(tmp_path / name), *flags]
        environment = {**os.environ, "MS_ROLE": role, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


def test_options_reach_the_job(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("mindone_audio.commands.batch_job.run_batch", lambda job, **_: seen.append(job) or 1 / 0)
    options = "--prompt Who? --batch-seconds 60 --max-new-tokens 5 --do-sample --top-p 0.9 --seed 3 --workers 2"
    with pytest.raises(ZeroDivisionError):
        cli.main(["batch", str(AUDIO), "--out", str(tmp_path), *options.split(), "--dtype", "float32", "--restart"])
    (job,) = seen
    assert (job.text, job.batch_seconds, job.workers, job.dtype, job.restart) == ("Who?", 60, 2, "float32", True)
    assert job.settings == {"max_new_tokens": 5, "top_p": 0.9, "seed": 3, "do_sample": True}

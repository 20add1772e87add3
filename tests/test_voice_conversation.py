"""Conversations with a model that computes nothing: what is told when, what an interruption leaves, what is asked."""

import threading
import time
from concurrent.futures import Future

import fake_service
import numpy as np
import pytest
from fake_service import ANSWER, Pipe, Scheduler, until
from test_voice_turns import loud, quiet, tone

from mindone_audio.inputs.conversation import chat_clips
from mindone_audio.voice.activity import RATE, TurnSettings
from mindone_audio.voice.conversation import Conversation, ConversationSettings
from mindone_audio.voice.events import (
    AnswerAudio,
    AnswerDone,
    AnswerStarted,
    AnswerText,
    Failed,
    FinalText,
    HistoryShortened,
    Interrupted,
    PartialText,
    SpeechStarted,
    SpeechStopped,
)
from mindone_audio.voice.model import VoiceModel

SPOKEN = np.concatenate([quiet(0.5), tone(0.7), quiet(1)])


class Speaker:
    """Half a second of sound a sentence, in two pieces; it waits before a sentence "Wait" until `go` is set."""

    vocoder = type("Vocoder", (), {"sampling_rate": 24_000})

    def __init__(self):
        self.go = threading.Event()

    def __call__(self, text, *, voice, stream):
        assert stream
        if text == "Wait.":
            self.go.wait(10)
        return ({"audio": np.full(6000, 0.1, np.float32), "sampling_rate": 24_000} for _ in range(2))


class Answering(Scheduler):
    """The fake scheduler, which also runs what is to be computed in its thread."""

    def run(self, function):
        future = Future()
        future.set_result(function())
        return future

    max_model_len = None


class Talk:
    """A conversation and all that it has told."""

    def __init__(self, speaker=None, **settings):
        self.pipe = Pipe()
        self.scheduler = Answering(self.pipe)
        self.told = []
        self.talk = Conversation(
            VoiceModel(self.pipe, self.scheduler, speaker), self.told.append, ConversationSettings(**settings), loud
        )

    def hear(self, *parts, size=320):
        sound = np.concatenate(parts)
        for start in range(0, len(sound), size):
            self.talk.hear(sound[start : start + size])

    def of(self, kind):
        return [event for event in self.told if isinstance(event, kind)]

    def text(self):
        return "".join(event.text for event in self.of(AnswerText))

    def ended(self, count=1):
        until(lambda: len(self.of(AnswerDone)) == count)


@pytest.fixture
def talks():
    made = []

    def make(*arguments, **settings):
        made.append(Talk(*arguments, **settings))
        return made[-1]

    yield make
    for talk in made:
        talk.scheduler.go.set()
        talk.talk.close()


def test_a_turn_is_answered(talks):
    talk = talks()
    talk.hear(SPOKEN)
    talk.ended()
    assert [type(event) for event in talk.told[:3]] == [SpeechStarted, SpeechStopped, AnswerStarted]
    started, stopped = talk.told[:2]
    assert started.start_ms == stopped.start_ms == pytest.approx(200, abs=64)
    assert stopped.end_ms - stopped.start_ms == pytest.approx(1200, abs=96)
    assert talk.text() == talk.of(AnswerDone)[0].text == ANSWER
    assert {event.turn for event in talk.told} == {1}
    user, assistant = talk.talk.messages
    assert np.array_equal(user["content"][0]["audio"], stopped.clip) and assistant["content"] == ANSWER


def test_turns_follow_each_other_in_one_history(talks):
    talk = talks(question="say yes", system="Be brief.")
    for count in (1, 2):
        talk.hear(SPOKEN)
        talk.ended(count)
    messages = talk.scheduler.submitted[-1].prepared.request.messages
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == "yes" and len(chat_clips(messages)) == 2
    assert messages[3]["content"][1] == {"type": "text", "text": "say yes"}


def test_the_answer_is_computed_before_the_turn_has_ended(talks):
    talk = talks()
    talk.hear(quiet(0.5), tone(0.7), quiet(0.35))
    until(lambda: talk.scheduler.submitted)
    until(lambda: talk.talk._answer.kept)
    assert [type(event) for event in talk.told] == [SpeechStarted] and talk.talk.messages == []
    talk.hear(quiet(0.5))
    talk.ended()
    assert len(talk.scheduler.submitted) == 1


def test_a_pause_that_goes_on_is_no_end(talks):
    talk = talks(question="hang on a minute")
    talk.hear(quiet(0.5), tone(0.7), quiet(0.35))
    until(lambda: talk.talk._answer.kept)
    talk.hear(tone(0.5))
    until(lambda: talk.scheduler.cancelled)
    talk.scheduler.go.set()
    talk.hear(quiet(1))
    talk.ended()
    assert len(talk.of(SpeechStopped)) == 1 and len(talk.of(AnswerDone)) == 1 and not talk.of(Interrupted)
    assert talk.of(SpeechStopped)[0].end_ms == pytest.approx(500 + 700 + 350 + 500 + 200, abs=64)


def test_speech_interrupts_at_its_beginning(talks):
    """The row is dropped at the third frame of the interruption, and the history keeps what was told."""
    talk = talks(question="hang on a minute")
    talk.hear(SPOKEN)
    until(lambda: talk.of(AnswerText))
    talk.hear(tone(0.1))
    assert [type(event) for event in talk.told[-2:]] == [SpeechStarted, Interrupted]
    interrupted = talk.told[-1]
    until(lambda: talk.scheduler.cancelled)
    assert interrupted.text == "It" and talk.talk.messages[-1] == {"role": "assistant", "content": "It"}
    talk.scheduler.go.set()
    talk.hear(tone(0.5), quiet(1))
    talk.ended()
    assert [message["role"] for message in talk.talk.messages] == ["user", "assistant", "user", "assistant"]
    after = talk.told[talk.told.index(interrupted) + 1 :]
    assert not [event for event in after if event.turn == interrupted.turn]


def test_nothing_is_interrupted_where_that_is_not_wanted(talks):
    talk = talks(question="hang on a minute", interrupt=False)
    talk.hear(SPOKEN)
    until(lambda: talk.of(AnswerText))
    talk.hear(SPOKEN)
    assert len(talk.of(SpeechStopped)) == 2 and not talk.of(Interrupted) and not talk.scheduler.cancelled
    talk.scheduler.go.set()
    talk.ended(2)  # the second turn is answered behind the first one
    assert [event.turn for event in talk.of(AnswerStarted)] == [1, 2]


def test_an_answer_that_has_not_begun_leaves_one_message_of_the_user(talks):
    talk = talks(question="wait for it")
    talk.hear(SPOKEN)
    until(lambda: talk.scheduler.submitted)
    talk.hear(tone(0.1))
    assert talk.of(Interrupted)[0].text == ""
    talk.scheduler.go.set()
    talk.hear(tone(0.5), quiet(1))
    talk.ended()
    user, assistant = talk.talk.messages
    assert len(chat_clips([user])) == 2 and assistant["role"] == "assistant"


def test_words_are_answered_too(talks):
    talk = talks()
    talk.talk.say("say hello there")
    talk.ended()
    assert talk.text() == "hello there"
    assert [message["role"] for message in talk.talk.messages] == ["user", "assistant"]


def test_spoken_answers(talks):
    talk = talks(Speaker(), question="say One two. Three four five six.")
    talk.hear(SPOKEN)
    talk.ended()
    sounds = talk.of(AnswerAudio)
    assert [sound.text for sound in sounds] == ["One two.", "", "Three four five six.", ""]
    assert {sound.rate for sound in sounds} == {24_000}
    assert isinstance(talk.told[-1], AnswerDone)


@pytest.mark.parametrize(("played", "kept"), ((0, ""), (250, "One"), (500, "One two."), (750, "One two. Three four")))
def test_an_interrupted_answer_is_what_sounded(talks, played, kept):
    speaker = Speaker()
    talk = talks(speaker)
    talk.talk.say("say One two. Three four five six. Wait.")
    until(lambda: len(talk.of(AnswerAudio)) == 4)
    talk.talk.interrupt(played_ms=played)
    speaker.go.set()
    assert talk.of(Interrupted)[0].text == kept
    assert talk.talk.messages[1:] == ([{"role": "assistant", "content": kept}] if kept else [])


def test_a_clock_tells_what_sounded(talks):
    talk = talks(Speaker())
    gate = threading.Event()
    sound = talk.talk.model.sound

    def slowly(*arguments):
        for piece in sound(*arguments):
            yield piece
            gate.wait(5)

    talk.talk.model.sound = slowly
    talk.talk.say("say one two three four.")
    until(lambda: talk.of(AnswerAudio))
    time.sleep(0.3)
    talk.talk.interrupt()
    gate.set()
    assert talk.of(Interrupted)[0].text == "one two three four."  # only 0.25 s of it have been made, and all sounded


def test_transcripts(talks):
    talk = talks(transcribe=True, partial_ms=400)
    talk.hear(quiet(0.5), tone(0.5))
    until(lambda: not talk.talk._looking)
    talk.hear(tone(0.5), quiet(1))
    talk.ended()
    until(lambda: talk.of(FinalText))
    (final,) = talk.of(FinalText)
    clip = talk.of(SpeechStopped)[0].clip
    assert final.text == f"window of {len(clip) / RATE:.2f} s"
    assert final.end_ms - final.start_ms == pytest.approx(1000 * len(clip) / RATE, abs=1)
    partial = talk.of(PartialText)
    assert partial and all("window of".startswith(event.text) for event in partial)


def test_only_transcripts(talks):
    talk = talks(answer=False, transcribe=True)
    talk.hear(SPOKEN, SPOKEN)
    until(lambda: len(talk.of(FinalText)) == 2)
    assert not talk.of(AnswerText) and len(talk.talk.messages) == 1  # both clips


def test_a_long_turn_is_one_question_of_several_clips(talks, monkeypatch):
    monkeypatch.setattr(fake_service, "POSITIONS", 4096)
    talk = talks(transcribe=True)
    talk.hear(quiet(0.5), tone(70), quiet(1), size=8000)
    talk.ended()
    until(lambda: len(talk.of(FinalText)) == 3)
    (user, _) = talk.talk.messages
    clips = chat_clips([user])
    assert len(clips) == 3 and max(map(len, clips)) <= 30 * RATE
    finals = talk.of(FinalText)
    assert [event.last for event in finals] == [False, False, True]
    assert [event.text for event in finals] == [f"window of {len(clip) / RATE:.2f} s" for clip in clips]
    for one, other in zip(finals, finals[1:]):
        assert abs(one.end_ms - other.start_ms) <= 1
    assert len(talk.of(SpeechStopped)) == 1 and len(talk.of(SpeechStopped)[0].clip) == sum(map(len, clips))
    asked = [ticket.prepared.request for ticket in talk.scheduler.submitted if not ticket.prepared.request.transcribe]
    ahead = [chat_clips(request.messages) for request in asked if request.chosen.max_new_tokens == 1]
    assert [list(map(len, some)) for some in ahead] == [[len(clip)] for clip in clips[:2]]  # while the turn goes on


def test_old_clips_become_what_was_said_in_them(talks):
    """The fake model has 512 positions and 25 tokens a second; an answer takes 128."""
    talk = talks()
    for count in range(1, 5):
        talk.hear(quiet(0.5), tone(6), quiet(1), size=8000)
        talk.ended(count)
    shortened = talk.of(HistoryShortened)
    assert shortened and shortened[0].turns == (1,) and shortened[0].dropped == ()
    first = talk.talk.messages[0]
    assert first["role"] == "user" and first["content"][0]["text"].startswith("window of 6.")
    assert chat_clips(talk.talk.messages[-2:])


def test_turns_are_left_out_where_no_clip_is_left(talks):
    talk = talks()
    words = "word " * 150
    for count in range(1, 4):
        talk.talk.say(f"say yes {words}")
        talk.ended(count)
    assert talk.of(HistoryShortened)[-1].dropped
    assert len(talk.of(AnswerDone)) == 3


@pytest.mark.parametrize("words", ("fail value", "break runtime"))
def test_a_failure_is_told_and_the_next_turn_answered(talks, words):
    talk = talks()
    talk.talk.say(words)
    until(lambda: talk.of(Failed))
    assert str(talk.of(Failed)[0].error) and not talk.of(AnswerDone) and not talk.talk.answering
    talk.talk.say("say fine")
    talk.ended()
    assert talk.of(AnswerDone)[0].text == "fine"


def test_a_prompt_that_never_fits_is_told(talks):
    talk = talks()
    talk.talk.say("word " * 600)
    until(lambda: talk.of(Failed))
    assert "positions" in str(talk.of(Failed)[0].error)


def test_nothing_is_told_after_the_end(talks):
    talk = talks(question="hang on a minute")
    talk.hear(SPOKEN)
    until(lambda: talk.of(AnswerText))
    talk.talk.close()
    count = len(talk.told)
    until(lambda: talk.scheduler.cancelled)
    talk.scheduler.go.set()
    talk.hear(SPOKEN)
    time.sleep(0.1)
    assert not [event for event in talk.told[count:] if isinstance(event, AnswerText | AnswerDone)]


def test_settings_that_do_not_fit(talks):
    with pytest.raises(ValueError, match="threshold"):
        talks(turns=TurnSettings(threshold=2))

    class Whisper(Pipe):
        task = "automatic-speech-recognition"

    pipe = Whisper()
    with pytest.raises(ValueError, match="transcribes and answers nothing"):
        Conversation(VoiceModel(pipe, Answering(pipe)), print)


def test_answers_when_they_are_asked_for(talks):
    talk = talks(answer=False)
    with pytest.raises(ValueError, match="nothing to answer"):
        talk.talk.respond()
    talk.hear(SPOKEN)
    assert len(talk.of(SpeechStopped)) == 1 and not talk.of(AnswerStarted)
    talk.talk.respond(question="say now")
    talk.ended()
    assert talk.text() == "now"
    turn = talk.talk.add("user", "say then")
    assert not talk.talk.answering
    assert talk.talk.respond() == turn
    talk.ended(2)
    assert [message["content"] for message in talk.talk.messages[2:]] == [
        [{"type": "text", "text": "say then"}],
        "then",
    ]


def test_an_answer_is_cut_to_what_was_heard_of_it(talks):
    talk = talks()
    talk.talk.say("say one two three")
    talk.ended()
    talk.talk.say("say four")
    talk.ended(2)
    talk.talk.correct(1, "one two")
    assert [message["content"] for message in talk.talk.messages[1::2]] == ["one two", "four"]
    talk.talk.correct(1, "")
    assert [message["role"] for message in talk.talk.messages] == ["user", "assistant"]


def test_the_history_keeps_so_much_sound(talks):
    talk = talks(history_s=3.0)
    for count in (1, 2, 3):
        talk.hear(SPOKEN)
        talk.ended(count)
    assert [event.turns for event in talk.of(HistoryShortened)] == [(1,)]
    assert len(chat_clips(talk.talk.messages)) == 2


def test_sound_that_is_still_heard_is_broken_off_too(talks):
    """The answer is complete, and a second of its sound is to be heard."""
    talk = talks(Speaker())
    talk.talk.say("say One two. Three four.")
    talk.ended()
    talk.hear(tone(0.1))
    assert talk.of(Interrupted)[0].text in ("", "One", "One two.")
    assert [message["role"] for message in talk.talk.messages].count("assistant") <= 1
    talk.talk.clear()
    talk.talk.interrupt()
    assert len(talk.of(Interrupted)) == 1  # once


def test_sound_of_turns_that_nobody_answers_does_not_pile_up(talks):
    talk = talks(answer=False, transcribe=True, history_s=2.0)
    for _ in range(8):
        talk.hear(SPOKEN)
        assert talk.talk.settle(10)
    clips = chat_clips(talk.talk.messages)
    assert 1 <= sum(map(len, clips)) / RATE <= 4.0
    (message,) = talk.talk.messages  # what was said in the older ones is known
    assert message["content"][0]["text"].startswith("window of 1.2")
    alone = talks(answer=False, remember=False)
    for _ in range(3):
        alone.hear(SPOKEN)
    assert len(chat_clips(alone.talk.messages)) == 1


def test_a_clip_and_words_about_it_where_nothing_is_remembered(talks):
    talk = talks(remember=False)
    talk.talk.say("say before")
    talk.ended()
    talk.talk.add("user", tone(1))
    talk.talk.add("user", "say about it")
    talk.talk.respond()
    talk.ended(2)
    (message,) = talk.scheduler.submitted[-1].prepared.request.messages
    assert [part["type"] for part in message["content"]] == ["audio", "text"]
    assert talk.of(AnswerDone)[-1].text == "about it"


def test_a_wrong_setting_costs_no_history(talks):
    """A refusal of the pipeline says so, and the clips before stay clips."""
    talk = talks()
    talk.hear(SPOKEN)
    talk.ended()
    talk.talk.add("user", "say more")
    talk.talk.respond(generate={"temperature": -1})
    until(lambda: talk.of(Failed))
    assert "temperature" in str(talk.of(Failed)[0].error) and not talk.of(HistoryShortened)
    assert len(chat_clips(talk.talk.messages)) == 1
    talk.talk.respond()
    talk.ended(2)
    assert talk.of(AnswerDone)[-1].text == "more"


def test_an_answer_has_room_though_a_prompt_leaves_less(talks):
    """The pipeline cuts max_new_tokens to what is left; the history is shortened instead."""
    talk = talks()
    for count in range(1, 4):
        talk.hear(quiet(0.5), tone(7), quiet(1), size=8000)
        talk.ended(count)
    assert talk.of(HistoryShortened)
    answered = [asked.prepared for asked in talk.scheduler.submitted if not asked.prepared.request.transcribe]
    assert all(prepared.settings.max_new_tokens == 128 for prepared in answered)

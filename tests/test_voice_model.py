"""Conversations with models that compute: the bundled one, one that speaks beside it, and Whisper."""

import queue
import threading
from functools import partial
from pathlib import Path

import helpers_speecht5
import helpers_whisper
import numpy as np
import pytest
from fake_service import until
from test_voice_turns import loud

from mindone_audio import pipeline
from mindone_audio.inputs.audio import load_audio
from mindone_audio.voice import Conversation, ConversationSettings, VoiceModel
from mindone_audio.voice.events import (
    AnswerAudio,
    AnswerDone,
    AnswerText,
    Failed,
    FinalText,
    Interrupted,
    SpeechStopped,
)

pytestmark = pytest.mark.slow
SPEECH = load_audio(Path(__file__).parent.parent / "examples" / "audio" / "spoken_command.wav")
SILENCE = np.zeros(16_000, np.float32)
QUESTION = "What does the person say?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speaker")
    helpers_speecht5.save_all(folder)
    sound = {"vocoder": folder / "hifigan", "voice": np.load(folder / "voice.npy")}
    speaker = pipeline("text-to-speech", folder / "speaker", **sound)
    made = VoiceModel.of(pipeline(), speaker, max_batch=8)
    made.wait_until_ready()
    yield made
    made.scheduler.stop()


class Talk:
    def __init__(self, model, **settings):
        self.events: list = []
        asked = {"question": QUESTION, "remember": False, "speak": False, **settings}
        self.talk = Conversation(model, self.events.append, ConversationSettings(**asked), loud)

    def hear(self, *parts):
        sound = np.concatenate(parts)
        for start in range(0, len(sound), 320):
            self.talk.hear(sound[start : start + 320])

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.talk.close()
        assert self.of(Failed) == []


def test_answers_and_texts_are_those_of_the_pipeline(model):
    with Talk(model, transcribe=True, partial_ms=300) as talk:
        for _ in range(2):
            talk.hear(SILENCE, SPEECH, SILENCE)
            assert talk.talk.settle(120)
    clips = [event.clip for event in talk.of(SpeechStopped)]
    asked = model.scheduler.run(partial(model.pipe, clips, text=QUESTION, return_full_text=False)).result()
    assert [event.text for event in talk.of(AnswerDone)] == [answer["generated_text"] for answer in asked]
    heard = model.scheduler.run(partial(model.pipe, clips, task="transcribe")).result()
    assert [event.text for event in talk.of(FinalText)] == [answer["generated_text"] for answer in heard]
    assert talk.of(FinalText)[0].text == "open the door"


def test_an_interruption_frees_the_row(model):
    """Of 2,000 tokens that the answer would have, few are computed."""
    with Talk(model, generate={"max_new_tokens": 2000, "eos_token_id": -1}) as talk:
        talk.hear(SILENCE, SPEECH, SILENCE)
        until(lambda: talk.of(AnswerText), 60)
        talk.hear(SPEECH[:8000])
        (interrupted,) = talk.of(Interrupted)
        until(lambda: model.scheduler.running == 0)
        count = sum(len(event.tokens) for event in talk.of(AnswerText))
        assert 0 < count < 1000
        told = "".join(event.text for event in talk.of(AnswerText) if event.turn == interrupted.turn)
        assert interrupted.text == told


def test_eight_conversations_at_a_time(model):
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def one():
        with Talk(model) as talk:
            talk.hear(SILENCE, SPEECH, SILENCE)
            assert talk.talk.settle(120)
            answers.put(talk.of(AnswerDone)[0].text)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    found = [answers.get_nowait() for _ in range(answers.qsize())]
    assert len(found) == 8 and len(set(found)) == 1


def test_spoken_answers_are_those_of_the_speaker(model):
    with Talk(model, speak=True) as talk:
        talk.hear(SILENCE, SPEECH, SILENCE)
        assert talk.talk.settle(200)
    sounds = talk.of(AnswerAudio)
    (answer,) = talk.of(AnswerDone)
    expected = model.scheduler.run(partial(model.speaker, answer.text)).result()["audio"]
    assert sounds[0].text == answer.text and not any(sound.text for sound in sounds[1:])
    np.testing.assert_allclose(np.concatenate([sound.samples for sound in sounds]), expected, atol=1e-4)


def test_whisper_writes_down_what_is_said(tmp_path):
    helpers_whisper.save_checkpoint(tmp_path)
    whisper = VoiceModel.of(pipeline(model=tmp_path))
    whisper.wait_until_ready()
    with pytest.raises(ValueError, match="transcribes and answers nothing"):
        Conversation(whisper, print)
    with Talk(whisper, answer=False, transcribe=True) as talk:
        talk.hear(SILENCE, SPEECH, SILENCE)
        assert talk.talk.settle(200)
    (clip,) = [event.clip for event in talk.of(SpeechStopped)]
    expected = whisper.scheduler.run(partial(whisper.pipe, clip)).result()[0]["text"]
    assert talk.of(FinalText)[0].text == expected
    whisper.scheduler.stop()


def test_the_server_with_a_speaker(tmp_path):
    """The bundled model's answer over /v1/realtime, in the words and the sound of a process of its own."""
    import base64

    import openai
    from server_process import server_process

    helpers_speecht5.save_all(tmp_path)
    sound = ("--speaker", "speaker", "--vocoder", "hifigan", "--voice", "ann=voice.npy")
    with server_process("--port", 0, *sound, folder=tmp_path) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with client.realtime.connect(
            model="qwen2_audio_demo", websocket_connection_options={"proxy": None}
        ) as connection:
            output = {"audio": {"output": {"voice": "ann"}}, "output_modalities": ["audio"]}
            connection.session.update(session={"type": "realtime", "instructions": QUESTION, **output})
            clip = np.concatenate([SILENCE, SPEECH, SILENCE])
            places = np.arange(len(clip) * 3 // 2) * 2 / 3
            pcm = (np.interp(places, np.arange(len(clip)), clip) * 32767).astype("<i2").tobytes()
            connection.input_audio_buffer.append(audio=base64.b64encode(pcm).decode())
            events = [connection.recv()]
            while events[-1].type != "response.done":
                events.append(connection.recv())
    heard = b"".join(base64.b64decode(e.delta) for e in events if e.type == "response.output_audio.delta")
    said = "".join(e.delta for e in events if e.type == "response.output_audio_transcript.delta")
    assert events[-1].response.status == "completed" and said == "open the door"
    assert len(heard) > 2 * 2400 and np.frombuffer(heard, "<i2").any()

"""/v1/realtime as OpenAI's client uses it: sessions, turns, answers, interruptions, bad events, clients that vanish."""

import base64
import json
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import openai
import pytest
from fake_service import ANSWER, Pipe, running, text64, until
from test_voice_conversation import Answering, Speaker
from test_voice_turns import loud, quiet, tone
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from mindone_audio.server.options import ServerOptions
from mindone_audio.voice import conversation

RATE = 24_000


@pytest.fixture(autouse=True)
def by_loudness(monkeypatch):
    """Tones are speech here."""
    made = conversation.Turns
    monkeypatch.setattr(conversation, "Turns", lambda settings, longest, activity: made(settings, longest, loud))


@contextmanager
def serving(speaker=None, **options):
    with running(ServerOptions(**{"model": "somewhere", "served_model_name": "demo", **options})) as (url, service):
        service.scheduler = Answering(service.pipe)
        service.speaker, service.voices = speaker, {"ann": None, "bob": None} if speaker else {}
        yield url, service


@pytest.fixture
def server():
    with serving() as found:
        yield found


@contextmanager
def session(url, key="none", **update):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    with client.realtime.connect(model="demo", websocket_connection_options={"proxy": None}) as connection:
        assert connection.recv().type == "session.created"
        if update:
            connection.session.update(session={"type": "realtime", **update})
            assert connection.recv().type == "session.updated"
        yield connection


def pcm(*parts, rate=RATE):
    """Sound of 16 kHz as base64 PCM of another rate."""
    sound = np.concatenate(parts)
    places = np.arange(round(len(sound) * rate / 16_000)) * 16_000 / rate
    return text64((np.interp(places, np.arange(len(sound)), sound) * 32767).astype("<i2").tobytes())


def append(connection, *parts, rate=RATE, seconds=0.1):
    data = base64.b64decode(pcm(*parts, rate=rate))
    size = 2 * round(seconds * rate)
    for start in range(0, len(data), size):
        connection.input_audio_buffer.append(audio=text64(data[start : start + size]))


def received(connection, last, seconds=10.0):
    """Events up to one of a type."""
    events = []
    until_time = time.monotonic() + seconds
    while not events or events[-1].type != last:
        assert time.monotonic() < until_time, [event.type for event in events]
        events.append(connection.recv())
    return events


def kinds(events):
    return [event.type for event in events]


SPOKEN = (quiet(0.5), tone(0.7), quiet(1))


def test_a_session_is_told_as_it_is_set(server):
    with session(server[0]) as connection:
        connection.session.update(
            session={
                "type": "realtime",
                "instructions": "Be brief.",
                "max_output_tokens": 20,
                "audio": {
                    "input": {
                        "format": {"type": "audio/pcm", "rate": 24000},
                        "transcription": {"model": "whisper-1", "language": "en"},
                        "turn_detection": {"type": "server_vad", "threshold": 0.6, "silence_duration_ms": 300},
                    }
                },
            }
        )
        told = connection.recv().session
    assert told.instructions == "Be brief." and told.max_output_tokens == 20 and told.output_modalities == ["text"]
    detection = told.audio.input.turn_detection
    assert (detection.threshold, detection.silence_duration_ms, detection.prefix_padding_ms) == (0.6, 300, 300)
    assert told.audio.input.transcription.language == "en" and told.audio.input.transcription.model == "demo"


@pytest.mark.parametrize("rate", (24_000, 16_000))
def test_a_spoken_turn_is_answered(server, rate):
    form = {"audio": {"input": {"format": {"type": "audio/pcm", "rate": rate}}}}
    with session(server[0], **form) as connection:
        append(connection, *SPOKEN, rate=rate)
        events = received(connection, "response.done")
    assert kinds(events) == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(ANSWER.split()),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    started, stopped, committed = events[:3]
    assert 100 < started.audio_start_ms < 300 and 1300 < stopped.audio_end_ms < 1500
    assert started.item_id == stopped.item_id == committed.item_id == events[3].item.id
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == ANSWER
    done = events[-1].response
    assert done.status == "completed" and done.output[0].content[0].text == ANSWER
    assert len({event.event_id for event in events}) == len(events)


def test_two_turns_have_one_history(server):
    with session(server[0]) as connection:
        for _ in range(2):
            append(connection, *SPOKEN)
            received(connection, "response.done")
    asked = server[1].scheduler.submitted[-1].prepared.request.messages
    assert [message["role"] for message in asked] == ["user", "assistant", "user"]


def test_who_speaks_interrupts(server):
    with session(server[0]) as connection:
        connection.conversation.item.create(item=message("hang on a minute"))
        connection.response.create()
        received(connection, "response.output_text.delta")
        append(connection, tone(0.2))
        events = received(connection, "response.done")
    assert "input_audio_buffer.speech_started" in kinds(events)
    done = events[-1].response
    assert done.status == "cancelled" and done.status_details.reason == "turn_detected"
    assert done.output[0].content[0].text == "It"
    until(lambda: server[1].scheduler.cancelled)


def message(text, role="user"):
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def test_typed_turns_and_a_response_with_settings_of_its_own(server):
    with session(server[0], instructions="Be brief.") as connection:
        connection.conversation.item.create(item=message("say one two three"))
        assert kinds(received(connection, "conversation.item.done"))[0] == "conversation.item.added"
        connection.response.create(response={"instructions": "Be long.", "max_output_tokens": 2})
        done = received(connection, "response.done")[-1].response
    assert done.status == "incomplete" and done.status_details.reason == "max_output_tokens"
    assert done.output[0].content[0].text == "one two"
    asked = server[1].scheduler.submitted[-1].prepared.request.messages
    assert asked[0] == {"role": "system", "content": "Be long."}


def test_the_client_says_when_a_turn_has_ended(server):
    off = {"audio": {"input": {"turn_detection": None, "transcription": {}}}}
    with session(server[0], **off) as connection:
        append(connection, tone(1), quiet(1))
        connection.input_audio_buffer.commit()
        events = received(connection, "conversation.item.input_audio_transcription.completed")
        assert kinds(events)[0] == "input_audio_buffer.committed"
        assert events[-1].transcript.startswith("window of 2.0") or events[-1].transcript.startswith("window of 1.9")
        assert events[-1].item_id == events[0].item_id
        connection.input_audio_buffer.commit()
        assert connection.recv().error.code == "input_audio_buffer_commit_empty"
        append(connection, tone(1))
        connection.input_audio_buffer.clear()
        assert received(connection, "input_audio_buffer.cleared")
        connection.response.create()
        assert received(connection, "response.done")[-1].response.status == "completed"
    (clip,) = server[1].scheduler.submitted[-1].prepared.request.clips
    assert len(clip) / 16_000 == pytest.approx(2, abs=0.05)


def test_transcription_sessions(server):
    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)
    with client.realtime.connect(model="demo", websocket_connection_options={"proxy": None}) as connection:
        connection.recv()
        connection.session.update(session={"type": "transcription", "audio": {"input": {}}})
        assert connection.recv().session.type == "transcription"
        append(connection, *SPOKEN, *SPOKEN)
        first = received(connection, "conversation.item.input_audio_transcription.completed")
        second = received(connection, "conversation.item.input_audio_transcription.completed")
        connection.response.create()
        assert "answers nothing" in received(connection, "error")[-1].error.message
    assert not [event for event in (*first, *second) if event.type.startswith("response.")]
    for events in (first, second):
        own = [e for e in events if e.type.endswith("transcription.delta") and e.item_id == events[-1].item_id]
        assert "".join(event.delta for event in own) == events[-1].transcript != ""
        assert events[-1].usage.seconds == pytest.approx(1.2, abs=0.1)


def test_spoken_answers():
    with serving(Speaker()) as (url, _), session(url, output_modalities=["audio"]) as connection:
        connection.conversation.item.create(item=message("say One two. Three four."))
        connection.response.create()
        events = received(connection, "response.done")
        sound = b"".join(base64.b64decode(e.delta) for e in events if e.type == "response.output_audio.delta")
        said = "".join(e.delta for e in events if e.type == "response.output_audio_transcript.delta")
        assert len(sound) == 2 * RATE and said == "One two. Three four."
        assert {"response.output_audio.done", "response.output_audio_transcript.done"} <= set(kinds(events))
        item = events[-1].response.output[0]
        assert item.content[0].transcript == said
        connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=500)
        assert received(connection, "conversation.item.truncated")
        connection.conversation.item.create(item=message("say ok"))
        connection.response.create()
        received(connection, "response.done")
    # the history has half of the words


def test_voices():
    with serving(Speaker()) as (url, _):
        with session(url, audio={"output": {"voice": "bob"}}):
            pass
        with session(url) as connection:
            connection.session.update(session={"type": "realtime", "audio": {"output": {"voice": "alloy"}}})
            assert "must be one of ann, bob" in connection.recv().error.message


TOOLS = [
    {
        "type": "function",
        "name": "set_door",
        "description": "Open or close.",
        "parameters": {"type": "object", "properties": {"open": {"type": "boolean"}}, "required": ["open"]},
    }
]


def test_calls_of_tools(server):
    call = '{"name": "set_door", "arguments": {"open": true}}'
    with session(server[0], tools=TOOLS, tool_choice="required") as connection:
        connection.conversation.item.create(item=message(f"say {call}"))
        connection.response.create()
        events = received(connection, "response.done")
        (item,) = events[-1].response.output
        assert item.type == "function_call" and item.name == "set_door" and json.loads(item.arguments) == {"open": True}
        (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
        assert done.arguments == item.arguments and done.call_id == item.call_id
        connection.conversation.item.create(
            item={"type": "function_call_output", "call_id": item.call_id, "output": "it is open"}
        )
        assert received(connection, "conversation.item.done")
        connection.response.create(response={"tool_choice": "none"})
        received(connection, "response.done")
    *_, called, result = server[1].scheduler.submitted[-1].prepared.request.messages
    assert called["tool_calls"][0]["function"] == {"name": "set_door", "arguments": item.arguments}
    assert result == {"role": "tool", "content": "it is open", "tool_call_id": item.call_id}


def update(**fields):
    return {"type": "session.update", "session": fields}


def heard(**fields):
    return update(audio={"input": fields})


def created(*content):
    return {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": list(content)}}


BAD = {
    "no object": "[]",
    "no JSON": "{",
    "deep": "[" * 100 + "]" * 100,
    "half a pair": '{"type": "conversation.item.create", "item": {"type": "\\ud800"}}',
    "no type": {},
    "an unknown type": {"type": "session.destroy"},
    "a type that is no string": {"type": 5},
    "no session": {"type": "session.update"},
    "a wrong type": update(type="video"),
    "an unknown field": update(colour="red"),
    "another model": update(model="gpt-realtime"),
    "sound without a speaker": update(output_modalities=["audio"]),
    "a wrong rate": heard(format={"rate": 8000}),
    "mu-law": heard(format={"type": "audio/pcmu"}),
    "semantic turns": heard(turn_detection={"type": "semantic_vad"}),
    "a wrong threshold": heard(turn_detection={"threshold": 7}),
    "a wrong silence": heard(turn_detection={"silence_duration_ms": "a"}),
    "a wrong language": heard(transcription={"language": 5}),
    "tools that are none": update(tools=[5]),
    "a tool without a name": update(tools=[{"type": "function"}]),
    "auto tools of an untrained model": update(tools=[{"type": "function", "name": "a"}]),
    "no audio": {"type": "input_audio_buffer.append"},
    "no base64": {"type": "input_audio_buffer.append", "audio": "&&&"},
    "half a sample": {"type": "input_audio_buffer.append", "audio": "AAAA"},
    "no item": {"type": "conversation.item.create"},
    "an unknown item": {"type": "conversation.item.create", "item": {"type": "image"}},
    "an empty message": created(),
    "an image": created({"type": "input_image"}),
    "a clip of nothing": created({"type": "input_audio", "audio": ""}),
    "a result of no call": {
        "type": "conversation.item.create",
        "item": {"type": "function_call_output", "call_id": "x", "output": "y"},
    },
    "a role that is no string": {"type": "conversation.item.create", "item": {"type": "message", "role": []}},
    "an item that is no string": {"type": "conversation.item.truncate", "item_id": [], "audio_end_ms": 5},
    "nothing to answer": {"type": "response.create"},
    "nothing to cancel": {"type": "response.cancel"},
    "no tokens": {"type": "response.create", "response": {"max_output_tokens": 0}},
    "out of band": {"type": "response.create", "response": {"conversation": "none"}},
    "nothing to cut": {"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": 5},
}


def test_bad_events_end_no_session(server):
    """Each is told about, with the id of the event, and the next turn is answered."""
    with session(server[0]) as connection:
        raw = connection._connection
        for name, event in BAD.items():
            raw.send(event if isinstance(event, str) else json.dumps(event))
            told = json.loads(raw.recv())
            assert told["type"] == "error", (name, told)
            assert told["error"]["type"] == "invalid_request_error" and told["error"]["message"], name
        raw.send(b"\x00\x01")
        assert json.loads(raw.recv())["type"] == "error"
        raw.send(json.dumps({"type": "nothing", "event_id": "mine"}))
        assert json.loads(raw.recv())["error"]["event_id"] == "mine"
        append(connection, *SPOKEN)
        assert received(connection, "response.done")[-1].response.status == "completed"


def test_a_failure_is_told_and_the_session_goes_on(server):
    with session(server[0]) as connection:
        connection.conversation.item.create(item=message("fail runtime"))
        connection.response.create()
        events = received(connection, "response.done")
        (error,) = [event for event in events if event.type == "error"]
        assert "secret" not in error.error.message and error.error.type == "server_error"
        assert events[-1].response.status == "failed"
        connection.conversation.item.create(item=message("say fine"))
        connection.response.create()
        assert received(connection, "response.done")[-1].response.output[0].content[0].text == "fine"


def test_one_answer_at_a_time_and_its_end(server):
    with session(server[0]) as connection:
        connection.conversation.item.create(item=message("hang on a minute"))
        connection.response.create()
        received(connection, "response.output_text.delta")
        connection.response.create()
        assert received(connection, "error")[-1].error.code == "conversation_already_has_active_response"
        connection.response.cancel()
        done = received(connection, "response.done")[-1].response
        assert done.status == "cancelled" and done.status_details.reason == "client_cancelled"


def test_a_client_that_vanishes_leaves_nothing(server):
    url, service = server
    with session(url) as connection:
        connection.conversation.item.create(item=message("hang on a minute"))
        connection.response.create()
        received(connection, "response.output_text.delta")
        assert service.active == 1
        connection._connection.socket.close()
    until(lambda: service.active == 0 and service.scheduler.cancelled)


def test_who_says_nothing_is_told_and_left():
    with serving(realtime_timeout=0.3) as (url, service), session(url) as connection:
        assert received(connection, "error")[-1].error.code == "session_expired"
        with pytest.raises(ConnectionClosed):
            connection.recv()
        until(lambda: service.active == 0)


def test_keys():
    with running(ServerOptions(served_model_name="demo"), keys=["secret"]) as (url, service):
        service.scheduler = Answering(service.pipe)
        socket = url.replace("http", "ws") + "/v1/realtime"
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(InvalidStatus) as error:
                connect(socket, additional_headers=headers, proxy=None)
            assert error.value.response.status_code == 403
        with session(url, key="secret"):
            pass
        protocols = ["realtime", "openai-insecure-api-key.secret"]
        with connect(socket, subprotocols=protocols, proxy=None) as connection:
            assert connection.subprotocol == "realtime"
            assert json.loads(connection.recv())["type"] == "session.created"
        with pytest.raises(InvalidStatus):
            connect(socket, subprotocols=["realtime", "openai-insecure-api-key.wrong"], proxy=None)


def test_pages_of_other_sites_are_refused(server):
    socket = server[0].replace("http", "ws") + "/v1/realtime"
    with pytest.raises(InvalidStatus):
        connect(socket, origin="https://evil.example", proxy=None)
    with connect(socket, origin=server[0], proxy=None) as connection:
        assert json.loads(connection.recv())["type"] == "session.created"


def test_places_are_limited(server):
    url, service = server
    socket = url.replace("http", "ws") + "/v1/realtime"
    service.active = 10_000
    with connect(socket, proxy=None) as connection:
        told = json.loads(connection.recv())
        assert told["error"]["code"] == "queue"
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv()
        assert closed.value.rcvd.code == 1013
    service.active = 0
    with connect(f"{socket}?model=other", proxy=None) as connection:
        assert json.loads(connection.recv())["error"]["code"] == "model_not_found"


def test_a_model_that_transcribes_has_sessions_of_that_type():
    class Whisper(Pipe):
        task = "automatic-speech-recognition"

    with running(ServerOptions(served_model_name="demo"), pipe=Whisper()) as (url, service):
        service.scheduler = Answering(service.pipe)
        with session(url) as connection:
            connection.session.update(session={"type": "realtime"})
            assert "answers nothing" in connection.recv().error.message
            append(connection, *SPOKEN)
            assert received(connection, "conversation.item.input_audio_transcription.completed")[-1].transcript


def test_the_bundled_model_is_asked_about_each_clip():
    with serving(model=None) as (url, service):
        with session(url, instructions="say yes") as connection:
            for _ in range(2):
                append(connection, *SPOKEN)
                assert received(connection, "response.done")[-1].response.output[0].content[0].text == "yes"
        (message,) = service.scheduler.submitted[-1].prepared.request.messages
        assert [part["type"] for part in message["content"]] == ["audio", "text"]


def test_a_server_that_stops_ends_sessions_that_say_nothing(server):
    with session(server[0]) as connection:
        server[1].draining = True
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv()
        assert closed.value.rcvd.code == 1001


def test_a_server_that_stops_ends_sessions_that_hear_something_just_then(server):
    """Where the end comes together with an event, Python before 3.12 says nothing of the end."""

    def send(socket):
        with suppress(ConnectionClosed):
            while True:
                socket.send('{"type": "input_audio_buffer.append", "audio": "AAAA"}')

    sockets = [connect(f"{server[0].replace('http', 'ws')}/v1/realtime", proxy=None) for _ in range(8)]
    threads = [threading.Thread(target=send, args=(socket,), daemon=True) for socket in sockets]
    for thread in threads:
        thread.start()
    until(lambda: server[1].active == 8)
    server[1].draining = True
    until(lambda: server[1].active == 0, 20)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_hours_of_sound_at_once_wait_for_what_is_written_down(server, monkeypatch):
    """Nothing piles up: the socket is not read while turns wait."""
    url, service = server
    off = {"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}}
    with session(url) as connection:
        connection.session.update(session=off)
        connection.recv()
        for _ in range(20):
            append(connection, *SPOKEN, rate=16_000, seconds=5)
        found = [received(connection, "conversation.item.input_audio_transcription.completed")[-1] for _ in range(20)]
    assert len({event.item_id for event in found}) == 20


def test_packets_that_come_late_or_not_at_all(server):
    """Time is counted in samples: a stall and a burst change nothing, and a lost packet is a shorter turn."""
    whole = base64.b64decode(pcm(*SPOKEN, rate=RATE))
    packets = [whole[start : start + 960] for start in range(0, len(whole), 960)]  # of 20 ms
    with session(server[0]) as connection:
        for place, packet in enumerate(packets):
            if place in (30, 45):
                time.sleep(0.3)
            if place % 11 != 5:
                connection.input_audio_buffer.append(audio=text64(packet))
        events = received(connection, "response.done")
    assert events[-1].response.status == "completed"
    started, stopped = events[:2]
    assert kinds(events).count("input_audio_buffer.speech_started") == 1
    assert 500 < stopped.audio_end_ms - started.audio_start_ms < 1200


VALUES = (None, True, -1, 1e308, "x", [], [None], {}, {"type": "x"})
WHOLE = (
    update(
        type="realtime",
        model="demo",
        instructions="a",
        max_output_tokens=5,
        output_modalities=["text"],
        tools=TOOLS,
        tool_choice="required",
        audio={
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {"language": "en", "prompt": "a"},
                "turn_detection": {"type": "server_vad", "threshold": 0.5, "create_response": True},
            },
            "output": {"voice": "a", "format": {"type": "audio/pcm", "rate": 24000}},
        },
    ),
    created({"type": "input_text", "text": "a"}),
    {"type": "input_audio_buffer.append", "audio": "AAAA"},
    {"type": "conversation.item.truncate", "item_id": "a", "content_index": 0, "audio_end_ms": 1},
    {"type": "conversation.item.create", "item": {"type": "function_call_output", "call_id": "a", "output": "b"}},
    {"type": "response.cancel"},
)


def changed(value):
    """The value with one part after the other replaced by each of `VALUES`."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            for part in (*VALUES, *changed(value[key])):
                made = value.copy()
                made[key] = part
                yield made


def test_no_value_of_a_field_is_a_fault_of_the_server(server, caplog):
    with session(server[0]) as connection:
        raw = connection._connection
        count = 0
        for event in WHOLE:
            for made in changed(event):
                raw.send(json.dumps(made))
                count += 1
        raw.send(json.dumps({"type": "session.update", "event_id": "last", "session": {"audio": 5}}))
        while True:
            told = json.loads(raw.recv(timeout=20))
            if told["type"] == "error":
                assert told["error"]["type"] == "invalid_request_error", told
                if told["error"]["event_id"] == "last":
                    break
    assert count > 400 and "a request has failed" not in caplog.text


def test_a_transcript_that_fails_ends_no_answer(server):
    """The fake family knows two languages, and none of them is asked for."""
    other = {"audio": {"input": {"transcription": {"language": "xx"}}}}
    with session(server[0], **other) as connection:
        append(connection, *SPOKEN)
        events = received(connection, "response.done")
        if "conversation.item.input_audio_transcription.failed" not in kinds(events):
            events += received(connection, "conversation.item.input_audio_transcription.failed")
    assert "response.done" in kinds(events)
    done = next(event for event in events if event.type == "response.done")
    assert done.response.status == "completed"

"""FastRTC in front of a conversation: its WebSocket protocol, and WebRTC by a client that plays and records a file."""

import asyncio
import base64
import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from fake_service import Pipe, until
from test_voice_conversation import Answering, Speaker
from test_voice_turns import loud, quiet, tone

fastrtc = pytest.importorskip("fastrtc")  # the extra, which holds back gradio and starlette

import uvicorn  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from fastrtc import Stream  # noqa: E402

from mindone_audio.voice import ConversationSettings, VoiceModel, conversation, fastrtc_handler  # noqa: E402


class Singer(Speaker):
    """Says a tone: of what does not change WebRTC's codec leaves nothing."""

    def __call__(self, text, **settings):
        sound = 0.3 * np.sin(np.arange(6000) * 0.1).astype(np.float32)
        return ({**piece, "audio": sound} for piece in super().__call__(text, **settings))


SPOKEN = np.concatenate([quiet(0.5), tone(0.7), quiet(1)])


@pytest.fixture(autouse=True)
def by_loudness(monkeypatch):
    made = conversation.Turns
    monkeypatch.setattr(conversation, "Turns", lambda settings, longest, activity: made(settings, longest, loud))


@contextmanager
def serving(question, speaker):
    """A FastRTC stream on a free port: (its port, the scheduler, what it tells beside the sound)."""
    pipe = Pipe()
    scheduler, told = Answering(pipe), []
    handler = fastrtc_handler(
        VoiceModel(pipe, scheduler, speaker), ConversationSettings(question=question, transcribe=True)
    )
    stream = Stream(
        handler,
        modality="audio",
        mode="send-receive",
        concurrency_limit=4,
        additional_outputs_handler=lambda history, event: event,
    )
    happened = type(handler)._happened

    def kept(self, event):
        told.append(event)
        happened(self, event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(handler), "_happened", kept)
        app = FastAPI()
        stream.mount(app)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield server.servers[0].sockets[0].getsockname()[1], scheduler, told
        finally:
            scheduler.go.set()
            server.should_exit = True
            thread.join(10)


def mulaw(samples):
    """Samples at 16 kHz as base64 mu-law of 48 kHz."""
    audioop = pytest.importorskip("audioop")
    places = np.arange(3 * len(samples)) / 3
    pcm = (np.interp(places, np.arange(len(samples)), samples) * 32767).astype("<i2").tobytes()
    return base64.b64encode(audioop.lin2ulaw(pcm, 2)).decode()


def names(told):
    return [type(event).__name__ for event in told]


def test_its_websocket_protocol():
    from websockets.sync.client import connect

    with serving("say One two. Three.", Speaker()) as (port, _, told):
        with connect(f"ws://127.0.0.1:{port}/websocket/offer", proxy=None) as socket:
            socket.send(json.dumps({"event": "start", "websocket_id": "a"}))
            for start in range(0, len(SPOKEN), 1600):
                socket.send(json.dumps({"event": "media", "media": {"payload": mulaw(SPOKEN[start : start + 1600])}}))
            heard = b""
            while len(heard) < 20_000:  # a second of sound, nearly
                message = json.loads(socket.recv(timeout=20))
                if message.get("event") == "media":
                    heard += base64.b64decode(message["media"]["payload"])
        until(lambda: "AnswerDone" in names(told))
    assert names(told)[:3] == ["SpeechStarted", "SpeechStopped", "AnswerStarted"]


def test_speech_silences_what_was_to_be_played():
    """Sound that is not sent yet is forgotten when somebody speaks, and the answer is broken off at once."""
    from websockets.sync.client import connect

    words = " ".join(f"Sentence {i}." for i in range(40))
    with serving(f"say {words}", Speaker()) as (port, scheduler, told):
        with connect(f"ws://127.0.0.1:{port}/websocket/offer", proxy=None) as socket:
            socket.send(json.dumps({"event": "start", "websocket_id": "a"}))

            def say(sound):
                for start in range(0, len(sound), 1600):
                    part = mulaw(sound[start : start + 1600])
                    socket.send(json.dumps({"event": "media", "media": {"payload": part}}))

            say(SPOKEN)
            while json.loads(socket.recv(timeout=20)).get("event") != "media":
                pass
            say(tone(0.3))
            until(
                lambda: (
                    "SpeechStarted" in names(told)[1:]
                    and ("Interrupted" in names(told)[1:] or "AnswerDone" in names(told))
                )
            )
            heard = 0
            try:
                while True:
                    message = json.loads(socket.recv(timeout=1.5))
                    heard += message.get("event") == "media"
            except TimeoutError:
                pass
    assert heard < 10  # of the 1,000 pieces of 20 ms that 40 sentences have


@pytest.mark.slow
def test_webrtc(tmp_path):
    """An aiortc client plays a file, and records the answer."""
    aiortc = pytest.importorskip("aiortc")
    import httpx
    import soundfile
    from aiortc.contrib.media import MediaPlayer

    file = tmp_path / "said.wav"
    soundfile.write(file, np.concatenate([quiet(1), tone(0.7), quiet(6)]), 16_000)

    async def talk(port) -> np.ndarray:
        connection, frames = aiortc.RTCPeerConnection(), []
        connection.createDataChannel("text")
        player = MediaPlayer(str(file))
        connection.addTrack(player.audio)
        heard = asyncio.Event()

        @connection.on("track")
        def on_track(track):
            async def listen():
                while True:
                    frame = await track.recv()
                    frames.append(frame.to_ndarray().astype(np.float32).ravel() / 32768)
                    if sum(np.abs(part).max() > 0.05 for part in frames) > 20:
                        heard.set()

            asyncio.ensure_future(listen())

        await connection.setLocalDescription(await connection.createOffer())
        offer = {"sdp": connection.localDescription.sdp, "type": "offer", "webrtc_id": "b"}
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = (await client.post(f"http://127.0.0.1:{port}/webrtc/offer", json=offer)).json()
        await connection.setRemoteDescription(aiortc.RTCSessionDescription(answer["sdp"], answer["type"]))
        await asyncio.wait_for(heard.wait(), 40)
        await connection.close()
        return np.concatenate(frames)

    with serving("say One two. Three.", Singer()) as (port, _, told):
        sound = asyncio.run(talk(port))
        until(lambda: "AnswerDone" in names(told))
    assert 0.2 < np.abs(sound).max() < 0.5


def test_the_server_has_it_behind_its_key():
    from fake_service import running
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    from mindone_audio.server.options import ServerOptions

    options = ServerOptions(model="somewhere", served_model_name="demo", fastrtc=True)
    with running(options, keys=["secret"]) as (url, service):
        service.scheduler = Answering(service.pipe)
        socket = url.replace("http", "ws") + "/fastrtc/websocket/offer"
        with pytest.raises(InvalidStatus):
            connect(socket, proxy=None)
        with connect(socket, additional_headers={"Authorization": "Bearer secret"}, proxy=None) as client:
            client.send(json.dumps({"event": "start", "websocket_id": "a"}))
            for start in range(0, len(SPOKEN), 1600):
                client.send(json.dumps({"event": "media", "media": {"payload": mulaw(SPOKEN[start : start + 1600])}}))
            until(lambda: any(not asked.prepared.request.transcribe for asked in service.scheduler.submitted))

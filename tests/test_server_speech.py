"""A SpeechT5 model behind the server, by OpenAI's client and by hand: a tiny random one with the real scheduler."""

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import helpers_speecht5 as speecht5
import httpx
import numpy as np
import openai
import pytest
import soundfile
from fake_service import running, serving, until

from mindone_audio.commands.serve import say
from mindone_audio.commands.serve_process import start_engine
from mindone_audio.pipelines.text_to_speech import parts
from mindone_audio.server.options import ServerOptions
from mindone_audio.server.sounds import MEDIA_TYPES, PCM_RATE, encoder
from mindone_audio.setting_fields import in_words

SPEECH, RATE = "/v1/audio/speech", 16000
LONG = "abba cad fab gab hab " * 3  # the tiny model has 40 positions


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    speecht5.save_all(folder)
    np.save(folder / "other.npy", speecht5.voices(2)[1])
    return folder


def options(saved, **changes) -> ServerOptions:
    voices = [f"first={saved / 'voice.npy'}", f"second={saved / 'other.npy'}"]
    given = {"model": saved / "speaker", "vocoder": str(saved / "hifigan"), "voice": voices, "port": 0}
    return ServerOptions(**{**given, "served_model_name": "demo", **changes})


@pytest.fixture(scope="module")
def server(saved):
    with serving(options(saved)) as found:
        yield found


@pytest.fixture(scope="module")
def expected(server):
    """What the pipeline makes of a text, in the thread that has the model."""
    service = server[1]

    def samples(text, voice="first", seed=0):
        call = partial(service.pipe, text, voice=service.voices[voice], seed=seed)
        return service.scheduler.run(call).result()["audio"]

    return samples


def post(server, **fields) -> httpx.Response:
    body = {"model": "demo", "input": "abba", "voice": "first", **fields}
    return httpx.post(server[0] + SPEECH, json=body, timeout=300)


def sixteen_bits(samples):
    return np.round(np.clip(samples, -1, 1) * 32767) / 32768


@pytest.mark.parametrize("text, voice, seed", [("abba", "first", 0), ("cad fab", "second", 3), (LONG, "first", 0)])
def test_the_sound_is_that_of_the_pipeline(server, expected, text, voice, seed):
    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=300)
    answer = client.audio.speech.create(
        model="demo", input=text, voice=voice, response_format="wav", extra_body={"seed": seed}
    )
    samples, rate = soundfile.read(io.BytesIO(answer.content))
    assert rate == RATE
    np.testing.assert_allclose(samples, sixteen_bits(expected(text, voice, seed)), atol=1e-4)
    assert samples.any()


def test_a_long_text_is_its_parts(server, expected):
    whole = expected(LONG)
    spoken = parts(LONG, server[1].pipe._fits)
    assert len(spoken) == 2 and " ".join(spoken) == LONG.strip()
    # Side by side the graphs have other sizes, which add up in another order.
    np.testing.assert_allclose(whole, np.concatenate([expected(part) for part in spoken]), atol=1e-4)


@pytest.mark.parametrize(
    "text, longest, expected",
    [
        ("One. Two, three. Four.", 40, ["One. Two, three. Four."]),
        ("One. Two, three. Four.", 20, ["One. Two, three.", "Four."]),
        ("One. Two, three. Four.", 10, ["One.", "Two,", "three.", "Four."]),
        ("  One two three, four? Five ", 12, ["One two", "three,", "four?", "Five"]),
        ("one two three four", 9, ["one two", "three", "four"]),
        ("Oneword", 3, ["Oneword"]),
    ],
)
def test_where_a_text_is_cut(text, longest, expected):
    assert parts(text, lambda part: len(part) <= longest) == expected


@pytest.mark.parametrize("form", MEDIA_TYPES)
def test_forms(server, expected, form):
    answer, samples = post(server, response_format=form), expected("abba")
    assert answer.headers["content-type"] == MEDIA_TYPES[form] and "content-length" not in answer.headers
    if form == "pcm":
        made, rate = np.frombuffer(answer.content, "<i2") / 32768, PCM_RATE
    else:
        made, rate = soundfile.read(io.BytesIO(answer.content))
    assert made.ndim == 1 and rate == (PCM_RATE if form == "pcm" else RATE)
    padding = 0.2 if form == "mp3" else 0.01  # seconds of silence that its frames have around the sound
    assert 0 <= len(made) / rate - len(samples) / RATE < padding
    if form in ("wav", "flac"):
        np.testing.assert_allclose(made, sixteen_bits(samples), atol=1e-4)
    assert post(server).content == post(server, response_format="mp3").content


@pytest.mark.parametrize("form", MEDIA_TYPES)
def test_pieces_make_the_file(form):
    """The sound of a tone is what is left of it, whatever the pieces are, and comes before the end."""
    tone = (0.3 * np.sin(np.arange(3 * RATE) * 0.2)).astype(np.float32)
    file = encoder(form, RATE)
    *begun, end = [file.add(piece) for piece in np.split(tone, [1, 500, 20000, 20000, 40000])] + [file.end()]
    begun, whole = b"".join(begun), encoder(form, RATE)
    assert len(begun + end) == len(whole.add(tone) + whole.end())
    assert form == "flac" and not begun or len(begun) > len(end)
    if form == "pcm":
        made, rate = np.frombuffer(begun + end, "<i2") / 32768, PCM_RATE
    else:
        made, rate = soundfile.read(io.BytesIO(begun + end))
    shift = np.argmax(np.correlate(made[: rate // 2], np.sin(np.arange(800) * 0.2 * RATE / rate), "valid")[:4000])
    part = made[shift : shift + rate]
    wave = 0.3 * np.sin(np.arange(rate) * 0.2 * RATE / rate)
    assert np.corrcoef(part, wave)[0, 1] > 0.99 and 0.9 < part.std() / wave.std() < 1.1


def test_a_rate_that_a_form_cannot_have():
    with pytest.raises(ValueError, match="it cannot have the 22050 Hz of this model: use wav"):
        encoder("opus", 22050)


def test_pieces_come_while_others_are_made(server):
    body = {"model": "demo", "input": LONG, "voice": "first", "response_format": "pcm"}
    with httpx.stream("POST", server[0] + SPEECH, json=body, timeout=300) as answer:
        pieces = [piece for piece in answer.iter_raw() if piece]
    assert len(pieces) > 1 and b"".join(pieces) == post(server, input=LONG, response_format="pcm").content


def test_events(server):
    answer = post(server, stream_format="sse", response_format="wav")
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    *deltas, done = map(json.loads, lines)
    assert {delta["type"] for delta in deltas} == {"speech.audio.delta"} and done["type"] == "speech.audio.done"
    assert done["usage"] == {"input_tokens": 4, "output_tokens": 0, "total_tokens": 4}
    sound = b"".join(base64.b64decode(delta["audio"]) for delta in deltas)
    assert sound == post(server, response_format="wav").content


def test_many_at_a_time_are_each_alone(server):
    texts = ["abba", "fab gab hab", LONG]
    alone = [post(server, input=text, response_format="wav").content for text in texts]
    with ThreadPoolExecutor(len(texts)) as pool:
        together = pool.map(lambda text: post(server, input=text, response_format="wav").content, texts)
        assert list(together) == alone


def test_who_leaves_stops_the_work(server):
    service = server[1]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server[0] + SPEECH, json={"model": "demo", "input": LONG * 45, "voice": "first"}, timeout=0.3)
    until(lambda: service.active == 0, 10)
    assert post(server).status_code == 200


def test_who_waits_too_long_is_told(server):
    service, held, over = server[1], threading.Event(), threading.Event()
    object.__setattr__(service.options, "queue_timeout", 0.2)
    try:
        service.scheduler.run(lambda: (held.set(), over.wait(60)))
        held.wait(60)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(post, server)
            until(lambda: service.active == 1, 10)
            late = post(server)
            over.set()
            assert first.result().status_code == 200
        assert late.status_code == 503 and late.json()["error"]["code"] == "deadline" and late.headers["Retry-After"]
    finally:
        over.set()
        object.__setattr__(service.options, "queue_timeout", 60.0)


@pytest.mark.parametrize(
    "fields, param, message",
    [
        ({"model": "tts-1"}, "model", "there is no model 'tts-1' here: use demo"),
        ({"input": None}, "input", "input must be the text to speak"),
        ({"input": " \n"}, "input", "and not be empty"),
        ({"input": ["abba"]}, "input", "input must be the text"),
        ({"input": "a" * 4097}, "input", "4097 characters, at most 4096"),
        ({"input": "a" * 50}, "input", "the model has 40 positions"),
        ({"input": "abba Z"}, "input", "does not know: 'Z': spell them"),
        ({"voice": "alloy"}, "voice", "there is no voice 'alloy' here: use first, second"),
        ({"voice": 3}, "voice", "no voice '3'"),
        ({"response_format": "aac"}, "response_format", "one of mp3, opus, flac, wav, pcm, not 'aac'"),
        ({"response_format": ["mp3"]}, "response_format", "one of mp3"),
        ({"stream_format": "json"}, "stream_format", "one of audio, sse"),
        ({"speed": 2}, "speed", "speed must be 1"),
        ({"speed": "fast"}, "speed", "speed must be"),
        ({"speed": 9}, "speed", "speed must be"),
        ({"instructions": "whisper"}, "instructions", "leave them out"),
        ({"seed": -1}, "seed", "seed must be"),
        ({"pitch": 1}, "pitch", "pitch is no field"),
    ],
)
def test_what_is_refused(server, fields, param, message):
    answer = post(server, **fields)
    assert answer.status_code == (404 if param == "model" else 400), answer.text
    error = answer.json()["error"]
    assert error["param"] == param and message in error["message"]


def test_voices_have_names(server):
    named = post(server, voice={"id": "second"}).content
    assert named == post(server, voice="second").content != post(server, voice="first").content
    body = {"model": "demo", "input": "abba"}
    assert httpx.post(server[0] + SPEECH, json=body, timeout=300).content == post(server).content


def test_it_hears_nothing(server):
    form = {"files": {"file": ("a.wav", b"RIFF")}, "data": {"model": "demo"}}
    chat = {"json": {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}}
    for path, request in (
        ("/v1/audio/transcriptions", form),
        ("/v1/audio/translations", form),
        ("/v1/chat/completions", chat),
        ("/", {"json": {"inputs": "AAAA"}}),
    ):
        answer = httpx.post(server[0] + path, **request, timeout=60)
        assert answer.status_code == 400
        assert "speaks and does not hear: send a text to /v1/audio/speech" in answer.json()["error"]["message"]
    assert httpx.get(f"{server[0]}/page/facts.json").json()["tasks"] == []
    metrics = httpx.get(f"{server[0]}/metrics").text
    assert 'request_success_total{finished_reason="stop",model_name="demo"}' in metrics


def test_other_models_do_not_speak():
    with running(ServerOptions(port=0, served_model_name="demo")) as server:
        answer = post(server)
        assert answer.status_code == 400 and "answers in text and does not speak" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"voice": ["first"]}, "--voice must be NAME=FILE, not 'first'"),
        ({"voice": ["a=x.npy", "a=y.npy"]}, "--voice: two voices have one name: a"),
        ({"vocoder": None}, "such as microsoft/speecht5_hifigan, as --vocoder"),
        ({"voice": []}, "--voice is missing, as NAME=FILE, so that there is no voice to speak with: take one of"),
        ({"adapter": ["a=somewhere"]}, "--adapter a=somewhere: a model that speaks takes none"),
        ({"voice": ["a=missing.npy"]}, "no file 'missing.npy' with a voice"),
        ({"model": None}, "and takes no --vocoder and no --voice: leave them out"),
    ],
)
def test_servers_that_cannot_be(saved, changes, message):
    try:
        chosen = options(saved, **changes)
        with running(chosen, loaded=False) as (_, service):
            start_engine(chosen, service)
            until(lambda: service.ready or service.scheduler.failure, 300)
            error = service.scheduler.failure
    except ValueError as refused:
        error = refused
    assert message in in_words(error, say)

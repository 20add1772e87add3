"""Models that transcribe without times of their own behind the server: SeamlessM4T, which translates, and SpeechT5."""

import base64
import io
from functools import partial

import helpers_seamless as seamless
import helpers_speecht5 as speecht5
import httpx
import numpy as np
import openai
import pytest
import soundfile
from fake_service import serving

from mindone_audio.server.options import ServerOptions

CLIPS = {name: 0.1 * clip for name, clip in zip("ab", speecht5.clips(16000, 9000, seed=3))}
MODELS = {"seamless": seamless.save_checkpoint, "speecht5": speecht5.save_writer}
LANGUAGE = {"seamless": {"language": "fra"}, "speecht5": {}}


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture(scope="module", params=MODELS)
def server(request, tmp_path_factory):
    """(URL, service, which model)."""
    folder = tmp_path_factory.mktemp(request.param)
    MODELS[request.param](folder)
    options = ServerOptions(model=folder, served_model_name="demo", port=0, max_batch=2, max_tokens=12)
    with serving(options) as (url, service):
        yield url, service, request.param


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=300)


def expected(server, name, **asked):
    """What the pipeline makes of a clip, in the thread that has the model."""
    call = partial(server[1].pipe, CLIPS[name], **{**LANGUAGE[server[2]], **asked})
    return server[1].scheduler.run(call).result()[0]


@pytest.mark.parametrize("name", CLIPS)
def test_the_text_is_that_of_the_pipeline(server, client, name):
    asked = {"model": "demo", "file": ("a.wav", wav(CLIPS[name])), **LANGUAGE[server[2]]}
    known = expected(server, name)
    assert client.audio.transcriptions.create(**asked).text == known["text"] != ""
    told = client.audio.transcriptions.create(**asked, response_format="verbose_json")
    assert [(part.start, part.end, part.text) for part in told.segments] == [
        (part["start"], part["end"], part["text"]) for part in known["chunks"]
    ]
    events = list(client.audio.transcriptions.create(**asked, stream=True))
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == known["text"]


def test_translations(server, client):
    asked = {"model": "demo", "file": ("a.wav", wav(CLIPS["a"]))}
    if server[2] == "speecht5":
        with pytest.raises(openai.BadRequestError, match="knows English alone and translates nothing"):
            client.audio.translations.create(**asked)
        return
    english = expected(server, "a", language="eng")["text"]
    assert client.audio.translations.create(**asked).text == english != expected(server, "a")["text"]


def test_the_task(server):
    clip = base64.b64encode(wav(CLIPS["a"])).decode()
    body = {"inputs": {"audio": clip}, "parameters": {**LANGUAGE[server[2]], "max_new_tokens": 9}}
    answer = httpx.post(server[0] + "/predict", json=body, timeout=300).json()
    known = expected(server, "a", max_new_tokens=9)
    chunks = [{**chunk, "timestamp": list(chunk["timestamp"])} for chunk in known["chunks"]]
    assert answer == [{**known, "chunks": chunks}]
    body["inputs"]["text"] = "What?"
    assert "answers no questions" in httpx.post(server[0] + "/predict", json=body).json()["error"]["message"]


@pytest.mark.parametrize(
    "fields, seamless_says, speecht5_says",
    [
        ({}, "language is missing: known are deu, eng, fra", None),
        ({"language": "xx"}, "language='xx' is no language of this tokenizer: known are", "writes English alone"),
        ({"language": "eng", "prompt": "names"}, "takes no words beside the clip", "writes English alone"),
        (
            {"language": "eng", "response_format": "verbose_json", "timestamp_granularities[]": "word"},
            "knows no times of words: use segment, or a Whisper model",
            "knows no times of words",
        ),
    ],
)
def test_what_is_refused(server, fields, seamless_says, speecht5_says):
    files, message = {"file": ("a.wav", wav(CLIPS["a"]))}, {"seamless": seamless_says, "speecht5": speecht5_says}
    answer = httpx.post(server[0] + "/v1/audio/transcriptions", files=files, data={"model": "demo", **fields})
    if message[server[2]] is None:
        assert answer.status_code == 200
    else:
        assert answer.status_code == 400 and message[server[2]] in answer.json()["error"]["message"]


def test_it_answers_no_questions(server):
    chat = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(server[0] + "/v1/chat/completions", json=chat)
    assert answer.status_code == 400 and "send the clip to /v1/audio/transcriptions" in answer.text
    assert httpx.get(f"{server[0]}/page/facts.json").json()["tasks"] == ["transcribe"]

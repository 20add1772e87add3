"""Models, health, metrics, keys, overload and what a server says of itself; no model."""

import re
import threading

import httpx
import openai
import pytest
from fake_service import ANSWER, POSITIONS, running, text64, until, wav

from mindone_audio.generation.events import Overloaded
from mindone_audio.server.keys import read_keys
from mindone_audio.server.options import ServerOptions

CHAT = "/v1/chat/completions"


def body(text="hi", **more):
    return {"model": "demo", "messages": [{"role": "user", "content": text}], **more}


def post(url, text="hi", **more):
    return httpx.post(url + CHAT, json=body(text), **more)


@pytest.fixture(scope="module")
def server():
    with running() as (url, service):
        yield url, service


def test_models(server):
    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none")
    base, tuned = client.models.list().data
    assert (base.id, base.object, base.owned_by, base.root) == ("demo", "model", "mindone_audio", "demo")
    assert (tuned.id, tuned.parent, base.max_model_len) == ("tuned", "demo", POSITIONS)
    assert client.models.retrieve("tuned") == tuned and not hasattr(base, "parent")
    with pytest.raises(openai.NotFoundError, match="demo, tuned"):
        client.models.retrieve("other")


def test_names_of_models(tmp_path):
    assert list(ServerOptions().models) == ["qwen2_audio_demo"]
    assert list(ServerOptions(model=tmp_path).models) == [tmp_path.name]
    assert list(ServerOptions(model="Qwen/Qwen2-Audio-7B-Instruct").models) == ["Qwen/Qwen2-Audio-7B-Instruct"]
    both = ServerOptions(served_model_name="m", adapter=["a=/some/where=x", "b=c"])
    assert both.models == {"m": None, "a": "/some/where=x", "b": "c"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapter": ["a"]}, "adapter must be NAME=DIR, not 'a'"),
        ({"adapter": ["a=b", "a=c"]}, "two models have one name"),
        ({"port": 70000}, "port must be between 0 and 65535, not 70000"),
        ({"port": "http"}, "port must be .* whole number"),
        ({"max_batch": 0}, "max_batch must be between 1 and 256"),
        ({"max_queue": -1}, "max_queue must be"),
        ({"max_per_key": 0}, "max_per_key must be at least 1"),
        ({"max_audio_seconds": 0}, "max_audio_seconds must be greater than 0"),
        ({"dtype": "int8"}, "dtype must be one of float32"),
        ({"ssl_certfile": "a"}, "ssl_certfile and ssl_keyfile go together"),
        ({"allow_media_path": "/no/such/folder"}, "allow_media_path: there is no folder '/no/such/folder'"),
    ],
)
def test_options_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        ServerOptions(**fields)


def test_health_and_readiness(server):
    url, service = server
    try:
        assert [httpx.get(url + path).status_code for path in ("/health", "/ready")] == [200, 200]
        service.scheduler.ready = False
        assert [httpx.get(url + path).status_code for path in ("/health", "/ready")] == [200, 503]
        service.scheduler.ready, service.scheduler.alive = True, False
        assert [httpx.get(url + path).status_code for path in ("/health", "/ready")] == [503, 503]
    finally:
        service.scheduler.ready = service.scheduler.alive = True


def test_while_the_model_is_loaded():
    with running(loaded=False) as (url, _):
        assert [httpx.get(url + path).status_code for path in ("/health", "/ready")] == [200, 503]
        assert httpx.get(url + "/v1/models").status_code == httpx.get(url + "/metrics").status_code == 200
        refused = post(url)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
        assert refused.json()["error"]["code"] == "loading"


def test_metrics(server):
    url, service = server
    before = httpx.get(url + "/metrics").text
    for part, seconds in (("step", 0.004), ("unit", 0.02), ("unit", 0.03)):  # the scheduler tells this
        service.metrics.timed(part, seconds)
    for text in ("say one two", "say one"):
        post(url, text)
    answer = httpx.get(url + "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")

    def value(text, name):
        found = re.search(rf"^mindone_audio:{name}(?:{{.*}})? ([\d.e-]+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def grown(name):
        return value(answer.text, name) - value(before, name)

    assert grown("generation_tokens_total") == 5 and grown("prompt_tokens_total") == 5
    assert grown("request_success_total") == grown("e2e_request_latency_seconds_count") == 2
    assert grown("time_to_first_token_seconds_count") == grown("request_prompt_tokens_count") == 2
    assert grown("inter_token_latency_seconds_count") == 3 and grown("request_generation_tokens_count") == 2
    assert grown("request_time_per_output_token_seconds_count") == 2
    for phase, seconds in (("queue", 0.5), ("prefill", 0.5), ("decode", 2.0), ("inference", 2.5)):
        assert grown(f"request_{phase}_time_seconds_sum") == 2 * seconds
    assert value(answer.text, "kv_cache_usage_perc") == 0.25
    assert grown("step_seconds_sum") == 0.004 and grown("unit_seconds_count") == 2
    assert 'request_success_total{finished_reason="stop",model_name="demo"}' in answer.text
    assert value(answer.text, "num_requests_running") == value(answer.text, "num_requests_waiting") == 0


def test_requests_that_are_refused_are_counted(server):
    url, service = server
    service.scheduler.refuse = Overloaded("the queue is full: ask again", "queue", 0.2)
    try:
        refused = post(url)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"] == {
            **{"message": "the queue is full: ask again", "type": "overloaded"},
            **{"param": None, "code": "queue"},
        }
        service.scheduler.refuse = Overloaded("too many of this key", "key", 3.0)
        assert post(url).status_code == 429
    finally:
        service.scheduler.refuse = None
    assert 'admission_rejections_total{reason="queue"} 1.0' in httpx.get(url + "/metrics").text


def test_the_clients_retries_see_an_answer(server):
    """OpenAI's client asks again after 503 and 429, and never after a fault of the request."""
    url, service = server
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2)
    service.scheduler.refuse = Overloaded("full", "queue", 0.1)
    timer = threading.Timer(0.3, setattr, (service.scheduler, "refuse", None))
    timer.start()
    assert client.chat.completions.create(**body()).choices[0].message.content == ANSWER
    before = len(service.scheduler.submitted)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**body("fail value"))
    assert len(service.scheduler.submitted) == before + 1


def test_keys():
    keys = ["first-key", "secönd"]
    with running(keys=keys) as (url, service):
        good = [{"authorization": f"{scheme} first-key"} for scheme in ("Bearer", "bearer")]
        good.append({"authorization": "Bearer secönd".encode()})
        for headers in good:
            assert post(url, headers=headers).status_code == 200
        assert not any(key in str(service.scheduler.submitted) for key in keys)
        wrong = ["", "first-key", "Bearer", "Bearer first-ke", "Bearer first-key2", "Basic first-key"]
        paths = (
            "/ready",
            "/metrics",
            "/v1/models",
            "/openapi.json",
            "/nothing",
            "/v1/models/demo",
            "/health/",
            "//health",
        )
        for words in wrong:
            refused = httpx.post(url + CHAT, json=body(), headers={"authorization": words})
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "invalid_api_key"
        for path in paths:
            assert httpx.get(url + path).status_code == 401
        assert httpx.options(url + CHAT).status_code == httpx.post(url + "/").status_code == 401
        assert {httpx.get(url + path).status_code for path in ("/health", "/docs")} == {200}
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="first-key")
        assert client.models.list().data
        with pytest.raises(openai.AuthenticationError, match="Authorization: Bearer KEY"):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").models.list()


def test_a_refused_key_costs_no_upload():
    with running(keys=["k"]) as (url, _):
        assert httpx.post(url + CHAT, content=b"x" * (4 << 20)).status_code == 401


def test_keys_of_files(tmp_path):
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert read_keys(file, {}) == ["one", "two"]
    assert read_keys(file, {"MINDONE_AUDIO_API_KEY": "three"}) == ["one", "two", "three"]
    assert read_keys(None, {}) == [] and read_keys(None, {"MINDONE_AUDIO_API_KEY": " k "}) == ["k"]
    file.write_text("\n")
    with pytest.raises(ValueError, match="has no key: write one a line"):
        read_keys(file, {})


def held(url, service, count, **more):
    """Requests that stay in the scheduler, each in a thread; call `service.scheduler.go.set()` to let them end."""
    before, answers = len(service.scheduler.submitted), []
    threads = [threading.Thread(target=lambda: answers.append(post(url, "wait", **more))) for _ in range(count)]
    for thread in threads:
        thread.start()
    until(lambda: len(service.scheduler.submitted) == before + count)
    return threads, answers


def test_one_key_has_its_share():
    options = ServerOptions(served_model_name="demo", max_per_key=2)
    with running(options, keys=["a", "b"]) as (url, service):
        a, b = ({"authorization": f"Bearer {key}"} for key in "ab")
        threads, answers = held(url, service, 2, headers=a)
        refused = post(url, headers=a)
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "key"
        assert refused.json()["error"]["type"] == "overloaded" and "retry-after" in refused.headers
        assert post(url, headers=b).status_code == 200
        service.scheduler.go.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]
        assert post(url, headers=a).status_code == 200


def test_requests_beyond_the_queue_are_refused():
    options = ServerOptions(served_model_name="demo", max_batch=1, max_queue=1)
    with running(options) as (url, service):
        threads, answers = held(url, service, 2)
        refused = post(url)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "queue"
        assert httpx.get(url + "/health").status_code == 200
        service.scheduler.go.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]
        until(lambda: service.active == 0)
        assert post(url).status_code == 200


def test_audio_beyond_the_memory_is_refused():
    options = ServerOptions(served_model_name="demo", max_audio_seconds=1)
    with running(options) as (url, service):
        clip = {"type": "input_audio", "input_audio": {"data": text64(wav(1)), "format": "wav"}}
        asked = {"model": "demo", "messages": [{"role": "user", "content": [clip, {"type": "text", "text": "hi"}]}]}
        service.seconds = 3.0
        assert httpx.post(url + CHAT, json=asked).status_code == 200
        until(lambda: service.seconds == 3.0)
        service.seconds = 3.5
        refused = [
            httpx.post(url + CHAT, json=asked),
            httpx.post(url + "/predict", json={"inputs": {"audio": text64(wav(1))}}),
            *(
                httpx.post(f"{url}/v1/audio/{path}", files={"file": ("a.wav", wav(1))}, data={"model": "demo"})
                for path in ("transcriptions", "translations")
            ),
        ]
        assert [answer.status_code for answer in refused] == [503] * 4 and "fill the memory" in refused[0].text
        assert service.seconds == 3.5


def test_new_requests_are_refused_while_the_server_is_stopped():
    with running() as (url, service):
        threads, answers = held(url, service, 1)
        service.draining = True
        refused = post(url)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
        assert [httpx.get(url + path).status_code for path in ("/health", "/ready")] == [200, 503]
        service.scheduler.go.set()
        threads[0].join()
        assert answers[0].status_code == 200


def test_health_answers_while_clips_are_decoded(server, monkeypatch):
    """Both threads that prepare requests are busy; the loop is free."""
    from mindone_audio.server import chat

    begun, end = threading.Semaphore(0), threading.Event()

    def slow(source, policy, name, *, load=chat.media_samples):
        begun.release()
        end.wait(10)
        return load(source, policy, name)

    monkeypatch.setattr(chat, "media_samples", slow)
    clip = {"type": "input_audio", "input_audio": {"data": text64(wav(1)), "format": "wav"}}
    asked = {"model": "demo", "messages": [{"role": "user", "content": [clip]}]}
    statuses = []
    threads = [
        threading.Thread(target=lambda: statuses.append(httpx.post(server[0] + CHAT, json=asked).status_code))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    begun.acquire(), begun.acquire()
    assert httpx.get(server[0] + "/health").status_code == 200
    end.set()
    for thread in threads:
        thread.join()
    assert statuses == [200, 200]


def test_the_page_of_the_api_loads_nothing(server):
    schema = httpx.get(server[0] + "/openapi.json").json()
    paths = ["/v1/chat/completions", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/models", "/metrics"]
    assert {*paths, "/", "/predict", "/health", "/ready"} <= set(schema["paths"])
    fields = schema["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"temperature", "stop", "n"} <= set(fields["properties"]) and fields["required"] == ["model", "messages"]
    page = httpx.get(server[0] + "/docs").text
    assert all(path in page for path in schema["paths"])
    assert "http:" not in page and "https:" not in page and "<script" not in page and "//" not in page

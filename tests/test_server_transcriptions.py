"""/v1/audio/transcriptions, /v1/audio/translations and the task's schema, by OpenAI's client and by hand; no model."""

import json
import zlib

import httpx
import numpy as np
import openai
import pytest
from fake_service import AskedByToken, Pipe, Processor, running, text64, until, wav

from mindone_audio.server.options import ServerOptions


@pytest.fixture(scope="module")
def server():
    with running() as (url, service):
        yield url, service


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)


def form(server, clip=None, path="/v1/audio/transcriptions", **fields):
    files = {"file": ("a.wav", wav(1.0) if clip is None else clip)}
    return httpx.post(server[0] + path, files=files, data={"model": "demo", **fields})


def parts_of(server, since):
    return [asked.prepared.request for asked in server[1].scheduler.submitted[since:]]


def test_json(client, server):
    answer = client.audio.transcriptions.create(model="demo", file=("a.wav", wav(1.5)))
    assert answer.text == "window of 1.50 s" and answer.usage.type == "duration" and answer.usage.seconds == 1.5
    assert form(server, wav(1.5)).json() == {
        "text": "window of 1.50 s",
        "usage": {"type": "duration", "seconds": 1.5},
    }
    request = parts_of(server, -1)[0]
    assert request.transcribe and not request.chosen.do_sample and request.chosen.max_new_tokens == 256


def test_long_clips_by_windows_in_order(client, server):
    scheduler = server[1].scheduler
    before = len(scheduler.submitted)
    text = client.audio.transcriptions.create(model="demo", file=("a.wav", wav(140)), response_format="text")
    lengths = [len(request.clips[0]) / 16000 for request in parts_of(server, before)]
    assert len(lengths) >= 5 and max(lengths) <= 30 and sum(lengths) == pytest.approx(140)
    shown = sorted(f"window of {seconds:.2f} s" for seconds in lengths)
    assert text.endswith("s\n") and sorted(text.strip().replace("s w", "s|w").split("|")) == shown


def test_subtitles_are_short(client):
    made = {}
    for words in ("srt", "vtt"):
        made[words] = client.audio.transcriptions.create(model="demo", file=("a.wav", wav(20)), response_format=words)
    srt = made["srt"].split("\n")
    assert srt[0] == "1" and srt[1].startswith("00:00:00,000 --> 00:00:0") and srt[2].startswith("window of")
    assert made["vtt"].startswith("WEBVTT\n\n00:00:00.000 --> 00:00:0") and made["vtt"].count("-->") >= 2


def test_every_field_of_verbose_json(client, server):
    clip = wav(40)
    asked = {"response_format": "verbose_json", "timestamp_granularities": ["segment"], "language": "de"}
    answer = client.audio.transcriptions.create(model="demo", file=("a.wav", clip), temperature=0.5, **asked)
    assert (answer.duration, answer.language, answer.usage.seconds) == (40.0, "de", 40.0)
    assert answer.text == " ".join(segment.text for segment in answer.segments) and answer.task == "transcribe"
    first, second = answer.segments
    assert (first.id, first.start, first.seek, second.id) == (0, 0.0, 0, 1)
    assert first.end == second.start and second.end == 40.0 and second.seek == round(second.start * 100)
    assert first.tokens and 2 not in first.tokens and first.avg_logprob == -0.5 and first.temperature == 0.5
    packed = first.text.encode()
    assert first.compression_ratio == len(packed) / len(zlib.compress(packed)) and first.no_speech_prob == 0.0
    assert parts_of(server, -1)[0].chosen.do_sample and parts_of(server, -1)[0].language == "de"
    plain = form(server, clip, response_format="verbose_json").json()
    assert plain["language"] == "" and set(plain) == {"task", "language", "duration", "text", "segments", "usage"}


@pytest.mark.parametrize("name", ["timestamp_granularities[]", "timestamp_granularities"])
def test_both_spellings_of_a_list(server, name):
    assert form(server, response_format="verbose_json", **{name: "segment"}).status_code == 200
    answer = form(server, response_format="verbose_json", **{name: "word"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "timestamp_granularities"


def test_logprobs(client):
    answer = client.audio.transcriptions.create(model="demo", file=("a.wav", wav(1)), include=["logprobs"])
    assert "".join(entry.token for entry in answer.logprobs) == "window of 1.00 s"
    assert answer.logprobs[0].logprob == -0.5 and answer.logprobs[0].bytes == list(b"window")


@pytest.mark.parametrize("strategy", ["auto", {"type": "server_vad", "threshold": 0.5}])
def test_chunking_is_accepted(client, strategy):
    assert client.audio.transcriptions.create(model="demo", file=("a.wav", wav(1)), chunking_strategy=strategy).text


def test_events_byte_for_byte(server):
    made = form(server, wav(1), stream="true").content.decode()
    deltas = "".join(
        f'data: {{"type":"transcript.text.delta","delta":"{word}"}}\n\n' for word in ("window", " of", " 1.00", " s")
    )
    usage = '"type":"tokens","input_tokens":28,"output_tokens":5,"total_tokens":33'
    done = (
        'data: {"type":"transcript.text.done","text":"window of 1.00 s","usage":{'
        f'{usage},"input_token_details":{{"audio_tokens":25,"text_tokens":3}}}}}}\n\n'
    )
    assert made == deltas + done + "data: [DONE]\n\n"


def test_a_stream_by_the_client(client):
    events = list(client.audio.transcriptions.create(model="demo", file=("a.wav", wav(65)), stream=True))
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1)
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == "".join(event.delta for event in events[:-1]) and events[-1].text.count("window of") == 3
    assert events[-1].usage.total_tokens == events[-1].usage.input_tokens + events[-1].usage.output_tokens


def test_a_family_that_frames_its_transcriptions_streams_windows():
    class Framing(Processor):
        frames_transcriptions = True

        def transcription(self, answer):
            return answer.removeprefix("window ")

    with running(pipe=Pipe(Framing())) as server:
        made = form(server, wav(1), stream="true").text.split("\n\n")
        assert json.loads(made[0].removeprefix("data: ")) == {"type": "transcript.text.delta", "delta": "of 1.00 s"}
        assert json.loads(made[1].removeprefix("data: "))["text"] == "of 1.00 s"


def test_silence(client, server):
    """Digital silence is not asked about; what the family answers to other silence is no text."""
    before = len(server[1].scheduler.submitted)
    quiet = wav(2, level=0)
    for clip in (quiet, wav(2, level=0.02)):
        assert client.audio.transcriptions.create(model="demo", file=("a.wav", clip)).text == ""
        assert form(server, clip, response_format="text").text == ""
        assert form(server, clip, response_format="vtt").text == "WEBVTT\n"
        assert form(server, clip, response_format="verbose_json").json()["segments"] == []
        events = form(server, clip, stream="true").text
        assert events.startswith('data: {"type":"transcript.text.done","text":""') and "No" not in events
    assert len(parts_of(server, before)) == 5
    wrong = form(server, quiet, language="xx")
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "language"


def test_a_later_window_waits_for_a_place(server):
    """Where the queue fills up under a transcription that has begun, it goes on when there is a place."""
    from mindone_audio.generation.events import Overloaded

    scheduler, refusals, deadlines = server[1].scheduler, [1], set()
    submit = scheduler.submit

    def full_once(prepared, listener, **more):
        if prepared.request.clips[0].size < 16000 * 20 and refusals:
            refusals.pop()
            raise Overloaded("full", "queue", 1.0)
        deadlines.add(more["deadline"])
        return submit(prepared, listener, **more)

    scheduler.submit = full_once
    try:
        assert form(server, wav(40)).json()["text"].count("window of") == 2 and not refusals
        assert deadlines == {60.0, None}  # the first window may wait so long, a later one as long as it must
        refusals.append(1)
        refused = form(server, wav(1))
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    finally:
        scheduler.submit = submit


def test_a_client_that_leaves_cancels_all_windows(server):
    scheduler = server[1].scheduler

    def slow(prepared, listener, *, submit=scheduler.submit, **more):
        prepared.request.messages[0]["content"].append({"type": "text", "text": "hang on"})
        return submit(prepared, listener, **more)

    scheduler.submit, before = slow, len(scheduler.submitted)
    scheduler.go.clear()
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server[0]}/v1/audio/transcriptions",
                files={"file": ("a.wav", wav(100))},
                data={"model": "demo"},
                timeout=httpx.Timeout(5, read=0.5),
            )
        until(lambda: scheduler.running == 0 and server[1].active == 0)
        assert len(scheduler.submitted) == before + 2  # so many windows are in the scheduler at a time
        assert all(asked in scheduler.cancelled for asked in scheduler.submitted[before:])
    finally:
        del scheduler.submit


def test_translations(client, server):
    asked = {"model": "demo", "file": ("a.wav", wav(1))}
    assert client.audio.translations.create(**asked).text == "window of 1.00 s"
    request = parts_of(server, -1)[0]
    assert not request.transcribe and request.text == "Translate the speech to English."
    verbose = client.audio.translations.create(**asked, response_format="verbose_json")
    assert (verbose.task, verbose.language, verbose.segments[0].text) == ("translate", "english", "window of 1.00 s")
    assert form(server, wav(2, level=0.02), "/v1/audio/translations").json()["text"] == ""
    assert form(server, path="/v1/audio/translations", language="de").json()["error"]["param"] == "language"


def test_a_family_without_words_for_translations():
    with running(pipe=Pipe(AskedByToken())) as server:
        refused = form(server, path="/v1/audio/translations")
        assert refused.status_code == 400 and "only transcribes" in refused.json()["error"]["message"]
        assert form(server).json()["text"] == "window of 1.00 s"


@pytest.mark.parametrize("path", ["/", "/predict"])
def test_the_tasks_schema(server, path):
    item = {"audio": text64(wav(1)), "text": "say yes"}
    post = httpx.post(
        server[0] + path, json={"inputs": item, "parameters": {"max_new_tokens": 128, "temperature": 0.7}}
    )
    assert post.status_code == 200 and post.json() == [{"generated_text": "yes"}]
    chosen = parts_of(server, -1)[0].chosen
    assert (chosen.max_new_tokens, chosen.temperature, chosen.do_sample) == (128, 0.7, True)


def test_lists_and_parameters_of_the_task(server):
    def post(inputs, **parameters):
        return httpx.post(server[0] + "/predict", json={"inputs": inputs, "parameters": parameters}).json()

    clip = "data:audio/wav;base64," + text64(wav(1))
    inputs = [{"audio": clip, "text": f"say {number}"} for number in range(5)]
    assert post(inputs) == [{"generated_text": str(number)} for number in range(5)]
    assert post({"audio": clip}) == [{"generated_text": "It is a siren."}]
    assert parts_of(server, -1)[0].text == "Describe the audio." and not parts_of(server, -1)[0].chosen.do_sample
    assert post(clip) == [{"generated_text": "It is a siren."}]
    full = {"return_full_text": True, "return_token_count": True, "stop_sequence": " b"}
    assert post({"audio": clip, "text": "say a b"}, **full) == [{"generated_text": "say a ba", "tokens": 2}]
    assert post(clip, temperature=0) and not parts_of(server, -1)[0].chosen.do_sample


def test_all_inputs_together_have_a_limit():
    with running(ServerOptions(served_model_name="demo", max_audio_seconds=2)) as server:
        item = {"audio": text64(wav(1))}
        answer = httpx.post(server[0] + "/", json={"inputs": [item] * 3})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "inputs"
        assert np.isclose(form(server, wav(2)).json()["usage"]["seconds"], 2)


def test_a_prompt_follows_the_question(client, server):
    """In the pipeline's request for a transcription, in the question of a translation."""
    submitted = server[1].scheduler.submitted
    client.audio.transcriptions.create(model="demo", file=("a.wav", wav(1.0)), prompt="Names: Ada.")
    assert submitted[-1].prepared.request.prompt == "Names: Ada."
    client.audio.transcriptions.create(model="demo", file=("a.wav", wav(1.0)), prompt="")
    assert submitted[-1].prepared.request.prompt is None
    client.audio.translations.create(model="demo", file=("a.wav", wav(1.0)), prompt="Names: Ada.")
    assert submitted[-1].prepared.request.text == "Translate the speech to English. Names: Ada."

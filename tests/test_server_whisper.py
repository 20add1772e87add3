"""A Whisper model behind the server, by OpenAI's client and by hand: a tiny random one with the real scheduler."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import helpers_whisper as whisper
import httpx
import numpy as np
import openai
import pytest
import soundfile
from fake_service import serving, text64, until
from server_process import server_process

from mindone_audio.server.options import ServerOptions

TRANSCRIBE, TRANSLATE = "/v1/audio/transcriptions", "/v1/audio/translations"


def noise(seconds, seed=0):
    """The samples of a clip."""
    return 0.1 * np.random.default_rng(seed).normal(size=int(16000 * seconds)).astype(np.float32)


def wav(samples):
    """A clip as a file."""
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", subtype="FLOAT")
    return file.getvalue()


CLIPS = {seed: noise(seconds, seed) for seed, seconds in ((1, 1.0), (2, 0.3), (3, 1.3))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Its windows have short answers: the texts of a random model are tried again at every temperature."""
    made = tmp_path_factory.mktemp("whisper_server")
    whisper.save_checkpoint(made)
    whisper.generation_config(max_length=16).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def server(folder):
    options = ServerOptions(model=folder, served_model_name="demo", port=0, max_batch=4)
    with serving(options) as found:
        yield found


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def expected(server):
    """What the pipeline makes of a clip, in the thread that has the model."""
    made = {}

    def answer(seed, **settings):
        key = seed, repr(settings)
        if key not in made:
            asked = {"task": "transcribe", **settings}
            made[key] = server[1].scheduler.run(partial(server[1].pipe, CLIPS[seed], **asked)).result()[0]
        return made[key]

    return answer


def form(server, clip=None, path=TRANSCRIBE, **fields):
    files = {"file": ("a.wav", wav(CLIPS[2]) if clip is None else clip)}
    return httpx.post(server[0] + path, files=files, data={"model": "demo", **fields}, timeout=300)


def refusal(answer):
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize("asked", [{}, {"temperature": 0}, {"language": "de"}, {"language": "German", "prompt": "!"}])
def test_the_text_is_that_of_the_pipeline(client, expected, asked):
    settings = {name: value for name, value in asked.items() if name != "temperature"}
    answer = client.audio.transcriptions.create(model="demo", file=("a.wav", wav(CLIPS[1])), **asked)
    assert answer.text == expected(1, **settings)["text"] and answer.text and answer.usage.seconds == 1.0


def test_segments_words_and_measures(client, expected):
    asked = {"response_format": "verbose_json", "timestamp_granularities": ["segment", "word"]}
    answer = client.audio.transcriptions.create(model="demo", file=("a.wav", wav(CLIPS[1])), **asked)
    known = expected(1, return_timestamps="word")
    assert (answer.text, answer.language, answer.duration) == (known["text"], known["language"], 1.0)
    told = [(segment.start, segment.end, segment.text) for segment in answer.segments]
    assert told == [(chunk["start"], chunk["end"], chunk["text"]) for chunk in known["chunks"]]
    words = [word for chunk in known["chunks"] for word in chunk["words"]]
    assert [(word.word, word.start, word.end) for word in answer.words] == [
        (word["word"].strip(), word["start"], word["end"]) for word in words
    ]
    for number, segment in enumerate(answer.segments):
        assert segment.id == number and segment.tokens and whisper.END not in segment.tokens
        assert segment.avg_logprob < 0 < segment.no_speech_prob < 1 and segment.compression_ratio > 0
        assert segment.temperature in (0, 0.2, 0.4, 0.6, 0.8, 1.0) and 0 <= segment.seek <= round(100 * segment.start)
    assert len({segment.seek for segment in answer.segments}) > 1
    alone = client.audio.transcriptions.create(
        model="demo", file=("a.wav", wav(CLIPS[1])), **asked | {"timestamp_granularities": ["word"]}
    )
    assert alone.words == answer.words and alone.segments is None


def test_the_measures_are_those_of_the_windows(server):
    """As the model measures them without a server."""
    told = form(server, response_format="verbose_json", language="en").json()["segments"]
    pipe = server[1].pipe
    clip = pipe.prepare(CLIPS[2], {"language": "en", "task": "transcribe"})

    def hear():
        from mindone_audio.models.whisper.transcription import transcribe

        list(transcribe(pipe.model.engine(True), [clip], 1))

    server[1].scheduler.run(hear).result()
    windows = [segment.window for segment in clip.segments if pipe.chunk(segment, clip)["text"]]
    assert len(told) == len(windows) > 0
    for segment, window in zip(told, windows):
        assert (segment["seek"], segment["temperature"]) == (window.seek, window.temperature)
        assert segment["avg_logprob"] == pytest.approx(window.log_probability, abs=1e-4)
        assert segment["no_speech_prob"] == pytest.approx(window.no_speech, rel=1e-3)


@pytest.mark.parametrize("words", ["text", "srt", "vtt"])
def test_other_formats(client, expected, words):
    from mindone_audio.pipelines.subtitles import subtitles

    answer = client.audio.transcriptions.create(model="demo", file=("a.wav", wav(CLIPS[1])), response_format=words)
    known = expected(1)
    assert answer == (known["text"] + "\n" if words == "text" else subtitles(known["chunks"], words))


def test_several_at_once_are_each_alone(server, expected):
    def ask(seed):
        return form(server, wav(CLIPS[seed]), language="de").json()["text"]

    order = [1, 2, 3, 2, 1, 3]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(ask, order))
    assert made == [expected(seed, language="de")["text"] for seed in order]


def test_a_stream_is_the_whole(client, expected):
    asked = {"model": "demo", "file": ("a.wav", wav(CLIPS[3])), "stream": True}
    events = list(client.audio.transcriptions.create(**asked, language="en"))
    known = expected(3, language="en")
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * len(known["chunks"])
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == known["text"]
    usage = events[-1].usage
    assert usage.output_tokens > 0 and usage.total_tokens == usage.input_tokens + usage.output_tokens
    asked |= {"response_format": "verbose_json", "timestamp_granularities": ["word"]}
    events = list(client.audio.transcriptions.create(**asked, language="en"))
    segments = [event for event in events if event.type == "transcript.text.segment"]
    assert [(event.start, event.end, event.text) for event in segments] == [
        (chunk["start"], chunk["end"], chunk["text"]) for chunk in known["chunks"]
    ]
    timed = expected(3, language="en", return_timestamps="word")["chunks"]
    assert [event.words for event in segments] == [
        [word | {"word": word["word"].strip()} for word in chunk["words"]] for chunk in timed
    ]


def test_logprobs(client):
    answer = client.audio.transcriptions.create(model="demo", file=("a.wav", wav(CLIPS[1])), include=["logprobs"])
    assert "".join(entry.token for entry in answer.logprobs).replace(" ", "") == answer.text.replace(" ", "")
    assert all(entry.logprob <= 0 for entry in answer.logprobs)


def test_a_temperature_holds_and_draws(server):
    answers = [form(server, response_format="verbose_json", temperature="0.9").json() for _ in range(3)]
    assert {segment["temperature"] for answer in answers for segment in answer["segments"]} == {0.9}
    assert len({answer["text"] for answer in answers}) > 1


def test_translations(client, expected):
    asked = {"model": "demo", "file": ("a.wav", wav(CLIPS[1]))}
    assert client.audio.translations.create(**asked).text == expected(1, task="translate")["text"]
    verbose = client.audio.translations.create(**asked, response_format="verbose_json")
    assert verbose.language == "english" and verbose.segments


def test_silence_asks_nothing(server):
    counted = "mindone_audio:request_success_total"
    before = httpx.get(server[0] + "/metrics").text.count(counted), server[1].scheduler.waiting
    quiet = wav(np.zeros(8000, np.float32))
    assert form(server, quiet).json() == {"text": "", "usage": {"type": "duration", "seconds": 0.5}}
    assert form(server, quiet, response_format="verbose_json").json()["segments"] == []
    assert '"text":""' in form(server, quiet, stream="true").text
    assert refusal(form(server, quiet, language="xx"))["param"] == "language"
    assert (httpx.get(server[0] + "/metrics").text.count(counted), server[1].scheduler.waiting) == before


@pytest.mark.parametrize(
    "fields, param, message",
    [
        ({"language": "xx"}, "language", "language 'xx' is none of this model's: it has de, en, fr"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities", "goes with response_format verbose_json"),
        (
            {"timestamp_granularities[]": "letter", "response_format": "verbose_json"},
            "timestamp_granularities",
            "'letter': unknown: use segment or word",
        ),
        ({"best_of": "5"}, "best_of", "best_of is no field of this request"),
        ({"temperature": "2"}, "temperature", "temperature must be between 0 and 1"),
        ({"prompt": "<|en|>"}, "prompt", "prompt cannot be"),
        ({"response_format": "xml"}, "response_format", "response_format must be one of"),
        ({"include[]": "logprobs", "response_format": "text"}, "include", "goes with response_format json"),
    ],
)
def test_what_cannot_be(server, fields, param, message):
    error = refusal(form(server, **fields))
    assert error["param"] == param and message in error["message"]


def test_a_broken_clip(server):
    assert refusal(form(server, b"RIFF, but no clip"))["param"] == "file"


def test_a_long_prompt_keeps_its_end(server):
    long, short = "!" * 200, "!" * 31  # half of the decoder's 64 positions, without the token before them
    answers = [form(server, prompt=prompt, language="en").json()["text"] for prompt in (long, short)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("stream", [False, True])
def test_questions_are_refused(client, stream):
    audio = {"type": "input_audio", "input_audio": {"data": text64(wav(CLIPS[2])), "format": "wav"}}
    messages = [{"role": "user", "content": [audio, {"type": "text", "text": "What is that?"}]}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo", messages=messages, stream=stream)
    assert "model demo transcribes and answers no questions: send the clip to /v1/audio/transcriptions" in str(
        refused.value
    )
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=messages)


def test_the_tasks_schema(server, expected):
    def post(inputs, **parameters):
        body = {"inputs": inputs, "parameters": parameters}
        return httpx.post(server[0] + "/predict", json=body, timeout=300)

    clip = {"audio": text64(wav(CLIPS[1]))}
    known = json.loads(json.dumps(expected(1, language="de", return_token_count=True)))
    settings = {"language": "de", "task": "transcribe"}
    assert post(clip, **settings, return_token_count=True).json() == [known]
    answers = post([clip, {"audio": text64(wav(np.zeros(800, np.float32)))}], **settings).json()
    assert [answer["generated_text"] for answer in answers] == [known["text"], ""]
    error = refusal(post(clip | {"text": "What is that?"}))
    assert error["param"] == "inputs.text" and "transcribes and answers no questions" in error["message"]


@pytest.mark.parametrize(
    "parameters",
    [
        *({"language": "xx"}, {"language": ["de", "en"]}, {"language": 5}, {"task": "caption"}, {"num_beans": 2}),
        *({"num_beams": 2}, {"temperature": []}, {"temperature": "hot"}, {"temperature": {}}, {"prompt": 5}),
        *({"prompt_ids": "x"}, {"prompt_ids": [5000]}, {"prompt_ids": [[1], [2, 3]]}, {"max_new_tokens": 1000}),
        *({"return_timestamps": "letters"}, {"return_timestamps": []}, {"input_features": [1]}, {"compile": False}),
        *({"generation_config": {}}, {"attention_mask": 1}, {"return_token_timestamps": True}, {"regex": "a"}),
        *({"stop_strings": "a"}, {"no_speech_threshold": "x"}, {"condition_on_prev_tokens": 3}, {"self": 1}),
        *({"prompt_condition_type": ["x"]}, {"return_token_count": 1}, {"logprob_threshold": []}, {"engine": 1}),
        {"suppress_tokens": list(range(whisper.VOCAB))},
    ],
)
def test_wrong_parameters_of_the_task(server, parameters):
    body = {"inputs": {"audio": text64(wav(CLIPS[2]))}, "parameters": parameters}
    error = refusal(httpx.post(server[0] + "/predict", json=body, timeout=300))
    assert error["message"] and "\n" not in error["message"]


def test_what_the_server_says_of_itself(server, client):
    (model,) = client.models.list().data
    assert model.id == "demo" and model.max_model_len == 64
    assert httpx.get(server[0] + "/ready").json() == {"ready": True}
    facts = httpx.get(server[0] + "/page/facts.json").json()
    assert facts["tasks"] == ["transcribe"] and facts["longest_clip"] is None and not facts["one_clip"]


def test_metrics_count_windows(server):
    def count():
        lines = httpx.get(server[0] + "/metrics").text.splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith("mindone_audio:generation_tokens_total")
        )

    before = count()
    assert form(server, language="en").json()["text"]
    assert count() > before


def test_a_client_that_leaves_ends_its_request(server):
    with pytest.raises(httpx.ReadTimeout):
        files = {"file": ("a.wav", wav(noise(60)))}
        timeout = httpx.Timeout(60, read=0.7)
        httpx.post(server[0] + TRANSCRIBE, files=files, data={"model": "demo"}, timeout=timeout)
    scheduler = server[1].scheduler
    until(lambda: server[1].active == 0 and scheduler.running == scheduler.waiting == 0)
    assert form(server).status_code == 200


def test_an_english_only_model(tmp_path):
    whisper.save_checkpoint(tmp_path, multilingual=False)
    options = ServerOptions(model=tmp_path, served_model_name="demo", port=0, max_batch=1, max_audio_seconds=1.2)
    with serving(options) as server:
        error = refusal(form(server, path=TRANSLATE))
        assert error["param"] == "model" and "model demo knows English alone and translates nothing" in error["message"]
        answer = form(server, response_format="verbose_json", language="en").json()
        assert answer["language"] == "english" and answer["text"]
        assert refusal(form(server, language="de"))["param"] == "language"
        assert "longer than" in refusal(form(server, wav(CLIPS[3])))["message"]


@pytest.mark.slow
def test_the_command(folder):
    with server_process("--model", folder, "--served-model-name", "demo", "--port", 0) as process:
        answer = form((process.url,), response_format="verbose_json", **{"timestamp_granularities[]": "word"}).json()
        assert answer["text"] and answer["words"] and process.end(15) == 0

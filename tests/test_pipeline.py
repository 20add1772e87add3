"""The pipeline with the bundled checkpoint: every form of input and output, long audio, streams, and bad input."""

import base64
from pathlib import Path

import numpy as np
import pytest
from transformers import GenerationConfig, TextStreamer

from mindone_audio import AutoProcessor, load_audio, pipeline
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.generation.text_stream import cut, text_stream
from mindone_audio.inputs.audio import AudioError, quiet_windows
from mindone_audio.pipelines import audio_text_to_text

AUDIO = Path(__file__).parent.parent / "examples" / "audio"
SIREN, SPEECH, BEEPS = (str(AUDIO / name) for name in ("siren.ogg", "spoken_command.wav", "three_beeps.wav"))
SOUND, WORDS, COUNT = "What's that sound?", "What does the person say?", "How many beeps do you hear?"


@pytest.fixture(scope="module")
def pipe():
    return pipeline("audio-text-to-text")


@pytest.fixture(scope="module")
def long_clip():
    """Speech three times in 18 s, with silence between."""
    return np.concatenate([load_audio(SPEECH), np.zeros(80_000, np.float32)] * 3)


def ask(clip, text):
    return [{"role": "user", "content": [{"type": "audio", "path": clip}, {"type": "text", "text": text}]}]


def test_one_clip_and_its_two_spellings_of_the_answer(pipe):
    result = pipe(SIREN, text=SOUND, generate_kwargs={"max_new_tokens": 100})
    assert result == [{"generated_text": "It is a siren."}]
    assert result["generated_text"] == result[0]["generated_text"] == "It is a siren."


def test_the_task_schema(pipe):
    schema = {"inputs": {"audio": BEEPS, "text": COUNT}, "parameters": {"max_new_tokens": 128, "temperature": 0.7}}
    assert pipe(schema) == [{"generated_text": "Three beeps."}]
    assert pipe({"inputs": {"audio": SIREN}}) == [{"generated_text": "A siren is wailing."}]  # the text is optional
    assert pipe({"audio": SIREN, "text": SOUND}) == [{"generated_text": "It is a siren."}]
    short = pipe({"inputs": {"audio": SPEECH, "text": WORDS}, "parameters": {"max_new_tokens": 1}})
    assert short["generated_text"] == "open"


def test_every_kind_of_clip(pipe):
    samples, rate = load_audio(SIREN, 8000), 8000
    data = Path(SIREN).read_bytes()
    for clip in (Path(SIREN), data, base64.b64encode(data).decode(), {"array": samples, "sampling_rate": rate}):
        assert pipe(clip, text=SOUND)["generated_text"] == "It is a siren."
    assert pipe(load_audio(SIREN), text=SOUND)["generated_text"] == "It is a siren."
    encoded = base64.b64encode(data).decode()
    pair = (rate, (samples * 32767).astype(np.int16))
    for clip in (pair, pair[::-1], {"raw": samples, "sampling_rate": rate}, {"bytes": data, "path": None}):
        for one in (clip, {"audio": clip}, {"inputs": {"audio": clip}}):
            assert pipe(one, text=SOUND) == [{"generated_text": "It is a siren."}]
    assert pipe((SIREN, pair), text=SOUND)["generated_text"] == ["It is a siren."] * 2
    for part in (
        {"type": "audio_url", "audio_url": {"url": f"data:audio/ogg;base64,{encoded}"}},
        {"type": "input_audio", "input_audio": {"data": encoded, "format": "ogg"}},
        {"type": "audio", "audio": {"bytes": data, "path": None}},
    ):
        chat = [{"role": "user", "content": [part, {"type": "text", "text": SOUND}]}]
        assert pipe(chat)["generated_text"] == "It is a siren."


def test_conversations(pipe):
    turns = [*ask(SPEECH, WORDS), {"role": "assistant", "content": "open the door"}]
    turns += [{"role": "user", "content": "Is the speaker male or female?"}]
    system = [{"role": "system", "content": "You are a helpful assistant."}]
    assert pipe(system + turns)["generated_text"] == "The speaker is female."
    whole = pipe(turns, return_full_text=True)["generated_text"]
    assert whole == [*turns, {"role": "assistant", "content": "The speaker is female."}]
    assert pipe(SIREN, text=SOUND, return_full_text=True)["generated_text"] == f"{SOUND}It is a siren."


def test_a_list_is_answered_in_its_order_and_as_one_by_one(pipe):
    clips = [SPEECH, SIREN, BEEPS, SIREN]
    texts = [WORDS, SOUND, COUNT, "Is anybody speaking?"]
    mixed = [ask(SIREN, SOUND), {"audio": BEEPS, "text": COUNT}]
    together = pipe(clips, text=texts, batch_size=3)
    assert together["generated_text"] == [pipe(clip, text=text)["generated_text"] for clip, text in zip(clips, texts)]
    assert pipe(mixed)["generated_text"] == ["It is a siren.", "Three beeps."]
    assert pipe([SIREN], text=SOUND)["generated_text"] == ["It is a siren."]
    parameters = [{"inputs": {"audio": SPEECH, "text": WORDS}, "parameters": {"max_new_tokens": n}} for n in (1, 20)]
    assert pipe(parameters)["generated_text"] == ["open", "open the door"]


def test_a_base_model_gets_the_raw_prompt_and_an_instruct_model_the_template(pipe):
    processor = pipe.processor
    assert processor.answers_chats(pipe.model.generation_config)
    raw, chat = (
        processor.decode(processor.conversation_inputs([ask(SIREN, SOUND)], chat=chat)["input_ids"][0])
        for chat in (False, True)
    )
    assert raw.startswith("<|audio_bos|><|AUDIO|>") and raw.endswith(f"<|AUDIO|><|audio_eos|>{SOUND}")
    assert chat.startswith("<|im_start|>system") and chat.endswith(f"{SOUND}<|im_end|>\n<|im_start|>assistant\n")
    pipe.model.generation_config.eos_token_id, kept = 785, pipe.model.generation_config.eos_token_id
    try:
        assert not processor.answers_chats(pipe.model.generation_config)
        assert pipe(SIREN, text=SOUND)["generated_text"] == "It is a siren."
        with pytest.raises(ValueError, match="base model.*one user message"):
            pipe([{"role": "system", "content": "x"}, *ask(SIREN, SOUND)])
    finally:
        pipe.model.generation_config.eos_token_id = kept


def test_tasks(pipe):
    assert pipe(SPEECH, task="transcribe")["generated_text"] == "open the door"
    assert pipe(SPEECH, task="caption")["generated_text"] == pipe(SPEECH)["generated_text"]
    with pytest.raises(ValueError, match="language='en': this model family transcribes without"):
        pipe(SPEECH, task="transcribe", language="en")


def test_long_audio_is_never_cut_silently(pipe, long_clip):
    with pytest.raises(AudioError, match='18.40 s long and the model hears 10 s.*long_audio="windows"'):
        pipe(long_clip, text=SOUND)
    answer = pipe(long_clip, text=SOUND, long_audio="windows")["generated_text"]
    assert answer.split("\n") == ["It is a person speaking."] * 2
    result = pipe(long_clip, task="transcribe")[0]
    assert result["generated_text"].count("open the door") >= 2
    chunks = result["chunks"]
    assert chunks[0]["start"] == 0 and chunks[-1]["end"] == pytest.approx(len(long_clip) / 16000)
    assert all(a["end"] == b["start"] for a, b in zip(chunks, chunks[1:]))
    assert all(chunk["timestamp"] == (chunk["start"], chunk["end"]) for chunk in chunks)
    assert result["generated_text"] == " ".join(chunk["text"] for chunk in chunks if chunk["text"])


def test_silence_is_not_transcribed(pipe):
    clip = np.concatenate([load_audio(SPEECH), np.zeros(200_000, np.float32)])
    result = pipe(clip, task="transcribe")[0]
    assert result["generated_text"] == "open the door" and result["chunks"][-1]["text"] == ""
    assert pipe(np.full(32_000, 0.05, np.float32), task="transcribe")["generated_text"] == ""


def test_windows_are_cut_where_it_is_quiet():
    rng, rate = np.random.default_rng(0), 16000
    clip = rng.normal(0, 0.1, 30 * rate).astype(np.float32)
    for second in (8.3, 17.0, 24.5):
        clip[int(second * rate) : int((second + 0.2) * rate)] = 0
    windows = quiet_windows(clip, rate, 10.0)
    assert [start for start, _ in windows[1:]] == [end for _, end in windows[:-1]]
    assert windows[0][0] == 0 and windows[-1][1] == len(clip)
    for (_, end), second in zip(windows, (8.3, 17.0, 24.5)):
        assert second <= end / rate <= second + 0.2
    loud = quiet_windows(rng.normal(size=5 * rate).astype(np.float32), rate, 1.0)
    assert max(end - start for start, end in loud) <= rate and len(loud) <= 8
    assert quiet_windows(clip[:7], rate, 10.0) == [(0, 7)]


def test_streaming_gives_the_same_text(pipe, long_clip):
    pieces = list(pipe(SPEECH, stream=True))
    assert len(pieces) > 2 and "".join(pieces) == pipe(SPEECH)["generated_text"]
    joined = "".join(pipe(long_clip, task="transcribe", stream=True))
    assert joined == pipe(long_clip, task="transcribe")["generated_text"]
    with pytest.raises(ValueError, match="stream=True takes one input"):
        pipe([SPEECH, SIREN], stream=True)


def test_an_abandoned_stream_does_not_disturb(pipe):
    stream = pipe(SPEECH, stream=True)
    next(stream)
    assert pipe(SPEECH)["generated_text"] == "A woman says: open the door."
    with pytest.raises(RuntimeError, match="another generation has begun"):
        list(stream)


def test_stop_sequence(pipe):
    whole = pipe(SPEECH)["generated_text"]
    for stop in (" the", [": open", "nothing"]):
        first = stop if isinstance(stop, str) else stop[0]
        expected = whole[: whole.index(first)]
        assert pipe(SPEECH, stop_sequence=stop)["generated_text"] == expected
        assert "".join(pipe(SPEECH, stop_sequence=stop, stream=True)) == expected


@pytest.fixture
def scripted(pipe, monkeypatch):
    """The pipeline with a model that says what it is told: a list of words for each window, one token each."""
    words, calls = [], []

    def tokens_of(request):
        calls.append(request)
        said = calls and words[min(len(calls), len(words)) - 1]
        return range(1000 * min(len(calls), len(words)), 1000 * min(len(calls), len(words)) + len(said))

    def generated(engine, requests, most):
        return ((tag, np.array(tokens_of(request), np.int32)) for tag, request in requests)

    def decode(ids, **settings):
        return "".join(words[i // 1000 - 1][i % 1000] for i in ids)

    monkeypatch.setattr(audio_text_to_text, "generated", generated)
    monkeypatch.setattr(audio_text_to_text, "columns", lambda engine, some: ([t] for t in tokens_of(some[0])))
    monkeypatch.setattr(type(pipe.processor), "decode", lambda self, ids, **settings: decode(ids))

    def both(clip, *said, **settings):
        words[:] = said
        monkeypatch.setattr(pipe, "_tokens", {})  # the texts of the words before
        calls.clear()
        whole = pipe(clip, batch_size=1, **settings)["generated_text"]
        calls.clear()
        assert "".join(pipe(clip, stream=True, **settings)) == whole
        return whole

    return both


def test_a_stream_is_the_generated_text_always(scripted, long_clip):
    words = ["  ", "\n a", " b", "\n", "c", " ", "\n"]
    assert scripted(SIREN, words) == "a b\nc"
    assert scripted(SIREN, words, return_full_text=True, text="Well?") == "Well?a b\nc"
    for stop, text in (("\n", ""), (["c", "\nc"], "a b"), (" ", ""), ("b\nc", "a"), (["b", "a b\nd"], "a")):
        assert scripted(SIREN, words, stop_sequence=stop) == text
    assert scripted(SIREN, []) == "" == scripted(SIREN, [" ", "\n"])
    assert scripted(SIREN, ["答", "案", "。好", "的"], stop_sequence="。好") == "答案"
    assert scripted(SIREN, ["a", " b"], stop_sequence="x", stop_strings="y", num_beams=2) == "a b"
    for said in ([["a "], [""]], [[" "], [" b"]], [["a"], [" b ", "\n"]], [[""], [""]]):
        parts = [part for part in ("".join(words).strip() for words in said) if part]
        assert scripted(long_clip, *said, text="?", long_audio="windows") == "\n".join(parts)
        assert scripted(long_clip, *said, task="transcribe") == " ".join(parts)


def test_what_a_stream_cannot_give(pipe):
    with pytest.raises(ValueError, match="return_full_text of a conversation is a list of messages"):
        pipe(ask(SIREN, SOUND), return_full_text=True, stream=True)
    with pytest.raises(ValueError, match="streamer and stream=True"):
        pipe(SIREN, stream=True, generate_kwargs={"streamer": TextStreamer(pipe.processor.tokenizer)})


def test_settings_of_generate_as_hugging_face_takes_them(pipe):
    whole = pipe(SPEECH)["generated_text"]
    for settings in (
        {"stop_strings": " the"},
        {"stop_strings": [" the", "never"], "stop_sequence": "nor this"},
        {"generation_config": GenerationConfig(stop_strings=" the", max_new_tokens=20)},
    ):
        for given in (settings, {"generate_kwargs": settings}):
            text = pipe(SPEECH, **given)["generated_text"]
            assert text == "".join(pipe(SPEECH, stream=True, **given))
            assert text.endswith(" the") and whole.startswith(text)
    config = GenerationConfig(max_new_tokens=2)
    for given in (config, {"max_new_tokens": 2}, {"max_new_tokens": 2.0}):
        assert pipe(SPEECH, generate_kwargs={"generation_config": given}, return_token_count=True)[0]["tokens"] == 2
    assert pipe(SPEECH, generation_config=GenerationConfig(max_new_tokens=20)) == pipe(SPEECH)  # it has end tokens
    assert pipe(SPEECH, max_new_tokens=None, use_cache=False, temperature=0.0, do_sample=False) == pipe(SPEECH)


def test_one_seed_gives_one_text_in_every_row(pipe):
    settings = {"do_sample": True, "temperature": 3.0, "seed": 3, "max_new_tokens": 12, "repetition_penalty": 1.2}
    alone = [pipe(clip, text=SOUND, **settings)["generated_text"] for clip in (SIREN, SPEECH, SIREN)]
    assert pipe([SIREN, SPEECH, SIREN], text=SOUND, **settings)["generated_text"] == alone


def test_padding_that_is_no_special_token_is_not_decoded(pipe):
    """A row of a batch that ends early is filled up with it, and reads as it does alone."""
    texts, settings = [COUNT, WORDS, "Is anybody speaking?"], {"pad_token_id": 5}
    assert pipe.processor.tokenizer.decode([5], skip_special_tokens=True)
    together = pipe([SPEECH] * 3, text=texts, **settings)["generated_text"]
    assert together == [pipe(SPEECH, text=text)["generated_text"] for text in texts]


@pytest.mark.parametrize(
    "parameters",
    [
        *({"stop_sequence": [5]}, {"stop_sequence": ""}, {"streamer": 1}, {"tokenizer": 1}, {"compile": True}),
        *({"max_new_tokens": "20"}, {"max_new_tokens": []}, {"max_new_tokens": -1}, {"return_full_text": "false"}),
        *({"language": 5}, {"input_ids": None}, {"eos_token_id": 10**6}, {"suppress_tokens": [10**6]}, {"top_k": True}),
        *({"min_new_tokens": 3, "eos_token_id": [790, 10**5]}, {"pad_token_id": -1}, {"generation_config": {}}),
    ],
)
def test_a_wrong_parameter_costs_one_input(pipe, parameters):
    good = {"audio": SIREN, "text": SOUND}
    answers = pipe([good, {"inputs": good, "parameters": parameters}, good], on_error="return")
    assert answers["generated_text"] == ["It is a siren.", None, "It is a siren."]
    assert list(parameters)[-1] in answers[1]["error"]


def test_tokens_are_counted(pipe, long_clip):
    tokenizer = pipe.processor.tokenizer
    answers = pipe([SPEECH, SIREN, BEEPS], text=[WORDS, SOUND, COUNT], return_token_count=True)
    for answer in answers:
        assert answer["tokens"] == len(tokenizer(answer["generated_text"])["input_ids"])
    windows = pipe(long_clip, text=SOUND, long_audio="windows", return_token_count=True)[0]
    lines = windows["generated_text"].split("\n")
    assert windows["tokens"] == sum(len(tokenizer(line)["input_ids"]) for line in lines)
    assert pipe(SPEECH, text=WORDS, max_new_tokens=1, return_token_count=True)[0]["tokens"] == 1


def test_text_streams_hold_back_what_may_change():
    texts = ["a", "a\ufffd", "a\ufffd", "aé", "aé en", "aé end x"]
    stream = list(text_stream(range(6), lambda ids: texts[len(ids) - 1], ["end"]))
    assert stream == ["a", "é", " "]
    assert "".join(stream) == cut(texts[-1], ["end"])


def test_errors_keep_the_other_answers(pipe):
    inputs = [SIREN, "nope.wav", np.full(16000, np.nan, np.float32), SIREN]
    result = pipe(inputs, text=SOUND, on_error="return")
    assert [answer["generated_text"] for answer in result] == ["It is a siren.", None, None, "It is a siren."]
    assert "nope.wav" in result[1]["error"] and "NaN" in result[2]["error"]
    with pytest.raises(AudioError, match="input 1: no audio file 'nope.wav'"):
        pipe(inputs, text=SOUND)
    too_short = pipe([np.zeros(10, np.float32), SIREN], text=SOUND, on_error="return", batch_size=2)  # fails in a batch
    assert "too few" in too_short[0]["error"] and too_short[1]["generated_text"] == "It is a siren."


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipe: pipe(SIREN, task="translate"), "unknown task 'translate'"),
        (lambda pipe: pipe(SIREN, text="x", task="caption"), "both given"),
        (lambda pipe: pipe([SIREN, SIREN], text=["x"]), "1 texts were given for 2 inputs"),
        (lambda pipe: pipe(SIREN, on_error="ignore"), "on_error must be"),
        (lambda pipe: pipe(SIREN, long_audio="cut"), "long_audio must be"),
        (lambda pipe: pipe([SIREN], batch_size=0), "batch_size must be"),
        (lambda pipe: pipe([SIREN], batch_size=True), "batch_size must be"),
        (lambda pipe: pipe([SIREN], batch_size="8"), "batch_size must be"),
        (lambda pipe: pipe(SIREN, stream="no"), "stream must be true or false"),
        (lambda pipe: pipe(SIREN, text=5), "text must be a string"),
        (lambda pipe: pipe([SIREN], text=[5]), "text must be a string"),
        (lambda pipe: pipe(SIREN, generate_kwargs=[1]), "generate_kwargs must be a dict"),
        (lambda pipe: pipe(SIREN, generate_kwargs={"streamer": 1}), "streamer must have put and end"),
        (lambda pipe: pipe(SIREN, generate_kwargs={"generation_config": 1}), "generation_config must be"),
        (lambda pipe: pipe(SIREN, compile="no"), "compile must be true or false"),
        *(
            (lambda pipe, window=window: pipe(SIREN, task="transcribe", window=window), "window must be at least 1")
            for window in ("5", True, 0.5, float("nan"), float("inf"), [])
        ),
        (lambda pipe: pipe({"inputs": {"audio": SIREN}, "params": {}}), "inputs and parameters, not params"),
        (lambda pipe: pipe({"inputs": {"text": "x"}}), "needs one clip"),
        (lambda pipe: pipe({"inputs": {"audio": SIREN, "text": 3}}), '"text" must be a string'),
        (lambda pipe: pipe({"inputs": {"audio": SIREN, "prompt": "x"}}), "not prompt"),
        (lambda pipe: pipe({"inputs": {"audio": SIREN}, "parameters": [1]}), "must be an object"),
        (lambda pipe: pipe({"audio": SIREN, "text": "x"}, text="y"), "given twice"),
        (lambda pipe: pipe(ask(SIREN, SOUND), text="y"), "says itself what is asked"),
        (lambda pipe: pipe(SIREN, maximum_tokens=3), "maximum_tokens"),
        (lambda pipe: pipe(SIREN, num_return_sequences=2, do_sample=True), "one answer for each input"),
        (lambda pipe: pipe({"array": np.zeros(9), "rate": 3}), "array and sampling_rate, not rate"),
        (lambda pipe: pipe({"audio": [SIREN, SPEECH]}, task="transcribe"), "2 clips were given to transcribe"),
    ],
)
def test_wrong_calls(pipe, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(pipe)


def test_making_a_pipeline(pipe):
    with pytest.raises(ValueError, match="unknown task 'asr'"):
        pipeline("asr")
    with pytest.raises(FileNotFoundError):
        pipeline(model="/no/such/folder")
    again = pipeline(model=pipe.model, processor=AutoProcessor.from_pretrained(demo_checkpoint()), device="cpu")
    assert again(SIREN, text=SOUND)["generated_text"] == "It is a siren."
    assert pipeline(model=pipe.model).processor is not None
    pipe.model.name_or_path, kept = "", pipe.model.name_or_path
    try:
        with pytest.raises(ValueError, match="needs its processor"):
            pipeline(model=pipe.model)
    finally:
        pipe.model.name_or_path = kept
    assert pipe([], text=SOUND) == []


def test_beams_among_other_rows_are_what_each_is_alone(pipe, monkeypatch):
    """They have caches of their own, which may be those of the rows beside them: neither disturbs the other."""
    clips = [SIREN, BEEPS, SPEECH] * 4
    settings = [
        {"num_beams": 1 + i % 3, "max_new_tokens": 4 + 7 * (i % 4), "min_new_tokens": 4 + 7 * (i % 4)}
        for i in range(12)
    ]
    inputs = [{"inputs": {"audio": clip, "text": SOUND}, "parameters": own} for clip, own in zip(clips, settings)]
    expected = [pipe(item)["generated_text"] for item in inputs]
    for size in (2, 4, 8):
        assert pipe(inputs, batch_size=size)["generated_text"] == expected


def test_a_prompt_for_a_transcription(pipe, monkeypatch):
    """Its words follow the family's question; elsewhere it is refused."""
    asked = []
    given = type(pipe.processor).conversation_inputs
    monkeypatch.setattr(
        type(pipe.processor),
        "conversation_inputs",
        lambda self, messages, **settings: asked.append(messages) or given(self, messages, **settings),
    )
    pipe(SPEECH, task="transcribe", prompt="Names: Ada.", max_new_tokens=1)
    words = [element["text"] for element in asked[0][0][0]["content"] if element["type"] == "text"]
    assert words == [pipe.processor.questions["transcribe"] + " Names: Ada."]
    with pytest.raises(ValueError, match='prompt=.* goes with task="transcribe": leave it out'):
        pipe(SPEECH, text=WORDS, prompt="Names: Ada.")
    with pytest.raises(ValueError, match="prompt must be a string, not 5"):
        pipe(SPEECH, task="transcribe", prompt=5)

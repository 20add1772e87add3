"""The pipeline with a model that only counts: which clips are in memory, transcripts of silence, times of windows."""

import weakref
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from mindone_audio.inputs.audio import AudioError
from mindone_audio.pipelines import AudioTextToTextPipeline, Request, audio_text_to_text, requests
from mindone_audio.pipelines.transcripts import stream_without_silence

RATE = 16_000


class Processor:
    """What the pipeline asks of one, for clips of up to 10 s."""

    questions = {"caption": "Describe.", "transcribe": "Write down."}
    silence_answers = ("Nobody is speaking.",)
    frames_transcriptions = False
    feature_extractor = SimpleNamespace(chunk_length=10)
    transcription_window = 10
    longest_clip = 10.0
    tokenizer = SimpleNamespace(decode=None)

    def transcription(self, answer):
        return answer


class Counting(AudioTextToTextPipeline):
    """Its answer is the length of the clip; `said` has other answers, in turn."""

    def __init__(self, said=()):
        super().__init__(SimpleNamespace(generation_config=None, engine=lambda compiled: self), Processor())
        self.batches, self.said, self.texts = [], list(said), [""]

    def prepare(self, request: Request):
        return sum(len(clip) for clip in request.clips)

    def _decode(self, ids):
        return self.texts[ids[0]]


def generated(pipe, entries, most):
    """As many as are let in at a time, each answered by a token that stands for its text."""
    entries = iter(entries)
    while group := list(islice(entries, most)):
        pipe.batches.append([length for _, length in group])
        for tag, length in group:
            pipe.texts.append(pipe.said.pop(0) if pipe.said else str(length))
            yield tag, np.array([len(pipe.texts) - 1])


@pytest.fixture(autouse=True)
def without_a_model(monkeypatch):
    monkeypatch.setattr(audio_text_to_text, "generated", generated)


@pytest.fixture
def alive(monkeypatch):
    """Clips are numbers of samples, as strings; how many are in memory whenever one more is loaded."""
    there, counts = {}, []

    def load(source):
        if int(source) < 0:
            raise AudioError(f"no clip of {source} samples")
        clip = np.resize(np.array([1, -1], np.float32), int(source))
        there[id(clip)] = weakref.finalize(clip, there.pop, id(clip), None)
        counts.append(len(there))
        return clip

    monkeypatch.setattr(requests, "load_clip", load)
    return counts


@pytest.mark.parametrize(("size", "inputs"), [(1, 40), (4, 100), (8, 20)])
def test_clips_are_loaded_as_batches_need_them(alive, size, inputs):
    pipe = Counting()
    lengths = [100 + (i * 37) % 50 for i in range(inputs)]
    answers = pipe(list(map(str, lengths)), text="?", batch_size=size)
    assert [answer["generated_text"] for answer in answers] == list(map(str, lengths))
    assert max(alive) <= 2 and len(alive) == inputs  # what is prepared needs them no more
    assert sum(pipe.batches, []) == lengths and max(map(len, pipe.batches)) == size


def test_errors_name_their_input(alive):
    lengths = ["100"] * 50
    lengths[45] = "-5"
    pipe = Counting()
    with pytest.raises(AudioError, match="input 45: no clip of -5 samples"):
        pipe(lengths, text="?", batch_size=4)
    assert pipe.batches  # others have been answered by then
    answers = pipe(lengths, text="?", batch_size=4, on_error="return")
    assert [i for i, answer in enumerate(answers) if "error" in answer] == [45]
    assert answers["generated_text"][44] == "100"


def test_settings_apart_keep_their_order(alive):
    inputs = [{"inputs": {"audio": str(100 + i)}, "parameters": {"max_new_tokens": 1 + i % 3}} for i in range(20)]
    answers = Counting()(inputs, text="?", batch_size=2)
    assert answers["generated_text"] == [str(100 + i) for i in range(20)]


def thirds(samples, *_):
    """Three windows of equal length."""
    third = len(samples) // 3
    return [(i * third, (i + 1) * third) for i in range(3)]


@pytest.mark.parametrize("silence", ["Nobody is speaking.", " nobody is speaking", "Nobody  is speaking!"])
def test_a_transcript_of_silence_is_empty(alive, monkeypatch, silence):
    pipe = Counting([silence, "hello", silence])
    monkeypatch.setattr(requests, "quiet_windows", thirds)
    result = pipe(str(30 * RATE), task="transcribe")[0]
    assert result["generated_text"] == "hello" and [chunk["text"] for chunk in result["chunks"]] == ["", "hello", ""]
    assert Counting([silence])(str(RATE), task="transcribe")["generated_text"] == ""
    assert Counting([silence])(str(RATE), text="Who speaks?")["generated_text"] == silence.strip()  # a question
    longer = "Nobody is speaking. Really."
    assert Counting([longer])(str(RATE), task="transcribe")["generated_text"] == longer


@pytest.mark.parametrize(
    ("deltas", "given"),
    [
        (["No", "body is", " speaking."], []),
        (["Nobody", " is", " speak"], ["Nobody is speak"]),
        (["No", "body", " knows", " it"], ["Nobody knows", " it"]),
        (["Nobody is speaking.", " But"], ["Nobody is speaking. But"]),
        (["hello", " you"], ["hello", " you"]),
        ([], []),
    ],
)
def test_streams_hold_back_what_may_be_silence(deltas, given):
    assert list(stream_without_silence(deltas, Processor.silence_answers)) == given


def test_streams_of_windows_say_nothing_of_silence(alive, monkeypatch):
    pipe = Counting()
    said = iter([["Nobody is", " speaking."], ["a", "b"], ["Nobody is speaking."]])
    monkeypatch.setattr(requests, "quiet_windows", thirds)
    monkeypatch.setattr(audio_text_to_text, "text_stream", lambda *_, **settings: next(said))
    assert list(pipe(str(30 * RATE), task="transcribe", stream=True)) == ["a", "b"]
    said = iter([["a"], ["Nobody is", " speaking."], ["c"]])
    assert list(pipe(str(30 * RATE), task="transcribe", stream=True)) == ["a", " c"]


def test_chunks_are_in_order_to_the_last_bit(alive):
    rng = np.random.default_rng(0)
    for length in rng.integers(20 * RATE, 100 * RATE, 20):
        chunks = Counting()(str(length), task="transcribe", window=1.0 + rng.random())[0]["chunks"]
        assert chunks[0]["start"] == 0 and chunks[-1]["end"] == length / RATE
        assert all(one["end"] == two["start"] for one, two in zip(chunks, chunks[1:]))

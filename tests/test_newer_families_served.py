"""The newer families by every way in: the pipeline, the commands, batches and the server say the same."""

import base64
import io
import json
from functools import partial

import helpers_phi4
import helpers_qwen2_5_omni
import helpers_transformers5
import numpy as np
import openai
import pytest
import soundfile
from fake_service import serving

from mindone_audio import cli
from mindone_audio.server.options import ServerOptions

pytestmark = pytest.mark.slow  # an engine a family
RATE, TOKENS = 16000, 8
CLIPS = [np.random.default_rng(i).normal(0, 0.1, size).astype(np.float32) for i, size in enumerate((16000, 11000))]
MAKERS = {"qwen2_5_omni": helpers_qwen2_5_omni.write_checkpoint, "phi4_multimodal": helpers_phi4.write_checkpoint}
MAKERS |= {name: partial(helpers_transformers5.write_checkpoint, name) for name in helpers_transformers5.FAMILIES}


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture(scope="module", params=MAKERS)
def served(request, tmp_path_factory):
    """(folder of the checkpoint, URL, service)."""
    folder = tmp_path_factory.mktemp(request.param)
    MAKERS[request.param](folder)
    options = ServerOptions(model=folder, served_model_name="demo", port=0, max_batch=2, max_tokens=TOKENS)
    with serving(options) as (url, service):
        yield folder, url, service


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=f"{served[1]}/v1", api_key="none", max_retries=0, timeout=300)


def piped(service, *arguments, **settings):
    """What the pipeline says, in the thread that has the model."""
    return service.scheduler.run(partial(service.pipe, *arguments, max_new_tokens=TOKENS, **settings)).result()


def asked(text: str, *clips: np.ndarray) -> list[dict]:
    parts = [
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(c)).decode(), "format": "wav"}}
        for c in clips
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_chats(served, client):
    known = piped(served[2], CLIPS[0], text="What is it?", return_full_text=False)[0]["generated_text"]
    messages = asked("What is it?", CLIPS[0])
    told = client.chat.completions.create(model="demo", messages=messages, max_tokens=TOKENS)
    assert told.choices[0].message.content == known != ""
    stream = client.chat.completions.create(model="demo", messages=messages, max_tokens=TOKENS, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == known


def test_transcriptions(served, client):
    call = partial(served[2].pipe, CLIPS[1], task="transcribe")  # as long as a transcription may be
    known = served[2].scheduler.run(call).result()[0]["generated_text"]
    told = client.audio.transcriptions.create(model="demo", file=("a.wav", wav(CLIPS[1])))
    assert told.text == known


def test_commands(served, tmp_path, capsys):
    """`ask`, `transcribe` and `batch` on the same checkpoint, each clip alone and together."""
    folder, _, service = served
    files = [tmp_path / f"{i}.wav" for i in range(2)]
    for file, clip in zip(files, CLIPS):
        file.write_bytes(wav(clip))
    common = ["--model", str(folder), "--max-new-tokens", str(TOKENS)]
    known = [piped(service, clip, text="What is it?", return_full_text=False)[0]["generated_text"] for clip in CLIPS]
    heard = [piped(service, clip, task="transcribe")[0]["generated_text"] for clip in CLIPS]

    assert cli.main(["ask", str(files[0]), "What is it?", *common]) == 0
    assert capsys.readouterr().out.strip() == known[0].strip()
    assert cli.main(["transcribe", str(files[1]), *common]) == 0
    assert heard[1].strip() in capsys.readouterr().out
    out = tmp_path / "results"
    assert cli.main(["batch", *map(str, files), "--prompt", "What is it?", "--out", str(out), *common]) == 0
    answers = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [answer["generated_text"] for answer in answers] == known

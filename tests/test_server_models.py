"""`mindone-audio serve` with a real model and two adapters: what it says is what the pipeline says."""

import base64
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from helpers import shallow_demo_checkpoint
from mindspore import Tensor
from server_process import server_process
from test_cluster_serve import nginx, tool

from mindone_audio import pipeline
from mindone_audio.adapters.lora import LoraSettings, add_lora

AUDIO = Path(__file__).parent.parent / "examples" / "audio"
CLIPS = sorted(AUDIO.glob("s*.*"))
QUESTIONS = ("What do you hear?", "Is someone speaking?")
LENGTH = 12


def adapter_of(model_folder: Path, folder: Path, seed: int) -> Path:
    """An adapter of random numbers that change what the model says."""
    adapted = add_lora(pipeline(model=model_folder).model, LoraSettings(r=2))
    rng = np.random.default_rng(seed)
    for name, parameter in adapted.parameters_and_names():
        if "lora_B" in name:
            parameter.set_data(Tensor(rng.normal(0, 0.3, parameter.shape).astype(np.float32)))
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The URL of a server, and what each of its models is made of."""
    folder = tmp_path_factory.mktemp("served")
    base = shallow_demo_checkpoint(folder / "base")
    models = {"base": None, "one": adapter_of(base, folder / "one", 1), "two": adapter_of(base, folder / "two", 2)}
    adapters = [word for name in ("one", "two") for word in ("--adapter", f"{name}={models[name]}")]
    command = [sys.executable, "-m", "mindone_audio", "serve", "--model", str(base), "--port", "0", *adapters]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"GLOG_v": "3"}) as server:
        line = server.stdout.readline()
        assert line.startswith("Serving base, one, two on http://127.0.0.1:")
        yield line.split()[-1], base, models
        server.terminate()
        assert server.wait(60) == 0


@pytest.mark.slow
def test_a_model_and_its_adapters_answer_side_by_side(served):
    url, base, models = served
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    listed = {model.id: getattr(model, "parent", None) for model in client.models.list()}
    assert listed == {"base": None, "one": "base", "two": "base"}
    asked = [(name, clip, question) for question in QUESTIONS for clip in CLIPS for name in models]

    def ask(name, clip, question):
        part = {"data": base64.b64encode(clip.read_bytes()).decode(), "format": clip.suffix[1:]}
        content = [{"type": "input_audio", "input_audio": part}, {"type": "text", "text": question}]
        settings = {"model": name, "messages": [{"role": "user", "content": content}], "max_tokens": LENGTH}
        whole = client.chat.completions.create(**settings)
        chunks = client.chat.completions.create(**settings, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert whole.choices[0].message.content == streamed
        assert whole.usage.prompt_tokens_details.audio_tokens > 0
        return streamed

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda entry: ask(*entry), asked))
    expected = {}
    for name, folder in models.items():
        pipe = pipeline(model=base, adapter=folder)
        for question in QUESTIONS:
            texts = pipe(CLIPS, text=question, max_new_tokens=LENGTH)["generated_text"]
            expected |= {(name, clip, question): text for clip, text in zip(CLIPS, texts)}
    assert answers == [expected[entry] for entry in asked]
    assert len(set(answers)) > len(answers) // 3  # they do not all say the same


@pytest.mark.slow
def test_a_transcription_is_the_pipelines(served):
    url, base, _ = served
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    pipe = pipeline(model=base)
    for clip in CLIPS:
        expected = pipe(str(clip), task="transcribe", do_sample=False)
        with open(clip, "rb") as file:
            said = client.audio.transcriptions.create(model="base", file=file, response_format="verbose_json")
        assert said.text == expected["generated_text"]
        assert [segment.text for segment in said.segments] == [c["text"] for c in expected[0]["chunks"] if c["text"]]


@pytest.mark.slow
@pytest.mark.skipif(tool("nginx") is None, reason="nginx is not installed: apt-get install nginx-light")
def test_two_servers_behind_nginx(tmp_path):
    """Requests are spread over both, each is answered as by one, and one that is stopped costs none.

    The second one looks tokens up, which changes no answer.
    """
    base, clip = shallow_demo_checkpoint(tmp_path / "base"), base64.b64encode(CLIPS[0].read_bytes()).decode()
    words = ("--model", base, "--port", 0, "--max-batch", 2)
    with server_process(*words) as first, server_process(*words, "--prompt-lookup-num-tokens", 7) as second:
        form = {"type": "regex", "regex": "(open the door, ){3}please"}
        asked = {"model": "base", "messages": [{"role": "user", "content": "Say it."}], "response_format": form}
        for server in (first, second):
            one = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            assert one.chat.completions.create(**asked).choices[0].message.content == "open the door, " * 3 + "please"
        ports = [int(server.url.rpartition(":")[2]) for server in (first, second)]
        with nginx(tmp_path, *ports) as port:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

            def ask(number):
                part = {"type": "input_audio", "input_audio": {"data": clip, "format": CLIPS[0].suffix[1:]}}
                content = [part, {"type": "text", "text": QUESTIONS[number % 2]}]
                settings = {"model": "base", "messages": [{"role": "user", "content": content}], "max_tokens": LENGTH}
                if number % 3:
                    return client.chat.completions.create(**settings).choices[0].message.content
                chunks = client.chat.completions.create(**settings, stream=True)
                return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

            expected = [ask(0), ask(1)]
            with ThreadPoolExecutor(4) as pool:
                assert list(pool.map(ask, range(24))) == [expected[number % 2] for number in range(24)]
                for server in (first, second):
                    text = httpx.get(f"{server.url}/metrics").text
                    # How many each one gets is up to their speeds.
                    assert (
                        float(re.search(r"^mindone_audio:request_success_total{.*} (\S+)$", text, re.MULTILINE)[1]) > 1
                    )
                answers = pool.map(ask, range(24))
                first.send_signal(signal.SIGTERM)
                assert list(answers) == [expected[number % 2] for number in range(24)]
            assert first.wait(60) == 0

"""A model and a scheduler that answer at once and compute nothing, and a real HTTP server in front of them."""

import base64
import io
import itertools
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import uvicorn

from mindone_audio.commands.serve_process import start_engine
from mindone_audio.generation import scheduler as real
from mindone_audio.generation.events import Delta, Overloaded, Token
from mindone_audio.generation.settings import PromptTooLongError
from mindone_audio.inputs.conversation import chat_clips
from mindone_audio.inputs.processor import AudioTextProcessor
from mindone_audio.server.app import create_app
from mindone_audio.server.connections import uvicorn_settings
from mindone_audio.server.options import ServerOptions
from mindone_audio.server.service import Service
from mindone_audio.setting_fields import refusal

END, VOCABULARY, POSITIONS = 2, 1000, 512
ANSWER = "It is a siren."
SILENT = "No speech."


class Processor(AudioTextProcessor):
    """Tokens are words: an id is the place of a word in `words`, which grows."""

    questions = {"caption": "Describe the audio.", "transcribe": "Transcribe the speech."}
    silence_answers = (SILENT,)
    longest_clip = 30

    def __init__(self):
        self.feature_extractor = SimpleNamespace(chunk_length=30, sampling_rate=16000)
        self.tokenizer, self.words = self, ["", "", "<end>"]

    def decode(self, ids, **_):
        return "".join(self.words[i] for i in ids)

    def token(self, word):
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)


class AskedByToken(Processor):
    """A family whose transcription is no question, as Voxtral's."""

    def transcription_inputs(self, clips, *, language, chat):
        return None


class Pipe:
    """The seam of `AudioTextToTextPipeline`. languages: that it may be told."""

    languages = ("en", "de")
    task = "audio-text-to-text"
    tells_times = False

    def __init__(self, processor=None):
        self.processor = processor or Processor()
        config = SimpleNamespace(vocab_size=VOCABULARY, max_positions=POSITIONS)
        self.model = SimpleNamespace(
            generation_config={"eos_token_id": END}, language_model=SimpleNamespace(config=config)
        )

    def prepare(self, request):
        if request.language is not None and request.language not in self.languages:
            raise refusal("language", f"={request.language!r}: this family knows {', '.join(self.languages)}")
        words = " ".join(texts(request.messages)).split()
        audio = sum(len(clip) // 640 for clip in chat_clips(request.messages))
        size = len(words) + audio
        chosen = request.chosen
        if not request.transcribe:
            if size > POSITIONS:
                message = f"the prompt has {size} tokens, but the model has {POSITIONS} positions: use less text"
                raise PromptTooLongError(message)
            chosen = replace(chosen, max_new_tokens=min(chosen.max_new_tokens, max(1, POSITIONS - size)))
        return SimpleNamespace(prompt_tokens=size, audio_tokens=audio, settings=chosen, request=request)


def wav(seconds, level=0.3):
    """The bytes of a clip: a tone, at a level by which the fake model knows speech from silence."""
    file = io.BytesIO()
    tone = level * np.sin(np.arange(round(seconds * 16000)) * 0.2)
    soundfile.write(file, tone.astype(np.float32), 16000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def text64(data):
    """Bytes as base64."""
    return base64.b64encode(data).decode()


def texts(messages):
    for message in messages:
        parts = message["content"]
        yield from [parts] if isinstance(parts, str) else [part["text"] for part in parts if part["type"] == "text"]


class Scheduler:
    """Each request has a thread of its own, which says what `answer` gives, word by word.

    In a text: "say X" answers X; "fail KIND" fails before the first word, "break KIND" after it; "wait" stays in the
    queue, and "hang" stops after the first word, both until `go` is set or the request is cancelled. refuse: raised by
    `submit`.
    """

    def __init__(self, pipe):
        self.pipe, self.alive, self.ready, self.failure, self.refuse = pipe, True, True, None, None
        self.running = self.waiting = 0
        self.submitted, self.cancelled, self.go, self.calls = [], [], threading.Event(), []
        self.cache_usage = 0.25
        self._lock = threading.Lock()

    def submit(self, prepared, listener, *, adapter=None, logprobs=None, deadline=None):
        if self.refuse is not None:
            raise self.refuse
        ticket = Ticket(self, SimpleNamespace(prepared=prepared, adapter=adapter, logprobs=logprobs))
        self.submitted.append(ticket.asked)
        threading.Thread(target=self._work, args=(ticket, prepared, listener, logprobs), daemon=True).start()
        return ticket

    def _work(self, ticket, prepared, listener, logprobs):
        with self._lock:
            self.running += 1
        try:
            request, settings = prepared.request, prepared.settings
            said = ["", *texts(request.messages)][-1]
            if said.startswith("wait"):
                self._hold(ticket)
            for index in range(settings.num_return_sequences):
                text = answer(request, said) + ("" if settings.num_return_sequences == 1 else f" {index}")
                text = next((text[: text.index(stop)] for stop in request.stops if stop in text), text)
                words = [word for word in text.split(" ") if word or text]
                words = [words[0], *(f" {word}" for word in words[1:])] if words else []
                if said.startswith("fail "):
                    listener(ERRORS[said.split()[1]])
                    return
                for place, word in enumerate(words[: settings.max_new_tokens]):
                    if place == 1 and said.startswith("break "):
                        listener(ERRORS[said.split()[1]])
                        return
                    if place == 1 and said.startswith("hang"):
                        self._hold(ticket)
                    if ticket.over.is_set():
                        return
                    listener(Delta(index, word, (self._token(self.pipe.processor.token(word), logprobs),)))
                cut = len(words) > settings.max_new_tokens
                end = () if cut else (self._token(END, logprobs),)
                listener(Delta(index, "", end, "length" if cut else "stop"))
        finally:
            with self._lock:
                self.running -= 1

    def _hold(self, ticket):
        while not (self.go.is_set() or ticket.over.is_set()):
            time.sleep(0.005)

    def _token(self, token, logprobs):
        if logprobs is None:
            return Token(token)
        return Token(token, -0.5, tuple((token, -0.5 - place) for place in range(logprobs)))

    def drain(self, seconds):
        self.calls.append("drain")

    def stop(self):
        self.calls.append("stop")
        self.go.set()


class Ticket:
    def __init__(self, scheduler, asked):
        self.scheduler, self.asked, self.over = scheduler, asked, threading.Event()
        self.submitted, self.begun, self.answered, self.ended = 1.0, 1.5, 2.0, 4.0

    def cancel(self):
        if not self.over.is_set():
            self.over.set()
            self.scheduler.cancelled.append(self.asked)


ERRORS = {
    "value": ValueError("logit_bias has the token 5000, but the model has the tokens 0 to 999"),
    "runtime": RuntimeError("secret: /srv/weights at 10.0.0.1"),
    "late": Overloaded("waited too long: ask again", "deadline", 2.5),
}


def answer(request, said):
    if said.startswith("say "):
        return said.removeprefix("say ")
    if request.transcribe or said.startswith("Translate"):
        clip = request.clips[0]
        return SILENT if abs(clip).max() < 0.05 else f"window of {len(clip) / 16000:.2f} s"
    return ANSWER


@contextmanager
def running(options=None, *, pipe=None, keys=None, loaded=True):
    """A server on a free port: (its URL, its service). Each one has a loop in a thread of its own."""
    options = options or ServerOptions(adapter=("tuned=somewhere",), served_model_name="demo")
    if keys:
        file = Path(tempfile.mkdtemp()) / "keys"
        file.write_text("\n".join(keys), encoding="utf-8")
        options = replace(options, api_key_file=file)
    service = Service(options)
    if loaded:
        service.pipe = pipe or Pipe()
        service.scheduler = Scheduler(service.pipe)
    settings = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 1, **uvicorn_settings()}
    config = uvicorn.Config(create_app(service, options), port=0, lifespan="off", **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", service
    finally:
        server.should_exit = True
        if service.scheduler is not None:
            service.scheduler.stop()
        thread.join(10)


@contextmanager
def serving(options):
    """As `running`, with the model of the options; its graphs are compiled when they are asked for, not before."""
    with pytest.MonkeyPatch.context() as patch, running(options, loaded=False) as (url, service):
        patch.setattr(real.Scheduler, "_warm_up", lambda self, adapter: None)
        start_engine(options, service)
        until(lambda: service.ready or service.scheduler.failure, 300)
        assert service.ready, service.scheduler.failure
        yield url, service


def until(condition, seconds=10.0):
    """Wait for a condition; the test fails where it does not come."""
    for _ in itertools.count():
        if condition():
            return
        seconds -= 0.01
        assert seconds > 0, "it has not come"
        time.sleep(0.01)

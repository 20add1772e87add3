"""`mindone-audio serve` at work: the socket first, then the model, then requests until a signal comes."""

import asyncio
import gc
import ipaddress
import logging
import os
import socket
import sys
import time
from contextlib import contextmanager
from typing import Any

from mindone_audio.machine import affinity
from mindone_audio.machine.signals import Signals
from mindone_audio.server.front import BACKLOG, GRACE
from mindone_audio.server.front_process import FrontProcess
from mindone_audio.server.options import ServerOptions
from mindone_audio.setting_fields import refusal

TICK = 0.05  # seconds between two looks at signals and at the scheduler
# Seconds that a thread may keep the interpreter from the others. After each graph the scheduler needs it back, which
# takes less time than Python leaves a thread that reads a request.
SWITCH = 1e-4
INTERRUPTED, TERMINATED = 130, 143  # 128 + the signal's number, as a shell reports them
_PACKAGES = ("fastapi", "uvicorn", "websockets", "python_multipart", "prometheus_client")


def serve(options: ServerOptions, signals: Signals) -> int:
    """Serve until a signal comes; `ValueError` where that cannot begin."""
    _require_packages()
    sock = _listen(options)
    port, front = sock.getsockname()[1], FrontProcess(sock, options)  # before what takes long, and before other threads
    try:
        _warn(options)
        affinity.bind_cores(options.device)
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        # What settings of a request have no effect, or are cut, is not news to who runs the server.
        logging.getLogger("mindone_audio.generation.settings").setLevel(logging.ERROR)
        sys.setswitchinterval(SWITCH)
        with signals.hold_interrupt(lambda: None):
            return asyncio.run(_serve(options, front, port, signals))
    finally:
        front.close()


def _warn(options: ServerOptions) -> None:
    """Say who could use this server, or read its keys, that perhaps should not; `OSError` for keys that cannot be."""
    from mindone_audio.server.keys import read_keys, readable_by_all

    if not read_keys(options.api_key_file, os.environ) and not _is_loopback(options.host):
        _say(f"warning: {options.host} is open to other machines, and nobody needs a key: give --api-key-file FILE")
    if options.api_key_file is not None and readable_by_all(options.api_key_file):
        _say(f"warning: every user of this machine can read {options.api_key_file}: chmod 600 it")


def _require_packages() -> None:
    """`ValueError` where the extra is not installed."""
    from importlib.util import find_spec

    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ValueError(f'serve needs {", ".join(missing)}: pip install "mindone_audio[serve]"')


def _listen(options: ServerOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=BACKLOG)
    except OSError as error:
        known = error.errno is not None and error.errno > 0  # of a host that has no address it is not
        reason = os.strerror(error.errno).lower() if known else str(error.strerror or error)
        message = f"cannot listen on {options.host} port {options.port}: {reason}: choose another --port or --host"
        raise ValueError(message) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def _serve(options: ServerOptions, front: FrontProcess, port: int, signals: Signals) -> int:
    from mindone_audio.server.app import create_app
    from mindone_audio.server.service import Service

    service = Service(options)
    server = _server(create_app(service, options))
    serving = asyncio.create_task(server.serve(sockets=[front.listener]))
    watching = asyncio.create_task(_watch(service, front))
    starting = asyncio.create_task(asyncio.to_thread(start_engine, options, service))  # MindSpore's import takes long
    try:
        while not (service.ready or signals.terminated or signals.interrupted):
            if starting.done():
                starting.result()
            if service.scheduler is not None and service.scheduler.failure is not None:
                raise service.scheduler.failure
            await _tick(serving)
        if service.ready:
            gc.freeze()  # a collection takes as long as some steps where it looks at all that was imported and loaded
            scheme = "http" if options.ssl_certfile is None else "https"
            host = f"[{options.host}]" if ":" in options.host else options.host
            print(f"Serving {', '.join(options.models)} on {scheme}://{host}:{port}", flush=True)
        while not (signals.terminated or signals.interrupted):
            await _tick(serving)
        if service.pipe is None:
            os._exit(0)  # nothing can end the loading, and nobody waits for an answer
        await _drain(service, options, signals, serving)
    except asyncio.CancelledError:  # the second Ctrl-C
        os._exit(INTERRUPTED)
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        watching.cancel()
    return 0


async def _watch(service: Any, front: FrontProcess) -> None:
    """Tell the front that this loop turns, and whether the service works; end the process where the front has ended."""
    while front.status is None:
        front.tell(service.alive)
        await asyncio.sleep(TICK)
    _say(f"error: the process that listens for clients has ended with status {front.status}: start the server again")
    front.close()
    os._exit(1)  # nobody waits for an answer, and threads that compute cannot be ended otherwise


def start_engine(options: ServerOptions, service: Any) -> None:
    """Give the service its scheduler, in whose thread the model is loaded, and then its pipeline."""
    import mindspore as ms

    from mindone_audio.adapters.lora import load_adapter
    from mindone_audio.generation.scheduler import Scheduler
    from mindone_audio.pipelines import pipeline, text_to_speech

    sound = {"vocoder": options.vocoder, "voice": next(iter(options.voices.values()), None)}

    def load() -> Any:
        pipe = pipeline(
            model=options.model,
            device=options.device,
            device_memory=options.device_memory,
            mindspore_dtype=None if options.dtype is None else getattr(ms, options.dtype),
            **({} if options.speaker else sound),
        )
        if pipe.task == text_to_speech.TASK:
            if options.adapter:
                raise refusal("adapter", f" {options.adapter[0]}: a model that speaks takes none: leave it out")
            if options.prompt_lookup_num_tokens:
                raise refusal("prompt_lookup_num_tokens", ": a model that speaks takes none: leave it out")
            service.voices = _voices(pipe, options)
        elif options.speaker:
            service.speaker = pipeline(text_to_speech.TASK, options.speaker, **sound)
            service.voices = _voices(service.speaker, options)
        folders = {name: folder for name, folder in options.models.items() if folder is not None}
        adapted = None
        for name, folder in folders.items():
            if adapted is None:
                adapted = load_adapter(pipe.model, folder, adapter_name=name)
            else:
                adapted.load_adapter(folder, name)
        if options.prompt_lookup_num_tokens:
            pipe.model.generation_config.prompt_lookup_num_tokens = options.prompt_lookup_num_tokens
        service.pipe = pipe
        return pipe.model

    limits = {"max_batch": options.max_batch, "max_queue": options.max_queue, "max_model_len": options.max_model_len}
    limits["adapters"] = [name for name, folder in options.models.items() if folder is not None]
    scheduler = Scheduler(load, timed=service.metrics.timed, **limits)
    scheduler.start()
    service.scheduler = scheduler


def _voices(pipe: Any, options: ServerOptions) -> dict[str, Any]:
    """The voices of a model that speaks, which has spoken once: this compiles what a short text takes."""
    from mindone_audio.models.speecht5.voices import published_voices

    if not options.voices:
        where = published_voices(pipe.model.config.speaker_embedding_dim)
        raise refusal("voice", f" is missing, as NAME=FILE, so that there is no voice to speak with: {where}")
    voices = {name: pipe.model.voices(file, 1)[0] for name, file in options.voices.items()}
    for _ in pipe("a", stream=True):
        pass
    return voices


async def _tick(serving: asyncio.Task) -> None:
    """Wait a moment; raises what has ended the HTTP server."""
    await asyncio.wait((serving,), timeout=TICK)
    if serving.done():
        serving.result()


async def _drain(service: Any, options: ServerOptions, signals: Signals, serving: asyncio.Task) -> None:
    """Refuse new requests and wait for the running ones; a second signal stops the process at once."""
    service.draining = True
    _say(f"stopping: {service.active} requests are finished first, new ones get 503; a second signal stops at once")
    end = time.monotonic() + options.drain_timeout
    while service.active and time.monotonic() < end:
        if signals.terminated + signals.interrupted > 1:
            os._exit(TERMINATED)  # threads that compute cannot be ended otherwise
        await _tick(serving)
    service.scheduler.drain(0)
    service.scheduler.stop()


def _server(app: Any) -> Any:
    import uvicorn

    from mindone_audio.server.connections import uvicorn_settings

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self):  # `Signals` has them
            yield

    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE,
        backlog=BACKLOG,
        **uvicorn_settings(),
    )
    return Server(config)

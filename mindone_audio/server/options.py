"""What a server is asked to do: which models, for whom, how many at a time, and which clips it takes."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mindone_audio.setting_fields import (
    DEVICE_HELP,
    DEVICE_MEMORY_HELP,
    DTYPE_HELP,
    DTYPES,
    MODEL_HELP,
    SettingError,
    explained,
    refusal,
    setting,
)


@explained
@dataclass(frozen=True)
class ServerOptions:
    """A server. Raises `ValueError` for values that cannot be."""

    model: str | os.PathLike | None = setting(None, MODEL_HELP)
    adapter: Sequence[str] | None = setting(
        None, "a LoRA adapter of that model, which requests call by its name; may be repeated", metavar="NAME=DIR"
    )
    served_model_name: str | None = setting(
        None, "what requests call the model (default: the last part of where it is)", metavar="NAME"
    )
    speaker: str | None = setting(
        None,
        "a model that speaks the answers of /v1/realtime, with {vocoder} and {voice}, such as microsoft/speecht5_tts",
        metavar="MODEL",
    )
    vocoder: str | None = setting(
        None,
        "of a model that speaks: the folder or Hugging Face id of one, such as microsoft/speecht5_hifigan",
        metavar="MODEL",
    )
    voice: Sequence[str] | None = setting(
        None,
        "a .npy or .safetensors file with an x-vector, which requests call by its name; may be repeated",
        metavar="NAME=FILE",
    )
    host: str = setting("127.0.0.1", "the address to listen on", metavar="HOST")
    port: int = setting(8000, "the port to listen on; 0: a free one", metavar="PORT")
    api_key_file: str | os.PathLike | None = setting(
        None, "one key a line, of which each request needs one; MINDONE_AUDIO_API_KEY is another key", metavar="FILE"
    )
    max_batch: int = setting(8, "answers that are computed side by side", metavar="N")
    max_model_len: int | None = setting(
        None, "tokens of a prompt and its answer together (default: what the model has)", metavar="N"
    )
    max_tokens: int = setting(512, "of an answer, where a request does not say how many", metavar="N")
    prompt_lookup_num_tokens: int = setting(
        0, "try up to N tokens at once that came before after the same ones, while one request runs", metavar="N"
    )
    max_queue: int = setting(64, "requests that wait; more are refused with 503", metavar="N")
    max_per_key: int | None = setting(None, "requests of one key at a time; more are refused with 429", metavar="N")
    queue_timeout: float = setting(60.0, "the longest that a request waits, before 503", metavar="SECONDS")
    drain_timeout: float = setting(
        120.0, "the longest that SIGTERM lets running requests go on; a second one stops at once", metavar="SECONDS"
    )
    allow_media_domain: Sequence[str] | None = setting(
        None, "fetch clips from this host, .example.org: and its subdomains (default: no URLs)", metavar="DOMAIN"
    )
    allow_media_path: str | os.PathLike | None = setting(
        None, "read clips at file:// URLs below this folder (default: none)", metavar="DIR"
    )
    media_timeout: float = setting(10.0, "the longest that fetching a clip takes", metavar="SECONDS")
    max_audio_seconds: float = setting(3600.0, "of all clips of a request together", metavar="SECONDS")
    max_body_mb: float = setting(64.0, "the largest request, in MiB", metavar="MIB")
    body_timeout: float = setting(60.0, "the longest that a client takes to send a request", metavar="SECONDS")
    fastrtc: bool = setting(False, "also answer FastRTC's clients, at /fastrtc, by the extra of that name")
    realtime_timeout: float = setting(
        120.0, "the longest that a client of /v1/realtime says nothing", metavar="SECONDS"
    )
    allowed_hosts: Sequence[str] | None = setting(
        None, "a name that clients call this server by, besides {host} and localhost; *: any", metavar="HOST"
    )
    ssl_certfile: str | os.PathLike | None = setting(None, "serve https with this certificate", metavar="FILE")
    ssl_keyfile: str | os.PathLike | None = setting(None, "the certificate's key", metavar="FILE")
    device: str = setting("auto", DEVICE_HELP)
    device_memory: str | None = setting(None, DEVICE_MEMORY_HELP, metavar="GB")
    dtype: str | None = setting(None, DTYPE_HELP, choices=DTYPES)

    def __post_init__(self):
        # NumPy: not for --help, which reads the fields above.
        from mindone_audio.generation.settings import LARGEST, real, whole

        for name, low, high in (
            ("port", 0, 65535),
            ("max_batch", 1, 256),
            ("max_queue", 0, 100_000),
            ("prompt_lookup_num_tokens", 0, LARGEST),
        ):
            object.__setattr__(self, name, whole(name, getattr(self, name), low, high))
        for name in ("max_tokens", "max_model_len", "max_per_key"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), 1))
        seconds = ("queue_timeout", "media_timeout", "max_audio_seconds", "body_timeout", "realtime_timeout")
        for name in (*seconds, "max_body_mb"):
            object.__setattr__(self, name, real(name, getattr(self, name), 0, beyond=True))
        object.__setattr__(self, "drain_timeout", real("drain_timeout", self.drain_timeout, 0, math.inf))
        for name in ("adapter", "voice", "allow_media_domain", "allowed_hosts"):
            object.__setattr__(self, name, tuple(getattr(self, name) or ()))
        if self.dtype not in (None, *DTYPES):
            raise refusal("dtype", f" must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise SettingError(lambda say: f"{say('ssl_certfile')} and {say('ssl_keyfile')} go together: give both")
        if self.allow_media_path is not None and not Path(self.allow_media_path).is_dir():
            raise refusal("allow_media_path", f": there is no folder {os.fspath(self.allow_media_path)!r}")
        if len(self.voices) < len(self.voice):
            raise refusal("voice", f": two voices have one name: {', '.join(self.voices)}")
        if len(set(self.models)) < 1 + len(self.adapter):
            raise refusal("adapter", f": two models have one name: {', '.join(self._names)}")

    @property
    def voices(self) -> dict[str, str]:
        """Names of the voices, and the file of each."""
        return dict(_named("voice", given, "FILE") for given in self.voice)

    @property
    def models(self) -> dict[str, str | None]:
        """Names of the models, the base model's first, and the folder of each adapter; None for the base model."""
        return dict(zip(self._names, [None, *(given.partition("=")[2] for given in self.adapter)]))

    @property
    def _names(self) -> list[str]:
        base = self.served_model_name or os.fspath(self.model or "qwen2_audio_demo")
        if self.served_model_name is None and Path(base).expanduser().is_dir():
            base = Path(base).expanduser().resolve().name  # clients learn no path
        return [base, *(_named("adapter", given, "DIR")[0] for given in self.adapter)]

    @property
    def max_body_bytes(self) -> int:
        """The largest body of a request."""
        return round(self.max_body_mb * 2**20)


def _named(setting: str, given: str, what: str) -> tuple[str, str]:
    """NAME=FILE in its two parts."""
    name, _, place = given.partition("=")
    if not name or not place:
        raise refusal(setting, f" must be NAME={what}, not {given!r}")
    return name, place

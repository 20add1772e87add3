"""`mindone-audio serve`: a model over HTTP, for OpenAI's clients."""

import argparse

from mindone_audio.commands.options import add_field, number
from mindone_audio.server.options import ServerOptions
from mindone_audio.setting_fields import option

_REPEATED = {"adapter": None, "voice": None, "allow_media_domain": None, "allowed_hosts": "--allowed-host"}
_NUMBERS = (
    *("port", "max_batch", "max_model_len", "max_tokens", "max_queue", "max_per_key", "queue_timeout"),
    *("drain_timeout", "media_timeout", "max_audio_seconds", "max_body_mb", "body_timeout"),
    *("realtime_timeout", "prompt_lookup_num_tokens"),
)
_OTHERS = (
    *("model", "served_model_name", "speaker", "vocoder", "host", "fastrtc", "api_key_file", "allow_media_path"),
    *("ssl_certfile", "ssl_keyfile", "device", "device_memory", "dtype"),
)


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "serve",
        help="answer requests over HTTP, as OpenAI's clients send them",
        epilog="SIGTERM and Ctrl-C: new requests get 503, running ones are finished, exit status 0; a second one stops "
        "at once. /health answers while the model is loaded, /ready when it is.",
    )
    for name in _OTHERS:
        add_field(parser, ServerOptions, name)
    for name, flag in _REPEATED.items():
        add_field(parser, ServerOptions, name, flag=flag, action="append")
    for name in _NUMBERS:
        add_field(parser, ServerOptions, name, type=number)
    parser.set_defaults(run=run, hold_terminate=True, say=say)  # running requests are finished first


def say(name: str, value: object = None) -> str:
    """A setting as an option of this command."""
    return _REPEATED.get(name) or option(name, value)


def run(options: argparse.Namespace) -> int:
    """The exit status that `--help` explains."""
    from mindone_audio.commands.serve_process import serve

    names = (*_OTHERS, *_REPEATED, *_NUMBERS)
    return serve(ServerOptions(**{name: getattr(options, name) for name in names}), options.signals)

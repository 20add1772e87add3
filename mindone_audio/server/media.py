"""Where a stranger's clip may come from, and how much of it is read."""

import contextlib
import ipaddress
import os
import re
import socket
import ssl
import stat
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from mindone_audio.inputs.audio import AudioError, load_audio, read_file_object
from mindone_audio.inputs.audio.data_uris import base64_bytes, data_uri_bytes
from mindone_audio.inputs.audio.download import read_url
from mindone_audio.inputs.audio.errors import NotAudioError
from mindone_audio.inputs.audio.ffmpeg import ffmpeg_path
from mindone_audio.setting_fields import refusal, yaml_entry

LOCALHOST = "localhost"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20}):")
_HOST = re.compile(r"\.?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Teredo and its like, 6to4, examples, and what the Internet does not route: not in every Python's `is_global`.
_NOT_PUBLIC = tuple(
    map(ipaddress.ip_network, ("2001::/23", "2002::/16", "3fff::/20", "192.0.0.0/24", "192.88.99.0/24"))
)
_ADVICE = "send the audio itself, as base64 or as a data: URI"

Resolve = Callable[[str, int], list[str]]  # (host, port) -> all its addresses


@dataclass(frozen=True)
class MediaPolicy:
    """What a server reads for strangers. By itself it reads no URL and no file.

    allowed_domains: hosts of URLs: "cdn.example.org" exactly, ".example.org" for what is below it. They must have
    public addresses only, except an IP address or "localhost" that stands here. allowed_path: the folder of file://
    URLs. max_bytes: of an encoded clip. max_seconds: of a decoded one, each counted as 48,000 samples at most.
    timeout: seconds of a download in all, and of ffmpeg without output.
    """

    allowed_domains: tuple[str, ...] = ()
    allowed_path: Path | None = None
    max_bytes: int = 25 * 2**20
    max_seconds: float = 600.0
    timeout: float = 10.0

    def __post_init__(self):
        for entry in self.allowed_domains:
            if _address(entry) is None and not _HOST.fullmatch(_plain(entry)):
                raise refusal(
                    "allowed_domains", f" has {entry!r:.80}: give hosts alone, as cdn.example.org or .example.org"
                )
        if self.allowed_path is not None and not Path(self.allowed_path).is_dir():
            raise refusal("allowed_path", f" is {str(self.allowed_path)!r:.200}: give a folder that exists")


def addresses_of(host: str, port: int) -> list[str]:
    """All addresses of a host, as the system resolves it; `OSError` where there are none."""
    return [found[4][0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def media_samples(
    source: bytes | str,
    policy: MediaPolicy,
    name: str,
    *,
    resolve: Resolve = addresses_of,
    dial: Callable[..., socket.socket] = socket.create_connection,
) -> np.ndarray:
    """The clip of a stranger -> float32 `[samples]` at 16 kHz.

    source: encoded audio as bytes; or as text: base64, a data: URI, or an http(s) or file URL that the policy allows. A
    text is never a path. name: what messages call the clip, as "messages[0].content[1]". resolve, dial: how a host gets
    its addresses, and an address its connection, `dial((address, port), seconds)`.

    Raises `AudioError` for whatever is wrong; its message names no path and no address, and no byte of the clip.
    """
    try:
        data = source if isinstance(source, bytes) else _encoded(source, policy, name, resolve, dial)
        return load_audio(
            data, max_bytes=policy.max_bytes, max_seconds=policy.max_seconds, timeout=policy.timeout, name=name
        )
    except NotAudioError:
        more = "" if ffmpeg_path() else " (others need ffmpeg, which this server does not have)"
        raise AudioError(f"{name} is not audio that can be decoded here: send wav, flac, mp3 or ogg{more}") from None
    except AudioError as error:
        raise AudioError(error.worded(yaml_entry)) from None


def _encoded(text: str, policy: MediaPolicy, name: str, resolve: Resolve, dial: Callable) -> bytes:
    """The bytes that a text holds or names."""
    if not isinstance(text, str):
        raise AudioError(f"{name} is no text with audio in it: {_ADVICE}")
    text = text.strip()
    scheme = _SCHEME.match(text)
    if scheme is None:
        return base64_bytes(text, name, policy.max_bytes)
    kind = scheme[1].lower()
    if kind == "data":
        return data_uri_bytes(text, policy.max_bytes, name)
    if kind in ("http", "https") and policy.allowed_domains:
        return _download(text, policy, name, resolve, dial)
    if kind == "file" and policy.allowed_path is not None:
        return _read_local(text, policy, name)
    raise AudioError(f"{name}: this server does not read URLs of this kind: {_ADVICE}")


def _download(url: str, policy: MediaPolicy, name: str, resolve: Resolve, dial: Callable) -> bytes:
    """What an address answers, over connections to the very addresses that were checked."""
    opened, ended = [], threading.Event()

    def connect(host: str, port: int, seconds: float, *, tls: bool) -> socket.socket:
        failure: OSError = TimeoutError()
        for address in _checked_addresses(host, port, policy, name, resolve):
            if ended.is_set():
                raise TimeoutError
            try:
                link = dial((address, port), seconds)
            except OSError as error:
                failure = error
                continue
            if tls:
                context = ssl.create_default_context()
                link = context.wrap_socket(link, server_hostname=host, do_handshake_on_connect=False)
            opened.append(link)
            if ended.is_set():
                raise TimeoutError
            if tls:
                link.do_handshake()
            return link
        raise failure

    try:
        return read_url(url, policy.timeout, policy.max_bytes, name, connect)
    finally:  # a server that drips would hold the thread of the download
        ended.set()
        for link in opened:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()


def _checked_addresses(host: str, port: int, policy: MediaPolicy, name: str, resolve: Resolve) -> list[str]:
    """The addresses of a host that the policy allows; `AudioError` if one of them is not public."""
    host, address = _plain(host), _address(host)
    if address is not None and address in map(_address, policy.allowed_domains):
        return [str(address)]
    entries = [entry for entry in map(_plain, policy.allowed_domains) if _address(entry) is None]
    known = any(host == entry or (entry.startswith(".") and host.endswith(entry)) for entry in entries)
    if not known or not _HOST.fullmatch(host):
        raise AudioError(f"{name}: this server does not read URLs of this host: {_ADVICE}")
    found = resolve(host, port)
    is_allowed = _is_loopback if host == LOCALHOST else _is_public
    if not all(map(is_allowed, found)):
        raise AudioError(f"{name}: its host has an address that is not public: {_ADVICE}")
    return found


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An IP address in its usual spelling; None for anything else, as 0x7f.1 and 2130706433."""
    try:
        return ipaddress.ip_address(_plain(host).removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _is_public(address: str) -> bool:
    """Whether anybody on the Internet has this address; IPv6 that holds an IPv4 address only as NAT64's gateways do."""
    found = ipaddress.ip_address(address)
    if found.version == 6 and found in _NAT64:
        found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    elif found.version == 6 and found not in _UNICAST:
        return False
    refused = found.is_multicast or found.is_reserved or any(found in network for network in _NOT_PUBLIC)
    return found.is_global and not refused


def _read_local(url: str, policy: MediaPolicy, name: str) -> bytes:
    """A regular file below the allowed folder; every other path gives the same error, so that none can be explored."""
    try:
        parts = urlsplit(url)
        folder = Path(policy.allowed_path).resolve(strict=True)
        path = Path(urllib.request.url2pathname(parts.path)).resolve(strict=True)
        if parts.netloc.lower() not in ("", LOCALHOST) or not path.is_relative_to(folder):
            raise PermissionError
        # Not blocking: opening a named pipe would wait for its writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PermissionError
            return read_file_object(file, policy.max_bytes, name)
    except AudioError:
        raise
    except (OSError, ValueError, RuntimeError):  # also a null byte, and links in a circle
        raise AudioError(f"{name} names no file that this server may read: {_ADVICE}") from None

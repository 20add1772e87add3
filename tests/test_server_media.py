"""Clips of strangers: where they may come from, how much of them is read, and what an error tells."""

import base64
import contextlib
import gzip
import io
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
from helpers_audio import RATE, encoded, program, send, serving
from helpers_processor import tone

from mindone_audio import load_audio
from mindone_audio.inputs.audio import AudioError
from mindone_audio.server.media import MediaPolicy, addresses_of, media_samples
from mindone_audio.setting_fields import SettingError

ROOT = Path(__file__).parent.parent
NAME = "messages[0].content[1]"
PUBLIC = "93.184.216.34"
CLOSED = MediaPolicy()


@pytest.fixture(scope="module")
def wav():
    return encoded("WAV", None, tone(0.25))


@pytest.fixture(scope="module")
def samples(wav):
    return load_audio(wav)


def refused(source, policy=CLOSED, match=None, **how) -> str:
    """The message about a source that is wrong, which says which clip it is and tells no secrets."""
    with pytest.raises(AudioError, match=match) as raised:
        media_samples(source, policy, NAME, **how)
    message = str(raised.value)
    assert NAME in message and len(message) < 400, message
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    return message


# text that holds the clip


def test_bytes_base64_and_data_uris(wav, samples):
    text = base64.b64encode(wav).decode()
    urlsafe = base64.urlsafe_b64encode(wav).decode().rstrip("=")
    sources = [wav, text, urlsafe, f"  {text}\n", base64.encodebytes(wav).decode(), f"data:audio/wav;base64,{text}"]
    sources += [f"DATA:;base64,{text}", f"data:video/x;codecs=opus;base64,{quote(text)}", f"data:audio/x,{quote(wav)}"]
    for source in sources:
        assert np.array_equal(media_samples(source, CLOSED, NAME), samples)
    assert samples.dtype == np.float32 and samples.shape == (RATE // 4,)


def test_escapes_across_the_pieces_of_a_data_uri(wav, samples):
    escaped = "".join(f"%{byte:02x}" for byte in wav)
    for shift in range(3):  # where an escape meets the end of a piece
        assert np.array_equal(
            media_samples("data:" + "x" * shift + "," + escaped, CLOSED, NAME),
            samples,
        )
    folded = encoded("FLAC", None, np.random.default_rng(0).uniform(-1, 1, RATE * 4).astype(np.float32))
    assert len(folded) > 2**16
    assert np.array_equal(media_samples("data:," + quote(folded), CLOSED, NAME), load_audio(folded))


def test_a_text_is_never_a_path(tmp_path, monkeypatch, wav):
    monkeypatch.chdir(tmp_path)
    for name in ("clip.wav", "A" * 40, "data"):
        (tmp_path / name).write_bytes(wav)
        for source in (name, str(tmp_path / name), f"./{name}", f"file://{tmp_path / name}", f"file:{tmp_path / name}"):
            assert "tmp" not in refused(source)
    opened = []
    sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event == "open" else None)
    for source in ("/etc/passwd", "/etc/hosts", "~/x", "../x", "", " ", "C:\\clip.wav", "etc/passwd" * 4):
        refused(source)
    assert not [path for path in opened if str(path) in ("/etc/passwd", "/etc/hosts") or "clip.wav" in str(path)]


@pytest.mark.parametrize("source", [None, 3, 1.5, [b"RIFF"], {"path": "/etc/passwd"}, Path("/etc/passwd")])
def test_what_is_neither_text_nor_bytes(source):
    assert "passwd" not in refused(source)


def test_errors_repeat_no_bytes_of_the_clip(tmp_path):
    secret = b"root:x:0:0:SECRET"
    (tmp_path / "secret").write_bytes(secret)
    policy = MediaPolicy(("127.0.0.1",), tmp_path)
    with serving(lambda request: send(request, secret)) as address:
        for source in (secret, base64.b64encode(secret).decode(), f"file://{tmp_path}/secret", f"{address}/SECRET"):
            message = refused(source, policy, "not audio that can be decoded here")
            assert not any(word in message for word in ("root", "SECRET", "127.0.0.1", str(tmp_path)))


@pytest.mark.parametrize("source", ["!!!!", "data:audio/wav;base64,????", "data:audio/wav", "Ä" * 40, "\ud800" * 40])
def test_wrong_text(source):
    refused(source)


# files of the server


def test_files_below_the_allowed_folder(tmp_path, wav, samples):
    folder, outside = tmp_path / "clips", tmp_path / "outside.wav"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "größe 1.wav").write_bytes(wav)
    outside.write_bytes(wav)
    (tmp_path / "clips-too").mkdir()
    (tmp_path / "clips-too" / "a.wav").write_bytes(wav)
    (folder / "link.wav").symlink_to(outside)
    (folder / "good link.wav").symlink_to(folder / "deep" / "größe 1.wav")
    (folder / "round").symlink_to(folder / "round")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    policy = MediaPolicy(allowed_path=folder)
    for path in (quote("deep/größe 1.wav"), "deep/../deep/gr%C3%B6%C3%9Fe%201.wav", "good%20link.wav"):
        for start in (f"file://{folder}/", f"FILE://localhost{folder}/"):
            assert np.array_equal(media_samples(start + path, policy, NAME), samples)
    wrong = ["link.wav", "../outside.wav", "%2e%2e/outside.wav", "up/outside.wav", "round", "pipe", "deep", "none.wav"]
    wrong += ["", "a%00b", "../clips-too/a.wav", "x" * 5000]
    messages = {refused(f"file://{folder}/{path}", policy) for path in wrong}
    messages |= {refused(url, policy) for url in ("file:///etc/passwd", "file:///dev/zero", f"file://host{folder}/x")}
    assert len(messages) == 1  # so that nobody learns what exists
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    assert np.array_equal(media_samples(f"file://{folder}/good%20link.wav", MediaPolicy((), linked), NAME), samples)
    refused(str(folder / "good link.wav"), policy)
    refused(f"file://{folder}/good%20link.wav", MediaPolicy((), folder, max_bytes=100), "100 bytes")


# addresses


class Net:
    """A name server and a network of the test: every connection arrives at one local port, and is written down."""

    def __init__(self, port: int = 0, **hosts):
        self.port, self.asked, self.dialled = port, [], []
        self.hosts = {name.replace("_", "."): addresses for name, addresses in hosts.items()}

    def resolve(self, host, port):
        self.asked.append(host)
        found = self.hosts.get(host)
        if found is None:
            raise socket.gaierror(-2, "Name or service not known")
        return [found.pop(0)] if isinstance(found, list) else list(found)

    def dial(self, address, seconds):
        self.dialled.append(address)
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    @property
    def how(self):
        return {"resolve": self.resolve, "dial": self.dial}


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_no_addresses_by_default():
    net = Net(example_org=(PUBLIC,))
    for url in ("http://example.org/a.wav", "https://example.org/", "http://127.0.0.1/", "HTTP://[::1]/", "ftp://x/y"):
        refused(url, CLOSED, "does not read URLs of this kind", **net.how)
    for url in ("gopher://example.org", "javascript:1", "s3://bucket/x", "unix:/run/x", "jar:file:///x", "http:x"):
        refused(url, MediaPolicy(("example.org",)), **net.how)
    assert net.asked == net.dialled == []


@pytest.mark.parametrize(
    "host, entry, allowed",
    [
        ("cdn.example.org", "cdn.example.org", True),
        ("CDN.Example.ORG.", "cdn.example.org", True),
        ("cdn.example.org", "CDN.Example.org.", True),
        ("a.b.example.org", ".example.org", True),
        ("example.org", ".example.org", False),
        ("evilexample.org", ".example.org", False),
        ("cdn.example.org.evil.net", "cdn.example.org", False),
        ("evil.net", "cdn.example.org", False),
        ("sub.cdn.example.org", "cdn.example.org", False),
        ("cdn.example.org%2eevil.net", "cdn.example.org", False),
        ("evil.net\\.example.org", ".example.org", False),
        ("xn--exmple-cua.org", "xn--exmple-cua.org", True),
        ("exämple.org", "xn--exmple-cua.org", True),
        ("evil.net。example.org", ".example.org", True),  # IDNA's dot: what is asked for is below example.org
    ],
)
def test_only_the_allowed_hosts_are_asked_for(wav, samples, host, entry, allowed):
    with serving(lambda request: send(request, wav)) as address:
        net = Net(port_of(address))
        net.resolve = lambda name, port: net.asked.append(name) or [PUBLIC]
        policy = MediaPolicy((entry,))
        if allowed:
            assert np.array_equal(media_samples(f"http://{host}/a.wav", policy, NAME, **net.how), samples)
            assert net.dialled == [(PUBLIC, 80)]
        else:
            refused(f"http://{host}/a.wav", policy, **net.how)
            assert net.asked == net.dialled == []


NOT_PUBLIC = """
127.0.0.1 127.9.9.9 10.0.0.5 172.16.3.4 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 239.1.1.1 240.0.0.1
255.255.255.255 198.18.0.1 192.0.0.8 192.0.2.1 203.0.113.5 192.88.99.1 ::1 :: fe80::1 fe80::1%1 fc00::1 fd12::1 fec0::1
ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:8.8.8.8 ::127.0.0.1 ::8.8.8.8 2002:7f00:1:: 2002:808:808::
2001:0:4136:e378:8000:63bf:3fff:fdd2 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::808:808 2001:db8::1 3fff::1 100::1
5f00::1
""".split()


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_hosts_with_an_address_that_is_not_public(address):
    policy = MediaPolicy(("cdn.example.org", ".example.net", "127.0.0.1", "localhost"))  # a name is not these two
    for addresses in ((address,), (PUBLIC, address), (address, "2606:4700::1111")):
        net = Net(cdn_example_org=addresses, a_example_net=addresses)
        for host in ("cdn.example.org", "a.example.net"):
            message = refused(f"http://{host}/", policy, "an address that is not public", **net.how)
            assert address not in message and host not in message
        assert net.dialled == []


@pytest.mark.parametrize("address", [PUBLIC, "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_connected_to_as_they_were_checked(wav, samples, address):
    with serving(lambda request: send(request, wav)) as server:
        net = Net(port_of(server), cdn_example_org=[address, "127.0.0.1"])  # rebinds at the second question
        got = media_samples("http://cdn.example.org:8080/a.wav", MediaPolicy(("cdn.example.org",)), NAME, **net.how)
    assert np.array_equal(got, samples)
    assert (net.asked, net.dialled) == (["cdn.example.org"], [(address, 8080)])


def test_the_next_address_is_tried(wav, samples):
    with serving(lambda request: send(request, wav)) as server:
        net = Net(port_of(server), cdn_example_org=("2606:4700::1111", PUBLIC))
        reach = net.dial

        def dial(address, seconds):
            if ":" in address[0]:
                raise OSError("Network is unreachable")
            return reach(address, seconds)

        got = media_samples(
            "http://cdn.example.org/a", MediaPolicy(("cdn.example.org",)), NAME, resolve=net.resolve, dial=dial
        )
        assert np.array_equal(got, samples)


@pytest.mark.parametrize(
    "host",
    [
        *("2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.1", "017700000001", "0", "0x0"),
        *(
            "127.0.0.1.",
            "127。0。0。1",
            "①②⑦.0.0.1",
            "[::ffff:127.0.0.1]",
            "[::127.0.0.1]",
            "[::1%25lo]",
            "[fe80::1%251]",
        ),
        *("3232235521", "169.254.169.254", "[64:ff9b::7f00:1]", "[0:0:0:0:0:0:0:1]", "localhost.", "LOCALHOST"),
    ],
)
def test_other_spellings_of_local_addresses(host):
    net = Net()
    net.resolve = addresses_of
    for policy in (MediaPolicy((".example.org",)), MediaPolicy(("10.0.0.5", ".1", "0x7f.2"))):
        refused(f"http://{host}:1/", policy, **net.how)
    # Also where an operator names that very spelling, which is no address then but a name.
    with contextlib.suppress(SettingError):
        if host.isascii() and host.lower() not in ("127.0.0.1.", "localhost.", "localhost", "169.254.169.254"):
            if not host.startswith("["):
                refused(f"http://{host}:1/", MediaPolicy((host,)), **net.how)
    assert net.dialled == []


@pytest.mark.parametrize("entry", ["127.0.0.1", "localhost", "Localhost."])
def test_local_addresses_that_the_operator_named(wav, samples, entry):
    with serving(lambda request: send(request, wav)) as server:
        port = port_of(server)
        host = entry.lower().rstrip(".")
        assert np.array_equal(media_samples(f"http://{host}:{port}/a.wav", MediaPolicy((entry,)), NAME), samples)
        for other in {"127.0.0.1", "localhost", "127.0.0.2", "0.0.0.0", "[::1]", "2130706433"} - {host}:
            refused(f"http://{other}:{port}/a.wav", MediaPolicy((entry,)))
    net = Net(localhost=("10.0.0.1",))
    refused("http://localhost/", MediaPolicy(("localhost",)), "not public", **net.how)
    net = Net(port_of(server))
    refused("http://[::1]:9/", MediaPolicy(("::1",)), **net.how)
    refused("http://[0:0:0:0:0:0:0:1]:9/", MediaPolicy(("[::1]",)), **net.how)
    assert net.dialled == [("::1", 9)] * 2 and net.asked == []


def test_redirects_are_checked_anew(wav, samples):
    def answer(request):
        path = request.path
        if path == "/a.wav":
            return send(request, wav)
        places = {"/good": "http://b.example.org/a.wav", "/relative": "/a.wav", "/twice": "/good", "/three": "/twice"}
        places |= {"/evil": "http://evil.net/a.wav", "/private": "http://internal.example.org/a.wav", "/four": "/three"}
        places |= {"/ip": "http://127.0.0.1/a.wav", "/meta": "http://169.254.169.254/latest", "/file": "file:///etc/x"}
        places |= {"/ftp": "ftp://b.example.org/", "/odd": "http://0x7f.1/", "/user": "http://u:SECRET@b.example.org/"}
        places |= {"/up": "http://evil.net\\@b.example.org/a.wav", "/six": "http://[::ffff:127.0.0.1]/"}
        send(request, b"", 302, Location=places[path])

    with serving(answer) as server:
        net = Net(
            port_of(server),
            a_example_org=(PUBLIC,),
            b_example_org=("8.8.8.8",),
            internal_example_org=("10.0.0.1",),
            evil_net=("9.9.9.9",),
        )
        policy = MediaPolicy((".example.org",))
        for path in ("/good", "/relative", "/twice", "/three"):
            assert np.array_equal(media_samples(f"http://a.example.org{path}", policy, NAME, **net.how), samples)
        assert {address for address, _ in net.dialled} == {PUBLIC, "8.8.8.8"}
        net.dialled.clear()
        wrong = ("/evil", "/private", "/ip", "/meta", "/file", "/ftp", "/odd", "/user", "/up", "/six")
        for path in wrong:
            message = refused(f"http://a.example.org{path}", policy, **net.how)
            assert not any(word in message for word in ("evil", "internal", "127", "169", "etc", "SECRET", "10.0"))
        assert net.dialled == [(PUBLIC, 80)] * len(wrong)
        refused("http://a.example.org/four", policy, "more than 3 times", **net.how)
        net = Net(port_of(server), a_example_org=[PUBLIC, "127.0.0.1"])  # bound anew between two hops
        refused("http://a.example.org/relative", policy, "not public", **net.how)


@pytest.mark.parametrize(
    "url",
    [
        *("http://user:SECRET@a.example.org/", "http://a.example.org\\@evil.net/", "http://a.example.org@evil.net/"),
        *("http://evil.net#@a.example.org/", "http://evil.net?@a.example.org/", "http://evil.net\\.a.example.org/"),
        *("http://a.example.org:99999/", "http://[::1/", "http:///a.example.org/", "http://a.example.org\r\nX: y/"),
        *("http://a.example.org/\r\nHost: evil.net", "http://\u2100.example.org/", "http://*.example.org/"),
    ],
)
def test_addresses_that_two_readers_could_read_differently(url):
    net = Net(evil_net=("9.9.9.9",))
    assert "SECRET" not in refused(url, MediaPolicy(("a.example.org",)), **net.how)
    assert net.dialled == []


def test_no_proxy_no_password_no_compression(monkeypatch, tmp_path, wav, samples):
    asked = []

    def answer(request):
        asked.append(request.headers)
        if request.path == "/gzip":
            return send(request, gzip.compress(wav), Content_Encoding="gzip")
        send(request, wav)

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    (tmp_path / ".netrc").write_text("machine cdn.example.org login a password SECRET")
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(answer) as server:
        net = Net(port_of(server), cdn_example_org=(PUBLIC,))
        policy = MediaPolicy(("cdn.example.org",))
        assert np.array_equal(media_samples("http://cdn.example.org/a.wav", policy, NAME, **net.how), samples)
        (headers,) = asked
        assert headers["Host"] == "cdn.example.org" and headers["Accept-Encoding"] == "identity"
        assert headers["Authorization"] is None and headers["Cookie"] is None
        refused("http://cdn.example.org/gzip", policy, "Content-Encoding", **net.how)


def reply(data: bytes, wait: float = 0):
    def answer(request):
        request.wfile.write(data)
        request.wfile.flush()
        time.sleep(wait)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        reply(b""),
        reply(b"SSH-2.0-SECRET\r\n"),
        reply(b"HTTP/1.1 500 SECRET\r\nContent-Length: 0\r\n\r\n"),
        reply(b"HTTP/1.1 404 SECRET\r\nContent-Length: 6\r\n\r\nSECRET"),
        reply(b"HTTP/1.1 200 OK\r\nX: " + b"SECRET" * 20_000 + b"\r\n\r\n"),
        reply(b"HTTP/1.1 200 OK\r\n" + b"A: SECRET\r\n" * 10_000 + b"\r\n"),
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\nRIFF"),
        reply(b"HTTP/1.1 200 OK\r\nContent-Encoding: SECRET\r\n\r\nRIFF"),
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nRIFF"),
        reply(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(3_000_000)),
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nRIFF", wait=1),
        reply(b"", wait=1),
    ],
)
def test_servers_that_answer_wrongly(answer):
    with serving(answer) as server:
        message = refused(server, MediaPolicy(("127.0.0.1",), max_bytes=1_000_000, timeout=0.5))
        assert "SECRET" not in message and "127.0.0.1" not in message


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 100 Continue\r\n\r\n", b"tls"])
def test_a_server_that_drips_holds_no_thread(part):
    stop = threading.Event()

    def answer(request):
        request.wfile.write(part)
        while not stop.wait(0.02):
            request.wfile.write(part if part.startswith(b"HTTP/1.1 100") else b"1")

    listener = socket.create_server(("127.0.0.1", 0))  # takes connections and says nothing, to a handshake either
    with serving(answer) as server, listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}" if part == b"tls" else server
        refused(url, MediaPolicy(("127.0.0.1",), timeout=0.3), "not read within 0.3 s")
        left = [thread for thread in threading.enumerate() if thread.name == "load_audio"]
        for thread in left:
            thread.join(5)
        assert not any(thread.is_alive() for thread in left)
        stop.set()


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=cdn.example.org -keyout key.pem -out cert.pem"
    )
    names = ["-addext", "subjectAltName=DNS:cdn.example.org"]
    subprocess.run([*command.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder


def test_tls_checks_the_name_that_was_asked_for(monkeypatch, certificate, wav, samples):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    named = []
    context.sni_callback = lambda link, name, context: named.append(name)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                link, _ = listener.accept()
                with contextlib.suppress(OSError), context.wrap_socket(link, server_side=True) as secure:
                    secure.recv(10_000)
                    secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(wav) + wav)

    threading.Thread(target=serve, daemon=True).start()
    net = Net(listener.getsockname()[1], cdn_example_org=(PUBLIC,), www_example_org=(PUBLIC,))
    policy = MediaPolicy((".example.org",))
    with listener:
        refused("https://cdn.example.org/a", policy, "no connection", **net.how)  # nobody knows who signed it
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        assert np.array_equal(media_samples("https://cdn.example.org/a", policy, NAME, **net.how), samples)
        refused("https://www.example.org/a", policy, "no connection", **net.how)
    assert named == ["cdn.example.org", "cdn.example.org", "www.example.org"]
    assert net.dialled == [(PUBLIC, 443)] * 3


# policies


@pytest.mark.parametrize("entry", ["*", "*.example.org", "http://example.org", "example.org:80", "a/b", "", ".", "a b"])
def test_wrong_domains(entry):
    with pytest.raises(SettingError, match="allowed_domains has .*give hosts alone"):
        MediaPolicy((entry,))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(SettingError, match="allowed_path is .*a folder that exists"):
        MediaPolicy(allowed_path=tmp_path / "none")


# limits


def test_the_limit_of_bytes(wav):
    text = base64.b64encode(wav).decode()
    for source in (wav, text, f"data:;base64,{text}", f"data:,{quote(wav)}"):
        message = refused(source, MediaPolicy(max_bytes=1000), "more than 1000 bytes")
        assert "max_bytes" not in message and "load_audio" not in message


def test_the_limit_of_seconds():
    policy = MediaPolicy(max_seconds=2.0)
    assert len(media_samples(encoded("FLAC", None, tone(2.0)), policy, NAME)) == 2 * RATE
    for source in (encoded("FLAC", None, tone(2.1)), encoded("OGG", None, tone(2.1)), encoded("MP3", None, tone(2.5))):
        assert "load_audio" not in refused(source, policy, r"longer than 2 s .*the limit")


def forged(rate: int, channels: int = 1, frames: int = 1_000_000) -> bytes:
    """A WAV of 8-bit silence that says this rate."""
    data = b"\x80" * (frames * channels)
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels % 2**32, channels, 8)
    head = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", len(data)) + data


@pytest.mark.parametrize("rate", [1, 3, 100, 4_000_000_000])
def test_forged_rates_are_refused(rate):
    refused(forged(rate), CLOSED)


def test_many_channels_are_fewer_seconds():
    assert len(media_samples(forged(16_000, 255, 10_000), MediaPolicy(max_seconds=10.0), NAME)) == 10_000
    # 10 s of 8 channels at 48 kHz are 3,840,000 samples, and so are 15,059 of 255 channels
    refused(forged(16_000, 255, 15_060), MediaPolicy(max_seconds=10.0), "longer than 10 s")
    refused(forged(48_000, 1000, 4_000), MediaPolicy(max_seconds=10.0), "longer than 10 s")


def flac_of_silence(channels: int = 8, seconds: int = 3 * 3600, rate: int = 8000, says: int | None = None) -> bytes:
    """Hours in a few kilobytes; `says` is the rate in the header."""
    file, block = io.BytesIO(), np.zeros((2**18, channels), np.float32)
    with soundfile.SoundFile(file, "w", rate, channels, format="FLAC", subtype="PCM_16") as clip:
        for _ in range(seconds * rate // len(block)):
            clip.write(block)
    data = bytearray(file.getvalue())
    if says is not None:
        (word,) = struct.unpack_from(">Q", data, 18)
        struct.pack_into(">Q", data, 18, word & ~(0xFFFFF << 44) | says << 44)
    return bytes(data)


MEASURE = """
import resource, sys
from mindone_audio.server.media import MediaPolicy, media_samples
import soxr, soundfile
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    said = f"{len(media_samples(data, MediaPolicy(), 'CLIP'))} samples"
except ValueError as error:
    said = str(error)
kilobytes = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(kilobytes[0] - before, kilobytes[1], said)
"""


def measured(data: bytes) -> tuple[float, float, str]:
    """MiB that decoding adds to the peak of a process of its own, MiB of ffmpeg, and what comes of it."""
    done = subprocess.run([sys.executable, "-c", MEASURE], input=data, capture_output=True, cwd=ROOT, timeout=120)
    own, child, said = done.stdout.decode().split(maxsplit=2)
    return int(own) / 1024, int(child) / 1024, said


@pytest.mark.parametrize(
    "clip",
    [
        lambda: flac_of_silence(),
        lambda: flac_of_silence(seconds=1800, says=655_350),
        lambda: encoded("OGG", "OPUS", np.zeros(700 * 8000, np.float32), 8000),
        lambda: forged(1_000_000, 1, 26_000_000),
    ],
    ids=["flac", "forged flac", "opus", "pcm"],
)
def test_the_memory_of_a_bomb_is_a_few_times_the_limit(clip):
    own, _, said = measured(clip())
    assert "limit" in said or "samples" in said
    assert own < 3 * 600 * 48_000 * 4 / 2**20  # 600 s of float32 at 48 kHz: 110 MiB


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_the_memory_of_a_bomb_that_ffmpeg_reads(tmp_path):
    made = "ffmpeg -v error -f lavfi -i anullsrc=r=48000:cl=7.1 -t 900 -c:a aac -b:a 8k bomb.m4a"
    subprocess.run(made.split(), cwd=tmp_path, check=True)
    own, child, said = measured((tmp_path / "bomb.m4a").read_bytes())
    assert "longer than 600 s" in said
    assert own < 330 and child < 500


def test_ffmpeg_that_hangs_is_ended(tmp_path, monkeypatch):
    program(tmp_path, "sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    message = refused(b"\x1aE\xdf\xa3" + bytes(100), MediaPolicy(timeout=0.2), "not audio")
    assert str(tmp_path) not in message

"""Clips as text: base64 of any format, data URIs in every legal spelling, and URLs that answer in every way."""

import base64
import gzip
import socket
import threading
import time
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from helpers_audio import encoded, send, serving
from helpers_processor import tone

from mindone_audio import load_audio
from mindone_audio.inputs.audio import AudioError, AudioNotFoundError


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture(scope="module")
def wav():
    return encoded("WAV", None, tone(0.25))


@pytest.fixture(scope="module")
def samples(wav):
    return load_audio(wav)


# base64 and data URIs


@pytest.mark.parametrize("name", ["WAV", "FLAC", "MP3", "OGG", "AU", "CAF", "W64", "VOC", "NIST", "PVF", "AVR", "HTK"])
def test_plain_base64_of_any_format(name):
    data = encoded(name)
    expected = load_audio(data)
    text = base64.b64encode(data).decode()
    lines = base64.encodebytes(data).decode()
    for spelling in (
        *(text, text.rstrip("="), base64.urlsafe_b64encode(data).decode(), lines, lines.replace("\n", "\r\n")),
        *(f"  {text}\n", base64.urlsafe_b64encode(data).decode().rstrip("=")),
    ):
        assert np.array_equal(load_audio(spelling), expected)


def test_a_path_wins_over_base64(tmp_path, monkeypatch, wav, samples):
    monkeypatch.chdir(tmp_path)
    text = base64.urlsafe_b64encode(encoded("WAV", None, np.zeros(60, np.float32))).decode()[:200]
    (tmp_path / text).write_bytes(wav)
    assert np.array_equal(load_audio(text), samples)
    with pytest.raises(AudioNotFoundError, match="no audio file 'clips/of/last/summer/number/nineteen'"):
        load_audio("clips/of/last/summer/number/nineteen")


def test_long_text_is_never_repeated(wav):
    rubbish = base64.b64encode(bytes(range(256)) * 400).decode()
    sources = [
        *(rubbish, rubbish[:-3] + "!", "x" * 5000, "/".join(["folder"] * 900), f"data:;base64,{rubbish}"),
        *(f"data:audio/wav,{rubbish}", f"data:{rubbish}", f"http://127.0.0.1:1/{rubbish}", f"s3://{rubbish}"),
        *(
            f"file:///{rubbish}",
            rubbish.encode(),
            {"bytes": rubbish},
            {"path": rubbish},
            {"array": rubbish},
            {rubbish: 1},
        ),
        *([rubbish], (rubbish, 3), {"array": np.zeros(9), "sampling_rate": rubbish}, {"array": [rubbish]}),
        np.array([rubbish]),
        {"array": np.zeros(9), rubbish: 1},
    ]
    for source in sources:
        with pytest.raises(AudioError) as raised:
            load_audio(source, timeout=5)
        shown = f"{raised.value} {raised.value.__cause__} {raised.value.__context__ if raised.value.__cause__ else ''}"
        assert len(str(raised.value)) < 700 and rubbish[:300] not in shown, str(raised.value)[:300]


@pytest.mark.parametrize(
    "header",
    [
        *("data:audio/wav;base64,", "data:;base64,", "DATA:audio/wav;BASE64,", "data:audio/x-wav;rate=16000;Base64,"),
        *(
            'data:audio/wav;name="a,b;c";base64,',
            "Data:AUDIO/WAV;charset=utf-8;name=a%2Cb;base64,",
            "data:base64;base64,",
        ),
        *(" \ndata:audio/wav;base64,", "data:audio/wav; base64,"),
    ],
)
def test_base64_data_uris(wav, samples, header):
    text = base64.b64encode(wav).decode()
    percent = text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
    lines = base64.encodebytes(wav).decode()
    for payload in (
        text,
        percent,
        lines,
        lines.replace("\n", "%0A"),
        base64.urlsafe_b64encode(wav).decode(),
        quote(text),
    ):
        assert np.array_equal(load_audio(header + payload), samples)


@pytest.mark.parametrize("header", ["data:,", "data:audio/wav,", "DATA:audio/wav;rate=16000,", "data:;charset=x,"])
def test_percent_encoded_data_uris(wav, samples, header):
    assert np.array_equal(load_audio(header + quote(wav)), samples)
    assert np.array_equal(load_audio(header + "".join(f"%{byte:02x}" for byte in wav)), samples)


@pytest.mark.parametrize(
    "uri, message",
    [
        ("data:audio/wav;base64", "with a comma"),
        ("data:", "with a comma"),
        ("data:audio/wav;base64,", r"empty \(0 bytes\)|holds no"),
        ("data:audio/wav;base64,a", "not valid base64"),
        ("data:audio/wav;base64,UklG!!!!", "not valid base64"),
        ("data:audio/wav;base64,ÄÖ", "not valid base64"),
        ("data:text/plain,hello", "not a base64 data URI"),
    ],
)
def test_wrong_data_uris(uri, message):
    with pytest.raises(AudioError, match=message):
        load_audio(uri)


# URLs


@pytest.mark.parametrize(
    "path, seen",
    [
        ("/clip one.wav", "/clip%20one.wav"),
        ("/clip%20one.wav", "/clip%20one.wav"),
        ("/größe/音.wav", "/gr%C3%B6%C3%9Fe/%E9%9F%B3.wav"),
        ("/gr%C3%B6%C3%9Fe", "/gr%C3%B6%C3%9Fe"),
        ("/100%.wav", "/100%25.wav"),
        ("/a+b&c=d;e@f:g,h(1)!~*'.wav", "/a+b&c=d;e@f:g,h(1)!~*'.wav"),
        ("/clip.wav?name=größe&b=a%20b&c=1+2", "/clip.wav?name=gr%C3%B6%C3%9Fe&b=a%20b&c=1+2"),
        ("/clip.wav?token=a/b?c[0]=%2F", "/clip.wav?token=a/b?c[0]=%2F"),
        ("/clip.wav#t=1", "/clip.wav"),
        ("", "/"),
        ("?a=1", "/?a=1"),
        ('/a"b<c>{d}|e\\f^`.wav', "/a%22b%3Cc%3E%7Bd%7D%7Ce%5Cf%5E%60.wav"),
    ],
)
def test_paths_of_urls(wav, samples, path, seen):
    paths = []

    def answer(request):
        paths.append(request.path)
        send(request, wav)

    with serving(answer) as address:
        assert np.array_equal(load_audio(address + path), samples)
        assert np.array_equal(load_audio(f" {address.replace('http', 'HTTP', 1)}{path}\n"), samples)
    assert paths == [seen] * 2


def test_host_names_of_other_alphabets(wav, samples, monkeypatch):
    asked, real = [], socket.getaddrinfo

    def getaddrinfo(host, *arguments, **keywords):
        asked.append(host)
        return real("127.0.0.1", *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setenv("no_proxy", "*")
    with serving(lambda request: send(request, wav)) as address:
        port = address.rpartition(":")[2]
        for host in ("bücher.example", "例え.jp", "BÜCHER.example"):
            assert np.array_equal(load_audio(f"http://{host}:{port}/x"), samples)
    assert asked == ["xn--bcher-kva.example", "xn--r8jz45g.jp", "xn--bcher-kva.example"]


def test_a_password_is_used_and_not_repeated(wav, samples, monkeypatch):
    seen = []

    def answer(request):
        seen.append(request.headers["Authorization"])
        if request.path == "/move":
            return send(request, b"", 302, Location=f"http://localhost:{request.server.server_port}/clip")
        send(request, wav, 200 if request.path == "/clip" else 404)

    with serving(answer) as address:
        secret = address.replace("//", "//me:p%40ss-word@")
        assert np.array_equal(load_audio(f"{secret}/clip"), samples)
        assert seen == ["Basic " + base64.b64encode(b"me:p@ss-word").decode()]
        seen.clear()
        assert np.array_equal(load_audio(f"{secret}/move"), samples)
        assert seen[1] is None
        for path in ("/gone", ":99999/", "/\x01", "/?" + "q" * 9999):
            with pytest.raises(AudioError) as raised:
                load_audio(secret + path)
            assert "word" not in str(raised.value) and "me:" not in str(raised.value)
    for url in ("http://me:p%40ss-word@[::1/", "http://me:pass-word@127.0.0.1:1/", "ftp://me:pass-word@h/x"):
        with pytest.raises(AudioError) as raised:
            load_audio(url)
        assert "word" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://", "http:///clip.wav", "http://127.0.0.1:99999/x", "http://127.0.0.1:-1/x", "http://127.0.0.1:abc/x"),
        *(
            "http://[::1/x",
            "http://[zz]/x",
            "http://[]/x",
            "http://127.0.0.1:1/\x00",
            "http://127.0.0.1:1/a\r\nHost: b",
        ),
        *(
            "http://127.0.0.1\n:1/",
            "http://a b/",
            "http://" + "a" * 70 + ".example/",
            "http://ü" + "a" * 70 + ".example/",
        ),
        *("http://.../x", "http://127.0.0.1:0/x", "http://127.0.0.1:1/\ud800", "http://\ud800/x", "http://:80/x"),
        *("https://127.0.0.1:1/x", "http://127.0.0.1:1/", "http://%zz/", "http://xn--a/", "http://user@/x"),
    ],
)
def test_wrong_urls(url):
    with pytest.raises(AudioError):
        load_audio(url, timeout=5)
    with pytest.raises(AudioError):
        load_audio({"path": url}, timeout=5)


def raw(data: bytes, wait: float = 0):
    """Answers with these bytes and nothing else."""

    def answer(request):
        request.wfile.write(data)
        request.wfile.flush()
        time.sleep(wait)

    return answer


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer, message",
    [
        (raw(b""), "cannot read"),
        (raw(b"nonsense\r\n\r\n"), "cannot read"),
        (raw(b"HTTP/1.1 abc OK\r\n\r\n"), "cannot read"),
        (raw(b"SSH-2.0-OpenSSH\r\n"), "cannot read"),
        (raw(HEAD + b"A: " + b"x" * 70_000 + b"\r\n\r\n"), "cannot read"),
        (raw(HEAD + b"A: b\r\n" * 200 + b"\r\n"), "cannot read"),
        (raw(HEAD + b"Content-Length: 0\r\n\r\n"), r"empty \(0 bytes\)"),
        (raw(HEAD + b"\r\n"), r"empty \(0 bytes\)"),
        (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), r"empty \(0 bytes\)"),
        (raw(HEAD + b"Content-Length: 50\r\n\r\nRIFF"), "broke off after 4 of 50 bytes"),
        (raw(CHUNKED + b"4\r\nRIFF\r\n"), "cannot read"),
        (raw(CHUNKED + b"400\r\nRIFF"), "cannot read"),
        (raw(CHUNKED + b"zzz\r\nRIFF\r\n0\r\n\r\n"), "cannot read"),
        (raw(CHUNKED + b"-5\r\nRIFF\r\n0\r\n\r\n"), "cannot read|not audio"),
        (raw(HEAD + b"Content-Encoding: gzip\r\n\r\nnot gzip"), "cannot read"),
        (raw(HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"RIFF" * 99)[:-20]), "broke off"),
        (raw(HEAD + b"Content-Encoding: br\r\n\r\nx"), "Content-Encoding 'br'"),
        (raw(HEAD + b"Content-Type: text/html\r\n\r\n<!doctype html><html>Log in</html>"), "web page"),
        (raw(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), "HTTP 404 Not Found"),
        (raw(b"HTTP/1.1 500 " + b"x" * 5000 + b"\r\nContent-Length: 0\r\n\r\n"), "HTTP 500 x"),
        (raw(b"HTTP/1.1 302 Found\r\n\r\n"), "HTTP 302"),
        (raw(b"HTTP/1.1 304 Not Modified\r\n\r\n"), "HTTP 304"),
        (raw(b"", wait=3), "not read within 1 s"),
        (raw(HEAD, wait=3), "not read within 1 s"),
        (raw(HEAD + b"Content-Length: 9999\r\n\r\nRIFF", wait=3), "not read within 1 s"),
    ],
)
def test_servers_that_answer_wrongly(answer, message):
    with serving(answer) as address:
        with pytest.raises(AudioError, match=message) as raised:
            load_audio(address, timeout=1)
        assert len(str(raised.value)) < 600


@pytest.mark.parametrize("part", ["status", "header", "chunk"])
def test_a_server_that_drips(part):
    stop = threading.Event()

    def answer(request):
        request.wfile.write({"status": b"", "header": HEAD + b"A: ", "chunk": CHUNKED}[part])
        while not stop.wait(0.05):
            request.wfile.write(b"1")

    with serving(answer) as address:
        with pytest.raises(AudioError, match="not read within 0.5 s"):
            load_audio(address, timeout=0.5)
        stop.set()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location", ["/größe clip", "gr%C3%B6%C3%9Fe%20clip", "//{host}/größe clip", "{address}/x/../c"]
)
def test_redirects_are_followed(wav, samples, status, location):
    def answer(request):
        if request.path != "/start":
            return send(request, wav)
        host = f"127.0.0.1:{request.server.server_port}"
        where = location.format(host=host, address=f"http://{host}").encode("utf-8")
        request.wfile.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n" % (status, where))

    with serving(answer) as address:
        assert np.array_equal(load_audio(f"{address}/start"), samples)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x", "javascript:1"]
)
def test_redirects_to_other_schemes_are_refused(location):
    with serving(lambda request: send(request, b"", 302, Location=location)) as address:
        with pytest.raises(AudioError, match="redirects to .*only http:// and https://"):
            load_audio(address)


def test_redirects_end(wav, samples):
    count = []

    def answer(request):
        count.append(request.path)
        number = int(request.path[1:] or 0)
        send(request, wav) if number == 0 else send(request, b"", 302, Location=f"/{number - 1}")

    with serving(answer) as address:
        assert np.array_equal(load_audio(f"{address}/5"), samples)
        for path in ("/6", "/999"):
            count.clear()
            with pytest.raises(AudioError, match="redirects more than 5 times"):
                load_audio(address + path)
            assert len(count) == 6
    with serving(lambda request: send(request, b"", 302, Location=request.path)) as address:
        with pytest.raises(AudioError, match="redirects more than 5 times"):
            load_audio(f"{address}/loop")
    for location in ("http://[::1/", "http://127.0.0.1:99999/", "http://"):
        with serving(lambda request, location=location: send(request, b"", 302, Location=location)) as address:
            with pytest.raises(AudioError):
                load_audio(address)


def test_compressed_answers(wav, samples):
    def answer(request):
        pack = {"/gzip": gzip.compress, "/x-gzip": gzip.compress, "/deflate": zlib.compress, "/identity": bytes}
        send(request, pack[request.path](wav), Content_Encoding=request.path[1:])

    with serving(answer) as address:
        for path in ("/gzip", "/x-gzip", "/deflate", "/identity"):
            assert np.array_equal(load_audio(address + path), samples)


def test_chunks_and_no_length(wav, samples):
    def answer(request):
        if request.path == "/plain":
            return request.wfile.write(HEAD + b"\r\n" + wav)
        request.wfile.write(CHUNKED)
        for start in range(0, len(wav), 1000):
            piece = wav[start : start + 1000]
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        request.wfile.write(b"0\r\n\r\n")

    with serving(answer) as address:
        for path in ("/plain", "/chunks"):
            assert np.array_equal(load_audio(address + path), samples)


@pytest.mark.parametrize("kind", ["length", "endless", "chunks", "bomb"])
def test_downloads_are_bounded(kind):
    sent = []

    def answer(request):
        if kind == "length":
            return request.wfile.write(HEAD + b"Content-Length: 999999999999\r\n\r\nRIFF")
        if kind == "bomb":
            bomb = gzip.compress(bytes(50_000_000))
            return send(request, bomb, Content_Encoding="gzip")
        piece = bytes(60_000)
        request.wfile.write(CHUNKED if kind == "chunks" else HEAD + b"\r\n")
        for _ in range(2000):
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if kind == "chunks" else piece)
            sent.append(len(piece))

    with serving(answer) as address:
        with pytest.raises(AudioError, match=r"more than 1000000 bytes .*max_bytes"):
            load_audio(address, max_bytes=1_000_000)
    assert sum(sent) < 50_000_000

"""Every kind of clip a user can name gives librosa's samples, or an error that says what to do."""

import base64
import http.server
import io
import threading
import time

import numpy as np
import pytest
import soundfile
from helpers_processor import RATE, tone, write_audio

from mindone_audio.inputs.audio import AudioError, AudioNotFoundError, fit_window, load_audio, load_clips


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    return write_audio(tmp_path_factory.mktemp("audio") / "clip.wav", tone(0.5))


@pytest.fixture(scope="module")
def server(wav):
    """Serves /clip.wav, /text, /drip (a byte at a time), /short (less than promised) and /silent (never answers)."""
    stop = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = {"/clip.wav": wav.read_bytes(), "/text": b"not audio", "/drip": b"x" * 99, "/short": b"RIFF"}
            if self.path == "/silent":
                stop.wait(10)
                return
            if self.path not in body:
                return self.send_error(404)
            data = body[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data) * (2 if self.path == "/short" else 1)))
            self.end_headers()
            if self.path != "/drip":
                return self.wfile.write(data)
            for byte in data:
                if stop.wait(0.1):
                    return
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:  # the client gave up, as it should
                    return

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    stop.set()
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
@pytest.mark.parametrize("rate, channels", [(16000, 1), (8000, 1), (44100, 2), (48000, 3)])
def test_equals_librosa(tmp_path, name, rate, channels):
    librosa = pytest.importorskip("librosa")
    if name == "a.mp3" and channels > 2:
        pytest.skip("mp3 holds at most two channels")
    samples = np.stack([tone(0.401, rate, seed) * (1 + seed) / channels for seed in range(channels)], axis=1)
    path = write_audio(tmp_path / name, samples, rate)
    expected = librosa.load(path, sr=RATE)[0]
    loaded = load_audio(path)
    assert loaded.dtype == np.float32 and loaded.shape == expected.shape
    assert np.abs(loaded - expected).max() < 1e-6
    assert np.abs(loaded).max() > 0.1


@pytest.mark.parametrize("rate", [11025, 22050, 44100, 96000])
@pytest.mark.parametrize("length", [1, 2, 7, 1001, 50000])
def test_resampled_length_is_librosas(rate, length):
    librosa = pytest.importorskip("librosa")
    samples = tone(1, length)
    expected = librosa.resample(samples, orig_sr=rate, target_sr=RATE)
    loaded = load_audio(samples, source_sampling_rate=rate)
    assert loaded.shape == expected.shape and np.abs(loaded - expected).max() < 1e-6


def test_other_target_rate(wav):
    assert load_audio(wav, 8000).shape == (4000,)


def test_all_kinds_of_source_agree(wav, server):
    data = wav.read_bytes()
    text = base64.b64encode(data).decode()
    sources = [
        str(wav),
        wav.as_uri(),
        f"{server}/clip.wav",
        data,
        bytearray(data),
        io.BytesIO(data),
        f"data:audio/wav;base64,{text}",
        text,
    ]
    for source in sources:
        assert np.array_equal(load_audio(source), load_audio(wav)), str(source)[:60]


def test_a_path_is_relative_and_wins_over_base64(wav, monkeypatch):
    monkeypatch.chdir(wav.parent)
    assert np.array_equal(load_audio("clip.wav"), load_audio(wav))


def test_raw_extension_is_decoded_by_content(wav, tmp_path):
    (tmp_path / "clip.raw").write_bytes(wav.read_bytes())
    assert np.array_equal(load_audio(tmp_path / "clip.raw"), load_audio(wav))


def test_array_layouts():
    left, right = tone(0.1, seed=1), tone(0.1, seed=2)
    mean = (left + right) / 2
    for array in (np.stack([left, right]), np.stack([left, right], axis=1)):
        assert np.allclose(load_audio(array), mean, atol=1e-7)
    assert np.shares_memory(load_audio(left), left)
    assert np.array_equal(load_audio(left[None]), left)
    assert load_audio(left.astype(np.float64)).dtype == np.float32
    assert np.array_equal(load_audio(np.zeros(100, np.float32)), np.zeros(100, np.float32))


@pytest.mark.parametrize(
    "array",
    [
        np.array([-128, 0, 64], np.int8),
        np.array([0, 128, 192], np.uint8),
        np.array([-32768, 0, 16384], np.int16),
        np.array([-(2**31), 0, 2**30], np.int32),
    ],
)
def test_integer_pcm_is_scaled_by_its_range(array):
    assert load_audio(array).tolist() == [-1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    "source, message",
    [
        (b"", r"empty \(0 bytes\)"),
        (b"hello, this is no audio", r"starts with b'hello, t'.*ffmpeg"),
        (np.zeros(0, np.float32), "holds no samples"),
        (np.zeros((2, 0), np.float32), "holds no samples"),
        (np.array([0, np.nan, np.inf]), "2 of 3 samples are NaN"),
        (np.zeros(9, np.int64), r"int64 array of shape \(9,\).*int16"),
        (np.zeros(9, bool), "bool array"),
        (np.zeros(9, complex), "complex128 array"),
        (np.array(3.0), "has 0 axes"),
        (np.zeros((2, 3, 4)), "has 3 axes"),
        (np.zeros((50, 50)), "cannot tell channels"),
        (np.zeros((20, 1000)), "cannot tell channels"),
        ([0.1, 0.2], "list given is no audio source"),
        (None, "NoneType given is no audio source"),
        (io.StringIO("x"), "binary mode"),
        ("data:audio/wav;base64,@@@@", "not valid base64"),
        ("data:audio/wav,plain", "not a base64 data URI"),
        ("s3://bucket/clip.wav", "'s3://bucket/clip.wav'.*http"),
        ("file://clip.wav", "file:///absolute/path"),
        ("http://127.0.0.1:1/clip.wav", "check the address"),
    ],
)
def test_errors(source, message):
    with pytest.raises(AudioError, match=message):
        load_audio(source, timeout=5)


def test_missing_file_folder_and_empty_clip(tmp_path):
    with pytest.raises(FileNotFoundError, match="no audio file '.*nope.wav'.*check the path") as raised:
        load_audio(tmp_path / "nope.wav")
    assert isinstance(raised.value, AudioError)
    with pytest.raises(AudioNotFoundError, match="/a/name/of/"):
        load_audio("/a/name/of/" + "x" * 60)
    with pytest.raises(AudioError, match="is a folder"):
        load_audio(tmp_path)
    with pytest.raises(AudioError, match="holds no samples"):
        load_audio(write_audio(tmp_path / "empty.wav", np.zeros(0, np.float32)))
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan], np.float32), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="1 of 2 samples"):
        load_audio(tmp_path / "nan.wav")


def test_url_errors(server):
    with pytest.raises(AudioError, match="HTTP 404"):
        load_audio(f"{server}/nothing")
    with pytest.raises(AudioError, match="not audio that can be decoded"):
        load_audio(f"{server}/text")
    with pytest.raises(AudioError, match="broke off after 4 of 8 bytes"):
        load_audio(f"{server}/short")


@pytest.mark.parametrize("path", ["/silent", "/drip"])
def test_url_timeout_bounds_the_whole_transfer(server, path):
    start = time.monotonic()
    with pytest.raises(AudioError, match="not read within 0.4 s.*download it first"):
        load_audio(server + path, timeout=0.4)
    assert time.monotonic() - start < 3


def test_rates_are_checked(wav):
    with pytest.raises(AudioError, match="is for arrays only"):
        load_audio(wav, source_sampling_rate=8000)
    with pytest.raises(AudioError, match="rate of 0 Hz"):
        load_audio(tone(0.1), source_sampling_rate=0)
    with pytest.raises(AudioError, match="rate of -1 Hz"):
        load_audio(tone(0.1), -1)


def test_load_clips_names_the_clip(wav):
    assert [len(clip) for clip in load_clips([wav, tone(0.1)])] == [8000, 1600]
    with pytest.raises(AudioNotFoundError, match="audio clip 1: no audio file"):
        load_clips([wav, "nope.wav"])


def test_fit_window(caplog):
    clip = tone(1.5)
    assert len(fit_window(clip[:RATE], 1, RATE)) == RATE
    with pytest.raises(AudioError, match="is 1.50 s long and the model hears 1 s.*truncation=True"):
        fit_window(clip, 1, RATE)
    assert np.array_equal(fit_window(clip, 1, RATE, truncation=True), clip[:RATE])
    assert "1.50 s long" in caplog.text

"""Every format decodes to the same samples from every source; tags, wrong sizes, joined files, ffmpeg, limits, junk."""

import base64
import io
import logging
import os
import shutil
import struct
import subprocess
import threading
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
from helpers_audio import ID3V1, ape, encoded, formats, id3v2, path_without, program, send, serving
from helpers_processor import RATE, tone

from mindone_audio import load_audio
from mindone_audio.inputs.audio import AudioError

CASES = Path(__file__).parent.parent.parent / "shared" / "cases"
SPEECH = Path(__file__).parent.parent / "examples" / "audio"
HAS_FFMPEG = shutil.which("ffmpeg") is not None
needs_ffmpeg = pytest.mark.skipif(not HAS_FFMPEG, reason="no ffmpeg on PATH")
needs_shell = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def no_ffmpeg(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", path_without(tmp_path, "ffmpeg"))


@pytest.fixture(scope="module")
def wav():
    return encoded("WAV", "PCM_16")


def case(name: str) -> bytes:
    if not (CASES / name).is_file():
        pytest.skip("the shared cases are not here")
    return (CASES / name).read_bytes()


def as_libsndfile_reads(path: Path) -> np.ndarray:
    """From a path and all at once."""
    with soundfile.SoundFile(path) as file:
        if file.format == "MP3":
            file.seek(0)  # as `soundfile.read` does
        samples = file.read(1 << 20, dtype="float32", always_2d=True).mean(axis=1)
        return load_audio(samples, source_sampling_rate=file.samplerate)


@pytest.mark.parametrize("name, subtype", formats())
def test_a_format_from_every_source(tmp_path, name, subtype):
    data, path = encoded(name, subtype, tone(0.3)), tmp_path / f"clip.{name.lower()}"
    path.write_bytes(data)
    expected = load_audio(path)
    length = len(tone(0.3)) * (2 if name == "WVE" else 1)  # which is always at 8 kHz
    assert abs(len(expected) - length) <= 4096 and np.abs(expected).max() > 0.05
    if not subtype.startswith("DWVW"):
        assert np.array_equal(expected, as_libsndfile_reads(path))
    text = base64.b64encode(data).decode()
    with serving(lambda request: send(request, data)) as address, path.open("rb") as file:
        for source in (
            *(data, bytearray(data), io.BytesIO(data), file, text, f"data:audio/x;base64,{text}"),
            *(f"data:,{quote(data)}", path.as_uri(), f"{address}/clip", {"bytes": data, "path": None}),
        ):
            assert np.array_equal(load_audio(source), expected), str(source)[:40]
        assert not file.closed


@pytest.mark.parametrize("name, subtype", [("WAV", "PCM_16"), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
@pytest.mark.parametrize("more", [("AIFF", None), ("MP3", None), ("CAF", None), ("W64", None), ("AU", None)])
@pytest.mark.parametrize(
    "before, after",
    [
        (id3v2(30_000), b""),
        (id3v2(10) + id3v2(3000) + id3v2(0), b""),
        (id3v2(500, footer=True), b""),
        (ape(100, front=True), b""),
        (b"", ID3V1),
        (b"", ape(300)),
        (id3v2(1000), ape(300) + ID3V1),
    ],
)
def test_tags_cost_no_sample(tmp_path, name, subtype, more, before, after):
    for format_name, format_subtype in ((name, subtype), more):
        data = encoded(format_name, format_subtype)
        (tmp_path / "tagged").write_bytes(before + data + after)
        expected = load_audio(data)
        for source in (tmp_path / "tagged", before + data + after):
            assert np.array_equal(load_audio(source), expected), format_name


def sized(wav: bytes, riff: int | None = None, data: int | None = None) -> bytes:
    """A WAV of which the sizes are written anew."""
    place = wav.index(b"data") + 4
    riff_size = wav[4:8] if riff is None else struct.pack("<I", riff)
    data_size = wav[place : place + 4] if data is None else struct.pack("<I", data)
    return wav[:4] + riff_size + wav[8:place] + data_size + wav[place + 4 :]


@pytest.mark.parametrize("riff", [None, 0, 0xFFFFFFFF, 36, 0x80000000])
@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000, 1_000_000])
def test_a_streamed_wav_is_read_to_its_end(wav, riff, size):
    expected = load_audio(wav)
    listed = wav[:36] + b"LIST" + struct.pack("<I", 5) + b"INFO\0\0" + wav[36:]  # a chunk before, of an odd size
    for clip in (wav, listed, id3v2(99) + wav):
        start = clip[: clip.index(b"RIFF")]
        assert np.array_equal(load_audio(start + sized(clip[len(start) :], riff, size)), expected)
    assert np.array_equal(load_audio(sized(wav, riff, size) + ID3V1), expected)
    assert len(load_audio(sized(wav, riff, size)[:-1001])) == len(expected) - 501


@pytest.mark.parametrize("size, data", [(2**64 - 1, 0xFFFFFFFF), (0, 0xFFFFFFFF), (0, 0), (2**40, 0xFFFFFFFF)])
@pytest.mark.parametrize("name", [b"RF64", b"BW64"])
def test_a_streamed_rf64_is_read_to_its_end(wav, size, data, name):
    long = name + struct.pack("<I", 0xFFFFFFFF) + b"WAVEds64" + struct.pack("<IQQQI", 28, size, size, size, 0)
    assert np.array_equal(load_audio(long + sized(wav, data=data)[12:]), load_audio(wav))


def test_an_empty_wav_stays_empty(wav):
    empty = sized(wav, data=0)[:44]
    for clip in (empty, empty + b"LIST" + struct.pack("<I", 4) + b"INFO"):
        with pytest.raises(AudioError, match="holds no samples"):
            load_audio(clip)
    with_list = wav + b"LIST" + struct.pack("<I", 4) + b"INFO"
    assert np.array_equal(load_audio(with_list), load_audio(wav))


@pytest.mark.parametrize("name", ["rain.mp3", "siren.ogg", "spoken_digits.flac", "spoken_command.wav"])
def test_a_joined_file_is_warned_of_once(no_ffmpeg, caplog, name):
    data = (SPEECH / name).read_bytes()
    expected = load_audio(data)
    assert not caplog.records
    joined = load_audio(data * 3)
    if name != "rain.mp3":  # without a frame that counts the others libsndfile reads all of it
        assert np.array_equal(joined, expected)
        (record,) = caplog.records
        assert "goes on after" in record.message and "joined" in record.message
        assert ("install ffmpeg" in record.message) == (name != "spoken_command.wav")


def lame(samples: np.ndarray) -> bytes:
    """An MP3 with a frame that counts the others, which libsndfile trusts."""
    data = encoded("MP3", None, samples)
    if b"Xing" not in data and b"Info" not in data:
        pytest.skip("this libsndfile writes no such frame")
    return data


def test_a_joined_mp3(no_ffmpeg, caplog):
    data = lame(tone(1))
    for clip in (data + data, data + ID3V1 + id3v2(50) + data + data):
        caplog.clear()
        assert np.array_equal(load_audio(clip), load_audio(data))
        assert len(caplog.records) == 1 and "goes on after 1.0" in caplog.records[0].message
    caplog.clear()
    for clip in (data + ID3V1, data + ape(500), data[: len(data) // 2]):
        load_audio(clip)
    assert not caplog.records


@needs_ffmpeg
@pytest.mark.parametrize("name, subtype", [("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_joined_files_are_read_whole_by_ffmpeg(caplog, name, subtype):
    first, second = encoded(name, subtype, tone(1)), encoded(name, subtype, tone(0.7, seed=1))
    joined = load_audio(first + second + first)
    assert len(joined) == pytest.approx(2.7 * RATE, abs=0.4 * RATE) and not caplog.records


@pytest.mark.parametrize("rubbish", [bytes(2000), bytes(200_000), b"\xff\xfb" * 500, b"rest of a frame" * 40])
@pytest.mark.parametrize("ffmpeg", [True, False])
def test_rubbish_before_an_mp3(monkeypatch, tmp_path, rubbish, ffmpeg):
    if not ffmpeg:
        monkeypatch.setenv("PATH", path_without(tmp_path, "ffmpeg"))
    data = encoded("MP3", None, tone(1))
    assert np.array_equal(load_audio(rubbish + data), load_audio(data))
    second = data.index(data[:2], 40)
    from_the_middle = load_audio(data[second - 20 :])  # of the frame that says how long it is
    assert len(from_the_middle) > RATE / 2 and np.abs(from_the_middle).max() > 0.1


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000])
def test_an_mp3_of_every_rate_is_known_from_bytes(rate):
    data = encoded("MP3", None, tone(0.5, rate), rate)
    text = base64.b64encode(data).decode()
    assert len(load_audio(data)) == pytest.approx(RATE / 2, abs=2500)
    assert np.array_equal(load_audio(text), load_audio(data))


@pytest.mark.parametrize(
    "name, length",
    [
        *(("id3_before_riff.wav", 18137), ("data_size_zero.wav", 18137), ("leading_zeros.mp3", 18137)),
        *(("mpeg25_8k.mp3", 20736), ("starts_mid_frame.mp3", 16225)),
    ],
)
def test_cases(tmp_path, no_ffmpeg, name, length):
    data = case(name)
    assert len(load_audio(data)) == pytest.approx(length, abs=200)
    text = base64.b64encode(data).decode()
    for source in (CASES / name, text, f"data:audio/wav;base64,{text}"):
        assert np.array_equal(load_audio(source), load_audio(data))


@needs_ffmpeg
@pytest.mark.parametrize("name", ["aac.m4a", "opus.webm", "two_mp3_joined.mp3"])
def test_cases_with_ffmpeg(name):
    data = case(name)
    samples = load_audio(data)
    assert len(samples) == pytest.approx(18137 * (2 if "two" in name else 1), abs=1500) and np.abs(samples).max() > 0.1
    for source in (CASES / name, base64.b64encode(data).decode(), io.BytesIO(data)):
        assert np.array_equal(load_audio(source), samples)


# ffmpeg

MP4 = b"\0\0\0\x1cftypM4A \0\0\2\0M4A isomiso2" + bytes(999)


def streamed(samples: np.ndarray, rate: int = RATE) -> bytes:
    """What `ffmpeg -f wav pipe:1` writes: sizes that it does not know, and a chunk about itself."""
    shape = samples[:, None] if samples.ndim == 1 else samples
    channels = shape.shape[1]
    form = struct.pack("<HHIIHH", 3, channels, rate, rate * 4 * channels, 4 * channels, 32)
    head = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + form + b"LIST\4\0\0\0INFOdata\xff\xff\xff\xff"
    return head + shape.astype("<f4").tobytes()


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Puts a script called ffmpeg first on PATH, which first writes down its arguments and its input file."""

    def make(text: str, output: bytes = b"") -> Path:
        (tmp_path / "output").write_bytes(output)
        keep = f'for a in "$@"; do echo "$a" >> "{tmp_path}/arguments"; case "$a" in file:*) '
        keep += f'cat "${{a#file:}}" > "{tmp_path}/input";; esac; done'
        program(tmp_path, f"{keep}\n{text.format(output=tmp_path / 'output')}")
        monkeypatch.setenv("PATH", path_without(tmp_path))
        return tmp_path

    return make


@needs_shell
def test_ffmpeg_decodes_what_libsndfile_does_not_know(fake):
    left, right = tone(0.5, 8000), tone(0.5, 8000, 1)
    folder = fake('cat "{output}"', streamed(np.stack([left, right], 1), 8000))
    samples = load_audio(MP4)
    expected = load_audio(np.stack([left, right]), source_sampling_rate=8000)
    assert np.abs(samples - expected).max() < 1e-6 and (folder / "input").read_bytes() == MP4
    arguments = (folder / "arguments").read_text().splitlines()
    following = dict(zip(arguments, arguments[1:]))
    assert "-nostdin" in arguments and following["-protocol_whitelist"] == "file,pipe"
    allowed = following["-format_whitelist"].split(",")
    assert "mov" in allowed and not {"hls", "concat", "dash", "applehttp", "imf", "sdp", "lavfi"} & set(allowed)
    assert not (folder / "input").read_bytes().startswith(b"RIFF")


@needs_shell
def test_libsndfile_goes_first(fake, wav):
    folder = fake("exit 1")
    for name in ("WAV", "FLAC", "MP3", "OGG"):
        load_audio(encoded(name))
    load_audio(bytes(2000) + encoded("MP3"))
    assert not (folder / "arguments").exists()


@needs_shell
@pytest.mark.parametrize(
    "script, message",
    [
        ("echo 'moov atom not found' >&2; exit 1", "moov atom not found"),
        ("exit 0", "no samples"),
        ("echo hello", "no samples|no WAV"),
        ("yes", "no WAV"),
        ("sleep 600", "wrote nothing for 0.5 s"),
        ("sleep 600 & exit 0", "wrote nothing for 0.5 s|no samples"),
        ("kill -9 $$", "exit status -9"),
        ('cat "{output}"; exit 1', "exit status 1"),
        ('cat "{output}"; sleep 600', "wrote nothing"),
    ],
)
def test_an_ffmpeg_that_fails(fake, script, message):
    fake(script, streamed(tone(0.1)))
    threads = threading.active_count()
    with pytest.raises(AudioError, match=f"starts with .*({message})"):
        load_audio(MP4, timeout=0.5)
    assert threading.active_count() <= threads + 1  # the deadline's thread ends by itself


@needs_shell
def test_an_ffmpeg_without_end_is_stopped(fake):
    fake('cat "{output}"; exec cat /dev/zero', streamed(tone(0.1)))
    with pytest.raises(AudioError, match="longer than 20 s.*max_seconds"):
        load_audio(MP4, max_seconds=20)


def test_without_ffmpeg_the_message_says_so(no_ffmpeg):
    for clip in (MP4, b"\x1aE\xdf\xa3" + bytes(99), b"#!AMR\n" + bytes(99), bytes(500)):
        with pytest.raises(
            AudioError, match="not audio that can be decoded.*need ffmpeg, which is not on PATH: install"
        ):
            load_audio(clip)


def make_with_ffmpeg(tmp_path: Path, name: str, *options: str) -> bytes:
    import subprocess

    soundfile.write(tmp_path / "in.wav", tone(1), RATE)
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", tmp_path / "in.wav", *options, tmp_path / name]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"this ffmpeg does not write {name}")
    return (tmp_path / name).read_bytes()


@needs_ffmpeg
@pytest.mark.parametrize(
    "name, options",
    [
        *(("a.m4a", ()), ("a.mp4", ("-movflags", "+faststart")), ("a.aac", ()), ("a.webm", ()), ("a.mkv", ())),
        *(("a.wma", ()), ("a.ac3", ()), ("a.mka", ("-c:a", "libmp3lame")), ("a.avi", ()), ("a.ts", ())),
        *(("a.wav", ("-c:a", "libmp3lame")), ("a.amr", ("-ar", "8000")), ("a.3gp", ("-c:a", "aac")), ("a.wv", ())),
        *(("a.mp2", ()), ("a.spx", ()), ("a.tta", ()), ("a.flv", ("-ar", "44100"))),
    ],
)
def test_ffmpeg_formats(tmp_path, name, options):
    data = make_with_ffmpeg(tmp_path, name, *options)
    samples = load_audio(data)
    assert len(samples) == pytest.approx(RATE, abs=RATE // 5) and 0.1 < np.abs(samples).max() < 1.5
    assert np.array_equal(load_audio(tmp_path / name), samples)
    assert np.array_equal(load_audio(base64.b64encode(data).decode()), samples)


@needs_ffmpeg
def test_a_playlist_opens_no_other_file(tmp_path):
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, tone(1), RATE)
    playlists = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{secret}'\n",
        f"#EXTM3U\n#EXTINF:1,\nfile:{secret}\n",
        f"[playlist]\nFile1={secret}\n",
        '<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>'
        f"{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    ]
    for playlist in playlists:
        with pytest.raises(AudioError, match="not audio"):
            load_audio(playlist.encode())
        (tmp_path / "clip.m4a").write_text(playlist)
        with pytest.raises(AudioError, match="not audio"):
            load_audio(tmp_path / "clip.m4a")


# Limits and junk


@pytest.mark.parametrize("name, subtype", [("WAV", None), ("FLAC", None), ("MP3", None), ("OGG", "OPUS")])
def test_the_limit_in_seconds(tmp_path, name, subtype):
    data = encoded(name, subtype, tone(3))
    (tmp_path / "clip").write_bytes(data)
    text = base64.b64encode(data).decode()
    with serving(lambda request: send(request, data)) as address:
        for source in (data, tmp_path / "clip", text, f"data:;base64,{text}", io.BytesIO(data), address):
            with pytest.raises(AudioError, match=r"longer than 2 s.*max_seconds"):
                load_audio(source, max_seconds=2)
            source = io.BytesIO(data) if hasattr(source, "getvalue") else source
            assert len(load_audio(source, max_seconds=3.5)) == pytest.approx(3 * RATE, abs=2500)


def test_the_limits_hold_for_arrays_and_bytes(tmp_path, wav):
    with pytest.raises(AudioError, match="longer than 2 s"):
        load_audio(tone(3), max_seconds=2)
    with pytest.raises(AudioError, match="longer than"):
        load_audio(np.zeros(100_000, np.float32), source_sampling_rate=1)
    (tmp_path / "clip.wav").write_bytes(wav)
    text = base64.b64encode(wav).decode()
    for source in (wav, tmp_path / "clip.wav", io.BytesIO(wav), text, f"data:;base64,{text}", {"bytes": wav}):
        with pytest.raises(AudioError, match=r"1000 bytes .*max_bytes"):
            load_audio(source, max_bytes=1000)
        source = io.BytesIO(wav) if hasattr(source, "getvalue") else source
        assert len(load_audio(source, max_bytes=len(wav))) == RATE // 2


def test_a_huge_sparse_file_is_not_read(tmp_path):
    with open(tmp_path / "huge.wav", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(AudioError, match="huge.wav' has more than .* MiB"):
        load_audio(tmp_path / "huge.wav")


def absurd() -> list[bytes]:
    """Headers with numbers that nobody should believe."""
    wav, flac, aiff, au = (encoded(name) for name in ("WAV", "FLAC", "AIFF", "AU"))
    clips = []
    for place, form in ((22, "<H"), (24, "<I"), (28, "<I"), (32, "<H"), (34, "<H")):
        limit = 2 ** (8 * struct.calcsize(form)) - 1
        for number in (0, 1, limit // 2 + 1, limit):
            clips.append(wav[:place] + struct.pack(form, number) + wav[place + struct.calcsize(form) :])
    for place in (8, 12, 16, 20):
        for number in (0, 2**31, 2**32 - 1):
            clips.append(au[:place] + struct.pack(">I", number) + au[place + 4 :])
    for number in (0, 1, 2**36 - 1):  # samples in all
        clips.append(
            flac[:21] + bytes([flac[21] & 0xF0 | number >> 32]) + struct.pack(">I", number & 0xFFFFFFFF) + flac[26:]
        )
    common = aiff.index(b"COMM") + 8
    for channels, frames in ((0, 10), (0xFFFF, 2**31), (1, 2**32 - 1), (8, 5)):
        clips.append(aiff[:common] + struct.pack(">HI", channels, frames) + aiff[common + 6 :])
    return clips


def junk() -> list[bytes]:
    rng = np.random.default_rng(0)
    clips = [rng.bytes(size) for size in (1, 3, 11, 50, 999, 20_000, 100_000)]
    for name in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "AU", "W64"):
        data = encoded(name)
        clips += [data[:size] for size in (1, 4, 9, 13, 30, 43, 44, 60, 200, len(data) // 2, len(data) - 1)]
        clips += [data[:4] + rng.bytes(500), data[:12] + rng.bytes(5000)]
        for _ in range(8):
            damaged = bytearray(data)
            for place in rng.integers(0, min(200, len(data)), 6):
                damaged[place] = rng.integers(256)
            clips.append(bytes(damaged))
    tags = [b"ID3", id3v2(10), id3v2(2**20)[:99], id3v2(10) * 100, b"APETAGEX" * 9, ID3V1]
    return [*clips, *tags, b"OggS" * 99, b"RIFF" * 99, b"\xff" * 5000, b"\xff\xfb\x90\x64" * 5000]


def test_absurd_headers_and_junk(no_ffmpeg):
    """In a process of its own: memory is bounded there, and a decoder that crashes would end this one."""
    resource = pytest.importorskip("resource")
    import multiprocessing

    def work(clips, connection):
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        connection.send([_outcome(clip) for clip in clips])

    clips = absurd() + junk()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(clips, theirs))
    process.start()
    theirs.close()
    outcomes = ours.recv()
    process.join()
    assert process.exitcode == 0
    assert {kind for kind in outcomes if kind != "AudioError"} <= {"samples"} and "AudioError" in outcomes


def _outcome(clip: bytes) -> str:
    try:
        return "samples" if np.isfinite(load_audio(clip, max_seconds=600)).all() else "not finite"
    except Exception as error:
        return "AudioError" if isinstance(error, AudioError) else f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("channels", [1, 2, 8, 60])
@pytest.mark.parametrize("rate", [1, 100, 4000, 192_000, 768_000])
def test_rates_and_channels(rate, channels):
    samples = np.stack([tone(0.1, 16_000, seed) for seed in range(channels)], axis=1)
    loaded = load_audio(encoded("WAV", "FLOAT", samples, rate))
    assert len(loaded) == -(-1600 * RATE // rate)
    if rate == 4000:
        assert np.allclose(loaded, load_audio(samples.mean(1), source_sampling_rate=rate), atol=1e-6)


def test_a_pipe_is_read_to_its_end(tmp_path):
    """As a shell's `<(ffmpeg …)` is."""
    (tmp_path / "clip").write_bytes(wav := encoded("WAV", None, tone(0.5)))
    os.mkfifo(tmp_path / "pipe")
    for limit in (None, 1000):
        writer = subprocess.Popen(["cp", tmp_path / "clip", tmp_path / "pipe"], stderr=subprocess.DEVNULL)
        if limit is None:
            assert np.array_equal(load_audio(tmp_path / "pipe"), load_audio(wav))
        else:
            with pytest.raises(AudioError, match="more than 1000 bytes"):
                load_audio(tmp_path / "pipe", max_bytes=limit)
        writer.wait(10)


@pytest.mark.parametrize("name", ["/dev/zero", "closed", "folder/x.wav"])
def test_what_is_no_file(tmp_path, name):
    if name == "closed":
        (tmp_path / name).write_bytes(b"x")
        (tmp_path / name).chmod(0)
        if os.access(tmp_path / name, os.R_OK):
            pytest.skip("this user may read everything")
    if name == "folder/x.wav":
        (tmp_path / "folder").write_bytes(b"x")
    if name == "/dev/zero" and not os.path.exists(name):
        pytest.skip("no such device")
    with pytest.raises(AudioError, match="a device or a socket|permissions|no audio file"):
        load_audio(tmp_path / name)


def test_scale_is_warned_of(caplog, wav):
    caplog.set_level(logging.WARNING)
    loud = np.array([0, 12_000, -30_000.0])
    assert np.array_equal(load_audio(loud), loud.astype(np.float32))
    (record,) = caplog.records
    assert "peak of 30000" in record.message and "32768" in record.message
    load_audio(np.array([1.9, -3.0]))
    load_audio((loud / 2).astype(np.int16))
    load_audio(wav)
    assert len(caplog.records) == 1

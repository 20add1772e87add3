"""A file that libsndfile does not know -> samples, by the program ffmpeg, where it is on PATH."""

import contextlib
import os
import queue
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator

import numpy as np

from mindone_audio.inputs.audio.arrays import HIGHEST_RATE, LOWEST_RATE
from mindone_audio.inputs.audio.errors import AudioError, NotAudioError
from mindone_audio.inputs.audio.libsndfile import mono_blocks

READ_BYTES = 2**18  # at a time
LONGEST_RUN = 240.0  # seconds of one ffmpeg in all
MOST_HEADER = 4096  # bytes before the samples of the WAV that ffmpeg writes
MOST_CHANNELS = 64
# Containers and streams of audio. Lists of other files (hls, concat, dash, …) are not here, so that a clip cannot have
# ffmpeg open files and addresses.
FORMATS = (
    "aac aax ac3 adts aiff amr amrnb amrwb ape asf au avi caf dsf dts dtshd eac3 flac flv iff loas matroska mlp mov "
    "mp3 mpc mpc8 mpeg mpegts oga ogg oma qoa rm shn tak truehd tta voc w64 wav webm wsd wv xwma"
).split()


def ffmpeg_path() -> str | None:
    """The program, or None where it is not on PATH."""
    return shutil.which("ffmpeg")


def decode_with_ffmpeg(
    program: str, path: str | os.PathLike, name: str, max_seconds: float, timeout: float
) -> tuple[np.ndarray, int]:
    """float32 `[samples]`, the mean of the channels of the first audio stream, and its rate in Hz.

    timeout: seconds without any output after which it is killed. Raises `NotAudioError` where ffmpeg finds no audio,
    fails or hangs, `AudioError` for a clip longer than `max_seconds`.
    """
    command = [program, "-nostdin", "-hide_banner", "-v", "error", "-protocol_whitelist", "file,pipe"]
    command += ["-format_whitelist", ",".join(FORMATS), "-i", f"file:{os.fspath(path)}", "-map", "0:a:0"]
    command += ["-vn", "-sn", "-dn", "-t", f"{max_seconds + 1:.3f}", "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise NotAudioError(f"{program} does not start: {error.strerror}") from error
        deadline = threading.Timer(LONGEST_RUN, _kill, [process])
        deadline.daemon = True
        deadline.start()
        try:
            with contextlib.closing(_output(process, timeout)) as output:
                found = list(_samples(output, max_seconds, name))
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise NotAudioError(f"ffmpeg did not end within {timeout:g} s") from None
        finally:
            deadline.cancel()
            _kill(process)
            process.wait()
            process.stdout.close()
        if status != 0 or not found:
            said = _last_line(errors, os.fspath(path)) or f"exit status {status}, no samples"
            raise NotAudioError(f"ffmpeg says: {said}")
    return np.concatenate([samples for _, samples in found]), found[0][0]


def _output(process: subprocess.Popen, timeout: float) -> Iterator[bytes]:
    """What the process writes, as it comes; `NotAudioError` where it is silent for `timeout` seconds."""
    waiting: queue.Queue = queue.Queue(maxsize=4)
    given_up = threading.Event()

    def read() -> None:
        data = b"-"
        while data and not given_up.is_set():
            data = process.stdout.read1(READ_BYTES)
            while not given_up.is_set():
                try:
                    waiting.put(data, timeout=0.2)
                    break
                except queue.Full:
                    continue

    reader = threading.Thread(target=read, name="ffmpeg", daemon=True)
    reader.start()
    ended = False
    try:
        while data := waiting.get(timeout=timeout):
            yield data
        ended = True
    except queue.Empty:
        raise NotAudioError(f"ffmpeg wrote nothing for {timeout:g} s") from None
    finally:
        given_up.set()
        if not ended:
            _kill(process)
        reader.join(timeout=5)


def _samples(output: Iterator[bytes], max_seconds: float, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """Rate and mono samples of the WAV that ffmpeg writes, whose sizes it cannot know beforehand."""
    head = b""
    for data in output:
        head += data
        if (start := _wav_layout(head, name)) is not None:
            break
        if len(head) > MOST_HEADER:
            raise NotAudioError("ffmpeg wrote something that is no WAV")
    else:
        return
    rate, channels, place = start

    def blocks() -> Iterator[np.ndarray]:
        rest = head[place:]
        while True:
            whole = len(rest) // (4 * channels) * 4 * channels
            yield np.frombuffer(rest[:whole], "<f4").reshape(-1, channels).astype(np.float32)
            data = next(output, b"")
            if not data:
                return
            rest = rest[whole:] + data

    for samples in mono_blocks(blocks(), rate, max_seconds, name):
        yield rate, samples


def _wav_layout(head: bytes, name: str) -> tuple[int, int, int] | None:
    """Rate, channels and the first byte of the float32 samples; None where the header is not complete."""
    form, place = None, 12
    while head[:4] == b"RIFF" and place + 8 <= len(head):
        size = struct.unpack_from("<I", head, place + 4)[0]
        if head[place : place + 4] == b"data":
            if form is None or form[3] != 32 or not 0 < form[1] <= MOST_CHANNELS:
                raise NotAudioError("ffmpeg wrote a WAV without float32 samples")
            if not LOWEST_RATE <= form[2] <= HIGHEST_RATE:
                raise AudioError(f"{name} says that it has {form[2]} samples a second: its header is damaged")
            return form[2], form[1], place + 8
        if head[place : place + 4] == b"fmt " and place + 24 <= len(head):
            tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head, place + 8)
            form = tag, channels, rate, bits
        place += 8 + size + size % 2
    return None


def _kill(process: subprocess.Popen) -> None:
    """Kill it and what it started, which holds the pipe open too; nothing where its end was waited for."""
    if process.returncode is not None:  # its number may be another's by now
        return
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass  # it has ended


def _last_line(errors, path: str) -> str:
    """The last of its messages, which names a file of ours that means nothing to anybody."""
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 2000))
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1].replace(f"file:{path}", "it").replace(path, "it")[-200:] if lines else ""

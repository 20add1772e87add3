"""`mindone-audio listen`: what is said, while it is said, from a microphone or raw samples on standard input."""

import argparse
import json
import queue
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mindone_audio.commands import options as shared
from mindone_audio.setting_fields import in_words, option

FORMATS = ("txt", "json", "srt", "vtt")
_CHUNK = 1600  # samples that are read at a time, 0.1 s at 16 kHz
_AHEAD = 2  # turns that may wait to be written down before more is read from a pipe
_TICK = 0.1  # seconds
_BEHIND = 100  # chunks of a microphone that wait, after which it is told that the model is too slow


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("listen", help="live subtitles of a microphone, or of samples on standard input")
    parser.add_argument(
        "source",
        nargs="?",
        choices=["-"],
        metavar="-",
        help="read raw samples from standard input: 16 bits, low byte first, one channel (default: the microphone)",
    )
    parser.add_argument("--rate", type=shared.number, default=16000, metavar="HZ", help="of samples (default: 16000)")
    parser.add_argument("--format", choices=FORMATS, default="txt", help="default: txt")
    parser.add_argument("--language", help="of the speech, as en")
    parser.add_argument(
        "--partial-ms",
        type=shared.number,
        default=1000,
        metavar="MS",
        help="of speech between two looks at what is being said; 0: tell only what was said (default: 1000)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="P", help="from which a sound is speech, 0 to 1"
    )
    parser.add_argument(
        "--silence-ms", type=shared.number, default=500, metavar="MS", help="that end what is said (default: 500)"
    )
    shared.add_model(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """0 at the end of the samples, or after Ctrl-C, which lets the last words be written down."""
    from mindone_audio.voice.activity import TurnSettings
    from mindone_audio.voice.conversation import Conversation, ConversationSettings
    from mindone_audio.voice.model import VoiceModel

    if options.rate < 8000:
        raise shared.WrongUse(f"--rate {options.rate}: give at least 8000 samples a second")
    try:
        turns = TurnSettings(options.threshold, silence_duration_ms=options.silence_ms)
    except ValueError as error:
        raise shared.WrongUse(_worded(str(error))) from error
    source = _Pipe(options.rate) if options.source else _Microphone(options.rate)
    pipe = shared.load_pipeline(options, None)
    if pipe.task == "text-to-speech":
        raise ValueError("this model speaks and does not hear: give one that does as --model")
    model = VoiceModel.of(pipe)
    model.wait_until_ready()
    settings = ConversationSettings(
        turns=turns, answer=False, transcribe=True, partial_ms=options.partial_ms, language=options.language
    )
    events: queue.SimpleQueue = queue.SimpleQueue()
    show = _Printer(options.format, partial=options.partial_ms > 0)
    with Conversation(model, events.put, settings) as talk, options.signals.hold_interrupt(source.stop):
        print("listening; Ctrl-C ends", file=sys.stderr)
        hearing = threading.Thread(target=_hear, args=(talk, source, events.put), daemon=True)
        hearing.start()
        while (event := events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            show(event)
    show.end()
    return show.failed


def _worded(message: str) -> str:
    """An error about a setting in the words of the command line."""
    return message.replace("silence_duration_ms", option("silence_ms")).replace("threshold", option("threshold"))


def _hear(talk: Any, source: Any, tell: Callable[[Any], None]) -> None:
    """Hear all of a source, and wait until all of it is written down; then tell None, or what went wrong."""
    try:
        for samples in source:
            talk.hear(samples)
            while not source.live and talk.behind > _AHEAD:
                talk.settle(_TICK)
        talk.end_turn()
        talk.settle()
        tell(None)
    except Exception as error:
        tell(error)


class _Source:
    """Samples at 16 kHz. live: they come in real time."""

    live = False

    def __init__(self, rate: int):
        import soxr

        self._stream = soxr.ResampleStream(rate, 16000, 1, "float32") if rate != 16000 else None
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Give nothing more."""
        self._stopped.set()

    def _samples(self, data: bytes) -> Any:
        import numpy as np

        samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        return samples if self._stream is None else self._stream.resample_chunk(samples)


class _Pipe(_Source):
    """Of standard input."""

    def __init__(self, rate: int):
        super().__init__(rate)
        if sys.stdin.isatty():
            raise shared.WrongUse(
                "- reads samples from a pipe, as of: arecord -f S16_LE -r 16000 | mindone-audio listen -"
            )
        self._size = 2 * _CHUNK

    def __iter__(self) -> Iterator[Any]:
        rest = b""
        while not self._stopped.is_set():
            data = sys.stdin.buffer.read1(self._size)
            if not data:
                return
            data = rest + data
            whole = len(data) // 2 * 2
            rest = data[whole:]
            yield self._samples(data[:whole])


class _Microphone(_Source):
    """Of the machine's default microphone, by the package sounddevice."""

    live = True

    def __init__(self, rate: int):
        super().__init__(rate)
        try:
            import sounddevice
        except (ImportError, OSError) as error:  # OSError: PortAudio is missing
            raise shared.WrongUse(
                f"a microphone needs the package sounddevice ({error}): pip install sounddevice, or pipe samples into "
                "mindone-audio listen -"
            ) from error
        self._rate, self._found, self._warned = rate, queue.SimpleQueue(), False
        self._device = sounddevice

    def __iter__(self) -> Iterator[Any]:
        def heard(data: Any, *_: Any) -> None:
            self._found.put(bytes(data))

        try:
            stream = self._device.RawInputStream(
                samplerate=self._rate, channels=1, dtype="int16", blocksize=self._rate // 10, callback=heard
            )
        except self._device.PortAudioError as error:
            raise OSError(f"the microphone cannot be opened: {error}") from error
        with stream:
            while not self._stopped.is_set():
                try:
                    data = self._found.get(timeout=_TICK)
                except queue.Empty:
                    continue
                if not self._warned and self._found.qsize() > _BEHIND:
                    self._warned = True
                    print("warning: the machine is too slow to listen while it transcribes", file=sys.stderr)
                yield self._samples(data)


class _Printer:
    """Shows what is said. On a terminal, text that is not final stands on the last line, which changes."""

    def __init__(self, form: str, partial: bool):
        self.form, self.failed = form, 0
        self._partial = partial and (form == "json" or (form == "txt" and sys.stdout.isatty()))
        self._chunks: list[dict] = []
        self._written, self._shown = "", False

    def __call__(self, event: Any) -> None:
        from mindone_audio.voice.events import Failed, FinalText, PartialText

        if isinstance(event, PartialText) and self._partial:
            self._tell_partial(event)
        elif isinstance(event, FinalText) and event.text:
            self._clear()
            self._tell({"start": event.start_ms / 1000, "end": event.end_ms / 1000, "text": event.text})
        elif isinstance(event, Failed):
            self._clear()
            print(f"error: {in_words(event.error, option)}", file=sys.stderr)
            self.failed = 1

    def end(self) -> None:
        """The rest: the header of a file without cues."""
        self._clear()
        if self.form == "vtt" and not self._chunks:
            self._subtitles()

    def _tell(self, chunk: dict) -> None:
        if self.form == "txt":
            print(chunk["text"], flush=True)
        elif self.form == "json":
            print(json.dumps(chunk, ensure_ascii=False), flush=True)
        else:
            self._chunks.append(chunk)
            self._subtitles()

    def _subtitles(self) -> None:
        """The cues that are new."""
        from mindone_audio.pipelines.subtitles import subtitles

        text = subtitles(self._chunks, self.form)
        print(text[len(self._written) :], end="", flush=True)
        self._written = text

    def _tell_partial(self, event: Any) -> None:
        if self.form == "json":
            told = {"partial": event.text, "tentative": event.tentative}
            print(json.dumps(told, ensure_ascii=False), flush=True)
            return
        text = f"{event.text} {event.tentative}".strip()
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{text[-width:]}", end="", flush=True)
        self._shown = True

    def _clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", flush=True)
            self._shown = False

"""`benchmark.py voice`: spoken conversations in real time: how long after the last word an answer begins, how soon an
interruption silences it, what listening costs, and several conversations at a time.

Speech is fed in the pieces and at the pace of a microphone. All is measured in one process, on one scheduler.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmark.common import ROOT, BenchmarkError, Figure, add_common, at_least, check_common, columns, finish, machine
from benchmark.common import plot as draw
from benchmark.processes import in_a_process, use_threads
from benchmark.speech import make_checkpoints

CLIP = ROOT / "examples" / "audio" / "spoken_command.wav"
RATE, PIECE = 16_000, 320  # samples a second, and in a piece
QUESTION = "What does the person say?"
QUIET_SECONDS, LISTENED = 1.5, 120  # before and behind speech; of silence and of speech, to see what they cost
SILENCE_LIMIT = 200  # milliseconds from an interruption to the end of the answer


class Talk:
    """One conversation, whose events are kept with their times."""

    def __init__(self, model, **settings):
        from mindone_audio.voice import Conversation, ConversationSettings

        self.events: list[tuple[float, object]] = []
        self.changed = threading.Condition()
        self.conversation = Conversation(model, self._keep, ConversationSettings(**settings))

    def _keep(self, event) -> None:
        with self.changed:
            self.events.append((time.perf_counter(), event))
            self.changed.notify_all()

    def first(self, kind: type, after: float = 0.0, timeout: float = 60.0) -> float:
        """When the first event of a kind came, behind a time; waits for it."""
        with self.changed:
            found = self.changed.wait_for(lambda: next(self._of(kind, after), None), timeout)
        if found is None:
            raise BenchmarkError(f"no {kind.__name__} came within {timeout:g} s")
        return found

    def _of(self, kind: type, after: float) -> Iterator[float]:
        return (at for at, event in self.events if at > after and isinstance(event, kind))

    def hear(self, samples, paced: bool = True) -> float:
        """Feed samples as a microphone does; the time at which the last one was spoken."""
        start = time.perf_counter()
        for place in range(0, len(samples), PIECE):
            if paced:
                due = start + (place + PIECE) / RATE
                time.sleep(max(0.0, due - time.perf_counter()))
            self.conversation.hear(samples[place : place + PIECE])
        return time.perf_counter()


def random_speaker():
    """A pipeline that speaks: a SpeechT5 of random weights with the published sizes, to which letters are tokens."""
    import numpy as np

    from mindone_audio.models.speecht5.text_to_speech import SpeechT5ForTextToSpeech
    from mindone_audio.models.speecht5.vocoder import SpeechT5HifiGan
    from mindone_audio.pipelines.text_to_speech import TextToSpeechPipeline

    with tempfile.TemporaryDirectory() as folder:
        in_a_process(make_checkpoints, folder, request="")
        model = SpeechT5ForTextToSpeech.from_pretrained(f"{folder}/speaker")
        vocoder = SpeechT5HifiGan.from_pretrained(f"{folder}/vocoder")

    def letters(text: str) -> dict[str, np.ndarray]:
        ids = np.array([[4 + ord(letter) % 70 for letter in text]])
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    voice = np.random.default_rng(0).normal(size=(1, model.config.speaker_embedding_dim)).astype(np.float32)
    return TextToSpeechPipeline(model, letters, vocoder, voice)


class Measures:
    """The model, its scheduler, and a person who says one thing."""

    def __init__(self, options: argparse.Namespace):
        import numpy as np

        from mindone_audio import load_audio, pipeline
        from mindone_audio.voice import VoiceModel

        self.speech = load_audio(str(options.audio or CLIP))
        loud = np.flatnonzero(np.abs(self.speech) > 0.02 * np.abs(self.speech).max())
        self.speech = self.speech[: loud[-1] + 1]  # so that its end is that of the last word
        self.quiet = np.zeros(round(QUIET_SECONDS * RATE), np.float32)
        speaker = random_speaker() if options.speak else None
        self.model = VoiceModel.of(pipeline(model=options.model), speaker, max_batch=8)
        self.model.wait_until_ready()
        self.question = "" if options.model else QUESTION

    def talk(self, **settings) -> Talk:
        return Talk(self.model, question=self.question, remember=False, **{"speak": False, **settings})

    def answered(self, eager: bool, spoken: bool = False) -> float:
        """Seconds from the end of speech to the first text, or sound. eager: whether the answer is begun in a pause."""
        from mindone_audio.voice import TurnSettings
        from mindone_audio.voice.events import AnswerAudio, AnswerDone, AnswerText

        turns = TurnSettings() if eager else TurnSettings(eager_ms=TurnSettings().silence_duration_ms)
        talk = self.talk(turns=turns, speak=spoken)
        talk.hear(self.quiet)
        end = talk.hear(self.speech)
        talk.hear(self.quiet)
        first = talk.first(AnswerAudio if spoken else AnswerText, end)
        if not spoken:  # random weights speak for long
            talk.first(AnswerDone, end)
        talk.conversation.close()
        return first - end

    def interrupted(self) -> tuple[float, float]:
        """Seconds from the first sample of an interruption to its event, and until nothing more is computed."""
        from mindone_audio.voice.events import AnswerText, Interrupted

        talk = self.talk(generate={"max_new_tokens": 512, "eos_token_id": -1})
        talk.conversation.add("user", self.speech)
        talk.conversation.respond()
        talk.first(AnswerText)
        begin = time.perf_counter()
        speaking = threading.Thread(target=talk.hear, args=(self.speech[: RATE // 2],))
        speaking.start()
        told = talk.first(Interrupted, begin)
        while self.model.scheduler.running and time.perf_counter() < told + 10:
            time.sleep(0.001)
        over = time.perf_counter()
        speaking.join()
        talk.conversation.close()
        return told - begin, max(told, over) - begin

    def listening(self, speech: bool) -> float:
        """Seconds of processor time for a second of silence, or of somebody who speaks without a pause."""
        import numpy as np

        from mindone_audio.voice import TurnSettings

        talk = self.talk(answer=False, turns=TurnSettings(silence_duration_ms=30_000, eager_ms=30_000))
        sound = np.tile(self.speech, -(-LISTENED * RATE // len(self.speech))) if speech else np.zeros(LISTENED * RATE)
        start = time.process_time()
        talk.hear(sound[: LISTENED * RATE].astype(np.float32), paced=False)
        talk.conversation.close()
        return (time.process_time() - start) / LISTENED

    def together(self, count: int) -> list[float]:
        """Seconds to the first text of so many conversations, whose speakers end at the same time."""
        found: list[float] = []
        threads = [threading.Thread(target=lambda: found.append(self.answered(eager=True))) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(found) < count:
            raise BenchmarkError(f"{count - len(found)} of {count} conversations got no answer")
        return found


def run_live(options: argparse.Namespace) -> None:
    """`voice --live`: texts while recordings are spoken: when they are told, and what is taken back."""
    import numpy as np

    from mindone_audio import load_audio, pipeline
    from mindone_audio.voice import VoiceModel
    from mindone_audio.voice.events import FinalText, PartialText, SpeechStopped

    model = VoiceModel.of(pipeline(model=options.model))
    model.wait_until_ready()
    early, taken_back, words, told, late = 0, 0, 0, 0, []
    for file in options.live:
        clip, silence = load_audio(str(file)), np.zeros(RATE, np.float32)
        talk = Talk(model, answer=False, transcribe=True, partial_ms=options.partial_ms)
        talk.hear(silence, paced=False)
        end = talk.hear(clip)
        talk.hear(silence)
        talk.conversation.settle(60)
        for turn in {event.turn for _, event in talk.events if isinstance(event, SpeechStopped)}:
            own = [(at, event) for at, event in talk.events if event.turn == turn]
            final = " ".join(event.text for _, event in own if isinstance(event, FinalText)).split()
            partial = [(at, event.text.split()) for at, event in own if isinstance(event, PartialText)]
            agreed = partial[-1][1] if partial else []
            same = next((i for i, (a, b) in enumerate(zip(agreed, final)) if a != b), min(len(agreed), len(final)))
            words, told, taken_back = words + len(final), told + len(agreed), taken_back + len(agreed) - same
            early += min(same, max((len(text) for at, text in partial if at <= end), default=0))
            stopped = next(at for at, event in own if isinstance(event, SpeechStopped))
            late += [at - stopped for at, event in own if isinstance(event, FinalText) and event.last]
        talk.conversation.close()
    print(f"{len(options.live)} recordings, {words} words; a look every {options.partial_ms} ms")
    figures = [
        Figure("words that were told before the end of the recording, of 100", 100 * early / max(1, words)),
        Figure("words that were told and are not in the final text, of 100", 100 * taken_back / max(1, told)),
        Figure("end of a turn to its final text, ms", 1e3 * statistics.median(late or [float("nan")])),
    ]
    finish(options, {"machine": machine(options.threads), "late": late}, figures)


def run_voice(options: argparse.Namespace) -> None:
    """`voice`: all measures, round by round."""
    check_common(options)
    if options.audio and not Path(options.audio).exists():
        raise BenchmarkError(f"no audio file {options.audio}: check --audio")
    if missing := [file for file in options.live if not Path(file).exists()]:
        raise BenchmarkError(f"no audio file {missing[0]}: check --live")
    found = machine(options.threads)
    use_threads(options.threads)
    if options.live:
        run_live(options)
        return
    measures = Measures(options)
    measures.answered(eager=True)
    if options.speak:
        measures.answered(eager=True, spoken=True)  # compiles
    series: dict[str, list[float]] = {name: [] for name in ("eager", "patient", "told", "silent", "together", "one")}
    if options.speak:
        series["sound"] = []
    for _ in range(options.rounds):
        series["eager"].append(measures.answered(eager=True))
        series["patient"].append(measures.answered(eager=False))
        if options.speak:
            series["sound"].append(measures.answered(eager=True, spoken=True))
        told, silent = measures.interrupted()
        series["told"].append(told)
        series["silent"].append(silent)
        several = measures.together(options.conversations)
        series["together"].append(max(several))
        series["one"].append(statistics.median(several))
    silence, speech = measures.listening(speech=False), measures.listening(speech=True)
    names = {
        "eager": "end of speech to first text, of which 500 ms are the silence that ends a turn",
        "patient": "the same, where the answer is begun only then",
        **({"sound": "end of speech to first sound"} if options.speak else {}),
        "told": "interruption to its event",
        "silent": "interruption until nothing more is computed",
        "one": f"end of speech to first text, {options.conversations} conversations at a time, median",
        "together": f"the same, the slowest of the {options.conversations}",
    }
    rows = [["milliseconds", "median", "least", "most"]]
    for name, label in names.items():
        values = [1e3 * value for value in series[name]]
        rows.append([label, *(f"{value:.0f}" for value in (statistics.median(values), min(values), max(values)))])
    print("\n".join(columns(rows)))
    print(f"processor time of a second of silence {1e3 * silence:.1f} ms, of speech {1e3 * speech:.1f} ms")
    silent = 1e3 * statistics.median(series["silent"])
    figures = [
        Figure("interruption until nothing more is computed, ms", silent, limit=SILENCE_LIMIT),
        Figure("end of speech to first text, ms", 1e3 * statistics.median(series["eager"])),
        Figure("processor time of a second of speech, ms", 1e3 * speech),
    ]
    finish(options, {"machine": found, "seconds": series, "listening": [silence, speech]}, figures)
    if options.plot:
        shown = {"ours": {names[name][:30]: 1e3 * statistics.median(values) for name, values in series.items()}}
        draw(options.plot, "a spoken conversation", "ms", shown)


def add_voice(subparsers) -> None:
    """The command line of `voice`."""
    parser = subparsers.add_parser("voice", help="spoken conversations in real time: answers, interruptions, listening")
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder (default: the bundled demo checkpoint)")
    parser.add_argument("--audio", metavar="CLIP", help="what is said (default: examples/audio/spoken_command.wav)")
    help = "at a time (default: %(default)s)"
    parser.add_argument("--conversations", type=at_least(1), default=8, metavar="N", help=help)
    help = "also answer in sound, by a SpeechT5 of random weights with the published sizes (needs PyTorch to make them)"
    parser.add_argument("--speak", action="store_true", help=help)
    help = "instead: texts while these recordings are spoken, when they are told and what is taken back"
    parser.add_argument("--live", nargs="+", default=[], metavar="CLIP", help=help)
    help = "of speech between two looks (default: %(default)s)"
    parser.add_argument("--partial-ms", type=at_least(100), default=500, metavar="MS", help=help)
    add_common(parser, run_voice)

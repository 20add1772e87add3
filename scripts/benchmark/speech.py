"""`benchmark.py tts`: seconds that SpeechT5 takes for a second of speech that it makes, beside transformers on PyTorch.

Both speak a text of the same tokens with the prenet's dropout, and make the same number of frames and samples of them.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmark.common import add_common, at_least, check_common, columns, compare, finish, machine, plot
from benchmark.processes import Team, first_answers, in_a_process, use_threads

LIMIT = 0.8  # of PyTorch's time
TOKENS = 40  # characters of the text
PARTS = ("frames", "vocoder", "whole")


def make_checkpoints(folder: str) -> Callable:
    """A model and a vocoder of random weights with the published sizes, which are transformers' defaults."""
    import torch
    from transformers import SpeechT5Config, SpeechT5ForTextToSpeech, SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(0)
    SpeechT5ForTextToSpeech(SpeechT5Config()).save_pretrained(Path(folder) / "speaker")
    SpeechT5HifiGan(SpeechT5HifiGanConfig()).save_pretrained(Path(folder) / "vocoder")
    return lambda _: None


def contender(name: str, speaker: str, vocoder: str, seconds: float, threads: int) -> Callable[[str], dict[str, float]]:
    """A model that is loaded, called to speak so many seconds: the seconds that its parts take."""
    use_threads(threads)
    import time

    import numpy as np
    from transformers import SpeechT5Config, SpeechT5HifiGanConfig

    sizes = SpeechT5HifiGanConfig.from_pretrained(vocoder)
    frames = round(seconds * sizes.sampling_rate / np.prod(sizes.upsample_rates))
    # As many steps at least as at most, so that no probability ends the speech.
    given = {"minlenratio": frames / TOKENS, "maxlenratio": frames / TOKENS}
    rng = np.random.default_rng(0)
    ids = rng.integers(4, SpeechT5Config.from_pretrained(speaker).vocab_size, (1, TOKENS))
    if name == "ours":
        import mindspore as ms

        from mindone_audio.models.speecht5.text_to_speech import SpeechT5ForTextToSpeech
        from mindone_audio.models.speecht5.vocoder import SpeechT5HifiGan

        model = SpeechT5ForTextToSpeech.from_pretrained(speaker, mindspore_dtype=ms.float32)
        sound = SpeechT5HifiGan.from_pretrained(vocoder, mindspore_dtype=ms.float32)
        voice = rng.normal(size=(1, model.config.speaker_embedding_dim)).astype(np.float32)

        def frames_of() -> np.ndarray:
            return model.generate_speech(ids, voice, seed=0, **given).asnumpy()

        sounded = sound.waveform
    else:
        import torch
        from transformers import SpeechT5ForTextToSpeech, SpeechT5HifiGan

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        model = SpeechT5ForTextToSpeech.from_pretrained(speaker, dtype=torch.float32).eval()
        sound = SpeechT5HifiGan.from_pretrained(vocoder, dtype=torch.float32).eval()
        voice = torch.from_numpy(rng.normal(size=(1, model.config.speaker_embedding_dim)).astype(np.float32))

        def frames_of() -> np.ndarray:
            return model.generate_speech(torch.from_numpy(ids), voice, **given).numpy()

        def sounded(made: np.ndarray) -> np.ndarray:
            return sound(torch.from_numpy(made)).numpy()

    def answer(_: str) -> dict[str, float]:
        start = time.perf_counter()
        made = frames_of()
        middle = time.perf_counter()
        samples = sounded(made)
        end = time.perf_counter()
        length = len(samples) / sizes.sampling_rate
        times = dict(zip(PARTS, (middle - start, end - middle, end - start)))
        return {part: time / length for part, time in times.items()}

    answer("")  # compiles
    return answer


def run_tts(options: argparse.Namespace) -> None:
    """`tts`: ours and PyTorch's in turn."""
    check_common(options)
    found = machine(options.threads)
    with tempfile.TemporaryDirectory() as made:
        speaker, vocoder = options.model, options.vocoder
        if speaker is None or vocoder is None:
            in_a_process(make_checkpoints, made, request="")
        folders = str(speaker or Path(made, "speaker")), str(vocoder or Path(made, "vocoder"))
        starts = {name: (contender, name, *folders, options.seconds, options.threads) for name in ("ours", "torch")}
        first = first_answers(starts)
        with Team(starts) as team:
            series = team.take_turns(("speak",), options.rounds)
    what = str(speaker or "random weights")
    rows = [["seconds for a second of speech, medians", *PARTS]]
    for name, of in series.items():
        rows.append([name, *(f"{statistics.median(of[part]):.3f}" for part in PARTS)])
    print(f"{what}, {options.seconds:g} s of speech, {options.rounds} rounds\n" + "\n".join(columns(rows)))
    ours, theirs = (series[name]["whole"] for name in ("ours", "torch"))
    print("\n" + "\n".join(columns([["first answer", "s"], *([name, f"{s:.1f}"] for name, s in first.items())])))
    figure = compare(f"SpeechT5 {what}: real-time factor", ours, theirs, limit=LIMIT)
    finish(options, {"model": what, "machine": found, "first": first, "real_time": series}, [figure])
    if options.plot:
        shown = {name: {part: statistics.median(of[part]) for part in PARTS} for name, of in series.items()}
        plot(options.plot, f"SpeechT5, {what}", "seconds for a second of speech", shown)


def add_tts(subparsers) -> None:
    """The command line of `tts`."""
    parser = subparsers.add_parser("tts", help="SpeechT5: seconds for a second of speech that it makes")
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder (default: random weights)")
    parser.add_argument("--vocoder", metavar="DIR", help="of that model (default: random weights)")
    help = "of speech (default: %(default)s)"
    parser.add_argument("--seconds", type=at_least(1), default=6, metavar="N", help=help)
    add_common(parser, run_tts)

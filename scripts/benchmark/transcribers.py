"""The contenders of `benchmark.py transcribe`: what each library does with a long recording, from samples to text.

All are greedy and hear each window once: no second try at a higher temperature, no window that is left out as silent,
and no window is told what was said before it.
"""

import importlib.machinery
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark.common import BenchmarkError
from benchmark.processes import use_threads

OPENAI, FASTER = "openai-whisper", "faster-whisper"
MODULES = {OPENAI: "whisper", FASTER: "faster_whisper"}
RATE = 16000
# Parts of the names of weights, as transformers and as openai/whisper has them, to be replaced in this order.
RENAMED = (
    ("embed_positions.weight", "positional_embedding"),
    ("embed_tokens", "token_embedding"),
    ("layers.", "blocks."),
    ("self_attn_layer_norm", "attn_ln"),
    ("encoder_attn_layer_norm", "cross_attn_ln"),
    ("final_layer_norm", "mlp_ln"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
    ("self_attn.", "attn."),
    ("encoder_attn.", "cross_attn."),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
)


def can_import(name: str, packages: str | None) -> bool:
    """Whether a library is installed, or in the folder `packages`."""
    places = [*sys.path, packages] if packages else sys.path
    return importlib.machinery.PathFinder.find_spec(MODULES[name], places) is not None


def transcriber(
    name: str, folder: str, file: str, language: str, threads: int, packages: str | None, ctranslate2: str | None
) -> Callable[[str], str | dict[str, float]]:
    """Loads a model; it answers "text" with what it hears in the samples of `file`, anything else with the seconds."""
    use_threads(threads)
    import time

    import numpy as np

    samples = np.load(file)
    if name == "ours":
        hear = ours(folder, language)
    elif name.startswith("torch"):
        hear = transformers(folder, language, threads, name.removeprefix("torch "))
    else:
        sys.path += [packages] if packages else []
        if name == OPENAI:
            hear = openai(folder, language, threads)
        else:
            hear = faster(folder, language, threads, name.removeprefix(FASTER).strip(), ctranslate2)

    def answer(request: str) -> str | dict[str, float]:
        start = time.perf_counter()
        text = hear(samples)
        return text if request == "text" else {"seconds": time.perf_counter() - start}

    return answer


def ours(folder: str, language: str) -> Callable:
    """What `mindone-audio transcribe` calls."""
    import mindspore as ms

    from mindone_audio import pipeline

    pipe = pipeline(model=folder, device="cpu", mindspore_dtype=ms.float32)
    return lambda samples: pipe(samples, language=language, generate_kwargs={"temperature": 0.0})[0]["text"]


def torch_whisper(folder: str, threads: int, attention: str = "sdpa"):
    """transformers' model."""
    import torch
    from transformers import WhisperForConditionalGeneration, logging

    logging.set_verbosity_error()  # each call warns of what the published settings say twice
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    return model.eval()


def transformers(folder: str, language: str, threads: int, attention: str) -> Callable:
    """Generation for recordings of any length."""
    from transformers import WhisperProcessor

    model, processor = torch_whisper(folder, threads, attention), WhisperProcessor.from_pretrained(folder)
    given = {"padding": "longest", "truncation": False, "return_attention_mask": True, "return_tensors": "pt"}
    settings = {"return_timestamps": True}
    if model.generation_config.is_multilingual:  # else transformers refuses a language
        settings |= {"language": language, "task": "transcribe"}

    def hear(samples) -> str:
        inputs = processor(samples, sampling_rate=RATE, **given)
        return processor.batch_decode(model.generate(**inputs, **settings), skip_special_tokens=True)[0]

    return hear


def openai(folder: str, language: str, threads: int) -> Callable:
    """openai/whisper's own code with the checkpoint's weights."""
    from whisper.model import ModelDimensions, Whisper

    theirs = torch_whisper(folder, threads)
    config = theirs.config
    model = Whisper(
        ModelDimensions(
            n_mels=config.num_mel_bins,
            n_audio_ctx=config.max_source_positions,
            n_audio_state=config.d_model,
            n_audio_head=config.encoder_attention_heads,
            n_audio_layer=config.encoder_layers,
            n_vocab=config.vocab_size,
            n_text_ctx=config.max_target_positions,
            n_text_state=config.d_model,
            n_text_head=config.decoder_attention_heads,
            n_text_layer=config.decoder_layers,
        )
    )
    model.load_state_dict({renamed(key): value for key, value in theirs.model.state_dict().items()})
    model.eval()
    settings = {"temperature": 0.0, "beam_size": None, "fp16": False, "language": language}
    settings |= {"condition_on_previous_text": False, "no_speech_threshold": None}
    return lambda samples: model.transcribe(samples, **settings)["text"]


def renamed(key: str) -> str:
    """The name of a weight of transformers' Whisper as openai/whisper has it."""
    for theirs, openais in RENAMED:
        key = key.replace(theirs, openais)
    return key


def faster(folder: str, language: str, threads: int, kind: str, ctranslate2: str) -> Callable:
    """CTranslate2's model; files that its folder lacks are those of the checkpoint."""
    from faster_whisper import WhisperModel

    with tempfile.TemporaryDirectory() as joined:
        link(joined, ctranslate2, folder)
        model = WhisperModel(joined, device="cpu", compute_type=kind, cpu_threads=threads)
    settings = {"temperature": 0.0, "beam_size": 1, "without_timestamps": False, "vad_filter": False}
    settings |= {"condition_on_previous_text": False, "no_speech_threshold": None, "language": language}
    return lambda samples: "".join(segment.text for segment in model.transcribe(samples, **settings)[0])


def link(joined: str, *folders: str) -> None:
    """Links in one folder to the files of several ones; of files of the same name the first one counts."""
    for folder in folders:
        for path in Path(folder).resolve().iterdir():
            if not (link := Path(joined, path.name)).exists():
                link.symlink_to(path)


def check_transcribers(folder: str, packages: str | None, ctranslate2: str | None) -> Sequence[str]:
    """The names of the contenders that can take part. Raises `BenchmarkError` for a folder that is of no use."""
    if packages and not Path(packages).is_dir():
        raise BenchmarkError(f"--packages {packages} is no folder")
    there = [name for name in MODULES if can_import(name, packages)]
    if packages and not there:
        raise BenchmarkError(f"--packages {packages} has neither whisper nor faster_whisper: leave it out")
    names = ["ours", "torch eager", "torch sdpa", *(name for name in there if name == OPENAI)]
    if ctranslate2 is None:
        return names
    if not Path(ctranslate2, "model.bin").is_file():
        raise BenchmarkError(f"no model of CTranslate2 in {ctranslate2} (no model.bin): correct --ctranslate2")
    if FASTER not in there:
        raise BenchmarkError("--ctranslate2 needs faster-whisper: name the folder that has it with --packages")
    if not any(Path(place, "tokenizer.json").is_file() for place in (ctranslate2, folder)):
        raise BenchmarkError(f"--ctranslate2 needs a tokenizer.json in {ctranslate2} or {folder}")
    return [*names, f"{FASTER} float32", f"{FASTER} int8"]

"""`pipeline`: a model with its processor, ready to be asked."""

import os
from typing import Any

from mindone_audio.backbone.encoder_decoder_model import EncoderDecoderModel
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.machine.device import set_device
from mindone_audio.models import AutoProcessor, family
from mindone_audio.pipelines import audio_text_to_text, speech_recognition
from mindone_audio.pipelines.audio_text_to_text import AudioTextToTextPipeline
from mindone_audio.pipelines.speech_recognition import SpeechRecognitionPipeline
from mindone_audio.weights.hub import read_config

_PIPELINES = {
    audio_text_to_text.TASK: AudioTextToTextPipeline,
    speech_recognition.TASK: SpeechRecognitionPipeline,
}


def pipeline(
    task: str | None = None,
    model: Any = None,
    processor: Any = None,
    *,
    device: str | None = None,
    device_memory: str | None = None,
    mindspore_dtype: Any = None,
    adapter: str | os.PathLike | None = None,
    **download: Any,
) -> AudioTextToTextPipeline | SpeechRecognitionPipeline:
    """A pipeline for `"audio-text-to-text"` or, for a Whisper model, `"automatic-speech-recognition"`.

    task: None is the one that the model has. model: a model, a checkpoint folder or a Hugging Face id; None is the
    small checkpoint that comes with the package. processor: a processor, or where it is; None is the model's own.
    device: "auto", "cpu", "ascend", "ascend:1"; None leaves MindSpore's choice. device_memory: the most to take of an
    NPU's memory, "40GB". mindspore_dtype: as for `from_pretrained`. adapter: a folder or Hugging Face id of a LoRA
    adapter of that model, which is put on it in place (`finetune.load_adapter`). download: revision, cache_dir, token,
    local_files_only, subfolder. Raises what
    `from_pretrained` and `load_adapter` raise, and `ValueError` for another task.
    """
    if task not in (None, *_PIPELINES):
        raise ValueError(f"unknown task {task!r}: this package has {' and '.join(map(repr, _PIPELINES))}")
    if device is not None or device_memory is not None:
        set_device(device or "auto", device_memory)
    name = demo_checkpoint() if model is None else model
    if isinstance(name, (str, os.PathLike)):
        model_class = family(read_config(name, **download).get("model_type")).MODEL
        _check_task(task, model_class)
        model = model_class.from_pretrained(name, mindspore_dtype=mindspore_dtype, **download)
    elif processor is None and not getattr(model, "name_or_path", ""):
        raise ValueError("a model object needs its processor: pipeline(model=model, processor=processor)")
    if processor is None or isinstance(processor, (str, os.PathLike)):
        processor = AutoProcessor.from_pretrained(processor or getattr(model, "name_or_path", name), **download)
    if adapter is not None:
        from mindone_audio.adapters.lora import load_adapter
        from mindone_audio.weights.hub import ACCESS_KEYWORDS

        access = {name: download[name] for name in ACCESS_KEYWORDS if name in download}
        model = load_adapter(model, adapter, **access).get_base_model()
    return _PIPELINES[_check_task(task, type(model))](model, processor)


def _check_task(task: str | None, model_class: type) -> str:
    """The task of a model; `ValueError` where another one is asked for."""
    own = speech_recognition.TASK if issubclass(model_class, EncoderDecoderModel) else audio_text_to_text.TASK
    if task not in (None, own):
        does = "transcribes and answers no questions" if own == speech_recognition.TASK else "answers questions"
        command = "mindone-audio transcribe" if own == speech_recognition.TASK else "mindone-audio ask"
        kind = model_class.config_class.model_type
        raise ValueError(f"a {kind} model {does} ({own}, not {task}): use {command}, or take another model")
    return own

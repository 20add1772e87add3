"""`pipeline`: a model with its processor, ready to be asked."""

import os
from typing import Any

from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.machine.device import set_device
from mindone_audio.models import AutoProcessor, model_class
from mindone_audio.models.seamless_m4t_v2.model import SeamlessM4Tv2Model
from mindone_audio.models.speecht5.speech_to_text import SpeechT5ForSpeechToText
from mindone_audio.models.speecht5.text_to_speech import SpeechT5ForTextToSpeech
from mindone_audio.models.speecht5.vocoder import SpeechT5HifiGan
from mindone_audio.models.whisper.model import WhisperForConditionalGeneration
from mindone_audio.pipelines import audio_text_to_text, speech_recognition, text_to_speech, translation
from mindone_audio.pipelines.audio_text_to_text import AudioTextToTextPipeline
from mindone_audio.pipelines.speech_recognition import SpeechRecognitionPipeline
from mindone_audio.pipelines.text_to_speech import TextToSpeechPipeline
from mindone_audio.pipelines.translation import SpeechToTextPipeline, TranslationPipeline
from mindone_audio.setting_fields import SettingError
from mindone_audio.weights.hub import ACCESS_KEYWORDS, read_config

# Of classes with tasks of their own: which, the first one being what they do unasked, what that is, and the command.
_ONLY = (
    (
        WhisperForConditionalGeneration,
        {speech_recognition.TASK: SpeechRecognitionPipeline},
        "transcribes and answers no questions",
        "mindone-audio transcribe",
    ),
    (
        SeamlessM4Tv2Model,
        {speech_recognition.TASK: SpeechToTextPipeline, translation.TASK: TranslationPipeline},
        "transcribes and translates, and answers no questions",
        "mindone-audio transcribe or translate",
    ),
    (
        SpeechT5ForSpeechToText,
        {speech_recognition.TASK: SpeechToTextPipeline},
        "transcribes and answers no questions",
        "mindone-audio transcribe",
    ),
    (
        SpeechT5ForTextToSpeech,
        {text_to_speech.TASK: TextToSpeechPipeline},
        "speaks texts",
        "mindone-audio speak",
    ),
)
_OTHERS = ({audio_text_to_text.TASK: AudioTextToTextPipeline}, "answers questions", "mindone-audio ask")
_TASKS = tuple(dict.fromkeys(task for tasks in (_OTHERS[0], *(row[1] for row in _ONLY)) for task in tasks))


def pipeline(
    task: str | None = None,
    model: Any = None,
    processor: Any = None,
    *,
    device: str | None = None,
    device_memory: str | None = None,
    mindspore_dtype: Any = None,
    adapter: str | os.PathLike | None = None,
    vocoder: Any = None,
    voice: Any = None,
    **download: Any,
) -> AudioTextToTextPipeline | SpeechRecognitionPipeline | TranslationPipeline | TextToSpeechPipeline:
    """A pipeline for `"audio-text-to-text"`; for Whisper, and a SpeechT5 model that writes,
    `"automatic-speech-recognition"`; for SeamlessM4T that or `"translation"`; for one that speaks `"text-to-speech"`.

    task: None is the one that the model has, the first of several. model: a model, a checkpoint folder or a Hugging
    Face id; None is the small checkpoint that comes with the package. processor: a processor, or where it is; None is
    the model's own. device: "auto", "cpu", "ascend", "ascend:1"; None leaves MindSpore's choice. device_memory: the
    most to take of an NPU's memory, "40GB". mindspore_dtype: as for `from_pretrained`. adapter: a folder or Hugging
    Face id of a LoRA adapter of that model, which is put on it in place (`finetune.load_adapter`). vocoder, voice: of a
    model that speaks: a `SpeechT5HifiGan`, or where it is, and the voice of calls that name none, as for
    `generate_speech`. download: revision, cache_dir, token, local_files_only, subfolder. Raises what `from_pretrained`
    and `load_adapter` raise, and `ValueError` for another task.
    """
    if task not in (None, *_TASKS):
        raise ValueError(f"unknown task {task!r}: this package has {', '.join(map(repr, _TASKS))}")
    if device is not None or device_memory is not None:
        set_device(device or "auto", device_memory)
    name = demo_checkpoint() if model is None else model
    if isinstance(name, (str, os.PathLike)):
        chosen = model_class(read_config(name, **download))
        _check(task, chosen, vocoder, voice)
        model = chosen.from_pretrained(name, mindspore_dtype=mindspore_dtype, **download)
    elif processor is None and not getattr(model, "name_or_path", ""):
        raise ValueError("a model object needs its processor: pipeline(model=model, processor=processor)")
    if processor is None or isinstance(processor, (str, os.PathLike)):
        processor = AutoProcessor.from_pretrained(processor or getattr(model, "name_or_path", name), **download)
    access = {name: download[name] for name in ACCESS_KEYWORDS if name in download}
    if adapter is not None:
        if isinstance(model, SpeechT5ForTextToSpeech):
            raise ValueError(f"adapter={adapter!r}: a speecht5 model that speaks takes none: leave it out")
        from mindone_audio.adapters.lora import load_adapter

        model = load_adapter(model, adapter, **access).get_base_model()
    made = _check(task, type(model), vocoder, voice)
    if made is not TextToSpeechPipeline:
        return made(model, processor)
    if isinstance(vocoder, (str, os.PathLike)):
        vocoder = SpeechT5HifiGan.from_pretrained(vocoder, mindspore_dtype=mindspore_dtype, **access)
    return TextToSpeechPipeline(model, processor, vocoder, voice)


def _check(task: str | None, chosen: type, vocoder: Any, voice: Any) -> type:
    """The pipeline of a model class; `ValueError` where it has no such task, or what does not go with it is given."""
    found = next((row[1:] for row in _ONLY if issubclass(chosen, row[0])), _OTHERS)
    tasks, does, command = found
    kind = chosen.config_class.model_type
    if task not in (None, *tasks):
        own = " or ".join(tasks)
        raise ValueError(f"a {kind} model {does} ({own}, not {task}): use {command}, or take another model")
    made = tasks[task or next(iter(tasks))]
    if made is TextToSpeechPipeline and vocoder is None:
        raise SettingError(lambda say: text_to_speech.NO_VOCODER.format(vocoder=say("vocoder")))
    if made is not TextToSpeechPipeline and (vocoder is not None or voice is not None):
        raise SettingError(
            lambda say: f"a {kind} model {does}, and takes no {say('vocoder')} and no {say('voice')}: leave them out"
        )
    return made

"""Audio-language models on MindSpore, with Hugging Face checkpoints.

The public names are imported when they are first used, because MindSpore and MindONE take seconds to import.
"""

import os
from importlib import import_module

# Without PyTorch transformers advises at each import that models won't be available; here they are MindSpore's.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"

_HOMES = {
    "AudioFlamingo3Config": "mindone_audio.models.audioflamingo3",
    "AudioFlamingo3ForConditionalGeneration": "mindone_audio.models.audioflamingo3",
    "AudioFlamingo3Processor": "mindone_audio.models.audioflamingo3",
    "AutoModelForAudioTextToText": "mindone_audio.models",
    "AutoProcessor": "mindone_audio.models",
    "GlmAsrForConditionalGeneration": "mindone_audio.models.glmasr",
    "GlmAsrProcessor": "mindone_audio.models.glmasr",
    "IchigoForConditionalGeneration": "mindone_audio.models.ichigo.model",
    "IchigoProcessor": "mindone_audio.models.ichigo.model",
    "MusicFlamingoForConditionalGeneration": "mindone_audio.models.musicflamingo",
    "MusicFlamingoProcessor": "mindone_audio.models.musicflamingo",
    "Phi4MultimodalForCausalLM": "mindone_audio.models.phi4_multimodal.model",
    "Phi4MultimodalProcessor": "mindone_audio.models.phi4_multimodal.processor",
    "Qwen2AudioForConditionalGeneration": "mindone_audio.models.qwen2_audio",
    "Qwen2AudioProcessor": "mindone_audio.models.qwen2_audio",
    "Qwen2_5OmniProcessor": "mindone_audio.models.qwen2_5_omni",
    "Qwen2_5OmniThinkerForConditionalGeneration": "mindone_audio.models.qwen2_5_omni",
    "Qwen3ASRForConditionalGeneration": "mindone_audio.models.qwen3_asr",
    "Qwen3ASRProcessor": "mindone_audio.models.qwen3_asr",
    "SeamlessM4TProcessor": "mindone_audio.models.seamless_m4t_v2.processor",
    "SeamlessM4Tv2ForSpeechToSpeech": "mindone_audio.models.seamless_m4t_v2.model",
    "SeamlessM4Tv2ForSpeechToText": "mindone_audio.models.seamless_m4t_v2.model",
    "SeamlessM4Tv2ForTextToSpeech": "mindone_audio.models.seamless_m4t_v2.model",
    "SeamlessM4Tv2ForTextToText": "mindone_audio.models.seamless_m4t_v2.model",
    "SeamlessM4Tv2Model": "mindone_audio.models.seamless_m4t_v2.model",
    "SpeechT5ForSpeechToText": "mindone_audio.models.speecht5.speech_to_text",
    "SpeechT5ForTextToSpeech": "mindone_audio.models.speecht5.text_to_speech",
    "SpeechT5HifiGan": "mindone_audio.models.speecht5.vocoder",
    "SpeechT5Processor": "mindone_audio.models.speecht5.processor",
    "UltravoxConfig": "mindone_audio.models.ultravox.model",
    "UltravoxForConditionalGeneration": "mindone_audio.models.ultravox.model",
    "UltravoxProcessor": "mindone_audio.models.ultravox.model",
    "VoxtralForConditionalGeneration": "mindone_audio.models.voxtral.model",
    "VoxtralProcessor": "mindone_audio.models.voxtral.model",
    "WhisperForConditionalGeneration": "mindone_audio.models.whisper.model",
    "WhisperProcessor": "mindone_audio.models.whisper.processor",
    "WhisperVQ": "mindone_audio.models.ichigo.whisper_vq",
    "pipeline": "mindone_audio.pipelines",
    "run_batch": "mindone_audio.batch",
    "load_audio": "mindone_audio.inputs.audio",
    "to_mindspore": "mindone_audio.conversion",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""The families: one file or folder each, and the classes that choose among them by a checkpoint's `model_type`."""

import os
from importlib import import_module
from types import ModuleType

from mindone_audio.inputs.processor import AudioTextProcessor
from mindone_audio.weights.hub import DOWNLOAD_KEYWORDS, read_config

# The name is the `model_type` of config.json, but for those in _MODEL_TYPES.
FAMILIES = {
    "audioflamingo3": "audioflamingo3",
    "glmasr": "glmasr",
    "ichigo": "ichigo.model",
    "musicflamingo": "musicflamingo",
    "phi4_multimodal": "phi4_multimodal.model",
    "qwen2_5_omni": "qwen2_5_omni",
    "qwen2_audio": "qwen2_audio",
    "qwen3_asr": "qwen3_asr",
    "seamless_m4t_v2": "seamless_m4t_v2.model",
    "speecht5": "speecht5.model",
    "ultravox": "ultravox.model",
    "voxtral": "voxtral.model",
    "whisper": "whisper.model",
}
_MODEL_TYPES = {
    "ichigo": ("llama",),
    "phi4_multimodal": ("phi4_multimodal", "phi4mm"),
    "qwen2_5_omni": ("qwen2_5_omni", "qwen2_5_omni_thinker"),
}
_WITHOUT_THINKER = "a part of Qwen2.5-Omni that hears nothing: use the whole checkpoint, Qwen/Qwen2.5-Omni-7B or -3B"
# Relatives of families that compute something else, and what to take instead.
_REFUSED = {
    "seamless_m4t": "SeamlessM4T v1 is another model: use facebook/seamless-m4t-v2-large",
    "qwen2_5_omni_talker": _WITHOUT_THINKER,
    "qwen2_5_omni_token2wav": _WITHOUT_THINKER,
}


def known_families() -> list[str]:
    """Their names."""
    return sorted(FAMILIES)


def family(model_type: str | None) -> ModuleType:
    """The module of a model type, with `MODEL` and `PROCESSOR`; `ValueError` with the known types for another."""
    names = {kind: name for name in FAMILIES for kind in _MODEL_TYPES.get(name, (name,))}
    if model_type in _REFUSED:
        raise ValueError(f"model_type {model_type!r}: {_REFUSED[model_type]}")
    if model_type not in names:
        raise ValueError(f"unknown model_type {model_type!r}: known are {', '.join(sorted(names))}")
    return import_module(f"{__name__}.{FAMILIES[names[model_type]]}")


def model_class(config: dict) -> type:
    """The model class of a config.json: that of its `model_type` or, where a family has several, its `architectures`.

    Raises `ValueError` for those that no family has, with the known ones.
    """
    module, named = family(config.get("model_type")), config.get("architectures") or []
    known = getattr(module, "ARCHITECTURES", {})
    if known and named and not set(named) & set(known):
        raise ValueError(f"architectures {', '.join(map(str, named))} are not supported: known are {', '.join(known)}")
    return next((known[name] for name in named if name in known), module.MODEL)


class AutoModelForAudioTextToText:
    """Chooses the model class by the `model_type` in a checkpoint's config.json, and by its `architectures`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """The family's model; keywords are those of its own `from_pretrained`. Raises what `model_class` raises."""
        download = {name: kwargs[name] for name in DOWNLOAD_KEYWORDS if name in kwargs}
        chosen = model_class(read_config(pretrained_model_name_or_path, **download))
        return chosen.from_pretrained(pretrained_model_name_or_path, **kwargs)


class AutoProcessor:
    """Finds the processor of a checkpoint; it turns text and audio into NumPy model inputs and needs no PyTorch."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **keywords) -> AudioTextProcessor:
        """Load the processor of a checkpoint folder or a Hugging Face repository such as "Qwen/Qwen2-Audio-7B".

        keywords: cache_dir, local_files_only, revision, subfolder, token; HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are
        honoured; and the family's own (`load_keywords`, such as Ichigo's whisper_vq). Raises `TypeError` for another
        keyword, `OSError` where the folder, the repository or one of its files is missing, `ValueError` for a
        model_type that no family has.
        """
        download = {name: keywords[name] for name in DOWNLOAD_KEYWORDS if name in keywords}
        processor_class = family(read_config(pretrained_model_name_or_path, **download).get("model_type")).PROCESSOR
        known = (*DOWNLOAD_KEYWORDS, *processor_class.load_keywords)
        if unknown := sorted(set(keywords) - set(known)):
            raise TypeError(
                f"AutoProcessor.from_pretrained does not know {', '.join(unknown)}: it takes {', '.join(known)}"
            )
        return processor_class.from_pretrained(pretrained_model_name_or_path, **keywords)

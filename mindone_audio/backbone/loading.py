"""A checkpoint to a model: what every family's `from_pretrained` does."""

import logging
import os
from functools import partial
from pathlib import Path

import mindspore as ms
from mindspore.nn.utils import no_init_parameters

from mindone_audio.backbone.layers import put_quantized_linear
from mindone_audio.backbone.pretrained_model import GenerationConfig
from mindone_audio.machine import device
from mindone_audio.weights import hub, nf4
from mindone_audio.weights.parameters import load_parameters

logger = logging.getLogger(__name__)
_POSITIONS = 1024  # tokens of an answer's cache that must fit beside the model


def load_checkpoint(
    model_class: type,
    name_or_dir: str | os.PathLike,
    config,
    dtype: ms.Type | dict[str, ms.Type] | None,
    tie_word_embeddings: bool | None,
    keep_quantized: bool,
    **download,
):
    """A model of a class with the weights of a folder or a repository; see `AudioLanguageModel.from_pretrained`."""
    if isinstance(dtype, dict) and (unknown := sorted(set(dtype) - {"audio_tower", "language_model", ""})):
        raise ValueError(
            f"mindspore_dtype has no part {unknown[0]!r}: the parts are 'audio_tower', with the projector, and "
            "'language_model'; '' is for what is not named"
        )
    device.check_versions()
    folder = hub.checkpoint_folder(name_or_dir, **download, unread=model_class.unread)
    access = {name: download[name] for name in hub.ACCESS_KEYWORDS if name in download}
    stored = hub.read_config(folder)
    nf4.check_config(stored, folder)
    config = _read_config(model_class, stored, folder, access) if config is None else config
    text_config = config.get_text_config()
    was_tied = text_config.tie_word_embeddings
    if tie_word_embeddings is not None:
        text_config.tie_word_embeddings = config.tie_word_embeddings = tie_word_embeddings
    if keep_quantized and not device.looks_up_bytes():
        logger.warning(
            "keep_quantized=True: every call dequantises the weights in 4 bits, value by value, which may take an NPU "
            "seconds a token (nobody has measured it). Load without it, in half precision, where memory allows"
        )
    config._attn_implementation = "eager"
    if hasattr(config, "quantization_config"):  # what is saved is not quantised any more
        del config.quantization_config
    with no_init_parameters():
        model = model_class(config)
        if device.shares_memory():  # now, since a graph that is compiled later must find every weight where it stays
            model.pack_weights()
    parts = load_parameters(
        model,
        folder,
        partial(_dtype_of, dtype),
        untie=was_tied,
        prefixes=model_class.weight_prefixes,
        unread=model_class.unread,
        more_files=model_class.more_files(folder),
        sources=model.weight_sources(folder, **access),
        keep=partial(put_quantized_linear, model) if keep_quantized else None,
        more_memory=_working_memory(model, 4 if ms.float32 in (dtype, *device.compute_dtypes()[-1:]) else 2),
    )
    for place in (folder, parts.get("language_model.", folder)):  # its own, or else the language model's
        if (place / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(place)
            break
    if model.packed_weights is not None and not model.packed_weights.is_current(model.language_model):
        model.pack_weights(False)  # the weights are of another dtype, or in 4 bits
    model.name_or_path = str(name_or_dir)
    return model.set_train(False)


def _dtype_of(requested: ms.Type | dict[str, ms.Type] | None, name: str, stored: ms.Type) -> ms.Type:
    """The dtype of a parameter, by its name and the dtype that it is stored in."""
    if isinstance(requested, dict):
        part = "language_model" if name.startswith("language_model.") else "audio_tower"
        requested = requested.get(part, requested.get(""))
    return device.compute_dtype(requested or stored)


def _working_memory(model, width: int) -> dict[str, int]:
    """Bytes that one answer takes beside the parameters, about: its cache, and what the largest graph keeps.

    width: bytes of a value. A model without a decoder counts nothing.
    """
    if model.language_model is None:
        return {}
    decoder = model.language_model.config
    cache = 2 * decoder.num_layers * decoder.num_key_value_heads * _POSITIONS * decoder.head_dim * width
    workspace = 2 * 4 * decoder.vocab_size
    if model.audio_tower is not None:  # attention scores in fp32 and their weights, and what the feed-forward widens
        encoder = model.audio_tower.config
        scores, wide = encoder.num_heads * encoder.max_positions**2, encoder.max_positions * encoder.intermediate_size
        workspace = max(workspace, 2 * 4 * scores + 2 * width * wide)
    return {f"cache of {_POSITIONS} tokens": cache, "workspace": workspace}


def _parts(config: dict) -> list[dict]:
    """The configs in a config, one of which may be the model's: transformers finds it there."""
    return [part for part in config.values() if isinstance(part, dict)]


def _read_config(model_class: type, stored: dict, folder: Path, access: dict):
    """The config of a folder, if it is of the class's family."""
    published = model_class.published_config(stored, folder)
    if published is not stored:
        return model_class.config_class.from_dict(published)
    expected = model_class.config_class.model_type
    if expected not in (stored.get("model_type"), *(part.get("model_type") for part in _parts(stored))):
        raise ValueError(
            f"{folder} holds a {stored.get('model_type')!r} model, {model_class.__name__} loads {expected!r}: use "
            "AutoModelForAudioTextToText"
        )
    return model_class.config_class.from_pretrained(folder, **access)

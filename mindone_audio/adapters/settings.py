"""What adapters a model gets, and which of its layers that means."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mindone_audio.fields import documented, setting

if TYPE_CHECKING:
    from mindone_audio.backbone.audio_language_model import AudioLanguageModel

_ENCODER, _PROJECTOR = "audio_tower.", "multi_modal_projector"
_EXCLUDE_ENCODER = r"(.*\.)?audio_tower\..*"  # PEFT matches it against whole names
_INITIALISATIONS = ("default", "gaussian")


@documented
@dataclass(frozen=True)
class LoraSettings:
    """The settings of new adapters, with PEFT's meanings; the layers are those of the published guides.

    Raises `ValueError` for a value that makes no sense. The settings:
    """

    r: int = setting("rank of the adapters", 16)
    alpha: float = setting("the product of B and A is scaled by alpha / r", 32)
    dropout: float = setting("probability of dropout of the adapters' inputs", 0.0)
    target_modules: tuple[str, ...] = setting(
        "names of linear layers; multi_modal_projector stands for all of the projector",
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )
    encoder: bool = setting("adapt the layers of the audio encoder with these names too", False)
    init: str = setting("first numbers of A: default (uniform) or gaussian; B starts from zero", "default")
    use_rslora: bool = setting("scale by alpha / sqrt(r) instead", False)
    seed: int = setting("seed of the adapters' first numbers, the same on every rank", 0)

    def __post_init__(self):
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"r is {self.r!r}: the rank of an adapter is a whole number from 1 on, such as 16")
        if not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha!r}: it scales the adapter and must be above 0, such as 32")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}: it is a probability, from 0 to less than 1")
        if isinstance(self.target_modules, str) or not self.target_modules:
            raise ValueError(
                f"target_modules is {self.target_modules!r}: give a list of names, such as ['q_proj', 'v_proj']"
            )
        if self.init not in _INITIALISATIONS:
            raise ValueError(f"init is {self.init!r}: use one of {', '.join(_INITIALISATIONS)}")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed!r}: it must be 0 or more")


def target_modules(model: AudioLanguageModel, settings: LoraSettings) -> tuple[list[str], str | None]:
    """PEFT's `target_modules` and `exclude_modules` for the layers that the settings mean, by the names on disk.

    Raises `ValueError` for a name that matches no linear layer, with close names that do, and for one that is only in
    the encoder unless that is to be adapted.
    """
    from mindone_audio.adapters.files import linear_layers, name_on_disk  # MindSpore: seconds, not for --help

    layers = list(linear_layers(model))
    targets: dict[str, None] = {}
    in_encoder = False
    for target in settings.target_modules:
        if target == _PROJECTOR:
            matches = [name for name in layers if name.startswith(f"{_PROJECTOR}.")]
            names = [name_on_disk(model, name) for name in matches]
        else:
            matches = [name for name in layers if _matches(target, name, name_on_disk(model, name))]
            names = [name_on_disk(model, target) if target in layers else target]
        if not matches:
            raise ValueError(_no_match(target, layers, model))
        encoder = [name for name in matches if name.startswith(_ENCODER)]
        if len(encoder) == len(matches) and not settings.encoder:
            raise ValueError(
                f"target module {target!r} is only in the audio encoder, which is not adapted: adapt the encoder too "
                "(encoder=True, in a configuration lora_encoder), or leave the target out"
            )
        in_encoder |= bool(encoder)
        targets |= dict.fromkeys(names)
    return list(targets), _EXCLUDE_ENCODER if in_encoder and not settings.encoder else None


def _matches(target: str, *names: str) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)


def _no_match(target: str, layers: list[str], model: AudioLanguageModel) -> str:
    known = list(dict.fromkeys(name.split(".")[-1] for name in layers))
    if any(name.startswith(f"{_PROJECTOR}.") for name in layers):
        known.append(_PROJECTOR)
    close = difflib.get_close_matches(target, known + layers, n=3)
    advice = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
    return f"target module {target!r} matches no linear layer of {type(model).__name__}: {advice}"

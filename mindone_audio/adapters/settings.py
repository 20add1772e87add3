"""What adapters a model gets, and which of its layers that means."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mindone_audio.setting_fields import SettingError, explained, refusal, setting

if TYPE_CHECKING:
    from mindone_audio.backbone.checkpoint_model import CheckpointModel

_ENCODER, _PROJECTOR = "audio_tower", "multi_modal_projector"
_INITIALISATIONS = ("default", "gaussian")


@explained
@dataclass(frozen=True)
class LoraSettings:
    """The settings of new adapters, with PEFT's meanings.

    Raises `ValueError` for a value that makes no sense.
    """

    r: int = setting(16, "rank")
    alpha: float = setting(32, "the product of B and A is scaled by alpha / r")
    dropout: float = setting(0.0, "the probability with which an input of A is zeroed while training")
    target_modules: tuple[str, ...] | None = setting(
        None,
        "names of linear layers, the last parts or all of them, such as q_proj or layers.0.mlp.up_proj; "
        "multi_modal_projector: all layers of the projector (default: those of the published guides, q_proj, k_proj, "
        "v_proj, o_proj, gate_proj, up_proj, down_proj; of an encoder-decoder model q_proj, v_proj)",
    )
    encoder: bool = setting(False, "adapt also the layers of the audio encoder that have these names")
    init: str = setting(
        "default",
        "what A starts from: uniform within 1 / sqrt(width), or gaussian with standard deviation 1 / r; B starts from "
        "zero",
        choices=_INITIALISATIONS,
    )
    use_rslora: bool = setting(False, "scale by alpha / sqrt(r) instead")
    seed: int = setting(0, "of the adapters' first numbers, the same on every rank")

    def __post_init__(self):
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise refusal("r", f" is {self.r!r}: the rank of an adapter is a whole number from 1 on, such as 16")
        if not self.alpha > 0:
            raise refusal("alpha", f" is {self.alpha!r}: it scales the adapter and must be above 0, such as 32")
        if not 0 <= self.dropout < 1:
            raise refusal("dropout", f" is {self.dropout!r}: it is a probability, from 0 to less than 1")
        if self.target_modules is not None and (isinstance(self.target_modules, str) or not self.target_modules):
            raise refusal(
                "target_modules", f" is {self.target_modules!r}: give a list of names, such as q_proj and v_proj"
            )
        if self.init not in _INITIALISATIONS:
            raise refusal("init", f" is {self.init!r}: use one of {', '.join(_INITIALISATIONS)}")
        if self.seed < 0:
            raise refusal("seed", f" is {self.seed!r}: it must be 0 or more")


def target_modules(model: CheckpointModel, settings: LoraSettings) -> tuple[list[str], str | None]:
    """PEFT's `target_modules` and `exclude_modules` for the layers that the settings mean, by the names on disk.

    Raises `ValueError` for a name that matches no linear layer, with close names that do, and for one that is only in
    the encoder unless that is to be adapted.
    """
    from mindone_audio.adapters.files import linear_layers, name_on_disk  # MindSpore: seconds, not for --help

    layers = list(linear_layers(model))
    targets: dict[str, None] = {}
    in_encoder = False
    for target in model.adapted_modules if settings.target_modules is None else settings.target_modules:
        if target == _PROJECTOR:
            matches = [name for name in layers if name.startswith(f"{_PROJECTOR}.")]
            names = [name_on_disk(model, name) for name in matches]
        else:
            matches = [name for name in layers if _matches(target, name, name_on_disk(model, name))]
            names = [name_on_disk(model, target) if target in layers else target]
        if not matches:
            raise ValueError(_no_match(target, layers, model))
        encoder = [name for name in matches if name.startswith(f"{_ENCODER}.")]
        if len(encoder) == len(matches) and not settings.encoder:
            raise _only_in_encoder(target)
        in_encoder |= bool(encoder)
        targets |= dict.fromkeys(names)
    # PEFT matches it against whole names.
    excluded = rf"(.*\.)?{re.escape(name_on_disk(model, _ENCODER))}\..*"
    return list(targets), excluded if in_encoder and not settings.encoder else None


def _only_in_encoder(target: str) -> SettingError:
    return SettingError(
        lambda say: (
            f"target module {target!r} is only in the audio encoder, which is not adapted: set "
            f"{say('encoder', True)}, or leave the target out"
        )
    )


def _matches(target: str, *names: str) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)


def _no_match(target: str, layers: list[str], model: CheckpointModel) -> str:
    known = list(dict.fromkeys(name.split(".")[-1] for name in layers))
    if any(name.startswith(f"{_PROJECTOR}.") for name in layers):
        known.append(_PROJECTOR)
    close = difflib.get_close_matches(target, known + layers, n=3)
    advice = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
    return f"target module {target!r} matches no linear layer of {type(model).__name__}: {advice}"

"""The table of families: each row a tiny random checkpoint, and what PyTorch computes for it, as parity recordings.

A live row is computed here by the PyTorch class of the installed transformers. A golden row was computed in another
environment, because that one has no such class: its folder in tests/goldens holds the checkpoint, the recordings, and
what made them (scripts/reference).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import helpers
import helpers_phi4
import helpers_qwen2_5_omni
import helpers_transformers5
import helpers_voxtral
import numpy as np
from safetensors.numpy import load_file

from mindone_audio.proof.parity import Recording, read_recording

GOLDENS = Path(__file__).parent / "goldens"

# Every row has these cases. "batch" is the three others in one padded batch.
SINGLES = ("one clip", "text only", "three clips")
CASES = (*SINGLES, "batch")


@dataclass(frozen=True)
class Row:
    """One row: `load(folder)` gives the checkpoint's folder and the recordings by case; it may write to `folder`."""

    name: str
    load: Callable[[Path], tuple[Path, dict[str, Recording]]]


def live(name: str, make_model: Callable, make_inputs: dict[str, Callable[[], dict]]) -> Row:
    """A row whose PyTorch model is made and run here, with 64 greedy tokens."""

    def load(folder: Path):
        model = make_model()
        model.save_pretrained(folder)
        facts = {"model_type": model.config.model_type, "dtype": "float32"}
        arrays = {case: helpers.record_case(model, make(), new_tokens=64) for case, make in make_inputs.items()}
        return folder, {case: Recording(values, facts) for case, values in arrays.items()}

    return Row(name, load)


def golden(name: str) -> Row:
    """A row of tests/goldens."""
    folder = GOLDENS / name
    return Row(
        name, lambda _: (folder, {c: read_recording(folder / f"{c.replace(' ', '_')}.safetensors") for c in CASES})
    )


def published_weights(folder: Path) -> dict[str, np.ndarray]:
    """A checkpoint's tensors by name; weights in 4 bits as bitsandbytes dequantises them, without their companions."""
    weights = load_file(folder / "model.safetensors")
    if (folder / "dequantised.npz").exists():
        dequantised = dict(np.load(folder / "dequantised.npz"))
        plain = {name: weights[name] for name in weights if name.split(".weight.")[0] + ".weight" not in dequantised}
        return {**plain, **dequantised}
    return weights


def qwen2_audio(variant: str) -> Row:
    """A Qwen2-Audio row; the variants are `helpers.QWEN2_AUDIO`'s."""
    sizes = helpers.QWEN2_AUDIO[variant]
    return live(
        f"qwen2_audio {variant}", lambda: helpers.torch_model(helpers.tiny_config(**sizes)), helpers.qwen2_audio_cases()
    )


def voxtral(variant: str) -> Row:
    """A Voxtral row; the variants are `helpers_voxtral.VARIANTS`'s."""
    text, seed = helpers_voxtral.VARIANTS[variant]
    config = helpers_voxtral.tiny_voxtral_config(text)
    cases = helpers_voxtral.voxtral_cases()
    return live(f"voxtral {variant}", lambda: helpers_voxtral.torch_voxtral(config, seed), cases)


def qwen2_5_omni(variant: str) -> Row:
    """A Qwen2.5-Omni row; the variants are `helpers_qwen2_5_omni.VARIANTS`'s."""
    text, seed = helpers_qwen2_5_omni.VARIANTS[variant]
    config = helpers_qwen2_5_omni.tiny_omni_config(text)
    cases = helpers_qwen2_5_omni.omni_cases()
    return live(f"qwen2_5_omni {variant}", lambda: helpers_qwen2_5_omni.torch_omni(config, seed), cases)


def phi4(variant: str) -> Row:
    """A Phi-4-multimodal row; the variants are `helpers_phi4.VARIANTS`'s."""

    def load(folder: Path):
        arrays = helpers_phi4.recordings(folder, variant, 64)
        facts = {"model_type": "phi4_multimodal", "dtype": "float32"}
        return folder, {case: Recording(values, facts) for case, values in arrays.items()}

    return Row(f"phi4_multimodal {variant}", load)


def ichigo(variant: str) -> Row:
    """An Ichigo row: a Llama, to which sound is more tokens; the variants are `helpers.ICHIGO`'s."""
    sizes = helpers.ICHIGO[variant]
    return live(f"ichigo {variant}", lambda: helpers.torch_llama(**sizes), helpers.ichigo_cases())


ROWS = [
    *map(qwen2_audio, helpers.QWEN2_AUDIO),
    golden("qwen2_audio_transformers5"),
    *map(golden, ("ultravox_llama", "ultravox_mistral", "ultravox_qwen2", "ultravox_qwen3")),
    *map(voxtral, helpers_voxtral.VARIANTS),
    golden("audioflamingo3"),
    *map(golden, helpers_transformers5.FAMILIES),
    *map(qwen2_5_omni, helpers_qwen2_5_omni.VARIANTS),
    *map(phi4, helpers_phi4.VARIANTS),
    *map(ichigo, helpers.ICHIGO),
    golden("qwen2_audio_nf4_plain"),
    golden("qwen2_audio_nf4_double"),
    golden("voxtral_nf4"),
]

"""Convert Ichigo's speech tokenizer to safetensors, which `mindone_audio.WhisperVQ` reads without PyTorch and pickle.

    hf download jan-hq/WhisperVQ whisper-vq-stoks-v3-7lang-fixed.model --local-dir .
    python scripts/convert_whisper_vq.py whisper-vq-stoks-v3-7lang-fixed.model --out whisper_vq

Needs PyTorch, once, on any machine. The file holds the quantiser only; the encoder in front of it is Whisper-medium's
(--whisper: a folder or a Hugging Face repository). The pickle is read as data: none of its code is run. Files of other
quantisers have the same tensors and give an Ichigo model tokens that it has never heard, so they are refused.
"""

import argparse
import json
import pickle
import sys
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

from mindone_audio.weights import hub  # noqa: E402

FILE = "whisper-vq-stoks-v3-7lang-fixed.model"
ADVICE = f"get {FILE} with: hf download jan-hq/WhisperVQ {FILE} --local-dir ."

# Ours, and what the file calls them; the tensors of its decoder, which turns tokens into sound, are left out.
NAMES = {
    "layer_norm.weight": "mlp_ln.weight",
    "layer_norm.bias": "mlp_ln.bias",
    "fc1.weight": "mlp.0.weight",
    "fc1.bias": "mlp.0.bias",
    "fc2.weight": "mlp.2.weight",
    "fc2.bias": "mlp.2.bias",
    "project_in.weight": "rq.project_in.weight",
    "project_in.bias": "rq.project_in.bias",
    "codebook": "rq.layers.0._codebook.embed",
}
# What the file's "config" and "tunables" must say for our quantiser to compute the same; an absent tunable is off.
CONFIG = {"q_depth": 1, "downsample": 2, "use_cosine_sim": True, "whisper_model_name": "medium"}
TUNABLES = {"mask_embs": True, "downsample_mean": True, "downsample_conv": False}
ENCODER_FIELDS = (
    *("num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
    *("max_source_positions", "activation_function", "scale_embedding"),
)
POSITIONS = 1500  # of the encoder in 30 s


class ConversionError(ValueError):
    """A file that cannot be converted; the message says why and what to do."""


def read_quantiser(file: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The quantiser's tensors by our names, and the file's "config"."""
    if file.name.startswith("whisper-vq-stoks") and file.name != FILE:
        raise ConversionError(
            f"{file.name} is another Whisper-VQ than Ichigo's, whose tokens it would garble: {ADVICE}"
        )
    if not file.is_file():
        raise ConversionError(f"no file {file}: {ADVICE}")
    if not zipfile.is_zipfile(file):  # of torch.save's two formats the one of this file; the older one is all pickle
        raise ConversionError(f"{file} is not what torch.save writes: {ADVICE}")
    try:
        spec = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConversionError(f"{file} cannot be read as tensors and plain values ({reason}): {ADVICE}") from error
    if not isinstance(spec, dict) or not all(isinstance(spec.get(key), dict) for key in ("config", "state_dict")):
        raise ConversionError(f"{file} does not hold a config and a state_dict as Whisper-VQ files do: {ADVICE}")
    state, config = spec["state_dict"], spec["config"]
    if "rq.layers.0.project_in.weight" in state:
        raise ConversionError(f"{file} names its tensors rq.layers.0.project_*, so it is not the fixed file: {ADVICE}")
    tunables = {name: spec.get("tunables", {}).get(name, False) for name in TUNABLES}
    found = {name: config.get(name) for name in CONFIG} | tunables
    if wrong := [
        f"{name}={found[name]!r} (not {value!r})" for name, value in (CONFIG | TUNABLES).items() if found[name] != value
    ]:
        raise ConversionError(
            f"{file} is of a quantiser that works otherwise than Ichigo's: {', '.join(wrong)}. {ADVICE}"
        )
    if missing := [name for name in NAMES.values() if name not in state]:
        raise ConversionError(f"{file} lacks the tensors {', '.join(missing)}: {ADVICE}")
    tensors = {ours: state[theirs].float() for ours, theirs in NAMES.items()}
    tensors["codebook"] = tensors["codebook"].squeeze(0)
    check_shapes(file, tensors, config)
    return tensors, config


def check_shapes(file: Path, tensors: dict[str, torch.Tensor], config: dict) -> None:
    """`ConversionError` unless every tensor of the quantiser has the shape that the config asks for."""
    width = config["n_head"] * config["head_width"]
    inner, codes = width * config["ffn_mult"], config["codebook_dim"]
    expected = {
        "layer_norm.weight": (width,),
        "layer_norm.bias": (width,),
        "fc1.weight": (inner, width),
        "fc1.bias": (inner,),
        "fc2.weight": (width, inner),
        "fc2.bias": (width,),
        "project_in.weight": (codes, width),
        "project_in.bias": (codes,),
        "codebook": (config["vq_codes"] + 1, codes),  # the last one stands for padding
    }
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ConversionError(
                f"{file}: {NAMES[name]} has shape {tuple(tensors[name].shape)}, not {shape}: {ADVICE}"
            )


def read_encoder(whisper: str, width: int) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of a Whisper checkpoint's encoder as "encoder.*", and the fields of its config that describe it."""
    folder = hub.checkpoint_folder(whisper)
    config = hub.read_config(folder)
    if config.get("model_type") != "whisper" or config.get("d_model") != width:
        raise ConversionError(
            f"{whisper} is a {config.get('model_type')!r} model of width {config.get('d_model')}, and the quantiser "
            f"needs a Whisper of width {width}: give --whisper openai/whisper-medium"
        )
    if config["max_source_positions"] != POSITIONS:
        raise ConversionError(f"{whisper} hears {config['max_source_positions']} positions, not {POSITIONS}")
    files = [f for f in [folder / "model.safetensors"] if f.is_file()] or sorted(folder.glob("*.safetensors"))
    tensors = {}
    for file in files:
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():
                inner = name.removeprefix("model.")
                if inner.startswith("encoder."):
                    tensors[inner] = stream.get_tensor(name).float()
    if not tensors:
        raise ConversionError(f"{folder} has no encoder in its {len(files)} safetensors files: download it again")
    return tensors, {name: config[name] for name in ENCODER_FIELDS}


def convert(file: Path, whisper: str, out: Path) -> None:
    """Write `out`/config.json and `out`/model.safetensors, in float32 as the original computes."""
    quantiser, config = read_quantiser(file)
    width = quantiser["layer_norm.weight"].numel()
    encoder, encoder_config = read_encoder(whisper, width)
    codes, code_width = quantiser["codebook"].shape
    description = {
        "model_type": "whisper_vq",
        "codebook_size": codes,
        "codebook_dim": code_width,
        "intermediate_size": quantiser["fc1.bias"].numel(),
        "encoder": encoder_config,
        "converted_from": [file.name, f"whisper-{config['whisper_model_name']}"],
    }
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in {**encoder, **quantiser}.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help=FILE)
    parser.add_argument(
        "--whisper", default="openai/whisper-medium", help="folder or repository (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("whisper_vq"), help="folder (default: %(default)s)")
    args = parser.parse_args()
    try:
        convert(args.file, args.whisper, args.out)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {(args.out / 'model.safetensors').stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

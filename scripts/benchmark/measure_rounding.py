"""How far correct implementations are apart in half precision: where `parity.TOLERANCES` comes from.

    python scripts/benchmark/measure_rounding.py

PyTorch computes a model in each dtype with eager attention: the reference of a parity recording. Against it are held
- PyTorch again, with fused attention and every matrix product summed in another order, as another device would;
- this library's formulas in float32 with the result of every operation rounded to the dtype. MindSpore's CPU back end
  has no bfloat16 product, so this is the nearest to an NPU that a CPU comes.
The models are the bundled checkpoint and random ones of growing depth. The numbers are relative errors, as `parity`
prints them: of the logits, and the largest of all stages.
"""

import argparse
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[depth]) for depth in (2, 1)]

from record_parity import load_model, record  # noqa: E402

from mindone_audio import AutoModelForAudioTextToText  # noqa: E402
from mindone_audio.backbone import ops  # noqa: E402
from mindone_audio.checkpoints import demo_checkpoint  # noqa: E402
from mindone_audio.proof import parity  # noqa: E402

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEPTHS = (2, 8, 32)


def random_checkpoint(folder: Path, depth: int) -> Path:
    """`depth` layers in encoder and decoder, weights as transformers initialises them but large enough to matter."""
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    config = Qwen2AudioConfig(
        audio_config={"num_mel_bins": 80, "d_model": 192, "encoder_layers": depth, "encoder_attention_heads": 3}
        | {"encoder_ffn_dim": 768, "max_source_positions": 100},
        text_config={"model_type": "qwen2", "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 704}
        | {"num_hidden_layers": depth, "num_attention_heads": 4, "num_key_value_heads": 2}
        | {"tie_word_embeddings": False},
        audio_token_index=999,
    )
    torch.manual_seed(depth)
    model = Qwen2AudioForConditionalGeneration._from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return folder


def inputs_for(config) -> dict[str, torch.Tensor]:
    """A clip of smooth noise that fills three quarters of the window, and twenty text tokens."""
    frames = 2 * config.audio_config.max_source_positions
    length = frames * 3 // 4
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, config.audio_config.num_mel_bins, frames)).cumsum(-1) / frames**0.5
    tokens = ((length - 1) // 2 + 1 - 2) // 2 + 1
    text = rng.integers(3, 90, 20)
    return {
        "input_ids": torch.tensor([[*text[:10], *[config.audio_token_index] * tokens, *text[10:]]]),
        "attention_mask": torch.ones(1, 20 + tokens, dtype=torch.int64),
        "input_features": torch.from_numpy(features.astype(np.float32)),
        "feature_attention_mask": (torch.arange(frames)[None] < length).to(torch.int64),
    }


def another_order(model: torch.nn.Module) -> None:
    """Make every linear map sum its products in another order."""

    def forward(self, x):
        return torch.nn.functional.linear(x.flip(-1), self.weight.flip(-1), self.bias)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = forward.__get__(module)


@contextmanager
def rounded_operations(model, dtype: ms.Type):
    """This library's model with weights and the result of every operation rounded to `dtype`, computed in float32."""

    def rounded(value):
        if isinstance(value, Tensor) and value.dtype == ms.float32:
            return value.astype(dtype).astype(ms.float32)
        return value

    names = [n for n in vars(ops) if callable(getattr(ops, n)) and getattr(ops, n).__module__ == ops.__name__]
    plain = {name: getattr(ops, name) for name in names}
    for name, function in plain.items():
        setattr(ops, name, lambda *args, function=function, **kwargs: rounded(function(*args, **kwargs)))
    for parameter in model.get_parameters():
        parameter.set_data(rounded(parameter))
    residuals = [*model.audio_tower.layers, *model.language_model.model.layers]  # their sums are not in ops
    handles = [cell.register_forward_hook(lambda cell, inputs, output: rounded(output)) for cell in residuals]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, function in plain.items():
            setattr(ops, name, function)


def errors(ours: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> tuple[float, float]:
    """Relative errors: of the logits, and the largest of encoder, projector and layers."""

    def error(stage):
        theirs = reference[stage].astype(np.float64)
        return float(np.linalg.norm(ours[stage] - theirs) / np.linalg.norm(theirs))

    stages = [name for name in reference if name in ("encoder", "projector") or name.startswith("layer.")]
    return error("logits"), max(error(stage) for stage in stages)


def measure(folder: Path, dtype_name: str) -> list[tuple[float, float]]:
    """`errors` of the other PyTorch and of ours, for one checkpoint and dtype."""
    dtype = DTYPES[dtype_name]
    eager = load_model(str(folder), dtype, "cpu")
    inputs = inputs_for(eager.config)
    reference = record(eager, inputs, every=1, positions=16, new_tokens=1)
    eager.config._attn_implementation = eager.language_model.config._attn_implementation = "sdpa"
    eager.audio_tower.config._attn_implementation = "sdpa"
    another_order(eager)
    results = [errors(record(eager, inputs, every=1, positions=16, new_tokens=1), reference)]
    ours = AutoModelForAudioTextToText.from_pretrained(folder, mindspore_dtype=ms.float32)
    recording = parity.Recording(reference, {"model_type": "qwen2_audio"})
    with rounded_operations(ours, getattr(ms, dtype_name)):
        results.append(errors(parity.activations(ours, recording), reference))
    return results


def main() -> int:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    print(f"{'':<24}{'':<10}{'PyTorch, another order':>26}{'this library, rounded':>26}")
    print(f"{'model':<24}{'dtype':<10}{'logits':>13}{'worst stage':>13}{'logits':>13}{'worst stage':>13}")
    with tempfile.TemporaryDirectory() as scratch:
        models = {"bundled": demo_checkpoint()}
        models |= {f"random, {n} + {n} layers": random_checkpoint(Path(scratch) / str(n), n) for n in DEPTHS}
        for name, folder in models.items():
            for dtype in DTYPES:
                values = [value for pair in measure(folder, dtype) for value in pair]
                print(f"{name:<24}{dtype:<10}" + "".join(f"{value:>13.1e}" for value in values), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Goldens of bitsandbytes NF4 checkpoints: what it writes, what it dequantises to, and what models compute with that.

python -m venv reference && reference/bin/pip install -r scripts/reference/bitsandbytes/requirements.txt
reference/bin/python scripts/reference/bitsandbytes/record.py
"""

import sys
import tempfile
from pathlib import Path

import bitsandbytes
import numpy as np
import torch
import transformers
from bitsandbytes import functional
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.backends.utils import _get_4bit_code
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "scripts")]

import helpers  # noqa: E402
import record_parity  # noqa: E402
from random_weights import randomise  # noqa: E402

torch._dynamo.config.disable = True  # compiling one operation for every shape takes longer than running it

COMMAND = "python scripts/reference/bitsandbytes/record.py"
GOLDENS = ROOT / "tests" / "goldens"
NEW_TOKENS = 16

# Single weights: shape, dtype quantised from, blocksize, doubly quantised, dtype that the codes are stored as.
LAYERS = {
    "even": ((32, 64), torch.float32, 64, False, torch.uint8),
    "even_double": ((32, 64), torch.bfloat16, 64, True, torch.uint8),
    "odd": ((5, 7), torch.float32, 64, False, torch.uint8),
    "odd_double": ((13, 37), torch.float32, 64, True, torch.uint8),
    "two_nested_blocks": ((19, 1001), torch.bfloat16, 64, True, torch.uint8),
    "blocksize_128": ((6, 130), torch.float16, 128, False, torch.uint8),
    "blocksize_256": ((7, 150), torch.float16, 256, True, torch.uint8),
    "stored_as_bfloat16": ((10, 66), torch.bfloat16, 64, True, torch.bfloat16),
    "stored_as_float32": ((16, 24), torch.float32, 64, False, torch.float32),
    "rows_of_16": ((7, 80), torch.float32, 64, True, torch.uint8),
    "zeros": ((4, 40), torch.float32, 64, False, torch.uint8),
}


def write_layers(folder: Path) -> None:
    """`model.safetensors` with every weight of LAYERS, and what bitsandbytes dequantises each to: in fp32, and rounded
    to the dtype that it was quantised from where that is another."""
    tensors, expected = {}, {}
    generator = torch.Generator().manual_seed(0)
    for name, (shape, dtype, blocksize, double, storage) in LAYERS.items():
        weight = torch.randn(shape, generator=generator).to(dtype) * (name != "zeros")
        codes, state = functional.quantize_4bit(
            weight, blocksize=blocksize, compress_statistics=double, quant_type="nf4", quant_storage=storage
        )
        tensors[f"{name}.weight"] = codes
        tensors |= {f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        expected[name] = in_float32(codes, state)
        if dtype != torch.float32:
            expected[f"{name}.rounded"] = functional.dequantize_4bit(codes, state).float().numpy()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", facts())
    np.savez_compressed(folder / "dequantised.npz", **expected)


def in_float32(codes: torch.Tensor, state) -> np.ndarray:
    """bitsandbytes' own dequantisation without the last rounding, to the dtype that it quantised from.

    By its portable implementation: its AVX-512 kernel (0.50.2) looks scales up by row and column, which are others
    than `quantize_4bit` stored where rows are a multiple of 16 wide and no whole number of blocks. Its values are then
    off by as much as the weights are large. Everywhere else the two agree exactly.
    """
    absmax = state.absmax
    if state.nested:
        absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
    levels = _get_4bit_code(state.quant_type, absmax.device)
    data = codes.view(torch.uint8).reshape(-1)
    values = _dequantize_4bit_compute(data, absmax, levels, state.blocksize, state.shape, torch.float32)
    if state.shape[-1] % 16 or state.shape[-1] % state.blocksize == 0:
        dtype, state.dtype = state.dtype, torch.float32
        assert torch.equal(functional.dequantize_4bit(codes, state), values), "two implementations disagree"
        state.dtype = dtype
    return values.numpy()


def facts() -> dict[str, str]:
    return {"format": "pt", "bitsandbytes": bitsandbytes.__version__, "torch": torch.__version__, "command": COMMAND}


def write_model(folder: Path, model, cases: dict, dtype: torch.dtype, **settings) -> None:
    """A checkpoint as bitsandbytes saves it from `dtype`, its weights dequantised, and a recording of each case.

    The recordings are those of a plain model that has the dequantised weights, in fp32. Added to the batch's are the
    logits of the quantised model itself with bitsandbytes' layers, in fp32 as well.
    """
    name = type(model).__name__
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32, **settings
    )
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        getattr(transformers, name).from_pretrained(
            scratch, dtype=dtype, quantization_config=config, device_map="cpu"
        ).save_pretrained(folder)
    quantised = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", attn_implementation="eager"
    )
    values, dequantised = {}, {}
    for path, module in quantised.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # that kernel would round to bfloat16
            dequantised[f"{path}.weight"] = in_float32(module.weight.data, module.weight.quant_state)
    for path, parameter in quantised.named_parameters():
        values[path] = torch.from_numpy(dequantised[path]) if path in dequantised else parameter.data.float()
    assert len(dequantised) > 20, "few layers were quantised"
    missing, unexpected = model.load_state_dict(values, strict=False)
    assert not unexpected and all("lm_head" in tied for tied in missing), (missing, unexpected)
    on_disk = {place(path): value for path, value in dequantised.items()}
    np.savez_compressed(folder / "dequantised.npz", **on_disk)
    for case, make in cases.items():
        arrays = helpers.record_case(model, make(), new_tokens=NEW_TOKENS)
        if case == "batch":
            with torch.no_grad():
                arrays["bitsandbytes.logits"] = quantised(**helpers.to_torch(make())).logits.numpy()
        record_parity.save(
            arrays,
            folder / f"{case.replace(' ', '_')}.safetensors",
            model,
            bitsandbytes=bitsandbytes.__version__,
            command=COMMAND,
        )


def place(path: str) -> str:
    """The name on disk of a parameter of a transformers 4 model with a nested language model."""
    return path.removeprefix("model.")


def voxtral_model():
    """A tiny Voxtral: windows of 0.4 s, 5 tokens each; a head_dim that is not the width divided by the heads."""
    audio = {"num_mel_bins": helpers.MEL_BINS, "hidden_size": 18, "intermediate_size": 72, "num_hidden_layers": 1}
    audio |= {"num_attention_heads": 3, "max_source_positions": helpers.FRAMES // 2}
    text = {"model_type": "llama", "vocab_size": helpers.VOCAB, "hidden_size": 36, "intermediate_size": 52}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10}
    text |= {"max_position_embeddings": 512, "rope_theta": 1e4, "rms_norm_eps": 1e-5, "attention_bias": False}
    config = transformers.VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=helpers.AUDIO_TOKEN)
    torch.manual_seed(1)
    model = transformers.VoxtralForConditionalGeneration._from_config(config, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    return randomise(model.eval())


def voxtral_cases() -> dict:
    """The cases of every family; each window of audio is 5 tokens, and there is no mask."""
    window = [helpers.AUDIO_TOKEN] * 5
    one = helpers.prompt([2], 1) + window * 2 + helpers.prompt([7], 2)
    text = helpers.prompt([4], 3)
    three = helpers.prompt([2], 4) + window + helpers.prompt([1], 5) + window + window + helpers.prompt([3], 6)
    shape = (5, helpers.MEL_BINS, helpers.FRAMES)
    features = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    return {
        "one clip": lambda: {**helpers.batch([one]), "input_features": features[:2]},
        "text only": lambda: helpers.batch([text]),
        "three clips": lambda: {**helpers.batch([three]), "input_features": features[2:]},
        "batch": lambda: {**helpers.batch([one, text, three]), "input_features": features},
    }


def main() -> None:
    """Write every golden."""
    write_layers(GOLDENS / "nf4_layers")
    odd = helpers.QWEN2_AUDIO["odd"]
    model = helpers.torch_model(helpers.tiny_config(odd["audio"], {**odd["text"], "num_hidden_layers": 2}))
    every = {"llm_int8_skip_modules": []}  # the output layer too
    write_model(GOLDENS / "qwen2_audio_nf4_plain", model, helpers.qwen2_audio_cases(), torch.float16, **every)
    text = {"hidden_size": 40, "num_attention_heads": 4, "intermediate_size": 60, "num_hidden_layers": 2}
    model = helpers.torch_model(helpers.tiny_config({"encoder_layers": 1}, text))
    double = {"bnb_4bit_use_double_quant": True}
    write_model(GOLDENS / "qwen2_audio_nf4_double", model, helpers.qwen2_audio_cases(), torch.bfloat16, **double)
    write_model(GOLDENS / "voxtral_nf4", voxtral_model(), voxtral_cases(), torch.bfloat16, **double)


if __name__ == "__main__":
    main()

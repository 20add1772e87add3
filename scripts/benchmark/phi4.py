"""Phi-4-multimodal for `benchmark.py generate --random phi4`: its shape cut in depth, with the speech adapter at work.

PyTorch's side is transformers' class with the adapter loaded by PEFT, as its users have it.
"""

import json
from pathlib import Path

from benchmark.checkpoint import MEL_FRAMES_PER_SECOND
from benchmark.contenders import Torch

RANK, ALPHA = 320, 640
ADAPTED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
SHORT, LONG = 4096, 131072  # positions that the short factors are for, and the long ones
REDUCTION = 8  # frames of an audio token


def write_phi4(folder: str, encoder: tuple, decoder: tuple, kv: int, vocab: int, mel: int, **_) -> None:
    """Weights of unit gain in fp32 and a random adapter, in transformers' layout. Sizes as in `checkpoint.RANDOM`."""
    import torch
    from safetensors.torch import save_file
    from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM

    blocks, audio_width, audio_heads, audio_wide = encoder
    layers, width, heads, wide = decoder
    pairs = int(0.75 * width // heads) // 2
    factors = {"short_factor": [1.0] * pairs, "long_factor": [1.0 + i for i in range(pairs)]}
    config = Phi4MultimodalConfig(
        **{"vocab_size": vocab, "hidden_size": width, "intermediate_size": wide, "num_hidden_layers": layers},
        **{"num_attention_heads": heads, "num_key_value_heads": kv, "partial_rotary_factor": 0.75},
        **{"max_position_embeddings": LONG, "original_max_position_embeddings": SHORT},
        **{"rope_scaling": {"type": "longrope", **factors}, "tie_word_embeddings": True},
        **{"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 0},
        audio_config={
            **dict.fromkeys(("hidden_size", "ext_pw_out_channel", "depthwise_separable_out_channel"), audio_width),
            **{"num_blocks": blocks, "num_attention_heads": audio_heads},
            **{"intermediate_size": audio_wide, "input_size": mel, "audio_token_id": vocab - 1},
        },
        vision_config={"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    torch.manual_seed(0)
    with torch.device("meta"):  # no second, slower initialisation
        model = Phi4MultimodalForCausalLM(config)
    model.to_empty(device="cpu")
    model.tie_weights()
    adapter = {}
    with torch.no_grad():
        for parameter in [*model.parameters(), *model.buffers()]:
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1)
        model.model.embed_tokens.weight.normal_(0, width**-0.5)  # the output layer too
        for name, module in model.model.layers.named_modules():
            if name.endswith(ADAPTED):
                rows, columns = module.weight.shape
                name = f"base_model.model.model.layers.{name}"
                adapter[f"{name}.lora_A.weight"] = torch.randn(RANK, columns) * columns**-0.5
                adapter[f"{name}.lora_B.weight"] = torch.randn(rows, RANK) * 0.1 * RANK**-0.5
    model.save_pretrained(folder)
    place = Path(folder) / "speech-lora"
    place.mkdir()
    save_file(adapter, place / "adapter_model.safetensors")
    modules = rf"model\.layers\.\d+\.\w+\.({'|'.join(ADAPTED)})"
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA}
    (place / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": modules}))


def phi4_inputs(folder: Path, clip_seconds: float) -> dict:
    """Random features of a clip and random tokens of text around its own."""
    import numpy as np

    config = json.loads((folder / "config.json").read_text())
    frames, rng = int(clip_seconds * MEL_FRAMES_PER_SECOND), np.random.default_rng(0)
    tokens, words = -(-frames // REDUCTION), rng.integers(3, config["vocab_size"] - 1, 32).tolist()
    ids = words[:8] + [config["audio_config"]["audio_token_id"]] * tokens + words[8:]
    features = rng.normal(3, 2, (1, frames, config["audio_config"]["input_size"]))
    return {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "audio_input_features": features.astype(np.float32),
        "audio_embed_sizes": np.array([tokens], np.int64),
        "audio_attention_mask": np.ones((1, frames), bool),
    }


class TorchPhi4(Torch):
    """transformers' Phi-4-multimodal with the speech adapter by PEFT."""

    @staticmethod
    def load(folder: str, attention: str):
        import torch
        from transformers import Phi4MultimodalForCausalLM

        model = Phi4MultimodalForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
        model.load_adapter(f"{folder}/speech-lora")
        return model

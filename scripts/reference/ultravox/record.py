"""Goldens of Ultravox, computed by its authors' code (github.com/fixie-ai/ultravox), into tests/goldens.

git clone https://github.com/fixie-ai/ultravox CODE && git -C CODE checkout 648efe7
python -m venv reference && reference/bin/pip install -r scripts/reference/ultravox/requirements.txt
reference/bin/python scripts/reference/ultravox/record.py CODE

The code runs as it is. Models are put together as it does it: a text model and a Whisper in folders of their own, and a
config that names both; then all weights are replaced by random ones and saved as one checkpoint.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "scripts", ".")]
sys.path.insert(0, sys.argv[1])

import helpers  # noqa: E402
import helpers_ultravox  # noqa: E402
import record_parity  # noqa: E402
from random_weights import randomise  # noqa: E402
from safetensors.numpy import save_file as save_arrays  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from ultravox.model import ultravox_config, ultravox_model, ultravox_processing  # noqa: E402

COMMAND = "python scripts/reference/ultravox/record.py CODE"
CODE = "fixie-ai/ultravox 648efe7"
WHISPER = {
    "num_mel_bins": 16,
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "max_source_positions": 20,
    "decoder_layers": 1,
    "decoder_attention_heads": 3,
    "decoder_ffn_dim": 16,
    "vocab_size": 60,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 4,
}
TEXT = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,  # so that every sequence goes on to the end
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# By golden: text model, its settings, Ultravox's settings, and the frames that the features have (the window is 40),
# which is the seed of the weights too.
ROWS = {
    # as fixie-ai/ultravox-v0_5-llama-3_2-1b, whose text model ties its output layer
    "ultravox_llama": (
        "llama",
        {"tie_word_embeddings": True, "rope_theta": 500000.0, "rope_scaling": LLAMA3, "head_dim": 8},
        {"projector_ln_mid": True},
        40,
    ),
    # as v0_4_1-mistral-nemo, whose heads are narrower than its width over their number
    "ultravox_mistral": ("mistral", {"head_dim": 6, "sliding_window": None}, {"projector_ln_mid": False}, 37),
    "ultravox_qwen2": (
        "qwen2",
        {"num_hidden_layers": 2},
        {"projector_ln_mid": True, "audio_latency_block_size": 5, "projector_act": "gelu", "stack_factor": 3},
        38,
    ),
    # as v0_6-qwen-3-32b, which normalises queries and keys
    "ultravox_qwen3": ("qwen3", {"head_dim": 10}, {"projector_ln_mid": True, "projector_act": "silu"}, 33),
}


def make_model(kind: str, text: dict, settings: dict, seed: int, folder: Path) -> ultravox_model.UltravoxModel:
    """A reference model in float32 from a text model and a Whisper that it reads from folders."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **{**TEXT, "tie_word_embeddings": False, **text})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "text")
    whisper = transformers.WhisperConfig(**WHISPER)
    transformers.WhisperForConditionalGeneration(whisper).save_pretrained(folder / "whisper")
    config = ultravox_config.UltravoxConfig(
        text_model_id=str(folder / "text"),
        audio_model_id=str(folder / "whisper"),
        hidden_size=60,
        torch_dtype=torch.float32,
        attn_implementation="eager",
        **settings,
    )
    return randomise(ultravox_model.UltravoxModel(config).float().eval())


def save_whole(model: ultravox_model.UltravoxModel, folder: Path) -> None:
    """Save all weights, rounded to bfloat16, with the configs of text model and Whisper inside the checkpoint's own."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    tied = model.config.text_config.tie_word_embeddings
    state = {n: v.bfloat16() for n, v in model.state_dict().items() if not (tied and n.endswith("lm_head.weight"))}
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    config.text_model_id = config.audio_model_id = None
    config.text_config._name_or_path, config.audio_config._name_or_path = "text", "whisper"
    config.architectures, config.torch_dtype = ["UltravoxModel"], torch.bfloat16
    config.save_pretrained(folder)
    (folder / "ultravox_config.py").unlink()  # the reference adds its own code
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"recorded_by": COMMAND}, indent=1) + "\n")
    save_file({n: v.contiguous() for n, v in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def record_case(model: ultravox_model.UltravoxModel, inputs: dict) -> dict:
    """A recording, with the outputs of encoder and projector, which the reference calls past PyTorch's hooks."""
    arrays = helpers.record_case(model, inputs, new_tokens=24)
    if "audio_values" in inputs:
        stages = {"encoder": model.audio_tower.layer_norm, "projector": model.multi_modal_projector.ln_post}
        handles = [
            module.register_forward_hook(lambda _, __, output, stage=stage: arrays.update({stage: output.numpy()}))
            for stage, module in stages.items()
        ]
        with torch.no_grad():
            model(**helpers.to_torch(inputs))
        for handle in handles:
            handle.remove()
    return arrays


def record_processor(file: Path) -> None:
    """What the reference's processor makes of `helpers_ultravox.processor_cases`."""
    tokenizer = helpers_ultravox.tokenizer()
    with tempfile.TemporaryDirectory() as folder:  # of a tokenizer that is asked for and not used
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text('{"<|endoftext|>": 0}')
        merges.write_text("#version: 0.2\n")
        unused = transformers.WhisperTokenizer(str(vocabulary), str(merges))
    whisper = transformers.WhisperProcessor(helpers_ultravox.feature_extractor(), unused)
    processor = ultravox_processing.UltravoxProcessor(whisper, tokenizer)
    arrays = {}
    for case, (text, clips) in helpers_ultravox.processor_cases().items():
        outputs = processor(text=text, audios=clips, sampling_rate=16000, return_tensors="np")
        arrays |= {f"{case}.{n}": np.ascontiguousarray(helpers_ultravox.sampled(n, v)) for n, v in outputs.items()}
    facts = {"command": COMMAND, "code": CODE, "transformers": transformers.__version__, "torch": torch.__version__}
    save_arrays(arrays, file, metadata=facts)


def main() -> None:
    """Write every golden."""
    goldens = ROOT / "tests" / "goldens"
    record_processor(goldens / "ultravox_processor.safetensors")
    for name, (kind, text, settings, frames) in ROWS.items():
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(kind, text, settings, frames, Path(folder))
            save_whole(model, goldens / name)
        stack = model.config.stack_factor
        for case, inputs in helpers_ultravox.cases(frames, stack).items():
            arrays = record_case(model, inputs())
            file = goldens / name / f"{case.replace(' ', '_')}.safetensors"
            record_parity.save(arrays, file, model, command=COMMAND, code=CODE)
        again = ultravox_model.UltravoxModel.from_pretrained(goldens / name, torch_dtype=torch.float32)
        error = max((a - b).abs().max() for a, b in zip(again.parameters(), model.parameters()))
        print(f"{name}: read again by the reference, parameters differ by {error:.1g}")


if __name__ == "__main__":
    main()

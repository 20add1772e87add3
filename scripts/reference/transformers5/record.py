"""Goldens of what only transformers 5 has, or only it saves so, into tests/goldens.

python -m venv reference && reference/bin/pip install -r scripts/reference/transformers5/requirements.txt
reference/bin/python scripts/reference/transformers5/record.py  # or some of them: record.py glmasr qwen3_asr
"""

import copy
import json
import platform
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import save_file
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    GenerationConfig,
    WhisperFeatureExtractor,
)

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "scripts", "")]

import helpers  # noqa: E402
import helpers_audioflamingo3 as flamingo  # noqa: E402
import helpers_finetune  # noqa: E402
import helpers_transformers5 as newer  # noqa: E402
import record_parity  # noqa: E402
from random_weights import randomise  # noqa: E402

COMMAND = "python scripts/reference/transformers5/record.py"


def write(folder: Path, model, cases: dict) -> None:
    """A checkpoint with weights rounded to bfloat16, half the bytes, and a recording of each case in float32."""
    copy.deepcopy(model).bfloat16().save_pretrained(folder)  # a copy, because this rounds buffers as well
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    for case, inputs in cases.items():
        arrays = helpers.record_case(model, inputs(), new_tokens=24)
        if model.config.model_type == "musicflamingo":  # whose rows are rotated between the two: here in the encoder
            arrays.pop("encoder", None)
        record_parity.save(arrays, folder / f"{case.replace(' ', '_')}.safetensors", model, command=COMMAND)


def audioflamingo3() -> AudioFlamingo3ForConditionalGeneration:
    """The sizes of the other tiny models, the published rotary base, and the published generation settings."""
    sizes = helpers.tiny_config()
    text = {**sizes.text_config.to_dict(), "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    audio = {
        "hidden_size": sizes.audio_config.d_model,
        "num_hidden_layers": sizes.audio_config.encoder_layers,
        "num_attention_heads": sizes.audio_config.encoder_attention_heads,
        "intermediate_size": sizes.audio_config.encoder_ffn_dim,
        "num_mel_bins": helpers.MEL_BINS,
        "max_source_positions": helpers.FRAMES // 2,
    }
    config = AudioFlamingo3Config(audio_config=audio, text_config=text, audio_token_id=helpers.AUDIO_TOKEN)
    torch.manual_seed(0)
    model = AudioFlamingo3ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05
    )
    return randomise(model)


def write_finetuning(folder: Path, base: Path) -> None:
    """The adapter that twenty steps begin with, and in steps.safetensors their losses and the adapter they end with."""
    model = AudioFlamingo3ForConditionalGeneration.from_pretrained(base, dtype="float32", attn_implementation="eager")
    micro_batches = helpers_finetune.labelled(flamingo.model_cases())
    losses, adapter = helpers_finetune.torch_lora(model, micro_batches, folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base.relative_to(ROOT))
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    facts = {"command": COMMAND, "torch": torch.__version__, "transformers": transformers.__version__}
    facts["peft"] = peft.__version__
    arrays = {**adapter, "losses": np.array(losses)}
    save_file(arrays, folder / "steps.safetensors", metadata={"facts": json.dumps(facts)})


def write_processor(folder: Path) -> None:
    """A processor's files, and what it makes of every case; of the large features of the published sizes a sample."""
    extractor = WhisperFeatureExtractor(
        feature_size=flamingo.MELS, chunk_length=flamingo.WINDOW, return_attention_mask=True
    )
    processor = AudioFlamingo3Processor(
        extractor, flamingo.tokenizer(), chat_template=flamingo.TEMPLATE, max_audio_len=flamingo.LONGEST
    )
    processor.save_pretrained(folder)
    arrays = {}
    for case, (method, arguments) in flamingo.processor_cases().items():
        outputs = getattr(processor, method)(**arguments)
        arrays |= {f"{case}.{name}": value.numpy() for name, value in outputs.items()}
    published = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    outputs = AudioFlamingo3Processor(published, flamingo.tokenizer())(**flamingo.real_case())
    for name, value in outputs.items():
        arrays[f"real.{name}"] = flamingo.sample(value.numpy()) if name == "input_features" else value.numpy()
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}  # save_file writes memory as it is

    ids = [flamingo.tokenizer()(answer)["input_ids"] for answer in flamingo.ANSWERS]
    facts = {
        "decoded": processor.batch_decode(ids, skip_special_tokens=True, strip_prefix=True),
        "prompts": processor.apply_transcription_request(["a.wav", "b.wav"], tokenize=False),
        "command": COMMAND,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    save_file(arrays, folder / "outputs.safetensors", metadata={"facts": json.dumps(facts)})


CLASSES = {"glmasr": "GlmAsr", "musicflamingo": "MusicFlamingo", "qwen3_asr": "Qwen3ASR"}


def newer_model(family: str):
    """A model of a family that `helpers_transformers5` describes; no token ends its text."""
    config_class = getattr(transformers, f"{CLASSES[family]}Config")
    model_class = getattr(transformers, f"{CLASSES[family]}ForConditionalGeneration")
    torch.manual_seed(newer.SEEDS[family])
    model = model_class._from_config(config_class(**newer.config(family)), attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    return randomise(model)


def write_newer_processor(folder: Path, family: str) -> None:
    """A processor's files, what it makes of each clip alone, and its requests for transcriptions."""
    if family == "qwen3_asr":
        extractor = transformers.Qwen3ASRFeatureExtractor(feature_size=newer.MELS)
    else:
        extractor = WhisperFeatureExtractor(
            feature_size=newer.MELS, chunk_length=newer.WINDOW, return_attention_mask=True
        )
    processor = getattr(transformers, f"{CLASSES[family]}Processor")(
        extractor, newer.tokenizer(family), chat_template=newer.TEMPLATES[family]
    )
    processor.save_pretrained(folder)
    arrays, facts = {}, {"command": COMMAND, "torch": torch.__version__, "transformers": transformers.__version__}
    for number, (prompt, clip) in enumerate(zip(newer.prompts_of(family), newer.clips_of(family))):
        outputs = processor(text=[prompt], audio=[clip], output_labels=True, sampling_rate=16_000)
        arrays |= {f"{number}.{name}": value.numpy() for name, value in outputs.items()}
    if family != "musicflamingo":
        facts["prompts"] = processor.apply_transcription_request(["a.wav", "b.wav"], tokenize=False)
    if family == "qwen3_asr":
        told = {"language": ["de", None], "prompt": [None, "Kowalski, MindSpore"]}
        facts["told"] = processor.apply_transcription_request(["a.wav", "b.wav"], tokenize=False, **told)
        facts["parsed"] = processor.parse_output(newer.ANSWERS)
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    save_file(arrays, folder / "outputs.safetensors", metadata={"facts": json.dumps(facts)})


def main() -> None:
    """Write every golden, or those of the families that are named."""
    goldens, named = ROOT / "tests" / "goldens", sys.argv[1:]
    if not named or "qwen2_audio" in named:
        model = helpers.torch_model(helpers.tiny_config())
        write(goldens / "qwen2_audio_transformers5", model, helpers.qwen2_audio_cases())
    if not named or "audioflamingo3" in named:
        write(goldens / "audioflamingo3", audioflamingo3(), flamingo.model_cases())
        write_finetuning(goldens / "audioflamingo3_lora", goldens / "audioflamingo3")
        write_processor(goldens / "audioflamingo3_processor")
    for family in newer.FAMILIES:
        if not named or family in named:
            write(goldens / family, newer_model(family), newer.model_cases(family))
            write_newer_processor(goldens / f"{family}_processor", family)


if __name__ == "__main__":
    main()

"""Tiny Qwen2.5-Omni checkpoints: the PyTorch thinker, a whole model around it, and the files of a processor."""

import json
from collections.abc import Callable
from pathlib import Path

import helpers
import numpy as np
import torch
from helpers_processor import SPECIAL_TOKENS, byte_tokenizer
from random_weights import randomise
from safetensors.numpy import load_file, save_file
from transformers import Qwen2_5OmniThinkerConfig, WhisperFeatureExtractor
from transformers import Qwen2_5OmniThinkerForConditionalGeneration as TorchThinker

WINDOW = 8  # frames that are encoded by themselves
# What the text_config has of its own, and a seed with which the model does not repeat one token for ever.
VARIANTS = {
    "grouped": ({}, 0),
    "tied": ({"tie_word_embeddings": True, "num_key_value_heads": 6, "rope_theta": 1e6}, 1),
}
# What the published template does: the system prompt first, a clip between its begin and end.
TEMPLATE = """\
{%- if messages[0].role != "system" -%}
  {{ "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" }}
{%- endif -%}
{%- for turn in messages -%}
  {{ "<|im_start|>" ~ turn.role ~ "\\n" }}
  {%- if turn.content is string -%}
    {{ turn.content }}
  {%- else -%}
    {%- for part in turn.content -%}
      {{ "<|audio_bos|><|AUDIO|><|audio_eos|>" if part.type == "audio" else part.text }}
    {%- endfor -%}
  {%- endif -%}
  {{ "<|im_end|>\\n" }}
{%- endfor -%}
{{ "<|im_start|>assistant\\n" if add_generation_prompt }}"""


def tokenizer():
    """Byte-level, with the published special tokens of audio."""
    return byte_tokenizer(SPECIAL_TOKENS, eos_token="<|im_end|>")


def tiny_omni_config(text: dict | None = None, audio: dict | None = None, **top) -> Qwen2_5OmniThinkerConfig:
    """A row of 40 frames has five windows."""
    sizes = helpers.tiny_config()
    encoder, decoder = sizes.audio_config.to_dict(), sizes.text_config.to_dict()
    names = ("num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
    kept = {name: encoder[name] for name in (*names, "max_source_positions")}
    words = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    rope = {"mrope_section": [2, 1, 1], "rope_type": "default", "type": "default"}
    more = {name: decoder[name] for name in (*words, "num_key_value_heads", "max_position_embeddings")}
    return Qwen2_5OmniThinkerConfig(
        audio_config={**kept, "n_window": WINDOW // 2, "output_dim": decoder["hidden_size"], **(audio or {})},
        text_config={**more, "rope_scaling": rope, **(text or {})},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 48},
        **{"audio_token_index": helpers.AUDIO_TOKEN, "vision_start_token_id": 91, "vision_end_token_id": 92, **top},
    )


def torch_omni(config: Qwen2_5OmniThinkerConfig, seed: int = 0) -> TorchThinker:
    """A PyTorch thinker in fp32 whose weights are large enough that logits are far from flat."""
    torch.manual_seed(seed)
    return randomise(TorchThinker._from_config(config, attn_implementation="eager").eval())


def omni_cases() -> dict[str, Callable[[], dict]]:
    """Clips of several rows, of a whole one, and of a few frames; 39 and 101 end within a window, 9 with one frame."""
    lengths = [101, 39, 9, 80]
    rng = np.random.default_rng(6)
    features = rng.normal(size=(4, helpers.MEL_BINS, max(lengths))).astype(np.float32)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int32)
    one, text = helpers.prompt([1, "a101", 9], 2), helpers.prompt([4], 3)
    three = helpers.prompt([2, "a39", 1, "a9", 1, "a80", 2], 4)

    def clips(part: slice) -> dict[str, np.ndarray]:
        return {"input_features": features[part], "feature_attention_mask": mask[part]}

    return {
        "one clip": lambda: {**helpers.batch([one]), **clips(slice(1))},
        "text only": lambda: helpers.batch([text]),
        "three clips": lambda: {**helpers.batch([three]), **clips(slice(1, None))},
        "batch": lambda: {**helpers.batch([one, text, three]), **clips(slice(None))},
    }


def write_whole(thinker: Path, folder: Path, shards: int = 1) -> Path:
    """A thinker's checkpoint as the published repositories have it: below "thinker.", with what sees and speaks.

    shards: 1 for a single file, 2 for an index with the thinker in one file and the rest in another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((thinker / "config.json").read_text())
    whole = {"model_type": "qwen2_5_omni", "architectures": ["Qwen2_5OmniModel"], "thinker_config": config}
    whole |= {"talker_config": {"model_type": "qwen2_5_omni_talker"}, "enable_audio_output": True}
    (folder / "config.json").write_text(json.dumps(whole))
    tensors = {f"thinker.{name}": value for name, value in load_file(thinker / "model.safetensors").items()}
    rest = {f"{part}.weight": np.ones((3, 2), np.float32) for part in ("talker.model", "token2wav.dit")}
    if shards == 1:
        save_file(tensors | rest, folder / "model.safetensors", {"format": "pt"})
        return folder
    files = {"model-00001-of-00002.safetensors": tensors, "model-00002-of-00002.safetensors": rest}
    for file, part in files.items():
        save_file(part, folder / file, {"format": "pt"})
    places = {name: file for file, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def write_processor(folder: Path, **extractor) -> Path:
    """The files of a processor; `extractor`: WhisperFeatureExtractor's arguments, by default 128 mels and 300 s."""
    from mindone_audio.models.qwen2_5_omni import Qwen2_5OmniProcessor

    feature_extractor = WhisperFeatureExtractor(**{"feature_size": 128, "chunk_length": 300, **extractor})
    Qwen2_5OmniProcessor(feature_extractor, tokenizer(), chat_template=TEMPLATE).save_pretrained(folder)
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni"}))
    return folder


def write_checkpoint(folder: Path) -> Path:
    """A whole checkpoint of random weights whose model hears what its processor makes, in windows of 2 s."""
    words = tokenizer()
    audio = {"num_mel_bins": 8, "max_source_positions": 1500, "n_window": 100, "encoder_layers": 1}
    text = {"vocab_size": len(words), "max_position_embeddings": 4096, "num_hidden_layers": 1}
    model = torch_omni(tiny_omni_config(text, audio, audio_token_index=words.convert_tokens_to_ids("<|AUDIO|>")))
    model.generation_config.eos_token_id = words.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = words.pad_token_id
    model.save_pretrained(folder)
    return write_processor(folder, feature_size=8)

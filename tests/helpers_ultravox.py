"""Inputs of tiny Ultravox models and processors, and checkpoints as the hub has them: for tests and the recorder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from helpers import batch
from helpers_processor import byte_tokenizer, tone
from safetensors.numpy import load_file, save_file
from transformers import WhisperFeatureExtractor

GOLDENS = Path(__file__).parent / "goldens"
MEL_BINS = 16
EOS = 2  # fills the places of audio
SPECIAL_TOKENS = [f"<|{name}|>" for name in ("begin", "start", "end", "eot", "endoftext")]
# What Llama 3's template does, in short: content is one string, trimmed.
TEMPLATE = """\
{{- "<|begin|>" }}
{%- for turn in messages %}
  {{- "<|start|>" ~ turn.role ~ "<|end|>\\n\\n" ~ turn.content | trim ~ "<|eot|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|start|>assistant<|end|>\\n\\n" }}{% endif %}"""


def prompt(parts: list, stack: int, seed: int) -> tuple[list[int], list[int]]:
    """Token ids and the index at which each clip starts: an int n is n random text tokens, "a<frames>" a clip."""
    rng = np.random.default_rng(seed)
    ids, starts = [], []
    for part in parts:
        if isinstance(part, int):
            ids += rng.integers(3, 90, part).tolist()
        else:
            starts.append(len(ids))
            ids += [EOS] * -(-int(part[1:]) // (2 * stack))
    return ids, starts


def inputs(samples: list[list], frames: int, stack: int, seed: int) -> dict[str, np.ndarray]:
    """What Ultravox's processor and collator make of prompts with clips, features `frames` wide, padded on the left."""
    prompts = [prompt(parts, stack, seed + row) for row, parts in enumerate(samples)]
    tokens = batch([ids for ids, _ in prompts])
    width = tokens["input_ids"].shape[1]
    lens = np.array([int(part[1:]) for parts in samples for part in parts if isinstance(part, str)])
    if not len(lens):
        return tokens
    # The features of a clip depend on its length alone, so that a clip is the same in every case.
    values = [np.random.default_rng(length).normal(size=(MEL_BINS, frames)).astype(np.float32) for length in lens]
    return tokens | {
        "audio_values": np.stack(values),
        "audio_lens": lens,
        "audio_token_len": -(-lens // (2 * stack)),
        "audio_token_start_idx": np.array([s + width - len(ids) for ids, starts in prompts for s in starts]),
        "audio_batch_size": np.array([[len(starts)] for _, starts in prompts]),
    }


def cases(frames: int, stack: int) -> dict[str, Callable[[], dict]]:
    """The inputs that every row of tests/families.py has: clips of odd lengths, one of them as wide as the features."""
    one, text, three = [1, f"a{frames}", 9], [4], [2, "a9", 1, "a21", 1, f"a{frames - 4}", 2]
    return {
        "one clip": lambda: inputs([one], frames, stack, 2),
        "text only": lambda: inputs([text], frames, stack, 3),
        "three clips": lambda: inputs([three], frames, stack, 4),
        "batch": lambda: inputs([one, text, three], frames, stack, 2),
    }


def tokenizer():
    """Byte-level, with a template as Llama 3's; Llama 3 too ends a turn with its eos token and has no pad token."""
    made = byte_tokenizer(SPECIAL_TOKENS, eos_token="<|eot|>")
    made.chat_template = TEMPLATE
    return made


def feature_extractor() -> WhisperFeatureExtractor:
    """Few mels keep recordings small; windows are Whisper's of 30 s."""
    return WhisperFeatureExtractor(feature_size=4)


def processor_cases() -> dict[str, tuple[str, list[np.ndarray]]]:
    """By name: a text and its clips. The longest clip takes two windows, the shortest less than one hop."""
    return {
        "text": ("<|begin|>only text, café 你好", []),
        "one": ("<|begin|>Transcribe\n<|audio|>", [tone(0.517, seed=1)]),
        "several": (
            "<|audio|><|audio|> and <|audio|>",
            [tone(0.1, seed=2), tone(0.005, seed=3), tone(0.333, seed=4)],
        ),
        "long": ("before <|audio|> between <|audio|> after", [tone(31.007, seed=5), tone(1, seed=6)]),
    }


def sampled(name: str, value: np.ndarray) -> np.ndarray:
    """Of features wider than two seconds every 50th frame, and all around the ends of the clips of "long"."""
    if name != "audio_values" or value.shape[2] < 200:
        return value
    kept = sorted({*range(0, value.shape[2], 50), *range(94, 106), *range(2990, 3000)} & set(range(value.shape[2])))
    return np.ascontiguousarray(value[:, :, kept])


def write_checkpoint(folder: Path, window: int = 60) -> Path:
    """A tiny random checkpoint as v0.5's repository: encoder and projector, and where its language model is.

    folder gets `ultravox`, whose tokenizer is `tokenizer()`, and `text`. window: of the encoder, in mel frames.
    """
    from mindspore import set_seed

    from mindone_audio import UltravoxConfig, UltravoxForConditionalGeneration, to_mindspore

    set_seed(0)
    text = {
        **{"model_type": "llama", "vocab_size": 272, "hidden_size": 32, "intermediate_size": 48},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
        **{"max_position_embeddings": 1024, "eos_token_id": 259},
    }
    audio = {
        **{"model_type": "whisper", "_name_or_path": "whisper-tiny", "num_mel_bins": 8, "d_model": 16},
        **{"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24},
        "max_source_positions": window // 2,
    }
    model = UltravoxForConditionalGeneration(
        UltravoxConfig(audio_config=audio, text_config=text, hidden_size=40, projector_ln_mid=True)
    )
    rng = np.random.default_rng(0)
    for parameter in model.get_parameters():  # large enough that answers depend on what was said
        if parameter.ndim > 1 and "embed_positions" not in parameter.name:
            width = np.prod(parameter.shape[1:]) if "embed_tokens" not in parameter.name else 1
            parameter.set_data(to_mindspore(rng.normal(0, 1.6 / width**0.5, parameter.shape).astype(np.float32)))
    whole = folder / "whole"
    model.save_pretrained(whole)
    split_checkpoint(whole, folder, audio=False)
    shutil.rmtree(whole)
    tokenizer().save_pretrained(folder / "ultravox")
    return folder / "ultravox"


def split_checkpoint(whole: Path, folder: Path, audio: bool = True, whisper_prefix: str = "model.encoder.") -> Path:
    """Divide a whole checkpoint among `folder`'s ultravox, text and, if `audio`, whisper, as the hub has them."""
    config = json.loads((whole / "config.json").read_text())
    tensors = load_file(whole / "model.safetensors")
    parts = {"ultravox": {}, "text": {}, "whisper": {}}
    for name, value in tensors.items():
        if name.startswith("language_model."):
            parts["text"][name.removeprefix("language_model.")] = value
        elif name.startswith("audio_tower.") and audio:
            parts["whisper"][whisper_prefix + name.removeprefix("audio_tower.")] = value
        else:
            parts["ultravox"][name] = value
    configs = {"ultravox": config, "text": config.pop("text_config")}
    config["text_model_id"] = str(folder / "text")
    if audio:
        # Whisper's own decoder, which must not be taken for something of Ultravox's
        parts["whisper"] |= {"model.decoder.layer_norm.weight": np.ones(24, np.float32)}
        parts["whisper"] |= {"proj_out.weight": np.ones((60, 24), np.float32)}
        configs["whisper"] = config.pop("audio_config")
        config["audio_model_id"] = str(folder / "whisper")
    for part, contents in configs.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(contents))
        save_file(parts[part], folder / part / "model.safetensors", metadata={"format": "pt"})
    (folder / "text" / "generation_config.json").write_text('{"eos_token_id": [259, 260]}')
    return folder / "ultravox"

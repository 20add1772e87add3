"""Inputs of families that only transformers 5 has, for the tests and for what records their references."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import helpers
import helpers_audioflamingo3 as flamingo
import numpy as np
from helpers_processor import byte_tokenizer, tone

GOLDENS = Path(__file__).parent / "goldens"
WINDOW, MELS = 2, 8  # s and bins of the processors, which keep recordings small
FAMILIES = ("glmasr", "musicflamingo", "qwen3_asr")
SEEDS = {"glmasr": 3, "musicflamingo": 0, "qwen3_asr": 10}  # with which a model does not repeat one token for ever
SPECIAL_TOKENS = {
    "glmasr": ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|pad|>", "<|begin_of_audio|>", "<|end_of_audio|>"],
    "musicflamingo": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<sound>", "<|sound_bos|>", "<|sound_eos|>"],
    "qwen3_asr": [
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_pad|>", "<|audio_end|>"),
        "<asr_text>",
    ],
}
CLIPS = {
    "glmasr": "<|begin_of_audio|><|pad|><|end_of_audio|>",
    "musicflamingo": "<sound>",
    "qwen3_asr": "<|audio_start|><|audio_pad|><|audio_end|>",
}
ENDS = {"glmasr": "<|user|>", "musicflamingo": "<|im_end|>", "qwen3_asr": "<|im_end|>"}
# What the published templates do, as far as these tests ask.
_CHATML = """\
{%- for turn in messages -%}
  {{ "<|im_start|>" ~ turn.role ~ "\\n" }}
  {%- if turn.content is string -%}
    {{ turn.content }}
  {%- else -%}
    {%- for part in turn.content -%}
      {{ "CLIP" if part.type == "audio" else part.text }}
    {%- endfor -%}
  {%- endif -%}
  {{ "" if loop.last and continue_final_message is defined and continue_final_message else "<|im_end|>\\n" }}
{%- endfor -%}
{{ "<|im_start|>assistant\\n" if add_generation_prompt }}"""
TEMPLATES = {
    "glmasr": """\
{%- for turn in messages -%}
  {{ "<|" ~ turn.role ~ "|>\\n" }}
  {%- for part in turn.content -%}
    {{ "CLIP<|user|>\\n" if part.type == "audio" else part.text }}
  {%- endfor -%}
{%- endfor -%}
{{ "<|assistant|>\\n" if add_generation_prompt }}""".replace("CLIP", CLIPS["glmasr"]),
    "musicflamingo": flamingo.TEMPLATE,
    "qwen3_asr": _CHATML.replace("CLIP", CLIPS["qwen3_asr"]),
}
ANSWERS = [
    "language English<asr_text>Good morning.",
    "language None<asr_text>",
    "just text",
    "",
    "<asr_text> only what is said ",
    "language Chinese<asr_text>你好",
]
CHUNK = 100  # frames that Qwen3-ASR's convolutions take, as in the published ones; here two of them are a window


def tokenizer(family: str):
    """Byte-level, with the published special tokens."""
    words = byte_tokenizer(SPECIAL_TOKENS[family], eos_token=ENDS[family])
    if family == "qwen3_asr":  # as its tokenizer_config.json names them
        words.audio_bos_token, words.audio_token, words.audio_eos_token = SPECIAL_TOKENS[family][3:6]
    return words


def config(family: str) -> dict:
    """The sizes of the other tiny models, as config.json has them."""
    sizes = helpers.tiny_config()
    audio, text = sizes.audio_config, sizes.text_config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    words = {name: text[name] for name in (*names, "num_key_value_heads", "max_position_embeddings")}
    words |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    both = {"audio_token_id": helpers.AUDIO_TOKEN}
    if family == "glmasr":
        encoder = {
            **{"num_mel_bins": helpers.MEL_BINS, "hidden_size": audio.d_model, "intermediate_size": 4 * audio.d_model},
            **{"num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": helpers.FRAMES // 2},
        }
        decoder = {**words, "model_type": "llama", "head_dim": 10, "eos_token_id": None, "bos_token_id": None}
        return {"audio_config": encoder, "text_config": decoder, **both}
    if family == "musicflamingo":
        encoder = {
            **{"model_type": "audioflamingo3_encoder", "hidden_size": audio.d_model, "num_hidden_layers": 2},
            **{"num_attention_heads": 3, "intermediate_size": 40, "num_mel_bins": helpers.MEL_BINS},
            "max_source_positions": helpers.FRAMES // 2,
        }
        decoder = {**words, "model_type": "qwen2", "tie_word_embeddings": False}
        return {"audio_config": encoder, "text_config": decoder, **both}
    encoder = {
        **{"num_mel_bins": helpers.MEL_BINS, "d_model": audio.d_model, "encoder_layers": 2, "encoder_ffn_dim": 40},
        **{"encoder_attention_heads": 3, "n_window": CHUNK // 2, "n_window_infer": 2 * CHUNK, "output_dim": 48},
        **{"downsample_hidden_size": 6, "max_position_embeddings": 13},
    }
    decoder = {**words, "model_type": "qwen3", "head_dim": 10}
    both["tie_word_embeddings"] = False  # the published ones tie, as GLM-ASR does here, but then this one says one word
    return {"audio_config": encoder, "text_config": decoder, "eos_token_id": 95, "pad_token_id": helpers.PAD, **both}


def model_cases(family: str) -> dict[str, Callable[[], dict]]:
    """Clips that end within a window and of several windows, one text, and all of them in a batch."""
    if family == "musicflamingo":
        return flamingo.model_cases()
    if family == "glmasr":
        lengths, tokens = [40, 40, 21, 9, 40, 33], {101: 12, 9: 1, 73: 9}
        clips = helpers.clips(lengths, 2)
        features = {"input_features": clips["input_features"], "input_features_mask": clips["feature_attention_mask"]}
        parts, frames = (slice(3), slice(3, None)), (101, 9, 73)
    else:
        lengths, tokens = [501, 139, 9, 200], {501: 66, 139: 18, 9: 2, 200: 26}
        rng, width = np.random.default_rng(6), 600
        mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)
        values = (rng.normal(size=(4, helpers.MEL_BINS, width)) * mask[:, None]).astype(np.float32)
        features = {"input_features": values, "input_features_mask": mask}
        parts, frames = (slice(1), slice(1, None)), (501, 139, 9, 200)

    def prompt(*pieces: int, seed: int) -> list[int]:
        words = np.random.default_rng(seed)
        rows = [
            words.integers(3, helpers.AUDIO_TOKEN, n) if n > 0 else [helpers.AUDIO_TOKEN] * tokens[-n] for n in pieces
        ]
        return np.concatenate(rows).astype(int).tolist()

    one, text = prompt(1, -frames[0], 9, seed=2), prompt(4, seed=3)
    three = prompt(2, *(piece for length in frames[1:] for piece in (-length, 1)), 2, seed=4)
    first, rest = ({name: value[part] for name, value in features.items()} for part in parts)
    return {
        "one clip": lambda: {**helpers.batch([one]), **first},
        "text only": lambda: helpers.batch([text]),
        "three clips": lambda: {**helpers.batch([three]), **rest},
        "batch": lambda: {**helpers.batch([one, text, three]), **features},
    }


def clips_of(family: str) -> list[np.ndarray]:
    """Clips of less than a window, of several, and of a whole number of frames."""
    return [tone(seconds, seed=i) for i, seconds in enumerate((0.7, 4.6, 1.0))]


def prompts_of(family: str) -> list[str]:
    """A prompt for each of `clips_of`."""
    return [f"{CLIPS[family]}{'x' * i}" for i in range(3)]


def write_checkpoint(family: str, folder: Path) -> Path:
    """A whole checkpoint: transformers 5's processor, a model of random weights that fits it, and where it stops."""
    from mindspore import Tensor

    from mindone_audio.models import model_class

    words, chosen = tokenizer(family), model_class({"model_type": family})
    sizes = json.loads((GOLDENS / family / "config.json").read_text())
    sizes["audio_config"].update(num_mel_bins=MELS)
    if family == "qwen3_asr":
        sizes["audio_config"].update(n_window_infer=800)
    else:
        sizes["audio_config"].update(max_source_positions=50 * WINDOW, max_position_embeddings=50 * WINDOW)
    sizes["text_config"].update(vocab_size=len(words), num_hidden_layers=1, layer_types=None)
    placeholder = {"glmasr": "<|pad|>", "musicflamingo": "<sound>", "qwen3_asr": "<|audio_pad|>"}[family]
    sizes["audio_token_id"] = words.convert_tokens_to_ids(placeholder)
    model, rng = chosen(chosen.config_class(**sizes)), np.random.default_rng(0)
    for _, parameter in model.parameters_and_names():  # as large as those of `random_weights`
        spread = 0.3 if parameter.ndim < 2 else 1.6 / np.prod(parameter.shape[1:]) ** 0.5
        values = rng.normal(parameter.ndim < 2 and parameter.name.endswith("weight"), spread, parameter.shape)
        parameter.set_data(Tensor(values.astype(np.float32)))
    model.save_pretrained(folder)
    for file in (GOLDENS / f"{family}_processor").iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    stops = {"eos_token_id": [words.convert_tokens_to_ids(ENDS[family])], "pad_token_id": words.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(stops))
    return folder

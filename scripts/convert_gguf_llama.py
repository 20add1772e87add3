"""Convert a Llama from GGUF (llama.cpp's format) to a Hugging Face folder, in float32.

    pip install gguf
    python scripts/convert_gguf_llama.py MODEL.gguf smollm2

Any quantisation that the package gguf can undo is undone. The numbers are then float32, as llama.cpp computes them: a
weight in 4 bits is a float16 scale times an integer plus a float16 offset, which bfloat16 and float16 would round.
Refused by name: other architectures, scaled positions, and tokenizers whose rules are not known here.
"""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from converted_folder import ConversionError, names_differ, run, write_json, write_weights
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

MODEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",  # absent where it is tied to the embeddings
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# By tokenizer.ggml.pre: how a text is divided before the pairs of bytes are merged.
PRE_TOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
CONTROL, USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
TOKENS = {
    **{"bos_token": "bos_token_id", "eos_token": "eos_token_id"},
    **{"unk_token": "unknown_token_id", "pad_token": "padding_token_id"},
}


def read(source: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metadata of a GGUF Llama, and its tensors in float32 by their names there."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise ConversionError("the package gguf is missing: pip install gguf") from error
    if not source.is_file():
        raise ConversionError(f"no file {source}: give a .gguf file")
    try:
        reader = GGUFReader(source)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise ConversionError(f"{source} is no whole GGUF file ({error}): get it again") from error
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise ConversionError(f"{source} is of the architecture {architecture!r}: only 'llama' converts")
    tensors = {}
    for tensor in reader.tensors:
        try:
            tensors[tensor.name] = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise ConversionError(f"{source}: {tensor.name} is {kind}, which gguf cannot undo: give another") from error
    return fields, tensors


def model_config(fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict:
    """config.json of the metadata; `ConversionError` where that lacks a size or asks for what Llama has not."""

    def value(name: str, default: Any = None) -> Any:
        found = fields.get(f"llama.{name}", default)
        if found is None:
            raise ConversionError(f"the file has no llama.{name}: get one that a newer llama.cpp has written")
        return float(str(np.float32(found))) if isinstance(found, float) else found  # 1e-05, not 9.99999975e-06

    width, heads = value("embedding_length"), value("attention.head_count")
    head_width = value("attention.key_length", width // heads)
    if (rotated := value("rope.dimension_count", head_width)) != head_width:
        raise ConversionError(f"llama.rope.dimension_count is {rotated} of {head_width}: Llama rotates whole heads")
    if (scaling := value("rope.scaling.type", "none")) != "none":
        raise ConversionError(f"llama.rope.scaling.type {scaling!r} does not convert: give a model without scaling")
    ids = {f"{ours[:3]}_token_id": fields.get(f"tokenizer.ggml.{theirs}") for ours, theirs in TOKENS.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "head_dim": head_width,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": value("feed_forward_length"),
        "max_position_embeddings": value("context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": value("block_count"),
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_theta": value("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": "float32",
        "vocab_size": len(fields.get("tokenizer.ggml.tokens") or []),
        **{name: number for name, number in ids.items() if number is not None and not name.startswith("unk")},
    }


def expected_shapes(config: dict) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By the names in GGUF: the names in transformers, and the shapes that the config asks for."""
    width, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        **{"attn_norm": (width,), "attn_q": (query, width), "attn_k": (key, width), "attn_v": (key, width)},
        **{"attn_output": (width, query), "ffn_norm": (width,), "ffn_gate": (inner, width), "ffn_up": (inner, width)},
        **{"ffn_down": (width, inner)},
    }
    found = {name: (ours, (width,) if "norm" in name else (rows, width)) for name, ours in MODEL.items()}
    if config["tie_word_embeddings"]:
        found.pop("output.weight")
    for number in range(config["num_hidden_layers"]):
        for theirs, ours in LAYER.items():
            found[f"blk.{number}.{theirs}.weight"] = (f"model.layers.{number}.{ours}.weight", shapes[theirs])
    return found


def to_hugging_face(tensors: dict[str, np.ndarray], config: dict) -> dict[str, np.ndarray]:
    """GGUF's tensors as those of transformers' Llama; `ConversionError` for any that is missing, unknown or misshapen.

    GGUF has the two numbers that a rotation turns side by side, transformers half a head apart: rows of queries and
    keys (heads, width / 2, 2) become (heads, 2, width / 2).
    """
    expected = expected_shapes(config)
    if problem := names_differ(set(tensors), set(expected)):
        raise ConversionError(f"the file {problem}: it is no plain Llama of {config['num_hidden_layers']} layers")
    made = {}
    for theirs, (ours, shape) in expected.items():
        value = tensors[theirs]
        if value.shape != shape:
            raise ConversionError(f"{theirs} has shape {value.shape}, and the metadata asks for {shape}: get it again")
        if re.search(r"attn_[qk]\.", theirs):
            pairs = value.reshape(-1, config["head_dim"] // 2, 2, value.shape[1])
            value = pairs.swapaxes(1, 2).reshape(shape)
        made[ours] = np.ascontiguousarray(value)
    return made


def make_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """The tokenizer of the metadata; `ConversionError` for one of other rules than `PRE_TOKENIZERS`."""
    kind, rules = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or rules not in PRE_TOKENIZERS or fields.get("tokenizer.ggml.add_bos_token"):
        begins = " that begins every text with a token" if fields.get("tokenizer.ggml.add_bos_token") else ""
        raise ConversionError(
            f"the tokenizer is {kind!r} with the rules {rules!r}{begins}: known is 'gpt2' with "
            f"{', '.join(map(repr, PRE_TOKENIZERS))}"
        )
    if missing := [name for name in ("tokens", "merges", "token_type") if not fields.get(f"tokenizer.ggml.{name}")]:
        raise ConversionError(f"the file has no tokenizer.ggml.{missing[0]}: get one with its tokenizer")
    words, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[rules]()
    tokenizer.decoder = decoders.ByteLevel()
    for word, kind in zip(words, kinds):
        if kind == CONTROL:
            tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(word, normalized=False)])
    return tokenizer


def tokenizer_config(fields: dict[str, Any], config: dict) -> dict:
    """tokenizer_config.json of the metadata, with its chat template."""
    words = fields["tokenizer.ggml.tokens"]
    ids = {ours: fields.get(f"tokenizer.ggml.{theirs}") for ours, theirs in TOKENS.items()}
    made = {
        **{token: words[number] for token, number in ids.items() if number is not None},
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    template = fields.get("tokenizer.chat_template")
    return made if template is None else made | {"chat_template": template}


def convert(source: Path, out: Path) -> None:
    """Write the Llama of the GGUF file `source` into the folder `out`; raises `ConversionError`."""
    fields, tensors = read(source)
    config = model_config(fields, tensors)
    tokenizer = make_tokenizer(fields)
    weights = to_hugging_face(tensors, config)
    write_json(out / "config.json", config)
    ends = ("bos_token_id", "eos_token_id", "pad_token_id")
    write_json(out / "generation_config.json", {name: config[name] for name in ends if name in config})
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", tokenizer_config(fields, config))
    write_weights(out, weights)


def main() -> int:
    """Parse the command line and convert."""
    return run(convert, __doc__, "a .gguf file of the architecture llama")


if __name__ == "__main__":
    sys.exit(main())

"""Convert a Whisper from CTranslate2 (faster-whisper's format) to a Hugging Face folder, which keeps its dtype.

    python scripts/convert_ctranslate2_whisper.py FOLDER whisper-tiny.en

FOLDER holds model.bin, config.json and tokenizer.json. Sizes come from the arrays, so every Whisper converts,
English-only or multilingual. Needs neither CTranslate2 nor PyTorch. Files with quantised weights are refused: their
float16 originals are published too. The spelling table of transformers' English normaliser (normalizer.json) is not
in these files, so it is not in the folder; without it `decode(..., normalize=True)` does not work.
"""

import json
import re
import struct
import sys
from pathlib import Path

import numpy as np
from converted_folder import ConversionError, names_differ, run, write_json, write_weights

FORMAT, SPECIFICATION, REVISION = 6, "WhisperSpec", 3
FLOATS = {0: np.dtype("<f4"), 4: np.dtype("<f2")}
DTYPES = {**FLOATS, 1: np.dtype("i1"), 2: np.dtype("<i2"), 3: np.dtype("<i4")}
OTHERS = 'give one converted with "--quantization float16"'

# Scalars that say how the model computes, with Whisper's values. 3 is the exact GELU, -1 the last layer.
SETTINGS = {
    **{"decoder/activation": 3, "decoder/alibi": 0, "decoder/alignment_heads": 1, "decoder/alignment_layer": -1},
    **{"decoder/pre_norm": 1, "decoder/scale_embeddings": 0, "decoder/start_from_zero_embedding": 0},
}
HEADS = {"encoder/num_heads", "decoder/num_heads"}
# CTranslate2's modules, and the modules of transformers whose arrays they hold one under the other.
ENDS = {"position_encodings": ("embed_positions",), "layer_norm": ("layer_norm",)}
ENCODER_START = {"conv1": ("conv1",), "conv2": ("conv2",)}
DECODER_START = {"embeddings": ("embed_tokens",)}
LAYER = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
CROSS_ATTENTION = {
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
}
TIED = {"decoder/projection/weight": "decoder/embeddings/weight"}

ENGLISH_VOCABULARY = 51864  # tokens of the English-only models; all others have more
RATE, HOP = 16_000, 160  # samples a second, and from one mel frame to the next
TIMESTAMP = 0.02  # seconds between two timestamp tokens


class Reader:
    """Numbers, texts and arrays of a file in their order; `ConversionError` where it ends too early."""

    def __init__(self, file: Path):
        self.file, self.data, self.position = file, file.read_bytes(), 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise ConversionError(
                f"{self.file} is cut off: it has {len(self.data)} bytes and goes on to {end} at least: get it again"
            )
        taken, self.position = memoryview(self.data)[self.position : end], end
        return taken

    def number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8", "replace")

    def array(self, name: str) -> np.ndarray:
        shape = [self.number("I") for _ in range(self.number("B"))]
        code, size = self.number("B"), self.number("I")
        if shape and code not in FLOATS:
            held = DTYPES[code].name if code in DTYPES else f"of dtype {code}"
            raise ConversionError(f"{self.file}: {name} is {held}, and only float16 and float32 convert: {OTHERS}")
        if code not in DTYPES or size != np.prod(shape, dtype=np.int64) * DTYPES[code].itemsize:
            found = f"{size} bytes for shape {shape} and dtype {code}"
            raise ConversionError(f"{self.file}: {name} has {found}: get it again")
        return np.frombuffer(self.take(size), DTYPES[code]).reshape(shape)


def read_model(file: Path) -> dict[str, np.ndarray]:
    """The variables of a CTranslate2 Whisper by their names there; output and embeddings are one."""
    if not file.is_file():
        raise ConversionError(f"no file {file}: give the folder with CTranslate2's model.bin")
    reader = Reader(file)
    known = f"only format {FORMAT}, {SPECIFICATION} {REVISION} is known"
    version = reader.number("I") if len(reader.data) >= 4 else None
    if version is None or version > 100:  # formats are counted from 1
        raise ConversionError(f"{file} is no model of CTranslate2: {known}")
    if version != FORMAT:
        raise ConversionError(f"{file} has CTranslate2's format {version}: {known}, so convert the model again")
    specification, revision = reader.text(), reader.number("I")
    if specification != SPECIFICATION:
        raise ConversionError(f"{file} is a {specification!r}, not a Whisper: {known}")
    if revision != REVISION:
        raise ConversionError(f"{file} is a {specification} of revision {revision}: {known}, so convert it again")
    variables = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        variables[name] = reader.array(name)
    aliases = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        aliases[name] = reader.text()
    if aliases != TIED:
        raise ConversionError(f"{file} shares {aliases}, and Whisper shares {TIED}: it is another model")
    return variables


def modules(part: str, layers: int) -> dict[str, tuple[str, ...]]:
    """CTranslate2's modules of the encoder or decoder and those of transformers, by their whole names."""
    encoder = part == "encoder"
    found = {**ENDS, **(ENCODER_START if encoder else DECODER_START)}
    for number in range(layers):
        for module, names in {**LAYER, **({} if encoder else CROSS_ATTENTION)}.items():
            found[f"layer_{number}/{module}"] = tuple(f"layers.{number}.{name}" for name in names)
    return {f"{part}/{module}": tuple(f"model.{part}.{name}" for name in names) for module, names in found.items()}


def leaves(module: str) -> dict[str, str]:
    """What the arrays of one of CTranslate2's modules are called there and in transformers."""
    if module.endswith("position_encodings"):
        return {"encodings": "weight"}
    if module.endswith("embeddings"):
        return {"weight": "weight"}
    if module.endswith("layer_norm"):
        return {"gamma": "weight", "beta": "bias"}
    return {"weight": "weight", "bias": "bias"}


def to_hugging_face(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """CTranslate2's variables as the tensors of transformers' Whisper; `ConversionError` for any that is not its."""
    tensors, expected = {}, {*SETTINGS, *HEADS}
    for part in ("encoder", "decoder"):
        for module, names in modules(part, max(1, _layers(variables, part))).items():
            for theirs, ours in leaves(module).items():
                expected.add(f"{module}/{theirs}")
                value = variables.get(f"{module}/{theirs}", np.empty(0))
                if not value.ndim or len(value) % len(names):
                    raise ConversionError(f"{module}/{theirs} of shape {value.shape} does not divide by {len(names)}")
                tensors |= {f"{name}.{ours}": rows for name, rows in zip(names, np.split(value, len(names)))}
    if problem := names_differ(set(variables), expected):
        raise ConversionError(f"the model {problem}: it is no Whisper as it is published")
    if wrong := {name: int(variables[name]) for name, value in SETTINGS.items() if variables[name] != value}:
        raise ConversionError(f"the model has {wrong}, where Whisper has others: it computes otherwise")
    for name in [name for name in tensors if name.endswith("k_proj.bias")]:
        if tensors.pop(name).any():
            raise ConversionError(f"the model has a bias {name}, where Whisper has none: it is another model")
    return tensors


def _layers(variables: dict[str, np.ndarray], part: str) -> int:
    return len({found[1] for name in variables if (found := re.match(rf"{part}/(layer_\d+)/", name))})


def model_config(variables: dict[str, np.ndarray], tokens: dict[str, int]) -> dict:
    """config.json, with the sizes of the arrays; tokens: ids of the special tokens by their text."""
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "d_model": width,
        "is_encoder_decoder": True,
        "max_source_positions": len(variables["encoder/position_encodings/encodings"]),
        "max_target_positions": len(variables["decoder/position_encodings/encodings"]),
        "num_hidden_layers": _layers(variables, "encoder"),
        "num_mel_bins": variables["encoder/conv1/weight"].shape[1],
        "scale_embedding": False,
        "torch_dtype": variables["decoder/embeddings/weight"].dtype.name,
        "vocab_size": vocabulary,
        **_ends(vocabulary, tokens),
    }
    for part in ("encoder", "decoder"):
        config |= {
            f"{part}_attention_heads": int(variables[f"{part}/num_heads"]),
            f"{part}_ffn_dim": len(variables[f"{part}/layer_0/ffn/linear_0/bias"]),
            f"{part}_layers": _layers(variables, part),
        }
    return config


def _ends(vocabulary: int, tokens: dict[str, int]) -> dict[str, int]:
    end, start = tokens["<|endoftext|>"], tokens["<|startoftranscript|>"]
    bos = start if vocabulary <= ENGLISH_VOCABULARY else end  # as the published configs have it
    return {"bos_token_id": bos, "decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": end}


def generation_config(spoken: dict, config: dict, tokens: dict[str, int]) -> dict:
    """generation_config.json as OpenAI's repositories have it; spoken: CTranslate2's config.json."""
    no_timestamps = tokens["<|notimestamps|>"]
    made = {
        **_ends(config["vocab_size"], tokens),
        "alignment_heads": spoken["alignment_heads"],
        "begin_suppress_tokens": spoken["suppress_ids_begin"],
        "is_multilingual": config["vocab_size"] > ENGLISH_VOCABULARY,
        "max_initial_timestamp_index": 50,
        "max_length": config["max_target_positions"],
        "no_timestamps_token_id": no_timestamps,
        "prev_sot_token_id": tokens["<|startofprev|>"],
        "return_timestamps": False,
        "suppress_tokens": spoken["suppress_ids"],
    }
    if not made["is_multilingual"]:
        return made | {"forced_decoder_ids": [[1, no_timestamps]]}
    tasks = {task: tokens[f"<|{task}|>"] for task in ("translate", "transcribe")}
    languages = range(tokens["<|startoftranscript|>"] + 1, min(tasks.values()))
    return made | {
        "forced_decoder_ids": [[1, None], [2, tasks["transcribe"]]],
        "lang_to_id": {token: number for token, number in tokens.items() if number in languages},
        "task_to_id": tasks,
    }


def read_tokenizer(file: Path, vocabulary: int) -> tuple[dict, dict[str, int]]:
    """tokenizer.json with a token for every timestamp, and the ids of its special tokens by their text.

    Raises `ConversionError` where it is not of a model with `vocabulary` tokens.
    """
    tokenizer = _read_json(file)
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    wanted = [
        *("<|endoftext|>", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>"),
        "<|notimestamps|>",
    ]
    if tokenizer.get("model", {}).get("type") != "BPE" or (missing := [word for word in wanted if word not in added]):
        lacking = ", ".join(missing) if tokenizer.get("model", {}).get("type") == "BPE" else "a BPE model"
        raise ConversionError(f"{file} lacks {lacking}: take the tokenizer.json of a Whisper of {vocabulary} tokens")
    first = added["<|notimestamps|>"] + 1
    if max(added.values()) >= vocabulary or first >= vocabulary:
        raise ConversionError(f"{file} has more tokens than the model, {vocabulary}: take the model's own")
    special = {word: number for word, number in added.items() if number < first}
    flags = {name: False for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    for number in range(first, vocabulary):
        content = f"<|{(number - first) * TIMESTAMP:.2f}|>"
        if content not in added:
            tokenizer["added_tokens"].append({"id": number, "content": content, **flags})
    return tokenizer, special


def _read_json(file: Path) -> dict:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConversionError(f"no file {file}: CTranslate2's folder holds it beside model.bin") from error
    except ValueError as error:
        raise ConversionError(f"{file} cannot be read ({error}): get it again") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{file} holds no JSON object: get it again")
    return value


def write_tokenizer(out: Path, tokenizer: dict, special: dict[str, int]) -> None:
    """The files that transformers' fast and slow Whisper tokenizers read."""
    end = "<|endoftext|>"
    ends = {name: end for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    words = sorted(special, key=special.get)  # WhisperTokenizer takes the last for the one before the timestamps
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    write_json(out / "tokenizer.json", tokenizer)
    write_json(out / "vocab.json", model["vocab"])
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")
    write_json(out / "added_tokens.json", {token["content"]: token["id"] for token in added})
    write_json(out / "special_tokens_map.json", {**ends, "additional_special_tokens": words})
    write_json(
        out / "tokenizer_config.json",
        {
            **ends,
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
            },
            "additional_special_tokens": words,
            "clean_up_tokenization_spaces": True,
            "errors": "replace",
            "model_max_length": 1024,
            "processor_class": "WhisperProcessor",
            "return_attention_mask": False,
            "tokenizer_class": "WhisperTokenizer",
        },
    )


def preprocessor_config(config: dict) -> dict:
    """preprocessor_config.json of log-mels for this encoder."""
    frames = 2 * config["max_source_positions"]
    return {
        "chunk_length": frames * HOP // RATE,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config["num_mel_bins"],
        "hop_length": HOP,
        "n_fft": 400,
        "n_samples": frames * HOP,
        "nb_max_frames": frames,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "WhisperProcessor",
        "return_attention_mask": False,
        "sampling_rate": RATE,
    }


def convert(source: Path, out: Path) -> None:
    """Write the Whisper of the folder `source` into the folder `out`; raises `ConversionError`."""
    variables = read_model(source / "model.bin")
    tensors = to_hugging_face(variables)
    spoken = _read_json(source / "config.json")
    if missing := [key for key in ("alignment_heads", "suppress_ids", "suppress_ids_begin") if key not in spoken]:
        raise ConversionError(f"{source / 'config.json'} lacks {', '.join(missing)}: take CTranslate2's own")
    tokenizer, special = read_tokenizer(source / "tokenizer.json", len(variables["decoder/embeddings/weight"]))
    config = model_config(variables, special)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", generation_config(spoken, config, special))
    write_json(out / "preprocessor_config.json", preprocessor_config(config))
    write_tokenizer(out, tokenizer, special)
    write_weights(out, tensors)


def main() -> int:
    """Parse the command line and convert."""
    return run(convert, __doc__, "CTranslate2's folder with model.bin, config.json and tokenizer.json")


if __name__ == "__main__":
    sys.exit(main())

"""The converters of published weights, on small files of their formats that are written here."""

import json
import re
import struct
import sys
from pathlib import Path

import convert_ctranslate2_whisper
import convert_gguf_llama
import gguf
import numpy as np
import pytest
import torch
from helpers import torch_llama
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizerFast,
)

SPECIAL = ["endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "startofprev", "notimestamps"]
TIED = {"decoder/projection/weight": "decoder/embeddings/weight"}


def run(converter, monkeypatch, capsys, source: Path, out: Path) -> tuple[int, str]:
    """A converter's exit status and what it prints: one line."""
    monkeypatch.setattr(sys, "argv", [Path(converter.__file__).name, str(source), str(out)])
    status = converter.main()
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("\n") == 1 and bool(printed.err) == (status != 0)
    return status, printed.out + printed.err


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Checks that a source is refused with a message, and that no folder is left."""

    def check(converter, source: Path, message: str) -> None:
        status, printed = run(converter, monkeypatch, capsys, source, tmp_path / "out")
        assert status == 2 and re.match(f"error: .*{message}", printed), printed
        assert not (tmp_path / "out").exists()

    return check


# CTranslate2's Whisper


def tiny_whisper(vocabulary: int) -> WhisperForConditionalGeneration:
    """Other numbers of layers, heads and widths in the encoder than in the decoder, in float16."""
    torch.manual_seed(0)
    config = WhisperConfig(
        **{"vocab_size": vocabulary, "num_mel_bins": 5, "d_model": 12, "max_source_positions": 100},
        **{"max_target_positions": 9, "encoder_layers": 1, "encoder_attention_heads": 3, "encoder_ffn_dim": 7},
        **{"decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 10},
        **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "decoder_start_token_id": 1},
        **{"suppress_tokens": None, "begin_suppress_tokens": None},
    )
    model = WhisperForConditionalGeneration(config).half()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def variables_of(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """A model's tensors as CTranslate2 has them, from the side of its modules."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    made = {}

    def put(module: str, *names: str) -> None:
        norm = module.endswith("layer_norm")
        made[f"{module}/{'gamma' if norm else 'weight'}"] = np.concatenate([state[f"{name}.weight"] for name in names])
        width = len(state[f"{names[0]}.weight"])
        biases = [state.get(f"{name}.bias", np.zeros(width, np.float16)) for name in names]  # keys have none
        made[f"{module}/{'beta' if norm else 'bias'}"] = np.concatenate(biases)

    for part in ("encoder", "decoder"):
        ours = f"model.{part}"
        put(f"{part}/layer_norm", f"{ours}.layer_norm")
        made[f"{part}/position_encodings/encodings"] = state[f"{ours}.embed_positions.weight"]
        made[f"{part}/num_heads"] = np.int16(getattr(model.config, f"{part}_attention_heads"))
        for number in range(getattr(model.config, f"{part}_layers")):
            theirs, layer = f"{part}/layer_{number}", f"{ours}.layers.{number}"
            put(f"{theirs}/self_attention/layer_norm", f"{layer}.self_attn_layer_norm")
            put(f"{theirs}/self_attention/linear_0", *(f"{layer}.self_attn.{name}_proj" for name in "qkv"))
            put(f"{theirs}/self_attention/linear_1", f"{layer}.self_attn.out_proj")
            put(f"{theirs}/ffn/layer_norm", f"{layer}.final_layer_norm")
            put(f"{theirs}/ffn/linear_0", f"{layer}.fc1")
            put(f"{theirs}/ffn/linear_1", f"{layer}.fc2")
            if part == "decoder":
                put(f"{theirs}/attention/layer_norm", f"{layer}.encoder_attn_layer_norm")
                put(f"{theirs}/attention/linear_0", f"{layer}.encoder_attn.q_proj")
                put(f"{theirs}/attention/linear_1", *(f"{layer}.encoder_attn.{name}_proj" for name in "kv"))
                put(f"{theirs}/attention/linear_2", f"{layer}.encoder_attn.out_proj")
    put("encoder/conv1", "model.encoder.conv1")
    put("encoder/conv2", "model.encoder.conv2")
    made["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    flags = {"activation": 3, "alibi": 0, "pre_norm": 1, "scale_embeddings": 0, "start_from_zero_embedding": 0}
    made |= {f"decoder/{name}": np.int8(value) for name, value in flags.items()}
    return made | {"decoder/alignment_heads": np.int16(1), "decoder/alignment_layer": np.int16(-1)}


def model_bin(variables: dict, version=6, specification="WhisperSpec", revision=3, aliases=None) -> bytes:
    """CTranslate2's file."""
    codes = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    content = struct.pack("<I", version) + text(specification) + struct.pack("<II", revision, len(variables))
    for name, value in variables.items():
        value = np.asarray(value)
        sizes = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        content += text(name) + sizes + struct.pack("<BI", codes[value.dtype.name], value.nbytes) + value.tobytes()
    aliases = TIED if aliases is None else aliases
    return content + struct.pack("<I", len(aliases)) + b"".join(text(word) for pair in aliases.items() for word in pair)


def write_ctranslate2(folder: Path, vocabulary: int, first: int) -> WhisperForConditionalGeneration:
    """A folder of a tiny model, whose special tokens begin at the id `first`; returns the model."""
    model = tiny_whisper(vocabulary)
    folder.mkdir()
    (folder / "model.bin").write_bytes(model_bin(variables_of(model)))
    rules = {"alignment_heads": [[1, 0], [1, 1]], "suppress_ids": [1, 2], "suppress_ids_begin": [220, first]}
    (folder / "config.json").write_text(json.dumps(rules | {"lang_ids": [first + 2]}))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<|{name}|>" for name in SPECIAL])
    content = json.loads(tokenizer.to_str())
    for number, token in enumerate(content["added_tokens"]):
        token["id"] = first + number
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return model


@pytest.fixture
def ctranslate2(tmp_path):
    """An English-only model with six timestamps: its folder, and the model."""
    return tmp_path / "whisper", write_ctranslate2(tmp_path / "whisper", 270, 256)


def test_whisper_is_the_model_again(ctranslate2, tmp_path, monkeypatch, capsys):
    source, model = ctranslate2
    status, printed = run(convert_ctranslate2_whisper, monkeypatch, capsys, source, tmp_path / "new" / "out")
    assert status == 0 and printed.endswith("MB\n")
    folder = tmp_path / "new" / "out"
    loaded, info = WhisperForConditionalGeneration.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info.values())
    assert loaded.dtype == torch.float16 and loaded.proj_out.weight is loaded.model.decoder.embed_tokens.weight
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    sizes = ("d_model", "num_mel_bins", "max_source_positions", "max_target_positions", "vocab_size")
    parts = [f"{part}_{field}" for part in ("encoder", "decoder") for field in ("layers", "attention_heads", "ffn_dim")]
    for field in (*sizes, *parts):
        assert getattr(loaded.config, field) == getattr(model.config, field), field
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {
        **{"bos_token_id": 257, "eos_token_id": 256, "pad_token_id": 256, "decoder_start_token_id": 257},
        **{"alignment_heads": [[1, 0], [1, 1]], "suppress_tokens": [1, 2], "begin_suppress_tokens": [220, 256]},
        **{"forced_decoder_ids": [[1, 263]], "no_timestamps_token_id": 263, "prev_sot_token_id": 262},
        **{"is_multilingual": False, "max_initial_timestamp_index": 50, "max_length": 9, "return_timestamps": False},
    }


def test_whispers_processor_loads(ctranslate2, tmp_path, monkeypatch, capsys):
    run(convert_ctranslate2_whisper, monkeypatch, capsys, ctranslate2[0], tmp_path / "out")
    processor = WhisperProcessor.from_pretrained(tmp_path / "out", local_files_only=True)
    extractor = processor.feature_extractor
    assert (extractor.feature_size, extractor.n_samples, extractor.nb_max_frames) == (5, 32_000, 200)
    for tokenizer in (processor.tokenizer, WhisperTokenizerFast.from_pretrained(tmp_path / "out")):
        assert len(tokenizer) == 270 and tokenizer.eos_token_id == tokenizer.pad_token_id == 256
        assert tokenizer.convert_tokens_to_ids(["<|notimestamps|>", "<|0.00|>", "<|0.10|>"]) == [263, 264, 269]
        assert tokenizer.decode(tokenizer("héllo")["input_ids"], skip_special_tokens=True) == "héllo"


def test_a_multilingual_whisper(tmp_path, monkeypatch, capsys):
    write_ctranslate2(tmp_path / "whisper", 51_865, 50_257)
    status, printed = run(convert_ctranslate2_whisper, monkeypatch, capsys, tmp_path / "whisper", tmp_path / "out")
    assert status == 0, printed
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["is_multilingual"] is True and generation["bos_token_id"] == 50_257
    assert generation["lang_to_id"] == {"<|en|>": 50_259, "<|de|>": 50_260}
    assert generation["task_to_id"] == {"translate": 50_261, "transcribe": 50_262}
    assert generation["forced_decoder_ids"] == [[1, None], [2, 50_262]]


def test_whisper_in_float32(ctranslate2, tmp_path, monkeypatch, capsys):
    source, model = ctranslate2
    variables = {name: np.asarray(value) for name, value in variables_of(model).items()}
    wide = {name: value.astype(np.float32) if value.dtype == np.float16 else value for name, value in variables.items()}
    (source / "model.bin").write_bytes(model_bin(wide))
    run(convert_ctranslate2_whisper, monkeypatch, capsys, source, tmp_path / "out")
    assert {value.dtype.name for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {"float32"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"


def without(variables: dict, name: str) -> dict:
    return {key: value for key, value in variables.items() if key != name}


KEYS = "decoder/layer_1/self_attention/linear_0/bias"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda v: b"", "is no model of CTranslate2: only format 6, WhisperSpec 3"),
        (lambda v: b"RIFF and more", "is no model of CTranslate2"),
        (lambda v: model_bin(v, version=5), "has CTranslate2's format 5: only format 6"),
        (lambda v: model_bin(v, specification="TransformerSpec"), "is a 'TransformerSpec', not a Whisper"),
        (lambda v: model_bin(v, revision=2), "is a WhisperSpec of revision 2"),
        (lambda v: model_bin(v | {KEYS: np.zeros(36, np.int8)}), f'{KEYS} is int8, .*"--quantization float16"'),
        (lambda v: model_bin(v).replace(b"\4\x18\0\0\0", b"\5\x18\0\0\0"), "is of dtype 5"),
        (lambda v: model_bin(v).replace(b"\4\x18\0\0\0", b"\4\x19\0\0\0"), r"has 25 bytes for shape \[12\]"),
        (lambda v: model_bin(v, aliases={}), "shares {}, and Whisper shares"),
        (lambda v: model_bin(without(v, "encoder/conv1/bias")), "lacks encoder/conv1/bias"),
        (lambda v: model_bin(without(v, "encoder/num_heads")), "lacks encoder/num_heads"),
        (lambda v: model_bin(v | {"encoder/projection/bias": np.float16(0)}), "unknown encoder/projection/bias"),
        (lambda v: model_bin(v | {"decoder/scale_embeddings": np.int8(1)}), "has {'decoder/scale_embeddings': 1}"),
        (lambda v: model_bin(v | {KEYS: np.ones(36, np.float16)}), "layers.1.self_attn.k_proj.bias, where Whisper has"),
        (lambda v: model_bin(v | {KEYS: np.ones(35, np.float16)}), r"shape \(35,\) does not divide by 3"),
        (lambda v: model_bin({}), "lacks decoder/activation, .* and [0-9]+ more"),
    ],
)
def test_other_models_are_refused(ctranslate2, refused, make, message):
    source, model = ctranslate2
    (source / "model.bin").write_bytes(make(variables_of(model)))
    refused(convert_ctranslate2_whisper, source, message)


@pytest.mark.parametrize("kept", [5, 25, 60, 900, -20, -1])
def test_a_model_that_is_cut_off(ctranslate2, refused, kept):
    file = ctranslate2[0] / "model.bin"
    file.write_bytes(file.read_bytes()[:kept])
    refused(convert_ctranslate2_whisper, file.parent, "model.bin is cut off: it has .*get it again")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("model.bin", None, "no file .*model.bin: give the folder"),
        ("config.json", None, "no file .*config.json: CTranslate2's folder holds it"),
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[]", "config.json holds no JSON object"),
        ("config.json", '{"suppress_ids": []}', "config.json lacks alignment_heads, suppress_ids_begin"),
        ("tokenizer.json", None, "no file .*tokenizer.json"),
        (
            "tokenizer.json",
            "{}",
            "tokenizer.json lacks a BPE model: take the tokenizer.json of a Whisper of 270 tokens",
        ),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "tokenizer.json lacks <|endoftext|>, "),
    ],
)
def test_files_beside_the_model(ctranslate2, refused, name, content, message):
    file = ctranslate2[0] / name
    file.unlink() if content is None else file.write_text(content)
    refused(convert_ctranslate2_whisper, file.parent, message.replace("|", r"\|"))


def test_a_tokenizer_of_another_size(ctranslate2, refused, tmp_path):
    write_ctranslate2(tmp_path / "other", 280, 266)
    (tmp_path / "other" / "tokenizer.json").rename(ctranslate2[0] / "tokenizer.json")
    refused(convert_ctranslate2_whisper, ctranslate2[0], "has more tokens than the model, 270")


@pytest.mark.parametrize("converter", [convert_ctranslate2_whisper, convert_gguf_llama])
def test_a_folder_that_exists_is_left_alone(tmp_path, monkeypatch, capsys, converter):
    (tmp_path / "file").write_text("kept")
    status, printed = run(converter, monkeypatch, capsys, tmp_path, tmp_path)
    assert status == 2 and f"{tmp_path} exists: give a folder that does not exist yet" in printed
    assert (tmp_path / "file").read_text() == "kept"


# GGUF's Llama


def tiny_llama(tied: bool = True):
    """Widths that blocks of 32 numbers divide."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    return torch_llama(**sizes, vocab_size=260, tie_word_embeddings=tied, rope_theta=5e4)


def gguf_tensors(model) -> dict[str, np.ndarray]:
    """A model's tensors as llama.cpp has them."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    made = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    if not model.config.tie_word_embeddings:
        made["output.weight"] = state["lm_head.weight"]
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    names |= {f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"}
    names |= {f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    for number in range(model.config.num_hidden_layers):
        for theirs, ours in names.items():
            value = state[f"model.layers.{number}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):  # two numbers that are turned together go side by side
                first, second = value.reshape(-1, 2, model.config.head_dim // 2, value.shape[1]).swapaxes(0, 1)
                value = np.stack([first, second], 2).reshape(value.shape)
            made[f"blk.{number}.{theirs}.weight"] = value
    return made


def write_gguf(file: Path, model, tensors=None, architecture="llama", fields=None, kinds=None) -> Path:
    """A file of a model with a byte-level tokenizer. fields: None leaves one out; kinds: quantisations by tensor."""
    config, writer = model.config, gguf.GGUFWriter(file, architecture)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    wanted = {
        **{"llama.block_count": 3, "llama.context_length": 512, "llama.embedding_length": config.hidden_size},
        **{"llama.feed_forward_length": config.intermediate_size, "llama.attention.head_count": 4},
        **{"llama.attention.head_count_kv": 2, "llama.attention.layer_norm_rms_epsilon": 1e-5},
        **{"llama.rope.freq_base": 5e4, "llama.rope.dimension_count": 16, "tokenizer.ggml.model": "gpt2"},
        **{"tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": [*alphabet, "12", "ab", "<end>", "<user>"]},
        **{"tokenizer.ggml.token_type": [1] * 258 + [3, 4], "tokenizer.ggml.merges": ["1 2", "a b"]},
        **{"tokenizer.ggml.bos_token_id": 258, "tokenizer.ggml.eos_token_id": 258},
        **{"tokenizer.chat_template": "{{ messages[0]['content'] }}", **(fields or {})},
    }
    put = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    put[bool] = writer.add_bool
    for name, value in wanted.items():
        if value is not None:
            put[type(value)](name, value)
    for name, value in (gguf_tensors(model) if tensors is None else tensors).items():
        kind = (kinds or {}).get(name)
        value = value if kind is None else gguf.quantize(value, kind)
        writer.add_tensor(name, np.ascontiguousarray(value), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("tied", [True, False])
def test_llama_is_the_model_again(tmp_path, monkeypatch, capsys, tied):
    model = tiny_llama(tied)
    source = write_gguf(tmp_path / "a.gguf", model)
    status, printed = run(convert_gguf_llama, monkeypatch, capsys, source, tmp_path / "out")
    assert status == 0, printed
    settings = {"attn_implementation": "eager", "output_loading_info": True}
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **settings)
    assert not any(info.values())
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded(ids).logits)
    for field in ("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings"):
        assert getattr(loaded.config, field) == getattr(model.config, field), field
    assert loaded.generation_config.eos_token_id == 258


def test_llamas_tokenizer(tmp_path, monkeypatch, capsys):
    run(convert_gguf_llama, monkeypatch, capsys, write_gguf(tmp_path / "a.gguf", tiny_llama()), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer.tokenize("ab 12<user><end>") == ["ab", "Ġ", "1", "2", "<user>", "<end>"]  # digits stay single
    ids = tokenizer("ab é<user><end>")["input_ids"]
    assert tokenizer.decode(ids) == "ab é<user><end>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab é<user>"
    assert list(tokenizer("a")) == ["input_ids", "attention_mask"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"


def test_quantised_weights(tmp_path, monkeypatch, capsys):
    model = tiny_llama()
    types = gguf.GGMLQuantizationType
    kinds = {"token_embd.weight": types.Q8_0, "blk.0.ffn_down.weight": types.Q4_1, "blk.1.attn_v.weight": types.F16}
    source = write_gguf(tmp_path / "a.gguf", model, kinds=kinds)
    run(convert_gguf_llama, monkeypatch, capsys, source, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype.name for value in weights.values()} == {"float32"}
    ours = ("embed_tokens", "layers.0.mlp.down_proj", "layers.1.self_attn.v_proj")
    for (theirs, kind), name in zip(kinds.items(), ours):
        expected = gguf.dequantize(gguf.quantize(gguf_tensors(model)[theirs], kind), kind)
        np.testing.assert_array_equal(weights[f"model.{name}.weight"], expected)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"architecture": "qwen2"}, "is of the architecture 'qwen2': only 'llama' converts"),
        ({"fields": {"llama.block_count": None}}, "has no llama.block_count"),
        ({"fields": {"llama.rope.scaling.type": "linear"}}, "llama.rope.scaling.type 'linear' does not convert"),
        ({"fields": {"llama.rope.dimension_count": 8}}, "llama.rope.dimension_count is 8 of 16"),
        ({"fields": {"tokenizer.ggml.model": "llama"}}, "the tokenizer is 'llama' with the rules 'smollm': known is"),
        ({"fields": {"tokenizer.ggml.pre": "llama-bpe"}}, "with the rules 'llama-bpe': known is 'gpt2' with 'smollm'"),
        ({"fields": {"tokenizer.ggml.add_bos_token": True}}, "'smollm' that begins every text with a token: known"),
        ({"fields": {"tokenizer.ggml.merges": None}}, "has no tokenizer.ggml.merges"),
        ({"fields": {"llama.block_count": 2}}, "has the unknown blk.2.attn_k.weight, .* and 6 more"),
        ({"fields": {"llama.block_count": 4}}, "lacks blk.3.attn_k.weight, .* and 6 more"),
        (
            {"fields": {"llama.feed_forward_length": 95}},
            r"ffn_gate.weight has shape \(96, 64\), .* asks for \(95, 64\)",
        ),
    ],
)
def test_other_llamas_are_refused(tmp_path, refused, settings, message):
    refused(convert_gguf_llama, write_gguf(tmp_path / "a.gguf", tiny_llama(), **settings), message)


def test_scaled_positions_are_refused(tmp_path, refused):
    tensors = gguf_tensors(tiny_llama()) | {"rope_freqs.weight": np.ones(8, np.float32)}
    refused(convert_gguf_llama, write_gguf(tmp_path / "a.gguf", tiny_llama(), tensors), "unknown rope_freqs.weight")


def test_files_that_are_no_gguf(tmp_path, refused):
    refused(convert_gguf_llama, tmp_path / "none.gguf", "no file .*none.gguf")
    whole = write_gguf(tmp_path / "a.gguf", tiny_llama()).read_bytes()
    for content in (b"", b"text that is long enough to be read", *(whole[:kept] for kept in (10, 300, 5000, -100))):
        (tmp_path / "b.gguf").write_bytes(content)
        refused(convert_gguf_llama, tmp_path / "b.gguf", "b.gguf is no whole GGUF file .*get it again")


def test_without_the_package_gguf(tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(convert_gguf_llama, tmp_path / "a.gguf", "the package gguf is missing: pip install gguf")

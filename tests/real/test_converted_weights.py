"""The converted folders are the published models: transformers on PyTorch loads them, and they hear and answer."""

import json
import re

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from safetensors.numpy import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizerFast,
)

from mindone_audio.inputs.audio import load_audio

SENTENCE = "ask not what your country can do for you ask what you can do for your country"


@pytest.fixture(scope="module")
def whisper(whisper_tiny_en):
    model = WhisperForConditionalGeneration.from_pretrained(whisper_tiny_en, dtype=torch.float32, local_files_only=True)
    return model.eval(), WhisperProcessor.from_pretrained(whisper_tiny_en, local_files_only=True)


@pytest.fixture(scope="module")
def llama(smollm2):
    model = AutoModelForCausalLM.from_pretrained(smollm2, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(smollm2, local_files_only=True)


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def heard(whisper, clip, **settings):
    model, processor = whisper
    features = processor(clip, sampling_rate=16_000, return_tensors="pt").input_features
    return processor, model.generate(features, return_dict_in_generate=False, **settings)


def test_whisper_transcribes(whisper, jfk):
    processor, tokens = heard(whisper, load_audio(jfk))
    assert words(processor.decode(tokens[0], skip_special_tokens=True)) == f"and so my fellow americans {SENTENCE}"


def test_whisper_transcribes_with_timestamps(whisper, jfk):
    processor, tokens = heard(whisper, load_audio(jfk), return_timestamps=True)
    offsets = processor.decode(tokens[0], skip_special_tokens=True, output_offsets=True)["offsets"]
    assert words(" ".join(part["text"] for part in offsets)) == f"and so my fellow americans {SENTENCE}"
    assert offsets[0]["timestamp"][0] == 0 and 10 < offsets[-1]["timestamp"][1] <= 11


def test_whispers_sizes_and_rules(whisper, whisper_tiny_en):
    model, _ = whisper
    assert sum(p.numel() for p in model.parameters()) == 37_760_256
    config = json.loads((whisper_tiny_en / "generation_config.json").read_text())
    assert config["suppress_tokens"][:4] == [1, 2, 7, 8] and config["begin_suppress_tokens"] == [220, 50256]
    assert config["forced_decoder_ids"] == [[1, 50362]] and config["is_multilingual"] is False
    assert {value.dtype for value in load_file(whisper_tiny_en / "model.safetensors").values()} == {np.dtype("f2")}


def test_whispers_fast_and_slow_tokenizers_agree(whisper, whisper_tiny_en):
    slow, fast = whisper[1].tokenizer, WhisperTokenizerFast.from_pretrained(whisper_tiny_en)
    assert len(slow) == len(fast) == 51864
    for text in ("Hello, world! It's 12.5 °C.", " naïve 你好", "<|startoftranscript|><|notimestamps|> a<|2.40|>"):
        assert slow(text)["input_ids"] == fast(text)["input_ids"]
        ids = slow(text)["input_ids"]
        assert slow.decode(ids) == fast.decode(ids)


def test_the_positions_are_whispers_sinusoids(whisper_tiny_en):
    from mindone_audio.backbone.encoder import sinusoids

    table = load_file(whisper_tiny_en / "model.safetensors")["model.encoder.embed_positions.weight"]
    np.testing.assert_array_equal(table, sinusoids(1500, 384).astype(np.float16))


@pytest.mark.parametrize(
    "question, answer",
    [
        ("What is the capital of France?", "Paris"),
        ("Which planet do we live on?", "Earth"),
        ("What colour is the sky on a clear day? Answer in one word.", "[Bb]lue"),
    ],
)
def test_smollm2_answers(llama, question, answer):
    model, tokenizer = llama
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
    assert re.search(answer, tokenizer.decode(tokens, skip_special_tokens=True))


def test_smollm2s_tokenizer_divides_as_published(llama):
    """Digits singly, spaces with the word after them, the marks of a dialogue whole."""
    _, tokenizer = llama
    pieces = tokenizer.tokenize("<|im_start|>user\nIn 1961, it’s  naïve.<|im_end|>")
    assert pieces[:7] == ["<|im_start|>", "user", "Ċ", "In", "Ġ", "1", "9"]
    text = "def f(x):\n    return x ** 2  # 你好"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def by_hand(data: np.ndarray, kind: str) -> np.ndarray:
    """Blocks of 32 numbers by their definition, in float64: Q4_1 is d * q + m, Q8_0 is d * q."""
    if kind == "Q4_1":
        blocks = data.reshape(-1, 20)
        scale, offset = (blocks[:, at : at + 2].copy().view("<f2").astype(np.float64) for at in (0, 2))
        nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1)
        return nibbles * scale + offset
    blocks = data.reshape(-1, 34)
    return blocks[:, 2:].copy().view(np.int8) * blocks[:, :2].copy().view("<f2").astype(np.float64)


def test_the_weights_are_those_of_the_file(smollm2, smollm2_gguf):
    """As gguf dequantises, and as the formats are defined. Rows of q and k are in another order."""
    weights = load_file(smollm2 / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in GGUFReader(smollm2_gguf).tensors}
    assert len(weights) == len(tensors) == 272
    pairs = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    for layer in (0, 29):
        for theirs, ours in (
            ("attn_v", "self_attn.v_proj"),
            ("ffn_down", "mlp.down_proj"),
            ("attn_q", "self_attn.q_proj"),
        ):
            pairs[f"blk.{layer}.{theirs}.weight"] = f"model.layers.{layer}.{ours}.weight"
    for theirs, ours in pairs.items():
        tensor, value = tensors[theirs], weights[ours]
        if "attn_q" in theirs:  # row 2 i of a head in GGUF is row i, row 2 i + 1 is row 32 + i
            rows = value.reshape(9, 64, 576)
            value = np.stack([rows[:, :32], rows[:, 32:]], 2).reshape(576, 576)
        np.testing.assert_array_equal(value, dequantize(tensor.data, tensor.tensor_type))
        if tensor.tensor_type.name != "F32":
            exact = by_hand(tensor.data, tensor.tensor_type.name).reshape(value.shape)
            assert np.abs(value - exact).max() <= 2.0**-24 * np.abs(exact).max()

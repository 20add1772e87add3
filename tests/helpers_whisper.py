"""A tiny random Whisper: three languages, windows of 0.4 s, more heads in the encoder than in the decoder."""

import json
from pathlib import Path

import numpy as np
import torch
from random_weights import randomise
from transformers import AddedToken, GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperTokenizer
from transformers import WhisperForConditionalGeneration as TorchWhisper

MEL_BINS, POSITIONS, FRAMES = 16, 20, 40
END, START, LANGUAGES = 90, 91, {"<|en|>": 92, "<|de|>": 93, "<|fr|>": 94}
TASKS = {"translate": 95, "transcribe": 96}
START_OF_PREVIOUS, NO_SPEECH, NO_TIMESTAMPS, FIRST_TIMESTAMP = 98, 99, 100, 101
VOCAB = FIRST_TIMESTAMP + POSITIONS + 1


def tiny_config(**changes) -> WhisperConfig:
    sizes = {
        "vocab_size": VOCAB,
        "num_mel_bins": MEL_BINS,
        "d_model": 24,
        "encoder_layers": 2,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 40,
        "decoder_layers": 3,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 52,
        "max_source_positions": POSITIONS,
        "max_target_positions": 64,
        "decoder_start_token_id": START,
        "pad_token_id": END,
        "bos_token_id": END,
        "eos_token_id": END,
        "begin_suppress_tokens": None,
        "suppress_tokens": None,
    }
    return WhisperConfig(**{**sizes, **changes})


def generation_config(multilingual: bool = True, **changes) -> GenerationConfig:
    values = {
        "decoder_start_token_id": START,
        "pad_token_id": END,
        "bos_token_id": END,
        "eos_token_id": END,
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "prev_sot_token_id": START_OF_PREVIOUS,
        "suppress_tokens": [3, 5, 7, *LANGUAGES.values(), *TASKS.values(), START, 97, START_OF_PREVIOUS, NO_SPEECH],
        "begin_suppress_tokens": [11, END],
        "alignment_heads": [[1, 0], [2, 3]],
        "max_initial_timestamp_index": 10,
        "is_multilingual": multilingual,
        "max_length": 64,
        "return_timestamps": False,
    }
    if multilingual:
        values |= {"lang_to_id": LANGUAGES, "task_to_id": TASKS}
    return GenerationConfig(**{**values, **changes})


def torch_whisper(config: WhisperConfig | None = None, seed: int = 0, multilingual: bool = True) -> TorchWhisper:
    """A PyTorch model in fp32 whose weights are large enough that logits are far from flat."""
    torch.manual_seed(seed)
    config = tiny_config() if config is None else config
    model = randomise(TorchWhisper._from_config(config, attn_implementation="eager").eval())
    model.generation_config = generation_config(multilingual)
    return model


def features(clips: int, frames: int = FRAMES, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(clips, MEL_BINS, frames)).astype(np.float32)


def save_checkpoint(folder: Path, multilingual: bool = True, seed: int = 0, **changes) -> TorchWhisper:
    """A folder that `pipeline` and the commands take: windows of 0.4 s, and letters as tokens."""
    model = torch_whisper(tiny_config(**changes), seed, multilingual)
    model.save_pretrained(folder)
    generation_config(multilingual).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=0.4).save_pretrained(folder)
    letters = [chr(code) for code in range(33, 33 + 89)]
    (folder / "vocab.json").write_text(json.dumps({letter: place for place, letter in enumerate([*letters, "\u0120"])}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = WhisperTokenizer(folder / "vocab.json", folder / "merges.txt", pad_token="<|endoftext|>")
    names = [*LANGUAGES, "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    times = [f"<|{place * 0.02:.2f}|>" for place in range(POSITIONS + 1)]
    special = ["<|startoftranscript|>", *names, "<|notimestamps|>"]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in times])
    tokenizer.save_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|0.00|>"]) == [START, FIRST_TIMESTAMP]
    return model

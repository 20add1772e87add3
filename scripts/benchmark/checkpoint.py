"""Generated checkpoints of published shapes for `benchmark.py`, and the model inputs for them.

Nothing heavy is imported outside the functions: they run in processes that first choose their number of threads.
"""

from pathlib import Path

from benchmark.common import BenchmarkError

MEL_FRAMES_PER_SECOND = 100
FLOAT = 4  # bytes of fp32
# Layers, width, heads, feed-forward width of the encoder; the same, key-value heads and vocabulary of the decoder;
# mel bins and window in seconds. All are Qwen2-Audio's, but for "phi4".
RANDOM = {
    "demo": {"encoder": (4, 192, 4, 768), "decoder": (3, 256, 4, 512), "kv": 2, "vocab": 2048, "mel": 80, "window": 10},
    "small": {
        "encoder": (12, 512, 8, 2048),
        "decoder": (12, 512, 8, 1408),
        "kv": 8,
        "vocab": 32000,
        "mel": 128,
        "window": 30,
    },
    "1b": {
        "encoder": (24, 1024, 16, 4096),
        "decoder": (16, 2048, 16, 5504),
        "kv": 8,
        "vocab": 32000,
        "mel": 128,
        "window": 30,
    },
    "whisper-1b": {  # Whisper-large-v3's encoder, and the same decoder
        "encoder": (32, 1280, 20, 5120),
        "decoder": (16, 2048, 16, 5504),
        "kv": 8,
        "vocab": 32000,
        "mel": 128,
        "window": 30,
    },
    "deep-narrow": {  # SmolLM2-135M's decoder
        "encoder": (2, 64, 2, 128),
        "decoder": (30, 576, 9, 1536),
        "kv": 3,
        "vocab": 49152,
        "mel": 80,
        "window": 30,
    },
    "phi4": {  # Phi-4-multimodal's, of 24 and 32 layers, with its speech adapter
        "encoder": (6, 1024, 16, 1536),
        "decoder": (4, 3072, 24, 8192),
        "kv": 8,
        "vocab": 200064,
        "mel": 80,
        "window": 30,
    },
    "deep": {"encoder": (2, 64, 2, 128), "decoder": (32, 256, 4, 512), "kv": 4, "vocab": 2048, "mel": 80, "window": 10},
}


def parameters(encoder: tuple, decoder: tuple, kv: int, vocab: int, **_) -> int:
    """How many parameters a model has, without biases, norms and convolutions."""
    layers, width, _, wide = encoder
    return layers * (4 * width**2 + 2 * width * wide) + sum(step_weights(decoder, kv, vocab)) + vocab * decoder[1]


def step_weights(decoder: tuple, kv: int, vocab: int) -> list[int]:
    """Elements of each matrix that a decode step reads: those of the decoder's layers, then the output layer's."""
    layers, width, heads, wide = decoder
    keys = width // heads * kv
    return [width * n for n in (width, keys, keys, width, wide, wide, wide)] * layers + [width * vocab]


def fitting_layers(size: dict, contenders: int, available: int) -> int:
    """How many of a size's encoder layers let so many contenders fit in `available` bytes; halved as often as needed.

    Ours holds its parameters and up to a quarter more at work, PyTorch's share one mapping of the checkpoint's file;
    each contender takes about 1 GiB besides.
    """
    layers, *rest = size["encoder"]
    while layers > 1:
        weights = FLOAT * parameters(**{**size, "encoder": (layers, *rest)})
        if 2.25 * weights + contenders * 2**30 <= available:
            break
        layers //= 2
    return layers


def available_memory() -> int:
    """Bytes that new processes can have without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError("/proc/meminfo has no MemAvailable: this is measured on Linux only")


def write_random_checkpoint(folder: str, encoder, decoder, kv: int, vocab: int, mel: int, window: int) -> None:
    """A Qwen2-Audio in fp32 with weights of unit gain, so that scores are far from ties; window in seconds."""
    import torch
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    names = ("encoder_layers", "d_model", "encoder_attention_heads", "encoder_ffn_dim")
    audio = {"num_mel_bins": mel, "max_source_positions": window * MEL_FRAMES_PER_SECOND // 2}
    names_text = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    text = {"model_type": "qwen2", "num_key_value_heads": kv, "vocab_size": vocab, "tie_word_embeddings": False}
    config = Qwen2AudioConfig(
        audio_config={**audio, **dict(zip(names, encoder))},
        text_config={**text, **dict(zip(names_text, decoder)), "max_position_embeddings": 16384},
        audio_token_index=vocab - 1,
    )
    torch.manual_seed(0)
    with torch.device("meta"):  # no second, slower initialisation
        model = Qwen2AudioForConditionalGeneration(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1)
        model.language_model.model.embed_tokens.weight.normal_()
    model.save_pretrained(folder)


def processed_inputs(folder: Path, audio: str | None, text: str, clip_seconds: float) -> dict:
    """What the checkpoint's own processor makes of a clip and a question, with its chat template if it has one."""
    import numpy as np

    from mindone_audio import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    if audio is None:  # a rising tone in noise, as long as fits
        rate = processor.feature_extractor.sampling_rate
        t = np.arange(int(min(clip_seconds, processor.feature_extractor.chunk_length) * rate)) / rate
        tone = 0.4 * np.sin(2 * np.pi * (200 + 150 * t) * t)
        audio = (tone + np.random.default_rng(0).normal(0, 0.02, t.size)).astype(np.float32)
    elements = [{"type": "audio", "audio": audio}, {"type": "text", "text": text}]
    return dict(
        processor.apply_chat_template(
            [{"role": "user", "content": elements}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
    )


def random_inputs(folder: Path, clip_seconds: float) -> dict:
    """Random features and tokens of the shapes that a config asks for, where a checkpoint has no processor."""
    import numpy as np
    from transformers import Qwen2AudioConfig

    config = Qwen2AudioConfig.from_pretrained(folder)
    window = config.audio_config.max_source_positions * 2
    frames = min(int(clip_seconds * MEL_FRAMES_PER_SECOND), window)
    audio_tokens = ((frames - 1) // 2 + 1 - 2) // 2 + 1
    words = text_tokens(config, 32, seed=0)
    ids = words[:8] + [config.audio_token_index] * audio_tokens + words[8:]
    features = np.random.default_rng(0).normal(size=(1, config.audio_config.num_mel_bins, window))
    return {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "input_features": features.astype(np.float32),
        "feature_attention_mask": (np.arange(window) < frames).astype(np.int64)[None],
    }


def padded_inputs(folder: Path, lengths: list[int]) -> dict:
    """Prompts of random text of these lengths as one batch, padded on the left."""
    import numpy as np
    from transformers import Qwen2AudioConfig

    config = Qwen2AudioConfig.from_pretrained(folder)
    ids, mask = (np.zeros((len(lengths), max(lengths)), np.int64) for _ in range(2))
    for row, length in enumerate(lengths):
        ids[row, -length:], mask[row, -length:] = text_tokens(config, length, seed=row), 1
    return {"input_ids": ids, "attention_mask": mask}


def text_tokens(config, count: int, seed: int) -> list[int]:
    """Random tokens of a Qwen2-Audio's vocabulary that do not stand for audio."""
    import numpy as np

    tokens = np.random.default_rng(seed).integers(3, config.text_config.vocab_size - 1, count)
    return (tokens + (tokens >= config.audio_token_index)).tolist()


def different_lengths(count: int, least: int, most: int) -> list[int]:
    """So many lengths, evenly from the least to the most."""
    if count == 1:
        return [most]
    return [round(least + (most - least) * i / (count - 1)) for i in range(count)]

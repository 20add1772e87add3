"""A tiny random SpeechT5 with its vocoder: relative positions that are clipped, two frames a step, odd kernels."""

from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers
from helpers_bodies import random_module
from random_weights import randomise
from transformers import SpeechT5Config, SpeechT5HifiGanConfig
from transformers import SpeechT5ForSpeechToText as TorchSpeechToText
from transformers import SpeechT5ForTextToSpeech as TorchTextToSpeech
from transformers import SpeechT5HifiGan as TorchHifiGan

BINS, VOCAB, SPEAKER = 10, 30, 512


def vocoder(seed: int = 0, **changes) -> TorchHifiGan:
    sizes = {
        "model_in_dim": BINS,
        "upsample_initial_channel": 16,
        "upsample_rates": [3, 2],
        "upsample_kernel_sizes": [7, 5],
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1, 2]],
    }
    model = random_module(TorchHifiGan(SpeechT5HifiGanConfig(**{**sizes, **changes})), seed)
    with torch.no_grad():  # a waveform that tanh does not flatten
        model.conv_post.weight *= 0.2
    return model


def config(**changes) -> SpeechT5Config:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "encoder_layers": 2,
        "encoder_attention_heads": 3,
        "encoder_ffn_dim": 40,
        "encoder_max_relative_position": 4,
        "decoder_layers": 3,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 52,
        "num_mel_bins": BINS,
        "speech_decoder_prenet_units": 14,
        "speech_decoder_postnet_layers": 3,
        "speech_decoder_postnet_units": 18,
        "speaker_embedding_dim": SPEAKER,
        "max_text_positions": 40,
        "max_speech_positions": 900,
        "conv_dim": (12, 16, 10),
        "conv_kernel": (10, 3, 2),
        "conv_stride": (5, 2, 2),
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 6,
        "num_conv_pos_embedding_groups": 4,
    }
    return SpeechT5Config(**{**sizes, **changes})


def text_to_speech(seed: int = 0, **changes) -> TorchTextToSpeech:
    """PyTorch's class without the prenet's dropout, which it would always have, and with statistics that matter."""
    torch.manual_seed(seed)
    model = randomise(TorchTextToSpeech._from_config(config(**changes), attn_implementation="eager").eval())
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.5)
            elif name.endswith("running_var"):
                buffer.uniform_(0.3, 2)
        # A speech ends after some steps: the probability is near the threshold.
        model.speech_decoder_postnet.prob_out.weight *= 0.5
        model.speech_decoder_postnet.prob_out.bias.fill_(-1.5)
    model.speecht5.decoder.prenet._consistent_dropout = lambda inputs, p: inputs
    return model


def voices(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, SPEAKER)).astype(np.float32)


def texts(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(4, VOCAB, length - 1), 2) for length in lengths]


def mels(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, BINS)).astype(np.float32) for length in lengths]


LETTERS = "abcdefghijklmnopqrstuvw"


def save_processor(folder: Path) -> None:
    """A sentencepiece model of these characters with the published special tokens, and the feature extractor."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([LETTERS, " ".join(LETTERS)] * 9),
        model_prefix=str(folder / "spm_char"),
        model_type="char",
        vocab_size=len(LETTERS) + 5,
        **{"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3, "minloglevel": 2},
    )
    (folder / "spm_char.vocab").unlink()
    transformers.SpeechT5Tokenizer(str(folder / "spm_char.model")).save_pretrained(folder)
    transformers.SpeechT5FeatureExtractor(do_normalize=True).save_pretrained(folder)


def save_all(folder: Path) -> None:
    """What the command takes: `speaker`, `hifigan` and `voice.npy`, in a folder."""
    text_to_speech(1).save_pretrained(folder / "speaker")
    save_processor(folder / "speaker")
    vocoder().save_pretrained(folder / "hifigan")
    np.save(folder / "voice.npy", voices(1)[0])


def speech_to_text(seed: int = 0, **changes) -> TorchSpeechToText:
    torch.manual_seed(seed)
    changes = {"max_speech_positions": 70, **changes}
    model = randomise(TorchSpeechToText._from_config(config(**changes), attn_implementation="eager").eval())
    with torch.no_grad():  # or the tied output would say each token again
        model.speecht5.decoder.prenet.embed_tokens.weight *= 0.3
    return model


def save_writer(folder: Path, seed: int = 0) -> None:
    """A checkpoint that writes, with its processor, for clips of up to 30,000 samples."""
    speech_to_text(seed, vocab_size=len(LETTERS) + 5, max_speech_positions=1600).save_pretrained(folder)
    save_processor(folder)


def clips(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=length).astype(np.float32) for length in lengths]

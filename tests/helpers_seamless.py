"""A tiny random SeamlessM4T v2 with all its parts, three languages, and letters as tokens.

Heads are unequal in every part, clips are longer than the tables of distances and than two chunks, and the embeddings
are one tensor, as in the published checkpoint.
"""

from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from random_weights import randomise
from tokenizers import decoders, models, pre_tokenizers
from transformers import GenerationConfig, SeamlessM4Tv2Config
from transformers import SeamlessM4Tv2Model as TorchSeamless

BINS = 160  # what the feature extractor makes
PAD, UNKNOWN, START, END = 0, 1, 2, 3
SPACE = "\u2581"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["<pad>", "<unk>", "<s>", "</s>", SPACE, *LETTERS, *(SPACE + letter for letter in "abcdefgh"), "ab", "cde"]
LANGUAGES = ("deu", "eng", "fra")
VOCAB = len(PIECES) + len(LANGUAGES)
CODES = {language: len(PIECES) + place for place, language in enumerate(LANGUAGES)}
CHARACTERS = {character: 4 + place for place, character in enumerate([SPACE, *LETTERS])}


def config(**changes) -> SeamlessM4Tv2Config:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "max_position_embeddings": 300,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 36,
        "decoder_layers": 3,
        "decoder_attention_heads": 6,
        "decoder_ffn_dim": 44,
        "speech_encoder_layers": 2,
        "speech_encoder_attention_heads": 3,
        "speech_encoder_intermediate_size": 40,
        "conv_depthwise_kernel_size": 7,
        "left_max_position_embeddings": 5,
        "right_max_position_embeddings": 3,
        "speech_encoder_chunk_size": 23,
        "speech_encoder_left_chunk_num": 1,
        "t2u_vocab_size": 30,
        "char_vocab_size": 4 + len(CHARACTERS),
        "t2u_encoder_layers": 1,
        "t2u_encoder_attention_heads": 2,
        "t2u_encoder_ffn_dim": 28,
        "t2u_decoder_layers": 2,
        "t2u_decoder_attention_heads": 3,
        "t2u_decoder_ffn_dim": 32,
        "t2u_max_position_embeddings": 400,
        "t2u_variance_predictor_embed_dim": 24,
        "t2u_variance_predictor_hidden_dim": 14,
        "upsample_initial_channel": 16,
        "upsample_rates": [3, 2],
        "upsample_kernel_sizes": [7, 4],
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1, 2]],
        "unit_hifi_gan_vocab_size": 26,
        "unit_embed_dim": 12,
        "lang_embed_dim": 5,
        "spkr_embed_dim": 7,
        "vocoder_num_langs": 3,
        "vocoder_num_spkrs": 4,
    }
    return SeamlessM4Tv2Config(**{**sizes, **changes})


def generation_config(**changes) -> GenerationConfig:
    values = {
        "decoder_start_token_id": END,
        "pad_token_id": PAD,
        "bos_token_id": START,
        "eos_token_id": END,
        "max_new_tokens": 20,
        "suppress_tokens": [PAD],  # which has no position in transformers where a model chooses it
        "text_decoder_lang_to_code_id": CODES,
        "t2u_lang_code_to_id": {language: 20 + place for place, language in enumerate(LANGUAGES[:2])},
        "vocoder_lang_code_to_id": {language: place for place, language in enumerate(LANGUAGES[:2])},
        "id_to_text": {str(place): piece for place, piece in enumerate(PIECES)},
        "char_to_id": CHARACTERS,
    }
    return GenerationConfig(**{**values, **changes})


def torch_model(seed: int = 0, **changes) -> TorchSeamless:
    """PyTorch's whole model."""
    torch.manual_seed(seed)
    model = randomise(TorchSeamless._from_config(config(**changes), attn_implementation="eager").eval())
    with torch.no_grad():  # or the tied output would say each token again, and seldom the end
        model.shared.weight.normal_(0, 0.1)
        model.shared.weight[END] *= 2
        model.text_decoder.layer_norm.weight *= 3
        model.vocoder.hifi_gan.conv_post.weight *= 0.2
        # Units of many kinds, of which some last for several frames.
        model.t2u_model.model.decoder.layer_norm.bias.zero_()
        model.t2u_model.model.decoder.embed_tokens.weight[:4] *= (
            0.3  # the end, padding, and what is no unit: PyTorch fails
        )
        model.t2u_model.model.decoder.embed_char.weight *= 3
        for predictor in (model.t2u_model.model.decoder.duration_predictor, model.vocoder.dur_predictor):
            predictor.proj.weight *= 0.4
            predictor.proj.bias.fill_(1.1)
    model.generation_config = generation_config()
    return model


def clips(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    """Features of clips of so many frames."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, BINS)).astype(np.float32) for length in lengths]


def texts(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    """English texts of so many tokens, as the tokenizer writes them."""
    rng = np.random.default_rng(seed)
    inner = (rng.integers(4, len(PIECES), length - 2) for length in lengths)
    return [np.array([CODES["eng"], *one, END]) for one in inner]


def save_processor(folder: Path) -> None:
    """The feature extractor, and a fast tokenizer of these pieces."""
    made = tokenizers.Tokenizer(models.Unigram([(piece, -(len(piece) ** 0.5)) for piece in PIECES], unk_id=UNKNOWN))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    names = [f"__{language}__" for language in LANGUAGES]
    tokenizer = transformers.SeamlessM4TTokenizerFast(tokenizer_object=made, additional_special_tokens=names)
    assert tokenizer.convert_tokens_to_ids(names) == list(CODES.values())
    tokenizer.save_pretrained(folder)
    transformers.SeamlessM4TFeatureExtractor().save_pretrained(folder)


def save_checkpoint(folder: Path, seed: int = 0) -> TorchSeamless:
    """A folder with the whole model and its processor; returns PyTorch's model."""
    model = torch_model(seed)
    model.save_pretrained(folder)
    save_processor(folder)
    return model

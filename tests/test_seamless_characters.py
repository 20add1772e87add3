"""How the sub-words of a translation are spelled, against transformers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2PreTrainedModel as Torch

from mindone_audio.models.seamless_m4t_v2.characters import Spelling

PAD, UNKNOWN = 0, 1
TEXTS = ["<pad>", "<unk>", "▁", "▁a", "▁bc", "d", "é", "7", ",", ".", "▁,", "...", "▁日", "本", "¿", "-", "zz", "▁q"]
ID_TO_TEXT = {str(number): text for number, text in enumerate(TEXTS)}
CHAR_TO_ID = {character: number for number, character in enumerate("▁abcd,.日本é7¿", start=2)}
SPELLING = Spelling(ID_TO_TEXT, CHAR_TO_ID, (PAD,), UNKNOWN)


def theirs(tokens: list[int]) -> tuple[list[int], list[int]]:
    model = SimpleNamespace(generation_config=SimpleNamespace(id_to_text=ID_TO_TEXT, char_to_id=CHAR_TO_ID))
    ids = torch.tensor([tokens])
    words = Torch._indices_to_subwords(model, ids)
    counts = Torch._count_character_length_in_subword(model, ids, words, pad_token_id=PAD, unk_token_id=UNKNOWN)
    return Torch._get_char_input_ids(model, ids, words, counts, PAD, UNKNOWN)[0].tolist(), counts[0].tolist()


@pytest.mark.parametrize(
    "tokens",
    [
        [3, 4, 5],  # words, and the end of one
        [4, 8, 3],  # the space goes to the comma
        [4, 10, 3, 9],  # a comma with its own space is a word
        [4, 11, 3, 14, 12, 13, 9, 3],
        [8, 9, 4, UNKNOWN, 3],
        [8, UNKNOWN, 4, 9, 9, 17],
        [9, 2, 3],  # a lone space is no mark, and no word
        [7, 3, 6, 4, 15],
        [16],
    ],
)
def test_characters_and_their_counts(tokens):
    assert SPELLING.characters(tokens) == theirs(tokens)


def test_random_tokens():
    rng = np.random.default_rng(0)
    for _ in range(300):
        tokens = rng.integers(UNKNOWN, len(TEXTS), rng.integers(1, 12)).tolist()
        characters, counts = SPELLING.characters(tokens)
        assert (characters, counts) == theirs(tokens)
        assert len(characters) == sum(counts) and min(counts) > 0


def test_a_token_without_a_text_is_silent():
    """In transformers it is spelled N, o, n, e."""
    assert SPELLING.characters([3, 99, 4]) == (SPELLING.characters([3, 4])[0], [2, 0, 3])
    assert SPELLING.characters([3, PAD, 4]) == SPELLING.characters([3, 99, 4])
    assert SPELLING.characters([]) == ([], [])

"""Text streams: with every kind of tokenizer the pieces joined are the whole text, and nothing is taken back."""

import random
from functools import cache
from pathlib import Path

import mistral_common
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.generation.text_stream import cut, text_stream
from mindone_audio.models.voxtral import tekken

GOLDENS = Path(__file__).parent / "goldens"
ALPHABET = "abnt  .?!,'mvres nN\n\té你好答案。的😀👩‍👩‍👧\ufffdßж한"
SENTENCES = [
    "He says 'stop the car' and goes.",
    "They 've said they 're not , I 'm sure , it 's so : do n't ! Is it ? No .",
    "答案。好的，今天天气很好！😀👩‍👩‍👧 한국어",
    "naïve café — a \ufffd really in the text \ufffd\ufffd",
    "  white  space\n\n at  both ends \n",
    "rock ' n ' roll ' . ' ' ? ' n't 's",
]


def _trained(tokenizer: Tokenizer, trainer) -> Tokenizer:
    tokenizer.train_from_iterator([*SENTENCES, ALPHABET] * 3, trainer)
    return tokenizer


def _word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    special = ["[UNK]", "[PAD]"]
    tokenizer = _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=160, special_tokens=special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", clean_up_tokenization_spaces=True
    )


def _metaspace() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = _trained(tokenizer, trainers.BpeTrainer(vocab_size=150, special_tokens=["<s>", "</s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2's: characters that are no tokens are bytes, and neighbouring bytes are one text or none."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in (10, *range(128, 256))), "▁", *"abnt.,'ves你好"]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "▁a", "▁n", "▁'"])}
    merges = [("▁", "a"), ("▁", "n"), ("▁", "'")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _tekken():
    return tekken.MistralCommonTokenizer(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json")


@cache
def tokenizer_of(name: str):
    """The tokenizer, and how many ids it has."""
    if name == "tekken":
        return _tekken(), 131_072
    made = {"word pieces": _word_piece, "metaspace": _metaspace, "byte fallback": _byte_fallback}
    if name in made:
        tokenizer = made[name]()
    else:
        folder = demo_checkpoint() if name.startswith("bundled") else GOLDENS / "audioflamingo3_processor"
        path = str(Path(folder) / "tokenizer.json")
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=path, clean_up_tokenization_spaces=name.endswith("cleaned"))
    return tokenizer, len(tokenizer)


NAMES = ["bundled", "bundled, cleaned", "golden, cleaned", "word pieces", "metaspace", "byte fallback", "tekken"]


def random_ids(rng: random.Random, tokenizer, size: int) -> list[int]:
    """Of a random text, of random ids, or of a text with random ids in it."""
    kind, text = rng.randrange(4), "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(40)))
    if kind == 0:
        text = " ".join(rng.choice(SENTENCES) for _ in range(3)) + text
    ids = [] if kind == 3 else list(tokenizer.encode(text, add_special_tokens=False))
    few = [rng.randrange(size) for _ in range(5)]
    for _ in range(rng.randrange(30) if kind > 1 else 0):
        ids.insert(rng.randrange(len(ids) + 1), rng.choice(few) if rng.random() < 0.3 else rng.randrange(size))
    return ids[: rng.randrange(1, 80)]


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_joined_are_the_whole_text(name, caplog):
    tokenizer, size = tokenizer_of(name)
    rng = random.Random(name)

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)

    for _ in range(600):
        ids = random_ids(rng, tokenizer, size)
        whole = decode(ids)
        starts = [rng.randrange(len(whole)) for _ in range(rng.randrange(3))] if whole else []
        stops = [whole[start : start + rng.randrange(1, 6)] for start in starts] + ["never there"]
        for ends in ([], stops):
            pieces = list(text_stream(ids, decode, ends))
            assert "".join(pieces) == cut(whole, ends), (ids, ends)
            assert "" not in pieces
            assert "".join(text_stream(ids, decode, ends, strip=True)) == cut(whole, ends).strip(), (ids, ends)
    assert "rewritten" not in caplog.text


def test_text_that_a_tokenizer_rewrites():
    words = ["He", " says", " '", "stop", " the", " car", " '", " and", " do", " n't", " goes", " ."]

    def decode(ids):
        return PreTrainedTokenizerBase.clean_up_tokenization("".join(words[i] for i in ids))

    pieces = list(text_stream(range(12), decode))
    assert pieces[:2] == ["He", " says"]
    assert "".join(pieces) == "He says'stop the car'and don't goes." == decode(range(12))
    assert "".join(text_stream(range(12), decode, ["car'"])) == "He says'stop the "  # which only the rewriting makes


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_decoded_a_bounded_number_of_times(name):
    tokenizer, size = tokenizer_of(name)
    rng, decoded, largest = random.Random(0), [], 0

    def decode(ids):
        decoded.append(len(ids))
        return tokenizer.decode(ids, skip_special_tokens=True)

    text = tokenizer.encode(" ".join(SENTENCES) * 40, add_special_tokens=False)
    partial = next(i for i in range(size) if "\ufffd" in tokenizer.decode([i])) if "byte" in name else 0
    for ids in (text, [rng.randrange(size) for _ in range(2000)], [7] * 2000, [0] * 2000, [partial] * 2000):
        ids = list(ids)[:2000]
        decoded.clear()
        whole = "".join(text_stream(ids, decode))
        assert decoded.pop() == len(ids)  # once, at the end
        largest = max(largest, sum(decoded) / len(ids))
        assert whole == tokenizer.decode(ids, skip_special_tokens=True)
    assert largest < 40


def test_text_flows_token_by_token():
    """Without a space to hold anything back, and with the words of a tokenizer that rewrites nothing."""
    for words in (list("今天天气很好我们去公园吧"), ["one", " two", " three", " four", " five", " six"]):
        assert list(text_stream(words, "".join)) == words
    tokenizer, _ = tokenizer_of("bundled")
    ids = tokenizer.encode("今天天气很好", add_special_tokens=False)  # bytes, some of them joined
    assert list(text_stream(ids, tokenizer.decode)) == list("今天天气很好")


def test_what_may_become_a_stop_is_not_shown():
    pieces = ["答", "案", "\ufffd", "。", "好", "的"]

    def decode(ids):
        return "".join(pieces[i] for i in ids)

    def joined(ids):
        return "".join(pieces[i] for i in ids if i != 2)

    for stops, shown in (
        (["。好"], "答案"),
        (["案。好", "。"], "答"),
        (["。", "案。好"], "答"),
        (["。好的!"], "答案。好的"),
    ):
        stream, seen = text_stream([0, 1, 2, 3, 4, 5], decode, stops), ""
        assert "".join(text_stream([0, 1, 3, 4, 5], joined, stops)) == shown
        for piece in stream:
            seen += piece
            assert cut(decode(range(6)), stops).startswith(seen)
        assert seen == cut(decode(range(6)), stops)
    # The bytes of the stop come one by one: its first character is complete before it is one.
    tokenizer, _ = tokenizer_of("golden, cleaned")
    ids = tokenizer.encode("答案。好的", add_special_tokens=False)
    assert len(ids) > 10
    for stops in (["。好"], ["好", "。好"], ["案。好的", "。好"]):
        assert "".join(text_stream(ids, tokenizer.decode, stops)) == cut("答案。好的", stops)


def test_empty_and_strange_stops():
    for stops in ([""], ["x", ""], [5], 5, ""):
        with pytest.raises(ValueError, match="stops"):
            text_stream([], str, stops)
    assert list(text_stream([], lambda ids: "")) == []
    assert list(text_stream([1, 2], lambda ids: "")) == []
    assert list(text_stream([1, 2], lambda ids: " \n"[: len(ids)], strip=True)) == []

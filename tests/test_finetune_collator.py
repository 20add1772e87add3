"""Batches for training: the guides' own collators are the reference, and every family's model takes what is made."""

import base64
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import datasets
import helpers_audioflamingo3 as flamingo
import helpers_ichigo
import helpers_phi4
import helpers_processor
import helpers_qwen2_5_omni
import helpers_transformers5
import helpers_ultravox
import helpers_voxtral
import numpy as np
import pytest
import soundfile
import torch
import transformers
from families import GOLDENS
from helpers_processor import RATE, tone, write_audio
from safetensors.numpy import load_file
from transformers import GenerationConfig

from mindone_audio import (
    AutoModelForAudioTextToText,
    AutoProcessor,
    to_mindspore,
)
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.finetune import BIG_BENCH_AUDIO_QUESTIONS, AnswerCollator, DataError, Example, dataset_examples
from mindone_audio.inputs.audio import AudioError

ROOT = Path(__file__).parent.parent
# Answers of one and several tokens, of bytes that are half a character, and with white space and what JSON escapes.
ANSWERS = ("Yes.", "A dog barks twice, then\nit howls.", 'café 你好 "quoted"')


def examples(prompts=("What?", "What is heard in it?", "And?"), seconds=(0.5, 1.7, 0.9)) -> list[Example]:
    """Rows of different lengths, in clips, questions and answers."""
    return [
        Example(tone(length, seed=place), prompt, answer, f"row {place}")
        for place, (length, prompt, answer) in enumerate(zip(seconds, prompts, ANSWERS))
    ]


def write_ultravox(folder):
    own = helpers_ultravox.write_checkpoint(folder)
    stop_on(folder / "text", helpers_ultravox.tokenizer(), "<|eot|>", "<|endoftext|>")
    return own


def write_ichigo(folder):
    helpers_ichigo.write_checkpoint(folder)
    return stop_on(folder, helpers_ichigo.llama_tokenizer(), "<|end_of_text|>", "<|eot_id|>")


def stop_on(folder, tokenizer, *words):
    """A published generation_config.json: the tokens at which `generate` stops."""
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": tokenizer.convert_tokens_to_ids(list(words))})
    )
    return folder


WRITERS = {
    "qwen2_audio": lambda folder: shutil.copytree(demo_checkpoint(), folder / "demo"),
    "voxtral": helpers_voxtral.write_checkpoint,
    "audioflamingo3": flamingo.write_checkpoint,
    "qwen2_5_omni": helpers_qwen2_5_omni.write_checkpoint,
    # GLM-ASR's template ends no answer, so that it is taught answers alone.
    **{name: partial(helpers_transformers5.write_checkpoint, name) for name in ("musicflamingo", "qwen3_asr")},
    "phi4_multimodal": helpers_phi4.write_checkpoint,
    "ultravox": write_ultravox,
    "ichigo": write_ichigo,
}
ENDS = {
    "qwen2_audio": "<|im_end|>",
    "voxtral": "</s>",
    "audioflamingo3": "<|im_end|>",
    "qwen2_5_omni": "<|im_end|>",
    **helpers_transformers5.ENDS,
    "phi4_multimodal": "<|end|>",
    "ultravox": "<|eot|>",
    "ichigo": "<|eot_id|>",
}
FAMILIES = tuple(WRITERS)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """By family: its tiny model and its processor."""
    loaded = {}

    def get(family: str):
        if family not in loaded:
            folder = WRITERS[family](tmp_path_factory.mktemp(family))
            loaded[family] = AutoModelForAudioTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        return loaded[family]

    return get


def collator_of(load, family: str, **settings) -> AnswerCollator:
    model, processor = load(family)
    return AnswerCollator(processor, generation_config=model.generation_config, **settings)


def learned(batch: dict, row: int) -> list[int]:
    """The labels of a row that are learned, which must stand together and be the ids in their places."""
    places = np.flatnonzero(batch["labels"][row] != -100)
    assert np.array_equal(batch["labels"][row, places], batch["input_ids"][row, places])
    assert batch["attention_mask"][row, places].all()
    assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
    return batch["labels"][row, places].tolist()


def loss_by_hand(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy of every label that is not -100, from the scores one place before it, if there is one."""
    losses = []
    for scores, row in zip(logits.astype(np.float64), labels):
        for place in np.flatnonzero(row[1:] != -100) + 1:
            before = scores[place - 1]
            losses.append(np.log(np.exp(before - before.max()).sum()) + before.max() - before[row[place]])
    return float(np.mean(losses))


# What every family's batch has


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_and_what_ends_it_are_learned(load, family):
    """The last label is a token at which the checkpoint's `generate` stops: a tuned model learns to end."""
    model, processor = load(family)
    collator = collator_of(load, family)
    batch = collator(examples())
    stops = np.atleast_1d(model.generation_config.eos_token_id).tolist()
    for row, answer in enumerate(ANSWERS):
        *words, end = learned(batch, row)
        assert processor.decode(words) == answer
        assert end in stops and processor.tokenizer.convert_ids_to_tokens(end) == ENDS[family]
        assert batch["attention_mask"][row].sum() == np.flatnonzero(batch["labels"][row] == end)[-1] + 1
        assert (batch["labels"][row, batch["attention_mask"][row] == 0] == -100).all()  # padding may be an end token
    assert all(batch[name].dtype == np.int64 for name in ("input_ids", "attention_mask", "labels"))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_those_of_generation(load, family):
    """Before the answer stand exactly the ids that the pipeline asks with, without its padding."""
    _, processor = load(family)
    rows = examples()
    batch = collator_of(load, family)(rows)
    for row, example in enumerate(rows):
        content = [{"type": "audio", "audio": example.audio}, {"type": "text", "text": example.prompt}]
        asked = processor.conversation_inputs([[{"role": "user", "content": content}]], chat=True)["input_ids"][0]
        start = np.flatnonzero(batch["labels"][row] != -100)[0]
        assert batch["input_ids"][row, :start].tolist() == asked.tolist()
        whole = [{"role": "user", "content": content}, {"role": "assistant", "content": example.answer}]
        rendered = processor.apply_chat_template([whole], tokenize=True, return_dict=True)["input_ids"][0]
        length = batch["attention_mask"][row].sum()  # some templates write a new line after the end
        assert batch["input_ids"][row, :length].tolist() == rendered[:length].tolist() and len(rendered) - length < 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labels", ["answer", "all"])
def test_the_loss_is_the_mean_over_the_labels(load, family, labels):
    model, processor = load(family)
    batch = collator_of(load, family, labels=labels)(examples())
    output = model(**batch)
    loss = float(output.loss.asnumpy())
    assert np.isfinite(loss)
    assert abs(loss - loss_by_hand(output.logits.asnumpy(), batch["labels"])) < 1e-4 * loss
    tensors = model(**to_mindspore(batch, dtype=model.dtype)).loss.asnumpy()
    assert abs(float(tensors) - loss) < 1e-5 * loss


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labels", ["answer", "all"])
def test_a_batch_is_its_rows(load, family, labels):
    """The loss of a batch is that of its rows, weighted by their labels: no row hears another's clip."""
    model, _ = load(family)
    collator = collator_of(load, family, labels=labels)
    singles = [collator([example]) for example in examples()]
    counts = np.array([(batch["labels"] != -100).sum() for batch in singles])
    losses = np.array([float(model(**batch).loss.asnumpy()) for batch in singles])
    together = float(model(**collator(examples())).loss.asnumpy())
    assert abs(together - (losses * counts).sum() / counts.sum()) < 1e-4 * together
    swapped = [Example(a.audio, b.prompt, b.answer) for a, b in zip(examples()[::-1], examples())]
    if family != "ichigo":  # a random WhisperVQ may hear the same in all
        assert abs(float(model(**collator(swapped)).loss.asnumpy()) - together) > 1e-4


def test_windows_of_ultravox_move_with_their_prompts(load):
    """Its arrays say in which column each window starts, and answers are padded on the other side than prompts."""
    _, processor = load("ultravox")
    batch = collator_of(load, "ultravox")(examples())
    starts = batch["audio_token_start_idx"]
    assert batch["audio_batch_size"].tolist() == [1, 3, 2] and starts.size == 6  # windows of 0.6 s
    window = 0
    for row, example in enumerate(examples()):
        single = processor(f"x<|audio|>{example.prompt}", example.audio)
        for place in range(batch["audio_batch_size"][row]):
            start, length = starts[window], batch["audio_token_len"][window]
            assert start - starts[window - place] == (single["audio_token_start_idx"] - 1)[place]
            assert set(batch["input_ids"][row, start : start + length]) == {processor.tokenizer.eos_token_id}
            window += 1
        first = starts[window - batch["audio_batch_size"][row]]
        assert processor.decode(batch["input_ids"][row, :first]).endswith("user<|end|>\n\n")


def test_sounds_of_ichigo_are_not_learned(load):
    _, processor = load("ichigo")
    assert "labels" in (whole := collator_of(load, "ichigo", labels="all")(examples()))
    sounds = np.isin(whole["input_ids"], processor.sound_token_ids)
    assert sounds.sum() > 30 and (whole["labels"][sounds] == -100).all()
    answers = collator_of(load, "ichigo")(examples())
    assert not np.isin(answers["labels"], processor.sound_token_ids).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_all_labels(load, family):
    """All but audio and padding is learned, the end of the answer too."""
    _, processor = load(family)
    batch = collator_of(load, family, labels="all")(examples())
    for row, answer in enumerate(ANSWERS):
        ids = batch["labels"][row][batch["labels"][row] != -100]
        text = processor.decode(ids)
        assert f"{answer}{ENDS[family]}" in text and examples()[row].prompt in text
        assert text.rstrip("\n").endswith(ENDS[family])


# The guides


class GuideCollator:
    """What Voxtral's fine-tuning guide does, step by step, with transformers' processor and PyTorch."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, features):
        rules = BIG_BENCH_AUDIO_QUESTIONS
        conversations, answers = [], []
        for feature in features:
            file = io.BytesIO()
            soundfile.write(file, feature["audio"]["array"], feature["audio"]["sampling_rate"], format="WAV")
            clip = f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"
            question = rules["questions"].get(feature.get("category", ""), rules["default"])
            content = [{"type": "audio", "base64": clip}, {"type": "text", "text": question}]
            conversations.append([{"role": "user", "content": content}])
            answers.append(feature["official_answer"])
        inputs = self.processor.apply_chat_template(conversations, tokenize=True, return_tensors="pt", padding=True)
        tokenizer = self.processor.tokenizer
        tokens = tokenizer(answers, add_special_tokens=False, padding=False, truncation=True, max_length=512)
        rows, masks, labels = [], [], []
        for ids, mask, answer in zip(inputs["input_ids"], inputs["attention_mask"], tokens["input_ids"]):
            length = int(mask.sum())
            prompt, answer = ids[:length].tolist(), [*answer, tokenizer.eos_token_id]
            rows.append(torch.tensor(prompt + answer))
            masks.append(torch.tensor(mask[:length].tolist() + [1] * len(answer)))
            labels.append(torch.tensor([-100] * length + answer))
        batch = {
            name: torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill)
            for name, values, fill in (
                ("input_ids", rows, tokenizer.pad_token_id),
                ("attention_mask", masks, 0),
                ("labels", labels, -100),
            )
        }
        others = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        return {name: value.numpy() for name, value in (batch | others).items()}


@pytest.fixture(scope="module")
def voxtral(tmp_path_factory):
    """Our processor and transformers', of few mels."""
    folder = helpers_voxtral.write_processor(tmp_path_factory.mktemp("voxtral"), feature_size=8)
    return AutoProcessor.from_pretrained(folder), transformers.VoxtralProcessor.from_pretrained(folder)


def big_bench(*rows: tuple[float, str, str]) -> list[dict]:
    """Rows as the data set has them; samples are those of 16 bits, which a wav file holds without rounding."""
    return [
        {
            "audio": {"array": np.round(tone(seconds) * 2**15) / 2**15, "sampling_rate": RATE, "path": "x.wav"},
            "category": category,
            "official_answer": answer,
        }
        for seconds, category, answer in rows
    ]


def assert_equal(ours, theirs):
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert value.shape == theirs[name].shape and value.dtype == theirs[name].dtype, name
        assert np.array_equal(value, theirs[name]) or np.abs(value - theirs[name]).max() < 1e-5, name
        assert name == "input_features" or np.array_equal(value, theirs[name]), name


def test_voxtral_equals_the_guide(voxtral):
    processor, reference = voxtral
    collator, guide = AnswerCollator(processor), GuideCollator(reference)
    # Of one question, so that prompts are of one length; answers are not.
    rows = big_bench(
        *((length, "navigate", answer) for length, answer in ((1, "north"), (31, "the house"), (2.5, "6")))
    )
    table = dataset_examples(rows, answer="official_answer", prompt=BIG_BENCH_AUDIO_QUESTIONS)
    with_30_s = [table[0], table[2]]
    assert_equal(collator(with_30_s), guide([rows[0], rows[2]]))
    for place in range(3):
        assert_equal(collator([table[place]]), guide([rows[place]]))


def test_prompts_of_several_lengths_which_the_guide_cuts(voxtral):
    """Each row is as the guide makes it alone. In a batch its padding is on the left, and the guide cuts the right."""
    processor, reference = voxtral
    rows = big_bench((1, "navigate", "north"), (1.5, "object_counting", "three"), (31, "anything else", "the house"))
    table = dataset_examples(rows, answer="official_answer", prompt=BIG_BENCH_AUDIO_QUESTIONS)
    ours, guide = AnswerCollator(processor)(table), GuideCollator(reference)
    for row, alone in enumerate(guide([row]) for row in rows):
        length = alone["input_ids"].shape[1]
        for name, fill in (("input_ids", 11), ("attention_mask", 0), ("labels", -100)):
            assert ours[name][row, :length].tolist() == alone[name][0].tolist()
            assert set(ours[name][row, length:].tolist()) <= {fill}
    together = guide(rows)
    assert processor.decode(ours["input_ids"][1][ours["attention_mask"][1] == 1]).endswith("count.[/INST]three</s>")
    assert "count.[/INST]" not in processor.decode(together["input_ids"][1])


def test_audio_flamingo_equals_its_processor_and_transformers_5(load):
    _, processor = load("audioflamingo3")
    conversations = [flamingo.conversation(e.audio, e.answer, e.prompt) for e in examples()]
    expected = processor.apply_chat_template(
        conversations, tokenize=True, add_generation_prompt=False, return_dict=True, output_labels=True
    )
    first = expected["attention_mask"].argmax(1)
    assert first.max() > 3 and (expected["labels"][range(3), first] != -100).all()  # learned from padding, there
    expected["labels"][range(3), first] = -100
    assert_equal(collator_of(load, "audioflamingo3", labels="all")(examples()), dict(expected))
    # the golden batch of transformers 5 has another system prompt in its second row, so only the first compares
    golden = load_file(GOLDENS / "audioflamingo3_processor" / "outputs.safetensors")
    seen = golden["labels.attention_mask"][0] == 1
    row = collator_of(load, "audioflamingo3", labels="all")([Example(tone(0.7, seed=1), "What happens?", "A dog.")])
    assert row["input_ids"][0].tolist() == golden["labels.input_ids"][0][seen].tolist()
    assert row["labels"][0, 1:].tolist() == golden["labels.labels"][0][seen][1:].tolist()
    assert np.abs(row["input_features"][0] - golden["labels.input_features"][0]).max() < 1e-5
    assert (row["labels"] != -100).sum() > 40


WITHOUT_PYTORCH = """
import sys
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.finetune import AnswerCollator, load_examples
assert "mindspore" not in sys.modules
rows = load_examples(sys.argv[1], streaming=True, answer="caption", prompt="Describe the audio.")
from mindone_audio import AutoModelForAudioTextToText, AutoProcessor
model = AutoModelForAudioTextToText.from_pretrained(demo_checkpoint())
batch = AnswerCollator(AutoProcessor.from_pretrained(demo_checkpoint()))(list(rows))
print("loss", model(**batch).loss, "torch" in sys.modules)
"""


def test_a_stream_becomes_a_loss_without_pytorch(load, tmp_path):
    """From parquet with an `Audio` column: nothing on the way needs torchcodec or PyTorch."""
    rows = [
        {"audio": str(write_audio(tmp_path / f"{i}.wav", e.audio)), "caption": e.answer}
        for i, e in enumerate(examples())
    ]
    (tmp_path / "data").mkdir()
    table = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio())
    table.to_parquet(tmp_path / "data" / "train.parquet")
    (script := tmp_path / "script.py").write_text(WITHOUT_PYTORCH)
    command = [sys.executable, str(ROOT / "tests" / "without_torch.py"), str(script), str(tmp_path / "data")]
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    model, _ = load("qwen2_audio")
    asked = [Example(row["audio"], "Describe the audio.", row["caption"]) for row in rows]
    expected = float(model(**collator_of(load, "qwen2_audio")(asked)).loss.asnumpy())
    _, loss, has_torch = result.stdout.split()[-3:]
    assert float(loss) == pytest.approx(expected, rel=1e-4) and has_torch == "False"


# What ends an answer


def test_a_base_model_ends_with_its_own_end_of_text(tmp_path):
    processor = AutoProcessor.from_pretrained(
        helpers_processor.write_checkpoint(tmp_path, feature_size=8, chunk_length=2)
    )
    end, turn = (processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("endoftext", "im_end"))
    base = AnswerCollator(processor, generation_config=GenerationConfig(eos_token_id=end))
    assert not base.chat and base.end == [end]
    batch = base(examples())
    text = processor.decode(batch["input_ids"][0][batch["attention_mask"][0] == 1])
    assert text.endswith("<|audio_eos|>What?Yes.<|endoftext|>") and text.startswith("<|audio_bos|>")
    assert learned(batch, 0)[-1] == end == processor.tokenizer.pad_token_id
    both = GenerationConfig(eos_token_id=[turn, end])
    assert AnswerCollator(processor, generation_config=both).end == [turn]  # tuned for chats
    assert AnswerCollator(processor, generation_config=both, chat=False).end == [end]
    assert AnswerCollator(processor, generation_config=GenerationConfig(eos_token_id=turn), chat=False).end == [turn]
    assert AnswerCollator(processor, chat=False, eos_token_id=77).end == [77]
    with pytest.raises(ValueError, match='labels="all" learns a conversation'):
        AnswerCollator(processor, chat=False, labels="all")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_end_that_generate_ignores_is_refused(load, family):
    """The mistake after which a tuned model never stops."""
    _, processor = load(family)
    with pytest.raises(ValueError, match=r"answers end with .*, but this model stops only on 3: pass eos_token_id=3"):
        AnswerCollator(processor, generation_config=GenerationConfig(eos_token_id=3), chat=True)
    other = AnswerCollator(processor, generation_config=GenerationConfig(eos_token_id=3), chat=True, eos_token_id=3)
    assert learned(other(examples()), 0)[-1] == 3
    with pytest.raises(ValueError, match="no eos_token_id, so generate would never stop"):
        AnswerCollator(processor, generation_config=GenerationConfig())


def test_templates_with_other_ends(load):
    """Words between the answer and its end are learned; without any end the tokenizer's is taken."""
    _, processor = load("ultravox")
    kept, template, default = processor.chat_template, processor.tokenizer.chat_template, processor.tokenizer.eos_token
    assert template.count('"<|eot|>"') == 1
    try:
        for written, end in (("\n~<|eot|>\n", "\n~<|eot|>"), ("\n", default), ("<|endoftext|>", "<|endoftext|>")):
            processor.chat_template = template.replace('"<|eot|>"', json.dumps(written))
            collator = AnswerCollator(processor)
            assert processor.decode(collator.end) == end
            assert processor.decode(learned(collator(examples()), 0)) == ANSWERS[0] + end
        processor.chat_template = template.replace('"<|eot|>"', '"\\n"')
        with pytest.raises(ValueError, match="ends no answer by a special token"):
            AnswerCollator(processor, labels="all")
    finally:
        processor.chat_template = kept


# Bad clips, and settings


@pytest.fixture
def bad(tmp_path):
    """Good examples with clips between them that do not exist, are no audio, or are longer than the model hears."""
    (tmp_path / "noise.wav").write_bytes(b"RIFFnonsense")
    good = examples()
    missing = Example("nowhere.wav", "?", "no", "line 4")
    broken = Example(str(tmp_path / "noise.wav"), "?", "no", "line 5")
    long = Example(tone(flamingo.LONGEST + 1), "?", "no", "line 6")
    short = Example(np.zeros(300, np.float32), "?", "no", "line 7")
    return good, [missing, broken, long, short]


def test_bad_clips_are_named(load, bad):
    good, wrong = bad
    reasons = ("no audio file 'nowhere.wav'", "is not audio", "11.00 s long and the model hears 10 s", "300 samples")
    for example, reason in zip(wrong, reasons):
        with pytest.raises(AudioError, match=f"{example.name}: .*{reason}"):
            collator_of(load, "audioflamingo3")([good[0], example, good[1]])
    with pytest.raises(FileNotFoundError, match="line 4"):
        collator_of(load, "audioflamingo3")([wrong[0]])


@pytest.mark.parametrize("labels", ["answer", "all"])
def test_bad_clips_are_skipped_and_counted(load, bad, caplog, labels):
    good, wrong = bad
    collator = collator_of(load, "audioflamingo3", on_bad_clip="skip", labels=labels)
    with caplog.at_level(logging.WARNING):
        batch = collator([wrong[0], good[0], *wrong[1:3], good[1], good[2], wrong[3]])
    assert_equal(batch, collator_of(load, "audioflamingo3", labels=labels)(good))
    assert sorted(name for name, _ in collator.skipped) == ["line 4", "line 5", "line 6", "line 7"]
    assert "line 6" in caplog.text and "(4 so far)" in caplog.text
    assert collator(wrong[:2]) is None
    assert len(collator.skipped) == 4  # a clip of every epoch counts once
    assert collator([]) is None


def test_what_is_no_clip_is_never_skipped(load):
    word = Example(tone(1), "?", "I hear <sound>", "line 9")
    with pytest.raises(DataError, match="line 9: the answer has the word <sound>, which stands for a clip"):
        collator_of(load, "audioflamingo3", on_bad_clip="skip")([examples()[0], word])
    with pytest.raises(DataError, match=r"line 8: the answer has the word <\|im_end\|>, which ends answers"):
        collator_of(load, "audioflamingo3")([Example(tone(1), "?", "yes<|im_end|>", "line 8")])
    asked = Example(tone(1), "<sound>?", "yes", "line 10")
    with pytest.raises(DataError, match=r"line 10: .*2 <sound> placeholder"):
        collator_of(load, "audioflamingo3", on_bad_clip="skip")([examples()[0], asked])


def test_long_examples_are_never_cut(load):
    _, processor = load("qwen2_audio")
    lengths = collator_of(load, "qwen2_audio")(examples())["attention_mask"].sum(1)
    longest = int(lengths.max())
    assert collator_of(load, "qwen2_audio", max_length=longest)(examples())["input_ids"].shape[1] == longest
    with pytest.raises(DataError, match=f"row {lengths.argmax()}: {longest} tokens.*max_length={longest - 1}"):
        collator_of(load, "qwen2_audio", max_length=longest - 1)(examples())
    skipping = collator_of(load, "qwen2_audio", max_length=longest - 1, on_bad_clip="skip")
    assert len(skipping(examples())["labels"]) == 2 and skipping.skipped[0][0] == f"row {lengths.argmax()}"


@pytest.mark.parametrize("labels", ["answer", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_lengths_change_nothing(load, family, labels):
    model, _ = load(family)
    plain, rounded = (
        collator_of(load, family, labels=labels, pad_to_multiple_of=multiple)(examples()) for multiple in (1, 32)
    )
    width, wide = plain["labels"].shape[1], rounded["labels"].shape[1]
    assert wide % 32 == 0 and 0 <= wide - width < 32
    assert np.array_equal(rounded["labels"][:, :width], plain["labels"])
    assert (rounded["labels"][:, width:] == -100).all() and not rounded["attention_mask"][:, width:].any()
    loss, same = (float(model(**batch).loss.asnumpy()) for batch in (plain, rounded))
    assert abs(same - loss) < 1e-4 * loss


def test_an_empty_prompt_and_files(load, tmp_path):
    """A clip that asks by itself, from a file of another rate, is the same as its samples."""
    path = write_audio(tmp_path / "a.wav", tone(1, 8000), 8000)
    for family in FAMILIES:
        collator = collator_of(load, family)
        batch = collator([Example(str(path), "", "Yes.")])
        assert_equal(batch, collator([Example({"bytes": path.read_bytes(), "path": None}, "", "Yes.")]))
        assert learned(batch, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "prompt"}, "labels must be 'answer' or 'all', not 'prompt'"),
        ({"on_bad_clip": "ignore"}, "on_bad_clip must be 'raise' or 'skip', not 'ignore'"),
        ({"max_length": 0}, "max_length must be a number of tokens, at least 1, not 0"),
        ({"pad_to_multiple_of": 1.5}, "pad_to_multiple_of must be a number of tokens, at least 1, not 1.5"),
        ({"labels": "all", "eos_token_id": 2}, "leave out eos_token_id"),
    ],
)
def test_wrong_settings(voxtral, settings, message):
    with pytest.raises(ValueError, match=message):
        AnswerCollator(voxtral[0], **settings)

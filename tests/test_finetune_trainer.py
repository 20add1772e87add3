"""Steps of fine-tuning equal PyTorch's, and do not depend on how they are divided, interrupted or compiled."""

import csv
import json
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path

import helpers
import helpers_audioflamingo3
import helpers_finetune as reference
import helpers_voxtral
import mindspore as ms
import numpy as np
import pytest
from helpers_kill import kill_at_each_step
from safetensors.numpy import load_file

from mindone_audio import AutoModelForAudioTextToText
from mindone_audio.adapters import files as adapter_files
from mindone_audio.finetune import (
    Example,
    FinetuneError,
    FinetuneSettings,
    LoraSettings,
    Trainer,
    add_lora,
    dataset_examples,
    load_adapter,
    recompute,
)
from mindone_audio.finetune.graphs import AdamW, Reduce, graph, prompt_bucket

GOLDENS = Path(__file__).parent / "goldens"
TOLERANCE = 1e-3  # the contract, of losses and of the adapter
FAMILIES = {
    "qwen2_audio": (
        lambda: helpers.torch_model(helpers.tiny_config(**reference.FEW_LAYERS)),
        helpers.qwen2_audio_cases,
    ),
    "voxtral": (
        lambda: helpers_voxtral.torch_voxtral(helpers_voxtral.tiny_voxtral_config({"num_hidden_layers": 2})),
        helpers_voxtral.voxtral_cases,
    ),
    "ichigo": (lambda: helpers.torch_llama(num_hidden_layers=2), helpers.ichigo_cases),
}


class Ready:
    """Examples that are micro-batches already."""

    skipped = ()

    def __call__(self, examples):
        (inputs,) = examples
        return inputs


def settings(folder: Path, **changes) -> FinetuneSettings:
    known = {
        **{"max_steps": reference.STEPS, "learning_rate": reference.RATE, "lr_scheduler_type": "cosine"},
        **{"warmup_steps": reference.WARMUP, "weight_decay": reference.DECAY, "max_grad_norm": reference.CLIP},
        **{"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "shuffle": False, "logging_steps": 1},
    }
    return FinetuneSettings(str(folder), **{**known, **changes})


def train(folder: Path, checkpoint: Path, adapter: Path, micro_batches: list, **changes):
    """The result, and the saved adapter's tensors."""
    model = load_adapter(AutoModelForAudioTextToText.from_pretrained(checkpoint), adapter, trainable=True)
    flat = [micro_batch for step in reference.steps(micro_batches) for micro_batch in step]
    result = Trainer(model, None, Ready(), settings(folder, **changes), flat).train(progress=False)
    return result, load_file(folder / "adapter_model.safetensors")


def compare(result, ours: dict, losses: list[float], adapter: dict) -> None:
    assert losses[-1] < 0.8 * losses[0]  # something was learned
    assert np.abs(np.array(result.losses) - losses).max() < TOLERANCE
    assert set(ours) == set(adapter)
    assert max(np.abs(ours[name] - adapter[name]).max() / np.abs(adapter[name]).max() for name in ours) < TOLERANCE


def test_prompts_are_padded_to_few_lengths():
    for length in range(1, 3000, 7):
        assert length <= prompt_bucket(length) <= max(64, (1.5 if length < 512 else 1.125) * length)
        assert length <= prompt_bucket(length, by_layer=True) <= prompt_bucket(length)
    assert len({prompt_bucket(length) for length in range(1, 513)}) == 7
    assert [prompt_bucket(length) for length in (513, 800, 1024, 1025)] == [576, 832, 1024, 1152]
    assert [prompt_bucket(length, by_layer=True) for length in (97, 257, 513, 800)] == [128, 384, 544, 800]


SLOW = pytest.mark.slow
LONG = SLOW, pytest.mark.long
DECODER = {"exclude_modules": r".*audio_tower.*"}


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        pytest.param("qwen2_audio", {}, id="qwen2_audio with its encoder", marks=SLOW),
        pytest.param("qwen2_audio", DECODER, id="qwen2_audio", marks=LONG),
        pytest.param("voxtral", {}, id="voxtral with its encoder", marks=LONG),
        pytest.param("voxtral", DECODER, id="voxtral", marks=LONG),
        pytest.param("ichigo", {}, id="ichigo", marks=LONG),
    ],
)
def test_steps_equal_pytorchs(family, lora, tmp_path):
    make_model, make_cases = FAMILIES[family]
    model = make_model()
    model.save_pretrained(tmp_path / "base")
    micro_batches = reference.labelled(make_cases())
    losses, adapter = reference.torch_lora(model, micro_batches, tmp_path / "adapter", **lora)
    result, ours = train(tmp_path / "ours", tmp_path / "base", tmp_path / "adapter", micro_batches)
    compare(result, ours, losses, adapter)


@pytest.mark.slow
@pytest.mark.long
@SLOW
def test_steps_of_audio_flamingo_3_equal_the_recorded_ones(tmp_path):
    golden = GOLDENS / "audioflamingo3_lora"
    recorded = load_file(golden / "steps.safetensors")
    losses = recorded.pop("losses").tolist()
    micro_batches = reference.labelled(helpers_audioflamingo3.model_cases())
    result, ours = train(tmp_path / "ours", GOLDENS / "audioflamingo3", golden, micro_batches)
    compare(result, ours, losses, recorded)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, list[dict]]:
    """A checkpoint, and eight examples, each a micro-batch of one row, of the same length."""
    folder = tmp_path_factory.mktemp("tiny")
    model = helpers.torch_model(helpers.tiny_config(**reference.FEW_LAYERS))
    model.save_pretrained(folder)
    examples = []
    for seed in range(8):
        inputs = {**helpers.batch([helpers.prompt([1, "a40", 9], seed)]), **helpers.clips([40], seed)}
        labels = inputs["input_ids"].copy()
        labels[:, :-8] = -100
        examples.append({**inputs, "labels": labels})
    return folder, examples


class Stack:
    """Puts examples of one length into a batch, and counts how often it was asked."""

    def __init__(self):
        self.skipped, self.calls = [], 0

    def __call__(self, examples):
        self.calls += 1
        return {name: np.concatenate([example[name] for example in examples]) for name in examples[0]}


def trainer(tiny, folder: Path, examples=None, **changes) -> Trainer:
    checkpoint, all_examples = tiny
    lora = {"r": 4, "alpha": 8, "dropout": changes.pop("dropout", 0.0), **changes.pop("lora", {})}
    model = add_lora(AutoModelForAudioTextToText.from_pretrained(checkpoint), LoraSettings(**lora))
    known = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "logging_steps": 1}
    evaluation = changes.pop("evaluation", None)
    collator = changes.pop("collator", None) or Stack()
    chosen = FinetuneSettings(str(folder), **{**known, **changes})
    return Trainer(model, None, collator, chosen, all_examples if examples is None else examples, evaluation)


def adapter_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.slow
def test_how_a_batch_is_divided_does_not_matter(tiny, tmp_path):
    whole = trainer(tiny, tmp_path / "4").train()
    parts = trainer(tiny, tmp_path / "2", per_device_train_batch_size=2, gradient_accumulation_steps=2).train()
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-5)
    interpreted = trainer(tiny, tmp_path / "interpreted", compile=False, max_steps=2, num_train_epochs=6).train()
    assert whole.losses[0] > whole.losses[-1] and interpreted.losses[0] == pytest.approx(whole.losses[0], rel=1e-5)


@SLOW
def test_a_run_that_goes_on_takes_the_steps_of_one_that_was_never_interrupted(tiny, tmp_path):
    """Interpreted; test_finetune_command ends and resumes compiled steps with dropout."""
    settings = {"dropout": 0.3, "save_steps": 2, "save_total_limit": 2, "compile": False}
    one = trainer(tiny, tmp_path / "one", **settings).train()
    first = trainer(tiny, tmp_path / "two", **settings)
    stopped = first.train(should_stop=lambda: first.step == 3)
    assert stopped.stopped and stopped.steps == 3 and not (tmp_path / "two" / "adapter_model.safetensors").exists()
    second = trainer(tiny, tmp_path / "two", **settings)
    assert second.base.generate(**{n: v for n, v in tiny[1][0].items() if n != "labels"}, max_new_tokens=2) is not None
    rest = second.train(resume_from_checkpoint=True)
    assert stopped.losses + rest.losses == one.losses  # the same, bit by bit
    ours, theirs = adapter_of(tmp_path / "two"), adapter_of(tmp_path / "one")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert sorted(path.name for path in (tmp_path / "two").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    with open(tmp_path / "two" / "log.csv", newline="") as file:
        assert [int(line["step"]) for line in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]
    without = trainer(tiny, tmp_path / "three", dropout=0.0, compile=False).train()
    assert without.losses != one.losses  # dropout did something


@pytest.mark.slow
def test_another_run_does_not_mix_with_checkpoints_that_are_there(tiny, tmp_path, caplog):
    trainer(tiny, tmp_path, max_steps=1, compile=False).train()
    with pytest.raises(ValueError, match="has checkpoints of an earlier run, the last checkpoint-1"):
        trainer(tiny, tmp_path, max_steps=2).train()
    with pytest.raises(FileNotFoundError, match="is no checkpoint of a training"):
        trainer(tiny, tmp_path, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "nothing"))
    again = trainer(tiny, tmp_path, max_steps=2, learning_rate=1e-3, compile=False)
    result = again.train(resume_from_checkpoint=True)
    assert result.steps == 2 and "learning_rate 0.005 -> 0.001" in caplog.text


def test_a_resumed_run_says_what_changes_its_steps(tiny, tmp_path, caplog):
    """Every setting that does, by its name; and nothing of what an older version did not write down."""
    keeper = trainer(tiny, tmp_path, dropout=0.1)
    keeper.step = 2
    keeper._save()
    changes = [
        ({"max_grad_norm": 0.5}, ["max_grad_norm 1.0 -> 0.5"]),
        ({"adam_beta1": 0.8, "adam_beta2": 0.9}, ["adam_beta1 0.9 -> 0.8", "adam_beta2 0.999 -> 0.9"]),
        ({"adam_epsilon": 1e-6}, ["adam_epsilon 1e-08 -> 1e-06"]),
        ({"dropout": 0.2}, ["lora_dropout 0.1 -> 0.2"]),
        ({"lora": {"use_rslora": True}}, ["lora_use_rslora False -> True"]),
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
            ["per_device_train_batch_size 4 -> 2", "gradient_accumulation_steps 1 -> 2"],
        ),
        ({"weight_decay": 0.1, "seed": 7}, ["weight_decay 0.0 -> 0.1", "seed 42 -> 7"]),
        ({"gradient_checkpointing": True, "logging_steps": 5, "metrics": ("wer",)}, []),
    ]
    for change, told in changes:
        caplog.clear()
        again = trainer(tiny, tmp_path, **{"dropout": 0.1, **change})
        again._resume(None)
        assert again.step == again.resumed_step == 2
        said = [record.getMessage() for record in caplog.records if "other settings" in record.getMessage()]
        assert bool(said) == bool(told) and all(part in said[0] for part in told)
    for lora in ({"r": 2}, {"target_modules": ("q_proj",)}):
        caplog.clear()
        other = trainer(tiny, tmp_path, dropout=0.1, lora=lora)
        with pytest.raises(ValueError, match="is of another model or adapter: .* go on with its settings"):
            other._resume(None)
        assert ("lora_r 4 -> 2" if "r" in lora else "lora_target_modules") in caplog.text
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    known = json.loads(state.read_text())
    older = ("learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "weight_decay", "seed", "shuffle")
    known["facts"] = {name: known["facts"][name] for name in (*older, "steps", "global_batch", "examples")}
    state.write_text(json.dumps(known))
    caplog.clear()
    trainer(tiny, tmp_path, dropout=0.3, max_grad_norm=0.1)._resume(None)
    assert "other settings" not in caplog.text


def test_other_questions_or_labels_are_told(tiny, tmp_path, caplog):
    class Collator(Stack):
        labels, max_length = "answer", None

    def settled(examples, collator):
        return trainer(tiny, tmp_path, examples, collator=collator)

    def examples(prompt):
        return [Example("a.wav", prompt, "yes"), Example("b.wav", prompt, "no")]

    keeper = settled(examples("What?"), Collator())
    keeper._save()
    settled(examples("What?"), Collator())._resume(None)
    assert "other settings" not in caplog.text
    other = Collator()
    other.labels, other.max_length = "all", 100
    settled(examples("Who?"), other)._resume(None)
    assert "labels answer -> all" in caplog.text and "max_length None -> 100" in caplog.text and "texts " in caplog.text
    rows = [{"audio": "a.wav", "a": "yes"}, {"audio": "b.wav", "a": "no"}]
    caplog.clear()
    settled(dataset_examples(rows, answer="a", prompt="Who?"), Collator())._save()
    settled(dataset_examples(rows, answer="a", prompt="Why?"), Collator())._resume(None)
    assert "prompt Who? -> Why?" in caplog.text


def test_an_adapter_is_the_old_or_the_new_one(tiny, tmp_path):
    old, new = (trainer(tiny, tmp_path, lora=lora).model for lora in ({}, {"seed": 1}))
    wider = trainer(tiny, tmp_path, lora={"r": 8}).model
    folder = tmp_path / "adapter"
    for model in (new, wider):
        seen = []

        def prepare():
            shutil.rmtree(folder, ignore_errors=True)
            old.save_pretrained(folder)

        def check(seen=seen):
            config = folder / "adapter_config.json"
            rank = json.loads(config.read_text())["r"] if config.exists() else None
            sizes = {array.shape[0] for name, array in adapter_of(folder).items() if "lora_A" in name}
            assert rank in (None, *sizes)
            seen.append((rank, np.concatenate([array.ravel() for array in adapter_of(folder).values()]).sum()))

        writes = (adapter_files, "save_file")
        steps = kill_at_each_step(prepare, lambda m=model: m.save_pretrained(folder), check, writes)
        assert steps > 8 and seen[0] != seen[-1] and seen[-1][0] == (4 if model is new else 8)
        if model is new:
            assert len(set(seen)) == 2  # without a moment of no adapter
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_evaluation_reads_examples_as_batches_need_them(tiny, tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), []

    class Clip(Example):
        pass

    class Lazy(Sequence):
        def __len__(self):
            return 12

        def __getitem__(self, place):
            example = Clip(f"{place}.wav", "?", str(place))
            alive.add(example)
            most.append(len(alive))
            return example

    known = {"evaluation": Lazy(), "metrics": ("exact_match",), "per_device_eval_batch_size": 2, "collator": Nothing()}
    made = trainer(tiny, tmp_path, **known)
    monkeypatch.setattr(made, "_answers", lambda examples: [example.answer for example in examples])
    assert made.evaluate() == {"eval_loss": 0.0, "eval_exact_match": 1.0}
    assert max(most) <= 4 and len(most) == 12


class Nothing:
    """Skips everything."""

    skipped = ()

    def __call__(self, examples):
        return None


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_and_keeps_what_was_before(tiny, tmp_path):
    examples = [dict(example) for example in tiny[1]]
    examples[5] = {**examples[5], "input_features": np.full_like(examples[5]["input_features"], np.nan)}
    known = {"per_device_train_batch_size": 1, "shuffle": False, "max_steps": 8, "compile": False}
    broken = trainer(tiny, tmp_path, examples, **known)
    with pytest.raises(FinetuneError, match=r"the loss of step 6 is nan.* checkpoint-5 holds what was before it"):
        broken.train()
    assert all(np.isfinite(array).all() for array in adapter_of(tmp_path / "checkpoint-5").values())
    good = trainer(tiny, tmp_path / "good", **known)
    good.train(should_stop=lambda: good.step == 5)
    ours, theirs = adapter_of(tmp_path / "checkpoint-5"), adapter_of(tmp_path / "good" / "checkpoint-5")
    assert all((ours[name] == theirs[name]).all() for name in theirs)


@pytest.mark.slow
def test_a_broken_step_costs_no_good_checkpoint(tiny, tmp_path):
    """The update before a loss of nan may be what broke the adapter."""
    examples = [dict(example) for example in tiny[1]]
    examples[5] = {**examples[5], "input_features": np.full_like(examples[5]["input_features"], np.nan)}
    limits = {"save_steps": 2, "save_total_limit": 1, "per_device_train_batch_size": 1, "shuffle": False}
    with pytest.raises(FinetuneError):
        trainer(tiny, tmp_path, examples, max_steps=8, compile=False, **limits).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


def test_an_interruption_within_an_update_saves_nothing_that_is_half_done(tiny, tmp_path):
    broken = trainer(tiny, tmp_path, compile=False)
    update = broken._update

    def interrupted(*numbers):
        update(*numbers)
        if broken.step == 2:
            raise KeyboardInterrupt

    broken._update = interrupted
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.slow
def test_an_interruption_saves_a_checkpoint(tiny, tmp_path):
    class Interrupts(Stack):
        def __call__(self, examples):
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().__call__(examples)

    with pytest.raises(KeyboardInterrupt):
        trainer(tiny, tmp_path, collator=Interrupts(), compile=False).train()
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["step"] == 3
    assert trainer(tiny, tmp_path, compile=False).train(resume_from_checkpoint=True).steps == 6


@pytest.mark.slow
def test_streams_of_examples(tiny, tmp_path):
    class Stream:
        def __iter__(self):
            return iter(tiny[1][:6])

    known = {"max_steps": 5, "compile": False}
    streamed = trainer(tiny, tmp_path / "stream", Stream(), **known).train()
    listed = trainer(tiny, tmp_path / "list", tiny[1][:6], shuffle=False, **known).train()
    assert streamed.losses == listed.losses  # whose second batch has two rows
    with pytest.raises(ValueError, match="give max_steps"):
        trainer(tiny, tmp_path / "endless", Stream(), max_steps=0)
    with pytest.raises(ValueError, match="the data is empty"):
        trainer(tiny, tmp_path / "empty", [])


@pytest.mark.slow
def test_evaluation_and_recomputation(tiny, tmp_path):
    result = trainer(tiny, tmp_path, evaluation=tiny[1][:3], eval_steps=2, per_device_eval_batch_size=2).train()
    found = [line["eval_loss"] for line in result.history if "eval_loss" in line]
    assert len(found) == 3 and found[-1] < found[0]
    model = load_adapter(AutoModelForAudioTextToText.from_pretrained(tiny[0]), tmp_path)
    by_hand = [float(model(**example).loss.asnumpy()) for example in tiny[1][:3]]
    assert found[-1] == pytest.approx(np.mean(by_hand), rel=1e-5)
    again = trainer(tiny, tmp_path / "recompute", gradient_checkpointing=True).train()
    np.testing.assert_allclose(again.losses, result.losses, rtol=1e-5)


def test_what_is_kept_changes_no_number(tiny, tmp_path, monkeypatch):
    found, calls, construct = [], [], recompute.Layer.construct
    monkeypatch.setattr(recompute.Layer, "construct", lambda *given: calls.append(1) or construct(*given))
    for share in (0.01, 10**9):  # room for all layers, and for none
        monkeypatch.setattr(recompute, "_SHARE", share)
        settings = {"compile": False, "gradient_checkpointing": True, "max_steps": 2}
        found.append((trainer(tiny, tmp_path / str(share), **settings).train().losses, len(calls)))
        calls.clear()
    assert found[0][0] == found[1][0] and 2 * found[0][1] == found[1][1] > 0


@pytest.mark.slow
@pytest.mark.long
def test_recomputation_of_everything_that_can_be_learned(tiny, tmp_path):
    targets = ("q_proj", "down_proj", "multi_modal_projector", "fc1")
    settings = {"lora": {"target_modules": targets, "encoder": True}, "gradient_accumulation_steps": 2}
    one = trainer(tiny, tmp_path / "one", per_device_train_batch_size=2, **settings).train()
    again = trainer(
        tiny, tmp_path / "again", per_device_train_batch_size=2, gradient_checkpointing=True, **settings
    ).train()
    np.testing.assert_allclose(again.losses, one.losses, rtol=1e-5)
    ours, theirs = adapter_of(tmp_path / "again"), adapter_of(tmp_path / "one")
    assert max(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max() for name in theirs) < 1e-3
    dropped = [
        trainer(tiny, tmp_path / f"dropout {i}", dropout=0.5, gradient_checkpointing=True, max_steps=3).train().losses
        for i in range(2)
    ]
    assert dropped[0] == dropped[1] and dropped[0] != again.losses[:3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0}, "learning_rate=0: give a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0: give a whole number, at least 1"),
        ({"gradient_accumulation_steps": 1.5}, "gradient_accumulation_steps=1.5"),
        ({"warmup_ratio": 1.0}, "warmup_ratio=1.0"),
        ({"lr_scheduler_type": "step"}, "lr_scheduler_type='step': it may be linear, cosine, constant"),
        ({"metrics": ("bleu",)}, "metrics has 'bleu': it may have exact_match, wer"),
        ({"save_total_limit": 0}, "save_total_limit=0"),
        ({"max_steps": -1}, "max_steps=-1"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        FinetuneSettings("out", **changes)


def test_learning_rates_are_transformers(tmp_path):
    import torch
    from transformers import get_scheduler

    for kind, warmup in (("linear", 0), ("cosine", 3), ("linear", 5)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        schedule = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=20)
        ours = FinetuneSettings("out", learning_rate=0.1, lr_scheduler_type=kind, warmup_ratio=warmup / 20)
        for step in range(20):
            assert ours.rate(step, 20) == pytest.approx(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()


def test_nothing_to_train(tiny, tmp_path):
    model = AutoModelForAudioTextToText.from_pretrained(tiny[0])
    for parameter in model.get_parameters():
        parameter.requires_grad = False
    with pytest.raises(ValueError, match=r"nothing in the model is trainable: call add_lora"):
        Trainer(model, None, Stack(), FinetuneSettings(str(tmp_path), max_steps=1), tiny[1])


@pytest.mark.slow
def test_an_update_of_more_parameters_than_mindspore_nests_calls():
    """A loop over 250 adapters in a graph was refused: 32 layers with 14 each could not be trained."""
    values = np.random.default_rng(0).normal(size=(2, 250, 3, 2)).astype(np.float32)
    learned, sums = (
        [ms.Parameter(ms.Tensor(value), name=f"{kind}.{i}") for i, value in enumerate(some)]
        for kind, some in zip(("learned", "sum"), values)
    )
    reduce = graph(Reduce(sums, 1), True)
    update = graph(AdamW(learned, sums, [False] * 250, FinetuneSettings("unused")), True)
    loss, norm = reduce(ms.Tensor([6.0], ms.float32), ms.Tensor([2.0], ms.float32))
    assert loss.asnumpy() == 3 and np.isclose(norm.asnumpy(), np.linalg.norm(values[1] / 2))
    np.testing.assert_array_equal([total.asnumpy() for total in sums], values[1] / 2)
    update(*(ms.Tensor(value, ms.float32) for value in (0.25, 1, 0.1, 0.001)))  # a first step goes by the rate
    np.testing.assert_allclose([p.asnumpy() for p in learned], values[0] - np.sign(values[1]) / 4, atol=1e-4)
    assert not np.any([total.asnumpy() for total in sums])

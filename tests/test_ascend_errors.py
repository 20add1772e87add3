"""What a command says where an NPU cannot be used or a kernel fails: MindSpore's words, a cause, a remedy."""

import re
from pathlib import Path

import mindspore as ms
import pytest

from mindone_audio import cli
from mindone_audio.batch.job import BatchJob
from mindone_audio.batch.runner import run_batch
from mindone_audio.commands import ask, batch_job, finetune_job
from mindone_audio.machine import device

# Texts of public reports, shortened, and a word of the remedy.
REPORTS = {
    "Malloc device memory failed, size[2147483648], ret[207001], Device ID 0": "memory",
    "[ERROR] Ascend out of memory: tried to allocate 4.00 GiB": "memory",
    "set ASCEND_RT_VISIBLE_DEVICES:4 error, input data rang[0-2) EE1001": "count from 0",
    "rtSetDevice execute failed, reason=[invalid device] 107001": "count from 0",
    "drvErr=87, retCode 207005": "end the other process",
    "HcclGetRootInfo failed, error 19": "end the other process",
    "dcmi module initialize failed. ret is -8005": "driver",
    "libascend_hal.so: cannot open shared object file": "LD_LIBRARY_PATH",
    "open device 1 failed, runtime result = 507033. E39007": "doctor --device ascend",
    "aclnnMatmul failed, 507015, aicore exception": "doctor --ops",
    "EZ1001: x dtype or format is not supported, get io input info is x(DT_BFLOAT16, ND)": "--dtype float16",
    "EZ3002: TransData is unsupported": "operator package",
    "Parse dynamic kernel config fail. AclOpKernelInit failed opType": "operator package",
    "EC0010: Failed to import Python module [ModuleNotFoundError: No module named 'sympy']": "pip install",
    "Call aclnn failed, error code is 500001": "pip install",
    "error code is 561103": "published together",
    "Get ACL JitCompile default value failed": "published together",
    "libgomp-d22c30c5.so.1.0.0: cannot allocate memory in static TLS block": "LD_PRELOAD",
    "PermissionError: [Errno 13] Permission denied: '//kernel_meta'": "ASCEND_CACHE_PATH",
    "EI0006: Getting socket times out": "HCCL_CONNECT_TIMEOUT",
    "EJ0003: Failed to bind the IP port 60000": "HCCL_IF_BASE_PORT",
    "Unsupported device target Ascend. libge_runner.so: cannot open shared object file": "set_env.sh",
    "Something that nobody has reported": "doctor",
}
CLIP = str(Path(__file__).parents[1] / "examples" / "audio" / "siren.ogg")
STACK = """

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
mindspore/ccsrc/somewhere.cc:1 Function
"""


@pytest.fixture
def ascend(monkeypatch):
    monkeypatch.setattr(device, "is_ascend", lambda: True)


@pytest.mark.parametrize("report", REPORTS)
def test_a_failing_kernel_is_one_paragraph(report, ascend, monkeypatch, capsys):
    def fail(options):
        raise RuntimeError(report + STACK)

    monkeypatch.setattr(ask, "run", fail)
    assert cli.main(["ask", "a.wav", "What?"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert f"MindSpore says: {report}" in said and "Call Stack" not in said
    assert "Likely cause: " in said and REPORTS[report] in said.partition("What to do: ")[2]
    for code in re.findall(r"E[A-Z0-9]\d{4}|\b[25]0\d{4}\b", report):
        assert code in said.partition(".")[0]


def test_on_a_cpu_it_is_a_fault_of_the_program(monkeypatch):
    def fail(options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ask, "run", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        cli.main(["ask", "a.wav", "What?"])


def test_a_device_that_does_not_start(monkeypatch, capsys):
    """MindSpore only notes the device; the first tensor says that it cannot be used."""

    def compute():
        raise RuntimeError("Malloc device memory failed, Device ID 0" + STACK)

    monkeypatch.setattr(ms, "set_device", lambda *arguments: None)
    monkeypatch.setattr(device, "prepare", lambda: None)
    monkeypatch.setattr(device, "_compute", compute)
    with pytest.raises(device.DeviceError, match="What to do: .*MindSpore says: Malloc device memory failed"):
        device.set_device("ascend")
    assert cli.main(["parity", "tests/recordings/demo.safetensors", "--model", "nowhere", "--device", "ascend:1"]) == 2
    assert "Malloc device memory failed, Device ID 0\n" in capsys.readouterr().err


def test_a_device_that_mindspore_has_no_plugin_for(capsys):
    """MindSpore's own text says which library is missing."""
    with pytest.raises(ValueError, match="MindSpore says: Unsupported device target Ascend.*libmindspore_ascend"):
        device.set_device("ascend")


@pytest.mark.parametrize(("count", "expected"), [(0, "CPU"), (2, "Ascend"), (RuntimeError("no driver"), "CPU")])
def test_auto_takes_an_npu_that_answers(count, expected, monkeypatch):
    def device_count():
        if isinstance(count, Exception):
            raise count
        return count

    chosen = [("CPU", 0)]  # what MindSpore has already
    monkeypatch.setenv("ASCEND_HOME_PATH", "/somewhere")  # a container with CANN
    monkeypatch.delenv("DEVICE_ID", raising=False)
    monkeypatch.setattr(ms.device_context.ascend, "device_count", device_count)
    monkeypatch.setattr(ms, "set_device", lambda *arguments: chosen.append(arguments))
    monkeypatch.setattr(device, "_start", lambda limit: None)
    device.set_device("auto")
    assert chosen[-1] == (expected, 0)


@pytest.mark.parametrize("memory", ["40GB", "40", "0.5 gb", "2G"])
def test_a_limit_of_memory(memory, ascend, monkeypatch):
    given = {}
    monkeypatch.setattr(ms, "set_device", lambda *arguments: None)
    monkeypatch.setattr(ms.runtime, "set_memory", lambda **sizes: given.update(sizes))
    monkeypatch.setattr(device, "prepare", lambda: None)
    monkeypatch.delenv("DEVICE_ID", raising=False)
    monkeypatch.setattr(device, "_limits", [])
    device.set_device("ascend", memory)
    amount = float(memory.strip(" gGbB"))
    assert given == {"init_size": f"{min(2.0, amount)}GB", "max_size": f"{amount}GB"}
    assert device.memory() == ("the NPU", int(amount * 2**30))


@pytest.mark.parametrize("memory", ["", "much", "0", "-4GB", "40MB", "4e3GB", "٤GB"])
def test_no_amount_of_memory(memory, tmp_path, capsys):
    with pytest.raises(ValueError, match="device_memory .* is no amount of memory: write it as in 40GB"):
        device.set_device("cpu", memory)
    command = ["parity", "tests/recordings/demo.safetensors", "--model", "nowhere", f"--device-memory={memory}"]
    assert cli.main(command) == 2
    assert capsys.readouterr().err.startswith(f"error: --device-memory {memory!r} is no amount of memory")


def test_a_limit_on_a_cpu_is_said_to_do_nothing(caplog):
    device.set_device("cpu", "4GB")
    assert caplog.messages == ["the limit of 4 GB is for an NPU's memory: it changes nothing on a CPU"]


@pytest.mark.parametrize("text", ["open device 1 failed, runtime result = 507033", "Malloc device memory failed"])
def test_a_job_ends_where_nothing_else_would_succeed(text, ascend, tmp_path):
    """What was answered is kept and a rerun goes on; an item that only needs too much memory costs that item."""
    clips = sorted(str(path) for path in (Path(__file__).parents[1] / "examples" / "audio").iterdir())[:4]
    calls = []

    def pipe(inputs, **settings):
        calls.append(len(inputs))
        if len(calls) > 1 and text != "fine":
            raise RuntimeError(text)
        return [{"generated_text": "yes", "tokens": 1}] * len(inputs)

    job = BatchJob(clips, tmp_path / "out", batch_size=2)
    if "memory" in text:
        totals = run_batch(job, pipe=pipe, progress=False)
        assert (totals.answered, totals.failed) == (2, 2)
        return
    with pytest.raises(RuntimeError, match="507033"):
        run_batch(job, pipe=pipe, progress=False)
    text = "fine"
    totals = run_batch(job, pipe=pipe, progress=False)
    assert (totals.resumed, totals.answered, totals.failed) == (2, 2, 0)


def test_a_command_says_how_to_go_on(ascend, monkeypatch, capsys, tmp_path):
    def lose(*arguments, **settings):
        raise RuntimeError("open device 1 failed, runtime result = 507033" + STACK)

    monkeypatch.setattr(batch_job, "run_batch", lose)
    assert cli.main(["batch", CLIP, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"what is done is kept in {tmp_path / 'out'}: run the same command again to continue"
    assert second.startswith("error: The NPU does not start (507033). Likely cause: ")
    monkeypatch.setattr(finetune_job, "run_finetune", lose)
    (tmp_path / "adapter" / "checkpoint-3").mkdir(parents=True)
    assert cli.main(["finetune", "--train", "x.jsonl", "--output-dir", str(tmp_path / "adapter")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "the same command with --resume goes on" in first and second.startswith("error: The NPU does not start")

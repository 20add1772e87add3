"""What an error of MindSpore or CANN on an NPU means, and what to do about it.

Standard library only. The table is made from public reports of Ascend users; none of these errors was seen by its
author. MindSpore's own text always stays with what is said here.
"""

import re
from dataclasses import dataclass

_LONGEST = 1500  # characters of MindSpore's text that are shown


@dataclass(frozen=True)
class Known:
    """An error that is known by its text.

    signs: a regular expression. what, cause, remedy: sentences for people. passes: another, smaller piece of work may
    succeed on the same device, so a job can go on.
    """

    signs: str
    what: str
    cause: str
    remedy: str
    passes: bool = False


# The first row whose signs are in the text counts: what names its cause stands before what several causes have.
KNOWN = (
    Known(
        r"Malloc device memory failed|[Oo]ut of memory|EL0004|207001|[Mm]emory not enough|Allocate memory failed",
        "The NPU's memory does not suffice",
        "model, cache and workspace are too large together, or another process has the memory (`npu-smi info`)",
        "end the other process, use --dtype float16 or bfloat16, smaller batches and shorter answers, another NPU "
        "(--device ascend:1), or set --device-memory a few GB below what is free",
        passes=True,
    ),
    Known(
        r"input data rang|EE1001.*visible|207004|107001",
        "The process asks for an NPU that is not there",
        "ASCEND_RT_VISIBLE_DEVICES, DEVICE_ID or --device ascend:<index> names a number beyond the NPUs of this "
        "machine or container, where they are counted from 0",
        "unset ASCEND_RT_VISIBLE_DEVICES and DEVICE_ID, or count from 0",
    ),
    Known(
        r"drvErr=87|207005|HcclGetRootInfo.*\b19\b",
        "The NPU cannot be opened",
        "another process or container has it, or this user may not open its files below /dev (a user without an entry "
        "in /etc/passwd cannot either)",
        "end the other process, give each container an NPU of its own, and run mindone-audio doctor --device ascend",
    ),
    Known(
        r"ret is -80\d\d|dcmi module initialize failed|libascend_hal\.so|libdrvdsmi|Cannot find driver so",
        "The driver cannot be reached",
        "the container has no NPU or no driver folder, or the driver's libraries are not found",
        "start the container with its NPU and /usr/local/Ascend/driver, and add /usr/local/Ascend/driver/lib64 and its "
        "folders common and driver to LD_LIBRARY_PATH",
    ),
    Known(
        r"E39007|507033|open device \d+ failed",
        "The NPU does not start",
        "another process has it, ASCEND_RT_VISIBLE_DEVICES is out of order or beyond the NPUs, or CANN's operator "
        "package is of another version than CANN or the driver",
        "run mindone-audio doctor --device ascend, end other processes, and give ascending numbers from 0",
    ),
    Known(
        r"\b507\d{3}\b|E30003|aicore (exception|timeout)|device task (abort|fail)",
        "A kernel failed on the NPU",
        "a kernel of another CANN version, an input that it does not take, or an NPU that is not healthy",
        "run `npu-smi info -t health -i <NPU>`, then mindone-audio doctor --ops --device ascend, to find it",
    ),
    Known(
        r"EZ1001|DT_BFLOAT16.*not support|dtype or format is not supported",
        "An operation does not take this dtype on this NPU",
        "bfloat16 on a chip that has none (910A, 310P, 310B), or an operator package of another version",
        "use --dtype float16, or float32; mindone-audio doctor --ops --device ascend tells which operations are meant",
    ),
    Known(
        r"EZ3002|EZ3003|AclOpKernelInit failed|Parse dynamic kernel config fail|Cannot find opp path",
        "CANN has no kernel for an operation",
        "the operator package is not installed, or is that of another chip",
        "install the operator package of this chip and of CANN's version (Ascend-cann-kernels-<chip> up to 8.3, "
        "Ascend-cann-<chip>-ops from 8.5), and source set_env.sh again",
    ),
    Known(
        r"EC0010|\b500001\b|No module named|Failed to import Python module|relies on whl package",
        "CANN's operator compiler does not start",
        "a Python module that it imports is missing from this environment, or numpy is 2 or newer",
        "pip install attrs cython 'numpy<2' decorator sympy cffi pyyaml pathlib2 psutil protobuf scipy requests "
        "absl-py",
    ),
    Known(
        r"561103|JitCompile default value failed|161002|undefined symbol|does not match, the version of software",
        "CANN, the driver and MindSpore do not go together",
        "the driver is older than CANN needs, or CANN is of a version that this MindSpore was not built for",
        "install versions that were published together: mindone-audio doctor --device ascend names them",
    ),
    Known(
        r"static TLS block",
        "A library cannot be loaded behind others",
        "an OpenMP library of scikit-learn or PyTorch comes too late, on aarch64",
        "export LD_PRELOAD=<the libgomp that the message names> before the command",
    ),
    Known(
        r"kernel_meta|ge\.debugDir",
        "CANN cannot write its files",
        "the working folder or the folder of its cache cannot be written",
        "start in a folder that you can write, or set ASCEND_CACHE_PATH to one",
    ),
    Known(
        r"EI0006|EI0019|EJ0002|EJ0003|HCCL|[Hh]ccl",
        "The NPUs of a job do not reach each other",
        "a rank did not start or is slow (EI0006 comes after 120 s), a port is taken (EJ0003), or a link is down",
        "look at the first rank that failed; set HCCL_CONNECT_TIMEOUT=600 for a slow start and HCCL_IF_BASE_PORT for a "
        "port that is taken; without several NPUs unset RANK_ID, RANK_SIZE and RANK_TABLE_FILE",
    ),
    Known(
        r"Unsupported device target Ascend|libge_runner\.so|libascendcl\.so|libmindspore_ascend",
        "MindSpore cannot use an NPU in this process",
        "CANN is not installed, or its set_env.sh was not sourced in this shell (a service does not read ~/.bashrc)",
        "source /usr/local/Ascend/cann/set_env.sh (before CANN 8.5: /usr/local/Ascend/ascend-toolkit/set_env.sh), or "
        "use --device cpu",
    ),
)
_UNKNOWN = Known(
    "",
    "MindSpore could not go on with the NPU",
    "not known here",
    "run mindone-audio doctor --device ascend, then with --ops; a plog below ~/ascend/log says more",
)
# Codes of CANN and of its runtime; a traceback of C++ tells users nothing.
_CODE = re.compile(r"\bE[A-Z0-9]\d{4}\b|\b(?:[125]07\d{3}|50000\d|[1356]61\d{3})\b|-80\d\d\b")
_CALL_STACK = re.compile(r"-{5,}\s+- (?:C\+\+ Call Stack|The Traceback).*", re.DOTALL)


def known(text: str) -> Known | None:
    """The row of `KNOWN` for an error's text; None for one that is not known."""
    return next((row for row in KNOWN if re.search(row.signs, text)), None)


def ends_the_job(text: str) -> bool:
    """Whether nothing else can be computed either after this error, such as where the device is gone."""
    row = known(text)
    return row is not None and not row.passes


def explain(text: str) -> str:
    """One paragraph: what happened, the likely cause, what to do, and MindSpore's own words."""
    row = known(text) or _UNKNOWN
    own = own_words(text)
    codes = ", ".join(dict.fromkeys(_CODE.findall(text)))
    what = f"{row.what} ({codes})" if codes else row.what
    return f"{what}. Likely cause: {row.cause}. What to do: {row.remedy}. MindSpore says: {own}"


def own_words(text: str) -> str:
    """What MindSpore says, in one line, without its call stack."""
    return " ".join(re.sub("-{5,}", " ", _CALL_STACK.sub("", text)).split())[:_LONGEST]

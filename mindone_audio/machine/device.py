"""Which back end MindSpore computes on, and in which dtype."""

import logging
import os
import re
from functools import cache

import mindspore as ms
import numpy as np
from mindspore._c_expression import MSContext, PyNativeExecutor_

from mindone_audio.conversion import share
from mindone_audio.machine import ascend_errors, chips, doctor
from mindone_audio.setting_fields import SettingError, refusal

logger = logging.getLogger(__name__)

_DEVICES = {"cpu": "CPU", "ascend": "Ascend", "npu": "Ascend"}
_limits: list[float] = []  # gigabytes of an NPU's memory that this process may take, where it was told


def set_device(name: str, memory: str | None = None) -> None:
    """Select the back end: `"auto"`, `"cpu"`, `"ascend"` (or `"npu"`), with an optional index as in `"ascend:1"`.

    "auto" is an Ascend NPU where one answers, otherwise the CPU. Without an index, DEVICE_ID says which of the NPUs
    that ASCEND_RT_VISIBLE_DEVICES leaves; without that, the first. memory: the most that MindSpore takes of an NPU's,
    such as "40GB"; a CPU has no limit. Raises `ValueError` for another name, an index or an amount that is not a
    number, a back end that this machine does not have, and after the first tensor; `DeviceError` for an NPU that does
    not start.
    """
    kind, _, index = name.lower().partition(":")
    limit = None if memory is None else _gigabytes(memory)
    if kind == "auto" and not index:
        kind = "ascend" if _may_have_npu() and _npus() else "cpu"
    if kind not in _DEVICES or (index and not index.isdigit()):
        raise ValueError(f"unknown device {name!r}: use one of auto, {', '.join(_DEVICES)}, or ascend:<index>")
    target = _DEVICES[kind]
    if target == "Ascend" and not index:
        index = os.environ.get("DEVICE_ID", "0")
        if not index.isdigit():
            raise ValueError(f"the environment variable DEVICE_ID is {index!r}: it should be a device's number")
    if target == "CPU" and limit is not None:
        logger.warning("the limit of %g GB is for an NPU's memory: it changes nothing on a CPU", limit)
    # MindSpore refuses even the device that it has once it is running.
    if (target, int(index or 0)) != (ms.get_context("device_target"), ms.get_context("device_id")):
        try:
            ms.set_device(target, int(index or 0))
        except RuntimeError as error:
            raise _refused(name, str(error)) from error
    if target == "Ascend":
        _start(limit)


def _gigabytes(memory: str) -> float:
    """An amount as a person writes it."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:GB?)?\s*", memory, re.IGNORECASE)
    if not match or not float(match[1]):
        raise refusal("device_memory", f" {memory!r} is no amount of memory: write it as in 40GB")
    return float(match[1])


def _refused(name: str, text: str) -> SettingError:
    """The error for a device that MindSpore does not select, with what it says."""
    if "Unsupported device target" not in text:
        return SettingError(
            f"cannot switch to device {name!r}: MindSpore is already running on {ms.get_context('device_target')}. "
            f"Choose the device before the first tensor is made. MindSpore says: {ascend_errors.own_words(text)}"
        )
    return SettingError(
        lambda say: (
            f"device {name!r} is not available here: MindSpore finds no Ascend NPU with CANN and a driver. Check "
            f"`npu-smi info` and that CANN's set_env.sh was sourced in this shell, or use {say('device', 'cpu')}. "
            f"MindSpore says: {ascend_errors.own_words(text)}"
        )
    )


def _start(limit: float | None) -> None:
    """Compute something on the NPU: MindSpore only notes its name before, and what is wrong with it shows now."""
    prepare()
    try:
        if limit is not None and limit not in _limits:  # it can be set once
            ms.runtime.set_memory(init_size=f"{min(2.0, limit)}GB", max_size=f"{limit}GB")
            _limits.append(limit)
        _compute()
    except RuntimeError as error:
        raise DeviceError(ascend_errors.explain(str(error))) from error


def _compute() -> None:
    (ms.Tensor([1.0]) + 1).asnumpy()


def _npus() -> int:
    """How many NPUs answer MindSpore."""
    ascend = ms.device_context.ascend if hasattr(ms.device_context.ascend, "device_count") else None
    try:
        return ascend.device_count() if ascend else int(ms.hal.is_available("Ascend"))
    except (RuntimeError, ValueError):  # the plugin does not load, or finds no driver
        return 0


def _may_have_npu() -> bool:
    """Whether it is worth asking MindSpore, which prints a complaint about CANN's libraries where there are none."""
    return "ASCEND_HOME_PATH" in os.environ or os.path.exists("/dev/davinci_manager")


def is_ascend() -> bool:
    """True where tensors are computed on an Ascend NPU."""
    return ms.get_context("device_target") == "Ascend"


def memory() -> tuple[str, int | None]:
    """Whose memory models are computed in, and its bytes: the machine's, or the NPU's up to the limit of `set_device`.

    None where MindSpore does not tell.
    """
    if not is_ascend():
        return "this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        total = ms.hal.get_device_properties(0, "Ascend").total_memory
    except (AttributeError, RuntimeError, ValueError):  # MindSpore has announced that this function will go
        total = 0
    known = [size for size in (int(total), *(int(limit * 2**30) for limit in _limits[-1:])) if size]
    return "the NPU", min(known, default=None)


def scatters_rows() -> bool:
    """Whether a tensor's rows are what is written in place here, as on Ascend; a CPU adds along any axis."""
    return is_ascend()


def shares_memory() -> bool:
    """Whether parameters are in the host's memory, where one can be a part of another, and where their addresses tell
    whether they are still what a graph was compiled with."""
    return not is_ascend()


def fixes_shapes() -> bool:
    """Whether a graph may be told once and for all of which shapes its arguments are.

    On Ascend that changes more: how inputs are copied, and with CANN's own graph compiler the dtype.
    """
    return not is_ascend()


def looks_up_bytes() -> bool:
    """Whether it is known to be fast to look a value up for each byte of a weight. Nobody has measured it on an NPU."""
    return not is_ascend()


def explain_failure(error: RuntimeError) -> str | None:
    """One paragraph about an error of the NPU or of CANN; None on a CPU, where it is a fault of the program."""
    return ascend_errors.explain(str(error)) if is_ascend() else None


def is_lost(error: Exception) -> bool:
    """Whether nothing else can be computed on the device after this error."""
    return is_ascend() and isinstance(error, RuntimeError) and ascend_errors.ends_the_job(str(error))


def saves_graphs() -> bool:
    """Whether what MindSpore's compiler saves of a graph is known to be all that it needs to load it."""
    return not is_ascend()


@cache
def prepare() -> None:
    """Tell the back end how to run kernels, once, before the first model is built.

    A CPU launches them synchronously, since interpreted operations otherwise go to threads that fight over few cores.
    On Ascend the operations that CANN would compile for each new shape, in seconds, take its prebuilt kernels.
    """
    if is_ascend():
        try:
            ms.device_context.ascend.op_tuning.op_compile(False)
        except RuntimeError as error:  # the user has chosen the other
            logger.info("CANN compiles operations as it was told to: %s", error)
    else:
        ms.runtime.launch_blocking()


def synchronize() -> None:
    """Wait until all that was called is computed, on any device, which `mindspore.runtime.synchronize` does not."""
    PyNativeExecutor_.get_instance().sync()


def tensor(array: np.ndarray) -> ms.Tensor:
    """A tensor of an array that may be changed as soon as a graph was called with it.

    On a CPU it is the array's memory, which a graph has read when it returns. An NPU copies later.
    """
    return ms.Tensor(array) if is_ascend() else share(array)


class DeviceError(OSError):
    """An NPU that MindSpore cannot use. The message has a likely cause, what to do, and MindSpore's own words."""


class UnsupportedEnvironment(OSError):
    """Versions of MindSpore, the driver or CANN that are known not to work."""


def check_versions() -> None:
    """Before a model is loaded on Ascend: raise `UnsupportedEnvironment` for versions that are too old, log doubts.

    It reads a few small files, once. MINDONE_AUDIO_SKIP_CHECKS=1 turns it off, and a log line says so.
    """
    if is_ascend():
        _check_versions()


@cache
def _check_versions() -> None:
    if doctor.skips_checks(os.environ):
        logger.warning("%s is set: the versions of driver and CANN were not checked", doctor.SKIP_CHECKS)
        return
    findings = doctor.check_ascend(soc=_soc())
    for finding in findings:
        if finding.level == doctor.WARNING:
            logger.warning("%s: %s. %s", finding.about, finding.found, finding.action)
    errors = [f"{f.about}: {f.found}. {f.action}" for f in findings if f.level == doctor.ERROR]
    if errors:
        raise UnsupportedEnvironment(
            f"{' '.join(errors)} (mindone-audio doctor says more; {doctor.SKIP_CHECKS}=1 loads all the same)"
        )


def compute_dtype(requested: ms.Type) -> ms.Type:
    """The dtype that weights stored or requested as `requested` are computed in on this device.

    Ascend computes in the requested dtype, but some chips have no bfloat16, which becomes float16. MindSpore's CPU back
    end has no bfloat16 matmul and a slow float16 one, so every half precision becomes float32. One log line says so.
    """
    if requested in compute_dtypes() or requested not in (ms.bfloat16, ms.float16):
        return requested
    if not is_ascend():
        _log_once("MindSpore's CPU back end cannot compute in %s: the weights are converted to Float32", requested)
        return ms.float32
    _log_once("this NPU (%s) has no bfloat16: the weights are converted to Float16, up to 65504", _chip().title)
    return ms.float16


def compute_dtypes() -> tuple[ms.Type, ...]:
    """The dtypes that models are computed in on this device."""
    if not is_ascend():
        return (ms.float32,)
    chip = _chip()
    return (ms.float32, ms.float16, ms.bfloat16)[: 3 if chip is None or chip.bfloat16 else 2]


def _chip() -> chips.Chip | None:
    """The NPU's kind as MindSpore names it; None for one that is not known here."""
    return chips.chip_by_soc(_soc())


def _soc() -> str:
    """MindSpore's name of the NPU, such as ascend910b; empty where it has none."""
    return MSContext.get_instance().get_ascend_soc_version()


@cache
def _log_once(message: str, about: object) -> None:
    logger.warning(message, about)

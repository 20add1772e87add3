"""Which back end MindSpore computes on, and in which dtype."""

import logging
import os
from functools import cache

import mindspore as ms

from mindone_audio.machine import doctor
from mindone_audio.setting_fields import SettingError

logger = logging.getLogger(__name__)

_DEVICES = {"cpu": "CPU", "ascend": "Ascend", "npu": "Ascend"}


def set_device(name: str) -> None:
    """Select the back end: `"auto"`, `"cpu"`, `"ascend"` (or `"npu"`), with an optional index as in `"ascend:1"`.

    "auto" is an Ascend NPU where MindSpore finds one, otherwise the CPU. Without an index, DEVICE_ID says which of the
    NPUs that ASCEND_RT_VISIBLE_DEVICES leaves; without that, the first. Raises `ValueError` for another name, an index
    that is not a number, or a back end that this machine does not have.
    """
    kind, _, index = name.lower().partition(":")
    if kind == "auto" and not index:
        kind = "ascend" if _may_have_npu() and ms.hal.is_available("Ascend") else "cpu"
    if kind not in _DEVICES or (index and not index.isdigit()):
        raise ValueError(f"unknown device {name!r}: use one of auto, {', '.join(_DEVICES)}, or ascend:<index>")
    target = _DEVICES[kind]
    if target == "Ascend" and not ms.hal.is_available("Ascend"):
        raise SettingError(
            lambda say: (
                f"device {name!r} is not available here: MindSpore finds no Ascend NPU with CANN and a driver. "
                f"Check `npu-smi info` and that CANN's set_env.sh was sourced, or use {say('device', 'cpu')}"
            )
        )
    if target == "Ascend" and not index:
        index = os.environ.get("DEVICE_ID", "0")
        if not index.isdigit():
            raise ValueError(f"the environment variable DEVICE_ID is {index!r}: it should be a device's number")
    if (target, int(index or 0)) == (ms.get_context("device_target"), ms.get_context("device_id")):
        return  # MindSpore refuses even the device it has once it is running
    try:
        ms.set_device(target, int(index or 0))
    except RuntimeError as error:
        raise ValueError(
            f"cannot switch to device {name!r}: MindSpore is already running on {ms.get_context('device_target')}. "
            "Choose the device before the first tensor is made"
        ) from error


def _may_have_npu() -> bool:
    """Whether it is worth asking MindSpore, which prints a complaint about CANN's libraries where there are none."""
    return "ASCEND_HOME_PATH" in os.environ or os.path.exists("/dev/davinci_manager")


def is_ascend() -> bool:
    """True where tensors are computed on an Ascend NPU."""
    return ms.get_context("device_target") == "Ascend"


def scatters_rows() -> bool:
    """Whether a tensor's rows are what is written in place here, as on Ascend; a CPU adds along any axis."""
    return is_ascend()


def shares_memory() -> bool:
    """Whether parameters are in the host's memory, where one can be a part of another, and where their addresses tell
    whether they are still what a graph was compiled with."""
    return not is_ascend()


def saves_graphs() -> bool:
    """Whether what MindSpore's compiler saves of a graph is known to be all that it needs to load it."""
    return not is_ascend()


@cache
def prepare() -> None:
    """Make the CPU back end launch kernels synchronously, once, before the first model is built.

    Otherwise interpreted operations go to threads that fight over few cores.
    """
    if not is_ascend():
        ms.runtime.launch_blocking()


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
    findings = doctor.check_ascend()
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

    Ascend computes in the requested dtype. MindSpore's CPU back end has no bfloat16 matmul and a slow
    float16 one, so there every half precision becomes float32, and one log line says so.
    """
    if requested in (ms.bfloat16, ms.float16) and not is_ascend():
        _log_promotion(str(requested))
        return ms.float32
    return requested


def compute_dtypes() -> tuple[ms.Type, ...]:
    """The dtypes that models are computed in on this device."""
    return (ms.float32, ms.float16, ms.bfloat16) if is_ascend() else (ms.float32,)


@cache
def _log_promotion(dtype: str) -> None:
    logger.warning("MindSpore's CPU back end cannot compute in %s: the weights are converted to Float32", dtype)

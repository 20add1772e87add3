"""The kinds of Ascend chips: how npu-smi and MindSpore name them, and what differs between them.

Standard library only. Sources: Huawei's operator documents (which chips cast to bfloat16), MindSpore's
`get_ascend_soc_version`, the folders of CANN's operator packages, and for speeds the device profiles of Huawei's
MindStudio Modeling (github.com/Ascend/msmodeling, tensor_cast/device.py). No chip was tried by the authors.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    soc: str  # MindSpore's SoC version, which is also the folder of the chip's kernels in CANN
    title: str
    names: str  # npu-smi's names, a regular expression
    packages: tuple[str, str]  # CANN's package of its operators: up to 8.3, and from 8.5 on
    bfloat16: bool
    established: bool  # the models of this library were written for it


CHIPS = (
    # An A3 prints "Ascend910", which is no 910A.
    Chip(
        "ascend910_93",
        "Atlas A3",
        r"ascend910|(ascend)?910_?93\w*|(ascend)?910c\w*",
        ("Atlas-A3-cann-kernels", "Ascend-cann-A3-ops"),
        True,
        True,
    ),
    Chip(
        "ascend910b",
        "Atlas A2 (910B)",
        r"(ascend)?910b\w*(-\w+)?",
        ("Ascend-cann-kernels-910b", "Ascend-cann-910b-ops"),
        True,
        True,
    ),
    Chip("ascend950", "Ascend 950", r"(ascend)?950\w*", ("Ascend-cann-950-ops", "Ascend-cann-950-ops"), True, True),
    Chip(
        "ascend910",
        "910A (first generation)",
        r"(ascend)?910(a|pro\w*|premium\w*)|910",
        ("Ascend-cann-kernels-910", "Ascend-cann-910-ops"),
        False,
        False,
    ),
    Chip(
        "ascend310p",
        "310P (Atlas 300I, 300V)",
        r"(ascend)?310p\w*",
        ("Ascend-cann-kernels-310p", "Ascend-cann-310p-ops"),
        False,
        False,
    ),
    Chip(
        "ascend310b",
        "310B (Atlas 200I, Orange Pi)",
        r"(ascend)?310b\w*",
        ("Ascend-cann-kernels-310b", "Ascend-cann-310b-ops"),
        False,
        False,
    ),
)


@dataclass(frozen=True)
class Speed:
    """What is published of a chip: bytes a second of its memory, bfloat16 operations a second of its matrix unit (a
    multiplication and an addition are two), and bytes of memory."""

    bandwidth: float
    operations: float
    memory: float


# By npu-smi's name. Huawei calls them 376T, 313T and 280T, which is their float16 at the highest clock. A 910B4 with
# 64 GB has twice the bandwidth; its name is 910B4-1.
SPEEDS = {
    "910B2": Speed(1.6e12, 353.9e12, 64e9),
    "910B3": Speed(1.6e12, 294.9e12, 64e9),
    "910B4": Speed(0.8e12, 245.8e12, 32e9),
    "910B4-1": Speed(1.6e12, 245.8e12, 64e9),
}


def speed_by_name(name: str) -> Speed | None:
    """The published speed of the chip that `npu-smi info` prints as `name`; `None` where there is none."""
    return SPEEDS.get(name.strip().upper().removeprefix("ASCEND"))


def chip_by_name(name: str) -> Chip | None:
    """The chip that `npu-smi info` prints as `name`, such as 910B4, 310P3 or Ascend910; `None` for an unknown one."""
    return next((chip for chip in CHIPS if re.fullmatch(chip.names, name.strip(), re.IGNORECASE)), None)


def chip_by_soc(version: str) -> Chip | None:
    """The chip of MindSpore's SoC version, such as ascend910b or Ascend910B2; `None` for an unknown or empty one.

    "ascend910" is the 910A here, unlike for npu-smi.
    """
    exact = next((chip for chip in CHIPS if chip.soc == version.strip().lower()), None)
    return exact or chip_by_name(version)

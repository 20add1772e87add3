"""The kinds of Ascend chips: how npu-smi and MindSpore name them, and what differs between them.

Standard library only. Sources: Huawei's operator documents (which chips cast to bfloat16), MindSpore's
`get_ascend_soc_version`, the folders of CANN's operator packages. No chip was tried by the authors.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    soc: str  # MindSpore's SoC version, which is also the folder of the chip's kernels in CANN
    title: str
    names: str  # npu-smi's names, a regular expression
    package: str  # how the names of CANN's packages and images spell it
    bfloat16: bool
    established: bool  # the models of this library were written for it


CHIPS = (
    # An A3 prints "Ascend910", which is no 910A.
    Chip("ascend910_93", "Atlas A3", r"ascend910|(ascend)?910_?93\w*|(ascend)?910c\w*", "A3", True, True),
    Chip("ascend910b", "Atlas A2 (910B)", r"(ascend)?910b\w*(-\w+)?", "910b", True, True),
    Chip("ascend950", "Ascend 950", r"(ascend)?950\w*", "950", True, True),
    Chip("ascend910", "910A (first generation)", r"(ascend)?910(a|pro\w*|premium\w*)|910", "910", False, False),
    Chip("ascend310p", "310P (Atlas 300I, 300V)", r"(ascend)?310p\w*", "310p", False, False),
    Chip("ascend310b", "310B (Atlas 200I, Orange Pi)", r"(ascend)?310b\w*", "310b", False, False),
)


def chip_by_name(name: str) -> Chip | None:
    """The chip that `npu-smi info` prints as `name`, such as 910B4, 310P3 or Ascend910; `None` for an unknown one."""
    return next((chip for chip in CHIPS if re.fullmatch(chip.names, name.strip(), re.IGNORECASE)), None)


def chip_by_soc(version: str) -> Chip | None:
    """The chip of MindSpore's SoC version, such as ascend910b; `None` for an unknown or empty one."""
    return next((chip for chip in CHIPS if chip.soc == version.strip().lower()), None)

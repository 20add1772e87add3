"""Communication between the processes of one training; none where there is only one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, Tensor
from mindspore import ops as msops

from mindone_audio.machine.msrun import number_of_ranks


@dataclass(frozen=True)
class Ranks:
    """This process among `count` equal ones, started by msrun."""

    rank: int = 0
    count: int = 1

    @classmethod
    def find(cls) -> "Ranks":
        """Those of msrun's environment. Joins their communication group."""
        if number_of_ranks(os.environ) == 1:
            return cls()
        from mindspore import communication

        communication.init()
        return cls(communication.get_rank(), communication.get_group_size())

    @property
    def first(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all ranks."""
        if self.count == 1:
            return list(numbers)
        return msops.AllReduce()(Tensor(np.asarray(numbers, np.float32))).asnumpy().tolist()

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return flag if self.count == 1 else self.sum([float(flag)])[0] > 0

    def wait(self) -> None:
        """Return when all ranks have called this."""
        self.sum([0.0])

    def share_first(self, parameters: Sequence[Parameter]) -> None:
        """Copy the values of the first rank to all ranks."""
        if self.count == 1:
            return
        flat = np.concatenate([parameter.asnumpy().astype(np.float32).reshape(-1) for parameter in parameters])
        flat = msops.AllReduce()(Tensor(flat if self.first else np.zeros_like(flat))).asnumpy()
        start = 0
        for parameter in parameters:
            values = flat[start : start + parameter.size].reshape(parameter.shape)
            msops.assign(parameter, Tensor(values).astype(parameter.dtype))
            start += parameter.size

"""What tells whether a compiled graph still computes what its model is."""

from mindspore import nn

from mindone_audio.machine import device


class WeightsState:
    """What a compiled graph has taken from a model for good: its cells, its adapters' state, its parameters' memory.

    A graph reads the parameters each time it runs, but always at the addresses that they had, and not where `set_data`
    has put them since. It does not see whether a `mindone.peft` layer stands in a cell's place, is disabled or merged,
    which adapters are active, how they are scaled, and whether the cell is being trained.
    """

    def __init__(self, model: nn.Cell):
        # The cells themselves are kept, since the id of one that is gone may be another's.
        self.cells = _cells(model)
        self.states = [_state(cell) for cell in self.cells]
        parameters = [p for cell in self.cells for p in cell._params.values() if p is not None]
        self.addresses = [parameter.data_ptr() for parameter in parameters] if device.shares_memory() else []

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WeightsState) or len(self.cells) != len(other.cells):
            return False
        same = all(a is b for a, b in zip(self.cells, other.cells))
        return same and self.states == other.states and self.addresses == other.addresses


def _cells(model: nn.Cell) -> list[nn.Cell]:
    """All cells in a model, each once. MindSpore's `cells_and_names` makes names, which takes ten times as long."""
    found, waiting = {}, [model]
    while waiting:
        cell = waiting.pop()
        if cell is not None and id(cell) not in found:
            found[id(cell)] = cell
            waiting += cell._cells.values()
    return list(found.values())


def _state(cell: nn.Cell) -> tuple:
    if "merged_adapters" not in vars(cell):  # not an isinstance: a model without adapters imports no mindone.peft
        return (cell.training,)
    active, merged = tuple(cell.active_adapters), tuple(cell.merged_adapters)
    return cell.training, cell.disable_adapters, merged, active, dict(cell.scaling)

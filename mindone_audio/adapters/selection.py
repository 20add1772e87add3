"""Which of a model's adapters takes part in what is computed next."""

from mindone_audio.backbone.checkpoint_model import CheckpointModel


def select_adapter(model: CheckpointModel, name: str | None) -> None:
    """Activate the adapter `name` alone, or none. Graphs that are compiled already stay as they were compiled."""
    layers = [cell for _, cell in model.cells_and_names() if "merged_adapters" in vars(cell)]
    for cell in layers:
        cell.enable_adapters(name is not None)
        if name is not None:
            cell.set_adapter(name)

"""What training tells: lines of log.csv, log messages, and TensorBoard's events."""

import csv
import logging
from pathlib import Path

from mindone_audio.machine.files import replacing

logger = logging.getLogger(__name__)

NAME = "log.csv"


class Log:
    """Writes dicts with a "step"; a context manager. A run that goes on keeps the lines up to its step."""

    def __init__(self, folder: Path, report_to: tuple[str, ...], step: int, writes: bool):
        """step: where this run begins. writes: False for all but the first of several ranks."""
        self._path = folder / NAME if "csv" in report_to and writes else None
        self._lines: list[dict] = []
        self._events = None
        self._writes = writes
        if self._path is not None and self._path.is_file() and step:
            with open(self._path, newline="", encoding="utf-8") as file:
                self._lines = [line for line in csv.DictReader(file) if int(line["step"]) <= step]
        if "tensorboard" in report_to and writes:
            self._events = _events(folder)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, line: dict) -> dict:
        """Keep it and return it."""
        if self._writes:
            shown = ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items())
            logger.info("%s", shown)
        if self._path is not None:
            self._lines.append(line)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            names = list(dict.fromkeys(name for known in self._lines for name in known))
            # Replaced whole: a run that is killed here, or a full disk, leaves the lines of earlier steps.
            with replacing(self._path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(self._lines)
        if self._events is not None:
            for name, value in line.items():
                if name != "step":
                    self._events.add_scalar(name, value, line["step"])
        return line


def _events(folder: Path):
    for package in ("tensorboardX", "torch.utils.tensorboard"):
        try:
            return __import__(package, fromlist=["SummaryWriter"]).SummaryWriter(str(folder))
        except ImportError:
            continue
    logger.warning("TensorBoard is not installed (pip install tensorboardX): only log.csv is written")
    return None

"""The sound files that commands write."""

from pathlib import Path
from typing import TYPE_CHECKING

from mindone_audio.commands.options import WrongUse
from mindone_audio.machine.files import replacing

if TYPE_CHECKING:  # not for --help
    import numpy as np

FORMATS = {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3"}  # by the ending of the file


def check_name(option: str, path: Path) -> None:
    """`WrongUse` for a file, given as this option, whose name does not tell how to write it."""
    if path.suffix.lower() not in FORMATS:
        raise WrongUse(f"{option} {path}: the file's name must end in {', '.join(FORMATS)}")


def write_sound(path: Path, samples: "np.ndarray", sampling_rate: int) -> str:
    """Write samples float32 (samples), at a rate in Hz, or nothing where that fails; returns what was done."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        soundfile.write(new, samples, sampling_rate, format=FORMATS[path.suffix.lower()])
    return f"{path}: {len(samples) / sampling_rate:.1f} s"

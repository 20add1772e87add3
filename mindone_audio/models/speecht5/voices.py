"""Voices: the speaker embeddings (x-vectors) that SpeechT5 speaks with."""

import os
from pathlib import Path

import numpy as np

from mindone_audio.backbone.checkpoint_model import to_numpy
from mindone_audio.weights.parameters import read_tensor, tensors_in


def published_voices(size: int) -> str:
    """Where there are voices, for a message."""
    return (
        f"take one of the published x-vectors, float32 ({size},) each: spkrec-xvect.zip of the Hugging Face data set "
        "Matthijs/cmu-arctic-xvectors has them as .npy files"
    )


def speaker_embeddings(source, size: int) -> np.ndarray:
    """Voices fp32 (voices, size), each of length 1.

    source: an array or tensor (size) or (voices, size), or the .npy or .safetensors file of one. Raises `ValueError`
    for none, another size, zeros or what is no number, and `OSError` for a file that cannot be read.
    """
    where = published_voices(size)
    if source is None:
        raise ValueError(f"speaker_embeddings are missing, so that there is no voice to speak with: {where}")
    name = "speaker_embeddings"
    if isinstance(source, (str, os.PathLike)):
        name, source = str(source), read_voice(source)
    found = to_numpy(source)
    if found.dtype.kind not in "fiu" or found.ndim not in (1, 2) or not len(found) or found.shape[-1] != size:
        raise ValueError(f"{name}: shape {found.shape} of {found.dtype} is not ({size},) or (batch, {size}): {where}")
    found = np.atleast_2d(found).astype(np.float32)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ValueError(f"{name}: all zeros, or numbers that are not finite, are no voice: {where}")
    return found / lengths


def read_voice(path: str | os.PathLike) -> np.ndarray:
    """The array of a .npy file, or the only tensor of a .safetensors file; errors as for `speaker_embeddings`."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no file {str(path)!r} with a voice (seen from {os.getcwd()}): check the path")
    if file.suffix == ".safetensors":
        tensors = list(tensors_in(file))
        if len(tensors) != 1:
            names = ", ".join(tensor.name for tensor in tensors)
            raise ValueError(f"{file} has {len(tensors)} tensors ({names}): a voice is a file with one")
        return read_tensor(tensors[0]).astype(np.float32)
    if file.suffix != ".npy":
        raise ValueError(f"{file}: a voice is a .npy or a .safetensors file, not {file.suffix or 'one without ending'}")
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is not an array that NumPy saved ({error}): download it again") from error

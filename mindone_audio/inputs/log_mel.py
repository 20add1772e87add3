"""Whisper's log-mel spectrogram without PyTorch, on several cores: the same bits whoever asks, alone and in any batch.

The formula is that of openai/whisper, `whisper/audio.py`; its settings are those of a `WhisperFeatureExtractor`. The
Fourier transform is in float64. transformers on PyTorch transforms in float32, whose rounding shows in what is 55 dB
and more below the loudest of a frame: there, its own log-mels are off from exact ones by up to 7e-5, otherwise on
every kind of processor, and these are off from it by the same. Everything louder is equal to it within 1e-5.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
from scipy.fft import rfft
from scipy.sparse import csr_array
from transformers import WhisperFeatureExtractor

FLOOR = -10.0  # of the logarithm, so of silence
RANGE = 8.0  # powers of ten below the loudest value of a clip; what is quieter is raised to that
FRAMES_A_THREAD = 800  # at least: for fewer it takes too long to start a thread
MOST_THREADS = 8  # more wait for Python's lock
BLOCK_FRAMES = 200  # at a time: with their spectra they fit into the cache of a core


def log_mel(samples: np.ndarray, extractor: WhisperFeatureExtractor) -> np.ndarray:
    """The log-mel of one clip, not padded: [samples] -> float32 [mels, samples // hop_length]; see `log_mels`."""
    return log_mels([samples], extractor, len(samples))[0]


def log_mels(clips: Sequence[np.ndarray], extractor: WhisperFeatureExtractor, num_samples: int) -> np.ndarray:
    """The log-mel of each clip, continued to `num_samples` with the extractor's padding value.

    clips: float arrays [samples] at the extractor's rate, none longer than `num_samples`.
    Returns float32 [clips, mels, num_samples // hop_length], each clip normalised by its own loudest value. Raises
    `ValueError` for a clip of another shape or length, too few `num_samples` for a frame, or an extractor that adds
    noise (`dither`), normalises samples (`do_normalize`) or pads on the left.
    """
    _check(extractor)
    clips, frames = [np.asarray(clip, np.float32) for clip in clips], num_samples // extractor.hop_length
    if frames < 1:
        raise ValueError(f"{num_samples} samples are less than one frame: give at least {extractor.hop_length}")
    for number, clip in enumerate(clips):
        if clip.ndim != 1 or len(clip) > num_samples:
            raise ValueError(
                f"clip {number} has shape {clip.shape}: give one channel of at most {num_samples} samples, (samples,)"
            )
    filters = csr_array(extractor.mel_filters.T.astype(np.float32))
    features = np.empty((len(clips), filters.shape[0], frames), np.float32)
    blocks, computed = [], []
    for clip, out in zip(clips, features):
        framed = _frames(clip, extractor, num_samples)
        computed.append(out[:, : len(framed)])
        for begin in range(0, len(framed), BLOCK_FRAMES):
            end = min(begin + BLOCK_FRAMES, len(framed))
            blocks.append(partial(_log10_mel, framed[begin:end], filters, out[:, begin:end]))
    threads = max(1, min(_cores(), MOST_THREADS, len(blocks), sum(out.shape[1] for out in computed) // FRAMES_A_THREAD))
    _run(blocks, threads)
    _run([partial(_normalise, *pair) for pair in zip(features, computed)], min(threads, len(clips)))
    return features


def _check(extractor: WhisperFeatureExtractor) -> None:
    for name, usual in (("dither", 0.0), ("do_normalize", False), ("padding_side", "right")):
        if (value := getattr(extractor, name, None) or usual) != usual:
            raise ValueError(
                f"the feature extractor has {name}={value!r}, which is not supported: set it to {usual!r} in the "
                "checkpoint's preprocessor_config.json"
            )


def _frames(clip: np.ndarray, extractor: WhisperFeatureExtractor, num_samples: int) -> np.ndarray:
    """The frames of a padded clip [frames, n_fft], a view of its samples mirrored at both ends.

    Behind the clip all frames are the same: only the first of them is there.
    """
    hop, half = extractor.hop_length, extractor.n_fft // 2
    silent = -(-(len(clip) + half) // hop)  # the first frame that nothing of the clip is in
    until = min(num_samples, (silent + 1) * hop)
    padded = np.pad(clip, (0, until - len(clip)), constant_values=extractor.padding_value)
    mirrored = np.pad(padded, half, mode="reflect")
    count = (len(mirrored) - extractor.n_fft) // hop  # Whisper leaves out the last one
    return np.lib.stride_tricks.sliding_window_view(mirrored, extractor.n_fft)[::hop][:count]


def _log10_mel(frames: np.ndarray, filters: csr_array, out: np.ndarray) -> None:
    """Frames, float32 [frames, n_fft] -> out [mels, frames]."""
    windowed = frames * _window(frames.shape[1])  # rounded to float32, as PyTorch's are
    spectra = rfft(windowed.astype(np.float64), overwrite_x=True)
    power = spectra.real**2 + spectra.imag**2  # (frames, bins)
    mel = filters @ power.T.astype(np.float32, order="C")  # few weights are not zero: faster than a dense product
    # Half the floor is enough to take a logarithm of; `_normalise` raises it to the floor, to the last digit.
    np.log10(np.maximum(mel, np.float32(0.5 * 10**FLOOR), out=mel), out=out)


@lru_cache
def _window(n_fft: int) -> np.ndarray:
    """The periodic Hann window, float32 [n_fft], whose angles are rounded to float32 as PyTorch's are.

    That moves it by up to 2.5e-7, which shows 80 dB below a tone.
    """
    angles = np.arange(n_fft, dtype=np.float32) * np.float32(2 * np.pi / n_fft)
    return np.float32(0.5) - np.float32(0.5) * np.cos(angles.astype(np.float64)).astype(np.float32)


def _normalise(features: np.ndarray, computed: np.ndarray) -> None:
    """Of one clip, [mels, frames], in place: continue the computed frames to all frames, clamp and scale."""
    features[:, computed.shape[1] :] = computed[:, -1:]
    np.maximum(features, max(computed.max() - RANGE, FLOOR), out=features)
    features += 4.0
    features /= 4.0


def _run(tasks: list[Callable[[], None]], threads: int) -> None:
    """All tasks, each by the thread that is free first. The threads end here: a process that forks later has none."""
    rest = iter(tasks)  # a list's iterator gives each task once, to whichever thread asks

    def work() -> None:
        for task in rest:
            task()

    if threads < 2:
        return work()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work) for _ in range(threads)]:
            done.result()


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

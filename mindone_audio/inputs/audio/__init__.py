"""Audio in: whatever a user calls a clip becomes mono float32 samples at the rate that a model expects.

Decoding is libsndfile's (wav, flac, mp3, ogg, …) and resampling is soxr's "soxr_hq": the two that `librosa.load` uses,
without its slow imports, so the samples are the same as `librosa.load(path, sr=sampling_rate)[0]`. What libsndfile
does not know is decoded by the program ffmpeg, where there is one.
"""

from mindone_audio.inputs.audio.arrays import MAX_CHANNELS, PCM_OFFSET_AND_SCALE, is_one_clip, unwrapped
from mindone_audio.inputs.audio.data_uris import MAX_FILE_BYTES
from mindone_audio.inputs.audio.errors import AudioError, AudioNotFoundError, ClipTooLongError, describe
from mindone_audio.inputs.audio.load import MAX_SECONDS, SAMPLING_RATE, load_audio, load_clip, load_clips
from mindone_audio.inputs.audio.sources import MAX_DOWNLOAD_BYTES, read_file_object
from mindone_audio.inputs.audio.windows import QUIET_FRAME, fit_window, quiet_windows

__all__ = [
    "MAX_CHANNELS",
    "MAX_DOWNLOAD_BYTES",
    "MAX_FILE_BYTES",
    "MAX_SECONDS",
    "PCM_OFFSET_AND_SCALE",
    "QUIET_FRAME",
    "SAMPLING_RATE",
    "AudioError",
    "AudioNotFoundError",
    "ClipTooLongError",
    "describe",
    "fit_window",
    "is_one_clip",
    "load_audio",
    "load_clip",
    "load_clips",
    "quiet_windows",
    "read_file_object",
    "unwrapped",
]

"""Models whose encoder hears windows of a clip each by itself, so that a clip may have any length."""

import numpy as np

from mindone_audio.backbone.audio_language_model import AudioLanguageModel
from mindone_audio.backbone.checkpoint_model import to_numpy


class WindowedModel(AudioLanguageModel):
    """An `AudioLanguageModel` whose encoder has `EncoderConfig.window_frames`.

    The features of a clip are cut into rows of at most `num_mel_frames`, each of which is encoded like a clip.
    """

    def clips(self, audio: dict) -> tuple[np.ndarray | None, np.ndarray]:
        """The features of all clips in rows of at most `num_mel_frames`, and how many frames of each row are audio."""
        features_name, mask_name = self.audio_inputs
        features, mask = to_numpy(audio.get(features_name)), to_numpy(audio.get(mask_name))
        if features is None:
            return None, np.zeros(0, np.int32)
        bins, longest = self.audio_tower.config.num_mel_bins, self.audio_tower.config.num_mel_frames
        if features.ndim != 3 or features.shape[1] != bins:
            raise ValueError(
                f"{features_name} has shape {features.shape}, this model takes (clips, {bins}, frames): use the "
                "checkpoint's own processor"
            )
        mask = np.ones((len(features), features.shape[2]), np.int32) if mask is None else mask
        if mask.shape != (len(features), features.shape[2]):
            raise ValueError(f"{mask_name} has shape {mask.shape}, not {(len(features), features.shape[2])}")
        frames = (mask != 0).sum(1).tolist()
        rows = [(clip, start, end) for clip, end in enumerate(frames) for start in range(0, end, longest)]
        lengths = np.array([min(end - start, longest) for _, start, end in rows], np.int32)
        # What is beyond a clip is nothing, and not the silence that features are padded with.
        windows = np.zeros(
            (len(rows), bins, self.audio_tower.config.frames_to_encode(lengths.max(initial=0))), np.float32
        )
        for window, (clip, start, _), length in zip(windows, rows, lengths):
            window[:, :length] = features[clip, :, start : start + length]
        return windows, lengths

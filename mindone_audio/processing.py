"""`AutoProcessor`: from a checkpoint's model_type to the family's processor."""

import os

from transformers import ProcessorMixin

from mindone_audio.hub import DOWNLOAD_KEYWORDS, read_config
from mindone_audio.models import family


class AutoProcessor:
    """Finds the processor of a checkpoint; it turns text and audio into NumPy model inputs and needs no PyTorch."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **download) -> ProcessorMixin:
        """Load the processor of a checkpoint folder or a Hugging Face repository such as "Qwen/Qwen2-Audio-7B".

        download: cache_dir, local_files_only, revision, subfolder, token; HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are
        honoured. Raises `TypeError` for another keyword, `OSError` where the folder, the repository or one of its files
        is missing, `ValueError` for a model_type that no family has.
        """
        if unknown := sorted(set(download) - set(DOWNLOAD_KEYWORDS)):
            raise TypeError(
                f"AutoProcessor.from_pretrained does not know {', '.join(unknown)}: it takes "
                f"{', '.join(DOWNLOAD_KEYWORDS)}"
            )
        processor_class = family(read_config(pretrained_model_name_or_path, **download).get("model_type")).PROCESSOR
        return processor_class.from_pretrained(pretrained_model_name_or_path, **download)

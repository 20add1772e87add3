"""Write down what is said in a clip of any length, with Whisper on MindSpore.

    python examples/whisper_transcribe.py --audio talk.mp3
    python examples/whisper_transcribe.py --audio talk.mp3 --language de --task translate --words

Prints one line a segment: from and to which second, and what is said. With --words there is one line a word.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402

from mindone_audio import pipeline  # noqa: E402
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="openai/whisper-large-v3-turbo", help="folder or Hugging Face id")
    parser.add_argument("--audio", required=True, metavar="CLIP", help="path or URL")
    parser.add_argument("--language", help="of the speech, as en (default: the model detects it)")
    parser.add_argument("--task", choices=["transcribe", "translate"], help="translate: write English")
    parser.add_argument("--words", action="store_true", help="tell when each word is said")
    parser.add_argument("--device", default="auto", help="auto, cpu, ascend or ascend:1")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: the checkpoint's")
    arguments = parser.parse_args()
    set_device(arguments.device)

    pipe = pipeline(
        "automatic-speech-recognition",
        model=arguments.model,
        mindspore_dtype=getattr(ms, arguments.dtype) if arguments.dtype else None,
    )
    asked = {"language": arguments.language, "task": arguments.task}
    answer = pipe(arguments.audio, return_timestamps="word" if arguments.words else True, **asked)[0]
    for chunk in answer["chunks"]:
        for line in chunk["words"] if arguments.words else [chunk]:
            text = line["word" if arguments.words else "text"].strip()
            print(f"{line['start']:7.2f} {line['end']:7.2f}  {text}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")

"""Transcribe speech with Qwen3-ASR or GLM-ASR on MindSpore.

    python examples/asr_models_transcribe.py --audio meeting.mp3
    python examples/asr_models_transcribe.py --audio meeting.mp3 --language de --words "Kowalski, MindSpore"
    python examples/asr_models_transcribe.py --model zai-org/GLM-ASR-Nano-2512 --audio meeting.mp3

`mindone-audio transcribe` does the same for clips of any length, with times and as subtitles.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, to_mindspore  # noqa: E402
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="Qwen/Qwen3-ASR-1.7B", help="folder or Hugging Face id")
    parser.add_argument("--audio", action="append", required=True, metavar="CLIP", help="path or URL; repeatable")
    parser.add_argument("--language", help="of the speech, such as en (default: the model hears it)")
    parser.add_argument("--words", help="names and words that may be said")
    parser.add_argument("--device", help="auto, cpu, ascend or ascend:1 (default: what MindSpore finds)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: the checkpoint's")
    parser.add_argument("--max-new-tokens", type=int, default=500)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.device:
        set_device(arguments.device)
    processor = AutoProcessor.from_pretrained(arguments.model)
    dtype = getattr(ms, arguments.dtype) if arguments.dtype else None
    model = AutoModelForAudioTextToText.from_pretrained(arguments.model, mindspore_dtype=dtype)
    for clip in arguments.audio:
        inputs = processor.transcription_inputs([clip], language=arguments.language, chat=True, prompt=arguments.words)
        inputs = to_mindspore(inputs, dtype=model.dtype)
        tokens = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, do_sample=False)
        answer = processor.decode(tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        print(f"{clip}: {processor.transcription(answer)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")

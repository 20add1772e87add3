"""Transcribe speech, or ask about it, with Voxtral on MindSpore.

    python examples/voxtral_transcribe.py --audio meeting.mp3
    python examples/voxtral_transcribe.py --audio meeting.mp3 --language en
    python examples/voxtral_transcribe.py --audio one.wav --audio two.wav --prompt "What do the two disagree about?"

Clips may be of any length. Without --language the model detects it. With --prompt it answers one question about all
clips instead of transcribing each.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402

from mindone_audio import VoxtralForConditionalGeneration, VoxtralProcessor, to_mindspore  # noqa: E402
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402


def generate(model, processor, inputs, settings: dict) -> str:
    """The text that the model writes after a processor's inputs."""
    inputs = to_mindspore(inputs, dtype=model.dtype)
    tokens = model.generate(**inputs, **settings)
    return processor.decode(tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mistralai/Voxtral-Mini-3B-2507", help="folder or Hugging Face id")
    parser.add_argument("--audio", action="append", required=True, metavar="CLIP", help="path or URL; repeatable")
    parser.add_argument("--language", help="of the speech, such as en (default: detect it)")
    parser.add_argument("--prompt", help="a question about all clips, instead of their transcripts")
    parser.add_argument("--device", help="auto, cpu, ascend or ascend:1 (default: what MindSpore finds)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: the checkpoint's")
    parser.add_argument("--max-new-tokens", type=int, default=500)
    arguments = parser.parse_args()
    if arguments.prompt and arguments.language:
        parser.error("--language is for transcripts: leave it out with --prompt")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    settings = {"max_new_tokens": arguments.max_new_tokens, "do_sample": False}
    if arguments.device:
        set_device(arguments.device)
    start = time.perf_counter()
    processor = VoxtralProcessor.from_pretrained(arguments.model)
    dtype = getattr(ms, arguments.dtype) if arguments.dtype else None
    model = VoxtralForConditionalGeneration.from_pretrained(arguments.model, mindspore_dtype=dtype)
    print(f"{arguments.model} loaded in {time.perf_counter() - start:.1f} s")

    if arguments.prompt:
        clips = [{"type": "audio", "path": clip} for clip in arguments.audio]
        conversation = [{"role": "user", "content": [*clips, {"type": "text", "text": arguments.prompt}]}]
        print(generate(model, processor, processor.apply_chat_template(conversation), settings))
        return 0
    failures = 0
    for clip in arguments.audio:
        start = time.perf_counter()
        try:  # one bad clip must not cost the transcripts of the others
            inputs = processor.apply_transcription_request(clip, arguments.language, arguments.model)
            text = generate(model, processor, inputs, settings)
        except (OSError, ValueError) as error:
            print(f"error: {in_words(error, option)}", file=sys.stderr)
            failures += 1
        else:
            print(f"\n{clip}\n  {text}  ({time.perf_counter() - start:.2f} s)", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")

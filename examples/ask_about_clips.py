"""Ask Qwen2.5-Omni or Phi-4-multimodal about audio clips on MindSpore; what sees and what speaks is not loaded.

    python examples/ask_about_clips.py --audio clip.wav --prompt "What can you hear?"
    python examples/ask_about_clips.py --audio one.wav --audio two.wav --prompt "What do the two have in common?"
    python examples/ask_about_clips.py --model microsoft/Phi-4-multimodal-instruct --audio speech.wav

All clips go into one message, before the question. A clip may be up to five minutes long, Phi-4's of any length.
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
    parser.add_argument("--model", default="Qwen/Qwen2.5-Omni-7B", help="folder or Hugging Face id")
    parser.add_argument("--audio", action="append", required=True, metavar="CLIP", help="path or URL; repeatable")
    parser.add_argument("--prompt", default="Describe the audio.", help="what to ask about the clips")
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
    clips = [{"type": "audio", "audio": clip} for clip in arguments.audio]
    conversation = [{"role": "user", "content": [*clips, {"type": "text", "text": arguments.prompt}]}]
    inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=True)
    inputs = to_mindspore(inputs, dtype=model.dtype)
    tokens = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, do_sample=False)
    print(processor.decode(tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")

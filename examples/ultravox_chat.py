"""Talk with Ultravox on MindSpore: each clip is a turn of yours, and the model remembers the ones before.

    python examples/ultravox_chat.py --audio dinner_party.wav --audio budget.wav

The default model, fixie-ai/ultravox-v0_5-llama-3_2-1b, takes its language model from meta-llama/Llama-3.2-1B-Instruct:
ask for access to that repository and log in (`huggingface-cli login`) first. `--model` takes a local folder as well.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, to_mindspore  # noqa: E402
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402

SYSTEM = "You are a friendly and helpful assistant. You love to answer questions for people."


def reply(model, processor, conversation: list[dict], settings: dict) -> str:
    """What the model answers to a conversation whose last message is the user's."""
    inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=True)
    inputs = to_mindspore(inputs, dtype=model.dtype)
    tokens = model.generate(**inputs, **settings)
    return processor.decode(tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fixie-ai/ultravox-v0_5-llama-3_2-1b", help="folder or Hugging Face id")
    parser.add_argument(
        "--audio", action="append", required=True, metavar="CLIP", help="path or URL of a turn; once for each turn"
    )
    parser.add_argument("--prompt", help="text that goes with the first clip")
    parser.add_argument("--system", default=SYSTEM, help="the system message; empty for none")
    parser.add_argument("--device", help="auto, cpu, ascend or ascend:1 (default: what MindSpore finds)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: the checkpoint's")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--do-sample", action="store_true", help="draw tokens instead of taking the best ones")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    settings = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.do_sample}
    for name in ("temperature", "seed"):
        if getattr(arguments, name) is not None:
            settings[name] = getattr(arguments, name)
    if arguments.device:
        set_device(arguments.device)
    start = time.perf_counter()
    processor = AutoProcessor.from_pretrained(arguments.model)
    dtype = getattr(ms, arguments.dtype) if arguments.dtype else None
    model = AutoModelForAudioTextToText.from_pretrained(arguments.model, mindspore_dtype=dtype)
    print(f"{arguments.model} loaded in {time.perf_counter() - start:.1f} s")

    conversation = [{"role": "system", "content": arguments.system}] if arguments.system else []
    for number, clip in enumerate(arguments.audio):
        content = [{"type": "audio", "audio": clip}]
        if arguments.prompt and number == 0:
            content.insert(0, {"type": "text", "text": arguments.prompt})
        conversation.append({"role": "user", "content": content})
        start = time.perf_counter()
        answer = reply(model, processor, conversation, settings)
        print(f"\nuser: {clip}\nassistant: {answer}  ({time.perf_counter() - start:.2f} s)", flush=True)
        conversation.append({"role": "assistant", "content": answer})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")

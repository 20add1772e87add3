"""Turn speech into tokens with WhisperVQ, and let Ichigo answer it, on MindSpore.

    python examples/ichigo_tokens.py --whisper-vq whisper_vq --audio clip.wav
    python examples/ichigo_tokens.py --whisper-vq whisper_vq --model homebrewltd/Ichigo-llama3.1-s-instruct-v0.4 --audio clip.wav

The folder whisper_vq is made once, by scripts/convert_whisper_vq.py. With --model alone it is looked for in that folder.
"""  # noqa: E501

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, WhisperVQ, load_audio, to_mindspore  # noqa: E402
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402


def sound_tokens(whisper_vq: WhisperVQ, samples) -> str:
    """The tokens of a clip as Ichigo reads them."""
    words = "".join(f"<|sound_{token:04d}|>" for token in whisper_vq.encode(samples))
    return f"<|sound_start|>{words}<|sound_end|>"


def answer(model, processor, message: str, settings: dict) -> str:
    """What the model says to a message. A clip that has no tokens yet can be an element {"type": "audio", …} of it."""
    chat = [{"role": "user", "content": message}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    tokens = model.generate(**to_mindspore(inputs, dtype=model.dtype), **settings)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--whisper-vq", help="converted folder of the speech tokenizer (default: in the model's folder)"
    )
    parser.add_argument("--model", help="folder or Hugging Face id of an Ichigo; without it only tokens are printed")
    parser.add_argument("--audio", action="append", required=True, metavar="CLIP", help="path or URL; several times")
    parser.add_argument("--prompt", default="", help="text after the speech")
    parser.add_argument("--device", help="auto, cpu, ascend or ascend:1 (default: what MindSpore finds)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="of the model; default: its own")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.whisper_vq is None and arguments.model is None:
        parser.error("give --whisper-vq or --model")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if arguments.device:
        set_device(arguments.device)
    if arguments.model is None:
        whisper_vq = WhisperVQ.from_pretrained(arguments.whisper_vq)
    else:
        processor = AutoProcessor.from_pretrained(arguments.model, whisper_vq=arguments.whisper_vq)
        whisper_vq = processor.whisper_vq
        dtype = getattr(ms, arguments.dtype) if arguments.dtype else None
        model = AutoModelForAudioTextToText.from_pretrained(arguments.model, mindspore_dtype=dtype)

    failures = 0
    for source in arguments.audio:
        try:  # one bad clip must not cost the others
            samples = load_audio(source, whisper_vq.sampling_rate)
            words = sound_tokens(whisper_vq, samples)
            print(f"{source}: {words.count('|><|') - 1} tokens, {len(samples) / whisper_vq.sampling_rate:.2f} s")
            print(words, flush=True)
            if arguments.model is not None:
                settings = {"max_new_tokens": arguments.max_new_tokens}
                print(answer(model, processor, words + arguments.prompt, settings), flush=True)
        except (OSError, ValueError) as error:
            print(f"error: {in_words(error, option)}", file=sys.stderr)
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")

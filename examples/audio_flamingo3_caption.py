"""Transcribe and caption audio clips of up to ten minutes with Audio Flamingo 3 or Next on MindSpore.

    python examples/audio_flamingo3_caption.py --audio clip.mp3
    python examples/audio_flamingo3_caption.py --audio song.wav --prompt "Which instruments do you hear?" --greedy
    python examples/audio_flamingo3_caption.py --audio clip.mp3 --model nvidia/audio-flamingo-next-hf

The steps are those of transformers' guide to audio-text-to-text models. What differs: the imports, and that the
processor's NumPy arrays become MindSpore tensors with `to_mindspore` instead of `.to(model.device)`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, load_audio, to_mindspore  # noqa: E402
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402

TRANSCRIBE, CAPTION = "Transcribe the input speech.", "Describe the audio."


def answer(model, processor, clip, prompt: str, settings: dict) -> str:
    """What the model says to `prompt` about `clip`: a path, a URL or samples at the processor's rate."""
    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": prompt},
                {"type": "audio", "audio": clip},
            ],
        }
    ]
    inputs = processor.apply_chat_template(conversation, tokenize=True, add_generation_prompt=True, return_dict=True)
    inputs = to_mindspore(inputs, dtype=model.dtype)
    outputs = model.generate(**inputs, **settings)
    # The model answers a transcription prompt with a sentence around the words: leave that out.
    new_tokens, strip = outputs[:, inputs.input_ids.shape[1] :], prompt == TRANSCRIBE
    return processor.batch_decode(new_tokens, skip_special_tokens=True, strip_prefix=strip)[0]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nvidia/audio-flamingo-3-hf", help="folder or Hugging Face id")
    parser.add_argument("--audio", action="append", required=True, metavar="CLIP", help="path or URL; several times")
    parser.add_argument("--prompt", action="append", help=f"what to ask of each (default: {TRANSCRIBE!r}, {CAPTION!r})")
    parser.add_argument("--device", help="auto, cpu, ascend or ascend:1 (default: what MindSpore finds)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: the checkpoint's")
    parser.add_argument("--max-new-tokens", type=int, default=500)
    parser.add_argument("--greedy", action="store_true", help="take the best token; the checkpoint's way is to draw")
    parser.add_argument("--seed", type=int, help="makes drawing repeatable")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.device:
        set_device(arguments.device)
    processor = AutoProcessor.from_pretrained(arguments.model)
    dtype = getattr(ms, arguments.dtype) if arguments.dtype else None
    model = AutoModelForAudioTextToText.from_pretrained(arguments.model, mindspore_dtype=dtype, device_map="auto")
    # What is not set here is as the checkpoint's generation_config.json says.
    settings = {"max_new_tokens": arguments.max_new_tokens, "seed": arguments.seed}
    if arguments.greedy:
        settings["do_sample"] = False

    failures = 0
    for source in arguments.audio:
        print(f"\n{source}")
        try:  # one bad clip must not cost the answers about the others
            clip = load_audio(source, processor.feature_extractor.sampling_rate)
            for prompt in arguments.prompt or [TRANSCRIBE, CAPTION]:
                print(f"  {prompt}  {answer(model, processor, clip, prompt, settings)}", flush=True)
        except (OSError, ValueError) as error:
            print(f"error: {in_words(error, option)}", file=sys.stderr)
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")

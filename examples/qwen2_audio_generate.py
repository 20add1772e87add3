"""Caption audio clips and answer questions about them with Qwen2-Audio on MindSpore.

    python examples/qwen2_audio_generate.py
    python examples/qwen2_audio_generate.py --model Qwen/Qwen2-Audio-7B --audio clip.wav --prompt "Generate the caption in English:"

Without arguments it goes through the bundled clips with the small bundled checkpoint.
"""  # noqa: E501

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, load_audio, to_mindspore  # noqa: E402
from mindone_audio.checkpoints import demo_checkpoint  # noqa: E402
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402

CAPTION = "Generate the caption in English:"


def answer(model, processor, clip, prompt: str, chat: bool, settings: dict) -> str:
    """What the model says about `clip` (samples at the processor's rate) when asked `prompt`."""
    if chat:
        content = [{"type": "audio", "audio": clip}, {"type": "text", "text": prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    else:
        text = f"<|audio_bos|><|AUDIO|><|audio_eos|>{prompt}"
    inputs = to_mindspore(processor(text=text, audio=clip), dtype=model.dtype)
    tokens = model.generate(**inputs, **settings)
    return processor.decode(tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default=demo_checkpoint(), help="folder or Hugging Face id (default: the bundled one)"
    )
    parser.add_argument("--audio", action="append", metavar="CLIP", help="path or URL; may be given several times")
    parser.add_argument("--prompt", action="append", help=f"what to ask of each clip (default: {CAPTION!r})")
    parser.add_argument("--chat", action="store_true", help="use the chat template, for instruction-tuned models")
    parser.add_argument("--device", help="auto, cpu, ascend or ascend:1 (default: what MindSpore finds)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: the checkpoint's")
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--do-sample", action="store_true", help="draw tokens instead of taking the best ones")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    settings = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.do_sample}
    for name in ("temperature", "top_p", "top_k", "seed"):
        if getattr(arguments, name) is not None:
            settings[name] = getattr(arguments, name)
    if arguments.device:
        set_device(arguments.device)

    start = time.perf_counter()
    processor = AutoProcessor.from_pretrained(arguments.model)
    dtype = getattr(ms, arguments.dtype) if arguments.dtype else None
    model = AutoModelForAudioTextToText.from_pretrained(arguments.model, mindspore_dtype=dtype)
    print(f"{arguments.model} loaded in {time.perf_counter() - start:.1f} s")

    def ask(prompt: str) -> str:
        start = time.perf_counter()
        text = answer(model, processor, clip, prompt, arguments.chat, settings)
        print(f"  {prompt:34} {text}  ({time.perf_counter() - start:.2f} s)", flush=True)
        return text

    clips = arguments.audio or sorted(path for path in (ROOT / "examples" / "audio").iterdir() if path.is_file())
    failures = 0
    for source in clips:
        print(f"\n{source if arguments.audio else source.name}")
        try:  # one bad clip must not cost the answers about the others
            clip = load_audio(source, processor.feature_extractor.sampling_rate)
            for prompt in arguments.prompt or [CAPTION]:
                ask(prompt)
            if not arguments.audio and not arguments.prompt:
                ask("What's that sound?")
                if ask("Is anybody speaking?").startswith("Yes"):
                    ask("What does the person say?")
        except (OSError, ValueError) as error:
            print(f"error: {in_words(error, option)}", file=sys.stderr)
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")

"""Ask Voxtral about a clip from a 4-bit (bitsandbytes NF4) checkpoint on MindSpore.

    python examples/voxtral_4bit.py --audio clip.mp3
    python examples/voxtral_4bit.py --audio clip.mp3 --prompt "What happens here?" --keep-quantized

By default the weights become the dtype that is computed in once, at loading. With --keep-quantized they stay in 4 bits
in memory, a quarter of bfloat16, and every step dequantises them again, which is slower.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402

from mindone_audio import AutoProcessor, VoxtralForConditionalGeneration, to_mindspore  # noqa: E402
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dignity045/Voxtral-Mini-3B-2507-4bit", help="folder or Hugging Face id")
    parser.add_argument("--audio", required=True, metavar="CLIP", help="path or URL")
    parser.add_argument("--prompt", help="what to ask (default: nothing, the clip speaks for itself)")
    parser.add_argument("--keep-quantized", action="store_true", help="keep the weights in 4 bits in memory")
    parser.add_argument("--device", default="auto", help="auto, cpu, ascend or ascend:1")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: the checkpoint's")
    parser.add_argument("--max-new-tokens", type=int, default=500)
    arguments = parser.parse_args()
    set_device(arguments.device)

    processor = AutoProcessor.from_pretrained(arguments.model)
    model = VoxtralForConditionalGeneration.from_pretrained(
        arguments.model,
        mindspore_dtype=getattr(ms, arguments.dtype) if arguments.dtype else None,
        keep_quantized=arguments.keep_quantized,
    )
    content = [{"type": "audio", "path": arguments.audio}]
    if arguments.prompt:
        content.append({"type": "text", "text": arguments.prompt})
    inputs = to_mindspore(processor.apply_chat_template([{"role": "user", "content": content}]), dtype=model.dtype)
    outputs = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens)
    print(processor.batch_decode(outputs[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)[0])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")

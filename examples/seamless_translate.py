"""Translate speech or a text to text and to speech, with SeamlessM4T v2 on MindSpore.

    python examples/seamless_translate.py --audio talk.mp3 --tgt-lang deu
    python examples/seamless_translate.py --text "Where is the station?" --tgt-lang fra --speak answer.wav

Prints the translation; with --speak a .wav or .flac file says it. Fewer languages are spoken than written.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402
import soundfile  # noqa: E402

from mindone_audio import AutoProcessor, SeamlessM4Tv2Model  # noqa: E402
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="facebook/seamless-m4t-v2-large", help="folder or Hugging Face id")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--audio", metavar="CLIP", help="path or URL")
    source.add_argument("--text")
    parser.add_argument("--src-lang", default="eng", help="of the text (default: eng); speech may be in any language")
    parser.add_argument("--tgt-lang", required=True, help="to translate to, as deu")
    parser.add_argument("--speak", type=Path, metavar="FILE", help="also write the translation as sound")
    parser.add_argument("--speaker-id", type=int, default=0, metavar="N", help="whose voice")
    parser.add_argument("--num-beams", type=int, default=1, metavar="N", help="5 translates better")
    parser.add_argument("--device", default="auto", help="auto, cpu, ascend or ascend:1")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: the checkpoint's")
    arguments = parser.parse_args()
    set_device(arguments.device)

    processor = AutoProcessor.from_pretrained(arguments.model)
    asked = {"audio": arguments.audio} if arguments.text is None else {"text": arguments.text}
    inputs = processor(**asked, src_lang=arguments.src_lang)
    dtype = getattr(ms, arguments.dtype) if arguments.dtype else None
    model = SeamlessM4Tv2Model.from_pretrained(arguments.model, mindspore_dtype=dtype)
    answer = model.generate(
        **inputs,
        tgt_lang=arguments.tgt_lang,
        generate_speech=arguments.speak is not None,
        speaker_id=arguments.speaker_id,
        return_intermediate_token_ids=True,
        text_num_beams=arguments.num_beams,
    )
    print(processor.decode(answer.sequences[0], skip_special_tokens=True))
    if arguments.speak is not None:
        soundfile.write(arguments.speak, answer.waveform[0].asnumpy(), model.config.sampling_rate)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")

"""Write speech or a text in another language, and say it, with SeamlessM4T v2 on MindSpore.

    python examples/seamless_translate.py --audio talk.mp3 --tgt-lang deu
    python examples/seamless_translate.py --text "good morning" --src-lang eng --tgt-lang fra --speak answer.wav

Speech may be in any language of the model; its own language as --tgt-lang writes down what is said. Fewer languages are
spoken than written.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402
import soundfile  # noqa: E402

from mindone_audio import pipeline  # noqa: E402
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="facebook/seamless-m4t-v2-large", help="folder or Hugging Face id")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--audio", metavar="CLIP", help="path or URL")
    source.add_argument("--text", help="what to translate")
    parser.add_argument("--src-lang", metavar="LANGUAGE", help="of the text (default: eng)")
    parser.add_argument("--tgt-lang", required=True, metavar="LANGUAGE", help="to write, such as deu")
    parser.add_argument("--speak", metavar="FILE", help="a .wav or .flac file that says the translation")
    parser.add_argument("--speaker-id", type=int, default=0, metavar="N", help="whose voice (default: 0)")
    parser.add_argument("--num-beams", type=int, default=1, metavar="N", help="beam search with N beams (default: 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, ascend or ascend:1")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: the checkpoint's")
    arguments = parser.parse_args()
    set_device(arguments.device)

    pipe = pipeline(
        "translation",
        model=arguments.model,
        mindspore_dtype=getattr(ms, arguments.dtype) if arguments.dtype else None,
    )
    asked = {"tgt_lang": arguments.tgt_lang, "src_lang": arguments.src_lang, "num_beams": arguments.num_beams}
    source = {"audio": arguments.audio} if arguments.audio else arguments.text
    if arguments.speak is None:
        print(pipe(source, **asked)["translation_text"])
        return 0
    answer = pipe.speak(source, speaker_id=arguments.speaker_id, **asked)
    print(answer["translation_text"])
    soundfile.write(arguments.speak, answer["audio"], answer["sampling_rate"])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")

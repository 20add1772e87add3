"""Speak a text with SpeechT5 on MindSpore, in the voice of a file, into a sound file.

    python examples/speecht5_speak.py --voice cmu_us_slt_arctic-wav-arctic_a0508.npy --text "hello there"

Voices are x-vectors: spkrec-xvect.zip of the Hugging Face data set Matthijs/cmu-arctic-xvectors has some thousand.
Prints when each piece of the sound is ready; a program that plays them begins with the first.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402
import soundfile  # noqa: E402

from mindone_audio import pipeline  # noqa: E402
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="microsoft/speecht5_tts", help="folder or Hugging Face id")
    parser.add_argument("--vocoder", default="microsoft/speecht5_hifigan", help="folder or Hugging Face id")
    parser.add_argument("--voice", required=True, metavar="FILE", help="a .npy or .safetensors file with an x-vector")
    parser.add_argument("--text", required=True, help="what to say")
    parser.add_argument("--out", default="speech.wav", metavar="FILE", help="default: speech.wav")
    parser.add_argument("--seed", type=int, default=0, help="another one varies the speech")
    parser.add_argument("--device", default="auto", help="auto, cpu, ascend or ascend:1")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: the checkpoint's")
    arguments = parser.parse_args()
    set_device(arguments.device)

    pipe = pipeline(
        "text-to-speech",
        model=arguments.model,
        vocoder=arguments.vocoder,
        voice=arguments.voice,
        mindspore_dtype=getattr(ms, arguments.dtype) if arguments.dtype else None,
    )
    rate, start, seconds = pipe.vocoder.sampling_rate, time.monotonic(), 0.0
    pieces = pipe(arguments.text, stream=True, seed=arguments.seed)
    with soundfile.SoundFile(arguments.out, "w", rate, 1) as file:
        for piece in pieces:
            file.write(piece["audio"])
            seconds += len(piece["audio"]) / rate
            print(f"after {time.monotonic() - start:.1f} s: {seconds:.1f} s of speech", flush=True)
    print(arguments.out)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")

"""`mindone-audio speak`: a text as a sound file, in a voice that is given."""

import argparse
import sys
from pathlib import Path

from mindone_audio.commands import options as shared
from mindone_audio.commands.sound_file import check_name, write_sound

_VOCODERS = "the folder or Hugging Face id of one, such as microsoft/speecht5_hifigan"
_VOICES = (
    "a .npy or .safetensors file with an x-vector: spkrec-xvect.zip of the Hugging Face data set "
    "Matthijs/cmu-arctic-xvectors has some"
)


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("speak", help="say a text: a sound file in a voice of your choice")
    parser.add_argument("text", help="what to say, or - for standard input")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="a .wav, .flac or .mp3 file")
    parser.add_argument(
        "--model", required=True, help="checkpoint folder or Hugging Face id, such as microsoft/speecht5_tts"
    )
    parser.add_argument("--vocoder", metavar="MODEL", help=_VOCODERS)
    parser.add_argument("--voice", type=Path, metavar="FILE", help=_VOICES)
    parser.add_argument(
        "--seed", type=shared.number, default=0, metavar="N", help="another one varies the speech (default: 0)"
    )
    shared.add_device(parser)
    parser.set_defaults(run=run, adapter=None)


def run(options: argparse.Namespace) -> int:
    """0: the file is written."""
    check_name("--out", options.out)
    for name, given, where in (("--vocoder", options.vocoder, _VOCODERS), ("--voice", options.voice, _VOICES)):
        if given is None:
            raise shared.WrongUse(f"{name} is missing: give {where}")
    text = sys.stdin.read() if options.text == "-" else options.text
    pipe = shared.load_pipeline(options, "text-to-speech", vocoder=options.vocoder, voice=options.voice)
    answer = pipe(text.strip(), seed=options.seed)
    print(write_sound(options.out, answer["audio"], answer["sampling_rate"]))
    return 0

"""`python -m mindone_audio` is the command `mindone-audio`."""

import sys

from mindone_audio.cli import start

sys.exit(start())

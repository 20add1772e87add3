"""`mindone-audio`: what a person starts in a terminal."""

import argparse
import os
import sys
import warnings
from contextlib import nullcontext
from typing import NoReturn

from mindone_audio.commands import (
    ask,
    batch,
    chat,
    doctor,
    finetune,
    listen,
    models,
    parity,
    serve,
    speak,
    transcribe,
    translate,
    warm_up,
)
from mindone_audio.commands.options import shown_compiling
from mindone_audio.machine.signals import Signals
from mindone_audio.setting_fields import in_words, option

INTERRUPTED = 130  # the exit status that shells give to Ctrl-C


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the options in one line, without all that there are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} ({self.prog} --help lists what may be given)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status.

    Results go to standard output, messages to standard error. 0: all well; 1: some clips failed; 2: wrong use, which
    is one line and never a traceback; 130: interrupted. `doctor` and `parity` have their own meanings of 1 and 2.
    """
    parser = _Parser(prog="mindone-audio", description="Audio-language models on MindSpore.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    everyday = (ask, transcribe, listen, translate, speak, chat, serve, batch, finetune)
    for command in (*everyday, models, warm_up, doctor, parity):
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        # This comes before the command imports anything that starts threads.
        with Signals(hold_terminate=getattr(options, "hold_terminate", False)) as options.signals:
            with shown_compiling() if sys.stderr.isatty() else nullcontext():
                status = options.run(options)
                sys.stdout.flush()  # here, where an error is told, and not when Python ends
                return status
    except (OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):  # the reader has ended, as in `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"error: {in_words(error, getattr(options, 'say', option))}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        device = sys.modules.get("mindone_audio.machine.device")
        explanation = device and device.explain_failure(error)
        if not explanation:
            raise
        print(f"error: {explanation}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def start() -> int:
    """`main` of a process that is only this command."""
    # transformers imports PyTorch where it is installed, which takes seconds; nothing here needs it.
    os.environ.setdefault("USE_TORCH", "0")
    _quieten_libraries()
    return main()


def _quieten_libraries() -> None:
    """Keep what other libraries say to programmers off standard error, unless the user has asked for it."""
    os.environ.setdefault("GLOG_v", "3")  # MindSpore: errors
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:  # neither -W nor PYTHONWARNINGS
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"mindone_audio\b")


if __name__ == "__main__":
    sys.exit(start())

"""`mindone-audio finetune` at work: messages, exit statuses, and how signals end a training."""

import logging
import os
import shlex
import sys
from pathlib import Path

from tqdm import tqdm

from mindone_audio.finetune.config import FinetuneConfig
from mindone_audio.finetune.job import FinetuneOutcome, run_finetune
from mindone_audio.finetune.trainer import FinetuneError
from mindone_audio.machine import affinity
from mindone_audio.machine.msrun import end_with_msrun, is_scheduler, number_of_ranks
from mindone_audio.machine.signals import Signals
from mindone_audio.setting_fields import Say, SettingError, in_words

SHOWN = 5  # skipped examples that are named
INTERRUPTED, TERMINATED = 130, 143  # 128 + the signal's number, as a shell reports them
HELD = "interrupted: finishing this step to save a checkpoint; Ctrl-C again ends at once"


class _AboveTheBar(logging.Handler):
    """Log lines on standard error, which do not break a progress bar there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def finetune_command(config: FinetuneConfig, signals: Signals, say: Say) -> int:
    """Train; returns the exit status. say: how messages name settings.

    `ValueError` and `OSError` are mistakes in the configuration or the data.
    """
    if is_scheduler():
        return _schedule(config)
    if ":" in config.job.device and number_of_ranks(os.environ) > 1:
        raise SettingError(
            lambda say: f"{say('device')} {config.job.device!r} would be that of all ranks: leave the number out"
        )
    end_with_msrun()
    log = logging.getLogger("mindone_audio")
    handler = _AboveTheBar()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        affinity.bind_cores(config.job.device)
        return _run(config, signals, say)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _schedule(config: FinetuneConfig) -> int:
    """What msrun's scheduler does: bring the ranks together, until they have ended."""
    from mindspore import communication

    from mindone_audio.machine.device import set_device

    set_device(config.job.device)
    communication.init()
    return 0


def _tell() -> None:
    print(f"\n{HELD}", file=sys.stderr, flush=True)


def _run(config: FinetuneConfig, signals: Signals, say: Say) -> int:
    def should_stop() -> bool:
        return signals.terminated or signals.interrupted

    output = Path(config.training.output_dir)
    again = f"what was learned is kept in {output}: the same command with --resume goes on"
    try:
        outcome = run_finetune(config, should_stop=should_stop, training=lambda: signals.hold_interrupt(_tell))
    except KeyboardInterrupt:
        kept = any(output.glob("checkpoint-*"))
        print(f"\ninterrupted; {again if kept else 'nothing was learned yet'}", file=sys.stderr)
        return INTERRUPTED
    except FinetuneError as error:
        print(f"error: {in_words(error, say)}", file=sys.stderr)
        return 1
    except RuntimeError:  # of a device that is lost, which `main` explains
        if any(output.glob("checkpoint-*")):
            print(again, file=sys.stderr)
        raise
    if outcome.result.stopped:
        if outcome.first:
            name = "interrupted" if signals.interrupted else "terminated"
            print(f"{name} after step {outcome.result.steps} of {outcome.steps}; {again}", file=sys.stderr)
        return INTERRUPTED if signals.interrupted else TERMINATED
    if outcome.first:
        _report(outcome, config)
    return 0


def _report(outcome: FinetuneOutcome, config: FinetuneConfig) -> None:
    """Where the adapter is, what was skipped, and what to type next."""
    result, output = outcome.result, config.training.output_dir
    evaluated = [line for line in result.history if "eval_loss" in line]
    told = [f"loss {result.losses[-1]:.4g}"] if result.losses else []
    if evaluated:
        told += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in evaluated[-1].items() if name != "step"]
    print(f"{result.steps} steps{''.join(f', {part}' for part in told)}")
    if result.skipped:
        print(f"skipped examples: {len(result.skipped)}")
        for name, reason in result.skipped[:SHOWN]:
            print(f"  {name}: {reason}")
        if len(result.skipped) > SHOWN:
            print(f"  and {len(result.skipped) - SHOWN} more")
    print(f"adapter: {output}")
    if outcome.merged is not None:
        print(f"merged model: {outcome.merged}")
    if outcome.pushed is not None:
        print(f"on the hub: {outcome.pushed}")
    command = ["mindone-audio", "transcribe" if outcome.prompt is None else "ask"]
    if outcome.merged is not None:
        command += ["--model", str(outcome.merged)]
    else:
        command += ["--model", config.job.model] if config.job.model else []
        command += ["--adapter", output]
    if config.collator.language is not None:
        command += ["--language", config.collator.language]
    question = "" if outcome.prompt is None else f" {_quoted(outcome.prompt or 'QUESTION')}"
    print(f"try it: {shlex.join(command)} CLIP{question}")


def _quoted(text: str) -> str:
    """A word for the shell; "What's that?" as people write it."""
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)

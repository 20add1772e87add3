"""`mindone-audio batch` at work: options to a job, messages, exit statuses."""

import argparse
import errno
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import fields

from mindone_audio.batch.job import BatchError, BatchJob
from mindone_audio.batch.part_files import merge
from mindone_audio.batch.runner import BatchTotals, run_batch
from mindone_audio.commands import options as shared
from mindone_audio.generation.settings import SAMPLING_ONLY
from mindone_audio.machine import affinity
from mindone_audio.machine.msrun import end_with_msrun, is_scheduler
from mindone_audio.setting_fields import in_words, option

SHOWN = 10  # missing items that are named
OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED, TERMINATED = 130, 143  # 128 + the signal's number, as a shell reports them


def batch_command(options: argparse.Namespace, should_stop: Callable[[], bool]) -> int:
    """Run or merge a job; returns the exit status. should_stop: whether SIGTERM has come. `ValueError` and `OSError`
    are mistakes in the options."""
    if is_scheduler():
        return 0  # msrun's scheduler starts the same command; ranks need no communication, so it has nothing to do
    log = logging.getLogger("mindone_audio")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        return _merge(options) if options.merge is not None else _run(options, should_stop)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _merge(options: argparse.Namespace) -> int:
    if options.inputs or options.out is not None:
        raise ValueError("--merge FOLDER stands alone: leave out inputs and --out")
    merged = merge(options.merge)
    if options.json:
        content = {"items": merged.count, "failed": merged.failed, "missing": len(merged.missing)}
        content |= {"audio_seconds": round(merged.audio_seconds, 3), "tokens": merged.tokens}
        print(json.dumps(content | {"output": None if merged.missing else str(merged.path)}))
    if merged.missing:
        shown = ", ".join(str(index + 1) for index in merged.missing[:SHOWN])
        more = f" and {len(merged.missing) - SHOWN} more" if len(merged.missing) > SHOWN else ""
        print(
            f"error: {len(merged.missing)} of {merged.count} items have no result yet (in the order of the input: "
            f"{shown}{more}): run the job's command again, then --merge",
            file=sys.stderr,
        )
    elif not options.json:
        counts = f"{merged.count} clips, {merged.failed} failed, {merged.audio_seconds / 3600:.4f} h of audio"
        print(f"{counts}, {merged.tokens} tokens: {merged.path}")
    return 1 if merged.missing or merged.failed else 0


def _job(options: argparse.Namespace) -> BatchJob:
    """The job that the options describe; `ValueError` for options that do not go together."""
    if not options.inputs:
        raise ValueError("no input: give a JSONL manifest, a folder of clips, a glob, or clips")
    if options.out is None:
        raise ValueError("no --out: give a folder for the results")
    settings = shared.settings(options)
    sampling = settings.pop("do_sample", False)  # False also where the temperature is 0
    if sampling:
        settings["do_sample"] = True
    elif unused := [option(name) for name in SAMPLING_ONLY if name in settings]:
        raise ValueError(f"{', '.join(unused)}: without effect on greedy decoding: add --do-sample or leave it out")
    if options.language is not None:
        settings["language"] = options.language
    names = [field.name for field in fields(BatchJob) if field.name != "settings"]
    return BatchJob(settings=settings, **{name: getattr(options, name) for name in names})


def _run(options: argparse.Namespace, should_stop: Callable[[], bool]) -> int:
    job = _job(options)
    end_with_msrun()
    affinity.bind_cores(job.device)
    again = f"what is done is kept in {job.out}: run the same command again to continue"
    try:
        totals = run_batch(job, should_stop=should_stop, explain=shared.explain("batch"))
    except KeyboardInterrupt:
        print(f"\ninterrupted; {again}", file=sys.stderr)
        return INTERRUPTED
    except BatchError as error:
        print(f"error: {in_words(error, option)}", file=sys.stderr)
        return 1
    except RuntimeError:  # of a device that is lost, which `main` explains
        print(again, file=sys.stderr)
        raise
    except OSError as error:
        if error.errno not in OUT_OF_ROOM:
            raise
        print(f"error: cannot write to {job.out}: {error.strerror}; make room; {again}", file=sys.stderr)
        return 1
    _report(totals, options.json)
    if totals.stopped:
        print(f"terminated; {again}", file=sys.stderr)
        return TERMINATED
    return 1 if totals.failed and totals.shard.ranks == 1 else 0


def _report(totals: BatchTotals, as_json: bool) -> None:
    if as_json:
        print(json.dumps(totals.as_json()))
        return
    print(totals)
    if totals.complete and totals.shard.ranks > 1:
        print(f"{totals.output} is complete; when all ranks are: mindone-audio batch --merge {totals.output.parent}")
    elif totals.complete:
        print(f"results: {totals.output}")

"""The loop of a batch job: decoded items into batches, batches through the pipeline, answers into this rank's part."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mindone_audio.batch.buckets import Buckets, Question, Ready
from mindone_audio.batch.decode_ahead import POLL, DecodeAhead
from mindone_audio.batch.job import BatchError, BatchJob, Shard, find_shard
from mindone_audio.batch.manifest import Item, Manifest, read_manifest
from mindone_audio.batch.part_files import EXTRA, Part, merge, settle_job
from mindone_audio.batch.progress import Progress
from mindone_audio.generation.settings import SAMPLING_ONLY, settle, split_request

logger = logging.getLogger(__name__)


@dataclass
class BatchTotals:
    """What one process did. items: its share. resumed: of them, answered by an earlier run. seconds: from the first
    batch to the last, without loading the model; audio_seconds and tokens are those of this run's answers."""

    shard: Shard
    output: Path
    items: int
    resumed: int
    answered: int = 0
    failed: int = 0
    audio_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    stopped: bool = False

    @property
    def complete(self) -> bool:
        """Every item has a result, an error if nothing else."""
        return self.resumed + self.answered + self.failed == self.items

    def as_json(self) -> dict:
        """For scripts; real_time_factor is processing time / audio time, None where nothing was answered."""
        values = asdict(self) | {"output": str(self.output), "complete": self.complete}
        values |= values.pop("shard")
        measured = self.answered > 0 and self.seconds > 0
        values["real_time_factor"] = round(self.seconds / self.audio_seconds, 6) if measured else None
        values["tokens_per_second"] = round(self.tokens / self.seconds, 3) if measured else None
        return values | {"seconds": round(self.seconds, 3), "audio_seconds": round(self.audio_seconds, 3)}

    def __str__(self) -> str:
        parts = [f"{self.answered} of {self.items} clips answered, {self.failed} failed"]
        if self.resumed:
            parts[0] += f", {self.resumed} done before"
        if self.answered and self.seconds:
            factor = self.seconds / self.audio_seconds
            parts.append(f"{self.audio_seconds / 3600:.4f} h of audio in {self.seconds:.1f} s")
            parts.append(f"real-time factor {factor:.4f} ({1 / factor:.1f} x real time)")
            parts.append(f"{self.tokens / self.seconds:.1f} tokens/s")
        label = f"{self.shard}: " if self.shard.ranks > 1 else ""
        return label + "; ".join(parts)


def run_batch(
    job: BatchJob,
    *,
    pipe: Any = None,
    shard: Shard | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    progress: bool | None = None,
    explain: Callable[[Exception], str] = str,
) -> BatchTotals:
    """Answer every item of this process's share that has no answer yet.

    pipe: a pipeline that is loaded already (of `job.model`, which is what the job's fingerprint tells); None loads it
    when the first batch is ready. shard: None takes RANK_ID and RANK_SIZE. should_stop: asked between batches; True
    ends the run with what is done. progress: a bar; None shows it on a terminal, log lines elsewhere.
    explain: makes the error message of an item that failed in the pipeline that this loads.

    A single process also writes results.jsonl; several are joined by `merge` when all have ended. A rerun goes on where
    the last run stopped, with any number of processes. Raises `ValueError` and `OSError` for what is wrong with the job
    before anything is computed, `BatchError` where it cannot go on: too many errors, another process at work, no
    decoder, and `OSError` for a disk that is full. What was answered until then is kept.
    """
    shard = find_shard(os.environ, job.device) if shard is None else shard
    manifest = read_manifest(job.inputs, shard.rank, shard.ranks)
    folder = Path(job.out)
    name = settle_job(folder, job.fingerprint(manifest.count, manifest.digest), job.restart)
    part = Part(folder, name, shard, job.restart)
    try:
        run = _Run(job, shard, manifest, part, pipe, sys.stderr.isatty() if progress is None else progress)
        run.explain = explain
        run.work(should_stop)
    finally:
        part.close()
    totals = run.totals
    if totals.complete and shard.ranks == 1:
        totals.output = merge(folder).path
    return totals


class _Run:
    """The state of `run_batch`."""

    def __init__(self, job: BatchJob, shard: Shard, manifest: Manifest, part: Part, pipe: Any, bar: bool):
        self.job, self.part, self.pipe, self.folder = job, part, pipe, manifest.folder
        self.todo = [self._checked(item) for item in manifest.items if item.index not in part.done]
        resumed = len(manifest.items) - len(self.todo)
        self.totals = BatchTotals(shard, part.path, len(manifest.items), resumed)
        label = str(shard) if shard.ranks > 1 else ""
        self.progress = Progress(len(manifest.items), resumed, label, bar)
        if part.done or part.failed:
            again = len(part.failed.intersection(item.index for item in self.todo))
            logger.info(
                "resuming: %d of %d clips are done, %d failed and are tried again", resumed, len(manifest.items), again
            )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = job.workers or max(1, min(4, cores // shard.ranks))
        self.warned = False
        self.explain: Callable[[Exception], str] = str

    def work(self, should_stop: Callable[[], bool]) -> None:
        """Run until nothing is left to do or `should_stop`."""
        start: float | None = None
        try:
            self._fail([(item, None, item.error) for item in self.todo if item.error is not None])
            with closing(self._batches(should_stop)) as batches:
                for batch in batches:
                    if self.pipe is None:
                        self.pipe = self._load()
                    if should_stop():
                        break
                    start = time.monotonic() if start is None else start
                    self._keep(batch, self._answer(batch))
                    self.totals.seconds = time.monotonic() - start
            self.totals.stopped = not self.totals.complete
        finally:
            self.progress.close()

    def _batches(self, should_stop: Callable[[], bool]) -> Iterator[list[Ready]]:
        """Batches as soon as there is enough to choose from; items that could not be decoded are dealt with here."""
        buckets = Buckets(self.job.batch_size, self.job.batch_seconds)
        valid = (item for item in self.todo if item.error is None)
        with DecodeAhead(valid, self.workers, buckets.ahead, self.folder) as decoding:
            while not (decoding.exhausted and not buckets):
                if should_stop():
                    return
                failures = []
                while not buckets.full and not decoding.exhausted and not should_stop():
                    decoded = decoding.take(0.0 if buckets.ready or failures else POLL)
                    if decoded is None:
                        if buckets.ready or failures:
                            break
                    elif decoded.error is not None:
                        failures.append((decoded.item, None, decoded.error))
                    else:
                        buckets.add(decoded, self._question(decoded.item))
                self._fail(failures)
                enough = buckets.ready or buckets.full or decoding.exhausted
                if enough and not should_stop() and (batch := buckets.take()):
                    yield batch

    def _load(self) -> Any:
        from mindspore import bfloat16, float16, float32

        from mindone_audio.pipelines import pipeline

        dtypes = {"float32": float32, "float16": float16, "bfloat16": bfloat16, None: None}
        device = "auto" if self.job.device is None else self.job.device
        dtype = dtypes[self.job.dtype]
        pipe = pipeline(
            model=self.job.model,
            device=device,
            device_memory=self.job.device_memory,
            mindspore_dtype=dtype,
            adapter=self.job.adapter,
        )
        pipe.explain = self.explain
        return pipe

    def _settings(self, item: Item) -> dict:
        return {"do_sample": False, **self.job.settings, **item.parameters, "return_token_count": True}

    def _checked(self, item: Item) -> Item:
        """The item, with an error where its parameters cannot be, as far as no model is needed to say so."""
        try:
            if item.error is None:
                settle(None, split_request(self._settings(item))[1], warn=False)
        except ValueError as error:
            return replace(item, error=str(error))
        return item

    def _question(self, item: Item) -> Question:
        settings = self._settings(item)
        text = self.job.text if item.text is None else item.text
        task = self.job.task if text is None else None
        if task is None and "language" not in item.parameters:
            settings.pop("language", None)  # the job's, which goes with its task
        if settings["do_sample"]:
            if "seed" not in item.parameters:
                settings["seed"] = int(settings.get("seed") or 0) + item.index
            return Question(text, task, settings, alone=True)
        unused = [name for name in SAMPLING_ONLY if settings.pop(name, None) is not None]
        if unused and not self.warned:
            logger.warning("%s has no effect without do_sample=True", ", ".join(unused))
            self.warned = True
        return Question(text, task, settings)

    def _answer(self, batch: list[Ready]) -> list[dict]:
        """Answers of one batch; where the device fails on it, each item is tried alone to find the one at fault."""
        question = batch[0].question
        inputs = [{"audio": entry.decoded.clips} for entry in batch]
        texts = [entry.question.text for entry in batch]
        try:
            return self.pipe(
                inputs,
                text=None if question.text is None else texts,
                task=question.task,
                generate_kwargs=question.settings,
                batch_size=len(batch),
                long_audio=self.job.long_audio,
                on_error="return",
                progress=False,
            )
        except Exception as error:  # Such as MindSpore's for too little memory: the other items go on.
            from mindone_audio.machine import device

            if device.is_lost(error):
                raise  # what is done is kept, and a rerun goes on from there; nothing else would succeed
            logger.warning("a batch of %d clips failed: %s", len(batch), str(error).split("\n")[0])
            if len(batch) == 1:
                return [{"generated_text": None, "error": f"{type(error).__name__}: {error}"}]
        return [self._answer([entry])[0] for entry in batch]

    def _keep(self, batch: list[Ready], answers: list[dict]) -> None:
        records, failures = [], []
        for entry, answer in zip(batch, answers):
            item, seconds = entry.decoded.item, entry.decoded.seconds
            if "error" in answer:
                failures.append((item, seconds, answer["error"]))
                continue
            records.append(_record(item, answer["generated_text"], answer["tokens"], seconds, None))
            self.totals.audio_seconds += seconds
            self.totals.tokens += answer["tokens"]
        self.part.append(records)
        self.totals.answered += len(records)
        self.progress.update(len(records))
        self._fail(failures)

    def _fail(self, failures: list[tuple[Item, float | None, str]]) -> None:
        if not failures:
            return
        self.part.append([_record(item, None, None, seconds, error) for item, seconds, error in failures])
        for item, _, error in failures:
            logger.warning("%s: %s", item.id, error)
        self.totals.failed += len(failures)
        self.progress.update(len(failures), answered=False)
        if self.job.max_errors is not None and self.totals.failed > self.job.max_errors:
            failed, last, folder = self.totals.failed, failures[-1][2], self.part.path.parent
            raise BatchError(
                lambda say: (
                    f"{failed} clips have failed, more than {say('max_errors', self.job.max_errors)}; the last: "
                    f"{last}. What is answered is kept in {folder}"
                )
            )


def _record(item: Item, text: Any, tokens: int | None, seconds: float | None, error: str | None) -> dict[str, Any]:
    return {
        "index": item.index,
        "id": item.id,
        "generated_text": text,
        "tokens": tokens,
        "seconds": None if seconds is None else round(seconds, 3),
        "error": error,
        **({EXTRA: item.extra} if item.extra else {}),
    }

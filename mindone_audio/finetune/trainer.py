"""The training loop: micro-batches to steps, logs, evaluation, checkpoints, and going on from them."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as msops
from tqdm import tqdm

from mindone_audio.adapters.lora import set_dropout_seed
from mindone_audio.finetune.answers import Answers
from mindone_audio.finetune.data.order import Order, share
from mindone_audio.finetune.facts import SETTINGS_OF_STEPS, adapter_facts, collator_facts, example_facts
from mindone_audio.finetune.graphs import Accumulate, AdamW, MicroBatch, Reduce, SummedLoss, graph, zeros_like
from mindone_audio.finetune.log import Log
from mindone_audio.finetune.metrics import COUNTS
from mindone_audio.finetune.ranks import Ranks
from mindone_audio.finetune.recompute import AccumulateByLayer
from mindone_audio.finetune.settings import FinetuneSettings
from mindone_audio.finetune.trainer_state import Checkpoints
from mindone_audio.machine.files import filling
from mindone_audio.setting_fields import SettingError, WordedError
from mindone_audio.weights.hub import CONFIG_FILE

logger = logging.getLogger(__name__)


class FinetuneError(WordedError, RuntimeError):
    """Training that cannot go on. The message says what happened, what is kept, and what to do next."""


@dataclass
class FinetuneResult:
    """What `Trainer.train` did. history: what was logged, one dict a line of log.csv. skipped: clips that could not be
    decoded, by example and reason. stopped: ended by `should_stop`."""

    steps: int
    history: list[dict] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    stopped: bool = False

    @property
    def losses(self) -> list[float]:
        """The logged losses."""
        return [line["loss"] for line in self.history if "loss" in line]


class Trainer:
    """Fine-tunes what is trainable in a model, which `add_lora` reduces to adapters.

    model: a model of this package, mostly with adapters. processor: its processor, for evaluation by generated answers.
    collator: examples to model inputs with labels, such as `AnswerCollator`, or `TranscriptCollator` for a model that
    writes down what is said. train: `Example`s, a sequence or, with max_steps, any iterable that can be iterated again.
    evaluation: a sequence of them, or None.

    Attributes: steps: of the whole training; step: how many were taken; resumed_step: those of earlier runs.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        collator: Callable[[Sequence], dict | None],
        settings: FinetuneSettings,
        train: Sequence | Iterable,
        evaluation: Sequence | None = None,
    ):
        self.model, self.processor, self.collator, self.settings = model, processor, collator, settings
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.parameters = [parameter for parameter in model.get_parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("nothing in the model is trainable: call add_lora(model, ...) first")
        self.ranks = Ranks.find()
        size = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * self.ranks.count
        self.order = Order(train, size, settings.seed, settings.shuffle)
        self.evaluation = evaluation
        self._answers: Answers | None = None
        if evaluation is not None and settings.metrics:
            self._answers = Answers(self.base, processor, collator, settings)
        if self.order.known:
            self.steps = settings.max_steps or math.ceil(settings.num_train_epochs * self.order.steps_per_epoch)
        elif not settings.max_steps:
            raise SettingError(lambda say: f"streamed data has no length: give {say('max_steps')}")
        else:
            self.steps = settings.max_steps
        self.step = self.resumed_step = 0
        self._updating = False
        self.checkpoints = Checkpoints(Path(settings.output_dir), settings.save_total_limit)
        self._build()

    def _build(self) -> None:
        settings = self.settings
        self.ranks.share_first(self.parameters)
        sums = [zeros_like(parameter, f"gradient.{parameter.name}") for parameter in self.parameters]
        tower = self.base.audio_tower
        encodes = tower is not None and any(parameter.requires_grad for parameter in tower.get_parameters())
        if settings.gradient_checkpointing and self.base.context_positions:
            kind = self.base.config.model_type
            raise SettingError(
                lambda say: f"{say('gradient_checkpointing')} is not there for {kind} models: leave it out"
            )
        loss = SummedLoss(self.base, encodes)
        self._encode = None if encodes or tower is None else graph(tower, settings.compile)
        self._loss = graph(loss, settings.compile)
        if settings.gradient_checkpointing:
            self._accumulate = AccumulateByLayer(self.base, encodes, self.parameters, sums, settings.compile)
        else:
            self._accumulate = graph(Accumulate(loss, self.parameters, sums), settings.compile)
        self._reduce = graph(Reduce(sums, self.ranks.count), settings.compile)
        decays = [parameter.ndim > 1 for parameter in self.parameters]
        self.optimizer = AdamW(self.parameters, sums, decays, settings)
        self._update = graph(self.optimizer, settings.compile)
        self._state = [*self.parameters, *self.optimizer.first, *self.optimizer.second]
        self._tables: dict[int, Tensor] = {}

    def train(
        self,
        resume_from_checkpoint: bool | str | None = None,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        progress: bool | None = None,
    ) -> FinetuneResult:
        """Take all steps that are left; the result ends up in output_dir, and log.csv and checkpoints while it runs.

        resume_from_checkpoint: True goes on from the last checkpoint in output_dir, from the beginning where there is
        none; a path from that one. should_stop: asked after each step; True saves a checkpoint and returns.
        progress: a bar; None shows it on a terminal.

        Raises `FinetuneError` where the loss is no number and where every example was skipped, and what the data
        raises. What was learned before any of these, and before `KeyboardInterrupt`, is kept as a checkpoint, except
        for an interruption within the update of the adapter, which leaves it half done.
        """
        if resume_from_checkpoint:
            self._resume(None if resume_from_checkpoint is True else Path(resume_from_checkpoint))
        elif self.ranks.first:
            self.checkpoints.begin()
        result = FinetuneResult(self.step)
        show = None if progress is None else not progress
        try:
            with (
                Log(Path(self.settings.output_dir), self.settings.report_to, self.step, self.ranks.first) as log,
                tqdm(
                    total=self.steps, initial=self.step, unit="step", disable=True if not self.ranks.first else show
                ) as bar,
                closing(self._micro_batches()) as steps,
            ):
                self._run(steps, log, bar, should_stop, result)
        finally:
            result.skipped = list(getattr(self.collator, "skipped", []))
        if not result.stopped:
            self.save_model(self.settings.output_dir)
        return result

    def _run(
        self, steps: Iterator, log: Log, bar: tqdm, should_stop: Callable[[], bool], result: FinetuneResult
    ) -> None:
        settings, start, tokens, learning = self.settings, time.monotonic(), 0, False
        losses: list[float] = []
        try:
            while self.step < self.steps:
                loss, norm, learned = self._take_step(next(steps))
                losses.append(loss)
                tokens += learned
                learning |= learned > 0 or loss > 0  # the loss is that of all ranks
                self.step += 1
                self._updating = False
                result.steps = self.step
                bar.update(1)
                last = self.step == self.steps
                if last and not learning and self.resumed_step == 0:
                    raise FinetuneError(
                        "nothing was learned, because every example was skipped: see the warnings for the reasons"
                    )
                if last or settings.logging_steps and self.step % settings.logging_steps == 0:
                    line = {"step": self.step, "loss": float(np.mean(losses)), "grad_norm": norm}
                    line |= {"learning_rate": settings.rate(self.step - 1, self.steps)}
                    line |= {"tokens_per_second": tokens / (time.monotonic() - start)}
                    if self.order.known:
                        line["epoch"] = self.step / self.order.steps_per_epoch
                    result.history.append(log.write(line))
                    losses, tokens, start = [], 0, time.monotonic()
                if self.evaluation is not None and _due(self.step, settings.eval_steps, last):
                    result.history.append(log.write({"step": self.step, **self.evaluate()}))
                    start = time.monotonic()
                if _due(self.step, settings.save_steps, last):
                    self._save()
                if not last and self.ranks.any(should_stop()):
                    result.stopped = True
                    self._save()
                    return
        except (KeyboardInterrupt, ValueError, OSError):  # the last two: what the data raises, and a full disk
            if self.step > self.resumed_step and not self._updating and self.ranks.first:
                # Without waiting for other ranks, which may be in the middle of a step.
                self.checkpoints.save(self.step, self.model, self._state, self._facts())
            raise

    def _micro_batches(self) -> Iterator[list[dict]]:
        """For each step from the next on, the collated inputs of this rank's micro-batches, made one step ahead."""
        rows = self.settings.per_device_train_batch_size

        def collate(batch: list) -> list[dict]:
            parts = share(batch, self.ranks.rank, self.ranks.count, rows)
            return [inputs for part in parts if part and (inputs := self.collator(part)) is not None]

        batches = self.order.batches(self.step)
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(lambda: collate(next(batches)))
            while True:
                ready, ahead = ahead.result(), pool.submit(lambda: collate(next(batches)))
                yield ready

    def _take_step(self, micro_batches: list[dict]) -> tuple[float, float, int]:
        """One step: its mean loss, the norm of its gradient, and how many tokens were learned here."""
        settings, rows = self.settings, self.settings.per_device_train_batch_size
        total, count = 0.0, 0
        self.model.set_train(True)
        for number, inputs in enumerate(micro_batches):
            batch = MicroBatch(self.base, inputs, rows, self._encode is not None, settings.gradient_checkpointing)
            # Of one step, micro-batch and rank: a run that goes on draws what an uninterrupted one would.
            draw = (self.step * self.settings.gradient_accumulation_steps + number) * self.ranks.count + self.ranks.rank
            set_dropout_seed(self.model, settings.seed + draw)
            total += float(self._accumulate(*self._arguments(batch)).asnumpy())
            count += batch.count
        self.model.set_train(False)
        loss, norm = (float(x.asnumpy()) for x in self._reduce(_row(total), _row(count)))
        if not math.isfinite(loss) or not math.isfinite(norm):
            self._fail(loss)
        step = self.step + 1
        scale = min(1.0, settings.max_grad_norm / (norm + 1e-6)) if settings.max_grad_norm else 1.0
        numbers = (
            settings.rate(self.step, self.steps),
            scale,
            1 - settings.adam_beta1**step,
            1 - settings.adam_beta2**step,
        )
        self._updating = True
        self._update(*(Tensor(number, ms.float32) for number in numbers))
        return loss, norm, count

    def _fail(self, loss: float) -> None:
        """`FinetuneError` after what was learned until now has been saved."""
        kept = "nothing was learned before it" if self.step == 0 else f"checkpoint-{self.step} holds what was before it"
        if self.step and self.ranks.first:
            # No other one is dropped for it: if it was its last update that broke it, an older one is the last good.
            self.checkpoints.save(self.step, self.model, self._state, self._facts(), drop=False)
        self.ranks.wait()
        raise FinetuneError(
            lambda say: (
                f"the loss of step {self.step + 1} is {loss}, or its gradient is: {kept}; lower the learning "
                f"rate ({self.settings.learning_rate:g}), set {say('max_grad_norm')}, or look for a broken example"
            )
        )

    def _arguments(self, batch: MicroBatch) -> tuple:
        if batch.length not in self._tables:
            self._tables[batch.length] = self.base.language_model.stacked_tables(batch.length, self.base.dtype)
        arguments = *batch.tokens, batch.where, batch.targets, self._tables[batch.length]
        if batch.features is None:
            return arguments
        if self._encode is None:
            return *arguments, batch.features, batch.lengths
        encoded = self._encode(batch.features, batch.lengths)
        tower = self.base.audio_tower
        rest = int(tower.output_lengths(np.array(tower.config.num_mel_frames))) - encoded.shape[1]
        if rest > 0:  # so that the graphs are those of a whole window, however short the clips are
            empty = msops.zeros((encoded.shape[0], rest, encoded.shape[2]), encoded.dtype)
            encoded = msops.concat((encoded, empty), 1)
        return *arguments, encoded

    def evaluate(self) -> dict[str, float]:
        """eval_loss over the evaluation examples, the mean over all their tokens, and each of the settings' metrics."""
        rows, total, count = self.settings.per_device_eval_batch_size, 0.0, 0
        self.model.set_train(False)
        answers, expected = [], []
        for examples in self._evaluation_batches(rows):
            inputs = self.collator(examples)
            if inputs is not None:
                batch = MicroBatch(self.base, inputs, rows, self._encode is not None)
                total += float(self._loss(*self._arguments(batch)).asnumpy())
                count += batch.count
            if self.settings.metrics:
                answers += self._answers(examples)
                expected += [example.answer for example in examples]
        counts = {"loss": (total, count)}
        for metric in self.settings.metrics:
            counts[metric] = COUNTS[metric](answers, expected)
        sums = self.ranks.sum([number for pair in counts.values() for number in pair])
        return {f"eval_{name}": sums[2 * i] / max(1, sums[2 * i + 1]) for i, name in enumerate(counts)}

    def _evaluation_batches(self, rows: int) -> Iterator[list]:
        """This rank's examples, so many at a time, each read when its batch comes."""
        places = range(self.ranks.rank, len(self.evaluation), self.ranks.count)
        for first in range(0, len(places), rows):
            yield [self.evaluation[place] for place in places[first : first + rows]]

    def save_model(self, folder: str | Path) -> None:
        """Write the adapter (or the model, where all of it is trained); the first rank does."""
        if not self.ranks.first:
            return
        if self.base is not self.model:
            self.model.save_pretrained(str(folder))
            return
        with filling(Path(folder), CONFIG_FILE) as new:
            self.model.save_pretrained(str(new))

    def _save(self) -> None:
        if self.ranks.first:
            self.checkpoints.save(self.step, self.model, self._state, self._facts())
        self.ranks.wait()

    @cached_property
    def _example_facts(self) -> dict:
        return example_facts(self.order.examples)

    def _facts(self) -> dict:
        """What a run that goes on must have in common with this one to take the same steps."""
        facts = {name: getattr(self.settings, name) for name in SETTINGS_OF_STEPS}
        facts |= {"dtype": str(self.base.dtype), "ranks": self.ranks.count}
        facts |= adapter_facts(self.model) | collator_facts(self.collator)
        facts |= {"steps": self.steps, "global_batch": self.order.size, "examples": None}
        if self.order.known:
            facts |= {"examples": len(self.order.examples)} | self._example_facts
        return json.loads(json.dumps(facts, default=str))  # as they come back from a file

    def _resume(self, folder: Path | None) -> None:
        found = self.checkpoints.find(folder)
        if found is None:
            logger.info("no checkpoint in %s: starting from the beginning", self.settings.output_dir)
            return
        folder, step, facts = found
        # What a checkpoint does not say is not compared: earlier versions wrote fewer facts.
        here = self._facts()
        changed = {name: (old, here.get(name)) for name, old in facts.items() if old != here.get(name)}
        if changed:
            told = ", ".join(f"{name} {str(old):.120} -> {str(new):.120}" for name, (old, new) in changed.items())
            logger.warning("resuming with other settings, so the steps are not those of one run: %s", told)
        self.checkpoints.load(folder, self._state)
        self.step = self.resumed_step = step
        logger.info("resuming after step %d of %d", self.step, self.steps)


def _due(step: int, every: int, last: bool) -> bool:
    return last or bool(every) and step % every == 0


def _row(number: float) -> Tensor:
    return Tensor(np.array([number], np.float32))

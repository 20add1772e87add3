"""A fine-tuning from a configuration to an adapter: data, model, training, merging and publishing."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms

from mindone_audio.adapters.lora import add_lora, trainable_parameters
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.finetune.config import FinetuneConfig
from mindone_audio.finetune.data.collator import AnswerCollator
from mindone_audio.finetune.data.examples import ColumnsError, DataError
from mindone_audio.finetune.data.slices import part
from mindone_audio.finetune.data.sources import UnusedKeywords, load_examples
from mindone_audio.finetune.data.transcripts import TranscriptCollator
from mindone_audio.finetune.publish import check_empty, check_repository, push_to_hub, save_merged
from mindone_audio.finetune.ranks import Ranks
from mindone_audio.finetune.trainer import FinetuneError, FinetuneResult, Trainer
from mindone_audio.finetune.trainer_state import Checkpoints
from mindone_audio.machine.device import set_device
from mindone_audio.models import AutoModelForAudioTextToText, AutoProcessor, model_class
from mindone_audio.setting_fields import SettingError, in_words, refusal
from mindone_audio.weights.hub import read_config

logger = logging.getLogger(__name__)


# Settings of a collator that are only for models that are asked questions, and only for those that transcribe.
_OF_QUESTIONS, _OF_TRANSCRIPTS = ("chat", "eos_token_id"), ("language", "task")
COLUMNS = {"audio": "audio_column", "answer": "answer_column", "prompt": "prompt"}  # their names in a configuration


@dataclass
class FinetuneOutcome:
    """What `run_finetune` did. first: whether this rank writes files and messages. steps: of the
    whole training. merged: the folder of the merged model; pushed: the address on the hub. prompt: a question of the
    data, to try the adapter with; None for a model that is asked none."""

    result: FinetuneResult
    steps: int
    first: bool
    prompt: str | None = ""
    merged: Path | None = None
    pushed: str | None = None


def run_finetune(
    config: FinetuneConfig,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    training: Callable[[], AbstractContextManager] = nullcontext,
    progress: bool | None = None,
) -> FinetuneOutcome:
    """Train an adapter as the configuration says, and merge and push it if that is asked for.

    should_stop: asked after each step; True ends the run with a checkpoint. training: a context that the steps are
    taken in. progress: a bar; None shows it on a terminal.

    Raises `ValueError` and `OSError` for what is wrong with the configuration or the data before anything was learned,
    and `FinetuneError` for a training that cannot go on; what was learned until then is kept.
    """
    _check_folders(config)
    train, evaluation = load_data(config)
    set_device(config.job.device, config.job.device_memory)
    ranks = Ranks.find()
    processor, model = _load_model(config)
    collator = _collator(config, processor, model)
    try:
        adapted = add_lora(model, config.lora)
    except SettingError as error:
        raise error.prefixed("lora_") from error
    trainer = Trainer(adapted, processor, collator, config.training, train, evaluation)
    if ranks.first:
        learned, numbers = trainable_parameters(adapted)
        logger.info("%d steps; %d of %d numbers are trained (%.2f %%)", *(trainer.steps, learned, numbers),
                    100 * learned / numbers)  # fmt: skip
    with training():
        result = _train(trainer, config, should_stop, progress)
    prompt = _prompt(train) if model.answers_questions else None
    outcome = FinetuneOutcome(result, trainer.steps, ranks.first, prompt)
    if result.stopped or not ranks.first:
        return outcome
    if config.job.merge is not None:
        outcome.merged = save_merged(adapted, _base(config), config.job.merge)
    if config.job.push_to_hub is not None:
        folder = outcome.merged or config.training.output_dir
        try:
            outcome.pushed = push_to_hub(folder, config.job.push_to_hub, private=config.job.private)
        except OSError as error:
            raise FinetuneError(str(error)) from error
    return outcome


def _check_folders(config: FinetuneConfig) -> None:
    """`ValueError` for folders and names that would fail only after the training."""
    output = Path(config.training.output_dir)
    if output.exists() and not output.is_dir():
        raise SettingError(lambda say: f"{say('output_dir')} {str(output)!r} is a file: give a folder for the adapter")
    found = Checkpoints(output, None).all()
    if found and not config.job.resume:
        raise SettingError(
            lambda say: (
                f"{output} has checkpoints of an earlier run, the last {found[-1].name}: go on from it with "
                f"{say('resume', True)}, or give another {say('output_dir')}"
            )
        )
    if config.job.merge is not None:
        check_empty(config.job.merge)
    if config.job.push_to_hub is not None:
        check_repository(config.job.push_to_hub)


def load_data(config: FinetuneConfig) -> tuple[Any, Sequence | None]:
    """The examples to learn from, and those to evaluate on or None.

    Raises what `load_examples` raises, all of it `ValueError` or `OSError`.
    """
    data = config.data
    prompt = data.prompt
    taught = model_class(read_config(_base(config)))
    if not taught.is_taught:
        raise SettingError(
            lambda say: f"{say('model', str(_base(config)))}: {taught.__name__} is not taught here: take another model"
        )
    if not taught.answers_questions:
        if prompt:
            raise refusal("prompt", f" {prompt!r:.80}: this model writes down what is said: leave it out")
        prompt = ""  # there need not be one
    train = part(_examples(config, data.train, data.split, prompt), data.skip, data.take)
    if not data.evaluates:
        return train, None
    source = data.evaluation or data.train
    split = data.evaluation_split or (data.split if source == data.train else "train")
    evaluation = part(_examples(config, source, split, prompt), data.evaluation_skip, data.evaluation_take)
    return train, evaluation if hasattr(evaluation, "__len__") else list(evaluation)


def _examples(config: FinetuneConfig, source: str, split: str, prompt: Any):
    data = config.data
    columns = {"audio": data.audio_column, "answer": data.answer_column, "prompt": prompt}
    try:
        return load_examples(source, split=split, streaming=data.streaming, **columns, **data.load)
    except ColumnsError as error:
        what, missing = error.what, error.missing
        hint = ", a text or {column: NAME}" if "prompt" in missing else ""
        raise DataError(
            lambda say: f"{what}: say which of them to use with {', '.join(say(COLUMNS[use]) for use in missing)}{hint}"
        ) from error
    except UnusedKeywords as error:
        kind, unused = error.source, [*error.names, *(["load"] if error.load else [])]
        raise DataError(
            lambda say: f"{source}: {', '.join(map(say, unused))} has no effect on {kind}: leave it out"
        ) from error
    except (TypeError, ImportError) as error:
        raise ValueError(f"{source}: {error}") from error


def _base(config: FinetuneConfig) -> str | os.PathLike:
    return demo_checkpoint() if config.job.model is None else config.job.model


def _collator(config: FinetuneConfig, processor: Any, model: Any) -> AnswerCollator | TranscriptCollator:
    """That of the model's kind; `SettingError` for a setting that is for the other kind."""
    foreign, does = _OF_QUESTIONS, "writes down what is said"
    if model.answers_questions:
        foreign, does = _OF_TRANSCRIPTS, "is asked questions"
    if given := [name for name in foreign if getattr(config.collator, name) is not None]:
        text = f" has no effect: a {model.config.model_type} model {does}: leave it out"
        raise refusal(given[0], text)
    settings = {name: value for name, value in vars(config.collator).items() if name not in foreign}
    if model.answers_questions:
        return AnswerCollator(processor, generation_config=model.generation_config, **settings)
    return TranscriptCollator(processor, model, **settings)


def _load_model(config: FinetuneConfig) -> tuple[Any, Any]:
    base, dtype = _base(config), config.job.dtype
    processor = AutoProcessor.from_pretrained(base)
    dtype = None if dtype is None else getattr(ms, dtype)
    return processor, AutoModelForAudioTextToText.from_pretrained(base, mindspore_dtype=dtype)


def _train(
    trainer: Trainer, config: FinetuneConfig, should_stop: Callable[[], bool], progress: bool | None
) -> FinetuneResult:
    """`Trainer.train`, where what the data raises after something was learned is a `FinetuneError`."""
    try:
        return trainer.train(config.job.resume or None, should_stop=should_stop, progress=progress)
    except (ValueError, OSError) as error:
        if trainer.step == trainer.resumed_step:
            raise
        kept = f"what was learned in {trainer.step} steps is kept in {config.training.output_dir}"
        failed = error
        raise FinetuneError(
            lambda say: f"{in_words(failed, say)}; {kept}: go on with {say('resume', True)} when that is put right"
        ) from error


def _prompt(train: Any) -> str:
    """The question of the first example; empty for a stream, of which nothing is read for it."""
    return train[0].prompt if hasattr(train, "__len__") else ""

"""`mindone-audio finetune`: teach a model by LoRA adapters, from a YAML file, options, or both."""

import argparse
from collections.abc import Mapping
from typing import get_origin

from mindone_audio.finetune import config, values

TITLES = {
    "job": "model and results",
    "data": "data",
    "training": "training (transformers' names)",
    "lora": "adapters (PEFT's names)",
    "collator": "from examples to labels",
}
# What each name of a configuration means; the defaults are added.
HELP = {
    "model": "checkpoint folder or Hugging Face id (default: the small bundled one)",
    "device": "auto, ascend, ascend:1 or cpu",
    "dtype": "float32, float16 or bfloat16 (default: the checkpoint's)",
    "resume": "go on from the last checkpoint in --output-dir, or from this one",
    "merge": "also write the model with the adapter in its weights to this new folder",
    "push_to_hub": "put the adapter, or the merged model, on the Hugging Face hub: owner/name",
    "private": "whether a new repository there is private",
    "train": "a .jsonl file, a folder or a Hugging Face data set",
    "split": "of a folder or data set, as datasets takes it",
    "skip": "leave out so many examples at the beginning",
    "take": "use only so many examples (default: all)",
    "evaluation": "other examples, to be asked while training",
    "evaluation_split": "evaluate on this split of them, or of --train",
    "evaluation_skip": "as --skip",
    "evaluation_take": "as --take",
    "streaming": "read a data set while it is used; needs --max-steps",
    "audio_column": "where the clips are",
    "answer_column": "where the answers are",
    "prompt": "the question for all; '{column: NAME}' or '{column: NAME, questions: {VALUE: TEXT}, default: TEXT}' "
    "(default: each example's own prompt)",
    "load": "more for datasets.load_dataset, such as '{name: en, revision: main}'",
    "output_dir": "for the adapter, checkpoints and log.csv",
    "num_train_epochs": "how often all examples are seen",
    "max_steps": "how many steps instead; 0: by epochs",
    "per_device_train_batch_size": "examples at a time",
    "per_device_eval_batch_size": "examples at a time, in evaluation",
    "gradient_accumulation_steps": "batches of a step",
    "learning_rate": "at the end of the warm-up",
    "lr_scheduler_type": "linear, cosine or constant",
    "warmup_steps": "steps until the learning rate is reached",
    "warmup_ratio": "the same as a share of all steps",
    "weight_decay": "not for biases and norms",
    "adam_beta1": "",
    "adam_beta2": "",
    "adam_epsilon": "",
    "max_grad_norm": "larger gradients are scaled down to it; 0: never",
    "logging_steps": "log every so many steps; 0: only at the end",
    "eval_steps": "evaluate every so many steps; 0: only at the end",
    "save_steps": "write a checkpoint every so many steps; 0: only at the end",
    "save_total_limit": "keep so many checkpoints (default: all)",
    "metrics": "exact_match, wer: of generated answers in evaluation",
    "max_new_tokens": "of those answers",
    "gradient_checkpointing": "less memory, more time",
    "shuffle": "draw an order for each epoch",
    "seed": "of that order and of dropout",
    "report_to": "csv, tensorboard",
    "compile": "compile the steps; without, they take many times longer",
    "lora_r": "rank",
    "lora_alpha": "what B A is scaled by is alpha / r",
    "lora_dropout": "of the adapters' inputs",
    "lora_target_modules": "names of linear layers; multi_modal_projector: all of the projector",
    "lora_encoder": "also the layers of the audio encoder that have these names",
    "lora_init": "default or gaussian",
    "lora_use_rslora": "alpha / sqrt(r) instead",
    "lora_seed": "of the adapters' first numbers",
    "chat": "ask by the chat template (default: what the checkpoint was tuned for)",
    "labels": "answer: learn the answers; all: the whole conversations",
    "max_length": "tokens of the longest example allowed (default: any)",
    "on_bad_clip": "raise, or skip and count what cannot be read or is too long",
    "eos_token_id": "what ends an answer (default: found)",
    "pad_to_multiple_of": "round lengths up, so that few graphs are compiled",
}


def add(commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "finetune",
        help="teach a model by LoRA: a YAML file, options, or both",
        usage="%(prog)s [CONFIG.yaml] [options]",
        epilog="CONFIG.yaml has lines of `name: value`, of the same names with _ for -; options change what it says. "
        "Exit status: 0 done, 1 the training could not go on, 2 wrong use, 130 Ctrl-C, 143 SIGTERM; after all of them "
        "but 2 the same command with --resume goes on.",
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="what to do")
    parser.add_argument("--print-config", action="store_true", help="only print all values as YAML")
    groups = {part: parser.add_argument_group(title) for part, title in TITLES.items()}
    for option in config.options().values():
        _add_option(groups[option.part], option)
    parser.set_defaults(run=run, hold_terminate=True)  # the step at hand is finished first


def _add_option(group, option: config.Option) -> None:
    flag, text, kinds = f"--{option.name.replace('_', '-')}", HELP[option.name], values.kinds(option.kind)
    shown = ", ".join(option.default) if isinstance(option.default, tuple) else option.default
    if not (option.required or shown is None or shown in ("", {}) or shown is False):
        text += f" (default: {shown})"
    settings = {"dest": option.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%").strip()}
    if option.name == "resume":
        group.add_argument(flag, nargs="?", const=True, metavar="CHECKPOINT", **settings)
    elif bool in kinds:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **settings)
    else:
        group.add_argument(flag, metavar=_metavar(kinds), **settings)


def _metavar(kinds: tuple) -> str:
    if any(get_origin(kind) is tuple for kind in kinds):
        return "A,B"
    return "N" if int in kinds else "X" if float in kinds else "{…}" if kinds == (Mapping,) else "TEXT"


def run(options: argparse.Namespace) -> int:
    """The exit status that `--help` explains."""
    if options.config is None and str(getattr(options, "resume", "")).endswith((".yaml", ".yml")):
        options.config, options.resume = options.resume, True  # `--resume CONFIG.yaml`
    given = {} if options.config is None else values.read_yaml(options.config)
    for name, option in config.options().items():
        if hasattr(options, name):
            value = getattr(options, name)
            given[name] = values.parse_text(name, value, option.kind) if isinstance(value, str) else value
    settled = config.FinetuneConfig.from_values(given)
    if options.print_config:
        import yaml

        print(yaml.safe_dump(settled.values(), sort_keys=False, allow_unicode=True), end="")
        return 0
    from mindone_audio.commands.finetune_job import finetune_command

    return finetune_command(settled, options.signals)

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
    flag, text, kinds = f"--{option.name.replace('_', '-')}", option.text, values.kinds(option.kind)
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

"""`mindone-audio finetune`: teach a model by LoRA adapters, from a YAML file, options, or both."""

import argparse
from collections.abc import Mapping
from typing import Any, get_origin

from mindone_audio.commands.options import placeholder
from mindone_audio.finetune import config, values
from mindone_audio.setting_fields import Say, help_text, option, yaml_entry

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
    for entry in config.options().values():
        _add_option(groups[entry.part], entry)
    parser.set_defaults(run=run, hold_terminate=True)  # the step at hand is finished first


def _add_option(group, entry: config.Option) -> None:
    text, kinds = help_text(entry.field, lambda name: option(entry.prefix + name)), values.kinds(entry.kind)
    shown = ", ".join(entry.default) if isinstance(entry.default, tuple) else entry.default
    if not (entry.required or shown is None or shown in ("", {}) or shown is False):
        text += f" (default: {shown})"
    settings = {"dest": entry.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    metavar = placeholder(entry.field) or _metavar(kinds)
    if entry.name == "resume":
        group.add_argument(option(entry.name), nargs="?", const=True, metavar=metavar, **settings)
    elif bool in kinds:
        group.add_argument(option(entry.name), action=argparse.BooleanOptionalAction, **settings)
    else:
        group.add_argument(option(entry.name), metavar=metavar, **settings)


def _metavar(kinds: tuple) -> str:
    if any(get_origin(kind) is tuple for kind in kinds):
        return "A,B"
    return "N" if int in kinds else "X" if float in kinds else "{…}" if kinds == (Mapping,) else "TEXT"


def run(options: argparse.Namespace) -> int:
    """The exit status that `--help` explains."""
    if options.config is None and str(getattr(options, "resume", "")).endswith((".yaml", ".yml")):
        options.config, options.resume = options.resume, True  # `--resume CONFIG.yaml`
    options.say = _say(options)
    given = {} if options.config is None else values.read_yaml(options.config)
    for name, entry in config.options().items():
        if hasattr(options, name):
            value = getattr(options, name)
            given[name] = values.parse_text(name, value, entry.kind) if isinstance(value, str) else value
    settled = config.FinetuneConfig.from_values(given)
    if options.print_config:
        import yaml

        print(yaml.safe_dump(settled.values(), sort_keys=False, allow_unicode=True), end="")
        return 0
    from mindone_audio.commands.finetune_job import finetune_command

    return finetune_command(settled, options.signals, options.say)


def _say(options: argparse.Namespace) -> Say:
    """Settings as whoever gave them writes them: those of a YAML file as its entries, others as options."""

    def say(name: str, value: Any = None) -> str:
        in_file = options.config is not None and not hasattr(options, name)
        return yaml_entry(name, value) if in_file else option(name, value)

    return say

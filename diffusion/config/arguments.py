"""The command line of train.py, and its `--help`, which explains every key."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, did_you_mean
from ..storage import runs
from ..storage.paths import expanded
from .files import (
    KEYS,
    SECTIONS,
    adopting,
    available_configs,
    dump_config,
    key_hint,
    load_config,
    parse_config,
    split_override,
)
from .options import Section, declared, describe
from .run_sections import Config

USAGE = """\
usage: train.py [--config NAME|FILE] [key=value ...] [--section.key VALUE ...]
                [--from MODEL] [--lora RANK] [--print_config]
                [--wandb online|offline|off] [--resume auto|RUN|never]
                [--resume-changed] [--verify-resume] [--status]

Train a model; without arguments on the digits, on a GPU if there is one.
"""
_FLAGS_HELP = {
    "--config NAME|FILE": "a configuration file, or the name of one in configs/ (default: digits): {names}",
    "key=value, --key VALUE": "set one of the keys below, overriding the file; the last one wins; lists as '[1, 2]'",
    "--from MODEL": "start from the weights of a model, the same as trainer.start=MODEL: a run, a model file or "
    "pretrained:NAME, with its own configuration unless --config is given; or what another project wrote "
    "(docs/adopt.md), also hf:OWNER/NAME, with data.name, data.path",
    "--lora RANK": "with --from: train low-rank factors of its attention and convolutions alone, the same as "
    "trainer.lora=RANK; the model's file holds these, and is read together with MODEL",
    "--print_config": "print the resulting configuration and stop",
    "--wandb MODE": "the same as logging.wandb=MODE",
    "--resume auto|RUN|never": "auto: resume the last unfinished run of this name, if any; RUN: resume that run, with "
    "its own configuration unless --config is given; never: start a new run (default: auto)",
    "--resume-changed": "let the resumed run differ in seed, trainer, optimizer and objective",
    "--verify-resume": "check on this machine in a few steps that a killed run resumes bit for bit; keeps nothing",
    "--status": "print the state of the run of this command, or of --resume, and exit with a code: 0 complete, 75 or "
    "130 stopped by a signal, 1 failed, killed or still being trained",
    "-h, --help": "print this page and stop",
}
_INDENT, _WIDEST, _NARROWEST = 29, 119, 24  # of the page: what keys mean begins there, its width, that of texts
FLAGS = tuple(
    f"--{name.replace('-', '_')}" for flags in _FLAGS_HELP for name in re.findall(r"--([\w-]+)", flags) if name != "key"
)
# The keys that flags stand for.
_SHORT = {"--wandb": "logging.wandb", "--lora": "trainer.lora"}
# What a file that is named without a flag is meant for; another path is meant as a run.
_FLAG_OF_FILE = {".yaml": "--config", ".yml": "--config", ".safetensors": "--from", ".ckpt": "--resume"}


@dataclass(frozen=True)
class TrainArguments:
    """What the command line of train.py says.

    Attributes:
        config: The configuration.
        resume: `auto`, `never`, or a run.
        resume_changed: Whether the run that goes on may differ in what the optimiser does.
        verify_resume: Whether to prove that resuming is exact, in place of training.
        status: Whether to say how the run stands, in place of training.
    """

    config: Config
    resume: str = "auto"
    resume_changed: bool = False
    verify_resume: bool = False
    status: bool = False


def parse_train_arguments(argv: Sequence[str] | None = None) -> TrainArguments:
    """Read the command line of train.py.

    Args:
        argv: The arguments, by default those of the process.

    Raises:
        UserError: For anything that is not understood, in one line.
        SystemExit: With code 0, after `--help` or `--print_config` has printed.
    """
    config, start, resume, overrides, prints = None, None, "auto", [], False
    switches = {"resume_changed": False, "verify_resume": False, "status": False}
    left = list(sys.argv[1:] if argv is None else argv)
    while left:
        argument = left.pop(0)
        if not argument.startswith("-"):
            overrides.append(_override(argument))
            continue
        flag, equals, value = argument.partition("=")
        flag = flag.replace("-", "_").replace("__", "--", 1) if flag.startswith("--") else flag
        if flag in ("-h", "--help"):
            print(help_text(), end="")
            raise SystemExit(0)
        if flag == "--print_config":
            prints = True
            continue
        key = flag.removeprefix("--")
        if key in switches and not equals:
            switches[key] = True
            continue
        if flag not in FLAGS and key not in KEYS and "." not in key:
            hint = key_hint(key, [*FLAGS, *(f"--{known}" for known in KEYS)], "--")
            raise UserError(f"unknown option '{argument}'.{hint}")
        if not equals:
            if not left or left[0].startswith("--"):
                raise UserError(f"{flag}: needs a value")
            value = left.pop(0)
        if flag in FLAGS and not value.strip():  # of a variable that is not set: not what null means
            raise UserError(f"{flag}: found '{value}'; needs a value")
        if flag == "--config" and config is not None:
            raise UserError(f"--config: given twice, {config} and {value}")
        if flag == "--config":
            config = value
        elif flag == "--from":
            overrides.append(f"trainer.start={value}")
            start = value
        elif flag == "--resume":
            resume = value if value in ("auto", "never") else expanded(value, flag)
        else:
            overrides.append(f"{_SHORT.get(flag, key)}={value}")
    if config is None and resume not in ("auto", "never") and (run := _run_folder(resume, overrides)) is not None:
        config, resume = run / "config.yaml", str(run)
    if config is None and start is not None:
        settings = parse_config(*_own_config(start, overrides))
    else:
        settings = load_config("digits" if config is None else config, overrides)
    arguments = TrainArguments(adopting(settings, overrides), resume, **switches)
    if prints:
        print(dump_config(arguments.config), end="")
        raise SystemExit(0)
    return arguments


def _run_folder(resume: str, overrides: Sequence[str]) -> Path | None:
    """The run that is to go on, where it says by what configuration; None where it does not, which is said later."""
    given = [value for key, value in map(split_override, overrides) if key == "runs"]
    folders = (Path(resume), Path(expanded(given[-1] if given else Config().runs, "runs")) / resume)
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def _own_config(start: str, overrides: Sequence[str]) -> tuple[str, Sequence[str], str]:
    """The configuration inside the model that training starts from, as the arguments of `parse_config`."""
    given = [value for key, value in map(split_override, overrides) if key == "runs"]
    path = runs.resolve_weights(start, given[-1] if given else Config().runs)
    text = runs.config_inside(path)
    if runs.is_adopted(path) and not (text and parse_config(text, source=str(path)).trainer.start):
        # what another project made says nothing of data and training
        return "family: adopted\ndata: {name: folder}", overrides, str(path)
    if text is None:
        raise UserError(f"--from: {path} has no configuration that can be read; give --config too")
    return text, ["trainer.lora=null", *overrides], str(path)  # what the model was trained by is its own affair


def help_text() -> str:
    """The page that `--help` prints, as wide as the terminal: the flags, then every key by section."""
    names = ", ".join(available_configs())
    parts = [USAGE, "\n".join(_entry(flag, text.format(names=names)) for flag, text in _FLAGS_HELP.items()) + "\n"]
    for section in (Config, *SECTIONS.values()):
        lines = [_describe(section, name) for name in section.model_fields if name not in SECTIONS]
        parts.append("\n".join([*_wrapped(_title(section)), *lines]) + "\n")
    return "\n".join(parts)


def _wrapped(text: str, indent: int = 0) -> list[str]:
    room = min(shutil.get_terminal_size().columns, _WIDEST) - indent
    return textwrap.wrap(text, max(room, _NARROWEST), break_on_hyphens=False, break_long_words=False)


def _entry(head: str, text: str) -> str:
    """A flag or a key, and next to it what it means."""
    first, *others = _wrapped(text, _INDENT)
    return "\n".join([f"{f'  {head}':<{_INDENT}}{first}", *(" " * _INDENT + line for line in others)])


def _title(section: type[Section]) -> str:
    summary = (section.__doc__ or "").partition("\n")[0]
    return f"{section.section}: {summary}" if section.section else summary


def _describe(section: type[Section], name: str) -> str:
    """One key: its help, what it accepts, and its default or the defaults of the kinds that take it."""
    field = section.model_fields[name]
    accepted = describe(section.accepts(name))
    if kinds := declared(field, "kinds"):
        accepted = accepted.removesuffix(" or null")
        default = ", ".join(f"{kind}: {_text(value)}" for kind, value in kinds.items())
    else:
        default = f"default: {_text(field.default)}"
    return _entry(section.key(name), f"{field.description} ({accepted}; {default})")


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def _override(argument: str) -> str:
    """An argument without dashes, which must be key=value."""
    key, equals, value = argument.partition("=")
    if equals and f"--{key}" in FLAGS and key not in KEYS:
        raise UserError(f"unknown key '{key}'. Did you mean '--{key} {value}'?")
    if equals:
        return argument
    if argument in KEYS:
        raise UserError(f"{argument}: needs a value; write {argument}=VALUE or --{argument} VALUE")
    named = [f"--config {name}" for name in available_configs()]
    hint = did_you_mean(f"--config {argument}", named) if did_you_mean(argument, available_configs()) else ""
    if not hint and (flag := _FLAG_OF_FILE.get(Path(argument).suffix, "--resume" if "/" in argument else "")):
        hint = f" Did you mean '{flag} {argument}'?"
    raise UserError(f"unknown argument '{argument}'; write key=value, --key VALUE or --config NAME.{hint}")

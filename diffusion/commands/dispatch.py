"""Which command is meant; nothing heavy is imported before its arguments are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version

from ..config import Config
from ..errors import choose
from ..processes import cleans_up_on_sigterm, typed
from ..storage.runs import newest_run
from . import preflight
from .app import sample
from .average.arguments import parse_average_arguments
from .check.arguments import parse_check_arguments
from .compare.arguments import parse_compare_arguments
from .convert.arguments import parse_convert_arguments
from .demo.arguments import parse_demo_arguments
from .doctor.arguments import parse_doctor_arguments
from .evaluate.arguments import parse_evaluate_arguments
from .export.arguments import parse_export_arguments
from .options import in_flags
from .quality.arguments import parse_quality_arguments
from .tradeoff.arguments import parse_tradeoff_arguments
from .train.arguments import CLASSIFIER_STEPS, FEATURES_STEPS, parse_training_arguments
from .train.train import train

HELP = """usage: python -m diffusion COMMAND ...

commands:
  train      train a model, as train.py
  sample     draw samples, as sample.py
  evaluate   measure likelihoods; an interrupted command resumes
  quality    compare samples with training images: FID, KID, recall, copies
  tradeoff   quality against cost: samplers x evaluations, the cheapest good one
  compare    results side by side, paired, as text, CSV and a page
  check      check on images that a model denoises as it should, adopted or not
  average    make a model of other averaged weights of a run
  convert    write a model as one file, e.g. with weights of half the size
  export     write a model for diffusers, the hub, ONNX, torch, or as a web page
  demo       a page to play with models: draw, compare, edit, measure an image
  doctor     check samplers and estimators here against exact models: a minute
  train-classifier   train a classifier of noisy images, for --classifier
  train-features     train a feature network, for the quality of other data
  completion         print what completes commands, options and keys in a shell

python -m diffusion COMMAND --help explains each; --version prints the version."""
BEGIN = """
to begin:
  python -m diffusion sample    # digits of a shipped model, in seconds
  python -m diffusion train     # train on the digits: minutes on a CPU
  python -m diffusion demo      # a page to play with the shipped models
  python -m diffusion train data.name=folder data.path=DIR data.size=16 \\
    'network.attention=[8]'            # train on your images"""
GO_ON = """
to go on with {run}, the newest run:
  python -m diffusion sample --run {run}
  python -m diffusion evaluate {run}
  python -m diffusion compare {run}"""


def main(argv: Sequence[str]) -> int:
    """`python -m diffusion`: run the command that `argv` begins with; returns its exit code.

    Raises:
        UserError: For a command that is not known, and whatever the command raises.
    """
    if argv and argv[0] == "help" and argv[1:]:
        argv = [argv[1], "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        if not argv:
            newest = newest_run(Config().runs)
            begin = BEGIN if newest is None else GO_ON.format(run=newest)
            print(begin.replace("python -m diffusion", typed("").rstrip()))
        return 0
    if argv[0] == "--version":
        print(f"diffusion {version('diffusion')}")
        return 0
    name = choose("command", argv[0], COMMANDS)
    with nullcontext() if name == "train" else cleans_up_on_sigterm():  # training is stopped by its own rules
        return COMMANDS[name](argv[1:])


@dataclass(frozen=True)
class Command:
    """A command: its arguments are read and checked before what carries it out is imported, and torch with that.

    Args:
        parse: Reads the arguments.
        check: Refuses what cannot begin.
        module: Where `run(options)` is, which returns the exit code.
    """

    parse: Callable[[Sequence[str]], argparse.Namespace]
    check: Callable[[argparse.Namespace], None]
    module: str

    def __call__(self, argv: Sequence[str]) -> int:
        options = self.parse(argv)
        with in_flags(options):
            self.check(options)
            return import_module(self.module, __package__).run(options)


def completion(argv: Sequence[str]) -> int:
    """`completion`: what a shell needs to complete a command line."""
    from .completion.completion import run

    return run(argv, COMMANDS)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "sample": sample,
    "evaluate": Command(parse_evaluate_arguments, preflight.check_named, ".evaluate.evaluate"),
    "quality": Command(parse_quality_arguments, preflight.check_quality, ".quality.quality"),
    "tradeoff": Command(parse_tradeoff_arguments, preflight.check_tradeoff, ".tradeoff.tradeoff"),
    "compare": Command(parse_compare_arguments, preflight.check_comparison, ".compare.compare"),
    "check": Command(parse_check_arguments, preflight.check_named, ".check.check"),
    "average": Command(parse_average_arguments, preflight.check_named, ".average.average"),
    "convert": Command(parse_convert_arguments, preflight.check_conversion, ".convert.convert"),
    "export": Command(parse_export_arguments, preflight.check_export, ".export.export"),
    "demo": Command(parse_demo_arguments, preflight.check_named, ".demo.demo"),
    "doctor": Command(parse_doctor_arguments, preflight.check_named, ".doctor.doctor"),
    "train-classifier": Command(
        partial(parse_training_arguments, name="train-classifier", steps=CLASSIFIER_STEPS),
        preflight.check_training, ".train.classifier",
    ),
    "train-features": Command(
        partial(parse_training_arguments, name="train-features", steps=FEATURES_STEPS),
        preflight.check_training, ".train.features",
    ),
    "completion": completion,
}  # fmt: skip

"""Which command is meant; nothing heavy is imported before its arguments are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version

from ..config import Config
from ..config.preflight import check_device
from ..errors import choose, reported_as
from ..processes import cleans_up_on_sigterm, typed
from ..storage.runs import newest_run
from .app import sample
from .average.arguments import parse_average_arguments
from .check.arguments import parse_check_arguments
from .compare.arguments import parse_compare_arguments
from .convert.arguments import parse_convert_arguments
from .demo.arguments import parse_demo_arguments
from .doctor.arguments import parse_doctor_arguments
from .evaluate.arguments import NAMES_OF_DRAWS, parse_evaluate_arguments
from .export.arguments import parse_export_arguments
from .options import in_flags
from .preflight import (
    check_comparison,
    check_conversion,
    check_export,
    check_models,
    check_quality,
    check_tradeoff,
    check_training,
)
from .quality.arguments import parse_quality_arguments
from .tradeoff.arguments import parse_tradeoff_arguments
from .train.arguments import CLASSIFIER_STEPS, FEATURES_STEPS, parse_training_arguments
from .train.train import train

HELP = """usage: python -m diffusion COMMAND ...

commands:
  train      train a model, as train.py
  sample     draw samples, as sample.py
  evaluate   measure the likelihood of images under runs; results are stored, and an interrupted command resumes
  quality    compare samples with training images: FID, KID, precision, recall, coverage, copies
  tradeoff   quality against cost: samplers x evaluations, with distances, FID and KID, and the cheapest good choice
  compare    results side by side: paired differences, charts and error budgets, as text, CSV and HTML
  check      check on images that a model denoises as it should, and that an adopted network's convention is right
  average    make a model of other averaged weights of a run, of a width chosen after training
  convert    write a model as one file, e.g. with weights of half the size
  export     write a model for diffusers, the Hugging Face hub, ONNX or torch.export, or as a page that draws
  demo       a page on this machine to play with models: draw, compare samplers, edit and measure an image
  doctor     check every sampler and estimator on this machine against exact models, in under a minute
  train-classifier   train a classifier of noisy images, for sample.py --classifier
  train-features     train a feature network, for the quality of samples of other data
  completion         print what completes commands, options and keys in bash or zsh

python -m diffusion COMMAND --help explains each; --version prints the version."""
BEGIN = """
to begin:
  python -m diffusion sample --n 16                     digits of a shipped model, in seconds
  python -m diffusion train                             train on the digits: minutes on a CPU
  python -m diffusion train data.name=folder data.path=DIR data.size=16 network.attention=[8]    on your images"""
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


def evaluate(argv: Sequence[str]) -> int:
    """`evaluate`: measure runs and keep the figures with them."""
    options = parse_evaluate_arguments(argv)
    with in_flags(options), reported_as({} if options.draws is None else dict.fromkeys(NAMES_OF_DRAWS, "--draws")):
        check_models(options.run, options.runs)
        check_device(options.device)

        from .evaluate.evaluate import run

        return run(options)


def quality(argv: Sequence[str]) -> int:
    """`quality`: measure samples of runs, or images, against training images."""
    options = parse_quality_arguments(argv)
    with in_flags(options):
        check_quality(options)

        from .quality.quality import run

        return run(options)


def tradeoff(argv: Sequence[str]) -> int:
    """`tradeoff`: samplers and numbers of evaluations of one model, side by side."""
    options = parse_tradeoff_arguments(argv)
    with in_flags(options):
        check_tradeoff(options)

        from .tradeoff.tradeoff import run

        return run(options)


def check(argv: Sequence[str]) -> int:
    """`check`: a model against images, at every noise level."""
    options = parse_check_arguments(argv)
    with in_flags(options):
        check_models([options.model], options.runs)
        check_device(options.device)

        from .check.check import run

        return run(options)


def doctor(argv: Sequence[str]) -> int:
    """`doctor`: check this machine against exact models."""
    options = parse_doctor_arguments(argv)
    with in_flags(options):
        check_device(options.device)

        from .doctor.doctor import run

        return run(options)


def demo(argv: Sequence[str]) -> int:
    """`demo`: a page on this machine to play with models."""
    options = parse_demo_arguments(argv)
    with in_flags(options):
        check_models([] if options.model is None else [options.model], options.runs)
        check_device(options.device)

        from .demo.demo import run

        return run(options)


def compare(argv: Sequence[str]) -> int:
    """`compare`: one table of what `evaluate` kept."""
    options = parse_compare_arguments(argv)
    with in_flags(options):
        check_comparison(options)

        from .compare.compare import run

        return run(options)


def convert(argv: Sequence[str]) -> int:
    """`convert`: a model as one file."""
    options = parse_convert_arguments(argv)
    with in_flags(options):
        check_conversion(options)

        from .convert.convert import run

        return run(options)


def average(argv: Sequence[str]) -> int:
    """`average`: an average of another width of a run's weights."""
    options = parse_average_arguments(argv)
    with in_flags(options):
        check_models([options.run], options.runs)

        from .average.average import run

        return run(options)


def export(argv: Sequence[str]) -> int:
    """`export`: a model in the layout of others."""
    options = parse_export_arguments(argv)
    with in_flags(options):
        check_export(options)

        from .export.export import run

        return run(options)


def train_classifier(argv: Sequence[str]) -> int:
    """`train-classifier`: train a classifier of noisy images."""
    options = parse_training_arguments(argv, "train-classifier", CLASSIFIER_STEPS)
    with in_flags(options):
        check_training(options)

        from .train.classifier import run

        return run(options)


def train_features(argv: Sequence[str]) -> int:
    """`train-features`: train a feature network."""
    options = parse_training_arguments(argv, "train-features", FEATURES_STEPS)
    with in_flags(options):
        check_training(options)

        from .train.features import run

        return run(options)


def completion(argv: Sequence[str]) -> int:
    """`completion`: what a shell needs to complete a command line."""
    from .completion.completion import run

    return run(argv, COMMANDS)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "quality": quality,
    "tradeoff": tradeoff,
    "compare": compare,
    "check": check,
    "average": average,
    "convert": convert,
    "export": export,
    "demo": demo,
    "doctor": doctor,
    "train-classifier": train_classifier,
    "train-features": train_features,
    "completion": completion,
}

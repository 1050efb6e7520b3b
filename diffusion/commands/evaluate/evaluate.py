"""`python -m diffusion evaluate`: measure runs one by one, with tables, pictures and the W&B summary of each."""

from __future__ import annotations

import argparse
import math
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from ...baselines import latent_images
from ...config import DENOISING
from ...data import ImageData, SplitData, find_toy, pictures
from ...devices import choose_device
from ...errors import UserError, choose, reported_as
from ...likelihood import Estimate
from ...likelihood.estimate import SYSTEMATIC
from ...likelihood.measure import METHODS
from ...models import DiffusionModel
from ...processes import launched
from .. import ood, records
from ..app import ProgressBar
from ..compare.figures import ranked_picture
from ..evaluation import summary, warnings_of
from ..mirror import mirror_evaluation
from ..records import Evaluation
from ..report import known, likelihood_table
from ..sample.start import start_of
from ..subjects import Subject, first_of, images_of, load_data_of, load_subject
from ..terminal import console, print_next, print_places, say, split_words
from .arguments import NAMES_OF_DRAWS, estimator_options
from .given import DATA, NONE, Given, gain, gain_line, given_to, information, information_line
from .laws import laws_apart
from .measuring import START, How, conditioned, measure, question, unconditioned
from .targeting import measure_to, spent_table, verdict
from .toys import gap_sentence, measure_toy


def default_method(family: str) -> str:
    """The default estimator of a family."""
    return "ode" if family in DENOISING else "iwae"


def methods_of(named: str | None, family: str) -> list[str]:
    """The requested estimators, separated by commas, each once.

    Raises:
        UserError: For one that the family does not have, before the first is measured.
    """
    methods = list(dict.fromkeys((default_method(family) if named is None else named).split(",")))
    own, others, why = (
        (METHODS, latent_images.METHODS, "it has no codes to weigh")
        if family in DENOISING
        else (latent_images.METHODS, METHODS, "it decodes codes, and has no path from noise to follow")
    )
    for method in methods:
        if method in others and method not in own:
            raise UserError(f"--method: found '{method}'; a model of family '{family}' has {', '.join(own)}: {why}")
        choose("--method", method, own)
    return methods


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    with reported_as({} if options.draws is None else dict.fromkeys(NAMES_OF_DRAWS, "--draws")):
        return _evaluate(options)


def _evaluate(options: argparse.Namespace) -> int:
    processes = launched()
    if options.again and processes.count > 1:
        raise UserError("--again: several processes cannot know which figures are old; measure again with one")
    device = choose_device(options.device)
    # a wrong name is reported before hours of work
    subjects = [load_subject(name, options.runs, points=True) for name in options.run]
    out = console()
    out.quiet = not processes.is_main
    for subject in subjects:
        subject.model.to(device)
        if subject.model.facts.levels is None and find_toy(subject.model.facts.name) is not None:
            if options.fitted_start is not None:
                raise UserError(f"--fitted-start: the data of {subject.name} are drawn anew, and have no splits")
            if processes.is_main:  # seconds
                _toy(subject, options)
            continue
        task = _task(subject, options)
        measured: list[Evaluation] = []
        for method in task.methods:
            with closing(ProgressBar()) as bar:
                how = How(device, options.batch_size, options.again, processes=processes)
                figure = _measured(task, method, how, bar, options)
            if processes.is_main:
                measured.append(figure.evaluation)
                _report(out, task, method, figure, options)
        for line in laws_apart(measured):
            say(out, line)
        subject.model.to("cpu")
    if all(find_toy(subject.model.facts.name) is None for subject in subjects):
        words = (*options.run, *split_words(options.split))
        print_next(out, "compare", *words, data=options.data, runs=options.runs)
    else:  # of these nothing is kept to `compare`
        print_next(out, "sample", "--run", options.run[0], runs=options.runs)
    return 0


@dataclass(frozen=True)
class _Task:
    """What is measured of one model.

    Attributes:
        subject: The model.
        methods: The estimators.
        data: Its data.
        images: Those that are measured.
        identity: What identifies the images.
        given: Their conditions.
        foreign: Other images, for --ood.
        start: What a fitted start adds to the question.
    """

    subject: Subject
    methods: list[str]
    data: SplitData
    images: Tensor
    identity: dict[str, Any]
    given: Given | None
    foreign: ood.Foreign | None
    start: dict[str, object]


def _task(subject: Subject, options: argparse.Namespace) -> _Task:
    """What the options ask of a model; what they get wrong is reported before hours of work."""
    methods = methods_of(options.method, subject.model.config.family)
    data = load_data_of(subject, options.data)
    if not isinstance(data, ImageData) and (options.ranked or options.ood is not None):
        raise UserError(f"--ranked, --ood: are for images of levels; '{data.name}' has none")
    images, identity = images_of(data, options.split, options.images)
    foreign = None
    if options.ood is not None and isinstance(data, ImageData):
        foreign = ood.load(options.ood, data, options.split, options.images, subject.model.config.data.bits)
    condition = [NONE] if foreign is not None and options.condition is None else options.condition
    given = given_to(subject.model, data, images, identity, condition)
    if foreign is not None and given is not None:
        raise UserError("--ood: other images have no conditions; leave out --condition")
    begun: dict[str, object] = {}
    if options.fitted_start is not None:
        start = start_of(subject.model, options.fitted_start, data, options.split)
        assert isinstance(subject.model, DiffusionModel)
        subject.model.start, begun = start, {START: repr(start)}
    return _Task(subject, methods, data, images, identity, given, foreign, begun)


@dataclass(frozen=True)
class _Figure:
    """What an estimator found.

    Attributes:
        evaluation: The figure.
        images: The images that it is of.
        is_stored: Whether it had been measured before.
        spent: What was spent to reach --target-error.
        without: The figure of the same images without their conditions.
        other: That of other images.
    """

    evaluation: Evaluation
    images: Tensor
    is_stored: bool
    spent: dict[str, Any] | None
    without: Evaluation | None
    other: Evaluation | None


def _measured(task: _Task, method: str, how: How, bar: ProgressBar, options: argparse.Namespace) -> _Figure:
    """Measure the images of a task, without their conditions too where they have any, and those of --ood."""
    subject, given = task.subject, task.given

    def named(what: str) -> How:
        return replace(how, progress=partial(bar.named, f"{subject.name} {what}"))

    family, alone = subject.model.config.family, len(task.methods) == 1
    requested = estimator_options(options, method, family, alone) | task.start
    protocol = conditioned(question(subject, task.identity, method, requested), given)
    images, spent, without, other = task.images, None, None, None
    if options.target_error is None:
        evaluation, is_stored = measure(subject, images, protocol, named(method), given)
    else:
        target = options.target_error
        evaluation, spent, is_stored = measure_to(target, subject, images, protocol, named(method), given)
        images, _ = first_of(images, task.identity, len(evaluation.estimate))
    protocol = evaluation.protocol
    if given is not None:
        without, _ = measure(subject, images, unconditioned(protocol), named(f"{method}, no condition"))
    if task.foreign is not None:
        elsewhere = question(subject, task.foreign.identity, method, dict(protocol.options))
        other, _ = measure(subject, task.foreign.images, elsewhere, named("on other data"))
    return _Figure(evaluation, images, is_stored, spent, without, other)


def _report(out: Console, task: _Task, method: str, figure: _Figure, options: argparse.Namespace) -> None:
    """Save the pictures of a figure, send it to W&B, and print it with its error budget."""
    subject, data, given = task.subject, task.data, task.given
    evaluation, estimate, name = figure.evaluation, figure.evaluation.estimate, figure.evaluation.protocol.name
    places: dict[str, Path] = {"stored in": _beside(subject, f"{name}.json")}
    if options.ranked and isinstance(data, ImageData):
        places["ranked"] = _beside(subject, f"{name}-ranked.png")
        pictures.save(places["ranked"], ranked_picture(figure.images, estimate, data.levels))
    if figure.other is not None:
        places["histograms"] = _beside(subject, f"{name}-against-{figure.other.protocol.name}.png")
        pictures.save(places["histograms"], ood.picture(evaluation, figure.other))
    values = values_of(evaluation, figure.other, figure.without, given)
    if mirrored := mirror_evaluation(subject, evaluation, options.wandb, values):
        places["W&B run"] = mirrored
    kind = "data" if data.levels is None else "images"
    cached = " (cached)" if figure.is_stored else ""
    title = f"{subject.name}: {len(figure.images)} {options.split} {kind} of {data.name}{cached}"
    out.print(likelihood_table({method: estimate}, title))
    out.print(_budget(estimate))
    if given is not None and figure.without is not None:
        pair = method, estimate, figure.without.estimate
        say(out, information_line(*pair) if given.requested == DATA else gain_line(*pair, given))
    for warning in warnings_of(estimate):
        say(out, warning)
    if figure.spent is not None:
        out.print(spent_table(figure.spent))
        for line in verdict(figure.spent):
            say(out, line)
    if task.foreign is not None and figure.other is not None:
        say(out, task.foreign.note)
        say(out, ood.sentence(evaluation, figure.other))
    print_places(out, places)


def values_of(
    evaluation: Evaluation,
    other: Evaluation | None = None,
    without: Evaluation | None = None,
    given: Given | None = None,
) -> dict[str, Any]:
    """The entries of W&B's run table, under names that are the same for every family of models.

    Args:
        evaluation: The figure.
        other: That of other data.
        without: That of the same data without conditions.
        given: The conditions.
    """
    values = summary(evaluation.estimate)
    estimate = evaluation.estimate
    values |= {f"eval/error/{cause}": error for cause, error in estimate.error_budget.items()}
    values |= {"eval/error/measurement": estimate.measurement_error, "eval/error/total": estimate.total_error}
    if given is not None and without is not None:
        own = given.requested == DATA
        name = "eval/information_bits" if own else "eval/bits_per_dim_less_than_with_none"
        found = information(estimate, without.estimate) if own else gain(estimate, without.estimate)
        values |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    if other is not None:
        values |= {"eval/auroc": ood.auroc(evaluation, other), "eval/auroc_other": other.protocol.data["name"]}
    return values


def _toy(subject: Subject, options: argparse.Namespace) -> None:
    bar, out = ProgressBar(), console()
    found = measure_toy(subject, options, bar.named)
    bar.close()
    title = f"{subject.name}: {len(found['PF-ODE'])} fresh points of {subject.model.facts.name}"
    out.print(likelihood_table(found, title))
    out.print(_budget(found["PF-ODE"]))
    say(out, gap_sentence(found))


def _beside(subject: Subject, name: str) -> Path:
    return subject.home / records.FOLDER / name


def _budget(estimate: Estimate) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    # a density is reported in nats
    unit, scale = ("bits/dim", 1.0) if estimate.levels is not None else ("nats/dim", math.log(2.0))
    for cause, error in estimate.error_budget.items():
        sort = "error" if cause in SYSTEMATIC else "standard error"
        table.add_row(f"{sort}, {cause}:", known(f"{{:.4f}} {unit}", scale * error))
    measuring = "error of measuring these images:" if estimate.levels is not None else "error of measuring these data:"
    table.add_row(measuring, known(f"{{:.4f}} {unit}", scale * estimate.measurement_error))
    table.add_row("total error, including their choice:", known(f"{{:.4f}} {unit}", scale * estimate.total_error))
    return table

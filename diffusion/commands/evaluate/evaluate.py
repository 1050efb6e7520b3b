"""`python -m diffusion evaluate`: measure runs one by one, with tables, pictures and the W&B summary of each."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from ...baselines import latent_images
from ...config import DENOISING
from ...data import ImageData, find_toy, pictures
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
    subjects = [
        load_subject(name, options.runs, points=True) for name in options.run
    ]  # a wrong name is reported before hours of work
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
        family = subject.model.config.family
        methods = methods_of(options.method, family)
        data = load_data_of(subject, options.data)
        if not isinstance(data, ImageData) and (options.ranked or options.ood is not None):
            raise UserError(f"--ranked, --ood: are for images of levels; '{data.name}' has none")
        images, identity = images_of(data, options.split, options.images)
        # before hours of work, too
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
        measured: list[Evaluation] = []
        for method in methods:
            requested = estimator_options(options, method, family, alone=len(methods) == 1) | begun
            protocol = conditioned(question(subject, identity, method, requested), given)
            bar = ProgressBar()
            progress = partial(bar.named, f"{subject.name} {method}")
            how = How(device, options.batch_size, options.again, progress, processes)
            spent, taken = None, images
            if options.target_error is None:
                evaluation, found = measure(subject, images, protocol, how, given)
            else:
                target = options.target_error
                evaluation, spent, found = measure_to(target, subject, images, protocol, how, given)
                protocol = evaluation.protocol
                taken, _ = first_of(images, identity, len(evaluation.estimate))
            without = None
            if given is not None:
                bar_of_none = partial(bar.named, f"{subject.name} {method}, no condition")
                without, _ = measure(subject, taken, unconditioned(protocol), replace(how, progress=bar_of_none))
            places: dict[str, Path] = {"stored in": subject.home / records.FOLDER / f"{protocol.name}.json"}
            if options.ranked and isinstance(data, ImageData) and processes.is_main:
                places["ranked"] = _beside(subject, f"{protocol.name}-ranked.png")
                pictures.save(places["ranked"], ranked_picture(taken, evaluation.estimate, data.levels))
            cached = " (cached)" if found else ""
            kind = "data" if data.levels is None else "images"
            title = f"{subject.name}: {len(taken)} {options.split} {kind} of {data.name}{cached}"
            table = likelihood_table({method: evaluation.estimate}, title)
            other = None
            if foreign is not None:
                foreign_protocol = question(subject, foreign.identity, method, dict(protocol.options))
                elsewhere = replace(how, progress=partial(bar.named, f"{subject.name} on other data"))
                other, _ = measure(subject, foreign.images, foreign_protocol, elsewhere)
                places["histograms"] = _beside(subject, f"{protocol.name}-against-{foreign_protocol.name}.png")
                if processes.is_main:
                    pictures.save(places["histograms"], ood.picture(evaluation, other))
            bar.close()
            if not processes.is_main:
                continue
            measured.append(evaluation)
            mirrored = mirror_evaluation(
                subject, evaluation, options.wandb, values_of(evaluation, other, without, given)
            )
            out.print(table)
            out.print(_budget(evaluation.estimate))
            if given is not None and without is not None:
                pair = method, evaluation.estimate, without.estimate
                line = information_line(*pair) if given.requested == DATA else gain_line(*pair, given)
                say(out, line)
            for warning in warnings_of(evaluation.estimate):
                say(out, warning)
            if spent is not None:
                out.print(spent_table(spent))
                for line in verdict(spent):
                    say(out, line)
            if foreign is not None and other is not None:
                say(out, foreign.note)
                say(out, ood.sentence(evaluation, other))
            print_places(out, {**places, **({"W&B run": mirrored} if mirrored else {})})
        for line in laws_apart(measured):
            say(out, line)
        subject.model.to("cpu")
    if all(subject.model.facts.levels is not None for subject in subjects):
        words = (*options.run, *split_words(options.split))
        print_next(out, "compare", *words, data=options.data, runs=options.runs)
    else:  # `compare` is of images
        print_next(out, "sample", "--run", options.run[0], runs=options.runs)
    return 0


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

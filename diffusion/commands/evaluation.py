"""The evaluation at the end of a run: the likelihood of the test set, with baselines for scale.

The model's own results are measured and stored by the functions of `evaluate`. All go to the run folder as JSON (each
image's value, kind and protocol) and CSV (the table), and to W&B's run summary under names that are the same for every
family of models.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ..baselines.classical_set import ClassicalModel, classical_models
from ..baselines.gaussianity import Gaussianity
from ..config import EvaluationConfig
from ..data.toy import Toy
from ..likelihood import Estimate
from ..likelihood.estimate import DATA_END, EFFECTIVE_SAMPLES, SOLVER, TAIL_SHAPE
from ..likelihood.importance_weights import unreliable
from ..models.build import Data
from ..models.load import TrainedModel, load
from ..storage import atomic, runs
from ..storage.records import find, keep
from ..storage.runs import user_cache
from .evaluate.given import given_to, information_line
from .evaluate.measuring import How, conditioned, measure, question
from .subjects import Subject, images_of, rows_of
from .table import Table

CODES = "codes.json"
WITHOUT = ", no condition"
Progress = Callable[..., None]
# The means of an estimate's terms, numbers or curves, by the estimate's name.
Means = Mapping[str, Mapping[str, Any]]


def _silent(name: str, done: int, total: int, note: str = "") -> None:
    """Report no progress."""


def evaluate(
    subject: Subject, data: Data, options: EvaluationConfig, device: torch.device, progress: Progress = _silent
) -> tuple[dict[str, Estimate], Means]:
    """Measure a model and the baselines on the test set (each image once), or on fresh draws of a toy.

    Results on data with splits are those of `python -m diffusion evaluate`: stored in the run's `evaluations/`, found
    there if the question is the same, and resumed if interrupted. A subset is the first of the fixed order
    (`random.fixed_order`), each with the noise that it has in the whole set.

    Args:
        subject: The model, on `device`.
        data: The data it was trained on.
        options: Tolerances and numbers of draws.
        device: Where to measure.
        progress: Called with (estimator, images done, number of images), and perhaps a note on what is measured.

    Returns:
        Estimates by name, the model's own first, and for these the means of all terms over the images, in bits/dim.
    """
    if data.toy is not None:
        return evaluate_points(subject.model, data.toy, options, progress), {}
    assert data.split is not None
    total, images = len(data.split.test), data.images
    test, identity = images_of(data.split, "test", min(options.images or total, total))
    found: dict[str, Estimate] = {}
    means: dict[str, Mapping[str, Any]] = {}
    at_once = max(1, options.batch_size // subject.model.rows_per_image)
    given = given_to(subject.model, data.split, test, identity, None)
    requested = {name: (*how, given) for name, how in subject.model.estimators(options).items()}
    if given is not None:  # the information in the condition, by the cheapest of them
        *_, last = requested
        requested[f"{last}{WITHOUT}"] = (*requested[last][:2], None)
    for name, (method, settings, of) in requested.items():
        protocol = conditioned(question(subject, identity, method, {"seed": 0, **settings}), of)
        how = How(device, at_once, progress=partial(progress, name))
        kept, _ = measure(subject, test, protocol, how, of)
        found[name], means[name] = kept.estimate, kept.terms
    if options.baselines and images is not None:
        for classical in classical_models(images.train, images.validation, images.levels):
            if not classical.left_out:
                try:
                    found[classical.name] = measure_classical(
                        classical, images.train, images.validation, test, rows_of(identity), partial(partial, progress)
                    )
                except Exception as error:  # the model's own figures stand
                    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                    print(f"{classical.name}: not measured ({reason})", file=sys.stderr, flush=True)
    chosen = {key: identity[key] for key in ("of", "order") if key in identity}
    return {name: replace(found[name], protocol={**found[name].protocol, **chosen}) for name in found}, means


def before_training(
    run: Path, data: Data, options: EvaluationConfig, device: torch.device, progress: Progress = _silent
) -> dict[str, Estimate]:
    """The figures of the model that a run started from, by name; none for a run that started from nothing."""
    path = run / runs.START
    if not path.is_file():
        return {}
    model = load(path, device)
    subject = Subject(f"{run.name} before step 1", run / path.stem, model, model.weights)
    found, _ = evaluate(subject, data, options.replace(baselines=False), device, progress)
    return {f"{name} before step 1": estimate for name, estimate in found.items() if name != "true density"}


def evaluate_points(
    model: TrainedModel, toy: Toy, options: EvaluationConfig, progress: Progress = _silent
) -> dict[str, Estimate]:
    """Measure a model of draws from a known density, and that density, on fresh ones; quick, so not stored."""
    x = toy.draw(options.images or 1000, seed=1 << 31)
    found = {
        name: model.log_density(
            x,
            method=method,
            error_budget=True,
            batch_size=options.batch_size,
            progress=partial(progress, name),
            **({"tolerance": options.tolerance, **how} if method == "ode" else how),
        )
        for name, (method, how) in model.estimators(options).items()
    }
    true = toy.log_prob(x).double()
    truth = Estimate(true, x[0].numel(), None, torch.zeros_like(true), "exact", {"estimator": "closed form"})
    return {**found, "true density": truth}


def information_lines(found: Mapping[str, Estimate]) -> list[str]:
    """The information in the condition, a line for each estimator that was measured with and without it."""
    pairs = [(name, found[name], found.get(f"{name}{WITHOUT}")) for name in found]
    return [information_line(name, given, none) for name, given, none in pairs if none is not None]


def left_out(data: Data, options: EvaluationConfig) -> list[str]:
    """The classical models that `evaluate` does not measure, each with the reason."""
    if data.images is None or not options.baselines:
        return []
    models = classical_models(data.images.train, data.images.validation, data.images.levels)
    return [f"{model.name}: left out, {model.left_out}" for model in models if model.left_out]


def measure_classical(
    model: ClassicalModel,
    train: torch.Tensor,
    validation: torch.Tensor,
    test: torch.Tensor,
    rows: torch.Tensor,
    tell: Callable[[str], Callable[[int, int], None] | None] = lambda _: None,
) -> Estimate:
    """Fit and measure a classical model, or find the result in the user's cache.

    Args:
        model: The model.
        train, validation: The images it is fitted to and selected on; with `test` they are the key of the cache.
        test: The images to measure.
        rows: Their rows in their split, which key their noise.
        tell: Returns, for a name, a callback of (done, count).
    """
    digest = hashlib.sha256(f"{model.name} {model.version} {tuple(train.shape[1:])}".encode())
    for images in (train, validation, test, rows):
        digest.update(f"{len(images)} ".encode() + images.contiguous().cpu().numpy().tobytes())
    name = model.name.lower().replace(" ", "-")
    path = user_cache("classical") / f"{name}-{digest.hexdigest()[:16]}.json"
    if (known := find(path, Estimate.from_dict)) is not None:
        return known
    if (progress := tell(model.name)) is not None:
        progress(0, 0)
    plain = replace(model.measure(test, rows, progress), indices=rows).to_dict()
    with contextlib.suppress(OSError):  # what cannot be kept is fitted again
        keep(path, plain)
    return Estimate.from_dict(json.loads(json.dumps(plain)))  # the same whether it was fitted just now or found


def summary(estimate: Estimate, prefix: str = "eval/") -> dict[str, Any]:
    """The values of an estimate under the names by which W&B's run table can be sorted."""
    interval = estimate.mean()
    nats = {
        f"{prefix}nats": interval.mean * estimate.nats_per_bit_per_dim,
        **{f"{prefix}nats_per_dim{end}": math.log(2.0) * value for end, value in
           (("", interval.mean), ("_low", interval.low), ("_high", interval.high), ("_sem", interval.sem))},
    }  # fmt: skip
    return {
        **({} if estimate.levels is not None else nats),
        f"{prefix}bits_per_dim": interval.mean,
        f"{prefix}bits_per_dim_low": interval.low,
        f"{prefix}bits_per_dim_high": interval.high,
        f"{prefix}bits_per_dim_sem": interval.sem,
        f"{prefix}kind": estimate.kind,
        f"{prefix}law": estimate.law,
        f"{prefix}nfe": estimate.nfe,
        f"{prefix}seconds": estimate.seconds,
        f"{prefix}images": len(estimate),
        f"{prefix}protocol": describe(estimate),
        **({} if (ess := effective_samples(estimate)) is None else {f"{prefix}effective_samples": ess}),
    }


def effective_samples(estimate: Estimate) -> float | None:
    """The median over images of the effective number of importance samples; None where there are none."""
    log_ess = estimate.terms.get(EFFECTIVE_SAMPLES)
    return None if log_ess is None else float(log_ess.exp().median())


def warnings_of(estimate: Estimate) -> list[str]:
    """What is reported of an estimate in addition to its figures, a line each."""
    return [line for line in (weights_warning(estimate), narrow_data_warning(estimate)) if line is not None]


def weights_warning(estimate: Estimate) -> str | None:
    """A warning if the importance weights of some images are unreliable; None otherwise."""
    found = unreliable(estimate)
    if found is None or not bool(found.any()):
        return None
    shape = estimate.terms.get(TAIL_SHAPE)
    seen = "fewer than 2 effective samples" if shape is None else f"their median tail shape {_median(shape[found])}"
    return (
        f"importance weights are unreliable for {int(found.sum())} of {len(estimate)} images ({seen}): values may be "
        "far below log p and errors too small, of the other images, too, where these are many"
    )


def narrow_data_warning(estimate: Estimate) -> str | None:
    """A warning if the density hangs on where the path ends, by nobody knows how much; None otherwise."""
    budget = estimate.error_budget
    if estimate.levels is not None or not math.isnan(budget.get(DATA_END, 0.0)) or math.isnan(budget[SOLVER]):
        return None
    return (
        "the data are far narrower in some direction than the noise at the data end of the path, which does not "
        "resolve their density: how far it is from that of a path without end is not known; train with "
        "data.normalize=whiten, with a larger schedule.log_snr_max, or without numbers that follow from the others"
    )


def _median(shapes: torch.Tensor) -> str:
    return f"{float(shapes.nan_to_num(math.inf).median()):.2f}"


def describe(estimate: Estimate) -> str:
    """A protocol in one line, short values only; the JSON file holds all of it, and the law has a column."""
    skipped = ("law", "schedule", "t_min", "t_max", "times", "log_snr", "curve_log_snr", "validation_bits_per_dim")
    values = {key: f"{v:.6g}" if isinstance(v, float) else v for key, v in estimate.protocol.items()}
    parts = [f"{key} {value}" for key, value in values.items() if key not in skipped and value is not None]
    return ", ".join(parts)


def write(run: Path, estimates: Mapping[str, Estimate], seconds: float, means: Means = MappingProxyType({})) -> None:
    """Write evaluation.json and evaluation.csv to a run folder; `means` as `evaluate` returns them."""
    plain = {name: estimate.to_dict() | _more(estimate) for name, estimate in estimates.items()}
    for name, terms in means.items():
        plain[name]["terms_bits_per_dim"] = terms
    keep(run / runs.EVALUATION, {"training_seconds": seconds, "estimates": plain})
    rows = ({"estimate": name, **summary(estimate, "")} for name, estimate in estimates.items())
    atomic.write_text((run / runs.EVALUATION).with_suffix(".csv"), Table.of(rows).csv())


def _more(estimate: Estimate) -> dict[str, Any]:
    """Each image's effective number of importance samples, if any."""
    log_ess = estimate.terms.get(EFFECTIVE_SAMPLES)
    return {} if log_ess is None else {"effective_samples": log_ess.exp().tolist()}


def write_codes(run: Path, reports: Mapping[str, Gaussianity]) -> Path | None:
    """Write codes.json, how close the codes are to N(0, I), to a run folder; None if there is nothing to write."""
    if not reports:
        return None
    path = run / CODES
    keep(path, {name: report.to_dict() for name, report in reports.items()})
    return path


def summary_of_codes(reports: Mapping[str, Gaussianity]) -> dict[str, float]:
    """The values of the last set of codes for W&B's run table, in nats."""
    if not reports:
        return {}
    report = list(reports.values())[-1]
    hubs = report.hubness
    return {
        **({} if hubs is None else {"codes/hubness": hubs.skewness, "codes/hubness_of_normal": hubs.of_normal}),
        "codes/entropy": report.entropy,
        "codes/normal_entropy": report.normal_entropy,
        "codes/negentropy": report.negentropy,
        "codes/largest_correlation": report.largest_correlation,
        "codes/largest_mean": float(report.mean.abs().max()),
        "codes/smallest_std": float(report.std.min()),
        "codes/largest_std": float(report.std.max()),
        "codes/largest_skewness": float(report.skewness.abs().max()),
        "codes/largest_excess_kurtosis": float(report.excess_kurtosis.abs().max()),
        "codes/ks": float(report.ks.max()),
        "codes/ks_p_value": report.p_value,
    }

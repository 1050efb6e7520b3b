"""`evaluate` for a model of points in the plane: its density and the true one on fresh draws. Quick, so not stored."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ...errors import UserError
from ...likelihood import Estimate
from ...likelihood.estimate import mean_interval
from ...models.build import build_data
from ..evaluation import evaluate_points
from ..options import flag
from ..report import known
from ..subjects import Subject

_OF_IMAGES = ("method", "draws", "probes", "target_error", "option", "ood", "ranked")


def measure_toy(
    subject: Subject, options: argparse.Namespace, progress: Callable[[str, int, int], None]
) -> dict[str, Estimate]:
    """The probability flow with the exact trace, the bound, and the true density, on `--images` (1,000) fresh draws.

    Raises:
        UserError: For an option that is for images.
    """
    given = [flag(name) for name in _OF_IMAGES if getattr(options, name)]
    if given:
        raise UserError(
            f"{', '.join(given)}: for images; {subject.name} is a model of points ('--images', '--tolerance')"
        )
    config = subject.model.config
    settings = config.evaluation.replace(
        images=options.images or config.evaluation.images,
        tolerance=options.tolerance or config.evaluation.tolerance,
    )
    toy = build_data(config).toy
    if toy is None:  # a file whose configuration and facts disagree
        raise UserError(
            f"{subject.name}: is a model of points, and its data.name is '{config.data.name}', which are images"
        )
    return evaluate_points(subject.model, toy, settings, progress)


def gap_sentence(found: dict[str, Estimate]) -> str:
    """The mean of truth - model in nats: an estimate of KL(truth || model), paired on the same points."""
    model, truth = found["PF-ODE"], found["true density"]
    gap = mean_interval(truth.log_prob - model.log_prob)
    interval = known("{:.4f} to {:.4f}", gap.low, gap.high)
    return f"KL(truth || model), on the same points: {gap.mean:.4f} nats ({interval})"

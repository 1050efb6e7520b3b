"""`--fitted-start`: a start for paths that do not end in noise, fitted to images that are not measured."""

from __future__ import annotations

from pathlib import Path

from ...data import SplitData
from ...errors import UserError, reported_as
from ...models import DiffusionModel, TrainedModel
from ...numerics.random import fixed_subset
from ...schedules import FittedStart
from ..subjects import Subject, load_data_of

OPTION = "--fitted-start"
MOST = 10_000  # images; of more the moments are hardly other ones


def start_of(model: TrainedModel, covariance: str, data: SplitData, measured: str = "test") -> FittedStart:
    """A start fitted to the training images, or to those of validation where the former are measured.

    Args:
        model: The model.
        covariance: `diagonal` or `full`.
        data: All splits.
        measured: The split that is measured.

    Raises:
        UserError: For a family without a path, and too few images.
    """
    if not isinstance(model, DiffusionModel):
        raise UserError(f"{OPTION}: {model.source} is of family '{model.config.family}', which follows no path")
    images = data.validation if measured == "train" else data.train
    count = len(images)
    chosen = images[:] if count <= MOST else images[fixed_subset(count, MOST)]
    with reported_as({"images": OPTION, "covariance": OPTION}):
        return model.fitted_start(chosen, covariance)


def start_of_draws(model: TrainedModel, covariance: str, path: str | None) -> FittedStart:
    """As `start_of`, of the images at a path, or of the model's own training.

    Raises:
        UserError: Also for images that are not there, or of another shape.
    """
    subject = Subject(Path(model.source).name, Path(), model, "")
    return start_of(model, covariance, load_data_of(subject, path))

"""What a trained model is to the rest of the package, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

from ..baselines.gaussianity import Gaussianity
from ..config import Config, EvaluationConfig
from ..denoisers.evaluations import EvaluationCount
from ..errors import UserError
from ..likelihood import Estimate
from ..likelihood.dequantization import Dequantizer
from ..storage import runs
from .build import Data, DataFacts, build_dequantizer
from .check import Check


@runtime_checkable
class GenerativeModel(Protocol):
    """What a model of any family can do: draw, and tell how likely it holds images to be."""

    def sample(self, n: int, seed: int = 0, **options: Any) -> Tensor:
        """Draw n data, shape (n, *shape); images in [-1, 1]."""
        ...

    def log_likelihood(self, images_uint8: Tensor, **options: Any) -> Estimate:
        """The log-probability of images of levels, shape (B, *shape)."""
        ...


class TrainedModel(ABC):
    """A module with weights, the configuration that it was trained with, and what it knows of its data.

    Args:
        module: What the model file holds the weights of; it is put into evaluation mode.
        config: The configuration it was trained with.
        facts: What it knows of its data.
        source: The file it came from, for messages.
        step: The training step it was taken at.
    """

    # The options of `sample` that a user may set, beside the number and the seed.
    sampling_options: ClassVar[tuple[str, ...]]
    # What the networks see at once of an image that is measured: that many rows.
    rows_per_image: ClassVar[int] = 1

    def __init__(self, module: nn.Module, config: Config, facts: DataFacts, source: str = "", step: int = 0):
        self.module = module.eval()
        self.config = config
        self.facts = facts
        self.source = source
        self.step = step

    @property
    def dequantizer(self) -> Dequantizer | None:
        """The levels and their places; None for continuous data."""
        return build_dequantizer(self.facts)

    @property
    def weights(self) -> str:
        """What tells it from other models: the SHA-256 of its file."""
        return runs.file_digest(self.source)

    def to(self, device: torch.device | str) -> TrainedModel:
        """Move the weights to a device; returns the model itself."""
        self.module.to(device)
        return self

    def at_size(self, size: int | Sequence[int]) -> TrainedModel:
        """The model, with the same weights, of images of another size: drawn, measured and controlled alike.

        Args:
            size: Height and width, or one number for both.

        Raises:
            UserError: Where the model does not take images of it.
        """
        raise UserError(f"size: found {size}; family '{self.config.family}' has images of its own size alone")

    @abstractmethod
    def sample(self, n: int, seed: int = 0, **options: Any) -> Tensor:
        """Draw n data, shape (n, *shape); images in [-1, 1]."""

    @abstractmethod
    def log_likelihood(self, images_uint8: Tensor, **options: Any) -> Estimate:
        """The log-probability of images of levels, shape (B, *shape)."""

    def log_density(self, x: Tensor, **options: Any) -> Estimate:
        """The log-density of continuous data, which not every family models.

        Raises:
            UserError: Where it does not.
        """
        raise UserError(f"log_density: family '{self.config.family}' models images of levels; use log_likelihood")

    def check(self, images: Any, **options: Any) -> Check:
        """Whether the model denoises as it should, on images of levels or continuous data, by noise level.

        Args:
            images: Images, shape (N, *shape), best held out.
            options: `levels=` (of noise), `cond=` (labels), `seed=`.

        Raises:
            UserError: For a family that does not denoise, and images that do not fit.
        """
        raise UserError(f"check: family '{self.config.family}' does not denoise; doctor checks the estimators")

    @abstractmethod
    def sampling_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All the options of a draw: those `given`, and the run's own for the rest; the one to show comes first."""

    def effective_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What `settings` amount to, with all that they leave to defaults, for a reader of the samples."""
        return dict(settings)

    def settled(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """`settings` with all that is tuned to the model put in as numbers."""
        return dict(settings)

    def sampling_settings_in_training(self) -> dict[str, Any]:
        """Those of the run, without what is fitted only after training."""
        return self.sampling_settings({})

    @abstractmethod
    def counted(self) -> AbstractContextManager[EvaluationCount]:
        """Count network evaluations while the context is open."""

    @abstractmethod
    def estimators(self, options: EvaluationConfig) -> dict[str, tuple[str, dict[str, Any]]]:
        """The estimators reported at the end of a run, the run's own figure first: method and options by name.

        What stands at an estimator's default is left out, as in an `evaluate` that does not name it.
        """

    @abstractmethod
    def pictures(self, data: Data, seed: int) -> dict[str, tuple[str, Image.Image]]:
        """Pictures beside that of the samples: by what they show, the name of the file and the picture."""

    def code_reports(self, data: Data) -> tuple[dict[str, Gaussianity], list[str]]:
        """How near codes are to the prior N(0, I), by what they are the codes of, and what has no report, a line each.

        Nothing where there is no claim.
        """
        return {}, []

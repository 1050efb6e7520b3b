"""The interface of a trained model, for every family."""

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
from ..data.normalizer import Normalizer
from ..denoisers.evaluations import EvaluationCount
from ..errors import UserError
from ..likelihood import Estimate
from ..likelihood.dequantization import Dequantizer
from ..storage import runs
from .build import Data, DataFacts, build_dequantizer
from .check import Check


@runtime_checkable
class GenerativeModel(Protocol):
    """What a model of any family can do: draw samples and compute likelihoods."""

    def sample(self, n: int, seed: int = 0, **options: Any) -> Tensor:
        """Draw n data, shape (n, *shape); images in [-1, 1]."""
        ...

    def log_likelihood(self, images_uint8: Tensor, **options: Any) -> Estimate:
        """The log-probability of images of levels, shape (B, *shape)."""
        ...


class TrainedModel(ABC):
    """A trained module, the configuration it was trained with, and facts about its data.

    Args:
        module: The module whose weights the model file holds; it is put into evaluation mode.
        config: The configuration it was trained with.
        facts: Facts about its data.
        source: The file it came from, for messages.
        step: The training step of the weights.
    """

    # The options of `sample` that a user may set, apart from the number and the seed.
    sampling_options: ClassVar[tuple[str, ...]]
    # What the networks see at once of an image that is measured: that many rows.
    rows_per_image: ClassVar[int] = 1

    def __init__(self, module: nn.Module, config: Config, facts: DataFacts, source: str = "", step: int = 0):
        self.module = module.eval()
        self.config = config
        self.facts = facts
        self.source = source
        self.step = step

    def __repr__(self) -> str:
        """What it is, in two lines: where from, what it draws, its path if it has one, and its size."""
        levels = "real numbers" if self.facts.levels is None else f"{self.facts.levels} levels"
        size = sum(weight.numel() for weight in self.module.parameters())
        name, family = type(self).__name__, self.config.family
        return (
            f"{name} of family '{family}' from {self.source or 'memory'}, step {self.step}:\n"
            f"  shape {self.facts.shape}, {levels}{self._path()}, {size:,} parameters"
        )

    def _path(self) -> str:
        """The noising path, for `repr`, where the family has one."""
        return ""

    @property
    def dequantizer(self) -> Dequantizer | None:
        """The map between levels and [-1, 1]; None for continuous data."""
        return build_dequantizer(self.facts)

    @property
    def normalizer(self) -> Normalizer | None:
        """The map between continuous data and the units of the denoiser; None where these are the same."""
        return self.facts.normalizer

    @property
    def weights(self) -> str:
        """What distinguishes it from other models: the SHA-256 of its file."""
        return runs.file_digest(self.source)

    def to(self, device: torch.device | str) -> TrainedModel:
        """Move the weights to a device; returns the model itself."""
        self.module.to(device)
        return self

    def at_size(self, size: int | Sequence[int]) -> TrainedModel:
        """The same model for images of another size: sampling, likelihoods and control work as before.

        Args:
            size: Height and width, or one number for both.

        Raises:
            UserError: If the model does not accept that size.
        """
        raise UserError(f"size: found {size}; family '{self.config.family}' has images of its own size alone")

    @abstractmethod
    def sample(self, n: int, seed: int = 0, **options: Any) -> Tensor:
        """Draw n data, shape (n, *shape); images in [-1, 1], numbers in the units of the data."""

    @abstractmethod
    def log_likelihood(self, images_uint8: Tensor, **options: Any) -> Estimate:
        """The log-probability of images of levels, shape (B, *shape)."""

    def log_density(self, x: Tensor, **options: Any) -> Estimate:
        """The log-density of continuous data, for the families that model it.

        Raises:
            UserError: For the other families.
        """
        raise UserError(f"log_density: family '{self.config.family}' models images of levels; use log_likelihood")

    def log_prob(self, x: Tensor, **options: Any) -> Estimate:
        """The log-probability of images of levels, or the log-density of continuous data: what the model's data are."""
        return self.log_density(x, **options) if self.dequantizer is None else self.log_likelihood(x, **options)

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
        """All sampling options: those `given`, completed by the run's own; the one to display comes first."""

    def effective_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """`settings` with all defaults made explicit, for readers of the samples' record."""
        return dict(settings)

    def resolved(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """`settings` with everything tuned to the model replaced by its numbers."""
        return dict(settings)

    def sampling_settings_in_training(self) -> dict[str, Any]:
        """The run's own options, without what is fitted only after training."""
        return self.sampling_settings({})

    @abstractmethod
    def counted(self) -> AbstractContextManager[EvaluationCount]:
        """Count network evaluations while the context is open."""

    @abstractmethod
    def estimators(self, options: EvaluationConfig) -> dict[str, tuple[str, dict[str, Any]]]:
        """The estimators reported at the end of a run, the main one first: method and options by name.

        Options at their defaults are omitted, as in an `evaluate` command that does not give them.
        """

    @abstractmethod
    def pictures(self, data: Data, seed: int) -> dict[str, tuple[str, Image.Image]]:
        """Further pictures of a run, by what they show: file name and picture."""

    def code_reports(self, data: Data) -> tuple[dict[str, Gaussianity], list[str]]:
        """How close codes are to the prior N(0, I), by images, and one line for each set without a report.

        Empty for families that do not claim it.
        """
        return {}, []

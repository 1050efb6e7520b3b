"""A denoiser in training, as a Lightning module: the loss of a step, and validation.

All randomness of a step is a function of (seed, step, position in the global batch); only dropout has a generator of
its own, seeded anew at each step. Validation always meets the same times and the same noises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...config import Config
from ...data.normalizer import Normalizer
from ...denoisers.adopted import AdoptedDenoiser
from ...denoisers.condition import Condition
from ...denoisers.denoiser import NetworkDenoiser
from ...denoisers.evaluations import evaluation_mode
from ...likelihood.dequantization import Dequantizer
from ...numerics import random
from ...objectives import Losses, Objective, Uncertainty, draw_u
from ...objectives.weightings import log_snr_ends
from .base import ModelModule

# The noise levels at which each validation sample is evaluated, and the bins in which they are shown.
VALIDATION_DRAWS = 8
VALIDATION_BINS = 12
_VALIDATION_SEED = 0x5EED
_GOLDEN = (math.sqrt(5) - 1) / 2


class DenoiserModule(ModelModule):
    """Trains a denoiser on an objective.

    Args:
        denoiser: The denoiser.
        objective: The loss.
        config: The configuration of the run.
        dequantizer: The levels and their places; None for continuous data.
        metadata: What makes the checkpoint a model by itself (see `models.load`).
        normalizer: The map of continuous data to the denoiser's units; None where these are the same.
    """

    averaged: ClassVar[str] = "denoiser"

    def __init__(
        self,
        denoiser: NetworkDenoiser | AdoptedDenoiser,
        objective: Objective,
        config: Config,
        dequantizer: Dequantizer | None,
        metadata: Mapping[str, str],
        normalizer: Normalizer | None = None,
    ):
        super().__init__(config, metadata)
        self.denoiser = denoiser
        self.objective = objective
        self.uncertainty = objective.weighting if isinstance(objective.weighting, Uncertainty) else None
        self.dequantizer = dequantizer
        self.normalizer = normalizer
        needed = isinstance(denoiser, AdoptedDenoiser) and denoiser.labels.is_needed
        self.label_dropout = 0.0 if needed else config.denoiser.label_dropout
        self._sums = torch.zeros(2 + 2 * VALIDATION_BINS, dtype=torch.float64)
        self._most = 0  # rows of the largest batch of a validation, its first
        self._step_losses: tuple[int, list[tuple[Tensor, Tensor]]] = (-1, [])  # of a step's parts, with their log-SNR

    @property
    def trained(self) -> nn.Module:
        return self.denoiser if self.uncertainty is None else nn.ModuleList([self.denoiser, self.uncertainty])

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.denoiser.network,)

    def clean(self, x: Tensor, seed: int, step: int | Tensor, positions: Tensor) -> Tensor:
        """Data as the denoiser sees them: levels at the centres of their bins, or spread over them; numbers scaled."""
        if self.dequantizer is None:
            return x.float() if self.normalizer is None else self.normalizer.normalize(x).float()
        if not self.config.objective.dequantize:
            return self.dequantizer.center(x)
        u = random.uniform(seed, positions, step, x.shape[1:], random.STREAM_DEQUANTIZE)
        return self.dequantizer.dequantize(x, u)

    def labels(
        self, labels: Tensor | tuple[Tensor, ...] | None, step: int | Tensor, positions: Tensor, dropout: float
    ) -> Tensor | Condition | None:
        """The labels or the parts of a condition to learn, each hidden with the given chance; None for an unconditional
        model.

        Of several parts all are hidden with that chance, and then each by itself (as Brooks et al. 2023, arXiv
        2211.09800, do for two).
        """
        if labels is None:
            return None
        if isinstance(labels, tuple):
            shape = (1 + len(labels) * (len(labels) > 1),)
            hidden = random.uniform(self.config.seed, positions, step, shape, random.STREAM_LABEL_DROP) < dropout
            parts = zip(self.denoiser.parts, labels, strict=True)
            return Condition(
                [part.drop(c, hidden[:, 0] | hidden[:, i % shape[0]]) for i, (part, c) in enumerate(parts, 1)]
            )
        hidden = random.uniform(self.config.seed, positions, step, (), random.STREAM_LABEL_DROP) < dropout
        return torch.where(hidden, self.denoiser.num_classes, labels)

    def _labels(self, batch: Mapping[str, Any]) -> Tensor | tuple[Tensor, ...] | None:
        if self.denoiser.parts:
            return tuple(batch["condition"])
        return batch["labels"] if self.denoiser.num_classes else None

    def losses(self, x: Tensor, labels: Any, positions: Tensor, step: int | Tensor) -> Losses:
        """The losses of a part of a step: everything from the data as they are stored on, which is what is compiled."""
        seed, options = self.config.seed, self.config.objective
        x = self.clean(x, seed, step, positions)
        u = draw_u(seed, step, positions, self.config.trainer.batch_size, options.stratified)
        eps = random.normal(seed, positions, step, x.shape[1:], random.STREAM_TRAIN_NOISE)
        labels = self.labels(labels, step, positions, self.label_dropout)
        return self.objective(self.denoiser, x, u, eps, labels)

    def validation_losses(self, x: Tensor, labels: Any, positions: Tensor, draw: int | Tensor) -> Losses:
        """The losses of validation data at the draw's times and noises."""
        # Sample i meets K evenly spread times, shifted by the golden ratio from sample to sample.
        shift = (positions.to(torch.float64) * _GOLDEN) % 1.0
        x = self.clean(x, _VALIDATION_SEED, draw, positions)
        eps = random.normal(_VALIDATION_SEED, positions, draw, x.shape[1:], random.STREAM_TRAIN_NOISE)
        u = ((draw + shift) / VALIDATION_DRAWS).clamp(1e-9, 1 - 1e-9)
        return self.objective(self.denoiser, x, u, eps, self.labels(labels, draw, positions, 0.0))

    def prepare(self) -> None:
        with evaluation_mode(self.denoiser), torch.no_grad():
            x = torch.zeros(1, *self.denoiser.shape, device=self.where)
            self.denoiser(x, torch.full((1,), 0.5, dtype=torch.float64, device=self.where))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        step, x = int(batch["step"]), batch["x"]
        self.seed_step(step, int(batch["slice"]))
        losses = self.compiled("losses")(x, self._labels(batch), batch["positions"], self.number(step))
        if self._step_losses[0] != step:
            self._step_losses = (step, [])
        self._step_losses[1].append((losses.weighted.detach(), losses.log_snr.detach()))
        if self.is_logged():
            self.log("train/loss", losses.weighted.mean(), sync_dist=True, batch_size=len(x))
        return losses.mean()

    def step_losses(self) -> list[tuple[Tensor, Tensor]]:
        return self._step_losses[1]

    def on_fit_start(self) -> None:
        if self.normalizer is not None:  # once, and not at each step
            self.normalizer = self.normalizer.on(self.where)

    def on_validation_epoch_start(self) -> None:
        self._sums = torch.zeros_like(self._sums, device=self.where)
        self._most = 0

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        x, labels, positions = batch["x"], self._labels(batch), batch["positions"]
        low, high = log_snr_ends(self.denoiser.schedule)
        n = len(x)
        self._most = max(self._most, n)
        if self.compiles and n < self._most:  # the last data again: a smaller batch would be compiled anew
            rows = torch.arange(self._most, device=x.device).clamp(max=n - 1)
            x, positions = x[rows], positions[rows]
            several = isinstance(labels, tuple)
            labels = tuple(c[rows] for c in labels) if several else None if labels is None else labels[rows]
        for draw in range(VALIDATION_DRAWS):
            losses = self.compiled("validation_losses")(x, labels, positions, self.number(draw))
            weighted, error, log_snr = (of[:n] for of in (losses.weighted, losses.eps_error, losses.log_snr))
            bins = ((log_snr - low) / (high - low) * VALIDATION_BINS).long().clamp(0, VALIDATION_BINS - 1)
            sums = torch.zeros_like(self._sums)
            sums[0], sums[1] = weighted.double().sum(), n
            sums.index_add_(0, 2 + bins, error.double())
            sums.index_add_(0, 2 + VALIDATION_BINS + bins, torch.ones_like(error.double()))
            self._sums += sums

    def on_validation_epoch_end(self) -> None:
        sums = self.trainer.strategy.reduce(self._sums, reduce_op="sum")
        assert isinstance(sums, Tensor)
        if not float(sums[1]):
            return
        self.log("validation/loss", float(sums[0] / sums[1]))
        low, high = log_snr_ends(self.denoiser.schedule)
        width = (high - low) / VALIDATION_BINS
        totals, counts = sums[2:].chunk(2)
        for i, (total, count) in enumerate(zip(totals.tolist(), counts.tolist(), strict=True)):
            if count:
                name = f"validation/eps_error/log_snr_{low + i * width:.1f}_to_{low + (i + 1) * width:.1f}"
                self.log(name, total / count)

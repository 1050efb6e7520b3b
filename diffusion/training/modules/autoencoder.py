"""The autoencoders in training, as Lightning modules: the loss of a step, and validation.

The draws of a step are functions of (seed, step, position in the global batch), and validation always meets the same.
Losses of a VAE are in bits/dim, so that they compare with those measured after training: a bound on the likelihood
where beta is 1 and no bits are free. Those of an EAE are in squared units of [-1, 1] an image.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...baselines.eae import EAE, EAELosses
from ...baselines.entropy import knn_entropy
from ...baselines.vae import VAE, VAELosses
from ...config import Config
from ...errors import UserError
from ...models.build import Data
from ...numerics import random
from ...numerics.placement import for_numbers
from .base import ModelModule

# The codes that each validation image is decoded from, at least.
VALIDATION_DRAWS = 8
_VALIDATION_SEED = 0x5EED


class VAEModule(ModelModule):
    """Trains a variational autoencoder on its bound, or on the importance-weighted one.

    Args:
        autoencoder: The model.
        config: The configuration of the run.
        metadata: What makes the checkpoint a model by itself (see `models.load`).
    """

    averaged: ClassVar[str] = "autoencoder"

    def __init__(self, autoencoder: VAE, config: Config, metadata: Mapping[str, str]):
        super().__init__(config, metadata)
        self.autoencoder = autoencoder
        self._nats_per_bit_per_dim = math.prod(autoencoder.shape) * math.log(2.0)
        self._sums = torch.zeros(4, dtype=torch.float64)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return self.autoencoder.encoder, self.autoencoder.decoder

    def noise(self, seed: int, step: int | Tensor, positions: Tensor) -> Tensor:
        """The standard normals (B, K, d) that codes are drawn with."""
        shape = (self.config.autoencoder.iwae_samples, self.autoencoder.latent_dim)
        return random.normal(seed, positions, step, shape, random.STREAM_TRAIN_NOISE)

    def losses(self, x: Tensor, positions: Tensor, step: int | Tensor) -> VAELosses:
        """The losses of a part of a step."""
        options = self.config.autoencoder
        return self.autoencoder.loss(x, self.noise(self.config.seed, step, positions), options.beta, options.free_bits)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        x = batch["x"]
        losses = self.compiled("losses")(x, batch["positions"], self.number(int(batch["step"])))
        loss = losses.loss.mean() / self._nats_per_bit_per_dim
        if self.is_logged():
            parts = {"reconstruction": losses.reconstruction, "kl": losses.kl}
            figures = {f"train/{name}": part.mean() / self._nats_per_bit_per_dim for name, part in parts.items()}
            self.log_dict({"train/loss": loss, **figures}, sync_dist=True, batch_size=len(x))
        return loss

    def on_validation_epoch_start(self) -> None:
        self._sums = torch.zeros_like(self._sums, device=self.where)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """The bound itself, beta 1 and no bits free, whatever is trained on."""
        x, positions = batch["x"], batch["positions"]
        draws = max(1, VALIDATION_DRAWS // self.config.autoencoder.iwae_samples)
        for draw in range(draws):
            losses = self.autoencoder.loss(x, self.noise(_VALIDATION_SEED, draw, positions))
            parts = (losses.loss, losses.reconstruction, losses.kl)
            self._sums += torch.stack([*(part.double().sum() for part in parts), self._sums.new_full((), len(x))])

    def on_validation_epoch_end(self) -> None:
        sums = self.trainer.strategy.reduce(self._sums, reduce_op="sum")
        assert isinstance(sums, Tensor)
        if not float(sums[-1]):
            return
        means = (sums[:-1] / sums[-1] / self._nats_per_bit_per_dim).tolist()
        names = ("loss", "reconstruction", "kl")
        self.log_dict({f"validation/{name}": mean for name, mean in zip(names, means, strict=True)})


class EAEModule(ModelModule):
    """Trains an entropic autoencoder.

    Batch normalisation and entropy are of the images that go through the network together: with `trainer.accumulate`
    parts or `trainer.devices` processes each has a share of the batch, and its own statistics.

    Args:
        autoencoder: The model.
        config: The configuration of the run.
        metadata: What makes the checkpoint a model by itself (see `models.load`).
    """

    averaged: ClassVar[str] = "autoencoder"

    def __init__(self, autoencoder: EAE, config: Config, metadata: Mapping[str, str]):
        super().__init__(config, metadata)
        self.autoencoder = autoencoder
        self._error = torch.zeros((), dtype=torch.float64)
        self._codes: list[Tensor] = []

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return self.autoencoder.encoder, self.autoencoder.decoder

    def losses(self, x: Tensor) -> EAELosses:
        """The losses of a part of a step."""
        options = self.config.autoencoder
        return self.autoencoder.loss(x, options.entropy_weight, options.neighbours)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        x = batch["x"]
        losses = self.compiled("losses")(x)
        if self.is_logged():
            figures = {"train/reconstruction": losses.reconstruction.mean(), "train/entropy": losses.entropy}
            self.log_dict({"train/loss": losses.loss, **figures}, sync_dist=True, batch_size=len(x))
        return losses.loss

    def on_validation_epoch_start(self) -> None:
        self._error, self._codes = torch.zeros_like(self._error, device=self.where), []

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        model, x = self.autoencoder, batch["x"]
        z = model.encode(x)
        self._error += (model.decoder(z) - model.centred(x)).double().square().sum()
        self._codes.append(z)

    def on_validation_epoch_end(self) -> None:
        """The entropy is that of all of a process's codes at once: it depends on how many there are."""
        options = self.config.autoencoder
        count = sum(len(codes) for codes in self._codes)
        enough = count > options.neighbours
        entropy = float(knn_entropy(torch.cat(self._codes), options.neighbours)) if enough else 0.0
        parts = [float(self._error), count, entropy * count * enough, count * enough]
        sums = torch.tensor(parts, dtype=torch.float64, device=self.where)
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        assert isinstance(sums, Tensor)
        self._codes = []
        if not float(sums[3]):
            return
        error, entropy = float(sums[0] / sums[1]), float(sums[2] / sums[3])
        loss = error - options.entropy_weight * entropy
        self.log_dict(
            {"validation/loss": loss, "validation/reconstruction": error, "validation/entropy": entropy},
        )

    def check_data(self, data: Data) -> None:
        components = len(self.autoencoder.mixture_weights)
        if data.images is not None and len(data.images.train) < components:
            raise UserError(
                f"family: found 'eae', whose mixture of {components} Gaussians takes as many training images; "
                f"'{data.facts.name}' has {len(data.images.train)}"
            )

    fits_after_training = True

    def finish(self, data: Data, device: torch.device) -> None:
        """Fit the statistics of the code, the mixture and the declared density to the training images."""
        assert data.images is not None
        images = data.images.train.to(for_numbers(device))
        self.autoencoder.to(device).fit_after_training(images, self.config.seed, tell=_tell)


def _tell(what: str) -> None:
    print(f"after training: fitting {what}", file=sys.stderr, flush=True)

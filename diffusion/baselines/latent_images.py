"""Latent-variable models of images: z ~ N(0, I), a decoder, and an observation model over grey levels.

Shared by the variational and the entropic autoencoder after training: samples, and likelihoods by importance weighting
(`iwae`), by annealed importance sampling (`ais`) or as the evidence lower bound (`elbo`).

Codes can also be drawn where the prior is dense with neighbours: of many draws the hub, the one among the nearest
neighbours of the most others (Liang et al. 2022, arXiv 2206.06014). Its images tend to be typical and little diverse;
they are not samples of the model, and no likelihood is of them.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ..denoisers.given import check_callable, check_rows, seed_number
from ..errors import UserError, choose
from ..likelihood.batching import Progress, choose_batch_size, evaluation_mode
from ..likelihood.estimate import Estimate
from ..numerics import random
from ..numerics.arrays import whole_number
from ..numerics.placement import device_of
from .annealed import annealed_importance_sampling
from .importance_weighted import evidence_lower_bound, importance_weighted
from .latent_variable import LatentVariableModel
from .observation import ObservationModel

METHODS = {
    "iwae": importance_weighted,
    "ais": annealed_importance_sampling,
    "elbo": evidence_lower_bound,
}
OUTPUTS = ("mean", "draw")
# Each code of the prior `hubs` is the hub of so many draws, by so many neighbours.
HUBS, HUB_DRAWS, HUB_NEIGHBOURS = "hubs", 128, 5


class LatentImageModel(LatentVariableModel):
    """A generative model of discrete images (B, C, H, W): p(x) = E_{z ~ N(0, I)} p(x | z).

    shape is that of one image, (C, H, W); observation the distribution over grey levels.
    """

    priors: ClassVar[tuple[str, ...]] = ("normal", HUBS)
    shape: tuple[int, ...]
    observation: ObservationModel
    encoder: nn.Module
    decoder: nn.Module

    def networks_within(self) -> tuple[nn.Module, ...]:
        return self.encoder, self.decoder

    @abstractmethod
    def decode(self, z: Float[Tensor, " b d"]) -> Float[Tensor, " b *params"]:
        """The parameters of the observation model, shape (B, P C, H, W)."""

    def centred(self, images: UInt8[Tensor, " b c h w"]) -> Float[Tensor, " b c h w"]:
        """The images in [-1, 1], as the encoder sees them.

        Raises:
            UserError: For images of another shape, or an index that is not one of the levels.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise UserError(f"images: found shape {tuple(images.shape[1:])}; the model takes {self.shape}")
        return self.observation.dequantizer.center(images, self.dtype)

    def log_prob_given(self, x: UInt8[Tensor, " b c h w"], z: Float[Tensor, " b d"]) -> Float[Tensor, " b"]:
        return self.observation.log_prob(x, self.decode(z))

    def draw_given(self, z: Float[Tensor, " b d"], seed: int, indices: Int[Tensor, " b"]) -> UInt8[Tensor, " b c h w"]:
        u = random.uniform(seed, indices, 0, self.shape, random.STREAM_SOLVER, device=z.device)
        return self.observation.sample(self._finite(z), u)

    def _finite(self, z: Tensor) -> Tensor:
        """`decode(z)`.

        Raises:
            UserError: For parameters that are not finite: samples from them would look like valid levels.
        """
        params = self.decode(z)
        if not bool(torch.isfinite(params).all()):
            raise UserError("sample: the decoder's outputs are not finite; look at the model's weights")
        return params

    def draw_latents(
        self, prior: str, seed: int, indices: Int[Tensor, " b"], device: torch.device
    ) -> Float[Tensor, " b d"]:
        """Latents to sample from, (B, d): from the prior N(0, I), or hubs among its draws, which is not its law.

        Raises:
            UserError: For another prior.
        """
        choose("prior", prior, self.priors)
        if prior == HUBS:
            shape = (HUB_DRAWS, self.latent_dim)
            parts = (
                hubs(random.normal(seed, some, 0, shape, random.STREAM_INITIAL, self.dtype, device))
                for some in indices.split(32)
            )
            return torch.cat(list(parts))
        return random.normal(seed, indices, 0, (self.latent_dim,), random.STREAM_INITIAL, self.dtype, device)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        seed: int = 0,
        output: str = "mean",
        prior: str = "normal",
        batch_size: int | None = None,
        start: int = 0,
        progress: Progress | None = None,
    ) -> Float[Tensor, " n c h w"]:
        """`n` images in [-1, 1]; image i depends only on (seed, i).

        Args:
            n: Their number.
            seed: The seed.
            output: `mean` of p(x | z), or a `draw` from it.
            prior: The law of z: `normal`, another that the model offers, or `hubs`, not a law of the model's.
            batch_size: The number of images decoded together.
            start: Index of the first image: (n, start) = (10, 5) are images 5 to 14.
            progress: Called with (images done, n).

        Raises:
            UserError: For invalid options, and a decoder whose outputs are not finite.
        """
        n, seed, start = whole_number("n", n, 1), seed_number(seed), whole_number("start", start, 0)
        batch_size = None if batch_size is None else whole_number("batch_size", batch_size, 1)
        check_rows(start, n)
        check_callable("progress", progress)
        choose("output", output, OUTPUTS)
        batch_size = choose_batch_size(batch_size, self.observation.parameters * torch.Size(self.shape).numel())
        device, parts = device_of(self), []
        with evaluation_mode(self):
            for indices in torch.arange(start, start + n).split(batch_size):
                z = self.draw_latents(prior, seed, indices, device)
                if output == "mean":
                    parts.append(self.observation.mean(self._finite(z)).to(self.dtype))
                else:
                    parts.append(self.observation.dequantizer.center(self.draw_given(z, seed, indices), self.dtype))
                if progress is not None:
                    progress(int(indices[-1]) + 1 - start, n)
        return torch.cat(parts)

    def log_likelihood(self, images: UInt8[Tensor, " n c h w"], method: str = "iwae", **options) -> Estimate:
        """A lower bound on log P(image) of each image.

        Args:
            images: Level indices, shape (N, C, H, W).
            method: `iwae` (`importance_weighted`), `ais` (`annealed_importance_sampling`) or `elbo`
                (`evidence_lower_bound`).
            options: Of that estimator: `samples`, or `steps`, `chains` and `leapfrog`; `seed`, `batch_size`,
                `indices`, `progress`.

        Raises:
            UserError: For another method, an option that it does not accept, or images that do not fit the model.
        """
        choose("method", method, METHODS)
        self.centred(images[:1])  # refuses images of another shape
        return METHODS[method](self, images, **options)


def hubs(draws: Float[Tensor, " b m d"], k: int = HUB_NEIGHBOURS) -> Float[Tensor, " b d"]:
    """Of each set of m points that which is among the k nearest neighbours of the most others; of several the first."""
    distances = torch.cdist(draws, draws, compute_mode="donot_use_mm_for_euclid_dist")
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest = distances.topk(k, dim=2, largest=False).indices.flatten(1)
    counts = torch.zeros(draws.shape[:2], dtype=torch.long, device=draws.device)
    counts.scatter_add_(1, nearest, torch.ones_like(nearest))
    return draws[torch.arange(len(draws), device=draws.device), counts.argmax(1)]

"""The variational autoencoder (Kingma & Welling 2014, arXiv 1312.6114; Rezende et al. 2014, arXiv 1401.4082).

    z ~ N(0, I),    x | z ~ observation model,    q(z | x) = N(mean(x), diag(std(x)^2))

    loss = -E_q log p(x | z) + beta KL(q(z | x) || p(z)),        at least -log p(x) for beta = 1

beta other than 1 (Higgins et al. 2017) and free bits (Kingma et al. 2016, arXiv 1606.04934, eq. 15: a dimension whose
mean KL over the batch is below a floor is not reduced further) change the training, not the measurement. With K > 1
draws the loss is the importance-weighted one (Burda et al. 2016, arXiv 1509.00519, eq. 8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..errors import UserError
from .importance_weighted import kl_to_prior
from .latent_images import LatentImageModel
from .observation import ObservationModel

# Standard deviations are smoothly bounded in exp(-7) to exp(7): a posterior can neither collapse to a point nor
# explode.
_LOG_STD = 7.0


@dataclass(frozen=True)
class VAELosses:
    """The losses of a batch, each of shape (B,), in nats per image.

    Attributes:
        loss: The training loss, whose mean is minimised.
        reconstruction: -log p(x | z), the mean over the draws.
        kl: KL(q(z | x) || p(z)), in closed form.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


class VAE(LatentImageModel):
    """An encoder, a decoder and an observation model.

    Args:
        shape: The shape (C, H, W) of an image.
        latent_dim: The length d of z.
        observation: p(x | z), over grey levels.
        encoder: (B, C, H, W) in [-1, 1] -> (B, 2 d), means and then log standard deviations.
        decoder: (B, d) -> (B, P C, H, W), the parameters of the observation model.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int,
        observation: ObservationModel,
        encoder: nn.Module,
        decoder: nn.Module,
    ) -> None:
        super().__init__()
        self.shape, self.latent_dim = tuple(shape), latent_dim
        self.observation, self.levels = observation, observation.levels
        self.encoder, self.decoder = encoder, decoder

    @property
    def protocol(self) -> dict[str, object]:
        return {"model": "VAE", "observation": repr(self.observation), "latent_dim": self.latent_dim}

    def proposal(self, x: UInt8[Tensor, " b c h w"]) -> tuple[Float[Tensor, " b d"], Float[Tensor, " b d"]]:
        """Mean and standard deviation of the approximate posterior q(z | x)."""
        mean, raw = self.encoder(self.centred(x)).to(self.dtype).chunk(2, dim=1)
        return mean, (_LOG_STD * torch.tanh(raw / _LOG_STD)).exp()

    def decode(self, z: Float[Tensor, " b d"]) -> Float[Tensor, " b *params"]:
        return self.decoder(z)

    def loss(
        self,
        images: UInt8[Tensor, " b c h w"],
        eps: Float[Tensor, " b k d"],
        beta: float = 1.0,
        free_bits: float = 0.0,
    ) -> VAELosses:
        """The training losses of a batch.

        Args:
            images: Level indices, shape (B, C, H, W).
            eps: Standard normals, shape (B, K, d): K draws of z per image. K > 1 is the importance-weighted loss.
            beta: The weight of the KL term.
            free_bits: The floor of each dimension's KL, in nats.

        Raises:
            UserError: For beta or free bits together with K > 1, or below 0.
        """
        draws = eps.shape[1]
        if beta < 0 or free_bits < 0:
            raise UserError(f"beta, free_bits: found {beta}, {free_bits}; must not be below 0")
        if draws > 1 and (beta != 1.0 or free_bits):
            raise UserError(f"beta, free_bits: found {beta}, {free_bits}; importance weighting takes 1 and 0")
        mean, std = self.proposal(images)
        z = mean[:, None] + std[:, None] * eps
        log_prob = self.log_prob_given(images.repeat_interleave(draws, 0), z.flatten(0, 1)).unflatten(0, (-1, draws))
        kl = kl_to_prior(mean, std)
        if draws > 1:
            # log p(z) - log q(z | x): the constants cancel
            log_ratio = std.log().sum(1, keepdim=True) + 0.5 * (eps.square() - z.square()).sum(2)
            loss = math.log(draws) - torch.logsumexp(log_prob + log_ratio, dim=1)
        else:
            pressed = torch.where(kl.mean(0) < free_bits, free_bits, kl)  # the batch mean is max(KL, floor)
            loss = beta * pressed.sum(1) - log_prob[:, 0]
        return VAELosses(loss, -log_prob.detach().mean(1), kl.detach().sum(1))

"""The entropic autoencoder (Ghose, Rashwan & Poupart 2020, arXiv 2002.10631): deterministic, with codes near N(0, I).

    z = batch norm without scale and shift (encoder(x)),        loss = ||x - decoder(z)||^2 - lambda H(Z)

Batch normalisation fixes each code dimension at mean 0 and variance 1, for which N(0, I) has the largest entropy:
maximising the nearest-neighbour entropy H(Z) of the batch's codes makes their law N(0, I), without noise in training.
Images are sampled from N(0, I), or from a mixture of Gaussians fitted to the codes.

Being deterministic, it does not define a density. One is declared after training: p(x | z) a discretised Gaussian
around the decoder's output with one scale for all pixels, prior N(0, I), and the proposal N(code(x), diag(std^2)). The
scale and std maximise the importance-weighted bound of 32 samples on the training images, with encoder and decoder
fixed (the ELBO is mode-seeking and would choose a std too small for importance sampling). Every figure says so in its
protocol (`declared model`), and is a lower bound on the likelihood of that model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ..errors import UserError, choose
from ..likelihood.batching import choose_batch_size, evaluation_mode
from ..likelihood.estimate import Estimate
from ..numerics import random
from .decoders import DiscretizedGaussian
from .entropy import knn_entropy
from .latent_images import HUBS, LatentImageModel
from .observation import scale_of

_FITTED_BY = "train.py does that at its end, fit_after_training(images) in Python"
_FIT_BATCH, _FIT_SAMPLES, _FIT_RATE, _FIRST_STD = 16, 32, 0.05, 0.1
# The mixture is fitted to at most this many codes: more would hardly improve its few thousand parameters.
MIXTURE_CODES = 20_000
_TOLD_EVERY = 100
Tell = Callable[[str], None]


@dataclass(frozen=True)
class EAELosses:
    """The losses of a batch.

    Attributes:
        loss: mean(reconstruction) - lambda entropy, a scalar.
        reconstruction: Squared error on [-1, 1], summed over an image, shape (B,).
        entropy: H(Z) of the batch's codes in nats, a scalar.
    """

    loss: Tensor
    reconstruction: Tensor
    entropy: Tensor


class EAE(LatentImageModel):
    """An encoder, batch normalisation of the code, and a decoder.

    Args:
        shape: The shape (C, H, W) of an image.
        latent_dim: The length d of the code.
        levels: The number of grey levels of a pixel.
        encoder: (B, C, H, W) in [-1, 1] -> (B, d).
        decoder: (B, d) -> (B, C, H, W), an image in [-1, 1].
        mixture_components: Components of the mixture fitted to the codes.
    """

    priors: ClassVar[tuple[str, ...]] = ("normal", "mixture", HUBS)

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int,
        levels: int,
        encoder: nn.Module,
        decoder: nn.Module,
        mixture_components: int = 10,
    ) -> None:
        super().__init__()
        self.shape, self.latent_dim, self.levels = tuple(shape), latent_dim, levels
        self.observation = DiscretizedGaussian(levels)
        self.encoder, self.decoder = encoder, decoder
        self.norm = nn.BatchNorm1d(latent_dim, affine=False)
        # Fitted after training; zeros until then.
        k, d = mixture_components, latent_dim
        self.raw_scale = nn.Buffer(torch.zeros(()))
        self.proposal_std = nn.Buffer(torch.zeros(d))
        self.mixture_weights = nn.Buffer(torch.zeros(k))
        self.mixture_means = nn.Buffer(torch.zeros(k, d))
        self.mixture_factors = nn.Buffer(torch.zeros(k, d, d))

    @property
    def protocol(self) -> dict[str, object]:
        return {
            "model": "EAE, declared model",
            "observation": repr(self.observation),
            "scale": float(scale_of(self.raw_scale, self.observation.levels)),
            "proposal": f"N(code, diag(std^2)), std fitted by the bound of {_FIT_SAMPLES} samples on training images",
            "latent_dim": self.latent_dim,
        }

    def encode(self, images: UInt8[Tensor, " b c h w"]) -> Float[Tensor, " b d"]:
        """The codes: normalised by batch statistics in training, by running statistics in evaluation."""
        return self.norm(self.encoder(self.centred(images)).to(self.dtype))

    def proposal(self, x: UInt8[Tensor, " b c h w"]) -> tuple[Float[Tensor, " b d"], Float[Tensor, " b d"]]:
        """The declared proposal N(code, diag(std^2))."""
        code = self.encode(x)
        return code, self.proposal_std.expand_as(code)

    def decode(self, z: Float[Tensor, " b d"]) -> Float[Tensor, " b *params"]:
        """Mean and log scale of the declared observation model."""
        return self._params(self.decoder(z), self.raw_scale)

    @staticmethod
    def _params(mean: Tensor, raw_scale: Tensor) -> Tensor:
        return torch.cat([mean, raw_scale.to(mean).expand_as(mean)], dim=1)

    def loss(self, images: UInt8[Tensor, " b c h w"], entropy_weight: float, k: int = 3) -> EAELosses:
        """The training loss of a batch of more than k images, in training mode.

        Args:
            images: Level indices, shape (B, C, H, W).
            entropy_weight: lambda, in squared units of [-1, 1] per nat.
            k: The neighbour of the entropy estimator.
        """
        z = self.encode(images)
        difference = self.decoder(z) - self.centred(images)
        reconstruction = difference.float().flatten(1).square().sum(1)
        entropy = knn_entropy(z, k)
        return EAELosses(reconstruction.mean() - entropy_weight * entropy, reconstruction.detach(), entropy.detach())

    @torch.no_grad()
    def codes(self, images: UInt8[Tensor, " n c h w"], batch_size: int | None = None) -> Float[Tensor, " n d"]:
        """The codes of any number of images, in evaluation mode."""
        return self._in_batches(self.encode, images, batch_size)

    def fit_after_training(
        self, images: UInt8[Tensor, " n c h w"], seed: int = 0, steps: int = 300, tell: Tell | None = None
    ) -> None:
        """Fit, to the training images, in this order: the statistics of the code, the mixture, the declared density.

        The statistics use all images; the mixture is fitted to at most `MIXTURE_CODES` of them and the density to as
        many as its steps need, both chosen at random if there are more.

        Args:
            images: The training images.
            seed: The seed of the mixture's initialisation, the density's noise, and the choice of images.
            steps: The steps of the density's fit.
            tell: Called with a line about what is being fitted.

        Raises:
            UserError: For fewer images than mixture components.
        """
        tell = tell or (lambda _: None)
        tell(f"the statistics of the codes of {len(images):,} images")
        self.fit_statistics(images)
        some = _some(images, MIXTURE_CODES)
        tell(f"a mixture of {len(self.mixture_weights)} Gaussians to {len(some):,} codes")
        self.fit_mixture(some, seed)
        self.fit_density(_some(images, steps * _FIT_BATCH), seed, steps, tell)

    @torch.no_grad()
    def fit_statistics(self, images: UInt8[Tensor, " n c h w"]) -> None:
        """Make the mean and variance of the codes of `images` exactly 0 and 1 (the running averages lag behind)."""
        raw = self._in_batches(lambda part: self.encoder(self.centred(part)), images).double()
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(raw.mean(0))
        self.norm.running_var.copy_(raw.var(0, correction=0))

    @torch.no_grad()
    def fit_mixture(self, images: UInt8[Tensor, " n c h w"], seed: int = 0) -> None:
        """Fit the mixture of full-covariance Gaussians (scikit-learn) to the codes of `images`."""
        from sklearn.mixture import GaussianMixture

        components = len(self.mixture_weights)
        if len(images) < components:
            raise UserError(f"mixture_components: found {components} for {len(images)} images; needs at most as many")
        fitted = GaussianMixture(components, reg_covar=1e-4, max_iter=500, random_state=seed)
        fitted.fit(self.codes(images).cpu().double().numpy())
        self.mixture_weights.copy_(torch.from_numpy(fitted.weights_))
        self.mixture_means.copy_(torch.from_numpy(fitted.means_))
        self.mixture_factors.copy_(torch.linalg.cholesky(torch.from_numpy(fitted.covariances_)))

    def fit_density(
        self, images: UInt8[Tensor, " n c h w"], seed: int = 0, steps: int = 300, tell: Tell | None = None
    ) -> None:
        """Fit the observation model's scale and the proposal's std, by Adam on the importance-weighted bound."""
        with evaluation_mode(self):
            codes = self.codes(images)
            with torch.no_grad():
                order = random.fixed_order(len(images)).to(images.device)  # in file order a batch may be of one class
                some = order[:_FIT_BATCH]
                residual = self.decoder(codes[some]) - self.centred(images[some])
                raw_scale = 0.5 * residual.double().square().mean().clamp(min=1e-8).log().to(self.dtype)
            raw_scale.requires_grad_()
            log_std = torch.full_like(self.proposal_std, _FIRST_STD).log().requires_grad_()
            optimizer = torch.optim.Adam([raw_scale, log_std], lr=_FIT_RATE)
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = _FIT_RATE * (1.0 - step / steps)
                places = torch.arange(min(_FIT_BATCH, len(images)), device=order.device)
                rows = order[(step * _FIT_BATCH + places) % len(images)]
                shape = (_FIT_SAMPLES, self.latent_dim)
                eps = random.normal(seed, rows, step, shape, random.STREAM_EVALUATE, self.dtype, codes.device)
                z = codes[rows, None] + log_std.exp() * eps
                params = self._params(self.decoder(z.flatten(0, 1)), raw_scale)
                log_prob = self.observation.log_prob(images[rows].repeat_interleave(_FIT_SAMPLES, 0), params)
                log_w = log_prob.unflatten(0, z.shape[:2]) + log_std.sum() - 0.5 * z.square().sum(2)
                loss = -torch.logsumexp(log_w + 0.5 * eps.square().sum(2), dim=1).mean()
                raw_scale.grad, log_std.grad = torch.autograd.grad(loss, [raw_scale, log_std])
                optimizer.step()
                if tell is not None and (step + 1) % _TOLD_EVERY == 0:
                    bits = float(loss.detach()) / (images[0].numel() * math.log(2.0))
                    tell(f"the declared density, step {step + 1}/{steps}: {bits:.3f} bits/dim, {len(images):,} images")
        with torch.no_grad():
            self.raw_scale.copy_(raw_scale)
            self.proposal_std.copy_(log_std.exp())

    def draw_latents(
        self, prior: str, seed: int, indices: Int[Tensor, " b"], device: torch.device
    ) -> Float[Tensor, " b d"]:
        """Latents from N(0, I) (`normal`), from the `mixture` fitted to the codes, or `hubs` of N(0, I)."""
        choose("prior", prior, self.priors)
        if prior != "mixture":
            return super().draw_latents(prior, seed, indices, device)
        eps = super().draw_latents("normal", seed, indices, device)
        if float(self.mixture_weights.sum()) == 0.0:
            raise UserError(f"prior: the mixture is not fitted yet; {_FITTED_BY}")
        u = random.uniform(seed, indices, 0, (), random.STREAM_LABEL, device=device)
        component = torch.searchsorted(self.mixture_weights.cumsum(0), u.to(self.dtype))
        component = component.clamp(max=len(self.mixture_weights) - 1)  # the sum may round to less than one
        return self.mixture_means[component] + (self.mixture_factors[component] @ eps[:, :, None])[:, :, 0]

    def log_likelihood(self, images: UInt8[Tensor, " n c h w"], method: str = "iwae", **options) -> Estimate:
        """A lower bound on log P(image) under the declared model; as `LatentImageModel.log_likelihood`.

        Raises:
            UserError: Also if the declared model is not fitted yet.
        """
        if not bool((self.proposal_std > 0).all()):
            raise UserError(f"log_likelihood: the declared model is not fitted yet; {_FITTED_BY}")
        return super().log_likelihood(images, method, **options)

    @torch.no_grad()
    def _in_batches(self, f, images: Tensor, batch_size: int | None = None) -> Tensor:
        with evaluation_mode(self):
            return torch.cat([f(part) for part in images.split(choose_batch_size(batch_size, images[0].numel()))])


def _some(images: Tensor, most: int) -> Tensor:
    """`most` of the images, the first in the fixed order; all, unchanged, if there are no more."""
    return images if len(images) <= most else images[random.fixed_subset(len(images), most).to(images.device)]

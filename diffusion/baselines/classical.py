"""Classical density models of discrete images: references for the scale of a likelihood.

independent pixels   P(x) = prod_i (count_i(x_i) + a) / (N + a L)             exact
Gaussian mixture     full covariances on dequantised pixels (scikit-learn)    lower bound (Jensen)
PNG                  P(x) = 2^-length, as a code length is a likelihood       lower bound (sub-normalised)
"""

from __future__ import annotations

import io
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..errors import UserError
from ..likelihood.dequantization import Dequantizer
from ..likelihood.estimate import Estimate, mean_error
from ..numerics import random


@dataclass(frozen=True, eq=False)
class IndependentPixels:
    """A histogram for each pixel, with `smoothing` counts added to each level (1 is Laplace's rule).

    Args:
        log_probs: log P(level) of each pixel, shape (D, L).
        smoothing: The added counts.
        shape: The shape of one image.
    """

    log_probs: Float[Tensor, " d l"]
    smoothing: float
    shape: tuple[int, ...]

    @classmethod
    def fit(cls, images: UInt8[Tensor, " n *dims"], levels: int, smoothing: float = 1.0) -> IndependentPixels:
        """Count the levels of `images`.

        Raises:
            UserError: For smoothing that is not positive (unseen levels would have zero probability).
        """
        if smoothing <= 0:
            raise UserError(f"smoothing: found {smoothing}; must be positive")
        pixels = images.flatten(1).long().T  # (D, N)
        counts = torch.full((len(pixels), levels), smoothing, dtype=torch.float64)
        counts.scatter_add_(1, pixels, torch.ones_like(pixels, dtype=torch.float64))
        return cls((counts / counts.sum(1, keepdim=True)).log(), smoothing, tuple(images.shape[1:]))

    def log_likelihood(self, images: UInt8[Tensor, " b *dims"]) -> Estimate:
        """The exact log-probability of images of the fitted shape."""
        start = time.perf_counter()
        if tuple(images.shape[1:]) != self.shape:
            raise UserError(f"images: found shape {tuple(images.shape[1:])}; fitted on {self.shape}")
        log_prob = self.log_probs.gather(1, images.flatten(1).long().T).sum(0)
        return Estimate(
            log_prob=log_prob,
            dims=len(self.log_probs),
            levels=self.log_probs.shape[1],
            std_error=torch.zeros_like(log_prob),
            kind="exact",
            protocol={"estimator": "independent pixels", "smoothing": self.smoothing},
            seconds=time.perf_counter() - start,
        )


def gaussian_mixture(
    train: UInt8[Tensor, " n *dims"],
    validation: UInt8[Tensor, " m *dims"],
    test: UInt8[Tensor, " b *dims"],
    dequantizer: Dequantizer,
    components: Sequence[int] = (1, 2, 5, 10, 15, 20),
    regularization: float = 0.1,
    copies: int = 4,
    draws: int = 8,
    seed: int = 0,
    indices: Int[Tensor, " b"] | None = None,
) -> Estimate:
    """The best mixture of full-covariance Gaussians on uniformly dequantised pixels, chosen on the validation images.

    Args:
        train, validation, test: Level indices; fitted on the first, chosen on the second, measured on the third.
        dequantizer: The levels and their places.
        components: The candidate numbers of components (those beyond the number of training images are skipped).
        regularization: Added to the diagonals of the covariances, in squared bin widths.
        copies: Dequantised points of each training image.
        draws: Dequantised points of each validation and test image.
        seed: The seed of the dequantisation and of the initialisation.
        indices: The indices of the test images, which key their noise; 0 .. B - 1 by default.

    Returns:
        Kind `lower bound`; the protocol has the selected number of components and the validation bits/dim of each.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    start = time.perf_counter()
    dims = test[0].numel()

    def points(images: Tensor, draw: int, stream_offset: int) -> Tensor:
        own = torch.arange(len(images)) if indices is None or stream_offset != 2 else indices.cpu()
        keys = own + (stream_offset << 40)  # the three sets share no noise
        u = random.uniform(seed, keys, draw, images.shape[1:], random.STREAM_DEQUANTIZE, torch.float64)
        return dequantizer.dequantize(images, u).flatten(1)

    def log_probs(model: GaussianMixture, images: Tensor, stream_offset: int) -> Tensor:
        """Shape (B, draws), in nats of the levels."""
        values = [model.score_samples(points(images, draw, stream_offset).numpy()) for draw in range(draws)]
        return torch.stack([torch.from_numpy(value) for value in values], dim=1) + dequantizer.log_jacobian(dims)

    data = torch.cat([points(train, copy, 0) for copy in range(copies)]).numpy()
    models, scores = {}, {}
    for count in components:
        if count > len(train):
            continue
        model = GaussianMixture(count, reg_covar=regularization * dequantizer.width**2, max_iter=200, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # validation judges the fit, converged or not
            models[count] = model.fit(data)
        scores[count] = float(-log_probs(model, validation, 1).mean()) / (dims * math.log(2.0))
    if not models:
        raise UserError(
            f"components: found {list(components)} for {len(train)} training images; needs one that is fewer"
        )
    best = min(scores, key=scores.__getitem__)
    values = log_probs(models[best], test, 2)
    std_error = values.std(1) / math.sqrt(draws) if draws > 1 else torch.full_like(values[:, 0], math.nan)
    estimate = Estimate(
        log_prob=values.mean(1),
        dims=dims,
        levels=dequantizer.levels,
        std_error=std_error,
        kind="lower bound",
        protocol={
            "estimator": "Gaussian mixture, full covariances",
            "components": best,
            "validation_bits_per_dim": scores,
            "regularization": regularization,
            "copies": copies,
            "dequantization": "uniform",
            "draws": draws,
            "seed": seed,
        },
        indices=indices,
        seconds=time.perf_counter() - start,
    )
    return estimate.with_error("draws", mean_error(std_error, dims)) if draws > 1 else estimate


def png(images: UInt8[Tensor, " b c h w"], levels: int = 256) -> Estimate:
    """The size of each image as a separate PNG file, including the header (57 bytes, significant for small images).

    Args:
        images: Level indices of 1 or 3 channels, stored in 8 bits for any number of levels.
        levels: The number of levels, for the record.

    Raises:
        UserError: For another number of channels.
    """
    from PIL import Image

    start = time.perf_counter()
    channels = images.shape[1]
    if channels not in (1, 3):
        raise UserError(f"images: found {channels} channels; PNG takes 1 or 3")
    sizes = []
    for image in images.cpu():
        array = image[0] if channels == 1 else image.permute(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(array.contiguous().numpy()).save(buffer, format="PNG", optimize=True)
        sizes.append(8.0 * len(buffer.getvalue()))
    log_prob = -math.log(2.0) * torch.tensor(sizes, dtype=torch.float64)
    return Estimate(
        log_prob=log_prob,
        dims=images[0].numel(),
        levels=levels,
        std_error=torch.zeros_like(log_prob),
        kind="lower bound",
        protocol={"estimator": "PNG", "encoder": "Pillow, optimize=True, one file an image"},
        seconds=time.perf_counter() - start,
    )

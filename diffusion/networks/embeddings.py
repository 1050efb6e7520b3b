"""Embeddings of the noise level and of the condition.

A network is conditioned on the noise level by a vector of its sines and cosines at many frequencies: sinusoids with
geometric frequencies (Vaswani et al. 2017, arXiv 1706.03762, sec. 3.5; DDPM) or random Fourier features with Gaussian
frequencies (Tancik et al. 2020, arXiv 2006.10739; score SDE, Song et al. 2021, arXiv 2011.13456). Neither is learned.
A two-layer perceptron follows, and the embedding of the class, or of each part of a condition (`parts`), is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config import NetworkConfig
from ..errors import UserError, choose
from .layers import check_at_least, glorot
from .parts import Part, PartEmbedding, as_parts, joined

# DDPM embeds t * 1000 with t in [0, 1], a range of 1000 units, which the fastest sinusoid resolves.
# c_noise covers about [-5, 5], a range of 10: 1000 / 10 gives it the same range.
NOISE_SCALE = 1000 / 10

# Of networks made elsewhere, which take the number of a level: sinusoids of it as it is, without (guided-diffusion)
# and with the frequency 1/10000 (DDPM's code).
INDEX_EMBEDDINGS = ("index", "index-endpoint")


def sinusoids(
    positions: Float[Tensor, " *n"], features: int, endpoint: bool = False
) -> Float[Tensor, " *n {features}"]:
    """sin(w_i p) and cos(w_i p), w_i = 10000^(-i / n), in the dtype of `positions`; `features` is even.

    n is features / 2; with `endpoint` one less, so that the last frequency is 1/10000.
    """
    half = features // 2
    exponents = torch.arange(half, dtype=positions.dtype, device=positions.device) / (half - endpoint)
    angles = positions[..., None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class SinusoidalEmbedding(nn.Module):
    """Sinusoids of 100 c_noise with geometric frequencies from 1 down to 1/10000 (DDPM).

    The fastest has a period of 0.06 in c_noise, a quarter of a unit of log-SNR when c_noise = log-SNR / 4.

    Args:
        features: Number of features, even.
        scale: The factor of what it is given: 100 for c_noise.
        endpoint: As `sinusoids`.
    """

    def __init__(self, features: int, scale: float = NOISE_SCALE, endpoint: bool = False) -> None:
        super().__init__()
        self.features = features
        self.scale = scale
        self.endpoint = endpoint

    def forward(self, c_noise: Float[Tensor, " b"]) -> Float[Tensor, " b features"]:
        """Embed `c_noise` (B,) as (B, features), in the dtype of `c_noise`."""
        return sinusoids(self.scale * c_noise, self.features, self.endpoint)


class FourierEmbedding(nn.Module):
    """sin(2 pi w_i c_noise) and cos(2 pi w_i c_noise) with w_i ~ N(0, scale^2), drawn once and saved with the weights.

    Score SDE (Song et al. 2021, arXiv 2011.13456) applies it with scale 16 to the log of the noise level.

    Args:
        features: Number of features, even.
        scale: Standard deviation of the frequencies.
    """

    frequencies: Tensor

    def __init__(self, features: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(features // 2))

    def forward(self, c_noise: Float[Tensor, " b"]) -> Float[Tensor, " b features"]:
        """Embed `c_noise` (B,) as (B, features), in the wider dtype of `c_noise` and the frequencies."""
        angles = 2 * math.pi * c_noise[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Conditioning(nn.Module):
    """The conditioning of the network: silu(perceptron(features of the noise level) + embedding of the class).

    The final silu is here because every block that uses the embedding (DDPM, DiT) would begin with it.

    Args:
        features: Number of features of the noise level, even.
        channels: Width of the result.
        num_classes: Number of classes; the embedding has one more row, the last, for "no label". 0: no classes.
        noise_embedding: `"sinusoidal"` or `"fourier"`; of a level's number `"index"` or `"index-endpoint"`.
        parts: Of a condition that is more than a class, in place of `num_classes`.
    """

    def __init__(
        self,
        features: int,
        channels: int,
        num_classes: int = 0,
        noise_embedding: str = "sinusoidal",
        parts: Sequence[Part] = (),
    ) -> None:
        super().__init__()
        check_at_least(0, num_classes=num_classes)
        choose("noise_embedding", noise_embedding, (*NetworkConfig.words("noise_embedding"), *INDEX_EMBEDDINGS))
        if noise_embedding in INDEX_EMBEDDINGS:
            self.noise = SinusoidalEmbedding(features, 1.0, noise_embedding == "index-endpoint")
        else:
            self.noise = (
                SinusoidalEmbedding(features) if noise_embedding == "sinusoidal" else FourierEmbedding(features)
            )
        self.dense_1 = glorot(nn.Linear(features, channels))
        self.dense_2 = glorot(nn.Linear(channels, channels))
        self.classes = nn.Embedding(num_classes + 1, channels) if num_classes else None
        if num_classes and parts:
            raise UserError("num_classes, parts: give one of them; classes are a part")
        self.parts = nn.ModuleList(PartEmbedding(part, channels) for part in parts)

    def taken(self, x: Tensor, labels: Any) -> tuple[Tensor, Any]:
        """x with the fields of the condition joined to it, and the condition as `forward` takes it.

        Raises:
            UserError: For a condition of another number of parts.
        """
        if not len(self.parts):
            return x, labels
        condition = as_parts(labels, [embedding.part for embedding in self.parts], x)  # type: ignore[misc]
        return joined(x, list(self.parts), condition), condition

    def forward(
        self, c_noise: Float[Tensor, " b"], labels: Int[Tensor, " b"] | Sequence[Tensor] | None
    ) -> Float[Tensor, " b channels"]:
        """Embed noise levels (B,) and labels (B,) as (B, channels).

        Args:
            c_noise: Noise level of each sample.
            labels: Class of each sample, `num_classes` for "no label"; None for "no label" everywhere. With `parts` the
                tensor of each.

        Raises:
            UserError: Labels are passed and the network has no classes.
        """
        features = self.noise(c_noise).to(self.dense_1.weight.dtype)
        embedding = self.dense_2(F.silu(self.dense_1(features)))
        if len(self.parts):
            assert labels is not None
            for part, c in zip(self.parts, labels, strict=True):
                embedding = embedding + part(c).to(embedding.dtype)
        elif self.classes is not None:
            embedding = embedding + (self.classes.weight[-1] if labels is None else self.classes(labels))
        elif labels is not None:
            raise UserError("labels: given to a network without classes; omit them, or build it with num_classes > 0.")
        return F.silu(embedding)

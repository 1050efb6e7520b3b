"""DDPM++ and NCSN++, the networks of score SDE (Song et al. 2021, arXiv 2011.13456, appendix H), which EDM uses too.

DDPM's U-Net with BigGAN's residual blocks, which change the resolution themselves, and sums scaled by sqrt(1/2). NCSN++
resamples by a filter, has Fourier features of the noise level and adds the halved image at each level. Classes are
those of EDM (Karras et al. 2022, arXiv 2206.00364): added to the features, before the perceptron.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import choose
from .attention import FeatureMapAttention
from .body import AttendedBlock, BlurredDownsample, Body, Resample
from .embeddings import FourierEmbedding, SinusoidalEmbedding
from .layers import glorot, group_norm
from .residual import Downsample, ResidualBlock, Upsample

EMBEDDINGS = ("positional", "fourier")


class SongUNet(nn.Module):
    """f(x, noise, labels) of the shape of x, for images (B, C, H, W) whose sides 2^(levels - 1) divides.

    Args:
        channels: Channels C of an image.
        image_size: Height of an image, to which `attention` refers.
        base_channels: Channels at full resolution.
        multipliers: Channels of each level as multiples of `base_channels`, from full resolution down.
        blocks: Residual blocks of a level on the way down; one more on the way up.
        attention: Heights of the feature maps with attention: of all blocks on the way down, of the last on the way up.
        embedding: `"positional"` (DDPM++; sinusoids of the step) or `"fourier"` (NCSN++; twice as many features).
        embedding_multiplier: Width of the embedding, in `base_channels`.
        taps: The filter that changes the resolution: (1, 1), or (1, 3, 3, 1) in NCSN++.
        residual_input: Whether the halved images are added at each level (NCSN++).
        ddpm: The network `ddpm` of score SDE: sums are not scaled, convolutions change the resolution, and there are 32
            groups of every normalisation, as in DDPM.
        unit_range: Whether images are in [0, 1], of which the network sees 2 x - 1.
        num_classes: Number of classes, 0 for none; one more row of their embedding, the last, stands for none.
        dropout: Dropout inside the residual blocks.
    """

    def __init__(
        self,
        channels: int,
        image_size: int = 32,
        base_channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        embedding: str = "positional",
        embedding_multiplier: int = 4,
        taps: Sequence[int] = (1, 1),
        residual_input: bool = False,
        ddpm: bool = False,
        unit_range: bool = False,
        num_classes: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.ddpm, self.unit_range = ddpm, unit_range
        fourier = choose("embedding", embedding, EMBEDDINGS) == "fourier"
        features, width = (1 + fourier) * base_channels, embedding_multiplier * base_channels
        self.noise = FourierEmbedding(features) if fourier else SinusoidalEmbedding(features, 1.0, endpoint=True)
        self.classes = nn.Embedding(num_classes + 1, features) if num_classes else None
        self.dense_1 = glorot(nn.Linear(features, width))
        self.dense_2 = glorot(nn.Linear(width, width))
        scale = 1.0 if ddpm else math.sqrt(0.5)
        norm = partial(group_norm, groups=32 if ddpm else None, eps=1e-6)
        residual = partial(ResidualBlock, embedding_channels=width, dropout=dropout, scale=scale, norm=norm)

        def block(inputs: int, outputs: int, attended: bool) -> AttendedBlock:
            attention = FeatureMapAttention(outputs, 1, scale=scale, norm=norm) if attended else None
            return AttendedBlock(residual(inputs, outputs), attention)

        def resampled(up: bool, width: int) -> nn.Module:
            if ddpm:
                return Upsample(width) if up else Downsample(width, pad_end=True)
            return residual(width, width, resample=Resample(up, taps), project=True)

        self.body = Body(
            channels,
            channels,
            base_channels,
            [multiplier * base_channels for multiplier in multipliers],
            blocks,
            block,
            down=partial(resampled, False),
            up=partial(resampled, True),
            attention=[image_size >> level in attention for level in range(len(multipliers))],
            last_only=True,
            norm=norm,
            residual_input=partial(BlurredDownsample, taps=taps) if residual_input else None,
        )

    def forward(
        self, x: Float[Tensor, " b c h w"], noise: Float[Tensor, " b"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, " b c h w"]:
        """Evaluate the network at images (B, C, H, W), noise levels or steps (B,), and labels (B,) or None for none."""
        features = self.noise(noise).to(x.dtype)
        if self.classes is not None:
            features = features + (self.classes.weight[-1] if labels is None else self.classes(labels))
        embedding = F.silu(self.dense_2(F.silu(self.dense_1(features))))
        return self.body(2.0 * x - 1.0 if self.unit_range else x, embedding)

"""A classifier of noisy images: the downsampling half of a U-Net, conditioned on the noise level, and a linear head.

Dhariwal & Nichol 2021 (arXiv 2105.05233, sec. 4) guide with such a network. For small images few pixels remain at the
lowest resolution, and the position of a stroke matters: all of them enter the head, instead of their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from .embeddings import Conditioning
from .layers import check_at_least, check_dropout, check_input, group_norm, zero
from .residual import Downsample, ResidualBlock, conv


class NoisyImageClassifier(nn.Module):
    """Logits f(x, c_noise) of the classes of images (B, C, H, W); all zero at initialisation.

    Attributes:
        options: The arguments from `base_channels` to `dropout`.

    Args:
        shape: (C, H, W) of an image.
        num_classes: The number of classes.
        base_channels: Channels at full resolution, even.
        multipliers: Channels of each level as multiples of `base_channels`; each further level halves the resolution.
        dropout: Dropout inside the residual blocks.
        c_noise_limit: Noise levels are clamped to +- this, the range of training.

    Raises:
        UserError: An argument is out of range.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        base_channels: int = 16,
        multipliers: Sequence[int] = (1, 2, 2),
        dropout: float = 0.1,
        c_noise_limit: float = 5.0,
    ) -> None:
        super().__init__()
        check_at_least(
            1, num_classes=num_classes, base_channels=base_channels, levels=len(multipliers), **_sides(shape)
        )
        if base_channels % 2:
            raise UserError(f"base_channels: {base_channels} does not work; accepted: even whole numbers from 2 on.")
        check_dropout(dropout)
        self.shape, self.num_classes, self.c_noise_limit = tuple(shape), num_classes, c_noise_limit
        self.options = {"base_channels": base_channels, "multipliers": tuple(multipliers), "dropout": dropout}
        self.in_channels, height, width = shape
        embedding = 4 * base_channels
        self.conditioning = Conditioning(base_channels, embedding)
        self.conv_in = conv(self.in_channels, base_channels)
        channels = base_channels
        self.downsamples, self.blocks = nn.ModuleList(), nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            self.downsamples.append(Downsample(channels) if level else nn.Identity())
            self.blocks.append(ResidualBlock(channels, multiplier * base_channels, embedding, dropout))
            channels = multiplier * base_channels
        scale = 2 ** (len(multipliers) - 1)
        self.norm_out = group_norm(channels)
        self.dense_out = zero(nn.Linear(channels * math.ceil(height / scale) * math.ceil(width / scale), num_classes))

    def forward(self, x: Float[Tensor, " b c *spatial"], c_noise: Float[Tensor, " b"]) -> Float[Tensor, " b classes"]:
        """The logits.

        Args:
            x: Noisy images (B, C, H, W) of about unit variance.
            c_noise: Noise levels (B,), about in [-5, 5].

        Raises:
            UserError: x is not (B, `in_channels`, H, W).
        """
        check_input(x, self.in_channels)
        embedding = self.conditioning(c_noise.clamp(-self.c_noise_limit, self.c_noise_limit), None)
        h = self.conv_in(x)
        for downsample, block in zip(self.downsamples, self.blocks, strict=True):
            h = block(downsample(h), embedding)
        return self.dense_out(F.silu(self.norm_out(h)).flatten(1))


def _sides(shape: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("channels", "height", "width"), shape, strict=True))

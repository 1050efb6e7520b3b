"""Convolutional encoder and decoder: images to vectors and back. They know nothing about likelihoods.

Levels of halving resolution with residual blocks (He et al. 2016, arXiv 1603.05027, pre-activation, with group
normalisation), and a dense layer between the coarsest feature map and the vector. Sizes not divisible by
2^(levels - 1) are padded internally by repeating the border, and the result is cropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from .layers import check_at_least, check_input, crop_like, glorot, group_norm, pad_to_multiple, zero
from .residual import Downsample, Upsample, conv

_SMALLEST = 8


class AutoencoderBlock(nn.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x)))))); only the shortcut at initialisation.

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the result; the shortcut is a 1x1 convolution if they differ, else the identity.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm_1 = group_norm(in_channels)
        self.conv_1 = conv(in_channels, out_channels)
        self.norm_2 = group_norm(out_channels)
        self.conv_2 = zero(conv(out_channels, out_channels))
        self.shortcut = conv(in_channels, out_channels, kernel=1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Float[Tensor, " b c_in h w"]) -> Float[Tensor, " b c_out h w"]:
        """Map (B, C_in, H, W) to (B, C_out, H, W)."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        return self.shortcut(x) + self.conv_2(F.silu(self.norm_2(h)))


class Encoder(nn.Module):
    """f(x) for images of one shape (C, H, W): a vector of `features` numbers.

    Args:
        shape: The shape (C, H, W) of an image, H and W at least 8.
        features: Length of the vector.
        base_channels: Channels at full resolution.
        multipliers: Channels of each level as multiples of `base_channels`, from full resolution down.
        blocks: Residual blocks per level.

    Raises:
        UserError: An argument is out of range, or the image is too small for that many levels.
    """

    def __init__(
        self,
        shape: Sequence[int],
        features: int,
        base_channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
    ) -> None:
        super().__init__()
        widths, height, width = _levels(shape, features, base_channels, multipliers, blocks)
        self.shape = tuple(shape)
        self.multiple = 2 ** (len(widths) - 1)
        layers: list[nn.Module] = [conv(shape[0], widths[0])]
        for level, channels in enumerate(widths):
            before = widths[max(level - 1, 0)]
            if level:
                layers.append(Downsample(before))
            layers += [AutoencoderBlock(before if i == 0 else channels, channels) for i in range(blocks)]
        self.body = nn.Sequential(*layers)
        self.norm = group_norm(widths[-1])
        self.dense = glorot(nn.Linear(widths[-1] * height * width, features))

    def forward(self, x: Float[Tensor, " b c h w"]) -> Float[Tensor, " b f"]:
        """Map images (B, C, H, W) to vectors (B, features).

        Raises:
            UserError: For images of another shape.
        """
        check_input(x, self.shape[0])
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(f"images: found shape {tuple(x.shape[1:])}; this encoder takes {self.shape}")
        h = self.body(pad_to_multiple(x, self.multiple))
        return self.dense(F.silu(self.norm(h)).flatten(1))


class Decoder(nn.Module):
    """f(z) for vectors of `features` numbers: maps (out_channels, H, W), small at initialisation.

    Args:
        shape: The shape (C, H, W) of an image, H and W at least 8; C is not used.
        features: Length of the vector.
        out_channels: Channels of the result, e.g. C times the parameters of an observation model.
        base_channels, multipliers, blocks: As `Encoder`, also from full resolution down.

    Raises:
        UserError: An argument is out of range, or the image is too small for that many levels.
    """

    def __init__(
        self,
        shape: Sequence[int],
        features: int,
        out_channels: int,
        base_channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
    ) -> None:
        super().__init__()
        check_at_least(1, out_channels=out_channels)
        widths, height, width = _levels(shape, features, base_channels, multipliers, blocks)
        self.size = (shape[1], shape[2])
        self.dense = glorot(nn.Linear(features, widths[-1] * height * width))
        self.unflatten = nn.Unflatten(1, (widths[-1], height, width))
        layers: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            channels = widths[level]
            before = widths[min(level + 1, len(widths) - 1)]
            if level < len(widths) - 1:
                layers.append(Upsample(before))
            layers += [AutoencoderBlock(before if i == 0 else channels, channels) for i in range(blocks)]
        self.body = nn.Sequential(*layers)
        self.norm = group_norm(widths[0])
        self.conv_out = conv(widths[0], out_channels)

    def forward(self, z: Float[Tensor, " b f"]) -> Float[Tensor, " b c_out h w"]:
        """Map vectors (B, features) to (B, out_channels, H, W)."""
        h = self.body(self.unflatten(self.dense(z)))
        h = self.conv_out(F.silu(self.norm(h)))
        return crop_like(h, h[..., : self.size[0], : self.size[1]])


def _levels(
    shape: Sequence[int], features: int, base_channels: int, multipliers: Sequence[int], blocks: int
) -> tuple[list[int], int, int]:
    """The channels of each level, and the height and width of the coarsest feature map."""
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < _SMALLEST:
        raise UserError(f"shape: found {tuple(shape)}; accepted: (C, H, W) with H and W at least {_SMALLEST}")
    check_at_least(1, features=features, base_channels=base_channels, blocks=blocks)
    if not multipliers or min(multipliers) < 1:
        raise UserError(f"multipliers: found {tuple(multipliers)}; accepted: one whole number from 1 on for each level")
    multiple = 2 ** (len(multipliers) - 1)
    if multiple > min(shape[1:]):
        raise UserError(
            f"multipliers: {len(multipliers)} levels are too many for images of {shape[1]} x {shape[2]}; "
            f"accepted: at most {int(math.log2(min(shape[1:]))) + 1}"
        )
    height, width = (math.ceil(size / multiple) for size in shape[1:])
    return [base_channels * multiplier for multiplier in multipliers], height, width

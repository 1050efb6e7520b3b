"""The U-Net of DDPM (Ho, Jain & Abbeel 2020, arXiv 2006.11239, appendix B).

Levels of halving resolution, with `blocks` residual blocks each in the downsampling path and one more in the upsampling
path, which also receives the skip connections; self-attention after each block at chosen resolutions and always in the
middle. The noise level and the class enter every residual block as a bias of its channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UserError
from .attention import FeatureMapAttention, entropy_invariant
from .body import AttendedBlock
from .embeddings import Conditioning
from .layers import (
    check_at_least,
    check_dropout,
    check_input,
    crop_like,
    from_patches,
    group_norm,
    pad_to_multiple,
    sides_of,
    to_patches,
    zero,
)
from .parts import Part, channels_of
from .residual import Downsample, ResidualBlock, Upsample, conv


class _Down(nn.Module):
    """One level of the downsampling path: halve the resolution (unless it is the first level), then the blocks."""

    def __init__(self, downsample: Downsample | None, blocks: list[AttendedBlock]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, h: Tensor, embedding: Tensor) -> list[Tensor]:
        maps = []
        if self.downsample is not None:
            maps.append(h := self.downsample(h))
        for block in self.blocks:
            maps.append(h := block(h, embedding))
        return maps


class _Up(nn.Module):
    """One level of the upsampling path: double the resolution (unless it is the last level), then the blocks, each with
    a skip connection."""

    def __init__(self, upsample: Upsample | None, blocks: list[AttendedBlock]) -> None:
        super().__init__()
        self.upsample = upsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, h: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        if self.upsample is not None:
            h = self.upsample(h)
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return h


class UNet(nn.Module):
    """f(x, c_noise, labels) of the shape of x, for images (B, C, H, W) of any size; zero at initialisation.

    With `patch_size` p, blocks of p x p pixels are the channels of a feature map p times smaller (space to depth), on
    which everything else happens: a p^2-th of the operations.

    With `out_channels` the result has as many channels. The defaults are DDPM's network for CIFAR-10 (35.7 million
    parameters). Heights and widths not divisible by p 2^(levels - 1) are padded internally by repeating the border, and
    the result is cropped.

    With one or three numbers in `image_size` it is a network of signals (B, C, L) or volumes (B, C, D, H, W): the
    convolutions have as many sides, and all that is said of heights and widths holds for all of them.

    Attributes:
        size_multiple: p 2^(levels - 1).

    Args:
        in_channels: Channels C of an image.
        base_channels: Channels at full resolution, even; the noise level has as many features, its embedding four times
            as many channels.
        multipliers: Channels of each level as multiples of `base_channels`, from full resolution down.
        blocks: Residual blocks per level of the downsampling path; the upsampling path has one more.
        attention: Heights of the feature maps with attention, for an image of height `image_size` (padded as above: 28
            with four levels counts as 32).
        dropout: Dropout inside the residual blocks.
        num_classes: Number of classes, 0 for none.
        image_size: Height of the training images, to which `attention` refers, or all sides (`attention` then refers
            to the longest one). It is no restriction: images of other sizes have attention at the same levels.
        head_channels: Width of an attention head; None: a single head as wide as the feature map, as in DDPM.
        fourier_features: Exponents n for which sin(2^n pi x) and cos(2^n pi x) are added to the input channels (VDM,
            Kingma et al. 2021, arXiv 2107.00630), which expose the fine detail that likelihood depends on: (6, 7) for
            256 grey levels on [-1, 1], (2, 3) for 17.
        noise_embedding: `"sinusoidal"` (DDPM) or `"fourier"` (score SDE); `"index"` or `"index-endpoint"` for networks
            made elsewhere that take the number of a level in place of c_noise.
        attention_scale: `"constant"`, or `"entropy_invariant"` for use at other sizes than `image_size` (`attention`).
        out_channels: Channels of the result; None: those of an image.
        patch_size: The p above.
        norm_groups, norm_eps: Groups of every normalisation, and its epsilon; None: `layers.group_norm` chooses.
        pad_end: As `residual.Downsample`.
        parts: Of a condition that is more than a class (`parts`), in place of `num_classes`.

    Raises:
        UserError: An argument is out of range, an entry of `attention` is not the height of any level, or
            `head_channels` does not divide the channels of a level with attention.
    """

    def __init__(
        self,
        in_channels: int,
        base_channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        num_classes: int = 0,
        image_size: int | Sequence[int] = 32,
        head_channels: int | None = None,
        fourier_features: Sequence[int] = (),
        noise_embedding: str = "sinusoidal",
        attention_scale: str = "constant",
        out_channels: int | None = None,
        patch_size: int = 1,
        norm_groups: int | None = None,
        norm_eps: float = 1e-5,
        pad_end: bool = False,
        parts: Sequence[Part] = (),
    ) -> None:
        super().__init__()
        sides = sides_of(image_size)
        check_at_least(1, in_channels=in_channels, blocks=blocks, image_size=min(sides), patch_size=patch_size)
        check_dropout(dropout)
        if base_channels < 2 or base_channels % 2:
            raise UserError(f"base_channels: {base_channels} does not work; accepted: even whole numbers from 2 on.")
        if not multipliers or min(multipliers) < 1:
            raise UserError(f"multipliers: {list(multipliers)} does not work; accepted: one whole number >= 1 a level.")
        if any(n < 0 for n in fourier_features):
            raise UserError(f"fourier_features: {list(fourier_features)} does not work; accepted: whole numbers >= 0.")
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.size_multiple = patch_size * 2 ** (len(multipliers) - 1)
        self.fourier_features = tuple(fourier_features)
        by_side = [_lengths(-(-side // patch_size), len(multipliers)) for side in sides]
        tokens = [math.prod(lengths) for lengths in zip(*by_side, strict=True)]
        self.dims = len(sides)
        has_attention = _levels_with_attention(attention, max(sides), max(by_side))
        follow = entropy_invariant(attention_scale)

        embedding = 4 * base_channels
        norm = partial(group_norm, groups=norm_groups, eps=norm_eps)
        self.conditioning = Conditioning(base_channels, embedding, num_classes, noise_embedding, parts)

        def block(channels: int, width: int, level: int, attention: bool) -> AttendedBlock:
            heads = _number_of_heads(width, head_channels) if attention else 0
            residual = ResidualBlock(channels, width, embedding, dropout, self.dims, norm)
            among = tokens[level] if follow else None
            return AttendedBlock(residual, FeatureMapAttention(width, heads, among, norm) if heads else None)

        widths = [multiplier * base_channels for multiplier in multipliers]
        channels = base_channels
        skips = [channels]
        patch = patch_size**self.dims
        seen = in_channels * (1 + 2 * len(self.fourier_features)) + channels_of(parts)
        self.conv_in = conv(patch * seen, channels, dims=self.dims)

        down = []
        for level, width in enumerate(widths):
            inputs = [channels] + [width] * (blocks - 1)
            skips += ([channels] if level > 0 else []) + [width] * blocks
            downsample = Downsample(channels, self.dims, pad_end) if level > 0 else None
            down.append(_Down(downsample, [block(c, width, level, has_attention[level]) for c in inputs]))
            channels = width
        self.down = nn.ModuleList(down)

        self.middle_1 = block(channels, channels, -1, attention=True)
        self.middle_2 = block(channels, channels, -1, attention=False)

        up = []
        for level, width in reversed(list(enumerate(widths))):
            inputs = [c + skips.pop() for c in [channels] + [width] * blocks]
            upsample = Upsample(channels, self.dims) if level < len(widths) - 1 else None
            up.append(_Up(upsample, [block(c, width, level, has_attention[level]) for c in inputs]))
            channels = width
        self.up = nn.ModuleList(up)

        self.norm_out = norm(channels)
        out_channels = in_channels if out_channels is None else out_channels
        self.conv_out = zero(conv(channels, patch * out_channels, dims=self.dims))

    def forward(
        self,
        x: Float[Tensor, " b c *spatial"],
        c_noise: Float[Tensor, " b"],
        labels: Int[Tensor, " b"] | Sequence[Tensor] | Float[Tensor, " b *c"] | None = None,
    ) -> Float[Tensor, " b c_out *spatial"]:
        """Evaluate the network.

        Args:
            x: Images (B, C, H, W), or data with the sides of `image_size`.
            c_noise: Noise levels (B,), about in [-5, 5].
            labels: Classes (B,), `num_classes` meaning "no label"; None: no label. With `parts` the tensor of each.

        Raises:
            UserError: x is not (B, `in_channels`, H, W), or labels are given to a network without classes.
        """
        check_input(x, self.in_channels, self.dims)
        seen, labels = self.conditioning.taken(x, labels)
        embedding = self.conditioning(c_noise, labels)
        h = pad_to_multiple(seen, self.size_multiple)
        if self.fourier_features:
            own, fields = h[:, : self.in_channels], h[:, self.in_channels :]
            h = torch.cat([_with_fourier_features(own, self.fourier_features), fields], dim=1)
        if self.patch_size > 1:
            h = to_patches(h, self.patch_size)
        skips = [self.conv_in(h)]
        for level in self.down:
            skips += level(skips[-1], embedding)
        h = self.middle_2(self.middle_1(skips[-1], embedding), embedding)
        for level in self.up:
            h = level(h, skips, embedding)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return crop_like(from_patches(h, self.patch_size) if self.patch_size > 1 else h, x)


def _lengths(side: int, levels: int) -> list[int]:
    """The length of a side of an image in the feature maps of each level, from full resolution down."""
    multiple = 2 ** (levels - 1)
    return [(math.ceil(side / multiple) * multiple) >> level for level in range(levels)]


def _levels_with_attention(attention: Sequence[int], image_size: int, heights: Sequence[int]) -> list[bool]:
    """Whether the feature maps of each level have one of the heights in `attention`."""
    for height in attention:
        if height not in heights:
            raise UserError(
                f"attention: no feature map has height {height}; for images of height {image_size}, in {len(heights)} "
                f"levels, the heights are {', '.join(map(str, heights))}; e.g. attention=[{min(heights)}]"
            )
    return [height in attention for height in heights]


def _number_of_heads(channels: int, head_channels: int | None) -> int:
    if head_channels is None:
        return 1
    if head_channels < 1 or channels % head_channels:
        raise UserError(
            f"head_channels: {head_channels} does not divide the {channels} channels of a level that has attention."
        )
    return channels // head_channels


def _with_fourier_features(x: Tensor, exponents: Sequence[int]) -> Tensor:
    """x and, as further channels, sin(2^n pi x) and cos(2^n pi x) for each n of `exponents`."""
    angles = [2**n * math.pi * x for n in exponents]
    return torch.cat([x, *(angle.sin() for angle in angles), *(angle.cos() for angle in angles)], dim=1)

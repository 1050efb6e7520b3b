"""The U that published networks share, DDPM++, NCSN++ and ADM, and how they change the resolution.

DDPM++ and NCSN++ are of Song et al. 2021 (arXiv 2011.13456, appendix H), ADM of Dhariwal & Nichol 2021 (2105.05233).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .layers import Norm, glorot, group_norm, zero
from .residual import ResidualBlock, conv


def _filter(taps: Sequence[int]) -> Tensor:
    line = torch.tensor(taps, dtype=torch.float32) / sum(taps)
    return torch.outer(line, line)


class Resample(nn.Module):
    """Halve or double height and width (even) by a separable filter; zeros are beyond the border.

    Args:
        up: Double; otherwise halve.
        taps: The filter, an even number of weights: (1, 1) averages four pixels, or repeats each of them; (1, 3, 3, 1)
            is smoother (Zhang 2019, arXiv 1904.11486; StyleGAN2; NCSN++).
    """

    kernel: Tensor

    def __init__(self, up: bool, taps: Sequence[int] = (1, 1)) -> None:
        super().__init__()
        self.up, self.padding = up, (len(taps) - 1) // 2
        self.register_buffer("kernel", _filter(taps) * (4.0 if up else 1.0), persistent=False)

    def forward(self, x: Float[Tensor, " b c h w"]) -> Float[Tensor, " b c h2 w2"]:
        """Map (B, C, H, W) to (B, C, 2H, 2W) or (B, C, H/2, W/2)."""
        weight = self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        resampled = F.conv_transpose2d if self.up else F.conv2d
        return resampled(x, weight, stride=2, padding=self.padding, groups=x.shape[1])


class AttendedBlock(nn.Module):
    """A residual block, and attention after it if there is any."""

    def __init__(self, residual: ResidualBlock, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.residual = residual
        self.attention = nn.Identity() if attention is None else attention

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.residual(x, embedding))


class BlurredDownsample(nn.Module):
    """Halve height and width (both even) by a filter and a 3x3 convolution of stride 2 (StyleGAN2; NCSN++)."""

    kernel: Tensor

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[int]) -> None:
        super().__init__()
        self.padding = 1 + (len(taps) - 1) // 2  # that of the filter and of the convolution
        self.register_buffer("kernel", _filter(taps), persistent=False)
        self.conv = glorot(nn.Conv2d(in_channels, out_channels, 3, stride=2))

    def forward(self, x: Float[Tensor, " b c h w"]) -> Float[Tensor, " b c_out h2 w2"]:
        """Map (B, C, H, W) to (B, C_out, H/2, W/2)."""
        weight = self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        return self.conv(F.conv2d(x, weight, padding=self.padding, groups=x.shape[1]))


class Body(nn.Module):
    """The U of published networks: blocks down, two in the middle, blocks up that also receive the skip connections.

    Args:
        in_channels, out_channels: Channels of x and of the result.
        first: Channels of the first convolution.
        widths: Channels of each level, from full resolution down.
        blocks: Blocks of a level on the way down; it has one more on the way up.
        block: (channels in, channels out, whether with attention) to a block.
        down, up: Channels to a block that halves or doubles height and width.
        attention: Whether the blocks of each level have attention; the first in the middle always has.
        last_only: On the way up only the last block of a level has it.
        norm: Makes the last normalisation.
        residual_input: (channels in, channels out) to a module that halves x: the halved x are added, sqrt(1/2) of the
            sum, to what each level begins with.
    """

    down: Any  # lists of lists of blocks
    up: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        first: int,
        widths: Sequence[int],
        blocks: int,
        block: Callable[[int, int, bool], nn.Module],
        down: Callable[[int], nn.Module],
        up: Callable[[int], nn.Module],
        attention: Sequence[bool],
        last_only: bool = False,
        norm: Norm = group_norm,
        residual_input: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.conv_in = conv(in_channels, first)
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        self.inputs = None if residual_input is None else nn.ModuleList()
        channels, skips, smaller = first, [first], in_channels
        for level, width in enumerate(widths):
            if level > 0:
                self.downsample.append(down(channels))
                skips.append(channels)
                if self.inputs is not None and residual_input is not None:
                    self.inputs.append(residual_input(smaller, channels))
                    smaller = channels
            inputs = [channels] + [width] * (blocks - 1)
            self.down.append(nn.ModuleList(block(c, width, attention[level]) for c in inputs))
            skips += [width] * blocks
            channels = width
        self.middle = nn.ModuleList([block(channels, channels, True), block(channels, channels, False)])
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                self.upsample.append(up(channels))
            inputs = [c + skips.pop() for c in [channels] + [width] * blocks]
            has = [attention[level] and (not last_only or i == blocks) for i in range(blocks + 1)]
            self.up.append(nn.ModuleList(block(c, width, a) for c, a in zip(inputs, has, strict=True)))
            channels = width
        self.norm_out = norm(channels)
        self.conv_out = zero(conv(channels, out_channels))

    def forward(self, x: Float[Tensor, " b c h w"], embedding: Float[Tensor, " b e"]) -> Float[Tensor, " b c_out h w"]:
        """Map x (B, C, H, W), of sides that 2^(levels - 1) divides, and the embedding (B, E) to (B, C_out, H, W)."""
        h = self.conv_in(x)
        skips = [h]
        for level, blocks in enumerate(self.down):
            if level > 0:
                h = self.downsample[level - 1](h, embedding)
                if self.inputs is not None:
                    h = x = math.sqrt(0.5) * (h + self.inputs[level - 1](x))
                skips.append(h)
            for block in blocks:
                skips.append(h := block(h, embedding))
        for block in self.middle:
            h = block(h, embedding)
        for level, blocks in enumerate(self.up):
            if level > 0:
                h = self.upsample[level - 1](h, embedding)
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.conv_out(F.silu(self.norm_out(h)))

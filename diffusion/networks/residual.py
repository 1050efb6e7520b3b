"""Convolutional parts of the U-Net of DDPM (arXiv 2006.11239, appendix B): residual block, down- and up-sampling."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .layers import CONVOLUTIONS, Norm, glorot, group_norm, zero


def conv(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, dims: int = 2
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """A convolution over `dims` sides that preserves them (halves them for stride 2), initialised by Glorot's rule."""
    return glorot(CONVOLUTIONS[dims](in_channels, out_channels, kernel, stride=stride, padding=kernel // 2))


class ResidualBlock(nn.Module):
    """shortcut(x) + conv(dropout(silu(norm(conv(silu(norm(x))) + dense(embedding))))); initially only the shortcut.

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the result; the shortcut is a 1x1 convolution if they differ, else the identity.
        embedding_channels: Width of the embedding, to which silu has been applied.
        dropout: Probability of dropping an activation in training.
        dims: Number of sides of x.
        norm: Makes its normalisations.
        resample: Changes the sides of x, and of silu(norm(x)) before its convolution (BigGAN; score SDE; ADM).
        project: The shortcut is a convolution whatever the channels.
        scale_shift: The embedding is not added: norm(h) has a factor 1 + a and a bias b, (a, b) = dense(embedding).
        scale: Multiplies the result; sqrt(1/2) keeps its variance (score SDE).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float,
        dims: int = 2,
        norm: Norm = group_norm,
        resample: nn.Module | None = None,
        project: bool = False,
        scale_shift: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.resample, self.scale_shift, self.scale = resample, scale_shift, scale
        self.norm_1 = norm(in_channels)
        self.conv_1 = conv(in_channels, out_channels, dims=dims)
        self.dense = glorot(nn.Linear(embedding_channels, (1 + scale_shift) * out_channels))
        self.norm_2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zero(conv(out_channels, out_channels, dims=dims))
        widens = project or in_channels != out_channels
        self.shortcut = conv(in_channels, out_channels, kernel=1, dims=dims) if widens else nn.Identity()

    def forward(
        self, x: Float[Tensor, " b c_in *sides"], embedding: Float[Tensor, " b e"]
    ) -> Float[Tensor, " b c_out *resampled"]:
        """Map x (B, C_in, *sides) and the embedding (B, E) to (B, C_out, *sides), or the sides `resample` makes."""
        h = F.silu(self.norm_1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h, condition = self.conv_1(h), self.dense(embedding)[(..., *(None,) * (x.ndim - 2))]
        if self.scale_shift:
            factor, bias = condition.chunk(2, dim=1)
            h = self.norm_2(h) * (1.0 + factor) + bias
        else:
            h = self.norm_2(h + condition)
        h = self.shortcut(x) + self.conv_2(self.dropout(F.silu(h)))
        return h if self.scale == 1.0 else self.scale * h


class Downsample(nn.Module):
    """Halve all sides (even) by a convolution of kernel 3 and stride 2.

    Args:
        channels: Channels of x and of the result.
        dims: Number of sides of x.
        pad_end: Whether the zeros around x are on the right and below, as in DDPM's own code; else left and above.
    """

    def __init__(self, channels: int, dims: int = 2, pad_end: bool = False) -> None:
        super().__init__()
        self.conv = conv(channels, channels, stride=2, dims=dims)
        self.at_end = (0, 1) * dims if pad_end else ()
        if pad_end:
            self.conv.padding = (0,) * dims

    def forward(self, x: Float[Tensor, " b c *sides"], _: Tensor | None = None) -> Float[Tensor, " b c *halves"]:
        """Map (B, C, H, W) to (B, C, H/2, W/2), or as many sides as there are; an embedding is not used."""
        return self.conv(F.pad(x, self.at_end) if self.at_end else x)


class Upsample(nn.Module):
    """Double all sides: each entry is repeated (a pixel becomes four), then a convolution of kernel 3."""

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        self.conv = conv(channels, channels, dims=dims)

    def forward(self, x: Float[Tensor, " b c *sides"], _: Tensor | None = None) -> Float[Tensor, " b c *doubles"]:
        """Map (B, C, H, W) to (B, C, 2H, 2W), or as many sides as there are; an embedding is not used."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

"""Convolutional parts of the U-Net of DDPM (arXiv 2006.11239, appendix B): residual block, down- and up-sampling."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .layers import Norm, glorot, group_norm, zero


def conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that preserves the size (halves it for stride 2), initialised by Glorot's rule."""
    return glorot(nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2))


class ResidualBlock(nn.Module):
    """shortcut(x) + conv(dropout(silu(norm(conv(silu(norm(x))) + dense(embedding))))); initially only the shortcut.

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the result; the shortcut is a 1x1 convolution if they differ, else the identity.
        embedding_channels: Width of the embedding, to which silu has been applied.
        dropout: Probability of dropping an activation in training.
        norm: Makes its normalisations.
    """

    def __init__(
        self, in_channels: int, out_channels: int, embedding_channels: int, dropout: float, norm: Norm = group_norm
    ) -> None:
        super().__init__()
        self.norm_1 = norm(in_channels)
        self.conv_1 = conv(in_channels, out_channels)
        self.dense = glorot(nn.Linear(embedding_channels, out_channels))
        self.norm_2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zero(conv(out_channels, out_channels))
        self.shortcut = conv(in_channels, out_channels, kernel=1) if in_channels != out_channels else nn.Identity()

    def forward(
        self, x: Float[Tensor, " b c_in h w"], embedding: Float[Tensor, " b e"]
    ) -> Float[Tensor, " b c_out h w"]:
        """Map x (B, C_in, H, W) and the embedding (B, E) to (B, C_out, H, W)."""
        h = self.conv_1(F.silu(self.norm_1(x))) + self.dense(embedding)[:, :, None, None]
        h = self.conv_2(self.dropout(F.silu(self.norm_2(h))))
        return self.shortcut(x) + h


class Downsample(nn.Module):
    """Halve height and width (both even) by a 3x3 convolution of stride 2.

    Args:
        channels: Channels of x and of the result.
        pad_end: Whether the zeros beside x are on the right and below, as in DDPM's own code; else left and above.
    """

    def __init__(self, channels: int, pad_end: bool = False) -> None:
        super().__init__()
        self.pad_end = pad_end
        self.conv = conv(channels, channels, stride=2)
        if pad_end:
            self.conv.padding = (0, 0)

    def forward(self, x: Float[Tensor, " b c h w"]) -> Float[Tensor, " b c h2 w2"]:
        """Map (B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad_end else x)


class Upsample(nn.Module):
    """Double height and width: each pixel becomes four, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Float[Tensor, " b c h w"]) -> Float[Tensor, " b c h2 w2"]:
        """Map (B, C, H, W) to (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

"""ADM (Dhariwal & Nichol 2021, arXiv 2105.05233, sec. 3) and its predecessor (Nichol & Dhariwal 2021, 2102.09672).

DDPM's U-Net in which the embedding scales and shifts the normalised features, with several heads of attention at
several resolutions. ADM's residual blocks change the resolution themselves; its predecessor's convolutions do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor, nn

from .attention import FeatureMapAttention
from .body import AttendedBlock, Body, Resample
from .embeddings import Conditioning, SinusoidalEmbedding
from .layers import group_norm
from .residual import Downsample, ResidualBlock, Upsample


class ADM(nn.Module):
    """f(x, step, labels) for images (B, C, H, W) whose sides 2^(levels - 1) divides.

    Args:
        channels: Channels C of an image.
        image_size: Height of an image, to which `attention` refers.
        base_channels: Number of features of the step; the embedding has four times as many channels.
        multipliers: Channels of each level as multiples of `base_channels`, from full resolution down.
        blocks: Residual blocks of a level on the way down; one more on the way up.
        attention: Heights of the feature maps with attention.
        heads: Number of attention heads.
        head_channels: Width of a head; it takes the place of `heads`.
        scale_shift: As `ResidualBlock`; otherwise the embedding is added, as in DDPM.
        resampling_blocks: Whether residual blocks change the resolution.
        norm_groups: Groups of every normalisation; None: `layers.group_norm` chooses.
        out_channels: Channels of the result, twice C where it has a variance too; None: C.
        embedding_multiplier: Width of the embedding, in `base_channels`.
        step_scale: Multiplies the step: 1000 / T where T steps are numbered up to 1,000 (improved-diffusion).
        num_classes: Number of classes, 0 for none; one more row of their embedding, the last, stands for none.
        dropout: Dropout inside the residual blocks.
    """

    def __init__(
        self,
        channels: int,
        image_size: int = 64,
        base_channels: int = 192,
        multipliers: Sequence[int | float] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (32, 16, 8),
        heads: int = 4,
        head_channels: int | None = 64,
        scale_shift: bool = True,
        resampling_blocks: bool = True,
        norm_groups: int | None = None,
        out_channels: int | None = None,
        embedding_multiplier: int = 4,
        step_scale: float = 1.0,
        num_classes: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.resampling_blocks = resampling_blocks
        width = embedding_multiplier * base_channels
        self.conditioning = Conditioning(base_channels, width, num_classes)
        self.conditioning.noise = SinusoidalEmbedding(base_channels, step_scale)
        norm = partial(group_norm, groups=norm_groups)
        residual = partial(ResidualBlock, embedding_channels=width, dropout=dropout, norm=norm, scale_shift=scale_shift)

        def block(inputs: int, outputs: int, attended: bool) -> AttendedBlock:
            several = heads if head_channels is None else outputs // head_channels
            attention = FeatureMapAttention(outputs, several, norm=norm) if attended else None
            return AttendedBlock(residual(inputs, outputs), attention)

        def resampled(up: bool, width: int) -> nn.Module:
            if resampling_blocks:
                return residual(width, width, resample=Resample(up))
            return Upsample(width) if up else Downsample(width)

        widths = [int(multiplier * base_channels) for multiplier in multipliers]
        self.body = Body(
            channels,
            channels if out_channels is None else out_channels,
            widths[0],
            widths,
            blocks,
            block,
            down=partial(resampled, False),
            up=partial(resampled, True),
            attention=[image_size >> level in attention for level in range(len(widths))],
            norm=norm,
        )

    def forward(
        self, x: Float[Tensor, " b c h w"], step: Float[Tensor, " b"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, " b c_out h w"]:
        """Evaluate the network at images (B, C, H, W), steps (B,), and labels (B,) or None for none."""
        return self.body(x, self.conditioning(step, labels).to(x.dtype))

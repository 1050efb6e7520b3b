"""Parts shared by the networks: initialisation, normalisation, padding, checks of arguments.

Initialisation follows DDPM (Ho et al. 2020, arXiv 2006.11239): weights uniform with variance 2 / (fan in + fan out)
(Glorot & Bengio 2010), biases zero; the last layer of a residual branch or of the network is initialised at zero, so
each block is initially the identity and the network the zero function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)
# Makes the normalisation of so many channels.
Norm = Callable[[int], nn.GroupNorm]


def glorot(layer: Layer) -> Layer:
    """Initialise the weight of `layer` by Glorot's uniform rule and its bias at zero, and return it."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def zero(layer: Layer) -> Layer:
    """Set weight and bias of `layer` to zero and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int, groups: int | None = None, eps: float = 1e-5) -> nn.GroupNorm:
    """Group normalisation (Wu & He 2018, arXiv 1803.08494) with at most 32 groups of at least 4 channels.

    From 128 channels on this is DDPM's 32 groups. Fewer channels get fewer groups: statistics over a group of one or
    two channels would erase the contrast information of a narrow network. Counts not divisible by 4 get the largest
    number of groups that divides them. A network made elsewhere may say its number of `groups`, and `eps`.
    """
    if groups is not None:
        return nn.GroupNorm(groups, channels, eps)
    most = min(32, max(1, channels // 4))
    groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels, eps)


def pad_to_multiple(x: Float[Tensor, " b c h w"], multiple: int) -> Float[Tensor, " b c h2 w2"]:
    """Repeat the border of `x` until height and width are multiples of `multiple`; `x` itself if they already are.

    The border is repeated rather than mirrored because mirroring cannot add more rows than the image has.
    """
    height, width = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    if height == 0 and width == 0:
        return x
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), mode="replicate")


def crop_like(y: Float[Tensor, " b c h2 w2"], x: Float[Tensor, " b c_x h w"]) -> Float[Tensor, " b c h w"]:
    """Undo `pad_to_multiple`: the part of `y` at the position of `x`."""
    top, left = (y.shape[-2] - x.shape[-2]) // 2, (y.shape[-1] - x.shape[-1]) // 2
    return y[..., top : top + x.shape[-2], left : left + x.shape[-1]]


def sides_of(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of images, from two numbers or one for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def check_at_least(minimum: int, **values: int) -> None:
    """Raise a `UserError` that names the first of `values` that is smaller than `minimum`."""
    for name, value in values.items():
        if value < minimum:
            raise UserError(f"{name}: {value} is too small; accepted: whole numbers from {minimum} on.")


def check_dropout(dropout: float) -> None:
    """Raise a `UserError` unless `dropout` is a probability below 1."""
    if not 0 <= dropout < 1:
        raise UserError(f"dropout: {dropout} is not a probability below 1; accepted: 0 <= dropout < 1.")


def check_input(x: Float[Tensor, " b c *spatial"], channels: int, spatial: str) -> None:
    """Raise a `UserError` unless `x` has the shape (B, `channels`, *spatial) for axes named by letters in `spatial`."""
    if x.dim() != 2 + len(spatial) or x.shape[1] != channels:
        axes = ", ".join(["B", str(channels), *spatial])
        raise UserError(f"network input: the shape {tuple(x.shape)} does not fit; this network takes ({axes}).")

"""Parts shared by the networks: initialisation, normalisation, padding, checks of arguments.

Initialisation follows DDPM (Ho et al. 2020, arXiv 2006.11239): weights uniform with variance 2 / (fan in + fan out)
(Glorot & Bengio 2010), biases zero; the last layer of a residual branch or of the network is initialised at zero, so
each block is initially the identity and the network the zero function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError

# The convolution, and the letters of the sides, of data with so many sides: signals, images, volumes.
CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIDES = {1: "L", 2: "HW", 3: "DHW"}

Layer = TypeVar("Layer", nn.Linear, nn.Conv1d | nn.Conv2d | nn.Conv3d)
# Makes the normalisation of so many channels.
Norm = Callable[[int], nn.GroupNorm]


def glorot(layer: Layer) -> Layer:
    """Initialise the weight of `layer` by Glorot's uniform rule and its bias at zero, and return it."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def channels_last(networks: Iterable[nn.Module]) -> None:
    """Have convolutions of images see their input with its channels last, once they are compiled for a CPU.

    Weights stay as they are stored, so that a run can go on where this does not pay.
    """
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(_channels_last)


def _channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    (x,) = inputs
    return (x.contiguous(memory_format=torch.channels_last),) if is_compiled_for_cpu(x) else None


def zero(layer: Layer) -> Layer:
    """Set weight and bias of `layer` to zero and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def is_compiled_for_cpu(x: Tensor) -> bool:
    """Whether what is done with a tensor is being compiled, to run on a CPU, and not being exported."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting() and x.device.type == "cpu"


class GroupNorm(nn.GroupNorm):
    """torch's, and the same from sums per channel for images in bf16 with channels last in what is compiled for a CPU.

    The compiler's own is slow there (docs/benchmarks.md): its loops look for the group of each channel, which keeps
    them from working on several channels at a time.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Of data (B, C, *sides)."""
        if not (input.dtype == torch.bfloat16 and input.ndim == 4 and is_compiled_for_cpu(input)):
            return super().forward(input)
        if input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):  # of the products
            x, size = input.float(), self.num_channels // self.num_groups
            same = torch.eye(self.num_groups, device=x.device).repeat_interleave(size, 0).repeat_interleave(size, 1)
            same = same / (size * x.shape[2] * x.shape[3])  # averages the channels of a group
            mean, square = x.sum((2, 3)) @ same, x.square().sum((2, 3)) @ same
            factor = torch.rsqrt((square - mean.square()).clamp_min(0.0) + self.eps) * self.weight
            bias = self.bias - mean * factor
            return (x * factor[:, :, None, None] + bias[:, :, None, None]).to(input.dtype)


def group_norm(channels: int, groups: int | None = None, eps: float = 1e-5) -> nn.GroupNorm:
    """Group normalisation (Wu & He 2018, arXiv 1803.08494) with at most 32 groups of at least 4 channels.

    From 128 channels on this is DDPM's 32 groups. Fewer channels get fewer groups: statistics over a group of one or
    two channels would erase the contrast information of a narrow network. Counts not divisible by 4 get the largest
    number of groups that divides them. A network made elsewhere may say its number of `groups`, and `eps`.
    """
    if groups is not None:
        return GroupNorm(groups, channels, eps)
    most = min(32, max(1, channels // 4))
    groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
    return GroupNorm(groups, channels, eps)


def pad_to_multiple(x: Float[Tensor, " b c *sides"], multiple: int) -> Float[Tensor, " b c *padded"]:
    """Repeat the border of `x` until all sides are multiples of `multiple`; `x` itself if they already are.

    The border is repeated rather than mirrored because mirroring cannot add more rows than the image has.
    """
    missing = [-side % multiple for side in x.shape[2:]]
    if not any(missing):
        return x
    ends = [end for more in reversed(missing) for end in (more // 2, more - more // 2)]  # the last side comes first
    return F.pad(x, ends, mode="replicate")


def crop_like(y: Float[Tensor, " b c *padded"], x: Float[Tensor, " b c_x *sides"]) -> Float[Tensor, " b c *sides"]:
    """Undo `pad_to_multiple`: the part of `y` at the position of `x`."""
    firsts = [(padded - side) // 2 for padded, side in zip(y.shape[2:], x.shape[2:], strict=True)]
    return y[(..., *(slice(first, first + side) for first, side in zip(firsts, x.shape[2:], strict=True)))]


def to_patches(x: Float[Tensor, " b c *sides"], p: int) -> Float[Tensor, " b c_patch *fewer"]:
    """Make patches of p entries along each side the channels of a map p times smaller (space to depth)."""
    batch, channels, *sides = x.shape
    dims, fewer = len(sides), [side // p for side in sides]
    split = x.reshape(batch, channels, *(n for side in fewer for n in (side, p)))
    apart = split.permute(0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2))
    return apart.reshape(batch, channels * p**dims, *fewer)


def from_patches(x: Float[Tensor, " b c_patch *fewer"], p: int) -> Float[Tensor, " b c *sides"]:
    """The inverse of `to_patches`."""
    batch, channels, *fewer = x.shape
    dims = len(fewer)
    apart = x.reshape(batch, channels // p**dims, *(p,) * dims, *fewer)
    joined = apart.permute(0, 1, *(axis for i in range(dims) for axis in (2 + dims + i, 2 + i)))
    return joined.reshape(batch, channels // p**dims, *(p * side for side in fewer))


def sides_of(size: int | Sequence[int]) -> tuple[int, ...]:
    """The sides of one to three dimensions of data; one number: height and width of an image.

    Raises:
        UserError: For more or fewer sides.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) not in CONVOLUTIONS:
        raise UserError(f"image_size: found {sides}; accepted: 1 to 3 sides, of signals, images or volumes")
    return sides


def check_at_least(minimum: int, **values: int) -> None:
    """Raise a `UserError` that names the first of `values` that is smaller than `minimum`."""
    for name, value in values.items():
        if value < minimum:
            raise UserError(f"{name}: {value} is too small; accepted: whole numbers from {minimum} on.")


def check_dropout(dropout: float) -> None:
    """Raise a `UserError` unless `dropout` is a probability below 1."""
    if not 0 <= dropout < 1:
        raise UserError(f"dropout: {dropout} is not a probability below 1; accepted: 0 <= dropout < 1.")


def check_input(x: Float[Tensor, " b c *spatial"], channels: int, dims: int = 2) -> None:
    """Raise a `UserError` unless `x` has the shape (B, `channels`, *sides) with `dims` sides."""
    if x.dim() != 2 + dims or x.shape[1] != channels:
        axes = ", ".join(["B", str(channels), *SIDES.get(dims, "")])
        raise UserError(f"network input: the shape {tuple(x.shape)} does not fit; this network takes ({axes}).")

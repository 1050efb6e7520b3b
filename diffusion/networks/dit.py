"""The Diffusion Transformer with adaLN-Zero (Peebles & Xie 2023, arXiv 2212.09748).

The image is divided into patches, each a token. Blocks of attention and perceptron follow; the noise level and the
class set shift, scale and gate of each branch (adaptive layer norm). The gates are initialised at zero, so each block
is initially the identity. Positions are sines and cosines of row and column. Signals and volumes have as many
coordinates as sides.

An image of a size other than in training is the same picture in more or fewer patches: its rows and columns are
stretched over the range seen in training (as in the position embeddings of Dosovitskiy et al. 2021, arXiv 2010.11929,
sec. 3.2), so a patch is encoded by its relative position in the picture, not by its index.

What later transformers changed are options, off by default: positions as rotations and norms of queries and keys
(`attention`), norms by the root mean square (Zhang & Sennrich 2019, arXiv 1910.07467), and SwiGLU (Shazeer 2020,
arXiv 2002.05202). Large patches want a network that predicts x, which is simple where noise is not, and a narrow
embedding of the patch, `bottleneck` (Li & He 2025, arXiv 2511.13720).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config import NetworkConfig
from ..errors import UserError, choose
from .attention import TokenAttention, entropy_invariant, rotary_angles
from .embeddings import Conditioning, sinusoids
from .layers import (
    check_at_least,
    check_input,
    crop_like,
    from_patches,
    glorot,
    pad_to_multiple,
    sides_of,
    to_patches,
    zero,
)
from .parts import Part, channels_of

# Features of the noise level before the perceptron, as in the paper's code, for any width.
NOISE_FEATURES = 256


def stretched(count: int, trained: int, like: Tensor) -> Float[Tensor, " {count}"]:
    """Positions of `count` patches that cover what `trained` patches at 0, 1, 2, ... cover: (i + 1/2) trained / count -
    1/2, and i where the counts are equal; dtype and device are those of `like`.
    """
    positions = torch.arange(count, dtype=like.dtype, device=like.device)
    return positions if count == trained else (positions + 0.5) * (trained / count) - 0.5


def grid_positions(coordinates: Sequence[Tensor], width: int) -> Float[Tensor, " n {width}"]:
    """Embed the positions of a grid, row by row, as (n, width), n the product of the lengths of `coordinates`: an equal
    and even number of features for each side (of an image half for the row, half for the column); what is left is 0.
    """
    features = 2 * (width // (2 * len(coordinates)))
    mesh = torch.meshgrid(*coordinates, indexing="ij")
    waves = torch.cat([sinusoids(places.flatten(), features) for places in mesh], dim=-1)
    return F.pad(waves, (0, width - waves.shape[-1]))


def modulate(
    x: Float[Tensor, " b n c"],
    shift: Float[Tensor, " b 1 c"],
    scale: Float[Tensor, " b 1 c"],
    eps: float = 1e-6,
    norm: str = "layer",
) -> Tensor:
    """norm(x) (1 + scale) + shift, with a layer norm or a division by the root mean square, without parameters."""
    normalise = F.layer_norm if norm == "layer" else F.rms_norm
    return normalise(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """x + gate_1 attention(modulate(x)), then x + gate_2 perceptron(modulate(x)) (fig. 3, "adaLN-Zero").

    Args:
        width: Width of a token.
        heads: Number of attention heads.
        hidden: Width of the hidden layer of the perceptron.
        train_tokens: As `TokenAttention`.
        norm_eps: The epsilon of the perceptron's normalisation.
        qk_norm: As `TokenAttention`.
        norm: `"layer"` or `"rms"`.
        activation: Of the perceptron: `"gelu"`, or `"swiglu"`, silu(a) b with two maps a and b to 2/3 of `hidden`, so
            that there are as many weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        train_tokens: int | None = None,
        norm_eps: float = 1e-6,
        qk_norm: bool = False,
        norm: str = "layer",
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.norm_eps, self.norm, self.activation = norm_eps, norm, activation
        self.attention = TokenAttention(width, heads, train_tokens, qk_norm)
        maps = 2 if activation == "swiglu" else 1
        hidden = hidden if maps == 1 else max(1, round(2 * hidden / 3))
        self.dense_1 = glorot(nn.Linear(width, maps * hidden))
        for weight in self.dense_1.weight.detach().chunk(maps) if maps > 1 else ():
            nn.init.xavier_uniform_(weight)  # each map with its own fans
        self.dense_2 = glorot(nn.Linear(hidden, width))
        self.modulation = zero(nn.Linear(width, 6 * width))

    def forward(
        self,
        x: Float[Tensor, " b n c"],
        embedding: Float[Tensor, " b c"],
        angles: Float[Tensor, " n pairs"] | None = None,
    ) -> Float[Tensor, " b n c"]:
        """Map tokens (B, N, C) given the embedding (B, C), to which silu has been applied, and perhaps their angles."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        x = x + gate_1 * self.attention(modulate(x, shift_1, scale_1, norm=self.norm), angles)
        hidden = self.dense_1(modulate(x, shift_2, scale_2, self.norm_eps, self.norm))
        if self.activation == "swiglu":
            gate, value = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden, approximate="tanh")
        return x + gate_2 * self.dense_2(hidden)


class DiT(nn.Module):
    """f(x, c_noise, labels) of the shape of x, for images (B, C, H, W) of any size; zero at initialisation.

    With `out_channels` the result has as many channels. The defaults are DiT-S/2 (33 million parameters). Heights and
    widths not divisible by `patch_size` are padded internally by repeating the border, and the result is cropped.

    With one or three numbers in `image_size` it is a network of signals (B, C, L) or volumes (B, C, D, H, W).

    Attributes:
        size_multiple: The size of a patch.

    Args:
        in_channels: Channels C of an image.
        patch_size: The sides of a patch.
        width: Width of a token, a multiple of 4 (row and column, sine and cosine).
        depth: Number of blocks.
        heads: Number of attention heads; must divide `width`.
        mlp_ratio: Hidden width of the perceptrons as a multiple of `width`.
        num_classes: Number of classes, 0 for none.
        noise_embedding: `"sinusoidal"` (the paper's) or `"fourier"` (score SDE); `"index"` or `"index-endpoint"` for
            networks made elsewhere.
        attention_scale: `"constant"`, or `"entropy_invariant"` for use at other sizes than `image_size` (`attention`).
        image_size: Size of the data of training: all sides, or one number for the height and width of an image.
        out_channels: Channels of the result; None: those of an image.
        norm_eps, qk_norm, norm, activation: As `DiTBlock`.
        positions: `"absolute"`, added to the tokens, or `"rotary"`, of which attention sees differences alone.
        bottleneck: Width of a linear map that a patch passes before it becomes a token; None: it passes none.
        parts: Of a condition that is more than a class (`parts`), in place of `num_classes`.

    Raises:
        UserError: An argument is out of range, or `heads` does not divide `width`.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: int = 4,
        num_classes: int = 0,
        noise_embedding: str = "sinusoidal",
        attention_scale: str = "constant",
        image_size: int | Sequence[int] = 32,
        out_channels: int | None = None,
        norm_eps: float = 1e-6,
        positions: str = "absolute",
        qk_norm: bool = False,
        norm: str = "layer",
        activation: str = "gelu",
        bottleneck: int | None = None,
        parts: Sequence[Part] = (),
    ) -> None:
        super().__init__()
        sides = sides_of(image_size)
        for name, word in (("positions", positions), ("norm", norm), ("activation", activation)):
            choose(name, word, NetworkConfig.words(name))
        self.is_rotary = positions == "rotary"
        check_at_least(1, in_channels=in_channels, patch_size=patch_size, depth=depth, mlp_ratio=mlp_ratio)
        check_at_least(1, image_size=min(sides))
        if width < 4 or width % 4:
            raise UserError(f"width: {width} does not work; accepted: multiples of 4.")
        self.in_channels = in_channels
        self.patch_size = self.size_multiple = patch_size
        self.width = width
        self.conditioning = Conditioning(NOISE_FEATURES, width, num_classes, noise_embedding, parts)
        for name, parameter in self.conditioning.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
        self.patch = patch_size ** len(sides)
        numbers = (in_channels + channels_of(parts)) * self.patch
        self.bottleneck = None
        if bottleneck is not None:
            check_at_least(1, bottleneck=bottleneck)
            self.bottleneck = glorot(nn.Linear(numbers, bottleneck, bias=False))
        self.dense_in = glorot(nn.Linear(numbers if bottleneck is None else bottleneck, width))
        self.train_sides = tuple(math.ceil(side / patch_size) for side in sides)
        train_tokens = math.prod(self.train_sides) if entropy_invariant(attention_scale) else None
        self.norm, self.head_width = norm, width // max(1, heads)
        if self.is_rotary:
            rotary_angles([torch.zeros(1)] * len(sides), self.head_width)  # heads too narrow are refused here
        options = (train_tokens, norm_eps, qk_norm, norm, activation)
        self.blocks = nn.ModuleList(DiTBlock(width, heads, mlp_ratio * width, *options) for _ in range(depth))
        self.modulation_out = zero(nn.Linear(width, 2 * width))
        self.dense_out = zero(nn.Linear(width, (in_channels if out_channels is None else out_channels) * self.patch))

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
        check_input(x, self.in_channels, len(self.train_sides))
        seen, labels = self.conditioning.taken(x, labels)
        embedding = self.conditioning(c_noise, labels)
        patches = to_patches(pad_to_multiple(seen, self.patch_size), self.patch_size)
        sides = patches.shape[2:]
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = self.dense_in(tokens if self.bottleneck is None else self.bottleneck(tokens))
        coordinates = [stretched(side, trained, x) for side, trained in zip(sides, self.train_sides, strict=True)]
        angles = None
        if self.is_rotary:
            angles = rotary_angles(coordinates, self.head_width)
        else:
            tokens = tokens + grid_positions(coordinates, self.width)
        for block in self.blocks:
            tokens = block(tokens, embedding, angles)
        shift, scale = self.modulation_out(embedding)[:, None].chunk(2, dim=-1)
        tokens = self.dense_out(modulate(tokens, shift, scale, norm=self.norm))
        return crop_like(from_patches(tokens.transpose(1, 2).unflatten(2, sides), self.patch_size), x)

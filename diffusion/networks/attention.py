"""Multi-head self-attention: softmax(Q K^T / sqrt(d)) V for each head, of width d (Vaswani et al. 2017, eq. 1).

Over more tokens than in training, the softmax spreads. With the scale log n / (log n_train sqrt(d)) instead of
1 / sqrt(d) it spreads less (Chiang & Cholak 2022, arXiv 2202.12172, sec. 5.3), for use at image sizes other than that
of training; at n = n_train nothing changes. docs/control.md has measurements.

Positions can be rotations of queries and keys (Su et al. 2021, arXiv 2104.09864): pairs of their features are turned by
angles proportional to the position of the token,

    (q_1, q_2)  ->  (q_1 cos w p - q_2 sin w p,  q_1 sin w p + q_2 cos w p),

so a product of a query at p and a key at p' depends on p - p' alone: R(w p)^T R(w p') = R(w (p' - p)). In several
dimensions each side has its own pairs (axial; Heo et al. 2024, arXiv 2403.13298, sec. 3.2), with frequencies
w_i = 100^(-i / n), which suit grids of tens of patches.

It uses `scaled_dot_product_attention`, whose fused kernels can be differentiated once. For second derivatives select
the plain kernel around the call: `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..config import NetworkConfig
from ..errors import UserError, choose
from .layers import Norm, check_at_least, glorot, group_norm, is_compiled_for_cpu, zero

NORM_EPS = 1e-6  # of the norm of queries and keys
BASE = 100.0  # of rotary frequencies
FEW = 64  # tokens: from 196 on the two ways take as long


def entropy_invariant(name: str) -> bool:
    """Whether the scale with this name is the entropy-invariant one.

    Raises:
        UserError: For a name of neither.
    """
    return choose("attention_scale", name, NetworkConfig.words("attention_scale")) == "entropy_invariant"


def rotary_angles(coordinates: Sequence[Tensor], width: int) -> Float[Tensor, " n pairs"]:
    """The angle of each pair of features of a head of this width, at each place of a grid, row by row: (n, pairs).

    Each side has width // (2 sides) pairs; the features that are left over are not rotated.

    Args:
        coordinates: The positions along each side.
        width: Of a head.

    Raises:
        UserError: For a head too narrow for a pair a side.
    """
    pairs = width // (2 * len(coordinates))
    if pairs < 1:
        raise UserError(
            f"heads: heads of {width} features are too narrow for rotary positions along {len(coordinates)} sides; "
            f"accepted: {2 * len(coordinates)} features or more"
        )
    exponents = torch.arange(pairs, dtype=coordinates[0].dtype, device=coordinates[0].device) / pairs
    mesh = torch.meshgrid(*coordinates, indexing="ij")
    return torch.cat([places.reshape(-1, 1) * BASE**-exponents for places in mesh], dim=1)


def rotated(x: Float[Tensor, " b h n d"], angle: Float[Tensor, " n pairs"]) -> Float[Tensor, " b h n d"]:
    """Queries or keys with their pairs rotated: feature i of the first `pairs` goes with feature i of the next."""
    pairs = angle.shape[1]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1)


def _few(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """softmax(Q K^T scale) V in parts, which the compiler makes one of: a CPU's fused kernel is slow backwards."""
    products = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    return torch.softmax(factor * products, dim=-1).to(v.dtype) @ v


class TokenAttention(nn.Module):
    """Self-attention among tokens (B, N, C), independent of their order.

    Args:
        channels: Width C of a token.
        heads: Number of heads; must divide `channels`.
        train_tokens: Number of tokens n_train for which the entropy-invariant scale is 1 / sqrt(d); None: the scale is
            constant.
        qk_norm: Whether queries and keys are divided by their root mean square and scaled by learned factors, so that
            logits cannot grow with the weights (Henry et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv
            2302.05442, sec. 2).

    Raises:
        UserError: `heads` is not a divisor of `channels`.
    """

    def __init__(self, channels: int, heads: int, train_tokens: int | None = None, qk_norm: bool = False) -> None:
        super().__init__()
        check_at_least(1, heads=heads)
        if channels % heads:
            raise UserError(
                f"heads: {heads} does not divide the {channels} channels; accepted: divisors of {channels}."
            )
        self.heads = heads
        self.train_tokens = train_tokens
        self.qkv = glorot(nn.Linear(channels, 3 * channels))
        # Three square maps in one product: each is initialised with its own fans.
        for weight in self.qkv.weight.detach().chunk(3):
            nn.init.xavier_uniform_(weight)
        self.out = glorot(nn.Linear(channels, channels))
        self.norm_q = nn.RMSNorm(channels // heads, NORM_EPS) if qk_norm else None
        self.norm_k = nn.RMSNorm(channels // heads, NORM_EPS) if qk_norm else None

    def forward(
        self, tokens: Float[Tensor, " b n c"], angles: Float[Tensor, " n pairs"] | None = None
    ) -> Float[Tensor, " b n c"]:
        """Mix tokens (B, N, C); with `angles` (`rotary_angles`), products depend on differences of positions."""
        q, k, v = rearrange(self.qkv(tokens), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads).unbind(0)
        if self.norm_q is not None and self.norm_k is not None:
            exact = self.norm_q.weight.dtype  # whatever the products are in
            q, k = self.norm_q(q.to(exact)).to(v.dtype), self.norm_k(k.to(exact)).to(v.dtype)
        if angles is not None:
            q, k = rotated(q, angles), rotated(k, angles)
        few = q.requires_grad and q.shape[2] <= FEW and is_compiled_for_cpu(q)
        attend = _few if few else F.scaled_dot_product_attention
        mixed = attend(q, k, v, scale=self.scale(tokens.shape[1], q.shape[-1]))
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))

    def scale(self, tokens: int, width: int) -> float | None:
        """The factor of the products of queries and keys of this width among this many tokens; None: 1 / sqrt(d)."""
        if self.train_tokens is None:
            return None
        return math.log(max(tokens, 2)) / math.log(max(self.train_tokens, 2)) / math.sqrt(width)


class FeatureMapAttention(nn.Module):
    """x + attention(group norm(x)) among the pixels of a feature map (B, C, *sides); initially the identity (DDPM).

    Args:
        channels: Number of channels C.
        heads: Number of heads; must divide `channels`.
        train_tokens: As `TokenAttention`.
        norm: Makes its normalisation.
        scale: Multiplies the result, as in `ResidualBlock`.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        train_tokens: int | None = None,
        norm: Norm = group_norm,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.norm = norm(channels)
        self.attention = TokenAttention(channels, heads, train_tokens)
        zero(self.attention.out)

    def forward(self, x: Float[Tensor, " b c *sides"]) -> Float[Tensor, " b c *sides"]:
        """Mix the pixels of x (B, C, *sides)."""
        tokens = self.attention(self.norm(x).flatten(2).transpose(1, 2))
        y = x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])
        return y if self.scale == 1.0 else self.scale * y

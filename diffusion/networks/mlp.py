"""A residual perceptron for vectors: the network of the two-dimensional toy problems."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UserError
from .embeddings import Conditioning
from .layers import check_at_least, check_dropout, check_input, glorot, zero
from .parts import Part, channels_of


class MLPBlock(nn.Module):
    """h + dense(dropout(silu(dense(layer norm(h)) + dense(embedding)))); the identity at initialisation.

    Args:
        width: Width of h and of the embedding, to which silu has been applied.
        dropout: Probability of dropping an activation in training.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dense_1 = glorot(nn.Linear(width, width))
        self.dense_embedding = glorot(nn.Linear(width, width))
        self.dropout = nn.Dropout(dropout)
        self.dense_2 = zero(nn.Linear(width, width))

    def forward(self, h: Float[Tensor, " b w"], embedding: Float[Tensor, " b w"]) -> Float[Tensor, " b w"]:
        """Map h (B, width) given the embedding (B, width)."""
        return h + self.dense_2(self.dropout(F.silu(self.dense_1(self.norm(h)) + self.dense_embedding(embedding))))


class MLP(nn.Module):
    """f(x, c_noise, labels) of the shape of x, for vectors (B, d); zero at initialisation.

    Attributes:
        size_multiple: None, since vectors have no height and width.

    Args:
        in_channels: Length d of a vector.
        width: Width of the hidden layers, even; the noise level has as many features.
        depth: Number of residual blocks.
        dropout: Dropout inside the residual blocks.
        num_classes: Number of classes, 0 for none.
        noise_embedding: `"sinusoidal"` (DDPM) or `"fourier"` (score SDE).
        parts: Of a condition that is more than a class (`parts`), in place of `num_classes`.

    Raises:
        UserError: An argument is out of range, or a part is a field.
    """

    def __init__(
        self,
        in_channels: int,
        width: int = 256,
        depth: int = 4,
        dropout: float = 0.0,
        num_classes: int = 0,
        noise_embedding: str = "sinusoidal",
        parts: Sequence[Part] = (),
    ) -> None:
        super().__init__()
        check_at_least(1, in_channels=in_channels, depth=depth)
        check_dropout(dropout)
        if width < 2 or width % 2:
            raise UserError(f"width: {width} does not work; accepted: even whole numbers from 2 on.")
        if channels_of(parts):
            raise UserError("condition: a field is joined to data with sides; vectors take classes and vectors")
        self.in_channels = in_channels
        self.size_multiple = None
        self.conditioning = Conditioning(width, width, num_classes, noise_embedding, parts)
        self.dense_in = glorot(nn.Linear(in_channels, width))
        self.blocks = nn.ModuleList(MLPBlock(width, dropout) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.dense_out = zero(nn.Linear(width, in_channels))

    def forward(
        self,
        x: Float[Tensor, " b c *spatial"],
        c_noise: Float[Tensor, " b"],
        labels: Int[Tensor, " b"] | Sequence[Tensor] | Float[Tensor, " b *c"] | None = None,
    ) -> Float[Tensor, " b c *spatial"]:
        """Evaluate the network.

        Args:
            x: Vectors (B, d).
            c_noise: Noise levels (B,), about in [-5, 5].
            labels: Classes (B,), `num_classes` meaning "no label"; None: no label. With `parts` the tensor of each.

        Raises:
            UserError: x is not (B, `in_channels`), or labels are given to a network without classes.
        """
        check_input(x, self.in_channels, 0)
        _, labels = self.conditioning.taken(x, labels)
        embedding = self.conditioning(c_noise, labels)
        h = self.dense_in(x)
        for block in self.blocks:
            h = block(h, embedding)
        return self.dense_out(F.silu(self.norm_out(h)))

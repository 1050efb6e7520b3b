"""The divergence of a field f: exactly, or by Hutchinson's estimator. One forward pass either way.

    exact        div f = sum_i d f_i / d x_i          D vector-Jacobian products
    Hutchinson   div f = E[v . J v], v = +-1 signs    one vector-Jacobian product a probe (Hutchinson 1990)

With signs the variance is 2 sum_{i != j} S_ij^2 for the symmetric part S of the Jacobian J: the diagonal adds nothing.
A probe that is kept fixed along a path makes the integral of the divergence one unbiased draw (FFJORD, Grathwohl et al.
2019, arXiv 1810.01367, sec. 3.1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Field = Callable[[Tensor], Tensor]

# Numbers in flight while a Jacobian is taken: small batches take many of its rows together, large ones one by one.
_IN_FLIGHT = 2**16


def _forward(field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = field(x)
        # a field that does not depend on x has a graph, too
        return x, value if value.requires_grad else value + 0.0 * x


def exact_divergence(
    field: Field, x: Float[Tensor, " b *dims"]
) -> tuple[Float[Tensor, " b *dims"], Float[Tensor, " b"]]:
    """f(x) and its divergence, for any shape of datum: D vector-Jacobian products of one forward pass.

    Args:
        field: Maps (B, *shape) to (B, *shape), each row by itself.
        x: Where, shape (B, *shape).

    Returns:
        The value, shape (B, *shape), and the divergence, shape (B,); neither carries a graph.
    """
    x, value = _forward(field, x)
    dims = value.numel() // len(x)
    chunk = min(dims, max(1, _IN_FLIGHT // x.numel()))
    divergence = torch.zeros(len(x), dtype=value.dtype, device=x.device)
    for rows in torch.arange(dims, device=x.device).split(chunk):
        basis = torch.zeros(len(rows), dims, dtype=value.dtype, device=x.device)
        basis[torch.arange(len(rows)), rows] = 1.0
        vectors = basis[:, None].expand(-1, len(x), -1).reshape(len(rows), *x.shape)
        batched = len(rows) > 1
        (products,) = torch.autograd.grad(
            value, x, vectors if batched else vectors[0], retain_graph=True, is_grads_batched=batched
        )
        products = products.reshape(len(rows), len(x), dims)
        divergence += products.gather(2, rows[:, None, None].expand(-1, len(x), 1)).sum((0, 2))
    return value.detach(), divergence


def hutchinson_divergence(
    field: Field, x: Float[Tensor, " b *dims"], probes: Float[Tensor, " b p *dims"]
) -> tuple[Float[Tensor, " b *dims"], Float[Tensor, " b p"]]:
    """f(x) and P unbiased estimates of its divergence, one vector-Jacobian product each.

    Args:
        field: Maps (B, *shape) to (B, *shape), each row by itself.
        x: Where, shape (B, *shape).
        probes: Vectors with E[v v^T] = I, e.g. signs, shape (B, P, *shape).

    Returns:
        The value, shape (B, *shape), and v^T J v of each probe, shape (B, P); neither carries a graph.
    """
    x, value = _forward(field, x)
    draws = []
    for i in range(probes.shape[1]):
        last = i == probes.shape[1] - 1
        (product,) = torch.autograd.grad(value, x, probes[:, i], retain_graph=not last)
        draws.append((product * probes[:, i]).reshape(len(x), -1).sum(1))
    return value.detach(), torch.stack(draws, dim=1)

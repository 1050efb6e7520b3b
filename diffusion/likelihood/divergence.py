"""The divergence of a field f: exactly, or by Hutchinson's estimator. One forward pass either way.

    exact        div f = sum_i d f_i / d x_i          D vector-Jacobian products
    Hutchinson   div f = E[v . J v], v = +-1 signs    one vector-Jacobian product a probe (Hutchinson 1990)

With signs the variance is 2 sum_{i != j} S_ij^2 for the symmetric part S of the Jacobian J: the diagonal adds nothing.
A probe that is kept fixed along a path makes the integral of the divergence one unbiased draw (FFJORD, arXiv 1810.01367,
sec. 3.1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Field = Callable[[Tensor], Tensor]


def _forward(field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return x, field(x)


def _products(value: Tensor, x: Tensor, vector: Tensor, last: bool) -> Tensor:
    """v^T J of each row, zero where the field does not depend on x."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (product,) = torch.autograd.grad(value, x, vector, retain_graph=not last, materialize_grads=True)
    return product


def exact_divergence(
    field: Field, x: Float[Tensor, " b *dims"]
) -> tuple[Float[Tensor, " b *dims"], Float[Tensor, " b"]]:
    """f(x) and its divergence, D vector-Jacobian products for any shape of datum.

    A plain loop: it asks nothing of the network's operations (vmap does) and holds one gradient at a time.

    Args:
        field: Maps (B, *shape) to (B, *shape), each row by itself.
        x: Where, shape (B, *shape).

    Returns:
        The value, shape (B, *shape), and the divergence, shape (B,); neither carries a graph.
    """
    x, value = _forward(field, x)
    dims = x[0].numel()
    divergence = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    basis = torch.zeros_like(x).flatten(1)
    for i in range(dims):
        basis[:, i] = 1.0
        divergence += _products(value, x, basis.reshape(x.shape), i == dims - 1).flatten(1)[:, i]
        basis[:, i] = 0.0
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
    count = probes.shape[1]
    draws = [
        (_products(value, x, probes[:, i], i == count - 1) * probes[:, i]).flatten(1).sum(1) for i in range(count)
    ]
    return value.detach(), torch.stack(draws, dim=1)

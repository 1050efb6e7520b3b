"""E[x | x_t, y] for an observation y = A x + s n, from a denoiser that computes E[x | x_t].

Tweedie's formula, applied to p(x_t | y) = p(x_t) p(y | x_t) / p(y), adds one gradient to x_hat:

    E[x | x_t, y] = x_hat + (sigma^2 / alpha) grad log p(y | x_t)

The unknown term is p(y | x_t) = integral of N(y; A x, s^2 I) p(x | x_t) dx. With p(x | x_t) approximated by a Gaussian
with the correct mean x_hat and some covariance V, it is N(y; A x_hat, s^2 I + A V A^T), and with V held fixed this
gives

    (sigma^2 / alpha) J^T A^T (s^2 I + A V A^T)^-1 (y - A x_hat),        J = d x_hat / d x_t.

The methods differ only in V. Since (sigma^2 / alpha) J is Cov[x | x_t] itself, the factor in front is the Kalman gain.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UserError
from ...numerics.broadcasting import pad_dims_like
from ...numerics.placement import Copies
from ..denoiser import DenoiserWrapper
from ..given import outside_inference_mode, real_number, tensor_of

# v -> (sigma^2 / alpha) J^T v: the covariance of x given x_t, as a function of a vector (B, *shape).
Covariance = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Observation:
    """y = A x + noise_std n, n ~ N(0, I).

    Args:
        operator: A.
        y: The observation, (B, *observed), or (1, *observed) for all samples of a batch.
        noise_std: The standard deviation s of its noise; 0 or more.

    Raises:
        UserError: For a negative deviation, or values of y that are not finite.
    """

    operator: Any
    y: Any
    noise_std: Any = 0.0
    _y: Copies = field(init=False, repr=False)

    def __post_init__(self):
        if not callable(self.operator) or not callable(getattr(self.operator, "adjoint", None)):
            raise UserError(f"operator: found {str(self.operator)[:60]}; needs a linear one, with its adjoint")
        object.__setattr__(self, "y", tensor_of("y", self.y))
        if not self.y.is_floating_point() or self.y.ndim == 0:
            raise UserError(f"y: found {self.y.dtype} of shape {tuple(self.y.shape)}; needs floats, (B, *observed)")
        object.__setattr__(self, "noise_std", real_number("noise_std", self.noise_std))
        if self.noise_std < 0.0:
            raise UserError(f"noise_std: found {self.noise_std}; must be 0 or more")
        if not bool(torch.isfinite(self.y).all()):
            raise UserError("y: has values that are not finite")
        object.__setattr__(self, "_y", Copies(self.y))

    def residual(self, x: Float[Tensor, " b *dims"]) -> Float[Tensor, " b *observed"]:
        """y - A x.

        Raises:
            UserError: For a y whose shape is not that of A x.
        """
        seen = self.operator(x)
        if len(seen) != len(x):
            raise UserError(f"operator: returned {tuple(seen.shape)} for {len(x)} data; must return one row each")
        if self.y.shape[1:] != seen.shape[1:] or len(self.y) not in (1, len(seen)):
            found, needed = tuple(self.y.shape), tuple(seen.shape)
            raise UserError(f"y: found shape {found}; these data are observed as {needed}, or (1, ...) for all alike")
        return self._y.on(seen.device).to(seen.dtype) - seen


class Posterior(DenoiserWrapper):
    """A denoiser given an observation; abstract, subclasses define (s^2 I + A V A^T)^-1.

    It costs one evaluation and at least one vector-Jacobian product, which takes the time of about two evaluations.

    Args:
        denoiser: E[x | x_t], differentiable in x_t.
        observation: The observation of x.
    """

    def __init__(self, denoiser: Any, observation: Any):
        super().__init__(denoiser)
        if not isinstance(observation, Observation):
            raise UserError(f"observation: found a {type(observation).__name__}; needs Observation(operator, y)")
        self.observation = observation

    @abstractmethod
    def solve(self, residual: Tensor, covariance: Covariance, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(s^2 I + A V A^T)^-1 residual.

        Args:
            residual: y - A x_hat, shape (B, *observed).
            covariance: v -> Cov[x | x_t] v, by a vector-Jacobian product.
            alpha: alpha_t, shape (), then on the CPU, or (B,).
            sigma: sigma_t, likewise.
        """

    @outside_inference_mode
    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Any = None
    ) -> Float[Tensor, " b *dims"]:
        """Return E[x | x_t, y], approximately. Arguments as `Denoiser.forward`."""
        alpha, sigma = (value.to(x_t.dtype) for value in self.schedule(t))
        scale = pad_dims_like(sigma.square() / alpha, x_t)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            x_hat = self.denoiser(x, t, cond)

        def covariance(v: Tensor) -> Tensor:
            return scale * torch.autograd.grad(x_hat, x, v, retain_graph=True)[0]

        mean = x_hat.detach()
        weighted = self.solve(self.observation.residual(mean), covariance, alpha, sigma)
        back = self.observation.operator.adjoint(weighted)
        if back.shape != x_t.shape:
            raise UserError(f"operator: its adjoint returned {tuple(back.shape)}; the data are {tuple(x_t.shape)}")
        return mean + covariance(back)

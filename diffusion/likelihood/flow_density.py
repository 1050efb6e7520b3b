"""The log-density of a batch along the probability-flow ODE (Song et al. 2021, arXiv 2011.13456, sec. 4.3, app. D.2).

In the variables of `samplers.ode.flow`, z = cos(phi) x + sin(phi) eps and dz/dphi = F(z, phi), along which the
log-density changes by -div F. With the angles phi_0 of t_min and phi_1 of t_max:

    log p(x) = D log cos(phi_0)              x enters as z = alpha x / r = cos(phi_0) x
             + integral of div F dphi        from phi_0 to phi_1
             + log p_1(z_1)                  z_1 in closed form, from the standard normal at phi = pi/2

p is thus the density of the model's data including the noise of standard deviation exp(-lambda / 2) at t_min.
The gap from phi_1 to pi/2, where alpha reaches 0, is one DDIM step, which is exact if x_hat is constant along it:
eps_hat = sin(phi_1) z + cos(phi_1) F is the standard normal, and log det = D log(sin(phi_1) + cos(phi_1) div F / D)
up to O(cos(phi_1)^2) times the variance of the eigenvalues of F's Jacobian: exactly, if F scales all dimensions equally
(for a network that is not a posterior mean, possibly by a factor far from 1). Without this step the mean of the data
would be missing from p_1, a per-image error of order cos(phi_1). With a fitted start, the flow ends in that, at phi_1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoisers.denoiser import Denoiser
from ..denoisers.given import field_types
from ..errors import SolverError, UserError, check_at_least_one, choose
from ..numerics.runge_kutta import solve_each
from ..samplers.ode.flow import ProbabilityFlow, angle
from ..samplers.ode.probability_flow import ADAPTIVE, FIXED
from ..schedules import Schedule, time_grid
from ..schedules.fitted_start import check_start
from ..schedules.schedule import log_snr_ends


@dataclass(frozen=True)
class Between(Schedule):
    """The `path` between the times `start` (nearest to the data) and `end`."""

    path: Schedule
    start: float
    end: float

    @property
    def t_min(self) -> float:
        return self.start

    @property
    def t_max(self) -> float:
        return self.end

    def log_alpha(self, t: Tensor) -> Tensor:
        return self.path.log_alpha(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return self.path.log_snr(t)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.path.inverse_log_snr(log_snr)

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return self.path.d_log_alpha(t)

    def d_log_snr(self, t: Tensor) -> Tensor:
        return self.path.d_log_snr(t)


def between(path: Schedule, log_snr_min: float | None, log_snr_max: float | None) -> Schedule:
    """The path truncated at two log-SNRs; None leaves an end unchanged, and no end is moved outwards.

    Raises:
        UserError: If nothing of the path remains.
    """
    low, high = log_snr_ends(path)
    new_low = low if log_snr_min is None else max(low, log_snr_min)
    new_high = high if log_snr_max is None else min(high, log_snr_max)
    if not new_low < new_high:
        raise UserError(
            f"log_snr_min, log_snr_max: found {new_low:.2f} and {new_high:.2f}; accepted: the first below the second, "
            f"on a path from {low:.2f} to {high:.2f}"
        )
    if (new_low, new_high) == (low, high):
        return path

    def time(log_snr: float) -> float:
        return float(path.inverse_log_snr(torch.tensor(log_snr, dtype=torch.float64)))

    return Between(
        path, path.t_min if new_high == high else time(new_high), path.t_max if new_low == low else time(new_low)
    )


Field = Callable[[Tensor], Tensor]

# Numbers in flight while a Jacobian is computed: small batches process many rows at once, large ones one by one.
_IN_FLIGHT = 2**16


def _forward(field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = field(x)
        # gives a field that does not depend on x a graph as well
        return x, value if value.requires_grad else value + 0.0 * x


def exact_divergence(
    field: Field, x: Float[Tensor, " b *dims"]
) -> tuple[Float[Tensor, " b *dims"], Float[Tensor, " b"]]:
    """f(x) and its divergence, for samples of any shape: D vector-Jacobian products of one forward pass.

    Args:
        field: Maps (B, *shape) to (B, *shape), each row by itself.
        x: Where, shape (B, *shape).

    Returns:
        The value, shape (B, *shape), and the divergence, shape (B,), both without a graph.
    """
    x, value = _forward(field, x)
    dims = value.numel() // len(x)
    chunk = min(dims, max(1, _IN_FLIGHT // x.numel()))
    divergence = torch.zeros(len(x), dtype=value.dtype, device=x.device)
    for rows in torch.arange(dims, device=x.device).split(chunk):
        basis = torch.zeros(len(rows), dims, dtype=value.dtype, device=x.device)
        basis[torch.arange(len(rows), device=x.device), rows] = 1.0
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
        The value, shape (B, *shape), and v^T J v of each probe, shape (B, P), both without a graph.
    """
    x, value = _forward(field, x)
    draws = []
    for i in range(probes.shape[1]):
        last = i == probes.shape[1] - 1
        (product,) = torch.autograd.grad(value, x, probes[:, i], retain_graph=not last)
        draws.append((product * probes[:, i]).reshape(len(x), -1).sum(1))
    return value.detach(), torch.stack(draws, dim=1)


TRACES = ("exact", "hutchinson")
_FIRST_STEP = 0.01
_LEAST_GROWTH = 1e-9  # of eps_hat with z at the noise end, 1 of a network that knows the noise


@dataclass(frozen=True, kw_only=True)
class Solve:
    """How the ODE is solved and its divergence computed; part of a figure's protocol.

    Args:
        trace: `exact` (D vector-Jacobian products per evaluation) or `hutchinson` (one per probe).
        probes: The probes per image, for `hutchinson`.
        method: An adaptive method of torchdiffeq (dopri5, dopri8, bosh3, adaptive_heun), or one with fixed steps
            (euler, midpoint, heun2, heun3, rk4).
        tolerance: For adaptive methods: the allowed error per step, in z and in nats/dim.
        steps: For fixed-step methods: the number of steps.
        grid: For fixed-step methods: their spacing (`schedules.time_grid`).
        max_evaluations: The number of evaluations after which a solve fails.
        log_snr_min, log_snr_max: The ends of the path, inside the denoiser's own ends, which are used for None.
        fitted_start: The law at the noise end, a `schedules.FittedStart`; None: the standard normal at phi = pi/2.
    """

    trace: str = "exact"
    probes: int = 1
    method: str = "dopri5"
    tolerance: float = 5e-6
    steps: int = 100
    grid: str = "log-snr"
    max_evaluations: int = 5000
    log_snr_min: float | None = None
    log_snr_max: float | None = None
    fitted_start: Any = None

    def __post_init__(self):
        choose("trace", self.trace, TRACES)
        choose("method", self.method, (*ADAPTIVE, *FIXED))
        if not 0 < self.tolerance < 1:
            raise UserError(f"tolerance: found {self.tolerance}; must be between 0 and 1, e.g. 1e-5")
        check_at_least_one(probes=self.probes, max_evaluations=self.max_evaluations)

    def protocol(self) -> dict[str, object]:
        """The settings that this solve uses."""
        unused = {"steps", "grid"} if self.method in ADAPTIVE else {"tolerance"}
        unused |= {"probes"} if self.trace == "exact" else set()
        unused |= {"log_snr_min", "log_snr_max"}  # `path` has the times
        unused |= {"fitted_start"}
        found: dict[str, object] = {n: getattr(self, n) for n in field_types(Solve) if n not in unused}
        return found if self.fitted_start is None else {**found, "fitted_start": repr(self.fitted_start)}

    def path(self, denoiser: Denoiser) -> Schedule:
        """The denoiser's path between the ends of this solve."""
        return between(denoiser.schedule, self.log_snr_min, self.log_snr_max)


def flow_log_density(
    denoiser: Denoiser,
    x: Float[Tensor, " b *dims"],
    solve: Solve,
    probes: Float[Tensor, " b p *dims"] | None = None,
    cond: Any = None,
) -> Float[Tensor, " b p"]:
    """log p(x) in nats of one batch, shape (B, P): one column per probe, or a single one for the exact trace.

    Raises:
        SolverError: If the solver fails, or the flow does not end in noise.
    """
    x = x.double()
    shape, dims = x.shape, x[0].numel()
    schedule = solve.path(denoiser)
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    adaptive = solve.method in ADAPTIVE
    # `time_grid` ends in 0: all but its last entry are the times from t_max to t_min
    times = ends if adaptive else time_grid(schedule, solve.steps + 1, solve.grid, math.inf, dims)[:-1].flip(0)
    phi = angle(schedule, times)
    flow = ProbabilityFlow(denoiser, cond, solve.max_evaluations)

    def drift(phi: Tensor, z: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        def field(z: Tensor) -> Tensor:
            return flow(phi, z, rows)

        if probes is None:
            value, divergence = exact_divergence(field, z)
            return value, divergence[:, None]
        return hutchinson_divergence(field, z, probes if rows is None else probes[rows])

    def augmented(phi: Tensor, state: Tensor, rows: Tensor | None = None) -> Tensor:
        value, divergence = drift(phi, state[:, :dims].reshape(-1, *shape[1:]), rows)
        return torch.cat((value.reshape(len(state), -1), divergence / dims), dim=1)

    def norm(error: Tensor) -> Tensor:
        """A sample's error: rms of z, or that of the log-density (the mean over probes) in nats/dim."""
        return torch.maximum(error[:, :dims].square().mean(1).sqrt(), error[:, dims:].mean(1).abs())

    columns = 1 if probes is None else probes.shape[1]
    z = torch.cos(phi[0]) * x
    state = torch.cat((z.reshape(len(x), -1), torch.zeros(len(x), columns, dtype=z.dtype, device=z.device)), dim=1)
    if adaptive:
        first, last = phi.tolist()
        state = solve_each(augmented, state, first, last, solve.method, solve.tolerance, norm, _FIRST_STEP)
    else:
        from torchdiffeq import odeint  # imported where needed: it loads much of scipy, 0.4 s

        path = odeint(augmented, state, phi.to(x.device), method=solve.method)
        assert isinstance(path, Tensor)
        state = path[-1]
    z, log_det = state[:, :dims].reshape(shape), state[:, dims:] * dims
    if solve.fitted_start is not None:  # of x_t = r z
        r = float(torch.hypot(*schedule(ends[1])))
        start = check_start(solve.fitted_start, tuple(shape[1:]))
        log_start = start.log_prob(schedule, ends[1], r * z).to(z.device) + dims * math.log(r)
        return log_start[:, None] + log_det + dims * torch.log(torch.cos(phi[0]))
    value, divergence = drift(phi[-1].to(x.device), z)
    eps = (torch.sin(phi[-1]) * z + torch.cos(phi[-1]) * value).reshape(len(x), -1)
    growth = torch.sin(phi[-1]) + torch.cos(phi[-1]) * divergence / dims
    if not bool((growth > _LEAST_GROWTH).all()):  # of eps_hat = 0 it is the rounding of 0
        raise SolverError(
            "ode: at the noise end of the path the network's estimate of the noise does not grow with x_t, so that the "
            "flow does not end in noise and has no density: look at what the network predicts, or train it"
        )
    log_det = log_det + dims * torch.log(growth)
    log_prior = -0.5 * (eps.square().sum(1) + dims * math.log(2.0 * math.pi))
    return log_prior[:, None] + log_det + dims * torch.log(torch.cos(phi[0]))

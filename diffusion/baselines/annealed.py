"""Annealed importance sampling (AIS) for latent-variable models: a bound that needs no proposal.

Neal 2001 (Statistics and Computing 11), for decoder-based models Wu et al. 2017 (arXiv 1611.04273): along the
geometric path from the prior to the posterior, f_beta(z) = p(z) p(x | z)^beta for 0 = beta_0 < ... < beta_T = 1, a
chain starts at z_0 ~ p(z), moves by transitions that leave f_beta invariant, and collects

    log w = sum_t (beta_t - beta_{t-1}) log p(x | z_{t-1}),        E w = p(x),        E log mean w <= log p(x).

Run backwards from an exact posterior sample, the same chain gives E 1/w = 1 / p(x), hence an upper bound. Data that
the model itself generated come with such a sample, the z that they were made from: forwards and backwards together
bracket log p(x) (bidirectional Monte Carlo, Grosse et al. 2015, arXiv 1511.02543).

Transitions are Hamiltonian Monte Carlo (Neal 2011, arXiv 1206.1901): L leapfrog steps, then accepted or refused. Their
step size follows the temperature: for each image a pilot run of a few chains adapts it towards 90 % of acceptances,
and the measuring chains, with noise of their own, take it as it is: their transitions leave f_beta invariant exactly.
Each transition takes a random share, 1/2 to 1, of that size, lest trajectories close upon themselves (in 8 dimensions
both together cut the bound's gap to a sixth of that at 65 % and fixed sizes). beta is spaced by a sigmoid (Wu et al.
2017, sec. 4.1), closest at both ends.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import check_at_least_one
from ..likelihood.batching import Progress, evaluation_mode
from ..likelihood.estimate import Estimate
from ..likelihood.importance_weights import LogMeanExp
from ..numerics import random
from .latent_variable import LatentVariableModel, in_batches

TARGET_ACCEPTANCE = 0.9
_PILOT_CHAINS, _FIRST_STEP_SIZE, _GAIN = 4, 0.5, 0.2
_SIGMOID = 4.0
# Keys of the runs' noise; the step of a draw is added to them.
_PILOT, _FORWARD, _BACKWARD, _SIMULATE = 0, 1 << 28, 2 << 28, 3 << 28


@dataclass(frozen=True, eq=False)
class Bracket:
    """Bounds on log p(x) of data that the model generated, in nats.

    Args:
        x: The data, shape (B, *dims).
        z: The latents that they were made from: exact posterior samples, shape (B, d).
        lower: The forward bound, shape (B,), float64; below log p(x) in expectation.
        upper: The backward bound; above log p(x) in expectation.
        lower_error, upper_error: Their errors (`importance_weights`); nan for one chain.
        seconds: Wall time.
    """

    x: Tensor = field(repr=False)
    z: Tensor = field(repr=False)
    lower: Float[Tensor, " b"] = field(repr=False)
    upper: Float[Tensor, " b"] = field(repr=False)
    lower_error: Float[Tensor, " b"] = field(repr=False)
    upper_error: Float[Tensor, " b"] = field(repr=False)
    seconds: float

    @property
    def gap(self) -> float:
        """The mean of upper - lower: in expectation at least the error of either bound."""
        return float((self.upper - self.lower).mean())


def annealed_importance_sampling(
    model: LatentVariableModel,
    x: Tensor,
    steps: int = 500,
    chains: int = 8,
    leapfrog: int = 10,
    seed: int = 0,
    batch_size: int | None = None,
    indices: Int[Tensor, " n"] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """The AIS bound on log p(x).

    Args:
        model: The model; its proposal plays no part.
        x: The data, shape (B, *dims).
        steps: The number T of steps from the prior to the posterior.
        chains: Chains an image, over which the weights are averaged.
        leapfrog: Leapfrog steps a transition, one gradient of the decoder each.
        seed: The seed; a row depends on (seed, index) only.
        batch_size: The images taken together (with all their chains).
        indices: Keys of the images' noise, shape (B,); 0 .. B - 1 by default.
        progress: Called with (images done, images in all).

    Returns:
        Kind `lower bound`; `nfe` counts the decoder's evaluations, all but one a transition with a gradient;
        terms: the diagnostics of the chains' weights (`importance_weights.LogMeanExp`).

    Raises:
        UserError: For no image, a setting below one, or as many indices as there are not images.
    """
    check_at_least_one(steps=steps, chains=chains, leapfrog=leapfrog)

    def evaluate(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        run = _Run(model, x, rows, steps, leapfrog, seed)
        total = run.forward(chains, run.pilot())
        return total.value, total.std_error, total.diagnostics

    protocol = {
        "estimator": "annealed importance sampling",
        "transitions": f"HMC, steps by {_PILOT_CHAINS} pilot chains at acceptance {TARGET_ACCEPTANCE}, times U(1/2, 1)",
        "steps": steps,
        "chains": chains,
        "leapfrog": leapfrog,
        "seed": seed,
    }
    nfe = (chains + _PILOT_CHAINS) * (1 + (steps - 1) * leapfrog)
    return in_batches(model, x, evaluate, protocol, nfe, chains, batch_size, indices, progress)


def bidirectional(
    model: LatentVariableModel, n: int, steps: int = 500, chains: int = 8, leapfrog: int = 10, seed: int = 0
) -> Bracket:
    """Bounds from both sides on the log-likelihoods of `n` data that the model generates.

    Args:
        model: The model.
        n: The number of data, taken together.
        steps, chains, leapfrog, seed: As `annealed_importance_sampling`.

    Raises:
        UserError: For a setting below one.
    """
    check_at_least_one(n=n, steps=steps, chains=chains, leapfrog=leapfrog)
    start, rows = time.perf_counter(), torch.arange(n)
    device = next(iter([*model.parameters(), *model.buffers()])).device
    with torch.no_grad(), evaluation_mode(model):
        shape = (model.latent_dim,)
        z = random.normal(seed, rows, _SIMULATE, shape, random.STREAM_EVALUATE, model.dtype, device)
        x = model.draw_given(z, seed, rows)
        run = _Run(model, x, rows, steps, leapfrog, seed)
        step_sizes = run.pilot()
        lower, inverse = run.forward(chains, step_sizes), run.backward(chains, step_sizes, z)
    return Bracket(
        x=x,
        z=z,
        lower=lower.value,
        upper=-inverse.value,
        lower_error=lower.std_error,
        upper_error=inverse.std_error,
        seconds=time.perf_counter() - start,
    )


def temperatures(steps: int) -> Float[Tensor, " t"]:
    """beta_0 = 0 .. beta_T = 1, shape (T + 1,): sigmoid(4 (2 t / T - 1)), moved and scaled to end at 0 and 1."""
    s = torch.sigmoid(_SIGMOID * torch.linspace(-1.0, 1.0, steps + 1, dtype=torch.float64))
    return (s - s[0]) / (s[-1] - s[0])


class _State:
    """Latents z (R, d) with log p(x | z) (R,) and its gradient in z."""

    def __init__(self, model: LatentVariableModel, x: Tensor, z: Tensor) -> None:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_prob = model.log_prob_given(x, z)
            (self.gradient,) = torch.autograd.grad(log_prob.sum(), z)
        self.z, self.log_prob = z.detach(), log_prob.detach().double()

    def keep_where(self, keep: Tensor, other: _State) -> None:
        """Go back to `other` but for the rows of `keep`."""
        self.z = torch.where(keep[:, None], self.z, other.z)
        self.gradient = torch.where(keep[:, None], self.gradient, other.gradient)
        self.log_prob = torch.where(keep, self.log_prob, other.log_prob)


class _Run:
    """The chains of one batch of data."""

    def __init__(
        self, model: LatentVariableModel, x: Tensor, rows: Tensor, steps: int, leapfrog: int, seed: int
    ) -> None:
        self.model, self.x, self.rows, self.seed = model, x, rows, seed
        self.leapfrog, self.steps = leapfrog, steps
        self.betas = temperatures(steps).tolist()

    def pilot(self) -> Float[Tensor, " t b"]:
        """The step sizes of the transitions 1 .. T - 1 for each image, at index t - 1."""
        state, x = self._start(_PILOT, _PILOT_CHAINS), self._repeated(_PILOT_CHAINS)
        log_size = torch.full((len(self.rows),), _FIRST_STEP_SIZE, dtype=torch.float64).log()
        sizes = []
        for t in range(1, self.steps):
            sizes.append(log_size.exp())
            state, acceptance = self._transition(state, x, t, sizes[-1], _PILOT, _PILOT_CHAINS)
            log_size = log_size + _GAIN * (acceptance - TARGET_ACCEPTANCE)
        return torch.stack(sizes) if sizes else torch.empty(0, len(self.rows), dtype=torch.float64)

    def forward(self, chains: int, step_sizes: Tensor) -> LogMeanExp:
        """The weights w of chains from the prior to the posterior."""
        state, x = self._start(_FORWARD, chains), self._repeated(chains)
        log_w = torch.zeros_like(state.log_prob)
        for t in range(1, self.steps + 1):
            log_w += (self.betas[t] - self.betas[t - 1]) * state.log_prob
            if t < self.steps:
                state, _ = self._transition(state, x, t, step_sizes[t - 1], _FORWARD, chains)
        return self._mean(log_w)

    def backward(self, chains: int, step_sizes: Tensor, z: Tensor) -> LogMeanExp:
        """The inverse weights 1 / w of chains from the posterior samples `z` (B, d) to the prior."""
        x = self._repeated(chains)
        state = _State(self.model, x, z.repeat_interleave(chains, 0))
        log_inverse = torch.zeros_like(state.log_prob)
        for t in range(self.steps, 0, -1):
            if t < self.steps:
                state, _ = self._transition(state, x, t, step_sizes[t - 1], _BACKWARD, chains)
            log_inverse -= (self.betas[t] - self.betas[t - 1]) * state.log_prob
        return self._mean(log_inverse)

    def _transition(
        self, state: _State, x: Tensor, t: int, step_size: Tensor, run: int, chains: int
    ) -> tuple[_State, Tensor]:
        """One step of HMC at beta_t; returns the new state, and the acceptance of each image (B,) on the CPU."""
        beta, like = self.betas[t], state.z
        momentum = self._normal(run + t, chains, random.STREAM_SOLVER)
        u = random.uniform(self.seed, self.rows, run + t, (2, chains), random.STREAM_EVALUATE, torch.float64)
        size = (step_size[:, None] * (0.5 + 0.5 * u[:, 0])).reshape(-1, 1).to(like)

        def energy(state: _State, momentum: Tensor) -> Tensor:
            squares = state.z.double().square().sum(1) + momentum.double().square().sum(1)
            return 0.5 * squares - beta * state.log_prob

        new, p = state, momentum + 0.5 * size * (beta * state.gradient - state.z)
        for i in range(self.leapfrog):
            new = _State(self.model, x, new.z + size * p)
            last = i == self.leapfrog - 1
            p = p + (0.5 if last else 1.0) * size * (beta * new.gradient - new.z)
        # a trajectory that left the range of numbers is refused
        acceptance = (energy(state, momentum) - energy(new, p)).nan_to_num(nan=-torch.inf).clamp(max=0.0).exp()
        new.keep_where(u[:, 1].flatten().to(like.device) < acceptance, state)
        return new, acceptance.unflatten(0, (-1, chains)).mean(1).cpu()

    def _start(self, run: int, chains: int) -> _State:
        return _State(self.model, self._repeated(chains), self._normal(run, chains, random.STREAM_INITIAL))

    def _normal(self, step: int, chains: int, stream: int) -> Tensor:
        """(B chains, d), an image's chains side by side."""
        shape, device = (chains, self.model.latent_dim), self.x.device
        return random.normal(self.seed, self.rows, step, shape, stream, self.model.dtype, device).flatten(0, 1)

    def _repeated(self, chains: int) -> Tensor:
        return self.x.repeat_interleave(chains, 0)

    def _mean(self, log_w: Tensor) -> LogMeanExp:
        total = LogMeanExp()
        total.add(log_w.unflatten(0, (len(self.rows), -1)))
        return total

"""Closed-form denoisers: the ground truth for samplers, estimators and guidance, without training.

If the data are a mixture sum_k w_k N(m_k, c_k^2 I), so is x_t = alpha x + sigma eps, with means alpha m_k and variances
V_k = alpha^2 c_k^2 + sigma^2. Bayes' rule gives the posterior weight r_k(x_t) of a component given x_t, and

    E[x | x_t] = sum_k r_k (alpha c_k^2 x_t + sigma^2 m_k) / V_k
    log p_t(x_t) = log sum_k w_k N(x_t; alpha m_k, V_k I)

One component is a Gaussian (whose standard deviation may differ by dimension); c_k = 0 is a finite data set, whose
denoiser is a softmax-weighted mean of the data: that of a network that has memorised its training set.

Parameters are buffers, so `.to()` moves them; the computation runs in the dtype of x_t.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from ..numerics.arrays import REFUSED, as_tensor, described, whole_number
from ..numerics.broadcasting import pad_dims_like
from ..numerics.random import STREAM_EXACT, normal, uniform
from ..schedules import Schedule
from .condition import labels_only
from .denoiser import Denoiser, check_schedule
from .given import path_times, reals, seed_number

_BLOCK = 2**23  # entries of a (batch, components, dimensions) table of differences in memory at once
_LOG_2_PI = math.log(2.0 * math.pi)


class Exact(Denoiser):
    """A denoiser for data with a closed-form law."""

    @abstractmethod
    def posterior_mean(self, x_t: Float[Tensor, " b *dims"], alpha: Tensor, sigma: Tensor) -> Float[Tensor, " b *dims"]:
        """E[x | alpha x + sigma eps = x_t], with alpha and sigma of shape () or (B,) in the dtype of x_t."""

    @abstractmethod
    def log_density(self, x_t: Float[Tensor, " b *dims"], alpha: Tensor, sigma: Tensor) -> Float[Tensor, " b"]:
        """log p(alpha x + sigma eps = x_t) in nats, with alpha and sigma of shape () or (B,) in the dtype of x_t."""

    @abstractmethod
    def draw(self, n: Any, seed: Any = 0) -> Float[Tensor, " n *dims"]:
        """Draw `n` samples, shape (n, *shape); row i depends only on (seed, i)."""

    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Any = None
    ) -> Float[Tensor, " b *dims"]:
        """Return x_hat. Arguments as `Denoiser.forward`; raises a `UserError` for labels."""
        if cond is not None:
            raise UserError("label, cond: given to an exact denoiser, which has no classes; leave it out")
        x_t = _checked("x_t", x_t, self.shape)
        return self.posterior_mean(x_t, *(value.to(x_t) for value in self.schedule(t)))

    def log_prob_at(self, x_t: Any, t: Any) -> Float[Tensor, " b"]:
        """The log density of x_t at time t, nats: x_t (B, *shape), t () or (B,)."""
        x_t = _checked("x_t", x_t, self.shape)
        return self.log_density(x_t, *(value.to(x_t) for value in self.schedule(path_times(t, len(x_t)))))

    def log_prob(self, x: Any) -> Float[Tensor, " b"]:
        """The log density of the data at `x` (B, *shape), nats."""
        x = _checked("x", x, self.shape)
        one = torch.ones((), dtype=x.dtype, device=x.device)
        return self.log_density(x, one, 0.0 * one)


class Gaussian(Exact):
    """Data N(mean, diag(std^2)): E[x | x_t] = mean + alpha std^2 / (alpha^2 std^2 + sigma^2) (x_t - alpha mean).

    Args:
        mean: The mean, a number or a tensor; with `std` it broadcasts to the shape of a sample.
        std: The standard deviation, a number or a tensor (one per dimension), positive.
        schedule: The path.

    Raises:
        UserError: For shapes that do not broadcast, values that are not finite, or a std that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Any, std: Any, schedule: Schedule):
        super().__init__()
        check_schedule(schedule)
        dtypes = [value.dtype for value in (mean, std) if isinstance(value, Tensor) and value.is_floating_point()]
        dtype = reduce(torch.promote_types, dtypes) if dtypes else torch.get_default_dtype()
        mean, std = _floats("mean", mean), _positive("std", std)
        try:
            self.shape = tuple(torch.broadcast_shapes(mean.shape, std.shape))
        except RuntimeError as error:
            raise UserError(f"mean, std: shapes {tuple(mean.shape)} and {tuple(std.shape)} do not broadcast") from error
        self.schedule = schedule
        self.register_buffer("mean", mean.to(dtype).expand(self.shape).clone())
        self.register_buffer("std", std.to(dtype).expand(self.shape).clone())

    def posterior_mean(self, x_t, alpha, sigma):
        alpha, mean, variance, total = self._moments(x_t, alpha, sigma)
        return mean + alpha * variance / total * (x_t - alpha * mean)

    def log_density(self, x_t, alpha, sigma):
        alpha, mean, _, total = self._moments(x_t, alpha, sigma)
        terms = (x_t - alpha * mean).square() / total + total.log() + _LOG_2_PI
        return -0.5 * _flat(terms).sum(1)

    def draw(self, n: Any, seed: Any = 0) -> Float[Tensor, " n *dims"]:
        n, seed = whole_number("n", n, 0), seed_number(seed)
        return self.mean + self.std * _normals(seed, n, self.shape, self.mean)

    def law_at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of x_t, alpha_t mean and alpha_t^2 std^2 + sigma_t^2, for t that broadcasts with them."""
        alpha, sigma = (value.to(self.mean) for value in self.schedule(t))
        return alpha * self.mean, (alpha * self.std) ** 2 + sigma**2

    def flow(self, x_t: Float[Tensor, "*b"], t: Tensor, s: Tensor) -> Float[Tensor, "*c"]:
        """The state at time s of the probability-flow ODE through x_t at time t: it keeps (x - mean_t) / std_t.

        Args:
            x_t: States, shape (B, *shape).
            t, s: Times that broadcast against them: (), or (S, 1, ...) for S times at once.
        """
        (mean_t, variance_t), (mean_s, variance_s) = self.law_at(t), self.law_at(s)
        return mean_s + torch.sqrt(variance_s / variance_t) * (x_t - mean_t)

    def _moments(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, the data's mean and variance, and the variance of x_t, all broadcasting against x_t."""
        alpha, sigma = pad_dims_like(alpha, x_t), pad_dims_like(sigma, x_t)
        variance = self.std.to(x_t).square()
        return alpha, self.mean.to(x_t), variance, alpha.square() * variance + sigma.square()


class GaussianMixture(Exact):
    """Data sum_k weights_k N(means_k, stds_k^2 I); the formulas are at the top of the module.

    Args:
        means: Shape (K, *shape).
        stds: Shape (K,), positive.
        schedule: The path.
        weights: Shape (K,), not negative; normalised to sum to one. Equal by default.

    Raises:
        UserError: For shapes that do not agree, values that are not finite, or wrong signs.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __init__(self, means: Any, stds: Any, schedule: Schedule, weights: Any = None):
        super().__init__()
        check_schedule(schedule)
        means, stds = _rows("means", means), _positive("stds", stds)
        weights = torch.ones_like(stds) if weights is None else _floats("weights", weights)
        for name, value in (("stds", stds), ("weights", weights)):
            if value.shape != means.shape[:1]:
                raise UserError(f"{name}: found shape {tuple(value.shape)}; {len(means)} means need ({len(means)},)")
        if bool((weights < 0).any()) or not bool(weights.sum() > 0):
            raise UserError(f"weights: found {weights.tolist()[:8]}; needs no negative one and a positive sum")
        self.schedule = schedule
        self.shape = tuple(means.shape[1:])
        dtype = torch.promote_types(means.dtype, stds.dtype)
        for name, value in (("means", means), ("stds", stds), ("weights", weights.double() / weights.double().sum())):
            self.register_buffer(name, value.to(dtype))

    def posterior_mean(self, x_t, alpha, sigma):
        x, means = _flat(x_t), self.means.to(x_t).flatten(1)
        log_joint, total = self._log_joint(x, means, alpha, sigma)
        scaled = log_joint.softmax(1) / total
        from_x_t = pad_dims_like(alpha, x) * (scaled * self.stds.to(x_t).square()).sum(1, keepdim=True)
        return (from_x_t * x + pad_dims_like(sigma, x).square() * (scaled @ means)).reshape(x_t.shape)

    def log_density(self, x_t, alpha, sigma):
        return self._log_joint(_flat(x_t), self.means.to(x_t).flatten(1), alpha, sigma)[0].logsumexp(1)

    def draw(self, n: Any, seed: Any = 0) -> Float[Tensor, " n *dims"]:
        n, seed = whole_number("n", n, 0), seed_number(seed)
        u = uniform(seed, torch.arange(n), 0, (), STREAM_EXACT, torch.float64).to(self.weights.device)
        edges = self.weights.double().cumsum(0)
        # u times the last edge, which rounding may move off 1, falls below that edge, in a component of weight > 0
        k = torch.searchsorted(edges, u * edges[-1], right=True)
        return self.means[k] + pad_dims_like(self.stds[k], self.means) * _normals(seed, n, self.shape, self.means)

    def _log_joint(self, x: Tensor, means: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k N(x; alpha m_k, V_k I) of shape (B, K), and V_k; x is (B, D), alpha and sigma are () or (B,)."""
        total = (pad_dims_like(alpha, x) * self.stds.to(x)).square() + pad_dims_like(sigma, x).square()
        distances = _squared_distances(x, alpha, means)
        return self.weights.to(x).log() - 0.5 * (distances / total + x.shape[1] * (total.log() + _LOG_2_PI)), total


class Empirical(Exact):
    """A finite data set: E[x | x_t] = sum_i softmax_i(-|x_t - alpha x_i|^2 / (2 sigma^2)) x_i.

    Its law has no density, so `log_prob` raises; `log_prob_at` is that of x_t for sigma > 0.

    Args:
        data: Shape (N, *shape), at least one row, all finite (else a `UserError`).
        schedule: The path.
    """

    data: Tensor

    def __init__(self, data: Any, schedule: Schedule):
        super().__init__()
        check_schedule(schedule)
        self.register_buffer("data", _rows("data", data))
        self.schedule = schedule
        self.shape = tuple(self.data.shape[1:])

    def posterior_mean(self, x_t, alpha, sigma):
        data = self.data.to(x_t).flatten(1)
        return (self._log_weights(x_t, data, alpha, sigma).softmax(1) @ data).reshape(x_t.shape)

    def log_density(self, x_t, alpha, sigma):
        data = self.data.to(x_t).flatten(1)
        log_scale = math.log(len(data)) + data.shape[1] * (sigma.log() + 0.5 * _LOG_2_PI)
        return self._log_weights(x_t, data, alpha, sigma).logsumexp(1) - log_scale

    def log_prob(self, x: Any) -> Float[Tensor, " b"]:
        """Raise a `UserError`: a finite data set has no density."""
        raise UserError("log_prob: a finite data set has no density; log_prob_at(x_t, t) has one at any time t > 0")

    def draw(self, n: Any, seed: Any = 0) -> Float[Tensor, " n *dims"]:
        n, seed = whole_number("n", n, 0), seed_number(seed)
        u = uniform(seed, torch.arange(n), 0, (), STREAM_EXACT, torch.float64).to(self.data.device)
        return self.data[(u * len(self.data)).long()]

    def _log_weights(self, x_t: Tensor, data: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return -0.5 * _squared_distances(_flat(x_t), alpha, data) / pad_dims_like(sigma.square(), data)


def _checked(name: str, x: Any, shape: tuple[int, ...]) -> Tensor:
    """Data as a tensor, refusing shapes that would be broadcast; scalar parameters fit any number of dimensions."""
    x = reals(name, x)
    if x.ndim == 0 or (tuple(x.shape[1:]) != shape and math.prod(shape) > 1):
        raise UserError(f"{name}: found shape {tuple(x.shape)}; needs (n, {', '.join(map(str, shape))})")
    return x


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))  # dims may be () and B may be 0


def _squared_distances(x: Tensor, alpha: Tensor, means: Tensor) -> Tensor:
    """|x - alpha m|^2 of shape (B, K), from x (B, D), alpha () or (B,), means (K, D).

    By differences, not by a matrix product, whose cancellation loses all float32 digits near a mean; one block of means
    at a time, because the table of differences is B times K times D.
    """
    x = x[:, None]
    blocks = means.split(max(1, _BLOCK // max(1, x.numel())))
    return torch.cat([(x - pad_dims_like(alpha, x) * block).square().sum(-1) for block in blocks], dim=1)


def _normals(seed: int, n: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return normal(seed, torch.arange(n), 1, shape, STREAM_EXACT, like.dtype).to(like.device)


def _floats(name: str, value: Any) -> Tensor:
    # A number is converted to float64: 0.1 next to float64 tensors is 0.1 to the last digit.
    try:
        tensor = as_tensor(value, None if isinstance(value, Tensor) else torch.float64)
    except REFUSED:
        raise UserError(f"{name}: found {described(value)}; needs numbers, a tensor or an array") from None
    tensor = tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
    if not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{name}: has values that are not finite")
    return tensor.detach().clone()


def _positive(name: str, value: Any) -> Tensor:
    tensor = _floats(name, value)
    if not bool((tensor > 0).all()):
        raise UserError(f"{name}: found {float(tensor.min())}; must be positive")
    return tensor


def _rows(name: str, value: Any) -> Tensor:
    tensor = _floats(name, value)
    if tensor.ndim == 0 or tensor.numel() == 0:
        raise UserError(f"{name}: found shape {tuple(tensor.shape)}; needs one row or more, (N, *shape)")
    return tensor


class Labelled(Denoiser):
    """Exact laws as classes: with labels the denoisers of the classes, without (None or K) that of all data.

    Args:
        classes: K denoisers with the same path and shape.
        weights: Their probabilities, shape (K,), normalised to sum to one; equal by default.

    Raises:
        UserError: For classes that do not agree, or weights that are not K positive numbers.
    """

    log_weights: Tensor

    def __init__(self, classes: Sequence[Exact], weights: Tensor | None = None):
        super().__init__()
        self._laws = tuple(classes)
        self.classes = nn.ModuleList(classes)  # moved by `.to()`, and found when counting evaluations
        first = classes[0]
        if any(one.shape != first.shape or one.schedule != first.schedule for one in classes):
            raise UserError("classes: must have one shape and one schedule")
        weights = torch.ones(len(classes), dtype=torch.float64) if weights is None else weights
        if weights.shape != (len(classes),) or not bool((weights > 0).all()):
            raise UserError(f"weights: found {weights.tolist()}; needs {len(classes)} positive numbers")
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.schedule, self.shape, self.num_classes = first.schedule, first.shape, len(classes)

    def log_class_prob(self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"]) -> Float[Tensor, " b k"]:
        """log p(k | x_t) of every class: the exact classifier of noisy data."""
        joint = torch.stack([one.log_prob_at(x_t, t) for one in self._laws], 1) + self.log_weights.to(x_t)
        return joint.log_softmax(1)

    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Any = None
    ) -> Float[Tensor, " b *dims"]:
        """Return x_hat. Arguments as `Denoiser.forward`."""
        cond = labels_only(cond)
        answers = torch.stack([one(x_t, t) for one in self._laws], 1)
        shares = self.log_class_prob(x_t, t).exp()
        if cond is not None:
            of_class = torch.nn.functional.one_hot(cond, self.num_classes + 1)[:, :-1].to(shares)
            shares = torch.where((cond == self.num_classes)[:, None], shares, of_class)
        return (shares.reshape(*shares.shape, *(1,) * len(self.shape)) * answers).sum(1)

"""The central interface: a denoiser computes x_hat = E[x | x_t]; the rest is algebra.

    eps = (x_t - alpha x_hat) / sigma       score = -eps / sigma
    v   = alpha eps - sigma x_hat           velocity = alpha' x_hat + sigma' eps

Samplers and likelihoods use this interface and know nothing about networks; guidance and re-timing wrap a denoiser in a
denoiser.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import PREDICTIONS
from ..errors import UserError, choose
from ..networks.parts import Part
from ..numerics.arrays import whole_number
from ..numerics.broadcasting import pad_dims_like, per_row
from ..numerics.placement import Placed, device_of
from ..schedules import Schedule
from . import predictions
from .condition import Condition
from .given import cond_of_batch, path_times, positive_number, reals
from .network_call import Takes, as_module, check_output, dtype_of, output_tensor, takes_of
from .preconditioning import c_in, c_noise, edm_to_x, x_to_edm
from .predictions import PathPoint

__all__ = ["Denoiser", "DenoiserWrapper", "NetworkDenoiser", "Retimed", "check_schedule", "denoiser_of", "device_of"]


def check_schedule(schedule: object) -> None:
    """Refuse anything but a schedule, e.g. its name."""
    if not isinstance(schedule, Schedule):
        raise UserError(f"schedule: found {str(schedule)[:60]}; needs one, e.g. diffusion.schedules.Cosine()")


class Denoiser(Placed, ABC):
    """E[x | x_t] on the path of a schedule.

    Attributes:
        schedule: The path.
        shape: The shape of one sample, e.g. (3, 32, 32).
        num_classes: The number of classes it can be conditioned on; 0 for none. `num_classes` itself is the null
            label.
        parts: What it can be conditioned on where that is not a class alone (`condition.of_parts`); without a condition
            all parts are none.
    """

    schedule: Schedule
    shape: tuple[int, ...]
    num_classes: int = 0
    parts: tuple[Part, ...] = ()

    def __call__(self, x_t: Any, t: Any, cond: Any = None) -> Tensor:
        """`forward` with its contract checked: an output of another shape would be broadcast against x_t.

        A time may be a number, and labels a number or a list.

        Raises:
            UserError: For level indices instead of real values, times outside the path, labels of no class, and an
                output whose shape is not that of x_t.
        """
        if not (isinstance(x_t, Tensor) and x_t.is_floating_point()):
            x_t = reals("x_t", x_t)
        n = len(x_t) if x_t.ndim else 1
        t, cond = path_times(t, n), cond_of_batch(cond, self.num_classes, n, self.parts)
        x_hat = super().__call__(x_t, t, cond)
        if x_hat.shape != x_t.shape:
            check_output(x_hat, x_t, tuple(x_t.shape), type(self).__name__)
        return x_hat

    @abstractmethod
    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Any = None
    ) -> Float[Tensor, " b *dims"]:
        """Return x_hat = E[x | x_t].

        Args:
            x_t: Noisy data, shape (B, *shape).
            t: Times, shape () or (B,).
            cond: Class labels, shape (B,), None, or another condition of the network (`condition.Condition`).
        """

    def with_variance(self, x_t: Any, t: Any, cond: Any = None) -> tuple[Tensor, Tensor]:
        """x_hat, and where a network places the logarithm of the variance of a step: 0 the lower choice, 1 the upper.

        Raises:
            UserError: For a denoiser that does not say.
        """
        raise UserError("variance: found 'learned'; this model does not predict one; accepted: lower, upper")

    def at_size(self, size: Any) -> Denoiser:
        """The same denoiser, with the same weights, for images of another size; itself for its own size.

        Args:
            size: Height and width, or one number for both.

        Raises:
            UserError: For data without a size, or if the denoiser only supports its own size.
        """
        shape = self._shape_at(size)
        if shape == self.shape:
            return self
        raise UserError(
            f"size: found {_size_text(shape)}; {type(self).__name__} takes images of its own size alone, "
            f"{_size_text(self.shape)}"
        )

    def _shape_at(self, size: Any) -> tuple[int, ...]:
        """The shape of images of a size."""
        if len(self.shape) != 3:
            raise UserError(f"size: found {size}; data of shape {self.shape} have no height and width")
        try:
            sides = tuple(
                whole_number("size", side, 1) for side in (size if isinstance(size, Iterable) else (size, size))
            )
        except (UserError, TypeError):
            sides = ()
        if len(sides) != 2:
            raise UserError(f"size: found {size}; accepted: height and width, or one number for both, from 1 on")
        return (self.shape[0], *sides)

    def prediction(self, kind: str, x_t: Any, t: Any, cond: Any = None) -> Tensor:
        """x_hat converted to another prediction (`x`, `eps`, `score`, `v`, `velocity`)."""
        x_t = reals("x_t", x_t)
        t = path_times(t, len(x_t))
        return predictions.convert(self(x_t, t, cond), "x", kind, x_t, PathPoint(self.schedule, t, x_t))

    def eps(self, x_t: Any, t: Any, cond: Any = None) -> Tensor:
        """E[eps | x_t]."""
        return self.prediction("eps", x_t, t, cond)

    def score(self, x_t: Any, t: Any, cond: Any = None) -> Tensor:
        """grad log p(x_t)."""
        return self.prediction("score", x_t, t, cond)

    def v(self, x_t: Any, t: Any, cond: Any = None) -> Tensor:
        """E[alpha eps - sigma x | x_t]."""
        return self.prediction("v", x_t, t, cond)

    def velocity(self, x_t: Any, t: Any, cond: Any = None) -> Tensor:
        """dx/dt of the probability-flow ODE: E[alpha' x + sigma' eps | x_t]."""
        return self.prediction("velocity", x_t, t, cond)


def _size_text(shape: tuple[int, ...]) -> str:
    """Height and width of a shape, as text."""
    return "x".join(map(str, shape[1:]))


def denoiser_of(name: str, value: Any) -> Denoiser:
    """A denoiser itself, or the denoiser of a trained diffusion model.

    Raises:
        UserError: For anything else.
    """
    found = value if isinstance(value, Denoiser) else getattr(value, "denoiser", None)
    if not isinstance(found, Denoiser):
        raise UserError(f"{name}: found a {type(value).__name__}; needs a denoiser or a diffusion model")
    return found


class NetworkDenoiser(Denoiser):
    """A denoiser from a network, a schedule and the type of the network's prediction.

    The network is called as network(c_in x_t, c_noise, labels) in the dtype of most of its parameters; the state keeps
    its own dtype (at least float32, float64 on request).

    Args:
        network: Maps (x (B, *shape), c_noise (B,), labels (B,) or None) to the shape of x. Also accepted: a function, a
            network of (x, c_noise) alone, and one that returns a tuple or an object with a `sample` (`network_call`).
            Instead of labels it may take another condition (`condition`).
        schedule: The path; a learned one is part of the denoiser, and is trained, averaged and saved with it.
        prediction: `eps`, `x`, `v`, `score`, `velocity`, or `edm` (the network inside EDM's skip connection).
        shape: The shape of one sample.
        sigma_data: The standard deviation of the data as the denoiser sees them.
        num_classes: The number of classes; 0 for an unconditional model.
        size_multiple: Other image sizes than that of `shape` are supported in multiples of this; None: they are not
            (`at_size`).
        parts: As `Denoiser`; the network then takes the tensor, or the tuple of tensors, of its parts.

    Raises:
        UserError: For an unknown prediction, an invalid shape, or a network that cannot be called; at a call, for
            labels passed to an unconditional model, and an output whose shape is not that of x.
    """

    def __init__(
        self,
        network: nn.Module | Callable[..., Any],
        schedule: Schedule,
        prediction: str,
        shape: Any,
        sigma_data: Any = 1.0,
        num_classes: Any = 0,
        size_multiple: int | None = None,
        parts: Sequence[Part] = (),
    ):
        super().__init__()
        check_schedule(schedule)
        try:
            sides = tuple(whole_number("shape", side, 1) for side in shape)
        except (UserError, TypeError):
            raise UserError(f"shape: found {shape}; needs the shape of one sample, e.g. (3, 32, 32)") from None
        self.network = as_module(network)
        self._known: tuple[nn.Module, torch.dtype, Takes, torch.dtype] | None = None
        self.schedule = schedule
        self.parameterization = choose("denoiser.prediction", prediction, PREDICTIONS)
        self.shape = sides
        self.sigma_data = positive_number("sigma_data", sigma_data)
        self.num_classes = whole_number("num_classes", num_classes, 0)
        self.size_multiple = size_multiple
        self.parts = tuple(parts)

    def at_size(self, size: Any) -> Denoiser:
        """As `Denoiser.at_size`; also refuses sizes that are not a multiple of `size_multiple`."""
        shape = self._shape_at(size)
        if shape == self.shape or self.size_multiple is None:
            return super().at_size(size)
        if any(side % self.size_multiple for side in shape[1:]):
            raise UserError(
                f"size: found {_size_text(shape)}; this network takes multiples of {self.size_multiple}, and "
                f"{_size_text(self.shape)}, the size of its training"
            )
        other = copy.copy(self)  # a new module around the same network
        other.shape = shape
        return other

    def raw(self, x_t: Tensor, t: Tensor, cond: Any, at: PathPoint) -> Tensor:
        """The raw output of the network, in the dtype of x_t."""
        own = isinstance(cond, Condition)
        if cond is not None and not own and not self.num_classes and not cond.is_floating_point():
            raise UserError(
                "label: given to a model that was trained without labels; leave it out, "
                "train it with denoiser.conditional=true, or let a classifier steer it (sample.py --classifier)"
            )
        takes, dtype = self._interface(x_t)
        level = per_row(c_noise(self.schedule.log_snr(t)).to(dtype), x_t)  # which a network may change in place
        more, named = takes.arguments(cond.given if own else cond)
        try:
            output = self.network((c_in(at, self.sigma_data) * x_t).to(dtype), level, *more, **named)
        except (TypeError, AttributeError, RuntimeError) as error:
            if tuple(x_t.shape[1:]) != self.shape:
                needed = ", ".join(map(str, ("n", *self.shape)))
                raise UserError(f"x_t: found shape {tuple(x_t.shape)}; needs ({needed})") from error
            if isinstance(error, RuntimeError) or cond is not None or not takes.needed:
                raise
            raise UserError(
                f"cond: the network failed without a condition ({str(error).splitlines()[0][:80]}); "
                "give cond=, or let its forward take None"
            ) from error
        if type(output) is not Tensor or not output.is_floating_point():
            output = output_tensor(output)
        needed = self._output_shape(x_t)
        if output.shape != needed:
            check_output(output, x_t, needed)
        return output.to(x_t)

    def _output_shape(self, x_t: Tensor) -> tuple[int, ...]:
        """The shape that the network must return."""
        return tuple(x_t.shape)

    def _interface(self, x_t: Tensor) -> tuple[Takes, torch.dtype]:
        """How the network is called, and the dtype of its input; cached for a network of these dtypes."""
        network, first = self.network, next(self.network.parameters(), x_t).dtype
        if self._known is None or self._known[0] is not network or self._known[1] != first:
            self._known = network, first, takes_of(network), dtype_of(network, x_t.dtype)
        return self._known[2:]

    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Any = None
    ) -> Float[Tensor, " b *dims"]:
        """Return x_hat. Arguments as `Denoiser.forward`."""
        at = PathPoint(self.schedule, t, x_t)
        return self.raw_to_x(self.raw(x_t, t, cond, at), x_t, at)

    def raw_to_x(self, raw: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
        """x_hat from the network's output."""
        if self.parameterization == "edm":
            return edm_to_x(raw, x_t, at, self.sigma_data)
        return predictions.TO_X[self.parameterization](raw, x_t, at)

    def x_to_raw(self, x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
        """The network output for which x_hat = x: the inverse of `raw_to_x`."""
        if self.parameterization == "edm":
            return x_to_edm(x, x_t, at, self.sigma_data)
        return predictions.FROM_X[self.parameterization](x, x_t, at)

    def prediction(self, kind: str, x_t: Any, t: Any, cond: Any = None) -> Tensor:
        """As `Denoiser.prediction`; the network's own prediction is returned without a detour through x_hat."""
        x_t = reals("x_t", x_t)
        t, cond = path_times(t, len(x_t)), cond_of_batch(cond, self.num_classes, len(x_t), self.parts)
        at = PathPoint(self.schedule, t, x_t)
        raw = self.raw(x_t, t, cond, at)
        if kind == self.parameterization:
            return raw
        return predictions.convert(self.raw_to_x(raw, x_t, at), "x", kind, x_t, at)


class DenoiserWrapper(Denoiser):
    """A denoiser around another, for the same data, labels and path; abstract.

    Args:
        denoiser: The denoiser, or a diffusion model.
        schedule: The path, if it is another.
    """

    def __init__(self, denoiser: Any, schedule: Schedule | None = None):
        super().__init__()
        self.denoiser = denoiser_of("denoiser", denoiser)
        self.schedule = self.denoiser.schedule if schedule is None else schedule
        self.shape = self.denoiser.shape
        self.num_classes, self.parts = self.denoiser.num_classes, self.denoiser.parts


class Retimed(DenoiserWrapper):
    """A denoiser on the path of another schedule, matched by log-SNR.

    x_t on the new path, times alpha_u / alpha_t, is x_u on the old one where lambda_u = lambda_t: E[x | x_t] is the
    same up to that scale.

    Args:
        denoiser: The denoiser on its own path.
        schedule: The new path.
    """

    def __init__(self, denoiser: Any, schedule: Schedule):
        check_schedule(schedule)
        super().__init__(denoiser, schedule)

    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Any = None
    ) -> Float[Tensor, " b *dims"]:
        """Return x_hat. Arguments as `Denoiser.forward`."""
        own = self.denoiser.schedule
        u = own.inverse_log_snr(self.schedule.log_snr(t))
        scale = torch.exp(own.log_alpha(u) - self.schedule.log_alpha(t))
        return self.denoiser(pad_dims_like(scale, x_t).to(x_t.dtype) * x_t, u, cond)


class Clipped(DenoiserWrapper):
    """A denoiser whose x_hat is clipped to the range of the data (DDPM's `clip_denoised`).

    Args:
        denoiser: The denoiser.
        low: The smallest value of the data.
        high: The largest.
    """

    def __init__(self, denoiser: Any, low: float = -1.0, high: float = 1.0):
        super().__init__(denoiser)
        self.low, self.high = low, high

    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Any = None
    ) -> Float[Tensor, " b *dims"]:
        """Return x_hat. Arguments as `Denoiser.forward`."""
        return self.denoiser(x_t, t, cond).clamp(self.low, self.high)

    def with_variance(self, x_t: Any, t: Any, cond: Any = None) -> tuple[Tensor, Tensor]:
        """As `Denoiser.with_variance`, of the denoiser within."""
        x_hat, place = self.denoiser.with_variance(x_t, t, cond)
        return x_hat.clamp(self.low, self.high), place

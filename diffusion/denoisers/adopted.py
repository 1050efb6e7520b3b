"""A network trained elsewhere as a denoiser of data whose bins fill [-1, 1], by its own convention.

The network sees y = a x + b, and y_t = alpha y + sigma eps on its own path. With x_t = (y_t - alpha b) / a that is the
path x_t = alpha x + (sigma / a) eps of our x, with the same eps: what the network is given and what it answers is exact
algebra, and nothing else in this package needs to know of it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from ..numerics.arrays import whole_number
from ..numerics.broadcasting import pad_dims_like, per_row
from ..schedules import Scaled
from . import predictions
from .condition import Condition
from .conventions import PREDICTS, Convention
from .denoiser import Denoiser, DenoiserWrapper
from .given import check_callable, cond_of_batch, path_times, reals
from .network_call import as_module, check_output, dtype_of, output_tensor, outside_code, takes_of
from .preconditioning import c_in, edm_to_x
from .predictions import PathPoint

REQUIRED = "required"


class Labels:
    """The classes of a network, and how it takes that there is none.

    Args:
        given: None; the number of classes, where a label is required; or (classes, what stands for no label), a number
            or None.

    Raises:
        UserError: For anything else.
    """

    def __init__(self, given: Any = None):
        self.classes, self.null = 0, REQUIRED
        if given is None:
            return
        several = isinstance(given, tuple | list)
        if several and len(given) != 2:
            raise UserError(f"labels: found {given}; needs the number of classes, or (classes, the label of none)")
        self.classes = whole_number("labels", given[0] if several else given, 1)
        if several:
            self.null = None if given[1] is None else whole_number("labels", given[1])

    @property
    def is_needed(self) -> bool:
        """Whether every sample needs a label."""
        return self.classes > 0 and self.null == REQUIRED

    def parts(self, cond: Tensor | None, n: int, device: torch.device) -> list[tuple[Any, Any]]:
        """The rows that are called together, None for all, and what the network is given as their labels.

        Raises:
            UserError: For samples of no class, where one is required.
        """
        none = torch.full((n,), self.classes, device=device) if cond is None else cond.to(device)
        missing = none == self.classes
        if self.null == REQUIRED:
            if bool(missing.any()):
                raise UserError(
                    f"label: this network needs one, 0 to {self.classes - 1}, of every sample; give label= to sample, "
                    "cond= to a likelihood"
                )
            return [(None, none)]
        if self.null is not None:
            return [(None, torch.where(missing, torch.full_like(none, int(self.null)), none))]
        if bool(missing.all()):
            return [(None, None)]
        if not bool(missing.any()):
            return [(None, none)]
        return [(missing, None), (~missing, none[~missing])]


class Called(nn.Module):
    """A network, called as the user says or as its signature does: (x, time, labels) to its output."""

    def __init__(self, network: Any, call: Any):
        super().__init__()
        self.network = as_module(network)
        check_callable("call", call)
        self.call = None if call is None else as_module(call)  # with the modules that it closes over

    def forward(self, x: Tensor, time: Tensor, labels: Any) -> Any:
        if self.call is not None:
            return self.call(self.network, x, time, labels)
        more, named = takes_of(self.network).arguments(labels)
        return self.network(x, time, *more, **named)


class AdoptedDenoiser(Denoiser):
    """E[x | x_t] from a network of a convention.

    Args:
        network: A module or a function.
        convention: How it is called and what it answers.
        shape: The shape of one sample.
        labels: As `Labels`.
        call: Calls it: (network, x, time, labels) to its output, for networks of other signatures.
        log_snr_max: Where the path ends near the data, if that is earlier than its own end.

    Raises:
        UserError: At a call, for a missing label, and for an output that is none.
    """

    def __init__(
        self,
        network: Any,
        convention: Convention,
        shape: Any,
        labels: Any = None,
        call: Any = None,
        log_snr_max: float | None = None,
    ):
        super().__init__()
        try:
            self.shape = tuple(whole_number("shape", side, 1) for side in shape)
            if not self.shape:
                raise TypeError
        except (UserError, TypeError):
            raise UserError(f"shape: found {shape}; needs the sides of one sample, e.g. (3, 32, 32)") from None
        self.network = network if isinstance(network, Called) else Called(network, call)
        self.convention = convention
        self.labels = labels if isinstance(labels, Labels) else Labels(labels)
        self.num_classes = self.labels.classes
        self.schedule = Scaled(convention.path.schedule, convention.units[0], log_snr_max)

    def within(self, log_snr_max: float) -> AdoptedDenoiser:
        """The same, with a path that ends at this log-SNR."""
        return AdoptedDenoiser(self.network, self.convention, self.shape, self.labels, None, log_snr_max)

    def by(self, convention: Convention) -> AdoptedDenoiser:
        """The same network, understood by another convention."""
        return AdoptedDenoiser(self.network, convention, self.shape, self.labels)

    def with_variance(self, x_t: Any, t: Any, cond: Any = None) -> tuple[Tensor, Tensor]:
        """As `Denoiser.with_variance`, from the second half of twice the channels, in [-1, 1] (2102.09672, eq. 15)."""
        x_t = reals("x_t", x_t)
        t, cond = path_times(t, len(x_t)), cond_of_batch(cond, self.num_classes, len(x_t))
        answer, second, y_t, at = self._answer(x_t, t, cond)
        if second is None:
            return super().with_variance(x_t, t, cond)
        return self._ours(self._to(answer, "x", y_t, at)), 0.5 * (second + 1.0)

    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Any = None
    ) -> Float[Tensor, " b *dims"]:
        """Return x_hat. Arguments as `Denoiser.forward`."""
        answer, _, y_t, at = self._answer(x_t, t, cond)
        return self._ours(self._to(answer, "x", y_t, at))

    def prediction(self, kind: str, x_t: Any, t: Any, cond: Any = None) -> Tensor:
        """As `Denoiser.prediction`; eps, which is the same in all units, without a detour through x_hat."""
        x_t = reals("x_t", x_t)
        t, cond = path_times(t, len(x_t)), cond_of_batch(cond, self.num_classes, len(x_t))
        answer, _, y_t, at = self._answer(x_t, t, cond)
        if kind == "eps":
            return self._to(answer, "eps", y_t, at)
        x = self._ours(self._to(answer, "x", y_t, at))
        return predictions.convert(x, "x", kind, x_t, PathPoint(self.schedule, t, x_t))

    def _ours(self, y: Tensor) -> Tensor:
        scale, middle = self.convention.units
        return (y - middle) / scale

    def _to(self, answer: Tensor, kind: str, y_t: Tensor, at: PathPoint) -> Tensor:
        source = PREDICTS[self.convention.predicts][0]
        if source == "edm":
            answer, source = edm_to_x(answer, y_t, at, self.convention.sigma_data), "x"
        return predictions.convert(answer, source, kind, y_t, at)

    def _answer(self, x_t: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, Tensor | None, Tensor, PathPoint]:
        """The network's answer in the dtype of x_t, its second half if it has one, and where it was evaluated."""
        convention, n = self.convention, len(x_t)
        at = PathPoint(convention.path.schedule, t, x_t)
        scale, middle = convention.units
        y_t = scale * x_t + at.alpha * middle if convention.levels is not None else x_t
        dtype = dtype_of(self.network.network, dtype_of(self.network, x_t.dtype))
        # copies: what a network changes in place is its own
        seen = (c_in(at, convention.sigma_data) * y_t if convention.takes_scaled else y_t).to(dtype, copy=True)
        time = convention.network_time(t.double())
        time = per_row(time.to(dtype) if time.is_floating_point() else time, x_t).clone()
        if isinstance(cond, Condition) or not self.num_classes:
            if cond is not None and not isinstance(cond, Condition):
                raise UserError("label: given to a network that was adopted without labels; say labels= in adopt")
            calls = [(None, None if cond is None else cond.given)]
        else:
            calls = self.labels.parts(cond, n, x_t.device)
        output: Tensor | None = None
        for rows, labels in calls:
            some = (seen, time) if rows is None else (seen[rows], time[rows])
            with outside_code(*some, labels):
                found = output_tensor(self.network(*some, labels)).to(x_t.device)
            if rows is None:
                output = found
                break
            output = found.new_empty((n, *found.shape[1:])) if output is None else output
            output[rows] = found
        assert output is not None
        output, second = output.to(x_t.dtype), None
        if output.ndim > 1 and output.shape[1] == 2 * x_t.shape[1] and output.shape[2:] == x_t.shape[2:]:
            output, second = output.chunk(2, dim=1)
        check_output(output, x_t, tuple(x_t.shape))
        sign = PREDICTS[convention.predicts][1]
        if convention.path.backwards and PREDICTS[convention.predicts][0] == "velocity":
            sign = -sign  # their time runs the other way
        return (output if sign > 0 else -output), second, y_t, at


class Thresholded(DenoiserWrapper):
    """Dynamic thresholding of x_hat (Saharia et al. 2022, arXiv 2205.11487, sec. 2.3): it is clipped to [-s, s] and
    divided by s, a quantile of the absolute values of a sample as the network sees data, from 1 to `most`.

    Args:
        denoiser: The adopted network.
        quantile: Of the values of one sample.
        most: The largest s; 1 clips to [-1, 1].
    """

    def __init__(self, denoiser: AdoptedDenoiser, quantile: float, most: float):
        super().__init__(denoiser)
        self.units, self.quantile, self.most = denoiser.convention.units, quantile, most

    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Any = None
    ) -> Float[Tensor, " b *dims"]:
        """Return x_hat. Arguments as `Denoiser.forward`."""
        return self._within(self.denoiser(x_t, t, cond))

    def with_variance(self, x_t: Any, t: Any, cond: Any = None) -> tuple[Tensor, Tensor]:
        """As `Denoiser.with_variance`, of the denoiser within."""
        x_hat, place = self.denoiser.with_variance(x_t, t, cond)
        return self._within(x_hat), place

    def _within(self, x_hat: Tensor) -> Tensor:
        scale, middle = self.units
        y = scale * x_hat + middle
        s = torch.quantile(y.flatten(1).abs(), self.quantile, dim=1).clamp(1.0, self.most)
        s = pad_dims_like(s, y)
        return (torch.minimum(torch.maximum(y, -s), s) / s - middle) / scale

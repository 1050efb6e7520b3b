"""A schedule learned along with the network (VDM, Kingma et al. 2021, arXiv 2107.00630): the density of noise levels.

The continuous-time bound is an integral over log-SNR that depends on the schedule only through its ends. Between them
the schedule determines how often each noise level is drawn, and so the variance of the estimated loss. A uniform time
has the density p(lambda) = 1 / ((t_max - t_min) |d lambda / dt|), so learning a monotone lambda_t and learning p are
equivalent. The second moment of w(lambda) e / p(lambda), with e the unweighted error, is least at p proportional to
w sqrt(E e^2), where the loss has the same root mean square at every time.

So p is parametrised here, instead of the paper's monotone network (its appendix H): the logarithms of p at evenly
spaced knots, linear between them. Time is then the distribution function of p, piecewise quadratic (Mueller et al.
2019, arXiv 1808.03856), with a closed-form inverse; every parameter acts locally; and the ends are fixed by
construction.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..numerics.placement import Placed
from .continuous import require_ends
from .schedule import NOISE_END, Schedule, log_sigmoid_alpha

# The fraction of times that remains uniform in log-SNR: every noise level is drawn, no weight exceeds 1 / UNIFORM times
# that of uniform sampling, and the second moment is within 1 / (1 - UNIFORM) of the least (Hesterberg 1995).
UNIFORM = 0.05

# Adam moves a parameter by about the learning rate per step, whatever its gradient; log p has to move by several units
# while the network's weights move by tenths.
_GAIN = 10.0

# As on the other paths that end at t = 0: in a grid, a time of exactly 0 means clean data.
_T_MIN = 1e-6


class Learned(Schedule, Placed):
    """Variance preserving, with a learned density of log-SNR at uniform times; initially log-SNR is linear in t.

    Its methods do not propagate gradients to its parameters: neither the state x_t nor the network's noise-level input
    does. Only `time_density` does (see `objectives.loss`). The path is computed in float64.
    A module is equal only to itself; `repr` identifies the weights by their digest.

    Args:
        log_snr_max: The log-SNR at t_min, fixed.
        log_snr_min: The log-SNR at t_max = 1, fixed; at least -30, where no signal remains.
        segments: The number of segments on which the density is linear.

    Raises:
        UserError: If log_snr_min is not below log_snr_max, or there is no segment.
    """

    t_min: ClassVar[float] = _T_MIN
    t_max: ClassVar[float] = 1.0

    is_learned = True

    def __init__(self, log_snr_max: float = 14.0, log_snr_min: float = -10.0, segments: int = 32):
        super().__init__()
        require_ends(log_snr_min, log_snr_max)
        if isinstance(segments, bool) or not isinstance(segments, int) or segments < 1:
            raise UserError(f"schedule.segments: found {segments}; must be a whole number, at least 1")
        self.log_snr_max, self.log_snr_min, self.segments = log_snr_max, max(log_snr_min, NOISE_END), segments
        self.log_density = nn.Parameter(torch.zeros(segments + 1))
        self._cache: dict[torch.device, tuple[object, tuple[Tensor, Tensor]]] = {}

    def __repr__(self) -> str:
        weights = hashlib.sha256(self.log_density.detach().cpu().float().numpy().tobytes()).hexdigest()[:12]
        ends = f"log_snr_max={self.log_snr_max}, log_snr_min={self.log_snr_min}"
        return f"Learned({ends}, segments={self.segments}, weights={weights})"

    def _heights(self) -> Tensor:
        """The density of u, the position in the log-SNR range (0: data end), at the knots; integrates to one."""
        shape = torch.softmax(_GAIN * self.log_density.to(torch.float64), 0)
        mean = (shape.sum() - 0.5 * (shape[0] + shape[-1])) / self.segments
        return UNIFORM + (1.0 - UNIFORM) * shape / mean

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The density of u and its distribution function at the knots, cached until the parameters change."""
        if torch.compiler.is_compiling():
            return self._make_tables(device)
        at = self.log_density
        # Version counters miss changes to weights created in inference mode or made through `.data`. Comparing a few
        # numbers is faster than rebuilding the tables, unless it has to wait for a GPU.
        if at.device.type == "cpu":
            state: object = at.tolist()
        else:
            state = object() if at.is_inference() else (at.data_ptr(), at._version, at.dtype)
        if device not in self._cache or self._cache[device][0] != state:
            with torch.inference_mode(False):
                self._cache[device] = (state, self._make_tables(device))
        return self._cache[device][1]

    @torch.no_grad()
    def _make_tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        heights = self._heights()
        below = torch.cat((heights.new_zeros(1), (0.5 * (heights[1:] + heights[:-1])).cumsum(0)))
        return (heights * self.segments / below[-1]).to(device), (below / below[-1]).to(device)

    def _at_time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """u at time t, and its density there. Beyond the ends the density is constant."""
        heights, below = self._tables(t.device)
        share = (t.to(torch.float64) - _T_MIN) / (1.0 - _T_MIN)
        k = (torch.searchsorted(below, share.detach().contiguous(), right=True) - 1).clamp(0, self.segments - 1)
        left, slope = heights[k], (heights[k + 1] - heights[k]) * self.segments
        mass, whole = share - below[k], below[k + 1] - below[k]
        inside = torch.minimum(mass.clamp(min=0.0), whole)
        density = torch.sqrt(left**2 + 2.0 * slope * inside)
        # the root of the quadratic in the form that does not cancel for constant density; the end without rounding
        since = torch.where(mass < whole, 2.0 * self.segments * inside / (left + density), 1.0)
        return (k + since) / self.segments + (mass - inside) / density, density

    def _knot(self, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The segment of a log-SNR, u since its left knot, and that clamped to the segment."""
        u = (self.log_snr_max - log_snr.to(torch.float64)) / (self.log_snr_max - self.log_snr_min)
        k = (u.detach() * self.segments).floor().clamp(0, self.segments - 1).long()
        since = u - k.to(torch.float64) / self.segments
        return k, since, since.clamp(0.0, 1.0 / self.segments)

    def log_snr(self, t: Tensor) -> Tensor:
        u, _ = self._at_time(t)
        return ((1.0 - u) * self.log_snr_max + u * self.log_snr_min).to(t.dtype)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        heights, below = self._tables(log_snr.device)
        k, since, inside = self._knot(log_snr)
        slope = (heights[k + 1] - heights[k]) * self.segments
        edge = heights[k] + slope * inside
        share = below[k] + 0.5 * (heights[k] + edge) * inside + edge * (since - inside)
        return (_T_MIN + (1.0 - _T_MIN) * share).to(log_snr.dtype)

    def d_log_snr(self, t: Tensor) -> Tensor:
        return ((self.log_snr_min - self.log_snr_max) / ((1.0 - _T_MIN) * self._at_time(t)[1])).to(t.dtype)

    def log_alpha(self, t: Tensor) -> Tensor:
        return log_sigmoid_alpha(self.log_snr(t))

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return 0.5 * torch.sigmoid(-self.log_snr(t)) * self.d_log_snr(t)

    def time_density(self, log_snr: Tensor) -> Tensor:
        """As `Schedule.time_density`, between the ends; the only method with a gradient in the parameters."""
        heights = self._heights().to(log_snr.device)
        k, _, inside = self._knot(log_snr)
        density = torch.lerp(heights[k], heights[k + 1], inside * self.segments)
        return (density / (self.log_snr_max - self.log_snr_min)).to(log_snr.dtype)

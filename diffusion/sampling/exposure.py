"""Exposure bias: are the states that a sampler visits as large as those that the model was trained on?

In training x_t = alpha x + sigma eps has E|x_t|^2 / D = alpha^2 E|x|^2 / D + sigma^2. A sampler feeds the denoiser
with its own errors; the ratio

    r(t) = E|x_t|^2 along the sampler / (alpha_t^2 E|x|^2 + sigma_t^2 D)

is 1 for an exact denoiser and an exact solver (compare Ning et al. 2024, arXiv 2308.15321, who shrink eps_hat to bring
it back). Long steps of a first-order solver lower it too: of N(0, c^2) a step multiplies the state by less than the
path does. Seen with a solver whose error is small it is the denoiser's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoisers.given import positive_number
from ..schedules import Schedule

# (log-SNR, or None for clean data at the end; the ratio; its standard error)
Point = tuple[float | None, float, float]


class Exposure:
    """Watches a sampler as its `callback`: `curve` is the ratio at each of its times.

        exposure = Exposure(denoiser.schedule, second_moment=0.25)
        diffusion.sample(denoiser, 1000, sampler="ddim", steps=20, callback=exposure)
        exposure.curve()[-1]  # of the samples themselves

    Args:
        schedule: The path.
        second_moment: E|x|^2 / D of the data, in the denoiser's units.
    """

    def __init__(self, schedule: Schedule, second_moment: float):
        self.schedule = schedule
        self.second_moment = positive_number("second_moment", second_moment)
        self._squares: dict[float, list[Tensor]] = {}

    def __call__(self, step: int, s: float, x: Tensor, x_hat: Tensor | None) -> None:
        """Note the mean square of each state (B, *shape) at time s."""
        self._squares.setdefault(float(s), []).append(x.detach().double().square().flatten(1).mean(1))

    def curve(self) -> Sequence[Point]:
        """The ratio at each time that all samples have passed, from noise to data; empty if nothing was watched."""
        squares = {time: torch.cat(found) for time, found in self._squares.items()}
        most = max((len(found) for found in squares.values()), default=0)
        points: list[Point] = []
        for time in sorted(squares, reverse=True):
            found, t = squares[time], torch.tensor(time, dtype=torch.float64)
            if len(found) < most:  # an adaptive solver has times of its own in each batch
                continue
            if time == 0.0:
                log_snr, expected = None, self.second_moment
            else:
                alpha, sigma = map(float, self.schedule(t))
                log_snr, expected = float(self.schedule.log_snr(t)), alpha**2 * self.second_moment + sigma**2
            error = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else math.nan
            points.append((log_snr, float(found.mean()) / expected, error / expected))
        return points

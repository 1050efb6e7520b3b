"""Does a denoiser answer what it is taken to answer? Measured on images, at every noise level.

With x_t = alpha x + sigma eps, the error e = E||eps - eps_hat||^2 / D is least, at every log-SNR, for the posterior
mean of the data. An answer of zero has e = 1, and the best linear one of all pixels alike, for data of variance c, has
s c / (1 + s c) with s the signal-to-noise ratio. The mean of x_hat is that of the data at every level, and its
deviation at most theirs. So a wrong convention shows: its error is larger, and that of the right one is smaller on the
same images and the same noise. Errors are compared in bits/dim, the integral of e / 2 over log-SNR (I-MMSE).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..denoisers.adopted import AdoptedDenoiser
from ..denoisers.conventions import SHIFTED, Convention
from ..denoisers.denoiser import Denoiser, device_of
from ..denoisers.evaluations import evaluation_mode
from ..denoisers.given import cond_for, level_data, real_data, seed_number
from ..errors import UserError
from ..likelihood.batching import Progress, choose_batch_size
from ..likelihood.dequantization import Dequantizer
from ..numerics import random
from ..numerics.arrays import whole_number
from ..schedules.forward_process import diffuse
from ..schedules.schedule import log_snr_ends

LEVELS = 16
_PILOT, _ROUNDS, _FINALISTS = 16, 3, 6
_SIGMAS, _LEAST = 4.0, 1e-4  # standard errors, and bits/dim, by which another convention has to be better
_ALIKE = 0.01  # the share by which fits differ that are one: 999 t and 1000 t
_NOTICED = 0.01
_WORST = 1e6  # a larger error is as good as infinite
_NUMBERS = 2**15  # of noise at a level, for the best neighbours: small images get several draws each
# A path that ends in more signal than this, in log-SNR, does not end in noise.
NOISY_ENOUGH = -4.0
_BELOW = -12.0  # no level below is looked at: only noise is there
_SEEN = -6.0  # below, x_hat is a small difference of large numbers, and its mean and deviation tell nothing
_EXCESS = 0.005  # of the error of eps, which is 0.004 bits/dim per unit of log-SNR


@dataclass(frozen=True)
class Level:
    """What was found at a log-SNR.

    Args:
        log_snr: The log-SNR.
        error: E||eps - eps_hat||^2 / D.
        linear: That of the best linear filter of all pixels alike.
        mean, std: Of all values of x_hat.
    """

    log_snr: float
    error: float
    linear: float
    mean: float
    std: float


@dataclass(frozen=True)
class Check:
    """What a check found.

    Args:
        levels: The levels, from noise to data.
        mean, std: Of all values of the data.
        images: How many images were used.
        verdicts: A line for each thing that is wrong.
        better: The conventions that fit better, each on top of the last, by the bits/dim that they gain.
        tried: How many conventions were tried.
    """

    levels: tuple[Level, ...]
    mean: float
    std: float
    images: int
    verdicts: tuple[str, ...]
    better: Mapping[str, float] = field(default_factory=dict)
    tried: int = 0

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.verdicts

    def lines(self) -> list[str]:
        """The verdicts, or that there is nothing to say."""
        tried = f"; none of {self.tried} neighbouring conventions fits better" if self.tried else ""
        return list(self.verdicts) or [f"nothing wrong on {self.images} images{tried}"]

    def __str__(self) -> str:
        head = f"{'log-SNR':>8} {'eps error':>10} {'linear':>10} {'mean':>8} {'std':>8}"
        rows = [
            f"{one.log_snr:8.2f} {one.error:10.4g} {one.linear:10.4g} {one.mean:8.3f} {one.std:8.3f}"
            for one in self.levels
        ]
        data = f"{'data':>8} {'':10} {'':10} {self.mean:8.3f} {self.std:8.3f}"
        return "\n".join([head, *rows, data, *(f"- {line}" for line in self.lines())])


def check(
    denoiser: Denoiser,
    data: Tensor,
    levels: Any = LEVELS,
    cond: Any = None,
    seed: Any = 0,
    progress: Progress | None = None,
) -> Check:
    """Check a denoiser on data, and if it was adopted try the neighbouring conventions.

    Args:
        denoiser: The denoiser.
        data: Data as it sees them, shape (N, *shape), two or more.
        levels: The number of noise levels.
        cond: Class labels, shape (N,), or None.
        seed: The seed of the noise.
        progress: Called with (conventions tried, of how many).

    Raises:
        UserError: For fewer than two data or levels.
    """
    levels = whole_number("levels", levels)
    if len(data) < 2 or levels < 2:
        raise UserError(f"images: found {len(data)} at {levels} noise levels; a check needs two or more of each")
    bench = _Bench(data.double(), cond, seed_number(seed), denoiser)
    low, high = log_snr_ends(denoiser.schedule)
    log_snrs = torch.linspace(min(max(low, _BELOW), high - 1.0), high, levels, dtype=torch.float64)
    found = bench.measure(denoiser, log_snrs, len(data))
    mean, std = float(data.double().mean()), float(data.double().std())
    variance = data.double().var(0).mean()
    linear = variance * log_snrs.exp() / (1.0 + variance * log_snrs.exp())
    rows = tuple(
        Level(*map(float, values))
        for values in zip(log_snrs, found.error.mean(1), linear, found.mean, found.std, strict=True)
    )
    verdicts = _faults(rows, found, mean, std, float(variance), low)
    better, tried = {}, 0
    if isinstance(denoiser, AdoptedDenoiser):
        better, tried = _better(bench, denoiser, log_snrs, progress)
        for number, (name, gain) in enumerate(better.items()):
            better_so = f"after that change, {name} fits better still" if number else f"{name} fits better"
            verdicts.append(f"{better_so}, by {gain:.3g} bits/dim over these noise levels")
    return Check(rows, mean, std, len(data), tuple(verdicts), better, tried)


def data_of(data: Any, dequantizer: Dequantizer | None, shape: tuple[int, ...]) -> Tensor:
    """Images of levels, dequantised uniformly, or continuous data, float64.

    Raises:
        UserError: For data of another kind or shape.
    """
    if dequantizer is None:
        return real_data("images", data, shape).double()
    images = level_data("images", data, dequantizer.levels)
    if tuple(images.shape[1:]) != shape:
        raise UserError(f"images: found shape {tuple(images.shape)}; the model's is (n, {', '.join(map(str, shape))})")
    rows = torch.arange(len(images))
    u = random.uniform(0, rows, 0, shape, random.STREAM_DEQUANTIZE, torch.float64)
    return dequantizer.dequantize(images.cpu(), u)


def useless_at(denoiser: Denoiser, data: Tensor, log_snr: float, cond: Any = None) -> float | None:
    """The error of eps at a log-SNR, if it is larger than that of no answer, 1, beyond doubt."""
    bench = _Bench(data, cond, 0, denoiser)
    found = bench.measure(denoiser, torch.tensor([log_snr], dtype=torch.float64), len(data))
    return 1.0 + float(found.over.mean()) if bool(found.worse_than_none) else None


def best_end(denoiser: Denoiser, data: Tensor, cond: Any = None) -> float:
    """The log-SNR at which the path of a denoiser is best ended, on held-out data.

    The bound of dequantised data whose path ends at lambda changes with it by (1 - e) / 2 nats a dimension, e the error
    of eps: it is greatest where the sum of 1 - e is.

    Raises:
        UserError: For fewer than two data.
    """
    if len(data) < 2:
        raise UserError(f"images: found {len(data)}; log_snr_max='best' needs two or more")
    low, high = log_snr_ends(denoiser.schedule)
    log_snrs = torch.linspace(low, high, 33, dtype=torch.float64)
    found = _Bench(data.double(), cond, 0, denoiser).measure(denoiser, log_snrs, len(data))
    gains = 1.0 - found.error.mean(1)
    total = torch.cat((gains.new_zeros(1), (0.5 * (gains[1:] + gains[:-1])).cumsum(0)))
    return float(log_snrs[max(1, int(total.argmax()))])


@dataclass(frozen=True)
class _Measured:
    """By noise level: the error of each image, shape (K, N), and the mean and deviation of x_hat."""

    error: Tensor
    mean: Tensor
    std: Tensor
    off: Tensor  # the mean of x_hat minus that of the image, of each image, shape (K, N)
    over: Tensor  # the error minus that of no answer, on the same noise, shape (K, N)

    @property
    def worse_than_none(self) -> Tensor:
        """The levels at which the error is that much larger, by three standard errors and a hundredth."""
        error = self.over.std(1) / math.sqrt(self.over.shape[1])
        return self.over.mean(1) - 3.0 * error > _NOTICED


class _Bench:
    """Data and their noise, the same for every denoiser; of this one the classes and the device are."""

    def __init__(self, data: Tensor, cond: Any, seed: int, denoiser: Denoiser):
        self.data, self.seed = data.to(device_of(denoiser)), seed
        self.noise: dict[tuple[int, int, int], Tensor] = {}  # of small data, drawn once for all conventions
        known = denoiser.num_classes, len(data), denoiser.parts
        self.cond = None if cond is None else cond_for(cond, *known).to(self.data.device)

    @torch.no_grad()
    def measure(
        self, denoiser: Denoiser, log_snrs: Tensor, n: int, steps: Tensor | None = None, draws: int = 1
    ) -> _Measured:
        """The errors of the first n data at every log-SNR, whose noise is that of `steps`."""
        found, dims = [], self.data[0].numel()
        steps = torch.arange(len(log_snrs)) if steps is None else steps
        rows = torch.arange(n * draws)
        with evaluation_mode(denoiser):
            for step, log_snr in zip(steps.tolist(), log_snrs, strict=True):
                batches = [
                    self._at(denoiser, log_snr, step, some, n) for some in rows.split(choose_batch_size(None, dims))
                ]
                error, x_hat, none = (torch.cat(parts).cpu() for parts in zip(*batches, strict=True))
                by_row = (error, x_hat.flatten(1).mean(1), error - none)
                error, mean, over = (of_row.reshape(-1, n).mean(0) for of_row in by_row)
                off = mean - self.data[:n].flatten(1).mean(1).cpu()
                found.append((error, x_hat.mean(), x_hat.std(), off, over))
        return _Measured(*(torch.stack(parts) for parts in zip(*found, strict=True)))

    def _at(self, denoiser: Denoiser, log_snr: Tensor, step: int, rows: Tensor, n: int) -> tuple[Tensor, ...]:
        of, key = rows % n, (step, int(rows[0]), len(rows))
        x = self.data[of]
        if (eps := self.noise.get(key)) is None:
            eps = random.normal(self.seed, rows, step, x.shape[1:], random.STREAM_EVALUATE, x.dtype, x.device)
            if self.data.numel() <= _NUMBERS:
                self.noise[key] = eps
        t = denoiser.schedule.inverse_log_snr(log_snr)
        x_t = diffuse(denoiser.schedule, x, t, eps)
        found = denoiser.eps(x_t, t, None if self.cond is None else self.cond[of])
        error = (eps - found).flatten(1).square().mean(1)
        alpha, sigma = denoiser.schedule(t)
        none = eps.flatten(1).square().mean(1)
        return error.nan_to_num(_WORST, _WORST).clamp(max=_WORST), (x_t - sigma * found) / alpha, none


def _faults(rows: Sequence[Level], found: _Measured, mean: float, std: float, variance: float, low: float) -> list[str]:
    """What the table shows to be wrong, a line each."""
    lines = []
    n = found.error.shape[1]
    spread = found.error.std(1) / math.sqrt(n)
    useless = [row for row, worse in zip(rows, found.worse_than_none.tolist(), strict=True) if worse]
    ends = rows[-len(useless) :] if useless else []
    if useless and list(ends) == useless:
        lines.append(
            f"from log-SNR {useless[0].log_snr:.3g} on the noise estimate is worse than predicting zero, whose error "
            f"is 1 (error {useless[-1].error:.3g} at the end): end the path earlier, log_snr_max='best'"
        )
    elif useless:
        lines.append(
            f"at {len(useless)} of {len(rows)} levels the noise estimate is worse than predicting zero, whose error "
            f"is 1 (error {max(row.error for row in useless):.3g} at worst)"
        )
    above = found.error.mean(1) - 3.0 * spread - torch.tensor([row.linear for row in rows], dtype=spread.dtype)
    blind = [
        row
        for row, error in zip(rows, spread, strict=True)
        if row.error - 3.0 * float(error) > variance * math.exp(row.log_snr) + _EXCESS
    ]
    if blind and not useless:
        lines.append(
            f"up to log-SNR {blind[-1].log_snr:.3g} x_hat is further from the data than their mean is: look at the "
            "noise end of the path"
        )
    elif all(row.error > row.linear for row in rows) and bool((above > 0).any()) and not useless:
        lines.append("at no level is the estimate better than a linear filter: look at the convention or the weights")
    # Paired: near noise x_hat is the same for all images, while their own mean is that of n draws.
    off = found.off.mean(1).abs() - 4.0 * found.off.std(1) / math.sqrt(n) - 0.05 * std
    seen = torch.tensor([row.log_snr >= _SEEN for row in rows])
    if not useless and bool((off[seen] > 0).any()):
        worst = int(torch.where(seen, off, -math.inf).argmax())
        lines.append(
            f"the mean of x_hat is {rows[worst].mean:.3g} at log-SNR {rows[worst].log_snr:.3g}, that of the data "
            f"{mean:.3g}: look at the range of the data"
        )
    worst_row = max((row for row in rows if row.log_snr >= _SEEN), key=lambda row: row.std, default=rows[-1])
    if not useless and worst_row.std > 1.1 * std:
        lines.append(
            f"the deviation of x_hat is {worst_row.std:.3g} at log-SNR {worst_row.log_snr:.3g}, that of the data "
            f"{std:.3g}: an average cannot vary more than what it is an average of"
        )
    if low > NOISY_ENOUGH:
        lines.append(not_noise(low))
    return lines


def not_noise(low: float) -> str:
    """What to say of a path that ends in signal."""
    share = 1.0 / (1.0 + math.exp(-low))
    return (
        f"the path ends at log-SNR {low:.3g}, not in noise ({share:.2g} of the variance is signal there): samples "
        "start without that signal, and a likelihood pays for it; give the noise end of the whole path, or a start "
        "fitted to other images: --fitted-start diagonal (--data IMAGES), fitted_start=model.fitted_start(images)"
    )


def _better(
    bench: _Bench, denoiser: AdoptedDenoiser, log_snrs: Tensor, progress: Progress | None
) -> tuple[dict[str, float], int]:
    """The conventions that fit better, step by step, and how many were tried."""
    found: dict[str, float] = {}
    tried, n = 0, len(bench.data)
    few, draws = min(n, _PILOT), max(1, _NUMBERS // bench.data.numel())
    for _ in range(_ROUNDS):
        candidates = list(denoiser.convention.neighbours())
        pilots, scores, count = bench.measure(denoiser, log_snrs, few).error, [], 0
        for done, (name, convention) in enumerate(candidates):
            other = _tried(denoiser, convention)
            gain = None if other is None else _gain(bench, pilots, other, log_snrs, few)
            count += gain is not None
            if gain is not None and gain.mean + 2.0 * gain.error > 0.0:
                scores.append((gain.likeness, name, other))
            if progress is not None:
                progress(done + 1, len(candidates))
        tried = max(tried, count)
        finalists = sorted(scores, key=lambda one: -one[0])[:_FINALISTS]
        whole = bench.measure(denoiser, log_snrs, n, draws=draws).error
        passed: list[tuple[_Gain, str, AdoptedDenoiser]] = []
        for _, name, other in finalists:
            gain = _gain(bench, whole, other, log_snrs, n, draws)
            if gain is not None and gain.likeness > 0.0 and gain.mean > max(_LEAST, _SIGMAS * gain.error):
                passed.append((gain, name, other))
        if not passed:
            break
        best, _, denoiser = max(passed, key=lambda one: one[0].likeness)
        log_snrs = log_snrs[_inside(denoiser, log_snrs)]  # where it was measured: its path may be shorter
        names = " or ".join(name for gain, name, _ in passed if gain.likeness > (1.0 - _ALIKE) * best.likeness)
        same = next((known for known in found if _argument(known) == _argument(names)), None)
        found[names] = best.mean + (found.pop(same) if same else 0.0)  # a second word on one argument is the last
    return found, tried


def _argument(name: str) -> str:
    """What a convention that is so named changes."""
    return SHIFTED if name.startswith(SHIFTED) else name.partition("=")[0]


def _tried(denoiser: AdoptedDenoiser, convention: Convention) -> AdoptedDenoiser | None:
    try:
        return denoiser.by(convention)
    except UserError:  # a path that these units leave too short
        return None


def _inside(denoiser: Denoiser, log_snrs: Tensor) -> Tensor:
    """Which of these levels its path has."""
    low, high = log_snr_ends(denoiser.schedule)
    return (log_snrs >= low - 1e-6) & (log_snrs <= high + 1e-6)


@dataclass(frozen=True)
class _Gain:
    """What another convention gains at the levels that its path has.

    Args:
        mean, error: In bits/dim, and its standard error over the images.
        likeness: The sum over these levels of the logarithm of the ratio of the errors: an error that is large at a few
            levels alone, as at a wrong end, does not hide the rest.
    """

    mean: float
    error: float
    likeness: float


def _gain(
    bench: _Bench, against: Tensor, other: AdoptedDenoiser, log_snrs: Tensor, n: int, draws: int = 1
) -> _Gain | None:
    inside = _inside(other, log_snrs)
    if int(inside.sum()) < 2:
        return None
    at, steps = log_snrs[inside], inside.nonzero().flatten()
    try:
        found = bench.measure(other, at, n, steps, draws).error
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a network that does not take the inputs of another convention
        return None
    width = float(log_snrs[-1] - log_snrs[0]) / (len(log_snrs) - 1) * len(at)
    gains = (against[inside] - found).mean(0) * width / (2.0 * math.log(2.0))
    likeness = float((against[inside].mean(1) / found.mean(1).clamp(min=1e-12)).log().sum())
    return _Gain(float(gains.mean()), float(gains.std()) / math.sqrt(n), likeness)

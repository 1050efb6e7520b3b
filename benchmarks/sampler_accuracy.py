"""The error of every deterministic sampler at a budget of evaluations, with an exact denoiser.

Random mixtures of Gaussians, their means uniform in [-1, 1]: `plane` (8 modes of deviation 0.08), `images` (10 modes of
3x8x8, of deviations 0.08 to 0.2), and, on request, `scales` (6 modes in the plane, of 0.005 to 0.3), `wide` (4 modes in
16 dimensions, of 0.2 to 0.5) and `narrow` (20 modes of 0.02 in 48 dimensions). The error is the root mean square, over
samples and dimensions, against the probability-flow ODE from log-SNR -10, solved in float64 by dopri8 at a tolerance of
1e-9. Several are drawn, and the geometric mean of their errors is shown: of what is drawn with when nothing is said
(the default), and of every sampler on the best of the grids and of the log-SNRs at which they end. The evaluations
include the last one, x = E[x | x_t]; where a budget does not divide, a sampler uses less of it.

    python benchmarks/sampler_accuracy.py [--mixtures 3] [--samples 64] [--case NAME ...] [--budgets 5 10 20 50]

`--peers` shows the default and the best pairs of another solver and a grid that is common for it, and the worst
ratio of the two on one mixture.

`--tuned` shows, in place of these, what is tuned to each mixture: Adams's method with the grid `auto`, and the fitted
sampler. Seeds from 500 on are of mixtures that nothing was chosen on:

    python benchmarks/sampler_accuracy.py --tuned --first-seed 500 --mixtures 32 --samples 1024 --budgets 5
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.config import FITTED_STEPS
from diffusion.denoisers.exact import GaussianMixture
from diffusion.samplers import ODE, Adams, Sampler, build, names
from diffusion.sampling.auto_grid import auto_grid
from diffusion.sampling.fit import fit_sampler
from diffusion.sampling.sample import DEFAULT_SAMPLER, grid_for
from diffusion.schedules import VP, Cosine, time_grid

F64 = torch.float64
SCHEDULE = Cosine(log_snr_min=-10.0, log_snr_max=14.0)
# Where the grid leaves the path: a budget's last evaluation stands for all that is left, so few leave early.
ENDS = {5: (4.0, 5.0), 10: (5.0, 6.0, 7.0), 20: (7.0, 8.0, 9.25), 50: (9.25, 11.0)}
# What half of the best known errors is, at 5, 10, 20 and 50 evaluations.
TARGETS = {
    "plane": {5: 2.2e-2, 10: 9.5e-3, 20: 1.25e-3, 50: 2.1e-4},
    "images": {5: 6e-2, 10: 2.8e-2, 20: 1.1e-2, 50: 1.2e-4},
}


@dataclass(frozen=True)
class Case:
    """A mixture, starting states, and where the probability flow takes them."""

    model: GaussianMixture
    x_1: Tensor
    truth: Tensor


def plane(generator: torch.Generator) -> GaussianMixture:
    """8 modes in the plane."""
    means = 2.0 * torch.rand(8, 2, dtype=F64, generator=generator) - 1.0
    return GaussianMixture(means, torch.full((8,), 0.08, dtype=F64), SCHEDULE)


def images(generator: torch.Generator) -> GaussianMixture:
    """10 modes of 3x8x8."""
    means = 2.0 * torch.rand(10, 3, 8, 8, dtype=F64, generator=generator) - 1.0
    return GaussianMixture(means, 0.08 + 0.12 * torch.rand(10, dtype=F64, generator=generator), SCHEDULE)


def scales(generator: torch.Generator) -> GaussianMixture:
    """6 modes in the plane, the widest up to 60 times as wide as the narrowest."""
    means = 2.0 * torch.rand(6, 2, dtype=F64, generator=generator) - 1.0
    return GaussianMixture(means, 0.005 * 60.0 ** torch.rand(6, dtype=F64, generator=generator), SCHEDULE)


def wide(generator: torch.Generator) -> GaussianMixture:
    """4 modes in 16 dimensions."""
    means = 2.0 * torch.rand(4, 16, dtype=F64, generator=generator) - 1.0
    return GaussianMixture(means, 0.2 + 0.3 * torch.rand(4, dtype=F64, generator=generator), SCHEDULE)


def narrow(generator: torch.Generator) -> GaussianMixture:
    """20 modes in 48 dimensions."""
    means = 2.0 * torch.rand(20, 48, dtype=F64, generator=generator) - 1.0
    return GaussianMixture(means, torch.full((20,), 0.02, dtype=F64), SCHEDULE)


MIXTURES: dict[str, Callable[[torch.Generator], GaussianMixture]] = {
    "plane": plane, "images": images, "scales": scales, "wide": wide, "narrow": narrow,
}  # fmt: skip


def draw_case(kind: str, samples: int, seed: int) -> Case:
    """A random mixture with its reference solution."""
    generator = torch.Generator().manual_seed(seed)
    model = MIXTURES[kind](generator)
    x_1 = SCHEDULE.prior_std * torch.randn(samples, *model.shape, dtype=F64, generator=generator)
    grid = torch.tensor([SCHEDULE.t_max, SCHEDULE.t_min, 0.0], dtype=F64)
    return Case(model, x_1, ODE("dopri8", 1e-9, 50_000).sample(model, x_1, grid))


def in_angle(unit: float, end: float, steps: int) -> Tensor:
    """A grid uniform in arctan(sigma / (unit alpha)): at a small unit, most steps are near the data."""
    log_snr = torch.tensor([-10.0, end], dtype=F64)
    angles = torch.atan(torch.exp(-0.5 * log_snr) / unit)
    angle = angles[0] + (angles[1] - angles[0]) * torch.linspace(0, 1, steps, dtype=F64)
    times = SCHEDULE.inverse_log_snr(-2.0 * torch.log(unit * torch.tan(angle)))
    times[0] = SCHEDULE.t_max
    return torch.cat((times, torch.zeros(1, dtype=F64)))


def mixed(end: float, steps: int) -> Tensor:
    """A grid whose density is half that of `log-snr`, half that of `angle/0.25`."""
    log_snr = torch.linspace(-10.0, end, 4001, dtype=F64)
    angle = torch.atan(torch.exp(-0.5 * log_snr) / 0.25)
    share = 0.5 * (log_snr + 10.0) / (end + 10.0) + 0.5 * (angle[0] - angle) / (angle[0] - angle[-1])
    nearest = torch.searchsorted(share, torch.linspace(0, 1, steps, dtype=F64)).clamp(max=4000)
    times = SCHEDULE.inverse_log_snr(log_snr[nearest])
    times[0] = SCHEDULE.t_max
    return torch.cat((times, torch.zeros(1, dtype=F64)))


GRIDS: dict[str, Callable[[float, int], Tensor]] = {
    "cauchy": lambda end, steps: time_grid(SCHEDULE, steps, "cauchy", end),
    "log-snr": lambda end, steps: time_grid(SCHEDULE, steps, "log-snr", end),
    "karras": lambda end, steps: time_grid(SCHEDULE, steps, "karras", end),
    "angle": lambda end, steps: time_grid(SCHEDULE, steps, "angle", end),
    "mixed": mixed,
    "angle/0.25": lambda end, steps: in_angle(0.25, end, steps),
}


def in_vp_time(power: int, steps: int) -> Tensor:
    """A grid uniform in the time of VP to 1e-3 (power 1), or finer near the data, as DEIS's (power 2)."""
    root = torch.linspace(1.0, 1e-3 ** (1.0 / power), steps, dtype=F64)
    log_snr = VP().log_snr(root**power).clamp(min=-10.0)
    times = SCHEDULE.inverse_log_snr(log_snr)
    times[0] = SCHEDULE.t_max
    return torch.cat((times, torch.zeros(1, dtype=F64)))


PEERS: dict[str, Sampler] = {
    "unipc": build("unipc"), "unipc (3)": build("unipc", predictor=3), "deis": build("deis"),
    "deis (2)": build("deis", predictor=2), "dpm-solver++2m": build("dpm-solver++2m"),
    "dpm-solver++3m": build("dpm-solver++3m"), "heun": build("heun"), "ddim": build("ddim"),
}  # fmt: skip
PEERS_GRIDS: dict[str, Callable[[int], Tensor]] = {
    "log-snr": lambda steps: time_grid(SCHEDULE, steps, "log-snr"),
    "karras to 0.03": lambda steps: time_grid(SCHEDULE, steps, "karras", -2.0 * math.log(0.03)),
    "karras to 0.002": lambda steps: time_grid(SCHEDULE, steps, "karras", -2.0 * math.log(0.002)),
    "angle": lambda steps: time_grid(SCHEDULE, steps, "angle"),
    "vp": lambda steps: in_vp_time(1, steps),
    "vp quadratic": lambda steps: in_vp_time(2, steps),
}


def samplers() -> dict[str, Sampler]:
    """Every sampler of the registry that draws no noise and takes its grid, and variants worth telling apart."""
    found = {name: build(name) for name in names()}
    kept = {name: s for name, s in found.items() if not s.is_stochastic and not s.is_adaptive}
    kept |= {"unipc (3)": build("unipc", predictor=3), "adams (3)": Adams(3), "adams (0.25)": Adams(data_std=0.25)}
    return kept | {"adams (data)": Adams(space="data"), "ode (rk4)": ODE("rk4")}


def steps_within(sampler: Sampler, budget: int) -> int:
    """The intervals of the largest grid that costs no more than `budget` evaluations."""
    assert sampler.evaluations_per_step is not None
    return (budget - 1 - sampler.starting_evaluations) // sampler.evaluations_per_step + 1


def rms(sampler: Sampler, grid: Tensor, case: Case) -> float:
    """The root mean square error."""
    return float((sampler.sample(case.model, case.x_1, grid) - case.truth).square().mean().sqrt())


def geometric_mean(errors: list[float]) -> float:
    """Over the cases."""
    return math.exp(statistics.fmean(map(math.log, errors)))


def fixed_grids(budget: int, cases: list[Case]) -> list[tuple[float, str, str]]:
    """(error, sampler, grid) of the default as it is, and of every sampler on the best of the fixed grids."""
    default = build(DEFAULT_SAMPLER)
    rows = [
        (
            geometric_mean([rms(default, grid_for(case.model, default, budget, None), case) for case in cases]),
            "the default",
            "",
        )
    ]
    for name, sampler in samplers().items():
        steps = steps_within(sampler, budget)
        if steps < 2:
            continue
        tried = []
        for grid, place in GRIDS.items():
            for end in ENDS[budget]:
                value = geometric_mean([rms(sampler, place(end, steps), case) for case in cases])
                tried.append((value, f"{grid}, {end:g}"))
        used = (steps - 1) * (sampler.evaluations_per_step or 0) + sampler.starting_evaluations + 1
        value, grid = min(tried)
        rows.append((value, name, f"{grid}, {used}"))
    return rows


def beside_peers(budget: int, cases: list[Case]) -> list[tuple[float, str, str]]:
    """(error, sampler, its grid) of the default, and of every peer on every grid."""
    default = build(DEFAULT_SAMPLER)
    mine = [rms(default, grid_for(case.model, default, budget, None), case) for case in cases]
    rows = []
    for name, sampler in PEERS.items():
        steps = steps_within(sampler, budget)
        for grid, place in PEERS_GRIDS.items():
            errors = [rms(sampler, place(steps), case) for case in cases]
            worst = max(a / b for a, b in zip(mine, errors, strict=True))
            rows.append((geometric_mean(errors), name, f"{grid}; the default is at most {worst:.1f} times as far"))
    return [(geometric_mean(mine), "the default", f"{max(mine):.1e} at most"), *sorted(rows)[:3]]


def tuned(budget: int, cases: list[Case]) -> list[tuple[float, str, str]]:
    """(error, sampler, its spread) of what is tuned to each mixture by itself."""
    adams, default = Adams(), build(DEFAULT_SAMPLER)
    errors = {
        "the default": [rms(default, grid_for(case.model, default, budget, None), case) for case in cases],
        "adams, auto": [rms(adams, auto_grid(case.model, adams, budget), case) for case in cases],
    }
    if budget in FITTED_STEPS:
        made = [fit_sampler(case.model, budget) for case in cases]
        errors["fitted"] = [rms(s, s.own_grid(SCHEDULE), case) for s, case in zip(made, cases, strict=True)]
    return [
        (geometric_mean(found), name, f"median {statistics.median(found):.1e}, {min(found):.1e} to {max(found):.1e}")
        for name, found in errors.items()
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mixtures", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--case", choices=tuple(MIXTURES), nargs="*", default=["plane", "images"])
    parser.add_argument("--budgets", type=int, choices=tuple(ENDS), nargs="*", default=list(ENDS))
    parser.add_argument("--first-seed", type=int, default=0, help="of the mixtures")
    parser.add_argument("--peers", action="store_true", help="the default, and other solvers on their common grids")
    parser.add_argument("--tuned", action="store_true", help="the grid auto and the fitted sampler")
    options = parser.parse_args()
    table = tuned if options.tuned else beside_peers if options.peers else fixed_grids
    last = "its errors, by mixture" if options.tuned else "grid"
    print(f"{'case':8}{'budget':>7}  {'sampler':16}{'error':>10}  {'/ target':>8}  {last}")
    for kind in options.case:
        cases = [draw_case(kind, options.samples, options.first_seed + i) for i in range(options.mixtures)]
        for budget in options.budgets:
            for value, name, more in sorted(table(budget, cases)):
                ratio = f"{value / TARGETS[kind][budget]:.2f}" if kind in TARGETS else ""
                print(f"{kind:8}{budget:7}  {name:16}{value:10.1e}  {ratio:>8}  {more}", flush=True)


if __name__ == "__main__":
    main()

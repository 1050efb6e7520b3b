"""The cells of a trade-off: one sampler at one cost, stored in a file named after its protocol.

The distance is the root mean square, over samples and dimensions, to an accurate solution of the probability flow from
the same noise: the error of the solver alone. Stochastic samplers follow no such path.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import FITTED, FITTED_STEPS
from ...denoisers import Denoiser
from ...denoisers.evaluations import count_evaluations
from ...devices import device_name
from ...errors import SolverError, UserError
from ...metrics import frechet_estimate, kernel_distance
from ...models.tuning_cache import reported_tuning
from ...numerics.placement import for_numbers
from ...numerics.random import FIXED_ORDER
from ...samplers import ODE, Sampler, build
from ...samplers.sampler import Callback
from ...sampling.exposure import Exposure, Point
from ...sampling.fit import FITTED_NOW
from ...sampling.sample import grid_for, sample, sampler_for
from ...schedules.time_grids import later_end
from ...storage import tensor_files
from ...storage.records import digest, find, keep
from .subjects import Subject

TOLERANCES = (1e-1, 3e-2, 1e-2, 1e-3, 1e-4)
FEWEST = 8  # samples, for FID and KID with their errors


@dataclass(frozen=True)
class Cell:
    """A sampler at a cost: a number of intervals, or a tolerance.

    Args:
        sampler: Its name.
        steps: Intervals of the grid; None for an adaptive one.
        tolerance: Of an adaptive one; None for others.
    """

    sampler: str
    steps: int | None
    tolerance: float | None

    def build(self, denoiser: Denoiser) -> Sampler:
        """The sampler; `fitted` is fitted to the denoiser, unless that is known."""
        return sampler_for(denoiser, self.sampler, self.steps, tolerance=self.tolerance)

    def grid(self, requested: str | None, end: float | None) -> tuple[str, float | None]:
        """The name of the grid and its end, where that is not the name's own: as requested, or else the sampler's."""
        if requested is not None or self.sampler == FITTED:
            return requested or FITTED, end
        sampler = build(self.sampler, tolerance=self.tolerance)
        later = None if self.steps is None or sampler.is_adaptive else later_end(sampler.default_grid, self.steps)
        return sampler.default_grid, later if end is None else end

    def fields(self) -> dict[str, str]:
        """What the sampler is by default, in words; `fitted` is what the model and the way of fitting make it."""
        if self.sampler == FITTED:
            return {"fit": FITTED_NOW}
        return {key: str(value) for key, value in build(self.sampler, tolerance=self.tolerance).settings.items()}


@dataclass(frozen=True)
class Measured:
    """The results of a cell; None for unknown ones.

    Args:
        cell: The cell.
        nfe: Network evaluations per sample, counted.
        seconds: Wall time per sample.
        distance: To the accurate solution; None for stochastic samplers.
        median: The median over samples of each one's distance, which a few that end in another mode do not move.
        fid, fid_sem, kid, kid_sem: Against the reference.
        excess, excess_sem: Mean of log p of the tight solve's samples less that of these, nats a sample, where p is
            known: above 0 where samples lie off the modes.
        failure: Why there are no figures.
        exposure: The size of the states along the way over that of training's (`sampling.exposure`).
    """

    cell: Cell
    nfe: float
    seconds: float
    distance: float | None = None
    fid: float | None = None
    fid_sem: float | None = None
    kid: float | None = None
    kid_sem: float | None = None
    excess: float | None = None
    excess_sem: float | None = None
    median: float | None = None
    failure: str | None = None
    exposure: Sequence[Point] | None = None


def plan(samplers: Sequence[str], budgets: Sequence[int]) -> list[list[Cell]]:
    """The cells of each sampler, the cheapest first; budgets too small for two intervals have none.

    Raises:
        UserError: For a sampler that is not known.
    """
    return [_cells_of(name, sorted(set(budgets))) for name in samplers]


def _cells_of(name: str, budgets: Sequence[int]) -> list[Cell]:
    if name == FITTED:
        return [Cell(name, count, None) for count in budgets if count in FITTED_STEPS]
    sampler = build(name)
    if sampler.is_adaptive:
        return [Cell(name, None, tolerance) for tolerance in TOLERANCES]
    steps = [steps_within(sampler, budget) for budget in budgets]
    return [Cell(name, count, None) for count in sorted(set(steps)) if count >= 2]


def steps_within(sampler: Sampler, budget: int) -> int:
    """The intervals of the largest grid that costs no more than `budget` evaluations, of which the last is x_hat."""
    assert sampler.evaluations_per_step is not None
    return (budget - 1 - sampler.starting_evaluations) // sampler.evaluations_per_step + 1


class Bench:
    """Measures cells of one subject, or finds what was measured.

    Args:
        subject: What is drawn from.
        options: `n`, `grid`, `seed`, `batch_size` and `again` of the command line.
        device: Where.
    """

    def __init__(self, subject: Subject, options: argparse.Namespace, device: torch.device):
        if options.n < FEWEST:
            raise UserError(f"--n: found {options.n}; at least {FEWEST} are needed, and 1,000 or more advised")
        self.subject, self.options, self.device = subject, options, device
        self.fresh = 0  # cells measured, not found
        self._tight: Tensor | None = None

    def measured(self, cell: Cell) -> Measured:
        """The figures of a cell, from its file where there is one."""
        question = self._question(cell)
        path = self.subject.folder / "cells" / f"{cell.sampler}-{digest(question)}.json"
        found = None if self.options.again else find(path, lambda kept: _of(kept, cell, question))
        if found is None:
            found = self._measure(cell)
            keep(path, {"question": question, "figures": {k: v for k, v in asdict(found).items() if k != "cell"}})
            self.fresh += 1
        return found

    def _drawing(self) -> dict[str, Any]:
        """What all samples depend on."""
        options = self.options
        return {"n": options.n, "seed": options.seed, "batch_size": options.batch_size, **self.subject.identity}

    def _question(self, cell: Cell) -> dict[str, Any]:
        grid, end = cell.grid(self.options.grid, self.options.log_snr_end)
        where = {"device": device_name(self.device), "tight": self.subject.tolerance, "grid": grid}
        if end is not None:  # cells of earlier versions have none
            where["log_snr_end"] = end
        return {**asdict(cell), "fields": cell.fields(), "order": FIXED_ORDER, **where, **self._drawing()}

    def _sample(self, sampler: Sampler, grid: Tensor, dtype: torch.dtype, watch: Callback | None = None) -> Tensor:
        options = self.options
        return sample(
            self.subject.denoiser, options.n, sampler, seed=options.seed, grid=grid, dtype=dtype,
            batch_size=options.batch_size, callback=watch, cond=self.subject.cond,
        )  # fmt: skip

    def tight(self) -> Tensor:
        """Where the probability flow takes the same noise, float64 (n, *shape); kept, since it costs the most."""
        if self._tight is None:
            question = {"tight": self.subject.tolerance, **self._drawing()}
            path = self.subject.folder / "cells" / f"tight-{digest(question)}.safetensors"
            self._tight = None if self.options.again else _read_tight(path)
            if self._tight is None:
                solver = ODE(tolerance=self.subject.tolerance, max_evaluations=50_000)
                schedule = self.subject.denoiser.schedule
                whole = torch.tensor([schedule.t_max, schedule.t_min, 0.0], dtype=torch.float64)
                self._tight = self._sample(solver, whole, torch.float64)
                tensor_files.write(path, {"x": self._tight}, {"tight": json.dumps(question, sort_keys=True)})
            self._tight = self._tight.to(for_numbers(self.device))
        return self._tight

    def _measure(self, cell: Cell) -> Measured:
        tight, denoiser = self.tight(), self.subject.denoiser
        # before anything is counted: what is tuned to a model is made once for all samples
        with self.subject.tuned(), reported_tuning(self.options.tuning_seconds):
            sampler = cell.build(denoiser)
            where = (None,) if cell.sampler == FITTED else (self.options.grid, self.options.log_snr_end)
            grid = grid_for(denoiser, sampler, cell.steps, *where)
        exposure = None  # under a condition: the second moment is that of all data
        if self.subject.cond is None:
            exposure = Exposure(denoiser.schedule, self.subject.second_moment)
        with count_evaluations(self.subject.denoiser) as count:
            start = time.perf_counter()
            try:
                x = self._sample(sampler, grid, self.subject.dtype, exposure)
            except SolverError as error:
                return Measured(cell, count.rows / self.options.n, 0.0, failure=str(error))
            bad = int((~torch.isfinite(x.flatten(1)).all(1)).sum())  # waits for the device, too
        seconds, nfe = (time.perf_counter() - start) / len(x), count.rows / len(x)
        if bad:
            return Measured(cell, nfe, seconds, failure=f"{bad} of {len(x)} samples are not finite")
        squares = (x.double() - tight).square().flatten(1).mean(1)
        distances = (
            (None, None) if sampler.is_stochastic else (float(squares.mean().sqrt()), float(squares.median().sqrt()))
        )
        features = self.subject.features(x)
        fid, kid = frechet_estimate(features, self.subject.statistics), kernel_distance(features, self.subject.some)
        excess = self._excess(x, tight)
        return Measured(
            cell, nfe, seconds, distances[0], fid.value, fid.std_error, kid.value, kid.std_error, *excess, distances[1],
            exposure=None if exposure is None else exposure.curve(),
        )  # fmt: skip

    def _excess(self, x: Tensor, tight: Tensor) -> tuple[float | None, float | None]:
        if self.subject.log_prob is None:
            return None, None
        # The same noise: of a solver the difference has far less spread than either part.
        lost = self.subject.log_prob(tight) - self.subject.log_prob(x.double())
        return float(lost.mean()), float(lost.std()) / math.sqrt(len(lost))


def _of(kept: dict[str, Any], cell: Cell, question: dict[str, Any]) -> Measured | None:
    figures = dict(kept["figures"])
    curve = figures.pop("exposure", None)  # cells of earlier versions have none
    if curve is not None:
        curve = [(None if log_snr is None else float(log_snr), float(r), float(error)) for log_snr, r, error in curve]
    found = Measured(cell, **figures, exposure=curve)
    return found if kept["question"] == json.loads(json.dumps(question)) else None


def _read_tight(path: Path) -> Tensor | None:
    try:
        return tensor_files.read(path, "trajectory", "tight")[0]["x"]
    except (UserError, KeyError):
        return None

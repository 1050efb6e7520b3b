"""Samplers as tables of numbers, which a loop without any formula carries out: on a page, or in another language.

A row of a plan is one evaluation of the denoiser and the state formed from it:

    m    = x_hat - made x                       (x_hat itself where `made` is null)
    x_to = keep base + from_x x + weights[0] x_hat + sum of weights[j] m of j rows before + fresh z

`base` is the last state that landed. The last row of a grid that ends at clean data is x = x_hat. With the numbers of
its noise level, x_hat = from_x_t x_t + from_output network(c_in x_t, c_noise).
"""

from __future__ import annotations

from typing import Any

import torch

from ...denoisers import NetworkDenoiser
from ...denoisers.preconditioning import c_in, c_noise
from ...denoisers.predictions import PathPoint
from ...models import DiffusionModel
from ...samplers import LinearSampler, Sampler
from ...samplers.ode.multistep import StagedSampler
from ...samplers.sampler import times_of
from ...sampling.sample import grid_for, sampler_for
from ...sampling.settings import fields_of_sampler


def plan(model: DiffusionModel, denoiser: NetworkDenoiser, sampler: str, steps: int) -> dict[str, Any]:
    """The plan of `sample.py --sampler SAMPLER --steps STEPS`, for a linear or staged sampler.

    Returns:
        `std`, of the initial noise; `rows`, as above, each with the index of its `level`; `levels`, the numbers of each
        noise level where the network is evaluated.
    """
    settings = model.sampling_settings({"sampler": sampler, "steps": steps})
    built = sampler_for(denoiser, sampler, steps, **fields_of_sampler(settings))
    grid = grid_for(denoiser, built, steps, settings.get("grid"), settings.get("log_snr_end"))
    times = times_of(denoiser.schedule, grid)
    rows = _rows(built, denoiser, times) if len(times) > 1 else []
    moments = [row.pop("t") for row in rows] + [times[-1]]
    for number, row in enumerate(rows):
        row["level"] = number
    rows.append({"level": len(rows), "keep": 0.0, "from_x": 0.0, "weights": [1.0], "made": None, "lands": True})
    std = float(torch.hypot(*denoiser.schedule(times[0])))
    return {"std": std, "rows": rows, "levels": [_level(denoiser, t) for t in moments]}


def _rows(sampler: Sampler, denoiser: NetworkDenoiser, times: torch.Tensor) -> list[dict[str, Any]]:
    if isinstance(sampler, LinearSampler):
        return [
            {"t": t, "keep": a, "from_x": 0.0, "weights": [b], "made": None, "lands": True, "fresh": c}
            for t, _, a, b, c in sampler.rows(denoiser.schedule, times)
        ]
    assert isinstance(sampler, StagedSampler)  # of those in `page.SAMPLERS`
    return [
        {
            "t": row.t, "keep": row.keep, "from_x": row.from_x, "weights": list(row.weights), "made": row.made,
            "lands": row.lands is not None,
        }
        for row in sampler.rows(denoiser.schedule, times)
    ]  # fmt: skip


def _level(denoiser: NetworkDenoiser, t: torch.Tensor) -> dict[str, float]:
    """The numbers of a noise level: x_hat is linear in x_t and the output, so its factors are its values at (1, 0)."""
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    at, log_snr = PathPoint(denoiser.schedule, t, one), denoiser.schedule.log_snr(t)
    return {
        "log_snr": float(log_snr),
        "c_in": float(c_in(at, denoiser.sigma_data)),
        "c_noise": float(c_noise(log_snr)),
        "from_x_t": float(denoiser.raw_to_x(zero, one, at)),
        "from_output": float(denoiser.raw_to_x(one, zero, at)),
    }

"""What a finished run shows: a table of likelihoods, pictures, and where everything is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from . import pictures, runs
from .config import Config
from .evaluation import describe
from .experiment import Data
from .likelihood import Estimate
from .model import DiffusionModel
from .samplers import ODE
from .sampling import sample

PATH_IMAGES, PATH_TIMES = 6, 12


def write_pictures(run: Path, model: DiffusionModel, data: Data, config: Config) -> dict[str, Path]:
    """Draw the run's pictures: a grid of samples, and the denoising path (images) or the density (points).

    Returns:
        The files by what they show.
    """
    options = config.sampling
    drawn = sample(
        model.denoiser,
        options.n,
        options.sampler,
        steps=options.steps,
        grid=options.grid,
        eta=options.eta,
        seed=config.seed,
    )
    folder = run / runs.SAMPLES
    found = {"samples": folder / "samples.png"}
    pictures.save_samples(found["samples"], drawn, data.toy)
    if data.toy is not None:
        found["density"] = folder / "density.png"
        image = pictures.density_picture(
            data.toy, lambda x: model.log_density(x, trace="exact", tolerance=1e-3).log_prob, drawn
        )
        pictures.save(found["density"], image)
    elif data.facts.shape[0] in (1, 3):
        found["denoising path"] = folder / "path.png"
        pictures.save(found["denoising path"], denoising_path(model, config.seed))
    return found


def denoising_path(model: DiffusionModel, seed: int):
    """A picture of x_t and E[x | x_t] along the probability-flow ODE, from noise to data."""
    states: list[Tensor] = []
    times: list[float] = []

    def keep(step: int, t: float, x: Tensor, x_hat: Tensor | None) -> None:
        states.append(x)
        times.append(t)

    sample(model.denoiser, PATH_IMAGES, ODE(tolerance=1e-3), steps=PATH_TIMES, seed=seed, callback=keep)
    with torch.no_grad():
        x_hats = [
            x if t == 0 else model.denoiser(x, torch.tensor(t, dtype=torch.float64))
            for x, t in zip(states, times, strict=True)
        ]
    return pictures.path_picture(states, times, x_hats)


def likelihood_table(estimates: Mapping[str, Estimate]) -> Table:
    """The likelihoods as a table: bits/dim (images) or nats (points) with interval, kind and protocol."""
    table = Table(title="Test likelihood", title_justify="left", header_style="bold")
    discrete = next(iter(estimates.values())).levels is not None
    for column in ("", "bits/dim" if discrete else "bits/dim (density)", "95 % interval", "kind", "NFE", "seconds"):
        table.add_column(column, justify="left" if column in ("", "kind") else "right")
    table.add_column("protocol", overflow="fold")
    for name, estimate in estimates.items():
        interval = estimate.mean()
        table.add_row(
            name,
            f"{interval.mean:.4f}",
            f"{interval.low:.4f} to {interval.high:.4f}",
            # a lower bound of log p is an upper bound of bits/dim
            "upper bound" if estimate.kind == "lower bound" else estimate.kind,
            f"{estimate.nfe:.0f}" if estimate.nfe else "-",
            f"{estimate.seconds:.1f}",
            describe(estimate),
        )
    return table


def places_table(places: Mapping[str, Path | str]) -> Table:
    """Where things are."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, place in places.items():
        table.add_row(f"{name}:", str(place), style=None)
    return table


def console() -> Console:
    """The console that reports go to: as wide as the terminal, or 140 columns where there is none."""
    made = Console()
    return made if made.is_terminal else Console(width=140)

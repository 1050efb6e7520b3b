"""What a finished run shows: a table of likelihoods, pictures, and where everything is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..baselines.gaussianity import Gaussianity
from ..config import Config
from ..data import pictures
from ..likelihood import Estimate
from ..models.build import Data
from ..models.load import TrainedModel
from ..models.tuning_cache import told_tuning
from ..storage import runs
from .evaluation import describe, effective_samples
from .options import TUNING_SECONDS


def write_pictures(run: Path, model: TrainedModel, data: Data, config: Config) -> dict[str, Path]:
    """Draw the run's pictures: a grid of samples, and what else the model's family shows (see its `pictures`).

    Returns:
        The files by what they show.
    """
    folder = run / runs.SAMPLES
    found = {"samples": folder / "samples.png"}
    with told_tuning(TUNING_SECONDS):
        drawn = model.sample(config.sampling.n, seed=config.seed, **model.sampling_settings({}))
        pictures.save_samples(found["samples"], drawn, data.toy)
        for name, (file, image) in model.pictures(data, config.seed).items():
            found[name] = folder / file
            pictures.save(found[name], image)
    return found


def known(text: str, *values: float) -> str:
    """A text of figures, or `unknown` where one is: one image says nothing of how much images differ."""
    return text.format(*values) if all(map(math.isfinite, values)) else "unknown"


def likelihood_table(estimates: Mapping[str, Estimate]) -> Table:
    """The likelihoods as a table: bits/dim (images) or nats (points) with interval, kind, law and protocol."""
    table = Table(title="Test likelihood", title_justify="left", header_style="bold")
    discrete = next(iter(estimates.values())).levels is not None
    unit = "bits/dim" if discrete else "bits/dim (density)"
    for column in ("", unit, "95 % interval", "kind", "law", "NFE", "seconds"):
        table.add_column(column, justify="left" if column in ("", "kind", "law") else "right")
    table.add_column("protocol", overflow="fold")
    for name, estimate in estimates.items():
        interval, ess = estimate.mean(), effective_samples(estimate)
        table.add_row(
            name,
            f"{interval.mean:.4f}",
            known("{:.4f} to {:.4f}", interval.low, interval.high),
            # a lower bound of log p is an upper bound of bits/dim
            "upper bound" if estimate.kind == "lower bound" else estimate.kind,
            estimate.law,
            f"{estimate.nfe:.0f}" if estimate.nfe else "-",
            f"{estimate.seconds:.1f}",
            describe(estimate) + ("" if ess is None else f", effective samples {ess:.3g} (median)"),
        )
    return table


def codes_table(reports: Mapping[str, Gaussianity]) -> Table:
    """How near codes are to N(0, I): moments, tests of normality, and entropy against its largest, d/2 log 2 pi e.

    Of the figures of each dimension the worst is shown. The nearest-neighbour entropy is biased in high dimensions, by
    as much for a normal sample of as many draws and dimensions, which therefore stands beside it.
    """
    table = Table(title="Codes against the prior N(0, I)", title_justify="left", header_style="bold")
    table.add_column("")
    for name in (*reports, "N(0, I)"):
        table.add_column(name, justify="right")
    told = [report.told() for report in reports.values()]
    for row in told[0] if told else ():
        table.add_row(row, *(each[row][0] for each in told), told[0][row][1])
    return table


def places_table(places: Mapping[str, Path | str]) -> Table:
    """Where things are."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, place in places.items():
        table.add_row(f"{name}:", escape(str(place)), style=None)
    return table


def console() -> Console:
    """The console that reports go to: as wide as the terminal, or 140 columns where there is none."""
    made = Console()
    return made if made.is_terminal else Console(width=140)

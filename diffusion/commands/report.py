"""The report of a finished run: likelihoods, pictures, and the places of all files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..baselines.gaussianity import Gaussianity
from ..config import Config
from ..data import pictures
from ..likelihood import Estimate
from ..models.build import Data
from ..models.load import TrainedModel
from ..models.tuning_cache import reported_tuning
from ..storage import runs
from .compare.groups import kind_text
from .evaluation import summary
from .options import TUNING_SECONDS
from .table import Column, Table


def write_pictures(run: Path, model: TrainedModel, data: Data, config: Config) -> dict[str, Path]:
    """Draw the run's pictures: a grid of samples, and what else the model's family shows (see its `pictures`).

    Returns:
        The files by what they show.
    """
    folder = run / runs.SAMPLES
    found = {"samples": folder / "samples.png"}
    with reported_tuning(TUNING_SECONDS):
        drawn = model.sample(config.sampling.n, seed=config.seed, **model.sampling_settings({}))
        pictures.save_samples(found["samples"], drawn, data.toy, continuous=model.facts.levels is None)
        for name, (file, image) in model.pictures(data, config.seed).items():
            found[name] = folder / file
            pictures.save(found[name], image)
    return found


def known(text: str, *values: float) -> str:
    """A formatted text, or `unknown` if a value is not finite (a single image has no interval)."""
    return text.format(*values) if all(map(math.isfinite, values)) else "unknown"


def unit_of(estimates: Mapping[str, Estimate]) -> tuple[str, str]:
    """The unit of likelihoods, as `summary` names it and in words: bits/dim of images, nats/dim of densities."""
    discrete = next(iter(estimates.values())).levels is not None
    return ("bits_per_dim", "bits/dim") if discrete else ("nats_per_dim", "nats/dim")


def likelihood_table(estimates: Mapping[str, Estimate], title: str = "Test likelihood") -> Table:
    """The likelihoods as a table, bits/dim of images, nats of densities, and under it the cost and protocol of each."""
    unit, words = unit_of(estimates)
    discrete = unit == "bits_per_dim"
    columns = (
        Column("", "estimate", left=True),
        *(() if discrete else (Column("-log p, nats", "nats", ".4f"),)),
        Column(words, unit, ".4f"),
        Column("95 % interval", lambda row: known("{:.4f} to {:.4f}", row[f"{unit}_low"], row[f"{unit}_high"])),
        Column("kind", "kind", kind_text, left=True),
        Column("law", "law", left=True),
    )
    rows = [{"estimate": name, **summary(found, "")} for name, found in estimates.items()]
    protocols = "\n".join(f"{row['estimate']}: {_protocol(row)}" for row in rows)
    return Table(columns, rows, title, protocols)


def _protocol(row: Mapping[str, Any]) -> str:
    ess, nfe = row.get("effective_samples"), row["nfe"]
    cost = [*([f"NFE {nfe:.0f}"] if nfe else []), f"{row['seconds']:.1f} s"]
    more = [] if ess is None else [f"effective samples {ess:.3g} (median)"]
    return ", ".join([*cost, row["protocol"], *more])


def codes_table(reports: Mapping[str, Gaussianity]) -> Table:
    """How close codes are to N(0, I): moments, tests of normality, and entropy compared with its maximum.

    Of values per dimension the worst is shown. The nearest-neighbour entropy is biased in high dimensions, equally for
    a normal sample of the same size, which is therefore shown next to it.
    """
    figures = {name: report.summary() for name, report in reports.items()}
    normal = next(iter(figures.values()), {})
    rows = (
        {"": row, **{name: of[row][0] for name, of in figures.items()}, "N(0, I)": truth}
        for row, (_, truth) in normal.items()
    )
    return Table.of(rows, title="Codes against the prior N(0, I)")

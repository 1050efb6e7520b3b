"""Logs results to W&B as separate runs of job type `eval` or `compare`; the files on disk remain the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any

from PIL.Image import Image

from ..numerics.random import fixed_order
from . import records
from .records import Evaluation
from .subjects import Subject
from .table import Column, Table

# W&B joins tables of at most this many rows.
LARGEST_TABLE = 10_000


def mirror_evaluation(subject: Subject, evaluation: Evaluation, choice: str, values: Mapping[str, Any]) -> Path | None:
    """Log an evaluation once, in the group of the run that was measured.

    Args:
        subject: What was measured.
        evaluation: The results.
        choice: off, offline, online or auto.
        values: Entries of W&B's run table.

    Returns:
        The folder of the W&B run; None without one, or if it existed before.
    """
    folder = subject.home / records.FOLDER / evaluation.protocol.name
    logging = subject.model.config.logging
    if (folder / "wandb").exists():
        return None
    config = {"model": dict(evaluation.model), "protocol": asdict(evaluation.protocol)}
    table = {image_key(evaluation): image_table([evaluation.in_its_unit()])}
    return log(folder, choice, logging.project, logging.group or subject.name, config, values, table, {})


def image_key(evaluation: Evaluation) -> str:
    """The key of the table of images: the same for every evaluation of a split, so that W&B joins them by index."""
    return f"likelihood/{evaluation.protocol.data['name']}-{evaluation.protocol.data['split']}"


def image_table(evaluations: Sequence[Evaluation]) -> Table:
    """Each image's bits/dim, by a stable index; at most 10,000, the first in the fixed order.

    Args:
        evaluations: In the unit of tables (`Evaluation.in_its_unit`): nats/dim of densities.
    """
    first = evaluations[0].estimate
    assert first.indices is not None
    several = len(evaluations) > 1
    unit = "bits_per_dim" if first.levels is not None else "nats_per_dim"
    names = [f"{e.model['run']} {e.protocol.method}" if several else unit for e in evaluations]
    rows = list(zip(first.indices.tolist(), *(e.estimate.bits_per_dim.tolist() for e in evaluations), strict=True))
    chosen = fixed_order(first.indices)[:LARGEST_TABLE].sort().values.tolist()
    columns = [Column(name, itemgetter(i)) for i, name in enumerate(["index", *names])]
    return Table(columns, [rows[i] for i in chosen])


def log(
    folder: Path,
    choice: str,
    project: str,
    group: str | None,
    config: Mapping[str, Any],
    values: Mapping[str, Any],
    tables: Mapping[str, Table],
    images: Mapping[str, Image],
    job_type: str = "eval",
    bars: Mapping[str, Mapping[str, float]] | None = None,
    lines: Mapping[str, Mapping[str, tuple[list[float], list[float]]]] | None = None,
) -> Path | None:
    """Log a run of a job type, named after `folder`; returns the folder of W&B's files, or None without one."""
    if choice == "off":
        return None
    # here, since Lightning takes seconds
    from ..training.logs.wandb import make_wandb_logger, resolve_mode

    # absolute, since W&B's writing process may stand in another folder
    mirror = make_wandb_logger(
        folder.absolute(), resolve_mode(choice), project, group, config=config, job_type=job_type
    )
    if mirror is None:
        return None
    mirror.summarise(values)
    for key, table in tables.items():
        mirror.log_table(key, columns=table.names, data=table.values())
    for key, image in images.items():
        mirror.log_image(key, [image])
    for key, named in (bars or {}).items():
        mirror.log_bars(key, named, "bits/dim")
    for key, series in (lines or {}).items():
        mirror.log_lines(key, series, "log-SNR")
    mirror.finish()
    return folder / "wandb"
